//! What a replicated write costs: processor time of all servers together for each acknowledged
//! write, beside a lone node at the same concurrency, and beside Redis with one replica and `WAIT 1`.
//!
//! Three figures for two nodes: clients that ask the node that leads each key (as the Rust client
//! does), clients of one node that know nothing (half of the keys are passed on), and Redis. All are
//! driven by the same simple clients, each with one connection and so many writes on their way,
//! in rounds that take every contender in turn; medians are told.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use kiln_cluster::placement::{HASH_ID, partition_of};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;

use crate::{
    Outcome, TrialError,
    nodes::{Launch, Nodes},
    say,
    scene::{WHOLE_MAX, native},
};

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Connections, each with a number of writes on their way at once.
    #[arg(long, value_delimiter = ',', default_value = "1x1,16x1,64x1,1x16,16x16", value_name = "CxP,…", value_parser = Shape::parse)]
    shapes: Vec<Shape>,
    /// Rounds; medians are told.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each figure is measured.
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
    /// Different keys.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    keys: u32,
    /// Worker threads of each node, the lone one too. One is what Redis has, and as many processors
    /// as each of two nodes has for itself where there are two.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// How many times a lone node's write a write to the node that leads the key may cost.
    #[arg(long, default_value_t = 3.0, value_name = "RATIO")]
    ratio_max: f64,
}

/// How many connections with how many writes on their way each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Shape {
    connections: usize,
    pipeline: usize,
}

impl Shape {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected CONNECTIONSxPIPELINE, such as 16x1");
        let (connections, pipeline) = text.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| {
            text.parse().ok().filter(|number| (1..=1_000).contains(number)).ok_or_else(wrong)
        };
        Ok(Self { connections: number(connections)?, pipeline: number(pipeline)? })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Contender {
    /// One node.
    Lone,
    /// Two nodes; each key at the node that leads it.
    Leader,
    /// Two nodes; all keys at one.
    AnyNode,
    /// A primary and a replica, each write followed by `WAIT 1`.
    Redis,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Lone => "lone node",
            Self::Leader => "2 copies, at the leader",
            Self::AnyNode => "2 copies, at one node",
            Self::Redis => "Redis, WAIT 1",
        }
    }
}

/// Medians of a contender.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    shape: Shape,
    contender: Contender,
    cpu_us_per_write: f64,
    writes_per_second: f64,
    /// To the lone node's processor time.
    ratio: f64,
}

pub(crate) fn run(
    options: &Options,
    mut launch: Launch,
    seed: u64,
    bar: &ProgressBar,
    cancel: &AtomicBool,
) -> Result<Outcome, TrialError> {
    launch.flags.extend(["--threads".to_owned(), options.threads.to_string()]);
    let directory = launch.directory.clone();
    let lone = Launch { directory: directory.join("lone"), ..launch.clone() };
    let mut lone = Nodes::start(lone, 1)?;
    lone.until_whole(1, WHOLE_MAX)?;
    let mut pair = Nodes::start(launch, 2)?;
    pair.until_whole(2, WHOLE_MAX)?;
    let redis = Redis::start(&directory)?;
    if redis.is_none() {
        say(bar, "redis-server is not installed: left out");
    }
    let mut sets = vec![
        (Contender::Lone, Target::memcached(&lone, options.keys)?),
        (Contender::Leader, Target::leaders(&pair, options.keys)?),
        (Contender::AnyNode, Target::memcached(&pair, options.keys)?),
    ];
    if let Some(redis) = &redis {
        sets.push((Contender::Redis, redis.target(options.keys)));
    }
    let rounds = options.rounds as usize;
    bar.set_length((options.shapes.len() * rounds * sets.len()) as u64);
    let mut figures: Vec<Figure> = Vec::new();
    for &shape in &options.shapes {
        let mut measured = vec![Vec::new(); sets.len()];
        for _ in 0..rounds {
            for (at, (contender, target)) in sets.iter().enumerate() {
                if cancel.load(Relaxed) {
                    return Err(TrialError::Interrupted);
                }
                bar.set_message(format!(
                    "{}x{} {}",
                    shape.connections,
                    shape.pipeline,
                    contender.name()
                ));
                measured[at].push(target.measure(shape, Duration::from_secs_f64(options.seconds))?);
                bar.inc(1);
            }
        }
        let mut base = f64::NAN;
        for ((contender, _), mut values) in sets.iter().zip(measured) {
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (cpu, rate) = values[values.len() / 2];
            if *contender == Contender::Lone {
                base = cpu;
            }
            let figure = Figure {
                shape,
                contender: *contender,
                cpu_us_per_write: cpu,
                writes_per_second: rate,
                ratio: cpu / base,
            };
            say(bar, &line(&figure));
            figures.push(figure);
        }
    }
    pair.check_all_run()?;
    lone.check_all_run()?;
    let failures: Vec<String> = figures
        .iter()
        .filter(|figure| figure.contender == Contender::Leader && figure.ratio > options.ratio_max)
        .map(|figure| {
            format!(
                "{} connections with {} writes each: a replicated write costs {:.2} times a lone node's, more than {}",
                figure.shape.connections, figure.shape.pipeline, figure.ratio, options.ratio_max
            )
        })
        .collect();
    let mut text =
        "processor time of all servers for each acknowledged write of 100 bytes\n".to_owned();
    for figure in &figures {
        text.push_str(&line(figure));
        text.push('\n');
    }
    let json = serde_json::json!({
        "mode": "write-cost", "seed": seed, "figures": figures, "wrong": failures,
    });
    Ok(Outcome { text, json, failures })
}

fn line(figure: &Figure) -> String {
    let Figure { shape, contender, cpu_us_per_write, writes_per_second, ratio } = figure;
    format!(
        "{:3} connections x {:2}  {:<24} {cpu_us_per_write:7.1} us/write  {writes_per_second:8.0} writes/s  ratio {ratio:.2}",
        shape.connections,
        shape.pipeline,
        contender.name(),
    )
}

/// Servers, and which keys are written where.
struct Target {
    pids: Vec<u32>,
    places: Vec<Place>,
    speaks: Speaks,
}

struct Place {
    address: SocketAddr,
    keys: Vec<String>,
}

#[derive(Clone, Copy)]
enum Speaks {
    Memcached,
    RedisWait,
}

impl Target {
    /// All keys at the first node.
    fn memcached(nodes: &Nodes, keys: u32) -> Result<Self, TrialError> {
        let pids = (0..nodes.count()).filter_map(|at| nodes.pid(at)).collect();
        let address = address(&nodes.address(0, "memcached"))?;
        let places = vec![Place { address, keys: (0..keys).map(key).collect() }];
        Ok(Self { pids, places, speaks: Speaks::Memcached })
    }

    /// Each key at the node that leads it.
    fn leaders(nodes: &Nodes, keys: u32) -> Result<Self, TrialError> {
        let topology = native(&nodes.cluster_address())?.topology();
        let topology = topology.map_err(|error| TrialError::Client(error.to_string()))?;
        let group = topology
            .caches
            .iter()
            .find(|cache| cache.name == "default")
            .and_then(|cache| topology.groups.get(cache.group as usize))
            .filter(|_| topology.hash_id == HASH_ID)
            .ok_or_else(|| TrialError::Client("the table cannot be read".to_owned()))?;
        let mut places = Vec::new();
        for at in 0..nodes.count() {
            let memcached = nodes.address(at, "memcached");
            let leads = |key: &String| {
                let partition = partition_of(key.as_bytes(), topology.partitions.max(1)).0;
                let owners = group.owners.get(partition as usize);
                let primary = owners.and_then(|owners| owners.first());
                primary
                    .and_then(|place| topology.nodes.get(*place as usize))
                    .is_some_and(|node| node.name == nodes.name(at))
            };
            let keys: Vec<String> = (0..keys).map(key).filter(leads).collect();
            if keys.is_empty() {
                return Err(TrialError::Client(format!("{} leads no keys", nodes.name(at))));
            }
            places.push(Place { address: address(&memcached)?, keys });
        }
        let pids = (0..nodes.count()).filter_map(|at| nodes.pid(at)).collect();
        Ok(Self { pids, places, speaks: Speaks::Memcached })
    }

    /// Processor time for each write in microseconds, and writes per second.
    fn measure(&self, shape: Shape, time: Duration) -> Result<(f64, f64), TrialError> {
        let done = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (done, stop) = (&done, &stop);
            let clients: Vec<_> = (0..shape.connections)
                .map(|number| scope.spawn(move || self.write(number, shape.pipeline, done, stop)))
                .collect();
            thread::sleep(WARM_UP);
            let (cpu, writes, begun) = (self.cpu()?, done.load(Relaxed), Instant::now());
            thread::sleep(time);
            let (cpu, writes, time) =
                (self.cpu()? - cpu, done.load(Relaxed) - writes, begun.elapsed());
            stop.store(true, Relaxed);
            for client in clients {
                match client.join() {
                    Ok(ended) => ended?,
                    Err(_) => return Err(TrialError::Client("a client panicked".to_owned())),
                }
            }
            if writes == 0 {
                return Err(TrialError::Client("nothing was written".to_owned()));
            }
            Ok((cpu.as_secs_f64() * 1e6 / writes as f64, writes as f64 / time.as_secs_f64()))
        })
    }

    /// One connection to each place, in turns.
    fn write(
        &self,
        number: usize,
        pipeline: usize,
        done: &AtomicU64,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        // A client has one connection, so with two nodes half of the clients are at each; a single
        // client goes to and fro.
        let mut links = Vec::new();
        for place in &self.places {
            let stream = TcpStream::connect(place.address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            links.push(BufReader::new(stream));
        }
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let mut turn = number;
        let mut request = Vec::new();
        while !stop.load(Relaxed) {
            let at = turn % self.places.len();
            turn += 1;
            request.clear();
            let keys = &self.places[at].keys;
            for _ in 0..pipeline {
                self.speaks.put(&keys[rng.usize(..keys.len())], &mut request);
            }
            self.speaks.end(&mut request);
            links[at].get_mut().write_all(&request)?;
            for _ in 0..pipeline {
                expect(&mut links[at], self.speaks.stored())?;
            }
            if matches!(self.speaks, Speaks::RedisWait) {
                expect(&mut links[at], ":1\r\n")?;
            }
            done.fetch_add(pipeline as u64, Relaxed);
        }
        Ok(())
    }

    /// What all servers have used until now.
    fn cpu(&self) -> io::Result<Duration> {
        self.pids.iter().map(|pid| cpu_of(*pid)).sum()
    }
}

impl Speaks {
    fn put(self, key: &str, request: &mut Vec<u8>) {
        match self {
            Self::Memcached => {
                request.extend_from_slice(format!("set {key} 0 0 {VALUE_LEN}\r\n").as_bytes());
            }
            Self::RedisWait => request.extend_from_slice(
                format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE_LEN}\r\n", key.len())
                    .as_bytes(),
            ),
        }
        request.resize(request.len() + VALUE_LEN, b'v');
        request.extend_from_slice(b"\r\n");
    }

    /// What follows a batch.
    fn end(self, request: &mut Vec<u8>) {
        if matches!(self, Self::RedisWait) {
            request.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n");
        }
    }

    fn stored(self) -> &'static str {
        match self {
            Self::Memcached => "STORED\r\n",
            Self::RedisWait => "+OK\r\n",
        }
    }
}

fn expect(link: &mut BufReader<TcpStream>, what: &str) -> io::Result<()> {
    let mut line = String::new();
    link.take(LINE_MAX).read_line(&mut line)?;
    if line == what { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, line)) }
}

/// Processor time of a process, threads that ended included: user and system ticks.
fn cpu_of(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Duration::from_secs(ticks)
        / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100))
}

/// The 14th and 15th field, counted after the name, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// A primary and its replica. Dropped, they end.
struct Redis {
    children: Vec<Child>,
    address: SocketAddr,
}

impl Redis {
    /// None when it is not installed.
    fn start(directory: &Path) -> Result<Option<Self>, TrialError> {
        let ports = [free_port()?, free_port()?];
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
        let mut redis = Self { children: Vec::new(), address };
        for (at, port) in ports.iter().enumerate() {
            let data = directory.join(format!("redis{at}"));
            fs::create_dir_all(&data)?;
            let mut command = Command::new("redis-server");
            command.args([
                "--bind",
                "127.0.0.1",
                "--appendonly",
                "no",
                "--save",
                "",
                "--daemonize",
                "no",
            ]);
            command.args(["--port", &port.to_string()]).arg("--dir").arg(&data);
            if at > 0 {
                command.args(["--replicaof", "127.0.0.1", &ports[0].to_string()]);
            }
            let log = fs::File::create(data.join("log"))?;
            command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
            // SAFETY: between fork and exec only the prctl system call is made: it neither
            // allocates nor takes a lock.
            unsafe {
                command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
            }
            match command.spawn() {
                Ok(child) => redis.children.push(child),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        redis.until_replicated()?;
        Ok(Some(redis))
    }

    fn until_replicated(&self) -> Result<(), TrialError> {
        let deadline = Instant::now() + REDIS_MAX;
        while Instant::now() < deadline {
            if self.confirms().unwrap_or(false) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(TrialError::Client("the replica of Redis does not follow its primary".to_owned()))
    }

    /// Whether a write reaches the replica.
    fn confirms(&self) -> io::Result<bool> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(b"SET probe 1\r\nWAIT 1 500\r\n")?;
        let mut answers = [String::new(), String::new()];
        for answer in &mut answers {
            (&mut stream).take(LINE_MAX).read_line(answer)?;
        }
        Ok(answers[1] == ":1\r\n")
    }

    fn target(&self, keys: u32) -> Target {
        Target {
            pids: self.children.iter().map(Child::id).collect(),
            places: vec![Place { address: self.address, keys: (0..keys).map(key).collect() }],
            speaks: Speaks::RedisWait,
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended needs no telling.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn key(number: u32) -> String {
    format!("key:{number:026}")
}

fn address(text: &str) -> Result<SocketAddr, TrialError> {
    text.parse().map_err(|_| TrialError::Client(format!("no address: {text:?}")))
}

/// Free at this moment. Another program could take it before the server does; that is then told.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

const VALUE_LEN: usize = 100;
const WARM_UP: Duration = Duration::from_millis(700);
const ANSWER_MAX: Duration = Duration::from_secs(20);
const REDIS_MAX: Duration = Duration::from_secs(30);
const LINE_MAX: u64 = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_connections_and_writes_on_their_way() {
        assert_eq!(Shape::parse("16x1"), Ok(Shape { connections: 16, pipeline: 1 }));
        for wrong in ["", "16", "x", "0x1", "1x0", "1x1x1"] {
            assert!(Shape::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 777 888 0 0 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), Some(1_665));
    }
}
