//! The commands on one item: what each means, and what it counts.
//!
//! A command that needs room and gets none returns [`Full`] having changed nothing that a caller
//! could see, so the store may make room elsewhere and ask again.

use super::{Full, Now, Shard, Source};
use crate::heap::Slot;
use crate::index::Lookup;
use crate::item::{Head, Mark, Shape};
use crate::ops::{
    ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Direction, Expiry,
    GetOptions, ItemInfo, Refill, TouchOutcome, WriteMode, WriteOptions, WriteOutcome,
};
use crate::policy::EvictionPolicy;

impl Shard {
    /// The item with this key, if its end has not come. An item found past its end is removed.
    fn live(&mut self, hash: u64, key: &[u8], now: Now) -> Option<Slot> {
        let slot = self.index.find(&self.items, hash, key)?;
        if self.items.deadline(slot) <= now.ms {
            self.expire(slot, now);
            return None;
        }
        Some(slot)
    }

    /// Finds an item for a read that asks for nothing but what is there. An item past its end is
    /// left to [`get`](Self::get).
    #[inline(always)]
    pub(crate) fn find_plain(&self, hash: u64, key: &[u8], now: Now) -> Lookup<'_> {
        match self.index.find_plain(&self.items, hash, key) {
            Lookup::Found(item) if item.deadline <= now.ms => Lookup::Involved,
            lookup => lookup,
        }
    }

    /// What a read of an item just found by [`find_plain`](Self::find_plain) entails.
    #[inline(always)]
    pub(crate) fn note_plain_hit(&mut self, head: Head, hash: u64, no_bump: bool, now: Now) {
        self.stats.get_hits += 1;
        if no_bump {
            return;
        }
        let bits = head.bits();
        let after = self.policy.kind().hit_bits(bits);
        self.items.note_plain_read(head, now.s, after.unwrap_or(bits));
        if after.is_none() {
            self.policy.on_hit(&mut self.items, head.slot(), hash);
        }
    }

    /// The same when it found none.
    pub(crate) fn note_plain_miss(&mut self) {
        self.stats.get_misses += 1;
    }

    /// Finds an item for a read and does to it what the read entails. `Ok(None)` is a miss.
    pub(crate) fn get(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &GetOptions,
        now: Now,
    ) -> Result<Option<(Slot, ItemInfo)>, Full> {
        let Some(mut slot) = self.index.find(&self.items, hash, key) else {
            return self.miss(hash, key, options, now);
        };
        if self.items.deadline(slot) <= now.ms {
            self.expire(slot, now);
            self.stats.get_expired += 1;
            return self.miss(hash, key, options, now);
        }
        let idle_s = self.items.idle_s(slot, now.s);
        let left_ms = self.items.deadline(slot) - now.ms;
        if let Some(expiry) = options.touch {
            slot = self.retime(hash, key, slot, expiry, now)?;
            self.stats.touch_hits += 1;
        }
        let mut info = ItemInfo { idle_s, ..self.info(slot, now) };
        let granted = self.items.has(slot, Mark::GRANTED);
        let wants = options.may_refill
            && (info.stale || options.recache_below_ms.is_some_and(|below| left_ms < below));
        if granted {
            info.refill = Refill::Taken;
        } else if wants {
            info.refill = Refill::Won;
            self.items.set_mark(slot, Mark::GRANTED, true);
        }
        if !options.no_bump {
            self.items.note_read(slot, now.s);
            self.policy.on_hit(&mut self.items, slot, hash);
        }
        self.stats.get_hits += 1;
        Ok(Some((slot, info)))
    }

    fn miss(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &GetOptions,
        now: Now,
    ) -> Result<Option<(Slot, ItemInfo)>, Full> {
        let mut found = None;
        if let Some(expiry) = options.vivify {
            let shape = Shape {
                key_len: key.len(),
                value_len: 0,
                flags: 0,
                deadline: expiry.deadline(now.ms),
                version: self.next_version(options.version),
                stale: false,
                granted: true,
            };
            let slot = self.place(hash, key, &shape, now)?;
            let info = ItemInfo { refill: Refill::Won, ..self.info(slot, now) };
            found = Some((slot, info));
        }
        self.stats.get_misses += 1;
        if options.touch.is_some() {
            self.stats.touch_misses += 1;
        }
        Ok(found)
    }

    /// Looks without counting or changing anything.
    pub(crate) fn peek(&self, hash: u64, key: &[u8], now: Now) -> Option<(Slot, ItemInfo)> {
        let slot = self.index.find(&self.items, hash, key)?;
        (self.items.deadline(slot) > now.ms).then(|| (slot, self.info_as_it_is(slot, now)))
    }

    fn next_version(&mut self, given: Option<u64>) -> u64 {
        given.unwrap_or_else(|| {
            self.version += self.version_step;
            self.version
        })
    }

    /// Whether a write that is not append or prepend would go through, and what it would meet.
    fn admit(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &WriteOptions,
        now: Now,
    ) -> Result<(Option<Slot>, bool), WriteOutcome> {
        let found = self.live(hash, key, now);
        let mut stale = false;
        if let Some(compare) = options.compare {
            let Some(slot) = found else {
                self.stats.cas_misses += 1;
                return Err(WriteOutcome::NotFound);
            };
            let version = self.items.version(slot);
            if version == compare {
                self.stats.cas_hits += 1;
            } else if options.invalidate && compare < version {
                stale = true;
            } else {
                self.stats.cas_badval += 1;
                return Err(WriteOutcome::Exists);
            }
        }
        match (options.mode, found) {
            (WriteMode::Add, Some(slot)) => {
                // The client asked for it: that keeps it, as in memcached.
                self.items.note_read(slot, now.s);
                self.policy.on_hit(&mut self.items, slot, hash);
                Err(WriteOutcome::NotStored)
            }
            (WriteMode::Replace | WriteMode::Append | WriteMode::Prepend, None) => {
                Err(WriteOutcome::NotStored)
            }
            _ => Ok((found, stale)),
        }
    }

    /// Writes a whole value (set, add, replace).
    pub(crate) fn write(
        &mut self,
        hash: u64,
        key: &[u8],
        source: Source<'_>,
        options: &WriteOptions,
        now: Now,
    ) -> Result<WriteOutcome, Full> {
        self.stats.writes += 1;
        let (found, stale) = match self.admit(hash, key, options, now) {
            Ok(admitted) => admitted,
            Err(outcome) => return Ok(outcome),
        };
        if options.expiry.is_over(now.ms) && !stale {
            if let Some(slot) = found {
                self.remove(hash, slot);
            }
            let version = self.next_version(options.version);
            let value_len = source.len();
            if let Source::Chunks { chunks, .. } = source {
                self.drop_chunks(chunks);
            }
            return Ok(WriteOutcome::Stored(ItemInfo {
                value_len,
                version,
                flags: options.flags,
                ..ItemInfo::default()
            }));
        }
        let mut shape = Shape {
            key_len: key.len(),
            value_len: source.len(),
            flags: options.flags,
            deadline: options.expiry.deadline(now.ms),
            version: self.next_version(options.version),
            stale: options.stale,
            granted: options.granted,
        };
        if let (true, Some(slot)) = (stale, found) {
            let deadline = self.items.deadline(slot);
            shape.deadline = (deadline != u64::MAX).then_some(deadline);
            shape.stale = true;
            shape.granted = self.items.has(slot, Mark::GRANTED);
        }
        let placed = self.place(hash, key, &shape, now);
        let slot = placed.inspect_err(|Full| self.uncount_write(options.compare.is_some()))?;
        self.fill(slot, source);
        self.stats.total_items += 1;
        Ok(WriteOutcome::Stored(self.info(slot, now)))
    }

    /// A write that went through all conditions is going to be tried again.
    fn uncount_write(&mut self, compared: bool) {
        self.stats.writes -= 1;
        self.stats.cas_hits = self.stats.cas_hits.saturating_sub(u64::from(compared));
    }

    /// What a write would be refused with, if it would: asked before room is made for a large value.
    pub(crate) fn refusal(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &WriteOptions,
        now: Now,
    ) -> Option<WriteOutcome> {
        let found = self.peek(hash, key, now);
        let refused = match (options.compare, &found) {
            (Some(_), None) => true,
            (Some(compare), Some((_, info))) if compare != info.version => {
                !options.invalidate || compare > info.version
            }
            _ => match options.mode {
                WriteMode::Add => found.is_some(),
                WriteMode::Set => false,
                _ => found.is_none(),
            },
        };
        if !refused {
            return None;
        }
        self.stats.writes += 1;
        self.admit(hash, key, options, now).err()
    }

    /// Appends or prepends where the whole fits in one slot. `Ok(None)` when it does not: the
    /// store then goes the way of large values.
    pub(crate) fn extend(
        &mut self,
        hash: u64,
        key: &[u8],
        value: &[u8],
        options: &WriteOptions,
        inline_len_max: usize,
        now: Now,
    ) -> Result<Option<WriteOutcome>, Full> {
        self.stats.writes += 1;
        let slot = match self.admit(hash, key, options, now) {
            Ok((Some(slot), _)) => slot,
            Ok((None, _)) => return Ok(Some(WriteOutcome::NotStored)),
            Err(outcome) => return Ok(Some(outcome)),
        };
        let old_len = self.items.value_len(slot);
        if old_len + value.len() > inline_len_max {
            self.uncount_write(options.compare.is_some());
            return Ok(None);
        }
        let old = self.items.value_to_vec(slot);
        let shape = Shape {
            value_len: old_len + value.len(),
            version: self.next_version(options.version),
            // Someone wrote: it is no longer stale.
            stale: false,
            granted: false,
            ..self.items.shape(slot)
        };
        let fetched = self.items.has(slot, Mark::FETCHED);
        let placed = self.place(hash, key, &shape, now);
        let slot = placed.inspect_err(|Full| self.uncount_write(options.compare.is_some()))?;
        self.items.set_mark(slot, Mark::FETCHED, fetched);
        let (first, second): (&[u8], &[u8]) =
            if options.mode == WriteMode::Append { (&old, value) } else { (value, &old) };
        let target = self.items.tail_mut(slot);
        target[..first.len()].copy_from_slice(first);
        target[first.len()..].copy_from_slice(second);
        Ok(Some(WriteOutcome::Stored(self.info(slot, now))))
    }

    /// Increments or decrements.
    pub(crate) fn arithmetic(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &ArithmeticOptions,
        now: Now,
    ) -> Result<ArithmeticOutcome, Full> {
        let found = self.live(hash, key, now);
        let hit = found.is_some();
        let outcome = self.change_number(hash, key, found, options, now)?;
        match (options.direction, hit) {
            (Direction::Increment, true) => self.stats.incr_hits += 1,
            (Direction::Increment, false) => self.stats.incr_misses += 1,
            (Direction::Decrement, true) => self.stats.decr_hits += 1,
            (Direction::Decrement, false) => self.stats.decr_misses += 1,
        }
        Ok(outcome)
    }

    fn change_number(
        &mut self,
        hash: u64,
        key: &[u8],
        found: Option<Slot>,
        options: &ArithmeticOptions,
        now: Now,
    ) -> Result<ArithmeticOutcome, Full> {
        let Some(slot) = found else {
            let Some((expiry, initial)) = options.create else {
                return Ok(ArithmeticOutcome::NotFound);
            };
            let mut number = std::mem::take(&mut self.number);
            decimal(initial, &mut number);
            let write = WriteOptions { expiry, version: options.version, ..Default::default() };
            let written = self.write(hash, key, Source::Inline(&number), &write, now);
            self.number = number;
            return written.map(|outcome| match outcome {
                WriteOutcome::Stored(info) => ArithmeticOutcome::Number(initial, info),
                _ => ArithmeticOutcome::OutOfMemory,
            });
        };
        if options.compare.is_some_and(|compare| compare != self.items.version(slot)) {
            return Ok(ArithmeticOutcome::Exists);
        }
        let Some(number) = self.number_in(slot) else {
            return Ok(ArithmeticOutcome::NotANumber);
        };
        let number = match options.direction {
            Direction::Increment => number.wrapping_add(options.delta),
            Direction::Decrement => number.saturating_sub(options.delta),
        };
        let mut digits = std::mem::take(&mut self.number);
        decimal(number, &mut digits);
        let mut shape = Shape {
            value_len: digits.len(),
            version: self.next_version(options.version),
            ..self.items.shape(slot)
        };
        if let Some(expiry) = options.touch {
            shape.deadline = expiry.deadline(now.ms);
        }
        let fetched = self.items.has(slot, Mark::FETCHED);
        let placed = self.place(hash, key, &shape, now);
        if let Ok(slot) = placed {
            self.items.set_mark(slot, Mark::FETCHED, fetched);
            self.items.tail_mut(slot).copy_from_slice(&digits);
        }
        self.number = digits;
        Ok(ArithmeticOutcome::Number(number, self.info(placed?, now)))
    }

    fn number_in(&self, slot: Slot) -> Option<u64> {
        if self.items.has(slot, Mark::CHUNKED) {
            return None;
        }
        // Older memcached servers padded shorter numbers with blanks; such values come in by dumps.
        let digits = self.items.tail(slot).trim_ascii_end();
        if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// Gives an item a new end.
    pub(crate) fn touch(
        &mut self,
        hash: u64,
        key: &[u8],
        expiry: Expiry,
        now: Now,
    ) -> Result<TouchOutcome, Full> {
        let Some(slot) = self.live(hash, key, now) else {
            self.stats.touch_misses += 1;
            return Ok(TouchOutcome::NotFound);
        };
        let slot = self.retime(hash, key, slot, expiry, now)?;
        self.stats.touch_hits += 1;
        let info = self.info(slot, now);
        self.policy.on_hit(&mut self.items, slot, hash);
        Ok(TouchOutcome::Touched(info))
    }

    /// Marks an item as another copy of it is marked. False when there is none.
    pub(crate) fn mark(
        &mut self,
        hash: u64,
        key: &[u8],
        stale: bool,
        granted: bool,
        now: Now,
    ) -> bool {
        let Some(slot) = self.live(hash, key, now) else { return false };
        self.items.set_mark(slot, Mark::STALE, stale);
        self.items.set_mark(slot, Mark::GRANTED, granted);
        true
    }

    /// Sets the deadline of an item, moving it to a slot with room for one if need be. An end
    /// already over is set all the same: the next look at the item finds it gone.
    fn retime(
        &mut self,
        hash: u64,
        key: &[u8],
        slot: Slot,
        expiry: Expiry,
        now: Now,
    ) -> Result<Slot, Full> {
        let deadline = expiry.deadline(now.ms);
        if self.items.has(slot, Mark::TTL) {
            self.wheel.remove(&mut self.items, slot);
            self.items.set_deadline(slot, deadline.unwrap_or(u64::MAX));
            self.wheel.insert(&mut self.items, slot);
            return Ok(slot);
        }
        if deadline.is_none() {
            return Ok(slot);
        }
        // Large items always have room for an end, so this one's value is in its slot.
        let shape = Shape { deadline, ..self.items.shape(slot) };
        self.rewrite(hash, key, slot, &shape, now)
    }

    /// Rewrites an inline item with other optional parts and the same value.
    fn rewrite(
        &mut self,
        hash: u64,
        key: &[u8],
        slot: Slot,
        shape: &Shape,
        now: Now,
    ) -> Result<Slot, Full> {
        debug_assert!(!shape.chunked());
        let fetched = self.items.has(slot, Mark::FETCHED);
        let value = self.items.value_to_vec(slot);
        let slot = self.place(hash, key, shape, now)?;
        self.items.tail_mut(slot).copy_from_slice(&value);
        self.items.set_mark(slot, Mark::FETCHED, fetched);
        Ok(slot)
    }

    /// Removes an item, or marks it.
    pub(crate) fn delete(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &DeleteOptions,
        now: Now,
    ) -> Result<DeleteOutcome, Full> {
        let Some(slot) = self.live(hash, key, now) else {
            self.stats.delete_misses += 1;
            return Ok(DeleteOutcome::NotFound);
        };
        self.remove_or_mark(hash, key, slot, options, now).inspect(|_| self.stats.delete_hits += 1)
    }

    fn remove_or_mark(
        &mut self,
        hash: u64,
        key: &[u8],
        slot: Slot,
        options: &DeleteOptions,
        now: Now,
    ) -> Result<DeleteOutcome, Full> {
        if options.compare.is_some_and(|compare| compare != self.items.version(slot)) {
            return Ok(DeleteOutcome::Exists);
        }
        if !options.invalidate && !options.keep_empty {
            self.remove(hash, slot);
            return Ok(DeleteOutcome::Deleted);
        }
        let version = self.next_version(options.version);
        if self.items.has(slot, Mark::CHUNKED) && !options.keep_empty {
            // All that changes has its place in a large item already.
            let settable = self.items.set_version(slot, version);
            debug_assert!(settable);
            self.items.set_mark(slot, Mark::STALE, true);
            self.items.set_mark(slot, Mark::GRANTED, false);
            if let Some(expiry) = options.expiry {
                self.retime(hash, key, slot, expiry, now)?;
            }
            return Ok(DeleteOutcome::Deleted);
        }
        let mut shape = Shape { version, ..self.items.shape(slot) };
        if options.invalidate {
            shape.stale = true;
            // The next reader is to win.
            shape.granted = false;
            if let Some(expiry) = options.expiry {
                shape.deadline = expiry.deadline(now.ms);
            }
        }
        if options.keep_empty {
            shape.flags = 0;
            shape.value_len = 0;
            shape.stale = options.invalidate;
            shape.granted = false;
            self.place(hash, key, &shape, now)?;
        } else {
            self.rewrite(hash, key, slot, &shape, now)?;
        }
        Ok(DeleteOutcome::Deleted)
    }

    /// A write over the size limit, or without room: the older value must not survive it.
    pub(crate) fn forget(&mut self, hash: u64, key: &[u8]) {
        if let Some(slot) = self.index.find(&self.items, hash, key) {
            self.remove(hash, slot);
        }
    }
}

fn decimal(number: u64, into: &mut Vec<u8>) {
    into.clear();
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    into.extend_from_slice(&digits[at..]);
}
