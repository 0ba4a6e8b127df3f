//! The node that owns a watched sensor is killed under producers of readings that are judged.
//!
//! ```text
//!   cycle:  calm --kill the owner--> promotion --> first window --node runs again--> whole --> verify
//! ```
//!
//! The watched window is the one in which the kill falls: it can only be given by the new owner, from
//! state that it took over and readings that came after. When the new owner was promoted is asked of
//! another node's table, again and again; so is the window. What is judged in the end are the counts
//! and sums of all windows of all sensors: they are those of what was acknowledged, each reading once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use kiln_cluster::placement::partition_of;
use serde::Serialize;
use serde_json::Value;

use crate::{
    Outcome, TrialError,
    figures::Spread,
    http,
    nodes::{Launch, Nodes, http_get, metric},
    producers::{Producers, Shape},
    say,
    scene::WHOLE_MAX,
};

/// How to run the trial.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many kills.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) cycles: u32,
    /// Producers; every other one posts over HTTP, the rest send lines over TCP.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=64))]
    pub(crate) producers: u16,
    /// Sensors; each batch has a reading of each.
    #[arg(long, default_value_t = 48, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) sensors: u16,
    /// Between two batches of a producer.
    #[arg(long, default_value_t = 100, value_name = "MS", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) step_ms: u16,
    /// From promotion to the first right window, at the 99th percentile over the cycles: more fails
    /// the trial.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    pub(crate) window_max_ms: u64,
    /// Go on after a cycle in which something was wrong.
    #[arg(long)]
    pub(crate) keep_going: bool,
}

/// One kill and what became of it.
#[derive(Clone, Debug, Serialize)]
struct Cycle {
    cycle: u32,
    node: String,
    sensor: String,
    away_ms: u64,
    /// From the kill until another node's table named a new owner.
    promoted_ms: f64,
    /// From then until the window in which the kill fell was there.
    window_ms: f64,
    /// The longest wait of a producer for an acknowledgement.
    longest_ms: f64,
    /// How often batches were sent again.
    again: u64,
    whole_ms: f64,
    verified_ms: f64,
    wrong: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    mode: &'static str,
    seed: u64,
    replay: String,
    promoted_ms: Spread,
    window_ms: Spread,
    longest_ms: Spread,
    whole_ms: Spread,
    readings: i64,
    windows: u64,
    recoveries: f64,
    recovery_ms: f64,
    wrong: Vec<String>,
    cycles: Vec<Cycle>,
}

const STREAM: &str = "plant";
const WINDOW_MS: i64 = 250;
const DEFINITION: &str = r#"{"windows": [{"tumbling": "250ms"}], "aggregates": ["count", "sum"],
    "watermark_delay": "100ms", "idle_timeout": "10m"}"#;

pub(crate) fn run(
    options: &Options,
    launch: Launch,
    seed: u64,
    bar: &ProgressBar,
    cancel: &AtomicBool,
) -> Result<Outcome, TrialError> {
    bar.set_length(u64::from(options.cycles));
    let mut trial = Trial::start(options, launch, seed)?;
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
                "{number:4}  {} owned {:<4} promoted {:5.0} ms  window {:5.0} ms later  longest wait {:5.0} ms, {} \
                 sent again  whole {:5.1} s",
                cycle.node,
                cycle.sensor,
                cycle.promoted_ms,
                cycle.window_ms,
                cycle.longest_ms,
                cycle.again,
                cycle.whole_ms / 1000.0,
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
    let (readings, windows) = trial.prove(&mut failures)?;
    failures.extend(trial.verify()?.1);
    trial.count_losses(&mut failures);
    let of = |value: fn(&Cycle) -> f64| Spread::of(&cycles.iter().map(value).collect::<Vec<_>>());
    let window = of(|cycle| cycle.window_ms);
    if window.p99 > options.window_max_ms as f64 {
        failures.push(format!(
            "the first right window came {:.0} ms after promotion at the 99th percentile, more than {} ms",
            window.p99, options.window_max_ms
        ));
    }
    let report = Report {
        mode: "streams",
        seed,
        replay: format!(
            "kiln-trial --seed {seed} streams --cycles {} --producers {} --sensors {} --step-ms {}",
            options.cycles, options.producers, options.sensors, options.step_ms
        ),
        promoted_ms: of(|cycle| cycle.promoted_ms),
        window_ms: window,
        longest_ms: of(|cycle| cycle.longest_ms),
        whole_ms: of(|cycle| cycle.whole_ms),
        readings,
        windows,
        recoveries: trial.recoveries,
        recovery_ms: trial.recovery_ms,
        wrong: failures.clone(),
        cycles,
    };
    Ok(Outcome { text: text(&report), json: serde_json::json!(report), failures })
}

fn text(report: &Report) -> String {
    let Report { readings, windows, recoveries, .. } = report;
    format!(
        "{} kills; {readings} readings acknowledged, counted in {windows} windows\n\
         from kill to promotion:                {}\n\
         from promotion to the first window:    {}\n\
         longest wait for an acknowledgement:   {}\n\
         until all copies were back:            {}\n\
         {recoveries} partitions recovered\n\
         replay: {}\n",
        report.cycles.len(),
        report.promoted_ms,
        report.window_ms,
        report.longest_ms,
        report.whole_ms,
        report.replay
    )
}

/// The cluster, its producers and the dice.
struct Trial {
    // Before the nodes, so that producers end first.
    producers: Producers,
    nodes: Nodes,
    shape: Shape,
    rng: fastrand::Rng,
    /// Names by id.
    names: BTreeMap<String, String>,
    states_lost: f64,
    recoveries: f64,
    recovery_ms: f64,
}

impl Trial {
    fn start(options: &Options, launch: Launch, seed: u64) -> Result<Self, TrialError> {
        let mut nodes = Nodes::start(launch, NODES)?;
        nodes.until_whole(NODES, WHOLE_MAX)?;
        let made = request(&nodes.address(0, "http"), "PUT", "", DEFINITION)?;
        if made.0 != 201 {
            let text = String::from_utf8_lossy(&made.1).into_owned();
            return Err(TrialError::Client(format!("the stream is not made: {text}")));
        }
        until("all nodes know the stream", || {
            (0..NODES).all(|at| ask(&nodes.address(at, "http"), "").is_ok())
        })?;
        nodes.until_whole(NODES, WHOLE_MAX)?;
        let mut doors = Vec::new();
        for at in 0..NODES {
            let door = |listener| -> Result<SocketAddr, TrialError> {
                let address = nodes.address(at, listener);
                address
                    .parse()
                    .map_err(|_| TrialError::Client(format!("no {listener}: {address:?}")))
            };
            doors.push((door("http")?, door("ingest")?));
        }
        let text = http_get(&nodes.address(0, "http"), "/v1/cluster/nodes")?;
        let said: Value = serde_json::from_str(&text).map_err(std::io::Error::from)?;
        let members = said["nodes"].as_array().into_iter().flatten();
        let field = |member: &Value, name: &str| member[name].as_str().unwrap_or("").to_owned();
        let names = members.map(|one| (field(one, "id"), field(one, "name"))).collect();
        let shape = Shape {
            stream: STREAM.to_owned(),
            sensors: i64::from(options.sensors),
            producers: usize::from(options.producers),
            step_ms: i64::from(options.step_ms),
        };
        let producers = Producers::start(shape.clone(), doors);
        let rng = fastrand::Rng::with_seed(seed);
        Ok(Self {
            producers,
            nodes,
            shape,
            rng,
            names,
            states_lost: 0.0,
            recoveries: 0.0,
            recovery_ms: 0.0,
        })
    }

    fn cycle(&mut self, number: u32) -> Result<Cycle, TrialError> {
        let sensor = self.rng.i64(0..self.shape.sensors);
        let partition = partition_of(format!("s{sensor}").as_bytes(), PARTITIONS).0;
        let calm = Duration::from_millis(self.rng.u64(500..1_500));
        let away = Duration::from_millis(match self.rng.u8(..4) {
            0 => 0,
            _ => self.rng.u64(1_000..3_000),
        });
        let Self { producers, nodes, shape, names, .. } = self;
        producers.take_waits();
        let mut wrong = Vec::new();
        let (mut victim, mut promoted_ms, mut window_ms) = (0, 0.0, 0.0);
        let mut whole = Duration::ZERO;
        let (mut losses, mut recoveries, mut recovery_ms) = (0.0, 0.0, 0.0);
        producers.while_sending(|| {
            let before = producers.numbers();
            until("readings flow", || {
                let now = producers.numbers();
                producers.check().is_err()
                    || now.iter().zip(&before).all(|(now, then)| *now > then + 4)
            })?;
            producers.check()?;
            thread::sleep(calm);
            let owner = owner(&nodes.address(0, "http"), partition)?;
            victim = (0..NODES)
                .find(|at| names.get(&owner).is_some_and(|name| nodes.name(*at) == name))
                .ok_or_else(|| TrialError::Client(format!("nobody owns partition {partition}")))?;
            (losses, recoveries, recovery_ms) = figures(nodes, [victim].into_iter());
            let survivor = nodes.address((victim + 1) % NODES, "http");
            nodes.kill(victim)?;
            let killed = Instant::now();
            let start = producers.event_time().div_euclid(WINDOW_MS) * WINDOW_MS;
            let watched = thread::scope(|scope| {
                let promotion = scope.spawn(|| {
                    until("a new owner is named", || {
                        owner_seen(&survivor, partition).is_some_and(|now| now != owner)
                    })
                    .map(|()| killed.elapsed())
                });
                let window = scope.spawn(|| {
                    let mut found = None;
                    until("the window of the kill is there", || {
                        let range = windows(&survivor, sensor, (start, start + WINDOW_MS)).ok();
                        found = range.and_then(|range| range.first().copied());
                        found.is_some()
                    })
                    .map(|()| (killed.elapsed(), found))
                });
                (promotion.join(), window.join())
            });
            let (Ok(promoted), Ok(window)) = watched else {
                return Err(TrialError::Client("a watcher panicked".to_owned()));
            };
            let (promoted, (window, found)) = (promoted?, window?);
            promoted_ms = promoted.as_secs_f64() * 1e3;
            window_ms = window.saturating_sub(promoted).as_secs_f64() * 1e3;
            let numbers = vec![i64::MAX; shape.producers];
            let expected = shape.expected(sensor, (start, start + WINDOW_MS), &numbers);
            if found != Some((start, expected.0, expected.1)) {
                wrong.push(format!(
                    "the first window of s{sensor} is {found:?} and not {expected:?} at {start}"
                ));
            }
            thread::sleep(away.saturating_sub(killed.elapsed()));
            nodes.restart(victim)?;
            whole = nodes.until_whole(NODES, WHOLE_MAX)?;
            Ok(())
        })?;
        self.states_lost += losses;
        self.recoveries += recoveries;
        self.recovery_ms += recovery_ms;
        let (longest_ms, again) = self.producers.take_waits();
        let (verified, different) = self.verify()?;
        wrong.extend(different);
        Ok(Cycle {
            cycle: number,
            node: self.nodes.name(victim).to_owned(),
            sensor: format!("s{sensor}"),
            away_ms: away.as_millis() as u64,
            promoted_ms,
            window_ms,
            longest_ms,
            again,
            whole_ms: whole.as_secs_f64() * 1e3,
            verified_ms: verified.as_secs_f64() * 1e3,
            wrong,
        })
    }

    /// Compares all copies; producers must be held. Returns how long it took until they were equal, or
    /// what is different.
    fn verify(&self) -> Result<(Duration, Option<String>), TrialError> {
        let began = Instant::now();
        loop {
            let output = self.nodes.kiln(&["cluster", "verify", "--strict", "-o", "json"])?;
            if output.status.success() {
                return Ok((began.elapsed(), None));
            }
            // What is still under way makes copies differ for a moment.
            if began.elapsed() >= EQUAL_MAX {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                let text = format!("copies are not equal: {} {}", error.trim(), said.trim());
                return Ok((began.elapsed(), Some(text)));
            }
            thread::sleep(POLL);
        }
    }

    /// Closes all windows and compares them with what was acknowledged. Returns how many readings and
    /// windows there were.
    fn prove(&self, failures: &mut Vec<String>) -> Result<(i64, u64), TrialError> {
        let numbers = self.producers.numbers();
        let first = self.shape.time_of(0).div_euclid(WINDOW_MS) * WINDOW_MS;
        let last =
            numbers.iter().map(|number| self.shape.time_of(number - 1)).max().unwrap_or(first);
        self.producers.close_windows(last + CLOSED_MS)?;
        let (mut readings, mut windows_seen, mut different) = (0, 0, 0);
        for sensor in 0..self.shape.sensors {
            let mut from = first;
            while from <= last {
                let to = (from + WINDOWS_AT_ONCE * WINDOW_MS).min(last + 1);
                let starts = (from..to).step_by(WINDOW_MS as usize);
                let expected: Vec<_> = starts
                    .map(|start| {
                        (start, self.shape.expected(sensor, (start, start + WINDOW_MS), &numbers))
                    })
                    .filter(|(_, (count, _))| *count > 0)
                    .map(|(start, (count, sum))| (start, count, sum))
                    .collect();
                let mut found = Vec::new();
                let at = sensor as usize % NODES;
                let address = self.nodes.address(at, "http");
                // Results of the last windows may still be on their way.
                let _ = until("all windows are right", || {
                    found = windows(&address, sensor, (from, to)).unwrap_or_default();
                    found == expected
                });
                if found != expected {
                    different += 1;
                    let odd = expected.iter().zip(&found).find(|(wanted, found)| wanted != found);
                    if different <= DIFFERENT_SHOWN {
                        failures.push(format!(
                            "windows of s{sensor}: {} and not {}; first different (start, count, sum): {odd:?}",
                            found.len(),
                            expected.len()
                        ));
                    }
                }
                readings += expected.iter().map(|(_, count, _)| count).sum::<i64>();
                windows_seen += found.len() as u64;
                from += WINDOWS_AT_ONCE * WINDOW_MS;
            }
        }
        let sent = numbers.iter().sum::<i64>() * self.shape.sensors;
        if readings != sent {
            failures.push(format!("{sent} readings were acknowledged, {readings} were looked for"));
        }
        Ok((readings, windows_seen))
    }

    fn count_losses(&mut self, failures: &mut Vec<String>) {
        let (lost, recoveries, recovery_ms) = figures(&self.nodes, 0..NODES);
        self.states_lost += lost;
        self.recoveries += recoveries;
        self.recovery_ms += recovery_ms;
        if self.states_lost > 0.0 {
            failures.push(format!("the state of {} partitions was lost", self.states_lost));
        }
    }
}

/// Lost states, recoveries and their milliseconds, of nodes that run.
fn figures(nodes: &Nodes, of: impl Iterator<Item = usize>) -> (f64, f64, f64) {
    let mut all = (0.0, 0.0, 0.0);
    for at in of {
        let text = nodes.metrics(at).unwrap_or_default();
        let of = |name: &str| {
            metric(&text, &format!("kiln_stream_{name}{{stream=\"{STREAM}\"}}")).unwrap_or(0.0)
        };
        all.0 += of("states_lost_total");
        all.1 += of("recoveries_total");
        all.2 += of("recovery_milliseconds_total");
    }
    all
}

/// The id of the node that owns a partition of the strong caches, as a node's table has it.
fn owner(address: &str, partition: u32) -> Result<String, TrialError> {
    owner_seen(address, partition)
        .ok_or_else(|| TrialError::Client(format!("no owner of partition {partition}")))
}

fn owner_seen(address: &str, partition: u32) -> Option<String> {
    let text =
        http_get(address, &format!("/v1/cluster/partitions?limit=1&cursor={partition}")).ok()?;
    let said: Value = serde_json::from_str(&text).ok()?;
    let of = &said["partitions"][0];
    if of["partition"].as_u64() != Some(u64::from(partition)) {
        return None;
    }
    Some(of["owners"][0].as_str()?.to_owned())
}

/// Start, count and sum of a sensor's windows that start in a range.
fn windows(
    address: &str,
    sensor: i64,
    (from, to): (i64, i64),
) -> Result<Vec<(i64, i64, i64)>, TrialError> {
    let said =
        ask(address, &format!("/sensors/s{sensor}/windows?from={from}&to={to}&limit=10000"))?;
    let windows = said["windows"].as_array().into_iter().flatten();
    let figure = |window: &Value, name: &str| window[name].as_f64().unwrap_or(f64::NAN) as i64;
    Ok(windows
        .map(|window| (figure(window, "start"), figure(window, "count"), figure(window, "sum")))
        .collect())
}

fn ask(address: &str, of_stream: &str) -> Result<Value, TrialError> {
    let text = http_get(address, &format!("/v1/streams/{STREAM}{of_stream}"))?;
    Ok(serde_json::from_str(&text).map_err(std::io::Error::from)?)
}

fn request(
    address: &str,
    method: &str,
    of_stream: &str,
    body: &str,
) -> Result<(u16, Vec<u8>), TrialError> {
    let mut stream = std::io::BufReader::new(std::net::TcpStream::connect(address)?);
    stream.get_ref().set_read_timeout(Some(SEEN_MAX))?;
    let target = format!("/v1/streams/{STREAM}{of_stream}");
    Ok(http::exchange(&mut stream, method, &target, body.as_bytes())?)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), TrialError> {
    let deadline = Instant::now() + SEEN_MAX;
    while !holds() {
        if Instant::now() >= deadline {
            let seconds = SEEN_MAX.as_secs();
            return Err(TrialError::Client(format!("after {seconds} s it is not so that {what}")));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

const NODES: usize = 3;
/// Of a new cluster.
const PARTITIONS: u32 = 1_024;
/// Longest wait for anything that is looked for.
const SEEN_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);
const POLL: Duration = Duration::from_millis(200);
/// Longest that copies may differ after the last reading.
const EQUAL_MAX: Duration = Duration::from_secs(30);
/// So far behind the last batch is the one that closes all windows.
const CLOSED_MS: i64 = 600_000;
const WINDOWS_AT_ONCE: i64 = 8_000;
const DIFFERENT_SHOWN: usize = 8;
