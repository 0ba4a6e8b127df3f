//! What may happen to the table, and what became of it.
//!
//! A command about one partition names the version that it was decided on and is refused when the
//! partition has changed since: whoever decided on an older table knew too little.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Acks, CacheSpec, Eviction, NodeState, OnLoss, ReadMode};
use crate::ids::{GroupKey, Incarnation, Member, NodeId, PartitionId, Place, Term};

/// Most commands in a [`TopologyCommand::Batch`].
pub const COMMANDS_PER_BATCH_MAX: usize = 4_096;

/// What a node says of itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeProfile {
    /// The operator's name of the node.
    pub name: String,
    /// Listener name to address.
    pub addresses: BTreeMap<String, String>,
    /// Share relative to others, in thousandths. 0 holds nothing.
    pub weight: u32,
    /// Failure zone, empty when not named.
    pub zone: String,
    /// Votes, but holds no items.
    pub witness: bool,
}

/// What can be changed about a cache while it lives. Mode and copies cannot: they say in which
/// group its items lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheSettings {
    /// Strong: writes are refused when fewer copies are in sync.
    pub min_in_sync: u8,
    /// How reads are made.
    pub read: ReadMode,
    /// Eventual: when writes are acknowledged.
    pub acks: Acks,
    /// What happens when memory is full.
    pub eviction: Eviction,
    /// What happens when every copy is gone.
    pub on_loss: OnLoss,
    /// Longest value in bytes.
    pub value_len_max: u32,
    /// End of items that are written without one, in milliseconds from the write.
    pub default_ttl_ms: Option<u64>,
    /// Which of its policies the store follows, by name; nothing here depends on it.
    pub policy: String,
    /// Bytes on every node, 0 to let each choose; nothing here depends on it.
    pub memory: u64,
}

/// What may happen to the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TopologyCommand {
    /// A node is there: new, or restarted. A restart ends its former life: that is taken out of
    /// every partition at once, because its memory is gone.
    Join {
        /// Who.
        node: NodeId,
        /// Its present life.
        incarnation: Incarnation,
        /// The life in the table that this one follows, as the node or whoever proposes it read
        /// it. A join that was overtaken by a later one is refused: it would end a life that goes on.
        replaces: Option<Incarnation>,
        /// What it says of itself.
        profile: NodeProfile,
    },
    /// A node became ready, shall leave, is believed dead, or is back.
    SetNodeState {
        /// Which life of which node.
        member: Member,
        /// Where it stands now.
        state: NodeState,
    },
    /// A node is given another weight.
    SetWeight {
        /// Who.
        node: NodeId,
        /// In thousandths. 0 holds nothing.
        weight: u32,
    },
    /// A node is gone for good: it was drained, or an operator vouches that its process has ended.
    /// Partitions of which it held the last copy are lost by this.
    RemoveNode {
        /// Which life. Named so that a node which has just restarted is not removed by mistake.
        member: Member,
    },
    /// A cache is made, and the group that holds its items if it is the first there.
    CreateCache {
        /// Its name.
        name: String,
        /// What it promises. The number in it is given by the table.
        spec: CacheSpec,
    },
    /// A cache is given other settings.
    ChangeCache {
        /// Its name.
        name: String,
        /// All of them.
        settings: CacheSettings,
    },
    /// A cache is dropped. Its group stays: terms must not begin again.
    DropCache {
        /// Its name.
        name: String,
    },
    /// Who shall hold partitions. A wish: nothing that must be right rests on it.
    SetTargets {
        /// In which group.
        group: GroupKey,
        /// The future owners, the future primary first.
        targets: Vec<(PartitionId, Vec<NodeId>)>,
    },
    /// A partition that nobody holds is given out, empty. The first becomes the primary.
    Assign {
        /// Which partition.
        place: Place,
        /// Decided on this version.
        version: u64,
        /// Who begins to hold it.
        members: Vec<Member>,
    },
    /// A node begins to be filled. The primary starts the transfer when it sees this committed.
    AddLearner {
        /// Which partition.
        place: Place,
        /// Decided on this version.
        version: u64,
        /// Who.
        member: Member,
    },
    /// A node is not filled any longer.
    RemoveLearner {
        /// Which partition.
        place: Place,
        /// Decided on this version.
        version: u64,
        /// Who.
        member: Member,
    },
    /// A learner holds everything: it becomes a full copy. Asked for by the primary of `term`,
    /// which from then on waits for its confirmations.
    Promote {
        /// Which partition.
        place: Place,
        /// Decided on this version.
        version: u64,
        /// By the primary of this term.
        term: Term,
        /// Who.
        member: Member,
    },
    /// A copy is not waited for any longer. Asked for by the primary or decided by the controller.
    /// Never the primary itself.
    Shrink {
        /// Which partition.
        place: Place,
        /// Decided on this version.
        version: u64,
        /// Who.
        member: Member,
    },
    /// Another copy in sync orders writes from now on: a failover if the old primary is among the
    /// removed, a planned move if nobody is.
    ChangePrimary {
        /// Which partition.
        place: Place,
        /// Decided on this version.
        version: u64,
        /// The new primary.
        to: Member,
        /// Copies that are not waited for any longer.
        remove: Vec<Member>,
    },
    /// An operator has seen that data were lost: caches that block on a loss go on, empty.
    AcknowledgeLoss {
        /// In which group.
        group: GroupKey,
        /// Which partition, or all of them.
        partition: Option<PartitionId>,
    },
    /// Several, in order, as one entry of the log. Those that are refused do not stop the others.
    Batch(Vec<TopologyCommand>),
    /// A stream is made. Its caches are made before, by commands of their own.
    CreateStream {
        /// Its name.
        name: String,
        /// What it is, in JSON; checked by whoever asks.
        definition: String,
    },
    /// A stream is dropped. Its caches stay until they are dropped themselves.
    DropStream {
        /// Its name.
        name: String,
    },
}

impl TopologyCommand {
    /// What gives a group that is made in the same batch to one member, whole and at once: for the
    /// first node of a cluster, which nobody can contradict. The group must be new.
    pub fn claim(group: GroupKey, partitions: u32, member: Member) -> impl Iterator<Item = Self> {
        let all = move || (0..partitions).map(PartitionId);
        let targets = all().map(|partition| (partition, vec![member.node])).collect();
        let assign = move |partition| Self::Assign {
            place: Place { group, partition },
            // A new partition, whose targets were set.
            version: 1,
            members: vec![member],
        };
        std::iter::once(Self::SetTargets { group, targets }).chain(all().map(assign))
    }
}

/// What became of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Partitions whose state changed.
    pub changed: Vec<Place>,
    /// Those among them whose last copy in sync is gone.
    pub lost: Vec<Place>,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Rejected {
    /// The partition changed since.
    #[error("decided on version {expected}, the partition is at {found}")]
    Outdated {
        /// Decided on.
        expected: u64,
        /// Is at.
        found: u64,
    },
    /// The primary that asked is not the primary any longer.
    #[error("asked for in term {expected}, the partition is in {found}")]
    OutdatedTerm {
        /// Asked for in.
        expected: Term,
        /// Is in.
        found: Term,
    },
    /// There is no such node.
    #[error("no node {0}")]
    UnknownNode(NodeId),
    /// There is no such partition.
    #[error("no partition {0}")]
    UnknownPlace(Place),
    /// There is no such group.
    #[error("no group {0:?}")]
    UnknownGroup(GroupKey),
    /// There is no such cache.
    #[error("no cache of this name")]
    UnknownCache,
    /// There is a cache of this name.
    #[error("a cache of this name exists")]
    CacheExists,
    /// There is no such stream.
    #[error("no stream of this name")]
    UnknownStream,
    /// There is a stream of this name.
    #[error("a stream of this name exists")]
    StreamExists,
    /// The stream cannot be as described.
    #[error(
        "stream refused: the name must be 1 to {limit} of a-z A-Z 0-9 - _ ., and the definition \
         not longer than {definition_limit} bytes",
        limit = super::STREAM_NAME_LEN_MAX,
        definition_limit = super::STREAM_DEFINITION_LEN_MAX
    )]
    Stream,
    /// The cache cannot be as described.
    #[error("cache refused: {0}")]
    Cache(#[from] CacheFault),
    /// It is about a life of the node that is not the present one.
    #[error("{0} is not the present life of the node")]
    NotPresent(Member),
    /// A node that may not hold items.
    #[error("{0} holds no items")]
    HoldsNothing(NodeId),
    /// It must be a copy in sync, and is not.
    #[error("{0} is not in sync")]
    NotInSync(Member),
    /// It must be a learner, and is not.
    #[error("{0} is not a learner")]
    NotLearner(Member),
    /// It holds the partition or is being filled already.
    #[error("{0} is there already")]
    AlreadyThere(Member),
    /// The primary is removed only by naming another.
    #[error("{0} is the primary")]
    IsPrimary(Member),
    /// Only a partition that nobody holds can be given out.
    #[error("the partition is held")]
    Held,
    /// Nobody holds the partition, so there is nothing to be filled from.
    #[error("nobody holds the partition")]
    NotHeld,
    /// Nothing would change.
    #[error("nothing would change")]
    NoChange,
    /// More than the table can hold.
    #[error("the limit of {limit} is reached")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A batch in a batch.
    #[error("a batch holds single commands only")]
    Nested,
}

/// Why a cache cannot be as described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CacheFault {
    /// Letters, digits, `-`, `_` and `.` only, and not too long.
    #[error("the name must be 1 to 64 of a-z A-Z 0-9 - _ .")]
    Name,
    /// Out of range.
    #[error("copies must be 1 to 8")]
    Copies,
    /// Out of range.
    #[error("min_in_sync must be 1 to the number of copies")]
    MinInSync,
    /// A way of reading that the mode does not have.
    #[error("this way of reading does not exist in this mode")]
    Read,
}
