//! Several threads over the same keys: nothing is lost, nothing is torn, the ceiling holds.
//!
//! What each thread does follows from a seed, which is printed; how the threads interleave does
//! not, so a failure may need several runs to come again. The clock is an argument and stands
//! still but where a test moves it.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use kiln_engine::policy::PolicyKind;
use kiln_engine::{
    Appended, ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Direction,
    Expiry, GetOptions, Store, StoreConfig, Value, WriteMode, WriteOptions, WriteOutcome,
};

const THREADS: usize = 4;
const NOW: u64 = 1_700_000_000_000;
const SEED: u64 = 42;

#[test]
fn increments_of_many_threads_add_up_exactly() {
    const COUNTERS: usize = 8;
    const ROUNDS: u64 = 20_000;
    let store = store(16 << 20, PolicyKind::Lru);
    for counter in 0..COUNTERS {
        set(&store, &key("counter", counter), b"0");
    }
    let added: Vec<AtomicU64> = (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
    in_threads(|_, random| {
        for _ in 0..ROUNDS {
            let counter = random.below(COUNTERS);
            let delta = 1 + random.below(1000) as u64;
            let options = arithmetic(Direction::Increment, delta);
            let key = key("counter", counter);
            match store.arithmetic(&key, Store::hash(&key), &options, NOW) {
                ArithmeticOutcome::Number(..) => added[counter].fetch_add(delta, Ordering::Relaxed),
                other => panic!("{other:?}"),
            };
        }
    });
    for (counter, added) in added.iter().enumerate() {
        let value = get(&store, &key("counter", counter)).unwrap();
        assert_eq!(String::from_utf8(value).unwrap(), added.load(Ordering::Relaxed).to_string());
    }
}

#[test]
fn each_increment_has_its_own_result_and_its_own_version() {
    const ROUNDS: usize = 10_000;
    let store = store(16 << 20, PolicyKind::DEFAULT);
    set(&store, b"n", b"0");
    let seen = in_threads(|_, _| {
        let options = arithmetic(Direction::Increment, 1);
        let one = || match store.arithmetic(b"n", Store::hash(b"n"), &options, NOW) {
            ArithmeticOutcome::Number(number, info) => (number, info.version),
            other => panic!("{other:?}"),
        };
        (0..ROUNDS).map(|_| one()).collect::<Vec<_>>()
    });
    for results in &seen {
        assert!(results.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "a thread saw time go back");
    }
    let mut all: Vec<_> = seen.concat();
    all.sort_unstable();
    assert!(all.iter().map(|(number, _)| *number).eq(1..=(THREADS * ROUNDS) as u64));
    assert!(all.is_sorted_by(|a, b| a.1 < b.1), "versions rise with the values");
}

#[test]
fn compare_and_set_never_loses_an_update() {
    const KEYS: usize = 3;
    const ROUNDS: usize = 3_000;
    let store = store(16 << 20, PolicyKind::DEFAULT);
    // Also values that are too long to be written under the lock: those are another code path.
    let lens = [8, 2_000, 40_000];
    for (number, len) in lens.iter().enumerate() {
        set(&store, &key("cas", number), &counting(0, *len));
    }
    let done: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    in_threads(|_, random| {
        for _ in 0..ROUNDS {
            let number = random.below(KEYS);
            let key = key("cas", number);
            let hash = Store::hash(&key);
            let (version, count) = store
                .get(&key, hash, &GetOptions::default(), NOW, |info, value| {
                    (info.version, counted(&bytes(value)))
                })
                .unwrap();
            let options = WriteOptions { compare: Some(version), ..WriteOptions::default() };
            let new = counting(count + 1, lens[number]);
            match store.write(&key, hash, &new, &options, NOW) {
                WriteOutcome::Stored(info) => {
                    assert!(info.version > version);
                    done[number].fetch_add(1, Ordering::Relaxed);
                }
                WriteOutcome::Exists => {}
                other => panic!("{other:?}"),
            }
        }
    });
    for (number, done) in done.iter().enumerate() {
        let value = get(&store, &key("cas", number)).unwrap();
        assert_eq!(counted(&value), done.load(Ordering::Relaxed), "key {number}");
        assert!(done.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn of_many_adds_one_stores_and_of_many_deletes_one_deletes() {
    const ROUNDS: usize = 2_000;
    let store = store(16 << 20, PolicyKind::Lru);
    let (barrier, added, deleted) = (Barrier::new(THREADS), AtomicU64::new(0), AtomicU64::new(0));
    in_threads(|thread, _| {
        for round in 0..ROUNDS {
            let key = key("once", round);
            let hash = Store::hash(&key);
            let options = WriteOptions { mode: WriteMode::Add, ..WriteOptions::default() };
            barrier.wait();
            match store.write(&key, hash, &[thread as u8; 100], &options, NOW) {
                WriteOutcome::Stored(_) => added.fetch_add(1, Ordering::Relaxed),
                WriteOutcome::NotStored => 0,
                other => panic!("{other:?}"),
            };
            barrier.wait();
            match store.delete(&key, hash, &DeleteOptions::default(), NOW) {
                DeleteOutcome::Deleted => deleted.fetch_add(1, Ordering::Relaxed),
                DeleteOutcome::NotFound => 0,
                other => panic!("{other:?}"),
            };
        }
    });
    assert_eq!(added.into_inner(), ROUNDS as u64);
    assert_eq!(deleted.into_inner(), ROUNDS as u64);
    assert_eq!(store.stats().items, 0);
}

#[test]
fn appends_of_many_threads_are_all_there_and_whole() {
    const ROUNDS: usize = 500;
    let store = store(32 << 20, PolicyKind::Lru);
    set(&store, b"log", b"");
    let options = WriteOptions { mode: WriteMode::Append, ..WriteOptions::default() };
    in_threads(|thread, _| {
        for round in 0..ROUNDS {
            // The value grows from nothing to far beyond what is written under the lock.
            let line = format!("{thread}:{round:05}:{}\n", "x".repeat(40));
            loop {
                match store.write(b"log", Store::hash(b"log"), line.as_bytes(), &options, NOW) {
                    WriteOutcome::Stored(_) => break,
                    // Others were faster too often; nothing changed.
                    WriteOutcome::OutOfMemory => thread::yield_now(),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    let log = String::from_utf8(get(&store, b"log").unwrap()).unwrap();
    let mut next = [0; THREADS];
    for line in log.lines() {
        let (thread, rest) = line.split_once(':').unwrap();
        let (round, filling) = rest.split_once(':').unwrap();
        let thread: usize = thread.parse().unwrap();
        assert_eq!((round.parse::<usize>().unwrap(), filling.len()), (next[thread], 40));
        next[thread] += 1;
    }
    assert_eq!(next, [ROUNDS; THREADS]);
}

/// Everything at once, over few keys and with far more data than fits. A value is made from its
/// key and a seed of its own that stands at its beginning, so a reader can tell a torn one.
/// Values of one key change under the readers all the time, and with them its length and version.
#[test]
fn what_is_read_into_an_output_is_of_one_moment_while_writers_are_at_the_item() {
    const READS: u64 = 60_000;
    let store = store(16 << 20, PolicyKind::DEFAULT);
    set(&store, b"hot", &value_of(b"hot", 0, 64));
    let (read, undone) = (AtomicU64::new(0), AtomicU64::new(0));
    in_threads(|thread, random| {
        for _ in 0..READS {
            if thread == 0 {
                let len = 9 + random.below(1_000);
                set(&store, b"hot", &value_of(b"hot", random.next(), len));
                continue;
            }
            match append(&store, b"hot", &GetOptions::PLAIN) {
                Appended::Hit(_) => read.fetch_add(1, Ordering::Relaxed),
                Appended::Undone => undone.fetch_add(1, Ordering::Relaxed),
                Appended::Miss => panic!("the item is always there"),
            };
        }
    });
    assert_eq!(read.load(Ordering::Relaxed) + undone.load(Ordering::Relaxed), 3 * READS);
    assert!(read.load(Ordering::Relaxed) > 0);
    assert_eq!(store.stats().get_hits, read.load(Ordering::Relaxed), "what is undone is no hit");
}

#[test]
fn under_everything_at_once_no_value_is_torn_and_the_ceiling_holds() {
    for policy in [PolicyKind::DEFAULT, PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::None] {
        let memory = 8 << 20;
        let store = store(memory, policy);
        let (hits, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            // As in the server, one thread ends items and gives pages back, all the time.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    store.maintain(NOW, 64);
                    thread::yield_now();
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let stats = store.stats();
                    assert!(stats.page_bytes <= memory as u64, "{policy}: {}", stats.page_bytes);
                    thread::yield_now();
                }
            });
            in_threads(|_, random| {
                for round in 0..30_000 {
                    hits.fetch_add(anything(&store, random), Ordering::Relaxed);
                    if round == 15_000 {
                        store.flush(None, NOW);
                    }
                }
            });
            stop.store(true, Ordering::Relaxed);
        });
        assert!(hits.into_inner() > 1_000, "{policy}: the test has read nothing to speak of");
        let (mut cursor, mut seen) = (Some(0), 0);
        while let Some(at) = cursor {
            let page = store.scan(at, 64, NOW, |entry| {
                if let Some(value) = entry.value {
                    assert_whole(entry.key, value);
                }
            });
            seen += page.seen;
            cursor = page.next;
        }
        assert_eq!(seen as u64, store.stats().items, "{policy}");
        assert_eq!(store.stats().zombies, 0, "{policy}: no reader is left, so none is pinned");
    }
}

/// One operation of whatever kind; 1 when it read a value.
fn anything(store: &Store, random: &mut Random) -> u64 {
    let key = key("any", random.below(3_000));
    let hash = Store::hash(&key);
    match random.below(20) {
        0..7 => {
            let touch = (random.below(4) == 0).then_some(Expiry::At(NOW + 60_000));
            let options = GetOptions { touch, ..GetOptions::default() };
            if random.below(2) == 0 {
                match append(store, &key, &options) {
                    Appended::Hit(_) => return 1,
                    Appended::Miss => return 0,
                    Appended::Undone => {}
                }
            }
            let read = store.get(&key, hash, &options, NOW, |info, value| match value {
                Value::Inline(bytes) => (info.value_len, bytes.to_vec()),
                // Read while others replace the item.
                large => (info.value_len, bytes(large)),
            });
            let Some((value_len, value)) = read else { return 0 };
            assert_eq!(value.len(), value_len);
            assert_whole(&key, &value);
            return 1;
        }
        7..15 => {
            let mode = [WriteMode::Set, WriteMode::Add, WriteMode::Replace][random.below(3)];
            let expiry = [Expiry::Never, Expiry::At(NOW + 1), Expiry::At(NOW + 3_600_000)];
            let expiry = expiry[random.below(3)];
            let value = value_of(&key, random.next(), random.len());
            let options = WriteOptions { mode, expiry, ..WriteOptions::default() };
            match store.write(&key, hash, &value, &options, NOW) {
                WriteOutcome::Stored(info) => assert_eq!(info.value_len, value.len()),
                WriteOutcome::NotStored | WriteOutcome::OutOfMemory => {}
                other => panic!("{other:?}"),
            }
        }
        15..17 => {
            let deleted = store.delete(&key, hash, &DeleteOptions::default(), NOW);
            assert!(matches!(deleted, DeleteOutcome::Deleted | DeleteOutcome::NotFound));
        }
        17 => {
            store.touch(&key, hash, Expiry::At(NOW + 90_000), NOW);
        }
        18 => {
            // A value of these begins with bytes that are no digits.
            let options = arithmetic(Direction::Decrement, 1);
            let outcome = store.arithmetic(&key, hash, &options, NOW);
            assert!(
                matches!(outcome, ArithmeticOutcome::NotANumber | ArithmeticOutcome::NotFound),
                "{outcome:?}"
            );
        }
        _ => {
            let _ = store.peek(&key, hash, NOW);
        }
    }
    0
}

fn store(memory: usize, policy: PolicyKind) -> Store {
    eprintln!("seed {SEED}");
    let config = StoreConfig { memory, policy, start_ms: NOW, ..StoreConfig::default() };
    Store::new(config).unwrap()
}

/// Runs the same in several threads at once, each with its own random numbers.
fn in_threads<R: Send>(work: impl Fn(usize, &mut Random) -> R + Sync) -> Vec<R> {
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        let (work, barrier) = (&work, &barrier);
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut random = Random(SEED.wrapping_add((thread as u64) << 32));
                    barrier.wait();
                    work(thread, &mut random)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn key(kind: &str, number: usize) -> Vec<u8> {
    format!("{kind}:{number}").into_bytes()
}

fn set(store: &Store, key: &[u8], value: &[u8]) {
    let outcome = store.write(key, Store::hash(key), value, &WriteOptions::default(), NOW);
    assert!(matches!(outcome, WriteOutcome::Stored(_)), "{outcome:?}");
}

fn get(store: &Store, key: &[u8]) -> Option<Vec<u8>> {
    store.get(key, Store::hash(key), &GetOptions::default(), NOW, |_, value| bytes(value))
}

/// Reads an item into an output that holds something already, and checks what is there then.
fn append(store: &Store, key: &[u8], options: &GetOptions) -> Appended<usize> {
    const BEFORE: &[u8] = b"before";
    // Sometimes with room for the value, sometimes for more, sometimes not.
    let more = if key.len().is_multiple_of(2) { 256 } else { 0 };
    let mut out = Vec::with_capacity(BEFORE.len() + key.len() * 8 + more);
    out.extend_from_slice(BEFORE);
    let appended =
        store.reads().get_into(key, Store::hash(key), options, NOW, &mut out, |info, out| {
            out.push(b':');
            Some(info.value_len)
        });
    let Appended::Hit(value_len) = appended else {
        assert_eq!(out, BEFORE);
        return appended;
    };
    let value = out.strip_prefix(b"before:").unwrap();
    assert_eq!(Some(value.len()), value_len);
    assert_whole(key, value);
    appended
}

fn bytes(value: Value<'_>) -> Vec<u8> {
    match value {
        Value::Inline(bytes) => bytes.to_vec(),
        Value::Large(pinned) => pinned.slices().concat(),
    }
}

fn arithmetic(direction: Direction, delta: u64) -> ArithmeticOptions {
    ArithmeticOptions { direction, delta, compare: None, version: None, create: None, touch: None }
}

/// A number at the beginning of a value, and at its end again, so that a torn one is seen.
fn counting(count: u64, len: usize) -> Vec<u8> {
    let mut value = vec![count as u8; len];
    value[..8].copy_from_slice(&count.to_le_bytes());
    value[len - 8..].copy_from_slice(&count.to_le_bytes());
    value
}

fn counted(value: &[u8]) -> u64 {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let count = number(&value[..8]);
    assert_eq!(count, number(&value[value.len() - 8..]), "torn");
    count
}

fn value_of(key: &[u8], seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed ^ Store::hash(key));
    let mut value = b"v".to_vec();
    value.extend_from_slice(&seed.to_le_bytes());
    while value.len() < len {
        value.extend_from_slice(&random.next().to_le_bytes());
    }
    value.truncate(len.max(9));
    value
}

fn assert_whole(key: &[u8], value: &[u8]) {
    let seed = u64::from_le_bytes(value[1..9].try_into().unwrap());
    assert!(value == value_of(key, seed, value.len()), "torn: {} bytes", value.len());
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Mostly small, sometimes far beyond what is written under the lock.
    fn len(&mut self) -> usize {
        match self.below(20) {
            0..14 => self.below(500),
            14..19 => self.below(10_000),
            _ => self.below(200_000),
        }
    }
}
