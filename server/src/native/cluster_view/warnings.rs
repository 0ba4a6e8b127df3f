//! What an operator should know, in plain words, and what to do about it.
//!
//! Made from the status alone, so that every warning can be seen in the figures beside it.

use std::collections::BTreeMap;

use kiln_protocol::native::admin::{ClusterStatus, GroupStatus, NodeStatus, Warning};

/// The part of the memory from which on a node counts as nearly full.
const NEARLY_FULL: f64 = 0.95;

/// Silence of a node that is told of, although others have not given it up yet.
const SILENCE_MS: u64 = 600;

/// All warnings, worst first.
pub(super) fn of(status: &ClusterStatus) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |level: &str, text: String, advice: &str| {
        found.push(Warning { level: level.to_owned(), text, advice: advice.to_owned() });
    };
    let down: Vec<&NodeStatus> = status.nodes.iter().filter(|node| node.state == "down").collect();
    let up: Vec<&NodeStatus> = status.nodes.iter().filter(|node| node.state != "down").collect();

    for group in &status.groups {
        let caches = group.caches.join(", ");
        if group.lost > 0 {
            warn(
                "error",
                format!("{} of {caches} lost all copies and went on empty", partitions(group.lost)),
                "when everybody concerned knows: kiln cluster acknowledge-loss",
            );
        }
        if group.without_primary > 0 {
            warn(
                "error",
                format!("{} of {caches} are not served", partitions(group.without_primary)),
                &match names(&down) {
                    Some(names) => format!("start {names} again"),
                    None => "this ends by itself while a new primary is chosen".to_owned(),
                },
            );
        }
    }
    if status.control.leader == 0 {
        let voters = voters(status);
        warn(
            "error",
            format!("nobody decides: no majority of the voters {voters} is heard"),
            "start them again; until then nothing fails over and nothing is moved",
        );
    }
    for node in &down {
        warn(
            "warning",
            format!("{} is down{}", node.name, silent_for(node)),
            &format!(
                "start it again; if it is gone for good: kiln cluster remove {} --yes",
                node.name
            ),
        );
    }
    for node in &up {
        if node.id != status.node_id && node.heard_ms_ago.is_some_and(|ms| ms >= SILENCE_MS) {
            let text = format!("{} is silent{}", node.name, silent_for(node));
            warn("warning", text, "if it lasts the node is taken for dead and others take over");
        }
    }
    few_copies(status, &up, &mut warn);
    few_voters(status, &up, &mut warn);
    same_names(status, &mut warn);
    for node in &up {
        let used = node.memory_used as f64 / (node.memory_limit as f64).max(1.0);
        if used >= NEARLY_FULL && !node.witness {
            let text = format!("{} uses {:.0} % of its memory for items", node.name, used * 100.0);
            warn("note", text, "caches with eviction drop items, others refuse writes when full");
        }
        if node.state == "draining" && node.held + node.filling > 0 {
            let text = format!("{} hands over: {} left", node.name, partitions(node.held));
            warn("note", text, "stop it when it holds none; kiln cluster drain --wait tells");
        } else if node.state == "draining" {
            let text = format!("{} is drained: it holds nothing", node.name);
            warn("note", text, "stop it, or use it again: kiln cluster drain --undo");
        }
    }
    let rank = |warning: &Warning| match &*warning.level {
        "error" => 0,
        "warning" => 1,
        _ => 2,
    };
    found.sort_by_key(rank);
    found
}

/// Fewer copies than promised.
fn few_copies(
    status: &ClusterStatus,
    up: &[&NodeStatus],
    warn: &mut impl FnMut(&str, String, &str),
) {
    let holders = up.iter().filter(|node| node.weight > 0.0 && !node.witness).count();
    let mut told: Vec<u32> = Vec::new();
    for group in &status.groups {
        if group.copies_possible < group.copies {
            // Once for each number: groups of both modes may promise the same.
            if told.contains(&group.copies) {
                continue;
            }
            told.push(group.copies);
            let there = match holders {
                1 => "there is one node".to_owned(),
                holders => format!("there are {holders} nodes"),
            };
            let join = up.iter().map(|node| &*node.peer).find(|peer| !peer.is_empty());
            let join = join.unwrap_or("HOST:7312");
            warn(
                "warning",
                format!("{} copies are promised, but {there}", group.copies),
                &format!("start another: kiln serve --join {join}"),
            );
        } else if group.short > 0 {
            let advice = "they are being made again; kiln cluster status --watch 1s";
            warn("warning", missing(group), advice);
        }
    }
}

fn missing(group: &GroupStatus) -> String {
    let caches = group.caches.join(", ");
    format!("{} of {caches} have a copy missing", partitions(group.short))
}

/// What one more failure would cost the controller group.
fn few_voters(
    status: &ClusterStatus,
    up: &[&NodeStatus],
    warn: &mut impl FnMut(&str, String, &str),
) {
    if up.len() == 2 && status.nodes.len() == 2 && status.control.voters.len() < 3 {
        let voter = status.nodes.iter().find(|node| status.control.voters.contains(&node.id));
        let voter = voter.map_or("one of them", |node| &node.name);
        warn(
            "warning",
            format!("two nodes and no witness: if {voter} dies nobody can decide"),
            "start a third node, or a small one that only votes: kiln serve --witness --join …",
        );
    }
    let down = status.nodes.iter().filter(|node| node.state == "down");
    let lost = down.filter(|node| status.control.voters.contains(&node.id)).count();
    let voters = status.control.voters.len();
    if voters >= 3 && lost > 0 && (voters - lost - 1) * 2 <= voters {
        let text = format!("{lost} of {voters} voters are down: one more, and nobody can decide");
        warn("warning", text, "start them again; after a while other nodes take their votes");
    }
}

/// Nodes of one name can only be told apart by their ids.
fn same_names(status: &ClusterStatus, warn: &mut impl FnMut(&str, String, &str)) {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &status.nodes {
        *names.entry(&node.name).or_default() += 1;
    }
    for (name, count) in names.into_iter().filter(|(_, count)| *count > 1) {
        let text = format!("{count} nodes are called {name}");
        warn("note", text, "name them apart with --name; until then commands take their ids");
    }
}

fn partitions(count: u64) -> String {
    if count == 1 { "1 partition".to_owned() } else { format!("{count} partitions") }
}

fn names(nodes: &[&NodeStatus]) -> Option<String> {
    let names: Vec<&str> = nodes.iter().map(|node| &*node.name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn voters(status: &ClusterStatus) -> String {
    let voters = status.nodes.iter().filter(|node| status.control.voters.contains(&node.id));
    voters.map(|node| &*node.name).collect::<Vec<_>>().join(", ")
}

fn silent_for(node: &NodeStatus) -> String {
    match node.heard_ms_ago {
        Some(ms) if ms >= 1_000 => format!(": not heard for {} s", ms / 1_000),
        Some(ms) => format!(": not heard for {ms} ms"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use kiln_protocol::native::admin::ControlView;

    use super::*;

    fn node(id: u64, name: &str) -> NodeStatus {
        NodeStatus {
            id,
            name: name.to_owned(),
            state: "ready".to_owned(),
            weight: 1.0,
            peer: format!("{name}:7312"),
            memory_limit: 100,
            ..NodeStatus::default()
        }
    }

    fn healthy(nodes: &[&str], voters: &[u64]) -> ClusterStatus {
        ClusterStatus {
            node_id: 1,
            nodes: (1..).zip(nodes).map(|(id, name)| node(id, name)).collect(),
            groups: vec![GroupStatus {
                mode: "strong".to_owned(),
                copies: 2,
                copies_possible: nodes.len().min(2) as u32,
                caches: vec!["default".to_owned()],
                whole: 1_024,
                ..GroupStatus::default()
            }],
            control: ControlView { leader: 1, voters: voters.to_vec(), ..ControlView::default() },
            ..ClusterStatus::default()
        }
    }

    fn texts(status: &ClusterStatus) -> Vec<String> {
        of(status).into_iter().map(|warning| warning.text).collect()
    }

    #[test]
    fn a_cluster_that_keeps_its_promises_has_no_warnings() {
        assert!(texts(&healthy(&["a", "b", "c"], &[1, 2, 3])).is_empty());
        assert!(texts(&healthy(&["a", "b", "c", "d"], &[1, 2, 3])).is_empty());
    }

    #[test]
    fn one_node_cannot_keep_two_copies_and_is_told_how_to_get_another() {
        let found = of(&healthy(&["a"], &[1]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "2 copies are promised, but there is one node");
        assert_eq!(found[0].advice, "start another: kiln serve --join a:7312");
    }

    #[test]
    fn two_nodes_without_a_witness_hang_on_one_of_them() {
        assert_eq!(
            texts(&healthy(&["a", "b"], &[2])),
            ["two nodes and no witness: if b dies nobody can decide"]
        );
    }

    #[test]
    fn what_is_lost_comes_before_what_might_be() {
        let mut status = healthy(&["a", "b", "c"], &[1, 2, 3]);
        status.nodes[2].state = "down".to_owned();
        status.nodes[2].heard_ms_ago = Some(4_200);
        status.groups[0] =
            GroupStatus { lost: 1, short: 5, without_primary: 3, ..status.groups[0].clone() };
        let found = of(&status);
        let levels: Vec<_> = found.iter().map(|warning| &*warning.level).collect();
        assert_eq!(levels, ["error", "error", "warning", "warning", "warning"]);
        assert_eq!(found[0].text, "1 partition of default lost all copies and went on empty");
        assert_eq!(found[1].advice, "start c again");
        assert_eq!(found[2].text, "c is down: not heard for 4 s");
        assert_eq!(found[3].text, "5 partitions of default have a copy missing");
        assert!(found[4].text.starts_with("1 of 3 voters are down"));
    }

    #[test]
    fn a_cluster_that_cannot_decide_says_whose_votes_it_lacks() {
        let mut status = healthy(&["a", "b", "c"], &[1, 2, 3]);
        status.control.leader = 0;
        assert_eq!(texts(&status), ["nobody decides: no majority of the voters a, b, c is heard"]);
    }

    #[test]
    fn full_draining_and_unnamed_nodes_are_noted() {
        let mut status = healthy(&["a", "b", "b"], &[1, 2, 3]);
        status.nodes[0].memory_used = 97;
        status.nodes[1].state = "draining".to_owned();
        status.nodes[1].held = 12;
        status.nodes[2].state = "draining".to_owned();
        assert_eq!(
            texts(&status),
            [
                "2 nodes are called b",
                "a uses 97 % of its memory for items",
                "b hands over: 12 partitions left",
                "b is drained: it holds nothing",
            ]
        );
    }
}
