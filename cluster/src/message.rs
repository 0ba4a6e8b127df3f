//! What nodes tell each other.
//!
//! Each message carries the cluster and both incarnations: one that was meant for another cluster,
//! for an earlier life of this node, or that comes from an earlier life of its sender, is dropped
//! before anything looks inside. It also carries the sender's hybrid clock.

use serde::{Deserialize, Serialize};

use crate::eventual::EventualMessage;
use crate::heartbeat::Heartbeat;
use crate::ids::{ClusterId, Member, Place, Seq, Term};
use crate::node::{Reply, Request};
use crate::rounds::{ConfirmReply, ConfirmRound};
use crate::strong::StrongMessage;

/// All that one node has to say to another in one turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Whose cluster.
    pub cluster: ClusterId,
    /// Which life of the sender.
    pub from: Member,
    /// Which life of the addressee.
    pub to: Member,
    /// The sender's hybrid clock, in milliseconds.
    pub clock_ms: u64,
    /// What it says, in order.
    pub bodies: Vec<Body>,
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Alive, and how loaded.
    Heartbeat(Heartbeat),
    /// A request for a partition that the addressee orders.
    Ask {
        /// The sender's number for it.
        ask: u64,
        /// The request.
        request: Request,
    },
    /// What came of it.
    Answer {
        /// The asker's number for it.
        ask: u64,
        /// The reply.
        reply: Reply,
    },
    /// Strong mode, one partition.
    Strong(Place, StrongMessage),
    /// Are you still at these terms? For all partitions of the pair that have reads waiting.
    Confirm(ConfirmRound),
    /// The answer.
    Confirmed(ConfirmReply),
    /// Primary to copies, now and then: in these partitions, of these terms, all is confirmed up to
    /// here. What ended by the clock of this message may be dropped where as much is applied.
    Settled(Vec<(Place, Term, Seq)>),
    /// Eventual mode, one partition.
    Eventual(Place, EventualMessage),
}
