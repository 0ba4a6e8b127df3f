//! What the links count, for the status view and the metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kiln_cluster::ids::{Member, NodeId};

/// The counters of a node that this one talks to; they outlive its connections. `out` and `in` as
/// seen from here.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes_out: AtomicU64,
    pub(super) frames_out: AtomicU64,
    pub(super) messages_out: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) frames_in: AtomicU64,
    pub(super) messages_in: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) withheld: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) connected_since_ms: AtomicU64,
    pub(super) round_trip_ns: AtomicU64,
}

impl Counters {
    pub(super) fn connected(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.connected_since_ms.store(now.as_millis() as u64, Relaxed);
        count(&self.connects, 1);
    }

    pub(super) fn disconnected(&self) {
        self.connected_since_ms.store(0, Relaxed);
        self.round_trip_ns.store(0, Relaxed);
    }

    pub(super) fn snapshot(&self, node: NodeId) -> LinkStats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let some = |number: u64| (number > 0).then_some(number);
        LinkStats {
            node,
            member: None,
            name: None,
            address: None,
            connected_since_ms: some(get(&self.connected_since_ms)),
            trouble: None,
            bytes_out: get(&self.bytes_out),
            frames_out: get(&self.frames_out),
            messages_out: get(&self.messages_out),
            bytes_in: get(&self.bytes_in),
            frames_in: get(&self.frames_in),
            messages_in: get(&self.messages_in),
            dropped: get(&self.dropped),
            withheld: get(&self.withheld),
            corrupt: get(&self.corrupt),
            reconnects: get(&self.connects).saturating_sub(1),
            queued_bytes: 0,
            round_trip: some(get(&self.round_trip_ns)).map(Duration::from_nanos),
        }
    }
}

#[inline]
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

/// The link with one node, both directions.
#[derive(Clone, Debug)]
pub(crate) struct LinkStats {
    /// Which node.
    pub(crate) node: NodeId,
    /// Which of its lives answered, if connected.
    pub(crate) member: Option<Member>,
    /// Its name, if connected.
    pub(crate) name: Option<Arc<str>>,
    /// Where it is dialled; `None` for a node that only dials this one.
    pub(crate) address: Option<String>,
    /// Since when this node's connection to it stands, in milliseconds since 1970-01-01 UTC.
    pub(crate) connected_since_ms: Option<u64>,
    /// Why it is not connected, in words for people.
    pub(crate) trouble: Option<String>,
    /// Bytes written.
    pub(crate) bytes_out: u64,
    /// Frames written, or to be written next.
    pub(crate) frames_out: u64,
    /// Core messages sent.
    pub(crate) messages_out: u64,
    /// Bytes read.
    pub(crate) bytes_in: u64,
    /// Frames read.
    pub(crate) frames_in: u64,
    /// Core messages received and handed on.
    pub(crate) messages_in: u64,
    /// Core messages that were not sent: no connection, or too many bytes waiting.
    pub(crate) dropped: u64,
    /// Core messages that were not sent or not handed on because one end is in another life, or in
    /// no cluster yet, than the other end takes it for; one for each frame that came.
    pub(crate) withheld: u64,
    /// Frames that were damaged on their way or could not be read. Each cost its connection.
    pub(crate) corrupt: u64,
    /// Connections made to it after the first.
    pub(crate) reconnects: u64,
    /// Bytes waiting to be written to it.
    pub(crate) queued_bytes: usize,
    /// There and back again, as last measured.
    pub(crate) round_trip: Option<Duration>,
}
