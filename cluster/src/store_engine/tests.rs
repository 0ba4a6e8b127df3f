//! The engine behind the trait: what a copy can rely on.

use kiln_engine::StoreConfig;
use kiln_engine::policy::PolicyKind;

use super::*;

const CACHE: CacheId = CacheId(1);
const GROUP: GroupKey = GroupKey { mode: Mode::Strong, copies: 2 };

fn engine(policy: PolicyKind) -> EngineStore {
    let config = StoreConfig { memory: 8 << 20, policy, ..StoreConfig::default() };
    let mut store = EngineStore::new(4);
    store.add_cache(CACHE, GROUP, kiln_engine::Store::new(config).expect("8 MiB"));
    store
}

fn key(name: &str) -> ItemKey {
    ItemKey { cache: CACHE, key: Bytes::copy_from_slice(name.as_bytes()) }
}

fn place_of(store: &EngineStore, key: &ItemKey) -> Place {
    let partition = partition_of_hash(kiln_engine::Store::hash(&key.key), store.partitions);
    Place { group: GROUP, partition }
}

fn put(store: &mut EngineStore, name: &str, value: Bytes, version: u64) -> Stored {
    let key = key(name);
    let place = place_of(store, &key);
    let item = Item { value, flags: 5, version: Version(version), ..Item::default() };
    store.apply(place, &Effect { key, change: Change::Put(item) }, false, 0)
}

fn all(store: &EngineStore, place: Place) -> BTreeMap<ItemKey, Item> {
    let mut items = BTreeMap::new();
    let mut cursor = Some(Cursor::Start);
    while let Some(at) = cursor {
        cursor = store.scan(place, at, 10, 1 << 20, &mut |key, item| {
            items.insert(key.clone(), item);
        });
    }
    items
}

#[test]
fn a_partition_is_walked_and_dropped_without_touching_others() {
    let mut store = engine(PolicyKind::None);
    let value = |number: usize| Bytes::from(vec![number as u8; 40_000 * (number % 2) + 10]);
    for number in 0..100 {
        assert_eq!(put(&mut store, &format!("k{number}"), value(number), 3), Stored::Done);
    }
    let places = (0..4).map(|partition| Place { group: GROUP, partition: PartitionId(partition) });
    let before: Vec<_> = places.clone().map(|place| all(&store, place)).collect();
    assert_eq!(before.iter().map(BTreeMap::len).sum::<usize>(), 100);
    for number in 0..100 {
        let key = key(&format!("k{number}"));
        let place = place_of(&store, &key);
        let item = &before[place.partition.0 as usize][&key];
        assert_eq!((item.value.clone(), item.flags, item.version), (value(number), 5, Version(3)));
    }
    let first = Place { group: GROUP, partition: PartitionId(0) };
    let mut steps = 0;
    while store.drop_partition(first, 7) {
        steps += 1;
        assert!(steps < 100);
    }
    assert_eq!(all(&store, first).len(), 0);
    assert_eq!(all(&store, Place { partition: PartitionId(1), ..first }), before[1]);
}

#[test]
fn a_store_that_keeps_refuses_when_full_and_keeps_the_older_value() {
    let mut store = engine(PolicyKind::None);
    let big = |byte: u8| Bytes::from(vec![byte; 10_000]);
    let mut stored = 0;
    while store.room(CACHE) > 64 << 10 {
        assert_eq!(put(&mut store, &format!("k{stored}"), big(1), 1), Stored::Done, "{stored}");
        stored += 1;
    }
    assert!(stored > 500, "only {stored} of some 700");
    while put(&mut store, &format!("k{stored}"), big(1), 1) == Stored::Done {
        stored += 1;
    }
    let longer = Bytes::from(vec![2; 16_000]);
    assert_eq!(put(&mut store, "k7", longer, 2), Stored::Full);
    let key = key("k7");
    let place = place_of(&store, &key);
    assert_eq!(store.read(place, &key, false, 0).map(|item| item.value), Some(big(1)));
}

#[test]
fn what_has_ended_stays_until_all_partitions_agree() {
    let mut store = engine(PolicyKind::None);
    let key = key("k");
    let place = place_of(&store, &key);
    let item = Item {
        value: "v".into(),
        version: Version(1),
        deadline_ms: Some(5_000),
        ..Item::default()
    };
    let effect = Effect { key: key.clone(), change: Change::Put(item) };
    assert_eq!(store.apply(place, &effect, false, 1_000), Stored::Done);
    assert!(store.read(place, &key, false, 9_000).is_some());
    let (version, deadline_ms) = (Version(1), Some(20_000));
    let touch = Change::Touch { version, deadline_ms, marks: Marks::NONE };
    store.apply(place, &Effect { key: key.clone(), change: touch }, false, 4_999);
    store.maintain(6_000);
    assert_eq!(
        store.read(place, &key, false, 9_000).map(|item| item.deadline_ms),
        Some(Some(20_000))
    );
    store.maintain(20_000);
    assert_eq!(store.read(place, &key, false, 0), None);
}

#[test]
fn marks_and_ends_survive_the_store_as_they_were_put() {
    let mut store = engine(PolicyKind::None);
    let key = key("k");
    let place = place_of(&store, &key);
    let big = Bytes::from(vec![7; 50_000]);
    for value in [Bytes::from_static(b"small"), big] {
        for marks in [Marks::STALE, Marks::TAKEN, Marks::STALE.with(Marks::TAKEN), Marks::NONE] {
            let version = Version(4);
            let item = Item { value: value.clone(), version, marks, ..Item::default() };
            let effect = Effect { key: key.clone(), change: Change::Put(item.clone()) };
            assert_eq!(store.apply(place, &effect, false, 0), Stored::Done);
            assert_eq!(store.read(place, &key, true, 0), Some(item.clone()));
            assert_eq!(all(&store, place)[&key], item);
            let (deadline_ms, marks) = (Some(9_000), Marks::TAKEN);
            let touch = Change::Touch { version, deadline_ms, marks };
            store.apply(place, &Effect { key: key.clone(), change: touch }, false, 0);
            let touched = Item { deadline_ms, marks, ..item };
            assert_eq!(store.read(place, &key, true, 0), Some(touched));
        }
    }
}

#[test]
fn what_was_cleared_is_absent_at_once_and_freed_in_steps() {
    let mut store = engine(PolicyKind::None);
    for number in 0..5_000 {
        put(&mut store, &format!("k{number}"), Bytes::from_static(b"v"), 10);
    }
    let place = |partition| Place { group: GROUP, partition: PartitionId(partition) };
    let clear = |store: &mut EngineStore, partition, version| {
        let effect = Effect { key: key("any"), change: Change::Clear(Version(version)) };
        store.apply(place(partition), &effect, false, 0);
    };
    let others = [all(&store, place(0)), all(&store, place(3))];
    let hidden = all(&store, place(1)).into_keys().next().expect("a key");
    clear(&mut store, 1, 10);
    assert!(store.is_sweeping(place(1)) && !store.is_sweeping(place(0)));
    assert_eq!(store.read(place(1), &hidden, true, 0), None);
    assert_eq!(all(&store, place(1)).len(), 0);
    // Written after: it stays, also where an older item was.
    let newer = Item { value: "new".into(), version: Version(11), ..Item::default() };
    let effect = Effect { key: hidden.clone(), change: Change::Put(newer.clone()) };
    assert_eq!(store.apply(place(1), &effect, false, 0), Stored::Done);
    let (mut done, mut steps) = (Vec::new(), 0);
    while store.sweep(100, &mut done) {
        steps += 1;
        if steps == 20 {
            // One that comes while the walk is under way is not done with it.
            clear(&mut store, 2, 10);
        }
        assert!(steps < 1_000);
    }
    assert_eq!(done, [place(1), place(2)]);
    assert!(!store.is_sweeping(place(1)) && !store.is_sweeping(place(2)));
    let left = |partition| all(&store, place(partition));
    assert_eq!(left(1), BTreeMap::from([(hidden, newer)]));
    assert_eq!(left(2).len(), 0);
    assert_eq!([left(0), left(3)], others);
    let left = store.cache(CACHE).map(|cache| cache.stats().items);
    assert_eq!(left, Some(others[0].len() as u64 + others[1].len() as u64 + 1));
}

#[test]
fn items_that_were_there_before_count_as_they_are() {
    let config = StoreConfig { memory: 8 << 20, ..StoreConfig::default() };
    let handle = kiln_engine::Store::new(config).expect("8 MiB");
    let values = [Bytes::from_static(b"small"), Bytes::from(vec![3; 100_000])];
    for (name, value) in ["a", "b"].iter().zip(&values) {
        let hash = kiln_engine::Store::hash(name.as_bytes());
        handle.write(name.as_bytes(), hash, value, &WriteOptions::default(), 1_000);
    }
    let mut store = EngineStore::new(4);
    store.add_cache(CACHE, GROUP, handle);
    for (name, value) in ["a", "b"].iter().zip(values) {
        let key = key(name);
        let place = place_of(&store, &key);
        let item = store.read(place, &key, true, 0).expect("written before");
        assert_eq!(item.value, value);
        assert!(item.version > Version(0) && item.version < Version(1 << 40));
        assert_eq!(all(&store, place)[&key], item);
    }
}
