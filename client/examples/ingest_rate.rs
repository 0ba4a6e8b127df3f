//! How many readings a second a node takes in over the native protocol, and what one costs it.
//!
//! ```text
//! kiln --memory 1GiB &
//! kiln stream create rate --window 10s --aggregates count,mean,var
//! cargo run --release --example ingest_rate -- kiln://127.0.0.1:7311 rate 2000000 1000 5000
//! ```
//!
//! Arguments: address, stream, readings, sensors, readings in a batch.

use std::time::{Duration, Instant};

use kiln_client::{Client, Reading};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let stream = arguments.next().unwrap_or_else(|| "rate".to_owned());
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (readings, sensors, batch) = (number(2_000_000)?, number(1_000)?, number(5_000)?);
    let client = Client::connect(&address).await?;
    let names: Vec<String> = (0..sensors.max(1)).map(|sensor| format!("sensor{sensor}")).collect();

    let producer = client
        .stream(&stream)
        .producer("rate")
        .batch_len_max(batch)
        .waiting_max(4 * batch.max(1))
        .linger(Duration::from_millis(50))
        .start();
    let cpu_us = async || -> u64 {
        let nodes = client.nodes_info().await;
        nodes.iter().filter_map(|(_, info)| Some(info.as_ref().ok()?.cpu_us)).sum()
    };
    let (before, begun) = (cpu_us().await, Instant::now());
    for i in 0..readings {
        // A millisecond for each round of the sensors.
        let time = 1_700_000_000_000 + (i / names.len()) as i64;
        producer.send(Reading::new(&names[i % names.len()], i as f64).at(time)).await?;
    }
    producer.flush().await?;
    let (took, cpu) = (begun.elapsed(), cpu_us().await.saturating_sub(before));
    let totals = producer.totals();
    println!(
        "{} readings in {took:.2?}, {:.2} M a second; {:.2} M per second of the nodes' processors; \
         {} batches, {} sent again",
        totals.accepted,
        totals.accepted as f64 / took.as_secs_f64() / 1e6,
        totals.accepted as f64 / (cpu.max(1) as f64 / 1e6) / 1e6,
        totals.batches,
        totals.retries
    );
    Ok(())
}
