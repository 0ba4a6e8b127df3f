//! Into the cluster, and out of it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, TcpListener},
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kiln_cluster::{
    config::{ForwardConfig, NodeConfig, StrongConfig},
    controller::ControllerConfig,
    ids::{ClientId, ClusterId, Incarnation, Member},
    message::Message,
    node::Node as Core,
    store_engine::EngineStore,
    time::Mono,
    topology::{NodeProfile, TopologyCommand},
};
use tokio::{runtime, sync::oneshot, time};

use super::{
    HTTP, MEMCACHED, NATIVE, PEER,
    catalog::{Catalog, spec_of},
    driver::{Driver, Turn},
    facts::Facts,
    shared::Cluster,
    turns::Turns,
    watcher::Watcher,
};
use crate::{
    control::{Control, ControlSettings},
    failure::Failure,
    node::{Node, random},
    peer::{Caller, Identity, Inbound, LinkSettings, Links, Refused},
    streams,
};

/// Partitions of a new cluster.
const PARTITIONS: u32 = 1_024;

/// How long another node may take over a request before this one asks again. The request carries
/// a name, so asking twice does no harm.
const FORWARD_TIMEOUT_MS: u64 = 600;

/// Partitions that a node is filled with, or fills others with, at once. Most partitions are small
/// and wait for two decisions of the controller group, each as long as its disks take; the bandwidth
/// of transfers has a limit of its own.
const TRANSFERS: usize = 16;

/// Between two looks whether something has come about.
const STEP: Duration = Duration::from_millis(10);

/// How long the table may take to name a node that has joined.
const TABLE_MAX: Duration = Duration::from_secs(30);

/// A node that is in a cluster.
pub(crate) struct Running {
    cluster: Arc<Cluster>,
    control: Control,
    links: Links,
    thread: JoinHandle<()>,
}

/// What reaches this node from others.
struct Door {
    node: Weak<Node>,
    turns: Arc<Turns>,
    control: OnceLock<Control>,
}

impl Inbound for Door {
    fn message(&self, message: Message, more: bool) {
        self.turns.put(message, more);
    }

    fn call(
        &self,
        from: Caller,
        kind: u8,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Refused>> + Send>> {
        if kind == streams::CALL {
            let node = self.node.upgrade();
            return Box::pin(async move {
                streams::answer(node.ok_or(Refused::Stopping)?, from, body).await
            });
        }
        match self.control.get() {
            Some(control) => control.answer(from, kind, body),
            None => {
                tracing::debug!(from = %from.name, kind, "asked while starting");
                Box::pin(async { Err(Refused::NotReady) })
            }
        }
    }
}

/// Brings this node into its cluster: the one that it was in before, that of the nodes it is told
/// to join, or one of its own. Returns when the table names it.
pub(crate) async fn start(node: &Arc<Node>, listener: TcpListener) -> Result<Running, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::Failed(format!("cannot {what}: {error}"))
    };
    let config = &node.config;
    let settings = ControlSettings::new(config.data_dir.get(), &config.name.to_string());
    let (stored, store) =
        Control::open(&settings).map_err(|error| failed("open the data directory", &error))?;
    let me = Member { node: stored.node, incarnation: Incarnation(node.incarnation) };
    let peer_address = listener.local_addr().map_err(|error| failed("listen for nodes", &error))?;
    let profile = profile(node, peer_address);

    let turns = Arc::new(Turns::default());
    let door = Arc::new(Door {
        node: Arc::downgrade(node),
        turns: Arc::clone(&turns),
        control: OnceLock::new(),
    });
    let (links_sender, links) = oneshot::channel();
    let (control_sender, control) = oneshot::channel::<Control>();
    let running_turns = Arc::clone(&turns);
    let identity = Identity { member: me, name: config.name.to_string() };
    let known = stored.cluster.unwrap_or(ClusterId(0));
    let inbound: Arc<dyn Inbound> = Arc::clone(&door) as Arc<dyn Inbound>;
    let work = move || {
        let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async {
            let links = LinkSettings::default();
            let links = Links::start(links, listener, identity, known, inbound);
            if links_sender.send(links).is_err() {
                return;
            }
            if let Ok(control) = control.await {
                running_turns.run(control.topology(), control.leading()).await;
            }
        });
    };
    let thread = thread::Builder::new().name("kiln-cluster".to_owned()).spawn(work);
    let thread = thread.map_err(|error| failed("start a thread", &error))?;
    let links = links.await.map_err(|error| failed("start the links to other nodes", &error))?;
    let links = links.map_err(|error| failed("listen for nodes", &error))?;

    let control = Control::start(store, settings, me, links.clone())
        .map_err(|error| failed("start the controller group", &error))?;
    // Set once, here.
    let _ = door.control.set(control.clone());
    let seeds = config.join.addresses();
    let cluster_id = if stored.cluster.is_some() {
        control.rejoin(&seeds, profile, me).await.map_err(|error| failed("rejoin", &error))?.0
    } else if seeds.is_empty() {
        let cluster = ClusterId(random());
        let first = first_commands(node, me, profile);
        links.set_cluster(cluster);
        let address = advertised(node, peer_address);
        let made = control.bootstrap(cluster, PARTITIONS, address, first).await;
        made.map_err(|error| failed("make a cluster", &error))?;
        cluster
    } else {
        let joined = control.join(&seeds, profile, me).await;
        joined.map_err(|error| failed("join the cluster", &error))?.0
    };
    links.set_cluster(cluster_id);

    let workers = node.workers.len();
    let cluster = Arc::new(Cluster::new(me, workers, node.clock, Arc::clone(&turns)));
    let core = Core::new(
        cluster_id,
        core_config(),
        me,
        EngineStore::new(PARTITIONS),
        random(),
        cluster.now(),
    );
    let driver = Driver {
        node: Arc::clone(node),
        cluster: Arc::clone(&cluster),
        core,
        links: links.clone(),
        control: control.clone(),
        catalog: Catalog::default(),
        watcher: Watcher::default(),
        facts: Facts::default(),
        client: ClientId(random()),
        leads: false,
        sleeps_until: Mono::MAX,
        turn: Turn::default(),
    };
    cluster.set_control(control.clone(), links.clone());
    turns.begin(driver);
    if node.cluster.set(Arc::clone(&cluster)).is_err()
        || control_sender.send(control.clone()).is_err()
    {
        return Err(Failure::Failed("the cluster thread ended".to_owned()));
    }
    let running = Running { cluster, control, links, thread };
    running.until_known().await?;
    Ok(running)
}

impl Running {
    /// Waits until the table names this life of the node, its caches are there, and every partition
    /// has a primary if there is nobody else.
    async fn until_known(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + TABLE_MAX;
        while !self.cluster.is_open() {
            if Instant::now() >= deadline {
                let text = "the cluster did not take this node up in time; is a majority of its \
                            voters running? (kiln cluster status)";
                return Err(Failure::Failed(text.to_owned()));
            }
            time::sleep(STEP).await;
        }
        Ok(())
    }

    /// Hands over what this node holds, for at most so long. Says whether all of it was.
    pub(crate) async fn leave(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let topology = Arc::clone(&self.cluster.topology());
        let me = self.cluster.me.node;
        let heirs = topology.nodes.iter().any(|(node, info)| *node != me && info.holds_items());
        if !heirs {
            return true;
        }
        tracing::info!("handing over to the other nodes");
        self.cluster.leave();
        while !self.cluster.has_left() {
            if Instant::now() >= deadline {
                let held = self.cluster.topology().drain_progress(me).held;
                tracing::warn!(partitions = held, "stops before everything was handed over");
                return false;
            }
            time::sleep(STEP).await;
        }
        tracing::info!("handed over");
        true
    }

    /// Returns when this node cannot take part any longer, with the reason.
    pub(crate) async fn failed(&self) -> String {
        self.control.failed().await
    }

    /// Ends the controller group's part. The rest ends with the process.
    pub(crate) async fn stop(self) {
        self.control.stop().await;
        self.links.close();
        self.cluster.turns.stop();
        drop(self.thread);
    }
}

/// What makes a cluster of this node.
fn first_commands(node: &Node, me: Member, profile: NodeProfile) -> Vec<TopologyCommand> {
    let Member { node: id, incarnation } = me;
    let mut commands =
        vec![TopologyCommand::Join { node: id, incarnation, replaces: None, profile }];
    let mut groups = BTreeSet::new();
    let table = node.caches.load();
    let mut settings: Vec<_> = table.iter().map(|cache| cache.settings.clone()).collect();
    // `default` first: nothing rests on it, but it reads better.
    settings.sort_by_key(|settings| *settings.name != *crate::caches::DEFAULT);
    for settings in settings {
        let mut spec = spec_of(&settings);
        if *settings.name == *crate::caches::DEFAULT {
            spec.copies = u8::try_from(node.config.replicas.0).unwrap_or(1);
            spec.memory = 0;
        }
        let name = settings.name.to_string();
        groups.insert(spec.group());
        commands.push(TopologyCommand::CreateCache { name, spec });
    }
    if node.config.weight.milli() > 0 && !node.config.witness.0 {
        commands.extend(
            groups.into_iter().flat_map(|group| TopologyCommand::claim(group, PARTITIONS, me)),
        );
    }
    commands
}

/// What this node says of itself.
fn profile(node: &Node, peer: SocketAddr) -> NodeProfile {
    let mut addresses = BTreeMap::new();
    let endpoints = &node.endpoints;
    for (name, address) in [
        (PEER, Some(peer)),
        (NATIVE, endpoints.native),
        (MEMCACHED, endpoints.memcached_tcp()),
        (HTTP, endpoints.http),
    ] {
        if let Some(address) = address {
            addresses.insert(name.to_owned(), advertised(node, address));
        }
    }
    NodeProfile {
        name: node.config.name.to_string(),
        addresses,
        weight: node.config.weight.milli(),
        zone: node.config.zone.to_string(),
        witness: node.config.witness.0,
    }
}

/// Where others reach a listener of this node.
fn advertised(node: &Node, address: SocketAddr) -> String {
    let port = address.port();
    match node.config.advertise.get() {
        Some(host) if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
            format!("[{host}]:{port}")
        }
        Some(host) => format!("{host}:{port}"),
        // Nobody can connect to "any address": the name of the host is the best guess.
        None if address.ip().is_unspecified() => {
            format!("{}:{port}", crate::config::host_name())
        }
        None => address.to_string(),
    }
}

fn core_config() -> NodeConfig {
    NodeConfig {
        strong: StrongConfig {
            // Reads of one turn share a round anyway; waiting for more costs more than it saves.
            confirm_batch_us: 0,
            transfers_max: TRANSFERS,
            ..StrongConfig::default()
        },
        controller: ControllerConfig {
            learners_per_node: TRANSFERS,
            learners_per_source: TRANSFERS,
            ..ControllerConfig::default()
        },
        forward: ForwardConfig { timeout_ms: FORWARD_TIMEOUT_MS, ..ForwardConfig::default() },
        ..NodeConfig::default()
    }
}
