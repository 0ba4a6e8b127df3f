//! A client of the REST gateway: one connection to one node, like a memcached client, but for any
//! cache.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use kiln_linearizability::{Answer, Operation};

use crate::ask::{CONNECT_MAX, Doors, Patience, Told};

/// The client.
#[derive(Debug)]
pub(crate) struct Http {
    doors: Arc<Doors>,
    patience: Arc<Patience>,
    cache: String,
    home: usize,
    at: usize,
    link: Option<(BufReader<TcpStream>, Duration)>,
}

impl Http {
    pub(crate) fn new(
        doors: Arc<Doors>,
        patience: Arc<Patience>,
        cache: &str,
        home: usize,
    ) -> Self {
        Self { doors, patience, cache: cache.to_owned(), home, at: home, link: None }
    }

    pub(crate) fn home(&self) -> usize {
        self.home
    }

    pub(crate) fn go_home(&mut self) {
        self.link = None;
        self.at = self.home;
    }

    pub(crate) fn ask(&mut self, key: &str, operation: &Operation) -> Told {
        let (method, body): (_, &[u8]) = match operation {
            Operation::Get => ("GET", &[]),
            Operation::Set(value) => ("PUT", value),
            Operation::Delete => ("DELETE", &[]),
            _ => return Told::NotApplied("this client does not ask that".to_owned()),
        };
        if let Err(error) = self.connect() {
            self.at += 1;
            return Told::NotApplied(format!("cannot connect: {error}"));
        }
        let target = format!("/v1/caches/{}/keys/{key}", self.cache);
        match self.exchange(method, &target, body) {
            Ok((200, value)) => Told::Answer(Answer::Value { value, version: None }),
            Ok((404, _)) => Told::Answer(Answer::Absent),
            Ok((201 | 204, _)) => Told::Answer(match operation {
                Operation::Delete => Answer::Deleted,
                _ => Answer::Stored { version: None },
            }),
            Ok((status, text)) => {
                failed(operation, format!("status {status}: {}", String::from_utf8_lossy(&text)))
            }
            Err(error) => {
                self.link = None;
                self.at += 1;
                failed(operation, format!("connection lost: {error}"))
            }
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        let timeout = self.patience.get();
        if self.link.is_none() {
            let Some((at, door)) = self.doors.open_from(self.at) else {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            };
            self.at = at;
            let stream = TcpStream::connect_timeout(&door.address, CONNECT_MAX)?;
            stream.set_nodelay(true)?;
            self.link = Some((BufReader::new(stream), Duration::ZERO));
        }
        if let Some((stream, set)) = &mut self.link
            && *set != timeout
        {
            stream.get_ref().set_read_timeout(Some(timeout))?;
            stream.get_ref().set_write_timeout(Some(timeout))?;
            *set = timeout;
        }
        Ok(())
    }

    fn exchange(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let Some((stream, _)) = &mut self.link else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        exchange(stream, method, target, body)
    }
}

/// One request on a connection that stays open, and its answer.
pub(crate) fn exchange(
    stream: &mut BufReader<TcpStream>,
    method: &str,
    target: &str,
    body: &[u8],
) -> io::Result<(u16, Vec<u8>)> {
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nhost: kiln\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    stream.get_mut().write_all(&request)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let first = line(stream)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u16 = status.ok_or_else(invalid)?;
    let mut len = 0;
    for _ in 0..HEADERS_MAX {
        let header = line(stream)?.to_ascii_lowercase();
        if header.is_empty() {
            if len > BODY_MAX {
                return Err(invalid());
            }
            let mut body = vec![0; len];
            stream.read_exact(&mut body)?;
            return Ok((status, body));
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            len = value.trim().parse().map_err(|_| invalid())?;
        }
    }
    Err(invalid())
}

/// A status above 500 does not say of a write whether it happened.
fn failed(operation: &Operation, what: String) -> Told {
    match operation {
        Operation::Get => Told::NotApplied(what),
        _ => Told::Unknown(what),
    }
}

/// A line that ends as those of HTTP, without its end.
fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.take(LINE_MAX).read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.len() - 2);
    Ok(line)
}

const HEADERS_MAX: usize = 64;
const LINE_MAX: u64 = 16 * 1024;
const BODY_MAX: usize = 4 * 1024 * 1024;
