//! The controller group as a plain object: one table, commands in order, a leader that moves.
//!
//! It stands for a Raft group that works. What a simulated cluster may see of it: proposals are
//! lost, late and repeated; a committed table reaches nodes late and out of order; the leader moves
//! without the old one noticing; for a while nothing commits. What it never sees: two tables.

use std::sync::Arc;

use kiln_cluster::ids::{ClusterId, NodeId};
use kiln_cluster::topology::{Applied, Rejected, Topology, TopologyCommand};

use crate::queue::Time;

/// The agreed table and who leads.
#[derive(Debug)]
pub struct Agreement {
    topology: Arc<Topology>,
    /// The node that leads now, and in which of its lives.
    pub leader: Option<(NodeId, u64)>,
    /// Nothing commits before this.
    pub out_until: Time,
    /// Commands committed.
    pub committed: u64,
    /// Commands refused by the table.
    pub refused: u64,
}

impl Agreement {
    /// An empty table.
    pub fn new(cluster: ClusterId, partitions: u32) -> Self {
        Self {
            topology: Arc::new(Topology::new(cluster, partitions)),
            leader: None,
            out_until: 0,
            committed: 0,
            refused: 0,
        }
    }

    /// The table as committed.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Commits a command, if the group works now and the table takes it.
    pub fn commit(
        &mut self,
        command: &TopologyCommand,
        now: Time,
    ) -> Option<Result<Applied, Rejected>> {
        if now < self.out_until {
            return None;
        }
        let mut next = Topology::clone(&self.topology);
        let applied = next.apply(command);
        match applied {
            Ok(_) => {
                self.topology = Arc::new(next);
                self.committed += 1;
            }
            Err(_) => self.refused += 1,
        }
        Some(applied)
    }
}
