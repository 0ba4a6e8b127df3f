//! Requests for caches where other nodes have a say.
//!
//! As in `memcached::clustered`: requests run in order until one has to wait; it and those behind
//! it that are for different keys go to the replication core together, and their bytes stay with
//! the connection and are read again when the answers are there. A batch waits alone and whole: its
//! operations are under way together, so whether a read in a batch sees a write of the same batch
//! is not promised here.
//!
//! What is asked of the controller group, to make or drop a cache, waits in the same way.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{self, Poll},
};

use bytes::Bytes;
use kiln_cluster::{
    node::{Refusal, Reply as CoreReply},
    topology::TopologyCommand,
};
use kiln_engine::Store;
use kiln_protocol::{
    command::{Command, Get, Outcome},
    native::{Body, ErrorCode, Failure, Item, ItemHead, Items, Want, inflate, respond},
};

use super::{
    batch::{self, NO_SUCH_CACHE, Ready, Scratch},
    item::{self, Answer},
    session::{Found, Native},
};
use crate::{
    caches::{Cache, CacheSettings, RESERVED, Table},
    cluster::{self, Asked, Cluster, Decided, Decision, PATIENCE_MS, Wave, spec_of},
    connection::Context,
    execute::{is_plain_read, read_directly},
    op_times::{self, KindCounts},
};

/// Requests that wait.
pub(crate) enum Pending {
    /// For other nodes' copies.
    Wave {
        wave: Arc<Wave>,
        /// One for each operation.
        slots: Vec<Slot>,
        /// Requests that these are.
        requests: usize,
    },
    /// For the controller group.
    Admin { decision: Decision, decided: Option<Decided> },
}

/// Where the answer to an operation comes from.
#[derive(Clone, Debug)]
pub(crate) enum Slot {
    /// The wave: so many of its answers.
    Wave(usize),
    /// A wave before.
    Answered(CoreReply),
    /// This node, when the answers before it are out.
    Here,
    /// It is refused for what is wrong with it.
    Refused,
    /// It is known.
    Known(Outcome),
}

impl Slot {
    /// The same without its wave.
    fn answered(self, answers: &mut [Option<CoreReply>]) -> Self {
        match self {
            Self::Wave(place) => {
                let reply = answers.get_mut(place).and_then(Option::take);
                Self::Answered(reply.unwrap_or(CoreReply::Indeterminate))
            }
            other => other,
        }
    }
}

impl Pending {
    pub(super) fn poll(&mut self, task: &mut task::Context<'_>) -> Poll<()> {
        match self {
            Self::Wave { wave, .. } => wave.poll(task),
            Self::Admin { decided: Some(_), .. } => Poll::Ready(()),
            Self::Admin { decision, decided } => decision.as_mut().poll(task).map(|result| {
                *decided = Some(result);
            }),
        }
    }

    /// Operations on items that wait.
    pub(super) fn operations(&self) -> u64 {
        match self {
            Self::Wave { slots, .. } => slots.len() as u64,
            Self::Admin { .. } => 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Wave { wave, .. } => wave.is_done(),
            Self::Admin { decided, .. } => decided.is_some(),
        }
    }
}

/// How requests for a cache are run now.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// There are no other nodes, and will be none.
    Alone,
    /// There are none yet.
    Inside(&'a Cluster),
    /// There are.
    Together(&'a Cluster),
}

impl<'a> Way<'a> {
    /// The cluster, if a cache's requests have to pass it.
    #[inline]
    pub(super) fn of(self, cache: &Cache) -> Option<&'a Cluster> {
        match self {
            Self::Alone => None,
            Self::Inside(_) if cache.is_direct_alone() => None,
            Self::Inside(cluster) | Self::Together(cluster) => Some(cluster),
        }
    }

    /// The cluster, if there may be one.
    pub(super) fn cluster(self) -> Option<&'a Cluster> {
        match self {
            Self::Alone => None,
            Self::Inside(cluster) | Self::Together(cluster) => Some(cluster),
        }
    }
}

/// Answers an operation at once, if this node may do so by itself. False when it has to wait.
#[allow(clippy::too_many_arguments)] // as in `item`
pub(super) fn try_at_once(
    session: &mut Native,
    cluster: &Cluster,
    context: &mut Context<'_>,
    found: Found<'_>,
    head: &ItemHead<'_>,
    hash: u64,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) -> bool {
    let (command, want) = if head.is_plain_get() {
        let get = Get { may_refill: true, ..Get::plain(head.key) };
        (Command::Get(get), Want::default())
    } else {
        match head.item() {
            Ok(item) => (item.command, item.want),
            // It waits for nothing: the wave answers what is wrong with it.
            Err(_) => return false,
        }
    };
    let answer = Answer::Frame { id: head.id };
    here(session, cluster, context, found, &command, want, hash, answer, replies, scratch)
}

/// Answers a read from the store of this node, if it may be. Nothing was answered if not.
#[allow(clippy::too_many_arguments)]
fn here(
    session: &mut Native,
    cluster: &Cluster,
    context: &mut Context<'_>,
    found: Found<'_>,
    command: &Command<'_>,
    want: Want,
    hash: u64,
    answer: Answer,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) -> bool {
    if !is_plain_read(command) || want.deadline_ms == Some(0) {
        return false;
    }
    // Before the store is looked at. What was not possible is said by the way of the wave.
    if want.track && session.track(context.node, found, hash).is_err() {
        return false;
    }
    let now_ms = context.now_ms;
    item::answer_with(session, context, want, answer, replies, scratch, |sink| {
        // A miss may have to be told apart from a loss.
        let misses = !cluster.has_losses();
        read_directly(cluster, found.cache, command, hash, now_ms, misses, sink)
    })
}

/// Hands requests to the core: those from the first on that can be under way together. They are
/// counted in `kinds`.
pub(super) fn begin(
    session: &mut Native,
    cluster: &Cluster,
    context: &mut Context<'_>,
    table: &Table,
    requests: &[Ready<'_, '_>],
    hashes: &[u64],
    kinds: &mut KindCounts,
) -> Pending {
    let mut note = |cache: &Cache, command: &Command<'_>, hash: u64| {
        kinds[op_times::kind(command)] += 1;
        if matches!(command, Command::Get(_)) {
            cache.curve.read(hash);
            cache.curve.count(1);
        }
    };
    let mut begun = Begun::new(session, cluster, context);
    let mut keys: Vec<(u32, u64)> = Vec::new();
    let mut count = 0;
    for (request, &hash) in requests.iter().zip(hashes) {
        match request {
            Ready::Item { head, found: Some(found), .. } => {
                let key = (found.cache.id, hash);
                if keys.contains(&key) || found.cache.cluster().is_none() {
                    break;
                }
                keys.push(key);
                let item = match head.item() {
                    Ok(item) => item,
                    Err(_) => {
                        begun.slots.push(Slot::Refused);
                        count += 1;
                        continue;
                    }
                };
                note(found.cache, &item.command, hash);
                begun.add(*found, &item, hash, count > 0);
            }
            Ready::Batch { found: Some(found), items, .. } if count == 0 => {
                for item in *items {
                    let hash = Store::hash(item.command.key());
                    note(found.cache, &item.command, hash);
                    begun.add(*found, &item, hash, false);
                }
                count = 1;
                break;
            }
            Ready::Rare { request, .. } if count == 0 => {
                let decision = match &request.body {
                    Body::Flush { cache } => {
                        let found = begun.session.find(table, *cache);
                        flush(begun.context, cluster, found)
                    }
                    body => decide(begun.context, cluster, table, body),
                };
                return Pending::Admin { decision, decided: None };
            }
            _ => break,
        }
        count += 1;
    }
    let Begun { asked, slots, .. } = begun;
    Pending::Wave { wave: cluster.submit(asked), slots, requests: count }
}

struct Begun<'a, 'c> {
    session: &'a mut Native,
    cluster: &'a Cluster,
    context: &'a mut Context<'c>,
    asked: Vec<Asked>,
    slots: Vec<Slot>,
}

impl<'a, 'c> Begun<'a, 'c> {
    fn new(session: &'a mut Native, cluster: &'a Cluster, context: &'a mut Context<'c>) -> Self {
        Self { session, cluster, context, asked: Vec::new(), slots: Vec::new() }
    }

    fn add(&mut self, found: Found<'_>, item: &Item<'_>, hash: u64, may_be_here: bool) {
        let slot = self.slot(found, item, hash, may_be_here);
        self.slots.push(slot);
    }

    fn slot(&mut self, found: Found<'_>, item: &Item<'_>, hash: u64, may_be_here: bool) -> Slot {
        let Item { mut command, want } = *item;
        let mut inflated = Vec::new();
        if check(self.session, found.cache, &mut command, want, &mut inflated).is_err() {
            return Slot::Refused;
        }
        let Some(known) = found.cache.cluster() else { return Slot::Refused };
        if may_be_here
            && is_plain_read(&command)
            && known.ticket(hash, self.cluster.mono()).is_some()
        {
            return Slot::Here;
        }
        if want.track
            && matches!(command, Command::Get(_))
            && self.session.track(self.context.node, found, hash).is_err()
        {
            return Slot::Refused;
        }
        let operation = match cluster::operation(&command) {
            Ok(operation) => operation,
            Err(reason) => return Slot::Known(Outcome::NotApplied(reason)),
        };
        let seen = self.session.seen(self.cluster, known.place(self.cluster, hash));
        let within = want.deadline_ms.unwrap_or(u64::from(PATIENCE_MS));
        let within_ms = u32::try_from(within).unwrap_or(u32::MAX).min(PATIENCE_MS);
        let key = Bytes::copy_from_slice(command.key());
        self.asked.push(Asked::new(known, key, operation, seen, within_ms));
        Slot::Wave(self.asked.len() - 1)
    }
}

/// What is wrong with an operation before anything is asked. The value comes out inflated.
fn check<'a>(
    session: &Native,
    cache: &Cache,
    command: &mut Command<'a>,
    want: Want,
    inflated: &'a mut Vec<u8>,
) -> Result<(), (ErrorCode, &'static str)> {
    if want.deadline_ms == Some(0) {
        let text = "the deadline was over when the request came";
        return Err((ErrorCode::DeadlineExceeded, text));
    }
    if want.return_old && !matches!(command, Command::Get(_)) {
        let text = "return_old is not possible in replicated caches yet";
        return Err((ErrorCode::Unsupported, text));
    }
    let Command::Store(write) = command else { return Ok(()) };
    let len = want.inflated_len.map_or(write.value.len(), |len| len as usize);
    if len > cache.store.value_len_max() {
        let text = "the value is over the cache's item limit; an older value stays";
        return Err((ErrorCode::ValueTooLarge, text));
    }
    if want.inflated_len.is_some() {
        if !session.lz4 {
            let text = "compressed values were not agreed in hello";
            return Err((ErrorCode::BadArgument, text));
        }
        if inflate(write.value, len, len, inflated).is_err() {
            return Err((ErrorCode::BadArgument, "the compressed value is damaged"));
        }
        write.value = inflated;
    }
    Ok(())
}

/// What came of answering requests that had waited.
pub(super) struct Finished {
    /// Bytes of the input that they were.
    pub(super) consumed: usize,
    /// Some have to wait anew.
    pub(super) waits: bool,
}

/// Answers requests whose answers are there. They stand at the start of `input`.
#[allow(clippy::too_many_arguments)] // as in `item`
pub(super) fn finish(
    session: &mut Native,
    cluster: &Cluster,
    context: &mut Context<'_>,
    table: &Table,
    input: &[u8],
    pending: Pending,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) -> Finished {
    let mut requests = Vec::new();
    let mut hashes = Vec::new();
    let count = match &pending {
        Pending::Wave { requests, .. } => *requests,
        Pending::Admin { .. } => 1,
    };
    batch::read(session, table, input, &mut requests, &mut hashes, count);
    let (wave, slots) = match pending {
        Pending::Admin { decided, .. } => {
            let mut consumed = 0;
            if let Some(Ready::Rare { request, end }) = requests.first() {
                consumed = *end;
                let decided = decided.unwrap_or(Ok(()));
                super::admin::decided(context, request.id, &request.body, decided, replies);
            }
            return Finished { consumed, waits: false };
        }
        Pending::Wave { wave, slots, .. } => (wave, slots),
    };
    let mut answers: Vec<Option<CoreReply>> = wave.take().into_iter().map(Some).collect();
    let mut slots = slots.into_iter();
    let mut consumed = 0;
    for (place, (request, &hash)) in requests.iter().zip(&hashes).enumerate() {
        match request {
            Ready::Item { head, found, .. } => {
                let answer = Answer::Frame { id: head.id };
                let Some(slot) = slots.next() else { break };
                let Some(found) = found else {
                    let failure = Failure::refused(ErrorCode::NoSuchCache, NO_SUCH_CACHE);
                    answer.failure(&failure, replies);
                    consumed = request.end();
                    continue;
                };
                match head.item() {
                    Ok(item) => {
                        let mut told =
                            Told { session, cluster, context, answers: &mut answers, scratch };
                        if !told.one(*found, &item, hash, slot, answer, replies) {
                            // Those behind it were submitted with it: they keep their answers.
                            let mut begun = Begun::new(session, cluster, context);
                            begun.add(*found, &item, hash, false);
                            let Begun { asked, slots: mut anew, .. } = begun;
                            anew.extend(slots.map(|slot| slot.answered(&mut answers)));
                            let wave = cluster.submit(asked);
                            let requests = count - place;
                            let pending = Pending::Wave { wave, slots: anew, requests };
                            session.pending = Some(pending);
                            return Finished { consumed, waits: true };
                        }
                    }
                    Err(refused) => {
                        context.worker.counters.protocol_errors.add(1);
                        answer.failure(&Failure::refused(refused.code, refused.what), replies);
                    }
                }
            }
            Ready::Batch { id, found, items, .. } => match found {
                Some(found) => {
                    let mut told =
                        Told { session, cluster, context, answers: &mut answers, scratch };
                    told.batch(*id, *found, *items, &mut slots, replies);
                }
                None => batch::no_such_cache(replies, *id),
            },
            _ => break,
        }
        consumed = request.end();
    }
    Finished { consumed, waits: false }
}

struct Told<'a, 'c> {
    session: &'a mut Native,
    cluster: &'a Cluster,
    context: &'a mut Context<'c>,
    answers: &'a mut [Option<CoreReply>],
    scratch: &'a mut Scratch,
}

impl Told<'_, '_> {
    /// Answers one operation. False when it has to wait anew: then nothing was answered.
    fn one(
        &mut self,
        found: Found<'_>,
        item: &Item<'_>,
        hash: u64,
        slot: Slot,
        answer: Answer,
        replies: &mut Vec<u8>,
    ) -> bool {
        let Self { session, cluster, context, answers, scratch } = self;
        let Item { mut command, want } = *item;
        match slot.answered(answers) {
            Slot::Wave(_) => answer.outcome(&Outcome::Indeterminate, replies),
            Slot::Answered(reply) => {
                if let Some(known) = found.cache.cluster() {
                    session.has_seen(known.place(cluster, hash), &reply);
                }
                let told = cluster::answer(reply, &command, context.now_ms);
                item::answer_with(session, context, want, answer, replies, scratch, |sink| {
                    told.tell(sink);
                    true
                });
            }
            Slot::Known(outcome) => answer.outcome(&outcome, replies),
            Slot::Here => {
                return here(
                    session, cluster, context, found, &command, want, hash, answer, replies,
                    scratch,
                );
            }
            Slot::Refused => {
                let mut inflated = Vec::new();
                let failure = check(session, found.cache, &mut command, want, &mut inflated);
                let (code, text) = match failure {
                    Err(failure) => failure,
                    Ok(()) if want.track => {
                        (ErrorCode::LimitReached, "this read cannot be tracked on this connection")
                    }
                    Ok(()) => (ErrorCode::NoSuchCache, NO_SUCH_CACHE),
                };
                answer.failure(&Failure::refused(code, text), replies);
            }
        }
        true
    }

    fn batch(
        &mut self,
        id: u32,
        found: Found<'_>,
        items: Items<'_>,
        slots: &mut impl Iterator<Item = Slot>,
        replies: &mut Vec<u8>,
    ) {
        let start = (id != 0).then(|| respond::begin_batch(replies, id, items.len()));
        let body_start = replies.len();
        let len_max = self.session.gathered_len_max;
        let mut left = items.len();
        for (item, slot) in items.zip(slots) {
            left -= 1;
            let answer = match start {
                None => Answer::None,
                Some(_) => {
                    let used = replies.len() - body_start;
                    let spared = (left + 1) * item::SHORT_ANSWER_MAX;
                    Answer::Element { room: len_max.saturating_sub(used + spared) }
                }
            };
            let hash = Store::hash(item.command.key());
            if !self.one(found, &item, hash, slot, answer, replies) {
                answer.outcome(&Outcome::Indeterminate, replies);
            }
        }
        if let Some(start) = start {
            kiln_protocol::native::end_frame(replies, start);
        }
    }
}

/// Whether a rare request is for the controller group.
pub(super) fn is_for_control(body: &Body<'_>) -> bool {
    matches!(
        body,
        Body::Flush { .. } | Body::CreateCache(_) | Body::DropCache { .. } | Body::ChangeCluster(_)
    )
}

/// Clears a cache on all nodes.
fn flush(context: &Context<'_>, cluster: &Cluster, found: Option<Found<'_>>) -> Decision {
    let refuse = |code, text: &'static str| -> Decision {
        Box::pin(async move { Err((code, text.to_owned())) })
    };
    if context.node.config.disable_flush.0 {
        return refuse(ErrorCode::Forbidden, "flush is turned off on this node");
    }
    let Some(known) = found.and_then(|found| found.cache.cluster()) else {
        return refuse(ErrorCode::NoSuchCache, NO_SUCH_CACHE);
    };
    let wave = cluster.clear(known);
    Box::pin(async move {
        poll_fn(|task| wave.poll(task)).await;
        let unsupported = CoreReply::NotApplied(Refusal::Unsupported);
        let replies = wave.take();
        if replies.contains(&unsupported) {
            let text = "an eventual cache cannot be flushed; drop it and make it anew".to_owned();
            return Err((ErrorCode::Unsupported, text));
        }
        if replies.iter().any(|reply| !matches!(reply, CoreReply::Done(_))) {
            let text = "not all of the cache could be flushed; try again".to_owned();
            return Err((ErrorCode::Busy, text));
        }
        Ok(())
    })
}

/// Brings a request before the controller group, and waits until this node follows.
fn decide(context: &Context<'_>, cluster: &Cluster, table: &Table, body: &Body<'_>) -> Decision {
    let refuse = |code, text: String| -> Decision { Box::pin(async move { Err((code, text)) }) };
    let (name, command, exists) = match body {
        Body::CreateCache(spec) => {
            let settings = CacheSettings::from_spec(spec, context.node.value_len_max());
            let settings = match settings {
                Ok(settings) => settings,
                Err(error) => return refuse(ErrorCode::BadArgument, error.to_string()),
            };
            if let Some((_, cache)) = table.by_name(&settings.name) {
                return if cache.settings_now().serves_as(&settings) {
                    Box::pin(async { Ok(()) })
                } else {
                    let text = format!("there is a cache `{}` with other settings", settings.name);
                    refuse(ErrorCode::CacheExists, text)
                };
            }
            let name = settings.name.to_string();
            let spec = spec_of(&settings);
            (name.clone(), cluster.make_cache(name, spec), true)
        }
        Body::DropCache { name } => {
            if *name == crate::caches::DEFAULT {
                let text = "the cache `default` is always there".to_owned();
                return refuse(ErrorCode::Forbidden, text);
            }
            let Some((_, cache)) = table.by_name(name) else {
                return refuse(ErrorCode::NoSuchCache, NO_SUCH_CACHE.to_owned());
            };
            if cache.is_reserved() {
                return refuse(ErrorCode::Forbidden, RESERVED.to_owned());
            }
            let name = (*name).to_owned();
            (name.clone(), TopologyCommand::DropCache { name }, false)
        }
        Body::ChangeCluster(change) => return super::cluster_view::change(cluster, change),
        _ => return refuse(ErrorCode::Internal, "nothing to decide".to_owned()),
    };
    cluster.decide(command, move |topology| topology.caches.contains_key(&name) == exists)
}
