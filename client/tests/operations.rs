//! Every operation with its options, against the double.
#![allow(clippy::unwrap_used)]

mod double;

use std::{collections::BTreeSet, time::Duration};

use double::Double;
use futures_util::TryStreamExt;
use kiln_client::{CacheSpec, Counted, Deleted, ErrorCode, Expiry, Put, Reason, Written};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_was_set_is_got_with_version_flags_and_time_to_live() {
    let node = Double::start().await;
    let client = node.client().await;

    let version = client.set("k", "v").flags(7).expires(MINUTE).await.unwrap();

    assert_eq!(client.get("k").await.unwrap().as_deref(), Some(b"v".as_slice()));
    let item = client.get_item("k").await.unwrap().unwrap();
    assert_eq!((item.version, item.flags, item.ttl), (version, 7, Some(MINUTE)));
    assert_eq!(client.get("absent").await.unwrap(), None);
}

#[tokio::test]
async fn conditions_of_writes_are_told_apart() {
    let node = Double::start().await;
    let client = node.client().await;

    assert_eq!(client.replace("k", "v").await.unwrap(), Written::NotStored);
    assert_eq!(client.set("k", "v").if_version(1).await.unwrap(), Written::NotFound);
    let version = client.add("k", "v").await.unwrap().version().unwrap();
    assert_eq!(client.add("k", "w").await.unwrap(), Written::NotStored);
    assert_eq!(client.set("k", "w").if_version(version + 1).await.unwrap(), Written::Conflict);
    assert!(client.set("k", "w").if_version(version).await.unwrap().is_stored());
    assert!(client.append("k", "3").await.unwrap().is_stored());
    assert!(client.prepend("k", "1").await.unwrap().is_stored());
    assert_eq!(client.get("k").await.unwrap().as_deref(), Some(b"1w3".as_slice()));
}

#[tokio::test]
async fn the_old_item_comes_with_the_result_where_it_was_asked_for() {
    let node = Double::start().await;
    let client = node.client().await;

    let first = client.set("k", "one").flags(1).returning_old().await.unwrap();
    assert_eq!(first.old, None);
    let second = client.set("k", "two").returning_old().await.unwrap();
    let old = second.old.unwrap();
    assert_eq!((old.value.as_ref(), old.flags), (b"one".as_slice(), 1));
    assert_eq!(Some(old.version), first.result.version());
    let removed = client.delete("k").returning_old().await.unwrap();
    assert_eq!(removed.result, Deleted::Deleted);
    assert_eq!(removed.old.unwrap().value.as_ref(), b"two");
}

#[tokio::test]
async fn deletes_tell_what_they_found() {
    let node = Double::start().await;
    let client = node.client().await;
    let version = client.set("k", "v").await.unwrap();

    assert_eq!(client.delete("absent").await.unwrap(), Deleted::NotFound);
    assert_eq!(client.delete("k").if_version(version + 1).await.unwrap(), Deleted::Conflict);
    assert_eq!(client.delete("k").if_version(version).await.unwrap(), Deleted::Deleted);
    assert_eq!(node.value("default", "k"), None);
}

#[tokio::test]
async fn numbers_are_counted() {
    let node = Double::start().await;
    let client = node.client().await;

    assert_eq!(client.increment("n", 1).await.unwrap(), Counted::NotFound);
    assert_eq!(client.increment("n", 5).or_create(10).await.unwrap().number(), Some(10));
    assert_eq!(client.increment("n", 5).await.unwrap().number(), Some(15));
    assert_eq!(client.decrement("n", 20).await.unwrap().number(), Some(0));
    assert_eq!(client.increment("n", 1).if_version(1 << 40).await.unwrap(), Counted::Conflict);
}

#[tokio::test]
async fn a_look_can_leave_the_value_out_and_touch() {
    let node = Double::start().await;
    let client = node.client().await;
    client.set("k", "12345").await.unwrap();

    let look = client.look("k").without_value().touch(MINUTE).await.unwrap().unwrap();
    assert_eq!((look.item.value.len(), look.value_len), (0, 5));
    let look = client.look("k").unnoticed().await.unwrap().unwrap();
    assert_eq!((look.item.value.as_ref(), look.value_len), (b"12345".as_slice(), 5));
    assert!(client.look("absent").await.unwrap().is_none());
    assert!(client.touch("k", Expiry::Never).await.unwrap());
    assert!(!client.touch("absent", MINUTE).await.unwrap());
}

#[tokio::test]
async fn large_values_travel_compressed_both_ways_and_arrive_whole() {
    let node = Double::start().await;
    let client = node.client().await;
    let plain = node.builder().compress(false).connect().await.unwrap();
    let value = "abcdefgh".repeat(100_000);

    client.set("k", &value).await.unwrap();

    assert_eq!(node.value("default", "k").as_deref(), Some(value.as_str()));
    assert_eq!(client.get("k").await.unwrap().unwrap(), value);
    assert_eq!(plain.get("k").await.unwrap().unwrap(), value);
    let old = client.set("k", "").returning_old().await.unwrap().old.unwrap();
    assert_eq!(old.value, value);
}

#[tokio::test]
async fn what_is_over_a_limit_of_the_node_is_not_sent() {
    let node = Double::start().await;
    let client = node.client().await;
    let before = node.seen().len();

    let error = client.set("k", &vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(error.is_not_applied());
    assert!(matches!(error.reason(), Reason::TooLarge { what: "a value", .. }), "{error}");
    let error = client.get(&"k".repeat(1001)).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::TooLarge { what: "a key", len: 1001, limit: 1000 }));
    let error = client.get("").await.unwrap_err();
    assert!(matches!(error.reason(), Reason::EmptyKey));
    assert_eq!(node.seen().len(), before);
}

#[tokio::test]
async fn many_items_at_once_have_a_result_each() {
    let node = Double::start().await;
    let client = node.client().await;
    let keys: Vec<_> = (0..1000).map(|n| format!("key-{n}")).collect();
    let puts: Vec<_> = keys.iter().map(|key| Put::new(key, key).flags(3)).collect();

    let versions: BTreeSet<u64> =
        client.set_many(&puts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(versions.len(), 1000);

    let mut asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    asked.insert(500, "absent");
    asked.push("");
    let got = client.get_many(&asked).await;
    assert_eq!(got.len(), 1002);
    for (key, item) in asked.iter().zip(&got).take(1001) {
        let value = item.as_ref().unwrap().as_ref().map(|item| item.value.as_ref());
        assert_eq!(value, Some(key.as_bytes()).filter(|_| *key != "absent"));
    }
    assert!(matches!(got[1001].as_ref().unwrap_err().reason(), Reason::EmptyKey));

    let deleted = client.delete_many(&["key-0", "absent", "key-999"]).await;
    let deleted: Vec<_> = deleted.into_iter().map(Result::unwrap).collect();
    assert_eq!(deleted, [Deleted::Deleted, Deleted::NotFound, Deleted::Deleted]);
    // 1,000 items in batches of the announced 100.
    assert!(node.count("batch") >= 21, "{}", node.count("batch"));
    assert_eq!(node.count("get") + node.count("set"), 0);
}

#[tokio::test]
async fn nothing_at_once_is_nothing() {
    let node = Double::start().await;
    let client = node.client().await;

    assert!(client.get_many::<&str>(&[]).await.is_empty());
    assert!(client.set_many(&[]).await.is_empty());
}

#[tokio::test]
async fn large_values_in_batches_stay_within_the_frame() {
    let node = Double::start().await;
    let client = node.client().await;
    let values: Vec<Vec<u8>> = (0..8_u32)
        .map(|n| {
            let mut state = n + 1;
            let noise = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                b'a' + (state >> 24) as u8 % 26
            };
            (0..600 * 1024).map(noise).collect()
        })
        .collect();
    let keys: Vec<_> = (0..8).map(|n| n.to_string()).collect();
    let puts: Vec<_> = keys.iter().zip(&values).map(|(k, v)| Put::new(k, v)).collect();

    for result in client.set_many(&puts).await {
        result.unwrap();
    }
    for (key, value) in keys.iter().zip(&values) {
        assert!(client.get(key).await.unwrap().unwrap() == *value);
    }
    assert!(node.count("batch") >= 8);
}

#[tokio::test]
async fn a_scan_shows_each_item_once_page_by_page_or_as_a_stream() {
    let node = Double::start().await;
    let client = node.client().await;
    for n in 0..35 {
        node.put("default", &format!("a-{n:02}"), "value");
        node.put("default", &format!("b-{n:02}"), "value");
    }

    let mut pages = client.scan().prefix("a-").values().page_len(1000).pages();
    let (mut keys, mut count) = (Vec::new(), 0);
    while let Some(page) = pages.next().await.unwrap() {
        count += 1;
        assert!(page.iter().all(|entry| entry.value.as_deref() == Some(b"value")));
        keys.extend(page.into_iter().map(|entry| entry.key));
    }
    // The node allows ten items in a page.
    assert_eq!(count, 4);
    let expected: Vec<_> = (0..35).map(|n| format!("a-{n:02}")).collect();
    assert_eq!(keys, expected);

    let entries: Vec<_> = client.scan().entries().try_collect().await.unwrap();
    assert_eq!(entries.len(), 70);
    assert!(entries.iter().all(|entry| entry.value.is_none() && entry.value_len == 5));
}

#[tokio::test]
async fn named_caches_are_opened_once_for_each_connection() {
    let node = Double::start().await;
    let client = node.client().await;
    client.create_cache(&CacheSpec { name: "s".into(), ..CacheSpec::default() }).await.unwrap();
    let cache = client.cache("s");

    for _ in 0..3 {
        cache.set("k", "v").await.unwrap();
    }

    assert_eq!(node.count("open"), 1);
    assert_eq!(node.value("s", "k").as_deref(), Some("v"));
    assert_eq!(client.get("k").await.unwrap(), None);
    cache.flush().await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_cache_that_was_dropped_and_made_again_is_found_again() {
    let node = Double::start().await;
    let client = node.client().await;
    let spec = CacheSpec { name: "s".into(), ..CacheSpec::default() };
    client.create_cache(&spec).await.unwrap();
    let cache = client.cache("s");
    cache.set("k", "v").await.unwrap();

    assert!(client.drop_cache("s").await.unwrap());
    assert!(!client.drop_cache("s").await.unwrap());
    let error = cache.get("k").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSuchCache));

    client.create_cache(&spec).await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), None);
    assert!(cache.scan().pages().next().await.unwrap().unwrap().is_empty());
    for result in cache.get_many(&["a", "b"]).await {
        assert_eq!(result.unwrap(), None);
    }
}

#[tokio::test]
async fn more_caches_than_the_node_gives_handles_for_work_by_name() {
    let node = Double::start().await;
    let client = node.client().await;
    for n in 0..8 {
        let name = format!("cache-{n}");
        client
            .create_cache(&CacheSpec { name: name.clone(), ..CacheSpec::default() })
            .await
            .unwrap();
        client.cache(&name).set("k", &name).await.unwrap();
        client.cache(&name).set("k", &name).await.unwrap();
        assert_eq!(node.value(&name, "k"), Some(name));
    }
    assert_eq!(node.count("open"), 8);
}

#[tokio::test]
async fn caches_topology_and_figures_are_told() {
    let node = Double::start().await;
    let client = node.client().await;

    client.ping().await.unwrap();
    let names: Vec<_> = client.caches().await.unwrap().into_iter().map(|c| c.spec.name).collect();
    assert_eq!(names, ["default"]);
    assert_eq!(client.cache_info("default").await.unwrap().unwrap().items, 0);
    assert_eq!(client.cache_info("absent").await.unwrap(), None);
    assert_eq!(client.topology().await.unwrap().nodes.len(), 1);
    let infos = client.nodes_info().await;
    assert_eq!(infos.len(), 1);
    assert_eq!(infos[0].0, node.host());
    assert_eq!(infos[0].1.as_ref().unwrap().name, "double");
}

#[tokio::test]
async fn typed_values_come_back_as_what_they_were() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct User {
        name: String,
        logins: u32,
    }
    let node = Double::start().await;
    let client = node.client().await;
    let users = client.typed::<User>();
    let ada = User { name: "Ada".into(), logins: 3 };

    users.set("ada", &ada, MINUTE).await.unwrap();

    assert_eq!(users.get("ada").await.unwrap(), Some(ada));
    assert_eq!(users.get("absent").await.unwrap().map(|user| user.name), None);
    client.set("broken", "\u{1}").await.unwrap();
    let error = users.get("broken").await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Value(_)), "{error}");
    let eve = users
        .get_or_compute("eve", None, || async {
            Ok::<_, std::io::Error>(User { name: "Eve".into(), logins: 0 })
        })
        .await
        .unwrap();
    assert_eq!(users.get("eve").await.unwrap(), Some(eve));
}

#[tokio::test]
async fn a_loader_stores_all_and_reports_what_it_could_not() {
    let node = Double::start().await;
    let client = node.client().await;
    let mut loader = client.loader();
    for n in 0..5000 {
        loader.push(Put::new(&format!("key-{n}"), &n.to_string())).await;
    }
    loader.push(Put::new("large", &vec![0; (1 << 20) + 1])).await;

    let report = loader.finish().await;

    assert_eq!((report.stored, report.failed), (5000, 1));
    assert_eq!(report.failures[0].0.as_ref(), b"large");
    for n in [0, 2500, 4999] {
        assert_eq!(node.value("default", &format!("key-{n}")), Some(n.to_string()));
    }
}

#[tokio::test]
async fn a_cache_that_was_dropped_and_made_again_is_opened_again_by_whatever_comes_first() {
    let node = Double::start().await;
    let client = node.client().await;
    let spec = CacheSpec { name: "s".into(), ..CacheSpec::default() };
    let cache = client.cache("s");
    for first in 0..4 {
        client.create_cache(&spec).await.unwrap();
        match first {
            0 => assert!(cache.set_many(&[Put::new("k", "v")]).await.remove(0).is_ok()),
            1 => assert_eq!(cache.get_many(&["k"]).await.remove(0).unwrap(), None),
            2 => cache.flush().await.unwrap(),
            _ => assert!(cache.delete_many(&["k"]).await.remove(0).is_ok()),
        }
        cache.set("k", "v").await.unwrap();
        assert!(client.drop_cache("s").await.unwrap());
    }
}

#[test]
fn the_blocking_client_does_the_same() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(Double::start());
    let client = kiln_client::blocking::Client::build(node.builder()).unwrap();

    client.set("k", "v").unwrap();
    assert_eq!(client.get("k").unwrap().as_deref(), Some(b"v".as_slice()));
    assert!(!client.call(|cache| cache.add("k", "w")).unwrap().is_stored());
    let computed = client.get_or_compute("c", None, || Ok::<_, std::io::Error>("computed"));
    assert_eq!(computed.unwrap().as_ref(), b"computed");
    let of_another = client.get_or_compute("d", None, || client.get("c").map(Option::unwrap));
    assert_eq!(of_another.unwrap().as_ref(), b"computed");
    client.delete("d").unwrap();
    let keys: Vec<_> = client.scan(|scan| scan).map(|entry| entry.unwrap().key).collect();
    assert_eq!(keys, ["c", "k"]);
    assert_eq!(client.delete("k").unwrap(), Deleted::Deleted);
    assert_eq!(client.get_many(&["k", "c"]).len(), 2);

    let threads: Vec<_> = (0..8)
        .map(|n| {
            let client = client.clone();
            std::thread::spawn(move || {
                let key = format!("thread-{n}");
                for _ in 0..100 {
                    client.set(&key, &key).unwrap();
                    assert_eq!(client.get(&key).unwrap().unwrap(), key);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
