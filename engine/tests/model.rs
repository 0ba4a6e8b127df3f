//! The store against a naive map, over random operations: one meaning, whatever the sizes, the
//! policy and the order of things.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;

use kiln_engine::policy::PolicyKind;
use kiln_engine::{
    Appended, ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Direction,
    Expiry, GetOptions, ItemInfo, Refill, Store, StoreConfig, TouchOutcome, Value, WriteMode,
    WriteOptions, WriteOutcome,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Get { key: u8, options: GetOptions },
    Write { key: u8, len: usize, fill: u8, options: WriteOptions, compare: Compare },
    Delete { key: u8, options: DeleteOptions, compare: Compare },
    Arithmetic { key: u8, options: ArithmeticOptions },
    Touch { key: u8, expiry: Expiry },
    Number { key: u8, number: u64 },
    Wait { ms: u64 },
    Flush { after_ms: u64 },
    Maintain,
}

/// Which version a command compares with.
#[derive(Clone, Copy, Debug)]
enum Compare {
    Not,
    Current,
    Older,
    Wrong,
}

#[derive(Clone, Debug, PartialEq)]
struct Item {
    value: Vec<u8>,
    flags: u32,
    version: u64,
    deadline: Option<u64>,
    fetched: bool,
    stale: bool,
    granted: bool,
}

#[derive(Default)]
struct Model {
    items: HashMap<u8, Item>,
    now: u64,
    flush_at: Option<u64>,
}

impl Model {
    fn settle(&mut self) {
        if self.flush_at.is_some_and(|at| at <= self.now) {
            self.items.clear();
            self.flush_at = None;
        }
        let now = self.now;
        self.items.retain(|_, item| item.deadline.is_none_or(|deadline| deadline > now));
    }
}

fn key_bytes(key: u8) -> Vec<u8> {
    // Lengths from 1 to 250, all distinct.
    let mut bytes = vec![b'k'; 1 + usize::from(key) % 240];
    bytes.push(key.wrapping_add(33));
    bytes
}

fn deadline(expiry: Expiry) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::At(at) => Some(at),
    }
}

fn expiry() -> impl Strategy<Value = Expiry> {
    // Relative to the clock of the model when applied: see `absolute`.
    prop_oneof![
        3 => Just(Expiry::Never),
        3 => (0_u64..5_000).prop_map(Expiry::At),
        1 => (0_u64..100_000_000).prop_map(Expiry::At),
    ]
}

fn absolute(expiry: Expiry, now: u64) -> Expiry {
    match expiry {
        Expiry::Never => Expiry::Never,
        Expiry::At(0) => Expiry::At(now),
        Expiry::At(after) => Expiry::At(now + after),
    }
}

fn mode() -> impl Strategy<Value = WriteMode> {
    prop_oneof![
        4 => Just(WriteMode::Set),
        1 => Just(WriteMode::Add),
        1 => Just(WriteMode::Replace),
        1 => Just(WriteMode::Append),
        1 => Just(WriteMode::Prepend),
    ]
}

fn compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        6 => Just(Compare::Not),
        2 => Just(Compare::Current),
        1 => Just(Compare::Older),
        1 => Just(Compare::Wrong),
    ]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 0_usize..300,
        3 => 300_usize..20_000,
        1 => 16_300_usize..16_500,
        1 => 20_000_usize..200_000,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0_u8..12;
    prop_oneof![
        6 => (key.clone(), proptest::option::weighted(0.2, expiry()), proptest::option::weighted(0.1, expiry()),
              proptest::option::weighted(0.2, 0_u64..6_000), any::<bool>())
            .prop_map(|(key, touch, vivify, recache_below_ms, no_bump)| Op::Get {
                key, options: GetOptions { touch, vivify, recache_below_ms, no_bump, may_refill: !no_bump, version: None } }),
        8 => (key.clone(), len(), any::<u8>(), mode(), prop_oneof![Just(0), any::<u32>()], expiry(),
              proptest::option::weighted(0.1, any::<u64>()), any::<bool>(),
              proptest::option::weighted(0.1, expiry()), compare())
            .prop_map(|(key, len, fill, mode, flags, expiry, version, invalidate, vivify, compare)| Op::Write {
                key, len, fill, compare,
                options: WriteOptions { mode, flags, expiry, compare: None, version, invalidate, vivify, ..WriteOptions::default() } }),
        3 => (key.clone(), proptest::option::weighted(0.2, any::<u64>()), any::<bool>(),
              proptest::option::of(expiry()), any::<bool>(), compare())
            .prop_map(|(key, version, invalidate, expiry, keep_empty, compare)| Op::Delete {
                key, compare,
                options: DeleteOptions { compare: None, version, invalidate, expiry, keep_empty } }),
        3 => (key.clone(), any::<bool>(), any::<u64>(), proptest::option::of((expiry(), any::<u64>())),
              proptest::option::of(expiry()))
            .prop_map(|(key, up, delta, create, touch)| Op::Arithmetic {
                key,
                options: ArithmeticOptions {
                    direction: if up { Direction::Increment } else { Direction::Decrement },
                    delta, compare: None, version: None, create, touch } }),
        2 => (key.clone(), expiry()).prop_map(|(key, expiry)| Op::Touch { key, expiry }),
        2 => (key, any::<u64>()).prop_map(|(key, number)| Op::Number { key, number }),
        3 => (0_u64..4_000).prop_map(|ms| Op::Wait { ms }),
        1 => (0_u64..3_000).prop_map(|after_ms| Op::Flush { after_ms }),
        2 => Just(Op::Maintain),
    ]
}

fn resolve(compare: Compare, item: Option<&Item>) -> Option<u64> {
    let version = item.map_or(7, |item| item.version);
    match compare {
        Compare::Not => None,
        Compare::Current => Some(version),
        Compare::Older => Some(version.saturating_sub(1)),
        Compare::Wrong => Some(version.wrapping_add(1)),
    }
}

fn read(store: &Store, key: u8, options: &GetOptions, now: u64) -> Option<(ItemInfo, Vec<u8>)> {
    let bytes = key_bytes(key);
    // Every second key is read in the other way: also that one tells nothing but the truth, and
    // leaves no trace where it does not read.
    if key.is_multiple_of(2) {
        // With much room, with little and with none.
        let mut out = Vec::with_capacity([0, 64, 512][usize::from(key / 2 % 3)]);
        out.extend_from_slice(b"before");
        let appended = store.reads().get_into(
            &bytes,
            Store::hash(&bytes),
            options,
            now,
            &mut out,
            |info, out| {
                out.extend_from_slice(b"begun");
                Some(*info)
            },
        );
        match appended {
            Appended::Hit(info) => {
                let value = out.strip_prefix(b"beforebegun").expect("in this order");
                return Some((info.unwrap(), value.to_vec()));
            }
            Appended::Miss => {
                assert_eq!(out, b"before");
                return None;
            }
            Appended::Undone => assert_eq!(out, b"before"),
        }
    }
    store.get(&bytes, Store::hash(&bytes), options, now, |info, value| {
        let value = match value {
            Value::Inline(bytes) => bytes.to_vec(),
            Value::Large(pinned) => pinned.slices().concat(),
        };
        (*info, value)
    })
}

fn run(kind: PolicyKind, ops: Vec<Op>) {
    const START: u64 = 1_000_000;
    const VALUE_LEN_MAX: usize = 150_000;
    let store = Store::new(StoreConfig {
        memory: 64 << 20,
        policy: kind,
        shards: 2,
        value_len_max: VALUE_LEN_MAX,
        start_ms: START,
        ..StoreConfig::default()
    })
    .unwrap();
    let mut model = Model { now: START, ..Model::default() };
    for op in ops {
        model.settle();
        let now = model.now;
        match op {
            Op::Wait { ms } => model.now += ms,
            Op::Maintain => {
                store.maintain(now, 1000);
            }
            Op::Flush { after_ms } => {
                let at = (after_ms > 1500).then_some(now + after_ms);
                store.flush(at, now);
                match at {
                    Some(at) => model.flush_at = Some(at),
                    None => {
                        model.items.clear();
                        model.flush_at = None;
                    }
                }
            }
            Op::Get { key, options } => {
                let options = GetOptions {
                    touch: options.touch.map(|expiry| absolute(expiry, now)),
                    vivify: options.vivify.map(|expiry| absolute(expiry, now)),
                    ..options
                };
                let found = read(&store, key, &options, now);
                match model.items.get_mut(&key) {
                    None => match options.vivify {
                        None => assert_eq!(found, None),
                        Some(expiry) => {
                            let (info, value) = found.expect("vivified");
                            assert_eq!((info.refill, value.len()), (Refill::Won, 0));
                            model.items.insert(
                                key,
                                Item {
                                    value,
                                    flags: 0,
                                    version: info.version,
                                    deadline: deadline(expiry),
                                    fetched: false,
                                    stale: false,
                                    granted: true,
                                },
                            );
                        }
                    },
                    Some(item) => {
                        let (info, value) = found.expect("present");
                        let wants = options.may_refill
                            && (item.stale
                                || options.recache_below_ms.is_some_and(|below| {
                                    item.deadline.is_some_and(|at| at - now < below)
                                }));
                        if let Some(expiry) = options.touch {
                            item.deadline = deadline(expiry);
                        }
                        assert_eq!(value, item.value);
                        assert_eq!(info.flags, item.flags);
                        assert_eq!(info.version, item.version);
                        assert_eq!(info.deadline_ms, item.deadline);
                        assert_eq!(info.fetched, item.fetched);
                        assert_eq!(info.stale, item.stale);
                        let refill = match (item.granted, wants) {
                            (true, _) => Refill::Taken,
                            (false, true) => Refill::Won,
                            (false, false) => Refill::None,
                        };
                        assert_eq!(info.refill, refill);
                        item.granted |= refill == Refill::Won;
                        item.fetched |= !options.no_bump;
                    }
                }
            }
            Op::Write { key, len, fill, options, compare } => {
                let present = model.items.get(&key).cloned();
                let options = WriteOptions {
                    expiry: absolute(options.expiry, now),
                    vivify: options.vivify.map(|expiry| absolute(expiry, now)),
                    compare: resolve(compare, present.as_ref()),
                    ..options
                };
                write(&store, &mut model, key, vec![fill; len], &options, VALUE_LEN_MAX);
            }
            Op::Number { key, number } => {
                let options = WriteOptions::default();
                let value = number.to_string().into_bytes();
                write(&store, &mut model, key, value, &options, VALUE_LEN_MAX);
            }
            Op::Delete { key, options, compare } => {
                let present = model.items.get(&key).cloned();
                let options = DeleteOptions {
                    compare: resolve(compare, present.as_ref()),
                    expiry: options.expiry.map(|expiry| absolute(expiry, now)),
                    ..options
                };
                let bytes = key_bytes(key);
                let outcome = store.delete(&bytes, Store::hash(&bytes), &options, now);
                let Some(item) = model.items.get_mut(&key) else {
                    assert_eq!(outcome, DeleteOutcome::NotFound);
                    continue;
                };
                if options.compare.is_some_and(|compare| compare != item.version) {
                    assert_eq!(outcome, DeleteOutcome::Exists);
                    continue;
                }
                assert_eq!(outcome, DeleteOutcome::Deleted);
                if !options.invalidate && !options.keep_empty {
                    model.items.remove(&key);
                    continue;
                }
                if options.invalidate {
                    item.stale = true;
                    item.granted = false;
                    if let Some(expiry) = options.expiry {
                        item.deadline = deadline(expiry);
                    }
                }
                if options.keep_empty {
                    item.value.clear();
                    item.stale = options.invalidate;
                    item.granted = false;
                    item.flags = 0;
                    item.fetched = false;
                }
                // The store's own version is not foretold; what it must be is checked here.
                if let Some(info) = store.peek(&bytes, Store::hash(&bytes), now) {
                    match options.version {
                        Some(version) => assert_eq!(info.version, version),
                        None => assert_ne!(info.version, item.version),
                    }
                    item.version = info.version;
                }
            }
            Op::Arithmetic { key, options } => {
                let options = ArithmeticOptions {
                    create: options
                        .create
                        .map(|(expiry, initial)| (absolute(expiry, now), initial)),
                    touch: options.touch.map(|expiry| absolute(expiry, now)),
                    ..options
                };
                let bytes = key_bytes(key);
                let outcome = store.arithmetic(&bytes, Store::hash(&bytes), &options, now);
                let Some(item) = model.items.get_mut(&key) else {
                    match options.create {
                        None => assert_eq!(outcome, ArithmeticOutcome::NotFound),
                        Some((expiry, initial)) => {
                            let ArithmeticOutcome::Number(number, info) = outcome else {
                                panic!("{outcome:?}")
                            };
                            assert_eq!(number, initial);
                            model.items.insert(
                                key,
                                Item {
                                    value: initial.to_string().into_bytes(),
                                    flags: 0,
                                    version: info.version,
                                    deadline: deadline(expiry),
                                    fetched: false,
                                    stale: false,
                                    granted: false,
                                },
                            );
                        }
                    }
                    continue;
                };
                let text = String::from_utf8_lossy(item.value.trim_ascii_end()).into_owned();
                match text.parse::<u64>() {
                    Ok(number)
                        // A number behind which blanks fill up a large value is none, as in memcached.
                        if item.value.len() <= 16 << 10
                            && text.bytes().all(|byte| byte.is_ascii_digit())
                            && text.len() <= 20 =>
                    {
                        let want = match options.direction {
                            Direction::Increment => number.wrapping_add(options.delta),
                            Direction::Decrement => number.saturating_sub(options.delta),
                        };
                        let ArithmeticOutcome::Number(number, info) = outcome else {
                            panic!("{outcome:?}")
                        };
                        assert_eq!(number, want);
                        assert!(info.version != item.version);
                        item.value = want.to_string().into_bytes();
                        item.version = info.version;
                        if let Some(expiry) = options.touch {
                            item.deadline = deadline(expiry);
                        }
                    }
                    _ => assert_eq!(outcome, ArithmeticOutcome::NotANumber),
                }
            }
            Op::Touch { key, expiry } => {
                let expiry = absolute(expiry, now);
                let bytes = key_bytes(key);
                let outcome = store.touch(&bytes, Store::hash(&bytes), expiry, now);
                match model.items.get_mut(&key) {
                    None => assert_eq!(outcome, TouchOutcome::NotFound),
                    Some(item) => {
                        assert!(matches!(outcome, TouchOutcome::Touched(_)), "{outcome:?}");
                        item.deadline = deadline(expiry);
                    }
                }
            }
        }
    }
    model.settle();
    // Nothing more, nothing less: by reads and by a walk.
    for key in 0..12 {
        let found =
            read(&store, key, &GetOptions { no_bump: true, ..GetOptions::default() }, model.now);
        assert_eq!(
            found.map(|(_, value)| value),
            model.items.get(&key).map(|item| item.value.clone())
        );
    }
    let mut walked = Vec::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        cursor = store.scan(at, 1, model.now, |entry| walked.push(entry.key.to_vec())).next;
    }
    walked.sort();
    let mut expected: Vec<_> = model.items.keys().map(|&key| key_bytes(key)).collect();
    expected.sort();
    assert_eq!(walked, expected);
    // Everything ends: no page but those of the index is held afterwards.
    store.flush(None, model.now);
    let stats = store.stats();
    assert_eq!((stats.items, stats.item_bytes, stats.page_bytes, stats.zombies), (0, 0, 0, 0));
}

fn write(
    store: &Store,
    model: &mut Model,
    key: u8,
    value: Vec<u8>,
    options: &WriteOptions,
    value_len_max: usize,
) {
    let now = model.now;
    let bytes = key_bytes(key);
    let outcome = store.write(&bytes, Store::hash(&bytes), &value, options, now);
    let extends = matches!(options.mode, WriteMode::Append | WriteMode::Prepend);
    if value.len() > value_len_max {
        assert_eq!(outcome, WriteOutcome::TooLarge);
        if options.mode == WriteMode::Set {
            model.items.remove(&key);
        }
        return;
    }
    let present = model.items.get(&key).cloned();
    let mut stale = false;
    if let Some(compare) = options.compare {
        let Some(item) = &present else {
            assert_eq!(outcome, WriteOutcome::NotFound);
            return;
        };
        if compare != item.version {
            if options.invalidate && compare < item.version {
                stale = true;
            } else {
                assert_eq!(outcome, WriteOutcome::Exists);
                return;
            }
        }
    }
    let mut expiry = options.expiry;
    let refused = match (options.mode, &present) {
        (WriteMode::Add, Some(item)) => {
            model.items.insert(key, Item { fetched: true, ..item.clone() });
            true
        }
        (WriteMode::Replace, None) => true,
        (WriteMode::Append | WriteMode::Prepend, None) => match options.vivify {
            Some(vivify) => {
                expiry = vivify;
                false
            }
            None => true,
        },
        _ => false,
    };
    if refused {
        assert_eq!(outcome, WriteOutcome::NotStored);
        return;
    }
    if let (true, Some(item)) = (extends, &present) {
        let joined = if options.mode == WriteMode::Append {
            [item.value.clone(), value].concat()
        } else {
            [value, item.value.clone()].concat()
        };
        if joined.len() > value_len_max {
            assert_eq!(outcome, WriteOutcome::TooLarge);
            return;
        }
        let WriteOutcome::Stored(info) = outcome else { panic!("{outcome:?}") };
        let large = joined.len() > 16 * 1024;
        let item = Item {
            value: joined,
            version: info.version,
            // A large value is written anew, so it starts unread.
            fetched: item.fetched && !large,
            stale: false,
            granted: false,
            ..item.clone()
        };
        model.items.insert(key, item);
        return;
    }
    let WriteOutcome::Stored(info) = outcome else { panic!("{outcome:?}") };
    if let Some(version) = options.version {
        assert_eq!(info.version, version);
    }
    let item = Item {
        value,
        flags: options.flags,
        version: info.version,
        deadline: if stale {
            present.as_ref().and_then(|item| item.deadline)
        } else {
            deadline(expiry)
        },
        fetched: false,
        stale,
        granted: stale && present.is_some_and(|item| item.granted),
    };
    model.items.insert(key, item);
    model.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_a_map_does(kind in proptest::sample::select(PolicyKind::ALL.to_vec()),
                                      ops in proptest::collection::vec(op(), 1..120)) {
        run(kind, ops);
    }
}
