//! Processes that end and come back.

use super::*;
use crate::control::{ControlError, JoinError};

#[tokio::test]
async fn a_node_that_kept_its_directory_is_the_same_node_with_the_same_table() {
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::in_dir("a", dir.path());
    let a = plan.found(&net, 7).await;
    for weight in 1..=20 {
        a.commit_weight(a.id(), weight).await;
    }
    let (before, table, term) = (a.me, a.table(), a.status().term);
    assert!(a.status().durable);
    a.stop().await;

    let a = plan.start(&net);
    assert_eq!(a.id(), before.node);
    assert_eq!(digest(&a.table()), digest(&table), "all that was committed is there at once");
    let joined = a.control.rejoin(&[], plan.profile(&a.address), a.me).await;
    let (cluster, now) = joined.expect("is in its cluster again");
    assert_eq!(cluster, ClusterId(7));
    assert_eq!(now.member(a.id()), Some(a.me), "with its new life");
    assert!(now.epoch > table.epoch);
    assert!(a.status().term >= term, "the vote is kept");
    a.stop().await;
}

#[tokio::test]
async fn a_node_that_kept_nothing_is_another_node() {
    let net = Net::new();
    let first = Plan::named("a").start(&net).stop().await;
    let second = Plan::named("a").start(&net).stop().await;
    assert_ne!(first.node, second.node);

    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::in_dir("a", dir.path());
    let first = plan.start(&net).stop().await;
    let second = plan.start(&net).stop().await;
    assert_eq!(first.node, second.node);
    std::fs::remove_file(dir.path().join("control.redb")).unwrap();
    let third = plan.start(&net).stop().await;
    assert_ne!(first.node, third.node);
}

#[tokio::test]
async fn two_processes_do_not_use_one_directory() {
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::in_dir("a", dir.path());
    let a = plan.start(&net);
    let second = Control::open(&plan.settings());
    assert!(matches!(&second, Err(ControlError::InUse(path)) if path == dir.path()), "{second:?}");
    a.stop().await;
    Control::open(&plan.settings()).expect("is free again");
}

#[tokio::test]
async fn one_voter_of_three_restarts_and_the_others_go_on() {
    let net = Net::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let a = Plan::in_dir("a", dirs[0].path()).found(&net, 7).await;
    let b = Plan::in_dir("b", dirs[1].path()).join(&net, &a).await;
    let c = Plan::in_dir("c", dirs[2].path()).join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;

    let address = b.address.clone();
    let former = b.stop().await;
    let rest = [&a, &c];
    leader(&rest).await.commit_weight(a.id(), 3).await;
    let plan = Plan { address: Some(address), ..Plan::in_dir("b", dirs[1].path()) };
    let b = plan.rejoin(&net).await;
    assert_eq!(b.id(), former.node);
    until_equal(&[&a, &b, &c]).await;
    assert_eq!(a.table().member(b.id()), Some(b.me));
    a.until_voters(&[&a, &b, &c]).await;
    for node in [&a, &b, &c] {
        node.control.stop().await;
    }
}

/// All processes of a cluster end; what was in memory is gone. The table says so: each node is back
/// with another life, and partitions whose copies are all gone have another generation.
#[tokio::test]
async fn a_whole_cluster_comes_back_and_reports_what_was_lost() {
    let net = Net::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let a = Plan::in_dir("a", dirs[0].path()).found(&net, 7).await;
    let b = Plan::in_dir("b", dirs[1].path()).join(&net, &a).await;
    let c = Plan::in_dir("c", dirs[2].path()).join(&net, &a).await;
    let (spec, place) = crate::control::tests::storage::cache_and_place();
    let create = TopologyCommand::CreateCache { name: "c".to_owned(), spec };
    a.commit(create).await;
    let members = vec![a.me, b.me];
    a.commit(TopologyCommand::Assign { place, version: 0, members }).await;
    a.until_voters(&[&a, &b, &c]).await;
    until_equal(&[&a, &b, &c]).await;
    let before = a.table();
    let addresses = [a.address.clone(), b.address.clone(), c.address.clone()];
    for node in [a, b, c] {
        node.stop().await;
    }

    let plans: Vec<Plan<'_>> = ["a", "b", "c"]
        .into_iter()
        .zip(&dirs)
        .zip(addresses)
        .map(|((name, dir), address)| Plan {
            address: Some(address),
            ..Plan::in_dir(name, dir.path())
        })
        .collect();
    let nodes: Vec<Node> = plans.iter().map(|plan| plan.start(&net)).collect();
    for node in &nodes {
        assert_eq!(node.table().cluster_id, ClusterId(7), "what it knew is there at once");
    }
    let [one, two, three] = [0, 1, 2].map(|at| {
        let (node, plan) = (&nodes[at], &plans[at]);
        node.control.rejoin(&[], plan.profile(&node.address), node.me)
    });
    let (one, two, three) = tokio::join!(one, two, three);
    for joined in [one, two, three] {
        assert_eq!(joined.expect("is back").0, ClusterId(7));
    }
    let all: Vec<&Node> = nodes.iter().collect();
    until_equal(&all).await;
    let table = nodes[0].table();
    for node in &nodes {
        assert_eq!(table.member(node.id()), Some(node.me));
    }
    let lost = |table: &Topology| table.partition(place).expect("is there").generation;
    assert!(lost(&table) > lost(&before), "the loss is in the table");
    assert!(table.epoch > before.epoch);
    for node in nodes {
        node.stop().await;
    }
}

/// Ports of 0 are another one on each start: the voters cannot find each other by what they
/// remember, but each is told where one of the others is.
#[tokio::test]
async fn a_whole_cluster_comes_back_at_other_addresses() {
    let net = Net::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let a = Plan::in_dir("a", dirs[0].path()).found(&net, 7).await;
    let b = Plan::in_dir("b", dirs[1].path()).join(&net, &a).await;
    let c = Plan::in_dir("c", dirs[2].path()).join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;
    until_equal(&[&a, &b, &c]).await;
    for node in [a, b, c] {
        node.stop().await;
    }
    let plans: Vec<Plan<'_>> = ["a", "b", "c"]
        .into_iter()
        .zip(&dirs)
        .map(|(name, dir)| Plan::in_dir(name, dir.path()))
        .collect();
    let nodes: Vec<Node> = plans.iter().map(|plan| plan.start(&net)).collect();
    let seeds: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    let [one, two, three] = [0, 1, 2].map(|at| {
        let (node, plan) = (&nodes[at], &plans[at]);
        node.control.rejoin(&seeds, plan.profile(&node.address), node.me)
    });
    let (one, two, three) = tokio::join!(one, two, three);
    for joined in [one, two, three] {
        joined.expect("is back");
    }
    until_equal(&nodes.iter().collect::<Vec<_>>()).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn joining_tries_on_until_somebody_is_there_and_says_what_is_in_the_way() {
    let net = Net::new();
    let short = |settings: &mut ControlSettings| {
        settings.join_within = Some(Duration::from_millis(300));
    };
    let plan = Plan { tune: short, ..Plan::named("b") };
    let b = plan.start(&net);
    let seeds = ["nobody.test:1".to_owned()];
    let joined = b.control.join(&seeds, plan.profile(&b.address), b.me).await;
    let Err(JoinError::GaveUp { last, .. }) = joined else { panic!("{joined:?}") };
    assert!(last.contains("nobody.test:1: nobody listens there"), "{last}");
    assert_eq!(b.control.join(&[], plan.profile(""), b.me).await.err(), Some(JoinError::Nobody));
    b.stop().await;

    // The other one comes later.
    let plan = Plan::named("b");
    let b = plan.start(&net);
    let address = "late.test:1".to_owned();
    let seeds = [address.clone()];
    let joining = b.control.join(&seeds, plan.profile(&b.address), b.me);
    let late = Plan { address: Some(address), ..Plan::named("a") };
    let (joined, a) = tokio::join!(joining, late.found(&net, 7));
    assert_eq!(joined.expect("joins").0, ClusterId(7));
    for node in [&a, &b] {
        node.control.stop().await;
    }
}
