//! Reads of a batch, straight into an output: what they return beside a read of the other kind, what is
//! counted of them, and that a flush that waits is no later for them.

use kiln_engine::{Appended, GetOptions, Store, StoreConfig, Value, Work, WriteOptions, vectored};

const NOW_MS: u64 = 1_000_000;

fn store() -> Store {
    let config = StoreConfig { memory: 64 << 20, start_ms: NOW_MS, ..StoreConfig::default() };
    Store::new(config).expect("64 MiB")
}

fn put(store: &Store, key: &[u8], value: &[u8], now_ms: u64) {
    let _ = store.write(key, Store::hash(key), value, &WriteOptions::default(), now_ms);
}

/// Reads a key twice in each way, so that the second time there is nothing to note of it.
fn read(store: &Store, key: &[u8], now_ms: u64) -> [(Appended<()>, Vec<u8>); 2] {
    let hash = Store::hash(key);
    let get = || {
        let copy = |_: &_, value: Value<'_>| match value {
            Value::Inline(bytes) => bytes.to_vec(),
            Value::Large(pinned) => pinned.slices().concat(),
        };
        store.get(key, hash, &GetOptions::PLAIN, now_ms, copy)
    };
    [(), ()].map(|()| {
        let expected = get();
        let mut out = Vec::with_capacity(4096);
        let announced = store.reads_announced().get_into(
            key,
            hash,
            &GetOptions::PLAIN,
            now_ms,
            &mut out,
            |_, _| Some(()),
        );
        assert!(announced != Appended::Hit(Some(())) || Some(&out) == expected.as_ref());
        out.clear();
        out.extend_from_slice(b"before");
        let options = &GetOptions::PLAIN;
        let appended = vectored(Into { store, key, hash, options, now_ms, out: &mut out });
        let after = out.split_off(6);
        assert_eq!(out, b"before");
        match appended {
            Appended::Hit(_) => assert_eq!(Some(&after), expected.as_ref()),
            Appended::Miss => assert_eq!(None, expected),
            Appended::Undone => assert_eq!(after, b""),
        }
        (appended, after)
    })
}

/// A read, compiled for this processor.
struct Into<'a> {
    store: &'a Store,
    key: &'a [u8],
    hash: u64,
    options: &'a GetOptions,
    now_ms: u64,
    out: &'a mut Vec<u8>,
}

impl Work for Into<'_> {
    type Output = Appended<()>;

    #[inline(always)]
    fn run(self) -> Appended<()> {
        let Self { store, key, hash, options, now_ms, out } = self;
        store.reads().get_into(key, hash, options, now_ms, out, |_, _| Some(()))
    }
}

#[test]
fn keys_and_values_of_every_length_are_read_as_they_are_and_no_other_key_is_taken_for_them() {
    let store = store();
    for key_len in (1..70).chain([127, 250]) {
        for value_len in (0..140).chain([255, 256, 1000, 2047, 2048, 5000]) {
            let key: Vec<u8> = (0..key_len).map(|at| (at * 7 + value_len) as u8).collect();
            let value: Vec<u8> = (0..value_len).map(|at| (at * 11 + key_len) as u8).collect();
            put(&store, &key, &value, NOW_MS);
            let (appended, read_value) = &read(&store, &key, NOW_MS)[1];
            // What is long is read in another way.
            if value_len <= 2047 {
                assert_eq!(*appended, Appended::Hit(Some(())), "{key_len} {value_len}");
                assert_eq!(*read_value, value);
            }
            for at in [0, key_len / 2, key_len - 1] {
                let mut other = key.clone();
                other[at] ^= 0x80;
                if store.peek(&other, Store::hash(&other), NOW_MS).is_none() {
                    assert_eq!(read(&store, &other, NOW_MS)[1].0, Appended::Miss);
                    // Even where a key seems to be that of another, by its hash.
                    let mut out = Vec::with_capacity(4096);
                    let hash = Store::hash(&key);
                    let options = &GetOptions::PLAIN;
                    let now_ms = NOW_MS;
                    let into =
                        Into { store: &store, key: &other, hash, options, now_ms, out: &mut out };
                    assert_eq!(vectored(into), Appended::Miss, "{key_len} {value_len} {at}");
                }
            }
            let _ = store.delete(&key, Store::hash(&key), &Default::default(), NOW_MS);
        }
    }
}

#[test]
fn keys_that_no_item_has_are_missed_however_long() {
    let store = store();
    put(&store, b"a-key-of-twenty-bytes", b"value", NOW_MS);
    for len in [0, 32_000, 32_001, 65_536, 70_000, 1 << 20] {
        let key = vec![b'k'; len];
        // By the hash of an item, too, so that its key is compared.
        for hash in [Store::hash(&key), Store::hash(b"a-key-of-twenty-bytes")] {
            let (mut out, options) = (Vec::with_capacity(4096), &GetOptions::PLAIN);
            let into =
                Into { store: &store, key: &key, hash, options, now_ms: NOW_MS, out: &mut out };
            assert_ne!(vectored(into), Appended::Hit(Some(())), "{len}");
        }
    }
}

#[test]
fn a_flush_that_waits_is_seen_in_time_and_reads_are_as_before_once_it_is_over() {
    let store = store();
    let key = b"a-key-of-twenty-bytes";
    put(&store, key, b"old", NOW_MS);
    assert_eq!(read(&store, key, NOW_MS)[1], (Appended::Hit(Some(())), b"old".to_vec()));

    store.flush(Some(NOW_MS + 500), NOW_MS);
    // Read in the other way meanwhile, and there until the very moment.
    assert_eq!(read(&store, key, NOW_MS + 499)[1].0, Appended::Undone);
    let mut out = Vec::with_capacity(4096);
    let hash = Store::hash(key);
    let (options, now_ms) = (&GetOptions::PLAIN, NOW_MS + 500);
    let into = Into { store: &store, key, hash, options, now_ms, out: &mut out };
    assert_ne!(vectored(into), Appended::Hit(Some(())));
    assert_eq!(read(&store, key, NOW_MS + 500)[1].0, Appended::Miss);

    put(&store, key, b"new", NOW_MS + 500);
    let expected = (Appended::Hit(Some(())), b"new".to_vec());
    assert_eq!(read(&store, key, NOW_MS + 501)[1], expected);

    // One that is called off leaves no trace either.
    store.flush(Some(NOW_MS + 9_000), NOW_MS + 600);
    store.flush(None, NOW_MS + 601);
    put(&store, key, b"new", NOW_MS + 602);
    assert_eq!(read(&store, key, NOW_MS + 10_000)[1], expected);
}

#[test]
fn reads_of_a_batch_are_counted_when_it_is_over_or_settled_and_each_once() {
    let store = store();
    let key = b"a-key-of-twenty-bytes";
    put(&store, key, b"value", NOW_MS);
    let counted = || (store.stats().get_hits, store.stats().get_misses);
    let mut out = Vec::with_capacity(4096);
    let mut reads = store.reads();
    for (key, times) in [(&key[..], 10), (b"another", 3)] {
        for _ in 0..times {
            out.clear();
            let hash = Store::hash(key);
            let _ =
                reads.get_into(key, hash, &GetOptions::PLAIN, NOW_MS, &mut out, |_, _| Some(()));
        }
    }
    reads.settle();
    assert_eq!(counted(), (10, 3));
    let hash = Store::hash(key);
    let _ = reads.get_into(key, hash, &GetOptions::PLAIN, NOW_MS, &mut out, |_, _| Some(()));
    drop(reads);
    assert_eq!(counted(), (11, 3));
}
