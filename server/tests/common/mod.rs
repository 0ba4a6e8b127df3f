//! Starts the real `kiln` on free ports, talks to it, and takes it away again.
//!
//! ```no_run
//! let node = Node::start(&["--max-connections", "1"]);
//! let mut client = node.connect();
//! assert!(client.ask("version\r\n").starts_with("VERSION "));
//! ```
//!
//! A node gets no `KILN_*` variable of the test's own environment, and is killed when dropped.

// Each test file is a crate of its own and uses a part of this. A failed unwrap fails the test.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod native;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything that should happen at once. Generous: test machines are busy.
pub const SOON: Duration = Duration::from_secs(20);

/// The `kiln` command with a clean environment.
pub fn kiln(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KILN_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

/// Runs `kiln` to its end.
pub fn run(arguments: &[&str]) -> Finished {
    Finished::from(kiln(arguments).output().unwrap())
}

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A running node.
pub struct Node {
    child: Child,
    /// The line that said the node can serve.
    pub ready: String,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

impl Node {
    /// Starts `kiln serve` with these flags, and free ports and little memory where they say
    /// nothing else; waits until it can serve.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_command(kiln(&serve(flags)))
    }

    /// Starts a prepared command, which should be made with [`serve`].
    pub fn start_command(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        let mut node = Self { child, ready: String::new(), out, err };
        match node.out.recv_timeout(SOON) {
            Ok(line) => node.ready = line,
            Err(_) => panic!(
                "no ready line; standard error: {:?}",
                node.err.try_iter().collect::<Vec<_>>()
            ),
        }
        node
    }

    /// The value of a field of the ready line.
    pub fn field(&self, name: &str) -> &str {
        let fields = self.ready.split(' ').filter_map(|field| field.split_once('='));
        let mut values = fields.filter(|(key, _)| *key == name).map(|(_, value)| value);
        values.next().unwrap_or_else(|| panic!("no {name} in {:?}", self.ready))
    }

    /// Where a listener really listens.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.field(listener).parse().unwrap()
    }

    /// A memcached connection.
    pub fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.address("memcached")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }

    /// One HTTP request on a connection of its own.
    pub fn http(&self, method: &str, target: &str) -> Reply {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n");
        self.http_raw(head.as_bytes())
    }

    /// Sends these bytes to the HTTP port and reads all that comes back.
    pub fn http_raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address("http")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut text = Vec::new();
        // A reset after the reply is as good as an end.
        let _ = stream.read_to_end(&mut text);
        Reply::parse(&String::from_utf8(text).unwrap())
    }

    /// The value of a metric, named with its labels as in the text format.
    pub fn metric(&self, name: &str) -> f64 {
        Self::metric_in(&self.http("GET", "/metrics").body, name)
    }

    /// The same, from a node that asks who wants to know. The credentials are `user:password` in
    /// base64.
    pub fn metric_for(&self, credentials: &str, name: &str) -> f64 {
        let head = format!(
            "GET /metrics HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\
             Authorization: Basic {credentials}\r\n\r\n"
        );
        Self::metric_in(&self.http_raw(head.as_bytes()).body, name)
    }

    fn metric_in(text: &str, name: &str) -> f64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name} in:\n{text}")).parse().unwrap()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the node ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Asks the node to stop and waits until it did, in good order.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait().code(), Some(0));
    }

    /// Further lines on standard output. Call after the end of the process.
    pub fn rest_of_output(&mut self) -> Vec<String> {
        self.out.iter().collect()
    }

    /// Lines on standard error. Call after the end of the process.
    pub fn log(&mut self) -> Vec<String> {
        self.err.iter().collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The arguments of [`Node::start`].
pub fn serve<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["serve"];
    for (flag, value) in [
        ("--listen-memcached", "127.0.0.1:0"),
        ("--listen-native", "127.0.0.1:0"),
        ("--listen-http", "127.0.0.1:0"),
        ("--listen-peer", "off"),
        ("--memory", "16MiB"),
        ("--threads", "2"),
        ("--name", "test"),
    ] {
        if !flags.contains(&flag) {
            arguments.extend([flag, value]);
        }
    }
    arguments.extend(flags);
    arguments
}

/// A connection that reads replies line by line.
pub struct Client<S: Read + Write>(pub BufReader<S>);

impl Client<UnixStream> {
    pub fn connect_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(BufReader::new(stream))
    }
}

impl<S: Read + Write> Client<S> {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// The next line, with its end; empty when the connection was closed.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            result => drop(result.unwrap()),
        }
        String::from_utf8(line).unwrap()
    }

    /// Sends a request and reads one line.
    pub fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.line()
    }

    /// Waits until the node has closed the connection; nothing else may come.
    pub fn assert_closed(&mut self) {
        assert_eq!(self.line(), "");
    }
}

/// An HTTP reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Reply {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.next().map_or("", |(_, value)| value)
    }
}

/// Waits until something is true, and fails with its name when it does not come about.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn lines(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
