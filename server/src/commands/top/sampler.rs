//! Asks every node of a cluster how it is.
//!
//! All at the same time, and each within the time that a call has: a node that does not answer is a
//! row that says so, and delays the others' no longer than that.

use kiln_client::Client;
use tokio::time::Instant;

use super::figures::{NodeSample, Sample};
use crate::commands::{
    CommandError,
    connect::{ConnectArgs, explain},
};

pub(super) struct Sampler {
    client: Client,
    started: Instant,
}

impl Sampler {
    /// Connects; fails when no node can be asked.
    pub(super) async fn connect(connect: &ConnectArgs) -> Result<Self, CommandError> {
        let sampler = Self { client: connect.client().await?, started: Instant::now() };
        let mut failure = None;
        for (_, info) in sampler.client.nodes_info().await {
            match info {
                Ok(_) => return Ok(sampler),
                Err(error) => failure = Some(explain(&error)),
            }
        }
        Err(failure.unwrap_or_else(|| CommandError::Failed("the cluster has no nodes".to_owned())))
    }

    /// Asks all nodes.
    pub(super) async fn sample(&self) -> Sample {
        let nodes = self.client.nodes_info().await.into_iter();
        let nodes = nodes.map(|(address, info)| NodeSample {
            address,
            info: info.map_err(|error| error.to_string()),
        });
        Sample { at: self.started.elapsed(), nodes: nodes.collect() }
    }
}
