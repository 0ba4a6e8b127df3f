//! Several operations in one request.

use serde_json::{Value, json};

use super::{client::Http, common::Node};

const BATCH: &str = "/v1/caches/default/batch";

fn run(http: &Http, operations: Value) -> Vec<Value> {
    let body = json!({ "operations": operations }).to_string();
    let answer = http.send("POST", BATCH, &[("content-type", "application/json")], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), "application/json");
    answer.json()["results"].as_array().unwrap().clone()
}

#[test]
fn operations_are_carried_out_in_order_and_each_has_its_own_result() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let results = run(
        &http,
        json!([
            { "op": "get", "key": "a" },
            { "op": "set", "key": "a", "value": "hello", "ttl": "60s", "content_type": "text/plain" },
            { "op": "get", "key": "a" },
            { "op": "add", "key": "a", "value": "x" },
            { "op": "append", "key": "a", "value_base64": "IQ==" },
            { "op": "get-and-touch", "key_base64": "YQ==", "ttl": "never" },
            { "op": "increment", "key": "n", "initial": 5 },
            { "op": "increment", "key": "n", "by": 2 },
            { "op": "decrement", "key": "n" },
            { "op": "replace", "key": "nothing", "value": "x" },
            { "op": "touch", "key": "nothing", "ttl": "1s" },
            { "op": "delete", "key": "a", "if_version": "1" },
            { "op": "delete", "key": "a" },
            { "op": "set", "key": "n", "value_base64": "no base64" },
            { "op": "get", "key": "n", "ttl": "1s" },
            { "op": "increment", "key": "a" },
        ]),
    );
    let statuses: Vec<_> =
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(
        statuses,
        [404, 201, 200, 412, 204, 200, 200, 200, 200, 412, 404, 412, 204, 400, 400, 404]
    );
    assert_eq!(results[0]["problem"]["type"], "/docs#problem-miss");
    assert_eq!(results[2]["value_base64"], "aGVsbG8=");
    assert_eq!(results[2]["content_type"], "text/plain");
    assert_eq!(results[2]["version"], results[1]["version"]);
    assert!(results[2]["ttl_ms"].as_u64().unwrap() <= 60_000);
    assert_eq!(results[5]["value_base64"], "aGVsbG8h");
    assert!(results[5]["ttl_ms"].is_null());
    let numbers: Vec<_> = results[6..9].iter().map(|result| result["number"].as_u64()).collect();
    assert_eq!(numbers, [Some(5), Some(7), Some(6)]);
    assert_eq!(http.get("/v1/caches/default/keys/n").body, b"6");
}

#[test]
fn a_batch_in_messagepack_carries_bytes_as_they_are() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    use rmpv::Value as Packed;
    let map = |fields: &[(&str, Packed)]| {
        let fields = fields.iter().map(|(name, value)| (Packed::from(*name), value.clone()));
        Packed::Map(fields.collect())
    };
    let key = Packed::Binary(vec![0xFF, 0]);
    let batch = map(&[(
        "operations",
        Packed::Array(vec![
            map(&[
                ("op", "set".into()),
                ("key", key.clone()),
                ("value", Packed::Binary(vec![0, 1, 0xFE])),
            ]),
            map(&[("op", "get".into()), ("key", key)]),
            map(&[("op", "get".into()), ("key", "text".into())]),
        ]),
    )]);
    let mut body = Vec::new();
    rmpv::encode::write_value(&mut body, &batch).unwrap();
    let answer = http.send("POST", BATCH, &[("content-type", "application/msgpack")], &body);
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/msgpack"));
    let answer = rmpv::decode::read_value(&mut &answer.body[..]).unwrap();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results[0]["status"].as_u64(), Some(201));
    assert_eq!(results[1]["value"], Packed::Binary(vec![0, 1, 0xFE]));
    assert_eq!(results[2]["status"].as_u64(), Some(404));
    assert_eq!(http.get("/v1/caches/default/keys/%FF%00").body, [0, 1, 0xFE]);
}

#[test]
fn a_batch_that_is_wrong_changes_nothing() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let send = |content_type: &str, body: &str| {
        http.send("POST", BATCH, &[("content-type", content_type)], body.as_bytes())
    };
    let good = r#"{"op":"set","key":"k","value":"x"}"#;
    for bad in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"operations":[]}"#,
        r#"{"operations":{}}"#,
        r#"{"operations":[{"op":"fly","key":"k"}]}"#,
        &format!(r#"{{"operations":[{good},{{"op":"get"}}],"more":1}}"#),
        &format!(r#"{{"operations":[{good},{{"op":"get","kee":"k"}}]}}"#),
        &format!(r#"{{"operations":[{}]}}"#, vec![good; 1_025].join(",")),
        &"[".repeat(100_000),
    ] {
        send("application/json", bad).assert_problem(400, "bad-request");
    }
    send("application/msgpack", "\u{7f}\u{7f}").assert_problem(400, "bad-request");
    send("text/plain", "{}").assert_problem(415, "unsupported-media-type");
    http.get("/v1/caches/default/keys/k").assert_problem(404, "miss");
    let full = format!(r#"{{"operations":[{}]}}"#, vec![good; 1_024].join(","));
    assert_eq!(send("application/json", &full).status, 200);
}

#[test]
fn values_beyond_the_room_of_an_answer_are_asked_for_alone() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put("/v1/caches/default/keys/k", &[7; 100_000]);
    let results = run(&http, json!(vec![json!({ "op": "get", "key": "k" }); 20]));
    let statuses: Vec<_> =
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses[0], 200);
    assert_eq!(statuses[19], 413);
    assert_eq!(results[19]["problem"]["type"], "/docs#problem-too-large");
}
