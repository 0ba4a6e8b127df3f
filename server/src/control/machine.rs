//! The table, as the Raft library sees it: entries go in, snapshots go out.
//!
//! It lives in memory and is made anew at the start from the last snapshot and the entries behind
//! it, so every node applies the same commands in the same order. What is committed is shown to the
//! rest of the node through a watch channel, whose epoch never falls.

use std::{io::Cursor, sync::Arc};

use kiln_cluster::{ids::ClusterId, topology::Topology};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    decree::{
        Entry, Group, LogId, Outcome, Snapshot, SnapshotMeta, StorageError, StorageIoError,
        StoredMembership, carry_out,
    },
    record::{RecordError, seal, unseal},
    store::{Kept, Store, StoreError},
};

/// Longest image of a table that is taken from another member.
pub(super) const IMAGE_LEN_MAX: usize = 48 << 20;

/// The layout of an image.
const IMAGE_VERSION: u32 = 1;

/// What a snapshot holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Image {
    version: u32,
    table: Option<Topology>,
}

/// Where the rest of the node sees the table.
#[derive(Clone, Debug)]
pub(super) struct Board(Arc<watch::Sender<Arc<Topology>>>);

impl Default for Board {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(Topology::new(ClusterId(0), 1)))))
    }
}

impl Board {
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Topology>> {
        self.0.subscribe()
    }

    pub(super) fn table(&self) -> Arc<Topology> {
        Arc::clone(&self.0.borrow())
    }

    /// Shows a committed table, unless a newer one was shown already.
    pub(super) fn show(&self, table: &Arc<Topology>) {
        self.0.send_if_modified(|shown| {
            let is_newer = table.epoch > shown.epoch || shown.cluster_id != table.cluster_id;
            if is_newer {
                *shown = Arc::clone(table);
            }
            is_newer
        });
    }
}

/// The table and how far the log is in it.
#[derive(Clone, Debug, Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    table: Option<Topology>,
}

/// The state machine of the group.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    store: Store,
    state: Arc<Mutex<State>>,
    board: Board,
}

impl Machine {
    /// From the last snapshot that is kept. The entries behind it come from the library.
    pub(super) fn open(store: Store, board: Board) -> Result<Self, MachineError> {
        let mut state = State::default();
        if let Some(kept) = store.snapshot()? {
            state = read(&kept.meta, &kept.image)?;
        }
        let machine = Self { store, state: Arc::new(Mutex::new(state)), board };
        machine.show();
        Ok(machine)
    }

    fn show(&self) {
        let table = self.state.lock().table.clone().map(Arc::new);
        if let Some(table) = table {
            self.board.show(&table);
        }
    }
}

/// Why a snapshot is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum MachineError {
    /// It was not kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its bytes.
    #[error("snapshot: {0}")]
    Record(#[from] RecordError),
    /// Written by a later release.
    #[error("snapshot of version {found}, this release knows {IMAGE_VERSION}")]
    Later {
        /// Its version.
        found: u32,
    },
    /// The table in it contradicts itself.
    #[error("the table in the snapshot is broken: {0}")]
    Broken(&'static str),
}

/// Checks an image before anything rests on it.
pub(super) fn check(image: &[u8]) -> Result<(), MachineError> {
    table_in(image).map(|_| ())
}

fn table_in(image: &[u8]) -> Result<Option<Topology>, MachineError> {
    let Image { version, table } = unseal(image)?;
    if version != IMAGE_VERSION {
        return Err(MachineError::Later { found: version });
    }
    if let Some(table) = &table {
        table.check().map_err(MachineError::Broken)?;
    }
    Ok(table)
}

fn read(meta: &SnapshotMeta, image: &[u8]) -> Result<State, MachineError> {
    let table = table_in(image)?;
    Ok(State { applied: meta.last_log_id, membership: meta.last_membership.clone(), table })
}

fn failed(error: &MachineError) -> StorageError {
    StorageIoError::write_snapshot(None, openraft::AnyError::new(error)).into()
}

impl RaftStateMachine<Group> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let state = self.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        let mut changed = false;
        {
            let mut state = self.state.lock();
            for entry in entries {
                state.applied = Some(entry.log_id);
                outcomes.push(match entry.payload {
                    EntryPayload::Blank => Outcome::Nothing,
                    EntryPayload::Normal(decree) => {
                        let outcome = carry_out(&mut state.table, &decree);
                        changed |= matches!(outcome, Outcome::Applied { .. });
                        outcome
                    }
                    EntryPayload::Membership(membership) => {
                        state.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Outcome::Nothing
                    }
                });
            }
        }
        if changed {
            self.show();
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        // What it will write is the state of this moment, not of the moment when it is written.
        let state = self.state.lock().clone();
        Self { state: Arc::new(Mutex::new(state)), ..self.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let image = snapshot.into_inner();
        let state = read(meta, &image).map_err(|error| failed(&error))?;
        let kept = Kept { meta: meta.clone(), image };
        self.store.set_snapshot(&kept).map_err(|error| failed(&error.into()))?;
        *self.state.lock() = state;
        self.show();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let kept = self.store.snapshot().map_err(|error| failed(&error.into()))?;
        Ok(kept
            .map(|kept| Snapshot { meta: kept.meta, snapshot: Box::new(Cursor::new(kept.image)) }))
    }
}

impl RaftSnapshotBuilder<Group> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let State { applied, membership, table } = self.state.lock().clone();
        let image = seal(&Image { version: IMAGE_VERSION, table });
        let image = image.map_err(|error| failed(&error.into()))?;
        let place = applied.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: applied,
            last_membership: membership,
            snapshot_id: format!("table-{place}"),
        };
        let kept = Kept { meta: meta.clone(), image };
        self.store.set_snapshot(&kept).map_err(|error| failed(&error.into()))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(kept.image)) })
    }
}
