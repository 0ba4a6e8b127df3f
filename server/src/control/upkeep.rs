//! The leader's loop that brings the members of the group in line with the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use kiln_cluster::{
    ids::NodeId,
    topology::{NodeState, Topology},
};
use openraft::ChangeMembers;
use tokio::time::{Instant, timeout};

use super::{
    members::{Seen, Step, next_step},
    running::{Running, seat},
    wire::kind,
};

/// A member that lacks no more entries than this has caught up.
const BEHIND_MAX: u64 = 64;

/// How long those who are to vote may take to say that they are there.
const PING_WITHIN: Duration = Duration::from_millis(500);

/// How long one step may take before it is decided anew.
const STEP_WITHIN: Duration = Duration::from_secs(5);

impl Running {
    /// Looks after the members for as long as the group runs.
    pub(super) async fn run_members(self: Arc<Self>) {
        let mut down: BTreeMap<NodeId, Instant> = BTreeMap::new();
        loop {
            // Woken when a node joined; by the clock for all that happens by itself.
            let _ = timeout(self.settings.voters_check, self.nudge.notified()).await;
            if self.fault.borrow().is_some() {
                return;
            }
            if !*self.leading.borrow() {
                down.clear();
                continue;
            }
            let table = self.board.table();
            note_down(&mut down, &table);
            let seen = self.see(&down);
            let Some(step) = next_step(&table, &seen) else { continue };
            if let Step::Vote(voters) = &step
                && !self.most_answer(voters).await
            {
                tracing::debug!(?voters, "waits with a change of voters: most do not answer");
                continue;
            }
            tracing::info!(?step, "the controller group changes");
            let change = match step {
                Step::Add(node, seat) => ChangeMembers::AddNodes(BTreeMap::from([(node, seat)])),
                Step::Vote(voters) => ChangeMembers::ReplaceAllVoters(voters),
                Step::Remove(nodes) => ChangeMembers::RemoveNodes(nodes),
            };
            match timeout(STEP_WITHIN, self.raft.change_membership(change, true)).await {
                // Another step may be due.
                Ok(Ok(_)) => self.nudge.notify_one(),
                Ok(Err(error)) => tracing::debug!(%error, "the controller group did not change"),
                Err(_) => tracing::warn!("a change of the controller group takes long"),
            }
        }
    }

    /// Whether a majority of those who are to vote is there at this moment. One that has just ended
    /// is in the table for a while, and a group that waits for it decides nothing.
    async fn most_answer(&self, voters: &BTreeSet<u64>) -> bool {
        let seats = self.metrics().membership_config;
        let asked = voters.iter().filter(|voter| **voter != self.me.node.0).map(|voter| {
            let seat = seat(&seats, *voter);
            async move {
                let at = Some(seat.address.as_str());
                self.reach.ask::<()>(NodeId(*voter), at, kind::PING, &(), PING_WITHIN).await
            }
        });
        let answered = join_all(asked).await.iter().filter(|answer| answer.is_ok()).count();
        let own = usize::from(voters.contains(&self.me.node.0));
        (answered + own) * 2 > voters.len()
    }

    fn see(&self, down: &BTreeMap<NodeId, Instant>) -> Seen {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let mut caught_up = BTreeSet::from([self.me.node.0]);
        for (node, matched) in metrics.replication.iter().flatten() {
            // Whoever is down may have caught up long ago: it is not asked to decide anything new.
            let is_near = matched.is_some_and(|id| id.index + BEHIND_MAX >= last);
            if is_near && !down.contains_key(&NodeId(*node)) {
                caught_up.insert(*node);
            }
        }
        let is_over = |since: &Instant| since.elapsed() >= self.settings.voter_grace;
        Seen {
            voters: membership.get_joint_config().clone(),
            seats: membership.nodes().map(|(node, seat)| (*node, seat.clone())).collect(),
            caught_up,
            given_up: down.iter().filter(|(_, at)| is_over(at)).map(|(node, _)| node.0).collect(),
        }
    }
}

/// Since when nodes are down, as far as this leader has seen.
fn note_down(down: &mut BTreeMap<NodeId, Instant>, table: &Topology) {
    let is_down =
        |node: &NodeId| table.nodes.get(node).is_some_and(|info| info.state == NodeState::Down);
    down.retain(|node, _| is_down(node));
    for node in table.nodes.keys().filter(|node| is_down(node)) {
        down.entry(*node).or_insert_with(Instant::now);
    }
}
