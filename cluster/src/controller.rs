//! What the leader of the controller group decides: who holds what.
//!
//! Detect, isolate, recover. A silent node is marked down; where it was the primary another copy in
//! sync follows, where it was a copy it is no longer waited for; after a short grace its copies are
//! rebuilt on others. The same steps in calmer order serve a node that joins, leaves or is given
//! another weight: new owners are wished for, filled, promoted by the primary, and only then is the
//! surplus copy dropped and the primary moved.
//!
//! ```text
//!   beats ---> node states ---> targets (placement) ---> one step for each partition
//!                                                          nobody holds it   -> assign
//!                                                          primary is down   -> change primary
//!                                                          copy is down      -> shrink
//!                                                          target is missing -> add learner
//!                                                          all targets there -> move primary, drop surplus
//! ```
//!
//! Always true:
//! - it acts on the table and the beats alone. What it remembers beyond them (since when a node is
//!   silent, what it proposed already) may be lost with the leader and costs only time;
//! - data are given up for lost only by the table, when a life is proven over; never on suspicion;
//! - each command names the version it was decided on, so two leaders at once do no harm.
//!
//! Cost: one pass over all partitions each tick; a computation of the placement when nodes change.

mod config;
mod partition;
mod targets;
pub mod voters;

use std::collections::{BTreeMap, BTreeSet};

pub use self::config::ControllerConfig;
use self::{partition::Steps, targets::Targets};
use crate::heartbeat::Readiness;
use crate::ids::{Incarnation, Member, NodeId};
use crate::membership::Membership;
use crate::time::{Mono, Now};
use crate::topology::{COMMANDS_PER_BATCH_MAX, NodeInfo, NodeState, Topology, TopologyCommand};

/// Where commands are agreed on: the controller group.
pub trait Agreement {
    /// Hands a command in. Whether it was committed shows in the table later on; it may be lost,
    /// and it may be committed twice. Never blocks.
    fn propose(&mut self, command: TopologyCommand);
}

impl Agreement for Vec<TopologyCommand> {
    fn propose(&mut self, command: TopologyCommand) {
        self.push(command);
    }
}

/// The decisions of one node, as long as it leads the controller group.
#[derive(Clone, Debug)]
pub struct Controller {
    config: ControllerConfig,
    me: Member,
    leading: Option<Leading>,
}

/// What a leader remembers. All of it may be lost.
#[derive(Clone, Debug)]
struct Leading {
    since: Mono,
    next_tick: Mono,
    last_tick: Mono,
    nodes: BTreeMap<NodeId, Watched>,
    targets: Targets,
    steps: Steps,
}

/// A node as the leader has seen it lately.
#[derive(Clone, Copy, Debug)]
struct Watched {
    incarnation: Incarnation,
    /// Since when this life is in the table, as far as this leader knows.
    seen_since: Mono,
    /// Since when it is away: down, or restarted and not ready yet.
    away_since: Option<Mono>,
    /// When its state was proposed last.
    proposed: Option<(NodeState, Mono)>,
}

impl Controller {
    /// A controller that does not lead.
    #[must_use]
    pub fn new(config: ControllerConfig, me: Member) -> Self {
        Self { config, me, leading: None }
    }

    /// This node leads the controller group, or does so no longer.
    pub fn lead(&mut self, now: Now, leads: bool) {
        match (&self.leading, leads) {
            (None, true) => {
                self.leading = Some(Leading {
                    since: now.mono,
                    next_tick: now.mono,
                    last_tick: now.mono,
                    nodes: BTreeMap::new(),
                    targets: Targets::default(),
                    steps: Steps::default(),
                });
            }
            (Some(_), false) => self.leading = None,
            _ => {}
        }
    }

    /// Whether it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leading.is_some()
    }

    /// When the next tick is due; `None` while another node leads.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Mono> {
        self.leading.as_ref().map(|leading| leading.next_tick)
    }

    /// The table changed: the next step may be possible, so it looks sooner than it would.
    pub fn on_topology(&mut self) {
        if let Some(leading) = &mut self.leading {
            let soon = leading.last_tick.after_ms(self.config.tick_min_ms.max(1));
            leading.next_tick = leading.next_tick.min(soon);
        }
    }

    /// Decides, if it leads and a tick is due.
    pub fn tick(
        &mut self,
        now: Now,
        topology: &Topology,
        membership: &Membership,
        agreement: &mut dyn Agreement,
    ) {
        let Some(leading) = &mut self.leading else { return };
        if now.mono < leading.next_tick {
            return;
        }
        leading.next_tick = now.mono.after_ms(self.config.tick_ms.max(1));
        leading.last_tick = now.mono;
        let mut commands = Vec::new();
        let silent = leading.listen(now, topology, membership);
        let view = View { now, me: self.me, topology, membership, silent };
        leading.watch(&self.config, &view, &mut commands);
        // Steps name versions and targets raise them: in this order both take effect.
        leading.steps.decide(&self.config, &view, &mut commands);
        leading.targets.decide(&self.config, &view, &leading.nodes, &mut commands);
        commands.truncate(COMMANDS_PER_BATCH_MAX);
        match commands.len() {
            0 => {}
            1 => commands.into_iter().for_each(|command| agreement.propose(command)),
            _ => agreement.propose(TopologyCommand::Batch(commands)),
        }
    }
}

/// What decisions are made on.
struct View<'a> {
    now: Now,
    me: Member,
    topology: &'a Topology,
    membership: &'a Membership,
    silent: BTreeSet<Member>,
}

impl View<'_> {
    /// Whether a member has said nothing for too long.
    fn is_silent(&self, member: Member) -> bool {
        self.silent.contains(&member)
    }

    /// Whether a member is believed dead, by the table or by its silence.
    fn is_down(&self, member: Member) -> bool {
        !self.topology.is_up(member.node)
            || !self.topology.is_present(member)
            || self.is_silent(member)
    }

    /// Whether a member may be given new work.
    fn is_ready(&self, node: NodeId) -> Option<Member> {
        let info = self.topology.nodes.get(&node)?;
        let member = Member { node, incarnation: info.incarnation };
        (info.state == NodeState::Ready && !self.is_silent(member)).then_some(member)
    }
}

impl Leading {
    /// Who has said nothing for too long. Nobody had a reason to report to this node before it led,
    /// or before they were in the table: the time counts from the last of these.
    fn listen(
        &mut self,
        now: Now,
        topology: &Topology,
        membership: &Membership,
    ) -> BTreeSet<Member> {
        let patience = membership.config().suspect_after();
        self.nodes.retain(|node, _| topology.nodes.contains_key(node));
        let mut silent = BTreeSet::new();
        for (node, info) in &topology.nodes {
            let member = Member { node: *node, incarnation: info.incarnation };
            let new = Watched {
                incarnation: info.incarnation,
                seen_since: now.mono,
                away_since: None,
                proposed: None,
            };
            let watched = self.nodes.entry(*node).or_insert(new);
            if watched.incarnation != info.incarnation {
                // Another life. The node is away for as long as the former one was.
                *watched = Watched { away_since: watched.away_since, ..new };
            }
            // One that shares partitions with this node beat to it before it led, too: a primary
            // that died with the former leader is not waited for a second time.
            let waited = membership.was_heard_beating(member)
                || now.mono.since_ms(watched.seen_since.max(self.since)) >= patience;
            if waited && !membership.is_heard(now, member) {
                silent.insert(member);
            }
        }
        silent
    }

    /// Brings the states of the nodes in the table in line with what is heard of them.
    fn watch(
        &mut self,
        config: &ControllerConfig,
        view: &View<'_>,
        commands: &mut Vec<TopologyCommand>,
    ) {
        for (node, info) in &view.topology.nodes {
            let member = Member { node: *node, incarnation: info.incarnation };
            let Some(watched) = self.nodes.get_mut(node) else { continue };
            let away = matches!(info.state, NodeState::Down | NodeState::Joining);
            watched.away_since =
                if away { watched.away_since.or(Some(view.now.mono)) } else { None };
            let Some(state) = wanted_state(view, member, info) else { continue };
            let is_repeat = watched.proposed.is_some_and(|(proposed, at)| {
                proposed == state && view.now.mono.since_ms(at) < config.retry_ms
            });
            if state == info.state || is_repeat {
                continue;
            }
            watched.proposed = Some((state, view.now.mono));
            // One that was told to leave, has handed over everything and is gone has left.
            let has_left = state == NodeState::Down
                && info.state == NodeState::Draining
                && !view.topology.nodes_in_use().contains(node);
            commands.push(if has_left {
                TopologyCommand::RemoveNode { member }
            } else {
                TopologyCommand::SetNodeState { member, state }
            });
        }
    }
}

/// The state that a node should have; `None` leaves it as it is.
fn wanted_state(view: &View<'_>, member: Member, info: &NodeInfo) -> Option<NodeState> {
    if view.is_silent(member) {
        return Some(NodeState::Down);
    }
    let said = if member == view.me {
        view.membership.own()?.readiness
    } else {
        view.membership.peer(member.node).filter(|peer| peer.member == member)?.said.readiness
    };
    if info.state == NodeState::Down {
        let beats = view.membership.peer(member.node).map_or(0, |peer| peer.beats);
        if member != view.me && beats < view.membership.config().beats_to_recover {
            return None;
        }
    }
    match (said, info.state) {
        (Readiness::Starting, NodeState::Down) => Some(NodeState::Joining),
        // What has once served is not put back for saying that it starts.
        (Readiness::Starting, _) => None,
        // An operator asked it to leave; it does not know, or not yet.
        (Readiness::Ready, NodeState::Draining) => None,
        (Readiness::Ready, _) => Some(NodeState::Ready),
        (Readiness::Leaving, _) => Some(NodeState::Draining),
    }
}

#[cfg(test)]
mod tests;
