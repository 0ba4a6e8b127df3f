//! A cache and the operations on its items.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kiln_protocol::{
    command::{self, Command, Direction, StoreMode},
    native::{self, Want, encode},
};

use crate::{
    Error, Expiry, Item, Operation, RetryPolicy,
    answer::Answer,
    call::{Attempts, Call, Reply, ask_done},
    connection::Deadline,
    core::{CacheState, CallOptions, Core},
    near::{Found, NearCache, Place},
    operations::{Count, Delete, Look, Write, write_mode},
};

/// A cache of the cluster. Cheap to clone; all clones share their connections.
///
/// Keys and values are bytes; whatever is `AsRef<[u8]>` will do. For values of other types see
/// [`typed`](Self::typed).
///
/// Operations with options are builders that are awaited:
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
/// cache.set("greeting", "hello").expires(Duration::from_secs(60)).await?;
/// let value = cache.get("greeting").await?;
/// assert_eq!(value.as_deref(), Some(b"hello".as_slice()));
/// # Ok(())
/// # }
/// ```
///
/// # When a call is dropped
///
/// Each future may be dropped at any moment without harm to the client or to other calls. A write
/// that is dropped after it was first polled may or may not happen.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) core: Arc<Core>,
    pub(crate) state: Arc<CacheState>,
    pub(crate) options: CallOptions,
}

impl Cache {
    /// The cache's name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The same cache, with another timeout for its calls.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let quick = cache.with_timeout(Duration::from_millis(20));
    /// quick.get("key").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { options: CallOptions { timeout, ..self.options }, ..self.clone() }
    }

    /// The same cache, with another way to retry calls.
    ///
    /// ```no_run
    /// # fn example(cache: kiln_client::Cache) {
    /// let once = cache.with_retry(kiln_client::RetryPolicy::NEVER);
    /// # }
    /// ```
    #[must_use]
    pub fn with_retry(&self, retry: RetryPolicy) -> Self {
        Self { options: CallOptions { retry, ..self.options }, ..self.clone() }
    }

    /// The same cache, whose sets, replaces, deletes and touches without a condition are made
    /// again also when the first attempt may have happened. The repeated write may then undo a
    /// write that another client made in between.
    ///
    /// ```no_run
    /// # fn example(cache: kiln_client::Cache) {
    /// let insistent = cache.with_repeated_writes();
    /// # }
    /// ```
    #[must_use]
    pub fn with_repeated_writes(&self) -> Self {
        Self { options: CallOptions { repeat_writes: true, ..self.options }, ..self.clone() }
    }

    /// The same cache, read from the nodes even if there is a near cache.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let current = cache.without_near_cache().get("key").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn without_near_cache(&self) -> Self {
        Self { options: CallOptions { near: false, ..self.options }, ..self.clone() }
    }

    /// The value of a key.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// match cache.get("key").await? {
    ///     Some(value) => println!("{} bytes", value.len()),
    ///     None => println!("not there"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Option<Bytes>, Error> {
        Ok(self.read(key.as_ref()).await?.map(|item| item.value))
    }

    /// The item of a key: its value with version, flags and time to live.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// if let Some(item) = cache.get_item("key").await? {
    ///     println!("version {} lives for {:?}", item.version, item.ttl);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_item(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Option<Item>, Error> {
        self.read(key.as_ref()).await
    }

    /// A read with options: without the value, with a new time to live, with the right to refill.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let exists = cache.look("key").without_value().await?.is_some();
    /// # Ok(())
    /// # }
    /// ```
    pub fn look<'a>(&'a self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Look<'a> {
        Look::new(self, key.as_ref())
    }

    /// Writes a value, whether or not the key exists. Awaited, it is the new version.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let version = cache.set("key", "value").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set<'a>(
        &'a self,
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Write<'a, write_mode::Always> {
        Write::new(self, key.as_ref(), value.as_ref(), StoreMode::Set)
    }

    /// Writes a value if the key is absent.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let first = cache.add("lock", "me").await?.is_stored();
    /// # Ok(())
    /// # }
    /// ```
    pub fn add<'a>(
        &'a self,
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Write<'a, write_mode::IfMet> {
        Write::new(self, key.as_ref(), value.as_ref(), StoreMode::Add)
    }

    /// Writes a value if the key is present.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let known = cache.replace("key", "value").await?.is_stored();
    /// # Ok(())
    /// # }
    /// ```
    pub fn replace<'a>(
        &'a self,
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Write<'a, write_mode::IfMet> {
        Write::new(self, key.as_ref(), value.as_ref(), StoreMode::Replace)
    }

    /// Writes behind the value that is there, if there is one.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let _ = cache.append("log", ", and more").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn append<'a>(
        &'a self,
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Write<'a, write_mode::IfMet> {
        Write::new(self, key.as_ref(), value.as_ref(), StoreMode::Append)
    }

    /// Writes before the value that is there, if there is one.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let _ = cache.prepend("log", "first, ").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepend<'a>(
        &'a self,
        key: &'a (impl AsRef<[u8]> + ?Sized),
        value: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> Write<'a, write_mode::IfMet> {
        Write::new(self, key.as_ref(), value.as_ref(), StoreMode::Prepend)
    }

    /// Removes an item.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// cache.delete("key").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete<'a>(&'a self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Delete<'a> {
        Delete::new(self, key.as_ref())
    }

    /// Adds to a decimal number; wraps at 2^64.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let visits = cache.increment("visits", 1).or_create(1).await?.number();
    /// # Ok(())
    /// # }
    /// ```
    pub fn increment<'a>(&'a self, key: &'a (impl AsRef<[u8]> + ?Sized), delta: u64) -> Count<'a> {
        Count::new(self, key.as_ref(), Direction::Increment, delta)
    }

    /// Subtracts from a decimal number; stops at 0.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let left = cache.decrement("tickets", 1).await?.number();
    /// # Ok(())
    /// # }
    /// ```
    pub fn decrement<'a>(&'a self, key: &'a (impl AsRef<[u8]> + ?Sized), delta: u64) -> Count<'a> {
        Count::new(self, key.as_ref(), Direction::Decrement, delta)
    }

    /// Gives an item a new time to live. `false` when there is no item.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let there = cache.touch("session", Duration::from_secs(600)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn touch(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        expires: impl Into<Expiry>,
    ) -> Result<bool, Error> {
        let touch = command::Touch { key: key.as_ref(), ttl: expires.into().to_ttl() };
        let reply = self
            .call(Call {
                item: native::Item { command: Command::Touch(touch), want: Want::default() },
                operation: Operation::Touch,
                reads: false,
                idempotent: true,
                track: None,
            })
            .await?;
        match reply.answer {
            Answer::Touched => Ok(true),
            Answer::NotFound => Ok(false),
            _ => reply.unexpected(),
        }
    }

    /// Removes all items of the cache, on all nodes.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// cache.flush().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn flush(&self) -> Result<(), Error> {
        let mut attempts = Attempts::new(self, Operation::Administration, false);
        loop {
            let flushed = self.flush_nodes(attempts.deadline).await;
            if let Some(near) = &self.state.near {
                near.invalidate_all();
            }
            match flushed {
                Ok(()) => return attempts.succeeded(()),
                // Empty is empty.
                Err(error) => attempts.failed(error, true).await?,
            }
        }
    }

    async fn flush_nodes(&self, deadline: Deadline) -> Result<(), Error> {
        for node in self.core.view().nodes() {
            let connection = node.connection(deadline, false).await?;
            let mut reopened = false;
            loop {
                let cache = self.reference(&connection, deadline).await?;
                let flush = |out: &mut Vec<u8>, id| encode::flush(out, id, cache);
                match ask_done(&connection, deadline, flush).await {
                    Ok(_) => break,
                    Err(error) if reopened || !self.can_reopen(&connection, cache, &error) => {
                        return Err(error);
                    }
                    Err(_) => reopened = true,
                }
            }
        }
        Ok(())
    }

    /// A read of a whole item, near or far.
    async fn read(&self, key: &[u8]) -> Result<Option<Item>, Error> {
        let near = self.state.near.as_ref().filter(|_| self.options.near);
        let mut track = None;
        if let Some(near) = near {
            let place = NearCache::place(key);
            let found = near.get(key, place, Instant::now());
            if let Some(metrics) = &self.core.settings.metrics {
                metrics.on_near_read(matches!(found, Found::Hit(_)));
            }
            if let Found::Hit(item) = found {
                return Ok(Some(item));
            }
            track = Some(place);
        }
        let reply = self
            .call(Call {
                item: native::Item {
                    command: Command::Get(command::Get::plain(key)),
                    want: Want::default(),
                },
                operation: Operation::Get,
                reads: true,
                idempotent: true,
                track,
            })
            .await?;
        self.taken(key, track, reply)
    }

    /// The item of a reply, kept near if it was tracked.
    pub(crate) fn taken(
        &self,
        key: &[u8],
        track: Option<Place>,
        reply: Reply,
    ) -> Result<Option<Item>, Error> {
        match reply {
            Reply { answer: Answer::Hit(hit), peer, tracked } => {
                let item = Item::from_hit(hit, &peer).map_err(Error::of_a_read)?;
                // A stale item is being computed anew: nobody should keep the old one.
                if let (Some(near), Some(place), Some(tracked), false) =
                    (&self.state.near, track, tracked, item.stale)
                {
                    let until = item.ttl.map(|ttl| tracked.asked_at + ttl);
                    near.put(key, place, &item, tracked.stamp, &tracked.freshness, until);
                }
                Ok(Some(item))
            }
            Reply { answer: Answer::NotFound, .. } => Ok(None),
            reply => reply.unexpected().map_err(Error::of_a_read),
        }
    }
}
