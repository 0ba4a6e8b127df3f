//! How a client is set up.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kiln_protocol::native::admin::Credentials;

use crate::{
    Address, AddressError, Backoff, Client, Error, Metrics, NearCacheConfig, RetryPolicy,
    TcpConnector,
    address::check_cache_name,
    connection::{Greeting, Tuning},
    core::{CallOptions, Core, LONGEST, Settings},
    near::STALENESS_LEAST,
    transport::Connector,
};

/// Sets up a [`Client`]. Every setting has a default, which its method states.
///
/// ```no_run
/// use std::time::Duration;
/// use kiln_client::Client;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder()
///     .address("kiln://cache-1,cache-2/sessions".parse()?)
///     .timeout(Duration::from_millis(200))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct Builder {
    address: Address,
    name: String,
    credentials: Option<Credentials>,
    timeout: Duration,
    connect_timeout: Duration,
    retry: RetryPolicy,
    reconnect: Backoff,
    connections_per_node: Option<usize>,
    in_flight_max: u32,
    keepalive: Duration,
    compress: bool,
    frame_len_max: usize,
    near_caches: HashMap<String, NearCacheConfig>,
    connector: Arc<dyn Connector>,
    metrics: Option<Arc<dyn Metrics>>,
}

/// Most connections to one node.
const CONNECTIONS_MAX: usize = 16;

/// Connections to one node where the builder is told nothing: no more than this many.
const CONNECTIONS_USUAL_MAX: usize = 4;

/// Most requests in flight on a connection that can be asked for. Ids are the bound.
const IN_FLIGHT_MOST: u32 = 32 * 1024;

impl Default for Builder {
    fn default() -> Self {
        Self {
            address: Address::default(),
            name: concat!("kiln-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            credentials: None,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            retry: RetryPolicy::default(),
            reconnect: Backoff { first: Duration::from_millis(20), most: Duration::from_secs(2) },
            connections_per_node: None,
            in_flight_max: 1024,
            keepalive: Duration::from_secs(15),
            compress: true,
            frame_len_max: 64 << 20,
            near_caches: HashMap::new(),
            connector: Arc::new(TcpConnector),
            metrics: None,
        }
    }
}

impl Builder {
    /// Where the cluster is. Default: `kiln://127.0.0.1:7311`.
    pub fn address(mut self, address: Address) -> Self {
        self.address = address;
        self
    }

    /// How this client calls itself in the nodes' logs. Default: name and version of this library.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// User and password. Default: none.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials { user: user.into(), password: password.into() });
        self
    }

    /// How long a call may take in all, with waiting, connecting and every attempt. Default: 2 s.
    ///
    /// [`Cache::with_timeout`](crate::Cache::with_timeout) changes it for some calls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long an attempt to connect may take. Default: 2 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How calls are tried again. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Delays between attempts to connect. Default: from 20 ms to 2 s. A connection that was lost
    /// is made again at once, the first time.
    pub fn reconnect(mut self, backoff: Backoff) -> Self {
        self.reconnect = backoff;
        self
    }

    /// Connections to each node, from 1 to 16. Default: as many as the runtime has workers, at
    /// most 4; each worker uses its own.
    pub fn connections_per_node(mut self, connections: usize) -> Self {
        self.connections_per_node = Some(connections.clamp(1, CONNECTIONS_MAX));
        self
    }

    /// Requests in flight on one connection; further ones wait for room. A large request counts
    /// once more for every 16 KiB. From 1 to 32,768; default: 1,024.
    pub fn in_flight_max(mut self, requests: u32) -> Self {
        self.in_flight_max = requests.clamp(1, IN_FLIGHT_MOST);
        self
    }

    /// Silence on a connection after which the node is asked whether it lives; it has 5 s to
    /// answer. At least 100 ms; default: 15 s.
    pub fn keepalive(mut self, silence: Duration) -> Self {
        self.keepalive = silence.clamp(Duration::from_millis(100), LONGEST);
        self
    }

    /// Whether large values travel compressed where the node agrees. Default: yes.
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// Longest answer that is accepted, in bytes, however much the node announces; at least
    /// 64 KiB. Default: 64 MiB.
    pub fn frame_len_max(mut self, len: usize) -> Self {
        self.frame_len_max = len.max(64 * 1024);
        self
    }

    /// Keeps values of this cache near, in this process. Default: none.
    ///
    /// Reads of the cache may then be as old as [`NearCacheConfig::staleness_max`].
    pub fn near_cache(mut self, cache: impl Into<String>, config: NearCacheConfig) -> Self {
        self.near_caches.insert(cache.into(), config);
        self
    }

    /// Makes the connections. Default: [`TcpConnector`].
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connector = Arc::new(connector);
        self
    }

    /// Is told of calls. Default: nobody.
    pub fn metrics(mut self, metrics: Arc<impl Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Connects: returns when one of the nodes has answered and has told of the others.
    ///
    /// Must be called in a Tokio runtime with time and I/O enabled, which must outlive the client.
    ///
    /// Cancel safe: dropped, there is no client and there are no connections.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.connect_lazily();
        client.await_cluster().await?;
        Ok(client)
    }

    /// A client that connects when it is first used. Its first calls may fail where
    /// [`connect`](Self::connect) would have.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn connect_lazily(self) -> Client {
        let runtime = tokio::runtime::Handle::current();
        let workers = runtime.metrics().num_workers().clamp(1, CONNECTIONS_USUAL_MAX);
        let confirm_every = self.near_caches.values().map(|config| config.staleness_max).min();
        let confirm_every = confirm_every.map(|bound| bound.clamp(STALENESS_LEAST, LONGEST) / 4);
        let settings = Settings {
            runtime,
            connector: self.connector,
            greeting: Greeting {
                // Never 0, which has no retry window.
                client_id: fastrand::u64(1..),
                name: self.name,
                credentials: self.credentials,
                compress: self.compress,
                frame_len_max: self.frame_len_max,
            },
            tuning: Tuning {
                in_flight_max: self.in_flight_max,
                keepalive: self.keepalive,
                ping_timeout: PING_TIMEOUT,
                confirm_every,
            },
            connect_timeout: self.connect_timeout,
            reconnect: self.reconnect,
            connections_per_node: self.connections_per_node.unwrap_or(workers),
            near_caches: self.near_caches,
            metrics: self.metrics,
        };
        let options = CallOptions {
            timeout: self.timeout,
            retry: self.retry,
            repeat_writes: false,
            near: true,
        };
        let core = Core::new(settings, self.address.hosts());
        Client::new(core, self.address.cache(), options)
    }

    /// Checks a name for a cache by the nodes' rule.
    pub fn check_cache_name(name: &str) -> Result<(), AddressError> {
        check_cache_name(name)
    }
}

/// How long a node may take to answer whether it lives.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("address", &self.address).finish_non_exhaustive()
    }
}
