//! One call: find the node, ask, and ask again where that makes sense.
//!
//! Dropping a call at any moment is safe for the client: the connection goes on, and an answer
//! that still comes is thrown away. What the call asked for may be done all the same.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use kiln_protocol::{
    command::Command,
    native::{
        CacheRef, DEFAULT_CACHE, Data, ErrorCode, Item, Op, Value,
        admin::{self, Opened, capability},
        compress, encode,
    },
};

use crate::{
    Cache, Error, Operation, Reason,
    answer::Answer,
    connection::{Connection, Deadline, Handle, Peer},
    freshness::Freshness,
    near::{NearCache, Place, Stamp},
};

/// A call for one item.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) item: Item<'a>,
    pub(crate) operation: Operation,
    /// It changes nothing.
    pub(crate) reads: bool,
    /// Doing it twice is as good as once, if nobody else writes the key in between.
    pub(crate) idempotent: bool,
    /// Keep what is read near.
    pub(crate) track: Option<Place>,
}

/// What a call got.
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) peer: Arc<Peer>,
    pub(crate) tracked: Option<Tracked>,
}

/// What is needed to keep an answer near.
pub(crate) struct Tracked {
    pub(crate) stamp: Stamp,
    pub(crate) freshness: Arc<Freshness>,
    /// When the question was asked.
    pub(crate) asked_at: Instant,
}

impl Tracked {
    /// A question is about to be asked.
    pub(crate) fn begin(near: &NearCache, place: Place, connection: &Connection) -> Self {
        let freshness = connection.freshness.clone();
        let asked_at = Instant::now();
        if freshness.want() || !freshness.holds(asked_at, near.staleness_max()) {
            connection.wake_driver();
        }
        Self { stamp: near.stamp(place), freshness, asked_at }
    }
}

impl Reply {
    pub(crate) fn unexpected<T>(&self) -> Result<T, Error> {
        match &self.answer {
            Answer::Failed(error) => Err(error.clone()),
            _ => Err(self.peer.unexpected("an answer to something else")),
        }
    }
}

impl Cache {
    /// Makes a call for one item, with all its attempts.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Reply, Error> {
        self.call_until(call, self.options.deadline()).await
    }

    /// The same as a part of something that has to end by then.
    pub(crate) async fn call_until(
        &self,
        call: Call<'_>,
        deadline: Deadline,
    ) -> Result<Reply, Error> {
        let mut retry_number = None;
        // A write takes the value from the near cache before it begins, and whatever another read
        // brought there meanwhile when it is over, however that is.
        let _invalidates = match &self.state.near {
            Some(near) if !call.reads => {
                Some(Invalidates::new(near, NearCache::place(call.item.command.key())))
            }
            _ => None,
        };
        let may_repeat = call.reads || (call.idempotent && self.options.repeat_writes);
        let mut attempts = Attempts::until(self, call.operation, call.reads, deadline);
        loop {
            match self.attempt(&call, attempts.deadline, &mut retry_number).await {
                Ok(reply) => return attempts.succeeded(reply),
                // A node that knows the write again does not do it twice.
                Err(error) => attempts.failed(error, may_repeat || retry_number.is_some()).await?,
            }
        }
    }

    async fn attempt(
        &self,
        call: &Call<'_>,
        deadline: Deadline,
        retry_number: &mut Option<u64>,
    ) -> Result<Reply, Error> {
        let key = call.item.command.key();
        let connection = {
            let view = self.core.view();
            let node = view.node(&self.state.name, key, call.reads);
            let node = node.ok_or_else(|| Error::not_applied(Reason::Closed))?;
            node.connection(deadline, call.track.is_some()).await?
        };
        let mut reopened = false;
        loop {
            let cache = self.reference(&connection, deadline).await?;
            let reply = self.ask(call, &connection, cache, deadline, retry_number).await?;
            let Reply { answer: Answer::Failed(error), tracked, .. } = reply else {
                return Ok(reply);
            };
            if tracked.is_some() && error.code() == Some(ErrorCode::LimitReached) {
                // The node remembers no more readers: read without being told of writes.
                connection.freshness.tracking_refused(Instant::now());
                continue;
            }
            if reopened || !self.can_reopen(&connection, cache, &error) {
                return Err(error);
            }
            reopened = true;
        }
    }

    async fn ask(
        &self,
        call: &Call<'_>,
        connection: &Arc<Connection>,
        cache: CacheRef<'_>,
        deadline: Deadline,
        retry_number: &mut Option<u64>,
    ) -> Result<Reply, Error> {
        let peer = &connection.peer;
        let mut item = call.item;
        check_limits(&item, peer)?;
        if !call.reads && peer.can(capability::RETRY_WINDOW) {
            item.want.retry = Some(*retry_number.get_or_insert_with(|| self.core.retry_number()));
        }
        let mut scratch = Vec::new();
        let len = shrink(&mut item, peer, &mut scratch);

        let mut tracked = None;
        if let (Some(place), Some(near)) = (call.track, &self.state.near)
            && self.can_track(connection, cache)
        {
            item.want.track = true;
            tracked = Some(Tracked::begin(near, place, connection));
        }
        let encode = |out: &mut Vec<u8>, id| encode::data(out, id, &Data { cache, item });
        let answer = connection.submit(deadline, len, encode).await?.await?;
        Ok(Reply { answer, peer: peer.clone(), tracked })
    }

    /// How the cache is called on this connection; opens it there if need be.
    pub(crate) async fn reference<'a>(
        &'a self,
        connection: &Arc<Connection>,
        deadline: Deadline,
    ) -> Result<CacheRef<'a>, Error> {
        let name = CacheRef::Name(&self.state.name);
        let Some(id) = self.state.id else {
            return Ok(name);
        };
        match connection.handle(id) {
            Handle::Open(handle) => return Ok(CacheRef::Handle(handle)),
            Handle::Opening | Handle::Refused => return Ok(name),
            Handle::None => {}
        }
        if &*self.state.name == crate::address::DEFAULT_CACHE {
            connection.set_handle(id, Handle::None, Handle::Open(DEFAULT_CACHE));
            return Ok(CacheRef::Handle(DEFAULT_CACHE));
        }
        if !connection.set_handle(id, Handle::None, Handle::Opening) {
            return Ok(name);
        }
        // What was read through an earlier handle may be of an earlier cache of this name.
        if let Some(near) = &self.state.near {
            near.invalidate_all();
        }
        let mut opening = Opening { connection, id, handle: Handle::None };
        let opened = ask_structure::<Opened>(connection, deadline, |out, id| {
            encode::named(out, id, Op::OpenCache, &self.state.name);
        });
        match opened.await {
            Ok(opened) => {
                opening.handle = Handle::Open(opened.handle);
                Ok(CacheRef::Handle(opened.handle))
            }
            Err(error) if error.code() == Some(ErrorCode::LimitReached) => {
                opening.handle = Handle::Refused;
                Ok(name)
            }
            // Opening changes nothing that matters.
            Err(error) => Err(error.of_a_read()),
        }
    }

    /// Whether reads over this connection can be kept near.
    pub(crate) fn can_track(&self, connection: &Connection, cache: CacheRef<'_>) -> bool {
        // Invalidations name the cache by its handle.
        matches!(cache, CacheRef::Handle(_))
            && connection.peer.can(capability::INVALIDATION)
            && connection.freshness.may_track(Instant::now())
    }

    /// Whether a request that failed with `error` may succeed when the cache is opened anew: it may
    /// have been dropped, and made again, since it was opened. Its handle is forgotten then.
    pub(crate) fn can_reopen(
        &self,
        connection: &Connection,
        cache: CacheRef<'_>,
        error: &Error,
    ) -> bool {
        if error.code() != Some(ErrorCode::NoSuchCache) || !error.is_not_applied() {
            return false;
        }
        let (Some(id), CacheRef::Handle(handle)) = (self.state.id, cache) else {
            return false;
        };
        if handle == DEFAULT_CACHE {
            return false;
        }
        connection.set_handle(id, Handle::Open(handle), Handle::None);
        // An invalidation that names the forgotten handle reaches nobody any more.
        if let Some(near) = &self.state.near {
            near.invalidate_all();
        }
        true
    }
}

/// The attempts of one call: how many there were, and whether there is another.
///
/// ```text
///   loop { match attempt(attempts.deadline).await {
///       Ok(done) => return attempts.succeeded(done),
///       Err(error) => attempts.failed(error, repeatable).await?,
///   } }
/// ```
pub(crate) struct Attempts<'a> {
    cache: &'a Cache,
    operation: Operation,
    reads: bool,
    pub(crate) deadline: Deadline,
    count: u32,
    begun: Option<Instant>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(cache: &'a Cache, operation: Operation, reads: bool) -> Self {
        Self::until(cache, operation, reads, cache.options.deadline())
    }

    /// Those of a part of something that has to end by then.
    pub(crate) fn until(
        cache: &'a Cache,
        operation: Operation,
        reads: bool,
        deadline: Deadline,
    ) -> Self {
        let begun = cache.core.settings.metrics.is_some().then(Instant::now);
        Self { cache, operation, reads, deadline, count: 0, begun }
    }

    /// The call is over.
    pub(crate) fn succeeded<T>(&self, done: T) -> Result<T, Error> {
        self.tell(None);
        Ok(done)
    }

    /// An attempt failed. Returns when it is time for the next, or the error if there is none.
    pub(crate) async fn failed(&mut self, error: Error, repeatable: bool) -> Result<(), Error> {
        self.count += 1;
        let error = if self.reads { error.of_a_read() } else { error };
        let retry = self.cache.options.retry;
        let left = self.deadline.at.saturating_duration_since(Instant::now());
        let delay = retry
            .next(&error, repeatable || self.reads, self.count, fastrand::f64())
            .filter(|delay| *delay < left);
        let Some(delay) = delay else {
            self.tell(Some(&error));
            return Err(error);
        };
        let core = &self.cache.core;
        if let Some(metrics) = &core.settings.metrics {
            metrics.on_retry(self.operation, &error);
        }
        if error.code() == Some(ErrorCode::NotOwner) {
            // If it fails, the next attempt finds out what there is to find out.
            let _ = core.refresh(self.deadline).await;
            if self.deadline.at <= Instant::now() {
                // What is sent now could only end as not known.
                self.tell(Some(&error));
                return Err(error);
            }
        } else {
            let begun = Instant::now();
            if matches!(error.reason(), Reason::Unreachable { .. } | Reason::Disconnected { .. }) {
                core.refresh_elsewhere(Deadline { at: begun + left - delay, ..self.deadline })
                    .await;
            }
            tokio::time::sleep(delay.saturating_sub(begun.elapsed())).await;
        }
        Ok(())
    }

    fn tell(&self, error: Option<&Error>) {
        if let (Some(metrics), Some(begun)) = (&self.cache.core.settings.metrics, self.begun) {
            metrics.on_call(self.operation, begun.elapsed(), error);
        }
    }
}

/// Puts down how the opening of a cache ended, also when it was dropped.
struct Opening<'a> {
    connection: &'a Connection,
    id: usize,
    handle: Handle,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.connection.set_handle(self.id, Handle::Opening, self.handle);
    }
}

/// Takes a key from the near cache now and once more when dropped.
struct Invalidates<'a> {
    near: &'a NearCache,
    place: Place,
}

impl<'a> Invalidates<'a> {
    fn new(near: &'a NearCache, place: Place) -> Self {
        near.invalidate_place(place);
        Self { near, place }
    }
}

impl Drop for Invalidates<'_> {
    fn drop(&mut self) {
        self.near.invalidate_place(self.place);
    }
}

/// Refuses what the node would refuse, without sending it.
pub(crate) fn check_limits(item: &Item<'_>, peer: &Peer) -> Result<(), Error> {
    let limits = &peer.welcome.limits;
    let key_len = item.command.key().len() as u64;
    if key_len == 0 {
        return Err(Error::not_applied(Reason::EmptyKey));
    }
    let value_len = match &item.command {
        Command::Store(store) => store.value.len() as u64,
        _ => 0,
    };
    for (what, len, limit) in
        [("a key", key_len, limits.key_max), ("a value", value_len, limits.value_max)]
    {
        // A limit of 0 was not announced.
        if limit > 0 && len > limit {
            return Err(Error::not_applied(Reason::TooLarge { what, len, limit }));
        }
    }
    Ok(())
}

/// Compresses the value where that was agreed and helps. Returns about how long the request is.
pub(crate) fn shrink<'a>(item: &mut Item<'a>, peer: &Peer, scratch: &'a mut Vec<u8>) -> usize {
    let key_len = item.command.key().len();
    let Command::Store(store) = &mut item.command else {
        return key_len;
    };
    let least = peer.welcome.limits.compress_min;
    if store.value.len() as u64 >= least.max(1)
        && peer.can(capability::LZ4)
        && let Some(Value::Lz4 { len, block }) = compress(store.value, scratch)
    {
        store.value = block;
        item.want.inflated_len = Some(len);
    }
    key_len + store.value.len()
}

/// The whole body of an answer that is no single item.
pub(crate) async fn ask_whole(
    connection: &Arc<Connection>,
    deadline: Deadline,
    len: usize,
    encode: impl FnOnce(&mut Vec<u8>, u32),
) -> Result<Bytes, Error> {
    match connection.submit(deadline, len, encode).await?.await? {
        Answer::Whole(body) => Ok(body),
        Answer::Failed(error) => Err(error),
        _ => Err(connection.peer.unexpected("an answer to something else")),
    }
}

/// What an answer that is neither an item nor a list says: a structure, or nothing.
pub(crate) async fn ask_done(
    connection: &Arc<Connection>,
    deadline: Deadline,
    encode: impl FnOnce(&mut Vec<u8>, u32),
) -> Result<Bytes, Error> {
    match connection.submit(deadline, 0, encode).await?.await? {
        Answer::Done(structure) => Ok(structure),
        Answer::Failed(error) => Err(error),
        _ => Err(connection.peer.unexpected("an answer to something else")),
    }
}

/// Asks for a structure.
pub(crate) async fn ask_structure<T: serde::de::DeserializeOwned>(
    connection: &Arc<Connection>,
    deadline: Deadline,
    encode: impl FnOnce(&mut Vec<u8>, u32),
) -> Result<T, Error> {
    let answer = connection.submit(deadline, 0, encode).await?.await?;
    structure_of(answer, &connection.peer)
}

/// The structure that an answer is to have.
pub(crate) fn structure_of<T: serde::de::DeserializeOwned>(
    answer: Answer,
    peer: &Peer,
) -> Result<T, Error> {
    match answer {
        Answer::Done(structure) => {
            admin::get(&structure).map_err(|_| peer.unexpected("a structure that cannot be read"))
        }
        Answer::Failed(error) => Err(error),
        _ => Err(peer.unexpected("an answer to something else")),
    }
}

/// Asks for a structure that may not be there.
pub(crate) async fn ask_if_there<T: serde::de::DeserializeOwned>(
    connection: &Arc<Connection>,
    deadline: Deadline,
    encode: impl FnOnce(&mut Vec<u8>, u32),
) -> Result<Option<T>, Error> {
    match connection.submit(deadline, 0, encode).await?.await? {
        Answer::NotFound => Ok(None),
        answer => structure_of(answer, &connection.peer).map(Some),
    }
}
