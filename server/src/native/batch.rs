//! The requests of one read, together: parsed whole, prefetched, executed in order. Why, is told
//! in `memcached::batch`; here the requests of a batch may be for several caches.

use std::sync::Arc;

use kiln_engine::{Ahead, Store};
use kiln_protocol::{
    Parsed,
    command::Command,
    native::{Body, ErrorCode, Failure, FrameError, ItemHead, Items, Op, Request, respond},
};

use crate::{
    caches::{Cache, Table},
    cluster::Cluster,
    connection::{Context, Then, WorkerMemory},
    native::{
        BATCH_OPS_MAX, admin,
        clustered::{self, Way},
        item::{self, Answer},
        scan,
        session::{Found, Native},
    },
    op_times::{self, KindCounts},
};

/// Requests parsed ahead and prefetched together.
const AHEAD_MAX: usize = 64;

/// Scratch memory that stays with a worker is not longer than this.
const KEPT_MAX: usize = 256 * 1024;

/// Memory for one batch at a time: one per worker, used by its connections in turn.
#[derive(Default)]
pub(crate) struct BatchMemory {
    /// Empty between batches; kept for its memory.
    requests: Vec<Ready<'static, 'static>>,
    hashes: Vec<u64>,
    pub(super) scratch: Scratch,
}

/// Bytes that are needed for as long as one request.
#[derive(Default)]
pub(super) struct Scratch {
    /// Values as they come out of the store or out of compression.
    pub(super) plain: Vec<u8>,
    /// Values as they go into compression's other side.
    pub(super) packed: Vec<u8>,
    pub(super) page: scan::Page,
}

impl Scratch {
    fn shrink(&mut self) {
        for buffer in [&mut self.plain, &mut self.packed] {
            buffer.clear();
            buffer.shrink_to(KEPT_MAX);
        }
    }
}

/// A request that was read.
pub(super) enum Ready<'a, 't> {
    Item {
        head: ItemHead<'a>,
        found: Option<Found<'t>>,
        end: usize,
    },
    Batch {
        id: u32,
        found: Option<Found<'t>>,
        items: Items<'a>,
        end: usize,
    },
    Ping {
        id: u32,
        end: usize,
    },
    /// Anything that is rare. What comes behind it is read after it was executed: it may change
    /// how that is read.
    Rare {
        request: Box<Request<'a>>,
        end: usize,
    },
    /// An answer that is known already.
    Refused {
        id: u32,
        code: ErrorCode,
        what: &'static str,
        end: usize,
    },
    /// The stream cannot be followed any further.
    Broken {
        code: ErrorCode,
        text: Box<str>,
    },
}

impl Ready<'_, '_> {
    /// Where the request ends in the input of its batch.
    pub(super) fn end(&self) -> usize {
        match self {
            Self::Item { end, .. }
            | Self::Batch { end, .. }
            | Self::Ping { end, .. }
            | Self::Rare { end, .. }
            | Self::Refused { end, .. } => *end,
            Self::Broken { .. } => 0,
        }
    }
}

/// Runs all complete requests in `input`. Returns how many bytes are done with, and what next.
pub(super) fn run(
    session: &mut Native,
    way: Way<'_>,
    context: &mut Context<'_>,
    input: &[u8],
    memory: &mut WorkerMemory,
) -> (usize, Then) {
    let WorkerMemory { replies, native, sampler, kinds, waits, .. } = memory;
    let BatchMemory { requests: kept, hashes, scratch } = native;
    let mut done = 0;
    loop {
        // Each time anew: a request of the last pass may have changed the caches.
        let table = context.node.caches.load();
        if session.pending.as_ref().is_some_and(|pending| !pending.is_done()) {
            return (done, Then::Wait);
        }
        if let Some(cluster) = way.cluster()
            && let Some(pending) = session.pending.take()
        {
            let input = &input[done..];
            let finished = clustered::finish(
                session, cluster, context, &table, input, pending, replies, scratch,
            );
            done += finished.consumed;
            let piled_up = replies.len() + context.output.len() >= context.replies_max;
            match (finished.waits, piled_up) {
                (true, _) => return (done, Then::Wait),
                (false, true) => return (done, Then::Write),
                (false, false) => continue,
            }
        }
        let mut requests: Vec<Ready<'_, '_>> = std::mem::take(kept);
        hashes.clear();
        let rest = read(session, &table, &input[done..], &mut requests, hashes, AHEAD_MAX);
        if session.is_open
            && let Some(place) = sampler.pick(requests.len())
        {
            count_key(context, &requests[place], hashes[place]);
        }
        let last = requests.len();
        // Of these: what is not run now is read again, and counted then.
        let mut ran = last;
        let mut left = Left::All;
        let mut operations = 0;
        let mut ahead: Option<Ahead<'_>> = None;
        let mut begins = done;
        for (number, request) in (1..).zip(&requests) {
            if let Some(cluster) = waits_for(session, &table, way, request) {
                let at_once = match request {
                    Ready::Item { head, found: Some(found), .. } => {
                        ahead = None;
                        let hash = hashes[number - 1];
                        clustered::try_at_once(
                            session, cluster, context, *found, head, hash, replies, scratch,
                        )
                    }
                    _ => false,
                };
                if !at_once {
                    let (requests, hashes) = (&requests[number - 1..], &hashes[number - 1..]);
                    let pending = clustered::begin(
                        session, cluster, context, &table, requests, hashes, waits,
                    );
                    ran = number - 1;
                    operations += pending.operations();
                    session.pending = Some(pending);
                    left = Left::Waiting(begins);
                    break;
                }
                operations += 1;
                begins = done + request.end();
                if number == last {
                    done = begins;
                }
                continue;
            }
            let after = match request {
                Ready::Item { head, found, .. } if session.is_open => {
                    operations += 1;
                    let hash = match ahead.as_mut().and_then(Iterator::next) {
                        Some(hash) => hash,
                        None => begin_run(&requests, hashes, number - 1, &mut ahead),
                    };
                    item::run_frame(session, context, *found, head, hash, replies, scratch);
                    After::Next
                }
                request => {
                    let mut rare = RareContext { session, context, table: &table, scratch, kinds };
                    rare.run(request, &mut operations, replies)
                }
            };
            let end = done + request.end();
            begins = end;
            if after == After::Close {
                ran = number;
                left = Left::Nothing;
                break;
            }
            let piled_up = replies.len() + context.output.len() >= context.replies_max;
            if piled_up && number < last {
                ran = number;
                left = Left::From(end);
                break;
            }
            if number == last {
                done = end;
            }
        }
        note_kinds(&requests[..ran], hashes, kinds);
        context.worker.counters.native_ops.add(operations);
        scratch.shrink();
        *kept = recycle(requests);
        match left {
            Left::Nothing => return (input.len(), Then::Close),
            Left::From(end) => {
                context.worker.counters.conn_yields.add(1);
                return (end, Then::Write);
            }
            Left::Waiting(at) => return (at, Then::Wait),
            Left::All => {}
        }
        if let Some(at_least) = rest {
            return (done, Then::Read { at_least });
        }
        if replies.len() + context.output.len() >= context.replies_max {
            return (done, Then::Write);
        }
    }
}

/// What of the requests read is still to be run.
enum Left {
    All,
    From(usize),
    /// From here on they wait for other nodes.
    Waiting(usize),
    Nothing,
}

/// The cluster, if a request has to pass it.
#[inline]
fn waits_for<'a>(
    session: &Native,
    table: &Table,
    way: Way<'a>,
    request: &Ready<'_, '_>,
) -> Option<&'a Cluster> {
    if matches!(way, Way::Alone) || !session.is_open {
        return None;
    }
    let flushes_here = |cache| {
        let found = session.find(table, cache);
        found.is_none_or(|found| way.of(found.cache).is_none())
    };
    match request {
        Ready::Item { found: Some(found), .. } => way.of(found.cache),
        Ready::Batch { found: Some(found), items, .. } if items.len() <= BATCH_OPS_MAX => {
            way.of(found.cache)
        }
        Ready::Rare { request, .. } => match &request.body {
            Body::Flush { cache } if flushes_here(*cache) => None,
            body if clustered::is_for_control(body) => way.cluster(),
            _ => None,
        },
        _ => None,
    }
}

#[derive(PartialEq, Eq)]
enum After {
    Next,
    Close,
}

/// Counts operations by kind, and shows reads to the miss-ratio curves. What is in a batch is counted
/// where it is run.
fn note_kinds(requests: &[Ready<'_, '_>], hashes: &[u64], kinds: &mut KindCounts) {
    // Reads of one cache that follow each other are counted together.
    let mut run: Option<(&Cache, u64)> = None;
    for (request, &hash) in requests.iter().zip(hashes) {
        let Ready::Item { head, found: Some(found), .. } = request else { continue };
        kinds[match head.op() {
            Op::Get => {
                found.cache.curve.read(hash);
                match &mut run {
                    Some((cache, reads)) if cache.id == found.cache.id => *reads += 1,
                    _ => {
                        if let Some((cache, reads)) = run.replace((found.cache.as_ref(), 1)) {
                            cache.curve.count(reads);
                        }
                    }
                }
                0
            }
            Op::Delete => 2,
            Op::Increment | Op::Decrement => 3,
            Op::Touch => 4,
            _ => 1,
        }] += 1;
    }
    if let Some((cache, reads)) = run {
        cache.curve.count(reads);
    }
}

/// Counts the key that a request asks for.
#[cold]
fn count_key(context: &Context<'_>, request: &Ready<'_, '_>, hash: u64) {
    if let Ready::Item { head, found: Some(found), .. } = request {
        context.worker.hottest.lock().count(found.cache.id, head.key, hash);
    }
}

/// Reads up to so many requests, and gives each a hash: that of its key, if it has one. Returns how many
/// bytes the next one needs, or `None` when there may be more in the input.
pub(super) fn read<'a, 't>(
    session: &Native,
    table: &'t Table,
    input: &'a [u8],
    requests: &mut Vec<Ready<'a, 't>>,
    hashes: &mut Vec<u64>,
    requests_max: usize,
) -> Option<usize> {
    let mut at = 0;
    while requests.len() < requests_max {
        let body = match session.frames.next(&input[at..]) {
            Ok(Parsed::Complete { message, consumed }) => {
                at += consumed;
                message
            }
            Ok(Parsed::NeedMore { at_least, .. }) => return Some(at_least),
            Ok(Parsed::ScratchFull) => return None,
            Err(error) => {
                requests.push(broken(&error));
                hashes.push(0);
                return None;
            }
        };
        let end = at;
        if let Some(head) = ItemHead::read(body) {
            let found = session.find(table, head.cache);
            hashes.push(Store::hash(head.key));
            requests.push(Ready::Item { head, found, end });
            continue;
        }
        hashes.push(0);
        match Request::decode(body) {
            Ok(Request { id, body: Body::Batch { cache, items } }) => {
                let found = session.find(table, cache);
                requests.push(Ready::Batch { id, found, items, end });
            }
            Ok(Request { id, body: Body::Ping }) => requests.push(Ready::Ping { id, end }),
            Ok(request) => {
                requests.push(Ready::Rare { request: Box::new(request), end });
                return None;
            }
            Err(refused) => match refused.id {
                Some(id) => {
                    let (code, what) = (refused.code, refused.what);
                    requests.push(Ready::Refused { id, code, what, end });
                }
                None => {
                    let text = refused.what.into();
                    requests.push(Ready::Broken { code: refused.code, text });
                    return None;
                }
            },
        }
    }
    None
}

fn broken<'a, 't>(error: &FrameError) -> Ready<'a, 't> {
    let code = match error {
        FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
        FrameError::Empty => ErrorCode::Malformed,
    };
    Ready::Broken { code, text: error.to_string().into() }
}

/// Begins a run of operations on one cache, at `place`: what they need is asked for ahead of them.
/// Returns the first one's hash.
fn begin_run<'h>(
    requests: &[Ready<'_, 'h>],
    hashes: &'h [u64],
    place: usize,
    ahead: &mut Option<Ahead<'h>>,
) -> u64 {
    let cache = |request: &Ready<'_, 'h>| match request {
        Ready::Item { found, .. } => found.map(|found| found.cache),
        _ => None,
    };
    *ahead = None;
    let Some(first) = cache(&requests[place]) else { return hashes[place] };
    let same = |request: &&Ready<'_, 'h>| cache(request).is_some_and(|one| Arc::ptr_eq(one, first));
    let len = requests[place..].iter().take_while(same).count();
    let run = ahead.insert(first.store.ahead(&hashes[place..place + len]));
    run.next().unwrap_or(hashes[place])
}

/// The vector's memory, for requests that borrow from another input.
fn recycle(mut requests: Vec<Ready<'_, '_>>) -> Vec<Ready<'static, 'static>> {
    requests.clear();
    // Nothing to convert, and source and target are alike, so the allocation is taken over.
    requests.into_iter().map(|_| Ready::Ping { id: 0, end: 0 }).collect()
}

/// What requests that are not on one item need.
struct RareContext<'a, 'c> {
    session: &'a mut Native,
    context: &'a mut Context<'c>,
    table: &'a Table,
    scratch: &'a mut Scratch,
    kinds: &'a mut KindCounts,
}

impl RareContext<'_, '_> {
    fn run(
        &mut self,
        request: &Ready<'_, '_>,
        operations: &mut u64,
        replies: &mut Vec<u8>,
    ) -> After {
        match request {
            Ready::Broken { code, text } => {
                self.context.worker.counters.protocol_errors.add(1);
                respond::failure_of_connection(replies, &Failure::refused(*code, text));
                return After::Close;
            }
            Ready::Refused { id, code, what, .. } if self.session.is_open => {
                self.context.worker.counters.protocol_errors.add(1);
                respond::failure(replies, *id, &Failure::refused(*code, what));
            }
            Ready::Rare { request, .. } => {
                let id = request.id;
                if let Body::Hello(hello) = &request.body {
                    let welcome = self.session.hello(self.context, id, hello, replies);
                    return if welcome { After::Next } else { After::Close };
                }
                if !self.session.is_open {
                    return self.no_hello(replies);
                }
                match &request.body {
                    Body::Scan(scan) => match self.session.find(self.table, scan.cache) {
                        Some(found) => {
                            scan::run(self.context, found.cache, id, scan, replies, self.scratch);
                        }
                        None => no_such_cache(replies, id),
                    },
                    body => {
                        admin::run(self.session, self.context, self.table, id, body, replies);
                    }
                }
            }
            _ if !self.session.is_open => return self.no_hello(replies),
            Ready::Ping { id, .. } => respond::ok(replies, *id),
            Ready::Batch { id, found, items, .. } => {
                *operations += items.len() as u64;
                self.batch(*id, *found, *items, replies);
            }
            Ready::Item { .. } | Ready::Refused { .. } => {}
        }
        After::Next
    }

    fn no_hello(&self, replies: &mut Vec<u8>) -> After {
        self.context.worker.counters.protocol_errors.add(1);
        let failure = Failure::refused(ErrorCode::BadHello, "the first request must be hello");
        respond::failure_of_connection(replies, &failure);
        After::Close
    }

    fn batch(
        &mut self,
        id: u32,
        found: Option<Found<'_>>,
        items: Items<'_>,
        replies: &mut Vec<u8>,
    ) {
        if items.len() > BATCH_OPS_MAX {
            let text = "a batch has more operations than hello announced";
            return respond::failure(replies, id, &Failure::refused(ErrorCode::BadArgument, text));
        }
        let Some(found) = found else { return no_such_cache(replies, id) };
        let start = (id != 0).then(|| respond::begin_batch(replies, id, items.len()));
        let body_start = replies.len();
        let len_max = self.session.gathered_len_max;
        let mut ahead = items;
        let mut items = items;
        let mut reads = 0;
        while items.len() > 0 {
            let hashes: [u64; AHEAD_MAX] = std::array::from_fn(|_| {
                ahead.next().map_or(0, |item| Store::hash(item.command.key()))
            });
            let count = items.len().min(AHEAD_MAX);
            for hash in found.cache.store.ahead(&hashes[..count]) {
                let Some(item) = items.next() else { break };
                self.kinds[op_times::kind(&item.command)] += 1;
                if matches!(item.command, Command::Get(_)) {
                    found.cache.curve.read(hash);
                    reads += 1;
                }
                let answer = match start {
                    None => Answer::None,
                    Some(_) => {
                        // What the rest needs if all of it is short is set aside.
                        let used = replies.len() - body_start;
                        let spared = (items.len() + 1) * item::SHORT_ANSWER_MAX;
                        Answer::Element { room: len_max.saturating_sub(used + spared) }
                    }
                };
                let Self { session, context, scratch, .. } = self;
                item::run(session, context, found, &item, hash, answer, replies, scratch);
            }
        }
        if reads > 0 {
            found.cache.curve.count(reads);
        }
        if let Some(start) = start {
            kiln_protocol::native::end_frame(replies, start);
        }
    }
}

pub(super) fn no_such_cache(replies: &mut Vec<u8>, id: u32) {
    respond::failure(replies, id, &Failure::refused(ErrorCode::NoSuchCache, NO_SUCH_CACHE));
}

/// The text of the error.
pub(super) const NO_SUCH_CACHE: &str =
    "there is no such cache, or it was dropped since it was opened";
