//! The load of the demonstration: clients that count, and check every answer.
//!
//! Each client has counters of its own and adds one to them in turn. What it knows of a counter are
//! two numbers: how many additions were acknowledged, and how many it asked for. Whatever is read
//! must lie between them: less is a write that was acknowledged and lost, more is one that was done
//! twice. An addition whose outcome is not known raises only the second number, and is not repeated.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kiln_client::{Client, ClusterStatus, Error};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::commands::{
    CommandError, cluster_picture,
    output::{count, span},
};

/// Counters of each client: enough to lie on all nodes.
const COUNTERS: usize = 64;

/// Between two requests of a client: the demonstration is not to fill the machine.
const PAUSE: Duration = Duration::from_micros(500);

/// A read after so many additions.
const READ_EVERY: u64 = 2;

/// How long a request is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Latencies kept, newest last, to tell quantiles of.
const LATENCIES_MAX: usize = 4_096;

/// Between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Before a request that failed is made anew.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What was counted so far.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Tally {
    /// Additions acknowledged.
    pub(super) writes: u64,
    /// Reads answered, all of them checked.
    pub(super) reads: u64,
    /// Requests that ended in an error, after the client's own attempts.
    pub(super) failed: u64,
    /// Additions whose outcome is not known.
    pub(super) unknown: u64,
    /// Acknowledged additions that are gone.
    pub(super) lost: u64,
    /// Additions that were done twice.
    pub(super) doubled: u64,
    /// The longest that anything was waited for until it succeeded, in milliseconds: what a
    /// client sees of a failover.
    pub(super) longest_gap_ms: u64,
    /// Nodes killed.
    pub(super) kills: u64,
    /// Nodes started again.
    pub(super) restarts: u64,
    /// All counters were read again at the end.
    pub(super) is_checked: bool,
    /// The last error, in words.
    pub(super) last_error: Option<String>,
    /// The first answers that could not be, in words; at most [`STRANGE_MAX`].
    pub(super) strange: Vec<String>,
}

/// Answers that could not be, of which it is told.
const STRANGE_MAX: usize = 8;

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "acknowledged writes  {}", self.writes)?;
        writeln!(f, "checked reads        {}", self.reads)?;
        writeln!(f, "kills, restarts      {}, {}", self.kills, self.restarts)?;
        writeln!(f, "failed requests      {}", self.failed)?;
        writeln!(f, "  outcome unknown    {}", self.unknown)?;
        writeln!(f, "longest gap          {}", span(self.longest_gap_ms))?;
        writeln!(f, "lost writes          {}", self.lost)?;
        writeln!(f, "doubled writes       {}", self.doubled)?;
        if let (Some(error), true) = (&self.last_error, self.failed > 0) {
            writeln!(f, "last error           {error}")?;
        }
        for text in &self.strange {
            writeln!(f, "  {text}")?;
        }
        if !self.is_checked {
            writeln!(f, "NOT all counters could be read at the end")?;
        }
        Ok(())
    }
}

/// A look at the load and at the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) tally: Tally,
    /// Requests answered since the load began.
    pub(super) answered: u64,
    /// Of the last requests, in microseconds: median, 99th percentile, longest.
    pub(super) latency_us: [u64; 3],
    pub(super) status: Option<ClusterStatus>,
}

#[derive(Default)]
struct Shared {
    tally: Mutex<Tally>,
    latencies: Mutex<Vec<u64>>,
    status: Mutex<Option<ClusterStatus>>,
    stop: AtomicBool,
    killed_at: Mutex<Option<Instant>>,
    /// When reading all counters at the end is given up.
    last_reads_until: Mutex<Option<Instant>>,
}

/// The load. Dropped, it ends.
pub(super) struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(address: String, clients: u16) -> Result<Self, CommandError> {
        let shared = Arc::new(Shared::default());
        let failed = |error: &dyn fmt::Display| {
            CommandError::Failed(format!("cannot start the load: {error}"))
        };
        let address = address.parse().map_err(|error| failed(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(&error))?;
        let of_thread = Arc::clone(&shared);
        let work = move || {
            runtime.block_on(async {
                let builder = Client::builder().address(address).name("kiln-demo").timeout(TIMEOUT);
                let client = builder.connect_lazily();
                let mut tasks = JoinSet::new();
                for number in 0..clients {
                    tasks.spawn(run(client.clone(), number, Arc::clone(&of_thread)));
                }
                let looking = tokio::spawn(look_on(client, Arc::clone(&of_thread)));
                let mut checked = true;
                while let Some(ended) = tasks.join_next().await {
                    checked &= ended.unwrap_or(false);
                }
                looking.abort();
                of_thread.tally.lock().is_checked = checked;
            });
        };
        let thread = thread::Builder::new().name("kiln-demo-load".to_owned()).spawn(work);
        let thread = Some(thread.map_err(|error| failed(&error))?);
        Ok(Self { shared, thread })
    }

    pub(super) fn look(&self) -> Look {
        let mut latencies = self.shared.latencies.lock().clone();
        latencies.sort_unstable();
        let quantile = |part: f64| {
            let at = (latencies.len() as f64 * part) as usize;
            latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
        };
        let tally = self.shared.tally.lock().clone();
        Look {
            answered: tally.writes + tally.reads,
            latency_us: [quantile(0.5), quantile(0.99), quantile(1.0)],
            status: self.shared.status.lock().clone(),
            tally,
        }
    }

    /// How the cluster is, as far as is known.
    pub(super) fn status(&self) -> Option<ClusterStatus> {
        self.shared.status.lock().clone()
    }

    pub(super) fn killed(&self) {
        self.shared.tally.lock().kills += 1;
        *self.shared.killed_at.lock() = Some(Instant::now());
    }

    pub(super) fn restarted(&self) {
        self.shared.tally.lock().restarts += 1;
    }

    /// Ends the counting, reads all counters once more, and tells what came of it.
    pub(super) fn finish(mut self, within: Duration) -> Tally {
        *self.shared.last_reads_until.lock() = Some(Instant::now() + within);
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.tally.lock().clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

async fn look_on(client: Client, shared: Arc<Shared>) {
    loop {
        let status = timeout(LOOK_MAX, cluster_picture(&client)).await;
        *shared.status.lock() = status.ok().and_then(Result::ok);
        sleep(LOOK_EVERY).await;
    }
}

/// What a client knows of one of its counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    acknowledged: u64,
    asked: u64,
}

impl Known {
    /// A value was seen: returns how many additions are lost, and how many were done twice.
    fn judge(&mut self, seen: u64) -> (u64, u64) {
        let lost = self.acknowledged.saturating_sub(seen);
        let doubled = seen.saturating_sub(self.asked);
        // Told once: from here on it counts as it is. An addition under way may still come.
        if lost > 0 {
            self.asked -= lost;
            self.acknowledged = seen;
        }
        if doubled > 0 {
            self.asked = seen;
        }
        (lost, doubled)
    }
}

/// One client, to the end. Says whether it could read all its counters then.
async fn run(client: Client, number: u16, shared: Arc<Shared>) -> bool {
    let mut counters = vec![Known::default(); COUNTERS];
    let keys: Vec<String> = (0..COUNTERS).map(|at| format!("demo:{number}:{at}")).collect();
    let mut turn: u64 = 0;
    // When the request began that has not succeeded yet.
    let mut waiting_since: Option<Instant> = None;
    while !shared.stop.load(Ordering::Acquire) {
        turn += 1;
        let at = fastrand::usize(..COUNTERS);
        let (key, known) = (&keys[at], &mut counters[at]);
        let began = Instant::now();
        let done = if turn.is_multiple_of(READ_EVERY) {
            read(&client, key, known, &shared).await
        } else {
            add(&client, key, known, &shared).await
        };
        let since = *waiting_since.get_or_insert(began);
        if done {
            waiting_since = None;
            shared.took(began.elapsed(), since.elapsed());
            sleep(PAUSE).await;
        } else {
            sleep(AFTER_FAILURE).await;
        }
    }
    let until = *shared.last_reads_until.lock();
    for (key, known) in keys.iter().zip(&mut counters) {
        while !read(&client, key, known, &shared).await {
            if until.is_none_or(|until| Instant::now() >= until) {
                return false;
            }
            sleep(AFTER_FAILURE).await;
        }
    }
    true
}

async fn add(client: &Client, key: &str, known: &mut Known, shared: &Shared) -> bool {
    known.asked += 1;
    match client.increment(key, 1).or_create(1).await {
        Ok(counted) => {
            known.acknowledged += 1;
            // With an initial value there is a number.
            shared.answered(true, key, known, counted.number().unwrap_or(0));
            true
        }
        Err(error) => {
            if error.is_not_applied() {
                known.asked -= 1;
            }
            shared.failed(&error, true);
            false
        }
    }
}

async fn read(client: &Client, key: &str, known: &mut Known, shared: &Shared) -> bool {
    match client.get(key).await {
        Ok(value) => {
            let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.trim().parse().ok();
            // What is no number was not written by anyone here: all is lost.
            let seen = value.as_deref().and_then(number).unwrap_or(0);
            shared.answered(false, key, known, seen);
            true
        }
        Err(error) => {
            shared.failed(&error, false);
            false
        }
    }
}

impl Shared {
    fn answered(&self, is_write: bool, key: &str, known: &mut Known, seen: u64) {
        let Known { acknowledged, asked } = *known;
        let (lost, doubled) = known.judge(seen);
        let mut tally = self.tally.lock();
        if is_write {
            tally.writes += 1;
        } else {
            tally.reads += 1;
        }
        tally.lost += lost;
        tally.doubled += doubled;
        if lost + doubled > 0 && tally.strange.len() < STRANGE_MAX {
            let what = if is_write { "an addition to" } else { "a read of" };
            tally.strange.push(format!(
                "{what} {key} gave {seen}, where {acknowledged} were acknowledged and {asked} asked \
                 for, {:.2} s after the last kill",
                self.killed_at.lock().map_or(0.0, |at| at.elapsed().as_secs_f64())
            ));
        }
    }

    fn failed(&self, error: &Error, is_write: bool) {
        let mut tally = self.tally.lock();
        tally.failed += 1;
        tally.unknown += u64::from(is_write && !error.is_not_applied());
        tally.last_error = Some(error.to_string());
    }

    fn took(&self, request: Duration, gap: Duration) {
        let micros = u64::try_from(request.as_micros()).unwrap_or(u64::MAX);
        let gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
        let mut latencies = self.latencies.lock();
        if latencies.len() >= LATENCIES_MAX {
            // Half at a time: the newest count, and it costs little.
            latencies.drain(..LATENCIES_MAX / 2);
        }
        latencies.push(micros);
        drop(latencies);
        let mut tally = self.tally.lock();
        tally.longest_gap_ms = tally.longest_gap_ms.max(gap_ms);
    }
}

/// A number of requests per second, for people.
pub(super) fn per_second(answered: u64, before: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(f64::MIN_POSITIVE);
    count(answered.saturating_sub(before) as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_must_lie_between_what_was_acknowledged_and_what_was_asked() {
        let known = Known { acknowledged: 5, asked: 7 };
        for seen in 5..=7 {
            let mut judged = known;
            assert_eq!((judged.judge(seen), judged), ((0, 0), known));
        }
    }

    #[test]
    fn a_loss_and_a_double_are_told_once() {
        let mut known = Known { acknowledged: 5, asked: 7 };
        assert_eq!(known.judge(2), (3, 0));
        assert_eq!(known, Known { acknowledged: 2, asked: 4 });
        assert_eq!(known.judge(2), (0, 0));
        assert_eq!(known.judge(6), (0, 2));
        assert_eq!(known.judge(6), (0, 0));
    }

    #[test]
    fn a_summary_names_gap_and_losses() {
        let tally = Tally {
            writes: 10,
            lost: 2,
            longest_gap_ms: 1_234,
            failed: 1,
            last_error: Some("no".to_owned()),
            ..Tally::default()
        };
        let text = tally.to_string();
        for part in ["lost writes          2", "longest gap          1s", "last error", "NOT all"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
