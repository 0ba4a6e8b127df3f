//! What an operation does to an item: the one place where operations have a meaning.
//!
//! A pure function of the item as it is, the operation, the clock and the cache's settings. The
//! meaning is that of `kiln-engine`; where they could differ, this follows the engine.
//!
//! One thing is added for copies. Where the cache evicts, "there is no item" may be true here and
//! false on another copy, because evictions are not waited for. An operation after which no older
//! value may be seen (a delete, a set that stores nothing) is therefore passed on as a removal even
//! when there is nothing to remove here.

use bytes::{Bytes, BytesMut};

use crate::effect::{Change, Direction, Item, Marks, Operation, Outcome, StoreMode, Ttl};
use crate::ids::Version;
use crate::topology::{CacheSpec, Eviction};

/// The settings of a cache that bear on the meaning of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Longest value in bytes.
    pub value_len_max: usize,
    /// End of items written without one.
    pub default_ttl_ms: Option<u64>,
    /// Copies may drop items by themselves.
    pub evicts: bool,
}

impl Rules {
    /// Those of a cache.
    #[must_use]
    pub fn of(spec: &CacheSpec) -> Self {
        Self {
            value_len_max: spec.value_len_max as usize,
            default_ttl_ms: spec.default_ttl_ms,
            evicts: spec.eviction == Eviction::Evict,
        }
    }
}

/// What an operation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// What changes, if anything.
    pub change: Option<Change>,
    /// What the asker is told.
    pub outcome: Outcome,
}

impl Evaluated {
    fn nothing(outcome: Outcome) -> Self {
        Self { change: None, outcome }
    }
}

/// Evaluates `operation` on `current` at `clock_ms`. A write that stores something gives it `next`,
/// which must be above every version of the partition.
#[must_use]
pub fn evaluate(
    current: Option<&Item>,
    operation: &Operation,
    next: Version,
    clock_ms: u64,
    rules: &Rules,
) -> Evaluated {
    let current = current.filter(|item| !item.is_over(clock_ms));
    let scene = Scene { current, next, clock_ms, rules };
    match operation {
        Operation::Get { touch } => scene.get(*touch),
        Operation::Look { touch, vivify, recache_below_ms, may_refill, .. } => {
            scene.look(*touch, *vivify, *recache_below_ms, *may_refill)
        }
        Operation::Store { mode, value, flags, ttl, compare } => {
            scene.store(*mode, value, *flags, *ttl, *compare, false)
        }
        Operation::Amend { mode, value, flags, ttl, compare, invalidate, vivify } => {
            scene.amend(*mode, value, *flags, *ttl, *compare, *invalidate, *vivify)
        }
        Operation::Mark { compare, invalidate, ttl, keep_empty } => {
            scene.mark(*compare, *invalidate, *ttl, *keep_empty)
        }
        Operation::Clear => {
            Evaluated { change: Some(Change::Clear(next)), outcome: Outcome::Deleted }
        }
        Operation::Delete { compare } => scene.delete(*compare),
        Operation::Touch { ttl } => scene.touch(*ttl),
        Operation::Arithmetic { direction, delta, compare, create, touch } => {
            scene.arithmetic(*direction, *delta, *compare, *create, *touch)
        }
    }
}

/// Whether an operation comes to the same whatever the item is, and whether or not there is one: a
/// set that nothing speaks against, as most are.
#[must_use]
pub fn is_blind(operation: &Operation, clock_ms: u64, rules: &Rules) -> bool {
    let Operation::Store { mode: StoreMode::Set, value, ttl, compare: None, .. } = operation else {
        return false;
    };
    let scene = Scene { current: None, next: Version(0), clock_ms, rules };
    value.len() <= rules.value_len_max && !matches!(scene.end(*ttl), End::Over)
}

/// When something written now ends: never, at a time to come, or at once.
enum End {
    Never,
    At(u64),
    Over,
}

impl End {
    fn deadline(&self, clock_ms: u64) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::At(at) => Some(*at),
            Self::Over => Some(clock_ms),
        }
    }
}

struct Scene<'a> {
    current: Option<&'a Item>,
    next: Version,
    clock_ms: u64,
    rules: &'a Rules,
}

impl Scene<'_> {
    fn end(&self, ttl: Ttl) -> End {
        let at = match ttl {
            Ttl::Never => return End::Never,
            Ttl::Expired => return End::Over,
            Ttl::Default => match self.rules.default_ttl_ms {
                None => return End::Never,
                Some(ms) => self.clock_ms.saturating_add(ms),
            },
            Ttl::After(ms) => self.clock_ms.saturating_add(ms),
            Ttl::At(at) => at,
        };
        if at <= self.clock_ms { End::Over } else { End::At(at) }
    }

    /// The removal of whatever copies may hold.
    fn removal(&self) -> Option<Change> {
        (self.current.is_some() || self.rules.evicts).then_some(Change::Remove(self.next))
    }

    fn get(&self, touch: Option<Ttl>) -> Evaluated {
        let Some(item) = self.current else { return Evaluated::nothing(Outcome::NotFound) };
        let Some(ttl) = touch else { return Evaluated::nothing(Outcome::Hit(item.clone())) };
        let deadline_ms = self.end(ttl).deadline(self.clock_ms);
        let (version, marks) = (item.version, item.marks);
        Evaluated {
            change: Some(Change::Touch { version, deadline_ms, marks }),
            outcome: Outcome::Hit(Item { deadline_ms, ..item.clone() }),
        }
    }

    fn look(
        &self,
        touch: Option<Ttl>,
        vivify: Option<Ttl>,
        recache_below_ms: Option<u64>,
        may_refill: bool,
    ) -> Evaluated {
        let Some(item) = self.current else {
            let Some(ttl) = vivify else { return Evaluated::nothing(Outcome::NotFound) };
            let item = Item {
                version: self.next,
                deadline_ms: self.end(ttl).deadline(self.clock_ms),
                marks: Marks::TAKEN,
                ..Item::default()
            };
            return Evaluated {
                change: Some(Change::Put(item.clone())),
                outcome: Outcome::Won(item),
            };
        };
        let left_ms = item.deadline_ms.unwrap_or(u64::MAX) - self.clock_ms;
        let ends_soon = recache_below_ms.is_some_and(|below| left_ms < below);
        let wants = may_refill && (item.marks.has(Marks::STALE) || ends_soon);
        let wins = wants && !item.marks.has(Marks::TAKEN);
        let marks = item.marks.with(Marks::TAKEN.when(wins));
        let deadline_ms = match touch {
            Some(ttl) => self.end(ttl).deadline(self.clock_ms),
            None => item.deadline_ms,
        };
        let version = item.version;
        let changes = touch.is_some() || wins;
        let change = changes.then_some(Change::Touch { version, deadline_ms, marks });
        let seen = Item { deadline_ms, marks, ..item.clone() };
        let outcome = if wins { Outcome::Won(seen) } else { Outcome::Hit(seen) };
        Evaluated { change, outcome }
    }

    fn touch(&self, ttl: Ttl) -> Evaluated {
        let Some(item) = self.current else { return Evaluated::nothing(Outcome::NotFound) };
        let deadline_ms = self.end(ttl).deadline(self.clock_ms);
        let (version, marks) = (item.version, item.marks);
        Evaluated {
            change: Some(Change::Touch { version, deadline_ms, marks }),
            outcome: Outcome::Touched(version),
        }
    }

    /// Why a compared operation does not go through.
    fn mismatch(&self, compare: Option<Version>) -> Option<Outcome> {
        let compare = compare?;
        match self.current {
            None => Some(Outcome::NotFound),
            Some(item) if item.version != compare => Some(Outcome::Exists),
            Some(_) => None,
        }
    }

    fn store(
        &self,
        mode: StoreMode,
        value: &Bytes,
        flags: u32,
        ttl: Ttl,
        compare: Option<Version>,
        invalidate: bool,
    ) -> Evaluated {
        if value.len() > self.rules.value_len_max {
            let change = if mode == StoreMode::Set { self.removal() } else { None };
            return Evaluated { change, outcome: Outcome::TooLarge };
        }
        let older = |compare| self.current.is_some_and(|item| compare < item.version);
        let stale = invalidate && compare.is_some_and(older);
        if let Some(outcome) = self.mismatch(compare)
            && !stale
        {
            return Evaluated::nothing(outcome);
        }
        let item = match (mode, self.current) {
            (StoreMode::Add, Some(_))
            | (StoreMode::Replace | StoreMode::Append | StoreMode::Prepend, None) => {
                return Evaluated::nothing(Outcome::NotStored);
            }
            (StoreMode::Append | StoreMode::Prepend, Some(item)) => {
                if item.value.len() + value.len() > self.rules.value_len_max {
                    return Evaluated::nothing(Outcome::NotStored);
                }
                let (first, second) = if mode == StoreMode::Append {
                    (&item.value, value)
                } else {
                    (value, &item.value)
                };
                let mut joined = BytesMut::with_capacity(first.len() + second.len());
                joined.extend_from_slice(first);
                joined.extend_from_slice(second);
                // Someone wrote: it is no longer stale.
                let marks = Marks::NONE;
                Item { value: joined.freeze(), version: self.next, marks, ..item.clone() }
            }
            (StoreMode::Set | StoreMode::Replace, Some(item)) if stale => Item {
                value: value.clone(),
                flags,
                version: self.next,
                deadline_ms: item.deadline_ms,
                marks: item.marks.with(Marks::STALE),
            },
            (StoreMode::Set | StoreMode::Add | StoreMode::Replace, _) => {
                let end = self.end(ttl);
                if let End::Over = end {
                    return Evaluated {
                        change: self.removal(),
                        outcome: Outcome::Stored(self.next),
                    };
                }
                Item {
                    value: value.clone(),
                    flags,
                    version: self.next,
                    deadline_ms: end.deadline(self.clock_ms),
                    marks: Marks::NONE,
                }
            }
        };
        Evaluated { change: Some(Change::Put(item)), outcome: Outcome::Stored(self.next) }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one operation")]
    fn amend(
        &self,
        mode: StoreMode,
        value: &Bytes,
        flags: u32,
        ttl: Ttl,
        compare: Option<Version>,
        invalidate: bool,
        vivify: Option<Ttl>,
    ) -> Evaluated {
        let extends = matches!(mode, StoreMode::Append | StoreMode::Prepend);
        match vivify {
            Some(end) if extends && self.current.is_none() && compare.is_none() => {
                self.store(StoreMode::Add, value, flags, end, None, false)
            }
            _ => self.store(mode, value, flags, ttl, compare, invalidate),
        }
    }

    fn mark(
        &self,
        compare: Option<Version>,
        invalidate: bool,
        ttl: Option<Ttl>,
        keep_empty: bool,
    ) -> Evaluated {
        if !invalidate && !keep_empty {
            return self.delete(compare);
        }
        let Some(item) = self.current else { return Evaluated::nothing(Outcome::NotFound) };
        if let Some(outcome) = self.mismatch(compare) {
            return Evaluated::nothing(outcome);
        }
        let mut marked = Item { version: self.next, ..item.clone() };
        if invalidate {
            // The next reader is to win.
            marked.marks = Marks::STALE;
            if let Some(ttl) = ttl {
                marked.deadline_ms = self.end(ttl).deadline(self.clock_ms);
            }
        }
        if keep_empty {
            marked.value = Bytes::new();
            marked.flags = 0;
            marked.marks = Marks::STALE.when(invalidate);
        }
        Evaluated { change: Some(Change::Put(marked)), outcome: Outcome::Deleted }
    }

    fn delete(&self, compare: Option<Version>) -> Evaluated {
        match self.current {
            // Another copy may hold what was evicted here.
            None => Evaluated { change: self.removal(), outcome: Outcome::NotFound },
            Some(_) => match self.mismatch(compare) {
                Some(outcome) => Evaluated::nothing(outcome),
                None => {
                    Evaluated { change: Some(Change::Remove(self.next)), outcome: Outcome::Deleted }
                }
            },
        }
    }

    fn arithmetic(
        &self,
        direction: Direction,
        delta: u64,
        compare: Option<Version>,
        create: Option<(Ttl, u64)>,
        touch: Option<Ttl>,
    ) -> Evaluated {
        let Some(item) = self.current else {
            let Some((ttl, initial)) = create else {
                return Evaluated::nothing(Outcome::NotFound);
            };
            let end = self.end(ttl);
            let change = match end {
                End::Over => self.removal(),
                _ => Some(Change::Put(Item {
                    value: Bytes::from(initial.to_string()),
                    flags: 0,
                    version: self.next,
                    deadline_ms: end.deadline(self.clock_ms),
                    marks: Marks::NONE,
                })),
            };
            return Evaluated { change, outcome: Outcome::Number(initial, self.next) };
        };
        if let Some(outcome) = self.mismatch(compare) {
            return Evaluated::nothing(outcome);
        }
        let Some(number) = number_in(&item.value) else {
            return Evaluated::nothing(Outcome::NotANumber);
        };
        let number = match direction {
            Direction::Increment => number.wrapping_add(delta),
            Direction::Decrement => number.saturating_sub(delta),
        };
        let deadline_ms = match touch {
            Some(ttl) => self.end(ttl).deadline(self.clock_ms),
            None => item.deadline_ms,
        };
        Evaluated {
            change: Some(Change::Put(Item {
                value: Bytes::from(number.to_string()),
                flags: item.flags,
                version: self.next,
                deadline_ms,
                marks: item.marks,
            })),
            outcome: Outcome::Number(number, self.next),
        }
    }
}

/// Values that came by dumps may be padded with blanks behind, as older servers wrote them.
fn number_in(value: &[u8]) -> Option<u64> {
    const DIGITS_MAX: usize = 20;
    let digits = value.trim_ascii_end();
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 10_000;
    const NEXT: Version = Version(9);
    const KEEPS: Rules = Rules { value_len_max: 16, default_ttl_ms: None, evicts: false };
    const EVICTS: Rules = Rules { evicts: true, ..KEEPS };

    fn item(value: &'static str, version: u64) -> Item {
        Item {
            value: Bytes::from_static(value.as_bytes()),
            flags: 7,
            version: Version(version),
            ..Item::default()
        }
    }

    fn store(mode: StoreMode, value: &'static str, ttl: Ttl, compare: Option<u64>) -> Operation {
        Operation::Store {
            mode,
            value: Bytes::from_static(value.as_bytes()),
            flags: 1,
            ttl,
            compare: compare.map(Version),
        }
    }

    fn run(current: Option<&Item>, operation: &Operation, rules: &Rules) -> Evaluated {
        evaluate(current, operation, NEXT, NOW_MS, rules)
    }

    fn incr(delta: u64) -> Operation {
        Operation::Arithmetic {
            direction: Direction::Increment,
            delta,
            compare: None,
            create: None,
            touch: None,
        }
    }

    #[test]
    fn a_blind_operation_comes_to_the_same_whatever_is_there() {
        let ends = [Ttl::Never, Ttl::Default, Ttl::Expired, Ttl::At(NOW_MS), Ttl::After(5)];
        let modes = [StoreMode::Set, StoreMode::Add, StoreMode::Replace, StoreMode::Append];
        let long: &'static str = "a value that is longer than any of these caches takes in a test";
        let mut blind = 0;
        for ((ttl, mode), rules) in ends
            .into_iter()
            .flat_map(|ttl| modes.map(|mode| (ttl, mode)))
            .flat_map(|case| [KEEPS, EVICTS].map(|rules| (case, rules)))
        {
            let rules = Rules { value_len_max: 32, ..rules };
            for (value, compare) in [("new", None), (long, None), ("new", Some(3))] {
                let operation = store(mode, value, ttl, compare);
                if !is_blind(&operation, NOW_MS, &rules) {
                    continue;
                }
                blind += 1;
                let absent = run(None, &operation, &rules);
                let over = Item { deadline_ms: Some(NOW_MS), ..item("old", 3) };
                for current in [item("old", 3), over] {
                    assert_eq!(run(Some(&current), &operation, &rules), absent);
                }
            }
        }
        assert!(blind > 0);
        assert!(!is_blind(&incr(1), NOW_MS, &KEEPS));
    }

    #[test]
    fn an_item_past_its_end_is_not_there() {
        let over = Item { deadline_ms: Some(NOW_MS), ..item("old", 3) };
        let get = Operation::Get { touch: None };
        assert_eq!(run(Some(&over), &get, &KEEPS).outcome, Outcome::NotFound);
        let add = run(Some(&over), &store(StoreMode::Add, "new", Ttl::Never, None), &KEEPS);
        assert_eq!(add.outcome, Outcome::Stored(NEXT));
        let live = Item { deadline_ms: Some(NOW_MS + 1), ..item("old", 3) };
        assert_eq!(run(Some(&live), &get, &KEEPS).outcome, Outcome::Hit(live.clone()));
    }

    #[test]
    fn add_and_replace_ask_for_absence_and_presence() {
        let old = item("old", 3);
        for (mode, current, stored) in [
            (StoreMode::Add, None, true),
            (StoreMode::Add, Some(&old), false),
            (StoreMode::Replace, None, false),
            (StoreMode::Replace, Some(&old), true),
            (StoreMode::Append, None, false),
            (StoreMode::Prepend, None, false),
        ] {
            let done = run(current, &store(mode, "new", Ttl::Never, None), &KEEPS);
            let expected = if stored { Outcome::Stored(NEXT) } else { Outcome::NotStored };
            assert_eq!(done.outcome, expected, "{mode:?}");
            assert_eq!(done.change.is_some(), stored, "{mode:?}");
        }
    }

    #[test]
    fn append_and_prepend_keep_flags_and_end() {
        let old = Item { deadline_ms: Some(NOW_MS + 5), ..item("mid", 3) };
        for (mode, joined) in [(StoreMode::Append, "mid-x"), (StoreMode::Prepend, "-xmid")] {
            let done = run(Some(&old), &store(mode, "-x", Ttl::Never, None), &KEEPS);
            let Some(Change::Put(new)) = done.change else { panic!("{mode:?} changed nothing") };
            assert_eq!(new.value, joined);
            assert_eq!((new.flags, new.deadline_ms, new.version), (7, old.deadline_ms, NEXT));
        }
    }

    #[test]
    fn an_append_that_grows_too_large_is_not_stored_and_a_set_forgets_the_older_value() {
        let old = item("0123456789", 3);
        let append =
            run(Some(&old), &store(StoreMode::Append, "0123456", Ttl::Never, None), &KEEPS);
        assert_eq!(append, Evaluated::nothing(Outcome::NotStored));
        let set = store(StoreMode::Set, "0123456789abcdefg", Ttl::Never, None);
        let done = run(Some(&old), &set, &KEEPS);
        assert_eq!(done.outcome, Outcome::TooLarge);
        assert_eq!(done.change, Some(Change::Remove(NEXT)));
    }

    #[test]
    fn a_compared_write_tells_absent_from_different() {
        let old = item("old", 3);
        for (current, compare, outcome) in [
            (None, 3, Outcome::NotFound),
            (Some(&old), 4, Outcome::Exists),
            (Some(&old), 3, Outcome::Stored(NEXT)),
        ] {
            let done = run(current, &store(StoreMode::Set, "n", Ttl::Never, Some(compare)), &KEEPS);
            assert_eq!(done.outcome, outcome);
        }
    }

    #[test]
    fn a_write_that_ends_at_once_removes_what_is_there() {
        let old = item("old", 3);
        for ttl in [Ttl::Expired, Ttl::At(NOW_MS)] {
            let done = run(Some(&old), &store(StoreMode::Set, "new", ttl, None), &KEEPS);
            assert_eq!(done.outcome, Outcome::Stored(NEXT));
            assert_eq!(done.change, Some(Change::Remove(NEXT)));
        }
    }

    #[test]
    fn ends_are_counted_from_the_clock_of_the_primary() {
        let rules = Rules { default_ttl_ms: Some(50), ..KEEPS };
        for (ttl, deadline) in [
            (Ttl::Never, None),
            (Ttl::After(5), Some(NOW_MS + 5)),
            (Ttl::At(NOW_MS + 7), Some(NOW_MS + 7)),
            (Ttl::Default, Some(NOW_MS + 50)),
        ] {
            let done = run(None, &store(StoreMode::Set, "v", ttl, None), &rules);
            let Some(Change::Put(new)) = done.change else { panic!("{ttl:?} stored nothing") };
            assert_eq!(new.deadline_ms, deadline, "{ttl:?}");
        }
    }

    #[test]
    fn a_delete_of_nothing_is_passed_on_where_copies_evict() {
        let delete = Operation::Delete { compare: None };
        assert_eq!(run(None, &delete, &KEEPS), Evaluated::nothing(Outcome::NotFound));
        let done = run(None, &delete, &EVICTS);
        assert_eq!(done.outcome, Outcome::NotFound);
        assert_eq!(done.change, Some(Change::Remove(NEXT)));
    }

    #[test]
    fn a_compared_delete_leaves_another_version_alone() {
        let old = item("old", 3);
        let delete = |version| Operation::Delete { compare: Some(Version(version)) };
        assert_eq!(run(Some(&old), &delete(4), &EVICTS), Evaluated::nothing(Outcome::Exists));
        assert_eq!(run(Some(&old), &delete(3), &EVICTS).outcome, Outcome::Deleted);
    }

    #[test]
    fn touching_keeps_the_version() {
        let old = item("old", 3);
        let done = run(Some(&old), &Operation::Touch { ttl: Ttl::After(5) }, &KEEPS);
        assert_eq!(done.outcome, Outcome::Touched(Version(3)));
        let (version, deadline_ms, marks) = (Version(3), Some(NOW_MS + 5), Marks::NONE);
        let change = Change::Touch { version, deadline_ms, marks };
        assert_eq!(done.change, Some(change));
    }

    #[test]
    fn numbers_wrap_upwards_and_stop_at_zero_downwards() {
        let most = item("18446744073709551615", 3);
        assert_eq!(run(Some(&most), &incr(2), &KEEPS).outcome, Outcome::Number(1, NEXT));
        let three = item("3  ", 3);
        let down = Operation::Arithmetic {
            direction: Direction::Decrement,
            delta: 5,
            compare: None,
            create: None,
            touch: None,
        };
        assert_eq!(run(Some(&three), &down, &KEEPS).outcome, Outcome::Number(0, NEXT));
        for not in ["", "x", "-1", "18446744073709551616", "000000000000000000001"] {
            assert_eq!(run(Some(&item(not, 3)), &incr(1), &KEEPS).outcome, Outcome::NotANumber);
        }
    }

    #[test]
    fn a_created_number_is_the_initial_one() {
        let create = Operation::Arithmetic {
            direction: Direction::Increment,
            delta: 5,
            compare: None,
            create: Some((Ttl::Never, 40)),
            touch: None,
        };
        let done = run(None, &create, &KEEPS);
        assert_eq!(done.outcome, Outcome::Number(40, NEXT));
        assert!(matches!(done.change, Some(Change::Put(Item { ref value, .. })) if value == "40"));
    }
}
