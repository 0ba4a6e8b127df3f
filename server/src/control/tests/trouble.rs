//! Cuts, lives that end, and nodes that do not belong here.

use super::*;
use crate::control::{JoinError, joining, reach, wire};

#[tokio::test]
async fn when_the_leader_is_cut_off_another_one_leads_and_commits() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let c = Plan::named("c").join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;
    let all = [&a, &b, &c];
    let old = leader(&all).await;
    let rest: Vec<&Node> = all.into_iter().filter(|node| node.id() != old.id()).collect();

    net.cut_off(old.id());
    // What it is told now can be decided only by others.
    old.control.propose(TopologyCommand::SetWeight { node: old.id(), weight: 666 });
    let new = leader(&rest).await;
    new.commit_weight(old.id(), 5).await;
    old.until_leading(false).await;
    assert_ne!(weight_of(&old.table(), old.id()), 5, "it is cut off");

    net.heal();
    until_equal(&all).await;
    old.until_table("the command of the others", |table| weight_of(table, old.id()) == 5).await;
    for node in all {
        assert_ne!(weight_of(&node.table(), old.id()), 666, "one voter alone decides nothing");
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_command_without_a_majority_has_no_outcome_and_says_so() {
    let net = Net::new();
    let short = |settings: &mut ControlSettings| settings.commit_within = Duration::from_secs(1);
    let a = Plan { tune: short, ..Plan::named("a") }.found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let c = Plan::named("c").join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;
    a.until_leading(true).await;
    net.cut_off(b.id());
    net.cut_off(c.id());
    let command = TopologyCommand::SetWeight { node: a.id(), weight: 9 };
    let outcome = a.control.commit(command).await;
    assert_eq!(outcome, Err(crate::control::CommitError::Indeterminate));
    for node in [&a, &b, &c] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_member_that_was_away_for_long_is_brought_up_by_a_snapshot() {
    let net = Net::new();
    let tune = |settings: &mut ControlSettings| {
        settings.snapshot_after = 16;
        settings.entries_kept = 2;
    };
    let a = Plan { tune, ..Plan::named("a") }.found(&net, 7).await;
    let b = Plan { tune, ..Plan::named("b") }.join(&net, &a).await;
    until_equal(&[&a, &b]).await;

    net.cut_off(b.id());
    let had = b.status().applied;
    for weight in 1..=100 {
        a.commit_weight(a.id(), weight).await;
    }
    a.until_status("a purged log", |status| status.purged > had).await;
    net.heal();
    b.until_table("what it missed", |table| weight_of(table, a.id()) == 100).await;
    until_equal(&[&a, &b]).await;
    b.until_status("a snapshot", |status| status.snapshot > had).await;

    // A new node never saw the first entries at all.
    let c = Plan { tune, ..Plan::named("c") }.join(&net, &b).await;
    a.until_voters(&[&a, &b, &c]).await;
    until_equal(&[&a, &b, &c]).await;
    for node in [&a, &b, &c] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_kept_nothing_takes_the_place_of_its_former_self() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("b").join(&net, &a).await;
    let c = Plan::named("c").join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;

    let address = b.address.clone();
    let former = b.stop().await;
    // Joins while the former one is not missed yet: it has to wait until that is down.
    let plan = Plan { address: Some(address.clone()), ..Plan::named("b") };
    let again = plan.start(&net);
    assert_ne!(again.id(), former.node, "another node");
    let seeds = [c.address.clone()];
    let joining = again.control.join(&seeds, plan.profile(&address), again.me);
    let state = NodeState::Down;
    let (joined, ()) =
        tokio::join!(joining, a.commit(TopologyCommand::SetNodeState { member: former, state }));
    joined.expect("joins");

    assert_eq!(state_of(&again.table(), former.node), None, "the former one is not in the table");
    a.until_voters(&[&a, &again, &c]).await;
    a.until_status("no learner", |status| status.learners.is_empty()).await;
    for node in [&a, &again, &c] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_node_of_the_same_name_that_still_runs_is_left_alone() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let b = Plan::named("same").join(&net, &a).await;
    let c = Plan::named("same").join(&net, &a).await;
    assert_eq!(c.table().nodes.len(), 3);
    for node in [&a, &b, &c] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn a_join_that_was_overtaken_by_a_later_life_ends_nothing() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let node = NodeId(99);
    let life = |life: u64| Member { node, incarnation: Incarnation(life) };
    let ask = async |member, replaces: Option<u64>| {
        let profile = Plan::named("x").profile("x.test:1");
        let body = joining::request(ClusterId(0), member, replaces.map(Incarnation), profile);
        let answer = a.control.answer_to(node, wire::kind::JOIN, body).await.expect("answers");
        rmp_serde::from_slice::<joining::JoinAnswer>(&answer).expect("can be read")
    };
    let welcome = |answer| matches!(answer, joining::JoinAnswer::Welcome { .. });
    assert!(welcome(ask(life(1), None).await));
    assert!(welcome(ask(life(2), Some(1)).await));
    // The first life's request once more, late; then a repetition of the second's.
    let late = ask(life(1), None).await;
    assert!(matches!(late, joining::JoinAnswer::Follows(Some(Incarnation(2)))), "{late:?}");
    assert!(welcome(ask(life(2), Some(1)).await), "a repetition is welcome");
    assert_eq!(a.table().member(node), Some(life(2)));
    a.stop().await;
}

#[tokio::test]
async fn two_clusters_never_merge() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::in_dir("x", dir.path());
    let x = plan.found(&net, 8).await;

    // Told to join others although it is in a cluster.
    let seeds = [a.address.clone()];
    let joined = x.control.join(&seeds, plan.profile(&x.address), x.me).await;
    assert_eq!(joined.err(), Some(JoinError::AlreadyIn(8)));

    // Raft's requests of the other cluster are not even looked at.
    let body = reach::pack(&(ClusterId(8), ())).unwrap();
    for kind in [wire::kind::APPEND, wire::kind::VOTE, wire::kind::SNAPSHOT, wire::kind::COMMIT] {
        let answer = a.control.answer_to(x.id(), kind, body.clone()).await;
        assert!(
            matches!(answer, Err(Unanswered::OtherCluster | Unanswered::Malformed)),
            "{answer:?}"
        );
    }
    let body = reach::pack(&(ClusterId(8), &Vec::<TopologyCommand>::new())).unwrap();
    let answer = a.control.answer_to(x.id(), wire::kind::PROPOSE, body).await;
    assert_eq!(answer, Err(Unanswered::OtherCluster));

    // Restarted with the address of the wrong cluster and nobody of its own: it says so.
    x.stop().await;
    let long = |settings: &mut ControlSettings| settings.election_ms = (20_000, 60_000);
    let plan = Plan { tune: long, ..Plan::in_dir("x", dir.path()) };
    let x = plan.start(&net);
    let member = Member { node: x.id(), incarnation: Incarnation(3) };
    let profile = plan.profile(&x.address);
    let body = joining::request(ClusterId(8), member, None, profile);
    let answer = a.control.answer_to(x.id(), wire::kind::JOIN, body).await.expect("answers");
    let answer = rmp_serde::from_slice::<joining::JoinAnswer>(&answer).expect("can be read");
    assert!(matches!(answer, joining::JoinAnswer::OtherCluster(ClusterId(7))), "{answer:?}");
    assert_eq!(a.table().nodes.len(), 1);
    for node in [&a, &x] {
        node.control.stop().await;
    }
}

#[tokio::test]
async fn what_a_peer_sends_never_ends_the_group() {
    let net = Net::new();
    let a = Plan::named("a").found(&net, 7).await;
    let mut seed = 1u64;
    for kind in 0..=255u8 {
        for len in [0usize, 1, 7, 64, 1_000] {
            let body: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 33) as u8
                })
                .collect();
            let answer = a.control.answer_to(NodeId(5), kind, body.into()).await;
            assert!(answer.is_err(), "nonsense is refused");
        }
    }
    // A batch in a batch in a batch, without end: [7, {"Batch": [{"Batch": [...]}]}].
    let mut endless = vec![0x92, 7];
    (0..100_000).for_each(|_| endless.extend_from_slice(b"\x81\xa5Batch\x91"));
    let answer = a.control.answer_to(NodeId(5), wire::kind::COMMIT, endless.into()).await;
    assert_eq!(answer, Err(Unanswered::Malformed));

    // An image that is none, in a request that is one.
    let vote = openraft::Vote::<u64>::new_committed(99, 5);
    let meta = super::super::decree::SnapshotMeta::default();
    let image = Bytes::from_static(b"not a table");
    let sent = super::super::network::Sent { vote, meta, image };
    let body = reach::pack(&(ClusterId(7), &sent)).unwrap();
    let answer = a.control.answer_to(NodeId(5), wire::kind::SNAPSHOT, body).await;
    assert_eq!(answer, Err(Unanswered::Malformed));

    a.commit_weight(a.id(), 4).await;
    a.stop().await;
}

/// The time from the end of a leader to the next one's first decision. Prints a distribution: the
/// figure that the reaction time of the cluster rests on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_how_long_a_group_is_without_a_leader() {
    const ROUNDS: usize = 30;
    let net = Net::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let names = ["a", "b", "c"];
    let a = Plan::in_dir(names[0], dirs[0].path()).found(&net, 7).await;
    let b = Plan::in_dir(names[1], dirs[1].path()).join(&net, &a).await;
    let c = Plan::in_dir(names[2], dirs[2].path()).join(&net, &a).await;
    a.until_voters(&[&a, &b, &c]).await;
    let nodes = [a, b, c];
    let (mut led, mut decided) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let all: Vec<&Node> = nodes.iter().collect();
        let old = leader(&all).await.id();
        until_equal(&all).await;
        let rest: Vec<&Node> = all.into_iter().filter(|node| node.id() != old).collect();
        net.cut_off(old);
        let began = std::time::Instant::now();
        let new = leader(&rest).await;
        led.push(began.elapsed().as_millis());
        new.commit_weight(old, 10 + round as u32).await;
        decided.push(began.elapsed().as_millis());
        net.heal();
        let returned = nodes.iter().find(|node| node.id() == old).unwrap();
        returned.until_leading(false).await;
        returned
            .until_table("the decision", |table| weight_of(table, old) == 10 + round as u32)
            .await;
    }
    for (what, mut all) in [("leads", led), ("decided", decided)] {
        all.sort_unstable();
        println!(
            "{what}: ms p50 {} p90 {} max {} of {ROUNDS}",
            all[ROUNDS / 2],
            all[ROUNDS * 9 / 10],
            all[ROUNDS - 1]
        );
    }
    for node in nodes {
        node.stop().await;
    }
}
