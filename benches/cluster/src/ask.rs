//! One client of a trial: it asks one thing at a time and says what became of it.
//!
//! Two kinds, because they fail differently. A memcached client has one connection to one node and
//! knows nothing of clusters: when the connection ends it goes to another node, and what it was
//! asking has an unknown outcome. The Rust client knows all nodes and tries again by itself where
//! that cannot do harm.
//!
//! What always holds: an outcome is called "not applied" only when a node or the client library
//! said so, or when nothing was sent.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use kiln_client::{Counted, Deleted, Error, Written, blocking};
use kiln_linearizability::{Answer, Operation};
use parking_lot::Mutex;

use crate::http::Http;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was answered.
    Answer(Answer),
    /// It changed nothing and never will, in the words of whoever said so.
    NotApplied(String),
    /// It may have happened, or may yet.
    Unknown(String),
}

/// The memcached listeners, as a load balancer knows them.
#[derive(Debug, Default)]
pub(crate) struct Doors(Mutex<Vec<Arc<Door>>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    /// New requests may go there: the node did not say that it leaves.
    open: AtomicBool,
}

impl Doors {
    pub(crate) fn add(&self, address: &str) -> io::Result<()> {
        let address = address.parse().map_err(|error| io::Error::other(format!("{error}")))?;
        self.0.lock().push(Arc::new(Door { address, open: AtomicBool::new(true) }));
        Ok(())
    }

    pub(crate) fn set_open(&self, at: usize, open: bool) {
        if let Some(door) = self.0.lock().get(at) {
            door.open.store(open, Relaxed);
        }
    }

    /// The first open door from `at` on.
    pub(crate) fn open_from(&self, at: usize) -> Option<(usize, Arc<Door>)> {
        let doors = self.0.lock();
        let all = (0..doors.len()).map(|step| (at + step) % doors.len());
        all.map(|at| (at, Arc::clone(&doors[at]))).find(|(_, door)| door.open.load(Relaxed))
    }
}

/// How long clients wait for an answer. Changes with the fault, hence shared.
#[derive(Debug)]
pub(crate) struct Patience(AtomicU64);

impl Patience {
    pub(crate) fn new(most: Duration) -> Self {
        let patience = Self(AtomicU64::new(0));
        patience.set(most);
        patience
    }

    pub(crate) fn set(&self, most: Duration) {
        self.0.store(u64::try_from(most.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed).max(1))
    }
}

/// A client.
#[derive(Debug)]
pub(crate) enum Asker {
    Memcached(Memcached),
    Native { cache: blocking::Cache, patience: Arc<Patience> },
    Http(Http),
}

impl Asker {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Memcached(_) => "memcached",
            Self::Native { .. } => "native",
            Self::Http(_) => "http",
        }
    }

    /// Whether it can make a counter by counting.
    pub(crate) fn creates_counters(&self) -> bool {
        matches!(self, Self::Native { .. })
    }

    /// Goes back to the node that it shall be at, if it has such.
    pub(crate) fn go_home(&mut self) {
        match self {
            Self::Memcached(client) => {
                client.link = None;
                client.at = client.home;
            }
            Self::Http(client) => client.go_home(),
            Self::Native { .. } => {}
        }
    }

    pub(crate) fn ask(&mut self, key: &str, operation: &Operation) -> Told {
        match self {
            Self::Memcached(client) => client.ask(key, operation),
            Self::Http(client) => client.ask(key, operation),
            Self::Native { cache, patience } => {
                native(&cache.with_timeout(patience.get()), key, operation)
            }
        }
    }
}

/// A memcached client with one connection.
#[derive(Debug)]
pub(crate) struct Memcached {
    doors: Arc<Doors>,
    patience: Arc<Patience>,
    home: usize,
    at: usize,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    door: Arc<Door>,
    stream: BufReader<TcpStream>,
    timeout: Duration,
}

impl Memcached {
    pub(crate) fn new(doors: Arc<Doors>, patience: Arc<Patience>, home: usize) -> Self {
        Self { doors, patience, home, at: home, link: None }
    }

    fn ask(&mut self, key: &str, operation: &Operation) -> Told {
        let Some(request) = request(key, operation) else {
            return Told::NotApplied("this client cannot ask that".to_owned());
        };
        let link = match self.link() {
            Ok(link) => link,
            Err(error) => {
                // The next attempt is at another node.
                self.at += 1;
                return Told::NotApplied(format!("cannot connect: {error}"));
            }
        };
        match link.exchange(&request, operation) {
            Ok(told) => told,
            Err(error) => {
                self.link = None;
                self.at += 1;
                match operation {
                    Operation::Get => Told::NotApplied(format!("connection lost: {error}")),
                    _ => Told::Unknown(format!("connection lost: {error}")),
                }
            }
        }
    }

    fn link(&mut self) -> io::Result<&mut Link> {
        let timeout = self.patience.get();
        let usable = self.link.take().filter(|link| link.door.open.load(Relaxed));
        let mut link = match usable {
            Some(link) => link,
            None => {
                let Some((at, door)) = self.doors.open_from(self.at) else {
                    return Err(io::ErrorKind::AddrNotAvailable.into());
                };
                self.at = at;
                let stream = TcpStream::connect_timeout(&door.address, CONNECT_MAX)?;
                stream.set_nodelay(true)?;
                Link { door, stream: BufReader::new(stream), timeout: Duration::ZERO }
            }
        };
        if link.timeout != timeout {
            link.stream.get_ref().set_read_timeout(Some(timeout))?;
            link.stream.get_ref().set_write_timeout(Some(timeout))?;
            link.timeout = timeout;
        }
        Ok(self.link.insert(link))
    }
}

impl Link {
    fn exchange(&mut self, request: &[u8], operation: &Operation) -> io::Result<Told> {
        self.stream.get_mut().write_all(request)?;
        let line = self.line()?;
        if let Some(rest) = line.strip_prefix("VALUE ") {
            return Ok(Told::Answer(self.value(rest)?));
        }
        Ok(match told(&line, operation) {
            Some(answer) => Told::Answer(answer),
            None if line.starts_with("SERVER_ERROR outcome unknown") => Told::Unknown(line),
            None if line.starts_with("SERVER_ERROR ") => Told::NotApplied(line),
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, line)),
        })
    }

    fn value(&mut self, head: &str) -> io::Result<Answer> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, head.to_owned());
        let mut fields = head.split(' ').skip(2);
        let len: usize = fields.next().and_then(|len| len.parse().ok()).ok_or_else(wrong)?;
        let version = fields.next().and_then(|version| version.parse().ok()).ok_or_else(wrong)?;
        if len > VALUE_MAX {
            return Err(wrong());
        }
        let mut value = vec![0; len + 2];
        self.stream.read_exact(&mut value)?;
        value.truncate(len);
        let end = self.line()?;
        if end == "END" {
            Ok(Answer::Value { value, version: Some(version) })
        } else {
            Err(wrong())
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let most = u64::try_from(VALUE_MAX).unwrap_or(u64::MAX);
        if (&mut self.stream).take(most).read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }
}

/// The bytes of a request, when the classic protocol has such.
fn request(key: &str, operation: &Operation) -> Option<Vec<u8>> {
    let store = |head: String, value: &[u8]| {
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
        Some(bytes)
    };
    let plain =
        |verb: &str, value: &[u8]| store(format!("{verb} {key} 0 0 {}\r\n", value.len()), value);
    match operation {
        Operation::Get => Some(format!("gets {key}\r\n").into_bytes()),
        Operation::Set(value) => plain("set", value),
        Operation::Add(value) => plain("add", value),
        Operation::Append(value) => plain("append", value),
        Operation::CompareAndSet { expected, value } => {
            store(format!("cas {key} 0 0 {} {expected}\r\n", value.len()), value)
        }
        Operation::Delete => Some(format!("delete {key}\r\n").into_bytes()),
        Operation::Count { up: true, delta, create: None } => {
            Some(format!("incr {key} {delta}\r\n").into_bytes())
        }
        _ => None,
    }
}

/// What a line answers, if it is no error.
fn told(line: &str, operation: &Operation) -> Option<Answer> {
    Some(match (operation, line) {
        (Operation::Get, "END") => Answer::Absent,
        (Operation::Add(_), "NOT_STORED") => Answer::Present,
        (Operation::Append(_), "NOT_STORED") => Answer::Absent,
        (Operation::CompareAndSet { .. }, "EXISTS") => Answer::Conflict,
        (Operation::Delete, "DELETED") => Answer::Deleted,
        (Operation::CompareAndSet { .. } | Operation::Delete | Operation::Count { .. }, _)
            if line == "NOT_FOUND" =>
        {
            Answer::Absent
        }
        (Operation::Count { .. }, line) if line.starts_with("CLIENT_ERROR cannot incr") => {
            Answer::NotANumber
        }
        (Operation::Count { .. }, line) => {
            Answer::Number { number: line.parse().ok()?, version: None }
        }
        (Operation::Get | Operation::Delete, _) => return None,
        (_, "STORED") => Answer::Stored { version: None },
        _ => return None,
    })
}

/// The same by the Rust client.
fn native(cache: &blocking::Cache, key: &str, operation: &Operation) -> Told {
    let stored = |version| Answer::Stored { version: Some(version) };
    let result = match operation {
        Operation::Get => cache.get_item(key).map(|item| match item {
            Some(item) => Answer::Value { value: item.value.to_vec(), version: Some(item.version) },
            None => Answer::Absent,
        }),
        Operation::Set(value) => cache.set(key, value).map(stored),
        Operation::Add(value) => {
            cache.call(|cache| cache.add(key, value)).map(|written| match written {
                Written::Stored { version } => stored(version),
                _ => Answer::Present,
            })
        }
        Operation::Append(value) => {
            cache.call(|cache| cache.append(key, value)).map(|written| match written {
                Written::Stored { version } => stored(version),
                _ => Answer::Absent,
            })
        }
        Operation::CompareAndSet { expected, value } => cache
            .call(|cache| cache.set(key, value).if_version(*expected))
            .map(|written| match written {
                Written::Stored { version } => stored(version),
                Written::NotFound | Written::NotStored => Answer::Absent,
                Written::Conflict => Answer::Conflict,
            }),
        Operation::Delete => cache.delete(key).map(|deleted| match deleted {
            Deleted::Deleted => Answer::Deleted,
            Deleted::NotFound | Deleted::Conflict => Answer::Absent,
        }),
        Operation::Count { up: true, delta, create } => cache
            .call(|cache| {
                let count = cache.increment(key, *delta);
                match create {
                    Some(number) => count.or_create(*number),
                    None => count,
                }
            })
            .map(|counted| match counted {
                Counted::Number { number, version } => {
                    Answer::Number { number, version: Some(version) }
                }
                Counted::NotFound | Counted::Conflict => Answer::Absent,
            }),
        _ => return Told::NotApplied("this client does not ask that".to_owned()),
    };
    match result {
        Ok(answer) => Told::Answer(answer),
        Err(error @ Error::NotApplied(_)) => Told::NotApplied(error.to_string()),
        Err(error) => Told::Unknown(error.to_string()),
    }
}

pub(crate) const CONNECT_MAX: Duration = Duration::from_millis(500);

/// Values of trials are short.
const VALUE_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_in_the_light_of_the_question() {
        let count = Operation::Count { up: true, delta: 1, create: None };
        assert_eq!(told("7", &count), Some(Answer::Number { number: 7, version: None }));
        assert_eq!(told("NOT_FOUND", &count), Some(Answer::Absent));
        assert_eq!(told("NOT_STORED", &Operation::Add(vec![])), Some(Answer::Present));
        assert_eq!(told("END", &Operation::Get), Some(Answer::Absent));
        for operation in [count, Operation::Get, Operation::Delete, Operation::Set(vec![])] {
            assert_eq!(told("SERVER_ERROR no", &operation), None);
        }
    }

    #[test]
    fn a_closed_door_is_passed_by() {
        let doors = Doors::default();
        for port in 1..=3 {
            doors.add(&format!("127.0.0.1:{port}")).unwrap();
        }
        doors.set_open(1, false);

        assert_eq!(doors.open_from(1).map(|(at, _)| at), Some(2));
        assert_eq!(doors.open_from(3).map(|(at, _)| at), Some(0));
        for at in 0..3 {
            doors.set_open(at, false);
        }
        assert!(doors.open_from(0).is_none());
    }
}
