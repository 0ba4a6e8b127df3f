//! The group over the real links, on loopback.

use std::{
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::OnceLock,
};

use kiln_cluster::message::Message;

use super::*;
use crate::peer::{Caller, Identity, Inbound, LinkSettings, Links, Refused};

/// What reaches a node from others.
#[derive(Default)]
struct Door(OnceLock<Control>);

impl Inbound for Door {
    fn message(&self, _message: Message, _more: bool) {}

    fn call(
        &self,
        from: Caller,
        kind: u8,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Refused>> + Send>> {
        match self.0.get() {
            Some(control) => control.answer(from, kind, body),
            None => Box::pin(async { Err(Refused::NotReady) }),
        }
    }
}

struct Linked {
    control: Control,
    links: Links,
    me: Member,
    address: SocketAddr,
    follows: tokio::task::JoinHandle<()>,
}

impl Linked {
    fn start(name: &str, dir: &Path, address: &str) -> Self {
        let settings = Plan::in_dir(name, dir).settings();
        let (stored, store) = Control::open(&settings).expect("opens");
        let me = Member { node: stored.node, incarnation: Incarnation(crate::node::random()) };
        let listener = TcpListener::bind(address).expect("the port is free");
        let address = listener.local_addr().unwrap();
        let door = Arc::new(Door::default());
        let identity = Identity { member: me, name: name.to_owned() };
        let cluster = stored.cluster.unwrap_or_default();
        let inbound: Arc<dyn Inbound> = Arc::clone(&door) as Arc<dyn Inbound>;
        let links = Links::start(LinkSettings::default(), listener, identity, cluster, inbound);
        let links = links.expect("listens");
        let control = Control::start(store, settings, me, links.clone()).expect("starts");
        assert!(door.0.set(control.clone()).is_ok());
        let follows = tokio::spawn(async {});
        Self { control, links, me, address, follows }
    }

    /// From when the node is in a cluster: connections are kept to whom the table names.
    fn follow(&mut self, cluster: ClusterId) {
        self.links.set_cluster(cluster);
        let (links, mut table) = (self.links.clone(), self.control.topology());
        self.follows = tokio::spawn(async move {
            loop {
                let now = Arc::clone(&table.borrow_and_update());
                let address = |node| super::super::reach::peer_address(&now, node);
                let nodes = now.nodes.keys();
                let peers = nodes
                    .filter_map(|node| Some((now.member(*node)?, address(*node)?.to_owned())))
                    .collect();
                links.set_peers(peers);
                if table.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn profile(&self, name: &str) -> NodeProfile {
        Plan::named(name).profile(&self.address.to_string())
    }

    async fn stop(self) -> SocketAddr {
        self.follows.abort();
        self.links.close();
        self.control.stop().await;
        self.address
    }

    fn voters(&self) -> usize {
        let status = self.control.status();
        if status.changing { 0 } else { status.voters.len() }
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn three_nodes_found_join_lose_their_leader_and_all_come_back() {
    const ANY: &str = "127.0.0.1:0";
    let names = ["a", "b", "c"];
    let dirs = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let mut a = Linked::start(names[0], dirs[0].path(), ANY);
    let Member { node, incarnation } = a.me;
    let join =
        TopologyCommand::Join { node, incarnation, replaces: None, profile: a.profile(names[0]) };
    let cluster = ClusterId(7);
    let made = a.control.bootstrap(cluster, PARTITIONS, a.address.to_string(), vec![join]).await;
    made.expect("is founded");
    a.follow(cluster);
    let seeds = [a.address.to_string()];
    let mut nodes = vec![a];
    for at in 1..3 {
        let mut node = Linked::start(names[at], dirs[at].path(), ANY);
        let joined = node.control.join(&seeds, node.profile(names[at]), node.me).await;
        assert_eq!(joined.expect("joins").0, cluster);
        node.follow(cluster);
        nodes.push(node);
    }
    until("three voters", || nodes.iter().all(|node| node.voters() == 3)).await;

    // The one that leads ends; another one leads and decides.
    let weight = |weight| TopologyCommand::SetWeight { node, weight };
    let leads = |node: &Linked| *node.control.leading().borrow();
    let leader = nodes.iter().position(leads).expect("one leads");
    let gone = nodes.remove(leader).stop().await;
    until("another leader", || nodes.iter().any(leads)).await;
    for (value, node) in (1..).zip(&nodes) {
        commit_surely(&node.control, weight(value)).await;
    }

    // It comes back where it was and finds the others by what it remembers.
    let mut back = Linked::start(names[leader], dirs[leader].path(), &gone.to_string());
    let profile = back.profile(names[leader]);
    let joined = back.control.rejoin(&[], profile, back.me).await;
    joined.expect("is back");
    back.follow(cluster);
    nodes.insert(leader, back);
    commit_surely(&nodes[leader].control, weight(3)).await;

    // All of them end.
    let mut addresses = Vec::new();
    for node in nodes {
        addresses.push(node.stop().await.to_string());
    }
    let mut nodes: Vec<Linked> =
        (0..3).map(|at| Linked::start(names[at], dirs[at].path(), &addresses[at])).collect();
    let [one, two, three] = [0, 1, 2].map(|at| {
        let node = &nodes[at];
        node.control.rejoin(&[], node.profile(names[at]), node.me)
    });
    let (one, two, three) = tokio::join!(one, two, three);
    for joined in [one, two, three] {
        joined.expect("is back");
    }
    nodes.iter_mut().for_each(|node| node.follow(cluster));
    commit_surely(&nodes[2].control, weight(4)).await;
    for node in &nodes {
        let mut table = node.control.topology();
        let shown = table.wait_for(|table| weight_of(table, NodeId(node.me.node.0)) > 0);
        assert!(timeout(PATIENCE, shown).await.is_ok());
        assert!(node.control.topology().borrow().is_present(node.me));
    }
    for node in nodes {
        node.stop().await;
    }
}
