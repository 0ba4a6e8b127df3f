//! A server small enough to be obviously right: a map, a clock that stands still until told, and
//! the parser under test. Whole transcripts run against it.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;

use kiln_protocol::Parsed;
use kiln_protocol::command::{
    Arithmetic, Command, Delete, Direction, Get, ItemMeta, Outcome, RefillRight, Store, StoreMode,
    Ttl,
};
use kiln_protocol::memcached::{
    FlushTime, KeyScratch, Limits, Op, Parser, Stats, StatsWriter, lines, write_version,
};

/// Milliseconds since 1970 at which all tests begin.
pub const START_MS: u64 = 1_700_000_000_000;

/// One connection to a server of its own.
pub struct Server {
    parser: Parser,
    scratch: KeyScratch,
    pending: Vec<u8>,
    pub closed: bool,
    pub store: Map,
}

impl Server {
    pub fn new(limits: Limits) -> Self {
        Self {
            parser: Parser::new(limits),
            scratch: KeyScratch::new(2),
            pending: Vec::new(),
            closed: false,
            store: Map::default(),
        }
    }

    /// Takes bytes in, gives the answers out.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if self.closed {
            return out;
        }
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        loop {
            let input = &pending[at..];
            match self.parser.parse(input, &self.scratch) {
                Parsed::Complete { message, consumed } => {
                    assert!(consumed > 0 && consumed <= input.len());
                    at += consumed;
                    let good = run(&mut self.store, &message, &mut out);
                    if good {
                        self.parser.authenticated();
                    }
                    if let Op::Quit | Op::Shutdown { .. } | Op::Reject { close: true, .. } = message
                    {
                        self.closed = true;
                        return out;
                    }
                }
                Parsed::NeedMore { at_least, consumed } => {
                    assert!(consumed <= input.len());
                    assert!(at_least > input.len() - consumed);
                    self.pending = input[consumed..].to_vec();
                    return out;
                }
                Parsed::ScratchFull => self.scratch.clear(),
            }
        }
    }
}

/// Runs one op and writes its answer. True when it brought good credentials.
pub fn run(store: &mut Map, op: &Op<'_>, out: &mut Vec<u8>) -> bool {
    let ok = |noreply: bool, out: &mut Vec<u8>| {
        if !noreply {
            out.extend_from_slice(lines::OK);
        }
    };
    match *op {
        Op::Data { command, reply } => {
            let (outcome, value) = store.execute(&command);
            if let Some(tail) = reply.encode(&outcome, out) {
                out.extend_from_slice(&value);
                out.extend_from_slice(tail);
            }
        }
        Op::TooLarge { key, delete, reply } => {
            if delete {
                store.items.remove(key);
            }
            assert!(reply.encode(&Outcome::TooLarge, out).is_none());
        }
        Op::FlushAll { when, noreply } => {
            assert_eq!(when, FlushTime::Now, "the test map knows no later flush");
            store.items.clear();
            ok(noreply, out);
        }
        Op::Version => write_version("1.6.45", out),
        Op::MetaNoop => out.extend_from_slice(lines::META_NOOP),
        Op::MetaDebug { key, reply } => {
            let (outcome, value) =
                store.execute(&Command::Get(Get { no_bump: true, ..Get::plain(key) }));
            match outcome {
                Outcome::Hit(item) => reply.encode(Some((&item, key.len() + value.len())), out),
                _ => reply.encode(None, out),
            }
        }
        Op::Stats(Stats::Reset) => out.extend_from_slice(lines::RESET),
        Op::Stats(Stats::DetailOn | Stats::DetailOff) => ok(false, out),
        Op::Stats(_) => {
            let mut stats = StatsWriter::new(out);
            stats.stat("curr_items", store.items.len());
            stats.end();
        }
        Op::Verbosity { noreply, .. } | Op::CacheMemlimit { noreply, .. } => ok(noreply, out),
        Op::Authenticate { credentials } => {
            let good = credentials == b"user password";
            out.extend_from_slice(if good {
                lines::AUTHENTICATED
            } else {
                lines::AUTHENTICATION_FAILURE
            });
            return good;
        }
        Op::Shutdown { .. } | Op::Quit => {}
        Op::Answer { reply } | Op::Reject { reply, .. } => out.extend_from_slice(reply),
    }
    false
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub value: Vec<u8>,
    pub flags: u32,
    pub ends_ms: Option<u64>,
    pub version: u64,
    pub used_ms: u64,
    pub fetched: bool,
    pub stale: bool,
    pub token_sent: bool,
}

/// The store as memcached documents it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    pub now_ms: u64,
    pub items: BTreeMap<Vec<u8>, Item>,
    pub version: u64,
}

impl Default for Map {
    fn default() -> Self {
        Self { now_ms: START_MS, items: BTreeMap::new(), version: 0 }
    }
}

impl Map {
    pub fn execute(&mut self, command: &Command<'_>) -> (Outcome, Vec<u8>) {
        let now_ms = self.now_ms;
        self.items.retain(|_, item| item.ends_ms.is_none_or(|ends_ms| ends_ms > now_ms));
        let outcome = match command {
            Command::Get(get) => return self.get(get),
            Command::Store(store) => self.store(store),
            Command::Delete(delete) => self.delete(delete),
            Command::Arithmetic(arithmetic) => self.arithmetic(arithmetic),
            Command::Touch(touch) => {
                let ends_ms = self.ends_ms(touch.ttl);
                match self.items.get_mut(touch.key) {
                    Some(item) => {
                        item.ends_ms = ends_ms;
                        Outcome::Touched(meta(item, now_ms))
                    }
                    None => Outcome::NotFound,
                }
            }
        };
        (outcome, Vec::new())
    }

    fn get(&mut self, get: &Get<'_>) -> (Outcome, Vec<u8>) {
        let now_ms = self.now_ms;
        let touch = get.touch.map(|ttl| self.ends_ms(ttl));
        let mut created = false;
        if !self.items.contains_key(get.key) {
            let Some(ttl) = get.vivify else { return (Outcome::NotFound, Vec::new()) };
            let version = self.next_version(get.version);
            let ends_ms = self.ends_ms(ttl);
            self.items.insert(get.key.to_vec(), item(b"", 0, ends_ms, version, now_ms));
            created = true;
        }
        let item = self.items.get_mut(get.key).expect("it is there, or was just made");
        let left_ms = item.ends_ms.map(|ends_ms| ends_ms.saturating_sub(now_ms));
        let recache = get.recache_below_ms.zip(left_ms).is_some_and(|(below, left)| left < below);
        let taken = item.token_sent;
        let won = !taken && (created || recache || item.stale);
        item.token_sent |= won;
        if let Some(ends_ms) = touch {
            item.ends_ms = ends_ms;
        }
        let mut meta = meta(item, now_ms);
        meta.refill = match (won, taken) {
            (true, _) => RefillRight::Won,
            (_, true) => RefillRight::Taken,
            _ => RefillRight::None,
        };
        if !get.no_bump && !created {
            item.fetched = true;
            item.used_ms = now_ms;
        }
        (Outcome::Hit(meta), item.value.clone())
    }

    fn store(&mut self, store: &Store<'_>) -> Outcome {
        let now_ms = self.now_ms;
        let old = self.items.get(store.key).cloned();
        let mut ends_ms = self.ends_ms(store.ttl);
        let mut stale = None;
        if let Some(compare) = store.compare {
            match &old {
                Some(old) if old.version == compare => {}
                Some(old) if store.invalidate && compare != 0 && compare < old.version => {
                    ends_ms = old.ends_ms;
                    stale = Some(old.token_sent);
                }
                Some(_) => return Outcome::Exists,
                None if store.mode == StoreMode::Set => return Outcome::NotFound,
                None => {}
            }
        }
        let (value, flags) = match (store.mode, &old) {
            (StoreMode::Add, Some(_)) | (StoreMode::Replace, None) => return Outcome::NotStored,
            (StoreMode::Append | StoreMode::Prepend, None) => {
                let Some(ttl) = store.vivify else { return Outcome::NotStored };
                ends_ms = self.ends_ms(ttl);
                (store.value.to_vec(), store.flags)
            }
            (StoreMode::Append, Some(old)) => {
                ends_ms = old.ends_ms;
                ([&old.value, store.value].concat(), old.flags)
            }
            (StoreMode::Prepend, Some(old)) => {
                ends_ms = old.ends_ms;
                ([store.value, &old.value].concat(), old.flags)
            }
            _ => (store.value.to_vec(), store.flags),
        };
        let version = self.next_version(store.version);
        let mut new = item(&value, flags, ends_ms, version, now_ms);
        new.stale = stale.is_some();
        new.token_sent = stale.unwrap_or(false);
        let meta = meta(&new, now_ms);
        self.items.insert(store.key.to_vec(), new);
        Outcome::Stored(meta)
    }

    fn delete(&mut self, delete: &Delete<'_>) -> Outcome {
        let version = self.version + 1;
        let ends_ms = delete.ttl.map(|ttl| self.ends_ms(ttl));
        let Some(item) = self.items.get_mut(delete.key) else { return Outcome::NotFound };
        if delete.compare.is_some_and(|compare| compare != item.version) {
            return Outcome::Exists;
        }
        if !delete.keep_empty && !delete.invalidate {
            self.items.remove(delete.key);
            return Outcome::Deleted;
        }
        if delete.keep_empty {
            item.value.clear();
            item.flags = 0;
        }
        if delete.invalidate {
            item.stale = true;
            item.token_sent = false;
        }
        item.ends_ms = ends_ms.unwrap_or(item.ends_ms);
        item.version = delete.version.unwrap_or(version);
        self.version = version;
        Outcome::Deleted
    }

    fn arithmetic(&mut self, arithmetic: &Arithmetic<'_>) -> Outcome {
        let now_ms = self.now_ms;
        let Some(old) = self.items.get(arithmetic.key).cloned() else {
            let Some((ttl, initial)) = arithmetic.create else { return Outcome::NotFound };
            let version = self.next_version(arithmetic.version);
            let value = initial.to_string();
            let new = item(value.as_bytes(), 0, self.ends_ms(ttl), version, now_ms);
            let meta = meta(&new, now_ms);
            self.items.insert(arithmetic.key.to_vec(), new);
            return Outcome::Number(initial, meta);
        };
        if arithmetic.compare.is_some_and(|compare| compare != old.version) {
            return Outcome::Exists;
        }
        let Some(number) = std::str::from_utf8(&old.value).ok().and_then(|s| s.parse::<u64>().ok())
        else {
            return Outcome::NotANumber;
        };
        let number = match arithmetic.direction {
            Direction::Increment => number.wrapping_add(arithmetic.delta),
            Direction::Decrement => number.saturating_sub(arithmetic.delta),
        };
        let ends_ms = arithmetic.touch.map_or(old.ends_ms, |ttl| self.ends_ms(ttl));
        let version = self.next_version(arithmetic.version);
        let value = number.to_string();
        let new = Item { value: value.into_bytes(), ends_ms, version, ..old };
        let meta = meta(&new, now_ms);
        self.items.insert(arithmetic.key.to_vec(), new);
        Outcome::Number(number, meta)
    }

    fn next_version(&mut self, given: Option<u64>) -> u64 {
        self.version += 1;
        given.unwrap_or(self.version)
    }

    fn ends_ms(&self, ttl: Ttl) -> Option<u64> {
        match ttl {
            Ttl::Default | Ttl::Never => None,
            Ttl::After(ms) => Some(self.now_ms.saturating_add(ms)),
            Ttl::At(ms) => Some(ms),
            Ttl::Expired => Some(0),
        }
    }
}

fn item(value: &[u8], flags: u32, ends_ms: Option<u64>, version: u64, now_ms: u64) -> Item {
    Item {
        value: value.to_vec(),
        flags,
        ends_ms,
        version,
        used_ms: now_ms,
        fetched: false,
        stale: false,
        token_sent: false,
    }
}

fn meta(item: &Item, now_ms: u64) -> ItemMeta {
    ItemMeta {
        value_len: item.value.len(),
        flags: item.flags,
        version: item.version,
        ttl_ms: item.ends_ms.map(|ends_ms| ends_ms.saturating_sub(now_ms)),
        idle_s: ((now_ms - item.used_ms) / 1000) as u32,
        fetched: item.fetched,
        stale: item.stale,
        refill: RefillRight::None,
    }
}
