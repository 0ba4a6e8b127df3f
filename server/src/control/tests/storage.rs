//! What is kept: as the Raft library demands it, and on a disk that lies.

use kiln_cluster::{
    ids::{CacheId, GroupKey, Mode, PartitionId, Place},
    topology::{Acks, CacheSpec, Eviction, OnLoss, ReadMode},
};
use openraft::testing::{StoreBuilder, Suite};

use super::*;
use crate::control::{
    ControlError, Store,
    decree::{Decree, Entry, Group, StorageError},
    log::Log,
    machine::{Board, Machine},
    store::FILE_NAME,
};

/// A cache of two copies, and its first partition.
pub(super) fn cache_and_place() -> (CacheSpec, Place) {
    let group = GroupKey { mode: Mode::Strong, copies: 2 };
    let spec = CacheSpec {
        id: CacheId(0),
        mode: group.mode,
        copies: group.copies,
        min_in_sync: 1,
        read: ReadMode::Confirm,
        acks: Acks::All,
        eviction: Eviction::Evict,
        on_loss: OnLoss::Reset,
        value_len_max: 1 << 20,
        default_ttl_ms: None,
        policy: "s3fifo".to_owned(),
        memory: 0,
    };
    (spec, Place { group, partition: PartitionId(0) })
}

fn open(dir: &Path) -> Result<(super::super::Stored, Store), ControlError> {
    Control::open(&ControlSettings::new(Some(dir), "a"))
}

/// Stores for the library's own tests: in memory, or in a directory of their own.
struct Stores {
    on_disk: bool,
}

impl StoreBuilder<Group, Log, Machine, tempfile::TempDir> for Stores {
    async fn build(&self) -> Result<(tempfile::TempDir, Log, Machine), StorageError> {
        let dir = tempfile::tempdir().expect("a directory");
        let kept = self.on_disk.then(|| dir.path());
        let (_, store) = Control::open(&ControlSettings::new(kept, "a")).expect("opens");
        let machine = Machine::open(store.clone(), Board::default()).expect("opens");
        Ok((dir, Log(store), machine))
    }
}

#[test]
fn the_store_does_what_the_library_demands_in_memory() {
    Suite::test_all(Stores { on_disk: false }).expect("passes");
}

#[test]
fn the_store_does_what_the_library_demands_on_disk() {
    Suite::test_all(Stores { on_disk: true }).expect("passes");
}

fn entry(index: u64, decree: Decree) -> Entry {
    let log_id = openraft::testing::log_id(1, 9, index);
    Entry { log_id, payload: openraft::EntryPayload::Normal(decree) }
}

fn entries(range: std::ops::Range<u64>) -> Vec<Entry> {
    let weight = |weight| TopologyCommand::SetWeight { node: NodeId(1), weight };
    range.map(|index| entry(index, Decree::Change(weight(index as u32)))).collect()
}

/// A file with a vote and a log, and who its node is.
fn written(dir: &Path) -> NodeId {
    let (stored, store) = open(dir).expect("opens");
    store.set_cluster(ClusterId(7)).unwrap();
    store.set_vote(&openraft::Vote::new(3, 9)).unwrap();
    for at in 0..20 {
        store.append(entries(at * 10..at * 10 + 10)).unwrap();
    }
    stored.node
}

#[test]
fn what_was_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = written(dir.path());
    let (stored, store) = open(dir.path()).expect("opens");
    assert_eq!((stored.node, stored.cluster), (node, Some(ClusterId(7))));
    assert_eq!(store.vote().unwrap(), Some(openraft::Vote::new(3, 9)));
    assert_eq!(store.entries(.., usize::MAX).unwrap(), entries(0..200));

    store.truncate(150).unwrap();
    store.purge(&openraft::testing::log_id(1, 9, 49)).unwrap();
    store.append(entries(150..160)).unwrap();
    drop(store);
    let (_, store) = open(dir.path()).expect("opens");
    assert_eq!(store.entries(.., usize::MAX).unwrap(), entries(50..160));
    assert_eq!(store.purged().unwrap().map(|id| id.index), Some(49));
    assert_eq!(store.some_entries(50, 60).unwrap(), entries(50..60));
}

#[test]
fn a_cluster_that_was_founded_is_known_even_if_the_node_ended_before_it_noted_that() {
    let dir = tempfile::tempdir().unwrap();
    let (_, store) = open(dir.path()).expect("opens");
    let found = Decree::Found { cluster: ClusterId(5), partitions: 4, first: Vec::new() };
    store.append([entry(0, found)]).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).expect("opens").0.cluster, Some(ClusterId(5)));
}

/// The moment of a crash, at any write: the file as the disk has it then. What was answered for is
/// in it.
#[test]
fn a_copy_of_the_file_in_use_holds_all_that_was_answered_for() {
    let dir = tempfile::tempdir().unwrap();
    let (stored, store) = open(dir.path()).expect("opens");
    for at in 0..40u64 {
        store.append(entries(at..at + 1)).unwrap();
        store.set_vote(&openraft::Vote::new(at, 9)).unwrap();
        store.set_committed(&openraft::testing::log_id(1, 9, at)).unwrap();
        let crashed = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join(FILE_NAME), crashed.path().join(FILE_NAME)).unwrap();
        let (found, copy) = open(crashed.path()).expect("opens after a crash");
        assert_eq!(found.node, stored.node);
        assert_eq!(copy.entries(.., usize::MAX).unwrap(), entries(0..at + 1));
        assert_eq!(copy.vote().unwrap(), Some(openraft::Vote::new(at, 9)));
    }
}

/// Whatever happened to the file: it is refused with words that help, or it holds what was written.
fn is_refused_or_whole(dir: &Path, node: NodeId, what: &str) -> bool {
    match open(dir) {
        Ok((stored, store)) => {
            assert_eq!((stored.node, stored.cluster), (node, Some(ClusterId(7))), "{what}");
            assert_eq!(store.vote().unwrap(), Some(openraft::Vote::new(3, 9)), "{what}");
            assert_eq!(store.entries(.., usize::MAX).unwrap(), entries(0..200), "{what}");
            false
        }
        Err(error @ ControlError::Damaged { .. }) => {
            assert!(error.to_string().contains("move it away"), "{error}");
            true
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_file_that_was_cut_short_is_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    let node = written(dir.path());
    let path = dir.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for tenth in 1..10 {
        std::fs::write(&path, &whole[..whole.len() * tenth / 10]).unwrap();
        refused += usize::from(is_refused_or_whole(dir.path(), node, &format!("{tenth} tenths")));
    }
    assert!(refused > 0, "half a file is not a file");
    for len in [1, 9, 100, 511, 4_096] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(is_refused_or_whole(dir.path(), node, &format!("{len} bytes")));
    }
    std::fs::write(&path, b"something else altogether, longer than a magic number").unwrap();
    assert!(is_refused_or_whole(dir.path(), node, "another file"));
}

#[test]
fn a_file_with_damaged_bytes_is_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    let node = written(dir.path());
    let path = dir.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut refused = 0;
    // All over the file, among the bytes that are not zero. Many of them are in pages that are not
    // in use any more: those may say anything.
    for round in 0..60 {
        let at = used[round * used.len() / 60];
        let mut damaged = whole.clone();
        damaged[at] ^= 0x5a;
        std::fs::write(&path, &damaged).unwrap();
        refused += usize::from(is_refused_or_whole(dir.path(), node, &format!("byte {at}")));
    }
    assert!(refused > 5, "only {refused} of 60 were noticed");
}

#[test]
fn a_file_of_a_later_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    {
        let database = redb::Database::open(dir.path().join(FILE_NAME)).unwrap();
        let write = database.begin_write().unwrap();
        {
            let table = redb::TableDefinition::<&str, &[u8]>::new("meta");
            let bytes = crate::control::record::seal(&9u32).unwrap();
            write.open_table(table).unwrap().insert("format", bytes.as_slice()).unwrap();
        }
        write.commit().unwrap();
    }
    let opened = open(dir.path());
    assert!(matches!(opened, Err(ControlError::Later { found: 9, known: 1, .. })), "{opened:?}");
}

/// The log is purged behind snapshots, so the file stays small however long the group lives.
#[test]
fn the_file_does_not_grow_with_the_number_of_entries() {
    let dir = tempfile::tempdir().unwrap();
    let (_, store) = open(dir.path()).expect("opens");
    let mut early = 0;
    for round in 0..200u64 {
        store.append(entries(round * 50..round * 50 + 50)).unwrap();
        store.purge(&openraft::testing::log_id(1, 9, round * 50 + 40)).unwrap();
        if round == 20 {
            early = store.file_len();
        }
    }
    let late = store.file_len();
    assert!(late <= early * 2, "from {early} to {late} bytes");
}
