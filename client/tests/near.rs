//! What a near cache serves, and how old it may be; and values that are computed once.
#![allow(clippy::unwrap_used)]

mod double;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use double::{Act, Double, SOON};
use futures_util::future::join_all;
use kiln_client::{CacheSpec, Client, ComputeError, Counters, ErrorCode, NearCacheConfig};
use tokio::time::{sleep, timeout};

const BOUND: Duration = Duration::from_millis(300);

async fn near_client(node: &Double, cache: &str) -> (Client, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let config = NearCacheConfig { staleness_max: BOUND, ..NearCacheConfig::default() };
    let builder = node.builder().near_cache(cache, config).metrics(counters.clone());
    (builder.connect().await.unwrap(), counters)
}

/// Reads until the value is served from near.
async fn warm(client: &kiln_client::Cache, counters: &Counters, key: &str) {
    let hits = counters.near_hits();
    let begun = Instant::now();
    while counters.near_hits() == hits {
        client.get(key).await.unwrap();
        assert!(begun.elapsed() < SOON, "never served from near");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_value_that_is_near_is_not_asked_for() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "default").await;
    node.put("default", "k", "v");
    warm(&client, &counters, "k").await;
    let asked = node.count("get");

    // Longer than the bound: pings keep it confirmed while it is read.
    let begun = Instant::now();
    let mut reads = 0;
    let hits = counters.near_hits();
    while begun.elapsed() < 3 * BOUND {
        assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
        reads += 1;
        sleep(Duration::from_millis(2)).await;
    }

    let near = counters.near_hits() - hits;
    assert!(near * 10 >= reads * 9, "{near} of {reads} were near");
    assert!(node.count("get") - asked <= (reads - near) as usize);
    assert!(node.count("ping") >= 3);
}

#[tokio::test]
async fn a_write_of_another_client_is_seen_by_push() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "default").await;
    let other = node.client().await;
    for round in 0..20 {
        let value = round.to_string();
        other.set("k", &value).await.unwrap();
        let begun = Instant::now();
        while client.get("k").await.unwrap().unwrap() != value {
            assert!(begun.elapsed() < BOUND, "older than the bound");
            tokio::task::yield_now().await;
        }
        warm(&client, &counters, "k").await;
    }
}

#[tokio::test]
async fn an_own_write_is_seen_at_once() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "default").await;
    for round in 0..50 {
        let value = round.to_string();
        client.set("k", &value).await.unwrap();
        assert_eq!(client.get("k").await.unwrap().unwrap(), value);
        assert_eq!(client.get("k").await.unwrap().unwrap(), value);
        client.get_many(&["k"]).await;
    }
    client.delete("k").await.unwrap();
    assert_eq!(client.get("k").await.unwrap(), None);
    for result in client.set_many(&[kiln_client::Put::new("k", "many")]).await {
        result.unwrap();
    }
    assert_eq!(client.get("k").await.unwrap().unwrap(), "many");
    client.flush().await.unwrap();
    assert_eq!(client.get("k").await.unwrap(), None);
    assert!(counters.near_hits() > 0, "nothing was near at all");
}

#[tokio::test]
async fn without_answered_pings_nothing_older_than_the_bound_is_served() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "default").await;
    node.put("default", "k", "old");
    warm(&client, &counters, "k").await;

    // The node hangs: it neither answers nor pushes, and meanwhile the value changes.
    node.script(|_| Act::Swallow);
    node.put("default", "k", "new");
    let written_at = Instant::now();
    let impatient = client.with_timeout(Duration::from_millis(20));
    let mut served = 0;
    while written_at.elapsed() < 2 * BOUND {
        let begun = Instant::now();
        match impatient.get("k").await {
            Ok(value) => {
                assert_eq!(value.unwrap(), "old");
                served += 1;
                let age = begun.duration_since(written_at);
                assert!(age < BOUND, "served {age:?} after the write");
            }
            Err(error) => assert!(error.is_deadline_exceeded(), "{error}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
    assert!(served > 0, "the value was near before");
}

#[tokio::test]
async fn a_lost_connection_empties_the_near_cache() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "default").await;
    node.put("default", "k", "old");
    warm(&client, &counters, "k").await;

    node.put("default", "k", "new");
    node.disconnect();
    node.until("it is back", |node| node.connected() == 2).await;

    assert_eq!(client.get("k").await.unwrap().unwrap(), "new");
}

#[tokio::test]
async fn a_read_overtaken_by_a_write_is_not_kept() {
    let node = Double::start().await;
    let (client, _) = near_client(&node, "default").await;
    node.put("default", "k", "old");
    let mut held = false;
    node.script(move |seen| {
        if seen.key == "k" && !held {
            held = true;
            Act::Hold
        } else {
            Act::Answer
        }
    });
    let read = tokio::spawn({
        let client = client.clone();
        async move { client.get("k").await.unwrap().unwrap() }
    });
    node.until("it is read", |node| node.seen().iter().any(|seen| seen.key == "k")).await;

    // The push is sent before the answer with the value from before it.
    node.written_by_another("default", "k", "new");
    node.release(false);
    assert_eq!(timeout(SOON, read).await.unwrap().unwrap(), "old");

    assert_eq!(client.get("k").await.unwrap().unwrap(), "new");
}

#[tokio::test]
async fn named_caches_are_near_by_their_handles() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "s").await;
    client.create_cache(&CacheSpec { name: "s".into(), ..CacheSpec::default() }).await.unwrap();
    let cache = client.cache("s");
    node.put("s", "k", "old");
    warm(&cache, &counters, "k").await;

    node.written_by_another("s", "k", "new");

    let begun = Instant::now();
    while cache.get("k").await.unwrap().unwrap() != "new" {
        assert!(begun.elapsed() < BOUND, "older than the bound");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn nothing_of_a_dropped_cache_is_served() {
    let node = Double::start().await;
    let (client, counters) = near_client(&node, "s").await;
    client.create_cache(&CacheSpec { name: "s".into(), ..CacheSpec::default() }).await.unwrap();
    let cache = client.cache("s");
    node.put("s", "k", "old");
    warm(&cache, &counters, "k").await;

    assert!(client.drop_cache("s").await.unwrap());

    let error = cache.get("k").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSuchCache));
}

#[tokio::test]
async fn a_node_that_cannot_push_is_always_asked() {
    let node = Double::start().await;
    node.change_welcome(|welcome| welcome.capabilities.clear());
    let (client, counters) = near_client(&node, "default").await;
    node.put("default", "k", "v");

    for _ in 0..10 {
        client.get("k").await.unwrap();
    }

    assert_eq!(node.count("get"), 10);
    assert_eq!(counters.near_hits(), 0);
}

#[tokio::test]
async fn a_thousand_callers_compute_a_missing_value_once() {
    let node = Double::start().await;
    let counters = Arc::new(Counters::default());
    let client = node.builder().metrics(counters.clone()).connect().await.unwrap();
    let computed = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let (client, computed) = (client.clone(), computed.clone());
            tokio::spawn(async move {
                client
                    .get_or_compute("k", None, || async {
                        computed.fetch_add(1, Ordering::Relaxed);
                        sleep(Duration::from_millis(20)).await;
                        Ok::<_, std::io::Error>("value")
                    })
                    .await
            })
        })
        .collect();

    for call in timeout(SOON, join_all(calls)).await.unwrap() {
        assert_eq!(call.unwrap().unwrap(), "value");
    }
    assert_eq!(computed.load(Ordering::Relaxed), 1);
    assert_eq!(counters.computations(), 1);
    assert_eq!(node.value("default", "k").as_deref(), Some("value"));
}

#[tokio::test]
async fn a_failed_computation_is_told_to_all_who_waited_and_the_next_one_tries_again() {
    let node = Double::start().await;
    let client = node.client().await;
    let failing = || async {
        sleep(Duration::from_millis(50)).await;
        Err::<&str, _>(std::io::Error::other("no database"))
    };
    let calls = (0..10).map(|_| client.get_or_compute("k", None, failing));
    for result in timeout(SOON, join_all(calls)).await.unwrap() {
        let error = result.unwrap_err();
        assert!(matches!(error, ComputeError::Compute(_)));
        assert!(error.to_string().contains("no database"), "{error}");
    }

    let fine = client.get_or_compute("k", None, || async { Ok::<_, std::io::Error>("value") });
    assert_eq!(fine.await.unwrap(), "value");
}

#[tokio::test]
async fn when_the_one_that_computes_is_dropped_another_computes() {
    let node = Double::start().await;
    let client = node.client().await;
    let first = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .get_or_compute("k", None, || async {
                    std::future::pending::<()>().await;
                    Ok::<_, std::io::Error>("never")
                })
                .await
        }
    });
    node.until("it looked twice", |node| node.count("get") >= 2).await;
    let second = tokio::spawn({
        let client = client.clone();
        async move {
            client.get_or_compute("k", None, || async { Ok::<_, std::io::Error>("second") }).await
        }
    });
    node.until("the second looked", |node| node.count("get") >= 3).await;
    sleep(Duration::from_millis(20)).await;

    first.abort();

    assert_eq!(timeout(SOON, second).await.unwrap().unwrap().unwrap(), "second");
}

#[tokio::test]
async fn when_the_node_falls_silent_those_who_miss_do_not_wait_for_it_one_after_the_other() {
    const CALLERS: usize = 30;
    let node = Double::start().await;
    let timeout_of_one = Duration::from_millis(100);
    let cache = node.client().await.with_timeout(timeout_of_one);
    let mut looks = 0;
    node.script(move |_| {
        looks += 1;
        if looks <= CALLERS { Act::Answer } else { Act::Swallow }
    });
    let computed = AtomicUsize::new(0);
    let compute = || async {
        computed.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>("value")
    };

    let begun = Instant::now();
    let calls = join_all((0..CALLERS).map(|_| cache.get_or_compute("k", None, compute)));
    for result in timeout(SOON, calls).await.unwrap() {
        assert_eq!(result.unwrap(), "value");
    }

    assert_eq!(computed.load(Ordering::Relaxed), 1);
    assert!(begun.elapsed() < timeout_of_one * CALLERS as u32 / 2);
}
