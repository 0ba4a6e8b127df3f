//! The cluster: how it is, who owns what, and what operators change about it.
//!
//! ```text
//!   status     nodes, partitions, transfers, warnings, events
//!   owners     who owns a key
//!   nodes      drain, remove, weight, acknowledge-loss
//!   rebalance  what is still to be moved
//!   verify     all copies compared
//!   gather     one picture of what every node tells
//! ```

mod gather;
mod nodes;
mod owners;
mod rebalance;
mod status;
mod verify;

use super::{CommandError, EXIT_CODES};

pub(crate) use gather::status as cluster_picture;

/// Show the cluster, change it, check its copies.
#[derive(clap::Subcommand)]
#[command(after_help = EXIT_CODES)]
pub(crate) enum ClusterCommand {
    Status(status::Status),
    Owners(owners::Owners),
    Drain(nodes::Drain),
    Remove(nodes::Remove),
    Weight(nodes::Weight),
    Rebalance(rebalance::Rebalance),
    AcknowledgeLoss(nodes::AcknowledgeLoss),
    Verify(verify::Verify),
}

impl ClusterCommand {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        match self {
            Self::Status(command) => command.run().await,
            Self::Owners(command) => command.run().await,
            Self::Drain(command) => command.run().await,
            Self::Remove(command) => command.run().await,
            Self::Weight(command) => command.run().await,
            Self::Rebalance(command) => command.run().await,
            Self::AcknowledgeLoss(command) => command.run().await,
            Self::Verify(command) => command.run().await,
        }
    }
}
