//! Starting servers, pinned to a core, and ending them for certain.
//!
//! A server is ended by its process id when its [`Running`] is dropped: SIGTERM, and SIGKILL when
//! it is still there after [`STOP_TIMEOUT`]. Should this program be killed outright, the kernel
//! sends the SIGTERM.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use kiln_load::{Plan, Protocol, Target};
use rustix::process::{Pid, Signal};

use crate::CompareError;

/// The servers that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Kiln,
    Memcached,
    Redis,
    Null,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Kiln, Self::Memcached, Self::Redis, Self::Null];
    /// Those that keep what they are given.
    pub(crate) const STORING: [Self; 3] = [Self::Kiln, Self::Memcached, Self::Redis];

    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Redis => Protocol::Redis,
            Self::Kiln | Self::Memcached | Self::Null => Protocol::Memcached,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kiln => "kiln",
            Self::Memcached => "memcached",
            Self::Redis => "redis",
            Self::Null => "null",
        })
    }
}

/// Where the programs are and where they run.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kiln: PathBuf,
    pub(crate) null: PathBuf,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Not installed; the comparison can go on without it.
    #[error("{kind} is left out: {} is not there", program.display())]
    Missing { kind: Kind, program: PathBuf },
    #[error("cannot start {kind}: {source}")]
    Spawn { kind: Kind, source: io::Error },
    #[error("{kind} ended instead of serving ({status}): {said}")]
    Ended { kind: Kind, status: ExitStatus, said: String },
    #[error("{kind} does not serve after {} s: {said}", START_TIMEOUT.as_secs())]
    NotReady { kind: Kind, said: String },
}

/// A server process that answers. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) kind: Kind,
    pub(crate) version: String,
    address: SocketAddr,
    child: Child,
}

impl Running {
    /// Starts a server that may hold `memory_mib` and waits until it answers.
    pub(crate) fn start(
        kind: Kind,
        launch: &Launch,
        memory_mib: u64,
    ) -> Result<Self, CompareError> {
        let spawn_error = |source| StartError::Spawn { kind, source };
        let port = free_port().map_err(spawn_error)?;
        let (program, arguments) = command_line(kind, launch, memory_mib, port);
        let version = match kind {
            Kind::Null => "constant answers".to_owned(),
            _ => version_of(&program),
        };
        let mut command = Command::new(&program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only the prctl system call is made: it neither allocates
        // nor takes a lock.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?)
            });
        }
        // A child inherits the affinity of the thread that forks it.
        pin(launch.server_core)?;
        let spawned = command.spawn();
        pin(launch.load_core)?;
        let child = spawned.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StartError::Missing { kind, program },
            _ => spawn_error(source),
        })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut running = Self { kind, version, address, child };
        running.wait_until_ready()?;
        Ok(running)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A plan for a run against this server.
    pub(crate) fn plan(&self) -> Plan {
        Plan {
            target: Target::Tcp(self.address.to_string()),
            protocol: self.kind.protocol(),
            server_pid: Some(self.pid()),
            ..Plan::default()
        }
    }

    pub(crate) fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, ANSWER_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(stream)
    }

    /// How many items it says it holds.
    pub(crate) fn items(&self) -> io::Result<u64> {
        let mut stream = self.connect()?;
        stream.write_all(match self.kind.protocol() {
            Protocol::Redis => b"DBSIZE\r\n",
            _ => b"stats\r\n",
        })?;
        for line in BufReader::new(stream.take(STATS_LEN_MAX)).lines() {
            let line = line?;
            let count = line.strip_prefix("STAT curr_items ").or(line.strip_prefix(':'));
            if let Some(count) = count.and_then(|count| count.trim().parse().ok()) {
                return Ok(count);
            }
            if line == "END" {
                break;
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not say what it holds"))
    }

    /// Resident bytes, file-backed pages included.
    pub(crate) fn rss(&self) -> io::Result<u64> {
        rss_of(self.pid())
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn wait_until_ready(&mut self) -> Result<(), StartError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let said = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = self.child.stderr.take() {
            watch(stderr, Arc::clone(&said));
        }
        let lines = self.child.stdout.take().map(|stdout| watch(stdout, Arc::clone(&said)));
        let announces = matches!(self.kind, Kind::Kiln | Kind::Null);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                // What it said last is still on its way through the pipe.
                thread::sleep(POLL);
                return Err(StartError::Ended { kind: self.kind, status, said: take(&said) });
            }
            let announced = lines.as_ref().and_then(|lines| lines.recv_timeout(POLL).ok());
            if let Some(address) = announced.as_deref().and_then(ready_address) {
                self.address = address;
                return Ok(());
            }
            if !announces && TcpStream::connect_timeout(&self.address, POLL).is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(StartError::NotReady { kind: self.kind, said: take(&said) });
            }
        }
    }

    fn stop(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // The child is not reaped yet, so the id is still its own.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("kiln-compare: cannot end {} ({}): {error}", self.kind, self.child.id());
        }
    }
}

/// Starts those of `kinds` that are installed; names the others on standard error.
pub(crate) fn start_or_skip(
    kind: Kind,
    launch: &Launch,
    memory_mib: u64,
) -> Result<Option<Running>, CompareError> {
    match Running::start(kind, launch, memory_mib) {
        Ok(running) => Ok(Some(running)),
        Err(CompareError::Start(missing @ StartError::Missing { .. })) => {
            eprintln!("kiln-compare: {missing}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Pins the calling thread; threads and processes it starts from now on inherit that.
pub(crate) fn pin(core: usize) -> Result<(), CompareError> {
    let refuse = |source| CompareError::Pin { core, source };
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(refuse(io::ErrorKind::InvalidInput.into()));
    }
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).map_err(|errno| refuse(errno.into()))
}

fn command_line(kind: Kind, launch: &Launch, memory_mib: u64, port: u16) -> (PathBuf, Vec<String>) {
    let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    match kind {
        Kind::Kiln => (
            launch.kiln.clone(),
            words(format!(
                "serve --threads 1 --memory {memory_mib}MiB --listen-memcached 127.0.0.1:0 \
                 --listen-native off --listen-http off --listen-peer off --listen-ingest off"
            )),
        ),
        Kind::Memcached => {
            let mut arguments =
                words(format!("-t 1 -m {memory_mib} -U 0 -l 127.0.0.1 -p {port} -c 1024"));
            // memcached refuses to be root unless told to.
            if rustix::process::geteuid().is_root() {
                arguments.extend(["-u".to_owned(), "root".to_owned()]);
            }
            ("memcached".into(), arguments)
        }
        Kind::Redis => {
            let mut arguments = words(format!(
                "--bind 127.0.0.1 --port {port} --appendonly no --io-threads 1 --daemonize no"
            ));
            arguments.extend(["--save".to_owned(), String::new()]);
            ("redis-server".into(), arguments)
        }
        Kind::Null => (launch.null.clone(), words("--listen 127.0.0.1:0".to_owned())),
    }
}

/// Free at this moment. Another program could take it before the server does; the server then
/// ends and says so.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or("unknown version").trim().to_owned()
}

/// The memcached address in `ready name=… memcached=HOST:PORT …`, or in `ready HOST:PORT`.
fn ready_address(line: &str) -> Option<SocketAddr> {
    let mut words = line.strip_prefix("ready ")?.split_whitespace();
    words.find_map(|word| word.strip_prefix("memcached=").unwrap_or(word).parse().ok())
}

/// Reads `stream` to its end so that its writer never blocks; hands out lines while somebody
/// takes them and keeps the last in `said`.
fn watch(stream: impl Read + Send + 'static, said: Arc<Mutex<String>>) -> Receiver<String> {
    let (sender, lines) = sync_channel(LINES_WAITING_MAX);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            said.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&line);
            // Full, or nobody listens any more: the line is not needed.
            let _ = sender.try_send(line);
        }
    });
    lines
}

fn take(said: &Mutex<String>) -> String {
    std::mem::take(&mut said.lock().unwrap_or_else(PoisonError::into_inner))
}

/// From the page tables where possible: the counter in `statm` lags behind by some pages a core.
pub(crate) fn rss_of(pid: u32) -> io::Result<u64> {
    if let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        && let Some(kib) = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))
        && let Some(kib) = kib.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok())
    {
        return Ok(kib * 1024);
    }
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: Option<u64> = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    Ok(pages.ok_or(io::ErrorKind::InvalidData)? * rustix::param::page_size() as u64)
}

const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Kiln's own grace for connections is longer; nothing is lost by not waiting for it here.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const LINES_WAITING_MAX: usize = 64;

/// `stats` is some ten kilobytes.
const STATS_LEN_MAX: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_of_either_server_names_the_address() {
        let of = |line| ready_address(line).map(|address| address.to_string());

        assert_eq!(
            of("ready name=a memcached=127.0.0.1:4242 native=off http=127.0.0.1:7 peer=off"),
            Some("127.0.0.1:4242".to_owned())
        );
        assert_eq!(of("ready 127.0.0.1:77"), Some("127.0.0.1:77".to_owned()));
        assert_eq!(of("listening on 127.0.0.1:77"), None);
        assert_eq!(of("ready name=a memcached=off"), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_missing_and_not_a_failure() {
        let launch = Launch {
            kiln: "/nonexistent/kiln".into(),
            null: "/nonexistent/null".into(),
            server_core: 0,
            load_core: 0,
        };

        assert!(start_or_skip(Kind::Kiln, &launch, 64).unwrap().is_none());
    }

    #[test]
    fn a_server_is_gone_when_its_guard_is_dropped() {
        // Any program that runs on stands in for a server here.
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let mut running = Running { kind: Kind::Null, version: String::new(), address, child };
        assert!(running.is_alive() && running.rss().unwrap() > 0);

        drop(running);

        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
