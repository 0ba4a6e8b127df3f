//! The shortest way from nothing to a value.
//!
//! ```text
//! kiln &
//! cargo run --example quick_start -- kiln://127.0.0.1:7311
//! ```

use std::time::Duration;

use kiln_client::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let client = Client::connect(&address).await?;

    client.set("greeting", "hello").expires(Duration::from_secs(60)).await?;
    let item = client.get_item("greeting").await?.ok_or("it is gone already")?;
    println!("{:?}, version {}, lives for {:?}", item.value, item.version, item.ttl);

    // Only if nobody else has written it meanwhile.
    let written = client.set("greeting", "hello, world").if_version(item.version).await?;
    println!("written: {}", written.is_stored());

    let visits = client.increment("visits", 1).or_create(1).await?;
    println!("visits: {:?}", visits.number());

    client.delete("greeting").await?;
    println!("after the delete: {:?}", client.get("greeting").await?);
    Ok(())
}
