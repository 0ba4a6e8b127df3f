//! Many seeds: over one profile or several in turn, until the number is reached.

use std::time::{Duration, Instant};

use crate::judge::Violation;
use crate::profile::{PROFILES, Profile};
use crate::run::{Options, report, run_seed};
use crate::stats::Stats;

/// Failing seeds whose event log is printed; more are only counted.
const REPORTS_MAX: usize = 20;

/// Which seeds of which profiles.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Taken in turn: seed `n` runs on profile `n % profiles`.
    pub profiles: Vec<&'static Profile>,
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// How each is run.
    pub options: Options,
}

/// What became of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Figures over all runs.
    pub stats: Stats,
    /// Failing seeds.
    pub failed: u64,
    /// The first broken promise, with the seeds run until then, it included.
    pub first: Option<(u64, Violation)>,
    /// Reports of the first failing seeds, ready to print.
    pub reports: Vec<String>,
}

impl Campaign {
    /// The profiles of a mode: `strong`, `eventual`, `all`, or the name of one profile.
    pub fn profiles_named(name: &str) -> Option<Vec<&'static Profile>> {
        let of = |strong: bool| PROFILES.iter().filter(|p| p.is_strong() == strong).collect();
        match name {
            "all" => Some(PROFILES.iter().collect()),
            "strong" => Some(of(true)),
            "eventual" => Some(of(false)),
            name => Profile::named(name).map(|profile| vec![profile]),
        }
    }

    /// Runs until all seeds are done or `go_on` says no. It is asked after each seed.
    pub fn run(&self, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
        let mut tally = Tally::default();
        for seed in self.from..self.from + self.seeds {
            let profile = self.profiles[(seed % self.profiles.len() as u64) as usize];
            let result = run_seed(profile, seed, self.options);
            tally.stats.add(&result.stats);
            if let Some(violation) = result.violation {
                tally.failed += 1;
                if tally.reports.len() < REPORTS_MAX {
                    tally.reports.push(report(profile, seed, self.options, &violation));
                }
                tally.first.get_or_insert((seed - self.from + 1, violation));
            }
            if !go_on(&tally) {
                break;
            }
        }
        tally
    }

    /// Runs until all seeds are done, the first one fails, or the time is over.
    pub fn run_within(&self, time_max: Duration) -> (Tally, Duration) {
        let started = Instant::now();
        let tally = self.run(|tally| tally.failed == 0 && started.elapsed() < time_max);
        (tally, started.elapsed())
    }

    /// Seeds run until the first violation, without reports; `None` when there was none.
    pub fn seeds_until_caught(&self) -> Option<(u64, Violation)> {
        for seed in self.from..self.from + self.seeds {
            let profile = self.profiles[(seed % self.profiles.len() as u64) as usize];
            if let Some(violation) = run_seed(profile, seed, self.options).violation {
                return Some((seed - self.from + 1, violation));
            }
        }
        None
    }
}
