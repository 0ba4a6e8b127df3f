//! Requests as bytes. Each function appends one whole frame.
//!
//! Only what differs from its default is written, always in the same order, so one request has one
//! form.

use super::{CacheRef, Data, Item, Op, Producer, Reading, Scan, admin, option, streams};
use crate::command::{Command, Direction, StoreMode, Ttl};
use crate::native::frame::{begin_frame, end_frame};
use crate::native::value::Value;
use crate::native::wire::{
    put_array, put_bin, put_bool, put_int, put_nil, put_real, put_small_map, put_str, put_uint,
    put_uint_or_nil,
};

fn frame(out: &mut Vec<u8>, op: Op, id: u32, arguments: usize, rest: impl FnOnce(&mut Vec<u8>)) {
    let start = begin_frame(out);
    put_array(out, 2 + arguments);
    put_uint(out, op.number());
    put_uint(out, u64::from(id));
    rest(out);
    end_frame(out, start);
}

fn put_cache(out: &mut Vec<u8>, cache: CacheRef<'_>) {
    match cache {
        CacheRef::Handle(handle) => put_uint(out, u64::from(handle)),
        CacheRef::Name(name) => put_str(out, name),
    }
}

/// An operation on one item. The fields of a command that the protocol has no option for
/// (`may_refill`) are as a node reads them.
#[inline]
pub fn data(out: &mut Vec<u8>, id: u32, data: &Data<'_>) {
    let item = &data.item;
    let start = begin_frame(out);
    let (arguments, options) = item.shape();
    put_array(out, 3 + arguments + usize::from(options > 0));
    put_uint(out, item.op().number());
    put_uint(out, u64::from(id));
    put_cache(out, data.cache);
    item.put(out, options);
    end_frame(out, start);
}

/// Operations on many items of one cache.
pub fn batch<'a>(
    out: &mut Vec<u8>,
    id: u32,
    cache: CacheRef<'_>,
    items: impl ExactSizeIterator<Item = Item<'a>>,
) {
    frame(out, Op::Batch, id, 2, |out| {
        put_cache(out, cache);
        put_array(out, items.len());
        for item in items {
            let (arguments, options) = item.shape();
            put_array(out, 1 + arguments + usize::from(options > 0));
            put_uint(out, item.op().number());
            item.put(out, options);
        }
    });
}

/// A step through a cache.
pub fn scan(out: &mut Vec<u8>, id: u32, scan: &Scan<'_>) {
    let options = u8::from(!scan.prefix.is_empty()) + u8::from(scan.values);
    frame(out, Op::Scan, id, 3 + usize::from(options > 0), |out| {
        put_cache(out, scan.cache);
        match scan.cursor {
            Some(cursor) => put_bin(out, cursor),
            None => put_nil(out),
        }
        put_uint(out, u64::from(scan.limit));
        if options > 0 {
            out.push(0x80 | options);
            if !scan.prefix.is_empty() {
                put_uint(out, option::PREFIX);
                put_bin(out, scan.prefix);
            }
            if scan.values {
                put_uint(out, option::VALUES);
                put_bool(out, true);
            }
        }
    });
}

/// Empty a cache.
pub fn flush(out: &mut Vec<u8>, id: u32, cache: CacheRef<'_>) {
    frame(out, Op::Flush, id, 1, |out| put_cache(out, cache));
}

/// One of the operations without arguments: ping, list-caches, topology, info, cluster-status.
pub fn bare(out: &mut Vec<u8>, id: u32, op: Op) {
    frame(out, op, id, 0, |_| {});
}

/// One of the operations on a cache by name: open-cache, drop-cache, show-cache.
pub fn named(out: &mut Vec<u8>, id: u32, op: Op, name: &str) {
    frame(out, op, id, 1, |out| put_str(out, name));
}

/// The first request of a connection.
pub fn hello(out: &mut Vec<u8>, id: u32, hello: &admin::Hello) {
    frame(out, Op::Hello, id, 1, |out| admin::put(out, hello));
}

/// A new cache.
pub fn create_cache(out: &mut Vec<u8>, id: u32, spec: &admin::CacheSpec) {
    frame(out, Op::CreateCache, id, 1, |out| admin::put(out, spec));
}

/// Pushes.
pub fn subscribe(out: &mut Vec<u8>, id: u32, subscribe: &admin::Subscribe) {
    frame(out, Op::Subscribe, id, 1, |out| admin::put(out, subscribe));
}

/// A change of the cluster.
pub fn change_cluster(out: &mut Vec<u8>, id: u32, change: &admin::ClusterChange) {
    frame(out, Op::ChangeCluster, id, 1, |out| admin::put(out, change));
}

/// Digests of a node's own copies.
pub fn digests(out: &mut Vec<u8>, id: u32, request: &admin::DigestRequest) {
    frame(out, Op::Digests, id, 1, |out| admin::put(out, request));
}

/// The latest reading of a sensor.
pub fn latest(out: &mut Vec<u8>, id: u32, query: &streams::LatestQuery) {
    frame(out, Op::Latest, id, 1, |out| admin::put(out, query));
}

/// Results of a sensor's windows.
pub fn windows(out: &mut Vec<u8>, id: u32, query: &streams::WindowsQuery) {
    frame(out, Op::Windows, id, 1, |out| admin::put(out, query));
}

/// Results as they come.
pub fn follow(out: &mut Vec<u8>, id: u32, follow: &streams::Follow) {
    frame(out, Op::Follow, id, 1, |out| admin::put(out, follow));
}

/// Sensor readings.
pub fn ingest<'a>(
    out: &mut Vec<u8>,
    id: u32,
    stream: &str,
    producer: Option<Producer<'_>>,
    readings: impl ExactSizeIterator<Item = Reading<'a>>,
) {
    frame(out, Op::Ingest, id, 3, |out| {
        put_str(out, stream);
        match producer {
            None => put_nil(out),
            Some(producer) => {
                put_array(out, 3);
                put_str(out, producer.id);
                put_uint(out, producer.epoch);
                put_uint(out, producer.sequence);
            }
        }
        put_array(out, readings.len());
        for reading in readings {
            put_array(out, 2 + usize::from(reading.time_ms.is_some()));
            put_bin(out, reading.sensor);
            put_real(out, reading.value);
            if let Some(time_ms) = reading.time_ms {
                put_int(out, time_ms);
            }
        }
    });
}

fn put_end(out: &mut Vec<u8>, ttl: Ttl) {
    let clamped = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    match ttl {
        // An absent option; as a value of its own it has no sign for it.
        Ttl::Default | Ttl::Never => put_nil(out),
        Ttl::After(ms) => put_int(out, clamped(ms)),
        // The first millisecond of 1970 has no sign either, and is long over.
        Ttl::Expired | Ttl::At(0) => put_uint(out, 0),
        Ttl::At(ms) => put_int(out, -clamped(ms)),
    }
}

impl Item<'_> {
    const fn op(&self) -> Op {
        match &self.command {
            Command::Get(_) => Op::Get,
            Command::Store(store) => match store.mode {
                StoreMode::Set => Op::Set,
                StoreMode::Add => Op::Add,
                StoreMode::Replace => Op::Replace,
                StoreMode::Append => Op::Append,
                StoreMode::Prepend => Op::Prepend,
            },
            Command::Delete(_) => Op::Delete,
            Command::Arithmetic(arithmetic) => match arithmetic.direction {
                Direction::Increment => Op::Increment,
                Direction::Decrement => Op::Decrement,
            },
            Command::Touch(_) => Op::Touch,
        }
    }

    /// Arguments (key included) and options.
    fn shape(&self) -> (usize, u8) {
        let arguments = match &self.command {
            Command::Get(_) | Command::Delete(_) => 1,
            _ => 2,
        };
        let mut options = 0;
        self.each_option(&mut options, |count, _, _| *count += 1);
        (arguments, options)
    }

    fn put(&self, out: &mut Vec<u8>, options: u8) {
        put_bin(out, self.command.key());
        match &self.command {
            Command::Get(_) | Command::Delete(_) => {}
            Command::Store(store) => match self.want.inflated_len {
                None => put_bin(out, store.value),
                Some(len) => Value::Lz4 { len, block: store.value }.write(out),
            },
            Command::Arithmetic(arithmetic) => put_uint(out, arithmetic.delta),
            Command::Touch(touch) => put_end(out, touch.ttl),
        }
        if options > 0 {
            put_small_map(out, options);
            self.each_option(out, |out, number, option| {
                put_uint(out, number);
                match option {
                    Set::End(ttl) => put_end(out, ttl),
                    Set::Number(number) => put_uint_or_nil(out, Some(number)),
                    Set::True => put_bool(out, true),
                }
            });
        }
    }

    /// Goes through the options that differ from their defaults, always in the same order.
    #[inline]
    fn each_option<T>(&self, to: &mut T, mut each: impl FnMut(&mut T, u64, Set)) {
        let mut end = |to: &mut T, number, ttl: Option<Ttl>| match ttl {
            None | Some(Ttl::Default) => {}
            Some(ttl) => each(to, number, Set::End(ttl)),
        };
        match &self.command {
            Command::Get(get) => {
                end(to, option::TOUCH, get.touch);
                end(to, option::VIVIFY, get.vivify);
            }
            Command::Store(store) => {
                end(to, option::TTL, Some(store.ttl));
                end(to, option::VIVIFY, store.vivify);
            }
            Command::Delete(delete) => end(to, option::TTL, delete.ttl),
            Command::Arithmetic(arithmetic) => {
                end(to, option::TTL, arithmetic.create.map(|(ttl, _)| ttl));
                end(to, option::TOUCH, arithmetic.touch);
            }
            Command::Touch(_) => {}
        }
        let mut number = |to: &mut T, option, number: Option<u64>| {
            if let Some(number) = number {
                each(to, option, Set::Number(number));
            }
        };
        match &self.command {
            Command::Get(get) => {
                number(to, option::RECACHE_BELOW, get.recache_below_ms);
                number(to, option::VERSION, get.version);
            }
            Command::Store(store) => {
                number(to, option::FLAGS, (store.flags != 0).then_some(u64::from(store.flags)));
                number(to, option::COMPARE, store.compare);
                number(to, option::VERSION, store.version);
            }
            Command::Delete(delete) => {
                number(to, option::COMPARE, delete.compare);
                number(to, option::VERSION, delete.version);
            }
            Command::Arithmetic(arithmetic) => {
                number(to, option::COMPARE, arithmetic.compare);
                number(to, option::VERSION, arithmetic.version);
                number(to, option::INITIAL, arithmetic.create.map(|(_, initial)| initial));
            }
            Command::Touch(_) => {}
        }
        number(to, option::RETRY, self.want.retry);
        number(to, option::DEADLINE, self.want.deadline_ms);
        let (no_bump, invalidate, keep_empty) = match &self.command {
            Command::Get(get) => (get.no_bump, false, false),
            Command::Store(store) => (false, store.invalidate, false),
            Command::Delete(delete) => (false, delete.invalidate, delete.keep_empty),
            _ => (false, false, false),
        };
        for (number, set) in [
            (option::NO_BUMP, no_bump),
            (option::INVALIDATE, invalidate),
            (option::KEEP_EMPTY, keep_empty),
            (option::RETURN_OLD, self.want.return_old),
            (option::NO_VALUE, self.want.no_value),
            (option::TRACK, self.want.track),
        ] {
            if set {
                each(to, number, Set::True);
            }
        }
    }
}

/// The value of an option that is written.
#[derive(Clone, Copy)]
enum Set {
    End(Ttl),
    Number(u64),
    True,
}
