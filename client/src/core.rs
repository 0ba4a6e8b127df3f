//! What all handles of a client share: its nodes, its view of the cluster, its caches.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::select_ok;
use kiln_protocol::native::{
    Effect, Op, Push,
    admin::{self, Subscribe, TopologyStamp, TopologyView, capability},
    encode,
};
use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    time::{Instant as TokioInstant, sleep, timeout_at},
};

use crate::{
    Backoff, Error, Event, Reason,
    call::ask_structure,
    connection::{Connection, Deadline, Greeting, Peer, Pushes, Tuning},
    error::WaitingFor,
    events::Announcer,
    flight::Flights,
    link::Link,
    metrics::Metrics,
    near::{NearCache, NearCacheConfig},
    retry::RetryPolicy,
    router::{Route, Router},
    stream::Followers,
    transport::Connector,
};

/// Settings that do not change after the client was made.
pub(crate) struct Settings {
    pub(crate) runtime: Handle,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) greeting: Greeting,
    pub(crate) tuning: Tuning,
    pub(crate) connect_timeout: Duration,
    pub(crate) reconnect: Backoff,
    pub(crate) connections_per_node: usize,
    pub(crate) near_caches: HashMap<String, NearCacheConfig>,
    pub(crate) metrics: Option<Arc<dyn Metrics>>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// How one call is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallOptions {
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
    /// Writes whose outcome is not known may be repeated.
    pub(crate) repeat_writes: bool,
    pub(crate) near: bool,
}

impl CallOptions {
    pub(crate) fn deadline(&self) -> Deadline {
        // Any timeout is a moment that a clock can tell.
        Deadline { at: Instant::now() + self.timeout.min(LONGEST), limit: self.timeout }
    }
}

/// Longest time that anything waits: practically without end, and still a moment to come.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A cache as this client knows it.
#[derive(Debug)]
pub(crate) struct CacheState {
    pub(crate) name: Arc<str>,
    /// The client's own number of the cache; `None` when it has too many.
    pub(crate) id: Option<usize>,
    pub(crate) near: Option<NearCache>,
    pub(crate) flights: Flights,
}

/// Most caches that a client opens handles for. Others are named in each request.
const CACHES_MAX: usize = 1024;

/// A node and the connections to it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) address: Arc<str>,
    links: Vec<Link>,
}

impl Node {
    fn new(address: Arc<str>, settings: &Arc<Settings>, core: &Weak<Core>) -> Self {
        let links = (0..settings.connections_per_node)
            .map(|index| Link::new(address.clone(), settings.clone(), core.clone(), index == 0));
        Self { address: address.clone(), links: links.collect() }
    }

    /// The connection that this thread uses.
    fn own_link(&self) -> &Link {
        &self.links[thread_number() % self.links.len()]
    }

    /// A connection. `pushed`: the one that invalidations come over.
    pub(crate) async fn connection(
        &self,
        deadline: Deadline,
        pushed: bool,
    ) -> Result<Arc<Connection>, Error> {
        let link = if pushed { &self.links[0] } else { self.own_link() };
        if let Some(connection) = link.ready() {
            return Ok(connection);
        }
        // While this thread's own is being made, or made again, the first may be there.
        link.start();
        if let Some(connection) = self.links[0].ready() {
            return Ok(connection);
        }
        link.connection(deadline).await
    }

    /// Whether there is no connection although there should be one.
    fn is_troubled(&self) -> bool {
        self.ready().is_none() && self.own_link().is_troubled()
    }

    fn ready(&self) -> Option<Arc<Connection>> {
        self.own_link().ready().or_else(|| self.links[0].ready())
    }

    /// Requests in flight; a node without a connection comes last, and is connected to.
    fn load(&self) -> usize {
        self.own_link().start();
        self.ready().map_or(usize::MAX, |connection| connection.load())
    }

    fn close(&self) {
        self.links.iter().for_each(Link::close);
    }
}

/// A small number for each thread that makes calls, so that each of the runtime's workers keeps to
/// its own connection.
fn thread_number() -> usize {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    }
    NUMBER.with(|number| *number)
}

/// The cluster at some moment.
#[derive(Debug)]
pub(crate) struct View {
    epoch: u64,
    cluster_id: String,
    /// By their places in the topology; `None` cannot be connected to.
    nodes: Vec<Option<Arc<Node>>>,
    /// Their ids, by the same places.
    ids: Vec<u64>,
    router: Router,
}

impl View {
    /// All nodes that can be connected to.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter().flatten()
    }

    /// All nodes that can be connected to, with their ids. None before the first topology.
    pub(crate) fn nodes_by_id(&self) -> impl Iterator<Item = (u64, &Arc<Node>)> {
        let known = self.ids.iter().zip(&self.nodes);
        known.filter_map(|(id, node)| Some((*id, node.as_ref()?)))
    }

    /// Whether there is another node to turn to.
    pub(crate) fn has_several(&self) -> bool {
        self.nodes().nth(1).is_some()
    }

    /// This node, or while it cannot be reached any other that can: that one passes the request on,
    /// and knows sooner than this client who takes over.
    fn or_substitute<'a>(&'a self, node: &'a Arc<Node>) -> &'a Arc<Node> {
        if !node.is_troubled() {
            return node;
        }
        let ready: Vec<_> = self.nodes().filter(|other| other.ready().is_some()).collect();
        fastrand::choice(ready).unwrap_or(node)
    }

    /// The node for a request.
    pub(crate) fn node(&self, cache: &str, key: &[u8], reads: bool) -> Option<&Arc<Node>> {
        if let [only] = self.nodes.as_slice() {
            return only.as_ref();
        }
        let node = |place: u32| self.nodes.get(place as usize).and_then(Option::as_ref);
        match self.router.route(cache, key, reads) {
            Route::One(place) => {
                node(place).map(|node| self.or_substitute(node)).or_else(|| self.any_node())
            }
            Route::Spread(places) => {
                let first = fastrand::usize(..places.len());
                let second = (first + fastrand::usize(1..places.len())) % places.len();
                let pair = [places[first], places[second]];
                let nodes = pair.into_iter().filter_map(node);
                let node = nodes.min_by_key(|node| node.load());
                node.map(|node| self.or_substitute(node)).or_else(|| self.any_node())
            }
            Route::Any => self.any_node(),
        }
    }

    /// A node that there is a connection to, or else one at random.
    pub(crate) fn any_node(&self) -> Option<&Arc<Node>> {
        let ready = self.nodes().filter(|node| node.ready().is_some());
        fastrand::choice(ready.collect::<Vec<_>>())
            .or_else(|| fastrand::choice(self.nodes().collect::<Vec<_>>()))
    }
}

/// See the module.
pub(crate) struct Core {
    pub(crate) settings: Arc<Settings>,
    /// To make links with.
    me: Weak<Core>,
    seeds: Vec<Arc<Node>>,
    view: RwLock<Arc<View>>,
    caches: RwLock<HashMap<Arc<str>, Arc<CacheState>>>,
    /// By the client's own numbers.
    caches_by_id: RwLock<Vec<Arc<CacheState>>>,
    events: Announcer,
    /// One asks for the topology at a time; when that was last done.
    refreshing: tokio::sync::Mutex<Option<Instant>>,
    retry_number: AtomicU64,
    pub(crate) followers: Followers,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

/// Least time between two requests for the topology.
const REFRESH_PAUSE: Duration = Duration::from_millis(20);

/// Longest wait for the topology of another node when one cannot be reached.
const REFRESH_ELSEWHERE_MAX: Duration = Duration::from_millis(500);

/// Most nodes that a topology is believed to have.
const NODES_MAX: usize = 1024;

impl Core {
    pub(crate) fn new(settings: Settings, hosts: &[String]) -> Arc<Self> {
        Arc::new_cyclic(|me| {
            let settings = Arc::new(settings);
            let seeds: Vec<_> = hosts
                .iter()
                .map(|host| Arc::new(Node::new(host.as_str().into(), &settings, me)))
                .collect();
            let view = View {
                epoch: 0,
                cluster_id: String::new(),
                nodes: seeds.iter().cloned().map(Some).collect(),
                ids: Vec::new(),
                router: Router::default(),
            };
            Self {
                settings,
                me: me.clone(),
                seeds,
                view: RwLock::new(Arc::new(view)),
                caches: RwLock::default(),
                caches_by_id: RwLock::default(),
                events: Announcer::new(),
                refreshing: tokio::sync::Mutex::new(None),
                retry_number: AtomicU64::new(0),
                followers: Followers::default(),
            }
        })
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    pub(crate) fn announce(&self, event: Event) {
        self.events.announce(event);
    }

    pub(crate) fn events(&self) -> crate::Events {
        self.events.listen()
    }

    /// A number that no other write of this client has.
    pub(crate) fn retry_number(&self) -> u64 {
        self.retry_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The one state of a cache.
    pub(crate) fn cache(&self, name: &str) -> Arc<CacheState> {
        if let Some(state) = self.caches.read().get(name) {
            return state.clone();
        }
        let mut caches = self.caches.write();
        if let Some(state) = caches.get(name) {
            return state.clone();
        }
        let mut by_id = self.caches_by_id.write();
        let name: Arc<str> = name.into();
        let id = (by_id.len() < CACHES_MAX).then_some(by_id.len());
        // Without a number there are no handles, and without a handle no invalidations.
        let near = self.settings.near_caches.get(&*name).filter(|_| id.is_some());
        let near = near.map(|config| NearCache::new(*config));
        let state =
            Arc::new(CacheState { name: name.clone(), id, near, flights: Flights::default() });
        if id.is_some() {
            by_id.push(state.clone());
            caches.insert(name, state.clone());
        }
        state
    }

    /// Nothing that was read from this cache is good any more.
    pub(crate) fn invalidate_cache(&self, name: &str) {
        if let Some(near) = self.caches.read().get(name).and_then(|state| state.near.as_ref()) {
            near.invalidate_all();
        }
    }

    /// A usable connection to any node.
    pub(crate) async fn any_connection(
        &self,
        deadline: Deadline,
    ) -> Result<Arc<Connection>, Error> {
        let view = self.view();
        let mut nodes: Vec<_> = view.nodes().chain(&self.seeds).collect();
        if let Some(connection) = nodes.iter().find_map(|node| node.ready()) {
            return Ok(connection);
        }
        if nodes.is_empty() {
            return Err(Error::not_applied(Reason::Closed));
        }
        // All at once, so that one that does not answer holds up nobody.
        fastrand::shuffle(&mut nodes);
        let attempts = nodes.into_iter().map(|node| Box::pin(node.connection(deadline, false)));
        select_ok(attempts).await.map(|(connection, _)| connection)
    }

    /// A connection is up.
    pub(crate) fn on_connected(&self, connection: &Arc<Connection>, first: bool) {
        if first && connection.peer.can(capability::TOPOLOGY) {
            connection.tell(|out| encode::subscribe(out, 0, &Subscribe { topology: true }));
        }
    }

    /// A node could not be reached: asks another who has taken over, for a short time at most.
    pub(crate) async fn refresh_elsewhere(&self, deadline: Deadline) {
        if !self.view().has_several() {
            return;
        }
        let at = deadline.at.min(Instant::now() + REFRESH_ELSEWHERE_MAX);
        // If it fails, the next attempt finds out what there is to find out.
        let _ = self.refresh(Deadline { at, ..deadline }).await;
    }

    /// Asks for the topology, unless somebody else just did.
    ///
    /// Cancel safe: dropped, the next one asks.
    pub(crate) async fn refresh(&self, deadline: Deadline) -> Result<(), Error> {
        // Whoever asks at the moment may have more time than this call.
        let refreshed = self.refresh_in_turn(deadline);
        match timeout_at(TokioInstant::from_std(deadline.at), refreshed).await {
            Ok(refreshed) => refreshed,
            Err(_) => Err(deadline.exceeded(Effect::NotApplied, WaitingFor::Connection)),
        }
    }

    async fn refresh_in_turn(&self, deadline: Deadline) -> Result<(), Error> {
        let asked_at = Instant::now();
        let mut refreshed = self.refreshing.lock().await;
        match *refreshed {
            Some(at) if at >= asked_at => return Ok(()),
            Some(at) if at.elapsed() < REFRESH_PAUSE => sleep(REFRESH_PAUSE - at.elapsed()).await,
            _ => {}
        }
        let begun = Instant::now();
        let connection = self.any_connection(deadline).await?;
        let topology = ask_structure(&connection, deadline, |out, id| {
            encode::bare(out, id, Op::Topology);
        })
        .await?;
        self.on_topology(topology, &connection.peer);
        *refreshed = Some(begun);
        Ok(())
    }

    /// Whether a topology that came is no newer than the one known.
    fn knows(&self, structure: &[u8]) -> bool {
        let view = self.view();
        admin::get::<TopologyStamp>(structure)
            .is_ok_and(|stamp| stamp.cluster_id == view.cluster_id && stamp.epoch <= view.epoch)
    }

    /// A node told of the cluster.
    fn on_topology(&self, topology: TopologyView, from: &Peer) {
        let epoch = topology.epoch;
        if topology.nodes.is_empty() || topology.nodes.len() > NODES_MAX {
            tracing::warn!(address = &*from.address, "a topology that cannot be used");
            return;
        }
        let mut view = self.view.write();
        let same = view.cluster_id == topology.cluster_id;
        if same && epoch <= view.epoch {
            return;
        }
        let known = |address: &str| {
            let nodes = view.nodes().chain(&self.seeds);
            nodes.into_iter().find(|node| &*node.address == address).cloned()
        };
        let alone = topology.nodes.len() == 1;
        let nodes =
            topology.nodes.iter().map(|node| {
                // The way that just worked is surely better than the one the node advertises.
                let itself = alone || node.id == from.welcome.node_id;
                let address = if itself { &*from.address } else { &*node.native };
                if address.is_empty() {
                    return None;
                }
                Some(known(address).unwrap_or_else(|| {
                    Arc::new(Node::new(address.into(), &self.settings, &self.me))
                }))
            });
        let nodes = nodes.collect();
        let cluster_id = topology.cluster_id.clone();
        let ids = topology.nodes.iter().map(|node| node.id).collect();
        let router = Router::new(topology);
        let next = Arc::new(View { epoch, cluster_id, nodes, ids, router });
        // Nodes that are gone lose their connections when the last call lets go of them.
        let last = std::mem::replace(&mut *view, next);
        drop(view);
        drop(last);
        self.announce(Event::TopologyChanged { epoch });
    }

    /// Ends all connections.
    pub(crate) fn close(&self) {
        let view = self.view();
        view.nodes().chain(&self.seeds).for_each(|node| node.close());
    }
}

impl Pushes for Weak<Core> {
    fn on_push(&self, connection: &Connection, push: Push<'_>) {
        let Some(core) = self.upgrade() else { return };
        match push {
            Push::Invalidate(invalidated) => {
                let cache = connection.cache_of(invalidated.cache);
                let states = core.caches_by_id.read();
                // A handle that this client does not know of was given up since.
                if let Some(near) =
                    cache.and_then(|id| states.get(id)).and_then(|state| state.near.as_ref())
                {
                    match invalidated.slots {
                        Some(slots) => slots.for_each(|slot| near.invalidate(slot)),
                        None => near.invalidate_all(),
                    }
                }
            }
            // Every node tells of the same change: only the first to do so is read.
            Push::Topology(structure) if core.knows(structure) => {}
            Push::Topology(structure) => match admin::get::<TopologyView>(structure) {
                Ok(topology) => core.on_topology(topology, &connection.peer),
                Err(error) => tracing::warn!(%error, "a topology that cannot be read"),
            },
            Push::Goodbye { reason } => {
                tracing::debug!(address = &*connection.peer.address, reason, "the node leaves");
                connection.leave();
            }
            Push::Live(live) => core.followers.tell(&live),
            Push::Unknown { .. } => {}
        }
    }
}
