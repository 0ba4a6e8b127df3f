//! Clients that write while things happen, and remember what they were told.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{common::Client, harness::Cluster};

/// Keys of each client: spread over many partitions.
const KEYS: usize = 40;

/// Longest wait for a client to go on.
const GOES_ON: Duration = Duration::from_secs(40);

/// The value of a key.
pub fn get(client: &mut Client<TcpStream>, key: &str) -> Option<String> {
    let head = client.ask(&format!("get {key}\r\n"));
    if head == "END\r\n" {
        return None;
    }
    assert!(head.starts_with("VALUE "), "{key}: {head:?}");
    let value = client.line();
    assert_eq!(client.line(), "END\r\n");
    Some(value.trim_end().to_owned())
}

/// What one client did to one key.
#[derive(Clone, Copy, Default)]
struct Counted {
    /// Increments that it was told of.
    acknowledged: u64,
    /// Increments that it does not know of.
    unknown: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
}

/// Clients at work.
pub struct Load {
    clients: Vec<(Arc<Shared>, JoinHandle<Vec<Counted>>)>,
    failed: Arc<AtomicU64>,
}

/// What they were told.
pub struct Report {
    counted: Vec<Vec<Counted>>,
    /// Requests without a good answer.
    pub failed: u64,
}

impl Load {
    /// Clients at all nodes but one. Each increments numbers of its own, one after the other.
    pub fn start(cluster: &Cluster, not_at: usize, clients: usize) -> Self {
        let failed = Arc::new(AtomicU64::new(0));
        let nodes: Vec<usize> = (0..3).filter(|node| *node != not_at).collect();
        let mut setup = cluster.client(nodes[0]);
        let clients = (0..clients)
            .map(|number| {
                for key in 0..KEYS {
                    let set = format!("set {} 0 0 1\r\n0\r\n", name(number, key));
                    assert_eq!(setup.ask(&set), "STORED\r\n");
                }
                let address = cluster.field(nodes[number % nodes.len()], "memcached");
                let shared = Arc::new(Shared::default());
                let (of_thread, failed) = (Arc::clone(&shared), Arc::clone(&failed));
                let work = move || work(number, &address, &of_thread, &failed);
                (shared, thread::spawn(work))
            })
            .collect();
        Self { clients, failed }
    }

    /// Waits until each client has done so many requests more.
    pub fn until_each_has(&self, more: u64) {
        let begun: Vec<u64> =
            self.clients.iter().map(|(shared, _)| shared.done.load(Relaxed)).collect();
        let deadline = Instant::now() + GOES_ON;
        for ((shared, _), begun) in self.clients.iter().zip(begun) {
            while shared.done.load(Relaxed) < begun + more {
                assert!(Instant::now() < deadline, "a client does not get on");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Waits until every client has been at each of its keys again. Returns how long that took.
    pub fn until_all_go_on(&self) -> Duration {
        let begun = Instant::now();
        self.until_each_has(2 * KEYS as u64);
        begun.elapsed()
    }

    pub fn stop(self) -> Report {
        self.clients.iter().for_each(|(shared, _)| shared.stop.store(true, Relaxed));
        let counted = self.clients.into_iter().map(|(_, thread)| thread.join().unwrap());
        Report { counted: counted.collect(), failed: self.failed.load(Relaxed) }
    }
}

impl Report {
    /// Every acknowledged increment counts once, and nothing else but what is not known.
    pub fn check(&self, client: &mut Client<TcpStream>) {
        for (number, counted) in self.counted.iter().enumerate() {
            for (key, counted) in counted.iter().enumerate() {
                let name = name(number, key);
                let value = get(client, &name).unwrap_or_else(|| panic!("{name} is lost"));
                let value: u64 = value.parse().unwrap();
                let Counted { acknowledged, unknown } = *counted;
                assert!(
                    (acknowledged..=acknowledged + unknown).contains(&value),
                    "{name} is {value}: {acknowledged} acknowledged, {unknown} not known"
                );
            }
        }
    }
}

fn name(client: usize, key: usize) -> String {
    format!("c{client}:{key}")
}

fn work(number: usize, address: &str, shared: &Shared, failed: &AtomicU64) -> Vec<Counted> {
    let mut counted = vec![Counted::default(); KEYS];
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GOES_ON)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    let mut last = vec![0; KEYS];
    for key in (0..KEYS).cycle() {
        if shared.stop.load(Relaxed) {
            break;
        }
        stream.get_mut().write_all(format!("incr {} 1\r\n", name(number, key)).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        match answer.trim_end().parse::<u64>() {
            Ok(value) => {
                counted[key].acknowledged += 1;
                // Only this client counts here: a number may be skipped, never seen twice.
                assert!(value > last[key], "{value} after {}", last[key]);
                last[key] = value;
            }
            Err(_) => {
                failed.fetch_add(1, Relaxed);
                let not_applied = answer.starts_with("SERVER_ERROR not available")
                    || answer.starts_with("SERVER_ERROR other nodes")
                    || answer.starts_with("SERVER_ERROR too ");
                assert!(
                    not_applied || answer.starts_with("SERVER_ERROR outcome unknown"),
                    "{answer:?}"
                );
                counted[key].unknown += u64::from(!not_applied);
            }
        }
        shared.done.fetch_add(1, Relaxed);
    }
    counted
}
