//! The group's log and vote, as the Raft library asks for them.
//!
//! Nothing is kept in memory beside the store: the log is short, and a vote or an entry that was
//! answered for is on disk. A disk can take its time, so writes are made beside the group's thread:
//! it goes on telling others that it is there.

use std::{fmt::Debug, ops::RangeBounds};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::task;

use super::{
    decree::{Entry, Group, LogId, StorageError, StorageIoError, Vote},
    store::{Store, StoreError},
};

/// Vote and log.
#[derive(Clone, Debug)]
pub(super) struct Log(pub(super) Store);

impl Log {
    /// Writes, while the group's thread does other things.
    async fn write(
        &self,
        work: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StorageError> {
        let store = self.0.clone();
        match task::spawn_blocking(move || work(&store)).await {
            Ok(written) => written.map_err(writing),
            Err(ended) => Err(StorageIoError::write_logs(openraft::AnyError::new(&ended)).into()),
        }
    }
}

pub(super) fn reading(error: StoreError) -> StorageError {
    StorageIoError::read_logs(openraft::AnyError::new(&error)).into()
}

pub(super) fn writing(error: StoreError) -> StorageError {
    StorageIoError::write_logs(openraft::AnyError::new(&error)).into()
}

impl RaftLogReader<Group> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0.entries(range, usize::MAX).map_err(reading)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0.some_entries(start, end).map_err(reading)
    }
}

impl RaftLogStorage<Group> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Group>, StorageError> {
        let purged = self.0.purged().map_err(reading)?;
        let last = self.0.last_entry().map_err(reading)?.map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.write(move |store| store.set_vote(&vote)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.0.vote().map_err(reading)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        match committed {
            Some(committed) => self.write(move |store| store.set_committed(&committed)).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.0.committed().map_err(reading)
    }

    async fn append<I>(&mut self, entries: I, done: LogFlushed<Group>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.write(move |store| store.append(entries)).await?;
        done.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        self.write(move |store| store.truncate(from.index)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.write(move |store| store.purge(&upto)).await
    }
}
