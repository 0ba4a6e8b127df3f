//! Operations on many items at once.
//!
//! The items are divided by the nodes that own them and travel in batches, to all nodes at the
//! same time. Each item has a result of its own: there is no all or nothing.

use std::{sync::Arc, time::Instant};

use futures_util::future::join_all;
use kiln_protocol::{
    command::{self, Command, Store},
    native::{self, CacheRef, Want, encode},
};

use crate::{
    Cache, Deleted, Error, Expiry, Item, Operation, Reason,
    answer::{self, Answer},
    call::{Attempts, Call, Reply, Tracked, ask_whole, check_limits, shrink},
    connection::{Connection, Deadline},
    core::Node,
    near::{Found, NearCache, Place},
};

/// A value to be written by [`Cache::set_many`] or a [`Loader`](crate::Loader).
///
/// ```
/// use std::time::Duration;
/// use kiln_client::Put;
///
/// let put = Put::new("key", "value").expires(Duration::from_secs(60)).flags(1);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) flags: u32,
    pub(crate) expires: Expiry,
}

impl<'a> Put<'a> {
    /// A value that lives as long as the cache's setting says.
    pub fn new(
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Self {
        Self { key: key.as_ref(), value: value.as_ref(), flags: 0, expires: Expiry::default() }
    }

    /// How long the item lives.
    #[must_use]
    pub fn expires(mut self, expires: impl Into<Expiry>) -> Self {
        self.expires = expires.into();
        self
    }

    /// Bits that are kept with the value.
    #[must_use]
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }
}

/// Most items in a batch, whatever the node allows.
const BATCH_LEN_MAX: usize = 1000;

/// Bytes of a batch from which the next one begins, whatever the node allows.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What an item takes in a batch beside key and value, at most: heads and options, in bytes.
const ITEM_OVERHEAD: usize = 96;

/// Items that are asked for alone at the same time, after their batch refused them.
const ALONE_MAX: usize = 16;

impl Cache {
    /// The items of many keys, in the order of the keys.
    ///
    /// The cache's timeout is for all of them together. Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// for item in cache.get_many(&["a", "b", "c"]).await {
    ///     match item? {
    ///         Some(item) => println!("{:?}", item.value),
    ///         None => println!("not there"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Option<Item>, Error>> {
        self.get_many_until(keys, self.options.deadline()).await
    }

    pub(crate) async fn get_many_until<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        deadline: Deadline,
    ) -> Vec<Result<Option<Item>, Error>> {
        let near = self.state.near.as_ref().filter(|_| self.options.near);
        let now = Instant::now();
        let mut results: Vec<_> = keys.iter().map(|_| None).collect();
        let mut missing = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            let key = key.as_ref();
            let track = near.map(|_| NearCache::place(key));
            if let (Some(near), Some(place)) = (near, track) {
                let found = near.get(key, place, now);
                if let Some(metrics) = &self.core.settings.metrics {
                    metrics.on_near_read(matches!(found, Found::Hit(_)));
                }
                if let Found::Hit(item) = found {
                    results[index] = Some(Ok(Some(item)));
                    continue;
                }
            }
            let command = Command::Get(command::Get::plain(key));
            let item = native::Item { command, want: Want::default() };
            missing.push((index, One { item, track, idempotent: true }));
        }
        let asked: Vec<_> = missing.iter().map(|(_, one)| *one).collect();
        let replies = self.many(&asked, Operation::Get, true, deadline).await;
        for ((index, one), reply) in missing.into_iter().zip(replies) {
            let key = one.item.command.key();
            results[index] = Some(match reply {
                Ok(reply) => self.taken(key, one.track, reply),
                Err(error) => Err(error.of_a_read()),
            });
        }
        results.into_iter().map(|result| result.unwrap_or(Ok(None))).collect()
    }

    /// Writes many values. The results are their versions, in the order of the values.
    ///
    /// They are written in no particular order: of two values for the same key, either may be the
    /// one that stays.
    ///
    /// The cache's timeout is for all of them together. Cancel safe; dropped, each write may or may
    /// not happen.
    ///
    /// ```no_run
    /// # use kiln_client::Put;
    /// # async fn example(cache: kiln_client::Cache) {
    /// let results = cache.set_many(&[Put::new("a", "1"), Put::new("b", "2")]).await;
    /// let failed = results.iter().filter(|result| result.is_err()).count();
    /// println!("{failed} failed");
    /// # }
    /// ```
    pub async fn set_many(&self, values: &[Put<'_>]) -> Vec<Result<u64, Error>> {
        let items: Vec<_> = values
            .iter()
            .map(|put| {
                let store = Store {
                    flags: put.flags,
                    ttl: put.expires.to_ttl(),
                    ..Store::set(put.key, put.value)
                };
                One::write(Command::Store(store))
            })
            .collect();
        let replies = self.many(&items, Operation::Store, false, self.options.deadline()).await;
        replies
            .into_iter()
            .map(|reply| match reply? {
                Reply { answer: Answer::Stored { version, .. }, .. } => Ok(version),
                reply => reply.unexpected(),
            })
            .collect()
    }

    /// Removes many items. The results are in the order of the keys.
    ///
    /// The cache's timeout is for all of them together. Cancel safe; dropped, each delete may or
    /// may not happen.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) {
    /// let results = cache.delete_many(&["a", "b"]).await;
    /// # }
    /// ```
    pub async fn delete_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Deleted, Error>> {
        let items: Vec<_> = keys
            .iter()
            .map(|key| One::write(Command::Delete(command::Delete::plain(key.as_ref()))))
            .collect();
        let replies = self.many(&items, Operation::Delete, false, self.options.deadline()).await;
        replies
            .into_iter()
            .map(|reply| match reply? {
                Reply { answer: Answer::Deleted { .. }, .. } => Ok(Deleted::Deleted),
                Reply { answer: Answer::NotFound, .. } => Ok(Deleted::NotFound),
                reply => reply.unexpected(),
            })
            .collect()
    }

    /// Replies in the order of the items.
    async fn many(
        &self,
        items: &[One<'_>],
        operation: Operation,
        reads: bool,
        deadline: Deadline,
    ) -> Vec<Result<Reply, Error>> {
        let view = self.core.view();
        let mut by_node: Vec<(&Arc<Node>, Vec<usize>)> = Vec::new();
        let mut results: Vec<Option<Result<Reply, Error>>> = items.iter().map(|_| None).collect();
        for (index, one) in items.iter().enumerate() {
            let key = one.item.command.key();
            let Some(node) = view.node(&self.state.name, key, reads) else {
                results[index] = Some(Err(Error::not_applied(Reason::Closed)));
                continue;
            };
            match by_node.iter_mut().find(|(known, _)| Arc::ptr_eq(known, node)) {
                Some((_, indexes)) => indexes.push(index),
                None => by_node.push((node, vec![index])),
            }
        }
        let invalidate = || {
            let near = self.state.near.as_ref().filter(|_| !reads);
            for (near, one) in near.iter().flat_map(|near| items.iter().map(move |one| (near, one)))
            {
                near.invalidate_place(NearCache::place(one.item.command.key()));
            }
        };
        invalidate();
        let groups =
            by_node.iter().map(|(node, indexes)| self.group(node, items, indexes, reads, deadline));
        for (index, result) in join_all(groups).await.into_iter().flatten() {
            results[index] = Some(result);
        }

        // What was refused for the batch's sake, or went to the wrong node, is asked for alone.
        let alone: Vec<_> = (0..items.len())
            .filter(|index| match &results[*index] {
                Some(Ok(Reply { answer: Answer::Failed(error), tracked, .. })) => {
                    let untracked =
                        tracked.is_some() && error.code() == Some(native::ErrorCode::LimitReached);
                    let may = error.is_not_applied()
                        && self.options.retry.next(error, reads, 1, 0.0).is_some();
                    untracked || may
                }
                _ => false,
            })
            .collect();
        for some in alone.chunks(ALONE_MAX) {
            if deadline.at <= Instant::now() {
                // The others keep their refusals.
                break;
            }
            let calls = some.iter().map(|index| {
                let One { item, idempotent, track } = items[*index];
                self.call_until(Call { item, operation, reads, idempotent, track }, deadline)
            });
            for (index, result) in some.iter().zip(join_all(calls).await) {
                results[*index] = Some(result);
            }
        }
        invalidate();
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(Error::not_applied(Reason::Closed))))
            .collect()
    }

    /// The items of one node, in as many batches as it takes.
    async fn group(
        &self,
        node: &Node,
        items: &[One<'_>],
        indexes: &[usize],
        reads: bool,
        deadline: Deadline,
    ) -> Vec<(usize, Result<Reply, Error>)> {
        let idempotent = indexes.iter().all(|index| items[*index].idempotent);
        let repeatable = reads || (idempotent && self.options.repeat_writes);
        // The limits are the connection's; without one there is nothing to divide.
        let mut attempts = Attempts::until(self, Operation::Batch, reads, deadline);
        let (len_max, bytes_max) = loop {
            let tracks = indexes.iter().any(|index| items[*index].track.is_some());
            match node.connection(attempts.deadline, tracks).await {
                Ok(connection) => {
                    let limits = &connection.peer.welcome.limits;
                    let limit = |announced: u64, own: usize| match usize::try_from(announced) {
                        Ok(0) | Err(_) => own,
                        Ok(announced) => announced.min(own),
                    };
                    break (
                        limit(limits.batch_max, BATCH_LEN_MAX),
                        limit(limits.frame_max, BATCH_BYTES_MAX),
                    );
                }
                Err(error) => {
                    if let Err(error) = attempts.failed(error, true).await {
                        return indexes.iter().map(|index| (*index, Err(error.clone()))).collect();
                    }
                }
            }
        };
        let mut batches: Vec<&[usize]> = Vec::new();
        let (mut begin, mut bytes) = (0, 0);
        for (end, index) in indexes.iter().enumerate() {
            let len = items[*index].len();
            if end > begin && (end - begin >= len_max || bytes + len > bytes_max) {
                batches.push(&indexes[begin..end]);
                (begin, bytes) = (end, 0);
            }
            bytes += len;
        }
        batches.push(&indexes[begin..]);
        let batches = batches.into_iter().map(|batch| {
            let attempts = Attempts::until(self, Operation::Batch, reads, deadline);
            self.batch(node, items, batch, attempts, repeatable)
        });
        join_all(batches).await.into_iter().flatten().collect()
    }

    async fn batch(
        &self,
        node: &Node,
        items: &[One<'_>],
        indexes: &[usize],
        mut attempts: Attempts<'_>,
        repeatable: bool,
    ) -> Vec<(usize, Result<Reply, Error>)> {
        loop {
            let error = match self.try_batch(node, items, indexes, attempts.deadline).await {
                Ok(results) => {
                    let _ = attempts.succeeded(());
                    return results;
                }
                Err(error) => error,
            };
            if let Err(error) = attempts.failed(error, repeatable).await {
                return indexes.iter().map(|index| (*index, Err(error.clone()))).collect();
            }
        }
    }

    async fn try_batch(
        &self,
        node: &Node,
        items: &[One<'_>],
        indexes: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<(usize, Result<Reply, Error>)>, Error> {
        let tracks = indexes.iter().any(|index| items[*index].track.is_some());
        let connection = node.connection(deadline, tracks).await?;
        let mut reopened = false;
        loop {
            let cache = self.reference(&connection, deadline).await?;
            match self.ask_batch(&connection, cache, items, indexes, deadline).await {
                Err(error) if !reopened && self.can_reopen(&connection, cache, &error) => {
                    reopened = true;
                }
                done => return done,
            }
        }
    }

    async fn ask_batch(
        &self,
        connection: &Arc<Connection>,
        cache: CacheRef<'_>,
        items: &[One<'_>],
        indexes: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<(usize, Result<Reply, Error>)>, Error> {
        let peer = &connection.peer;
        let tracks = self.can_track(connection, cache);

        let mut results = Vec::with_capacity(indexes.len());
        let mut asked = Vec::with_capacity(indexes.len());
        let mut scratches: Vec<Vec<u8>> = indexes.iter().map(|_| Vec::new()).collect();
        let mut wire = Vec::with_capacity(indexes.len());
        let mut len = 0;
        for (index, scratch) in indexes.iter().zip(&mut scratches) {
            let One { mut item, track, .. } = items[*index];
            if let Err(error) = check_limits(&item, peer) {
                results.push((*index, Err(error)));
                continue;
            }
            len += shrink(&mut item, peer, scratch) + ITEM_OVERHEAD;
            let mut tracked = None;
            if let (true, Some(near), Some(place)) = (tracks, &self.state.near, track) {
                item.want.track = true;
                tracked = Some(Tracked::begin(near, place, connection));
            }
            asked.push((*index, tracked));
            wire.push(item);
        }
        if wire.is_empty() {
            return Ok(results);
        }
        let body = ask_whole(connection, deadline, len, |out, id| {
            encode::batch(out, id, cache, wire.iter().copied());
        });
        let answers = answer::batch(&body.await?, peer)?;
        if answers.len() != asked.len() {
            return Err(peer.unexpected("too few or too many answers to a batch"));
        }
        for ((index, tracked), answer) in asked.into_iter().zip(answers) {
            results.push((index, Ok(Reply { answer, peer: peer.clone(), tracked })));
        }
        Ok(results)
    }
}

/// One of many operations.
#[derive(Clone, Copy)]
struct One<'a> {
    item: native::Item<'a>,
    track: Option<Place>,
    idempotent: bool,
}

impl<'a> One<'a> {
    fn write(command: Command<'a>) -> Self {
        let item = native::Item { command, want: Want::default() };
        Self { item, track: None, idempotent: true }
    }

    /// What it takes in a batch, at most, in bytes.
    fn len(&self) -> usize {
        let value_len = match &self.item.command {
            Command::Store(store) => store.value.len(),
            _ => 0,
        };
        self.item.command.key().len() + value_len + ITEM_OVERHEAD
    }
}
