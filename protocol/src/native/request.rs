//! What a client asks.
//!
//! Operations on items are `[op, id, cache, key, argument…, options?]`. Options are a map from
//! small numbers, so that a new one never moves an old one, and a node that does not know it goes
//! past it. Reading one allocates nothing and costs little more than its bytes.

pub mod encode;

use super::admin;
use super::error::ErrorCode;
use super::list::{Element, List};
use super::numbered::numbered;
use super::streams;
use super::value::Value;
use super::wire::{Malformed, Reader, malformed, wrong};
use super::{CURSOR_LEN_MAX, KEY_LEN_MAX};
use crate::command::{Arithmetic, Command, Delete, Direction, Get, Store, StoreMode, Touch, Ttl};

numbered! {
    /// The operations.
    Op;

    /// First on every connection: versions, credentials, capabilities.
    Hello = 0;
    /// Read an item.
    Get = 1;
    /// Write, whether or not the key exists.
    Set = 2;
    /// Write if the key is absent.
    Add = 3;
    /// Write if the key is present.
    Replace = 4;
    /// Write behind the present value.
    Append = 5;
    /// Write before the present value.
    Prepend = 6;
    /// Remove an item.
    Delete = 7;
    /// Add to a number, wrapping at 2^64.
    Increment = 8;
    /// Subtract from a number, stopping at 0.
    Decrement = 9;
    /// Give an item a new end.
    Touch = 10;
    /// Operations on many items of one cache.
    Batch = 20;
    /// Walk through a cache in steps.
    Scan = 21;
    /// Empty a cache.
    Flush = 22;
    /// Does nothing: shows that the other side lives and has handled everything before.
    Ping = 30;
    /// Give a cache a handle on this connection.
    OpenCache = 31;
    /// Make a cache.
    CreateCache = 32;
    /// Remove a cache and all its items.
    DropCache = 33;
    /// All caches with their settings and figures.
    ListCaches = 34;
    /// One cache with its settings and figures.
    ShowCache = 35;
    /// Who owns which partition.
    Topology = 36;
    /// Ask for pushes.
    Subscribe = 37;
    /// Figures of the node.
    Info = 38;
    /// Sensor readings.
    Ingest = 40;
    /// The latest reading of a sensor.
    Latest = 41;
    /// Results of a sensor's windows.
    Windows = 42;
    /// Ask for results as they come.
    Follow = 43;
    /// How the cluster is.
    ClusterStatus = 50;
    /// Drain, remove or weigh a node, acknowledge losses.
    ChangeCluster = 51;
    /// Digests of the node's own copies.
    Digests = 52;
}

impl Op {
    /// Whether it is about one item, and so may stand in a batch.
    #[inline]
    pub const fn is_on_item(self) -> bool {
        matches!(self.number(), 1..=10)
    }
}

/// Which cache a request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheRef<'a> {
    /// By the handle that `open-cache` gave on this connection; 0 is the cache `default`.
    Handle(u32),
    /// By name. Costs a lookup with each request.
    Name(&'a str),
}

/// What a request for an item wants beside its command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The value is one LZ4 block that inflates to so many bytes.
    pub inflated_len: Option<u32>,
    /// The answer to a write or delete carries the item that it replaced.
    pub return_old: bool,
    /// The answer to a read leaves the value out.
    pub no_value: bool,
    /// Push an invalidation when the key is written, once.
    pub track: bool,
    /// Number of this write, unique for the client of the hello: a retry repeats it, and is
    /// answered as the first was where the node announced `retry_window`.
    pub retry: Option<u64>,
    /// Milliseconds that the client is going to wait, from when the node reads the request.
    pub deadline_ms: Option<u64>,
}

/// An operation on one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// What is to be done. A compressed value is still so: see [`Want::inflated_len`].
    pub command: Command<'a>,
    /// What else is wanted.
    pub want: Want,
}

/// An operation on one item of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// The cache.
    pub cache: CacheRef<'a>,
    /// The operation.
    pub item: Item<'a>,
}

/// One step through a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// The cache.
    pub cache: CacheRef<'a>,
    /// Where the last step ended; `None` begins.
    pub cursor: Option<&'a [u8]>,
    /// Items wanted in this step, about.
    pub limit: u32,
    /// Only keys that begin so.
    pub prefix: &'a [u8],
    /// Values beside the keys.
    pub values: bool,
}

/// Who sends readings, so that none counts twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer<'a> {
    /// Chosen by the producer, the same for its whole life.
    pub id: &'a str,
    /// Rises when the producer starts anew.
    pub epoch: u64,
    /// The number of this batch within the epoch, rising from any start: a batch that is sent again
    /// has the same number and the same readings.
    pub sequence: u64,
}

/// Sensor readings for a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ingest<'a> {
    /// The stream.
    pub stream: &'a str,
    /// Who sends; `None` has at-least-once.
    pub producer: Option<Producer<'a>>,
    /// The readings.
    pub readings: Readings<'a>,
}

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    /// The sensor.
    pub sensor: &'a [u8],
    /// What it measured.
    pub value: f64,
    /// When, in milliseconds since 1970; `None` is on arrival.
    pub time_ms: Option<i64>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Body<'a> {
    /// The first request of a connection.
    Hello(Box<admin::Hello>),
    /// An operation on one item.
    Data(Data<'a>),
    /// Operations on many items.
    Batch {
        /// The cache of all of them.
        cache: CacheRef<'a>,
        /// The operations, checked.
        items: Items<'a>,
    },
    /// A step through a cache.
    Scan(Scan<'a>),
    /// Empty a cache.
    Flush {
        /// The cache.
        cache: CacheRef<'a>,
    },
    /// Nothing.
    Ping,
    /// A handle for a cache.
    OpenCache {
        /// Its name.
        name: &'a str,
    },
    /// A new cache.
    CreateCache(Box<admin::CacheSpec>),
    /// The end of a cache.
    DropCache {
        /// Its name.
        name: &'a str,
    },
    /// All caches.
    ListCaches,
    /// One cache.
    ShowCache {
        /// Its name.
        name: &'a str,
    },
    /// The partition table.
    Topology,
    /// Pushes.
    Subscribe(admin::Subscribe),
    /// Figures of the node.
    Info,
    /// Readings.
    Ingest(Ingest<'a>),
    /// The latest reading of a sensor.
    Latest(Box<streams::LatestQuery>),
    /// Results of a sensor's windows.
    Windows(Box<streams::WindowsQuery>),
    /// Results as they come.
    Follow(Box<streams::Follow>),
    /// How the cluster is.
    ClusterStatus,
    /// A change of the cluster.
    ChangeCluster(Box<admin::ClusterChange>),
    /// Digests of the node's own copies.
    Digests(Box<admin::DigestRequest>),
    /// An operation that this version does not know.
    Unknown {
        /// Its number.
        op: u64,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// Repeated in the answer; 0 wants none.
    pub id: u32,
    /// What is asked.
    pub body: Body<'a>,
}

/// A request that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refused {
    /// Its id, when the message is good up to there: then it can be answered, and the connection
    /// goes on. Without one the connection has to end.
    pub id: Option<u32>,
    /// Why.
    pub code: ErrorCode,
    /// What is wrong.
    pub what: &'static str,
}

impl<'a> Request<'a> {
    /// Reads the body of a frame.
    pub fn decode(body: &'a [u8]) -> Result<Self, Refused> {
        let mut reader = Reader::new(body);
        let head = |reader: &mut Reader<'a>| {
            let len = reader.array()?;
            if len < 2 {
                return malformed("a message has an operation and an id at least");
            }
            Ok((len - 2, reader.uint()?, reader.u32()?))
        };
        let (left, op, id) = head(&mut reader).map_err(|Malformed { code, what }| Refused {
            id: None,
            code,
            what,
        })?;
        let mut request = Self { id, body: Body::Ping };
        match request.body.read(op, left, &mut reader) {
            Ok(()) => Ok(request),
            Err(Malformed { code, what }) => Err(Refused { id: Some(id), code, what }),
        }
    }
}

impl<'a> Body<'a> {
    /// Reads `left` elements behind operation and id. In place, because moving what was read
    /// would cost more than reading it.
    #[inline]
    fn read(&mut self, op: u64, mut left: usize, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        match Op::from_number(op) {
            Some(op) if op.is_on_item() => {
                argument(&mut left)?;
                let cache = cache(reader)?;
                *self =
                    Self::Data(Data { cache, item: Item::read_operation(op, &mut left, reader)? });
            }
            Some(op) => *self = Self::read_rare(op, &mut left, reader)?,
            None => *self = Self::Unknown { op },
        }
        end_message(left, reader)
    }

    /// Reads the arguments of what is not done thousands of times a second.
    #[inline(never)]
    fn read_rare(op: Op, left: &mut usize, reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(match op {
            Op::Get
            | Op::Set
            | Op::Add
            | Op::Replace
            | Op::Append
            | Op::Prepend
            | Op::Delete
            | Op::Increment
            | Op::Decrement
            | Op::Touch => {
                argument(left)?;
                let cache = cache(reader)?;
                Self::Data(Data { cache, item: Item::read_operation(op, left, reader)? })
            }
            Op::Batch => {
                argument(left)?;
                let cache = cache(reader)?;
                argument(left)?;
                Body::Batch { cache, items: Items::read(reader)? }
            }
            Op::Scan => {
                argument(left)?;
                let cache = cache(reader)?;
                argument(left)?;
                let cursor = if reader.nil() { None } else { Some(reader.bytes()?) };
                if cursor.is_some_and(|cursor| cursor.len() > CURSOR_LEN_MAX) {
                    return wrong(
                        ErrorCode::BadArgument,
                        "a cursor of that length was never given out",
                    );
                }
                argument(left)?;
                let limit = reader.u32()?;
                let mut scan = Scan { cache, cursor, limit, prefix: &[], values: false };
                if *left > 0 && reader.is_map() {
                    *left -= 1;
                    for _ in 0..reader.map()? {
                        match reader.uint()? {
                            option::PREFIX => scan.prefix = reader.bytes()?,
                            option::VALUES => scan.values = reader.bool()?,
                            _ => reader.skip()?,
                        }
                    }
                }
                Body::Scan(scan)
            }
            Op::Flush => {
                argument(left)?;
                Body::Flush { cache: cache(reader)? }
            }
            Op::Ping => Body::Ping,
            Op::ListCaches => Body::ListCaches,
            Op::Topology => Body::Topology,
            Op::Info => Body::Info,
            Op::ClusterStatus => Body::ClusterStatus,
            Op::OpenCache => {
                argument(left)?;
                Body::OpenCache { name: reader.str()? }
            }
            Op::DropCache => {
                argument(left)?;
                Body::DropCache { name: reader.str()? }
            }
            Op::ShowCache => {
                argument(left)?;
                Body::ShowCache { name: reader.str()? }
            }
            Op::Hello => {
                argument(left)?;
                Body::Hello(Box::new(structure(reader)?))
            }
            Op::CreateCache => {
                argument(left)?;
                Body::CreateCache(Box::new(structure(reader)?))
            }
            Op::Subscribe => {
                argument(left)?;
                Body::Subscribe(structure(reader)?)
            }
            Op::ChangeCluster => {
                argument(left)?;
                Body::ChangeCluster(Box::new(structure(reader)?))
            }
            Op::Digests => {
                argument(left)?;
                Body::Digests(Box::new(structure(reader)?))
            }
            Op::Latest => {
                argument(left)?;
                Body::Latest(Box::new(structure(reader)?))
            }
            Op::Windows => {
                argument(left)?;
                Body::Windows(Box::new(structure(reader)?))
            }
            Op::Follow => {
                argument(left)?;
                Body::Follow(Box::new(structure(reader)?))
            }
            Op::Ingest => {
                argument(left)?;
                let stream = reader.str()?;
                argument(left)?;
                let producer = Producer::read(reader)?;
                argument(left)?;
                let readings = Readings::read(reader)?;
                Body::Ingest(Ingest { stream, producer, readings })
            }
        })
    }
}

/// Counts one argument of a message down.
fn argument(left: &mut usize) -> Result<(), Malformed> {
    match left.checked_sub(1) {
        Some(after) => {
            *left = after;
            Ok(())
        }
        None => malformed("an argument is missing"),
    }
}

#[inline]
fn cache<'a>(reader: &mut Reader<'a>) -> Result<CacheRef<'a>, Malformed> {
    if reader.is_str() {
        reader.str().map(CacheRef::Name)
    } else {
        reader.u32().map(CacheRef::Handle)
    }
}

/// A serde structure that is the next value.
fn structure<T: serde::de::DeserializeOwned>(reader: &mut Reader<'_>) -> Result<T, Malformed> {
    let bytes = reader.rest();
    // Measured by our own bounded walk first: serde sees exactly one value.
    reader.skip()?;
    let value = &bytes[..bytes.len() - reader.rest().len()];
    rmp_serde::from_slice(value)
        .or_else(|_| wrong(ErrorCode::BadArgument, "a field of the structure has the wrong type"))
}

/// The numbers of options. They never change and are never used again for something else.
mod option {
    pub(super) const TTL: u64 = 1;
    pub(super) const FLAGS: u64 = 2;
    pub(super) const COMPARE: u64 = 3;
    pub(super) const VERSION: u64 = 4;
    pub(super) const RETURN_OLD: u64 = 5;
    pub(super) const INITIAL: u64 = 6;
    pub(super) const TOUCH: u64 = 7;
    pub(super) const NO_VALUE: u64 = 8;
    pub(super) const NO_BUMP: u64 = 9;
    pub(super) const VIVIFY: u64 = 10;
    pub(super) const RECACHE_BELOW: u64 = 11;
    pub(super) const INVALIDATE: u64 = 12;
    pub(super) const KEEP_EMPTY: u64 = 13;
    pub(super) const TRACK: u64 = 14;
    pub(super) const RETRY: u64 = 15;
    pub(super) const DEADLINE: u64 = 16;

    pub(super) const PREFIX: u64 = 1;
    pub(super) const VALUES: u64 = 2;
}

/// Options as they came.
#[derive(Default)]
struct Options {
    ttl: Option<Ttl>,
    flags: u32,
    compare: Option<u64>,
    version: Option<u64>,
    initial: Option<u64>,
    touch: Option<Ttl>,
    no_bump: bool,
    vivify: Option<Ttl>,
    recache_below_ms: Option<u64>,
    invalidate: bool,
    keep_empty: bool,
    want: Want,
}

impl Options {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        for _ in 0..reader.map()? {
            match reader.uint()? {
                option::TTL => self.ttl = Some(end(reader)?),
                option::FLAGS => self.flags = reader.u32()?,
                option::COMPARE => self.compare = reader.uint_or_nil()?,
                option::VERSION => self.version = reader.uint_or_nil()?,
                option::RETURN_OLD => self.want.return_old = reader.bool()?,
                option::INITIAL => self.initial = reader.uint_or_nil()?,
                option::TOUCH => self.touch = Some(end(reader)?),
                option::NO_VALUE => self.want.no_value = reader.bool()?,
                option::NO_BUMP => self.no_bump = reader.bool()?,
                option::VIVIFY => self.vivify = Some(end(reader)?),
                option::RECACHE_BELOW => self.recache_below_ms = reader.uint_or_nil()?,
                option::INVALIDATE => self.invalidate = reader.bool()?,
                option::KEEP_EMPTY => self.keep_empty = reader.bool()?,
                option::TRACK => self.want.track = reader.bool()?,
                option::RETRY => self.want.retry = reader.uint_or_nil()?,
                option::DEADLINE => self.want.deadline_ms = reader.uint_or_nil()?,
                _ => reader.skip()?,
            }
        }
        Ok(())
    }
}

/// The end of an item: nil is never, a number is milliseconds from now (0: over already), and a
/// negative one is the moment, in milliseconds since 1970.
#[inline]
fn end(reader: &mut Reader<'_>) -> Result<Ttl, Malformed> {
    if reader.nil() {
        return Ok(Ttl::Never);
    }
    Ok(match reader.int()? {
        0 => Ttl::Expired,
        ms @ 1.. => Ttl::After(ms.unsigned_abs()),
        ms => Ttl::At(ms.unsigned_abs().min(i64::MAX as u64)),
    })
}

/// The front of an operation on one item, which says where the item is. A node that reads many
/// requests at once needs this of all of them first; the rest is read when its turn comes, and
/// never moved.
#[derive(Clone, Copy, Debug)]
pub struct ItemHead<'a> {
    /// Repeated in the answer; 0 wants none.
    pub id: u32,
    /// The cache.
    pub cache: CacheRef<'a>,
    /// The key.
    pub key: &'a [u8],
    op: Op,
    /// Elements behind the key.
    left: u32,
    reader: Reader<'a>,
}

impl<'a> ItemHead<'a> {
    /// Which operation it is.
    #[inline]
    pub const fn op(&self) -> Op {
        self.op
    }

    /// Reads the front of a frame's body. `None` when it is no operation on one item, or not a
    /// good one: [`Request::decode`] tells.
    #[inline]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let len = u32::try_from(reader.array().ok()?).ok()?;
        let op = Op::from_number(reader.uint().ok()?).filter(|op| op.is_on_item())?;
        let id = reader.u32().ok()?;
        let cache = cache(&mut reader).ok()?;
        let mut left = (len as usize).checked_sub(3)?;
        let key = Item::read_key(op, &mut left, &mut reader).ok()?;
        Some(Self { id, cache, key, op, left: left as u32, reader })
    }

    /// Whether it is a read that asks for nothing beside the item, the commonest of all.
    #[inline]
    pub fn is_plain_get(&self) -> bool {
        self.op == Op::Get && self.left == 0 && self.reader.rest().is_empty()
    }

    /// The whole operation.
    #[inline]
    pub fn item(&self) -> Result<Item<'a>, Refused> {
        let mut reader = self.reader;
        self.read_rest(&mut reader).map_err(|Malformed { code, what }| Refused {
            id: Some(self.id),
            code,
            what,
        })
    }

    #[inline]
    fn read_rest(&self, reader: &mut Reader<'a>) -> Result<Item<'a>, Malformed> {
        // What the operation needs is there: `read_key` looked.
        let mut left = self.left as usize;
        let item = Item::read_behind_key(self.op, self.key, &mut left, reader)?;
        end_message(left, reader)?;
        Ok(item)
    }
}

/// Goes past elements of later versions, and makes sure that nothing follows.
#[inline]
fn end_message(left: usize, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    for _ in 0..left {
        reader.skip()?;
    }
    if !reader.rest().is_empty() {
        return malformed("there are bytes behind the message");
    }
    Ok(())
}

impl<'a> Item<'a> {
    /// Reads key, argument and options; `left` counts down the elements of the message.
    #[inline(always)]
    fn read_operation(
        op: Op,
        left: &mut usize,
        reader: &mut Reader<'a>,
    ) -> Result<Self, Malformed> {
        let key = Self::read_key(op, left, reader)?;
        Self::read_behind_key(op, key, left, reader)
    }

    /// Reads the key. `left` is then what is behind it, the operation's argument not counted.
    #[inline(always)]
    fn read_key(op: Op, left: &mut usize, reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
        let needed = match op {
            Op::Get | Op::Delete => 1,
            _ => 2,
        };
        let Some(after) = left.checked_sub(needed) else {
            return malformed("an argument is missing");
        };
        *left = after;
        let key = reader.bytes()?;
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return wrong(ErrorCode::BadKey, "a key has 1 to 32000 bytes");
        }
        Ok(key)
    }

    /// Reads argument and options.
    #[inline(always)]
    fn read_behind_key(
        op: Op,
        key: &'a [u8],
        left: &mut usize,
        reader: &mut Reader<'a>,
    ) -> Result<Self, Malformed> {
        let mut want = Want::default();
        let command = match op {
            Op::Get => Command::Get(Get { may_refill: true, ..Get::plain(key) }),
            Op::Delete => Command::Delete(Delete::plain(key)),
            Op::Touch => Command::Touch(Touch { key, ttl: end(reader)? }),
            Op::Increment | Op::Decrement => Command::Arithmetic(Arithmetic {
                key,
                direction: match op {
                    Op::Increment => Direction::Increment,
                    _ => Direction::Decrement,
                },
                delta: reader.uint()?,
                compare: None,
                version: None,
                create: None,
                touch: None,
            }),
            _ => {
                let value = match Value::read(reader)? {
                    Value::Plain(bytes) => bytes,
                    Value::Lz4 { len, block } => {
                        want.inflated_len = Some(len);
                        block
                    }
                };
                let mode = match op {
                    Op::Add => StoreMode::Add,
                    Op::Replace => StoreMode::Replace,
                    Op::Append => StoreMode::Append,
                    Op::Prepend => StoreMode::Prepend,
                    _ => StoreMode::Set,
                };
                Command::Store(Store { mode, ttl: Ttl::Default, ..Store::set(key, value) })
            }
        };
        let mut item = Self { command, want };
        if *left > 0 && reader.is_map() {
            *left -= 1;
            item.read_options(reader)?;
        }
        Ok(item)
    }

    fn read_options(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        let mut options = Options { want: self.want, ..Options::default() };
        options.read(reader)?;
        self.want = options.want;
        match &mut self.command {
            Command::Get(get) => {
                get.touch = options.touch;
                get.vivify = options.vivify;
                get.recache_below_ms = options.recache_below_ms;
                get.no_bump = options.no_bump;
                get.version = options.version;
            }
            Command::Store(store) => {
                store.flags = options.flags;
                store.ttl = options.ttl.unwrap_or(Ttl::Default);
                store.compare = options.compare;
                store.version = options.version;
                store.invalidate = options.invalidate;
                store.vivify = options.vivify;
            }
            Command::Delete(delete) => {
                delete.compare = options.compare;
                delete.version = options.version;
                delete.invalidate = options.invalidate;
                delete.ttl = options.ttl;
                delete.keep_empty = options.keep_empty;
            }
            Command::Arithmetic(arithmetic) => {
                let ttl = options.ttl.unwrap_or(Ttl::Default);
                arithmetic.compare = options.compare;
                arithmetic.version = options.version;
                arithmetic.create = options.initial.map(|initial| (ttl, initial));
                arithmetic.touch = options.touch;
            }
            Command::Touch(_) => {}
        }
        Ok(())
    }
}

impl<'a> Element<'a> for Item<'a> {
    /// One element of a batch: `[op, key, argument…, options?]`.
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let mut left = reader.array()?;
        let Some(after) = left.checked_sub(1) else {
            return malformed("an operation of a batch is empty");
        };
        left = after;
        let op = match Op::from_number(reader.uint()?) {
            Some(op) if op.is_on_item() => op,
            _ => {
                return wrong(ErrorCode::UnknownOperation, "a batch has operations on items only");
            }
        };
        let item = Self::read_operation(op, &mut left, reader)?;
        for _ in 0..left {
            reader.skip()?;
        }
        Ok(item)
    }
}

/// The operations of a batch.
pub type Items<'a> = List<'a, Item<'a>>;

impl<'a> Producer<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, Malformed> {
        if reader.nil() {
            return Ok(None);
        }
        let len = reader.array()?;
        if len < 3 {
            return malformed("a producer has an id, an epoch and a sequence");
        }
        let producer = Self { id: reader.str()?, epoch: reader.uint()?, sequence: reader.uint()? };
        for _ in 3..len {
            reader.skip()?;
        }
        Ok(Some(producer))
    }
}

/// The readings of a batch.
pub type Readings<'a> = List<'a, Reading<'a>>;

impl<'a> Element<'a> for Reading<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let len = reader.array()?;
        if len < 2 {
            return malformed("a reading has a sensor and a value");
        }
        let sensor = reader.bytes()?;
        let value = reader.real()?;
        let time_ms = if len < 3 || reader.nil() { None } else { Some(reader.int()?) };
        for _ in 3..len {
            reader.skip()?;
        }
        Ok(Self { sensor, value, time_ms })
    }
}
