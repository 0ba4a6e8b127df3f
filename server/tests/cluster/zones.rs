//! Where copies lie: zones, and nodes that hold none.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    harness::{Cluster, settles},
    load,
};

fn get(cluster: &Cluster, at: usize, target: &str) -> Value {
    serde_json::from_str(&cluster.member(at).http("GET", target).body).expect("JSON")
}

/// The owners of every partition, by name, as a node tells them.
fn owners(cluster: &Cluster, at: usize) -> Vec<BTreeSet<String>> {
    let nodes = get(cluster, at, "/v1/cluster/nodes");
    let nodes = nodes["nodes"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let names: BTreeMap<String, String> =
        nodes.map(|node| (text(&node["id"]), text(&node["name"]))).collect();
    let mut owners = Vec::new();
    let mut cursor = Some("0".to_owned());
    while let Some(from) = cursor {
        let page = get(cluster, at, &format!("/v1/cluster/partitions?limit=1000&cursor={from}"));
        for partition in page["partitions"].as_array().expect("a list") {
            let ids = partition["owners"].as_array().expect("a list").iter();
            owners.push(ids.map(|id| names[&text(id)].clone()).collect());
        }
        cursor = page["cursor"].as_str().map(str::to_owned);
    }
    owners
}

fn are(owners: &BTreeSet<String>, names: [&str; 2]) -> bool {
    owners.len() == 2 && names.iter().all(|name| owners.contains(*name))
}

#[test]
fn copies_lie_in_distinct_zones_while_there_are_enough_and_a_witness_holds_none() {
    let mut cluster = Cluster::start(1, &["--zone", "a"]);
    cluster.add(&["--zone", "b"]);
    cluster.add(&["--zone", "a"]);
    let witness = cluster.add(&["--witness", "--zone", "b"]);
    cluster.until_whole(4);
    settles("copies in both zones", || {
        let all = owners(&cluster, witness);
        assert_eq!(all.len(), 1_024);
        all.iter().all(|owners| are(owners, ["n1", "n2"]) || are(owners, ["n3", "n2"]))
    });
    let mut client = cluster.client(witness);
    for number in 0..100 {
        assert_eq!(client.ask(&format!("set z{number} 0 0 1\r\nz\r\n")), "STORED\r\n");
    }
    // The only holder of a zone ends: two copies in one zone are better than one.
    cluster.kill(1);
    cluster.until_whole(3);
    settles("copies on the nodes that are left", || {
        owners(&cluster, witness).iter().all(|owners| are(owners, ["n1", "n3"]))
    });
    for number in 0..100 {
        assert_eq!(load::get(&mut client, &format!("z{number}")).as_deref(), Some("z"));
    }
}
