//! What is written is read back the same.

use kiln_protocol::command::Outcome;
use kiln_protocol::native::admin::{self, CacheSpec, Hello, NodeInfo, TopologyView, Welcome};
use kiln_protocol::native::{
    Body, Data, Effect, Entry, ErrorCode, Failure, HitHead, Kind, Old, Op, Producer, Push, Reading,
    Request, Response, Scan, Value, compress, encode, inflate, respond,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use crate::strategies::{bytes, cache, cache_ref, item, meta, number};

/// The body of the only frame in `out`.
fn body(out: &[u8]) -> &[u8] {
    let (head, body) = out.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*head) as usize, body.len());
    body
}

proptest! {
    #[test]
    fn an_operation_on_an_item_is_read_as_it_was_written(
        item in item(), cache in cache(), id in any::<u32>(),
    ) {
        let data = Data { cache: cache_ref(&cache), item: item.item() };
        let mut out = Vec::new();
        encode::data(&mut out, id, &data);
        let request = Request::decode(body(&out));
        prop_assert_eq!(request, Ok(Request { id, body: Body::Data(data) }));
    }

    #[test]
    fn a_batch_is_read_as_it_was_written(items in vec(item(), 0..20), cache in cache()) {
        let items: Vec<_> = items.iter().map(|item| item.item()).collect();
        let mut out = Vec::new();
        encode::batch(&mut out, 9, cache_ref(&cache), items.iter().copied());
        let Ok(Request { id: 9, body: Body::Batch { cache: read_cache, items: read } }) =
            Request::decode(body(&out))
        else {
            panic!("no batch");
        };
        prop_assert_eq!(read_cache, cache_ref(&cache));
        prop_assert_eq!(read.collect::<Vec<_>>(), items);
    }

    #[test]
    fn a_scan_is_read_as_it_was_written(
        cache in cache(),
        cursor in of(vec(any::<u8>(), 0..64)),
        limit in any::<u32>(),
        prefix in vec(any::<u8>(), 0..300),
        values in any::<bool>(),
    ) {
        let scan = Scan {
            cache: cache_ref(&cache), cursor: cursor.as_deref(), limit, prefix: &prefix, values,
        };
        let mut out = Vec::new();
        encode::scan(&mut out, 3, &scan);
        prop_assert_eq!(Request::decode(body(&out)), Ok(Request { id: 3, body: Body::Scan(scan) }));
    }

    #[test]
    fn readings_are_read_as_they_were_written(
        stream in "[a-z]{1,40}",
        producer in of(("[a-z0-9-]{1,60}", number(), number())),
        readings in vec((bytes(200), -1e300_f64..1e300, of(any::<i64>())), 0..50),
    ) {
        let readings: Vec<_> = readings
            .iter()
            .map(|(sensor, value, time_ms)| Reading { sensor, value: *value, time_ms: *time_ms })
            .collect();
        let producer = producer
            .as_ref()
            .map(|(id, epoch, sequence)| Producer { id, epoch: *epoch, sequence: *sequence });
        let mut out = Vec::new();
        encode::ingest(&mut out, 1, &stream, producer, readings.iter().copied());
        let Ok(Request { body: Body::Ingest(read), .. }) = Request::decode(body(&out)) else {
            panic!("no readings");
        };
        prop_assert_eq!(read.stream, stream);
        prop_assert_eq!(read.producer, producer);
        prop_assert_eq!(read.readings.collect::<Vec<_>>(), readings);
    }

    #[test]
    fn an_outcome_is_read_as_it_was_written(
        meta in meta(), which in 0..9, number in number(), id in 1_u32..,
        old in of((number(), any::<u32>(), bytes(300))),
    ) {
        let old = old.as_ref().map(|(version, flags, value)| Old {
            version: *version, flags: *flags, value: Value::Plain(value),
        });
        let version = meta.version;
        let (outcome, expected) = match which {
            0 => (Outcome::NotFound, Response::NotFound),
            1 => (Outcome::Stored(meta), Response::Stored { version, old }),
            2 => (Outcome::NotStored, Response::NotStored),
            3 => (Outcome::Exists, Response::Exists),
            4 => (Outcome::Deleted, Response::Deleted { old }),
            5 => (Outcome::Touched(meta), Response::Touched { version }),
            6 => (Outcome::Number(number, meta), Response::Number { number, version }),
            _ => (Outcome::Hit(meta), Response::Value {
                version,
                flags: meta.flags,
                ttl_ms: meta.ttl_ms,
                extra: kiln_protocol::native::Extra {
                    stale: meta.stale,
                    refill: meta.refill,
                    value_len: Some(meta.value_len as u64),
                },
                value: None,
            }),
        };
        let mut out = Vec::new();
        respond::outcome(&mut out, id, &outcome, old);
        prop_assert_eq!(Response::decode(body(&out)), Ok((id, expected)));

        // And the same inside a batch.
        out.clear();
        let start = respond::begin_batch(&mut out, id, 1);
        respond::element::outcome(&mut out, &outcome, old);
        kiln_protocol::native::end_frame(&mut out, start);
        let Ok((_, Response::Batch(mut results))) = Response::decode(body(&out)) else {
            panic!("no batch");
        };
        prop_assert_eq!(results.next(), Some(expected));
    }

    #[test]
    fn a_hit_is_read_with_the_value_that_was_sent_behind_its_head(
        mut meta in meta(), value in vec(any::<u8>(), 0..70_000), id in 1_u32..,
    ) {
        meta.value_len = value.len();
        let mut out = Vec::new();
        respond::hit_head(&mut out, id, HitHead { item: &meta, with_value: true });
        out.extend_from_slice(&value);
        let (read_id, response) = Response::decode(body(&out)).unwrap();
        prop_assert_eq!(read_id, id);
        let Response::Value { version, flags, ttl_ms, value: Some(read), .. } = response else {
            panic!("no value");
        };
        prop_assert_eq!((version, flags, ttl_ms), (meta.version, meta.flags, meta.ttl_ms));
        prop_assert_eq!(read, Value::Plain(&value));
    }

    #[test]
    fn a_page_of_a_scan_is_read_as_it_was_written(
        items in vec((bytes(300), meta(), of(bytes(300))), 0..40),
        cursor in of(vec(any::<u8>(), 0..64)),
    ) {
        let entries: Vec<_> = items.iter().map(|(key, meta, value)| Entry {
            key,
            version: meta.version,
            flags: meta.flags,
            ttl_ms: meta.ttl_ms,
            value_len: meta.value_len as u64,
            value: value.as_deref().map(Value::Plain),
        }).collect();
        let mut out = Vec::new();
        respond::page(&mut out, 5, cursor.as_deref(), entries.iter().copied());
        let Ok((5, Response::Page { cursor: read_cursor, entries: read })) =
            Response::decode(body(&out))
        else {
            panic!("no page");
        };
        prop_assert_eq!(read_cursor, cursor.as_deref());
        prop_assert_eq!(read.collect::<Vec<_>>(), entries);
    }

    #[test]
    fn a_failure_is_read_as_it_was_written(
        code in any::<u16>(), text in ".{0,200}", applied in any::<bool>(), after in of(number()),
    ) {
        let failure = Failure {
            code: ErrorCode::from_number(code),
            text: &text,
            effect: if applied { Effect::Indeterminate } else { Effect::NotApplied },
            retry_after_ms: after,
        };
        let mut out = Vec::new();
        respond::failure(&mut out, 8, &failure);
        prop_assert_eq!(Response::decode(body(&out)), Ok((8, Response::Error(failure))));
        prop_assert_eq!(failure.code.number(), code);
    }

    #[test]
    fn slots_are_pushed_as_they_were_named(
        cache in any::<u32>(), slots in of(vec(0_u32..1 << 16, 0..2000)),
    ) {
        let mut out = Vec::new();
        respond::invalidate(&mut out, cache, slots.as_deref());
        let Ok((0, Response::Push(Push::Invalidate(read)))) = Response::decode(body(&out)) else {
            panic!("no invalidation");
        };
        prop_assert_eq!(read.cache, cache);
        prop_assert_eq!(read.slots.map(Iterator::collect::<Vec<_>>), slots);
    }

    #[test]
    fn a_compressed_value_inflates_to_what_it_was(
        plain in prop_oneof![
            vec(any::<u8>(), 0..5000),
            vec(0_u8..3, 0..50_000),
        ],
    ) {
        let mut scratch = b"before".to_vec();
        match compress(&plain, &mut scratch) {
            None => prop_assert_eq!(&scratch, b"before"),
            Some(Value::Lz4 { len, block }) => {
                prop_assert!(block.len() < plain.len());
                let mut out = b"kept".to_vec();
                inflate(block, len as usize, plain.len(), &mut out).unwrap();
                prop_assert_eq!(&out[4..], &plain);
                // A length that is not the true one is found out.
                prop_assert!(inflate(block, len as usize + 1, usize::MAX, &mut out).is_err());
                prop_assert!(inflate(block, len as usize - 1, usize::MAX, &mut out).is_err());
                prop_assert!(inflate(block, len as usize, len as usize - 1, &mut out).is_err());
                prop_assert_eq!(out.len(), 4 + plain.len());
            }
            Some(Value::Plain(_)) => panic!("not compressed"),
        }
    }
}

#[test]
fn structures_are_read_as_they_were_written() {
    let hello = Hello {
        magic: "kiln".to_owned(),
        version_min: 1,
        version_max: 3,
        client: "test/1".to_owned(),
        client_id: u64::MAX,
        cluster_id: "ü".to_owned(),
        auth: Some(admin::Credentials { user: "me".to_owned(), password: "secret".to_owned() }),
        capabilities: vec!["lz4".to_owned()],
    };
    let mut out = Vec::new();
    encode::hello(&mut out, 1, &hello);
    assert_eq!(Request::decode(body(&out)).unwrap().body, Body::Hello(Box::new(hello.clone())));
    assert!(!format!("{hello:?}").contains("secret"));

    let spec = CacheSpec { name: "sessions".to_owned(), default_ttl_ms: 5, ..CacheSpec::default() };
    out.clear();
    encode::create_cache(&mut out, 1, &spec);
    assert_eq!(Request::decode(body(&out)).unwrap().body, Body::CreateCache(Box::new(spec)));

    let welcome = Welcome { version: 1, node: "a".to_owned(), ..Welcome::default() };
    out.clear();
    respond::structure(&mut out, 1, &welcome);
    let Ok((1, Response::Ok(bytes))) = Response::decode(body(&out)) else { panic!("not ok") };
    assert_eq!(admin::get::<Welcome>(bytes).unwrap(), welcome);

    let topology = TopologyView { epoch: 7, partitions: 1024, ..TopologyView::default() };
    out.clear();
    respond::topology(&mut out, &topology);
    let Ok((0, Response::Push(Push::Topology(bytes)))) = Response::decode(body(&out)) else {
        panic!("no topology")
    };
    assert_eq!(admin::get::<TopologyView>(bytes).unwrap(), topology);
}

#[test]
fn fields_of_a_later_version_are_passed_over_and_missing_ones_have_defaults() {
    #[derive(serde::Serialize)]
    struct Later {
        version: u32,
        new: Vec<Option<String>>,
    }
    let mut bytes = Vec::new();
    admin::put(&mut bytes, &Later { version: 2, new: vec![None, Some("x".to_owned())] });
    let welcome: Welcome = admin::get(&bytes).unwrap();
    assert_eq!(welcome, Welcome { version: 2, ..Welcome::default() });
    let info: NodeInfo = admin::get(&[0x80]).unwrap();
    assert_eq!(info, NodeInfo::default());
}

#[test]
fn options_and_elements_of_a_later_version_are_passed_over() {
    // [1, 5, 0, "k", {8: true, 99: [{"a": nil}]}, "later", 1.5]
    let message =
        b"\x97\x01\x05\x00\xc4\x01k\x82\x08\xc3\x63\x91\x81\xa1a\xc0\xa5later\xcb\x3f\xf8\0\0\0\0\0\0";
    let Ok(Request { id: 5, body: Body::Data(data) }) = Request::decode(message) else {
        panic!("{:?}", Request::decode(message));
    };
    assert!(data.item.want.no_value);
    assert_eq!(data.item.command.key(), b"k");

    assert_eq!(
        Request::decode(b"\x93\xcd\x03\xe7\x05\x90"),
        Ok(Request { id: 5, body: Body::Unknown { op: 999 } })
    );
    assert_eq!(Response::decode(b"\x93\x70\x05\x90"), Ok((5, Response::Unknown { kind: 0x70 })));
}

#[test]
fn a_request_nobody_waits_for_gets_no_answer() {
    let mut out = Vec::new();
    respond::ok(&mut out, 0);
    respond::structure(&mut out, 0, &Welcome::default());
    respond::outcome(&mut out, 0, &Outcome::NotFound, None);
    respond::failure(&mut out, 0, &Failure::refused(ErrorCode::Busy, ""));
    respond::page(&mut out, 0, None, std::iter::empty());
    assert!(out.is_empty());
}

#[test]
fn numbers_of_operations_kinds_and_codes_are_unique_and_found_again() {
    for op in Op::ALL {
        assert_eq!(Op::from_number(op.number()), Some(*op));
    }
    for kind in Kind::ALL {
        assert_eq!(Kind::from_number(kind.number()), Some(*kind));
    }
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_number(code.number()), *code);
        assert_ne!(code.name(), "other");
    }
}
