//! Bench, and one look of top.

use crate::cluster::Cluster;

#[test]
fn bench_measures_each_protocol_and_finds_the_process_by_itself() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    for (protocol, listener) in
        [("memcached", "memcached"), ("meta", "memcached"), ("native", "native")]
    {
        let address = cluster.node.field(listener);
        let report = cluster.json(&[
            "bench",
            "--protocol",
            protocol,
            "--address",
            address,
            "-n",
            "20000",
            "-c",
            "4",
            "-P",
            "8",
            "-k",
            "1000",
            "--preload",
            "--verify",
            "--json",
        ]);
        assert_eq!(report["operations"], 20_000, "{protocol}");
        assert_eq!(report["hit_percent"], 100.0, "{protocol}");
        assert_eq!(report["server_pid"], cluster.node.pid(), "{protocol}");
        assert!(report["server_cpu"]["total_us"].as_f64().unwrap() > 0.0);
        let version = report["server_version"].as_str().unwrap();
        assert!(version.starts_with("kiln/"), "{protocol}: {version}");
        assert_eq!(report["config"]["key_dist"], "uniform");
    }
    let http = cluster.node.field("http");
    let page = ["bench", "--protocol", "http", "--http-path", "/livez", "--address", http];
    let report = cluster.json(&[&page[..], &["-n", "1000", "-c", "2", "--json"]].concat());
    assert_eq!((&report["operations"], &report["errors"]["refused"]), (&1000.into(), &0.into()));
    cluster.node.stop();
}

#[test]
fn bench_compares_protocols_and_an_echo_in_turns() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    let sides = format!(
        "memcached@{},native@{}",
        cluster.node.field("memcached"),
        cluster.node.field("native")
    );
    let compared = cluster.json(&[
        "bench",
        "--compare",
        &sides,
        "--echo",
        "--rounds",
        "3",
        "-n",
        "30000",
        "-c",
        "4",
        "-P",
        "8",
        "-k",
        "1000",
        "--preload",
        "--json",
    ]);
    let sides = compared["contestants"].as_array().unwrap();
    let names: Vec<_> = sides.iter().map(|side| side["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["memcached", "native", "echo"]);
    assert!(sides.iter().all(|side| side["reports"].as_array().unwrap().len() == 3));
    assert!(sides[1]["server_cpu_ratio"].as_f64().unwrap() > 0.0);
    assert!(sides.iter().all(|side| side["errors"] == 0));
    cluster.node.stop();
}

#[test]
fn a_bench_with_failed_requests_is_exit_code_one() {
    let cluster = Cluster::start(&[]);
    let native = cluster.node.field("memcached");
    let wrong = ["bench", "--address", native, "-n", "100", "-k", "100", "--verify"];
    for number in 0..100 {
        cluster.ok(&["set", &format!("key:{number:026}"), "not what a bench stores"]);
    }
    let finished = cluster.run(&[&wrong[..], &["--ratio", "0:1"]].concat());
    assert_eq!(finished.code, Some(1), "{}", finished.err);
    assert!(finished.out.contains("wrong bytes"), "{}", finished.out);
    cluster.fails(2, &["bench", "--connections", "0"]);
    cluster.fails(2, &["bench", "--compare", "memcached,unknown"]);
    cluster.node.stop();
}

#[test]
fn top_prints_one_look_for_programs_and_wants_a_terminal_otherwise() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    cluster.ok(&["set", "k", "v"]);
    let look = cluster.json(&["top", "--once", "--json", "--interval", "100ms"]);
    assert_eq!(look["nodes"][0]["name"], "test");
    assert_eq!(look["caches"][0]["name"], "default");
    assert_eq!(look["total"]["items"], 1);
    assert!(look["interval_seconds"].as_f64().unwrap() >= 0.1);
    let members = ["caches", "hottest", "interval_seconds", "largest", "nodes", "total"];
    assert_eq!(look.as_object().unwrap().keys().collect::<Vec<_>>(), members);
    let table = cluster.ok(&["top", "--once", "--interval", "100ms"]);
    assert!(table.contains("NODE") && table.contains("default"), "{table}");
    let error = cluster.fails(2, &["top"]);
    assert!(error.contains("--once"), "{error}");
    cluster.node.stop();
}
