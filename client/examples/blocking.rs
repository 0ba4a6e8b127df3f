//! The client without async, shared by threads.

use std::thread;

use kiln_client::blocking::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let client = Client::connect(&address)?;

    let threads: Vec<_> = (0..4)
        .map(|number| {
            let client = client.clone();
            thread::spawn(move || {
                let key = format!("blocking:{number}");
                client.set(&key, "value")?;
                client.get(&key)
            })
        })
        .collect();
    for thread in threads {
        let value = thread.join().map_err(|_| "a thread panicked")??;
        println!("{value:?}");
    }

    let mut count = 0;
    for entry in client.scan(|scan| scan.prefix("blocking:").values()) {
        count += entry?.value.map_or(0, |value| value.len());
    }
    println!("{count} bytes of values found by a scan");
    Ok(())
}
