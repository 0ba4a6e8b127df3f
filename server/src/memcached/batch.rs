//! The requests of one read, together.
//!
//! A lookup is two cache misses that depend on each other; executed one by one, a batch of
//! pipelined requests waits for all of them in turn. So a batch is first parsed whole, and then the
//! requests are executed, in order, into one reply buffer, with the index buckets and items of
//! those to come asked for ahead. The misses overlap; that is most of what pipelining can gain in a
//! cache.
//!
//! The scratch memory is one per worker: a connection that waits holds none of it.

use kiln_engine::{Appended, Reads, Store, Value};
use kiln_protocol::Parsed;
use kiln_protocol::command::{Command, Delete, ItemMeta, Outcome};
use kiln_protocol::memcached::{
    FlushTime, KeyScratch, Op, Parser, Reply, Stats, lines, write_version,
};

use crate::caches::Cache;
use crate::connection::budget::Share;
use crate::connection::{Context, Output, Then, WorkerMemory};
use crate::execute::{PlainRead, Sink, execute, meta};
use crate::memcached::{PROTOCOL_VERSION, stats};
use crate::op_times::{self, KindCounts};

/// Requests parsed ahead, so that what they need can be fetched ahead.
pub(super) const BATCH_MAX: usize = 64;

/// What the store spends on an item beside key and value, about: for `me` and `stats`.
const ITEM_OVERHEAD: usize = 32;

/// Memory for one batch at a time: one per worker, used by its connections in turn.
pub(crate) struct BatchMemory {
    /// Empty between batches; kept for its memory.
    pub(super) ops: Vec<Op<'static>>,
    pub(super) hashes: Vec<u64>,
    pub(super) keys: KeyScratch,
}

impl Default for BatchMemory {
    fn default() -> Self {
        Self {
            ops: Vec::with_capacity(BATCH_MAX),
            hashes: Vec::with_capacity(BATCH_MAX),
            keys: KeyScratch::new(BATCH_MAX),
        }
    }
}

/// Runs all complete requests in `input`. Returns how many bytes are done with, and what next.
pub(super) fn run(
    parser: &mut Parser,
    context: &mut Context<'_>,
    input: &[u8],
    memory: &mut WorkerMemory,
) -> (usize, Then) {
    let WorkerMemory { replies, memcached, sampler, kinds, .. } = memory;
    let BatchMemory { ops: kept_ops, hashes, keys } = memcached;
    let cache = context.node.default_cache();
    let mut done = 0;
    loop {
        keys.clear();
        hashes.clear();
        let mut ops: Vec<Op<'_>> = std::mem::take(kept_ops);
        let start = (parser.clone(), done);
        let rest = parse(parser, &input[done..], keys, &mut ops, BATCH_MAX, hashes, &mut done);
        if let Some(place) = sampler.pick(hashes.len()) {
            count_key(context, &ops, place, hashes[place]);
        }
        let mut ahead = cache.store.ahead(hashes);
        let mut reads = match hashes.len() {
            0 | 1 => cache.store.reads(),
            _ => cache.store.reads_announced(),
        };
        let mut ran = ops.len();
        let mut close = false;
        let mut early = None;
        for (number, op) in (1..).zip(&ops) {
            if answer(parser, context, op, &mut ahead, &mut reads, replies) == After::Close {
                (close, ran) = (true, number);
                break;
            }
            if replies.len() + context.output.len() >= context.replies_max && number < ops.len() {
                (early, ran) = (Some(number), number);
                break;
            }
        }
        drop(reads);
        // What was not run is read again.
        let noted = note_kinds(cache, &ops[..ran], hashes, kinds);
        context.worker.counters.memcached_ops.add(noted);
        *kept_ops = recycle(ops);
        if close {
            return (input.len(), Then::Close);
        }
        if let Some(executed) = early {
            // Rare and cheap: the parser goes back and forth again over what was executed.
            (*parser, done) = start;
            keys.clear();
            let mut ops: Vec<Op<'_>> = std::mem::take(kept_ops);
            let mut hashes = Vec::new();
            let input = &input[done..];
            parse(parser, input, keys, &mut ops, executed, &mut hashes, &mut done);
            *kept_ops = recycle(ops);
            context.worker.counters.conn_yields.add(1);
            return (done, Then::Write);
        }
        if let Some(at_least) = rest {
            return (done, Then::Read { at_least });
        }
        if replies.len() + context.output.len() >= context.replies_max {
            return (done, Then::Write);
        }
    }
}

/// Counts one of the keys asked for.
#[cold]
pub(super) fn count_key(context: &Context<'_>, ops: &[Op<'_>], place: usize, hash: u64) {
    let commands = ops.iter().filter_map(|op| match op {
        Op::Data { command, .. } => Some(command),
        _ => None,
    });
    if let Some(command) = commands.into_iter().nth(place) {
        context.worker.hottest.lock().count(0, command.key(), hash);
    }
}

/// Counts operations by kind, and shows reads to the cache's miss-ratio curve. Returns how many
/// operations there are.
pub(super) fn note_kinds(
    cache: &Cache,
    ops: &[Op<'_>],
    hashes: &[u64],
    kinds: &mut KindCounts,
) -> u64 {
    let commands = ops.iter().filter_map(|op| match op {
        Op::Data { command, .. } => Some(command),
        _ => None,
    });
    let (mut all, mut reads) = (0, 0);
    for (command, &hash) in commands.zip(hashes) {
        all += 1;
        kinds[op_times::kind(command)] += 1;
        if matches!(command, Command::Get(_)) {
            reads += 1;
            cache.curve.read(hash);
        }
    }
    if reads > 0 {
        cache.curve.count(reads);
    }
    all
}

/// Parses up to `ops_max` requests. Returns what the next one needs, or `None` when there may be
/// more in the input.
pub(super) fn parse<'a>(
    parser: &mut Parser,
    input: &'a [u8],
    keys: &'a KeyScratch,
    ops: &mut Vec<Op<'a>>,
    ops_max: usize,
    hashes: &mut Vec<u64>,
    done: &mut usize,
) -> Option<usize> {
    let mut at = 0;
    while ops.len() < ops_max {
        ops.push(Op::Quit);
        let slot = ops.last_mut()?;
        match parser.parse_into(slot, &input[at..], keys) {
            Parsed::Complete { message: (), consumed } => {
                at += consumed;
                *done += consumed;
                match slot {
                    Op::Data { command, .. } => hashes.push(Store::hash(command.key())),
                    // The answer decides how the next request is parsed.
                    Op::Authenticate { .. } => return None,
                    _ => {}
                }
            }
            Parsed::NeedMore { at_least, consumed } => {
                ops.pop();
                *done += consumed;
                return Some(at_least);
            }
            Parsed::ScratchFull => {
                ops.pop();
                return None;
            }
        }
    }
    None
}

/// The vector's memory, for ops that borrow from another input.
pub(super) fn recycle(mut ops: Vec<Op<'_>>) -> Vec<Op<'static>> {
    ops.clear();
    // Nothing to convert, and source and target are alike, so the allocation is taken over.
    ops.into_iter().map(|_| Op::Quit).collect()
}

#[derive(PartialEq, Eq)]
pub(super) enum After {
    Next,
    Close,
}

pub(super) struct ToClient<'a, 'r, 's> {
    pub(super) reply: &'a Reply<'r>,
    /// Reads of the cache that may be answered straight from it; `None` where none may.
    pub(super) reads: Option<&'a mut Reads<'s>>,
    pub(super) replies: &'a mut Vec<u8>,
    pub(super) output: &'a mut Output,
    pub(super) pinned: &'a mut Share,
    /// Set when the answer could not be given and the connection must end.
    pub(super) failed: &'a mut bool,
}

impl Sink for ToClient<'_, '_, '_> {
    #[inline]
    fn append(&mut self, read: &PlainRead<'_>) -> Appended<()> {
        let Self { reply, reads: Some(reads), replies, .. } = self else { return Appended::Undone };
        let appended = read.append(reads, replies, |item, replies| reply.begin_hit(item, replies));
        match appended {
            Appended::Hit(end) => {
                replies.extend_from_slice(end.unwrap_or_default());
                Appended::Hit(None)
            }
            Appended::Miss => Appended::Miss,
            Appended::Undone => Appended::Undone,
        }
    }

    #[inline]
    fn hit(self, item: &ItemMeta, value: Value<'_>) {
        match value {
            Value::Inline(bytes) => {
                if let Some(end) = self.reply.begin_hit(item, self.replies) {
                    self.replies.extend_from_slice(bytes);
                    self.replies.extend_from_slice(end);
                }
            }
            Value::Large(pinned) => {
                let len = self.replies.len();
                let Some(end) = self.reply.begin_hit(item, self.replies) else { return };
                // Pinned, the value keeps its memory from other items until the client took it.
                if self.pinned.resize(self.output.large_len() + item.value_len) {
                    self.output.push_bytes(self.replies);
                    self.output.push_large(pinned, item.value_len);
                    self.replies.extend_from_slice(end);
                } else {
                    // In the middle of a retrieval the client could not tell what is missing.
                    self.replies.truncate(len);
                    self.replies.extend_from_slice(OUT_OF_MEMORY_WRITING);
                    *self.failed = true;
                }
            }
        }
    }

    fn outcome(self, outcome: &Outcome) {
        let value_follows = self.reply.encode(outcome, self.replies);
        debug_assert!(value_follows.is_none(), "only hits have values");
    }
}

const OUT_OF_MEMORY_WRITING: &[u8] = b"SERVER_ERROR out of memory writing get response\r\n";

/// Executes one request and writes its answer. `reads` are of the default cache.
pub(super) fn answer(
    parser: &mut Parser,
    context: &mut Context<'_>,
    op: &Op<'_>,
    hashes: &mut impl Iterator<Item = u64>,
    reads: &mut Reads<'_>,
    replies: &mut Vec<u8>,
) -> After {
    let node = context.node;
    let cache = node.default_cache();
    match op {
        Op::Data { command, reply } => {
            let Some(hash) = hashes.next() else { return After::Close };
            if reply.is_meta() {
                context.worker.counters.cmd_meta.add(1);
            }
            let mut failed = false;
            let sink = ToClient {
                reply,
                reads: Some(reads),
                replies,
                output: context.output,
                pinned: context.pinned,
                failed: &mut failed,
            };
            execute(cache, command, hash, context.now_ms, sink);
            if failed {
                return After::Close;
            }
        }
        Op::TooLarge { key, delete, reply } => {
            if *delete {
                let hash = Store::hash(key);
                let delete = kiln_protocol::command::Command::Delete(Delete::plain(key));
                execute(cache, &delete, hash, context.now_ms, Discard);
            }
            cache.store.count_too_large(Store::hash(key));
            let _ = reply.encode(&Outcome::TooLarge, replies);
        }
        Op::FlushAll { when, noreply } => {
            let at_ms = match *when {
                FlushTime::Now => None,
                FlushTime::After(ms) => Some(context.now_ms.saturating_add(ms)),
                FlushTime::At(ms) => Some(ms),
            };
            cache.flush(at_ms, context.now_ms);
            say(lines::OK, *noreply, replies);
        }
        Op::Version => write_version(PROTOCOL_VERSION, replies),
        Op::MetaNoop => replies.extend_from_slice(lines::META_NOOP),
        Op::MetaDebug { key, reply } => {
            let clock_ms = cache.clock_ms(context.now_ms, node.cluster.get().map(|c| &**c));
            let item = cache.store.peek(key, Store::hash(key), clock_ms);
            let item = item.map(|info| meta(&info, context.now_ms));
            let described =
                item.as_ref().map(|item| (item, key.len() + item.value_len + ITEM_OVERHEAD));
            reply.encode(described, replies);
        }
        Op::Stats(Stats::Reset) => {
            reads.settle();
            cache.store.reset_stats();
            replies.extend_from_slice(lines::RESET);
        }
        Op::Stats(which) => {
            reads.settle();
            stats::answer(node, *which, context.now_ms, replies);
        }
        Op::Verbosity { level, noreply } => {
            tracing::debug!(level, "a client asked for verbosity; set log_level instead");
            say(lines::OK, *noreply, replies);
        }
        Op::CacheMemlimit { mebibytes, noreply } => {
            let done = node.set_memory((*mebibytes as usize).saturating_mul(1 << 20));
            say(if done { lines::OK } else { lines::MEMLIMIT_FAILED }, *noreply, replies);
        }
        Op::Authenticate { credentials } => {
            context.worker.counters.auth_cmds.add(1);
            if node.auth.as_ref().is_none_or(|auth| auth.check(credentials)) {
                parser.authenticated();
                replies.extend_from_slice(lines::AUTHENTICATED);
            } else {
                context.worker.counters.auth_errors.add(1);
                replies.extend_from_slice(lines::AUTHENTICATION_FAILURE);
            }
        }
        Op::Shutdown { graceful } => {
            node.shutdown.begin(if *graceful {
                "graceful shutdown by a client"
            } else {
                "shutdown by a client"
            });
            return After::Close;
        }
        Op::Quit => return After::Close,
        Op::Answer { reply } => replies.extend_from_slice(reply),
        Op::Reject { reply, close } => {
            context.worker.counters.protocol_errors.add(1);
            replies.extend_from_slice(reply);
            if *close {
                return After::Close;
            }
        }
    }
    After::Next
}

fn say(line: &[u8], noreply: bool, replies: &mut Vec<u8>) {
    if !noreply {
        replies.extend_from_slice(line);
    }
}

/// For commands whose outcome nobody asked for.
struct Discard;

impl Sink for Discard {
    fn hit(self, _: &ItemMeta, _: Value<'_>) {}
    fn outcome(self, _: &Outcome) {}
}
