//! An eventual cache while nodes are killed and paused.
//!
//! Each key has one writer, which so knows what it must be: what was acknowledged last. Where that
//! is not certain, several values are allowed: a write of unknown outcome may show at any time, and
//! what a node acknowledged in the moment before it was killed may have died with it, because this
//! cache acknowledges after one copy. A third of the keys rests in each cycle: of those nothing is
//! uncertain, and what was deleted must stay deleted.
//!
//! Clients speak HTTP to one node each, and the native protocol. Those at nodes that run are judged
//! for availability: none of their requests may fail.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use kiln_linearizability::{Answer, Operation};
use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    Outcome, TrialError,
    ask::{Asker, Doors, Patience, Told},
    failover::Fault,
    figures::Spread,
    gate::Gate,
    http::Http,
    load::insist,
    nodes::{Launch, Nodes},
    say,
    scene::{WHOLE_MAX, native_asker},
};

/// How to run the trial.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many faults.
    #[arg(long, default_value_t = 6, value_name = "N")]
    cycles: u32,
    /// Clients; two in three speak HTTP to one node, the rest the native protocol.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=512))]
    clients: u16,
    /// What happens to nodes: kill, stop, or mixed.
    #[arg(long, value_enum, default_value = "mixed")]
    fault: Fault,
    /// Pause of a client after each answer.
    #[arg(long, default_value_t = 2, value_name = "MS")]
    think_ms: u64,
    /// Within how long after the heal all copies must be equal.
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    equal_max_ms: u64,
    /// Go on after a cycle in which something was wrong.
    #[arg(long)]
    keep_going: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Cycle {
    cycle: u32,
    fault: Fault,
    node: String,
    /// The longest wait of a client at a node that ran.
    longest_ms: f64,
    /// Its requests that failed.
    failed: u64,
    /// Requests of clients that were at the node of the fault, or knew it, and failed.
    failed_at_the_fault: u64,
    answered: u64,
    /// From the heal until all copies were equal, as `kiln cluster verify` sees it.
    equal_ms: f64,
    /// From the heal until nothing was missing.
    whole_ms: f64,
    keys: usize,
    /// Of those, deleted.
    deleted: usize,
    /// Of those, with more than one value allowed.
    uncertain: usize,
    wrong: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    mode: &'static str,
    seed: u64,
    longest_ms: Spread,
    equal_ms: Spread,
    whole_ms: Spread,
    wrong: &'a [String],
    cycles: &'a [Cycle],
}

pub(crate) fn run(
    options: &Options,
    launch: Launch,
    seed: u64,
    bar: &ProgressBar,
    cancel: &AtomicBool,
) -> Result<Outcome, TrialError> {
    bar.set_length(u64::from(options.cycles));
    let nodes = Nodes::start(launch, NODES)?;
    let mut trial = Trial::start(options, nodes, seed)?;
    let mut cycles: Vec<Cycle> = Vec::new();
    let mut failures = Vec::new();
    for number in 1..=options.cycles {
        if cancel.load(Relaxed) {
            failures.push(format!("ended early, after {} cycles", cycles.len()));
            break;
        }
        let cycle = trial.cycle(number)?;
        say(
            bar,
            &format!(
                "{number:4}  {:<5} {}  longest wait {:5.0} ms  failed {}  equal {:5.0} ms  whole {:5.1} s  {} answers, \
             {} keys ({} deleted, {} uncertain)",
                format!("{:?}", cycle.fault).to_lowercase(),
                cycle.node,
                cycle.longest_ms,
                cycle.failed,
                cycle.equal_ms,
                cycle.whole_ms / 1000.0,
                cycle.answered,
                cycle.keys,
                cycle.deleted,
                cycle.uncertain,
            ),
        );
        for what in &cycle.wrong {
            say(bar, &format!("      WRONG: {what}"));
            failures.push(format!("cycle {number}: {what}"));
        }
        cycles.push(cycle);
        bar.inc(1);
        if !failures.is_empty() && !options.keep_going {
            break;
        }
    }
    let of = |value: fn(&Cycle) -> f64| Spread::of(&cycles.iter().map(value).collect::<Vec<_>>());
    let report = Report {
        mode: "eventual",
        seed,
        longest_ms: of(|cycle| cycle.longest_ms),
        equal_ms: of(|cycle| cycle.equal_ms),
        whole_ms: of(|cycle| cycle.whole_ms),
        wrong: &failures,
        cycles: &cycles,
    };
    let fault = format!("{:?}", options.fault).to_lowercase();
    let text = format!(
        "{} cycles, {NODES} nodes, {} clients\nlongest wait at nodes that ran: {}\nall copies equal \
         after the heal: {}\nnothing missing after the heal: {}\nreplay: kiln-trial --seed {seed} \
         eventual --cycles {} --clients {} --fault {fault}\n",
        cycles.len(),
        options.clients,
        report.longest_ms,
        report.equal_ms,
        report.whole_ms,
        options.cycles,
        options.clients,
    );
    Ok(Outcome { text, json: serde_json::json!(report), failures })
}

/// What clients and trial share.
struct Shared {
    gate: Gate,
    think: Duration,
    /// The node with the fault, or `usize::MAX`.
    victim: AtomicUsize,
    /// Which third of the keys rests.
    resting: AtomicUsize,
    homing: AtomicU64,
    longest_us: AtomicU64,
    failed: AtomicU64,
    failed_at_the_fault: AtomicU64,
    answered: AtomicU64,
    first_failure: Mutex<Option<String>>,
    keys: Vec<Mutex<Vec<Known>>>,
}

/// What the writer of a key knows of it.
#[derive(Clone, Debug, Default)]
struct Known {
    written: Vec<Write>,
}

/// A write; no value is a delete.
#[derive(Clone, Debug)]
struct Write {
    value: Option<Vec<u8>>,
    begun: Instant,
    /// None when the outcome is not known.
    acknowledged: Option<Instant>,
}

impl Known {
    /// What the key may be, when a node was killed at that moment.
    fn allowed(&self, killed: Option<Instant>) -> BTreeSet<Option<Vec<u8>>> {
        let mut allowed: BTreeSet<_> = self
            .written
            .iter()
            .filter(|write| write.acknowledged.is_none())
            .map(|write| write.value.clone())
            .collect();
        let acknowledged =
            self.written.iter().filter_map(|write| Some((write, write.acknowledged?))).rev();
        for (write, at) in acknowledged {
            allowed.insert(write.value.clone());
            let dies_with = |killed: Instant| at + UNSETTLED > killed && write.begun < killed;
            if !killed.is_some_and(dies_with) {
                return allowed;
            }
        }
        // All that is known of was uncertain: before that the key was not there.
        allowed.insert(None);
        allowed
    }
}

struct Trial<'a> {
    options: &'a Options,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    patience: Arc<Patience>,
    doors: Arc<Doors>,
    nodes: Nodes,
    rng: fastrand::Rng,
}

impl<'a> Trial<'a> {
    fn start(options: &'a Options, mut nodes: Nodes, seed: u64) -> Result<Self, TrialError> {
        nodes.until_whole(NODES, WHOLE_MAX)?;
        let create = ["cache", "create", CACHE, "--mode", "eventual", "--copies", "2"];
        let output = nodes.kiln(&create)?;
        if !output.status.success() {
            return Err(TrialError::Client(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        nodes.until_whole(NODES, WHOLE_MAX)?;
        let doors = Arc::new(Doors::default());
        for at in 0..NODES {
            doors.add(&nodes.address(at, "http"))?;
        }
        let clients = usize::from(options.clients);
        let shared = Arc::new(Shared {
            gate: Gate::new(),
            think: Duration::from_millis(options.think_ms),
            victim: AtomicUsize::new(usize::MAX),
            resting: AtomicUsize::new(0),
            homing: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failed_at_the_fault: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            first_failure: Mutex::default(),
            keys: (0..clients).map(|_| Mutex::new(vec![Known::default(); KEYS])).collect(),
        });
        let patience = Arc::new(Patience::new(PATIENT));
        let mut trial = Self {
            options,
            shared,
            threads: Vec::new(),
            patience,
            doors,
            nodes,
            rng: fastrand::Rng::with_seed(seed),
        };
        for number in 0..clients {
            let asker = if number % 3 < 2 {
                Asker::Http(trial.http(number % NODES))
            } else {
                native_asker(&trial.nodes.cluster_address(), CACHE, &trial.patience)?
            };
            let shared = Arc::clone(&trial.shared);
            let rng =
                fastrand::Rng::with_seed(seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9));
            let work = move || Client { number, asker, shared, rng, marks: 0, homing: 0 }.run();
            trial.threads.push(thread::Builder::new().spawn(work)?);
        }
        Ok(trial)
    }

    fn http(&self, home: usize) -> Http {
        Http::new(Arc::clone(&self.doors), Arc::clone(&self.patience), CACHE, home)
    }

    fn cycle(&mut self, number: u32) -> Result<Cycle, TrialError> {
        let fault = match self.options.fault {
            Fault::Mixed if self.rng.bool() => Fault::Kill,
            Fault::Mixed => Fault::Stop,
            fault => fault,
        };
        let victim = self.rng.usize(..NODES);
        let away = Duration::from_millis(self.rng.u64(2_000..4_000));
        let shared = Arc::clone(&self.shared);
        shared.resting.store(number as usize % 3, Relaxed);
        shared.homing.fetch_add(1, Relaxed);
        for count in
            [&shared.longest_us, &shared.failed, &shared.failed_at_the_fault, &shared.answered]
        {
            count.store(0, Relaxed);
        }
        shared.gate.open();
        thread::sleep(Duration::from_millis(1_500));

        shared.victim.store(victim, Relaxed);
        let killed = Instant::now();
        match fault {
            Fault::Kill => self.nodes.kill(victim)?,
            _ => self.nodes.pause(victim)?,
        }
        thread::sleep(away);
        match fault {
            Fault::Kill => self.nodes.restart(victim)?,
            _ => self.nodes.resume(victim)?,
        }
        let healed = Instant::now();
        thread::sleep(Duration::from_millis(300));
        shared.gate.hold(self.threads.len())?;
        let mut wrong = Vec::new();
        let equal_ms = self.until_equal(healed, &mut wrong)?;
        // Clients go on while copies are made.
        if fault == Fault::Kill {
            shared.gate.open();
        }
        self.nodes.until_whole(NODES, WHOLE_MAX)?;
        let whole_ms = healed.elapsed().as_secs_f64() * 1000.0;
        shared.gate.hold(self.threads.len())?;
        shared.victim.store(usize::MAX, Relaxed);

        let failed = shared.failed.load(Relaxed);
        if failed > 0 {
            let first = shared.first_failure.lock().take().unwrap_or_default();
            wrong.push(format!("{failed} requests failed at nodes that ran; the first: {first}"));
        }
        let mut cycle = Cycle {
            cycle: number,
            fault,
            node: self.nodes.name(victim).to_owned(),
            longest_ms: shared.longest_us.load(Relaxed) as f64 / 1000.0,
            failed,
            failed_at_the_fault: shared.failed_at_the_fault.load(Relaxed),
            answered: shared.answered.load(Relaxed),
            equal_ms,
            whole_ms,
            keys: 0,
            deleted: 0,
            uncertain: 0,
            wrong,
        };
        self.audit((fault == Fault::Kill).then_some(killed), &mut cycle);
        Ok(cycle)
    }

    /// Reads every key at every node.
    fn audit(&mut self, killed: Option<Instant>, cycle: &mut Cycle) {
        let mut readers: Vec<Asker> = (0..NODES).map(|at| Asker::Http(self.http(at))).collect();
        for (client, keys) in self.shared.keys.iter().enumerate() {
            for (at, known) in keys.lock().iter_mut().enumerate() {
                if known.written.is_empty() {
                    continue;
                }
                let name = key_name(client, at);
                let allowed = known.allowed(killed);
                cycle.keys += 1;
                cycle.uncertain += usize::from(allowed.len() > 1);
                let mut seen = BTreeSet::new();
                for (node, reader) in readers.iter_mut().enumerate() {
                    match insist(reader, &name, &Operation::Get) {
                        Ok(answer) => {
                            let is = match answer {
                                Answer::Value { value, .. } => Some(value),
                                _ => None,
                            };
                            if !allowed.contains(&is) {
                                let back = if allowed.len() == 1 && allowed.contains(&None) {
                                    ": it was deleted"
                                } else {
                                    ""
                                };
                                cycle.wrong.push(format!(
                                    "key {name} is {} at n{}, allowed {:?}{back}",
                                    shown(&is),
                                    node + 1,
                                    allowed.iter().map(shown).collect::<Vec<_>>()
                                ));
                            }
                            seen.insert(is);
                        }
                        Err(what) => cycle.wrong.push(format!("key {name}: {what}")),
                    }
                }
                if seen.len() > 1 {
                    cycle.wrong.push(format!("key {name} is not the same at all nodes: {seen:?}"));
                }
                let is = seen.pop_last().flatten();
                cycle.deleted += usize::from(is.is_none());
                let now = Instant::now();
                // Writes of unknown outcome may still show, while their node remembers them.
                known.written.retain(|write| {
                    write.acknowledged.is_none() && write.begun.elapsed() < LATE_MAX
                });
                known.written.push(Write { value: is, begun: now, acknowledged: Some(now) });
            }
        }
    }

    /// Compares all copies until they are equal. Returns how long after the heal that was.
    fn until_equal(&self, healed: Instant, wrong: &mut Vec<String>) -> Result<f64, TrialError> {
        let most = Duration::from_millis(self.options.equal_max_ms);
        loop {
            let verify = ["cluster", "verify", "--cache", CACHE, "--looks", "2", "-o", "json"];
            let output = self.nodes.kiln(&verify)?;
            let after = healed.elapsed();
            if output.status.success() {
                return Ok(after.as_secs_f64() * 1000.0);
            }
            if after >= most {
                wrong.push(format!(
                    "copies are not equal {:.1} s after the heal: {} {}",
                    after.as_secs_f64(),
                    String::from_utf8_lossy(&output.stderr).trim(),
                    String::from_utf8_lossy(&output.stdout).chars().take(1_000).collect::<String>(),
                ));
                return Ok(after.as_secs_f64() * 1000.0);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.shared.gate.end();
        for thread in self.threads.drain(..) {
            // A client that panicked has said so.
            let _ = thread.join();
        }
    }
}

struct Client {
    number: usize,
    asker: Asker,
    shared: Arc<Shared>,
    rng: fastrand::Rng,
    marks: u64,
    homing: u64,
}

impl Client {
    fn run(mut self) {
        while self.shared.gate.pass() {
            let homing = self.shared.homing.load(Relaxed);
            if std::mem::replace(&mut self.homing, homing) != homing {
                self.asker.go_home();
            }
            self.step();
            thread::sleep(self.shared.think);
        }
    }

    fn step(&mut self) {
        let at = self.rng.usize(..KEYS);
        let rests = at % 3 == self.shared.resting.load(Relaxed);
        let operation = match self.rng.u8(..10) {
            0..5 if !rests => {
                self.marks += 1;
                Operation::Set(format!("{}.{}", self.number, self.marks).into_bytes())
            }
            5..7 if !rests => Operation::Delete,
            _ => Operation::Get,
        };
        let name = key_name(self.number, at);
        let begun = Instant::now();
        let told = self.asker.ask(&name, &operation);
        let value = match &operation {
            Operation::Set(value) => Some(Some(value.clone())),
            Operation::Delete => Some(None),
            _ => None,
        };
        if let Some(value) = value
            && !matches!(told, Told::NotApplied(_))
        {
            let acknowledged = matches!(told, Told::Answer(_)).then(Instant::now);
            let mut keys = self.shared.keys[self.number].lock();
            keys[at].written.push(Write { value, begun, acknowledged });
        }
        self.count(begun, &told);
    }

    fn count(&self, begun: Instant, told: &Told) {
        let shared = &self.shared;
        let victim = shared.victim.load(Relaxed);
        // The Rust client knows all nodes, so it may have asked the one with the fault.
        let at_a_node_that_runs = match &self.asker {
            Asker::Http(client) => client.home() != victim,
            _ => victim == usize::MAX,
        };
        match told {
            Told::Answer(_) => {
                shared.answered.fetch_add(1, Relaxed);
                if at_a_node_that_runs {
                    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    shared.longest_us.fetch_max(micros, Relaxed);
                }
            }
            Told::NotApplied(what) | Told::Unknown(what) if at_a_node_that_runs => {
                shared.failed.fetch_add(1, Relaxed);
                shared.first_failure.lock().get_or_insert_with(|| what.clone());
            }
            _ => {
                shared.failed_at_the_fault.fetch_add(1, Relaxed);
            }
        }
    }
}

fn key_name(client: usize, at: usize) -> String {
    format!("e{client}.{at}")
}

fn shown(value: &Option<Vec<u8>>) -> String {
    match value {
        Some(value) => String::from_utf8_lossy(value).into_owned(),
        None => "absent".to_owned(),
    }
}

const NODES: usize = 3;
const CACHE: &str = "shared";

/// Keys of each client.
const KEYS: usize = 90;

/// What a node acknowledged in this time before it was killed may have died with it.
const UNSETTLED: Duration = Duration::from_secs(1);

/// How long after it was asked a write of unknown outcome may still show.
const LATE_MAX: Duration = Duration::from_secs(60);

/// Longer than it takes until a silent node is given up: who asks another one must get an answer.
const PATIENT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: Option<&str>, begun: Instant, acknowledged: bool) -> Write {
        let value = value.map(|value| value.as_bytes().to_vec());
        Write { value, begun, acknowledged: acknowledged.then_some(begun) }
    }

    fn texts(allowed: &BTreeSet<Option<Vec<u8>>>) -> Vec<String> {
        allowed.iter().map(shown).collect()
    }

    #[test]
    fn what_was_acknowledged_last_is_all_that_is_allowed() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let known = Known { written: vec![write(Some("a"), now, true), write(None, now, true)] };
        assert_eq!(texts(&known.allowed(None)), ["absent"]);
        assert_eq!(texts(&known.allowed(Some(later))), ["absent"]);
    }

    #[test]
    fn what_a_node_acknowledged_just_before_it_was_killed_may_be_gone() {
        let now = Instant::now();
        let late = now + Duration::from_millis(4_900);
        let killed = now + Duration::from_secs(5);
        let written = vec![write(Some("a"), now, true), write(None, late, true)];
        assert_eq!(texts(&Known { written }.allowed(Some(killed))), ["absent", "a"]);
    }

    #[test]
    fn a_write_of_unknown_outcome_may_show_after_a_later_one() {
        let now = Instant::now();
        let written = vec![write(Some("a"), now, false), write(Some("b"), now, true)];
        assert_eq!(texts(&Known { written }.allowed(None)), ["a", "b"]);
    }
}
