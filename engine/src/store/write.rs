//! Writing a value, and making room for it.
//!
//! Values above 16 KiB take two steps: chunks that belong to nobody yet are taken one lock at a
//! time and filled without it, then linked as one item. Room comes from the key's own shard; when
//! that cannot make any, the richest other one gives a page.
//!
//! Invariants:
//! - never two shards are locked at once;
//! - chunks that did not become an item's are freed, whatever came in between.

use crate::heap::{CHUNK_LEN, Slot};
use crate::item::{INLINE_LEN_MAX, KEY_LEN_MAX};
use crate::ops::{Expiry, ItemInfo, WriteMode, WriteOptions, WriteOutcome};
use crate::policy::PolicyKind;
use crate::shard::{Full, Now, Shard, Source};
use crate::store::Store;
use crate::store::large::PinnedValue;

impl Store {
    /// Writes a value as `options` say.
    pub fn write(
        &self,
        key: &[u8],
        hash: u64,
        value: &[u8],
        options: &WriteOptions,
        now_ms: u64,
    ) -> WriteOutcome {
        let now = self.begin(now_ms);
        let extends = matches!(options.mode, WriteMode::Append | WriteMode::Prepend);
        if key.is_empty() || key.len() > KEY_LEN_MAX || value.len() > self.inner.value_len_max {
            let mut shard = self.shard(hash);
            shard.count(|stats| stats.too_large += 1);
            if options.mode == WriteMode::Set {
                shard.forget(hash, key);
            }
            return WriteOutcome::TooLarge;
        }
        let outcome = if extends {
            self.extend(key, hash, value, options, now)
        } else if value.len() <= INLINE_LEN_MAX {
            self.run(hash, now, |shard| shard.write(hash, key, Source::Inline(value), options, now))
        } else {
            self.write_large(key, hash, &[value], options, now)
        };
        match outcome {
            Ok(WriteOutcome::NotStored) if extends && let Some(expiry) = options.vivify => {
                let create =
                    WriteOptions { mode: WriteMode::Add, expiry, vivify: None, ..*options };
                self.write(key, hash, value, &create, now_ms)
            }
            Ok(outcome) => outcome,
            Err(Full) => {
                let mut shard = self.shard(hash);
                shard.count(|stats| {
                    stats.writes += 1;
                    stats.no_memory += 1;
                });
                // A client that writes without a condition would rather read nothing than what it
                // meant to replace. Where nothing may leave by itself, nothing does.
                if options.mode == WriteMode::Set
                    && options.compare.is_none()
                    && self.inner.policy != PolicyKind::None
                {
                    shard.forget(hash, key);
                }
                WriteOutcome::OutOfMemory
            }
        }
    }

    /// Writes a value of several pieces, above the inline size: chunks are taken one lock at a
    /// time and filled without it.
    fn write_large(
        &self,
        key: &[u8],
        hash: u64,
        pieces: &[&[u8]],
        options: &WriteOptions,
        now: Now,
    ) -> Result<WriteOutcome, Full> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        if len <= INLINE_LEN_MAX {
            // The value to be extended was replaced by a shorter one meanwhile.
            let value = pieces.concat();
            return self.run(hash, now, |shard| {
                shard.write(hash, key, Source::Inline(&value), options, now)
            });
        }
        // Refusals come before room is made: a large value would evict much in vain.
        if let Some(refusal) = self.shard(hash).refusal(hash, key, options, now) {
            return Ok(refusal);
        }
        if len > self.memory() / 2 {
            self.shard(hash).count(|stats| stats.too_large += 1);
            return Ok(WriteOutcome::TooLarge);
        }
        let mut draft = Draft { store: self, hash, chunks: Vec::new() };
        let mut source = Pieces { pieces, at: 0 };
        for _ in 0..len / CHUNK_LEN {
            let (chunk, pointer) = self.run(hash, now, |shard| shard.draft_chunk(now))?;
            draft.chunks.push(chunk);
            // SAFETY: the chunk is CHUNK_LEN bytes of the region, which `self` keeps alive. It has
            // no owner and is on no free list, so nothing else reads, writes or moves it.
            let target = unsafe { std::slice::from_raw_parts_mut(pointer, CHUNK_LEN) };
            source.copy_to(target);
        }
        let mut tail = vec![0; len % CHUNK_LEN];
        source.copy_to(&mut tail);
        let outcome = self.run(hash, now, |shard| {
            let source = Source::Chunks { chunks: &draft.chunks, tail: &tail };
            shard.write(hash, key, source, options, now)
        })?;
        if matches!(outcome, WriteOutcome::Stored(_)) {
            // They are the item's now.
            draft.chunks.clear();
        }
        Ok(outcome)
    }

    /// Counts a write that the caller refused as over the size limit before it came here.
    pub fn count_too_large(&self, hash: u64) {
        self.shard(hash).count(|stats| {
            stats.writes += 1;
            stats.too_large += 1;
        });
    }

    fn extend(
        &self,
        key: &[u8],
        hash: u64,
        value: &[u8],
        options: &WriteOptions,
        now: Now,
    ) -> Result<WriteOutcome, Full> {
        for _ in 0..APPEND_ATTEMPTS_MAX {
            let small = self.run(hash, now, |shard| {
                let len_max = INLINE_LEN_MAX.min(self.inner.value_len_max);
                shard.extend(hash, key, value, options, len_max, now)
            })?;
            if let Some(outcome) = small {
                return Ok(outcome);
            }
            // Large: build the new value without the lock, then write it if the item is unchanged.
            let old = self.hold(key, hash, now);
            let Some((info, old)) = old else { continue };
            if !options.invalidate && options.compare.is_some_and(|given| given != info.version) {
                // Written to meanwhile: the next look refuses it.
                continue;
            }
            if info.value_len + value.len() > self.inner.value_len_max {
                self.shard(hash).count(|stats| stats.too_large += 1);
                return Ok(WriteOutcome::TooLarge);
            }
            let mut pieces: Vec<&[u8]> = old.slices();
            if options.mode == WriteMode::Append {
                pieces.push(value);
            } else {
                pieces.insert(0, value);
            }
            let write = WriteOptions {
                mode: WriteMode::Replace,
                flags: info.flags,
                expiry: info.deadline_ms.map_or(Expiry::Never, Expiry::At),
                compare: Some(info.version),
                version: options.version,
                ..WriteOptions::default()
            };
            let outcome = self.write_large(key, hash, &pieces, &write, now)?;
            if options.compare.is_some() || matches!(outcome, WriteOutcome::Stored(_)) {
                return Ok(outcome);
            }
        }
        Err(Full)
    }

    /// An item and its value as they are, for a rewrite: no use is counted, no right given.
    fn hold(&self, key: &[u8], hash: u64, now: Now) -> Option<(ItemInfo, Held)> {
        let mut shard = self.shard(hash);
        let (slot, info) = shard.peek(hash, key, now)?;
        if info.value_len <= INLINE_LEN_MAX {
            return Some((info, Held::Copied(shard.items.tail(slot).to_vec())));
        }
        shard.pin(slot);
        drop(shard);
        Some((info, Held::Pinned(self.pinned(hash, slot))))
    }

    // ---- room ----------------------------------------------------------------------------

    /// Runs an operation on a key's shard, making other shards give memory while it needs them to.
    pub(super) fn run<T>(
        &self,
        hash: u64,
        now: Now,
        mut operation: impl FnMut(&mut Shard) -> Result<T, Full>,
    ) -> Result<T, Full> {
        for _ in 0..STEALS_MAX {
            let mut shard = self.shard(hash);
            if let Ok(outcome) = operation(&mut shard) {
                if let Some((old, new)) = shard.heap_change() {
                    self.inner.region.account_heap(old, new);
                }
                return Ok(outcome);
            }
            drop(shard);
            if !self.steal_page(hash, now) {
                break;
            }
        }
        // Once more as a shard that need not wait for others.
        let mut shard = self.shard(hash);
        shard.without_waiting(|shard| operation(shard))
    }

    /// Makes the shard that holds most give a page to the pool.
    fn steal_page(&self, hash: u64, now: Now) -> bool {
        if self.inner.region.spare_pages() > 0 {
            return true;
        }
        let own = self.shard_number(hash);
        let richest = (0..self.inner.shards.len())
            .filter(|&number| number != own)
            .max_by_key(|&number| self.inner.lock(number).items.heap.pages());
        let Some(richest) = richest else { return false };
        self.inner.lock(richest).give_page(now, STEAL_STEPS)
    }
}

/// Chunks being filled. Those that did not become an item's are freed.
struct Draft<'a> {
    store: &'a Store,
    hash: u64,
    chunks: Vec<Slot>,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.chunks.is_empty() {
            self.store.shard(self.hash).drop_chunks(&self.chunks);
        }
    }
}

/// Reads through slices as if they were one.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    at: usize,
}

impl Pieces<'_> {
    fn copy_to(&mut self, mut target: &mut [u8]) {
        while let Some((&piece, rest)) = self.pieces.split_first() {
            let from = &piece[self.at..];
            let len = from.len().min(target.len());
            target[..len].copy_from_slice(&from[..len]);
            target = &mut target[len..];
            if len < from.len() {
                self.at += len;
                return;
            }
            self.pieces = rest;
            self.at = 0;
        }
    }
}

enum Held {
    Copied(Vec<u8>),
    Pinned(PinnedValue),
}

impl Held {
    fn slices(&self) -> Vec<&[u8]> {
        match self {
            Self::Copied(bytes) => vec![bytes],
            Self::Pinned(pinned) => pinned.slices().to_vec(),
        }
    }
}

/// How often room is asked of other shards before a write is refused.
const STEALS_MAX: usize = 16;
/// Steps of making room in another shard for one page.
const STEAL_STEPS: usize = 4096;
/// Attempts to append to a large value that others write to at the same time.
const APPEND_ATTEMPTS_MAX: usize = 64;
