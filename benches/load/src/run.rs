//! A run from the first connection to the report: the stages, and who may change them.
//!
//! Only the director, on the calling thread, changes the stage; workers follow at their next
//! wake-up. It reads the counters and the server's processor time at the same two moments, so that
//! neither warm-up nor draining enters the division.

use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mio::Waker;

use crate::connection::{Connection, Workload};
use crate::cpu::CpuTime;
use crate::keys::{KeyDist, KeyPicker, KeyShape};
use crate::report::{Preload, Quantiles, Report, Window};
use crate::tally::{Recent, Tally};
use crate::target::{self, Credentials, Target};
use crate::values::{SizeDist, Values};
use crate::wire::{Protocol, Wire};
use crate::worker::{Announce, Gauge, Worker};

/// Everything a run depends on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// What it speaks.
    pub protocol: Protocol,
    /// Who uses it; memcached and native have a way to say so.
    pub credentials: Option<Credentials>,
    /// Native and HTTP: the cache that the keys are in.
    pub cache: String,
    /// HTTP: gets of this path instead of keys, and no sets.
    pub http_path: Option<String>,
    /// How many connections, spread evenly over the threads; at least one per thread.
    pub connections: usize,
    /// How many threads generate load.
    pub threads: usize,
    /// Requests a connection has under way at once.
    pub pipeline: usize,
    /// Writes to reads.
    pub ratio: Ratio,
    /// How many different keys are asked for.
    pub keys: u32,
    /// What every key begins with.
    pub key_prefix: String,
    /// How long every key is; must hold the prefix and the largest key number.
    pub key_len: usize,
    /// Which of them how often.
    pub key_dist: KeyDist,
    /// How long their values are.
    pub sizes: SizeDist,
    /// When measuring ends.
    pub length: Length,
    /// How long to run before measuring.
    pub warmup: Duration,
    /// Whether to store every key once, first of all.
    pub preload: bool,
    /// Requests per second over all connections: an open loop. Without it each reply brings the
    /// next request: a closed loop.
    pub rate: Option<f64>,
    /// Where the key streams start. Equal seeds give equal streams.
    pub seed: u64,
    /// Whether to check the bytes of each value.
    pub verify: bool,
    /// The process whose processor time is divided by the operations. Without it that of the
    /// process which listens on the target, when it is on this machine.
    pub server_pid: Option<u32>,
    /// How long no answer at all may come while requests are under way.
    pub stall_timeout: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            target: Target::Tcp("127.0.0.1:11211".to_owned()),
            protocol: Protocol::Memcached,
            credentials: None,
            cache: "default".to_owned(),
            http_path: None,
            connections: 50,
            threads: 1,
            pipeline: 1,
            ratio: Ratio { sets: 1, gets: 10 },
            keys: 1_000_000,
            key_prefix: "key:".to_owned(),
            key_len: 30,
            key_dist: KeyDist::Uniform,
            sizes: SizeDist::fixed(100).expect("a hundred bytes are few enough"),
            length: Length::Duration(Duration::from_secs(10)),
            warmup: Duration::ZERO,
            preload: false,
            rate: None,
            seed: 1,
            verify: false,
            server_pid: None,
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// Writes to reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// Parts that write.
    pub sets: u32,
    /// Parts that read.
    pub gets: u32,
}

/// When measuring ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// After this time.
    Duration(Duration),
    /// When so many requests are answered. None is enough for a run that only preloads.
    Requests(u64),
}

/// Whether to show on standard error how far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not at all.
    Silent,
    /// When standard error is a terminal.
    Terminal,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The plan contradicts itself; nothing was sent.
    #[error("{reason}")]
    Plan {
        /// What does not go together.
        reason: &'static str,
    },
    /// The server could not be reached; nothing was sent.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Where to.
        target: String,
        /// Why not.
        source: io::Error,
    },
    /// The server did not take the greeting: credentials, versions, limits. Nothing was measured.
    #[error("{target} refuses: {reason}")]
    Refused {
        /// Where.
        target: String,
        /// In the server's words.
        reason: String,
    },
    /// The server's processor time cannot be read; load may have been sent.
    #[error("cannot read the processor time of process {pid}: {source}")]
    ServerCpu {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The server answered nothing for so long that the run was given up.
    #[error("{outstanding} requests under way and no answer for {seconds} s (stage: {stage})")]
    Stalled {
        /// How long it was waited.
        seconds: u64,
        /// Requests that wait for an answer.
        outstanding: u64,
        /// What the run was doing.
        stage: &'static str,
    },
    /// The generator itself failed.
    #[error("the load generator failed: {0}")]
    Generator(#[from] io::Error),
}

/// Runs `plan` and reports. Setting `cancel` ends it early, with what was measured until then.
///
/// # Errors
/// When nothing could be measured; errors of single requests are in the report instead.
pub fn run(plan: &Plan, progress: Progress, cancel: &AtomicBool) -> Result<Report, RunError> {
    let (picker, shape) = prepare(plan)?;
    let values = Values::new(plan.sizes.clone());
    let load = Workload {
        plan,
        picker,
        values: &values,
        wire: Wire::new(plan, &shape, &values),
        sets_below: sets_below(plan),
    };
    let (links, mut server) = target::connect(plan)?;
    server.pid = plan.server_pid.or(server.pid);
    let shared = Shared {
        stage: AtomicU8::new(Stage::Idle as u8),
        gauges: (0..plan.threads).map(|_| Gauge::new()).collect(),
    };
    // Two messages a worker, so that sending one never waits.
    let (sender, events) = sync_channel(plan.threads * 2);
    let mut shares: Vec<Vec<Connection>> = (0..plan.threads).map(|_| Vec::new()).collect();
    for (index, link) in links.into_iter().enumerate() {
        shares[index % plan.threads].push(Connection::new(link, plan, index));
    }
    let period_seconds = plan.rate.map(|rate| plan.threads as f64 / rate);
    let (mut workers, mut wakers) = (Vec::new(), Vec::new());
    for (index, connections) in shares.into_iter().enumerate() {
        let end = Announce(sender.clone(), &shared);
        let gauge = &shared.gauges[index];
        let quota = quota_of(plan, index as u64);
        let (worker, waker) = Worker::new(&load, connections, quota, period_seconds, gauge, end)?;
        workers.push(worker);
        wakers.push(waker);
    }
    drop(sender);
    std::thread::scope(|scope| {
        let handles: Vec<_> = workers.into_iter().map(|w| scope.spawn(move || w.run())).collect();
        let mut director = Director {
            plan,
            server_pid: server.pid,
            shared: &shared,
            wakers,
            events,
            cancel,
            bar: bar(plan, progress),
            shown: None,
            stage: Stage::Idle,
            preloaded: 0,
            ended: 0,
            interrupted: false,
        };
        let directed = director.direct();
        let stage = if directed.is_ok() { Stage::Drain } else { Stage::Abort };
        director.enter(stage)?;
        let mut tally = Tally::new();
        for handle in handles {
            let ended = handle.join().map_err(|_| io::Error::other("a worker thread panicked"))?;
            tally.absorb(&mut ended?);
        }
        director.bar.finish_and_clear();
        let (window, preload) = directed?;
        Ok(Report::new(plan, &server, tally, &window, preload, director.interrupted))
    })
}

fn prepare(plan: &Plan) -> Result<(KeyPicker, KeyShape), RunError> {
    let refuse = |reason| Err(RunError::Plan { reason });
    match plan {
        p if p.ratio == (Ratio { sets: 0, gets: 0 }) => {
            return refuse("a ratio of 0:0 asks for nothing");
        }
        p if p.threads == 0 => return refuse("at least one thread is needed"),
        p if p.connections < p.threads => return refuse("each thread needs a connection"),
        p if p.connections > CONNECTIONS_MAX => return refuse("at most 60000 connections"),
        p if p.pipeline == 0 || p.pipeline > PIPELINE_MAX => {
            return refuse("the pipeline depth must be from 1 to 65536");
        }
        p if p.key_len > KEY_LEN_MAX => return refuse("a key is at most 250 bytes long"),
        p if p.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) => {
            return refuse("the rate must be above zero");
        }
        _ => {}
    }
    if !plan.key_prefix.bytes().all(|b| b.is_ascii_graphic()) {
        return refuse("a key prefix has no spaces and no control characters");
    }
    let Some(picker) = KeyPicker::new(plan.keys, plan.key_dist) else {
        return refuse("at least one key is needed");
    };
    let Some(shape) = KeyShape::new(&plan.key_prefix, plan.key_len, plan.keys) else {
        return refuse("the key length does not hold the prefix and the largest key number");
    };
    if plan.protocol == Protocol::Http {
        if plan.http_path.as_ref().is_some_and(|path| !is_path(path)) {
            return refuse("a path begins with / and has no spaces and no control characters");
        }
        if plan.http_path.is_some() && (plan.preload || plan.verify) {
            return refuse("a page asked for by its path is neither preloaded nor verified");
        }
        if !plan.key_prefix.bytes().all(is_unreserved) {
            return refuse("over http a key prefix has only letters, digits and any of -._~:");
        }
    }
    Ok((picker, shape))
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic())
}

/// What stands for itself in a path.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte)
}

fn sets_below(plan: &Plan) -> u64 {
    if plan.http_path.is_some() {
        return 0;
    }
    let parts = u64::from(plan.ratio.sets) + u64::from(plan.ratio.gets);
    u64::from(plan.ratio.sets) * (1 << 32) / parts.max(1)
}

fn quota_of(plan: &Plan, worker: u64) -> u64 {
    let workers = plan.threads as u64;
    match plan.length {
        Length::Duration(_) => u64::MAX,
        Length::Requests(requests) => requests / workers + u64::from(worker < requests % workers),
    }
}

/// What the run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Idle,
    Preload,
    Warmup,
    Measure,
    /// No new requests; those under way may finish.
    Drain,
    /// Stop at once.
    Abort,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Preload => "preload",
            Self::Warmup => "warm-up",
            Self::Measure => "measure",
            Self::Drain => "drain",
            Self::Abort => "abort",
        }
    }
}

/// What the director and the workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    stage: AtomicU8,
    gauges: Vec<Gauge>,
}

impl Shared {
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Idle,
            1 => Stage::Preload,
            2 => Stage::Warmup,
            3 => Stage::Measure,
            4 => Stage::Drain,
            _ => Stage::Abort,
        }
    }

    fn sum(&self, of: impl Fn(&Gauge) -> &std::sync::atomic::AtomicU64) -> u64 {
        self.gauges.iter().map(|gauge| of(gauge).load(Ordering::Relaxed)).sum()
    }

    fn done(&self) -> u64 {
        self.sum(|gauge| &gauge.done)
    }
}

/// What a worker tells the director.
#[derive(Debug)]
pub(crate) enum Event {
    Preloaded,
    Ended,
}

struct Director<'a> {
    plan: &'a Plan,
    server_pid: Option<u32>,
    shared: &'a Shared,
    wakers: Vec<Waker>,
    events: Receiver<Event>,
    cancel: &'a AtomicBool,
    bar: ProgressBar,
    /// Requests answered when the progress line was drawn last.
    shown: Option<(u64, Instant)>,
    stage: Stage,
    preloaded: usize,
    ended: usize,
    interrupted: bool,
}

impl Director<'_> {
    fn direct(&mut self) -> Result<(Window, Option<Preload>), RunError> {
        let preload = if self.plan.preload { Some(self.preload()?) } else { None };
        if !self.plan.warmup.is_zero() && !self.interrupted {
            self.enter(Stage::Warmup)?;
            self.wait(Some(Instant::now() + self.plan.warmup), |_| false)?;
        }
        let cpu_before = self.server_cpu()?;
        let own_before = CpuTime::of_process(std::process::id())?;
        let done_before = self.shared.done();
        let start = Instant::now();
        if !self.interrupted {
            self.enter(Stage::Measure)?;
            let end = match self.plan.length {
                Length::Duration(duration) => Some(start + duration),
                Length::Requests(_) => None,
            };
            self.wait(end, |_| false)?;
        }
        let elapsed = start.elapsed();
        let done = self.shared.done() - done_before;
        let own = CpuTime::of_process(std::process::id())?.since(&own_before);
        let server = match (self.server_cpu(), cpu_before) {
            (Ok(Some(after)), Some(before)) => Some(after.since(&before)),
            // A server that died while it was measured: the lost connections say so.
            _ => None,
        };
        Ok((Window { elapsed, done, server, own }, preload))
    }

    fn preload(&mut self) -> Result<Preload, RunError> {
        let start = Instant::now();
        self.enter(Stage::Preload)?;
        self.wait(None, |director| director.preloaded + director.ended >= director.plan.threads)?;
        Ok(Preload { keys: self.shared.done(), seconds: start.elapsed().as_secs_f64() })
    }

    fn server_cpu(&self) -> Result<Option<CpuTime>, RunError> {
        let read =
            |pid| CpuTime::of_process(pid).map_err(|source| RunError::ServerCpu { pid, source });
        self.server_pid.map(read).transpose()
    }

    fn enter(&mut self, stage: Stage) -> io::Result<()> {
        self.stage = stage;
        self.shared.stage.store(stage as u8, Ordering::Relaxed);
        self.wakers.iter().try_for_each(Waker::wake)
    }

    /// Waits until `done`, the deadline, the end of all workers or the caller's wish to stop.
    fn wait(
        &mut self,
        deadline: Option<Instant>,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), RunError> {
        let start = Instant::now();
        let (mut seen, mut seen_at) = (self.shared.done(), start);
        let (first, mut shown_at) = (seen, start);
        self.shown = Some((self.shared.done(), start));
        loop {
            let now = Instant::now();
            if done(self) || self.ended >= self.plan.threads || deadline.is_some_and(|at| now >= at)
            {
                return Ok(());
            }
            if self.cancel.load(Ordering::Relaxed) {
                self.interrupted = true;
                return Ok(());
            }
            let left = deadline.map_or(TICK, |at| at.saturating_duration_since(now));
            match self.events.recv_timeout(left.min(TICK)) {
                Ok(Event::Preloaded) => self.preloaded += 1,
                Ok(Event::Ended) => self.ended += 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.ended = self.plan.threads,
            }
            let count = self.shared.done() + self.shared.sum(|gauge| &gauge.errors);
            let outstanding = self.shared.sum(|gauge| &gauge.outstanding);
            if count != seen || outstanding == 0 {
                (seen, seen_at) = (count, Instant::now());
            } else if seen_at.elapsed() >= self.plan.stall_timeout {
                let (seconds, stage) = (seen_at.elapsed().as_secs(), self.stage.name());
                return Err(RunError::Stalled { seconds, outstanding, stage });
            }
            if shown_at.elapsed() >= REDRAW {
                shown_at = Instant::now();
                self.show(count - first.min(count), start.elapsed());
            }
        }
    }

    /// Draws the progress line: what was measured since it was drawn last.
    fn show(&mut self, done: u64, elapsed: Duration) {
        if self.bar.is_hidden() {
            return;
        }
        let (length, position) = match (self.stage, self.plan.length) {
            (Stage::Preload, _) => (u64::from(self.plan.keys), done),
            (Stage::Measure, Length::Requests(requests)) => (requests, done),
            (Stage::Measure, Length::Duration(duration)) => (millis(duration), millis(elapsed)),
            _ => (millis(self.plan.warmup), millis(elapsed)),
        };
        let mut recent = Recent::new();
        for gauge in &self.shared.gauges {
            if let Ok(mut share) = gauge.recent.lock() {
                share.drain_into(&mut recent);
            }
            gauge.wanted.store(true, Ordering::Relaxed);
        }
        self.bar.set_length(length);
        self.bar.set_position(position);
        let (done, at) = (self.shared.done(), Instant::now());
        let (done_before, at_before) = self.shown.replace((done, at)).unwrap_or((done, at));
        let seconds = at.duration_since(at_before).as_secs_f64();
        let rate = if seconds > 0.0 { (done - done_before) as f64 / seconds } else { 0.0 };
        let mut line = format!("{:<7} {rate:>7.0} ops/s", self.stage.name());
        let reads = recent.hits + recent.misses;
        if reads > 0 {
            let _ = write!(line, "  hit {:.1}%", 100.0 * recent.hits as f64 / reads as f64);
        }
        if !recent.latencies.is_empty() {
            let Quantiles { p50_us, p99_us, p999_us, max_us, .. } =
                Quantiles::of(&recent.latencies);
            let [p50, p99, p999, max] = [p50_us, p99_us, p999_us, max_us].map(short);
            let _ = write!(line, "  p50 {p50} p99 {p99} p99.9 {p999} max {max}");
        }
        let errors = self.shared.sum(|gauge| &gauge.errors);
        if errors > 0 {
            let _ = write!(line, "  errors {errors}");
        }
        self.bar.set_message(line);
    }
}

/// A latency in three digits or so.
fn short(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.0}us"),
        ..1e6 => format!("{:.1}ms", us / 1e3),
        _ => format!("{:.1}s", us / 1e6),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bar(plan: &Plan, progress: Progress) -> ProgressBar {
    let target = match progress {
        Progress::Silent => ProgressDrawTarget::hidden(),
        Progress::Terminal => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(u64::from(plan.keys)), target);
    let style = ProgressStyle::with_template("{percent:>3} % {wide_msg}");
    bar.with_style(style.expect("the template is valid"))
}

/// How often the director looks whether it is done or was asked to stop.
const TICK: Duration = Duration::from_millis(20);

/// Drawing costs processor time that the workers need.
const REDRAW: Duration = Duration::from_millis(250);

const CONNECTIONS_MAX: usize = 60_000;
const PIPELINE_MAX: usize = 65_536;
const KEY_LEN_MAX: usize = 250;
