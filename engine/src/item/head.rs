//! The first words of an item, read once: what a look at it without the lock needs.

use super::*;
use crate::racy::worked_out;

/// Marks of items whose reading takes more than a look.
const INVOLVED: u64 = Mark::WIDE.0 | Mark::CHUNKED.0 | Mark::STALE.0 | Mark::GRANTED.0;

/// The first two words of an item, read once.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    slot: Slot,
    first: u64,
    word: u64,
}

impl Head {
    /// The head that these words are. Any words make one.
    #[inline(always)]
    pub(crate) fn new(slot: Slot, first: u64, word: u64) -> Self {
        Self { slot, first, word }
    }

    pub(crate) fn slot(self) -> Slot {
        self.slot
    }

    #[inline(always)]
    pub(crate) fn key_len(self) -> usize {
        ((self.word >> KEY_SHIFT) & 0x7fff) as usize + 1
    }

    #[inline(always)]
    pub(crate) fn value_len(self) -> usize {
        (self.word & ((1 << VALUE_BITS) - 1)) as usize
    }

    /// Whether this is an [`Unmoved`] item with a key so long.
    #[inline(always)]
    pub(crate) fn is_unmoved(self, key_len: usize, now_ms: u64, unmoved: &Unmoved) -> bool {
        // Lengths that no key has, have bits beyond the mask.
        let key = (key_len as u64).wrapping_sub(1) << KEY_SHIFT;
        self.word & unmoved.mask == key.wrapping_add(unmoved.value)
            && self.is_used_lately_about(now_ms, unmoved)
    }

    /// [`is_used_lately`](Self::is_used_lately), or so a second sooner or later. The first word ends in
    /// the version, which stands here for the part of a second.
    #[inline(always)]
    fn is_used_lately_about(self, now_ms: u64, unmoved: &Unmoved) -> bool {
        // What exceeds 64 bits is what exceeds 16 bits of the seconds.
        let now = worked_out(now_ms.wrapping_mul(PER_MS).wrapping_sub(unmoved.early));
        now.wrapping_sub(self.first) < unmoved.idle_end
    }

    /// The length of a value that is known to be at most [`SMALL_LEN_MAX`].
    #[inline(always)]
    pub(crate) fn small_value_len(self) -> usize {
        self.word as usize & SMALL_LEN_MAX
    }

    /// Reads the optional parts of a plain item; `None` when it is another. `u32_at` and `u64_at`
    /// read at a distance from its start.
    #[inline(always)]
    pub(crate) fn parts(
        self,
        fixed_len: usize,
        u32_at: impl FnOnce(usize) -> u32,
        u64_at: impl FnOnce(usize) -> u64,
    ) -> Option<Parts> {
        let Self { word, .. } = self;
        if word & (INVOLVED | Mark::FLAGS.0 | Mark::TTL.0) == 0 {
            return Some(Parts::none(fixed_len));
        }
        if word & INVOLVED != 0 {
            return None;
        }
        let mut parts = Parts::none(fixed_len);
        if word & Mark::FLAGS.0 != 0 {
            parts.flags = u32_at(parts.key_at);
            parts.key_at += 4;
        }
        if word & Mark::TTL.0 != 0 {
            parts.deadline = u64_at(parts.key_at);
            parts.key_at += 16;
        }
        Some(parts)
    }

    /// Whether a read at `now_s` that gives the item these policy bits leaves it as it is: hot
    /// items are not made dirty by each hit, nor read under the lock.
    #[inline(always)]
    pub(crate) fn is_noted(self, now_s: u32, bits: u8) -> bool {
        self.word & Mark::FETCHED.0 != 0 && self.bits() == bits && self.is_used_lately(now_s)
    }

    /// Whether the last use that is noted is less than [`USED_STEP_S`] ago, or a moment ahead. By the
    /// low bits of the seconds, which are in one place: in the minute that begins 18 hours after the
    /// last use, or a multiple, the answer is wrong, and the use is noted by a later read.
    #[inline(always)]
    fn is_used_lately(self, now_s: u32) -> bool {
        let used = (self.first >> VERSION_BITS) as u16;
        (now_s as u16).wrapping_sub(used).wrapping_add(1) <= USED_STEP_S as u16
    }

    /// The two words after a read at `now_s` that gives the item these policy bits.
    #[inline(always)]
    pub(super) fn after_read(self, now_s: u32, bits: u8) -> (u64, u64) {
        const CHANGED: u64 = 0x3ff << USED_SHIFT | 63 << POLICY_SHIFT;
        let used = u64::from(now_s & USED_MASK);
        let word = (self.word & !CHANGED)
            | (used >> 16) << USED_SHIFT
            | u64::from(bits & 63) << POLICY_SHIFT
            | Mark::FETCHED.0;
        ((self.first & VERSION_MASK) | (used << VERSION_BITS), word)
    }

    /// The policy's bits.
    pub(crate) fn bits(self) -> u8 {
        ((self.word >> POLICY_SHIFT) & 63) as u8
    }
}

/// Most items that are hit: without optional parts, small, and left as they are by a read. Told by one
/// comparison: what the second word of such an item is where it is not length or seconds.
///
/// What can be worked out before the item is there, is: while it is on its way, all that waits for it
/// takes up the processor's room for what comes after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unmoved {
    mask: u64,
    value: u64,
    /// A second before the start, in seconds by 2^48: one used a moment ahead is used lately.
    early: u64,
    /// How long after `early` a use is no longer lately, in the same. Here rather than as a constant, which
    /// would be an instruction more.
    idle_end: u64,
}

/// Seconds by 2^48 in a millisecond.
const PER_MS: u64 = (1_u64 << VERSION_BITS).div_ceil(1000);

impl Unmoved {
    /// `settled` are the policy's bits that a hit leaves as they are; `start_ms` is when seconds begin.
    pub(crate) fn new(settled: Settled, start_ms: u64) -> Self {
        const KEY_LEN: u64 = 0x7fff << KEY_SHIFT;
        const VALUE_LEN: u64 = ((1 << VALUE_BITS) - 1) & !(SMALL_LEN_MAX as u64);
        const PARTS: u64 = INVOLVED | Mark::FLAGS.0 | Mark::TTL.0;
        let bits = |bits: u8| Mark::FETCHED.0 | u64::from(bits) << POLICY_SHIFT;
        let mask = bits(settled.mask) | PARTS | KEY_LEN | VALUE_LEN;
        Self {
            mask,
            value: bits(settled.value),
            early: start_ms.wrapping_sub(1000).wrapping_mul(PER_MS),
            idle_end: u64::from(USED_STEP_S + 1) << VERSION_BITS,
        }
    }
}

/// The optional parts of a plain item, and where its key is, counted from its start. The value
/// follows the key.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) flags: u32,
    /// Unix milliseconds at which the item ends; `u64::MAX` when it does not.
    pub(crate) deadline: u64,
    pub(crate) key_at: usize,
}

/// An item that has its value in one piece, its version in the head, and no say in who refills it.
pub(crate) struct Plain<'a> {
    pub(crate) head: Head,
    pub(crate) flags: u32,
    /// Unix milliseconds at which the item ends; `u64::MAX` when it does not.
    pub(crate) deadline: u64,
    pub(crate) value: &'a [u8],
}

impl Plain<'_> {
    /// What a reader is told of the item.
    #[inline]
    pub(crate) fn info(&self, now_s: u32) -> ItemInfo {
        let Self { head, flags, deadline, value: _ } = *self;
        Parts { flags, deadline, key_at: 0 }.info(head, now_s)
    }
}

impl Parts {
    /// Of an item without them, whose key is at `key_at`.
    #[inline(always)]
    pub(crate) fn none(key_at: usize) -> Self {
        Self { flags: 0, deadline: u64::MAX, key_at }
    }

    /// What a reader is told of the item with this head.
    #[inline(always)]
    pub(crate) fn info(&self, head: Head, now_s: u32) -> ItemInfo {
        let Head { first, word, .. } = head;
        ItemInfo {
            value_len: head.value_len(),
            flags: self.flags,
            version: first & VERSION_MASK,
            deadline_ms: (self.deadline != u64::MAX).then_some(self.deadline),
            idle_s: idle_s(used(first, word), now_s),
            fetched: word & Mark::FETCHED.0 != 0,
            stale: false,
            refill: Refill::None,
        }
    }
}

/// Seconds of the last use, from the first two words.
#[inline]
pub(super) fn used(first: u64, word: u64) -> u32 {
    let low = (first >> VERSION_BITS) as u32;
    let high = ((word >> USED_SHIFT) & 0x3ff) as u32;
    low | high << 16
}

/// Seconds from `used_s` to `now_s`, over the wrap.
#[inline]
pub(super) fn idle_s(used_s: u32, now_s: u32) -> u32 {
    let idle = now_s.wrapping_sub(used_s) & USED_MASK;
    // A clock a moment behind must not read as two years.
    if idle > USED_MASK / 2 { 0 } else { idle }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::policy::PolicyKind;

    const START_MS: u64 = 1_700_000_000_123;

    fn head(used_s: u32, word: u64) -> Head {
        Head::new(1, 0x1234_5678_9abc | u64::from(used_s as u16) << VERSION_BITS, word)
    }

    #[test]
    fn a_use_is_lately_by_milliseconds_as_it_is_by_seconds_but_for_a_second() {
        let unmoved = Unmoved::new(PolicyKind::Lru.settled(), START_MS);
        let now_s = [0_u32, 59, 1_000, 65_530, 65_600, 5_000_000, 70_000_000, 400_000_000];
        for (now_s, ago) in now_s.into_iter().flat_map(|now| (0..200).map(move |ago| (now, ago))) {
            let used = head(now_s.wrapping_sub(ago), 0);
            for ms in [0, 1, 499, 999] {
                let about =
                    used.is_used_lately_about(START_MS + u64::from(now_s) * 1000 + ms, &unmoved);
                let exactly = |now_s| used.is_used_lately(now_s);
                let near = [now_s.wrapping_sub(1), now_s, now_s.wrapping_add(1)].map(exactly);
                assert!(near.contains(&about), "{now_s} s {ms} ms, used {ago} s ago");
            }
        }
    }

    #[test]
    fn an_unmoved_item_is_small_and_without_parts_has_the_key_s_length_and_is_noted_already() {
        let unmoved = Unmoved::new(PolicyKind::Adaptive.settled(), START_MS);
        let settled = (0..64).find(|&bits| PolicyKind::Adaptive.hit_bits(bits) == Some(bits));
        let policy = u64::from(settled.unwrap()) << POLICY_SHIFT;
        let word = 2047 | 29 << KEY_SHIFT | policy | Mark::FETCHED.0;
        let is = |word, key_len| head(100, word).is_unmoved(key_len, START_MS + 100_000, &unmoved);

        assert!(is(word, 30) && is(word - 2047, 30));
        for key_len in [0, 1, 29, 31, 32_768 + 30, usize::MAX] {
            assert!(!is(word, key_len), "{key_len}");
        }
        assert!(!is(word + 1, 30), "a value of 2048 bytes");
        assert!(!is(word & !Mark::FETCHED.0, 30) && !is(word & !policy, 30));
        for mark in [Mark::FLAGS, Mark::TTL, Mark::WIDE, Mark::CHUNKED, Mark::STALE, Mark::GRANTED]
        {
            assert!(!is(word | mark.0, 30), "{mark:?}");
        }
        assert!(
            !head(100, word).is_unmoved(30, START_MS + 170_000, &unmoved),
            "used 70 seconds ago"
        );
        let none = Unmoved::new(PolicyKind::Lru.settled(), START_MS);
        assert!((0..64).all(|bits| {
            !head(100, word | bits << POLICY_SHIFT).is_unmoved(30, START_MS + 100_000, &none)
        }));
        assert!(!head(0, 0).is_unmoved(1, START_MS, &unmoved), "what is at address 0");
    }
}
