//! The clients of a trial: they ask without end, and remember what they were told.
//!
//! A client stays at a key until it has a good answer, and what it waited until then is what a
//! fault costs: the longest such wait of any client is the failover time of a cycle. What a client
//! does is drawn from the seed.
//!
//! Besides the shared keys of the [`History`], each client has counters of its own for the whole
//! trial. Of those it knows two numbers: increments acknowledged, and increments with an unknown
//! outcome. The value must lie between them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use kiln_linearizability::{Answer, Operation};
use parking_lot::Mutex;

use crate::{
    TrialError,
    ask::{Asker, Told},
    gate::Gate,
    history::{History, Key, Use},
};

/// When a client asks next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So long after each answer: who waits longer asks less.
    Think(Duration),
    /// At fixed times, that far from each other, whatever the answers take. One that is late asks at
    /// once, and what it waits counts from when it was due to ask.
    Every(Duration),
}

/// Parts of a cycle; a wait counts to the one that it began in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Before the fault.
    Calm = 0,
    /// From the fault on.
    Fault = 1,
    /// From when the node runs again.
    Return = 2,
}

const PARTS: usize = 3;

/// What all clients share.
pub(crate) struct Shared {
    pub(crate) history: History,
    pace: Pace,
    gate: Gate,
    part: AtomicU8,
    part_since: Mutex<Instant>,
    /// Raised when clients shall go back to the nodes they began with.
    homing: AtomicU64,
    clients: Vec<OfClient>,
    /// What failed, by words, over the whole trial.
    errors: Mutex<BTreeMap<String, u64>>,
    /// What must not be, in words.
    wrong: Mutex<Vec<String>>,
    /// The longest wait since the last look.
    slowest: Mutex<Option<Slow>>,
}

/// The longest wait, for people who look for its cause.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Slow {
    pub(crate) ms: f64,
    /// Milliseconds after the last change of the part of the cycle.
    pub(crate) after_ms: f64,
    pub(crate) client: usize,
    pub(crate) kind: &'static str,
    pub(crate) what: String,
    pub(crate) attempts: u32,
}

struct OfClient {
    answered: AtomicU64,
    not_applied: AtomicU64,
    unknown: AtomicU64,
    /// Longest wait for a good answer, in microseconds, by part.
    longest_us: [AtomicU64; PARTS],
    latencies: Mutex<Histogram<u64>>,
    counters: Mutex<Vec<Counter>>,
}

/// What a client knows of a counter of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counter {
    acknowledged: u64,
    unknown: u64,
    last: u64,
}

impl Counter {
    /// Takes in the number that an acknowledged increment came to.
    pub(crate) fn counted(&mut self, number: u64) -> Result<(), String> {
        self.acknowledged += 1;
        let last = std::mem::replace(&mut self.last, number);
        if number <= last {
            return Err(format!("{number} after {last}: an acknowledged increment is lost"));
        }
        self.bound(number)
    }

    /// Whether a number that was read can be.
    pub(crate) fn read(&mut self, number: u64) -> Result<(), String> {
        if number < self.acknowledged {
            let acknowledged = self.acknowledged;
            return Err(format!("{number}, but {acknowledged} increments were acknowledged"));
        }
        self.last = number;
        self.bound(number)
    }

    fn bound(&self, number: u64) -> Result<(), String> {
        let Self { acknowledged, unknown, .. } = *self;
        if number > acknowledged + unknown {
            return Err(format!(
                "{number}, but only {acknowledged} increments were acknowledged and {unknown} are \
                 not known: one was done twice"
            ));
        }
        Ok(())
    }
}

/// What was counted since the last look.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) answered: u64,
    pub(crate) not_applied: u64,
    pub(crate) unknown: u64,
}

/// Clients at work. Dropped, they end.
pub(crate) struct Load {
    pub(crate) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients, held until [`go`](Self::go).
    pub(crate) fn start(
        askers: Vec<Asker>,
        history: History,
        pace: Pace,
        seed: u64,
    ) -> Result<Self, TrialError> {
        let clients = askers.iter().map(|_| OfClient::new()).collect();
        let shared = Arc::new(Shared {
            history,
            pace,
            gate: Gate::new(),
            part: AtomicU8::new(Part::Calm as u8),
            homing: AtomicU64::new(0),
            clients,
            errors: Mutex::default(),
            wrong: Mutex::default(),
            slowest: Mutex::default(),
            part_since: Mutex::new(Instant::now()),
        });
        let mut load = Self { shared, threads: Vec::new() };
        for (number, asker) in askers.into_iter().enumerate() {
            let shared = Arc::clone(&load.shared);
            let rng = fastrand::Rng::with_seed(seed ^ (number as u64).wrapping_mul(0x9E37_79B9));
            let client = Client { number, asker, shared, rng, home: 0, due: None };
            let work = move || client.run();
            load.threads.push(thread::Builder::new().name(format!("client {number}")).spawn(work)?);
        }
        Ok(load)
    }

    pub(crate) fn go(&self) {
        self.shared.gate.open();
    }

    /// Holds all clients; returns when none has a request under way.
    pub(crate) fn hold(&self) -> Result<(), TrialError> {
        self.shared.gate.hold(self.threads.len())
    }

    pub(crate) fn begin(&self, part: Part) {
        *self.shared.part_since.lock() = Instant::now();
        self.shared.part.store(part as u8, Relaxed);
    }

    /// Sends clients back to the nodes they began with.
    pub(crate) fn go_home(&self) {
        self.shared.homing.fetch_add(1, Relaxed);
    }

    /// The longest wait of each client in a part of the cycle, in milliseconds.
    pub(crate) fn longest_ms(&self, part: Part) -> Vec<f64> {
        let of = |client: &OfClient| client.longest_us[part as usize].load(Relaxed) as f64 / 1000.0;
        self.shared.clients.iter().map(of).collect()
    }

    /// What was counted since the last call, and all longest waits begin anew.
    pub(crate) fn take_counts(&self) -> Counts {
        let mut counts = Counts::default();
        for client in &self.shared.clients {
            counts.answered += client.answered.swap(0, Relaxed);
            counts.not_applied += client.not_applied.swap(0, Relaxed);
            counts.unknown += client.unknown.swap(0, Relaxed);
            client.longest_us.iter().for_each(|longest| longest.store(0, Relaxed));
        }
        counts
    }

    /// How long answers took since the last call, in microseconds.
    pub(crate) fn take_latencies(&self) -> Histogram<u64> {
        let mut all = histogram();
        for client in &self.shared.clients {
            let mut own = client.latencies.lock();
            // Both have the same range.
            let _ = all.add(&*own);
            own.reset();
        }
        all
    }

    pub(crate) fn errors(&self) -> BTreeMap<String, u64> {
        self.shared.errors.lock().clone()
    }

    /// The longest wait since the last call.
    pub(crate) fn take_slowest(&self) -> Option<Slow> {
        self.shared.slowest.lock().take()
    }

    /// What was wrong since the last call.
    pub(crate) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.wrong.lock())
    }

    /// Reads all counters of the clients, which must be held. Returns what is wrong.
    pub(crate) fn audit_counters(&self, asker: &mut Asker) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, client) in self.shared.clients.iter().enumerate() {
            for (at, counter) in client.counters.lock().iter_mut().enumerate() {
                if *counter == Counter::default() {
                    continue;
                }
                let name = counter_name(number, at);
                let verdict = match insist(asker, &name, &Operation::Get) {
                    Ok(Answer::Value { value, .. }) => number_of(&value)
                        .map_or_else(|| Err("no number".to_owned()), |n| counter.read(n)),
                    Ok(answer) => {
                        Err(format!("{answer:?}, but {} acknowledged", counter.acknowledged))
                    }
                    Err(error) => Err(error),
                };
                if let Err(what) = verdict {
                    wrong.push(format!("counter {name}: {what}"));
                }
            }
        }
        wrong
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.gate.end();
        for thread in self.threads.drain(..) {
            // A client that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl OfClient {
    fn new() -> Self {
        Self {
            answered: AtomicU64::new(0),
            not_applied: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            longest_us: Default::default(),
            latencies: Mutex::new(histogram()),
            counters: Mutex::new(vec![Counter::default(); COUNTERS]),
        }
    }
}

impl Shared {
    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock();
        if wrong.len() < WRONG_MAX {
            wrong.push(what);
        }
    }

    fn failed(&self, what: &str) {
        let mut errors = self.errors.lock();
        // Addresses and times would make every error a kind of its own.
        let kind: String = what
            .split_whitespace()
            .filter(|word| !word.chars().any(|c| c.is_ascii_digit()))
            .collect::<Vec<_>>()
            .join(" ");
        if errors.len() < ERRORS_MAX || errors.contains_key(&kind) {
            *errors.entry(kind).or_default() += 1;
        }
    }
}

struct Client {
    number: usize,
    asker: Asker,
    shared: Arc<Shared>,
    rng: fastrand::Rng,
    home: u64,
    /// When the next request was to be asked, if it is not asked at will.
    due: Option<Instant>,
}

impl Client {
    fn run(mut self) {
        let mut next = None;
        while self.shared.gate.pass() {
            if let Pace::Every(gap) = self.shared.pace {
                // Clients are out of step from the first.
                let at = next.unwrap_or_else(|| Instant::now() + gap.mul_f64(self.rng.f64()));
                thread::sleep(at.saturating_duration_since(Instant::now()));
                next = Some(at + gap);
                self.due = Some(at);
            }
            let homing = self.shared.homing.load(Relaxed);
            if std::mem::replace(&mut self.home, homing) != homing {
                self.asker.go_home();
            }
            match self.rng.u8(..10) {
                0..3 => self.count_own(),
                _ => self.use_shared(),
            }
            if let Pace::Think(pause) = self.shared.pace
                && !pause.is_zero()
            {
                thread::sleep(pause);
            }
        }
    }

    /// Adds one to a counter of this client's own.
    fn count_own(&mut self) {
        let at = self.rng.usize(..COUNTERS);
        let name = counter_name(self.number, at);
        let count = Operation::Count { up: true, delta: 1, create: None };
        let shared = Arc::clone(&self.shared);
        let number = self.number;
        let mut counter = shared.clients[number].counters.lock()[at];
        if counter == Counter::default() {
            // The first time. An attempt of unknown outcome that takes effect late finds the counter
            // there and changes nothing: that is why it is no set.
            let zero = Operation::Add(b"0".to_vec());
            if self.until_answered(&name, |client| client.ask(&name, &zero)).is_none() {
                return;
            }
        }
        let answer = self.until_answered(&name, |client| {
            let told = client.ask(&name, &count);
            if matches!(told, Told::Unknown(_)) {
                counter.unknown += 1;
            }
            told
        });
        let verdict = match answer {
            Some(Answer::Number { number, .. }) => counter.counted(number),
            Some(answer) => Err(format!("{answer:?}, but {} acknowledged", counter.acknowledged)),
            None => Ok(()),
        };
        shared.clients[number].counters.lock()[at] = counter;
        if let Err(what) = verdict {
            shared.wrong(format!("counter {name} of a {} client: {what}", self.asker.name()));
        }
    }

    /// Does something with a key that all clients share.
    fn use_shared(&mut self) {
        let shared = Arc::clone(&self.shared);
        let key = shared.history.key(self.rng.usize(..shared.history.slots()));
        let number = self.number;
        let mark = || shared.history.mark(number);
        let roll = self.rng.u8(..20);
        let count = |create| Operation::Count { up: true, delta: 1, create };
        match (key.purpose, roll) {
            (_, 0..7) => {
                self.on(&key, || Operation::Get);
            }
            (Use::Register, 7..12) => {
                self.on(&key, || Operation::Set(mark()));
            }
            (Use::Register, 12..14) => {
                self.on(&key, || Operation::Append(mark()));
            }
            (Use::Register, 14..18) => {
                if let Some(Answer::Value { version: Some(expected), .. }) =
                    self.on(&key, || Operation::Get)
                {
                    self.on(&key, || Operation::CompareAndSet { expected, value: mark() });
                }
            }
            (Use::Register, 18) => {
                self.on(&key, || Operation::Add(mark()));
            }
            (_, 19) => {
                self.on(&key, || Operation::Delete);
            }
            (Use::Counter, _) if self.asker.creates_counters() => {
                self.on(&key, || count(Some(1)));
            }
            _ => {
                if self.on(&key, || count(None)) == Some(Answer::Absent) {
                    self.on(&key, || Operation::Add(b"1".to_vec()));
                }
            }
        }
    }

    /// Asks until there is an answer, and writes every attempt down.
    fn on(&mut self, key: &Key, operation: impl Fn() -> Operation) -> Option<Answer> {
        self.until_answered(&key.name, |client| {
            let operation = operation();
            let called = client.shared.history.call();
            let told = client.ask(&key.name, &operation);
            client.shared.history.note(key, client.number, called, operation, &told);
            told
        })
    }

    fn ask(&mut self, key: &str, operation: &Operation) -> Told {
        let begun = self.due.take().unwrap_or_else(Instant::now);
        let told = self.asker.ask(key, operation);
        let of = &self.shared.clients[self.number];
        match &told {
            Told::Answer(_) => {
                of.answered.fetch_add(1, Relaxed);
                let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                of.latencies.lock().saturating_record(micros);
            }
            Told::NotApplied(what) => {
                of.not_applied.fetch_add(1, Relaxed);
                self.shared.failed(what);
                if what.contains("lost") && !what.contains("connection") {
                    self.shared.wrong(format!("{key}: {what}"));
                }
            }
            Told::Unknown(what) => {
                of.unknown.fetch_add(1, Relaxed);
                self.shared.failed(what);
            }
        }
        told
    }

    /// Repeats a request until it is answered, and takes the time.
    fn until_answered(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&mut Self) -> Told,
    ) -> Option<Answer> {
        let part = usize::from(self.shared.part.load(Relaxed)).min(PARTS - 1);
        let begun = Instant::now();
        let mut last = String::new();
        let mut attempts = 0;
        while begun.elapsed() < GIVE_UP && !self.shared.gate.is_over() {
            attempts += 1;
            match attempt(self) {
                Told::Answer(answer) => {
                    self.note_wait(begun, what, attempts);
                    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let longest = &self.shared.clients[self.number].longest_us;
                    longest[part].fetch_max(micros, Relaxed);
                    return Some(answer);
                }
                Told::NotApplied(why) | Told::Unknown(why) => last = why,
            }
            thread::sleep(AGAIN_AFTER);
        }
        if begun.elapsed() >= GIVE_UP {
            let seconds = GIVE_UP.as_secs();
            let kind = self.asker.name();
            self.shared
                .wrong(format!("{what}: a {kind} client got no answer for {seconds} s: {last}"));
        }
        None
    }

    fn note_wait(&self, begun: Instant, what: &str, attempts: u32) {
        let waited = begun.elapsed();
        if waited < SLOW_MIN {
            return;
        }
        let ms = waited.as_secs_f64() * 1000.0;
        let mut slowest = self.shared.slowest.lock();
        if slowest.as_ref().is_none_or(|slowest| slowest.ms < ms) {
            let since = *self.shared.part_since.lock();
            *slowest = Some(Slow {
                ms,
                after_ms: begun.saturating_duration_since(since).as_secs_f64() * 1000.0,
                client: self.number,
                kind: self.asker.name(),
                what: what.to_owned(),
                attempts,
            });
        }
    }
}

/// Asks until there is an answer, on behalf of whoever judges.
pub(crate) fn insist(
    asker: &mut Asker,
    key: &str,
    operation: &Operation,
) -> Result<Answer, String> {
    let begun = Instant::now();
    loop {
        match asker.ask(key, operation) {
            Told::Answer(answer) => return Ok(answer),
            Told::NotApplied(what) | Told::Unknown(what) if begun.elapsed() >= GIVE_UP => {
                return Err(format!("no answer for {} s: {what}", GIVE_UP.as_secs()));
            }
            _ => thread::sleep(AGAIN_AFTER),
        }
    }
}

/// The number that a value is.
pub(crate) fn number_of(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn counter_name(client: usize, at: usize) -> String {
    format!("own{client}.{at}")
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are in order")
}

/// Counters of each client.
const COUNTERS: usize = 16;

/// After this long without a good answer a key counts as not served.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Shorter waits are not looked at one by one.
const SLOW_MIN: Duration = Duration::from_millis(20);

/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Kinds of errors that are kept.
const ERRORS_MAX: usize = 64;

/// Findings that are kept between two looks.
const WRONG_MAX: usize = 64;

const LATENCY_MAX_US: u64 = 120_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_may_be_anything_between_what_is_known_and_what_may_be() {
        let mut counter = Counter { acknowledged: 4, unknown: 2, last: 5 };
        assert_eq!(counter.counted(7), Ok(()));
        assert!(counter.counted(9).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_counter_that_goes_back_has_lost_something() {
        let mut counter = Counter::default();
        assert_eq!(counter.counted(1), Ok(()));
        assert_eq!(counter.counted(2), Ok(()));
        assert!(counter.counted(2).unwrap_err().contains("lost"));
        assert!(counter.read(2).unwrap_err().contains("acknowledged"));
    }
}
