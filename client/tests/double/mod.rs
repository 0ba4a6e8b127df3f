//! A node for tests of the client: it answers as a node does, and fails as it is told to.
//!
//! It speaks the real protocol over real sockets and keeps items in a map. A script decides what
//! becomes of each request, so that faults which a real node has once in a month happen at once
//! and every time.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kiln_client::{Builder, Client};
use kiln_protocol::{
    Parsed,
    command::{Command, Direction, ItemMeta, Outcome, StoreMode},
    native::{
        Body, CacheRef, Effect, Entry, ErrorCode, Failure, Frames, HitHead, INVALIDATION_SLOTS,
        Item, Old, Request, Value,
        admin::{
            CacheInfo, CacheList, CacheSpec, CacheView, GroupView, Limits, NodeInfo, NodeView,
            Opened, TopologyView, Welcome, capability,
        },
        compress, end_frame, inflate, respond,
    },
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use xxhash_rust::xxh3::xxh3_64;

/// Longest wait for anything that should happen at once. Generous: test machines are busy.
pub const SOON: Duration = Duration::from_secs(20);

/// What the script is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of the connection, counted from 0.
    pub connection: usize,
    /// What kind of request, in lower case: `get`, `set`, `batch`, `hello`, ….
    pub what: &'static str,
    /// The key, of a request for one item.
    pub key: String,
    /// The number by which a retried write is known.
    pub retry: Option<u64>,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// It is done and answered.
    Answer,
    /// It is done, and answered when [`Double::release`] is called.
    Hold,
    /// It is done, and never answered.
    Swallow,
    /// It is not done; the answer is an error.
    Fail(ErrorCode, Effect),
    /// Of a batch nothing is done; the answer to each item is an error.
    FailItems(ErrorCode),
    /// It is done, and the connection ends without an answer.
    Close,
    /// It is done, and these bytes are sent in place of an answer.
    Send(Vec<u8>),
}

type Script = Box<dyn FnMut(&Seen) -> Act + Send>;

#[derive(Clone, Debug)]
struct Stored {
    value: Vec<u8>,
    flags: u32,
    version: u64,
    ttl_ms: Option<u64>,
}

struct Shared {
    address: SocketAddr,
    name: String,
    caches: Mutex<BTreeMap<String, BTreeMap<Vec<u8>, Stored>>>,
    version: AtomicU64,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    reads: AtomicUsize,
    connections: Mutex<HashMap<usize, Peer>>,
    connected: AtomicUsize,
    held: Mutex<Vec<(usize, Vec<u8>)>>,
    welcome: Mutex<Welcome>,
    topology: Mutex<TopologyView>,
    changed: Notify,
}

struct Peer {
    out: mpsc::UnboundedSender<Vec<u8>>,
    /// Slots that were read, by cache.
    tracked: HashMap<String, BTreeSet<u32>>,
    handles: Vec<String>,
    ends: Arc<Notify>,
}

/// A running double. It ends when dropped.
pub struct Double {
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Double {
    /// A node that is a cluster of its own and answers everything.
    pub async fn start() -> Self {
        Self::start_named("double").await
    }

    pub async fn start_named(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            address,
            name: name.to_owned(),
            caches: Mutex::new(BTreeMap::from([("default".to_owned(), BTreeMap::new())])),
            version: AtomicU64::new(0),
            script: Mutex::new(Box::new(|_| Act::Answer)),
            seen: Mutex::default(),
            reads: AtomicUsize::new(0),
            connections: Mutex::default(),
            connected: AtomicUsize::new(0),
            held: Mutex::default(),
            welcome: Mutex::new(welcome(name)),
            topology: Mutex::new(topology(1, &[(name, address)], |_| vec![0])),
            changed: Notify::new(),
        });
        let mut double = Self { shared, listener: None };
        double.listen(listener);
        double
    }

    fn listen(&mut self, listener: TcpListener) {
        let shared = self.shared.clone();
        self.listener = Some(tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let number = shared.connected.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(shared.clone(), number, stream));
            }
        }));
    }

    /// Where it listens.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Settings of a client of this node: one connection, short delays.
    pub fn builder(&self) -> Builder {
        Client::builder()
            .address(format!("kiln://{}", self.host()).parse().unwrap())
            .connections_per_node(1)
            .timeout(SOON)
    }

    /// A client of this node.
    pub async fn client(&self) -> Client {
        self.builder().connect().await.unwrap()
    }

    /// From now on this decides what becomes of requests. Hello is not asked about.
    pub fn script(&self, script: impl FnMut(&Seen) -> Act + Send + 'static) {
        *self.shared.script.lock() = Box::new(script);
    }

    /// From now on everything is answered.
    pub fn answer_all(&self) {
        self.script(|_| Act::Answer);
    }

    /// Sends the answers that were held, in their order or the other way round.
    pub fn release(&self, reversed: bool) {
        let mut held = std::mem::take(&mut *self.shared.held.lock());
        if reversed {
            held.reverse();
        }
        let connections = self.shared.connections.lock();
        for (connection, bytes) in held {
            if let Some(peer) = connections.get(&connection) {
                let _ = peer.out.send(bytes);
            }
        }
    }

    /// Sends these bytes to all connections.
    pub fn push(&self, bytes: &[u8]) {
        for peer in self.shared.connections.lock().values() {
            let _ = peer.out.send(bytes.to_vec());
        }
    }

    /// Ends all connections.
    pub fn disconnect(&self) {
        for peer in self.shared.connections.lock().values() {
            peer.ends.notify_one();
        }
    }

    /// Ends all connections and takes no new ones.
    pub fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        self.disconnect();
    }

    /// Takes connections again, at the same address.
    pub async fn restart(&mut self) {
        let listener = loop {
            // The port may still be held by the listener that was just ended.
            match TcpListener::bind(self.shared.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        self.listen(listener);
    }

    /// Requests so far, hello and topology left out.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// Requests of this kind so far.
    pub fn count(&self, what: &str) -> usize {
        self.shared.seen.lock().iter().filter(|seen| seen.what == what).count()
    }

    /// Waits until something holds of the requests so far.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(SOON, wait).await.is_err() {
            panic!("in vain: {what}; seen {:?}", self.seen());
        }
    }

    /// Reads that brought something, on all connections.
    pub fn reads(&self) -> usize {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// Connections now.
    pub fn open(&self) -> usize {
        self.shared.connections.lock().len()
    }

    /// Connections so far.
    pub fn connected(&self) -> usize {
        self.shared.connected.load(Ordering::Relaxed)
    }

    pub fn change_welcome(&self, change: impl FnOnce(&mut Welcome)) {
        change(&mut self.shared.welcome.lock());
    }

    pub fn set_topology(&self, topology: TopologyView) {
        *self.shared.topology.lock() = topology;
    }

    /// Writes an item by the back door: nobody is told.
    pub fn put(&self, cache: &str, key: &str, value: &str) {
        self.shared.put(cache, key.as_bytes(), value.as_bytes().to_vec(), 0, None);
    }

    /// The value of an item, whatever the script says.
    pub fn value(&self, cache: &str, key: &str) -> Option<String> {
        let caches = self.shared.caches.lock();
        let stored = caches.get(cache)?.get(key.as_bytes())?;
        Some(String::from_utf8(stored.value.clone()).unwrap())
    }

    /// As if another client had written the key.
    pub fn written_by_another(&self, cache: &str, key: &str, value: &str) {
        self.put(cache, key, value);
        self.shared.invalidate(cache, key.as_bytes());
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.stop();
    }
}

fn welcome(name: &str) -> Welcome {
    Welcome {
        version: 1,
        server: "double/1".to_owned(),
        node: name.to_owned(),
        node_id: xxh3_64(name.as_bytes()),
        incarnation: 1,
        cluster_id: "doubles".to_owned(),
        hash_id: 1,
        capabilities: [capability::LZ4, capability::INVALIDATION].map(str::to_owned).to_vec(),
        limits: Limits {
            frame_max: 2 << 20,
            key_max: 1000,
            value_max: 1 << 20,
            batch_max: 100,
            scan_max: 10,
            handles_max: 4,
            compress_min: 1024,
        },
    }
}

/// A topology of these nodes; `owners` says which of them own a partition.
pub fn topology(
    epoch: u64,
    nodes: &[(&str, SocketAddr)],
    owners: fn(u32) -> Vec<u32>,
) -> TopologyView {
    let partitions = 64;
    TopologyView {
        epoch,
        cluster_id: "doubles".to_owned(),
        hash_id: 1,
        partitions,
        nodes: nodes
            .iter()
            .map(|(name, address)| NodeView {
                id: xxh3_64(name.as_bytes()),
                name: (*name).to_owned(),
                state: "ready".to_owned(),
                native: address.to_string(),
                ..NodeView::default()
            })
            .collect(),
        groups: vec![GroupView {
            mode: "strong".to_owned(),
            copies: 1,
            owners: (0..partitions).map(owners).collect(),
        }],
        caches: vec![CacheView { name: "default".to_owned(), group: 0, read: "any".to_owned() }],
    }
}

/// The partition of a key, in [`topology`].
pub fn partition(key: &str) -> u32 {
    (xxh3_64(key.as_bytes()) % 64) as u32
}

fn slot(key: &[u8]) -> u32 {
    (xxh3_64(key) % u64::from(INVALIDATION_SLOTS)) as u32
}

async fn serve(shared: Arc<Shared>, number: usize, stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let (out, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
    let ends = Arc::new(Notify::new());
    let peer = Peer {
        out: out.clone(),
        tracked: HashMap::new(),
        handles: vec!["default".to_owned()],
        ends: ends.clone(),
    };
    shared.connections.lock().insert(number, peer);
    let write = async {
        while let Some(bytes) = outgoing.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let frames = Frames { body_len_max: 4 << 20 };
        let mut buffer = Vec::new();
        loop {
            match reader.read_buf(&mut buffer).await {
                Ok(1..) => shared.reads.fetch_add(1, Ordering::Relaxed),
                _ => return,
            };
            while let Ok(Parsed::Complete { message, consumed }) = frames.next(&buffer) {
                let goes_on = shared.handle(number, message);
                buffer.drain(..consumed);
                shared.changed.notify_waiters();
                if !goes_on {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
        () = ends.notified() => {}
    }
    shared.connections.lock().remove(&number);
    shared.changed.notify_waiters();
}

impl Shared {
    /// Handles a request. `false` ends the connection.
    fn handle(&self, number: usize, body: &[u8]) -> bool {
        let request = match Request::decode(body) {
            Ok(request) => request,
            Err(refused) => panic!("the client sent what cannot be read: {refused:?}"),
        };
        let mut seen = Seen { connection: number, what: "", key: String::new(), retry: None };
        seen.what = match &request.body {
            Body::Hello(_) => "hello",
            Body::Data(data) => {
                seen.key = String::from_utf8_lossy(data.item.command.key()).into_owned();
                seen.retry = data.item.want.retry;
                match &data.item.command {
                    Command::Get(_) => "get",
                    Command::Store(_) => "set",
                    Command::Delete(_) => "delete",
                    Command::Arithmetic(_) => "count",
                    Command::Touch(_) => "touch",
                }
            }
            Body::Batch { .. } => "batch",
            Body::Scan(_) => "scan",
            Body::Flush { .. } => "flush",
            Body::Ping => "ping",
            Body::OpenCache { .. } => "open",
            Body::Topology => "topology",
            Body::Subscribe(_) => "subscribe",
            _ => "admin",
        };
        let act = match seen.what {
            "hello" => Act::Answer,
            _ => (self.script.lock())(&seen),
        };
        if !matches!(seen.what, "hello" | "topology") {
            self.seen.lock().push(seen);
        }
        let mut out = Vec::new();
        if let Act::Fail(code, effect) = &act {
            let failure =
                Failure { code: *code, text: "as told", effect: *effect, retry_after_ms: None };
            respond::failure(&mut out, request.id, &failure);
        } else if let (Act::FailItems(code), Body::Batch { items, .. }) = (&act, &request.body) {
            let start = respond::begin_batch(&mut out, request.id, items.len());
            for _ in 0..items.len() {
                respond::element::failure(&mut out, &Failure::refused(*code, "as told"));
            }
            end_frame(&mut out, start);
        } else {
            self.answer(number, &request, &mut out);
        }
        match act {
            Act::Answer | Act::Fail(..) | Act::FailItems(_) => self.send(number, out),
            Act::Hold => self.held.lock().push((number, out)),
            Act::Swallow => {}
            Act::Close => return false,
            Act::Send(bytes) => self.send(number, bytes),
        }
        true
    }

    fn send(&self, number: usize, bytes: Vec<u8>) {
        if let Some(peer) = self.connections.lock().get(&number) {
            let _ = peer.out.send(bytes);
        }
    }

    fn answer(&self, number: usize, request: &Request<'_>, out: &mut Vec<u8>) {
        let id = request.id;
        match &request.body {
            Body::Hello(hello) => {
                let mut welcome = self.welcome.lock().clone();
                welcome.capabilities.retain(|known| hello.capabilities.contains(known));
                respond::structure(out, id, &welcome);
            }
            Body::Data(data) => match self.cache(number, data.cache) {
                Some(cache) => self.item(number, &cache, &data.item, |reply| reply.frame(out, id)),
                None => no_such_cache(out, id),
            },
            Body::Batch { cache, items } => match self.cache(number, *cache) {
                Some(cache) => {
                    let start = respond::begin_batch(out, id, items.len());
                    for item in *items {
                        self.item(number, &cache, &item, |reply| reply.element(out));
                    }
                    end_frame(out, start);
                }
                None => no_such_cache(out, id),
            },
            Body::Scan(scan) => match self.cache(number, scan.cache) {
                Some(cache) => {
                    let caches = self.caches.lock();
                    let from = scan.cursor.unwrap_or_default();
                    let mut left = caches[&cache]
                        .iter()
                        .filter(|(key, _)| key.as_slice() > from && key.starts_with(scan.prefix));
                    let page: Vec<_> = left.by_ref().take(scan.limit as usize).collect();
                    let more = left.next().is_some();
                    let cursor = page.last().map(|(key, _)| key.as_slice()).filter(|_| more);
                    let entries = page.iter().map(|(key, stored)| Entry {
                        key,
                        version: stored.version,
                        flags: stored.flags,
                        ttl_ms: stored.ttl_ms,
                        value_len: stored.value.len() as u64,
                        value: scan.values.then_some(Value::Plain(&stored.value)),
                    });
                    respond::page(out, id, cursor, entries);
                }
                None => no_such_cache(out, id),
            },
            Body::Flush { cache } => match self.cache(number, *cache) {
                Some(cache) => {
                    self.caches.lock().get_mut(&cache).unwrap().clear();
                    respond::ok(out, id);
                }
                None => no_such_cache(out, id),
            },
            Body::Ping => respond::ok(out, id),
            Body::OpenCache { name } => {
                if !self.caches.lock().contains_key(*name) {
                    return no_such_cache(out, id);
                }
                let mut connections = self.connections.lock();
                let handles = &mut connections.get_mut(&number).unwrap().handles;
                if handles.len() as u64 >= self.welcome.lock().limits.handles_max {
                    let failure = Failure::refused(ErrorCode::LimitReached, "no more handles");
                    return respond::failure(out, id, &failure);
                }
                handles.push((*name).to_owned());
                let handle = handles.len() as u32 - 1;
                respond::structure(out, id, &Opened { handle, spec: CacheSpec::default() });
            }
            Body::CreateCache(spec) => {
                self.caches.lock().entry(spec.name.clone()).or_default();
                respond::ok(out, id);
            }
            Body::DropCache { name } => {
                let gone = self.caches.lock().remove(*name).is_some();
                for peer in self.connections.lock().values_mut() {
                    for handle in peer.handles.iter_mut().filter(|handle| handle == name) {
                        // A handle of a dropped cache is no handle of a later one.
                        "(dropped)".clone_into(handle);
                    }
                }
                if gone { respond::ok(out, id) } else { no_such_cache(out, id) }
            }
            Body::ListCaches => {
                let caches = self.caches.lock();
                let infos = caches.iter().map(|(name, items)| info(name, items.len()));
                respond::structure(out, id, &CacheList { caches: infos.collect() });
            }
            Body::ShowCache { name } => match self.caches.lock().get(*name) {
                Some(items) => respond::structure(out, id, &info(name, items.len())),
                None => no_such_cache(out, id),
            },
            Body::Topology => respond::structure(out, id, &*self.topology.lock()),
            Body::Subscribe(_) => {
                respond::ok(out, id);
                respond::topology(out, &self.topology.lock());
            }
            Body::Info => {
                let info = NodeInfo { name: self.name.clone(), ..NodeInfo::default() };
                respond::structure(out, id, &info);
            }
            Body::ClusterStatus
            | Body::ChangeCluster(_)
            | Body::Digests(_)
            | Body::Ingest(_)
            | Body::Latest(_)
            | Body::Windows(_)
            | Body::Follow(_)
            | Body::Unknown { .. } => {
                let failure = Failure::refused(ErrorCode::UnknownOperation, "unknown");
                respond::failure(out, id, &failure);
            }
        }
    }

    fn cache(&self, number: usize, cache: CacheRef<'_>) -> Option<String> {
        let name = match cache {
            CacheRef::Name(name) => name.to_owned(),
            CacheRef::Handle(handle) => {
                self.connections.lock().get(&number)?.handles.get(handle as usize)?.clone()
            }
        };
        self.caches.lock().contains_key(&name).then_some(name)
    }

    fn put(&self, cache: &str, key: &[u8], value: Vec<u8>, flags: u32, ttl: Option<u64>) -> u64 {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let stored = Stored { value, flags, version, ttl_ms: ttl };
        let mut caches = self.caches.lock();
        caches.entry(cache.to_owned()).or_default().insert(key.to_vec(), stored);
        version
    }

    /// A key was written: those who have read it are told, once.
    fn invalidate(&self, cache: &str, key: &[u8]) {
        let slot = slot(key);
        for peer in self.connections.lock().values_mut() {
            if peer.tracked.get_mut(cache).is_some_and(|slots| slots.remove(&slot)) {
                let handle = peer.handles.iter().position(|name| name == cache).unwrap();
                let mut push = Vec::new();
                respond::invalidate(&mut push, handle as u32, Some(&[slot]));
                let _ = peer.out.send(push);
            }
        }
    }

    fn item(&self, number: usize, cache: &str, item: &Item<'_>, answer: impl FnOnce(Reply<'_>)) {
        let key = item.command.key();
        if item.want.track {
            let mut connections = self.connections.lock();
            let peer = connections.get_mut(&number).unwrap();
            peer.tracked.entry(cache.to_owned()).or_default().insert(slot(key));
        }
        let present = self.caches.lock()[cache].get(key).cloned();
        let old = present.as_ref().filter(|_| item.want.return_old).map(|stored| Old {
            version: stored.version,
            flags: stored.flags,
            value: Value::Plain(&stored.value),
        });
        let meta = |stored: &Stored| ItemMeta {
            value_len: stored.value.len(),
            flags: stored.flags,
            version: stored.version,
            ttl_ms: stored.ttl_ms,
            ..ItemMeta::default()
        };
        let mut scratch = Vec::new();
        let compare = match &item.command {
            Command::Store(store) => store.compare,
            Command::Delete(delete) => delete.compare,
            Command::Arithmetic(arithmetic) => arithmetic.compare,
            Command::Get(_) | Command::Touch(_) => None,
        };
        let outcome = match (&item.command, &present, compare) {
            (_, None, Some(_)) => Outcome::NotFound,
            (_, Some(stored), Some(version)) if stored.version != version => Outcome::Exists,
            (Command::Get(_), Some(stored), _) if item.want.no_value => Outcome::Hit(meta(stored)),
            (Command::Get(_), Some(stored), _) => {
                let compressible = stored.value.len() >= 1024;
                let compressed =
                    if compressible { compress(&stored.value, &mut scratch) } else { None };
                let value = compressed.unwrap_or(Value::Plain(&stored.value));
                return answer(Reply::Hit(meta(stored), value));
            }
            (Command::Store(store), present, _) => {
                let mut value = Vec::new();
                match item.want.inflated_len {
                    Some(len) => inflate(store.value, len as usize, 1 << 20, &mut value).unwrap(),
                    None => value.extend_from_slice(store.value),
                }
                let stored = match (store.mode, present) {
                    (StoreMode::Set, _)
                    | (StoreMode::Add, None)
                    | (StoreMode::Replace, Some(_)) => Some(value),
                    (StoreMode::Append, Some(present)) => {
                        Some([present.value.clone(), value].concat())
                    }
                    (StoreMode::Prepend, Some(present)) => {
                        Some([value, present.value.clone()].concat())
                    }
                    _ => None,
                };
                match stored {
                    Some(value) => {
                        let ttl = match store.ttl {
                            kiln_protocol::command::Ttl::After(ms) => Some(ms),
                            _ => None,
                        };
                        let version = self.put(cache, key, value, store.flags, ttl);
                        self.invalidate(cache, key);
                        Outcome::Stored(ItemMeta { version, ..ItemMeta::default() })
                    }
                    None => Outcome::NotStored,
                }
            }
            (Command::Delete(_), Some(_), _) => {
                self.caches.lock().get_mut(cache).unwrap().remove(key);
                self.invalidate(cache, key);
                Outcome::Deleted
            }
            (Command::Arithmetic(arithmetic), present, _) => {
                let number = match (present, arithmetic.create) {
                    (Some(stored), _) => {
                        let number: u64 =
                            std::str::from_utf8(&stored.value).unwrap().parse().unwrap();
                        Some(match arithmetic.direction {
                            Direction::Increment => number.wrapping_add(arithmetic.delta),
                            Direction::Decrement => number.saturating_sub(arithmetic.delta),
                        })
                    }
                    (None, Some((_, initial))) => Some(initial),
                    (None, None) => None,
                };
                match number {
                    Some(number) => {
                        let value = number.to_string().into_bytes();
                        let version = self.put(cache, key, value, 0, None);
                        self.invalidate(cache, key);
                        Outcome::Number(number, ItemMeta { version, ..ItemMeta::default() })
                    }
                    None => Outcome::NotFound,
                }
            }
            (Command::Touch(_), Some(stored), _) => Outcome::Touched(meta(stored)),
            (_, None, _) => Outcome::NotFound,
        };
        answer(Reply::Outcome(outcome, old));
    }
}

#[allow(clippy::large_enum_variant)]
enum Reply<'a> {
    Hit(ItemMeta, Value<'a>),
    Outcome(Outcome, Option<Old<'a>>),
}

impl Reply<'_> {
    fn frame(&self, out: &mut Vec<u8>, id: u32) {
        match self {
            Self::Hit(item, Value::Plain(bytes)) => {
                respond::hit_head(out, id, HitHead { item, with_value: true });
                out.extend_from_slice(bytes);
            }
            Self::Hit(item, value) => respond::compressed_hit(out, id, item, *value),
            Self::Outcome(outcome, old) => respond::outcome(out, id, outcome, *old),
        }
    }

    fn element(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hit(item, Value::Plain(bytes)) => {
                respond::element::hit_head(out, HitHead { item, with_value: true });
                out.extend_from_slice(bytes);
            }
            Self::Hit(item, value) => respond::element::compressed_hit(out, item, *value),
            Self::Outcome(outcome, old) => respond::element::outcome(out, outcome, *old),
        }
    }
}

fn no_such_cache(out: &mut Vec<u8>, id: u32) {
    respond::failure(out, id, &Failure::refused(ErrorCode::NoSuchCache, "no such cache"));
}

fn info(name: &str, items: usize) -> CacheInfo {
    let spec = CacheSpec { name: name.to_owned(), ..CacheSpec::default() };
    CacheInfo { spec, items: items as u64, ..CacheInfo::default() }
}
