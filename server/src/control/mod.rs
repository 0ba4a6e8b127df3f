//! The controller group: the table that all nodes agree on, by Raft.
//!
//! Every node of a cluster is a member. One, three or five of them vote, the others learn what was
//! decided; the one that leads is the only one that decides who holds what. What is decided is a
//! command to [`Topology`], applied by every member in the same order.
//!
//! ```text
//!   propose, commit --+                            +--> topology(): the table, on every node
//!   join, rejoin -----+--> leader's log --> voters-+
//!   members' upkeep --+     (redb, fsync)          +--> leading(): true on one of them
//!
//!   decree     what an entry of the log says, and what became of it
//!   store      vote, log and snapshot on disk; who this node is
//!   log        the store, as the Raft library asks for it
//!   machine    the table, as the Raft library asks for it
//!   network    the Raft library's calls
//!   reach      who is where; every request names the cluster
//!   wire       carries requests; `links` is the real one
//!   running    the group on this node: commands, answers to others
//!   joining    into the table
//!   members    who votes: the decision; `upkeep`: the leader's loop around it
//! ```
//!
//! Always true:
//! - a vote or an entry is on disk before anybody hears of it;
//! - tables seen on one node only get newer, and equal epochs of one cluster are equal tables;
//! - `leading` is true only on a node that has applied all that was committed before it led, and
//!   that a majority has answered lately. Two nodes may believe it for a moment: commands name what
//!   they were decided on, so that does no harm.
//!
//! Cost: one thread. It alone waits for the disk.

mod decree;
mod error;
mod joining;
mod links;
mod log;
mod machine;
mod members;
mod network;
mod reach;
mod record;
mod running;
mod settings;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod upkeep;
mod wire;

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use kiln_cluster::{
    controller::Agreement,
    ids::{ClusterId, Member, NodeId},
    topology::{NodeProfile, Topology, TopologyCommand},
};
use openraft::error::{InitializeError, RaftError};
use tokio::{
    runtime,
    sync::{Notify, watch},
    time::{Instant, sleep},
};

#[cfg(test)]
pub(crate) use self::wire::WireError;
use self::{
    decree::{Decree, Outcome, Seat},
    running::Running,
};
pub(crate) use self::{
    error::{BootstrapError, CommitError, Committed, ControlError, JoinError},
    settings::ControlSettings,
    status::ControlStatus,
    store::{Store, Stored},
    wire::{BoxFuture, Unanswered, Wire},
};

/// How long the first decision of a new group may take.
const FOUND_WITHIN: Duration = Duration::from_secs(10);

/// Until it is looked again whether a new group has come about.
const FOUND_PAUSE: Duration = Duration::from_millis(5);

/// The group on this node. Cheap to clone; usable from any thread and any runtime.
#[derive(Clone)]
pub(crate) struct Control {
    running: Arc<Running>,
    runtime: runtime::Handle,
    stop: Arc<Notify>,
    ended: watch::Receiver<bool>,
}

impl Control {
    /// Opens what this node keeps, for this process alone: who it is, and what was decided.
    pub(crate) fn open(settings: &ControlSettings) -> Result<(Stored, Store), ControlError> {
        Store::open(settings)
    }

    /// Starts the group's thread. What was decided before is in the table when this returns, as far
    /// as this node knew it.
    pub(crate) fn start(
        store: Store,
        settings: ControlSettings,
        me: Member,
        wire: impl Wire,
    ) -> Result<Self, ControlError> {
        let wire: Arc<dyn Wire> = Arc::new(wire);
        let stop = Arc::new(Notify::new());
        let (ended_sender, ended) = watch::channel(false);
        let (started, start) = mpsc::sync_channel(1);
        let stopping = Arc::clone(&stop);
        let work = move || {
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(ControlError::Start(error.to_string())));
                    return;
                }
            };
            runtime.block_on(async {
                let (running, proposed) = match Running::start(store, settings, me, wire).await {
                    Ok(found) => found,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                tokio::spawn(Arc::clone(&running).watch());
                tokio::spawn(Arc::clone(&running).run_proposals(proposed));
                tokio::spawn(Arc::clone(&running).run_members());
                let handle = runtime::Handle::current();
                if started.send(Ok((Arc::clone(&running), handle))).is_ok() {
                    stopping.notified().await;
                }
                running.stopping.store(true, Ordering::Relaxed);
                if let Err(error) = running.raft.shutdown().await {
                    tracing::warn!(%error, "the controller group did not stop in order");
                }
                running.leading.send_replace(false);
                running.store.lock().take();
            });
            // Ends all tasks, and with the last of them the file is let go.
            drop(runtime);
            ended_sender.send_replace(true);
        };
        thread::Builder::new()
            .name("kiln-control".to_owned())
            .spawn(work)
            .map_err(|error| ControlError::Start(error.to_string()))?;
        let (running, runtime) =
            start.recv().map_err(|_| ControlError::Start("its thread ended".to_owned()))??;
        Ok(Self { running, runtime, stop, ended })
    }

    /// Makes a cluster of this node alone. `first` are the commands that its table begins with, this
    /// node's own join among them. Only for a node that is in no cluster.
    pub(crate) async fn bootstrap(
        &self,
        cluster: ClusterId,
        partitions: u32,
        address: String,
        first: Vec<TopologyCommand>,
    ) -> Result<Arc<Topology>, BootstrapError> {
        let running = Arc::clone(&self.running);
        let work = async move { found(&running, cluster, partitions, address, first).await };
        self.here(work).await.unwrap_or_else(|why| Err(BootstrapError::Stopped(why)))
    }

    /// Has the cluster take this node in: asks each address in turn, finds the leader, tries until
    /// it is in the table. For a node that is in no cluster.
    pub(crate) async fn join(
        &self,
        seeds: &[String],
        profile: NodeProfile,
        me: Member,
    ) -> Result<(ClusterId, Arc<Topology>), JoinError> {
        if let Some(cluster) = self.running.reach.cluster() {
            return Err(JoinError::AlreadyIn(cluster.0));
        }
        if seeds.is_empty() {
            return Err(JoinError::Nobody);
        }
        self.seek(seeds, profile, me).await
    }

    /// The same for a node that has been in the cluster before: it is another life of the same
    /// node. It finds the others by what it remembers, and by the addresses it is given.
    pub(crate) async fn rejoin(
        &self,
        seeds: &[String],
        profile: NodeProfile,
        me: Member,
    ) -> Result<(ClusterId, Arc<Topology>), JoinError> {
        self.seek(seeds, profile, me).await
    }

    async fn seek(
        &self,
        seeds: &[String],
        profile: NodeProfile,
        me: Member,
    ) -> Result<(ClusterId, Arc<Topology>), JoinError> {
        let work = Arc::clone(&self.running).seek(seeds.to_vec(), profile, me);
        self.here(work).await.unwrap_or_else(|why| Err(JoinError::Stopped(why)))
    }

    /// Hands in a command that nobody waits for. It may be lost, and what became of it shows in the
    /// table. Never blocks.
    pub(crate) fn propose(&self, command: TopologyCommand) {
        self.running.propose(command);
    }

    /// Has a command decided and waits for the outcome; works on every node.
    pub(crate) async fn commit(&self, command: TopologyCommand) -> Result<Committed, CommitError> {
        let running = Arc::clone(&self.running);
        let work = async move { running.commit(command).await };
        self.here(work).await.unwrap_or_else(|why| Err(CommitError::Stopped(why)))
    }

    /// The table as committed. Epoch 0 until this node is in a cluster; epochs never fall.
    pub(crate) fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.running.board.subscribe()
    }

    /// Whether this node leads the group and its table is current.
    pub(crate) fn leading(&self) -> watch::Receiver<bool> {
        self.running.leading.subscribe()
    }

    /// Answers what another node asks of the group.
    pub(crate) fn answer_to(
        &self,
        from: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<Result<Bytes, Unanswered>> {
        let answer = self.runtime.spawn(Arc::clone(&self.running).answer(from, kind, body));
        Box::pin(async move { answer.await.unwrap_or(Err(Unanswered::Stopping)) })
    }

    /// The group, as this node sees it.
    pub(crate) fn status(&self) -> ControlStatus {
        self.running.status()
    }

    /// Ends when the group of this node has stopped by itself, with the reason: its file could not
    /// be written, or what is in it contradicts what the others know.
    pub(crate) async fn failed(&self) -> String {
        let mut fault = self.running.fault.subscribe();
        match fault.wait_for(Option::is_some).await {
            Ok(fault) => fault.clone().unwrap_or_default(),
            Err(_) => "its thread ended".to_owned(),
        }
    }

    /// Ends the group on this node; its file is free when this returns.
    pub(crate) async fn stop(&self) {
        self.stop.notify_one();
        let mut ended = self.ended.clone();
        // An error means that the thread is gone, which is what is waited for.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Runs on the group's thread.
    async fn here<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        self.runtime.spawn(work).await.map_err(|_| self.running.stopped())
    }
}

impl Agreement for Control {
    fn propose(&mut self, command: TopologyCommand) {
        self.running.propose(command);
    }
}

/// Makes the group and the table. Whatever of it was done before the process ended is not done
/// again.
async fn found(
    running: &Running,
    cluster: ClusterId,
    partitions: u32,
    address: String,
    first: Vec<TopologyCommand>,
) -> Result<Arc<Topology>, BootstrapError> {
    if let Some(known) = running.reach.cluster() {
        return Err(BootstrapError::AlreadyIn(known));
    }
    let stopped = |error: &dyn std::fmt::Display| BootstrapError::Stopped(error.to_string());
    let seat = Seat { name: running.settings.name.clone(), address };
    let only = std::collections::BTreeMap::from([(running.me.node.0, seat)]);
    match running.raft.initialize(only).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => return Err(stopped(&error)),
    }
    let deadline = Instant::now() + FOUND_WITHIN;
    let decree = Decree::Found { cluster, partitions, first };
    loop {
        match running.decide(decree.clone(), deadline).await {
            Ok(Some(Outcome::Applied { .. })) => break,
            Ok(Some(_)) => return Err(BootstrapError::AlreadyIn(running.board.table().cluster_id)),
            Ok(None) if Instant::now() < deadline => sleep(FOUND_PAUSE).await,
            Ok(None) | Err(CommitError::Indeterminate) => return Err(BootstrapError::Timeout),
            Err(error) => return Err(stopped(&error)),
        }
    }
    running.enter(cluster).map_err(BootstrapError::NotKept)?;
    Ok(running.board.table())
}
