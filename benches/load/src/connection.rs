//! One connection: draw, encode, write, read, parse, record.
//!
//! Requests go out whenever the pipeline has room, all of them in one write; replies are taken as
//! they come, all that one read brought, under one clock reading. Requests under way are at most
//! the pipeline depth; the output buffer is bounded by [`OUTPUT_LEN_MAX`] plus one request, the
//! input buffer by the longest reply.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::keys::KeyPicker;
use crate::run::{Plan, Stage};
use crate::tally::Tally;
use crate::target::Link;
use crate::values::Values;
use crate::wire::{Ask, Asked, Parsed, Protocol, Reply, Wire, WireError};

/// What all connections of a run draw from.
#[derive(Debug)]
pub(crate) struct Workload<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) picker: KeyPicker,
    pub(crate) values: &'a Values,
    pub(crate) wire: Wire<'a>,
    /// A request is a write when 32 random bits fall below this.
    pub(crate) sets_below: u64,
}

/// What all connections of a worker share.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) load: &'a Workload<'a>,
    pub(crate) stage: Stage,
    pub(crate) tally: Tally,
    /// Requests that may still be sent while measuring.
    pub(crate) quota: u64,
    /// Requests answered well since the start, whatever the stage.
    pub(crate) done: u64,
    pub(crate) outstanding: u64,
    /// When the slots of an open loop are due; `None` in a closed loop.
    pub(crate) pace: Option<Pace>,
}

/// Slot `k` of a worker is due `k` periods after the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) start: Instant,
    pub(crate) period_seconds: f64,
}

impl Pace {
    pub(crate) fn due_at(&self, slot: u64) -> Instant {
        self.start + Duration::from_secs_f64(slot as f64 * self.period_seconds)
    }
}

/// A connected socket of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

/// One connection and its requests under way.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    /// Native: the handle of the cache.
    cache: u32,
    scratch: Vec<u8>,
    rng: Xoshiro256PlusPlus,
    input: Vec<u8>,
    /// Bytes of `input` that were read and not yet parsed.
    unread: std::ops::Range<usize>,
    output: Vec<u8>,
    written: usize,
    waiting: VecDeque<Request>,
    /// The number of the next request, for protocols whose answers name theirs.
    id_next: u32,
    /// Sequential keys: this connection's next turn; all connections take every turn once.
    turn: u64,
    /// The next key to preload, and how far it is to the one after.
    preload_next: u64,
    preload_step: u64,
    /// Open loop: slots that are due and not sent, the first of them, and the distance between two.
    due: u64,
    slot: u64,
    slot_step: u64,
    alive: bool,
}

#[derive(Debug)]
struct Request {
    since: Instant,
    id: u32,
    number: u32,
    asked: Asked,
    /// Sent while measuring.
    counted: bool,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the server closed the connection")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Connection {
    /// `index` of `connections` in the whole run decides the key stream and the keys to preload.
    pub(crate) fn new(link: Link, plan: &Plan, index: usize) -> Self {
        Self {
            stream: link.stream,
            cache: link.cache,
            scratch: Vec::new(),
            rng: Xoshiro256PlusPlus::seed_from_u64(
                plan.seed.wrapping_add((index as u64).wrapping_mul(STREAM_DISTANCE)),
            ),
            input: vec![0; INPUT_LEN],
            unread: 0..0,
            output: Vec::new(),
            written: 0,
            waiting: VecDeque::with_capacity(plan.pipeline.max(PRELOAD_DEPTH)),
            id_next: 1,
            turn: index as u64,
            preload_next: index as u64,
            preload_step: plan.connections as u64,
            due: 0,
            slot: 0,
            slot_step: 1,
            alive: true,
        }
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match &mut self.stream {
            Stream::Tcp(stream) => stream.register(registry, token, interest),
            Stream::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive
    }

    pub(crate) fn has_preloaded(&self, keys: u32) -> bool {
        !self.alive || (self.preload_next >= u64::from(keys) && self.waiting.is_empty())
    }

    /// Starts the open loop afresh: this connection owns slots `first`, `first + step`, …
    pub(crate) fn restart_pace(&mut self, first: u64, step: u64) {
        (self.due, self.slot, self.slot_step) = (0, first, step);
    }

    /// Open loop: one more of this connection's slots is due.
    pub(crate) fn slot_due(&mut self, bench: &mut Bench<'_>) {
        if self.alive {
            self.due += 1;
            self.send(bench);
        }
    }

    /// Slots that were due and never sent.
    pub(crate) fn unsent(&self) -> u64 {
        self.due
    }

    /// Fills the pipeline and writes what the socket takes.
    pub(crate) fn send(&mut self, bench: &mut Bench<'_>) {
        if self.alive {
            self.fill(bench);
            if let Err(error) = self.flush() {
                self.lose(error.into(), bench);
            }
        }
    }

    /// Takes all replies that have come. `closing` says that the peer has shut its side.
    pub(crate) fn receive(&mut self, closing: bool, bench: &mut Bench<'_>) {
        if self.alive
            && let Err(lost) = self.try_receive(closing, bench)
        {
            self.lose(lost, bench);
        }
    }

    /// Counts what is still under way as unanswered.
    pub(crate) fn give_up(&mut self, bench: &mut Bench<'_>) {
        let left = self.waiting.len() as u64;
        if left > 0 {
            bench.tally.errors.unanswered += left;
            bench.tally.note(|| format!("{left} requests of a connection were never answered"));
            bench.outstanding -= left;
            self.waiting.clear();
        }
        self.alive = false;
    }

    fn try_receive(&mut self, closing: bool, bench: &mut Bench<'_>) -> Result<(), Lost> {
        loop {
            let read = match self.stream.read(&mut self.input[self.unread.end..]) {
                Ok(0) => return Err(Lost::Closed),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.unread.end += read;
            // A short read has emptied the socket: the next bytes raise a new event.
            let emptied = self.unread.end < self.input.len() && !closing;
            self.take_replies(bench)?;
            self.fill(bench);
            self.flush()?;
            if emptied {
                return Ok(());
            }
        }
    }

    fn take_replies(&mut self, bench: &mut Bench<'_>) -> Result<(), Lost> {
        let now = Instant::now();
        let load = bench.load;
        while !self.unread.is_empty() {
            let input = &self.input[self.unread.clone()];
            let oldest = self.waiting.front().map(|request| request.asked);
            if oldest.is_none() && load.plan.protocol != Protocol::Native {
                return Err(WireError::unexpected(input, Asked::Set).into());
            }
            match load.wire.parse(oldest.unwrap_or(Asked::Get), input)? {
                Parsed::Complete { message, consumed } => {
                    if message.reply != Reply::Notice {
                        // Nearly always the first: nodes answer in another order only when they
                        // have to ask others.
                        let at = match message.id {
                            None => 0,
                            Some(id) => self
                                .waiting
                                .iter()
                                .position(|request| request.id == id)
                                .ok_or(WireError::UnknownId { id })?,
                        };
                        let Some(request) = self.waiting.remove(at) else {
                            return Err(WireError::unexpected(input, Asked::Set).into());
                        };
                        bench.outstanding -= 1;
                        record(&request, &message.reply, now, bench);
                    }
                    self.unread.start += consumed;
                }
                Parsed::NeedMore { at_least } => {
                    self.make_room(at_least, load.wire.reply_len_max());
                    return Ok(());
                }
            }
        }
        self.unread = 0..0;
        Ok(())
    }

    /// Moves what is unread to the front and lets `at_least` bytes follow from there.
    fn make_room(&mut self, at_least: usize, reply_len_max: usize) {
        if self.unread.start + at_least > self.input.len() || self.unread.end == self.input.len() {
            self.input.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let needed = at_least.min(reply_len_max);
        if needed > self.input.len() {
            self.input.resize(needed, 0);
        }
    }

    fn fill(&mut self, bench: &mut Bench<'_>) {
        let plan = bench.load.plan;
        let depth = match bench.stage {
            Stage::Preload => plan.pipeline.max(PRELOAD_DEPTH),
            Stage::Warmup | Stage::Measure => plan.pipeline,
            Stage::Idle | Stage::Drain | Stage::Abort => return,
        };
        if self.waiting.len() >= depth {
            return;
        }
        let now = Instant::now();
        while self.waiting.len() < depth && self.output.len() < OUTPUT_LEN_MAX {
            let Some(request) = self.next_request(now, bench) else { break };
            let load = bench.load;
            let Request { asked, number, id, .. } = request;
            let ask = Ask { asked, number, id, cache: self.cache };
            load.wire.encode(ask, &mut self.scratch, &mut self.output);
            self.waiting.push_back(request);
            bench.outstanding += 1;
        }
    }

    fn next_request(&mut self, now: Instant, bench: &mut Bench<'_>) -> Option<Request> {
        let load = bench.load;
        if bench.stage == Stage::Preload {
            let number = u32::try_from(self.preload_next).ok().filter(|&n| n < load.plan.keys)?;
            self.preload_next += self.preload_step;
            let id = self.take_id();
            return Some(Request { since: now, id, number, asked: Asked::Set, counted: false });
        }
        let counted = bench.stage == Stage::Measure;
        if counted && bench.quota == 0 {
            return None;
        }
        let since = match bench.pace {
            None => now,
            Some(_) if self.due == 0 => return None,
            Some(pace) => {
                let since = pace.due_at(self.slot);
                self.due -= 1;
                self.slot += self.slot_step;
                since
            }
        };
        if counted {
            bench.quota -= 1;
        }
        let set = u64::from(self.rng.next_u32()) < load.sets_below;
        let asked = if set { Asked::Set } else { Asked::Get };
        let number = load.picker.draw(&mut self.rng, self.turn);
        self.turn += self.preload_step;
        Some(Request { since, id: self.take_id(), number, asked, counted })
    }

    /// Never 0, to which native nodes give no answer.
    fn take_id(&mut self) -> u32 {
        let id = self.id_next;
        self.id_next = self.id_next.checked_add(1).unwrap_or(1);
        id
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    fn lose(&mut self, lost: Lost, bench: &mut Bench<'_>) {
        let under_way = self.waiting.len() as u64;
        // A connection that is lost between requests is still one that later requests miss.
        bench.tally.errors.lost += under_way.max(1);
        bench.tally.note(|| format!("connection lost: {lost}"));
        bench.outstanding -= under_way;
        self.waiting.clear();
        self.alive = false;
    }
}

fn record(request: &Request, reply: &Reply<'_>, now: Instant, bench: &mut Bench<'_>) {
    let (load, tally) = (bench.load, &mut bench.tally);
    let hit = match reply {
        Reply::Refused(words) => {
            tally.errors.refused += 1;
            tally.note(|| format!("the server refused: {}", String::from_utf8_lossy(words)));
            return;
        }
        Reply::Stored if request.asked == Asked::Get => {
            tally.errors.refused += 1;
            tally.note(|| "a read was answered as a write".to_owned());
            return;
        }
        Reply::Value(_) | Reply::Miss
            if request.asked == Asked::Set && load.plan.protocol != Protocol::Echo =>
        {
            tally.errors.refused += 1;
            tally.note(|| "a write was answered as a read".to_owned());
            return;
        }
        Reply::Value(data) if load.plan.verify && !load.values.matches(request.number, data) => {
            tally.errors.mismatched += 1;
            let (number, len) = (request.number, data.len());
            tally.note(|| format!("key number {number} came back with {len} wrong bytes"));
            return;
        }
        Reply::Value(_) => Some(true),
        Reply::Miss => Some(false),
        Reply::Stored | Reply::Notice => None,
    };
    bench.done += 1;
    if request.counted {
        match hit {
            Some(true) => tally.hits += 1,
            Some(false) => tally.misses += 1,
            None => {}
        }
        tally.record(request.asked, now.saturating_duration_since(request.since));
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
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

/// Where an input buffer starts; it grows only for a reply that is longer.
const INPUT_LEN: usize = 16 * 1024;

/// No further request is encoded while this much waits to be written.
const OUTPUT_LEN_MAX: usize = 256 * 1024;

/// Filling the server is not measured, so it always pipelines.
const PRELOAD_DEPTH: usize = 64;

/// Seeds of neighbouring connections differ in many bits.
const STREAM_DISTANCE: u64 = 0x9e37_79b9_7f4a_7c15;
