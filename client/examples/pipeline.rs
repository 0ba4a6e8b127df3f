//! Many calls at once: tasks that share one client, and batches.
//!
//! There is no pipeline to build. Calls that are made at the same time travel together, each with
//! its own result.

use std::time::Instant;

use kiln_client::{Client, Put};
use tokio::task::JoinSet;

const TASKS: usize = 64;
const CALLS: usize = 500;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let client = Client::connect(&address).await?;

    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let client = client.clone();
        tasks.spawn(async move {
            for call in 0..CALLS {
                let key = format!("pipeline:{task}:{call}");
                client.set(&key, "value").await?;
                client.get(&key).await?;
            }
            Ok::<_, kiln_client::Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let calls = TASKS * CALLS * 2;
    let rate = calls as f64 / begun.elapsed().as_secs_f64();
    println!("{calls} calls of {TASKS} tasks: {rate:.0} a second");

    // One task that knows all its keys beforehand asks for them together.
    let keys: Vec<_> = (0..CALLS).map(|n| format!("pipeline:batch:{n}")).collect();
    let puts: Vec<_> = keys.iter().map(|key| Put::new(key, "value")).collect();
    for stored in client.set_many(&puts).await {
        stored?;
    }
    let mut found = 0;
    for item in client.get_many(&keys).await {
        found += usize::from(item?.is_some());
    }
    println!("{found} of {} items found in one batch", keys.len());
    Ok(())
}
