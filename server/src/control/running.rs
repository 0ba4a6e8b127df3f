//! The group as it runs on this node: what is asked of it, here and from other nodes.
//!
//! Everything here runs on the group's own thread. Commands that nobody waits for are gathered
//! while the one before is written, so that a burst of them costs one entry and one `fsync`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use kiln_cluster::{
    ids::{ClusterId, Epoch, Member, NodeId},
    topology::{COMMANDS_PER_BATCH_MAX, Topology, TopologyCommand},
};
use openraft::{
    ServerState, SnapshotMeta,
    error::{ClientWriteError, RaftError},
    raft::{AppendEntriesRequest, VoteRequest},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    decree::{Decree, Group, Metrics, Outcome, Raft, Seat, Snapshot, StoredMembership, Vote},
    error::{CommitError, Committed, ControlError},
    log::Log,
    machine::{Board, IMAGE_LEN_MAX, Machine, check},
    network::{Network, Sent},
    reach::{Reach, pack},
    settings::ControlSettings,
    store::Store,
    wire::{Unanswered, Wire, WireError, kind},
};

/// Commands that wait to be proposed. More are dropped: who needs them proposes them again.
const PROPOSALS_MAX: usize = 4_096;

/// Commands that go into one entry of the log.
const GATHERED_MAX: usize = 1_024;

/// Least time between two entries of commands that can wait.
const GATHER_FOR: Duration = Duration::from_millis(50);

/// Commands under way that somebody waits for, and requests of other nodes other than Raft's own.
const REQUESTS_MAX: usize = 128;

/// Raft's own requests under way.
const RAFT_REQUESTS_MAX: usize = 256;

/// Until it is looked again whether there is a leader.
const LEADER_PAUSE: Duration = Duration::from_millis(20);

/// How long commands that nobody waits for are held while there is no leader.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(2);

/// How long a node waits for its own table to show what it committed elsewhere.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

/// The group on this node.
pub(super) struct Running {
    pub(super) raft: Raft,
    pub(super) reach: Arc<Reach>,
    pub(super) board: Board,
    pub(super) settings: ControlSettings,
    pub(super) me: Member,
    /// Let go when the group stops, so that the file is free for another process.
    pub(super) store: Mutex<Option<Store>>,
    /// Whether this node leads, and its table is current.
    pub(super) leading: watch::Sender<bool>,
    /// Why the group stopped by itself.
    pub(super) fault: watch::Sender<Option<String>>,
    /// The members may have to change.
    pub(super) nudge: Notify,
    proposals: mpsc::Sender<TopologyCommand>,
    dropped: AtomicU64,
    /// It leads without a vote, and lets another one take over.
    resigning: AtomicBool,
    /// It was told to stop.
    pub(super) stopping: AtomicBool,
    requests: Semaphore,
    raft_requests: Semaphore,
}

/// What the leader answers to a command.
#[derive(Debug, Serialize, Deserialize)]
enum CommitAnswer {
    /// It was decided.
    Decided(Outcome),
    /// Nothing was done: another node leads.
    NotLeader,
    /// It is not known.
    Unknown,
}

impl Running {
    /// Starts the group. The tasks that it needs beside the library's are the caller's to spawn.
    pub(super) async fn start(
        store: Store,
        settings: ControlSettings,
        me: Member,
        wire: Arc<dyn Wire>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<TopologyCommand>), ControlError> {
        let failed = |error: &dyn std::fmt::Display| ControlError::Start(error.to_string());
        let config = Arc::new(settings.raft()?);
        let board = Board::default();
        let cluster = store.stored().cluster;
        let reach = Arc::new(Reach::new(wire, board.clone(), me, cluster));
        let machine =
            Machine::open(store.clone(), board.clone()).map_err(|error| failed(&error))?;
        let network = Network(Arc::clone(&reach));
        let log = Log(store.clone());
        let raft = Raft::new(me.node.0, config, network, log, machine).await;
        let raft = raft.map_err(|error| failed(&error))?;
        let (proposals, proposed) = mpsc::channel(PROPOSALS_MAX);
        let running = Self {
            raft,
            reach,
            board,
            settings,
            me,
            store: Mutex::new(Some(store)),
            leading: watch::Sender::new(false),
            fault: watch::Sender::new(None),
            nudge: Notify::new(),
            proposals,
            dropped: AtomicU64::new(0),
            resigning: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            requests: Semaphore::new(REQUESTS_MAX),
            raft_requests: Semaphore::new(RAFT_REQUESTS_MAX),
        };
        Ok((Arc::new(running), proposed))
    }

    /// The library's view of the group.
    pub(super) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    /// Who leads, as far as this node knows, and where it was when it was taken up.
    pub(super) fn leader(&self) -> Option<(NodeId, Seat)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader?;
        if leader == self.me.node.0 && self.resigning.load(Relaxed) {
            return None;
        }
        Some((NodeId(leader), seat(&metrics.membership_config, leader)))
    }

    /// Why the group does not go on.
    pub(super) fn stopped(&self) -> String {
        self.fault.borrow().clone().unwrap_or_else(|| "it was told to stop".to_owned())
    }

    /// Commands dropped because there were too many, or because no leader took them.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Hands in a command that nobody waits for.
    pub(super) fn propose(&self, command: TopologyCommand) {
        if self.proposals.try_send(command).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Proposes what was handed in, until the group stops.
    pub(super) async fn run_proposals(
        self: Arc<Self>,
        mut proposed: mpsc::Receiver<TopologyCommand>,
    ) {
        let mut gathered = Vec::new();
        let mut next = Instant::now();
        while proposed.recv_many(&mut gathered, GATHERED_MAX).await > 0 {
            // A version of the table costs all nodes and clients, so what can wait goes together.
            let table = self.board.table();
            let can_wait = |command: &TopologyCommand| can_wait(command, &table);
            while gathered.iter().all(can_wait) && gathered.len() < GATHERED_MAX {
                let room = GATHERED_MAX - gathered.len();
                match timeout_at(next, proposed.recv_many(&mut gathered, room)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            next = Instant::now() + GATHER_FOR;
            for batch in batches(gathered.drain(..)) {
                let count = batch.len() as u64;
                if !self.propose_batch(batch).await {
                    self.dropped.fetch_add(count, Relaxed);
                    tracing::debug!(count, "commands were dropped: no leader took them");
                }
            }
        }
    }

    /// Says whether the commands reached a leader.
    async fn propose_batch(&self, commands: Vec<TopologyCommand>) -> bool {
        let deadline = Instant::now() + PROPOSAL_PATIENCE;
        loop {
            match self.leader() {
                Some((leader, _)) if leader == self.me.node => {
                    let command = match <[TopologyCommand; 1]>::try_from(commands.clone()) {
                        Ok([single]) => single,
                        Err(several) => TopologyCommand::Batch(several),
                    };
                    let write = self.raft.client_write(Decree::Change(command));
                    match timeout(self.settings.commit_within, write).await {
                        Ok(Err(RaftError::APIError(_))) => {}
                        Ok(Ok(_)) => return true,
                        Ok(Err(RaftError::Fatal(_))) | Err(_) => return false,
                    }
                }
                Some((leader, seat)) => {
                    let within = self.settings.call_within;
                    let seat = Some(seat.address.as_str());
                    let asked =
                        self.reach.ask::<()>(leader, seat, kind::PROPOSE, &commands, within);
                    match asked.await {
                        Ok(()) => return true,
                        Err(WireError::Unknown(_)) => return false,
                        Err(WireError::NotDone(_)) => {}
                    }
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LEADER_PAUSE).await;
        }
    }

    /// Commits a command, here or at the leader, and waits until this node's table shows it.
    pub(super) async fn commit(&self, command: TopologyCommand) -> Result<Committed, CommitError> {
        let within = self.settings.commit_within;
        let deadline = Instant::now() + within;
        let _under_way = self.requests.try_acquire().map_err(|_| CommitError::Busy)?;
        if self.reach.cluster().is_none() {
            return Err(CommitError::NoCluster);
        }
        let outcome = loop {
            if self.fault.borrow().is_some() {
                return Err(CommitError::Stopped(self.stopped()));
            }
            if let Some(outcome) = self.try_commit(&command, deadline).await? {
                break outcome;
            }
            if Instant::now() + LEADER_PAUSE >= deadline {
                return Err(CommitError::NoLeader(within));
            }
            sleep(LEADER_PAUSE).await;
        };
        match outcome {
            Outcome::Applied { epoch, applied } => {
                self.until_shown(epoch).await;
                Ok(Committed { epoch, applied })
            }
            Outcome::Rejected(rejected) => Err(CommitError::Rejected(rejected)),
            Outcome::Nothing | Outcome::OutOfPlace => Err(CommitError::NoCluster),
        }
    }

    /// One attempt. `None`: nothing was done, another attempt may go better.
    async fn try_commit(
        &self,
        command: &TopologyCommand,
        deadline: Instant,
    ) -> Result<Option<Outcome>, CommitError> {
        let Some((leader, seat)) = self.leader() else { return Ok(None) };
        if leader == self.me.node {
            return self.decide(Decree::Change(command.clone()), deadline).await;
        }
        let within = deadline.saturating_duration_since(Instant::now());
        let seat = Some(seat.address.as_str());
        match self.reach.ask(leader, seat, kind::COMMIT, command, within).await {
            Ok(CommitAnswer::Decided(outcome)) => Ok(Some(outcome)),
            Ok(CommitAnswer::NotLeader) | Err(WireError::NotDone(_)) => Ok(None),
            Ok(CommitAnswer::Unknown) | Err(WireError::Unknown(_)) => {
                Err(CommitError::Indeterminate)
            }
        }
    }

    /// Has the group decide, if this node leads it. `None`: it does not, and nothing was done.
    pub(super) async fn decide(
        &self,
        decree: Decree,
        deadline: Instant,
    ) -> Result<Option<Outcome>, CommitError> {
        if self.resigning.load(Relaxed) {
            return Ok(None);
        }
        match timeout_at(deadline, self.raft.client_write(decree)).await {
            Err(_) => Err(CommitError::Indeterminate),
            Ok(Ok(written)) => Ok(Some(written.data)),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Ok(None),
            Ok(Err(RaftError::APIError(error))) => Err(CommitError::Stopped(error.to_string())),
            Ok(Err(RaftError::Fatal(error))) => Err(CommitError::Stopped(error.to_string())),
        }
    }

    async fn until_shown(&self, epoch: Epoch) {
        let mut table = self.board.subscribe();
        let shown = table.wait_for(|table| table.epoch >= epoch);
        // It is committed in any case; a node that lags says so elsewhere.
        let _ = timeout(CATCH_UP_WITHIN, shown).await;
    }

    /// Notes in which cluster this node is.
    pub(super) fn enter(&self, cluster: ClusterId) -> Result<(), String> {
        match &*self.store.lock() {
            Some(store) => store.set_cluster(cluster).map_err(|error| error.to_string())?,
            None => return Err(self.stopped()),
        }
        self.reach.set_cluster(cluster);
        Ok(())
    }

    /// Answers another node.
    pub(super) async fn answer(
        self: Arc<Self>,
        asker: NodeId,
        kind: u8,
        body: Bytes,
    ) -> Result<Bytes, Unanswered> {
        let is_raft = matches!(kind, kind::APPEND | kind::VOTE | kind::SNAPSHOT);
        let room = if is_raft { &self.raft_requests } else { &self.requests };
        let _under_way = room.try_acquire().map_err(|_| Unanswered::Busy)?;
        match kind {
            kind::APPEND => {
                let asked: AppendEntriesRequest<Group> = self.reach.open(&body)?;
                answered(self.raft.append_entries(asked).await)
            }
            kind::VOTE => {
                let asked: VoteRequest<u64> = self.reach.open(&body)?;
                answered(self.raft.vote(asked).await)
            }
            kind::SNAPSHOT => self.take_snapshot(self.reach.open(&body)?).await,
            kind::PING => {
                let () = self.reach.open(&body)?;
                reply(&())
            }
            kind::PROPOSE => {
                let commands: Vec<TopologyCommand> = self.reach.open(&body)?;
                if self.leader().is_none_or(|(leader, _)| leader != self.me.node) {
                    return Err(Unanswered::NotReady);
                }
                commands.into_iter().for_each(|command| self.propose(command));
                reply(&())
            }
            kind::COMMIT => {
                let command = self.reach.open(&body)?;
                let deadline = Instant::now() + self.settings.commit_within;
                reply(&match self.decide(Decree::Change(command), deadline).await {
                    Ok(Some(outcome)) => CommitAnswer::Decided(outcome),
                    Ok(None) => CommitAnswer::NotLeader,
                    Err(_) => CommitAnswer::Unknown,
                })
            }
            kind::JOIN => {
                let answer = self.take_in(asker, &body).await?;
                reply(&answer)
            }
            _ => Err(Unanswered::UnknownKind),
        }
    }

    async fn take_snapshot(&self, sent: Sent) -> Result<Bytes, Unanswered> {
        let Sent { vote, meta, image } = sent;
        if image.len() > IMAGE_LEN_MAX {
            return Err(Unanswered::Malformed);
        }
        if let Err(error) = check(&image) {
            tracing::warn!(%error, "a snapshot of the table was refused");
            return Err(Unanswered::Malformed);
        }
        let SnapshotMeta { last_log_id, .. } = &meta;
        tracing::debug!(?last_log_id, bytes = image.len(), "takes a snapshot of the table");
        let snapshot = Box::new(std::io::Cursor::new(Vec::from(image)));
        let snapshot = Snapshot { meta, snapshot };
        answered(self.raft.install_full_snapshot(vote, snapshot).await)
    }

    /// A leader that lost its vote, because it drains or was removed, goes on leading as far as the
    /// library is concerned, until its process ends. It falls silent instead, so that a voter takes
    /// over while it is still there to hand its data over.
    fn resign(&self, metrics: &Metrics) {
        let membership = metrics.membership_config.membership();
        let votes = membership.voter_ids().any(|voter| voter == metrics.id);
        let is_decided = *metrics.membership_config.log_id() <= metrics.last_applied;
        let resigns = metrics.state == ServerState::Leader && !votes && is_decided;
        if self.resigning.swap(resigns, Relaxed) != resigns {
            tracing::debug!(resigns, "has no vote any more: another node is to lead");
            self.raft.runtime_config().heartbeat(!resigns);
        }
    }

    /// Follows the library's view: whether this node leads, and whether the group still runs.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut metrics = self.raft.metrics();
        let mut reign = Reign::default();
        loop {
            let (leads, fault) = {
                let metrics = metrics.borrow_and_update();
                let fault = metrics.running_state.as_ref().err().map(ToString::to_string);
                let leads = reign.leads(&metrics, self.settings.doubt_ms);
                self.resign(&metrics);
                (fault.is_none() && leads && !self.resigning.load(Relaxed), fault)
            };
            let is_new = |leading: &mut bool| std::mem::replace(leading, leads) != leads;
            if self.leading.send_if_modified(is_new) {
                let what = if leads { "leads" } else { "does not lead any more" };
                tracing::info!("this node {what}; controller group: {}", self.status());
            }
            if let Some(fault) = fault {
                if !self.stopping.load(Relaxed) {
                    tracing::error!(%fault, "the controller group of this node has stopped");
                }
                self.fault.send_replace(Some(fault));
                return;
            }
            if metrics.changed().await.is_err() {
                self.leading.send_replace(false);
                return;
            }
        }
    }
}

/// Since when a node leads, in entries of its log.
#[derive(Default)]
struct Reign(Option<(Vote, Option<u64>)>);

impl Reign {
    /// Whether the node leads and knows everything that was committed before it did: it has applied
    /// an entry of its own term, and all that its log had when it began to lead. The second is for a
    /// leader that restarted and goes on in its term. One that no majority has answered lately does
    /// not count.
    fn leads(&mut self, metrics: &Metrics, doubt_ms: u64) -> bool {
        if metrics.state != ServerState::Leader || metrics.current_leader != Some(metrics.id) {
            self.0 = None;
            return false;
        }
        let (vote, from) = *self.0.get_or_insert((metrics.vote, metrics.last_log_index));
        if vote != metrics.vote {
            self.0 = Some((metrics.vote, metrics.last_log_index));
            return false;
        }
        metrics.last_applied.as_ref().is_some_and(|applied| {
            applied.leader_id == *vote.leader_id() && Some(applied.index) >= from
        }) && metrics.millis_since_quorum_ack.is_some_and(|ms| ms < doubt_ms)
    }
}

pub(super) fn seat(membership: &StoredMembership, node: u64) -> Seat {
    membership.membership().get_node(&node).cloned().unwrap_or_default()
}

fn reply(answer: &impl Serialize) -> Result<Bytes, Unanswered> {
    // What this module made can always be written.
    pack(answer).map_err(|_| Unanswered::NotReady)
}

fn answered<A: Serialize, E: std::fmt::Display>(answer: Result<A, E>) -> Result<Bytes, Unanswered> {
    match answer {
        Ok(answer) => reply(&answer),
        Err(error) => {
            tracing::debug!(%error, "the controller group does not answer");
            Err(Unanswered::Stopping)
        }
    }
}

/// Whether nobody waits for a command: a partition that has all its copies gets another one, to move
/// there. Of copies that were lost few are filled at a time, and the next wait for this one. What the
/// controller decides comes in rounds of its own.
fn can_wait(command: &TopologyCommand, table: &Topology) -> bool {
    let TopologyCommand::Promote { place, .. } = command else { return false };
    table.partition(*place).is_some_and(|state| state.in_sync.len() >= state.target.len())
}

/// Single commands, in order, in batches that the table takes.
fn batches(
    commands: impl Iterator<Item = TopologyCommand>,
) -> impl Iterator<Item = Vec<TopologyCommand>> {
    let mut all: Vec<TopologyCommand> = Vec::new();
    for command in commands {
        match command {
            TopologyCommand::Batch(several) => all.extend(several),
            single => all.push(single),
        }
    }
    let mut all = all.into_iter();
    std::iter::from_fn(move || {
        let batch: Vec<_> = all.by_ref().take(COMMANDS_PER_BATCH_MAX).collect();
        (!batch.is_empty()).then_some(batch)
    })
}
