//! What of a cache's settings can change while it lives.
//!
//! Mode and copies say where its items lie, the policy and the longest value how its store was
//! built: those stay. The rest is here, in atomics, because requests read it on their way.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::{CacheSettings, Read};

/// The settings of a cache that can change, as they are now.
#[derive(Debug)]
pub(crate) struct Live {
    /// 0 is for ever.
    default_ttl_ms: AtomicU64,
    min_in_sync: AtomicU32,
    read: AtomicU8,
    leased: Arc<AtomicBool>,
    memory: AtomicUsize,
    /// More than one copy was asked of a write at some time. It never turns back: what went through
    /// the replication core once, goes through it always.
    needs_others: AtomicBool,
}

impl Live {
    /// As a cache begins.
    pub(super) fn new(settings: &CacheSettings) -> Self {
        Self {
            default_ttl_ms: AtomicU64::new(settings.default_ttl_ms.unwrap_or(0)),
            min_in_sync: AtomicU32::new(settings.min_in_sync),
            read: AtomicU8::new(settings.read as u8),
            leased: Arc::new(AtomicBool::new(settings.read == Read::Leased)),
            memory: AtomicUsize::new(settings.memory),
            needs_others: AtomicBool::new(settings.min_in_sync > 1),
        }
    }

    /// How long items live when a write names no end.
    #[inline]
    pub(crate) fn default_ttl_ms(&self) -> Option<u64> {
        Some(self.default_ttl_ms.load(Relaxed)).filter(|&ms| ms > 0)
    }

    /// Whether a write was never asked to have more copies than one.
    #[inline]
    pub(crate) fn needs_no_others(&self) -> bool {
        !self.needs_others.load(Acquire)
    }

    /// A lease of the primary is enough to read.
    pub(crate) fn leased(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.leased)
    }

    fn read(&self) -> Read {
        let read = self.read.load(Relaxed);
        [Read::Primary, Read::Leased, Read::Any]
            .into_iter()
            .find(|one| *one as u8 == read)
            .unwrap_or(Read::Primary)
    }

    /// Its ceiling, as asked for last.
    pub(super) fn memory(&self) -> usize {
        self.memory.load(Relaxed)
    }

    pub(super) fn set_memory(&self, memory: usize) {
        self.memory.store(memory, Relaxed);
    }

    /// All but the memory, which moves with the ledger.
    pub(super) fn set(&self, to: &CacheSettings) {
        if to.min_in_sync > 1 {
            self.needs_others.store(true, Release);
        }
        self.min_in_sync.store(to.min_in_sync, Relaxed);
        self.default_ttl_ms.store(to.default_ttl_ms.unwrap_or(0), Relaxed);
        self.read.store(to.read as u8, Relaxed);
        self.leased.store(to.read == Read::Leased, Relaxed);
    }

    /// The settings that a cache was made with, as they are now.
    pub(super) fn over(&self, made: &CacheSettings) -> CacheSettings {
        CacheSettings {
            default_ttl_ms: self.default_ttl_ms(),
            min_in_sync: self.min_in_sync.load(Relaxed),
            read: self.read(),
            memory: self.memory(),
            ..made.clone()
        }
    }
}
