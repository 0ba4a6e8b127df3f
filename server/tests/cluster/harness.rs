//! A cluster of real nodes on loopback, and what can happen to them.

use std::{
    net::TcpStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{self, Client, kiln, serve};

pub type Member = common::Node;

/// Longest wait for a cluster to be as it should. Machines of tests are busy.
const SETTLES: Duration = Duration::from_secs(60);

/// Nodes, by number.
pub struct Cluster {
    members: Vec<Option<Member>>,
    flags: Vec<Vec<String>>,
    ready: Vec<String>,
    dirs: TempDir,
}

/// Waits until a cluster is as it should, and fails with what was waited for.
pub fn settles(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SETTLES;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Cluster {
    /// Starts so many nodes, one after the other.
    pub fn start(count: usize, flags: &[&str]) -> Self {
        let dirs = TempDir::new().unwrap();
        let mut cluster = Self { members: Vec::new(), flags: Vec::new(), ready: Vec::new(), dirs };
        for _ in 0..count {
            cluster.add(flags);
        }
        cluster
    }

    /// Starts one more, which joins. Returns its number.
    pub fn add(&mut self, flags: &[&str]) -> usize {
        let number = self.members.len();
        let dir = self.data_dir(number);
        let mut all: Vec<String> = [
            "--name",
            &format!("n{}", number + 1),
            "--listen-peer",
            "127.0.0.1:0",
            "--memory",
            "48MiB",
            "--data-dir",
            dir.to_str().unwrap(),
        ]
        .map(str::to_owned)
        .to_vec();
        let seeds: Vec<String> = (0..number)
            .filter(|seed| self.members[*seed].is_some())
            .map(|seed| self.field(seed, "peer"))
            .collect();
        if !seeds.is_empty() {
            all.extend(["--join".to_owned(), seeds.join(",")]);
        }
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let borrowed: Vec<&str> = all.iter().map(String::as_str).collect();
        let member = Member::start_command(kiln(&serve(&borrowed)));
        self.ready.push(member.ready.clone());
        self.members.push(Some(member));
        self.flags.push(all);
        number
    }

    /// Where a node keeps what it has to remember.
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.dirs.path().join(format!("n{}", number + 1))
    }

    pub fn member(&self, number: usize) -> &Member {
        self.members[number].as_ref().expect("a node that runs")
    }

    /// A field of the ready line, also of a node that is gone.
    pub fn field(&self, number: usize, name: &str) -> String {
        let fields = self.ready[number].split(' ').filter_map(|field| field.split_once('='));
        let mut values = fields.filter(|(key, _)| *key == name).map(|(_, value)| value);
        values.next().unwrap().to_owned()
    }

    /// A memcached connection to a node.
    pub fn client(&self, number: usize) -> Client<TcpStream> {
        self.member(number).connect()
    }

    pub fn metric(&self, number: usize, name: &str) -> f64 {
        self.member(number).metric(name)
    }

    /// Waits until so many nodes are ready and every partition has its copies, as each of the
    /// running nodes sees it.
    pub fn until_whole(&self, nodes: usize) {
        let deadline = Instant::now() + SETTLES;
        loop {
            let mut seen = Vec::new();
            for member in self.members.iter().flatten() {
                let ready = member.metric("kiln_cluster_nodes{state=\"ready\"}");
                let short = member.metric("kiln_cluster_partitions_short");
                let headless = member.metric("kiln_cluster_partitions_headless");
                let filling = member.metric("kiln_cluster_copies_filling");
                seen.push((ready, short, headless, filling));
            }
            if seen.iter().all(|seen| *seen == (nodes as f64, 0.0, 0.0, 0.0)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not {nodes} nodes with all copies: (ready, short, headless, filling) {seen:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends a node as a crash would.
    pub fn kill(&mut self, number: usize) {
        let member = self.members[number].take().unwrap();
        member.signal(Signal::KILL);
        drop(member);
    }

    /// Asks a node to stop and waits for its end. Returns its exit code.
    pub fn stop(&mut self, number: usize) -> Option<i32> {
        let mut member = self.members[number].take().unwrap();
        member.signal(Signal::TERM);
        member.wait().code()
    }

    /// Starts a node again, with the same directory and the same addresses.
    pub fn restart(&mut self, number: usize) {
        let mut flags = self.flags[number].clone();
        for (listener, field) in [
            ("--listen-memcached", "memcached"),
            ("--listen-native", "native"),
            ("--listen-http", "http"),
            ("--listen-peer", "peer"),
        ] {
            let address = self.field(number, field);
            match flags.iter().position(|flag| flag == listener) {
                Some(place) => flags[place + 1] = address,
                None => flags.extend([listener.to_owned(), address]),
            }
        }
        let borrowed: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.members[number] = Some(Member::start_command(kiln(&serve(&borrowed))));
    }

    /// Stops a node in its tracks.
    pub fn pause(&self, number: usize) {
        self.member(number).signal(Signal::STOP);
    }

    pub fn go_on(&self, number: usize) {
        self.member(number).signal(Signal::CONT);
    }
}
