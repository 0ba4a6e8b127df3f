//! Sensor readings in, windows out.
//!
//! ```text
//! kiln &
//! kiln stream create plant --window 1s --aggregates count,mean,std
//! cargo run --example sensors -- kiln://127.0.0.1:7311
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_client::{Client, Reading};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let client = Client::connect(&address).await?;
    let plant = client.stream("plant");

    // Ten seconds of four sensors, sent at once: batches are numbered, and each counts once.
    let producer = plant.producer("example").linger(Duration::from_millis(5)).start();
    let end = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let begin = end - 10_000;
    for time in (begin..end).step_by(10) {
        for sensor in 0..4 {
            let value = 20.0 + f64::from(sensor) + (time as f64 / 1_000.0).sin();
            producer.send(Reading::new(format!("sensor{sensor}"), value).at(time)).await?;
        }
    }
    // Everything is acknowledged when this returns.
    producer.flush().await?;
    let totals = producer.totals();
    println!("{} readings accepted in {} batches", totals.accepted, totals.batches);

    let latest = plant.latest("sensor1").await?.ok_or("nothing was measured")?;
    println!("sensor1 measured {:.2} last", latest.value);
    // Windows close `watermark_delay` behind the newest reading: the first ones are there.
    for window in plant.windows("sensor1").from(begin).to(end).await?.windows {
        let figure = |name| window.figure(name).unwrap_or(f64::NAN);
        println!(
            "{}: {} readings, mean {:.2}, std {:.3}",
            window.start,
            figure("count"),
            figure("mean"),
            figure("std")
        );
    }
    Ok(())
}
