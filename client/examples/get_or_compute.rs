//! A costly value that a thousand tasks want at once is computed once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kiln_client::{Client, NearCacheConfig};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let client = Client::builder()
        .address(address.parse()?)
        .near_cache("default", NearCacheConfig::default())
        .connect()
        .await?;
    client.delete("report").await?;

    let computed = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        let (client, computed) = (client.clone(), computed.clone());
        tasks.spawn(async move {
            let minute = Duration::from_secs(60);
            client
                .get_or_compute("report", minute, || async {
                    computed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok::<_, std::io::Error>("a long report")
                })
                .await
        });
    }
    let mut reports = 0;
    while let Some(report) = tasks.join_next().await {
        assert_eq!(report??, "a long report");
        reports += 1;
    }
    println!("{reports} reports, computed {} times", computed.load(Ordering::Relaxed));
    client.delete("report").await?;
    Ok(())
}
