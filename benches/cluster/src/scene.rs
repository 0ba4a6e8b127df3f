//! A cluster with clients at work and a judge: what all trials of strong caches begin with.

use std::{sync::Arc, time::Duration};

use kiln_client::{Client, blocking};

use crate::{
    TrialError,
    ask::{Asker, Doors, Memcached, Patience},
    audit::{Audit, Auditor},
    history::History,
    load::{Load, Pace},
    nodes::{Nodes, metric},
};

/// The cluster, the clients and the judge.
pub(crate) struct Scene {
    // Before the nodes, so that clients end first.
    pub(crate) load: Load,
    auditor: Auditor,
    pub(crate) doors: Arc<Doors>,
    pub(crate) patience: Arc<Patience>,
    pub(crate) nodes: Nodes,
}

impl Scene {
    /// Clients at all nodes, held at first. Every other one speaks memcached, to one node each; the
    /// rest the native protocol.
    pub(crate) fn start(
        nodes: Nodes,
        clients: usize,
        pace: Pace,
        seed: u64,
    ) -> Result<Self, TrialError> {
        let doors = Arc::new(Doors::default());
        for at in 0..nodes.count() {
            doors.add(&nodes.address(at, "memcached"))?;
        }
        let patience = Arc::new(Patience::new(PATIENT));
        let asker = |number: usize| -> Result<Asker, TrialError> {
            if number.is_multiple_of(2) {
                let home = number / 2 % nodes.count();
                let (doors, patience) = (Arc::clone(&doors), Arc::clone(&patience));
                Ok(Asker::Memcached(Memcached::new(doors, patience, home)))
            } else {
                native_asker(&nodes.cluster_address(), "default", &patience)
            }
        };
        let askers = (0..clients).map(asker).collect::<Result<_, _>>()?;
        // One connection to each of three nodes and a native client.
        let auditors = [0, 2, 4, 1].into_iter().map(asker).collect::<Result<_, _>>()?;
        let load = Load::start(askers, History::new("k", SLOTS), pace, seed)?;
        let auditor = Auditor::new(auditors, seed);
        Ok(Self { load, auditor, doors, patience, nodes })
    }

    /// Judges all that was done since the last time. Clients must be held.
    pub(crate) fn audit(&mut self) -> Result<(Audit, Vec<String>), TrialError> {
        self.auditor.audit(&self.load, &self.nodes)
    }

    /// Whether a node leads the controller group, as it says itself.
    pub(crate) fn leads(&self, at: usize) -> bool {
        let text = self.nodes.metrics(at).unwrap_or_default();
        metric(&text, "kiln_cluster_leads") == Some(1.0)
    }

    /// Items that the running nodes evicted. The judge expects none.
    pub(crate) fn evictions(&self) -> f64 {
        let of = |at| {
            let text = self.nodes.metrics(at).unwrap_or_default();
            metric(&text, "kiln_evictions_total").unwrap_or(0.0)
        };
        (0..self.nodes.count()).map(of).sum()
    }

    /// Compares all copies. Returns what is wrong with them.
    pub(crate) fn verify(&self) -> Result<Option<String>, TrialError> {
        let output = self.nodes.kiln(&["cluster", "verify", "--strict", "-o", "json"])?;
        if output.status.success() {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Some(format!("copies are not equal at the end: {} {}", error.trim(), said.trim())))
    }
}

/// A client of the native protocol that knows all nodes.
pub(crate) fn native_asker(
    address: &str,
    cache: &str,
    patience: &Arc<Patience>,
) -> Result<Asker, TrialError> {
    let cache = native(address)?.cache(cache);
    Ok(Asker::Native { cache, patience: Arc::clone(patience) })
}

/// The Rust client itself.
pub(crate) fn native(address: &str) -> Result<blocking::Client, TrialError> {
    let address = address.parse().map_err(|error| TrialError::Client(format!("{error}")))?;
    let client = blocking::Client::build(Client::builder().address(address).name("kiln-trial"));
    client.map_err(|error| TrialError::Client(error.to_string()))
}

/// Keys in use at a time.
const SLOTS: usize = 96;

/// How long clients wait for an answer: longer than a failover takes, so that it is seen whole.
pub(crate) const PATIENT: Duration = Duration::from_secs(5);

/// Longest wait for all copies to be made.
pub(crate) const WHOLE_MAX: Duration = Duration::from_secs(180);

/// Longest wait for a node that hands over.
pub(crate) const LEAVES_MAX: Duration = Duration::from_secs(180);
