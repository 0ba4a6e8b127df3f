//! How an item lies in its slot.
//!
//! ```text
//!   0  version, low 48 bits | seconds of last use, low 16 bits
//!   8  value length 26 | key length - 1: 15 | last use, high 10 | policy bits 6 | marks 7
//!  16  policy links: previous u32, next u32          stores whose policy keeps a queue
//!   .  policy word u32                               stores whose policy wants one (lfu)
//!   .  version, all 64 bits                          marked WIDE: versions that clients chose
//!   .  client flags u32                              marked FLAGS: flags other than 0
//!   .  deadline ms u64, wheel previous u32, next u32 marked TTL: items that end, or did once
//!   .  pins u32, chunk addresses u32 each            marked CHUNKED: values above 16 KiB
//!   .  key
//!   .  value, or what is left of it after the chunks
//! ```
//!
//! What most items do not have, they do not pay for: a plain item costs 24 bytes beyond key and
//! value, and its place in the index.

mod head;

pub(crate) use self::head::{Head, Parts, Plain, Unmoved};

use self::head::{idle_s, used};
use crate::heap::{CHUNK_LEN, FREE_MARK, Heap, NIL, SLOT_LEN_MAX, Slot};
use crate::ops::{ItemInfo, Refill};
use crate::policy::{Nodes, Settled};
use crate::racy::CopyBuffer;

/// Longest key in bytes.
pub const KEY_LEN_MAX: usize = 32_000;

/// Longest value in bytes, whatever the configuration allows.
pub const VALUE_LEN_MAX: usize = (1 << 26) - 1;

/// Longest value that is read without the lock. A longer copy would take as long as the lock does, and
/// would more often be in vain.
pub(crate) const SMALL_LEN_MAX: usize = CopyBuffer::LEN;

const _: () = assert!((SMALL_LEN_MAX + 1).is_power_of_two(), "so that a mask tells");

/// Values above this are kept in chunks, read without copying and written without the lock.
pub(crate) const INLINE_LEN_MAX: usize = CHUNK_LEN;

/// Where in an item the length of its value is: the lowest bits there.
pub(crate) const VALUE_LEN_AT: usize = 8;

const VALUE_BITS: u32 = 26;
const KEY_SHIFT: u32 = VALUE_BITS;
const USED_SHIFT: u32 = KEY_SHIFT + 15;
const POLICY_SHIFT: u32 = USED_SHIFT + 10;
const MARK_SHIFT: u32 = POLICY_SHIFT + 6;
/// Seconds of last use wrap after two years.
const USED_MASK: u32 = (1 << 26) - 1;
/// A use is noted when the one before is at least so long ago, or something else is to be noted:
/// an item read all the time is written once a minute, not once a second. So an item may seem idle
/// for up to so much longer than it was.
const USED_STEP_S: u32 = 60;

const VERSION_BITS: u32 = 48;
const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;

const _: () = assert!(MARK_SHIFT + 7 == u64::BITS);

/// All optional parts, the longest key and the longest value together fit in a slot.
const _: () = {
    let head = 16 + 8 + 4 + 8 + 4 + 16;
    let chunks = 4 + 4 * (VALUE_LEN_MAX / CHUNK_LEN);
    assert!(head + chunks + KEY_LEN_MAX + (CHUNK_LEN - 1) <= SLOT_LEN_MAX);
    // So that no item can look like `FREE_MARK`.
    assert!(KEY_LEN_MAX < 1 << 15);
};

/// Marks of an item, as bits of its second word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    pub(crate) const FLAGS: Self = Self(1 << MARK_SHIFT);
    pub(crate) const TTL: Self = Self(1 << (MARK_SHIFT + 1));
    pub(crate) const WIDE: Self = Self(1 << (MARK_SHIFT + 2));
    pub(crate) const CHUNKED: Self = Self(1 << (MARK_SHIFT + 3));
    /// Invalidated; waits for a new value.
    pub(crate) const STALE: Self = Self(1 << (MARK_SHIFT + 4));
    /// A reader was given the right to refill.
    pub(crate) const GRANTED: Self = Self(1 << (MARK_SHIFT + 5));
    /// Read since it was stored.
    pub(crate) const FETCHED: Self = Self(1 << (MARK_SHIFT + 6));
}

/// What an item has beside key and value: decides its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) key_len: usize,
    pub(crate) value_len: usize,
    pub(crate) flags: u32,
    /// Unix milliseconds; `None` for an item that does not end.
    pub(crate) deadline: Option<u64>,
    pub(crate) version: u64,
    pub(crate) stale: bool,
    pub(crate) granted: bool,
}

impl Shape {
    /// Large items have all optional parts, so that no change of them rewrites the value.
    fn wide(&self) -> bool {
        self.version > VERSION_MASK || self.chunked()
    }

    fn timed(&self) -> bool {
        self.deadline.is_some() || self.chunked()
    }

    pub(crate) fn chunked(&self) -> bool {
        self.value_len > INLINE_LEN_MAX
    }

    pub(crate) fn chunk_count(&self) -> usize {
        if self.chunked() { self.value_len / CHUNK_LEN } else { 0 }
    }
}

/// The items of a shard: its heap, read with the layout above. Slots given must hold live items.
pub(crate) struct Items {
    pub(crate) heap: Heap,
    links: bool,
    extra: bool,
    hash: fn(&[u8]) -> u64,
}

impl Items {
    pub(crate) fn new(heap: Heap, links: bool, extra: bool, hash: fn(&[u8]) -> u64) -> Self {
        Self { heap, links, extra, hash }
    }

    /// Bytes before the optional parts: the same for all items of the store.
    pub(crate) fn fixed_len(&self) -> usize {
        16 + if self.links { 8 } else { 0 } + if self.extra { 4 } else { 0 }
    }

    /// Bytes of the slot that an item of this shape needs.
    pub(crate) fn slot_len(&self, shape: &Shape) -> usize {
        let value = if shape.chunked() {
            4 + 4 * shape.chunk_count() + shape.value_len % CHUNK_LEN
        } else {
            shape.value_len
        };
        let mut len = self.fixed_len() + shape.key_len + value;
        if shape.wide() {
            len += 8;
        }
        if shape.flags != 0 {
            len += 4;
        }
        if shape.timed() {
            len += 16;
        }
        debug_assert!(len <= SLOT_LEN_MAX);
        len
    }

    /// Writes the head of a new item: all but key, value and chunk addresses. The policy's words
    /// are left for its `on_insert`, or as they are when the slot is being rewritten in place.
    pub(crate) fn write_head(&mut self, slot: Slot, shape: &Shape, used_s: u32) {
        let offset = self.heap.offset(slot);
        let old_policy = (self.heap.read_u64(offset + 8) >> POLICY_SHIFT) & 63;
        let used = u64::from(used_s & USED_MASK);
        let mut word = shape.value_len as u64
            | ((shape.key_len as u64 - 1) << KEY_SHIFT)
            | ((used >> 16) << USED_SHIFT)
            | (old_policy << POLICY_SHIFT);
        let mut at = offset + self.fixed_len();
        let version = if shape.wide() {
            word |= Mark::WIDE.0;
            self.heap.write_u64(at, shape.version);
            at += 8;
            0
        } else {
            shape.version
        };
        if shape.flags != 0 {
            word |= Mark::FLAGS.0;
            self.heap.write_u32(at, shape.flags);
            at += 4;
        }
        if shape.timed() {
            word |= Mark::TTL.0;
            self.heap.write_u64(at, shape.deadline.unwrap_or(u64::MAX));
            self.heap.write_u64(at + 8, 0);
            at += 16;
        }
        if shape.chunked() {
            word |= Mark::CHUNKED.0;
            self.heap.write_u32(at, 0);
        }
        if shape.stale {
            word |= Mark::STALE.0;
        }
        if shape.granted {
            word |= Mark::GRANTED.0;
        }
        debug_assert!(word != FREE_MARK);
        self.heap.write_u64(offset, version | (used << VERSION_BITS));
        self.heap.write_u64(offset + 8, word);
    }

    // ---- words ---------------------------------------------------------------------------

    fn word(&self, slot: Slot) -> u64 {
        self.heap.read_u64(self.heap.offset(slot) + 8)
    }

    fn set_word(&mut self, slot: Slot, word: u64) {
        let offset = self.heap.offset(slot);
        self.heap.write_u64(offset + 8, word);
    }

    /// Whether the slot holds an item, for slots of item pages that were handed out once.
    pub(crate) fn is_live(&self, slot: Slot) -> bool {
        self.word(slot) != FREE_MARK
    }

    pub(crate) fn has(&self, slot: Slot, mark: Mark) -> bool {
        self.word(slot) & mark.0 != 0
    }

    pub(crate) fn set_mark(&mut self, slot: Slot, mark: Mark, on: bool) {
        let word = self.word(slot);
        let new = if on { word | mark.0 } else { word & !mark.0 };
        if new != word {
            self.set_word(slot, new);
        }
    }

    pub(crate) fn value_len(&self, slot: Slot) -> usize {
        (self.word(slot) & ((1 << VALUE_BITS) - 1)) as usize
    }

    pub(crate) fn key_len(&self, slot: Slot) -> usize {
        ((self.word(slot) >> KEY_SHIFT) & 0x7fff) as usize + 1
    }

    /// Seconds of the last use, as given to [`set_used`](Self::set_used), modulo 2^26.
    pub(crate) fn used(&self, slot: Slot) -> u32 {
        used(self.heap.read_u64(self.heap.offset(slot)), self.word(slot))
    }

    /// Seconds from `used` to `now_s`, over the wrap.
    pub(crate) fn idle_s(&self, slot: Slot, now_s: u32) -> u32 {
        idle_s(self.used(slot), now_s)
    }

    /// Notes a read: seconds of use and the fetched mark, where they change.
    pub(crate) fn note_read(&mut self, slot: Slot, now_s: u32) {
        let [first, word] = self.heap.read_two_u64(self.heap.offset(slot));
        let head = Head::new(slot, first, word);
        self.note_plain_read(head, now_s, head.bits());
    }

    pub(crate) fn version(&self, slot: Slot) -> u64 {
        let offset = self.heap.offset(slot);
        if self.has(slot, Mark::WIDE) {
            self.heap.read_u64(offset + self.fixed_len())
        } else {
            self.heap.read_u64(offset) & VERSION_MASK
        }
    }

    /// Sets the version where the layout allows it. False when the item has to be rewritten.
    pub(crate) fn set_version(&mut self, slot: Slot, version: u64) -> bool {
        let offset = self.heap.offset(slot);
        if self.has(slot, Mark::WIDE) {
            self.heap.write_u64(offset + self.fixed_len(), version);
        } else if version <= VERSION_MASK {
            let first = self.heap.read_u64(offset);
            self.heap.write_u64(offset, (first & !VERSION_MASK) | version);
        } else {
            return false;
        }
        true
    }

    fn flags_at(&self, slot: Slot) -> usize {
        let wide = if self.has(slot, Mark::WIDE) { 8 } else { 0 };
        self.heap.offset(slot) + self.fixed_len() + wide
    }

    pub(crate) fn flags(&self, slot: Slot) -> u32 {
        if self.has(slot, Mark::FLAGS) { self.heap.read_u32(self.flags_at(slot)) } else { 0 }
    }

    fn ttl_at(&self, slot: Slot) -> usize {
        self.flags_at(slot) + if self.has(slot, Mark::FLAGS) { 4 } else { 0 }
    }

    /// Unix milliseconds at which the item ends; `u64::MAX` when it does not.
    pub(crate) fn deadline(&self, slot: Slot) -> u64 {
        if self.has(slot, Mark::TTL) { self.heap.read_u64(self.ttl_at(slot)) } else { u64::MAX }
    }

    /// Sets the deadline of an item with the TTL mark.
    pub(crate) fn set_deadline(&mut self, slot: Slot, deadline: u64) {
        debug_assert!(self.has(slot, Mark::TTL));
        let at = self.ttl_at(slot);
        self.heap.write_u64(at, deadline);
    }

    pub(crate) fn wheel_links(&self, slot: Slot) -> (u32, u32) {
        let at = self.ttl_at(slot) + 8;
        (self.heap.read_u32(at), self.heap.read_u32(at + 4))
    }

    pub(crate) fn set_wheel_prev(&mut self, slot: Slot, to: u32) {
        let at = self.ttl_at(slot) + 8;
        self.heap.write_u32(at, to);
    }

    pub(crate) fn set_wheel_next(&mut self, slot: Slot, to: u32) {
        let at = self.ttl_at(slot) + 12;
        self.heap.write_u32(at, to);
    }

    fn chunks_at(&self, slot: Slot) -> usize {
        self.ttl_at(slot) + if self.has(slot, Mark::TTL) { 16 } else { 0 }
    }

    pub(crate) fn pins(&self, slot: Slot) -> u32 {
        if self.has(slot, Mark::CHUNKED) { self.heap.read_u32(self.chunks_at(slot)) } else { 0 }
    }

    pub(crate) fn set_pins(&mut self, slot: Slot, pins: u32) {
        debug_assert!(self.has(slot, Mark::CHUNKED));
        let at = self.chunks_at(slot);
        self.heap.write_u32(at, pins);
    }

    pub(crate) fn chunk_count(&self, slot: Slot) -> usize {
        if self.has(slot, Mark::CHUNKED) { self.value_len(slot) / CHUNK_LEN } else { 0 }
    }

    pub(crate) fn chunk(&self, slot: Slot, index: usize) -> Slot {
        self.heap.read_u32(self.chunks_at(slot) + 4 + 4 * index)
    }

    pub(crate) fn set_chunk(&mut self, slot: Slot, index: usize, chunk: Slot) {
        let at = self.chunks_at(slot) + 4 + 4 * index;
        self.heap.write_u32(at, chunk);
    }

    /// The item as most reads want it, and its key; `None` when it is not [`Plain`].
    #[inline(always)]
    pub(crate) fn plain(&self, slot: Slot) -> Option<(Plain<'_>, &[u8])> {
        let offset = self.heap.offset(slot);
        let head = self.head(slot);
        let u32_at = |at| self.heap.read_u32(offset + at);
        let u64_at = |at| self.heap.read_u64(offset + at);
        let Parts { flags, deadline, key_at } = head.parts(self.fixed_len(), u32_at, u64_at)?;
        let (key_len, value_len) = (head.key_len(), head.value_len());
        let bytes = self.heap.bytes(offset + key_at, key_len + value_len);
        let (key, value) = bytes.split_at(key_len);
        Some((Plain { head, flags, deadline, value }, key))
    }

    /// The head of the item in this slot.
    #[inline(always)]
    pub(crate) fn head(&self, slot: Slot) -> Head {
        let [first, word] = self.heap.read_two_u64(self.heap.offset(slot));
        Head::new(slot, first, word)
    }

    /// Notes a read of the item with this head, and gives it these policy bits.
    #[inline(always)]
    pub(crate) fn note_plain_read(&mut self, head: Head, now_s: u32, bits: u8) {
        if !head.is_noted(now_s, bits) {
            let (first, word) = head.after_read(now_s, bits);
            let offset = self.heap.offset(head.slot());
            self.heap.write_two_u64(offset, [first, word]);
        }
    }

    fn key_at(&self, slot: Slot) -> usize {
        let word = self.word(slot);
        // Hot path: none of the optional parts, one test.
        let optional = Mark::WIDE.0 | Mark::FLAGS.0 | Mark::TTL.0 | Mark::CHUNKED.0;
        if word & optional == 0 {
            return self.heap.offset(slot) + self.fixed_len();
        }
        let chunks = if word & Mark::CHUNKED.0 == 0 { 0 } else { 4 + 4 * self.chunk_count(slot) };
        self.chunks_at(slot) + chunks
    }

    pub(crate) fn key(&self, slot: Slot) -> &[u8] {
        self.heap.bytes(self.key_at(slot), self.key_len(slot))
    }

    pub(crate) fn write_key(&mut self, slot: Slot, key: &[u8]) {
        let at = self.key_at(slot);
        self.heap.bytes_mut(at, key.len()).copy_from_slice(key);
    }

    /// Where the part of the value inside the slot lies: `(offset, length)`. The whole value, or
    /// what is left of it after the chunks.
    pub(crate) fn tail_span(&self, slot: Slot) -> (usize, usize) {
        let len = self.value_len(slot);
        let inside = if self.has(slot, Mark::CHUNKED) { len % CHUNK_LEN } else { len };
        (self.key_at(slot) + self.key_len(slot), inside)
    }

    /// The value of an item that is not chunked; of a chunked one, the end of it.
    pub(crate) fn tail(&self, slot: Slot) -> &[u8] {
        let (at, len) = self.tail_span(slot);
        self.heap.bytes(at, len)
    }

    pub(crate) fn tail_mut(&mut self, slot: Slot) -> &mut [u8] {
        let (at, len) = self.tail_span(slot);
        self.heap.bytes_mut(at, len)
    }

    /// The whole value in one piece. Copies; for numbers and rewrites, not for reads.
    pub(crate) fn value_to_vec(&self, slot: Slot) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.value_len(slot));
        for index in 0..self.chunk_count(slot) {
            let at = self.heap.offset(self.chunk(slot, index));
            value.extend_from_slice(self.heap.bytes(at, CHUNK_LEN));
        }
        value.extend_from_slice(self.tail(slot));
        value
    }

    /// The shape the item has now.
    pub(crate) fn shape(&self, slot: Slot) -> Shape {
        Shape {
            key_len: self.key_len(slot),
            value_len: self.value_len(slot),
            flags: self.flags(slot),
            deadline: Some(self.deadline(slot)).filter(|&deadline| deadline != u64::MAX),
            version: self.version(slot),
            stale: self.has(slot, Mark::STALE),
            granted: self.has(slot, Mark::GRANTED),
        }
    }

    /// Bytes that the item holds: its slot and its chunks.
    pub(crate) fn footprint(&self, slot: Slot) -> usize {
        self.heap.slot_len(self.heap.class_of(slot)) + self.chunk_count(slot) * CHUNK_LEN
    }

    /// The hash of the item's key.
    pub(crate) fn key_hash(&self, slot: Slot) -> u64 {
        (self.hash)(self.key(slot))
    }
}

impl Nodes for Items {
    fn prev(&self, slot: Slot) -> Slot {
        self.heap.read_u32(self.heap.offset(slot) + 16)
    }

    fn next(&self, slot: Slot) -> Slot {
        self.heap.read_u32(self.heap.offset(slot) + 20)
    }

    fn set_prev(&mut self, slot: Slot, to: Slot) {
        let offset = self.heap.offset(slot);
        self.heap.write_u32(offset + 16, to);
    }

    fn set_next(&mut self, slot: Slot, to: Slot) {
        let offset = self.heap.offset(slot);
        self.heap.write_u32(offset + 20, to);
    }

    fn bits(&self, slot: Slot) -> u8 {
        ((self.word(slot) >> POLICY_SHIFT) & 63) as u8
    }

    fn set_bits(&mut self, slot: Slot, bits: u8) {
        let word = self.word(slot) & !(63 << POLICY_SHIFT);
        self.set_word(slot, word | (u64::from(bits & 63) << POLICY_SHIFT));
    }

    fn extra(&self, slot: Slot) -> u32 {
        debug_assert!(self.extra);
        self.heap.read_u32(self.heap.offset(slot) + 24)
    }

    fn set_extra(&mut self, slot: Slot, extra: u32) {
        debug_assert!(self.extra);
        let offset = self.heap.offset(slot);
        self.heap.write_u32(offset + 24, extra);
    }

    fn weight(&self, slot: Slot) -> u32 {
        u32::try_from(self.footprint(slot)).unwrap_or(u32::MAX)
    }

    fn hash(&self, slot: Slot) -> u64 {
        self.key_hash(slot)
    }
}

const _: () = assert!(NIL == crate::policy::NIL);
