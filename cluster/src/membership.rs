//! Who is alive, as one node sees it.
//!
//! Each node beats to the controller and to the nodes that it shares partitions with, and listens
//! to the same. Silence beyond a limit suspects; a suspicion may be wrong, and only decisions that
//! cost time or balance may rest on it: whom to read from, whom to ask to take over. What must be
//! right rests on the agreed table alone.
//!
//! Bounds: one entry for each node in the table; entries of nodes that left it are dropped.

mod availability;

use std::collections::{BTreeMap, BTreeSet};

pub use self::availability::Availability;
use crate::heartbeat::{HOTTEST_MAX, Heartbeat, HeartbeatConfig, Load, LocalFacts};
use crate::ids::{Epoch, Member, NodeId};
use crate::time::{Mono, Now};
use crate::topology::Topology;

/// What is known of another node from its beats.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Which life of it.
    pub member: Member,
    /// When it was heard last.
    pub heard: Mono,
    /// Beats since it was last suspected, without a gap.
    pub beats: u32,
    /// What it said.
    pub said: Heartbeat,
}

/// Who is alive.
#[derive(Clone, Debug)]
pub struct Membership {
    config: HeartbeatConfig,
    me: Member,
    leads: bool,
    count: u64,
    next_beat: Mono,
    own: Option<Heartbeat>,
    peers: BTreeMap<NodeId, Peer>,
    availability: BTreeMap<NodeId, Availability>,
    /// Whom this node shares partitions with, and the table that it was taken from.
    neighbours: BTreeSet<NodeId>,
    neighbours_of: Option<Epoch>,
}

impl Membership {
    /// A node that has heard nobody yet.
    #[must_use]
    pub fn new(config: HeartbeatConfig, me: Member) -> Self {
        Self {
            config,
            me,
            leads: false,
            count: 0,
            next_beat: Mono::default(),
            own: None,
            peers: BTreeMap::new(),
            availability: BTreeMap::new(),
            neighbours: BTreeSet::new(),
            neighbours_of: None,
        }
    }

    /// This node leads the controller group, or does so no longer. It beats to all at the next
    /// opportunity, so that they learn where to report to.
    pub fn lead(&mut self, leads: bool) {
        if leads && !self.leads {
            self.next_beat = Mono::default();
        }
        self.leads = leads;
    }

    /// A new table: nodes that are not in it are forgotten.
    pub fn on_topology(&mut self, topology: &Topology) {
        self.peers.retain(|node, _| topology.nodes.contains_key(node));
        self.availability.retain(|node, _| topology.nodes.contains_key(node));
        if self.neighbours_of != Some(topology.epoch) {
            self.neighbours = topology.neighbours(self.me.node);
            self.neighbours_of = Some(topology.epoch);
        }
    }

    /// Takes in a beat. Whoever calls this has checked that it is from a life that the table
    /// knows. Says whether it was new; late and repeated ones prove nothing.
    pub fn on_heartbeat(&mut self, now: Now, from: Member, beat: &Heartbeat) -> bool {
        let mut said = beat.clone();
        said.hottest.truncate(HOTTEST_MAX);
        let suspect_after = self.config.suspect_after();
        let known = self.peers.get(&from.node).filter(|peer| peer.member == from);
        let beats = match known {
            Some(peer) if beat.count <= peer.said.count => return false,
            Some(peer) if now.mono.since_ms(peer.heard) < suspect_after => {
                peer.beats.saturating_add(1)
            }
            _ => 1,
        };
        if beats == 1 {
            self.availability.entry(from.node).or_default().up(now.mono);
        }
        self.peers.insert(from.node, Peer { member: from, heard: now.mono, beats, said });
        true
    }

    /// The beats that are due: to the nodes that share partitions with this one, to whoever leads,
    /// and to all as long as that is unknown or it is this node itself.
    pub fn beats(
        &mut self,
        now: Now,
        topology: &Topology,
        facts: &LocalFacts,
    ) -> Vec<(Member, Heartbeat)> {
        if now.mono < self.next_beat {
            return Vec::new();
        }
        self.next_beat = now.mono.after_ms(self.config.interval());
        self.count += 1;
        self.on_topology(topology);
        self.watch(now);
        let beat = Heartbeat {
            count: self.count,
            epoch: topology.epoch,
            leads: self.leads,
            readiness: facts.readiness,
            load: facts.load,
            memory_used: facts.memory_used,
            memory_limit: facts.memory_limit,
            hottest: facts.hottest.iter().take(HOTTEST_MAX).copied().collect(),
        };
        self.own = Some(beat.clone());
        let leaders: BTreeSet<NodeId> = self.leaders(now).collect();
        let to_all = self.leads || leaders.is_empty();
        let wanted = |node: &NodeId| {
            *node != self.me.node
                && (to_all || self.neighbours.contains(node) || leaders.contains(node))
        };
        topology
            .nodes
            .iter()
            .filter(|(node, _)| wanted(node))
            .map(|(node, info)| {
                (Member { node: *node, incarnation: info.incarnation }, beat.clone())
            })
            .collect()
    }

    /// When the next beat is due.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Mono> {
        Some(self.next_beat)
    }

    /// Whether this life of a node was heard recently. Of itself a node is sure.
    #[must_use]
    pub fn is_heard(&self, now: Now, member: Member) -> bool {
        member == self.me
            || self.peers.get(&member.node).is_some_and(|peer| {
                peer.member == member && now.mono.since_ms(peer.heard) < self.config.suspect_after()
            })
    }

    /// Whether this life of a node was heard at all, and had reason to go on beating to this one,
    /// whoever leads.
    #[must_use]
    pub fn was_heard_beating(&self, member: Member) -> bool {
        self.neighbours.contains(&member.node)
            && self.peers.get(&member.node).is_some_and(|peer| peer.member == member)
    }

    /// What is known of a node.
    #[must_use]
    pub fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(&node)
    }

    /// All nodes that were heard in this life of ours, by number.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// How loaded a node said it is.
    #[must_use]
    pub fn load(&self, node: NodeId) -> Option<Load> {
        self.peers.get(&node).map(|peer| peer.said.load)
    }

    /// What this node said last.
    #[must_use]
    pub fn own(&self) -> Option<&Heartbeat> {
        self.own.as_ref()
    }

    /// Those that said lately that they lead the controller group. During a change there may be
    /// two, and both are told.
    pub fn leaders(&self, now: Now) -> impl Iterator<Item = NodeId> + '_ {
        let suspect_after = self.config.suspect_after();
        self.peers
            .values()
            .filter(move |peer| peer.said.leads && now.mono.since_ms(peer.heard) < suspect_after)
            .map(|peer| peer.member.node)
    }

    /// How reliable a node has been, as seen from here.
    #[must_use]
    pub fn availability(&self, node: NodeId) -> Option<&Availability> {
        self.availability.get(&node)
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &HeartbeatConfig {
        &self.config
    }

    fn watch(&mut self, now: Now) {
        for (node, peer) in &mut self.peers {
            if now.mono.since_ms(peer.heard) >= self.config.suspect_after() {
                peer.beats = 0;
                // It was silent since it was last heard, not only since that was noticed.
                self.availability.entry(*node).or_default().down(peer.heard);
            }
        }
    }
}

#[cfg(test)]
mod tests;
