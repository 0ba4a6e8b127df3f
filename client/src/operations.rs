//! Operations with options: each is a builder, and awaited it is made.
//!
//! Dropped before it is awaited it does nothing. Dropped later, a write may or may not happen;
//! nothing else is harmed.

use std::{
    future::{Future, IntoFuture},
    marker::PhantomData,
    pin::Pin,
    time::Duration,
};

use kiln_protocol::{
    command::{self, Arithmetic, Command, Direction, Store, StoreMode},
    native::{self, Want},
};

use crate::{
    Cache, Counted, Deleted, Error, Expiry, Item, Operation, Written,
    answer::{Answer, OldItem},
    call::{Call, Reply},
    item,
};

/// A future of a call.
pub type CallFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// What kind of result a [`Write`] has.
pub mod write_mode {
    /// It cannot fail to be stored but by an error: the result is the new version.
    #[derive(Clone, Copy, Debug)]
    pub struct Always;

    /// It has a condition: the result is [`Written`](crate::Written).
    #[derive(Clone, Copy, Debug)]
    pub struct IfMet;
}

/// A write of a value. See [`Cache::set`], [`Cache::add`], [`Cache::replace`], [`Cache::append`]
/// and [`Cache::prepend`].
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
/// let item = cache.get_item("key").await?;
/// if let Some(item) = item {
///     let written = cache
///         .set("key", "new")
///         .expires(Duration::from_secs(60))
///         .flags(7)
///         .if_version(item.version)
///         .await?;
///     println!("nobody else wrote it meanwhile: {}", written.is_stored());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a write does nothing until it is awaited"]
pub struct Write<'a, M> {
    cache: &'a Cache,
    store: Store<'a>,
    mode: PhantomData<M>,
}

impl<'a, M> Write<'a, M> {
    pub(crate) fn new(cache: &'a Cache, key: &'a [u8], value: &'a [u8], mode: StoreMode) -> Self {
        let ttl = Expiry::default().to_ttl();
        let store = Store { ttl, mode, ..Store::set(key, value) };
        Self { cache, store, mode: PhantomData }
    }

    /// How long the item lives. Default: as the cache has it. Appending and prepending leave the
    /// item's own end as it is.
    pub fn expires(mut self, expires: impl Into<Expiry>) -> Self {
        self.store.ttl = expires.into().to_ttl();
        self
    }

    /// Bits that are kept with the value for whoever reads it. Default: 0.
    pub fn flags(mut self, flags: u32) -> Self {
        self.store.flags = flags;
        self
    }

    /// Writes only if the item's version is this one.
    pub fn if_version(self, version: u64) -> Write<'a, write_mode::IfMet> {
        let Self { cache, mut store, .. } = self;
        store.compare = Some(version);
        Write { cache, store, mode: PhantomData }
    }

    /// The result carries the item that was replaced.
    pub fn returning_old(self) -> ReturningOld<'a, Written> {
        ReturningOld { cache: self.cache, command: Command::Store(self.store), result: PhantomData }
    }

    fn idempotent(&self) -> bool {
        matches!(self.store.mode, StoreMode::Set | StoreMode::Replace)
            && self.store.compare.is_none()
    }

    async fn call(self) -> Result<Reply, Error> {
        let idempotent = self.idempotent();
        let command = Command::Store(self.store);
        write(self.cache, command, Operation::Store, idempotent, false).await
    }
}

impl<'a> IntoFuture for Write<'a, write_mode::Always> {
    type Output = Result<u64, Error>;
    type IntoFuture = CallFuture<'a, u64>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.call().await? {
                Reply { answer: Answer::Stored { version, .. }, .. } => Ok(version),
                reply => reply.unexpected(),
            }
        })
    }
}

impl<'a> IntoFuture for Write<'a, write_mode::IfMet> {
    type Output = Result<Written, Error>;
    type IntoFuture = CallFuture<'a, Written>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { written(&self.call().await?) })
    }
}

/// A write or delete whose result carries the item that was there before. See
/// [`Write::returning_old`] and [`Delete::returning_old`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a write does nothing until it is awaited"]
pub struct ReturningOld<'a, T> {
    cache: &'a Cache,
    command: Command<'a>,
    result: PhantomData<T>,
}

/// What became of a write or delete, and the item that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replaced<T> {
    /// What became of it.
    pub result: T,
    /// The item that was replaced or removed, if there was one. Its time to live is not told.
    pub old: Option<Item>,
}

impl<'a> IntoFuture for ReturningOld<'a, Written> {
    type Output = Result<Replaced<Written>, Error>;
    type IntoFuture = CallFuture<'a, Replaced<Written>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let reply = write(self.cache, self.command, Operation::Store, false, true).await?;
            let result = written(&reply)?;
            Ok(Replaced { result, old: old(reply)? })
        })
    }
}

impl<'a> IntoFuture for ReturningOld<'a, Deleted> {
    type Output = Result<Replaced<Deleted>, Error>;
    type IntoFuture = CallFuture<'a, Replaced<Deleted>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let reply = write(self.cache, self.command, Operation::Delete, false, true).await?;
            let result = deleted(&reply)?;
            Ok(Replaced { result, old: old(reply)? })
        })
    }
}

/// A delete. See [`Cache::delete`].
///
/// ```no_run
/// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
/// let last = cache.delete("key").returning_old().await?.old;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a delete does nothing until it is awaited"]
pub struct Delete<'a> {
    cache: &'a Cache,
    delete: command::Delete<'a>,
}

impl<'a> Delete<'a> {
    pub(crate) fn new(cache: &'a Cache, key: &'a [u8]) -> Self {
        Self { cache, delete: command::Delete::plain(key) }
    }

    /// Deletes only if the item's version is this one.
    pub fn if_version(mut self, version: u64) -> Self {
        self.delete.compare = Some(version);
        self
    }

    /// Keeps the item, marked stale: readers still get the old value, and the first of them that
    /// [looks](Cache::look) is asked to compute a new one.
    pub fn keep_stale(mut self) -> Self {
        self.delete.invalidate = true;
        self
    }

    /// The result carries the item that was removed.
    pub fn returning_old(self) -> ReturningOld<'a, Deleted> {
        let command = Command::Delete(self.delete);
        ReturningOld { cache: self.cache, command, result: PhantomData }
    }
}

impl<'a> IntoFuture for Delete<'a> {
    type Output = Result<Deleted, Error>;
    type IntoFuture = CallFuture<'a, Deleted>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let idempotent = self.delete.compare.is_none();
            let command = Command::Delete(self.delete);
            let reply = write(self.cache, command, Operation::Delete, idempotent, false).await?;
            deleted(&reply)
        })
    }
}

/// An increment or decrement. See [`Cache::increment`].
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
/// let minute = Duration::from_secs(60);
/// let count = cache.increment("requests", 1).or_create(1).expires(minute).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "an increment does nothing until it is awaited"]
pub struct Count<'a> {
    cache: &'a Cache,
    arithmetic: Arithmetic<'a>,
    expires: Expiry,
    initial: Option<u64>,
}

impl<'a> Count<'a> {
    pub(crate) fn new(cache: &'a Cache, key: &'a [u8], direction: Direction, delta: u64) -> Self {
        let arithmetic = Arithmetic {
            key,
            direction,
            delta,
            compare: None,
            version: None,
            create: None,
            touch: None,
        };
        Self { cache, arithmetic, expires: Expiry::default(), initial: None }
    }

    /// Makes the item with this number when it is absent; the delta is not applied then.
    pub fn or_create(mut self, initial: u64) -> Self {
        self.initial = Some(initial);
        self
    }

    /// How long an item lives that is made. Default: as the cache has it.
    pub fn expires(mut self, expires: impl Into<Expiry>) -> Self {
        self.expires = expires.into();
        self
    }

    /// Gives an item that was there a new time to live.
    pub fn touch(mut self, expires: impl Into<Expiry>) -> Self {
        self.arithmetic.touch = Some(expires.into().to_ttl());
        self
    }

    /// Counts only if the item's version is this one.
    pub fn if_version(mut self, version: u64) -> Self {
        self.arithmetic.compare = Some(version);
        self
    }
}

impl<'a> IntoFuture for Count<'a> {
    type Output = Result<Counted, Error>;
    type IntoFuture = CallFuture<'a, Counted>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let create = self.initial.map(|initial| (self.expires.to_ttl(), initial));
            let command = Command::Arithmetic(Arithmetic { create, ..self.arithmetic });
            let reply = write(self.cache, command, Operation::Arithmetic, false, false).await?;
            match reply.answer {
                Answer::Number { number, version } => Ok(Counted::Number { number, version }),
                Answer::NotFound => Ok(Counted::NotFound),
                Answer::Exists => Ok(Counted::Conflict),
                _ => reply.unexpected(),
            }
        })
    }
}

/// A read with options. See [`Cache::look`]. It always asks the node, never a near cache.
///
/// With the options of refilling, one of many readers is chosen to compute a value anew, in the
/// whole cluster:
///
/// ```no_run
/// # use std::time::Duration;
/// # use kiln_client::{Cache, Error, Refill};
/// # async fn compute() -> String { String::new() }
/// # async fn example(cache: Cache) -> Result<(), Error> {
/// let look = cache.look("key").refill_below(Duration::from_secs(5)).await?;
/// if look.is_some_and(|look| look.refill == Refill::Mine) {
///     cache.set("key", &compute().await).expires(Duration::from_secs(60)).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a read does nothing until it is awaited"]
pub struct Look<'a> {
    cache: &'a Cache,
    get: command::Get<'a>,
    no_value: bool,
}

impl<'a> Look<'a> {
    pub(crate) fn new(cache: &'a Cache, key: &'a [u8]) -> Self {
        let get = command::Get { may_refill: true, ..command::Get::plain(key) };
        Self { cache, get, no_value: false }
    }

    /// Leaves the value out.
    pub fn without_value(mut self) -> Self {
        self.no_value = true;
        self
    }

    /// Gives the item a new time to live.
    pub fn touch(mut self, expires: impl Into<Expiry>) -> Self {
        self.get.touch = Some(expires.into().to_ttl());
        self
    }

    /// Does not count as a use of the item.
    pub fn unnoticed(mut self) -> Self {
        self.get.no_bump = true;
        self
    }

    /// On a miss, makes an empty item that lives this long, and this reader is asked to fill it.
    pub fn or_reserve(mut self, expires: impl Into<Expiry>) -> Self {
        self.get.vivify = Some(expires.into().to_ttl());
        self
    }

    /// When the item lives for less than this, one reader is asked to refill it.
    pub fn refill_below(mut self, left: Duration) -> Self {
        self.get.recache_below_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

impl<'a> IntoFuture for Look<'a> {
    type Output = Result<Option<item::Look>, Error>;
    type IntoFuture = CallFuture<'a, Option<item::Look>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let want = Want { no_value: self.no_value, ..Want::default() };
            // The right to refill is given away once: an answer that was lost took it along.
            let changes = self.get.touch.is_some()
                || self.get.vivify.is_some()
                || self.get.recache_below_ms.is_some();
            let call = Call {
                item: native::Item { command: Command::Get(self.get), want },
                operation: Operation::Get,
                reads: !changes,
                idempotent: true,
                track: None,
            };
            let looked = match self.cache.call(call).await? {
                Reply { answer: Answer::Hit(hit), peer, .. } => {
                    let (extra, refill) = (hit.extra, hit.extra.refill.into());
                    Item::from_hit(hit, &peer).map(|item| {
                        let value_len = extra.value_len.unwrap_or(item.value.len() as u64);
                        Some(item::Look { item, value_len, refill })
                    })
                }
                Reply { answer: Answer::NotFound, .. } => Ok(None),
                reply => reply.unexpected(),
            };
            looked.map_err(|error| if changes { error } else { error.of_a_read() })
        })
    }
}

async fn write(
    cache: &Cache,
    command: Command<'_>,
    operation: Operation,
    idempotent: bool,
    return_old: bool,
) -> Result<Reply, Error> {
    let want = Want { return_old, ..Want::default() };
    let item = native::Item { command, want };
    cache.call(Call { item, operation, reads: false, idempotent, track: None }).await
}

fn written(reply: &Reply) -> Result<Written, Error> {
    match &reply.answer {
        Answer::Stored { version, .. } => Ok(Written::Stored { version: *version }),
        Answer::NotStored => Ok(Written::NotStored),
        Answer::Exists => Ok(Written::Conflict),
        Answer::NotFound => Ok(Written::NotFound),
        _ => reply.unexpected(),
    }
}

fn deleted(reply: &Reply) -> Result<Deleted, Error> {
    match &reply.answer {
        Answer::Deleted { .. } => Ok(Deleted::Deleted),
        Answer::NotFound => Ok(Deleted::NotFound),
        Answer::Exists => Ok(Deleted::Conflict),
        _ => reply.unexpected(),
    }
}

fn old(reply: Reply) -> Result<Option<Item>, Error> {
    let old: Option<Box<OldItem>> = match reply.answer {
        Answer::Stored { old, .. } | Answer::Deleted { old } => old,
        _ => None,
    };
    old.map(|old| Item::from_old(*old, &reply.peer)).transpose()
}
