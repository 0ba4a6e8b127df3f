//! What the driver sees pass by, kept for people: transfers, changes of nodes, losses.

use std::collections::BTreeMap;

use kiln_cluster::{
    ids::{Member, NodeId, Place},
    node::{Node as Core, Report},
    store::Store,
    time::{Mono, Now},
    topology::{NodeState, Topology},
};

use super::{
    shared::Cluster,
    status::{Counts, NodeOverview, Overview, Transfer},
};

/// Transfers remembered. More are not shown.
const TRANSFERS_MAX: usize = 1_024;

/// What was seen.
#[derive(Default)]
pub(super) struct Watcher {
    transfers: BTreeMap<(Place, Member), Transfer>,
    nodes: BTreeMap<NodeId, NodeState>,
    counts: Counts,
    /// Partitions lost since people were told last.
    lost: usize,
}

impl Watcher {
    /// A fact of the core.
    pub(super) fn on_report(&mut self, cluster: &Cluster, report: &Report) {
        match *report {
            Report::Serving { .. } => self.counts.takeovers += 1,
            Report::Transfer { place, to, done: true, bytes } => {
                self.transfers.remove(&(place, to));
                self.counts.filled += 1;
                self.counts.filled_bytes += bytes;
            }
            Report::Transfer { place, to, bytes, .. } => {
                let known = self.transfers.contains_key(&(place, to));
                if known || self.transfers.len() < TRANSFERS_MAX {
                    let since_ms = cluster.clock.now_ms();
                    let new = Transfer { place, to, bytes, since_ms };
                    self.transfers.entry((place, to)).or_insert(new).bytes = bytes;
                }
            }
            Report::Lost { place, generation } => {
                self.lost += 1;
                tracing::debug!(%place, %generation, "all copies were lost");
            }
            Report::Foreign { from } => {
                self.counts.foreign += 1;
                tracing::debug!(%from, "a message of another life or cluster was dropped");
            }
            _ => {}
        }
    }

    /// Tells what comes in numbers, once for all.
    pub(super) fn tell(&mut self, cluster: &Cluster) {
        match std::mem::take(&mut self.lost) {
            0 => {}
            1 => cluster.note("one partition lost all its copies; it goes on empty".to_owned()),
            lost => {
                cluster.note(format!("{lost} partitions lost all their copies; they go on empty"));
            }
        }
    }

    /// A new table: what changed about nodes is told.
    pub(super) fn on_topology(&mut self, cluster: &Cluster, topology: &Topology) {
        self.transfers.retain(|(place, to), _| {
            let state = topology.partition(*place);
            state.is_some_and(|state| state.learners.contains(to))
        });
        for (node, info) in &topology.nodes {
            let before = self.nodes.insert(*node, info.state);
            if before == Some(info.state) {
                continue;
            }
            let name = &info.name;
            let text = match (before, info.state) {
                (None, NodeState::Joining) => format!("node {name} joined"),
                (_, NodeState::Joining) => format!("node {name} is back and starts empty"),
                (_, NodeState::Ready) => format!("node {name} is ready"),
                (_, NodeState::Draining) => format!("node {name} hands its copies over"),
                (_, NodeState::Down) => format!("node {name} is not heard: others take over"),
            };
            cluster.note(text);
        }
        self.nodes.retain(|node, _| {
            let stays = topology.nodes.contains_key(node);
            if !stays {
                cluster.note(format!("node {} left", cluster.name_of(*node)));
            }
            stays
        });
    }

    /// What the core knows now.
    pub(super) fn overview<S: Store>(
        &self,
        core: &Core<S>,
        now: Now,
        leads: bool,
        waiting: usize,
    ) -> Overview {
        let said = |peer: &kiln_cluster::heartbeat::Heartbeat, heard: Mono| NodeOverview {
            heard_ms_ago: now.mono.since_ms(heard),
            operations_per_s: peer.load.operations_per_s,
            busy_milli: peer.load.busy_milli,
            memory_used: peer.memory_used,
            memory_limit: peer.memory_limit,
        };
        let membership = core.membership();
        let mut nodes: BTreeMap<NodeId, NodeOverview> = membership
            .peers()
            .map(|peer| (peer.member.node, said(&peer.said, peer.heard)))
            .collect();
        if let Some(own) = membership.own() {
            nodes.insert(core.me().node, said(own, now.mono));
        }
        Overview {
            nodes,
            transfers: self.transfers.values().copied().collect(),
            controller: if leads { Some(core.me().node) } else { membership.leaders(now).next() },
            waiting,
            counts: self.counts,
        }
    }
}
