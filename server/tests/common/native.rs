//! A native client for tests: frames by the codec, nothing hidden.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use kiln_protocol::{
    Parsed,
    command::{Command, Delete, Get, Store, StoreMode, Ttl},
    native::{
        CacheRef, Data, ErrorCode, Frames, Item, Op, Response, Scan, Want, admin,
        admin::{CacheSpec, Hello, Opened, Welcome},
        encode,
    },
};

use super::{Node, SOON};

/// A frame that came from the node.
#[derive(Debug)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// What it says.
    pub fn response(&self) -> Response<'_> {
        Response::decode(&self.0).unwrap().1
    }

    /// The request that it answers.
    pub fn id(&self) -> u32 {
        Response::decode(&self.0).unwrap().0
    }

    /// The structure of an ok.
    pub fn structure<T: serde::de::DeserializeOwned>(&self) -> T {
        match self.response() {
            Response::Ok(bytes) => admin::get(bytes).unwrap(),
            other => panic!("no structure: {other:?}"),
        }
    }

    /// The bytes of a hit's plain value.
    pub fn value(&self) -> &[u8] {
        match self.response() {
            Response::Value { value: Some(kiln_protocol::native::Value::Plain(bytes)), .. } => {
                bytes
            }
            other => panic!("no value: {other:?}"),
        }
    }

    /// The version of whatever has one.
    pub fn version(&self) -> u64 {
        match self.response() {
            Response::Value { version, .. }
            | Response::Stored { version, .. }
            | Response::Touched { version }
            | Response::Number { version, .. } => version,
            other => panic!("no version: {other:?}"),
        }
    }

    /// The code of an error, by name.
    pub fn error(&self) -> &'static str {
        match self.response() {
            Response::Error(failure) => failure.code.name(),
            other => panic!("no error: {other:?}"),
        }
    }
}

/// A native connection.
pub struct Native {
    pub stream: TcpStream,
    unread: Vec<u8>,
    last_id: u32,
}

/// A hello without credentials, with these capabilities.
pub fn hello(capabilities: &[&str]) -> Hello {
    Hello {
        magic: "kiln".to_owned(),
        version_min: 1,
        version_max: 1,
        client: "test/1".to_owned(),
        capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
        ..Hello::default()
    }
}

impl Native {
    /// A connection that has said nothing.
    pub fn silent(node: &Node) -> Self {
        Self::silent_at(node.address("native"))
    }

    /// The same, by address: nodes cannot be shared between threads.
    pub fn silent_at(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new(), last_id: 0 }
    }

    /// A connection after a hello with all capabilities but compression.
    pub fn connect(node: &Node) -> Self {
        Self::connect_at(node.address("native"))
    }

    /// The same, by address.
    pub fn connect_at(address: SocketAddr) -> Self {
        let mut client = Self::silent_at(address);
        client.hello(&hello(&["invalidation", "topology"]));
        client
    }

    /// Says hello.
    pub fn hello(&mut self, hello: &Hello) -> Welcome {
        self.call(|out, id| encode::hello(out, id, hello)).structure()
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// A new id.
    pub fn id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// The next frame; `None` when the node closed the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        let frames = Frames { body_len_max: 256 << 20 };
        loop {
            if let Parsed::Complete { message, consumed } = frames.next(&self.unread).unwrap() {
                let frame = Frame(message.to_vec());
                self.unread.drain(..consumed);
                return Some(frame);
            }
            let mut piece = vec![0; 64 * 1024];
            let len = match self.stream.read(&mut piece) {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
                result => result.unwrap(),
            };
            if len == 0 {
                assert!(self.unread.is_empty(), "half a frame at the end");
                return None;
            }
            self.unread.extend_from_slice(&piece[..len]);
        }
    }

    /// A frame that comes within this time.
    pub fn receive_within(&mut self, time: Duration) -> Option<Frame> {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut piece = vec![0; 64 * 1024];
        let frames = Frames { body_len_max: 256 << 20 };
        while !matches!(frames.next(&self.unread).unwrap(), Parsed::Complete { .. }) {
            match self.stream.read(&mut piece) {
                Ok(len) if len > 0 => self.unread.extend_from_slice(&piece[..len]),
                _ => break,
            }
        }
        self.stream.set_read_timeout(Some(SOON)).unwrap();
        let complete = matches!(frames.next(&self.unread).unwrap(), Parsed::Complete { .. });
        if complete { self.receive() } else { None }
    }

    /// Sends one request and returns the next frame, which must be its answer.
    pub fn call(&mut self, encode: impl FnOnce(&mut Vec<u8>, u32)) -> Frame {
        let id = self.id();
        let mut out = Vec::new();
        encode(&mut out, id);
        self.send(&out);
        let frame = self.receive().expect("an answer");
        assert_eq!(frame.id(), id, "{:?}", frame.response());
        frame
    }

    /// The same, when pushes may come before the answer: these and the answer.
    pub fn call_and_pushes(
        &mut self,
        encode: impl FnOnce(&mut Vec<u8>, u32),
    ) -> (Vec<Frame>, Frame) {
        let id = self.id();
        let mut out = Vec::new();
        encode(&mut out, id);
        self.send(&out);
        let mut pushes = Vec::new();
        loop {
            let frame = self.receive().expect("an answer");
            if frame.id() == id {
                return (pushes, frame);
            }
            assert_eq!(frame.id(), 0);
            pushes.push(frame);
        }
    }

    /// One operation on the cache `default`.
    pub fn run(&mut self, command: Command<'_>) -> Frame {
        self.run_in(0, command, Want::default())
    }

    /// One operation on a cache by handle.
    pub fn run_in(&mut self, handle: u32, command: Command<'_>, want: Want) -> Frame {
        self.call(|out, id| encode::data(out, id, &data(handle, command, want)))
    }

    /// A plain set.
    pub fn set(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Frame {
        self.run(set(key.as_ref(), value.as_ref()))
    }

    /// A plain get.
    pub fn get(&mut self, key: impl AsRef<[u8]>) -> Frame {
        self.run(get(key.as_ref()))
    }

    /// A plain delete.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> Frame {
        self.run(Command::Delete(Delete::plain(key.as_ref())))
    }

    /// One of the operations without arguments.
    pub fn bare(&mut self, op: Op) -> Frame {
        self.call(|out, id| encode::bare(out, id, op))
    }

    /// One of the operations on a cache by name.
    pub fn named(&mut self, op: Op, name: &str) -> Frame {
        self.call(|out, id| encode::named(out, id, op, name))
    }

    /// A new cache; asks again while others still give their memory for it.
    pub fn create(&mut self, spec: &CacheSpec) -> Frame {
        let end = Instant::now() + SOON;
        loop {
            let answer = self.call(|out, id| encode::create_cache(out, id, spec));
            let is_busy = matches!(
                answer.response(),
                Response::Error(failure) if failure.code == ErrorCode::Busy
            );
            if !is_busy || Instant::now() > end {
                return answer;
            }
        }
    }

    /// A handle for a cache.
    pub fn open(&mut self, name: &str) -> u32 {
        self.named(Op::OpenCache, name).structure::<Opened>().handle
    }

    /// All keys of a cache, with their values where the scan has them.
    pub fn scan_all(&mut self, handle: u32, limit: u32, prefix: &[u8]) -> Vec<Scanned> {
        let mut found = Vec::new();
        let mut cursor: Option<Vec<u8>> = None;
        loop {
            let cache = CacheRef::Handle(handle);
            let scan = Scan { cache, cursor: cursor.as_deref(), limit, prefix, values: true };
            let frame = self.call(|out, id| encode::scan(out, id, &scan));
            let Response::Page { cursor: next, entries } = frame.response() else {
                panic!("no page: {:?}", frame.response())
            };
            found.extend(entries.map(|entry| Scanned {
                key: entry.key.to_vec(),
                value_len: entry.value_len,
                value: entry.value.map(|value| match value {
                    kiln_protocol::native::Value::Plain(bytes) => bytes.to_vec(),
                    other => panic!("compressed: {other:?}"),
                }),
            }));
            match next {
                Some(next) => cursor = Some(next.to_vec()),
                None => return found,
            }
        }
    }

    /// Waits until the node has closed the connection; nothing else may come.
    pub fn assert_closed(&mut self) {
        let frame = self.receive();
        assert!(frame.is_none(), "{:?}", frame.unwrap().response());
    }
}

/// An item that a scan told.
#[derive(Debug)]
pub struct Scanned {
    pub key: Vec<u8>,
    pub value_len: u64,
    pub value: Option<Vec<u8>>,
}

/// A plain set.
pub fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command::Store(Store { ttl: Ttl::Default, ..Store::set(key, value) })
}

/// A write of some mode.
pub fn store<'a>(mode: StoreMode, key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command::Store(Store { mode, ttl: Ttl::Default, ..Store::set(key, value) })
}

/// A plain get.
pub fn get(key: &[u8]) -> Command<'_> {
    Command::Get(Get::plain(key))
}

/// An operation on one item.
pub fn data(handle: u32, command: Command<'_>, want: Want) -> Data<'_> {
    Data { cache: CacheRef::Handle(handle), item: Item { command, want } }
}

/// Settings of a cache of this name.
pub fn spec(name: &str) -> CacheSpec {
    CacheSpec { name: name.to_owned(), ..CacheSpec::default() }
}
