//! From one node to many, and back.

use super::*;
use crate::control::{CommitError, status::Role};

#[tokio::test]
async fn one_node_is_a_cluster_of_one_that_decides() {
    let net = Net::new();
    let node = Plan::named("a").found(&net, 7).await;
    node.until_leading(true).await;

    assert_eq!(node.table().cluster_id, ClusterId(7));
    assert_eq!(node.table().partitions, PARTITIONS);
    assert!(node.table().is_present(node.me), "its own join is in the table");

    let epoch = node.table().epoch;
    let command = TopologyCommand::SetWeight { node: node.id(), weight: 500 };
    let committed = node.control.commit(command.clone()).await.expect("is committed");
    assert_eq!(committed.epoch, epoch.next());
    assert_eq!(weight_of(&node.table(), node.id()), 500);

    let again = node.control.commit(command).await;
    assert_eq!(again, Err(CommitError::Rejected(kiln_cluster::topology::Rejected::NoChange)));

    let status = node.status();
    assert_eq!((status.role, status.leader), (Role::Leader, Some(node.id())));
    assert_eq!((status.voters, status.learners), (vec![node.id()], vec![]));
    node.stop().await;
}

#[tokio::test]
async fn a_cluster_is_founded_once() {
    let net = Net::new();
    let node = Plan::named("a").found(&net, 7).await;
    let again = node.control.bootstrap(ClusterId(8), 4, String::new(), Vec::new()).await;
    assert_eq!(again.err(), Some(crate::control::BootstrapError::AlreadyIn(ClusterId(7))));
    assert_eq!(node.table().cluster_id, ClusterId(7));
    node.stop().await;
}

#[tokio::test]
async fn voters_grow_with_the_nodes_from_one_to_three_to_five() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    a.until_status("a learner", |status| status.learners == [b.id()]).await;
    a.until_voters(&[&a]).await;

    // It asks one that does not lead, and is shown the way.
    let c = Plan::named("c").join(&net, &b).await;
    a.until_voters(&[&a, &b, &c]).await;

    let d = Plan::named("d").join(&net, &c).await;
    a.until_status("a learner", |status| status.learners == [d.id()]).await;
    a.until_voters(&[&a, &b, &c]).await;

    let e = Plan::named("e").join(&net, &d).await;
    let all = [&a, &b, &c, &d, &e];
    a.until_voters(&all).await;

    until_equal(&all).await;
    assert_eq!(e.table().nodes.len(), 5);
    for node in all {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn two_nodes_and_a_witness_have_three_voters() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let w = Plan { witness: true, ..Plan::named("w") }.join(&net, &a).await;
    a.until_voters(&[&a, &b, &w]).await;
    for node in [&a, &b, &w] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn commands_may_be_handed_in_at_any_node() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let c = Plan::named("c").join(&net, &a).await;
    for (weight, node) in (1..).zip([&b, &c, &a, &c, &b]) {
        node.commit_weight(a.id(), weight).await;
        assert_eq!(weight_of(&node.table(), a.id()), weight, "whoever commits sees it");
    }
    c.control.propose(TopologyCommand::SetWeight { node: a.id(), weight: 77 });
    for node in [&a, &b, &c] {
        node.until_table("what was proposed", |table| weight_of(table, a.id()) == 77).await;
    }
    until_equal(&[&a, &b, &c]).await;
    for node in [&a, &b, &c] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_burst_of_proposals_is_few_entries_and_keeps_its_order() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let before = a.status().last_log;
    const BURST: u32 = 2_000;
    for weight in 1..=BURST {
        b.control.propose(TopologyCommand::SetWeight { node: a.id(), weight });
    }
    a.until_table("the last of them", |table| weight_of(table, a.id()) == BURST).await;
    let entries = a.status().last_log - before;
    assert!(entries < 100, "{entries} entries for {BURST} commands");
    assert_eq!((a.status().dropped, b.status().dropped), (0, 0));
    until_equal(&[&a, &b]).await;
    for node in [&a, &b] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_is_removed_from_the_table_leaves_the_group() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let c = Plan::named("c").join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;
    let d = Plan::named("d").join(&net, &a).await;

    let gone = b.stop().await;
    a.commit(TopologyCommand::RemoveNode { member: gone }).await;
    a.until_voters(&[&a, &c, &d]).await;
    a.until_status("no learner", |status| status.learners.is_empty()).await;
    for node in [&a, &c, &d] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_leader_that_drains_gives_its_vote_away_and_another_leads() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let c = Plan::named("c").join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;
    let d = Plan::named("d").join(&net, &a).await;
    a.until_leading(true).await;

    let state = NodeState::Draining;
    a.commit(TopologyCommand::SetNodeState { member: a.me, state }).await;
    let next = leader(&[&b, &c, &d]).await;
    a.until_leading(false).await;
    next.until_voters(&[&b, &c, &d]).await;
    a.commit_weight(a.id(), 2).await;
    next.commit_weight(a.id(), 3).await;
    until_equal(&[&a, &b, &c, &d]).await;
    for node in [&a, &b, &c, &d] {
        node.control.stop().await;
    }
}
