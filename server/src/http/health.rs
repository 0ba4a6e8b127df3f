//! Whether the node lives, and whether it may be sent requests.
//!
//! *Live* says that no thread is stuck: a supervisor restarts a node that is not. *Ready* also
//! says that the node is neither starting nor stopping: a load balancer passes by one that is not.

use std::{fmt::Write, sync::Arc};

use axum::{
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::gateway::Gateway;
use crate::{
    cluster::Figures,
    node::{Heartbeat, Node},
    shutdown::Phase,
};

/// A thread shows that it is alive every second or more often; after this it counts as stuck.
const SILENCE_MAX_MS: u64 = 30_000;

/// One condition, by name; `Err` says why it does not hold.
type Check = (String, Result<(), String>);

pub(super) async fn live(
    State(gateway): State<Arc<Gateway>>,
    RawQuery(query): RawQuery,
) -> Response {
    answer(&threads(&gateway.node), query.as_deref())
}

pub(super) async fn ready(
    State(gateway): State<Arc<Gateway>>,
    RawQuery(query): RawQuery,
) -> Response {
    let mut checks = vec![phase(gateway.node.shutdown.phase())];
    checks.extend(cluster(&gateway.node));
    checks.extend(threads(&gateway.node));
    answer(&checks, query.as_deref())
}

/// Whether the node is a full member of its cluster.
fn cluster(node: &Node) -> Option<Check> {
    let cluster = node.cluster.get()?;
    let figures = Figures::of(&cluster.topology(), cluster.me.node);
    let trouble = figures.trouble(cluster.state());
    Some(("cluster".to_owned(), trouble.map_or(Ok(()), Err)))
}

fn phase(phase: Phase) -> Check {
    let result = match phase {
        Phase::Ready => Ok(()),
        Phase::Starting => Err("starting".to_owned()),
        Phase::Leaving => Err("leaving: other nodes take over".to_owned()),
        Phase::Draining => Err("stopping".to_owned()),
    };
    ("phase".to_owned(), result)
}

fn threads(node: &Node) -> Vec<Check> {
    let (now_ms, start_ms) = (node.clock.now_ms(), node.clock.start_ms());
    // A thread that never showed itself is measured from the start of the node.
    let check = |name, heart: &Heartbeat| {
        (name, awake(now_ms.saturating_sub(heart.last_ms().max(start_ms))))
    };
    let workers = node.workers.iter().enumerate();
    let mut checks: Vec<_> =
        workers.map(|(index, worker)| check(format!("worker-{index}"), &worker.heart)).collect();
    checks.push(check("upkeep".to_owned(), &node.upkeep));
    checks
}

fn awake(silence_ms: u64) -> Result<(), String> {
    if silence_ms > SILENCE_MAX_MS { Err(format!("silent for {silence_ms} ms")) } else { Ok(()) }
}

fn answer(checks: &[Check], query: Option<&str>) -> Response {
    let good = checks.iter().all(|(_, result)| result.is_ok());
    let verbose =
        query.is_some_and(|q| q.split('&').any(|p| p.split('=').next() == Some("verbose")));
    let mut body = String::new();
    for (name, result) in checks {
        // Writing to a string cannot fail.
        let _ = match result {
            Ok(()) if verbose => writeln!(body, "[+] {name} ok"),
            Ok(()) => Ok(()),
            Err(reason) => writeln!(body, "[-] {name} {reason}"),
        };
    }
    if good {
        body.push_str("ok\n");
    }
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_only_between_start_and_stop() {
        assert!(phase(Phase::Starting).1.is_err());
        assert!(phase(Phase::Ready).1.is_ok());
        assert!(phase(Phase::Draining).1.is_err());
    }

    #[test]
    fn a_thread_counts_as_stuck_after_thirty_seconds_of_silence() {
        assert!(awake(0).is_ok() && awake(30_000).is_ok());
        assert!(awake(30_001).is_err());
    }

    #[test]
    fn one_failed_check_is_enough_and_is_always_named() {
        let checks = [("a".to_owned(), Ok(())), ("b".to_owned(), Err("broken".to_owned()))];
        assert_eq!(answer(&checks, None).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer(&checks[..1], Some("verbose")).status(), StatusCode::OK);
    }
}
