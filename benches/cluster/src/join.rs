//! A node joins under load, and another one is asked to leave.
//!
//! Latency before and during the move is that of the same clients in the same run, so the ratio
//! says what the move costs, whatever machine this is. Items stored beforehand make the move worth
//! its name; all of them are read at the end.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use kiln_client::{Put, blocking};
use serde::Serialize;

use crate::{
    Outcome, TrialError,
    audit::Audit,
    figures::Spread,
    load::{Counts, Pace, Part},
    nodes::{Launch, Nodes, Picture, Place},
    say,
    scene::{LEAVES_MAX, Scene, WHOLE_MAX, native},
};

/// How to run the trial.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Nodes at first.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=16))]
    nodes: u16,
    /// Clients; every other one speaks memcached, the rest the native protocol.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    clients: u16,
    /// Items stored beforehand.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    items: u32,
    /// Length of their values.
    #[arg(long, default_value_t = 200, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=65_536))]
    value_len: u32,
    /// How long to measure before the node joins.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    before: u64,
    /// Pause of a client after each answer.
    #[arg(long, default_value_t = 2, value_name = "MS")]
    think_ms: u64,
    /// Turns of all clients a second at fixed times instead, whatever the answers take; what a turn
    /// waits counts from when it was due. A turn is one request, or a read and what follows from it.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "think_ms", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// How many times the 99th percentile before may be reached while a node joins.
    #[arg(long, default_value_t = 2.0, value_name = "RATIO")]
    ratio_max: f64,
}

/// Latencies of a while, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    seconds: f64,
    answers: u64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>, time: Duration) -> Self {
        let ms = |part| histogram.value_at_quantile(part) as f64 / 1000.0;
        Self {
            seconds: time.as_secs_f64(),
            answers: histogram.len(),
            p50: ms(0.5),
            p99: ms(0.99),
            p999: ms(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }

    fn text(&self) -> String {
        let Self { seconds, answers, p50, p99, p999, max } = self;
        format!(
            "p50 {p50:.2} ms  p99 {p99:.2} ms  p99.9 {p999:.2} ms  max {max:.0} ms  ({answers} answers in {seconds:.1} s)"
        )
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    mode: &'static str,
    seed: u64,
    before: Latency,
    joining: Latency,
    /// With the new node at work.
    after: Latency,
    /// The 99th percentiles of the first two.
    ratio: f64,
    leaving: Latency,
    /// Versions of the table while it joined.
    versions: f64,
    /// Copies that the new node holds, and its fair share.
    held: f64,
    fair: f64,
    counts: Counts,
    audit: Audit,
    items: u32,
    wrong: &'a [String],
}

impl Options {
    fn pace(&self) -> Pace {
        let think = Duration::from_millis(self.think_ms);
        self.rate.map_or(Pace::Think(think), |rate| {
            Pace::Every(Duration::from_secs_f64(f64::from(self.clients) / f64::from(rate)))
        })
    }

    /// What the clients do, in words.
    fn load(&self) -> String {
        match self.rate {
            Some(rate) => {
                format!("open loop, {rate} turns a second, latency from when each was due")
            }
            None => format!("closed loop, {} ms after each answer", self.think_ms),
        }
    }

    /// To have the same again.
    fn flags(&self) -> String {
        match self.rate {
            Some(rate) => format!("--rate {rate}"),
            None => format!("--think-ms {}", self.think_ms),
        }
    }
}

pub(crate) fn run(
    options: &Options,
    launch: Launch,
    seed: u64,
    bar: &ProgressBar,
    cancel: &AtomicBool,
) -> Result<Outcome, TrialError> {
    bar.set_length(5);
    let count = usize::from(options.nodes);
    let mut wrong = Vec::new();
    let mut nodes = Nodes::start(launch, count)?;
    nodes.until_whole(count, WHOLE_MAX)?;
    store(&native(&nodes.cluster_address())?, options)?;
    bar.inc(1);

    let mut scene = Scene::start(nodes, usize::from(options.clients), options.pace(), seed)?;
    scene.load.go();
    // Connections and tables are made by then.
    thread::sleep(Duration::from_secs(1));
    scene.load.take_latencies();
    let (begun, most) = (Instant::now(), Duration::from_secs(options.before));
    while begun.elapsed() < most && !cancel.load(Relaxed) {
        thread::sleep(Duration::from_millis(50));
    }
    let before = Latency::of(&scene.load.take_latencies(), begun.elapsed());
    say(bar, &format!("before:  {}", before.text()));
    bar.inc(1);

    scene.load.take_counts();
    scene.load.begin(Part::Fault);
    let begun = Instant::now();
    let epoch = scene.nodes.picture(0)?.epoch;
    let new = scene.nodes.add(Place::default())?;
    scene.nodes.until_placed(count + 1, WHOLE_MAX)?;
    let joining = Latency::of(&scene.load.take_latencies(), begun.elapsed());
    say(bar, &format!("joining: {}", joining.text()));
    bar.inc(1);
    let Picture { held, epoch: later, .. } = scene.nodes.picture(new)?;
    let versions = later - epoch;
    let all: f64 =
        (0..=new).map(|at| scene.nodes.picture(at).map(|seen| seen.held)).sum::<Result<_, _>>()?;
    let fair = all / (count + 1) as f64;

    // What one node more costs by itself, on a machine that has no more cores than before.
    scene.load.take_latencies();
    let begun = Instant::now();
    thread::sleep(AFTER);
    let after = Latency::of(&scene.load.take_latencies(), begun.elapsed());
    say(bar, &format!("after:   {}", after.text()));

    // One of the old ones leaves: what the new one took is needed now.
    let leaves = fastrand::Rng::with_seed(seed).usize(..count);
    scene.load.begin(Part::Return);
    scene.doors.set_open(leaves, false);
    let begun = Instant::now();
    scene.nodes.terminate(leaves)?;
    let status = scene.nodes.wait(leaves, LEAVES_MAX)?;
    if !status.success() {
        wrong.push(format!("the node that was asked to leave ended with {status}"));
    }
    thread::sleep(Duration::from_secs(1));
    let leaving = Latency::of(&scene.load.take_latencies(), begun.elapsed());
    say(bar, &format!("leaving: {}", leaving.text()));
    bar.inc(1);

    scene.load.hold()?;
    let slowest = scene.load.take_slowest();
    let longest =
        [Part::Fault, Part::Return].map(|part| Spread::of(&scene.load.longest_ms(part)).max);
    let counts = scene.load.take_counts();
    if counts.not_applied + counts.unknown > 0 {
        let failed = counts.not_applied + counts.unknown;
        wrong.push(format!("{failed} requests failed: {:?}", scene.load.errors()));
    }
    let (audit, more) = scene.audit()?;
    wrong.extend(more);
    wrong.extend(look(&native(&scene.nodes.cluster_address())?, options)?);
    bar.inc(1);
    let ratio = joining.p99 / before.p99.max(f64::MIN_POSITIVE);
    if ratio > options.ratio_max {
        wrong.push(format!(
            "while a node joined the 99th percentile was {ratio:.2} times that before, more than {}",
            options.ratio_max
        ));
    }
    if held < fair * 0.9 {
        wrong.push(format!("the new node holds {held} copies, its share is {fair:.0}"));
    }
    let evictions = scene.evictions();
    if evictions > 0.0 {
        wrong.push(format!("{evictions} items were evicted: the judge expects none"));
    }
    let report = Report {
        mode: "join",
        seed,
        before,
        joining,
        after,
        ratio,
        versions,
        leaving,
        held,
        fair,
        counts,
        audit,
        items: options.items,
        wrong: &wrong,
    };
    let text = format!(
        "{} items of {} bytes, {} nodes and one more, {} clients ({})\nbefore:  {}\njoining: {}\nafter:   {}\nleaving: {}\n\
         p99 while a node joins / before: {ratio:.2} (judged, at most {}); {versions} versions of the table\nlongest wait while joining {:.0} ms, while leaving \
         {:.0} ms; the longest: {slowest:?}\nthe new node holds {held} copies, its share is {fair:.0}; {} \
         left with {status}\n{} not applied, {} unknown; {} histories judged with {} operations\nreplay: \
         kiln-trial --seed {seed} join --nodes {} --clients {} --items {} --value-len {} {}\n",
        options.items,
        options.value_len,
        options.nodes,
        options.clients,
        options.load(),
        before.text(),
        joining.text(),
        after.text(),
        leaving.text(),
        options.ratio_max,
        longest[0],
        longest[1],
        scene.nodes.name(leaves),
        report.counts.not_applied,
        report.counts.unknown,
        report.audit.keys,
        report.audit.operations,
        options.nodes,
        options.clients,
        options.items,
        options.value_len,
        options.flags(),
    );
    Ok(Outcome { text, json: serde_json::json!(report), failures: wrong })
}

/// Stores all items.
fn store(client: &blocking::Client, options: &Options) -> Result<(), TrialError> {
    let cache = client.with_timeout(Duration::from_secs(30));
    let numbers: Vec<u32> = (0..options.items).collect();
    for batch in numbers.chunks(BATCH) {
        let items: Vec<(String, Vec<u8>)> =
            batch.iter().map(|number| (name(*number), value(*number, options))).collect();
        let puts: Vec<Put<'_>> = items.iter().map(|(key, value)| Put::new(key, value)).collect();
        for stored in cache.set_many(&puts) {
            stored.map_err(|error| TrialError::Client(error.to_string()))?;
        }
    }
    Ok(())
}

/// Reads all items. Returns what is wrong with them.
fn look(client: &blocking::Client, options: &Options) -> Result<Option<String>, TrialError> {
    let cache = client.with_timeout(Duration::from_secs(30));
    let (mut missing, mut other) = (0, 0);
    let numbers: Vec<u32> = (0..options.items).collect();
    for batch in numbers.chunks(BATCH) {
        let keys: Vec<String> = batch.iter().map(|number| name(*number)).collect();
        for (number, item) in batch.iter().zip(cache.get_many(&keys)) {
            match item.map_err(|error| TrialError::Client(error.to_string()))? {
                Some(item) if item.value == value(*number, options) => {}
                Some(_) => other += 1,
                None => missing += 1,
            }
        }
    }
    let wrong = missing + other > 0;
    Ok(wrong.then(|| {
        format!("of the items stored beforehand {missing} are gone and {other} are others")
    }))
}

fn name(number: u32) -> String {
    format!("item{number}")
}

fn value(number: u32, options: &Options) -> Vec<u8> {
    let mut value = format!("value {number} ").into_bytes();
    value.resize(options.value_len as usize, b'.');
    value
}

/// How long to measure with the new node at work.
const AFTER: Duration = Duration::from_secs(3);

/// Items in one call.
const BATCH: usize = 500;
