//! Streams on several nodes: readings may be sent to any of them, and each counts once, at its owner.

use std::collections::BTreeMap;

use super::{
    client::Http,
    common::eventually,
    harness::{Cluster, settles},
};

const BASE: i64 = 1_700_000_000_000;

/// Sends a numbered batch until it is acknowledged: partitions may be moving.
fn send(http: &Http, target: &str, text: &str) -> serde_json::Value {
    let mut answer = serde_json::Value::Null;
    settles("the batch is acknowledged", || {
        let sent = http.post(target, text.as_bytes());
        assert!([200, 429].contains(&sent.status), "{}", String::from_utf8_lossy(&sent.body));
        answer = sent.json();
        sent.status == 200
    });
    answer
}

#[test]
fn readings_sent_to_any_node_meet_at_the_owner_of_their_sensor() {
    let cluster = Cluster::start(3, &[]);
    cluster.until_whole(3);
    let nodes: Vec<Http> = (0..3).map(|number| Http::of(cluster.member(number))).collect();
    let definition = br#"{"windows": [{"tumbling": "10s"}, {"count": 30}],
        "aggregates": ["count", "sum"], "watermark_delay": "0s"}"#;
    let made = nodes[0].put("/v1/streams/s", definition);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    for http in &nodes {
        eventually("every node knows the stream", || http.get("/v1/streams/s").status == 200);
    }
    cluster.until_whole(3);
    // Batches go round, each with a number, and every third is sent twice: to another node.
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for number in 0..30_i64 {
        let mut text = String::new();
        for sensor in 0..60 {
            let value = number * 60 + sensor;
            text.push_str(&format!("s{sensor}, {value}, {}\n", BASE + number * 300));
            *sums.entry(format!("s{sensor}")).or_default() += value as f64;
        }
        let target = format!("/v1/streams/s/readings?producer=p&epoch=1&sequence={number}");
        let at = number as usize % 3;
        let told = send(&nodes[at], &target, &text);
        // What was taken in before a partition moved is a duplicate when it is sent again.
        let taken = |name: &str| told[name].as_u64().unwrap();
        assert_eq!(taken("accepted") + taken("duplicate"), 60);
        if number % 3 == 0 {
            assert_eq!(send(&nodes[(at + 1) % 3], &target, &text)["duplicate"], 60);
        }
    }
    let close = "/v1/streams/s/readings?producer=p&epoch=1&sequence=30";
    send(&nodes[1], close, &format!("end, 0, {}\n", BASE + 60_000));
    // Nobody else is to hold partitions back: their owners heard of the end with the next batch.
    let all: String = (0..60).map(|sensor| format!("s{sensor}, 0, {}\n", BASE + 60_000)).collect();
    send(&nodes[2], "/v1/streams/s/readings?producer=p&epoch=1&sequence=31", &all);
    for (sensor, sum) in &sums {
        let range =
            format!("/v1/streams/s/sensors/{sensor}/windows?from={BASE}&to={}", BASE + 10_000);
        for http in &nodes {
            let mut found = serde_json::Value::Null;
            eventually("the window is there", || {
                found = http.get(&range).json();
                found["windows"].as_array().is_some_and(|windows| windows.len() == 1)
            });
            assert_eq!(
                (&found["windows"][0]["count"], &found["windows"][0]["sum"]),
                (&30.into(), &(*sum as i64).into())
            );
        }
    }
    // What they remember is nobody else's.
    let state = "/v1/caches/s.state";
    assert_eq!(nodes[1].get(state).json()["eviction"], "none");
    for refused in [
        nodes[0].put(&format!("{state}/keys/h.0"), b"x"),
        nodes[1].delete(&format!("{state}/keys/h.0")),
        nodes[1].delete(&format!("{state}/keys")),
        nodes[2].delete(state),
    ] {
        refused.assert_problem(403, "forbidden");
    }
    // Asked of any node: the state of the owner answers.
    for http in &nodes {
        let latest = http.get("/v1/streams/s/sensors/s7").json();
        assert_eq!((&latest["value"], &latest["time"]), (&0.0.into(), &(BASE + 60_000).into()));
        let counted = http.get("/v1/streams/s/sensors/s7/windows?window=count-30").json();
        assert_eq!(counted["windows"].as_array().unwrap().len(), 1);
        assert_eq!(http.get("/v1/caches/s/keys/s7").body, b"0");
    }
    let accepted: u64 = nodes
        .iter()
        .map(|http| http.get("/v1/streams/s").json()["figures"]["accepted"].as_u64().unwrap())
        .sum();
    assert_eq!(accepted, 31 * 60 + 1);
    // All three own a part.
    for http in &nodes {
        eventually("every node has sensors", || {
            http.get("/v1/streams/s").json()["figures"]["sensors"].as_u64() > Some(5)
        });
    }
}

#[test]
fn latest_values_are_those_of_the_last_readings_also_when_batches_wait_behind_each_other() {
    const SENSORS: i64 = 40;
    const BATCHES: i64 = 25;
    const PRODUCERS: i64 = 6;
    let cluster = Cluster::start(2, &[]);
    cluster.until_whole(2);
    let nodes: Vec<Http> = (0..2).map(|number| Http::of(cluster.member(number))).collect();
    let made = nodes[0].put("/v1/streams/s", br#"{"windows": [{"tumbling": "10s"}]}"#);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    for http in &nodes {
        eventually("every node knows the stream", || http.get("/v1/streams/s").status == 200);
    }
    cluster.until_whole(2);
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let nodes = &nodes;
            scope.spawn(move || {
                for number in 0..BATCHES {
                    // No two readings of a sensor have the same time.
                    let time = BASE + number * PRODUCERS + producer;
                    let text: String = (0..SENSORS)
                        .map(|sensor| format!("s{sensor}, {}, {time}\n", time - BASE + sensor))
                        .collect();
                    let target = format!(
                        "/v1/streams/s/readings?producer=p{producer}&epoch=1&sequence={number}"
                    );
                    send(&nodes[(number + producer) as usize % 2], &target, &text);
                }
            });
        }
    });
    let last = BATCHES * PRODUCERS - 1;
    for sensor in 0..SENSORS {
        let value = (last + sensor).to_string();
        for http in &nodes {
            eventually("the item is the last reading", || {
                http.get(&format!("/v1/caches/s/keys/s{sensor}")).body == value.as_bytes()
            });
        }
    }
}
