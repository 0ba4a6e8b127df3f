//! The engine as the definition of every operation: random commands, evaluated and applied as a
//! replicated cache does, come to the same as when the engine is asked itself, on both stores.

use kiln_engine::policy::PolicyKind;
use kiln_engine::{
    ArithmeticOptions, ArithmeticOutcome, DeleteOutcome, StoreConfig, Value, WriteMode,
};
use proptest::prelude::*;

use super::*;
use crate::effect::{Direction, Operation, Outcome, StoreMode, Ttl};
use crate::evaluate::{Rules, evaluate};
use crate::store::MapStore;

const CACHE: CacheId = CacheId(1);
const GROUP: GroupKey = GroupKey { mode: Mode::Strong, copies: 2 };
const PLACE: Place = Place { group: GROUP, partition: PartitionId(0) };
const VALUE_LEN_MAX: usize = 24_000;
const DEFAULT_TTL_MS: u64 = 700;

fn engine() -> kiln_engine::Store {
    let config = StoreConfig {
        memory: 8 << 20,
        policy: PolicyKind::None,
        value_len_max: VALUE_LEN_MAX,
        shards: 1,
        ..StoreConfig::default()
    };
    kiln_engine::Store::new(config).expect("8 MiB")
}

fn expiry(ttl: Ttl, now_ms: u64) -> Expiry {
    match ttl {
        Ttl::Default => Expiry::At(now_ms + DEFAULT_TTL_MS),
        Ttl::Never => Expiry::Never,
        Ttl::After(ms) => Expiry::At(now_ms + ms),
        Ttl::At(at) => Expiry::At(at),
        Ttl::Expired => Expiry::At(0),
    }
}

/// What the engine itself says. Versions are given, so that they can be compared.
fn asked(
    store: &kiln_engine::Store,
    key: &[u8],
    operation: &Operation,
    next: u64,
    now_ms: u64,
) -> Outcome {
    let hash = kiln_engine::Store::hash(key);
    let expiry = |ttl| expiry(ttl, now_ms);
    let get = |options: &GetOptions| {
        let read = |info: &ItemInfo, value: Value<'_>| (*info, item(info, &value));
        match store.get(key, hash, options, now_ms, read) {
            None => Outcome::NotFound,
            Some((info, item)) if info.refill == Refill::Won => {
                Outcome::Won(Item { marks: item.marks.with(Marks::TAKEN), ..item })
            }
            Some((_, item)) => Outcome::Hit(item),
        }
    };
    let write = |mode: StoreMode, value: &[u8], options: WriteOptions| {
        let mode = match mode {
            StoreMode::Set => WriteMode::Set,
            StoreMode::Add => WriteMode::Add,
            StoreMode::Replace => WriteMode::Replace,
            StoreMode::Append => WriteMode::Append,
            StoreMode::Prepend => WriteMode::Prepend,
        };
        let extends = matches!(mode, WriteMode::Append | WriteMode::Prepend);
        let options = WriteOptions { mode, version: Some(next), ..options };
        match store.write(key, hash, value, &options, now_ms) {
            WriteOutcome::Stored(info) => Outcome::Stored(Version(info.version)),
            WriteOutcome::NotStored => Outcome::NotStored,
            WriteOutcome::Exists => Outcome::Exists,
            WriteOutcome::NotFound => Outcome::NotFound,
            // What grew too large was not sent too large: as front ends answer it.
            WriteOutcome::TooLarge if extends && value.len() <= VALUE_LEN_MAX => Outcome::NotStored,
            WriteOutcome::TooLarge => Outcome::TooLarge,
            WriteOutcome::OutOfMemory => Outcome::OutOfMemory,
        }
    };
    let delete = |options: DeleteOptions| match store.delete(key, hash, &options, now_ms) {
        DeleteOutcome::Deleted => Outcome::Deleted,
        DeleteOutcome::NotFound => Outcome::NotFound,
        DeleteOutcome::Exists => Outcome::Exists,
    };
    let number = |version: Option<Version>| version.map(|version| version.0);
    match operation {
        Operation::Get { touch } => {
            get(&GetOptions { touch: touch.map(expiry), ..GetOptions::default() })
        }
        Operation::Look { touch, vivify, recache_below_ms, no_bump, may_refill } => {
            get(&GetOptions {
                touch: touch.map(expiry),
                vivify: vivify.map(expiry),
                recache_below_ms: *recache_below_ms,
                no_bump: *no_bump,
                may_refill: *may_refill,
                version: Some(next),
            })
        }
        Operation::Store { mode, value, flags, ttl, compare } => {
            let (flags, expiry, compare) = (*flags, expiry(*ttl), number(*compare));
            write(*mode, value, WriteOptions { flags, expiry, compare, ..Default::default() })
        }
        Operation::Amend { mode, value, flags, ttl, compare, invalidate, vivify } => {
            let options = WriteOptions {
                flags: *flags,
                expiry: expiry(*ttl),
                compare: number(*compare),
                invalidate: *invalidate,
                vivify: vivify.map(expiry),
                ..WriteOptions::default()
            };
            write(*mode, value, options)
        }
        Operation::Delete { compare } => {
            delete(DeleteOptions { compare: number(*compare), ..DeleteOptions::default() })
        }
        Operation::Mark { compare, invalidate, ttl, keep_empty } => delete(DeleteOptions {
            compare: number(*compare),
            version: Some(next),
            invalidate: *invalidate,
            expiry: ttl.map(expiry),
            keep_empty: *keep_empty,
        }),
        Operation::Touch { ttl } => match store.touch(key, hash, expiry(*ttl), now_ms) {
            TouchOutcome::Touched(info) => Outcome::Touched(Version(info.version)),
            TouchOutcome::NotFound => Outcome::NotFound,
            TouchOutcome::OutOfMemory => Outcome::OutOfMemory,
        },
        Operation::Arithmetic { direction, delta, compare, create, touch } => {
            let options = ArithmeticOptions {
                direction: match direction {
                    Direction::Increment => kiln_engine::Direction::Increment,
                    Direction::Decrement => kiln_engine::Direction::Decrement,
                },
                delta: *delta,
                compare: number(*compare),
                version: Some(next),
                create: create.map(|(ttl, number)| (expiry(ttl), number)),
                touch: touch.map(expiry),
            };
            match store.arithmetic(key, hash, &options, now_ms) {
                ArithmeticOutcome::Number(number, info) => {
                    Outcome::Number(number, Version(info.version))
                }
                ArithmeticOutcome::NotFound => Outcome::NotFound,
                ArithmeticOutcome::Exists => Outcome::Exists,
                ArithmeticOutcome::NotANumber => Outcome::NotANumber,
                ArithmeticOutcome::OutOfMemory => Outcome::OutOfMemory,
            }
        }
        Operation::Clear => {
            store.flush(None, now_ms);
            Outcome::Deleted
        }
    }
}

fn ttl() -> impl Strategy<Value = Ttl> {
    prop_oneof![
        2 => Just(Ttl::Never),
        1 => Just(Ttl::Default),
        4 => (1..2_000u64).prop_map(Ttl::After),
        1 => (0..20_000u64).prop_map(Ttl::At),
        1 => Just(Ttl::Expired),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => (0..10u64).prop_map(|number| Bytes::from(number.to_string())),
        3 => "[a-z ]{0,40}".prop_map(Bytes::from),
        1 => (16_000..VALUE_LEN_MAX + 2).prop_map(|len| Bytes::from(vec![b'x'; len])),
    ]
}

fn mode() -> impl Strategy<Value = StoreMode> {
    prop_oneof![
        4 => Just(StoreMode::Set),
        1 => Just(StoreMode::Add),
        1 => Just(StoreMode::Replace),
        1 => Just(StoreMode::Append),
        1 => Just(StoreMode::Prepend),
    ]
}

/// Which version is compared: how far behind the newest one of the run.
fn compare() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![3 => Just(None), 2 => (0..4u64).prop_map(Some)]
}

/// An operation, whose versions are distances from the next version.
fn operation() -> impl Strategy<Value = Operation> {
    use proptest::option::of;
    let distance = |compare: Option<u64>| compare.map(Version);
    let store = (mode(), value(), any::<u8>(), ttl(), compare()).prop_map(
        move |(mode, value, flags, ttl, compare)| Operation::Store {
            mode,
            value,
            flags: u32::from(flags),
            ttl,
            compare: distance(compare),
        },
    );
    let amend = (mode(), value(), any::<u8>(), ttl(), compare(), any::<bool>(), of(ttl()));
    let amend = amend.prop_map(move |(mode, value, flags, ttl, compare, invalidate, vivify)| {
        let (flags, compare) = (u32::from(flags), distance(compare));
        Operation::Amend { mode, value, flags, ttl, compare, invalidate, vivify }
    });
    let look = (of(ttl()), of(ttl()), of(0..3_000u64), any::<bool>(), any::<bool>());
    let look = look.prop_map(|(touch, vivify, recache_below_ms, no_bump, may_refill)| {
        Operation::Look { touch, vivify, recache_below_ms, no_bump, may_refill }
    });
    let mark = (compare(), any::<bool>(), of(ttl()), any::<bool>()).prop_map(
        move |(compare, invalidate, ttl, keep_empty)| Operation::Mark {
            compare: distance(compare),
            invalidate,
            ttl,
            keep_empty,
        },
    );
    let count = (any::<bool>(), 0..5u64, compare(), of((ttl(), 0..20u64)), of(ttl()));
    let count = count.prop_map(move |(up, delta, compare, create, touch)| Operation::Arithmetic {
        direction: if up { Direction::Increment } else { Direction::Decrement },
        delta,
        compare: distance(compare),
        create,
        touch,
    });
    prop_oneof![
        6 => store,
        4 => amend,
        3 => of(ttl()).prop_map(|touch| Operation::Get { touch }),
        6 => look,
        2 => compare().prop_map(move |compare| Operation::Delete { compare: distance(compare) }),
        4 => mark,
        2 => ttl().prop_map(|ttl| Operation::Touch { ttl }),
        4 => count,
        1 => Just(Operation::Clear),
    ]
}

/// Replaces distances by versions.
fn settle(mut operation: Operation, next: u64) -> Operation {
    match &mut operation {
        Operation::Store { compare, .. }
        | Operation::Amend { compare, .. }
        | Operation::Delete { compare }
        | Operation::Mark { compare, .. }
        | Operation::Arithmetic { compare, .. } => {
            *compare = compare.map(|distance| Version(next.saturating_sub(distance.0)));
        }
        _ => {}
    }
    operation
}

fn items(store: &impl Store, clock_ms: u64) -> BTreeMap<ItemKey, Item> {
    let (mut items, mut cursor) = (BTreeMap::new(), Some(Cursor::Start));
    while let Some(at) = cursor {
        cursor = store.scan(PLACE, at, 100, 1 << 20, &mut |key, item| {
            if !item.is_over(clock_ms) {
                items.insert(key.clone(), item);
            }
        });
    }
    items
}

proptest! {
    #[test]
    fn evaluated_and_applied_an_operation_is_what_the_engine_makes_of_it(
        steps in proptest::collection::vec((0..3u8, operation(), 0..400u64), 1..60),
        evicts in any::<bool>(),
    ) {
        let reference = engine();
        let mut served = EngineStore::new(1);
        served.add_cache(CACHE, GROUP, engine());
        let mut map = MapStore::new(16 << 20);
        let rules = Rules {
            value_len_max: VALUE_LEN_MAX,
            default_ttl_ms: Some(DEFAULT_TTL_MS),
            evicts,
        };
        let mut now_ms = 1_000;
        for (next, (name, operation, later_ms)) in (10..).zip(steps) {
            now_ms += later_ms;
            let key = ItemKey { cache: CACHE, key: Bytes::from(vec![b'a' + name]) };
            let operation = settle(operation, next);
            let expected = asked(&reference, &key.key, &operation, next, now_ms);
            let current = served.read(PLACE, &key, true, now_ms);
            let done = evaluate(current.as_ref(), &operation, Version(next), now_ms, &rules);
            prop_assert_eq!(&done.outcome, &expected, "{:?} of {:?}", operation, current);
            if let Some(change) = done.change {
                let effect = Effect { key, change };
                prop_assert_eq!(served.apply(PLACE, &effect, evicts, now_ms), Stored::Done);
                prop_assert_eq!(map.apply(PLACE, &effect, evicts, now_ms), Stored::Done);
            }
            if next % 7 == 0 {
                served.maintain(now_ms);
                served.sweep(2, &mut Vec::new());
            }
            prop_assert_eq!(items(&served, now_ms), items(&map, now_ms));
        }
    }
}
