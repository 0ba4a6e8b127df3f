//! Several nodes: requests go where their keys are, and follow them when they move.
#![allow(clippy::unwrap_used)]

mod double;

use std::collections::BTreeSet;

use double::{Act, Double, SOON, partition, topology};
use kiln_client::{ErrorCode, Event, Put, TopologyView};
use kiln_protocol::native::{Effect, admin::capability, respond};
use tokio::time::timeout;

/// Two nodes; even partitions are the first's, odd ones the second's.
async fn two() -> (Double, Double) {
    let a = Double::start_named("a").await;
    let b = Double::start_named("b").await;
    let table = view(1, &a, &b, |partition| vec![partition % 2]);
    a.set_topology(table.clone());
    b.set_topology(table);
    (a, b)
}

fn view(epoch: u64, a: &Double, b: &Double, owners: fn(u32) -> Vec<u32>) -> TopologyView {
    topology(epoch, &[("a", a.address()), ("b", b.address())], owners)
}

fn keys() -> Vec<String> {
    (0..200).map(|n| format!("key-{n}")).collect()
}

#[tokio::test]
async fn each_request_goes_straight_to_the_owner_of_its_key() {
    let (a, b) = two().await;
    let client = a.client().await;

    for key in keys() {
        client.set(&key, "v").await.unwrap();
        assert_eq!(client.get(&key).await.unwrap().unwrap(), "v");
        let (owner, other) = if partition(&key).is_multiple_of(2) { (&a, &b) } else { (&b, &a) };
        assert!(owner.value("default", &key).is_some());
        assert!(other.value("default", &key).is_none());
    }
    assert_eq!(a.count("get") + b.count("get"), 200);
}

#[tokio::test]
async fn many_items_are_divided_by_their_owners() {
    let (a, b) = two().await;
    let client = a.client().await;
    let keys = keys();
    let puts: Vec<_> = keys.iter().map(|key| Put::new(key, key)).collect();

    for result in client.set_many(&puts).await {
        result.unwrap();
    }
    for (key, item) in keys.iter().zip(client.get_many(&keys).await) {
        assert_eq!(item.unwrap().unwrap().value, *key);
    }

    for key in &keys {
        let owner = if partition(key).is_multiple_of(2) { &a } else { &b };
        assert!(owner.value("default", key).is_some());
    }
    assert!(a.count("batch") >= 2 && b.count("batch") >= 2);
    assert_eq!(a.count("get") + b.count("get") + a.count("set") + b.count("set"), 0);
}

#[tokio::test]
async fn a_scan_goes_through_all_nodes() {
    let (a, b) = two().await;
    let client = a.client().await;
    for key in keys() {
        client.set(&key, "v").await.unwrap();
    }

    let mut seen = BTreeSet::new();
    let mut pages = client.scan().pages();
    while let Some(page) = pages.next().await.unwrap() {
        seen.extend(page.into_iter().map(|entry| entry.key));
    }

    assert_eq!(seen.len(), 200);
    client.flush().await.unwrap();
    assert_eq!(a.value("default", "key-1"), None);
    assert_eq!(b.value("default", "key-1"), None);
}

#[tokio::test]
async fn a_node_that_does_not_own_the_key_makes_the_client_look_at_the_new_table() {
    let (a, b) = two().await;
    let client = a.client().await;
    let mut events = client.events();
    client.get("key").await.unwrap();
    // Everything moves to the second node.
    let table = view(2, &a, &b, |_| vec![1]);
    a.set_topology(table.clone());
    b.set_topology(table);
    a.script(|seen| match seen.what {
        "set" | "get" => Act::Fail(ErrorCode::NotOwner, Effect::NotApplied),
        _ => Act::Answer,
    });

    for key in keys() {
        client.set(&key, "v").await.unwrap();
    }

    assert_eq!(a.count("set"), 1, "one request found out");
    assert_eq!(b.count("set"), 200);
    loop {
        if let Event::TopologyChanged { epoch } =
            timeout(SOON, events.next()).await.unwrap().unwrap()
        {
            assert_eq!(epoch, 2);
            break;
        }
    }
}

#[tokio::test]
async fn a_pushed_table_is_used_without_a_detour() {
    let (a, b) = two().await;
    for node in [&a, &b] {
        node.change_welcome(|welcome| {
            welcome.capabilities.push(capability::TOPOLOGY.to_owned());
        });
    }
    let client = a.client().await;
    let mut events = client.events();
    a.until("it is subscribed to", |node| node.count("subscribe") == 1).await;

    let mut push = Vec::new();
    respond::topology(&mut push, &view(2, &a, &b, |_| vec![1]));
    a.push(&push);
    loop {
        let event = timeout(SOON, events.next()).await.unwrap().unwrap();
        if matches!(event, Event::TopologyChanged { epoch: 2 }) {
            break;
        }
    }
    // An older one that comes late changes nothing.
    let mut push = Vec::new();
    respond::topology(&mut push, &view(1, &a, &b, |_| vec![0]));
    a.push(&push);
    client.ping().await.unwrap();

    for key in keys() {
        client.set(&key, "v").await.unwrap();
    }
    assert_eq!((a.count("set"), b.count("set")), (0, 200));
}

#[tokio::test]
async fn reads_are_spread_over_the_copies_by_load() {
    let a = Double::start_named("a").await;
    let b = Double::start_named("b").await;
    let table = view(1, &a, &b, |partition| vec![partition % 2, 1 - partition % 2]);
    a.set_topology(table.clone());
    b.set_topology(table);
    for key in keys() {
        a.put("default", &key, "v");
        b.put("default", &key, "v");
    }
    let client = a.client().await;
    client.get("any").await.unwrap();
    let mut events = client.events();
    while b.connected() == 0 {
        timeout(SOON, events.next()).await.unwrap().unwrap();
    }
    for key in keys() {
        client.get(&key).await.unwrap();
    }
    let (of_a, of_b) = (a.count("get"), b.count("get"));
    assert!(of_a > 40 && of_b > 40, "{of_a} and {of_b}");

    // Requests pile up on one node: the other takes over the reads.
    b.script(|seen| if seen.what == "get" { Act::Hold } else { Act::Answer });
    let reads: Vec<_> = keys()
        .into_iter()
        .take(50)
        .map(|key| {
            let client = client.clone();
            tokio::spawn(async move { client.get(&key).await })
        })
        .collect();
    let both = |a: &Double| a.count("get") + b.count("get") == of_a + of_b + 50;
    a.until("all are seen", both).await;
    let answered = a.count("get") - of_a;
    while reads.iter().filter(|read| read.is_finished()).count() < answered {
        tokio::task::yield_now().await;
    }
    let (of_a, of_b) = (a.count("get"), b.count("get"));
    for key in keys() {
        client.get(&key).await.unwrap();
    }
    assert_eq!((a.count("get") - of_a, b.count("get") - of_b), (200, 0));
    b.release(false);
    for read in reads {
        timeout(SOON, read).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn while_a_node_is_lost_another_is_asked_for_its_keys_and_none_fails() {
    let (a, mut b) = two().await;
    let client = a.client().await;
    for key in keys() {
        client.set(&key, "v").await.unwrap();
    }
    b.stop();

    for key in keys().iter().take(20) {
        // The connection may be lost while a write is under way; a read is asked again.
        client.get(key).await.unwrap();
        client.set(key, "w").await.unwrap();
        // The node passes requests on, or knows who has taken over.
        assert_eq!(a.value("default", key).as_deref(), Some("w"));
    }

    b.restart().await;
    let b_has = |key: &str| b.value("default", key).as_deref() == Some("x");
    for key in keys().iter().take(20) {
        let set = async {
            while partition(key) % 2 == 1 && !b_has(key) {
                let _ = client.set(key, "x").await;
            }
        };
        timeout(SOON, set).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_node_makes_the_client_look_at_the_new_table() {
    let (a, mut b) = two().await;
    let client = a.client().await;
    client.set("key", "v").await.unwrap();
    let mut events = client.events();
    // Nobody tells the client: the other node knows when it is asked.
    a.script(|seen| if seen.what == "subscribe" { Act::Hold } else { Act::Answer });
    let table = view(2, &a, &b, |_| vec![0]);
    a.set_topology(table);
    b.script(|seen| if seen.what == "get" { Act::Hold } else { Act::Answer });
    let odd = keys().into_iter().find(|key| partition(key) % 2 == 1).unwrap();
    let read = tokio::spawn({
        let (client, odd) = (client.clone(), odd.clone());
        async move { client.get(&odd).await }
    });
    b.until("the read is there", |b| b.count("get") == 1).await;

    b.stop();

    timeout(SOON, read).await.unwrap().unwrap().unwrap();
    loop {
        if let Event::TopologyChanged { epoch } =
            timeout(SOON, events.next()).await.unwrap().unwrap()
        {
            assert_eq!(epoch, 2);
            break;
        }
    }
}

#[tokio::test]
async fn any_of_the_named_hosts_is_a_way_in() {
    let (mut a, b) = two().await;
    let dead = a.host();
    a.stop();
    let table = topology(1, &[("b", b.address())], |_| vec![0]);
    b.set_topology(table);
    let address = format!("kiln://{dead},{}", b.host());

    let client = b.builder().address(address.parse().unwrap()).connect().await.unwrap();

    client.set("k", "v").await.unwrap();
    assert_eq!(b.value("default", "k").as_deref(), Some("v"));
}
