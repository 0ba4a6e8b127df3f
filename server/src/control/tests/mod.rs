//! Whole groups in one process, over a wire that cuts where a test says.
//!
//! Nothing waits for a fixed time: each wait is for something to come about, with a deadline that
//! only a broken group reaches.

mod growth;
mod linked;
mod restart;
mod storage;
mod trouble;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kiln_cluster::{
    ids::{ClusterId, Incarnation, Member, NodeId},
    topology::{NodeProfile, NodeState, Rejected, Topology, TopologyCommand},
};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    BoxFuture, CommitError, Control, ControlSettings, ControlStatus, Unanswered, Wire, WireError,
    reach::PEER,
};

/// Within which everything that should come about does, on a machine that is busy with other
/// things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Partitions of the tables under test.
const PARTITIONS: u32 = 16;

/// The wire of a test.
#[derive(Default)]
struct Net {
    nodes: Mutex<BTreeMap<String, (NodeId, Control)>>,
    cuts: Mutex<BTreeSet<(NodeId, NodeId)>>,
    ports: AtomicU64,
}

/// Commits what does no harm twice: while leaders change, the outcome of an attempt may stay unknown.
async fn commit_surely(control: &Control, command: TopologyCommand) {
    let attempts = async {
        loop {
            match control.commit(command.clone()).await {
                Ok(_) | Err(CommitError::Rejected(Rejected::NoChange)) => return,
                Err(CommitError::Indeterminate | CommitError::NoLeader(_)) => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("not committed: {error}"),
            }
        }
    };
    timeout(PATIENCE, attempts).await.expect("is committed");
}

impl Net {
    fn new() -> Arc<Self> {
        // RUST_LOG=info shows what the groups do.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        Arc::default()
    }

    /// Nothing passes between this node and any other.
    fn cut_off(&self, node: NodeId) {
        let others: Vec<NodeId> = self.nodes.lock().values().map(|(id, _)| *id).collect();
        let mut cuts = self.cuts.lock();
        for other in others.into_iter().filter(|other| *other != node) {
            cuts.insert((node, other));
            cuts.insert((other, node));
        }
    }

    fn heal(&self) {
        self.cuts.lock().clear();
    }

    fn new_address(&self) -> String {
        format!("node-{}.test:7312", self.ports.fetch_add(1, Ordering::Relaxed))
    }
}

/// One node's end of it.
struct End {
    net: Arc<Net>,
    me: NodeId,
}

impl End {
    fn reach(
        &self,
        found: Option<(NodeId, Control)>,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>> {
        let (net, me) = (Arc::clone(&self.net), self.me);
        Box::pin(async move {
            let Some((to, control)) = found else {
                return Err(WireError::NotDone("nobody listens there".to_owned()));
            };
            if to == me {
                return Err(WireError::NotDone("that is this node itself".to_owned()));
            }
            let passes = |from, to| !net.cuts.lock().contains(&(from, to));
            let late = || WireError::Unknown("no answer in time".to_owned());
            if !passes(me, to) {
                sleep(within).await;
                return Err(late());
            }
            let answer = timeout(within, control.answer_to(me, kind, body)).await;
            if !passes(to, me) {
                sleep(within).await;
                return Err(late());
            }
            match answer {
                Err(_) => Err(late()),
                Ok(answer) => {
                    answer.map_err(|why: Unanswered| WireError::NotDone(format!("{why:?}")))
                }
            }
        })
    }
}

impl Wire for End {
    fn call(
        &self,
        to: NodeId,
        address: Option<&str>,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>> {
        let found = address.and_then(|address| self.net.nodes.lock().get(address).cloned());
        // Another node may have the address by now.
        self.reach(found.filter(|(id, _)| *id == to), kind, body, within)
    }

    fn call_at(
        &self,
        address: &str,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>> {
        let found = self.net.nodes.lock().get(address).cloned();
        self.reach(found, kind, body, within)
    }
}

/// A node under test.
struct Node {
    control: Control,
    me: Member,
    name: String,
    address: String,
    net: Arc<Net>,
}

/// How a node is started.
struct Plan<'a> {
    name: &'a str,
    dir: Option<&'a Path>,
    address: Option<String>,
    witness: bool,
    zone: &'a str,
    tune: fn(&mut ControlSettings),
}

impl<'a> Plan<'a> {
    fn named(name: &'a str) -> Self {
        Self { name, dir: None, address: None, witness: false, zone: "", tune: |_| {} }
    }

    fn in_dir(name: &'a str, dir: &'a Path) -> Self {
        Self { dir: Some(dir), ..Self::named(name) }
    }

    fn settings(&self) -> ControlSettings {
        let mut settings = ControlSettings::new(self.dir, self.name);
        settings.join_within = Some(PATIENCE);
        settings.commit_within = PATIENCE;
        settings.voters_check = Duration::from_millis(20);
        (self.tune)(&mut settings);
        settings
    }

    fn profile(&self, address: &str) -> NodeProfile {
        NodeProfile {
            name: self.name.to_owned(),
            addresses: BTreeMap::from([(PEER.to_owned(), address.to_owned())]),
            weight: 1_000,
            zone: self.zone.to_owned(),
            witness: self.witness,
        }
    }

    /// Starts the group's part of a node, in no cluster yet or back in its own.
    fn start(&self, net: &Arc<Net>) -> Node {
        let settings = self.settings();
        let (stored, store) = Control::open(&settings).expect("opens");
        let me = Member { node: stored.node, incarnation: Incarnation(crate::node::random()) };
        let end = End { net: Arc::clone(net), me: me.node };
        let control = Control::start(store, settings, me, end).expect("starts");
        let address = self.address.clone().unwrap_or_else(|| net.new_address());
        net.nodes.lock().insert(address.clone(), (me.node, control.clone()));
        Node { control, me, name: self.name.to_owned(), address, net: Arc::clone(net) }
    }

    /// Makes a cluster of a new node.
    async fn found(&self, net: &Arc<Net>, cluster: u64) -> Node {
        let node = self.start(net);
        let join = TopologyCommand::Join {
            node: node.me.node,
            incarnation: node.me.incarnation,
            replaces: None,
            profile: self.profile(&node.address),
        };
        let made = node.control.bootstrap(
            ClusterId(cluster),
            PARTITIONS,
            node.address.clone(),
            vec![join],
        );
        made.await.expect("is founded");
        node
    }

    /// Has a new node join.
    async fn join(&self, net: &Arc<Net>, seed: &Node) -> Node {
        let node = self.start(net);
        let seeds = [seed.address.clone()];
        let joined = node.control.join(&seeds, self.profile(&node.address), node.me).await;
        joined.expect("joins");
        node
    }

    /// Starts a node again that was in the cluster before.
    async fn rejoin(&self, net: &Arc<Net>) -> Node {
        let node = self.start(net);
        let joined = node.control.rejoin(&[], self.profile(&node.address), node.me).await;
        joined.expect("is in the cluster again");
        node
    }
}

impl Node {
    fn id(&self) -> NodeId {
        self.me.node
    }

    fn status(&self) -> ControlStatus {
        self.control.status()
    }

    fn table(&self) -> Arc<Topology> {
        Arc::clone(&self.control.topology().borrow())
    }

    async fn commit(&self, command: TopologyCommand) {
        self.control.commit(command).await.expect("is committed");
    }

    /// A command that always changes something.
    async fn commit_weight(&self, of: NodeId, weight: u32) {
        commit_surely(&self.control, TopologyCommand::SetWeight { node: of, weight }).await;
    }

    async fn until_table(&self, what: &str, is: impl Fn(&Topology) -> bool) {
        let mut table = self.control.topology();
        let found = timeout(PATIENCE, table.wait_for(|table| is(table))).await;
        assert!(found.is_ok_and(|found| found.is_ok()), "{} never: {what}", self.name);
    }

    async fn until_leading(&self, wanted: bool) {
        let mut leading = self.control.leading();
        let found = timeout(PATIENCE, leading.wait_for(|leading| *leading == wanted)).await;
        assert!(found.is_ok_and(|found| found.is_ok()), "{}: leading is never {wanted}", self.name);
    }

    /// These are the voters, and all of them know it.
    async fn until_voters(&self, wanted: &[&Node]) {
        let voters: BTreeSet<NodeId> = wanted.iter().map(|node| node.id()).collect();
        for node in wanted.iter().chain([&self]) {
            node.until_status(&format!("voters {voters:?}"), |status| {
                let now: BTreeSet<NodeId> = status.voters.iter().copied().collect();
                !status.changing && now == voters
            })
            .await;
        }
    }

    /// The library's view has no channel that tells of every change.
    async fn until_status(&self, what: &str, is: impl Fn(&ControlStatus) -> bool) {
        let wait = async {
            while !is(&self.status()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let found = timeout(PATIENCE, wait).await;
        assert!(found.is_ok(), "{} never: {what}; but {:?}", self.name, self.status());
    }

    /// Ends it: from then on nobody answers at its address, and its file is free.
    async fn stop(self) -> Member {
        self.net.nodes.lock().remove(&self.address);
        self.control.stop().await;
        self.me
    }
}

/// The one that leads now.
async fn leader<'a>(nodes: &[&'a Node]) -> &'a Node {
    let wait = async {
        loop {
            if let Some(node) = nodes.iter().find(|node| *node.control.leading().borrow()) {
                return *node;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("one of them leads")
}

/// All of them come to hold the same table.
async fn until_equal(nodes: &[&Node]) {
    let newest = nodes.iter().map(|node| node.table().epoch).max().expect("there are nodes");
    for node in nodes {
        node.until_table("the newest epoch", |table| table.epoch >= newest).await;
    }
    let digests: BTreeSet<u64> = nodes
        .iter()
        .filter(|node| node.table().epoch == newest)
        .map(|node| digest(&node.table()))
        .collect();
    assert_eq!(digests.len(), 1, "equal epochs are equal tables");
}

fn digest(table: &Topology) -> u64 {
    xxh3_64(&rmp_serde::to_vec(table).expect("a table can be written"))
}

fn state_of(table: &Topology, node: NodeId) -> Option<NodeState> {
    table.nodes.get(&node).map(|info| info.state)
}

fn weight_of(table: &Topology, node: NodeId) -> u32 {
    table.nodes.get(&node).map_or(0, |info| info.weight)
}
