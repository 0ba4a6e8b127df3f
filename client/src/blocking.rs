//! The client for programs without async: the same operations, each of which blocks its thread
//! until it is done.
//!
//! The connections are run by a thread of the client's own, so that any number of threads can make
//! calls at once. Not to be used from within async code: it panics there rather than block a
//! runtime's worker.
//!
//! ```no_run
//! let client = kiln_client::blocking::Client::connect("kiln://127.0.0.1:7311")?;
//! client.set("key", "value")?;
//! assert_eq!(client.get("key")?.as_deref(), Some(b"value".as_slice()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    collections::VecDeque,
    future::{Future, IntoFuture},
    io,
    ops::Deref,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{runtime, sync::oneshot};

use crate::{
    Address, AddressError, Builder, CacheInfo, CacheSpec, ComputeError, Deleted, Entry, Error,
    Expiry, Item, NodeInfo, Pages, Put, Scan, TopologyView, compute::Sought, operation::CallFuture,
};

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The thread of the client could not be started.
    #[error("cannot start the client's thread: {0}")]
    Thread(#[from] io::Error),
    /// No node answered.
    #[error(transparent)]
    Cluster(#[from] Error),
}

/// A thread that runs the connections.
#[derive(Debug)]
struct Engine {
    handle: runtime::Handle,
    /// Its end ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Engine {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (_stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("kiln-client".to_owned()).spawn(move || {
            // Ends with the sender, whether it says something or not.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop })
    }
}

/// A client of a cluster, and the [`Cache`] that its address names. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    client: crate::Client,
    default: Cache,
}

impl Deref for Client {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.default
    }
}

impl Client {
    /// Connects with all settings as they are by default.
    pub fn connect(address: &str) -> Result<Self, ConnectError> {
        let address: Address = address.parse()?;
        Self::build(crate::Client::builder().address(address))
    }

    /// Connects with settings of the program's choice.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// let builder = kiln_client::Client::builder().timeout(Duration::from_millis(500));
    /// let client = kiln_client::blocking::Client::build(builder)?;
    /// # Ok::<(), kiln_client::blocking::ConnectError>(())
    /// ```
    pub fn build(builder: Builder) -> Result<Self, ConnectError> {
        let engine = Arc::new(Engine::start()?);
        let client = engine.handle.block_on(builder.connect())?;
        let default = Cache { cache: (*client).clone(), engine };
        Ok(Self { client, default })
    }

    /// A cache by its name.
    pub fn cache(&self, name: &str) -> Cache {
        Cache { cache: self.client.cache(name), engine: self.default.engine.clone() }
    }

    /// See [`Client::ping`](crate::Client::ping).
    pub fn ping(&self) -> Result<(), Error> {
        self.wait(self.client.ping())
    }

    /// See [`Client::create_cache`](crate::Client::create_cache).
    pub fn create_cache(&self, spec: &CacheSpec) -> Result<(), Error> {
        self.wait(self.client.create_cache(spec))
    }

    /// See [`Client::drop_cache`](crate::Client::drop_cache).
    pub fn drop_cache(&self, name: &str) -> Result<bool, Error> {
        self.wait(self.client.drop_cache(name))
    }

    /// See [`Client::caches`](crate::Client::caches).
    pub fn caches(&self) -> Result<Vec<CacheInfo>, Error> {
        self.wait(self.client.caches())
    }

    /// See [`Client::topology`](crate::Client::topology).
    pub fn topology(&self) -> Result<TopologyView, Error> {
        self.wait(self.client.topology())
    }

    /// See [`Client::nodes_info`](crate::Client::nodes_info).
    pub fn nodes_info(&self) -> Vec<(String, Result<NodeInfo, Error>)> {
        self.wait(self.client.nodes_info())
    }
}

/// A cache of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    // Before the engine, so that the connections end before their thread.
    cache: crate::Cache,
    engine: Arc<Engine>,
}

impl Cache {
    fn wait<F: Future>(&self, call: F) -> F::Output {
        self.engine.handle.block_on(call)
    }

    /// Makes an operation of the async cache, with whatever options it has.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn example(cache: kiln_client::blocking::Cache) -> Result<(), kiln_client::Error> {
    /// let minute = Duration::from_secs(60);
    /// cache.call(|cache| cache.set("key", "value").expires(minute))?;
    /// let written = cache.call(|cache| cache.add("key", "value"))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn call<'a, O, T>(
        &'a self,
        operation: impl FnOnce(&'a crate::Cache) -> O,
    ) -> Result<T, Error>
    where
        O: IntoFuture<Output = Result<T, Error>, IntoFuture = CallFuture<'a, T>>,
    {
        self.wait(operation(&self.cache).into_future())
    }

    /// The same cache, with another timeout for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { cache: self.cache.with_timeout(timeout), engine: self.engine.clone() }
    }

    /// See [`Cache::get`](crate::Cache::get).
    pub fn get(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Option<Bytes>, Error> {
        self.wait(self.cache.get(key))
    }

    /// See [`Cache::get_item`](crate::Cache::get_item).
    pub fn get_item(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Option<Item>, Error> {
        self.wait(self.cache.get_item(key))
    }

    /// See [`Cache::set`](crate::Cache::set); for its options see [`call`](Self::call).
    pub fn set(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        value: &(impl AsRef<[u8]> + ?Sized),
    ) -> Result<u64, Error> {
        self.wait(self.cache.set(key, value).into_future())
    }

    /// See [`Cache::delete`](crate::Cache::delete).
    pub fn delete(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Deleted, Error> {
        self.wait(self.cache.delete(key).into_future())
    }

    /// See [`Cache::touch`](crate::Cache::touch).
    pub fn touch(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        expires: impl Into<Expiry>,
    ) -> Result<bool, Error> {
        self.wait(self.cache.touch(key, expires))
    }

    /// See [`Cache::flush`](crate::Cache::flush).
    pub fn flush(&self) -> Result<(), Error> {
        self.wait(self.cache.flush())
    }

    /// See [`Cache::get_many`](crate::Cache::get_many).
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Option<Item>, Error>> {
        self.wait(self.cache.get_many(keys))
    }

    /// See [`Cache::set_many`](crate::Cache::set_many).
    pub fn set_many(&self, values: &[Put<'_>]) -> Vec<Result<u64, Error>> {
        self.wait(self.cache.set_many(values))
    }

    /// See [`Cache::delete_many`](crate::Cache::delete_many).
    pub fn delete_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Deleted, Error>> {
        self.wait(self.cache.delete_many(keys))
    }

    /// See [`Cache::get_or_compute`](crate::Cache::get_or_compute). What computes runs on the
    /// caller's thread, and may use this client.
    pub fn get_or_compute<V, E>(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        expires: impl Into<Expiry>,
        compute: impl FnOnce() -> Result<V, E>,
    ) -> Result<Bytes, ComputeError>
    where
        V: Into<Bytes>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let key = key.as_ref();
        match self.wait(self.cache.seek(key))? {
            Sought::There(value) => Ok(value),
            Sought::Missing(computation) => {
                let computed = compute();
                self.wait(self.cache.settle(key, expires.into(), computation, computed))
            }
        }
    }

    /// Walks through the cache. `scan` sets what is wanted.
    ///
    /// ```no_run
    /// # fn example(cache: kiln_client::blocking::Cache) -> Result<(), kiln_client::Error> {
    /// for entry in cache.scan(|scan| scan.prefix("user:").values()) {
    ///     println!("{:?}", entry?.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, scan: impl FnOnce(Scan) -> Scan) -> Entries {
        let pages = scan(self.cache.scan()).pages();
        Entries { engine: self.engine.clone(), pages, ready: VecDeque::new(), over: false }
    }
}

/// The items of a scan; an iterator that ends after its first error.
#[derive(Debug)]
pub struct Entries {
    pages: Pages,
    engine: Arc<Engine>,
    ready: VecDeque<Entry>,
    over: bool,
}

impl Iterator for Entries {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.over {
            match self.engine.handle.block_on(self.pages.next()) {
                Ok(Some(page)) => self.ready.extend(page),
                Ok(None) => self.over = true,
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
