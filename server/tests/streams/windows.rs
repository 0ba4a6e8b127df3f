//! Windows: equal to brute force, filled as asked, followed live.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
};

use super::{
    common::{SOON, eventually},
    make, node, send,
};

const BASE: i64 = 1_700_000_000_000;

#[test]
fn windows_of_random_disordered_readings_equal_brute_force() {
    let node = node();
    let definition = r#"{"windows": [{"tumbling": "10s"}, {"hopping": "30s", "every": "10s"}],
        "aggregates": ["count", "sum", "mean", "var", "min", "max"], "watermark_delay": "20s"}"#;
    let http = make(&node, "s", definition);
    let mut random = fastrand::Rng::with_seed(7);
    // Disorder of up to 20 s is within the delay: nothing is late.
    let mut readings: Vec<(i64, usize, f64)> = Vec::new();
    for i in 0..20_000_i64 {
        let time = BASE + i * 10 - random.i64(0..20_000);
        readings.push((
            time.max(BASE),
            random.usize(0..40),
            random.i32(-1_000..1_000) as f64 / 8.0,
        ));
    }
    let mut late = 0;
    for chunk in readings.chunks(700) {
        let text: String = chunk
            .iter()
            .map(|(time, sensor, value)| format!("s{sensor}, {value}, {time}\n"))
            .collect();
        late += send(&http, "/v1/streams/s/readings", &text)["late"].as_i64().unwrap();
    }
    assert_eq!(late, 0);
    send(&http, "/v1/streams/s/readings", &format!("end, 0, {}\n", BASE + 600_000));
    for (window, size) in [("10s", 10_000), ("30s", 30_000)] {
        let mut expected: BTreeMap<(usize, i64), Vec<f64>> = BTreeMap::new();
        for (time, sensor, value) in &readings {
            let mut start = time.div_euclid(10_000) * 10_000;
            while start + size > *time {
                expected.entry((*sensor, start)).or_default().push(*value);
                start -= 10_000;
            }
        }
        for sensor in 0..40 {
            let target = format!(
                "/v1/streams/s/sensors/s{sensor}/windows?window={window}&from={}&to={}",
                BASE - 30_000,
                BASE + 300_000
            );
            let of_sensor = expected.range((sensor, i64::MIN)..=(sensor, i64::MAX));
            let of_sensor: Vec<_> = of_sensor.collect();
            let mut found = serde_json::Value::Null;
            eventually("all windows of a sensor are there", || {
                found = http.get(&target).json();
                found["windows"].as_array().unwrap().len() == of_sensor.len()
            });
            for (window, ((_, start), values)) in
                found["windows"].as_array().unwrap().iter().zip(of_sensor)
            {
                assert_eq!(window["start"], *start);
                let n = values.len() as f64;
                let mean = values.iter().sum::<f64>() / n;
                let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
                let near = |name: &str, expected: f64| {
                    let found = window[name].as_f64().unwrap();
                    assert!(
                        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
                        "{name}: {found} {expected}"
                    );
                };
                near("count", n);
                near("sum", values.iter().sum());
                near("mean", mean);
                near("min", values.iter().copied().fold(f64::INFINITY, f64::min));
                near("max", values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
                if n > 1.0 {
                    near("var", squares / (n - 1.0))
                } else {
                    assert!(window["var"].is_null())
                }
            }
        }
    }
}

#[test]
fn gaps_are_filled_as_asked_and_a_late_reading_is_counted() {
    let node = node();
    let definition = r#"{"windows": [{"tumbling": "1s"}], "aggregates": ["count", "mean"], "watermark_delay": "0s"}"#;
    let http = make(&node, "s", definition);
    let text = format!("a, 1, {BASE}\na, 4, {}\na, 9, {}\n", BASE + 3_000, BASE + 10_000);
    send(&http, "/v1/streams/s/readings", &text);
    let means = |fill: &str| -> Vec<Option<f64>> {
        let target =
            format!("/v1/streams/s/sensors/a/windows?from={BASE}&to={}&fill={fill}", BASE + 5_000);
        let found = http.get(&target).json();
        found["windows"].as_array().unwrap().iter().map(|w| w["mean"].as_f64()).collect()
    };
    eventually("the windows are there", || means("none").len() == 2);
    assert_eq!(means("null"), [Some(1.0), None, None, Some(4.0), None]);
    assert_eq!(means("previous"), [Some(1.0), Some(1.0), Some(1.0), Some(4.0), Some(4.0)]);
    assert_eq!(means("linear"), [Some(1.0), Some(2.0), Some(3.0), Some(4.0), None]);
    let late = send(&http, "/v1/streams/s/readings", &format!("a, 5, {BASE}\n"));
    assert_eq!(late["late"], 1);
    eventually("it is counted as dropped", || {
        http.get("/v1/streams/s").json()["figures"]["late_dropped"] == 1
    });
    for bad in ["window=1h", "from=x", "fill=some", "limit=0x", "from=5&to=5", "form=1"] {
        let target = format!("/v1/streams/s/sensors/a/windows?{bad}");
        http.get(&target).assert_problem(400, "bad-request");
    }
}

#[test]
fn stored_windows_make_longer_ones_and_tell_what_is_expected_after_them() {
    let node = node();
    let definition = r#"{"windows": [{"tumbling": "10s"}, {"count": 50}], "watermark_delay": "0s",
        "aggregates": ["count", "mean", "var", "min", "max", "p95"]}"#;
    let http = make(&node, "s", definition);
    let mut random = fastrand::Rng::with_seed(11);
    let base = BASE / 60_000 * 60_000;
    let readings: Vec<(i64, f64)> =
        (0..3_600).map(|i| (base + i * 333, random.i32(0..1_000) as f64 / 8.0)).collect();
    let text: String =
        readings.iter().map(|(time, value)| format!("a, {value}, {time}\n")).collect();
    send(&http, "/v1/streams/s/readings", &text);
    send(&http, "/v1/streams/s/readings", &format!("a, 0, {}\n", base + 1_300_000));
    let sensor = "/v1/streams/s/sensors/a/windows";
    let range = format!("from={base}&to={}", base + 1_140_000);
    let mut found = serde_json::Value::Null;
    eventually("all windows are there", || {
        found = http.get(&format!("{sensor}?window=10s&{range}")).json();
        found["windows"].as_array().is_some_and(|windows| windows.len() == 114)
    });

    let minutes = http.get(&format!("{sensor}?window=10s&{range}&step=1m")).json();
    let minutes = minutes["windows"].as_array().unwrap();
    assert_eq!(minutes.len(), 19);
    for (place, minute) in minutes.iter().enumerate() {
        let start = base + place as i64 * 60_000;
        assert_eq!((&minute["start"], &minute["merged"]), (&start.into(), &6.into()));
        let inside = |time: i64| (start..start + 60_000).contains(&time);
        let values: Vec<f64> =
            readings.iter().filter(|(time, _)| inside(*time)).map(|(_, value)| *value).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let var = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        for (name, expected) in [("count", n), ("mean", mean), ("var", var)] {
            let found = minute[name].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9 * expected, "{name}: {found} {expected}");
        }
        assert!(minute["p95"].is_null());
    }

    let told = http.get(&format!("{sensor}?window=10s&{range}&forecast=4")).json();
    assert_eq!(told["forecast"]["figure"], "mean");
    let expected = told["forecast"]["windows"].as_array().unwrap();
    assert_eq!(expected.len(), 4);
    assert_eq!(expected[0]["start"], base + 1_140_000);
    let few = format!("from={base}&to={}", base + 100_000);
    let told = http.get(&format!("{sensor}?window=10s&{few}&forecast=4")).json();
    assert!(told["forecast"].is_null() && told["windows"].as_array().unwrap().len() == 10);

    for (wrong, why) in [
        ("window=10s&step=15s", "multiple of the length"),
        ("window=10s&step=1", "`step` is wrong"),
        ("window=count-50&step=1m", "no grid"),
        ("window=10s&forecast=4&figure=p99", "does not compute `p99`"),
        ("window=10s&forecast=4&figure=warmth", "none of the aggregates"),
        ("window=10s&figure=mean", "goes with `forecast`"),
    ] {
        let answer = http.get(&format!("{sensor}?{wrong}"));
        assert_eq!(answer.status, 400, "{wrong}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(why), "{wrong}: {detail}");
    }
}

#[test]
fn count_and_session_windows_are_found_again() {
    let node = node();
    let definition = r#"{"windows": [{"count": 3}, {"session": "2s"}], "aggregates": ["sum"],
        "watermark_delay": "0s"}"#;
    let http = make(&node, "s", definition);
    let text: String =
        (0..10).map(|i| format!("a, {i}, {}\n", BASE + (i / 5) * 10_000 + i)).collect();
    send(&http, "/v1/streams/s/readings", &text);
    send(&http, "/v1/streams/s/readings", &format!("b, 0, {}\n", BASE + 60_000));
    let sums = |window: &str| -> Vec<f64> {
        let found = http.get(&format!("/v1/streams/s/sensors/a/windows?window={window}")).json();
        found["windows"].as_array().unwrap().iter().map(|w| w["sum"].as_f64().unwrap()).collect()
    };
    eventually("three counts are full", || sums("count-3") == [3.0, 12.0, 21.0]);
    eventually("both sessions are over", || sums("session-2s") == [10.0, 35.0]);
}

#[test]
fn results_and_alarms_are_followed_live() {
    let node = node();
    let definition = r#"{"windows": [{"tumbling": "1s"}], "aggregates": ["count"], "watermark_delay": "0s",
        "detectors": [{"threshold": {"above": 80.0}}]}"#;
    let http = make(&node, "s", definition);
    let mut socket = TcpStream::connect(node.address("http")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(b"GET /v1/streams/s/live?sensor=a HTTP/1.1\r\nhost: kiln\r\n\r\n").unwrap();
    let mut lines = BufReader::new(socket).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line == ": following"));
    let text = format!("b, 1, {BASE}\na, 1, {BASE}\na, 99, {}\n", BASE + 2_500);
    send(&http, "/v1/streams/s/readings", &text);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let line = lines.next().unwrap();
        if let Some(kind) = line.strip_prefix("event: ") {
            let data = lines.next().unwrap();
            let data: serde_json::Value =
                serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(data["sensor"], "a");
            seen.push((kind.to_owned(), data));
        }
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!((seen[0].0.as_str(), &seen[0].1["kind"]), ("alarm", &"raised".into()));
    assert_eq!((seen[1].0.as_str(), &seen[1].1["start"]), ("window", &BASE.into()));
    let alarms = http.get("/v1/streams/s/alarms?sensor=a").json();
    assert_eq!(alarms["alarms"][0]["detector"], "threshold");
}
