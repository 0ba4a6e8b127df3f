//! Test vectors for those who write a client in another language: `vectors.json`.
//!
//! The file is made from the messages below and checked against them, so it cannot go out of date:
//!
//!     KILN_WRITE_VECTORS=1 cargo test -p kiln-protocol --test native vectors

use kiln_protocol::command::{
    Arithmetic, Command, Delete, Direction, Get, ItemMeta, Outcome, Store, StoreMode, Touch, Ttl,
};
use kiln_protocol::native::admin::{
    CacheSpec, ClusterChange, Credentials, DigestRequest, Hello, Limits, Subscribe, Welcome, change,
};
use kiln_protocol::native::streams::{Follow, LatestQuery, WindowsQuery};
use kiln_protocol::native::{
    CacheRef, Data, Effect, Entry, ErrorCode, Failure, HitHead, Item, Live, Old, Op, Producer,
    Reading, Request, Response, Scan, Value, Want, encode, end_frame, respond,
};
use serde_json::{Value as Json, json};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/native/vectors.json");

/// A message, and in words what it says.
struct Vector {
    name: &'static str,
    says: &'static str,
    frame: Vec<u8>,
}

fn vector(name: &'static str, says: &'static str, write: impl FnOnce(&mut Vec<u8>)) -> Vector {
    let mut frame = Vec::new();
    write(&mut frame);
    Vector { name, says, frame }
}

fn data(id: u32, command: Command<'_>, want: Want) -> impl FnOnce(&mut Vec<u8>) {
    move |out| {
        encode::data(out, id, &Data { cache: CacheRef::Handle(0), item: Item { command, want } });
    }
}

fn requests() -> Vec<Vector> {
    let set = Store { ttl: Ttl::Default, ..Store::set(b"greeting", b"hello") };
    let plain = Want::default();
    let increment = Arithmetic {
        key: b"visits",
        direction: Direction::Increment,
        delta: 300,
        compare: None,
        version: None,
        create: Some((Ttl::After(60_000), 1)),
        touch: None,
    };
    vec![
        vector("hello", "version 1, with credentials", |out| {
            let hello = Hello {
                magic: "kiln".to_owned(),
                version_min: 1,
                version_max: 1,
                client: "example/1.0".to_owned(),
                client_id: 81985529216486895,
                cluster_id: String::new(),
                auth: Some(Credentials { user: "ada".to_owned(), password: "pw".to_owned() }),
                capabilities: vec!["lz4".to_owned(), "invalidation".to_owned()],
            };
            encode::hello(out, 1, &hello);
        }),
        vector(
            "get",
            "read `greeting` of the default cache",
            data(2, Command::Get(Get { may_refill: true, ..Get::plain(b"greeting") }), plain),
        ),
        vector(
            "get-with-options",
            "touch it to 30 s, leave the value out, track it",
            data(
                3,
                Command::Get(Get {
                    may_refill: true,
                    touch: Some(Ttl::After(30_000)),
                    ..Get::plain(b"greeting")
                }),
                Want { no_value: true, track: true, ..plain },
            ),
        ),
        vector("get-by-cache-name", "read `k` of the cache `sessions`", |out| {
            let item = Item {
                command: Command::Get(Get { may_refill: true, ..Get::plain(b"k") }),
                want: Want::default(),
            };
            encode::data(out, 4, &Data { cache: CacheRef::Name("sessions"), item });
        }),
        vector("set", "write with the cache's own end", data(5, Command::Store(set), plain)),
        vector(
            "set-for-ever",
            "write, never to end",
            data(6, Command::Store(Store { ttl: Ttl::Never, ..set }), plain),
        ),
        vector("set-one-way", "id 0: no answer", data(0, Command::Store(set), plain)),
        vector(
            "compare-and-set",
            "only over version 7; ends at a moment; flags 9; the old item back",
            data(
                8,
                Command::Store(Store {
                    compare: Some(7),
                    flags: 9,
                    ttl: Ttl::At(1_700_000_000_000),
                    ..set
                }),
                Want { return_old: true, ..plain },
            ),
        ),
        vector(
            "add",
            "only if absent, to end in 1.5 s",
            data(
                9,
                Command::Store(Store { mode: StoreMode::Add, ttl: Ttl::After(1500), ..set }),
                plain,
            ),
        ),
        vector(
            "replace",
            "only if present",
            data(10, Command::Store(Store { mode: StoreMode::Replace, ..set }), plain),
        ),
        vector(
            "append",
            "behind the present value",
            data(11, Command::Store(Store { mode: StoreMode::Append, ..set }), plain),
        ),
        vector(
            "prepend",
            "before the present value",
            data(12, Command::Store(Store { mode: StoreMode::Prepend, ..set }), plain),
        ),
        vector(
            "set-compressed",
            "an LZ4 block that inflates to 40 times `a`",
            data(
                13,
                Command::Store(Store { value: b"\x1fa\x01\x00\x0f\x50aaaaa", ..set }),
                Want { inflated_len: Some(40), ..plain },
            ),
        ),
        vector(
            "delete",
            "if its version is 7",
            data(
                14,
                Command::Delete(Delete { compare: Some(7), ..Delete::plain(b"greeting") }),
                plain,
            ),
        ),
        vector(
            "increment",
            "by 300; created with 1, for a minute, when absent; retry number 5",
            data(15, Command::Arithmetic(increment), Want { retry: Some(5), ..plain }),
        ),
        vector(
            "decrement",
            "by 1, within 250 ms",
            data(
                16,
                Command::Arithmetic(Arithmetic {
                    direction: Direction::Decrement,
                    delta: 1,
                    create: None,
                    ..increment
                }),
                Want { deadline_ms: Some(250), ..plain },
            ),
        ),
        vector(
            "touch",
            "to end in a second",
            data(17, Command::Touch(Touch { key: b"greeting", ttl: Ttl::After(1000) }), plain),
        ),
        vector("batch", "a set and a get in one frame", |out| {
            let items = [
                Item { command: Command::Store(set), want: Want::default() },
                Item {
                    command: Command::Get(Get { may_refill: true, ..Get::plain(b"greeting") }),
                    want: Want::default(),
                },
            ];
            encode::batch(out, 18, CacheRef::Handle(0), items.into_iter());
        }),
        vector("scan", "the first 100 or so keys that begin with `user:`, with values", |out| {
            let scan = Scan {
                cache: CacheRef::Handle(0),
                cursor: None,
                limit: 100,
                prefix: b"user:",
                values: true,
            };
            encode::scan(out, 19, &scan);
        }),
        vector("scan-on", "go on behind a cursor", |out| {
            let scan = Scan {
                cache: CacheRef::Handle(0),
                cursor: Some(&[0, 0, 0, 9]),
                limit: 100,
                prefix: b"",
                values: false,
            };
            encode::scan(out, 20, &scan);
        }),
        vector("flush", "empty the cache", |out| encode::flush(out, 21, CacheRef::Handle(3))),
        vector("ping", "are you there", |out| encode::bare(out, 22, Op::Ping)),
        vector("open-cache", "a handle for `sessions`", |out| {
            encode::named(out, 23, Op::OpenCache, "sessions")
        }),
        vector(
            "create-cache",
            "64 MiB, least recently used leaves, items live ten minutes",
            |out| {
                let spec = CacheSpec {
                    name: "sessions".to_owned(),
                    eviction: "lru".to_owned(),
                    memory: 64 << 20,
                    default_ttl_ms: 600_000,
                    ..CacheSpec::default()
                };
                encode::create_cache(out, 24, &spec);
            },
        ),
        vector("drop-cache", "remove `sessions`", |out| {
            encode::named(out, 25, Op::DropCache, "sessions")
        }),
        vector("show-cache", "settings and figures of `sessions`", |out| {
            encode::named(out, 26, Op::ShowCache, "sessions")
        }),
        vector("list-caches", "all of them", |out| encode::bare(out, 27, Op::ListCaches)),
        vector("topology", "who owns which partition", |out| encode::bare(out, 28, Op::Topology)),
        vector("subscribe", "tell me of every new topology", |out| {
            encode::subscribe(out, 29, &Subscribe { topology: true })
        }),
        vector("info", "figures of the node", |out| encode::bare(out, 30, Op::Info)),
        vector("ingest", "two readings, one with its time", |out| {
            let producer = Producer { id: "gateway-7", epoch: 2, sequence: 40 };
            let readings = [
                Reading { sensor: b"sensor1", value: 12.5, time_ms: Some(1_700_000_000_000) },
                Reading { sensor: b"sensor2", value: -3.0, time_ms: None },
            ];
            encode::ingest(out, 31, "plant", Some(producer), readings.into_iter());
        }),
        vector("latest", "the latest reading of `sensor1`", |out| {
            let (stream, sensor) = ("plant".to_owned(), b"sensor1".to_vec());
            encode::latest(out, 35, &LatestQuery { stream, sensor });
        }),
        vector("windows", "ten windows of ten seconds of `sensor1`, gaps filled", |out| {
            let query = WindowsQuery {
                stream: "plant".to_owned(),
                sensor: b"sensor1".to_vec(),
                window: Some("10s".to_owned()),
                from: Some(1_700_000_000_000),
                to: None,
                fill: "previous".to_owned(),
                limit: 10,
                step_ms: 0,
            };
            encode::windows(out, 36, &query);
        }),
        vector("follow", "every alarm of the stream from now on, as number 3", |out| {
            let (stream, kind) = ("plant".to_owned(), "alarm".to_owned());
            encode::follow(out, 37, &Follow { stream, kind, number: 3, ..Follow::default() });
        }),
        vector("cluster-status", "how the cluster is", |out| {
            encode::bare(out, 32, Op::ClusterStatus)
        }),
        vector("change-cluster", "node 7 hands over what it holds", |out| {
            let action = change::DRAIN.to_owned();
            let change = ClusterChange { action, node: 7, ..ClusterChange::default() };
            encode::change_cluster(out, 33, &change);
        }),
        vector("digests", "of two partitions of `sessions`, from a later place on", |out| {
            let request = DigestRequest {
                cache: "sessions".to_owned(),
                cursor: Some(1 << 32),
                ends_after_ms: 1_700_000_000_000,
                partitions: vec![3, 700],
                items: false,
            };
            encode::digests(out, 34, &request);
        }),
    ]
}

fn responses() -> Vec<Vector> {
    let item = ItemMeta {
        value_len: 5,
        flags: 9,
        version: 41,
        ttl_ms: Some(30_000),
        ..ItemMeta::default()
    };
    let outcome = |name, says, outcome: Outcome| {
        vector(name, says, move |out| respond::outcome(out, 2, &outcome, None))
    };
    let old = Old { version: 40, flags: 0, value: Value::Plain(b"hi") };
    vec![
        vector("welcome", "to hello", |out| {
            let welcome = Welcome {
                version: 1,
                server: "kiln/0.1.0".to_owned(),
                node: "kiln-1".to_owned(),
                node_id: 1,
                incarnation: 2,
                cluster_id: "c".to_owned(),
                hash_id: 1,
                capabilities: vec!["lz4".to_owned()],
                limits: Limits {
                    frame_max: 1_114_112,
                    key_max: 32_000,
                    value_max: 1 << 20,
                    batch_max: 4096,
                    scan_max: 1000,
                    handles_max: 1024,
                    compress_min: 4096,
                },
            };
            respond::structure(out, 1, &welcome);
        }),
        vector("ok", "done", |out| respond::ok(out, 2)),
        vector("value", "`hello`, version 41, flags 9, 30 s left", move |out| {
            respond::hit_head(out, 2, HitHead { item: &item, with_value: true });
            out.extend_from_slice(b"hello");
        }),
        outcome("value-left-out", "the same, asked for without the value", Outcome::Hit(item)),
        vector("value-compressed", "40 times `a`, as an LZ4 block", move |out| {
            let value = Value::Lz4 { len: 40, block: b"\x1fa\x01\x00\x0f\x50aaaaa" };
            respond::compressed_hit(out, 2, &item, value);
        }),
        outcome("not-found", "there is no such item", Outcome::NotFound),
        outcome("stored", "as version 41", Outcome::Stored(item)),
        vector("stored-old", "as version 41; before, it was `hi`, version 40", move |out| {
            respond::outcome(out, 2, &Outcome::Stored(item), Some(old));
        }),
        outcome("not-stored", "the condition was not met", Outcome::NotStored),
        outcome("exists", "the version is another", Outcome::Exists),
        outcome("deleted", "it is gone", Outcome::Deleted),
        vector("deleted-old", "it is gone; it was `hi`", move |out| {
            respond::outcome(out, 2, &Outcome::Deleted, Some(old));
        }),
        outcome("touched", "it has its new end", Outcome::Touched(item)),
        outcome("number", "now 300, version 41", Outcome::Number(300, item)),
        vector("batch", "stored, then a hit", move |out| {
            let start = respond::begin_batch(out, 18, 2);
            respond::element::outcome(out, &Outcome::Stored(item), None);
            respond::element::hit_head(out, HitHead { item: &item, with_value: true });
            out.extend_from_slice(b"hello");
            end_frame(out, start);
        }),
        vector("page", "one item, and there is more", |out| {
            let entry = Entry {
                key: b"user:1",
                version: 41,
                flags: 0,
                ttl_ms: None,
                value_len: 2,
                value: Some(Value::Plain(b"hi")),
            };
            respond::page(out, 19, Some(&[0, 0, 0, 9]), [entry].into_iter());
        }),
        vector("page-last", "nothing more", |out| respond::page(out, 20, None, [].into_iter())),
        vector("error", "busy: not applied, come again in 20 ms", |out| {
            let failure = Failure {
                code: ErrorCode::Busy,
                text: "too much in flight",
                effect: Effect::NotApplied,
                retry_after_ms: Some(20),
            };
            respond::failure(out, 2, &failure);
        }),
        vector("push-invalidate", "keys of two slots of the default cache were written", |out| {
            respond::invalidate(out, 0, Some(&[7, 65_535]));
        }),
        vector("push-invalidate-all", "forget all you know of the cache with handle 3", |out| {
            respond::invalidate(out, 3, None);
        }),
        vector("push-live", "a window of `sensor1` closed, told to follower 3", |out| {
            let event = r#"{"sensor":"sensor1","window":"10s","start":0,"end":10000,"revision":0}"#;
            respond::live(out, &Live { number: 3, kind: "window", sensor: b"sensor1", event });
        }),
        vector("push-goodbye", "the node shuts down", |out| respond::goodbye(out, "shutting down")),
    ]
}

/// Bodies that are not right, the error they get and the id it is sent to.
const REFUSED: &[(&str, &[u8], ErrorCode, Option<u32>)] = &[
    ("nothing in it", b"\x90", ErrorCode::Malformed, None),
    ("no array", b"\xc0", ErrorCode::Malformed, None),
    ("an id that is no number", b"\x92\x1e\xa1x", ErrorCode::Malformed, None),
    ("a get without a key", b"\x93\x01\x05\x00", ErrorCode::Malformed, Some(5)),
    ("an empty key", b"\x94\x01\x05\x00\xc4\x00", ErrorCode::BadKey, Some(5)),
    ("a key that ends too early", b"\x94\x01\x05\x00\xc4\x09abc", ErrorCode::Malformed, Some(5)),
    ("bytes behind the message", b"\x92\x1e\x05\xc0", ErrorCode::Malformed, Some(5)),
    ("a batch in a batch", b"\x94\x14\x05\x00\x91\x91\x14", ErrorCode::UnknownOperation, Some(5)),
    ("a cache named by nil", b"\x94\x01\x05\xc0\xc4\x01k", ErrorCode::Malformed, Some(5)),
    (
        "a hello whose version is text",
        b"\x93\x00\x05\x81\xabversion_min\xa11",
        ErrorCode::BadArgument,
        Some(5),
    ),
];

/// MessagePack in JSON: bytes are `{"bin": hex}`, maps `{"map": [[key, value], …]}` and extensions
/// `{"ext": [type, hex]}`; the rest is as it is.
fn shown(value: &rmpv::Value) -> Json {
    use rmpv::Value as V;
    match value {
        V::Nil => Json::Null,
        V::Boolean(value) => json!(value),
        V::Integer(number) => number.as_u64().map_or_else(|| json!(number.as_i64()), |n| json!(n)),
        V::F32(number) => json!(number),
        V::F64(number) => json!(number),
        V::String(text) => json!(text.as_str().unwrap()),
        V::Binary(bytes) => json!({ "bin": hex(bytes) }),
        V::Array(values) => values.iter().map(shown).collect(),
        V::Map(pairs) => {
            let pairs: Vec<_> = pairs.iter().map(|(k, v)| json!([shown(k), shown(v)])).collect();
            json!({ "map": pairs })
        }
        V::Ext(kind, bytes) => json!({ "ext": [kind, hex(bytes)] }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown_vectors(vectors: &[Vector]) -> Vec<Json> {
    let shown = |vector: &Vector| {
        let mut body = &vector.frame[4..];
        let message = rmpv::decode::read_value(&mut body).unwrap();
        assert!(body.is_empty(), "{}: one value fills the frame", vector.name);
        json!({
            "name": vector.name,
            "says": vector.says,
            "frame": hex(&vector.frame),
            "message": shown(&message),
        })
    };
    vectors.iter().map(shown).collect()
}

#[test]
fn the_vectors_in_the_file_are_what_the_codec_writes() {
    let refused: Vec<_> = REFUSED
        .iter()
        .map(|(says, body, code, id)| {
            let mut frame = (body.len() as u32).to_be_bytes().to_vec();
            frame.extend_from_slice(body);
            json!({ "says": says, "frame": hex(&frame), "error": code.number(), "id": id })
        })
        .collect();
    let file = json!({
        "about": "Frames of Kiln's native protocol, version 1; see docs/protocol.md. In `message`, \
                  {\"bin\": hex} are bytes, {\"map\": [[key, value], ...]} is a map and \
                  {\"ext\": [type, hex]} an extension. `refused` are requests a node answers with \
                  `error`, to `id`; without an id it then closes.",
        "requests": shown_vectors(&requests()),
        "responses": shown_vectors(&responses()),
        "refused": refused,
    });
    let text = serde_json::to_string_pretty(&file).unwrap() + "\n";
    if std::env::var_os("KILN_WRITE_VECTORS").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap();
    assert!(kept == text, "vectors.json is out of date: run this test with KILN_WRITE_VECTORS=1");
}

#[test]
fn every_request_vector_is_read_and_written_again_the_same() {
    for vector in requests() {
        let request = Request::decode(&vector.frame[4..])
            .unwrap_or_else(|refused| panic!("{}: {refused:?}", vector.name));
        let mut again = Vec::new();
        crate::write_again(&mut again, &request);
        assert_eq!(again, vector.frame, "{}", vector.name);
    }
}

#[test]
fn every_operation_has_a_vector() {
    let seen: Vec<u64> = requests()
        .iter()
        .map(|vector| {
            let message = rmpv::decode::read_value(&mut &vector.frame[4..]).unwrap();
            message.as_array().unwrap()[0].as_u64().unwrap()
        })
        .collect();
    for op in Op::ALL {
        assert!(seen.contains(&op.number()), "{op:?}");
    }
}

#[test]
fn every_response_vector_is_read() {
    for vector in responses() {
        let (id, response) = Response::decode(&vector.frame[4..])
            .unwrap_or_else(|refused| panic!("{}: {refused:?}", vector.name));
        assert_eq!(id == 0, matches!(response, Response::Push(_)), "{}", vector.name);
        assert!(!matches!(response, Response::Unknown { .. }), "{}", vector.name);
    }
}

#[test]
fn refused_vectors_are_refused_with_their_code_and_id() {
    for (says, body, code, id) in REFUSED {
        let refused = Request::decode(body).expect_err(says);
        assert_eq!((refused.code, refused.id), (*code, *id), "{says}");
    }
}

#[test]
fn the_compressed_vectors_inflate() {
    let mut out = Vec::new();
    kiln_protocol::native::inflate(b"\x1fa\x01\x00\x0f\x50aaaaa", 40, 40, &mut out).unwrap();
    assert_eq!(out, [b'a'; 40]);
}
