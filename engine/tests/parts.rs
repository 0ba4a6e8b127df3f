//! Walks over the items of one residue class: what a copy of one partition is made of.

use std::collections::{BTreeMap, BTreeSet};

use kiln_engine::policy::PolicyKind;
use kiln_engine::{DeleteOptions, Store, StoreConfig, WriteOptions, WriteOutcome};

const NOW_MS: u64 = 1_000;

fn store(shards: usize) -> Store {
    let config = StoreConfig {
        memory: 64 << 20,
        policy: PolicyKind::None,
        shards,
        ..StoreConfig::default()
    };
    Store::new(config).expect("64 MiB")
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

fn put(store: &Store, number: usize) {
    // Some are large: kept in chunks and without a value in the walk.
    let len = if number.is_multiple_of(997) { 20_000 } else { number % 50 };
    let (key, value) = (key(number), vec![b'v'; len]);
    let done = store.write(&key, Store::hash(&key), &value, &WriteOptions::default(), NOW_MS);
    assert!(matches!(done, WriteOutcome::Stored(_)), "{done:?}");
}

fn part(store: &Store, modulus: u64, remainder: u64) -> BTreeSet<Vec<u8>> {
    let (mut keys, mut cursor) = (BTreeSet::new(), Some(0));
    while let Some(at) = cursor {
        cursor = store
            .scan_part(at, (modulus, remainder), 1, NOW_MS, |hash, entry| {
                assert_eq!(hash, Store::hash(entry.key));
                assert_eq!(hash % modulus, remainder);
                assert_eq!(entry.value.is_none(), entry.info.value_len > 16_384);
                assert!(keys.insert(entry.key.to_vec()), "met twice in a quiet store");
            })
            .next;
    }
    keys
}

#[test]
fn the_parts_of_a_store_are_disjoint_and_together_all_of_it() {
    // Powers of two, small and large, a multiple of one, and numbers that no bit of the tag helps.
    for modulus in [1, 2, 64, 1_024, 96, 7, 1_000] {
        let store = store(4);
        (0..20_000).for_each(|number| put(&store, number));
        let mut expected: BTreeMap<u64, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for key in (0..20_000).map(key) {
            expected.entry(Store::hash(&key) % modulus).or_default().insert(key);
        }
        for remainder in 0..modulus {
            let found = part(&store, modulus, remainder);
            assert_eq!(found, expected.remove(&remainder).unwrap_or_default(), "of {modulus}");
        }
    }
}

#[test]
fn what_is_there_throughout_is_met_while_the_index_grows_and_shrinks() {
    const STAYS: usize = 5_000;
    let of_part = |key: &[u8]| Store::hash(key) % 16 == 3;
    for grows in [true, false] {
        let store = store(2);
        (0..STAYS).for_each(|number| put(&store, number));
        let mut others = if grows { STAYS } else { 80_000 };
        (STAYS..others).for_each(|number| put(&store, number));
        let (mut met, mut cursor, mut steps) = (BTreeSet::new(), Some(0), 0);
        while let Some(at) = cursor {
            let visit = |_, entry: kiln_engine::Entry<'_>| {
                met.insert(entry.key.to_vec());
            };
            cursor = store.scan_part(at, (16, 3), 1, NOW_MS, visit).next;
            steps += 1;
            for _ in 0..1_500 {
                if grows && others < 80_000 {
                    put(&store, others);
                    others += 1;
                } else if !grows && others > STAYS {
                    others -= 1;
                    let key = key(others);
                    store.delete(&key, Store::hash(&key), &DeleteOptions::default(), NOW_MS);
                }
            }
        }
        assert!(steps > 3, "one step saw it all");
        let expected = (0..STAYS).map(key).filter(|key| of_part(key));
        assert!(expected.into_iter().all(|key| met.contains(&key)), "grows: {grows}");
    }
}
