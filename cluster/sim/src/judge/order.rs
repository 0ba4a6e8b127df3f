//! Strong mode, exactly: versions rise in real time, nothing acknowledged is lost on any copy that
//! counts, nothing deleted or replaced is seen again, nothing is applied twice.
//!
//! The judge keeps, per key, a *floor*: what a reader that begins now must at least see. Floors are
//! doubled versions, so that "strictly newer than the item that a delete removed" fits between two
//! versions. A reader is a client whose call began after the floor was set, or a copy in the
//! in-sync set, which must hold at every moment what an ideal reader would have to see.
//!
//! ```text
//!   Stored(v) returned            floor = 2v        reads: 2 * version >= floor
//!   Hit(v) returned               floor = 2v        writes: 2 * version > floor
//!   Deleted returned, called at   floor = floor(call) + 1, the removed item was at least that old
//! ```
//!
//! Cost: a binary search per call, a scan of a key's removers per miss.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_cluster::effect::{Item, ItemKey, Operation, Outcome, StoreMode};
use kiln_cluster::ids::{Place, Version};

use super::{Violation, name_of};
use crate::history::{Call, CallId, Ending, Rules};
use crate::queue::Time;

/// The judge of all strong keys of a run.
#[derive(Debug, Default)]
pub struct Order {
    keys: BTreeMap<ItemKey, Key>,
}

#[derive(Debug, Default)]
struct Key {
    /// Ends of calls with the floor from then on; both rise.
    floors: Vec<(Time, u64)>,
    /// What is known of the item of each version.
    facts: BTreeMap<Version, Fact>,
    /// Calls that certainly left an item: when they began and returned.
    stored: Vec<Span>,
    /// Calls that may have removed the item, with the time from which on it may be gone.
    removers: BTreeMap<CallId, Remover>,
    /// The last time at which all copies were gone.
    lost_at: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    called: Time,
    returned: Time,
}

#[derive(Clone, Copy, Debug)]
struct Remover {
    returned: Time,
    gone_from: Time,
}

#[derive(Clone, Debug, Default)]
struct Fact {
    value: Option<Bytes>,
    /// The call that was told it made this version.
    writer: Option<CallId>,
}

impl Order {
    /// A call begins.
    pub fn on_called(&mut self, id: CallId, call: &Call, rules: &Rules) {
        self.note_remover(id, call, rules);
    }

    /// A call ended.
    pub fn on_ended(&mut self, id: CallId, call: &Call, rules: &Rules) -> Result<(), Violation> {
        self.note_remover(id, call, rules);
        let key = self.keys.entry(call.key.clone()).or_default();
        let broken = |rule, finding: String| Err(Violation::new(rule, name_of(&call.key), finding));
        let Ending::Answered(outcome) = &call.ending else { return Ok(()) };
        let floor = key.floor_at(call.called);
        let mut reached = floor;
        match outcome {
            Outcome::Hit(item) => {
                let seen = 2 * item.version.0;
                if seen < floor {
                    return broken(
                        "reads never go back",
                        format!("call {id} saw version {}, floor {floor}/2", item.version),
                    );
                }
                if item.deadline_ms.is_some_and(|deadline| deadline < call.clock_low_ms)
                    && !matches!(call.operation, Operation::Get { touch: Some(_) })
                {
                    return broken(
                        "nothing is visible after its end",
                        format!("call {id}: {item:?}, every clock beyond {}", call.clock_low_ms),
                    );
                }
                key.check_item(id, item)
                    .or_else(|finding| broken("one item per version", finding))?;
                reached = seen;
            }
            Outcome::Stored(version) | Outcome::Number(_, version) => {
                if 2 * version.0 <= floor {
                    return broken(
                        "versions rise",
                        format!("call {id} wrote version {version}, floor {floor}/2"),
                    );
                }
                if let Operation::Store { compare: Some(expected), .. } = &call.operation
                    && version <= expected
                {
                    return broken(
                        "versions rise",
                        format!("call {id} wrote {version} upon {expected}"),
                    );
                }
                key.check_write(id, call, outcome, *version)
                    .or_else(|finding| broken("one write per version", finding))?;
                reached = 2 * version.0;
            }
            Outcome::Touched(version) => {
                if 2 * version.0 < floor {
                    return broken(
                        "reads never go back",
                        format!("call {id} touched version {version}, floor {floor}/2"),
                    );
                }
                reached = 2 * version.0;
            }
            Outcome::Deleted => reached = floor + 1,
            _ if found_nothing(call, outcome) => {
                let absent = key.may_be_absent(call.called, call.returned, rules);
                absent.or_else(|finding| {
                    broken("nothing acknowledged is lost", format!("call {id} missed: {finding}"))
                })?;
            }
            _ => {}
        }
        key.raise(call.returned, reached);
        if call.certainly_stored(rules) {
            key.stored.push(Span { called: call.called, returned: call.returned });
        }
        Ok(())
    }

    /// A copy that counts holds this of the key now (`None`: nothing, or a removal).
    pub fn on_copy(
        &self,
        key: &ItemKey,
        copy: &str,
        held: Option<Version>,
        now: Time,
        rules: &Rules,
    ) -> Result<(), Violation> {
        let Some(state) = self.keys.get(key) else { return Ok(()) };
        let floor = state.floor_at(now);
        let finding = match held {
            Some(version) if 2 * version.0 < floor => {
                Err(format!("{copy} holds version {version}, floor {floor}/2"))
            }
            Some(_) => Ok(()),
            None => state
                .may_be_absent(now, now, rules)
                .map_err(|finding| format!("{copy} holds nothing: {finding}")),
        };
        finding.map_err(|finding| {
            Violation::new("acknowledged writes are on every copy", name_of(key), finding)
        })
    }

    /// Whether what a call wrote may be gone now: evicted, removed by another, ended or lost.
    pub fn may_be_gone(&self, call: &Call, rules: &Rules) -> bool {
        let Some(key) = self.keys.get(&call.key) else { return rules.evicts };
        rules.evicts
            || key.lost_at.is_some_and(|at| at >= call.called)
            || key.removers.values().any(|remover| remover.returned >= call.called)
            // An end that an earlier call gave stays with the item.
            || (call.keeps_end() && !key.removers.is_empty())
    }

    /// All copies of a partition were gone at once: what was there may be lost.
    pub fn on_lost(&mut self, place: Place, at: Time, place_of: impl Fn(&ItemKey) -> Place) {
        for (key, state) in &mut self.keys {
            if place_of(key) == place {
                state.lost_at = Some(at);
            }
        }
    }

    /// The keys seen so far.
    pub fn keys(&self) -> impl Iterator<Item = &ItemKey> {
        self.keys.keys()
    }

    fn note_remover(&mut self, id: CallId, call: &Call, rules: &Rules) {
        let key = self.keys.entry(call.key.clone()).or_default();
        match call.may_remove_from(rules) {
            Some(gone_from) => {
                key.removers.insert(id, Remover { returned: call.returned, gone_from });
            }
            None => {
                key.removers.remove(&id);
            }
        }
    }
}

/// Whether the answer says that there was no item.
fn found_nothing(call: &Call, outcome: &Outcome) -> bool {
    let needs_item = matches!(
        call.operation,
        Operation::Store { mode: StoreMode::Replace | StoreMode::Append | StoreMode::Prepend, .. }
    );
    *outcome == Outcome::NotFound || (*outcome == Outcome::NotStored && needs_item)
}

impl Key {
    /// What a reader that begins at `at` must see. A call that returned in the same instant counts.
    fn floor_at(&self, at: Time) -> u64 {
        let ended = self.floors.partition_point(|&(returned, _)| returned <= at);
        ended.checked_sub(1).map_or(0, |last| self.floors[last].1)
    }

    fn raise(&mut self, at: Time, floor: u64) {
        let highest = self.floors.last().map_or(0, |&(_, floor)| floor);
        if floor > highest {
            self.floors.push((at, floor));
        }
    }

    fn check_item(&mut self, id: CallId, item: &Item) -> Result<(), String> {
        let fact = self.facts.entry(item.version).or_default();
        match &fact.value {
            Some(value) if *value != item.value => Err(format!(
                "call {id} saw {:?} as version {}, which is {value:?}",
                item.value, item.version
            )),
            _ => {
                fact.value = Some(item.value.clone());
                Ok(())
            }
        }
    }

    fn check_write(
        &mut self,
        id: CallId,
        call: &Call,
        outcome: &Outcome,
        version: Version,
    ) -> Result<(), String> {
        let fact = self.facts.entry(version).or_default();
        if let Some(other) = fact.writer.replace(id)
            && other != id
        {
            return Err(format!("calls {other} and {id} both wrote version {version}"));
        }
        let value = match (&call.operation, outcome) {
            (_, Outcome::Number(number, _)) => Some(Bytes::from(number.to_string())),
            (
                Operation::Store {
                    mode: StoreMode::Set | StoreMode::Add | StoreMode::Replace,
                    value,
                    ..
                },
                _,
            ) => Some(value.clone()),
            _ => None,
        };
        match (value, &fact.value) {
            (Some(written), Some(seen)) if written != *seen => Err(format!(
                "call {id} wrote {written:?} as version {version}, which was seen as {seen:?}"
            )),
            (Some(written), _) => {
                fact.value = Some(written);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Whether a reader between `from` and `to` may find nothing.
    fn may_be_absent(&self, from: Time, to: Time, rules: &Rules) -> Result<(), String> {
        if rules.evicts {
            return Ok(());
        }
        // Of all writes that were certainly there before the reader began, the one that began last
        // leaves the fewest calls that may have removed it again.
        let before = self.stored.iter().filter(|span| span.returned <= from);
        let Some(last) = before.max_by_key(|span| span.called) else { return Ok(()) };
        let removed = self
            .removers
            .values()
            .any(|remover| remover.gone_from <= to && remover.returned >= last.called);
        let lost = self.lost_at.is_some_and(|at| at >= last.called);
        if removed || lost {
            return Ok(());
        }
        Err(format!(
            "a write called at {} returned at {}, and nothing can have removed it since",
            last.called, last.returned
        ))
    }
}

#[cfg(test)]
mod tests {
    use kiln_cluster::effect::Ttl;
    use kiln_cluster::ids::{CacheId, GroupKey, Mode, PartitionId};

    use super::*;
    use crate::queue::{MS, SECOND};

    const PLACE: Place =
        Place { group: GroupKey { mode: Mode::Strong, copies: 2 }, partition: PartitionId(0) };
    const KEEPS: Rules =
        Rules { evicts: false, default_ttl_ms: None, clock_error_ms: 10, min_in_sync: 2 };
    const EVICTS: Rules = Rules { evicts: true, ..KEEPS };

    fn key() -> ItemKey {
        ItemKey { cache: CacheId(1), key: Bytes::from_static(b"k") }
    }

    fn store(value: &'static str, ttl: Ttl) -> Operation {
        Operation::Store {
            mode: StoreMode::Set,
            value: Bytes::from_static(value.as_bytes()),
            flags: 0,
            ttl,
            compare: None,
        }
    }

    fn hit(value: &'static str, version: u64) -> Outcome {
        Outcome::Hit(Item {
            value: Bytes::from_static(value.as_bytes()),
            version: Version(version),
            ..Item::default()
        })
    }

    const GET: Operation = Operation::Get { touch: None };
    const DELETE: Operation = Operation::Delete { compare: None };

    struct Story {
        judge: Order,
        rules: Rules,
        calls: usize,
    }

    impl Story {
        fn new(rules: Rules) -> Self {
            Self { judge: Order::default(), rules, calls: 0 }
        }

        fn call(
            &mut self,
            called: Time,
            returned: Time,
            operation: Operation,
            ending: Ending,
        ) -> Result<(), Violation> {
            let mut call = Call {
                client: 1,
                counter: self.calls as u64,
                key: key(),
                place: PLACE,
                operation,
                called,
                returned: Time::MAX,
                ending: Ending::Open,
                clock_low_ms: 0,
            };
            self.calls += 1;
            self.judge.on_called(self.calls, &call, &self.rules);
            call.ending = ending;
            if call.ending != Ending::Unknown {
                call.returned = returned;
            }
            self.judge.on_ended(self.calls, &call, &self.rules)
        }

        fn told(
            &mut self,
            called: Time,
            returned: Time,
            operation: Operation,
            outcome: Outcome,
        ) -> Result<(), Violation> {
            self.call(called, returned, operation, Ending::Answered(outcome))
        }

        fn set(
            &mut self,
            called: Time,
            returned: Time,
            value: &'static str,
            version: u64,
        ) -> Result<(), Violation> {
            let outcome = Outcome::Stored(Version(version));
            self.told(called, returned, store(value, Ttl::Never), outcome)
        }
    }

    #[test]
    fn a_read_below_what_was_acknowledged_before_it_began_is_refused() {
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 1).unwrap();
        story.set(20, 30, "b", 2).unwrap();
        story.told(25, 40, GET, hit("a", 1)).unwrap();
        story.told(31, 50, GET, hit("a", 1)).unwrap_err();
    }

    #[test]
    fn a_read_below_what_another_read_saw_is_refused() {
        let mut story = Story::new(EVICTS);
        story.set(0, 10, "a", 1).unwrap();
        story.call(20, 0, store("b", Ttl::Never), Ending::Unknown).unwrap();
        story.told(30, 40, GET, hit("b", 2)).unwrap();
        story.told(41, 50, GET, hit("a", 1)).unwrap_err();
    }

    #[test]
    fn a_write_that_gets_an_old_version_is_refused() {
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 5).unwrap();
        story.set(20, 30, "b", 5).unwrap_err();
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 5).unwrap();
        story.set(20, 30, "b", 4).unwrap_err();
    }

    #[test]
    fn two_writes_with_one_version_are_refused_even_when_they_overlap() {
        let mut story = Story::new(KEEPS);
        story.set(0, 100, "a", 5).unwrap();
        story.set(0, 100, "b", 5).unwrap_err();
    }

    #[test]
    fn one_version_with_two_values_is_refused() {
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 5).unwrap();
        story.told(20, 30, GET, hit("x", 5)).unwrap_err();
    }

    #[test]
    fn a_deleted_item_that_is_seen_is_refused() {
        let mut story = Story::new(EVICTS);
        story.set(0, 10, "a", 5).unwrap();
        story.told(20, 30, DELETE, Outcome::Deleted).unwrap();
        story.told(40, 50, GET, hit("a", 5)).unwrap_err();
        let mut story = Story::new(EVICTS);
        story.set(0, 10, "a", 5).unwrap();
        story.told(20, 30, DELETE, Outcome::Deleted).unwrap();
        story.set(40, 50, "b", 6).unwrap();
    }

    #[test]
    fn a_lost_write_is_refused_where_nothing_evicts() {
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 1).unwrap();
        story.told(20, 30, GET, Outcome::NotFound).unwrap_err();
        let mut story = Story::new(EVICTS);
        story.set(0, 10, "a", 1).unwrap();
        story.told(20, 30, GET, Outcome::NotFound).unwrap();
    }

    #[test]
    fn a_miss_is_excused_by_a_delete_that_may_have_come_between_and_by_no_other() {
        let mut story = Story::new(KEEPS);
        story.call(0, 0, DELETE, Ending::Unknown).unwrap();
        story.set(10, 20, "a", 1).unwrap();
        story.told(30, 40, GET, Outcome::NotFound).unwrap();

        let mut story = Story::new(KEEPS);
        story.told(0, 5, DELETE, Outcome::Deleted).unwrap();
        story.call(6, 8, DELETE, Ending::NotApplied).unwrap();
        story.set(10, 20, "a", 9).unwrap();
        story.told(30, 40, GET, Outcome::NotFound).unwrap_err();
    }

    #[test]
    fn an_item_may_miss_from_its_end_on_and_not_before() {
        let mut story = Story::new(KEEPS);
        let outcome = Outcome::Stored(Version(1));
        story.told(0, MS, store("a", Ttl::After(1_000)), outcome.clone()).unwrap();
        story.told(SECOND, SECOND + MS, GET, Outcome::NotFound).unwrap();
        let mut story = Story::new(KEEPS);
        story.set(0, MS, "a", 1).unwrap();
        story
            .told(2 * MS, 3 * MS, store("b", Ttl::After(1_000)), Outcome::Stored(Version(2)))
            .unwrap();
        story.told(4 * MS, 5 * MS, GET, Outcome::NotFound).unwrap_err();
    }

    #[test]
    fn an_item_seen_when_every_clock_is_beyond_its_end_is_refused() {
        let mut judge = Order::default();
        let item = Item {
            value: Bytes::from_static(b"a"),
            version: Version(1),
            deadline_ms: Some(1_000),
            ..Item::default()
        };
        let call = |clock_low_ms| Call {
            client: 1,
            counter: 1,
            key: key(),
            place: PLACE,
            operation: GET,
            called: 5,
            returned: 6,
            ending: Ending::Answered(Outcome::Hit(item.clone())),
            clock_low_ms,
        };
        judge.on_ended(1, &call(999), &EVICTS).unwrap();
        judge.on_ended(2, &call(1_001), &EVICTS).unwrap_err();
    }

    #[test]
    fn a_copy_without_an_acknowledged_write_is_refused() {
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 4).unwrap();
        story.set(20, 30, "b", 7).unwrap();
        let copy = |judge: &Order, held: Option<u64>, rules: &Rules| {
            judge.on_copy(&key(), "n1", held.map(Version), 40, rules)
        };
        copy(&story.judge, Some(7), &KEEPS).unwrap();
        copy(&story.judge, Some(8), &KEEPS).unwrap();
        copy(&story.judge, Some(4), &KEEPS).unwrap_err();
        copy(&story.judge, None, &KEEPS).unwrap_err();
        copy(&story.judge, None, &EVICTS).unwrap();
        copy(&story.judge, Some(4), &EVICTS).unwrap_err();
    }

    #[test]
    fn a_reported_loss_excuses_an_absent_item_and_no_older_one() {
        let mut story = Story::new(KEEPS);
        story.set(0, 10, "a", 4).unwrap();
        story.set(20, 30, "b", 7).unwrap();
        story.judge.on_lost(PLACE, 35, |_| PLACE);
        story.told(40, 50, GET, Outcome::NotFound).unwrap();
        story.told(60, 70, GET, hit("a", 4)).unwrap_err();
    }
}
