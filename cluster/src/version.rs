//! What a version of an eventual cache is made of, and which of two writes wins.
//!
//! A version packs a hybrid clock reading: `milliseconds << 16 | counter`. Two owners may stamp the
//! same number for the same key, so the version alone does not decide. [`Write`] is the whole
//! identity: the version, then whether it deletes, then a hash of the content. Its derived order *is*
//! the merge rule; every copy keeps the greatest write it has seen, in whatever order they arrive,
//! and so all copies end with the same one.
//!
//! Two different values with one version and one 64-bit hash are taken for the same write; among
//! writes of one key in one tick of two clocks that does not occur (2^-64 each).
//!
//! An item whose deadline passed keeps its identity: it is the same write, over. So copies that
//! notice the end at different moments do not differ.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::effect::Item;
use crate::ids::Version;

/// Bits of the counter below the milliseconds.
const COUNTER_BITS: u32 = 16;
/// The greatest time a version can hold.
const TIME_MS_MAX: u64 = (1 << (64 - COUNTER_BITS)) - 1;

/// The version of a time and a counter; a time past the year 10,000 is taken as the last one.
pub fn pack(time_ms: u64, counter: u16) -> Version {
    Version(time_ms.min(TIME_MS_MAX) << COUNTER_BITS | u64::from(counter))
}

/// The time part of a version, in Unix milliseconds.
pub fn time_ms(version: Version) -> u64 {
    version.0 >> COUNTER_BITS
}

/// The identity of one write of one key. The greater one wins: the order of the fields matters.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Write {
    /// When, by the hybrid clock of the owner that took it.
    pub version: Version,
    /// A delete beats a value of the same version.
    pub deleted: bool,
    /// Hash of value, flags, deadline and marks; 0 for a delete.
    pub check: u64,
}

impl Write {
    /// The identity of a delete.
    pub fn delete(version: Version) -> Self {
        Self { version, deleted: true, check: 0 }
    }

    /// The identity of the write that made an item.
    pub fn of(item: &Item) -> Self {
        let end = item.deadline_ms.map_or(0, |deadline| !deadline);
        let seed = u64::from(item.flags).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ end.rotate_left(32);
        let seed = seed ^ u64::from(item.marks.bits()) << 56;
        Self { version: item.version, deleted: false, check: xxh3_64_with_seed(&item.value, seed) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn value(version: u64, value: &[u8]) -> Write {
        Write::of(&item(version, value))
    }

    fn item(version: u64, value: &[u8]) -> Item {
        Item { value: Bytes::copy_from_slice(value), version: Version(version), ..Item::default() }
    }

    #[test]
    fn a_version_orders_by_time_then_counter() {
        assert!(pack(5, u16::MAX) < pack(6, 0));
        assert!(pack(6, 0) < pack(6, 1));
        assert_eq!(time_ms(pack(6, 9)), 6);
        assert_eq!(time_ms(pack(u64::MAX, 9)), TIME_MS_MAX);
    }

    #[test]
    fn among_writes_of_one_version_a_delete_wins_and_two_values_have_one_winner() {
        let (left, right) = (value(9, b"left"), value(9, b"right"));
        assert_ne!(left, right);
        assert_eq!(left.max(right), right.max(left));
        assert!(Write::delete(Version(9)) > left.max(right));
        assert!(value(10, b"left") > Write::delete(Version(9)));
    }

    #[test]
    fn flags_and_deadline_are_part_of_the_identity() {
        let plain = item(9, b"v");
        assert_ne!(Write::of(&plain), Write::of(&Item { flags: 1, ..plain.clone() }));
        assert_ne!(Write::of(&plain), Write::of(&Item { deadline_ms: Some(1), ..plain.clone() }));
    }

    proptest! {
        #[test]
        fn every_order_of_arrival_keeps_the_same_write(
            writes in proptest::collection::vec((0u64..4, any::<bool>(), 0u8..4), 1..12),
            seed in any::<u64>(),
        ) {
            let writes: Vec<Write> = writes
                .into_iter()
                .map(|(version, deleted, value)| match deleted {
                    true => Write::delete(Version(version)),
                    false => self::value(version, &[value]),
                })
                .collect();
            let mut other = writes.clone();
            let mut state = seed;
            for at in (1..other.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                other.swap(at, (state >> 33) as usize % (at + 1));
            }
            let keep = |order: &[Write]| order.iter().fold(Write::default(), |a, b| a.max(*b));
            prop_assert_eq!(keep(&writes), keep(&other));
        }
    }
}
