//! Readings from a real MQTT broker, mosquitto: what is counted, and that neither the broker's restart
//! nor the loss of the node that reads it loses a message. Left out where there is no mosquitto.

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::Http,
    common::eventually,
    harness::{Cluster, settles},
    make, node,
};

const BASE: i64 = 1_700_000_000_000;

/// A broker that keeps what its sessions wait for, also over a restart.
struct Broker {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Broker {
    /// `None`, and said so, where there is no mosquitto.
    fn start() -> Option<Self> {
        let binary = binary()?;
        let dir = TempDir::new().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = dir.path().display();
        // Started by root, it would else change to a user who may not write here.
        let settings = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
             persistence_location {place}/\nmax_inflight_messages 500\nmax_queued_messages 0\n"
        );
        fs::write(dir.path().join("mosquitto.conf"), settings).unwrap();
        let child = run(binary, dir.path());
        let broker = Self { child, port, dir };
        broker.until_it_listens();
        Some(broker)
    }

    fn until_it_listens(&self) {
        eventually("mosquitto listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn stop(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = run(binary().unwrap(), self.dir.path());
        self.until_it_listens();
    }

    fn source(&self, topic: &str, more: &str) -> String {
        format!(r#"{{"mqtt": "mqtt://127.0.0.1:{}", "topic": "{topic}"{more}}}"#, self.port)
    }

    /// Sends messages, and returns when the broker has acknowledged all of them.
    fn publish(&self, messages: &[(String, String, bool)]) {
        let mut options = MqttOptions::new("publisher", "127.0.0.1", self.port);
        options.set_inflight(100);
        let (client, mut connection) = Client::new(options, messages.len() + 1);
        for (topic, payload, retain) in messages {
            client.publish(topic, QoS::AtLeastOnce, *retain, payload.as_bytes()).unwrap();
        }
        let mut acknowledged = BTreeSet::new();
        let mut count = 0;
        for event in connection.iter() {
            if let Event::Incoming(Packet::PubAck(ack)) = event.unwrap() {
                acknowledged.insert(ack.pkid);
                count += 1;
            }
            if count == messages.len() {
                break;
            }
        }
        assert!(!acknowledged.is_empty());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> Option<&'static str> {
    let found = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
    let found = found.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        eprintln!("skipped: there is no mosquitto here");
    }
    found
}

fn run(binary: &str, dir: &Path) -> Child {
    Command::new(binary)
        .args(["-c", "mosquitto.conf"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn source_of(http: &Http) -> Value {
    http.get("/v1/streams/s").json()["sources"][0].clone()
}

fn until_running(http: &Http) {
    settles("the source is read", || source_of(http)["state"] == "running");
}

#[test]
fn messages_become_readings_and_what_is_wrong_in_them_is_counted() {
    let Some(broker) = Broker::start() else { return };
    // A value from yesterday, which the broker sends at every subscription.
    broker.publish(&[("plant/press-1/temperature".into(), "99".into(), true)]);
    let node = node();
    let source = broker.source("plant/+/temperature", r#", "sensor_level": 2"#);
    let plain = broker.source("lines/#", "");
    let http = make(&node, "s", &format!(r#"{{"sources": [{source}, {plain}]}}"#));
    until_running(&http);
    settles("both are read", || {
        http.get("/v1/streams/s").json()["sources"][1]["state"] == "running"
    });
    let message = |topic: &str, payload: &str| (topic.to_owned(), payload.to_owned(), false);
    broker.publish(&[
        message("plant/press-1/temperature", "20.5"),
        message("plant/press-2/temperature", &format!("21.5, {BASE}\n22.5, {}", BASE + 1)),
        message("plant/press-3/temperature", "warm"),
        message("plant//temperature", "1"),
        message("lines/a/b", "oven, 180\noven 181\noven, 182\n"),
    ]);
    let latest = |sensor: &str| http.get(&format!("/v1/streams/s/sensors/{sensor}")).json();
    settles("all readings are there", || latest("oven")["value"] == 182.0);
    settles("all readings are there", || {
        latest("press-1")["value"] == 20.5 && latest("press-2")["value"] == 22.5
    });
    assert_eq!(latest("press-2")["time"], BASE + 1);
    settles("everything is counted", || source_of(&http)["rejected"] == 2);
    let first = source_of(&http);
    assert_eq!((&first["messages"], &first["readings"]), (&4.into(), &3.into()), "{first}");
    assert_eq!(first["skipped"], 1, "the retained message: {first}");
    let second = http.get("/v1/streams/s").json()["sources"][1].clone();
    assert_eq!((&second["readings"], &second["rejected"]), (&2.into(), &1.into()), "{second}");
    assert_eq!(http.get("/v1/streams/s").json()["figures"]["rejected"], 3);
    let metric = "kiln_stream_source_readings_total{source=\"mqtt:lines/#\",stream=\"s\"}";
    let other = "kiln_stream_source_readings_total{stream=\"s\",source=\"mqtt:lines/#\"}";
    let text = String::from_utf8(http.get("/metrics").body).unwrap();
    let has = |name: &str| text.lines().any(|line| line == format!("{name} 2"));
    assert!(has(metric) || has(other), "{text}");
    let refused = http.put("/v1/streams/t", br#"{"sources": [{"mqtt": "b", "topic": "t"}]}"#);
    refused.assert_problem(422, "unfit");
}

#[test]
fn a_broker_that_restarts_is_subscribed_again_and_passwords_are_not_shown() {
    let Some(mut broker) = Broker::start() else { return };
    let node = node();
    let url = format!("mqtt://me:secret@127.0.0.1:{}", broker.port);
    let definition = format!(r#"{{"sources": [{{"mqtt": "{url}", "topic": "a"}}]}}"#);
    let http = make(&node, "s", &definition);
    until_running(&http);
    let shown = http.get("/v1/streams/s").json();
    let shown = shown["definition"]["sources"][0]["mqtt"].as_str().unwrap().to_owned();
    assert!(shown.contains("me:***@127.0.0.1") && !shown.contains("secret"), "{shown}");
    let one = |value: i32| [("a".to_owned(), format!("x, {value}"), false)];
    broker.publish(&one(1));
    let latest = || http.get("/v1/streams/s/sensors/x").json()["value"].clone();
    settles("the first reading is there", || latest() == 1.0);
    broker.stop();
    settles("the loss is seen", || {
        let source = source_of(&http);
        source["state"] == "connecting" && !source["error"].is_null()
    });
    broker.restart();
    // The session is kept: it need not be subscribed again already.
    broker.publish(&one(2));
    settles("the reading after the restart is there", || latest() == 2.0);
    until_running(&http);
    // A broker that forgets everything is as good.
    broker.stop();
    fs::remove_file(broker.dir.path().join("mosquitto.db")).unwrap();
    broker.restart();
    settles("it is seen that the broker is another", || {
        source_of(&http)["reconnects"].as_u64() >= Some(2)
    });
    settles("what is sent then arrives", || {
        broker.publish(&one(3));
        latest() == 3.0
    });
    assert_eq!(source_of(&http)["error"], Value::Null);
}

#[test]
fn one_node_of_several_reads_a_source_and_another_goes_on_when_it_is_killed() {
    let Some(broker) = Broker::start() else { return };
    let mut cluster = Cluster::start(3, &[]);
    cluster.until_whole(3);
    let http = Http::of(cluster.member(0));
    let source = broker.source("readings", "");
    let definition = format!(
        r#"{{"sources": [{source}], "windows": [{{"tumbling": "1m"}}], "watermark_delay": "0s",
            "aggregates": ["count", "sum", "min", "max"]}}"#
    );
    let made = http.put("/v1/streams/s", definition.as_bytes());
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    for number in 0..3 {
        let http = Http::of(cluster.member(number));
        eventually("every node knows the stream", || http.get("/v1/streams/s").status == 200);
    }
    cluster.until_whole(3);
    let readers = |cluster: &Cluster, among: &[usize]| -> Vec<usize> {
        let reads =
            |number: &&usize| source_of(&Http::of(cluster.member(**number)))["state"] == "running";
        among.iter().filter(reads).copied().collect()
    };
    settles("one node reads it", || readers(&cluster, &[0, 1, 2]).len() == 1);
    let reader = readers(&cluster, &[0, 1, 2])[0];
    let mut value = 0;
    let mut batch = |count: i64| -> Vec<(String, String, bool)> {
        let message = |_| {
            value += 1;
            ("readings".to_owned(), format!("x, {value}, {}", BASE + value % 50_000), false)
        };
        (0..count).map(message).collect()
    };
    broker.publish(&batch(500));
    cluster.kill(reader);
    let killed = Instant::now();
    // The broker keeps these for whoever comes.
    broker.publish(&batch(500));
    let others: Vec<usize> = (0..3).filter(|number| *number != reader).collect();
    settles("another node reads it", || readers(&cluster, &others).len() == 1);
    println!("another node reads the source after {:?}", killed.elapsed());
    broker.publish(&batch(500));
    let http = Http::of(cluster.member(others[0]));
    let asked = format!("/v1/streams/s/sensors/x/windows?from={}", BASE - 60_000);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Time passes in the sensor's partition when one reading comes from behind the window.
    broker.publish(&[("readings".into(), format!("x, 1, {}", BASE + 3_600_000), false)]);
    let (count, max) = loop {
        let found = http.get(&asked);
        if found.status == 200 {
            let windows = found.json()["windows"].as_array().unwrap().clone();
            let figure = |name: &str| -> Vec<f64> {
                windows.iter().map(|window| window[name].as_f64().unwrap()).collect()
            };
            let count: f64 = figure("count").iter().sum();
            if count >= 1_500.0 {
                break (count, figure("max").into_iter().fold(0.0, f64::max));
            }
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&found.body));
        std::thread::sleep(Duration::from_millis(100));
    };
    // At least once: what was under way to the node that was killed may count again.
    println!("{count} readings of 1500 messages");
    assert!((1_500.0..=2_000.0).contains(&count) && max == 1_500.0);
}
