//! Finding and mending differences: one copy fetches from another what it lacks.
//!
//! ```text
//!   puller                                   giver
//!     Compare(root)            ------------>            every repair interval, or soon after a heal
//!                              <------------   Same     the usual end: 30 bytes each way
//!                              <------------   Sums     else: 256 sums and floors
//!     Keys(differing buckets,  ------------>
//!          what I have there)  <------------   Items    newer ones, and which of mine are dead
//!     ...                                               one chunk on its way at a time
//!     Done                     ------------>
//! ```
//!
//! The giver keeps no state and cannot be made to keep any: every step says all that it needs. The
//! puller drives, has one chunk on its way, and waits for its bandwidth budget between chunks. Both
//! directions are two sessions. A step that is lost is repeated, then the session is given up and
//! begun anew later; nothing that was merged is lost by that.
//!
//! A complete session proves something: the puller knows all that the giver knew at its start. Only
//! then it may take over the giver's floors.

use crate::digest::{BUCKETS, Class, Floors};
use crate::effect::ItemKey;
use crate::eventual::catalog::{Catalog, Entry, Position};
use crate::eventual::message::{Content, Given, Pull, Record};
use crate::ids::Member;
use crate::time::Mono;
use crate::version::Write;

/// Entries that a giver looks at for one chunk, so that a step is short however sparse the
/// differences lie.
const LOOKED_AT_MAX: usize = 4_096;

/// How much one step may carry.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    /// Keys that the puller lists, records that the giver sends.
    pub items: usize,
    /// Bytes of either, but at least one record.
    pub bytes: usize,
}

/// Reads the item of a live entry; `None` when the store has dropped it.
pub type ReadItem<'a> = dyn FnMut(&ItemKey) -> Option<crate::effect::Item> + 'a;

/// Answers a step; `unknown` receives keys whose item the store no longer has.
pub fn answer(
    catalog: &Catalog,
    step: &Pull,
    limits: ChunkLimits,
    class_of: &dyn Fn(&ItemKey) -> Class,
    read: &mut ReadItem<'_>,
    unknown: &mut Vec<ItemKey>,
) -> Option<Given> {
    match step {
        Pull::Compare { root, .. } if *root == catalog.digest().root() => Some(Given::Same),
        Pull::Compare { .. } => Some(Given::Sums {
            sums: catalog.digest().sums().to_vec(),
            floors: catalog.digest().floors().to_vec(),
        }),
        Pull::Keys { buckets, after, through, have } => {
            let range = Range { buckets, after: after.as_ref(), through: through.as_ref() };
            Some(give_items(catalog, &range, have, limits, class_of, read, unknown))
        }
        Pull::Done => None,
    }
}

struct Range<'a> {
    buckets: &'a [u64; 4],
    after: Option<&'a Position>,
    through: Option<&'a Position>,
}

fn give_items(
    catalog: &Catalog,
    range: &Range<'_>,
    have: &[(Position, Write)],
    limits: ChunkLimits,
    class_of: &dyn Fn(&ItemKey) -> Class,
    read: &mut ReadItem<'_>,
    unknown: &mut Vec<ItemKey>,
) -> Given {
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut through = None;
    let mut listed = have.iter().peekable();
    let walk = in_buckets(catalog, range.buckets, range.after, range.through);
    for (looked_at, (position, entry)) in walk.enumerate() {
        if records.len() >= limits.items || bytes >= limits.bytes || looked_at >= LOOKED_AT_MAX {
            break;
        }
        while listed.next_if(|(theirs, _)| theirs < position).is_some() {}
        let theirs = listed.next_if(|(theirs, _)| theirs == position).map(|(_, write)| *write);
        if theirs.is_none_or(|theirs| theirs < entry.write)
            && let Some(record) = record_of(&position.key, entry, read, unknown)
        {
            bytes += record.bytes();
            records.push(record);
        }
        through = Some(position.clone());
    }
    // Stopped early if anything is left behind the last one looked at.
    let more = in_buckets(catalog, range.buckets, through.as_ref().or(range.after), range.through)
        .next()
        .is_some();
    let through = through.filter(|_| more);
    let dead = have
        .iter()
        .filter(|(position, _)| through.as_ref().is_none_or(|through| position <= through))
        .filter(|(position, write)| {
            catalog.get(&position.key).is_none()
                && write.version <= catalog.floors(&position.key).of(class_of(&position.key))
        })
        .map(|(position, write)| (position.key.clone(), *write))
        .collect();
    Given::Items { after: range.after.cloned(), through, records, dead }
}

/// The record of an entry, with its item if it has one.
pub fn record_of(
    key: &ItemKey,
    entry: &Entry,
    read: &mut ReadItem<'_>,
    unknown: &mut Vec<ItemKey>,
) -> Option<Record> {
    let content = if entry.is_live() {
        match read(key) {
            Some(item) => Content::Item(item),
            None => {
                unknown.push(key.clone());
                return None;
            }
        }
    } else {
        Content::Gone(entry.write)
    };
    Some(Record { key: key.clone(), content })
}

/// Entries of the marked buckets, in order, behind `after` and up to `through`.
fn in_buckets<'a>(
    catalog: &'a Catalog,
    buckets: &'a [u64; 4],
    after: Option<&'a Position>,
    through: Option<&'a Position>,
) -> impl Iterator<Item = (&'a Position, &'a Entry)> + 'a {
    let first = after.map_or(0, |at| at.bucket);
    let last = through.map_or(u8::MAX, |at| at.bucket);
    (first..=last)
        .filter(|bucket| is_marked(buckets, *bucket))
        .flat_map(move |bucket| catalog.bucket(bucket, after, through))
}

fn is_marked(buckets: &[u64; 4], bucket: u8) -> bool {
    buckets[usize::from(bucket >> 6)] >> (bucket & 63) & 1 == 1
}

/// What the puller does next.
#[derive(Debug)]
pub enum Next {
    /// Merge these, then go on with [`Session::step`].
    Merge {
        /// Newer than what was listed.
        records: Vec<Record>,
        /// Dead on the giver.
        dead: Vec<(ItemKey, Write)>,
        /// Whether this was the last chunk.
        last: bool,
    },
    /// Nothing (more) to fetch.
    Complete,
    /// The giver has no copy: give up.
    NoCopy,
    /// A late or repeated answer.
    Ignore,
}

/// One copy fetching from another.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: u64,
    /// Whom from.
    pub peer: Member,
    /// When it began: what the giver had then, the puller has when it is complete.
    pub started: Mono,
    /// When the step is sent (again).
    pub due: Mono,
    /// How often the step was sent.
    pub tries: u32,
    /// Bytes fetched.
    pub bytes: u64,
    /// Whether it was given one of the node's places for sessions that fetch.
    pub admitted: bool,
    /// Whether the peer should fetch soon, too.
    soon: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Comparing,
    Fetching {
        buckets: [u64; 4],
        floors: Vec<Floors>,
        after: Option<Position>,
        /// The end of the chunk on its way; `None` for the end of all.
        through: Option<Position>,
    },
    /// All is here; only the floors are to be taken over.
    Over {
        floors: Vec<Floors>,
    },
}

impl Session {
    /// A session about to send its first step.
    pub fn new(id: u64, peer: Member, soon: bool, now: Mono) -> Self {
        let stage = Stage::Comparing;
        Self { id, peer, started: now, due: now, tries: 0, bytes: 0, admitted: false, soon, stage }
    }

    /// The step to send now. Made anew each time, so that a repeated one lists what is there now.
    pub fn step(&mut self, catalog: &Catalog, limits: ChunkLimits) -> Pull {
        let Stage::Fetching { buckets, after, through, .. } = &mut self.stage else {
            return Pull::Compare { root: catalog.digest().root(), soon: self.soon };
        };
        let mut have = Vec::new();
        let mut bytes = 0;
        *through = None;
        for (position, entry) in in_buckets(catalog, buckets, after.as_ref(), None) {
            if have.len() >= limits.items || bytes >= limits.bytes {
                *through = have.last().map(|(position, _): &(Position, Write)| position.clone());
                break;
            }
            bytes += position.key.key.len() + std::mem::size_of::<Write>();
            have.push((position.clone(), entry.write));
        }
        Pull::Keys { buckets: *buckets, after: after.clone(), through: through.clone(), have }
    }

    /// Whether there is something to fetch, rather than to compare.
    pub fn is_fetching(&self) -> bool {
        matches!(self.stage, Stage::Fetching { .. })
    }

    /// Takes in an answer.
    pub fn on_given(&mut self, catalog: &Catalog, given: Given) -> Next {
        match (&mut self.stage, given) {
            (_, Given::NoCopy) => Next::NoCopy,
            (Stage::Comparing, Given::Same) => {
                self.stage = Stage::Over { floors: Vec::new() };
                Next::Complete
            }
            (Stage::Comparing, Given::Sums { sums, floors }) => {
                if sums.len() != BUCKETS || floors.len() != BUCKETS {
                    return Next::Ignore;
                }
                let mut buckets = [0; 4];
                let ours = catalog.digest().sums();
                for (bucket, (ours, theirs)) in ours.iter().zip(&sums).enumerate() {
                    buckets[bucket >> 6] |= u64::from(ours != theirs) << (bucket & 63);
                }
                if buckets == [0; 4] {
                    self.stage = Stage::Over { floors };
                    return Next::Complete;
                }
                self.stage = Stage::Fetching { buckets, floors, after: None, through: None };
                Next::Merge { records: Vec::new(), dead: Vec::new(), last: false }
            }
            (
                Stage::Fetching { after, through, floors, .. },
                Given::Items { after: answered, through: reached, records, dead },
            ) => {
                if answered != *after {
                    return Next::Ignore;
                }
                self.bytes += records.iter().map(Record::bytes).sum::<usize>() as u64;
                // The giver may have stopped early, never late, and never where it began: a session
                // always moves on.
                let reached = match (reached, through.take()) {
                    (Some(reached), Some(through)) => Some(reached.min(through)),
                    (reached, through) => reached.or(through),
                };
                let last = reached.is_none();
                if !last && reached <= *after {
                    return Next::NoCopy;
                }
                if last {
                    self.stage = Stage::Over { floors: std::mem::take(floors) };
                } else {
                    *after = reached;
                }
                Next::Merge { records, dead, last }
            }
            _ => Next::Ignore,
        }
    }

    /// The giver's floors at the start, once everything is merged; empty if equal to ours.
    pub fn floors(&self) -> &[Floors] {
        match &self.stage {
            Stage::Over { floors } => floors,
            _ => &[],
        }
    }

    /// Whether the roots were equal at once: then the giver has all of the puller's, too.
    pub fn was_same(&self) -> bool {
        matches!(&self.stage, Stage::Over { floors } if floors.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::effect::Item;
    use crate::ids::{CacheId, Version};

    /// A copy: what it knows, and its items.
    #[derive(Default)]
    struct Copy {
        catalog: Catalog,
        items: BTreeMap<ItemKey, Item>,
    }

    impl Copy {
        fn put(&mut self, number: u32, version: u64, len: usize) {
            let value = Bytes::from(vec![number as u8; len]);
            let item = Item { value, version: Version(version), ..Item::default() };
            self.catalog.put_live(&key(number), Write::of(&item), None);
            self.items.insert(key(number), item);
        }

        fn delete(&mut self, number: u32, version: u64) {
            let write = Write::delete(Version(version));
            self.catalog.put_dead(&key(number), Class::Keep, write, Mono(0));
            self.items.remove(&key(number));
        }

        fn answer(&self, step: &Pull, limits: ChunkLimits) -> Given {
            let mut read = |key: &ItemKey| self.items.get(key).cloned();
            let class = |_: &ItemKey| Class::Keep;
            answer(&self.catalog, step, limits, &class, &mut read, &mut Vec::new())
                .expect("only Done is not answered")
        }

        fn take(&mut self, record: &Record) {
            let write = record.write();
            if self.catalog.get(&record.key).is_some_and(|entry| entry.write >= write) {
                return;
            }
            match &record.content {
                Content::Item(item) => {
                    self.catalog.put_live(&record.key, write, None);
                    self.items.insert(record.key.clone(), item.clone());
                }
                Content::Gone(_) => {
                    self.catalog.put_dead(&record.key, Class::Keep, write, Mono(0));
                    self.items.remove(&record.key);
                }
            }
        }

        /// Fetches from another copy; returns the steps it took.
        fn pull(&mut self, from: &Self, limits: ChunkLimits) -> usize {
            let mut session = Session::new(1, Member::default(), false, Mono(0));
            for steps in 1..10_000 {
                let step = session.step(&self.catalog, limits);
                match session.on_given(&self.catalog, from.answer(&step, limits)) {
                    Next::Complete => return steps,
                    Next::Merge { records, dead, last } => {
                        records.iter().for_each(|record| self.take(record));
                        for (key, write) in dead {
                            assert_eq!(
                                self.catalog.get(&key).map(|entry| entry.write),
                                Some(write)
                            );
                            self.catalog.erase(&key);
                            self.items.remove(&key);
                        }
                        if last {
                            return steps;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            panic!("the session does not end");
        }
    }

    fn key(number: u32) -> ItemKey {
        ItemKey { cache: CacheId(0), key: Bytes::copy_from_slice(&number.to_be_bytes()) }
    }

    const WIDE: ChunkLimits = ChunkLimits { items: 512, bytes: 64 << 10 };
    const NARROW: ChunkLimits = ChunkLimits { items: 3, bytes: 100 };

    #[test]
    fn equal_copies_need_one_step() {
        let (mut left, mut right) = (Copy::default(), Copy::default());
        for number in 0..100 {
            left.put(number, 5, 10);
            right.put(number, 5, 10);
        }
        assert_eq!(left.pull(&right, WIDE), 1);
    }

    #[test]
    fn an_empty_copy_is_filled_in_bounded_chunks() {
        let (mut empty, mut full) = (Copy::default(), Copy::default());
        for number in 0..1_000 {
            full.put(number, 5, 10);
        }
        let steps = empty.pull(&full, NARROW);
        assert!((1_000 / 3..1_200).contains(&steps), "{steps} steps");
        assert_eq!(empty.items, full.items);
    }

    #[test]
    fn what_the_giver_does_not_hold_is_dead_below_its_floor_and_stays_above_it() {
        let (mut left, mut right) = (Copy::default(), Copy::default());
        left.put(1, 5, 10);
        left.put(2, 50, 10);
        for number in [1, 2] {
            let bucket = Position::of(&key(number)).bucket;
            right.catalog.adopt_floors(bucket, Floors { keep: Version(10), evict: Version(0) });
        }
        left.pull(&right, WIDE);
        assert!(left.catalog.get(&key(1)).is_none());
        assert!(left.catalog.get(&key(2)).is_some());
    }

    #[test]
    fn a_late_or_malformed_answer_changes_nothing() {
        let (mut left, mut right) = (Copy::default(), Copy::default());
        for number in 0..20 {
            right.put(number, 5, 10);
        }
        left.put(3, 1, 1);
        let mut session = Session::new(1, Member::default(), false, Mono(0));
        let short = Given::Sums { sums: vec![1; 3], floors: Vec::new() };
        assert!(matches!(session.on_given(&left.catalog, short), Next::Ignore));
        let step = session.step(&left.catalog, NARROW);
        session.on_given(&left.catalog, right.answer(&step, NARROW));
        let step = session.step(&left.catalog, NARROW);
        let first = right.answer(&step, NARROW);
        assert!(matches!(session.on_given(&left.catalog, first.clone()), Next::Merge { .. }));
        session.step(&left.catalog, NARROW);
        assert!(matches!(session.on_given(&left.catalog, first), Next::Ignore), "repeated");
        assert!(matches!(session.on_given(&left.catalog, Given::Same), Next::Ignore), "late");
    }

    #[test]
    fn a_giver_that_sends_the_puller_in_circles_is_given_up() {
        let (left, mut right) = (Copy::default(), Copy::default());
        right.put(1, 5, 10);
        right.put(2, 5, 10);
        let mut session = Session::new(1, Member::default(), false, Mono(0));
        let step = session.step(&left.catalog, WIDE);
        session.on_given(&left.catalog, right.answer(&step, WIDE));
        let at = Position::of(&key(1));
        for (after, expected) in [(None, false), (Some(at.clone()), true)] {
            session.step(&left.catalog, WIDE);
            let answer = Given::Items {
                after,
                through: Some(at.clone()),
                records: Vec::new(),
                dead: Vec::new(),
            };
            let next = session.on_given(&left.catalog, answer);
            assert_eq!(matches!(next, Next::NoCopy), expected, "{next:?}");
        }
    }

    proptest! {
        #[test]
        fn two_copies_that_fetch_from_each_other_end_equal(
            left in proptest::collection::vec((0u32..60, 1u64..9, any::<bool>()), 0..80),
            right in proptest::collection::vec((0u32..60, 1u64..9, any::<bool>()), 0..80),
            items in 1usize..8,
        ) {
            let make = |writes: Vec<(u32, u64, bool)>| {
                let mut copy = Copy::default();
                for (number, version, deletes) in writes {
                    let known = copy.catalog.get(&key(number)).map(|entry| entry.write.version);
                    if known >= Some(Version(version)) {
                        continue;
                    }
                    match deletes {
                        true => copy.delete(number, version),
                        false => copy.put(number, version, 10),
                    }
                }
                copy
            };
            let (mut left, mut right) = (make(left), make(right));
            let limits = ChunkLimits { items, bytes: 150 };
            left.pull(&right, limits);
            right.pull(&left, limits);
            prop_assert_eq!(left.items, right.items);
            prop_assert_eq!(left.catalog.digest(), right.catalog.digest());
        }
    }
}
