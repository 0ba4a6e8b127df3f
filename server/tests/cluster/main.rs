//! Several real nodes in one cluster, with clients at work while nodes come, go and die.
//!
//! What a client was told must be true afterwards: an acknowledged write is there, an acknowledged
//! increment counts once. What it was not told may be either.

// A failed unwrap fails the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod harness;
mod load;
mod zones;

use std::time::Duration;

use common::{eventually, kiln, serve};
use harness::{Cluster, Member};
use load::Load;

#[test]
fn nodes_that_join_share_one_cache_with_the_first() {
    let mut cluster = Cluster::start(1, &[]);
    let mut alone = cluster.client(0);
    for number in 0..200 {
        assert_eq!(alone.ask(&format!("set before{number} 0 0 1\r\nb\r\n")), "STORED\r\n");
    }
    cluster.add(&[]);
    cluster.add(&[]);
    cluster.until_whole(3);
    // What was written to the lone node is everywhere, and so is what is written since.
    let mut clients: Vec<_> = (0..3).map(|node| cluster.client(node)).collect();
    for number in 0..200 {
        let key = format!("before{number}");
        assert_eq!(load::get(&mut clients[number % 3], &key).as_deref(), Some("b"), "{key}");
    }
    for number in 0..60 {
        let (writer, reader) = (number % 3, (number + 1) % 3);
        let set = format!("set k{number} 7 0 2\r\n{:02}\r\n", number);
        assert_eq!(clients[writer].ask(&set), "STORED\r\n");
        let value = load::get(&mut clients[reader], &format!("k{number}"));
        assert_eq!(value, Some(format!("{number:02}")));
    }
    assert_eq!(clients[0].ask("set n 0 0 1\r\n0\r\n"), "STORED\r\n");
    for number in 1..=30 {
        let answer = clients[number % 3].ask("incr n 1\r\n");
        assert_eq!(answer, format!("{number}\r\n"));
    }
    // Conditions hold across nodes.
    assert_eq!(clients[0].ask("add n 0 0 1\r\nx\r\n"), "NOT_STORED\r\n");
    assert_eq!(clients[1].ask("append k1 0 0 1\r\n!\r\n"), "STORED\r\n");
    assert_eq!(load::get(&mut clients[2], "k1").as_deref(), Some("01!"));
    assert_eq!(clients[2].ask("delete k1\r\n"), "DELETED\r\n");
    assert_eq!(load::get(&mut clients[0], "k1"), None);
    clients[0].send("gets k2\r\n");
    let head = clients[0].line();
    let version = head.split_whitespace().nth(4).unwrap().to_owned();
    assert_eq!((clients[0].line().as_str(), clients[0].line().as_str()), ("02\r\n", "END\r\n"));
    assert_eq!(clients[1].ask(&format!("cas k2 0 0 1 {version}\r\na\r\n")), "STORED\r\n");
    assert_eq!(clients[2].ask(&format!("cas k2 0 0 1 {version}\r\nb\r\n")), "EXISTS\r\n");
    // One client empties the cache for all.
    assert_eq!(clients[1].ask("flush_all\r\n"), "OK\r\n");
    assert_eq!(load::get(&mut clients[0], "k3"), None);
    assert_eq!(load::get(&mut clients[2], "before7"), None);
}

#[test]
fn a_lone_node_serves_when_every_partition_is_its_own() {
    // A write to a partition without a primary would be lost as soon as another node is given it.
    let mut cluster = Cluster::start(1, &[]);
    assert_eq!(cluster.metric(0, "kiln_cluster_partitions_headless"), 0.0);
    cluster.kill(0);
    cluster.restart(0);
    assert_eq!(cluster.metric(0, "kiln_cluster_partitions_headless"), 0.0);
}

#[test]
fn pipelined_replies_keep_their_order_whichever_nodes_have_the_keys() {
    let cluster = Cluster::start(3, &[]);
    cluster.until_whole(3);
    let mut client = cluster.client(1);
    let mut pipeline = String::new();
    let mut expected = String::new();
    for number in 0..100 {
        pipeline +=
            &format!("set p{number} 0 0 3\r\n{number:03}\r\nget p{number}\r\nincr p{number} 1\r\n");
        expected +=
            &format!("STORED\r\nVALUE p{number} 0 3\r\n{number:03}\r\nEND\r\n{}\r\n", number + 1);
    }
    pipeline += "mn\r\n";
    expected += "MN\r\n";
    client.send(&pipeline);
    let mut answers = String::new();
    while !answers.ends_with("MN\r\n") {
        let line = client.line();
        assert!(!line.is_empty(), "closed after {answers}");
        answers += &line;
    }
    assert_eq!(answers, expected);
    // A value that does not fit a small message, through a node that has it or not.
    let large = "x".repeat(700_000);
    for node in 0..3 {
        let mut client = cluster.client(node);
        let set = format!("set large{node} 0 0 {}\r\n{large}\r\n", large.len());
        assert_eq!(client.ask(&set), "STORED\r\n");
        let mut other = cluster.client((node + 1) % 3);
        assert_eq!(load::get(&mut other, &format!("large{node}")).as_deref(), Some(large.as_str()));
    }
}

#[test]
fn a_killed_node_costs_a_pause_and_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(3, &[]);
    for victim in [2, 0] {
        cluster.until_whole(3);
        let load = Load::start(&cluster, victim, 6);
        load.until_each_has(50);
        cluster.kill(victim);
        let pause = load.until_all_go_on();
        println!("killed node {victim}: clients waited up to {pause:?}");
        cluster.restart(victim);
        cluster.until_whole(3);
        let report = load.stop();
        report.check(&mut cluster.client((victim + 1) % 3));
    }
}

#[test]
fn a_node_that_is_asked_to_stop_hands_over_first() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.until_whole(3);
    let mut client = cluster.client(0);
    for number in 0..300 {
        assert_eq!(client.ask(&format!("set h{number} 0 0 4\r\n{number:04}\r\n")), "STORED\r\n");
    }
    let load = Load::start(&cluster, 2, 4);
    load.until_each_has(50);
    assert_eq!(cluster.stop(2), Some(0));
    load.until_all_go_on();
    let report = load.stop();
    assert_eq!(report.failed, 0, "requests failed while a node left in good order");
    report.check(&mut client);
    for number in 0..300 {
        let value = load::get(&mut client, &format!("h{number}"));
        assert_eq!(value, Some(format!("{number:04}")), "lost by a planned stop");
    }
}

#[test]
fn a_paused_node_shows_nothing_old_when_it_goes_on() {
    let cluster = Cluster::start(3, &[]);
    cluster.until_whole(3);
    let mut client = cluster.client(0);
    for number in 0..100 {
        assert_eq!(client.ask(&format!("set s{number} 0 0 3\r\nold\r\n")), "STORED\r\n");
    }
    cluster.pause(2);
    let mut other = cluster.client(1);
    for number in 0..100 {
        assert_eq!(other.ask(&format!("set s{number} 0 0 3\r\nnew\r\n")), "STORED\r\n");
    }
    cluster.go_on(2);
    let mut paused = cluster.client(2);
    for number in 0..100 {
        let value = load::get(&mut paused, &format!("s{number}"));
        assert_eq!(value.as_deref(), Some("new"), "s{number}");
    }
    cluster.until_whole(3);
}

#[test]
fn a_gateway_holds_nothing_and_serves_everything() {
    let mut cluster = Cluster::start(2, &[]);
    let gateway = cluster.add(&["--weight", "0"]);
    cluster.until_whole(3);
    let mut client = cluster.client(gateway);
    for number in 0..100 {
        assert_eq!(client.ask(&format!("set g{number} 0 0 1\r\ng\r\n")), "STORED\r\n");
    }
    let mut other = cluster.client(0);
    for number in 0..100 {
        assert_eq!(load::get(&mut client, &format!("g{number}")).as_deref(), Some("g"));
        assert_eq!(load::get(&mut other, &format!("g{number}")).as_deref(), Some("g"));
    }
    assert_eq!(cluster.metric(gateway, "kiln_cluster_partitions_held"), 0.0);
}

#[test]
fn clusters_do_not_mix() {
    let one = Cluster::start(1, &[]);
    let mut other = Cluster::start(2, &[]);
    other.until_whole(2);
    other.kill(1);
    // A node that is of one cluster, told to join another.
    let dir = other.data_dir(1);
    let peer = one.field(0, "peer");
    let arguments = serve(&[
        "--listen-peer",
        "127.0.0.1:0",
        "--data-dir",
        dir.to_str().unwrap(),
        "--join",
        &peer,
        "--name",
        "n2",
    ]);
    let mut child = kiln(&arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    let mut joined = false;
    while begun.elapsed() < Duration::from_secs(4) && !joined {
        joined = one.metric(0, "kiln_cluster_nodes{state=\"ready\"}") > 1.0;
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
    assert!(!joined, "a node of another cluster was taken up");
    assert_eq!(one.metric(0, "kiln_cluster_nodes{state=\"ready\"}"), 1.0);
}

#[test]
fn a_node_is_ready_when_it_is_in_the_table() {
    let cluster = Cluster::start(2, &[]);
    eventually("both are ready", || {
        (0..2).all(|node| cluster.member(node).http("GET", "/readyz").status == 200)
    });
    let _: &Member = cluster.member(0);
}
