//! The demonstration without a terminal: nodes are killed and started again by a script.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use kiln_client::{ClusterStatus, NodeStatus};

use super::{load::Load, nodes::Nodes, pause};
use crate::commands::CommandError;

/// The load runs so long before a node is killed, and after everything is whole again.
const CALM: Duration = Duration::from_secs(2);

/// A node that was killed stays away so long.
const AWAY: Duration = Duration::from_secs(3);

/// How long copies may take to be made.
const WHOLE_MAX: Duration = Duration::from_secs(180);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Kills, waits, starts again: once, or for so many seconds.
pub(super) fn run(
    nodes: &mut Nodes,
    load: &Load,
    seconds: Option<u64>,
    ended: &AtomicBool,
) -> Result<(), CommandError> {
    let began = Instant::now();
    until_whole(nodes, load, ended)?;
    loop {
        pause(CALM, ended);
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let others = nodes.running();
        eprintln!("{}", nodes.kill_any()?);
        load.killed();
        // One that was alone has nobody to take over.
        pause(if others > 1 { AWAY } else { Duration::ZERO }, ended);
        eprintln!("{}", nodes.start_again()?);
        load.restarted();
        until_whole(nodes, load, ended)?;
        let over = seconds.is_none_or(|seconds| began.elapsed() >= Duration::from_secs(seconds));
        if over || ended.load(Ordering::Relaxed) {
            pause(CALM, ended);
            return Ok(());
        }
    }
}

/// Waits until every partition has all the copies that the nodes can have.
fn until_whole(nodes: &mut Nodes, load: &Load, ended: &AtomicBool) -> Result<(), CommandError> {
    let began = Instant::now();
    let all = nodes.looks().len();
    while !ended.load(Ordering::Relaxed) {
        if let Some(text) = nodes.reap().pop() {
            return Err(CommandError::Failed(text));
        }
        let status = load.status();
        if status.as_ref().is_some_and(|status| is_whole(status, all)) {
            eprintln!("all partitions are whole after {:.1} s", began.elapsed().as_secs_f64());
            return Ok(());
        }
        if began.elapsed() >= WHOLE_MAX {
            let missing = status.map_or_else(
                || "the cluster does not tell how it is".to_owned(),
                |status| {
                    let short: u64 =
                        status.groups.iter().map(|g| g.short + g.without_primary).sum();
                    format!("{short} partitions still have a copy missing")
                },
            );
            return Err(CommandError::Failed(format!("{missing} after {} s", WHOLE_MAX.as_secs())));
        }
        pause(LOOK_EVERY, ended);
    }
    Ok(())
}

/// Whether all nodes are there and nothing is left to be made or moved.
fn is_whole(status: &ClusterStatus, nodes: usize) -> bool {
    // One that has just come has no share yet.
    let has_share = |node: &&NodeStatus| node.state == "ready" && node.wanted > 0;
    status.nodes.iter().filter(has_share).count() == nodes
        && status.groups.iter().all(|group| {
            group.without_primary == 0
                && (group.short == 0 || group.copies_possible < group.copies)
                && group.copies_there == group.copies_wanted
                && group.copies_wanted > 0
        })
}

#[cfg(test)]
mod tests {
    use kiln_client::GroupStatus;

    use super::*;

    #[test]
    fn a_cluster_is_whole_when_all_nodes_are_ready_and_all_copies_in_place() {
        let node = NodeStatus { state: "ready".to_owned(), wanted: 4, ..NodeStatus::default() };
        let group = GroupStatus { copies_wanted: 8, copies_there: 8, ..GroupStatus::default() };
        let whole = ClusterStatus {
            nodes: vec![node.clone(), node],
            groups: vec![group],
            ..ClusterStatus::default()
        };
        assert!(is_whole(&whole, 2));
        assert!(!is_whole(&whole, 3));
        let mut missing = whole.clone();
        missing.groups[0].copies_there = 7;
        assert!(!is_whole(&missing, 2));
        let mut new = whole.clone();
        new.nodes[1].wanted = 0;
        assert!(!is_whole(&new, 2));
        let mut down = whole.clone();
        down.nodes[1].state = "down".to_owned();
        assert!(!is_whole(&down, 2));
        let mut short = whole.clone();
        short.groups[0].short = 1;
        assert!(!is_whole(&short, 2));
        let nothing = ClusterStatus { groups: vec![GroupStatus::default()], ..whole };
        assert!(!is_whole(&nothing, 2));
    }
}
