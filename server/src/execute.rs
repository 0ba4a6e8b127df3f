//! The one place where a request meets the store.
//!
//! Every front end hands its [`Command`] to [`execute`] and gets the [`Outcome`] through a
//! [`Sink`]: a call rather than a return value, because the bytes of a hit are only there while
//! the store looks at them; the sink copies them into the reply. There is no await point and no
//! task hop on the way.

use kiln_engine::{
    Appended, ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Direction,
    Expiry, GetOptions, ItemInfo, Reads, Refill, Store, TouchOutcome, Value, WriteMode,
    WriteOptions, WriteOutcome,
};
use kiln_protocol::command::{self, Command, ItemMeta, Outcome, RefillRight, StoreMode, Ttl};

use crate::{caches::Cache, cluster::Cluster};

/// Ends of items this near are judged by the replication core, which knows other nodes' clocks.
const END_NEAR_MS: u64 = 10_000;

/// Where the outcome of a command goes. Exactly one of `hit` and `outcome` is called, once, unless
/// `append` has answered.
pub(crate) trait Sink {
    /// Answers a read of a small item straight from where that lies, if this sink can. A miss is
    /// told, not answered.
    #[inline]
    fn append(&mut self, _read: &PlainRead<'_>) -> Appended<()> {
        Appended::Undone
    }
    /// A read found the item. May run under a lock when the value is inline: copy and return.
    fn hit(self, item: &ItemMeta, value: Value<'_>);
    /// Anything else.
    fn outcome(self, outcome: &Outcome);
}

/// A read that asks for nothing but what is there.
pub(crate) struct PlainRead<'a> {
    pub(crate) store: &'a Store,
    key: &'a [u8],
    hash: u64,
    no_bump: bool,
    now_ms: u64,
}

impl PlainRead<'_> {
    /// Appends what `begin` does and, if that returns something, the value: see [`Reads::get_into`]. `reads`
    /// are of the same store.
    #[inline]
    pub(crate) fn append<A>(
        &self,
        reads: &mut Reads<'_>,
        replies: &mut Vec<u8>,
        begin: impl FnOnce(&ItemMeta, &mut Vec<u8>) -> Option<A>,
    ) -> Appended<A> {
        const QUIET: GetOptions = GetOptions { no_bump: true, ..GetOptions::PLAIN };
        let options = if self.no_bump { &QUIET } else { &GetOptions::PLAIN };
        let now_ms = self.now_ms;
        reads.get_into(self.key, self.hash, options, now_ms, replies, |info, replies| {
            begin(&meta(info, now_ms), replies)
        })
    }
}

/// Runs a command on a key of this node. `hash` is that of its key, as the store hashes.
#[inline]
pub(crate) fn execute(
    cache: &Cache,
    command: &Command<'_>,
    hash: u64,
    now_ms: u64,
    sink: impl Sink,
) {
    match command {
        Command::Get(get) => execute_get(cache, get, hash, now_ms, sink),
        other => {
            let outcome = execute_other(cache, other, hash, now_ms);
            // Whatever came of it: also a refused write can have removed the older value.
            cache.trackers.changed(hash);
            sink.outcome(&outcome);
        }
    }
}

/// Whether a command reads an item and nothing else.
#[inline]
pub(crate) fn is_plain_read(command: &Command<'_>) -> bool {
    match command {
        Command::Get(get) => {
            get.touch.is_none()
                && get.vivify.is_none()
                && get.recache_below_ms.is_none()
                && get.version.is_none()
        }
        _ => false,
    }
}

/// Answers a read on a node of several, if this node may do so alone; a miss only where `misses`
/// may be told. False when it may not: then nothing was answered.
#[inline]
pub(crate) fn read_directly(
    cluster: &Cluster,
    cache: &Cache,
    command: &Command<'_>,
    hash: u64,
    now_ms: u64,
    misses: bool,
    sink: impl Sink,
) -> bool {
    let Command::Get(get) = command else { return false };
    let Some(known) = cache.cluster() else { return false };
    if !is_plain_read(command) {
        return false;
    }
    let Some(ticket) = known.ticket(hash, cluster.mono()) else { return false };
    // To hand out the right to refill is a change, and that is not for this node alone.
    let options = GetOptions { no_bump: get.no_bump, ..GetOptions::default() };
    let mut sink = Some(sink);
    let mut disputed = false;
    // By the clock of the stores: here nothing ends before all copies agree.
    cache.store.get(get.key, hash, &options, cluster.ended_ms(), |info, value| {
        let near = |deadline: u64| deadline <= now_ms.saturating_add(END_NEAR_MS);
        disputed =
            info.stale || info.deadline_ms.is_some_and(near) || !ticket.is_good(cluster.mono());
        if !disputed && let Some(sink) = sink.take() {
            sink.hit(&meta(info, now_ms), value);
        }
    });
    if disputed {
        return false;
    }
    match sink {
        Some(_) if !misses || !ticket.is_good(cluster.mono()) => return false,
        Some(sink) => sink.outcome(&Outcome::NotFound),
        None => {}
    }
    true
}

#[inline]
fn execute_get(cache: &Cache, get: &command::Get<'_>, hash: u64, now_ms: u64, mut sink: impl Sink) {
    if get.touch.is_none() && get.vivify.is_none() && get.recache_below_ms.is_none() {
        let store = &cache.store;
        let read = PlainRead { store, key: get.key, hash, no_bump: get.no_bump, now_ms };
        match sink.append(&read) {
            Appended::Hit(_) => return,
            Appended::Miss => return sink.outcome(&Outcome::NotFound),
            Appended::Undone => {}
        }
    }
    let expiry = |ttl| expiry(cache, ttl, now_ms);
    let options = GetOptions {
        touch: get.touch.map(expiry),
        vivify: get.vivify.map(expiry),
        recache_below_ms: get.recache_below_ms,
        no_bump: get.no_bump,
        may_refill: get.may_refill,
        version: get.version,
    };
    // The closure runs on a hit only, and the sink is needed for a miss as well.
    let mut sink = Some(sink);
    cache.store.get(get.key, hash, &options, now_ms, |info, value| {
        if let Some(sink) = sink.take() {
            sink.hit(&meta(info, now_ms), value);
        }
    });
    if get.touch.or(get.vivify).is_some() {
        cache.trackers.changed(hash);
    }
    if let Some(sink) = sink {
        sink.outcome(&Outcome::NotFound);
    }
}

fn execute_other(cache: &Cache, command: &Command<'_>, hash: u64, now_ms: u64) -> Outcome {
    let store = &cache.store;
    let expiry = |ttl| expiry(cache, ttl, now_ms);
    match *command {
        Command::Get(_) => Outcome::NotFound,
        Command::Store(write) => {
            let options = WriteOptions {
                mode: match write.mode {
                    StoreMode::Set => WriteMode::Set,
                    StoreMode::Add => WriteMode::Add,
                    StoreMode::Replace => WriteMode::Replace,
                    StoreMode::Append => WriteMode::Append,
                    StoreMode::Prepend => WriteMode::Prepend,
                },
                flags: write.flags,
                expiry: expiry(write.ttl),
                compare: write.compare,
                version: write.version,
                invalidate: write.invalidate,
                vivify: write.vivify.map(expiry),
                ..WriteOptions::default()
            };
            match store.write(write.key, hash, write.value, &options, now_ms) {
                WriteOutcome::Stored(info) => Outcome::Stored(meta(&info, now_ms)),
                WriteOutcome::NotStored => Outcome::NotStored,
                WriteOutcome::Exists => Outcome::Exists,
                WriteOutcome::NotFound => Outcome::NotFound,
                // What grew too large was not sent too large: as memcached answers it.
                WriteOutcome::TooLarge
                    if matches!(write.mode, StoreMode::Append | StoreMode::Prepend)
                        && write.value.len() <= store.value_len_max() =>
                {
                    Outcome::NotStored
                }
                WriteOutcome::TooLarge => Outcome::TooLarge,
                WriteOutcome::OutOfMemory => Outcome::OutOfMemory,
            }
        }
        Command::Delete(delete) => {
            let options = DeleteOptions {
                compare: delete.compare,
                version: delete.version,
                invalidate: delete.invalidate,
                expiry: delete.ttl.map(expiry),
                keep_empty: delete.keep_empty,
            };
            match store.delete(delete.key, hash, &options, now_ms) {
                DeleteOutcome::Deleted => Outcome::Deleted,
                DeleteOutcome::NotFound => Outcome::NotFound,
                DeleteOutcome::Exists => Outcome::Exists,
            }
        }
        Command::Arithmetic(arithmetic) => {
            let options = ArithmeticOptions {
                direction: match arithmetic.direction {
                    command::Direction::Increment => Direction::Increment,
                    command::Direction::Decrement => Direction::Decrement,
                },
                delta: arithmetic.delta,
                compare: arithmetic.compare,
                version: arithmetic.version,
                create: arithmetic.create.map(|(ttl, initial)| (expiry(ttl), initial)),
                touch: arithmetic.touch.map(expiry),
            };
            match store.arithmetic(arithmetic.key, hash, &options, now_ms) {
                ArithmeticOutcome::Number(number, info) => {
                    Outcome::Number(number, meta(&info, now_ms))
                }
                ArithmeticOutcome::NotFound => Outcome::NotFound,
                ArithmeticOutcome::Exists => Outcome::Exists,
                ArithmeticOutcome::NotANumber => Outcome::NotANumber,
                ArithmeticOutcome::OutOfMemory => Outcome::OutOfMemory,
            }
        }
        Command::Touch(touch) => match store.touch(touch.key, hash, expiry(touch.ttl), now_ms) {
            TouchOutcome::Touched(info) => Outcome::Touched(meta(&info, now_ms)),
            TouchOutcome::NotFound => Outcome::NotFound,
            TouchOutcome::OutOfMemory => Outcome::OutOfMemory,
        },
    }
}

fn expiry(cache: &Cache, ttl: Ttl, now_ms: u64) -> Expiry {
    match ttl {
        Ttl::Default => match cache.live.default_ttl_ms() {
            Some(ms) => Expiry::At(now_ms.saturating_add(ms)),
            None => Expiry::Never,
        },
        Ttl::Never => Expiry::Never,
        Ttl::After(ms) => Expiry::At(now_ms.saturating_add(ms)),
        Ttl::At(ms) => Expiry::At(ms),
        Ttl::Expired => Expiry::At(0),
    }
}

/// An item as protocols describe it.
pub(crate) fn meta(info: &ItemInfo, now_ms: u64) -> ItemMeta {
    ItemMeta {
        value_len: info.value_len,
        flags: info.flags,
        version: info.version,
        ttl_ms: info.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms)),
        idle_s: info.idle_s,
        fetched: info.fetched,
        stale: info.stale,
        refill: match info.refill {
            Refill::None => RefillRight::None,
            Refill::Won => RefillRight::Won,
            Refill::Taken => RefillRight::Taken,
        },
    }
}
