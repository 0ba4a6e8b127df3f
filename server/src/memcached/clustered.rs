//! The requests of one read, where other nodes have a say.
//!
//! Requests are run in order. Reads that this node may answer alone are; the first request that it
//! may not begins a *wave*: it and those behind it, as long as they are for different keys, go to
//! the replication core together, and the connection waits. Their bytes stay with the connection
//! and are parsed again when the answers are there, so nothing of a request is copied but what
//! other nodes need. A read behind a write of the same key waits for the next wave: a client sees
//! its own writes.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use kiln_cluster::ids::Generation;
use kiln_cluster::node::Reply as CoreReply;
use kiln_engine::Store;
use kiln_protocol::command::{Command, Delete, Outcome, Reason};
use kiln_protocol::memcached::{FlushTime, Op, Parser, lines};

use super::Memcached;
use super::batch::{self, After, BATCH_MAX, BatchMemory, ToClient};
use crate::cluster::{self, Asked, Cluster, PATIENCE_MS, Wave};
use crate::connection::{Context, Then, WorkerMemory};
use crate::execute::{Sink, read_directly};
use crate::op_times::KindCounts;

/// Requests that wait for other nodes.
#[derive(Debug)]
pub(crate) struct Pending {
    wave: Arc<Wave>,
    /// One for each request.
    slots: Vec<Slot>,
}

/// Where the answer to a request comes from.
#[derive(Clone, Debug)]
enum Slot {
    /// The wave: so many of its answers.
    Wave(usize),
    /// A wave before.
    Answered(CoreReply),
    /// This node, when the answers before it are out.
    Here,
    /// It is known.
    Known(Outcome),
}

impl Slot {
    /// The same without its wave.
    fn answered(&self, answers: &mut [Option<CoreReply>]) -> Self {
        match self {
            Self::Wave(place) => {
                let reply = answers.get_mut(*place).and_then(Option::take);
                Self::Answered(reply.unwrap_or(CoreReply::Indeterminate))
            }
            other => other.clone(),
        }
    }
}

impl Pending {
    pub(super) fn poll(&self, task: &task::Context<'_>) -> Poll<()> {
        self.wave.poll(task)
    }
}

/// Runs all complete requests in `input` that need not wait. Returns how many bytes are done with,
/// and what next.
pub(super) fn run(
    session: &mut Memcached,
    cluster: &Arc<Cluster>,
    context: &mut Context<'_>,
    input: &[u8],
    memory: &mut WorkerMemory,
) -> (usize, Then) {
    let WorkerMemory { replies, memcached, sampler, kinds, waits: kinds_waiting, .. } = memory;
    let BatchMemory { ops: kept_ops, hashes, keys } = memcached;
    let mut done = 0;
    loop {
        if session.pending.as_ref().is_some_and(|pending| !pending.wave.is_done()) {
            return (done, Then::Wait);
        }
        let pending = session.pending.take();
        keys.clear();
        hashes.clear();
        let parser = &mut session.parser;
        let mut ops: Vec<Op<'_>> = std::mem::take(kept_ops);
        let start = (parser.clone(), done);
        let ops_max = pending.as_ref().map_or(BATCH_MAX, |pending| pending.slots.len());
        let rest = batch::parse(parser, &input[done..], keys, &mut ops, ops_max, hashes, &mut done);
        let mut turn = Turn { cluster, context, hashes, at: 0, parser };
        let ran = match &pending {
            Some(pending) => turn.answer_wave(pending, &ops, replies),
            None => {
                if let Some(place) = sampler.pick(turn.hashes.len()) {
                    batch::count_key(turn.context, &ops, place, turn.hashes[place]);
                }
                let ran = turn.run(&ops, replies);
                turn.note(&ops[..ran.done], 0, kinds);
                ran
            }
        };
        let left = ops.len() - ran.done;
        let waits = ran.wait || ran.anew.is_some();
        if let Some(anew) = ran.anew {
            session.pending = Some(anew);
        } else if ran.wait {
            let first_hash = turn.at;
            let begun = turn.begin_wave(&ops[ran.done..], first_hash);
            // Those behind them are read again, and counted then.
            let waiting = &ops[ran.done..][..begun.slots.len()];
            turn.note(waiting, first_hash, kinds_waiting);
            session.pending = Some(begun);
        }
        *kept_ops = batch::recycle(ops);
        if ran.close {
            return (input.len(), Then::Close);
        }
        if left > 0 {
            // The parser goes back and forth again over what was run.
            (session.parser, done) = start;
            keys.clear();
            let mut ops: Vec<Op<'_>> = std::mem::take(kept_ops);
            let mut hashes = Vec::new();
            let parser = &mut session.parser;
            let input = &input[done..];
            batch::parse(parser, input, keys, &mut ops, ran.done, &mut hashes, &mut done);
            *kept_ops = batch::recycle(ops);
            if waits {
                return (done, Then::Wait);
            }
            if pending.is_none() {
                context.worker.counters.conn_yields.add(1);
            }
            return (done, Then::Write);
        }
        if pending.is_none()
            && let Some(at_least) = rest
        {
            return (done, Then::Read { at_least });
        }
        if replies.len() + context.output.len() >= context.replies_max {
            return (done, Then::Write);
        }
    }
}

/// What came of a run through requests.
struct Ran {
    /// So many were answered.
    done: usize,
    /// The next one has to wait for other nodes.
    wait: bool,
    close: bool,
    /// It waits already.
    anew: Option<Pending>,
}

struct Turn<'a, 'c, 'h> {
    cluster: &'a Arc<Cluster>,
    context: &'a mut Context<'c>,
    hashes: &'h [u64],
    /// Of which hash it is the turn.
    at: usize,
    parser: &'a mut Parser,
}

impl Turn<'_, '_, '_> {
    /// Counts requests, whose hashes begin at a place.
    fn note(&self, ops: &[Op<'_>], first_hash: usize, kinds: &mut KindCounts) {
        let cache = self.context.node.default_cache();
        let hashes = self.hashes.get(first_hash..).unwrap_or_default();
        let noted = batch::note_kinds(cache, ops, hashes, kinds);
        self.context.worker.counters.memcached_ops.add(noted);
    }

    /// Runs requests up to the first that has to wait.
    fn run(&mut self, ops: &[Op<'_>], replies: &mut Vec<u8>) -> Ran {
        for (done, op) in ops.iter().enumerate() {
            if replies.len() + self.context.output.len() >= self.context.replies_max && done > 0 {
                return Ran { done, wait: false, close: false, anew: None };
            }
            let close = match op {
                Op::Data { command, reply } => {
                    let Some(&hash) = self.hashes.get(self.at) else { break };
                    let mut failed = false;
                    let sink = ToClient {
                        reply,
                        reads: None,
                        replies,
                        output: self.context.output,
                        pinned: self.context.pinned,
                        failed: &mut failed,
                    };
                    let cache = self.context.node.default_cache();
                    let now_ms = self.context.now_ms;
                    if !read_directly(self.cluster, cache, command, hash, now_ms, true, sink) {
                        return Ran { done, wait: true, close: false, anew: None };
                    }
                    self.at += 1;
                    if reply.is_meta() {
                        self.context.worker.counters.cmd_meta.add(1);
                    }
                    failed
                }
                Op::TooLarge { delete: true, .. } | Op::FlushAll { .. } => {
                    return Ran { done, wait: true, close: false, anew: None };
                }
                other => {
                    let mut none = std::iter::empty();
                    let mut reads = self.context.node.default_cache().store.reads();
                    batch::answer(self.parser, self.context, other, &mut none, &mut reads, replies)
                        == After::Close
                }
            };
            if close {
                return Ran { done, wait: false, close: true, anew: None };
            }
        }
        Ran { done: ops.len(), wait: false, close: false, anew: None }
    }

    /// Answers requests whose wave has come back, up to the first that has to wait anew.
    fn answer_wave(&mut self, pending: &Pending, ops: &[Op<'_>], replies: &mut Vec<u8>) -> Ran {
        let mut answers: Vec<Option<CoreReply>> =
            pending.wave.take().into_iter().map(Some).collect();
        for (done, (op, slot)) in ops.iter().zip(&pending.slots).enumerate() {
            let mut failed = false;
            match op {
                Op::Data { command, reply } => {
                    let Some(&hash) = self.hashes.get(self.at) else { break };
                    if reply.is_meta() {
                        self.context.worker.counters.cmd_meta.add(1);
                    }
                    let now_ms = self.context.now_ms;
                    let sink = ToClient {
                        reply,
                        reads: None,
                        replies,
                        output: self.context.output,
                        pinned: self.context.pinned,
                        failed: &mut failed,
                    };
                    match slot.answered(&mut answers) {
                        Slot::Wave(_) => sink.outcome(&Outcome::Indeterminate),
                        Slot::Answered(reply) => {
                            cluster::answer(reply, command, now_ms).tell(sink);
                        }
                        Slot::Known(outcome) => sink.outcome(&outcome),
                        Slot::Here => {
                            let cache = self.context.node.default_cache();
                            let cluster = self.cluster;
                            if !read_directly(cluster, cache, command, hash, now_ms, true, sink) {
                                // This one alone is asked for. Those behind it have been carried
                                // out.
                                let anew =
                                    self.ask_anew(command, &pending.slots[done + 1..], answers);
                                return Ran { done, wait: false, close: false, anew: Some(anew) };
                            }
                        }
                    }
                    self.at += 1;
                }
                Op::TooLarge { key, reply, .. } => {
                    let cache = self.context.node.default_cache();
                    cache.store.count_too_large(Store::hash(key));
                    let _ = reply.encode(&Outcome::TooLarge, replies);
                }
                Op::FlushAll { noreply, .. } => {
                    let mut replied = answers.iter_mut().filter_map(Option::take);
                    let all = replied.all(|reply| matches!(reply, CoreReply::Done(_)));
                    let begun = matches!(slot, Slot::Known(Outcome::Deleted));
                    let line = if all && begun { lines::OK } else { FLUSH_FAILED };
                    if !noreply {
                        replies.extend_from_slice(line);
                    }
                }
                _ => {}
            }
            if failed {
                return Ran { done, wait: false, close: true, anew: None };
            }
        }
        Ran { done: ops.len(), wait: false, close: false, anew: None }
    }

    /// Hands one request to the core, whose answer comes before others that are known.
    fn ask_anew(
        &self,
        command: &Command<'_>,
        behind: &[Slot],
        mut answers: Vec<Option<CoreReply>>,
    ) -> Pending {
        let (asked, first) = match self.ask_for(command) {
            Ok(asked) => (vec![asked], Slot::Wave(0)),
            Err(known) => (Vec::new(), known),
        };
        let behind = behind.iter().map(|slot| slot.answered(&mut answers));
        let slots = std::iter::once(first).chain(behind).collect();
        Pending { wave: self.cluster.submit(asked), slots }
    }

    /// Hands requests to the core: those from the first on that can be under way together.
    fn begin_wave(&mut self, ops: &[Op<'_>], first_hash: usize) -> Pending {
        let mut asked = Vec::new();
        let mut slots = Vec::new();
        let mut keys: Vec<u64> = Vec::new();
        let mut hashes = self.hashes[first_hash..].iter();
        let cache = self.context.node.default_cache();
        for op in ops {
            match op {
                Op::Data { command, .. } => {
                    let Some(&hash) = hashes.next() else { break };
                    if keys.contains(&hash) {
                        break;
                    }
                    let here = matches!(command, Command::Get(_)) && !slots.is_empty();
                    if here && may_read(self.cluster, cache, command, hash) {
                        slots.push(Slot::Here);
                        continue;
                    }
                    match self.ask_for(command) {
                        Ok(request) => {
                            keys.push(hash);
                            slots.push(Slot::Wave(asked.len()));
                            asked.push(request);
                        }
                        Err(known) => slots.push(known),
                    }
                }
                Op::TooLarge { key, delete: true, .. } => {
                    let hash = Store::hash(key);
                    if keys.contains(&hash) {
                        break;
                    }
                    let delete = Command::Delete(Delete::plain(key));
                    if let Ok(request) = self.ask_for(&delete) {
                        keys.push(hash);
                        slots.push(Slot::Wave(asked.len()));
                        asked.push(request);
                    }
                }
                // Alone, because it is about all keys.
                Op::FlushAll { when, .. } if slots.is_empty() => return self.flush(*when),
                _ => break,
            }
        }
        Pending { wave: self.cluster.submit(asked), slots }
    }

    /// A command for the core, or what is known of it without.
    fn ask_for(&self, command: &Command<'_>) -> Result<Asked, Slot> {
        let refused = |reason| Slot::Known(Outcome::NotApplied(reason));
        let operation = cluster::operation(command).map_err(refused)?;
        let Some(known) = self.context.node.default_cache().cluster() else {
            return Err(refused(Reason::NotReady));
        };
        // A loss has no word in this protocol: nothing is asked to be told of it.
        let seen = Generation(u64::MAX);
        let key = Bytes::copy_from_slice(command.key());
        Ok(Asked::new(known, key, operation, seen, PATIENCE_MS))
    }

    /// Clears the cache on all nodes.
    fn flush(&self, when: FlushTime) -> Pending {
        let after_ms = match when {
            FlushTime::Now => 0,
            FlushTime::After(ms) => ms,
            FlushTime::At(ms) => ms.saturating_sub(self.context.now_ms),
        };
        let failed = Slot::Known(Outcome::NotApplied(Reason::Busy));
        let done = Slot::Known(Outcome::Deleted);
        let Some(known) = self.context.node.default_cache().cluster() else {
            return Pending { wave: Wave::new(0), slots: vec![failed] };
        };
        if after_ms == 0 {
            return Pending { wave: self.cluster.clear(known), slots: vec![done] };
        }
        let later = self.cluster.clear_later(known, Duration::from_millis(after_ms));
        Pending { wave: Wave::new(0), slots: vec![if later { done } else { failed }] }
    }
}

const FLUSH_FAILED: &[u8] = b"SERVER_ERROR not all of the cache could be flushed; try again\r\n";

fn may_read(
    cluster: &Cluster,
    cache: &crate::caches::Cache,
    command: &Command<'_>,
    hash: u64,
) -> bool {
    crate::execute::is_plain_read(command)
        && cache.cluster().is_some_and(|known| known.ticket(hash, cluster.mono()).is_some())
}
