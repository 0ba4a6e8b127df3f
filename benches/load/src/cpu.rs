//! The processor time of a process, fine enough to divide by operations.
//!
//! The scheduler's own account (`schedstat`, nanoseconds) gives the total; `stat` splits it into
//! user and system in ticks of 10 ms. A thread that ends takes its `schedstat` along, so then the
//! ticks, which outlive threads, are the total too.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fs, io};

/// Processor time a process had used at one moment.
#[derive(Clone, Debug)]
pub struct CpuTime {
    /// Nanoseconds each thread ran, and waited for a core while it could have run.
    threads_ns: BTreeMap<u32, (u64, u64)>,
    user: Duration,
    system: Duration,
}

/// Processor time used between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuSpent {
    pub(crate) total: Duration,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    /// Ready to run while something else had the core: how much the measurement was disturbed.
    pub(crate) waited: Duration,
}

impl CpuTime {
    /// What process `pid` has used until now.
    ///
    /// # Errors
    /// When there is no such process or it may not be looked at.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let mut threads_ns = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let thread = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let schedstat = fs::read_to_string(entry.path().join("schedstat")).ok();
            let ran = schedstat.as_deref().and_then(parse_schedstat);
            // A thread may end between being listed and being read.
            if let (Some(thread), Some(ran)) = (thread, ran) {
                threads_ns.insert(thread, ran);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (user, system) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let ticks = |count: u64| Duration::from_nanos(count.saturating_mul(tick));
        Ok(Self { threads_ns, user: ticks(user), system: ticks(system) })
    }

    pub(crate) fn since(&self, earlier: &Self) -> CpuSpent {
        let user = self.user.saturating_sub(earlier.user);
        let system = self.system.saturating_sub(earlier.system);
        let complete = !self.threads_ns.is_empty()
            && earlier.threads_ns.keys().all(|thread| self.threads_ns.contains_key(thread));
        let (mut ran, mut waited) = (0, 0);
        for (thread, now) in &self.threads_ns {
            let before = earlier.threads_ns.get(thread).copied().unwrap_or_default();
            ran += now.0.saturating_sub(before.0);
            waited += now.1.saturating_sub(before.1);
        }
        let total = if complete { Duration::from_nanos(ran) } else { user + system };
        let waited = Duration::from_nanos(waited);
        CpuSpent { total, user, system, waited }
    }
}

/// Time run and time waited, both in nanoseconds.
fn parse_schedstat(schedstat: &str) -> Option<(u64, u64)> {
    let mut fields = schedstat.split_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// User and system ticks: the 14th and 15th field, counted after the name, which may hold anything.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 777 888 0 0 20 0 1 0 100 1 1";

        assert_eq!(parse_stat(stat), Some((777, 888)));
    }

    #[test]
    fn work_done_between_two_looks_is_seen() {
        let before = CpuTime::of_process(std::process::id()).unwrap();
        let mut sum = 0u64;
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let spent = CpuTime::of_process(std::process::id()).unwrap().since(&before);

        assert!(spent.total >= Duration::from_millis(10), "{spent:?}");
    }

    #[test]
    fn a_thread_that_ended_makes_the_ticks_the_total() {
        let at = |threads: &[(u32, u64)], user| CpuTime {
            threads_ns: threads.iter().map(|&(thread, ran)| (thread, (ran, ran / 2))).collect(),
            user: Duration::from_millis(user),
            system: Duration::ZERO,
        };

        let spent = at(&[(1, 5_000_000)], 90).since(&at(&[(1, 0), (2, 10)], 10));
        assert_eq!(spent.total, Duration::from_millis(80));
        let spent = at(&[(1, 5_000_000), (3, 1_000_000)], 90).since(&at(&[(1, 0)], 80));
        assert_eq!(
            (spent.total, spent.waited),
            (Duration::from_millis(6), Duration::from_millis(3))
        );
    }
}
