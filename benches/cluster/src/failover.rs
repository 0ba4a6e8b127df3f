//! Nodes are killed, paused and stopped, one after the other, under clients that are judged.
//!
//! ```text
//!   cycle:  calm --fault--> failover --node runs again--> copies are made --whole--> audit
//! ```
//!
//! Between two cycles the cluster is whole: more than one lost copy at a time is more than the
//! cache `default` promises to survive. Which node, which fault and how long it is away are drawn
//! from the seed; what the clients and the machine do in between is not.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    Outcome, TrialError,
    audit::Audit,
    figures::Spread,
    load::{Counts, Pace, Part, Slow},
    nodes::{Launch, Nodes},
    say,
    scene::{LEAVES_MAX, PATIENT, Scene, WHOLE_MAX},
};

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fault {
    /// SIGKILL, and started again after a while.
    Kill,
    /// SIGSTOP for two to four seconds, then SIGCONT.
    Stop,
    /// SIGTERM, which must not be noticed, and started again.
    Term,
    /// Any of these: mostly kills.
    Mixed,
}

/// How to run the trial.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many faults.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) cycles: u32,
    /// Clients; every other one speaks memcached, the rest the native protocol.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) clients: u16,
    /// Nodes.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=16))]
    pub(crate) nodes: u16,
    /// What happens to them.
    #[arg(long, value_enum, default_value = "kill")]
    pub(crate) fault: Fault,
    /// Pause of a client after each answer.
    #[arg(long, default_value_t = 2, value_name = "MS")]
    pub(crate) think_ms: u64,
    /// Failover times above this, at the 99th percentile over the cycles, fail the trial.
    #[arg(long, default_value_t = 1500, value_name = "MS")]
    pub(crate) failover_max_ms: u64,
    /// Go on after a cycle in which something was wrong.
    #[arg(long)]
    pub(crate) keep_going: bool,
}

/// One fault and what became of it.
#[derive(Clone, Debug, Serialize)]
struct Cycle {
    cycle: u32,
    fault: Fault,
    node: String,
    /// The node led the controller group.
    controller: bool,
    /// How long the node was away.
    away_ms: u64,
    /// The longest wait of any client that began between the fault and the return.
    failover_ms: f64,
    /// The same for each client.
    clients_ms: Vec<f64>,
    /// The longest wait that began after the return.
    return_ms: f64,
    /// From the return until all copies were there again.
    whole_ms: f64,
    /// The longest wait of all.
    slowest: Option<Slow>,
    counts: Counts,
    audit: Audit,
    wrong: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    mode: &'static str,
    seed: u64,
    replay: String,
    nodes: u16,
    clients: u16,
    failover_ms: BTreeMap<String, Spread>,
    /// All clients of all cycles apart.
    each_client_ms: BTreeMap<String, Spread>,
    return_ms: Spread,
    whole_ms: Spread,
    answered: u64,
    not_applied: u64,
    unknown: u64,
    audit: Audit,
    evictions: f64,
    errors: BTreeMap<String, u64>,
    wrong: Vec<String>,
    cycles: Vec<Cycle>,
}

pub(crate) fn run(
    options: &Options,
    launch: Launch,
    seed: u64,
    bar: &ProgressBar,
    cancel: &AtomicBool,
) -> Result<Outcome, TrialError> {
    bar.set_length(u64::from(options.cycles));
    let count = usize::from(options.nodes);
    let nodes = Nodes::start(launch, count)?;
    let pace = Pace::Think(Duration::from_millis(options.think_ms));
    let scene = Scene::start(nodes, usize::from(options.clients), pace, seed)?;
    let mut trial = Trial { options, scene, rng: fastrand::Rng::with_seed(seed) };
    trial.scene.nodes.until_whole(count, WHOLE_MAX)?;
    let mut cycles = Vec::new();
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
                "{number:4}  {:<5} {}{}  failover {:5.0} ms  return {:5.0} ms  whole {:5.1} s  {} answers, {} not \
             applied, {} unknown, {} keys judged",
                format!("{:?}", cycle.fault).to_lowercase(),
                cycle.node,
                if cycle.controller { "*" } else { " " },
                cycle.failover_ms,
                cycle.return_ms,
                cycle.whole_ms / 1000.0,
                cycle.counts.answered,
                cycle.counts.not_applied,
                cycle.counts.unknown,
                cycle.audit.keys,
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
    let evictions = trial.scene.evictions();
    if evictions > 0.0 {
        failures.push(format!("{evictions} items were evicted: the judge expects none"));
    }
    failures.extend(trial.scene.verify()?);
    Ok(outcome(options, seed, &trial, cycles, evictions, failures))
}

fn outcome(
    options: &Options,
    seed: u64,
    trial: &Trial<'_>,
    cycles: Vec<Cycle>,
    evictions: f64,
    mut failures: Vec<String>,
) -> Outcome {
    let mut failover: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut each: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut audit = Audit::default();
    for cycle in &cycles {
        let fault = format!("{:?}", cycle.fault).to_lowercase();
        failover.entry(fault.clone()).or_default().push(cycle.failover_ms);
        each.entry(fault).or_default().extend(&cycle.clients_ms);
        audit.add(&cycle.audit);
    }
    let spreads = |values: BTreeMap<String, Vec<f64>>| -> BTreeMap<String, Spread> {
        values.into_iter().map(|(fault, values)| (fault, Spread::of(&values))).collect()
    };
    let of = |value: fn(&Cycle) -> f64| Spread::of(&cycles.iter().map(value).collect::<Vec<_>>());
    let total = |value: fn(&Counts) -> u64| cycles.iter().map(|cycle| value(&cycle.counts)).sum();
    let failover = spreads(failover);
    if let Some(kills) = failover.get("kill")
        && kills.p99 > options.failover_max_ms as f64
    {
        failures.push(format!(
            "failover took {:.0} ms at the 99th percentile, more than {} ms",
            kills.p99, options.failover_max_ms
        ));
    }
    if audit.undecided > 0 {
        failures.push(format!("{} histories were too hard to judge", audit.undecided));
    }
    let report = Report {
        mode: "failover",
        seed,
        replay: format!(
            "kiln-trial --seed {seed} failover --cycles {} --clients {} --nodes {} --fault {} --think-ms {}",
            options.cycles,
            options.clients,
            options.nodes,
            format!("{:?}", options.fault).to_lowercase(),
            options.think_ms,
        ),
        nodes: options.nodes,
        clients: options.clients,
        failover_ms: failover,
        each_client_ms: spreads(each),
        return_ms: of(|cycle| cycle.return_ms),
        whole_ms: of(|cycle| cycle.whole_ms),
        answered: total(|counts| counts.answered),
        not_applied: total(|counts| counts.not_applied),
        unknown: total(|counts| counts.unknown),
        audit,
        evictions,
        errors: trial.scene.load.errors(),
        wrong: failures.clone(),
        cycles,
    };
    Outcome { text: text(&report), json: serde_json::json!(report), failures }
}

fn text(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!(
        "{} cycles, {} nodes, {} clients: {} answers, {} not applied, {} unknown",
        report.cycles.len(),
        report.nodes,
        report.clients,
        report.answered,
        report.not_applied,
        report.unknown
    ));
    for (fault, spread) in &report.failover_ms {
        line(format!("failover after {fault}, worst client: {spread}"));
    }
    for (fault, spread) in &report.each_client_ms {
        line(format!("failover after {fault}, each client:  {spread}"));
    }
    line(format!("longest wait after the return: {}", report.return_ms));
    line(format!("until all copies were back:    {}", report.whole_ms));
    line(format!(
        "judged: {} histories with {} operations, {} undecided; {} looks at keys at rest",
        report.audit.keys, report.audit.operations, report.audit.undecided, report.audit.kept
    ));
    for (error, count) in &report.errors {
        line(format!("  {count:6} x {error}"));
    }
    line(format!("replay: {}", report.replay));
    text
}

/// The cluster, its clients and the dice.
struct Trial<'a> {
    options: &'a Options,
    scene: Scene,
    rng: fastrand::Rng,
}

impl Trial<'_> {
    fn cycle(&mut self, number: u32) -> Result<Cycle, TrialError> {
        let fault = match self.options.fault {
            Fault::Mixed => match self.rng.u8(..10) {
                0..6 => Fault::Kill,
                6..8 => Fault::Stop,
                _ => Fault::Term,
            },
            fault => fault,
        };
        let victim = self.rng.usize(..self.scene.nodes.count());
        let calm = Duration::from_millis(self.rng.u64(300..1_000));
        // A node that is back before it was missed is as dangerous as one that is long away.
        let away = match fault {
            Fault::Stop => Duration::from_millis(self.rng.u64(2_000..4_000)),
            _ if self.rng.u8(..4) == 0 => Duration::ZERO,
            _ => Duration::from_millis(self.rng.u64(1_500..4_000)),
        };
        self.scene.patience.set(if fault == Fault::Stop { HASTY } else { PATIENT });
        let controller = self.scene.leads(victim);
        self.scene.load.take_counts();
        self.scene.load.go_home();
        self.scene.load.begin(Part::Calm);
        self.scene.load.go();
        thread::sleep(calm);

        self.scene.load.begin(Part::Fault);
        let begun = Instant::now();
        match fault {
            Fault::Stop => {
                self.scene.nodes.pause(victim)?;
                thread::sleep(away);
                self.scene.load.begin(Part::Return);
                self.scene.nodes.resume(victim)?;
            }
            Fault::Term => {
                self.scene.doors.set_open(victim, false);
                self.scene.nodes.terminate(victim)?;
                let status = self.scene.nodes.wait(victim, LEAVES_MAX)?;
                if !status.success() {
                    return Err(TrialError::BadEnd {
                        node: self.scene.nodes.name(victim).to_owned(),
                        status,
                    });
                }
                thread::sleep(away);
                self.scene.load.begin(Part::Return);
                self.scene.nodes.restart(victim)?;
                self.scene.doors.set_open(victim, true);
            }
            Fault::Kill | Fault::Mixed => {
                self.scene.nodes.kill(victim)?;
                thread::sleep(away);
                if !away.is_zero() {
                    self.scene.load.begin(Part::Return);
                }
                self.scene.nodes.restart(victim)?;
            }
        }
        let away_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let whole = self.scene.nodes.until_whole(self.scene.nodes.count(), WHOLE_MAX)?;
        self.scene.load.hold()?;

        let clients_ms = self.scene.load.longest_ms(Part::Fault);
        let return_ms = Spread::of(&self.scene.load.longest_ms(Part::Return)).max;
        let counts = self.scene.load.take_counts();
        let (audit, mut wrong) = self.scene.audit()?;
        if fault == Fault::Term && counts.not_applied + counts.unknown > 0 {
            wrong.push(format!(
                "{} requests failed while a node left in good order: {:?}",
                counts.not_applied + counts.unknown,
                self.scene.load.errors()
            ));
        }
        Ok(Cycle {
            cycle: number,
            fault,
            node: self.scene.nodes.name(victim).to_owned(),
            controller,
            away_ms,
            failover_ms: Spread::of(&clients_ms).max,
            clients_ms,
            return_ms,
            whole_ms: whole.as_secs_f64() * 1000.0,
            slowest: self.scene.load.take_slowest(),
            counts,
            audit,
            wrong,
        })
    }
}

/// The same when nodes are paused: a connection to one says nothing, and does not end either.
const HASTY: Duration = Duration::from_secs(1);
