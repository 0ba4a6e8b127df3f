//! One native client: from hello to goodbye.
//!
//! Always true: notes from the mailbox are written before the answers to requests that came after
//! them, so an answered ping says that everything before it has been told.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{self, Poll, Waker},
};

use kiln_cluster::{
    effect::Outcome as CoreOutcome,
    ids::{Generation, Place},
    node::Reply as CoreReply,
};
use kiln_protocol::native::{
    CacheRef, Effect, ErrorCode, Failure, Frames, HELLO_FRAME_MAX, MAGIC, VERSION,
    admin::{Hello, Welcome, capability},
    respond,
};

use crate::{
    caches::{Cache, CacheKey, Table, TrackError, Tracker},
    cluster::Cluster,
    connection::{Context, Session, Then, WorkerMemory},
    listen::Protocol,
    mailbox::{Mailbox, Note},
    native::{
        HANDLES_MAX, batch, cluster_view,
        clustered::{Pending, Way},
        frame_len_max, gathered_len_max, limits,
        streams::Deferred,
    },
    node::Node,
};

/// What this node can do, if the client can.
const CAPABILITIES: [&str; 4] =
    [capability::LZ4, capability::INVALIDATION, capability::TOPOLOGY, capability::INGEST];

/// A native client.
pub(crate) struct Native {
    pub(super) mailbox: Arc<Mailbox>,
    /// The task that the mailbox wakes.
    waker: Option<Waker>,
    pub(super) frames: Frames,
    /// Bytes that the answer to a batch may have.
    pub(super) gathered_len_max: usize,
    /// Hello is over.
    pub(super) is_open: bool,
    /// Both sides compress.
    pub(super) lz4: bool,
    /// By number, rising; `default` first.
    handles: Vec<Handle>,
    /// Requests that wait for other nodes.
    pub(super) pending: Option<Pending>,
    /// Requests about streams; `None` before the first.
    pub(super) deferred: Option<Box<Deferred>>,
    /// Losses of data that this client was told of.
    told: BTreeMap<Place, Generation>,
    /// It need not be told of those before.
    since_ms: u64,
    /// Given to the next cache. Numbers are not given twice: requests under way may still name a
    /// cache that was dropped.
    next_number: u32,
}

/// A cache that the client has open.
struct Handle {
    number: u32,
    key: CacheKey,
    tracker: Option<Tracker>,
}

impl Native {
    pub(crate) fn new(node: &Node, mailbox: Arc<Mailbox>) -> Self {
        Self {
            mailbox,
            waker: None,
            frames: Frames { body_len_max: HELLO_FRAME_MAX },
            gathered_len_max: gathered_len_max(node),
            is_open: false,
            lz4: false,
            handles: vec![Handle { number: 0, key: CacheKey::DEFAULT, tracker: None }],
            next_number: 1,
            pending: None,
            deferred: None,
            told: BTreeMap::new(),
            since_ms: node.clock.now_ms(),
        }
    }

    /// The last loss of a partition that this client knows of, or need not be told of.
    pub(super) fn seen(&self, cluster: &Cluster, place: Place) -> Generation {
        let told = self.told.get(&place).copied().unwrap_or_default();
        told.max(cluster.generation_at(place, self.since_ms))
    }

    /// What a reply tells of losses.
    pub(super) fn has_seen(&mut self, place: Place, reply: &CoreReply) {
        if let CoreReply::Done(CoreOutcome::Lost(generation)) = reply {
            let told = self.told.entry(place).or_default();
            *told = (*told).max(*generation);
        }
    }

    /// Answers hello. False when the connection is to close.
    pub(super) fn hello(
        &mut self,
        context: &mut Context<'_>,
        id: u32,
        hello: &Hello,
        replies: &mut Vec<u8>,
    ) -> bool {
        let node = context.node;
        let refuse = |replies: &mut Vec<u8>, code, text: &str| {
            let failure = Failure::refused(code, text);
            if id == 0 {
                respond::failure_of_connection(replies, &failure);
            } else {
                respond::failure(replies, id, &failure);
            }
            false
        };
        if self.is_open {
            return refuse(replies, ErrorCode::BadHello, "there was a hello before");
        }
        if hello.magic != MAGIC {
            return refuse(replies, ErrorCode::BadHello, "this is no hello: the magic is wrong");
        }
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            let text = format!(
                "this node speaks version {VERSION}, the client {} to {}",
                hello.version_min, hello.version_max
            );
            return refuse(replies, ErrorCode::BadHello, &text);
        }
        if !hello.cluster_id.is_empty() && hello.cluster_id != node.cluster_id() {
            return refuse(replies, ErrorCode::BadHello, "this node is of another cluster");
        }
        if let Some(auth) = &node.auth {
            context.worker.counters.auth_cmds.add(1);
            let credentials = hello.auth.as_ref();
            let known = credentials.is_some_and(|credentials| {
                let given = format!("{} {}", credentials.user, credentials.password);
                // A space in the user would make two pairs look the same.
                !credentials.user.contains(' ') && auth.check(given.as_bytes())
            });
            if !known {
                context.worker.counters.auth_errors.add(1);
                let text = match credentials {
                    None => "this node asks for user and password",
                    Some(_) => "user or password is wrong",
                };
                return refuse(replies, ErrorCode::Unauthenticated, text);
            }
        }
        let can = |name: &str| hello.capabilities.iter().any(|theirs| theirs == name);
        let capabilities: Vec<String> =
            CAPABILITIES.iter().filter(|name| can(name)).map(|name| (*name).to_owned()).collect();
        self.lz4 = can(capability::LZ4);
        self.is_open = true;
        self.frames.body_len_max = frame_len_max(node);
        tracing::debug!(client = %hello.client.escape_debug(), "native client");
        let welcome = Welcome {
            version: VERSION,
            server: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            node: node.config.name.to_string(),
            node_id: cluster_view::node_id(node),
            incarnation: node.incarnation,
            cluster_id: node.cluster_id(),
            hash_id: kiln_cluster::placement::HASH_ID,
            capabilities,
            limits: limits(node),
        };
        respond::structure(replies, id, &welcome);
        true
    }

    /// Gives a cache a number on this connection; the same one each time. `None` when there are
    /// too many.
    pub(super) fn open(
        &mut self,
        table: &Table,
        key: CacheKey,
        replies: &mut Vec<u8>,
    ) -> Option<u32> {
        if let Some(known) = self.number_of(key) {
            return Some(known);
        }
        self.handles.retain(|handle| {
            let is_there = table.get(handle.key).is_some();
            if !is_there && handle.tracker.is_some() {
                // The note of the drop may still be on its way, and will find no number.
                respond::invalidate(replies, handle.number, None);
            }
            is_there
        });
        if self.handles.len() >= HANDLES_MAX {
            return None;
        }
        let number = self.next_number;
        self.next_number = number.checked_add(1)?;
        self.handles.push(Handle { number, key, tracker: None });
        Some(number)
    }

    fn number_of(&self, key: CacheKey) -> Option<u32> {
        self.handles.iter().find(|handle| handle.key == key).map(|handle| handle.number)
    }

    /// The place of a handle among those that are open.
    #[inline]
    fn place(&self, number: u32) -> Option<usize> {
        if number == 0 {
            return Some(0);
        }
        self.handles.binary_search_by_key(&number, |handle| handle.number).ok()
    }

    /// The cache that a request means, and its number here, if it has one.
    #[inline]
    pub(super) fn find<'t>(&self, table: &'t Table, cache: CacheRef<'_>) -> Option<Found<'t>> {
        match cache {
            CacheRef::Handle(number) => {
                let handle = self.handles.get(self.place(number)?)?;
                let cache = table.get(handle.key)?;
                Some(Found { cache, number: Some(number) })
            }
            CacheRef::Name(name) => {
                let (key, cache) = table.by_name(name).filter(|(_, cache)| !cache.is_reserved())?;
                Some(Found { cache, number: self.number_of(key) })
            }
        }
    }

    /// Has the client told when a key of this hash is written. Call it before the key is read.
    pub(super) fn track(
        &mut self,
        node: &Node,
        found: Found<'_>,
        hash: u64,
    ) -> Result<(), TrackFailure> {
        let place = found.number.and_then(|number| self.place(number));
        let handle = place.and_then(|place| self.handles.get_mut(place));
        let handle = handle.ok_or(TrackFailure::NotOpen)?;
        let tracker = match &mut handle.tracker {
            Some(tracker) => tracker,
            none => none.insert(node.caches.join_trackers(found.cache, &self.mailbox)?),
        };
        tracker.track(&found.cache.trackers, hash);
        Ok(())
    }

    /// Writes what is in the mailbox.
    pub(super) fn tell(&mut self, context: &Context<'_>, replies: &mut Vec<u8>) {
        for note in self.mailbox.take() {
            // Nothing is told before hello; nobody can have asked for it.
            if !self.is_open {
                continue;
            }
            match note {
                Note::Slots { cache, slots } => {
                    for number in self.numbers(cache) {
                        respond::invalidate(replies, number, Some(&slots));
                    }
                }
                Note::All { cache } => {
                    for number in self.numbers(cache) {
                        respond::invalidate(replies, number, None);
                    }
                }
                Note::Topology => cluster_view::push(context.node, replies),
                Note::Answers => {
                    if let Some(deferred) = &self.deferred {
                        deferred.take(replies);
                    }
                }
                Note::Goodbye => respond::goodbye(replies, "the node is shutting down"),
            }
        }
    }

    fn numbers(&self, cache: u32) -> impl Iterator<Item = u32> {
        let of_cache = self.handles.iter().filter(move |handle| handle.key.id() == cache);
        of_cache.map(|handle| handle.number)
    }
}

/// A cache that a request means.
#[derive(Clone, Copy)]
pub(super) struct Found<'t> {
    pub(super) cache: &'t Arc<Cache>,
    /// Its number on this connection.
    pub(super) number: Option<u32>,
}

/// Why a read cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrackFailure {
    #[error("open the cache first: invalidations name it by its handle")]
    NotOpen,
    #[error(transparent)]
    Refused(#[from] TrackError),
}

impl TrackFailure {
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::NotOpen => ErrorCode::BadArgument,
            Self::Refused(TrackError::Dropped) => ErrorCode::NoSuchCache,
            Self::Refused(_) => ErrorCode::LimitReached,
        }
    }
}

impl Session for Native {
    const PROTOCOL: Protocol = Protocol::Native;

    fn run(
        &mut self,
        context: &mut Context<'_>,
        input: &[u8],
        memory: &mut WorkerMemory,
    ) -> (usize, Then) {
        if self.mailbox.is_pending() {
            self.tell(context, &mut memory.replies);
        }
        let Some(cluster) = context.node.cluster.get() else {
            return batch::run(self, Way::Alone, context, input, memory);
        };
        let inside = cluster.gate().enter(context.worker.index);
        let way = match &inside {
            Some(_) => Way::Inside(cluster),
            None => Way::Together(cluster),
        };
        batch::run(self, way, context, input, memory)
    }

    fn poll_waiting(&mut self, task: &mut task::Context<'_>) -> Poll<()> {
        match &mut self.pending {
            Some(pending) => pending.poll(task),
            None => Poll::Ready(()),
        }
    }

    fn refuse(&mut self, replies: &mut Vec<u8>) {
        let failure = Failure {
            code: ErrorCode::Busy,
            text: "there is no room to receive the request; try again",
            effect: Effect::NotApplied,
            retry_after_ms: Some(super::RETRY_AFTER_MS),
        };
        respond::failure_of_connection(replies, &failure);
    }

    #[inline]
    fn poll_unasked(&mut self, task: &mut task::Context<'_>) -> Poll<()> {
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(task.waker())) {
            return if self.mailbox.is_pending() { Poll::Ready(()) } else { Poll::Pending };
        }
        self.waker = Some(task.waker().clone());
        self.mailbox.poll(task)
    }

    fn say_unasked(&mut self, context: &mut Context<'_>, memory: &mut WorkerMemory) -> Then {
        self.tell(context, &mut memory.replies);
        Then::Write
    }
}
