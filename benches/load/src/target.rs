//! Where the server is, how to get connections to it, and what it says it is.
//!
//! Everything here happens before the first request is measured and waits for the sockets: a
//! handshake, credentials, the server's version. What a probe finds out is for the report only; a
//! server that does not answer it is measured all the same.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::connection::Stream;
use crate::process;
use crate::run::{Plan, RunError};
use crate::wire::{Parsed, Protocol, handshake};

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `HOST:PORT`.
    Tcp(String),
    /// The path of a socket.
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Who uses the server.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The proof.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A connection that requests can be sent on.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: Stream,
    /// Native: the handle of the cache on this connection.
    pub(crate) cache: u32,
}

/// What is known of the server before it is loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) version: Option<String>,
    /// Its process, when that runs on this machine.
    pub(crate) pid: Option<u32>,
}

/// Opens every connection of the plan, ready for requests.
pub(crate) fn connect(plan: &Plan) -> Result<(Vec<Link>, Identity), RunError> {
    let target = plan.target.to_string();
    let fail = |source| RunError::Connect { target: target.clone(), source };
    let addresses: Vec<SocketAddr> = match &plan.target {
        Target::Tcp(name) => name.to_socket_addrs().map_err(fail)?.collect(),
        Target::Unix(_) => Vec::new(),
    };
    let open = || match &plan.target {
        Target::Tcp(_) => connect_tcp(&addresses).map(Socket::Tcp),
        Target::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
    };
    let mut identity = Identity::default();
    let mut links = Vec::with_capacity(plan.connections);
    for index in 0..plan.connections {
        let mut socket = open().map_err(fail)?;
        socket.set_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;
        let (cache, version) = greet(&mut socket, plan)?;
        if index == 0 {
            identity.version = version;
            identity.pid = socket.local_server();
        }
        socket.set_timeout(None).map_err(fail)?;
        let stream = socket.into_stream().map_err(fail)?;
        links.push(Link { stream, cache });
    }
    if matches!(plan.protocol, Protocol::Memcached | Protocol::Meta)
        && let Ok(mut probe) = open()
    {
        identity.version = memcached_version(&mut probe, plan);
    }
    Ok((links, identity))
}

/// What the protocol wants first of all. The cache's handle, and the server's version if it says.
fn greet(socket: &mut Socket, plan: &Plan) -> Result<(u32, Option<String>), RunError> {
    match plan.protocol {
        Protocol::Native => native_greeting(socket, plan),
        Protocol::Memcached | Protocol::Meta => {
            memcached_login(socket, plan)?;
            Ok((0, None))
        }
        Protocol::Http | Protocol::Redis | Protocol::Echo => Ok((0, None)),
    }
}

fn native_greeting(socket: &mut Socket, plan: &Plan) -> Result<(u32, Option<String>), RunError> {
    let target = || plan.target.to_string();
    let mut output = Vec::new();
    handshake::hello(plan.credentials.as_ref(), &mut output);
    let refused = |reason| RunError::Refused { target: target(), reason };
    let welcome = exchange(socket, &output, plan)
        .and_then(|body| handshake::welcome(&body).map_err(refused))?;
    let value_len_max = plan.sizes.size_max();
    if welcome.value_len_max.is_some_and(|limit| value_len_max as u64 > limit) {
        return Err(refused(format!(
            "values of {value_len_max} bytes are over its limit of {}",
            welcome.value_len_max.unwrap_or(0)
        )));
    }
    if plan.cache == DEFAULT_CACHE {
        return Ok((0, Some(welcome.server)));
    }
    output.clear();
    handshake::open_cache(&plan.cache, &mut output);
    let handle = exchange(socket, &output, plan)
        .and_then(|body| handshake::opened(&body).map_err(refused))?;
    Ok((handle, Some(welcome.server)))
}

/// Sends a frame and reads the body of the next.
fn exchange(socket: &mut Socket, output: &[u8], plan: &Plan) -> Result<Vec<u8>, RunError> {
    let fail = |source| RunError::Connect { target: plan.target.to_string(), source };
    socket.write_all(output).map_err(fail)?;
    let refused = |reason: &str| {
        let reason = format!("{reason}; is this the port of the native protocol?");
        RunError::Refused { target: plan.target.to_string(), reason }
    };
    let mut input = Vec::new();
    loop {
        let at_least = match handshake::frame(&input) {
            Ok(Parsed::Complete { message, .. }) => return Ok(message.to_vec()),
            Ok(Parsed::NeedMore { at_least }) => at_least,
            Err(error) => return Err(refused(&error.to_string())),
        };
        let start = input.len();
        input.resize(at_least, 0);
        socket.read_exact(&mut input[start..]).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => refused("no answer came"),
            io::ErrorKind::UnexpectedEof => refused("the connection was closed"),
            _ => fail(error),
        })?;
    }
}

/// Memcached's way: the first command is a `set` with user and password as its value.
fn memcached_login(socket: &mut Socket, plan: &Plan) -> Result<(), RunError> {
    let Some(Credentials { user, password }) = &plan.credentials else { return Ok(()) };
    let fail = |source| RunError::Connect { target: plan.target.to_string(), source };
    let data = format!("{user} {password}");
    write!(socket, "set login 0 0 {}\r\n{data}\r\n", data.len()).map_err(fail)?;
    let mut line = String::new();
    BufReader::new((&mut *socket).take(LINE_LEN_MAX)).read_line(&mut line).map_err(fail)?;
    match line.trim_end() {
        "STORED" => Ok(()),
        refusal => {
            let (target, reason) = (plan.target.to_string(), refusal.to_owned());
            Err(RunError::Refused { target, reason })
        }
    }
}

/// Asked on a connection of its own: a server that answers oddly disturbs no measurement.
fn memcached_version(socket: &mut Socket, plan: &Plan) -> Option<String> {
    socket.set_timeout(Some(PROBE_TIMEOUT)).ok()?;
    memcached_login(socket, plan).ok()?;
    socket.write_all(b"stats\r\n").ok()?;
    let mut version = None;
    for line in BufReader::new(socket.take(PROBE_LEN_MAX)).lines().map_while(Result::ok) {
        if let Some(kiln) = line.strip_prefix("STAT kiln_version ") {
            return Some(format!("kiln/{kiln}"));
        }
        match line.strip_prefix("STAT version ") {
            Some(own) => version = Some(format!("memcached/{own}")),
            None if line.starts_with("STAT ") => {}
            None => break,
        }
    }
    version
}

fn connect_tcp(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A socket that still waits.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }

    /// The process at the other end, when it runs on this machine and may be looked at.
    fn local_server(&self) -> Option<u32> {
        let Self::Tcp(stream) = self else { return None };
        let (own, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        // What listens in this process is the echo: its time cannot be told from the generator's.
        (own.ip() == peer.ip())
            .then(|| process::listening_on(peer))
            .flatten()
            .filter(|&pid| pid != std::process::id())
    }

    fn into_stream(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Stream::Tcp(mio::net::TcpStream::from_std(stream))
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Stream::Unix(mio::net::UnixStream::from_std(stream))
            }
        })
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The cache that every native connection has without opening it.
const DEFAULT_CACHE: &str = "default";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for the answer to a greeting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for a version, which is only for the report.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

const PROBE_LEN_MAX: u64 = 64 * 1024;

const LINE_LEN_MAX: u64 = 2048;
