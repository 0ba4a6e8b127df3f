//! Into the table: a node that is new, or back with another life.
//!
//! ```text
//!   node --- JOIN (who, which life, which life it follows) ---> anybody
//!        <-- elsewhere: the leader is there -------------------
//!        --- JOIN -------------------------------------------> leader: commits it
//!        <-- welcome: cluster, table --------------------------
//! ```
//!
//! The node names the life that it follows. A request that was overtaken on its way by a later life
//! therefore ends nothing: the leader says which life the table has, and only a node that is still
//! there asks again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kiln_cluster::{
    ids::{ClusterId, Incarnation, Member, NodeId},
    topology::{NodeProfile, NodeState, Rejected, Topology, TopologyCommand},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    decree::{Decree, Outcome},
    error::JoinError,
    reach::{PEER, open_any, peer_address},
    running::Running,
    wire::{Unanswered, WireError, kind},
};
use crate::node::random;

/// The first pause after nobody answered as hoped; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often it is told that joining takes long.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Hints followed one after the other before all addresses are asked again.
const HINTS_MAX: usize = 4;

/// Addresses that are remembered for a restart.
const REMEMBERED_MAX: usize = 64;

/// A node wants to be in the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Join {
    member: Member,
    /// The life in the table that this one follows, as far as the node knows.
    replaces: Option<Incarnation>,
    profile: NodeProfile,
}

/// What a node says to one that wants to be in the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum JoinAnswer {
    /// It is.
    Welcome { cluster: ClusterId, table: Topology },
    /// Not decided here. The leader, if it is known, and where it listens.
    Elsewhere { leader: Option<String> },
    /// The table has this life of the node: ask again naming it, if you are the one that is there.
    Follows(Option<Incarnation>),
    /// Not now.
    Later(String),
    /// The node is of another cluster.
    OtherCluster(ClusterId),
    /// The table does not take it.
    Rejected(Rejected),
}

impl Running {
    /// Answers a node that wants to be in the table.
    pub(super) async fn take_in(
        &self,
        asker: NodeId,
        body: &[u8],
    ) -> Result<JoinAnswer, Unanswered> {
        let (cluster, join): (ClusterId, Join) = open_any(body)?;
        if join.member.node != asker {
            // Nobody joins for another.
            return Err(Unanswered::Malformed);
        }
        let Some(ours) = self.reach.cluster() else { return Err(Unanswered::NotReady) };
        if cluster != ClusterId(0) && cluster != ours {
            return Ok(JoinAnswer::OtherCluster(ours));
        }
        let address = join.profile.addresses.get(PEER);
        let table = self.board.table();
        let is_known = table.nodes.contains_key(&join.member.node)
            || self
                .metrics()
                .membership_config
                .membership()
                .get_node(&join.member.node.0)
                .is_some();
        if let (Some(address), true) = (address, is_known) {
            self.reach.note(join.member.node, address);
        }
        if !*self.leading.borrow() {
            return Ok(self.elsewhere());
        }
        self.take_in_as_leader(&table, join).await
    }

    fn elsewhere(&self) -> JoinAnswer {
        let leader = self.leader().filter(|(leader, _)| *leader != self.me.node);
        let address = |(leader, seat): (NodeId, super::decree::Seat)| {
            self.reach.address(leader, Some(&seat.address))
        };
        JoinAnswer::Elsewhere { leader: leader.and_then(address) }
    }

    async fn take_in_as_leader(
        &self,
        table: &Topology,
        join: Join,
    ) -> Result<JoinAnswer, Unanswered> {
        let Join { member: Member { node, incarnation }, replaces, profile } = join;
        let present = table.nodes.get(&node).map(|info| info.incarnation);
        if present != Some(incarnation) && present != replaces {
            return Ok(JoinAnswer::Follows(present));
        }
        let mut commands = match formers(table, node, &profile) {
            Ok(formers) => formers,
            Err(reason) => return Ok(JoinAnswer::Later(reason)),
        };
        commands.push(TopologyCommand::Join { node, incarnation, replaces, profile });
        let deadline = Instant::now() + self.settings.commit_within;
        let decree = Decree::Change(TopologyCommand::Batch(commands));
        match self.decide(decree, deadline).await {
            Ok(Some(Outcome::Applied { .. } | Outcome::Rejected(Rejected::NoChange))) => {}
            Ok(Some(Outcome::Rejected(rejected))) => return Ok(JoinAnswer::Rejected(rejected)),
            Ok(Some(Outcome::Nothing | Outcome::OutOfPlace)) => return Err(Unanswered::NotReady),
            Ok(None) => return Ok(self.elsewhere()),
            Err(error) => return Ok(JoinAnswer::Later(error.to_string())),
        }
        self.nudge.notify_one();
        let table = self.board.table();
        Ok(match table.member(node) {
            Some(now) if now.incarnation == incarnation => {
                tracing::info!(member = %now, "a node is in the table");
                JoinAnswer::Welcome { cluster: table.cluster_id, table: Topology::clone(&table) }
            }
            now => JoinAnswer::Follows(now.map(|now| now.incarnation)),
        })
    }

    /// Looks for the leader and has it take this node into the table.
    pub(super) async fn seek(
        self: Arc<Self>,
        seeds: Vec<String>,
        profile: NodeProfile,
        me: Member,
    ) -> Result<(ClusterId, Arc<Topology>), JoinError> {
        let began = Instant::now();
        let own = profile.addresses.get(PEER).cloned();
        let replaces = self.board.table().nodes.get(&me.node).map(|info| info.incarnation);
        let mut join = Join { member: me, replaces, profile };
        let (mut pause, mut told) = (PAUSE_MIN, began);
        let remembered = self.remembered();
        if !remembered.is_empty() {
            self.reach.remember(remembered);
        }
        loop {
            if self.fault.borrow().is_some() {
                return Err(JoinError::Stopped(self.stopped()));
            }
            let last = match self.seek_once(&seeds, own.as_deref(), &mut join).await? {
                Ok(welcome) => return Ok(welcome),
                Err(last) => last,
            };
            let after = began.elapsed();
            if self.settings.join_within.is_some_and(|within| after >= within) {
                return Err(JoinError::GaveUp { after, last });
            }
            if told.elapsed() >= TELL_EVERY || told == began {
                told = Instant::now();
                tracing::warn!(seconds = after.as_secs(), %last, "not in the cluster yet, tries on");
            }
            // Nodes that start together shall not ask together.
            let jitter = Duration::from_millis(random() % 50);
            sleep(pause + jitter).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks everybody once. The inner error says what was in the way.
    async fn seek_once(
        &self,
        seeds: &[String],
        own: Option<&str>,
        join: &mut Join,
    ) -> Result<Result<(ClusterId, Arc<Topology>), String>, JoinError> {
        let mut last = "nobody to ask is known".to_owned();
        // A node whose group it leads itself asks nobody else.
        if *self.leading.borrow() {
            let table = self.board.table();
            match self.take_in_as_leader(&table, join.clone()).await {
                Ok(answer) => match self.understand(answer, "this node", join)? {
                    Heard::Welcome(cluster, table) => return Ok(Ok((cluster, table))),
                    Heard::Hint(_) => {}
                    Heard::Again => return Ok(Err("another life was in the table".to_owned())),
                    Heard::Later(reason) => last = reason,
                },
                Err(refused) => last = format!("this node does not lead yet ({refused:?})"),
            }
        }
        let mut ways: Vec<String> =
            self.remembered().into_iter().map(|(_, address)| address).collect();
        ways.extend(seeds.iter().cloned());
        let mut asked = BTreeSet::new();
        let mut hints = 0;
        // From the end: hints are put there.
        ways.reverse();
        while let Some(address) = ways.pop() {
            if Some(address.as_str()) == own || !asked.insert(address.clone()) {
                continue;
            }
            let within = self.settings.call_within;
            let mut answer = self.reach.ask_at(&address, kind::JOIN, join, within).await;
            if let Ok(JoinAnswer::Follows(_)) = answer {
                if let Ok(follows) = answer {
                    self.understand(follows, &address, join)?;
                }
                answer = self.reach.ask_at(&address, kind::JOIN, join, within).await;
            }
            match answer {
                Ok(answer) => match self.understand(answer, &address, join)? {
                    Heard::Welcome(cluster, table) => return Ok(Ok((cluster, table))),
                    Heard::Hint(Some(leader)) if hints < HINTS_MAX => {
                        hints += 1;
                        last = format!("{address} says that {leader} leads");
                        if !asked.contains(&leader) {
                            ways.push(leader);
                        }
                    }
                    Heard::Hint(_) => {
                        last = format!(
                            "{address} knows no leader at the moment; is a majority of the voters \
                             running?"
                        );
                    }
                    Heard::Again => last = "another life was in the table".to_owned(),
                    Heard::Later(reason) => last = format!("{address}: {reason}"),
                },
                Err(WireError::NotDone(why) | WireError::Unknown(why)) => {
                    last = format!("{address}: {why}");
                }
            }
        }
        Ok(Err(last))
    }

    fn understand(
        &self,
        answer: JoinAnswer,
        at: &str,
        join: &mut Join,
    ) -> Result<Heard, JoinError> {
        Ok(match answer {
            JoinAnswer::Welcome { cluster, table } => {
                if self.reach.cluster() != Some(cluster) {
                    self.enter(cluster).map_err(JoinError::NotKept)?;
                }
                let table = Arc::new(table);
                self.board.show(&table);
                Heard::Welcome(cluster, table)
            }
            JoinAnswer::Elsewhere { leader } => Heard::Hint(leader),
            JoinAnswer::Follows(life) => {
                join.replaces = life;
                Heard::Again
            }
            JoinAnswer::Later(reason) => Heard::Later(reason),
            JoinAnswer::OtherCluster(theirs) => {
                let ours = self.reach.cluster().unwrap_or_default().0;
                return Err(JoinError::OtherCluster { at: at.to_owned(), theirs: theirs.0, ours });
            }
            JoinAnswer::Rejected(rejected) => return Err(JoinError::Rejected(rejected)),
        })
    }

    /// Where members were when this node last heard of them, the leader first.
    fn remembered(&self) -> Vec<(NodeId, String)> {
        if self.reach.cluster().is_none() {
            return Vec::new();
        }
        let metrics = self.metrics();
        let others = |node: &u64| *node != self.me.node.0;
        let leader = metrics.current_leader.filter(others);
        let seats = metrics.membership_config.membership().nodes();
        let seats = seats.map(|(node, seat)| (*node, Some(seat.address.as_str())));
        let table = self.board.table();
        let known = table.nodes.keys().map(|node| (node.0, None));
        let first = leader.map(|leader| (leader, None));
        first
            .into_iter()
            .chain(seats)
            .chain(known)
            .filter(|(node, _)| others(node))
            .filter_map(|(node, seat)| {
                Some((NodeId(node), self.reach.address(NodeId(node), seat)?))
            })
            .filter(|(_, address)| !address.is_empty())
            .take(REMEMBERED_MAX)
            .collect()
    }
}

/// What an answer means for the node that asked.
enum Heard {
    Welcome(ClusterId, Arc<Topology>),
    Hint(Option<String>),
    Again,
    Later(String),
}

/// Former lives of this node under another id: it had the same name, kept nothing, and is down.
/// They are removed for good; an error says why the node has to wait.
///
/// That a former node has ended for certain shows in its address: another process has it now. One
/// that was elsewhere may only be cut off, so it is removed only if nothing is lost by it.
fn formers(
    table: &Topology,
    node: NodeId,
    profile: &NodeProfile,
) -> Result<Vec<TopologyCommand>, String> {
    let mut gone = Vec::new();
    for (former, info) in &table.nodes {
        if *former == node || info.name != profile.name || profile.name.is_empty() {
            continue;
        }
        let address = profile.addresses.get(PEER).map(String::as_str);
        let is_same_place = address.is_some() && peer_address(table, *former) == address;
        let is_down = info.state == NodeState::Down;
        let Some(member) = table.member(*former) else { continue };
        match (is_down, is_same_place) {
            (true, true) => gone.push(TopologyCommand::RemoveNode { member }),
            (true, false) if table.drain_progress(*former).last_copies == 0 => {
                gone.push(TopologyCommand::RemoveNode { member });
            }
            (true, false) => tracing::warn!(
                name = %info.name,
                former = %former,
                "a node of this name is down and holds the last copy of something: it stays in the \
                 table until it is back or an operator removes it"
            ),
            (false, true) => {
                return Err(format!(
                    "the node {} that was at this address before is not missed yet",
                    info.name
                ));
            }
            (false, false) => tracing::warn!(
                name = %info.name,
                other = %former,
                "two nodes of this name run: give them names of their own (--name)"
            ),
        }
    }
    Ok(gone)
}

/// A request to join, in bytes.
#[cfg(test)]
pub(super) fn request(
    cluster: ClusterId,
    member: Member,
    replaces: Option<Incarnation>,
    profile: NodeProfile,
) -> bytes::Bytes {
    super::reach::pack(&(cluster, Join { member, replaces, profile })).expect("can be written")
}
