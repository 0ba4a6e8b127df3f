//! One timed run of a contestant over part of a stream, on one thread or several.
//!
//! Others may want the same cores. One thread is judged by its processor time, which does not
//! count theirs. For several threads that would hide what they cost each other, and a thread that
//! waits for a core leaves the locks to the others; so they are judged by the clock, in a run during
//! which they hardly waited: [`undisturbed`]. The kernel tells how long (`schedstat`).

use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::contestants::Contestant;
use crate::keys::Stream;

/// What is done with each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Get.
    Get,
    /// Ten gets, then a set.
    Mix,
    /// Get, and set what was missed.
    GetOrSet,
}

/// Of so many operations of [`Work::Mix`] the last is a set.
pub const MIX: usize = 11;

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Operations done by all threads. In [`Work::GetOrSet`] a get with its set is one.
    pub operations: usize,
    /// Gets that found their item.
    pub hits: usize,
    /// From the first thread's start to the last one's end.
    pub wall: Duration,
    /// Processor time of all threads.
    pub cpu: Duration,
    /// How long threads stood ready while others had their core.
    pub waited: Duration,
}

impl Timing {
    /// Nanoseconds of processor time per operation.
    #[must_use]
    pub fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.operations as f64
    }

    /// Millions of operations per second of wall time, all threads together.
    #[must_use]
    pub fn mega_per_s(&self) -> f64 {
        self.operations as f64 / self.wall.as_secs_f64() / 1e6
    }

    /// Part of the threads' time in which they stood ready while others had their core.
    #[must_use]
    pub fn waited_part(&self) -> f64 {
        let all = self.waited + self.cpu;
        if all.is_zero() { 0.0 } else { self.waited.as_secs_f64() / all.as_secs_f64() }
    }

    /// Hits by gets, for work that is all gets or gets with sets.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.operations as f64
    }
}

/// Runs on this thread.
pub fn alone(
    contestant: &dyn Contestant,
    work: Work,
    stream: &Stream,
    start: usize,
    len: usize,
) -> Timing {
    timed(contestant, work, stream, start, len).0
}

/// Runs on `threads` threads at once, each over its own part of the stream.
///
/// # Panics
/// When a contestant does.
pub fn together(
    contestant: &dyn Contestant,
    work: Work,
    stream: &Stream,
    start: usize,
    len: usize,
    threads: usize,
) -> Timing {
    let barrier = Barrier::new(threads);
    let runs: Vec<(Timing, Instant)> = std::thread::scope(|scope| {
        let run = |thread: usize| {
            let barrier = &barrier;
            let share = len * (thread + 1) / threads - len * thread / threads;
            // Far apart: threads must not warm the caches for each other.
            let start = start + stream.period() / threads * thread;
            scope.spawn(move || {
                barrier.wait();
                timed(contestant, work, stream, start, share)
            })
        };
        let handles: Vec<_> = (0..threads).map(run).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    let first = runs.iter().map(|&(_, began)| began).min();
    let mut total = Timing::default();
    for (run, began) in runs {
        let before = first.map_or(Duration::ZERO, |first| began - first);
        total.operations += run.operations;
        total.hits += run.hits;
        total.cpu += run.cpu;
        total.waited += run.waited;
        total.wall = total.wall.max(before + run.wall);
    }
    total
}

/// Repeats a run that others disturbed, a few times, and returns the least disturbed one.
pub fn undisturbed(mut run: impl FnMut() -> Timing) -> Timing {
    const ATTEMPTS: usize = 3;
    const WAITED_MAX: f64 = 0.02;
    let mut best = run();
    for _ in 1..ATTEMPTS {
        if best.waited_part() <= WAITED_MAX {
            break;
        }
        let again = run();
        if again.waited_part() < best.waited_part() {
            best = again;
        }
    }
    best
}

fn timed(
    contestant: &dyn Contestant,
    work: Work,
    stream: &Stream,
    start: usize,
    len: usize,
) -> (Timing, Instant) {
    let (cpu, waited) = (cpu_now(), waited_now());
    let began = Instant::now();
    let hits = stream.pieces(start, len).map(|keys| contestant.pass(work, keys)).sum();
    let wall = began.elapsed();
    let (cpu, waited) = (cpu_now().saturating_sub(cpu), waited_now().saturating_sub(waited));
    (Timing { operations: len, hits, wall, cpu, waited }, began)
}

/// Processor time of this thread so far.
fn cpu_now() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// How long this thread has stood ready without a core so far.
fn waited_now() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(millis: u64) -> Timing {
        let (cpu, waited) = (Duration::from_millis(100), Duration::from_millis(millis));
        Timing { cpu, waited, ..Timing::default() }
    }

    #[test]
    fn of_disturbed_runs_the_least_disturbed_counts_and_a_quiet_one_ends_the_search() {
        let mut runs = [50, 9, 30, 1].into_iter().map(waited);
        assert_eq!(undisturbed(|| runs.next().unwrap()), waited(9));
        assert_eq!(runs.len(), 1);
        assert_eq!(undisturbed(|| runs.next().unwrap()), waited(1));
    }
}
