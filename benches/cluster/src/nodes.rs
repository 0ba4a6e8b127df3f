//! The nodes of a trial: real `kiln` processes, with what can happen to them.
//!
//! Each node keeps its ports, its directory and its log for as long as the trial lasts, so that one
//! that was killed comes back as itself.
//!
//! What always holds: no node outlives the trial, however that ends (the kernel kills it with the
//! thread that started it, so all are started by the main thread); everything that is waited for
//! has a deadline; a node that ends without being asked is an error.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::TrialError;

/// How nodes are started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The binary.
    pub(crate) kiln: PathBuf,
    /// Where the nodes keep their directories and logs.
    pub(crate) directory: PathBuf,
    /// What `kiln serve` is told besides names and addresses.
    pub(crate) flags: Vec<String>,
    /// Whether they take lines of readings over TCP.
    pub(crate) ingest: bool,
}

/// Where a node runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// What it listens on.
    pub(crate) host: String,
    /// The network namespace, when it is not that of the trial.
    pub(crate) namespace: Option<String>,
}

impl Default for Place {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), namespace: None }
    }
}

/// The nodes, by number.
pub(crate) struct Nodes {
    launch: Launch,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    place: Place,
    child: Option<Child>,
    /// Its listeners, once it has told where they are.
    addresses: BTreeMap<String, String>,
}

/// What a node says of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Picture {
    /// Nodes in the table that are ready.
    pub(crate) ready: f64,
    /// Partitions with a copy missing.
    pub(crate) short: f64,
    /// Partitions that nobody serves.
    pub(crate) headless: f64,
    /// Copies that are being made.
    pub(crate) filling: f64,
    /// Copies in sync on the node itself.
    pub(crate) held: f64,
    /// Partitions that are yet to move, or are moving.
    pub(crate) misplaced: f64,
    /// Version of the table.
    pub(crate) epoch: f64,
}

impl Nodes {
    /// Starts so many nodes on the loopback, one after the other.
    pub(crate) fn start(launch: Launch, count: usize) -> Result<Self, TrialError> {
        let mut nodes = Self::none(launch);
        for _ in 0..count {
            nodes.add(Place::default())?;
        }
        Ok(nodes)
    }

    /// No nodes yet.
    pub(crate) fn none(launch: Launch) -> Self {
        Self { launch, nodes: Vec::new() }
    }

    /// Starts one more, which joins. Returns its number.
    pub(crate) fn add(&mut self, place: Place) -> Result<usize, TrialError> {
        let at = self.nodes.len();
        let name = format!("n{}", at + 1);
        self.nodes.push(Node { name, place, child: None, addresses: BTreeMap::new() });
        self.launch(at)?;
        Ok(at)
    }

    /// How many there are, running or not.
    pub(crate) fn count(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn name(&self, at: usize) -> &str {
        &self.nodes[at].name
    }

    /// Where a listener of a node is.
    pub(crate) fn address(&self, at: usize, listener: &str) -> String {
        self.nodes[at].addresses.get(listener).cloned().unwrap_or_default()
    }

    /// All native listeners, as the address of the cluster.
    pub(crate) fn cluster_address(&self) -> String {
        let all: Vec<String> = (0..self.count()).map(|at| self.address(at, "native")).collect();
        format!("kiln://{}", all.join(","))
    }

    /// The process of a node that runs.
    pub(crate) fn pid(&self, at: usize) -> Option<u32> {
        self.nodes[at].child.as_ref().map(Child::id)
    }

    /// Ends a node as a crash would.
    pub(crate) fn kill(&mut self, at: usize) -> Result<(), TrialError> {
        let Some(mut child) = self.nodes[at].child.take() else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops a node in its tracks.
    pub(crate) fn pause(&self, at: usize) -> Result<(), TrialError> {
        self.signal(at, Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn resume(&self, at: usize) -> Result<(), TrialError> {
        self.signal(at, Signal::CONT)
    }

    /// Asks a node to stop in good order.
    pub(crate) fn terminate(&self, at: usize) -> Result<(), TrialError> {
        self.signal(at, Signal::TERM)
    }

    /// Waits until a node that was asked to stop has ended.
    pub(crate) fn wait(&mut self, at: usize, most: Duration) -> Result<ExitStatus, TrialError> {
        let deadline = Instant::now() + most;
        loop {
            let Some(child) = &mut self.nodes[at].child else {
                return Err(TrialError::NotRunning { node: self.nodes[at].name.clone() });
            };
            if let Some(status) = child.try_wait()? {
                self.nodes[at].child = None;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let node = self.nodes[at].name.clone();
                return Err(TrialError::DoesNotStop { node, seconds: most.as_secs() });
            }
            thread::sleep(POLL);
        }
    }

    /// Starts a node again, with its directory and its addresses.
    pub(crate) fn restart(&mut self, at: usize) -> Result<(), TrialError> {
        self.launch(at)
    }

    /// Fails when a node has ended that should run.
    pub(crate) fn check_all_run(&mut self) -> Result<(), TrialError> {
        for node in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if let Some(status) = child.try_wait()? {
                node.child = None;
                let log = self.launch.directory.join(&node.name).join("log");
                return Err(TrialError::Ended { node: node.name.clone(), status, log: end(&log) });
            }
        }
        Ok(())
    }

    /// All metrics of a node, as text.
    pub(crate) fn metrics(&self, at: usize) -> io::Result<String> {
        http_get(&self.address(at, "http"), "/metrics")
    }

    /// The cluster as a node sees it.
    pub(crate) fn picture(&self, at: usize) -> io::Result<Picture> {
        let text = self.metrics(at)?;
        let of = |name| metric(&text, name).ok_or_else(|| invalid(format!("no metric {name}")));
        Ok(Picture {
            ready: of("kiln_cluster_nodes{state=\"ready\"}")?,
            short: of("kiln_cluster_partitions_short")?,
            headless: of("kiln_cluster_partitions_headless")?,
            filling: of("kiln_cluster_copies_filling")?,
            held: of("kiln_cluster_partitions_held")?,
            misplaced: of("kiln_cluster_partitions_misplaced")?,
            epoch: of("kiln_cluster_epoch")?,
        })
    }

    /// Waits until so many nodes are ready, every partition has its copies, and every running node
    /// its share of them, as each of them sees it. Returns how long that took.
    pub(crate) fn until_whole(
        &mut self,
        nodes: usize,
        most: Duration,
    ) -> Result<Duration, TrialError> {
        self.until(nodes, most, |_| true)
    }

    /// The same, and nothing is to be moved any more.
    pub(crate) fn until_placed(
        &mut self,
        nodes: usize,
        most: Duration,
    ) -> Result<Duration, TrialError> {
        self.until(nodes, most, |seen| seen.iter().flatten().all(|seen| seen.misplaced == 0.0))
    }

    fn until(
        &mut self,
        nodes: usize,
        most: Duration,
        besides: impl Fn(&[Option<Picture>]) -> bool,
    ) -> Result<Duration, TrialError> {
        let begun = Instant::now();
        loop {
            self.check_all_run()?;
            let running: Vec<usize> =
                (0..self.count()).filter(|at| self.nodes[*at].child.is_some()).collect();
            let seen: Vec<Option<Picture>> =
                running.iter().map(|at| self.picture(*at).ok()).collect();
            if is_whole(&seen, nodes) && besides(&seen) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() >= most {
                let seen = format!("{seen:?}");
                return Err(TrialError::NotWhole { nodes, seconds: most.as_secs(), seen });
            }
            thread::sleep(POLL);
        }
    }

    /// Runs a command of `kiln` against the cluster, to its end.
    pub(crate) fn kiln(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = clean(&self.launch.kiln, None);
        command.args(arguments).env("KILN_ADDRESS", self.cluster_address());
        command.stdin(Stdio::null()).output()
    }

    /// Where the logs and what failed are kept.
    pub(crate) fn directory(&self) -> &Path {
        &self.launch.directory
    }

    fn signal(&self, at: usize, signal: Signal) -> Result<(), TrialError> {
        let node = &self.nodes[at];
        let Some(child) = &node.child else {
            return Err(TrialError::NotRunning { node: node.name.clone() });
        };
        // Not reaped yet, so the id is still its own.
        Ok(kill_process(Pid::from_child(child), signal).map_err(io::Error::from)?)
    }

    /// Starts a node and waits until it can serve.
    fn launch(&mut self, at: usize) -> Result<(), TrialError> {
        let name = self.nodes[at].name.clone();
        let directory = self.launch.directory.join(&name);
        fs::create_dir_all(&directory)?;
        let log_path = directory.join("log");
        let log = File::options().create(true).append(true).open(&log_path)?;
        let mut command = self.command(at, &directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn()?;
        let out = child.stdout.take();
        self.nodes[at].child = Some(child);

        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        thread::spawn(move || {
            // Read to its end, so that the node can always write.
            for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { return };
                let _ = sender.try_send(line);
            }
        });
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Ok(line) = lines.recv_timeout(POLL) {
                self.nodes[at].addresses = fields(&line);
                return Ok(());
            }
            self.check_all_run()?;
            if Instant::now() >= deadline {
                return Err(TrialError::NotReady { node: name, log: end(&log_path) });
            }
        }
    }

    fn command(&self, at: usize, directory: &Path) -> Command {
        let node = &self.nodes[at];
        let mut command = clean(&self.launch.kiln, node.place.namespace.as_deref());
        command.args(["serve", "--name", &node.name, "--data-dir"]).arg(directory);
        let ingest = self.launch.ingest.then_some("ingest");
        for listener in ["memcached", "native", "http", "peer"].into_iter().chain(ingest) {
            let any = format!("{}:0", node.place.host);
            let address = node.addresses.get(listener).unwrap_or(&any);
            command.arg(format!("--listen-{listener}")).arg(address);
        }
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != at);
        let peers: Vec<&str> =
            others.filter_map(|(_, node)| node.addresses.get("peer")).map(String::as_str).collect();
        if !peers.is_empty() {
            command.args(["--join", &peers.join(",")]);
        }
        command.args(&self.launch.flags);
        // What is sent to the trial and its group, by Ctrl-C or by `timeout`, is not for the nodes.
        command.process_group(0);
        // SAFETY: between fork and exec only the prctl system call is made: it neither allocates
        // nor takes a lock.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        command
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // One that has ended needs no telling.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Whether what all running nodes say is that of a whole cluster. One that has just come has no
/// share yet and nothing is missing for that: so the shares are looked at too.
fn is_whole(seen: &[Option<Picture>], nodes: usize) -> bool {
    let held: f64 = seen.iter().flatten().map(|picture| picture.held).sum();
    let fair = held / nodes.max(1) as f64;
    seen.iter().all(|seen| {
        seen.is_some_and(|Picture { ready, short, headless, filling, held, .. }| {
            ready == nodes as f64
                && (short, headless, filling) == (0.0, 0.0, 0.0)
                && held > 0.0
                && held >= SHARE_MIN * fair
        })
    })
}

/// The program with nothing of the trial's own environment that it would take for settings.
fn clean(program: &Path, namespace: Option<&str>) -> Command {
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(program);
            command
        }
        None => Command::new(program),
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KILN_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET");
    command
}

/// One request on a connection of its own.
pub(crate) fn http_get(address: &str, target: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().map_err(|_| invalid(format!("no {address:?}")))?;
    let mut stream = TcpStream::connect_timeout(&address, HTTP_MAX)?;
    stream.set_read_timeout(Some(HTTP_MAX))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(HTTP_LEN_MAX).read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(invalid(text.lines().next().unwrap_or("no answer").to_owned())),
    }
}

/// The value of a metric, named with its labels as in the text format.
pub(crate) fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.parse().ok()
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The fields of a node's ready line.
fn fields(line: &str) -> BTreeMap<String, String> {
    let fields = line.split(' ').filter_map(|field| field.split_once('='));
    fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The last lines of a log.
fn end(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_SHOWN)..].join("\n")
}

const READY_MAX: Duration = Duration::from_secs(60);
const HTTP_MAX: Duration = Duration::from_secs(5);
const HTTP_LEN_MAX: u64 = 16 * 1024 * 1024;
const POLL: Duration = Duration::from_millis(100);
/// A node writes one line to its standard output.
const LINES_MAX: usize = 16;
const LOG_SHOWN: usize = 12;

/// Part of its fair share that a node must hold. Placement keeps nodes within 5 % above theirs.
const SHARE_MIN: f64 = 0.85;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# HELP a x\na_more 3\na{b=\"c\"} 4\na 5\n";
        assert_eq!(metric(text, "a"), Some(5.0));
        assert_eq!(metric(text, "a{b=\"c\"}"), Some(4.0));
        assert_eq!(metric(text, "b"), None);
    }

    #[test]
    fn a_node_without_its_share_makes_no_whole_cluster() {
        let whole = Picture {
            ready: 3.0,
            short: 0.0,
            headless: 0.0,
            filling: 0.0,
            held: 0.0,
            misplaced: 0.0,
            epoch: 9.0,
        };
        let picture = |held| Some(Picture { held, ..whole });
        assert!(is_whole(&[picture(680.0), picture(683.0), picture(685.0)], 3));
        assert!(!is_whole(&[picture(1024.0), picture(1024.0), picture(0.0)], 3));
        assert!(!is_whole(&[picture(680.0), None, picture(685.0)], 3));
        assert!(!is_whole(&[picture(680.0), picture(683.0), picture(685.0)], 4));
    }

    #[test]
    fn the_ready_line_names_the_listeners() {
        let fields = fields("ready name=n1 memcached=127.0.0.1:1 ingest=off");
        assert_eq!(fields["memcached"], "127.0.0.1:1");
        assert_eq!(fields["ingest"], "off");
    }
}
