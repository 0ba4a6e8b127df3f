//! The nodes of the demonstration: processes of this same program.
//!
//! Each keeps its ports and its directory for as long as the demonstration lasts, so that one that
//! was killed comes back as itself.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;

use super::STEP;
use crate::commands::CommandError;

/// How long a node may take until it can serve.
const READY_MAX: Duration = Duration::from_secs(30);

/// How long a node that was told to stop may take before it is killed, at the end.
const STOP_MAX: Duration = Duration::from_millis(500);

/// Lines of a node's log that are shown when it cannot be started.
const LOG_SHOWN: usize = 12;

/// All nodes. Dropped, they end.
pub(super) struct Nodes {
    nodes: Vec<NodeProcess>,
    replicas: u16,
    /// Last, so that the nodes have ended when it is removed.
    directory: TempDir,
}

struct NodeProcess {
    name: String,
    child: Option<Child>,
    /// Its listeners, once it has told where they are.
    addresses: BTreeMap<String, String>,
    /// Told to stop in good order.
    stopping: bool,
}

/// What is known of a node without asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeLook {
    pub(super) name: String,
    pub(super) process: Process,
}

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    Runs(u32),
    Stopping(u32),
    Ended,
}

impl Nodes {
    /// Starts nodes that are one cluster. Returns when all of them can serve.
    pub(super) fn start(
        count: u16,
        replicas: u16,
        ended: &AtomicBool,
    ) -> Result<Self, CommandError> {
        let directory = tempfile::Builder::new()
            .prefix("kiln-demo-")
            .tempdir()
            .map_err(|error| CommandError::Failed(format!("cannot make a directory: {error}")))?;
        let mut nodes = Self { nodes: Vec::new(), replicas, directory };
        for number in 1..=count {
            nodes.nodes.push(NodeProcess {
                name: format!("n{number}"),
                child: None,
                addresses: BTreeMap::new(),
                stopping: false,
            });
            nodes.launch(usize::from(number) - 1, ended)?;
        }
        Ok(nodes)
    }

    /// Where native clients connect, as an address of a cluster.
    pub(super) fn addresses(&self) -> String {
        let natives = self.nodes.iter().filter_map(|node| node.addresses.get("native"));
        let natives: Vec<&str> = natives.map(String::as_str).collect();
        format!("kiln://{}", natives.join(","))
    }

    /// What to try from another terminal.
    pub(super) fn introduction(&self) -> String {
        let first = self.nodes.first();
        let of = |name: &str| {
            let address = first.and_then(|node| node.addresses.get(name));
            address.map_or("-", String::as_str)
        };
        format!(
            "{} nodes run. From another terminal:\n  export KILN_ADDRESS={}\n  kiln cluster status \
             --watch 1s\n  printf 'version\\r\\nquit\\r\\n' | nc {}\n  http://{}/ is the dashboard",
            self.nodes.len(),
            self.addresses(),
            of("memcached").replacen(':', " ", 1),
            of("http"),
        )
    }

    pub(super) fn looks(&self) -> Vec<NodeLook> {
        let look = |node: &NodeProcess| NodeLook {
            name: node.name.clone(),
            process: match &node.child {
                Some(child) if node.stopping => Process::Stopping(child.id()),
                Some(child) => Process::Runs(child.id()),
                None => Process::Ended,
            },
        };
        self.nodes.iter().map(look).collect()
    }

    /// How many run and were not told to stop.
    pub(super) fn running(&self) -> usize {
        self.nodes.iter().filter(|node| node.child.is_some() && !node.stopping).count()
    }

    /// Takes note of processes that ended. Returns what to tell.
    pub(super) fn reap(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for node in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if let Ok(Some(status)) = child.try_wait() {
                said.push(match (node.stopping, status.success()) {
                    (true, true) => format!("{} handed over and ended", node.name),
                    _ => format!("{} ended by itself: {status}", node.name),
                });
                node.child = None;
                node.stopping = false;
            }
        }
        said
    }

    /// Kills a node, without a chance to say goodbye.
    pub(super) fn kill_any(&mut self) -> Result<String, CommandError> {
        let Some(node) = self.choose(|node| node.child.is_some() && !node.stopping) else {
            return Ok("no node runs that could be killed".to_owned());
        };
        if let Some(mut child) = node.child.take() {
            // It may have ended by itself a moment ago; then it is gone as well.
            let _ = child.kill();
            let _ = child.wait();
        }
        node.stopping = false;
        Ok(format!("{} was killed (SIGKILL)", node.name))
    }

    /// Asks a node to stop: it hands over first.
    pub(super) fn stop_any(&mut self) -> Result<String, CommandError> {
        let Some(node) = self.choose(|node| node.child.is_some() && !node.stopping) else {
            return Ok("no node runs that could be stopped".to_owned());
        };
        if let Some(child) = &node.child {
            terminate(child);
            node.stopping = true;
        }
        Ok(format!("{} was asked to stop (SIGTERM): it hands over first", node.name))
    }

    /// Starts a node that does not run.
    pub(super) fn start_again(&mut self) -> Result<String, CommandError> {
        let Some(at) = self.nodes.iter().position(|node| node.child.is_none()) else {
            return Ok("all nodes run".to_owned());
        };
        self.launch(at, &AtomicBool::new(false))?;
        Ok(format!("{} runs again", self.nodes[at].name))
    }

    fn choose(&mut self, fits: impl Fn(&NodeProcess) -> bool) -> Option<&mut NodeProcess> {
        let fitting: Vec<usize> =
            (0..self.nodes.len()).filter(|at| fits(&self.nodes[*at])).collect();
        let at = fastrand::choice(fitting)?;
        self.nodes.get_mut(at)
    }

    /// Starts a node and waits until it can serve.
    fn launch(&mut self, at: usize, ended: &AtomicBool) -> Result<(), CommandError> {
        let name = self.nodes[at].name.clone();
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            CommandError::Failed(format!("cannot {what}: {error}"))
        };
        let directory = self.directory.path().join(&name);
        fs::create_dir_all(&directory).map_err(|error| failed("make a directory", &error))?;
        let log_path = directory.join("log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|error| failed("write a log", &error))?;
        let mut command = self.command(at, directory)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().map_err(|error| failed("start a node", &error))?;
        let out = child.stdout.take();
        self.nodes[at].child = Some(child);
        self.nodes[at].stopping = false;

        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Read to its end, so that the node can always write.
            for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { return };
                let _ = sender.send(line);
            }
        });
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Ok(line) = lines.recv_timeout(STEP) {
                self.nodes[at].addresses = fields(&line);
                return Ok(());
            }
            let has_ended = match &mut self.nodes[at].child {
                Some(child) => !matches!(child.try_wait(), Ok(None)),
                None => true,
            };
            if ended.load(Ordering::Relaxed) {
                return Err(CommandError::Failed("interrupted".to_owned()));
            }
            if has_ended || Instant::now() >= deadline {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(LOG_SHOWN)..];
                self.end(at);
                return Err(CommandError::Failed(format!(
                    "{name} did not come up; the end of its log:\n{}",
                    last.join("\n")
                )));
            }
        }
    }

    fn command(&self, at: usize, directory: PathBuf) -> Result<Command, CommandError> {
        let program = std::env::current_exe()
            .map_err(|error| CommandError::Failed(format!("cannot find this program: {error}")))?;
        let node = &self.nodes[at];
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KILN_") {
                command.env_remove(name);
            }
        }
        command.env_remove("NOTIFY_SOCKET");
        let replicas = self.replicas.to_string();
        command
            .args(["serve", "--name", &node.name, "--replicas", &replicas])
            .args(["--memory", "64MiB", "--threads", "1", "--listen-ingest", "off"])
            .arg("--data-dir")
            .arg(directory);
        for listener in ["memcached", "native", "http", "peer"] {
            let any = "127.0.0.1:0".to_owned();
            let address = node.addresses.get(listener).unwrap_or(&any);
            command.arg(format!("--listen-{listener}")).arg(address);
        }
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != at);
        let peers = others.filter_map(|(_, node)| node.addresses.get("peer"));
        let peers: Vec<&str> = peers.map(String::as_str).collect();
        if !peers.is_empty() {
            command.args(["--join", &peers.join(",")]);
        }
        // Ctrl-C is for this process, which then ends the nodes in order.
        command.process_group(0);
        let parent = std::process::id();
        let with_parent = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before the system was asked.
            let is_there = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() as u32 == parent);
            if is_there { Ok(()) } else { Err(std::io::Error::from(rustix::io::Errno::CHILD)) }
        };
        // SAFETY: Between fork and exec only calls are made that the system allows there: prctl and
        // getppid. Nothing is allocated, and no lock is taken.
        unsafe {
            command.pre_exec(with_parent);
        }
        Ok(command)
    }

    fn end(&mut self, at: usize) {
        if let Some(mut child) = self.nodes[at].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some(child) = &node.child {
                terminate(child);
            }
        }
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline && self.nodes.iter().any(|node| node.child.is_some()) {
            self.reap();
            thread::sleep(STEP);
        }
        for at in 0..self.nodes.len() {
            self.end(at);
        }
    }
}

fn terminate(child: &Child) {
    // One that has ended needs no telling.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
}

/// The fields of a node's ready line.
fn fields(line: &str) -> BTreeMap<String, String> {
    let fields = line.split(' ').filter_map(|field| field.split_once('='));
    fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
