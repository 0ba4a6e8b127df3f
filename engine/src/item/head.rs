//! The first words of an item, read once: what a look at it without the lock needs.

use super::*;
use crate::racy::{RacySpan, Wide};

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

/// Most items that are hit: without optional parts, small, and left as they are by a read.
///
/// Both words of an item and its key are compared in vectors, and the outcome is asked for once: for each
/// question of its own a processor would have to foretell the answer while the item is on its way from
/// memory, and it can hold only so many instructions that wait for that. What can be worked out before the
/// item is there, is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct Unmoved {
    /// The bits of the two words that tell: of the first the seconds, of the second all but length and
    /// seconds.
    mask: [u64; 2],
    /// What they are to be, but for the time and the key's length.
    base: [u64; 2],
    /// By how much 16 bits of them may be less: the seconds by those of a use that is lately; those below
    /// by anything.
    less_max: [u16; 8],
}

/// Seconds by 2^48 in a millisecond.
const PER_MS: u64 = (1_u64 << VERSION_BITS).div_ceil(1000);

impl Unmoved {
    /// `settled` are the policy's bits that a hit leaves as they are; `start_ms` is when seconds begin;
    /// `value_len_max` is the longest small value, one less than a power of two.
    pub(crate) fn new(settled: Settled, start_ms: u64, value_len_max: usize) -> Self {
        const KEY_LEN: u64 = 0x7fff << KEY_SHIFT;
        const PARTS: u64 = INVOLVED | Mark::FLAGS.0 | Mark::TTL.0;
        debug_assert!((value_len_max + 1).is_power_of_two() && value_len_max <= SMALL_LEN_MAX);
        let bits = |bits: u8| Mark::FETCHED.0 | u64::from(bits) << POLICY_SHIFT;
        let value_len = ((1 << VALUE_BITS) - 1) & !(value_len_max as u64);
        // One used a moment ahead is used lately: as if it were a second later.
        let start = start_ms.wrapping_sub(1000).wrapping_mul(PER_MS);
        Self {
            mask: [!VERSION_MASK, bits(settled.mask) | PARTS | KEY_LEN | value_len],
            base: [start.wrapping_neg(), bits(settled.value)],
            less_max: [u16::MAX, u16::MAX, u16::MAX, USED_STEP_S as u16, 0, 0, 0, 0],
        }
    }

    /// Whether the item here, which begins with these words, has this key, at `key_at`, and is unmoved.
    #[inline(always)]
    pub(crate) fn is_it(
        &self,
        words: Wide,
        item: RacySpan,
        key: &[u8],
        key_at: usize,
        now_ms: u64,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{
                _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_setzero_si128,
            };
            let head = self.difference(words, key.len(), now_ms);
            // SAFETY: SSE2 is part of x86_64.
            let is_none = |difference| unsafe {
                _mm_movemask_epi8(_mm_cmpeq_epi8(difference, _mm_setzero_si128())) == 0xffff
            };
            match item.difference(key_at, key) {
                // SAFETY: as above.
                Some(of_key) => is_none(unsafe { _mm_or_si128(head, of_key) }),
                None => is_none(head) && item.has(key_at, key),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self.holds(words, key.len(), now_ms) && item.has(key_at, key)
        }
    }

    /// What is wrong with the words of an item, if it is to be unmoved with a key so long; zero if nothing.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn difference(&self, words: Wide, key_len: usize, now_ms: u64) -> Wide {
        use std::arch::x86_64::{
            _mm_add_epi64, _mm_and_si128, _mm_cvtsi64_si128, _mm_load_si128, _mm_slli_epi64,
            _mm_sub_epi16, _mm_subs_epu16, _mm_unpacklo_epi64,
        };
        const SHIFT: i32 = KEY_SHIFT.cast_signed();
        let now = now_ms.wrapping_mul(PER_MS).cast_signed();
        let key_len = (key_len as u64).wrapping_sub(1).cast_signed();
        // SAFETY: SSE2 is part of x86_64; the fields are of 16 bytes each, and aligned as these are.
        unsafe {
            // Lengths that no key has, have bits beyond the mask.
            let key_len = _mm_slli_epi64::<SHIFT>(_mm_cvtsi64_si128(key_len));
            let more = _mm_unpacklo_epi64(_mm_cvtsi64_si128(now), key_len);
            let wanted = _mm_add_epi64(_mm_load_si128((&raw const self.base).cast()), more);
            let there = _mm_and_si128(words, _mm_load_si128((&raw const self.mask).cast()));
            let less_max = _mm_load_si128((&raw const self.less_max).cast());
            _mm_subs_epu16(_mm_sub_epi16(wanted, there), less_max)
        }
    }

    /// Whether these are the words of an unmoved item with a key so long.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn holds(&self, words: [u64; 2], key_len: usize, now_ms: u64) -> bool {
        let key_len = (key_len as u64).wrapping_sub(1) << KEY_SHIFT;
        let wanted = [
            self.base[0].wrapping_add(now_ms.wrapping_mul(PER_MS)),
            self.base[1].wrapping_add(key_len),
        ];
        let there = [words[0] & self.mask[0], words[1] & self.mask[1]];
        let less_s =
            ((wanted[0] >> VERSION_BITS) as u16).wrapping_sub((there[0] >> VERSION_BITS) as u16);
        less_s <= self.less_max[3] && there[1] == wanted[1]
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

    fn words(used_s: u32, word: u64) -> [u64; 2] {
        [0x1234_5678_9abc | u64::from(used_s as u16) << VERSION_BITS, word]
    }

    /// Whether the words are those of an unmoved item, in every way it is asked.
    fn is_unmoved(unmoved: &Unmoved, words: [u64; 2], key_len: usize, now_ms: u64) -> bool {
        let holds = unmoved.holds(words, key_len, now_ms);
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: both are 16 bytes, of which any are values.
            let [wide, none] = [words, [0; 2]]
                .map(|words: [u64; 2]| unsafe { std::mem::transmute::<[u64; 2], Wide>(words) });
            let difference = unmoved.difference(wide, key_len, now_ms);
            // SAFETY: as above.
            let same = unsafe {
                std::arch::x86_64::_mm_movemask_epi8(std::arch::x86_64::_mm_cmpeq_epi8(
                    difference, none,
                ))
            };
            assert_eq!(same == 0xffff, holds, "{words:x?}, key of {key_len}, {now_ms} ms");
        }
        holds
    }

    #[test]
    fn a_use_is_lately_by_milliseconds_as_it_is_by_seconds() {
        let none = Settled { mask: 0, value: 0 };
        let unmoved = Unmoved::new(none, START_MS, SMALL_LEN_MAX);
        let now_s = [0_u32, 59, 1_000, 65_530, 65_600, 5_000_000, 70_000_000, 400_000_000];
        for (now_s, ago) in now_s.into_iter().flat_map(|now| (0..200).map(move |ago| (now, ago))) {
            let used_s = now_s.wrapping_sub(ago).wrapping_add(2);
            let words = words(used_s, Mark::FETCHED.0);
            let exactly = Head::new(1, words[0], words[1]).is_used_lately(now_s);
            for ms in [0, 1, 499, 990] {
                let now_ms = START_MS + u64::from(now_s) * 1000 + ms;
                assert_eq!(
                    is_unmoved(&unmoved, words, 1, now_ms),
                    exactly,
                    "{now_s} s, used {used_s}"
                );
            }
        }
    }

    #[test]
    fn an_unmoved_item_is_small_and_without_parts_has_the_key_s_length_and_is_noted_already() {
        let settled = (0..64).find(|&bits| PolicyKind::Adaptive.hit_bits(bits) == Some(bits));
        let policy = u64::from(settled.unwrap()) << POLICY_SHIFT;
        let now_ms = START_MS + 100_000;
        for len_max in [127, SMALL_LEN_MAX] {
            let unmoved = Unmoved::new(PolicyKind::Adaptive.settled(), START_MS, len_max);
            let word = len_max as u64 | 29 << KEY_SHIFT | policy | Mark::FETCHED.0;
            let is = |word, key_len| is_unmoved(&unmoved, words(100, word), key_len, now_ms);

            assert!(is(word, 30) && is(word - len_max as u64, 30));
            for key_len in [0, 1, 29, 31, 32_768 + 30, usize::MAX] {
                assert!(!is(word, key_len), "{key_len}");
            }
            assert!(!is(word + 1, 30), "a value of {} bytes", len_max + 1);
            assert!(!is(word & !Mark::FETCHED.0, 30) && !is(word & !policy, 30));
            for mark in
                [Mark::FLAGS, Mark::TTL, Mark::WIDE, Mark::CHUNKED, Mark::STALE, Mark::GRANTED]
            {
                assert!(!is(word | mark.0, 30), "{mark:?}");
            }
            let later = is_unmoved(&unmoved, words(100, word), 30, START_MS + 170_000);
            assert!(!later, "used 70 seconds ago");
            let none = Unmoved::new(PolicyKind::Lru.settled(), START_MS, len_max);
            assert!((0..64).all(|bits| {
                !is_unmoved(&none, words(100, word | bits << POLICY_SHIFT), 30, now_ms)
            }));
            assert!(!is_unmoved(&unmoved, [0, 0], 1, START_MS), "what is at address 0");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_words_are_judged_alike_in_vectors_and_one_by_one(
            first: u64, word: u64, flip in 0..64_u32, key_len in 1..70_000_usize, ms in 0..1_000_000_000_000_u64,
        ) {
            let unmoved = Unmoved::new(PolicyKind::Adaptive.settled(), START_MS, 127);
            is_unmoved(&unmoved, [first, word], key_len, START_MS + ms);
            // Near to one that is, too.
            let near = unmoved.base[1].wrapping_add((key_len as u64 - 1) << KEY_SHIFT) ^ 1 << flip;
            is_unmoved(&unmoved, [first, near], key_len, START_MS + ms);
        }
    }
}
