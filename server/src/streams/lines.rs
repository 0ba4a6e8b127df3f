//! The door for readings as lines over TCP.
//!
//! A client connects and sends lines in the stream's format, `sensor1, 12` at its simplest. Lines of
//! control may come first, in this order, each at most once:
//!
//! ```text
//!   auth USER PASSWORD     when the node asks who is there
//!   stream NAME            which stream; not needed where there is one only
//!   hello PRODUCER EPOCH   from here on every batch is numbered and acknowledged
//! ```
//!
//! After `hello` a batch ends with `commit NUMBER`. The answer is `ack NUMBER accepted=… duplicate=…
//! late=… rejected=…`, or `retry NUMBER after=… REASON`: the client sends the same batch again, with
//! the same number, on this connection or another, and it counts once. Without `hello` nothing is
//! acknowledged: a client that is sent nothing has no reason to wait, and what is in the kernel's
//! buffers when a connection breaks is not known to anyone. Bad lines are told either way, as
//! `bad LINE COLUMN REASON`, to a client that reads.
//!
//! What bounds a client: the number of connections, the length of a line, the readings of a batch;
//! one that sends faster than the node takes is not read from.

use std::{
    fmt::Write,
    io,
    net::TcpListener,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use kiln_stream::{
    parse::{Intake, LINE_LEN_MAX, Report},
    reading::Batch,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
    sync::{Semaphore, watch},
    time,
};

use super::{IngestError, RETRY_AFTER_MS, Receipt, Source, Stream, ingest::check_producer};
use crate::node::Node;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 1_024;
/// Bytes read at a time.
const READ_LEN: usize = 64 << 10;
/// Without acknowledgements a batch is handed on when it is so long, or when no more came.
const BATCH_LEN: usize = 8_192;
/// Time for a client to take an answer.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// The running door.
pub(crate) struct Door {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Door {
    /// Takes lines on a listener that does not block.
    pub(crate) fn start(node: Arc<Node>, listener: TcpListener) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let work = move || {
            if let Err(error) = runtime.block_on(accept(node, listener, stopped)) {
                tracing::error!(%error, "the door for readings failed");
            }
        };
        let thread = thread::Builder::new().name("kiln-lines".to_owned()).spawn(work)?;
        Ok(Self { stop, thread })
    }

    /// Closes the door and the connections.
    pub(crate) fn stop(self) {
        // An error is a door that failed before; it said so in the log.
        let _ = self.stop.send(true);
        let _ = self.thread.join();
    }
}

async fn accept(
    node: Arc<Node>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly: no more file descriptors.
                tracing::warn!(%error, "cannot accept a connection for readings");
                time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let _ = stream.try_write(b"error too many connections\n");
            continue;
        };
        number += 1;
        // Connections end with the runtime when the node stops.
        let connection = Connection::new(Arc::clone(&node), stream, number);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.run().await {
                tracing::debug!(%error, "a connection for readings broke");
            }
        });
    }
    Ok(())
}

/// One client.
struct Connection {
    node: Arc<Node>,
    socket: TcpStream,
    /// What it is called where it did not say.
    own_name: String,
    is_known: bool,
    stream: Option<Arc<Stream>>,
    hello: Option<Hello>,
    intake: Option<Intake>,
    batch: Batch,
    /// Lines since the last commit gave more readings than a batch may have.
    overfull: bool,
}

/// What a producer said of itself.
struct Hello {
    producer: String,
    epoch: u64,
}

/// How a connection goes on.
#[derive(PartialEq, Eq)]
enum Then {
    Next,
    Close,
}

impl Connection {
    fn new(node: Arc<Node>, socket: TcpStream, number: u64) -> Self {
        let own_name = format!("lines-{:x}-{number}", node.incarnation);
        let is_known = node.auth.is_none();
        Self {
            node,
            socket,
            own_name,
            is_known,
            stream: None,
            hello: None,
            intake: None,
            batch: Batch::new(),
            overfull: false,
        }
    }

    async fn run(mut self) -> io::Result<()> {
        let idle = self.node.config.idle_timeout.0;
        let idle = if idle.is_zero() { Duration::MAX } else { idle };
        // Whole lines from `done` on, and the beginning of one behind them.
        let mut input = Vec::with_capacity(2 * READ_LEN);
        loop {
            input.reserve(READ_LEN);
            let Ok(read) = time::timeout(idle, self.socket.read_buf(&mut input)).await else {
                return self.say("error idle for too long\n").await;
            };
            let ended = read? == 0;
            if ended && self.hello.is_none() && !input.is_empty() {
                input.push(b'\n');
            }
            let mut whole = memchr::memrchr(b'\n', &input).map_or(0, |end| end + 1);
            if whole == 0 && input.len() > LINE_LEN_MAX {
                // The parser counts a line that never ends as one bad line.
                whole = input.len();
            }
            let then = self.take(&input[..whole]).await?;
            input.drain(..whole);
            if then == Then::Close {
                return Ok(());
            }
            if self.hello.is_none() {
                self.hand_on().await?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Takes whole lines.
    async fn take(&mut self, mut lines: &[u8]) -> io::Result<Then> {
        while !lines.is_empty() {
            if self.intake.is_none() || self.hello.is_some() {
                let end = memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1);
                let line = lines[..end].trim_ascii();
                if self.intake.is_none() {
                    match self.control(line).await? {
                        Control::Understood => {
                            lines = &lines[end..];
                            continue;
                        }
                        Control::Close => return Ok(Then::Close),
                        Control::Data => {}
                    }
                    if self.begin().await? == Then::Close {
                        return Ok(Then::Close);
                    }
                    continue;
                }
                if let Some(number) = line.strip_prefix(b"commit ") {
                    if self.commit(number).await? == Then::Close {
                        return Ok(Then::Close);
                    }
                    lines = &lines[end..];
                    continue;
                }
            }
            // Up to the next commit, or all.
            let upto = if self.hello.is_some() { next_commit(lines) } else { lines.len() };
            let arrival = self.node.clock.now_ms() as i64;
            let Some(intake) = &mut self.intake else { return Ok(Then::Close) };
            let taken = if self.overfull {
                upto
            } else {
                intake.feed(&lines[..upto], arrival, &mut self.batch)
            };
            if taken < upto && self.hello.is_some() {
                self.overfull = true;
                continue;
            }
            lines = &lines[taken..];
            if self.hello.is_none() && self.batch.len() >= BATCH_LEN {
                self.hand_on().await?;
            }
        }
        Ok(Then::Next)
    }

    /// A line before the first reading.
    async fn control(&mut self, line: &[u8]) -> io::Result<Control> {
        let text = String::from_utf8_lossy(line);
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        match words[..] {
            ["auth", user, password] if self.stream.is_none() && self.hello.is_none() => {
                let given = format!("{user} {password}");
                self.is_known =
                    self.node.auth.as_ref().is_none_or(|users| users.check(given.as_bytes()));
                if !self.is_known {
                    self.say("error wrong user or password\n").await?;
                    return Ok(Control::Close);
                }
                Ok(Control::Understood)
            }
            _ if !self.is_known => {
                self.say("error this node asks for: auth USER PASSWORD\n").await?;
                Ok(Control::Close)
            }
            ["stream", name] if self.stream.is_none() && self.hello.is_none() => {
                self.stream = self.node.streams.registry.get(name);
                if self.stream.is_none() {
                    self.say("error there is no such stream\n").await?;
                    return Ok(Control::Close);
                }
                Ok(Control::Understood)
            }
            ["hello", producer, epoch] if self.hello.is_none() => {
                let Some(epoch) = epoch.parse().ok().filter(|_| check_producer(producer).is_ok())
                else {
                    self.say("error expected: hello PRODUCER EPOCH, with a whole number\n").await?;
                    return Ok(Control::Close);
                };
                self.hello = Some(Hello { producer: producer.to_owned(), epoch });
                if self.begin().await? == Then::Close {
                    return Ok(Control::Close);
                }
                self.say("hello\n").await?;
                Ok(Control::Understood)
            }
            _ => Ok(Control::Data),
        }
    }

    /// Readings follow.
    async fn begin(&mut self) -> io::Result<Then> {
        if self.stream.is_none() {
            let table = self.node.streams.registry.load_full();
            let mut all = table.values();
            match (all.next(), all.next()) {
                (Some(only), None) => self.stream = Some(Arc::clone(only)),
                (None, _) => {
                    self.say("error this node has no stream\n").await?;
                    return Ok(Then::Close);
                }
                _ => {
                    self.say("error there are several streams; begin with: stream NAME\n").await?;
                    return Ok(Then::Close);
                }
            }
        }
        let layout = self.stream.as_ref().map(|stream| stream.plan.layout(None));
        self.intake = layout.map(Intake::new);
        Ok(Then::Next)
    }

    /// Without acknowledgements: hands what came on, and waits until there is room for it.
    async fn hand_on(&mut self) -> io::Result<()> {
        let (Some(stream), Some(intake)) = (&self.stream, &mut self.intake) else { return Ok(()) };
        let report = intake.take_report();
        stream.count(|f| &f.rejected, report.rejected);
        let told = bad_lines(&report);
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            let source = Source { producer: &self.own_name, epoch: 0, sequence: None };
            let streams = &self.node.streams;
            let mut receipt = streams.ingest(&self.node, stream, source, batch).await;
            // What was not taken is tried again, and nothing else is read meanwhile.
            while let (Some(IngestError::Busy(_)), false) =
                (&receipt.refused, receipt.left.is_empty())
            {
                time::sleep(Duration::from_millis(RETRY_AFTER_MS / 4)).await;
                let left = std::mem::take(&mut receipt.left);
                receipt = streams.again(&self.node, stream, source, left).await;
            }
            if let Some(refused) = &receipt.refused {
                tracing::warn!(stream = %stream.name, %refused, "readings were refused");
                return Err(io::Error::other(refused.to_string()));
            }
        }
        // Into an empty socket buffer: whoever does not read is not waited for.
        let _ = self.socket.try_write(told.as_bytes());
        Ok(())
    }

    /// The end of a numbered batch.
    async fn commit(&mut self, number: &[u8]) -> io::Result<Then> {
        let number =
            std::str::from_utf8(number.trim_ascii()).ok().and_then(|n| n.parse::<u64>().ok());
        let (Some(number), Some(stream), Some(hello), Some(intake)) =
            (number, &self.stream, &self.hello, &mut self.intake)
        else {
            self.say("error expected: commit NUMBER\n").await?;
            return Ok(Then::Close);
        };
        let batch = std::mem::take(&mut self.batch);
        let report = intake.take_report();
        stream.count(|f| &f.rejected, report.rejected);
        let mut answer = bad_lines(&report);
        if std::mem::take(&mut self.overfull) {
            answer.push_str("error the batch has too many readings; commit more often\n");
            self.say(&answer).await?;
            return Ok(Then::Close);
        }
        let source =
            Source { producer: &hello.producer, epoch: hello.epoch, sequence: Some(number) };
        let receipt = self.node.streams.ingest(&self.node, stream, source, batch).await;
        let Receipt { accepted, duplicate, late, stale, .. } = receipt;
        // Writing to a string cannot fail.
        let then = match receipt.refused {
            Some(IngestError::Refused(reason)) => {
                let _ = writeln!(answer, "error {reason}");
                Then::Close
            }
            Some(reason) => {
                let _ = writeln!(answer, "retry {number} after={RETRY_AFTER_MS}ms {reason}");
                Then::Next
            }
            None if stale > 0 => {
                let _ = writeln!(
                    answer,
                    "error {stale} readings are of an earlier epoch, or of a number too far back"
                );
                Then::Close
            }
            None => {
                let _ = writeln!(
                    answer,
                    "ack {number} accepted={accepted} duplicate={duplicate} late={late} rejected={}",
                    report.rejected
                );
                Then::Next
            }
        };
        self.say(&answer).await?;
        Ok(then)
    }

    async fn say(&mut self, text: &str) -> io::Result<()> {
        match time::timeout(WRITE_TIME_MAX, self.socket.write_all(text.as_bytes())).await {
            Ok(written) => written,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")),
        }
    }
}

/// What a first line is.
enum Control {
    Understood,
    Data,
    Close,
}

/// Where the next line that is a commit begins.
fn next_commit(lines: &[u8]) -> usize {
    let mut at = 0;
    while let Some(end) = memchr::memchr(b'\n', &lines[at..]) {
        at += end + 1;
        if lines[at..].starts_with(b"commit ") {
            return at;
        }
    }
    lines.len()
}

fn bad_lines(report: &Report) -> String {
    let mut text = String::new();
    for bad in &report.first_bad {
        let _ = writeln!(text, "bad {} {} {}", bad.line, bad.column, bad.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_found_only_where_a_line_begins() {
        assert_eq!(next_commit(b"a, 1\ncommit 3\n"), 5);
        assert_eq!(next_commit(b"a, commit 3\nb, 2\n"), 17);
        assert_eq!(next_commit(b""), 0);
    }
}
