//! What a member keeps over a restart: who it is, its vote, its log, the last snapshot of the table.
//!
//! One redb file, `control.redb`, in the data directory; without a directory the same in memory.
//! Vote and entries are on disk before anybody is told of them: each is one durable transaction.
//! What may be lost without harm (how far the log is committed, what was purged) is written along
//! with the next durable one. All of it is read and checked when the file is opened, so that a
//! damaged file is an error at the start and not a surprise later.
//!
//! Cost: one `fsync` for each vote, each append and each snapshot, on a thread of its own.

use std::{
    any::Any,
    fs, io,
    ops::RangeBounds,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_cluster::ids::{ClusterId, NodeId};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition,
    backends::InMemoryBackend,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    decree::{Decree, Entry, LogId, SnapshotMeta, Vote},
    error::ControlError,
    record::{RecordError, seal, unseal},
    settings::ControlSettings,
};
use crate::node::random;

/// Name of the file in the data directory.
pub(super) const FILE_NAME: &str = "control.redb";

/// The format written here. Rises when an older release could not read it.
const FORMAT: u32 = 1;

/// Memory for the file's pages. The whole file is a few megabytes.
const PAGE_CACHE: usize = 4 << 20;

/// A file that has grown beyond this is made small again when it is opened.
const COMPACT_ABOVE: u64 = 32 << 20;

/// Bytes of entries that are read at once, at most: what one call to another member carries.
const READ_LEN_MAX: usize = 4 << 20;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

const KEY_FORMAT: &str = "format";
const KEY_NODE: &str = "node";
const KEY_CLUSTER: &str = "cluster";
const KEY_VOTE: &str = "vote";
const KEY_COMMITTED: &str = "committed";
const KEY_PURGED: &str = "purged";
const KEY_SNAPSHOT: &str = "snapshot";

/// Who a node is, as far as it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The same over restarts as long as the data directory is kept, else a new one.
    pub(crate) node: NodeId,
    /// The cluster it is in; `None` when it was in none yet.
    pub(crate) cluster: Option<ClusterId>,
}

/// What a member keeps, opened.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    base: Arc<Base>,
}

#[derive(Debug)]
struct Base {
    database: Database,
    path: Option<PathBuf>,
    stored: Stored,
}

/// A snapshot of the table, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Up to where, with which members.
    pub(super) meta: SnapshotMeta,
    /// The table, see `machine::Image`.
    #[serde(with = "plain_bytes")]
    pub(super) image: Vec<u8>,
}

/// Why something was not kept, or cannot be read back.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The file.
    #[error(transparent)]
    Disk(Box<redb::Error>),
    /// What is in it.
    #[error("{what}: {source}")]
    Record {
        /// Which record.
        what: String,
        /// Why it is none.
        source: RecordError,
    },
}

impl Store {
    /// Opens what a node keeps, or begins it.
    pub(crate) fn open(settings: &ControlSettings) -> Result<(Stored, Self), ControlError> {
        let path = settings.data_dir.as_ref().map(|directory| directory.join(FILE_NAME));
        let database = match &path {
            Some(path) => open_file(path)?,
            None => redb::Builder::new()
                .set_cache_size(PAGE_CACHE)
                .create_with_backend(InMemoryBackend::new())
                .map_err(|error| ControlError::Start(error.to_string()))?,
        };
        let shown = path.clone().unwrap_or_else(|| PathBuf::from("memory"));
        // Pages that only look right may make the library give up in its own way.
        let checked = guarded(|| {
            let new = Stored { node: NodeId(random()), cluster: None };
            let base = Base { database, path, stored: new };
            let store = Self { base: Arc::new(base) };
            let stored = store.begin(new.node)?;
            Ok((stored, store))
        });
        let (stored, store) = match checked {
            Ok(Ok(found)) => found,
            Ok(Err(Unusable::Later(found))) => {
                return Err(ControlError::Later { path: shown, found, known: FORMAT });
            }
            Ok(Err(Unusable::Damaged(what))) | Err(what) => {
                return Err(ControlError::Damaged { path: shown, what });
            }
        };
        let Some(base) = Arc::into_inner(store.base) else {
            return Err(ControlError::Start("the store is shared already".to_owned()));
        };
        Ok((stored, Self { base: Arc::new(Base { stored, ..base }) }))
    }

    /// Reads and checks everything; gives a new file what it must have.
    fn begin(&self, new: NodeId) -> Result<Stored, Unusable> {
        let found: Option<u32> = match self.get(KEY_FORMAT) {
            Err(StoreError::Disk(error)) if matches!(*error, redb::Error::TableDoesNotExist(_)) => {
                None
            }
            found => found?,
        };
        match found {
            Some(FORMAT) => {}
            Some(later) => return Err(Unusable::Later(later)),
            None => self.write(true, |tables| {
                tables.put(KEY_FORMAT, &FORMAT)?;
                tables.put(KEY_NODE, &new)
            })?,
        }
        let node = self.get(KEY_NODE)?.ok_or(missing(KEY_NODE))?;
        let mut cluster: Option<ClusterId> = self.get(KEY_CLUSTER)?;
        self.vote()?;
        self.committed()?;
        self.snapshot()?;
        let purged = self.purged()?;
        let entries = self.entries(.., usize::MAX)?;
        let mut next = purged.map(|id| id.index + 1);
        for entry in &entries {
            if next.is_some_and(|next| entry.log_id.index != next) {
                return Err(Unusable::Damaged("entries of the log are missing".to_owned()));
            }
            next = Some(entry.log_id.index + 1);
            // The cluster was made, and the node ended before it had noted that.
            if let openraft::EntryPayload::Normal(Decree::Found { cluster: made, .. }) =
                &entry.payload
            {
                cluster = cluster.or(Some(*made));
            }
        }
        Ok(Stored { node, cluster })
    }

    /// Who this node is.
    pub(crate) fn stored(&self) -> Stored {
        self.base.stored
    }

    /// Whether it is kept over a restart.
    pub(super) fn is_durable(&self) -> bool {
        self.base.path.is_some()
    }

    /// Bytes on disk.
    pub(super) fn file_len(&self) -> u64 {
        let path = self.base.path.as_deref();
        path.and_then(|path| fs::metadata(path).ok()).map_or(0, |meta| meta.len())
    }

    /// Notes which cluster this node is in.
    pub(super) fn set_cluster(&self, cluster: ClusterId) -> Result<(), StoreError> {
        self.write(true, |tables| tables.put(KEY_CLUSTER, &cluster))
    }

    pub(super) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        self.get(KEY_VOTE)
    }

    pub(super) fn set_vote(&self, vote: &Vote) -> Result<(), StoreError> {
        self.write(true, |tables| tables.put(KEY_VOTE, vote))
    }

    pub(super) fn committed(&self) -> Result<Option<LogId>, StoreError> {
        self.get(KEY_COMMITTED)
    }

    /// Not durable by itself: how far the log is committed is learnt again from the others.
    pub(super) fn set_committed(&self, committed: &LogId) -> Result<(), StoreError> {
        self.write(false, |tables| tables.put(KEY_COMMITTED, committed))
    }

    pub(super) fn purged(&self) -> Result<Option<LogId>, StoreError> {
        self.get(KEY_PURGED)
    }

    pub(super) fn snapshot(&self) -> Result<Option<Kept>, StoreError> {
        self.get(KEY_SNAPSHOT)
    }

    pub(super) fn set_snapshot(&self, kept: &Kept) -> Result<(), StoreError> {
        self.write(true, |tables| tables.put(KEY_SNAPSHOT, kept))
    }

    /// The last entry of the log.
    pub(super) fn last_entry(&self) -> Result<Option<Entry>, StoreError> {
        let read = self.base.database.begin_read()?;
        let log = read.open_table(LOG)?;
        let Some((index, bytes)) = log.last()? else { return Ok(None) };
        entry_of(index.value(), bytes.value()).map(Some)
    }

    /// Entries in order: at least one if there is any, and not many more bytes than asked for.
    pub(super) fn entries(
        &self,
        range: impl RangeBounds<u64>,
        len_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let read = self.base.database.begin_read()?;
        let log = read.open_table(LOG)?;
        let (mut entries, mut len) = (Vec::new(), 0usize);
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        for found in log.range::<u64>(bounds)? {
            let (index, bytes) = found?;
            entries.push(entry_of(index.value(), bytes.value())?);
            len = len.saturating_add(bytes.value().len());
            if len >= len_max {
                break;
            }
        }
        Ok(entries)
    }

    /// As many entries as one call carries.
    pub(super) fn some_entries(&self, start: u64, end: u64) -> Result<Vec<Entry>, StoreError> {
        self.entries(start..end, READ_LEN_MAX)
    }

    /// Adds entries: on disk when this returns.
    pub(super) fn append(
        &self,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<(), StoreError> {
        self.write(true, |tables| {
            for entry in entries {
                let bytes = seal(&entry).map_err(|source| record("entry", source))?;
                tables.log.insert(entry.log_id.index, bytes.as_slice())?;
            }
            Ok(())
        })
    }

    /// Drops entries from this index on.
    pub(super) fn truncate(&self, from: u64) -> Result<(), StoreError> {
        self.write(true, |tables| Ok(tables.log.retain_in(from.., |_, _| false)?))
    }

    /// Drops entries up to this one, which a snapshot holds.
    pub(super) fn purge(&self, upto: &LogId) -> Result<(), StoreError> {
        self.write(false, |tables| {
            tables.put(KEY_PURGED, upto)?;
            Ok(tables.log.retain_in(..=upto.index, |_, _| false)?)
        })
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let read = self.base.database.begin_read()?;
        let meta = read.open_table(META)?;
        let Some(bytes) = meta.get(key)? else { return Ok(None) };
        unseal(bytes.value()).map(Some).map_err(|source| record(key, source))
    }

    fn write(
        &self,
        durable: bool,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.base.database.begin_write()?;
        let durability = if durable { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability)?;
        {
            let meta = transaction.open_table(META)?;
            let log = transaction.open_table(LOG)?;
            change(&mut Tables { meta, log })?;
        }
        Ok(transaction.commit()?)
    }
}

/// The tables within a transaction.
struct Tables<'t> {
    meta: Table<'t, &'static str, &'static [u8]>,
    log: Table<'t, u64, &'static [u8]>,
}

impl Tables<'_> {
    fn put(&mut self, key: &str, value: &impl Serialize) -> Result<(), StoreError> {
        let bytes = seal(value).map_err(|source| record(key, source))?;
        self.meta.insert(key, bytes.as_slice())?;
        Ok(())
    }
}

fn entry_of(index: u64, bytes: &[u8]) -> Result<Entry, StoreError> {
    unseal(bytes).map_err(|source| record(&format!("entry {index} of the log"), source))
}

fn record(what: &str, source: RecordError) -> StoreError {
    StoreError::Record { what: what.to_owned(), source }
}

fn missing(what: &str) -> Unusable {
    Unusable::Damaged(format!("no record {what}"))
}

/// Why a file cannot be used.
enum Unusable {
    Damaged(String),
    Later(u32),
}

impl From<StoreError> for Unusable {
    fn from(error: StoreError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Disk(Box::new(error.into()))
    }
}

/// Opens the file for this process alone, and checks every page of it.
fn open_file(path: &Path) -> Result<Database, ControlError> {
    let io = |source| ControlError::Io { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(io)?;
    }
    let len = fs::metadata(path).map_or(0, |meta| meta.len());
    let opened = guarded(|| {
        let mut database = redb::Builder::new().set_cache_size(PAGE_CACHE).create(path)?;
        let is_sound = database.check_integrity()?;
        if is_sound && len > COMPACT_ABOVE {
            // Only to make it small: it can be used as it is.
            if let Err(error) = database.compact() {
                tracing::debug!(%error, "the control file was not compacted");
            }
        }
        Ok((database, is_sound))
    });
    let damaged = |what| ControlError::Damaged { path: path.to_owned(), what };
    match opened {
        Ok(Ok((database, true))) => Ok(database),
        Ok(Ok((_, false))) => Err(damaged("pages are not as they were written".to_owned())),
        Ok(Err(error)) => Err(match error {
            DatabaseError::DatabaseAlreadyOpen => {
                ControlError::InUse(path.parent().unwrap_or(path).to_owned())
            }
            DatabaseError::Storage(redb::StorageError::Io(source)) if is_of_system(&source) => {
                io(source)
            }
            other => damaged(other.to_string()),
        }),
        Err(panic) => Err(damaged(panic)),
    }
}

/// Whether the system refused something, as opposed to the content not making sense.
fn is_of_system(error: &io::Error) -> bool {
    error.raw_os_error().is_some()
}

/// Runs what reads bytes that may be anything: the storage library ends in a panic on some of them.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("the storage library gave up: {}", text.unwrap_or("no reason given"))
    })
}

/// A byte string, not a sequence of numbers.
mod plain_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Bytes::deserialize(from).map(Vec::from)
    }
}
