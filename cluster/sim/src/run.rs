//! Runs seeds: one, many, or one again with an event log.

#[cfg(feature = "mutants")]
use kiln_cluster::config::Mutant;
use kiln_cluster::config::NodeConfig;

use crate::judge::Violation;
use crate::profile::Profile;
use crate::stats::Stats;
use crate::world::World;

/// How a run is made, apart from its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Lines of event log kept; 0 for none.
    pub lines_max: usize,
    /// Takes the contents of every message into the trace hash, not only its place in time.
    pub deep_trace: bool,
    /// The guard left out.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// The hash over all events: the same for the same seed.
    pub trace_hash: u64,
    /// Figures.
    pub stats: Stats,
    /// The broken promise.
    pub violation: Option<Violation>,
    /// The excerpt of the event log, if one was kept.
    pub log: String,
}

/// Lines of the event log that a failing seed prints, about its subject and at the end.
const EXCERPT_LINES: usize = 120;
/// Lines kept while a failing seed runs again.
const REPLAY_LINES: usize = 400_000;

/// Runs a seed.
pub fn run_seed(profile: &Profile, seed: u64, options: Options) -> RunResult {
    run_with_log(profile, seed, options, 0)
}

fn run_with_log(profile: &Profile, seed: u64, options: Options, excerpt: usize) -> RunResult {
    let mut world = World::new(profile, seed, options);
    world.run();
    let subject = world.violation().map(|violation| violation.subject.clone());
    let log = match options.lines_max {
        0 => String::new(),
        _ => world.trace.excerpt(&subject.unwrap_or_default(), excerpt),
    };
    RunResult {
        trace_hash: world.trace.hash(),
        stats: world.stats,
        violation: world.violation().cloned(),
        log,
    }
}

/// Runs a seed again, with an event log of so many lines.
pub fn replay(profile: &Profile, seed: u64, options: Options, excerpt: usize) -> RunResult {
    run_with_log(profile, seed, Options { lines_max: REPLAY_LINES, ..options }, excerpt)
}

/// What a person needs when a seed failed: the promise, the one command, the log.
pub fn report(profile: &Profile, seed: u64, options: Options, violation: &Violation) -> String {
    let again = replay(profile, seed, options, EXCERPT_LINES);
    format!(
        "VIOLATION {violation}\n\
         replay: cargo run --release -p kiln-sim{} -- replay {seed} --profile {}{}\n{}",
        options.features(),
        profile.name,
        options.arguments(),
        again.log
    )
}

impl Options {
    /// Whether a restarted node is taken for the one it was.
    pub(crate) fn keeps_incarnation(&self) -> bool {
        #[cfg(feature = "mutants")]
        let keeps = self.mutant == Some(Mutant::IncarnationKept);
        #[cfg(not(feature = "mutants"))]
        let keeps = false;
        keeps
    }

    /// Whether a store evicts though its cache refuses.
    pub(crate) fn store_evicts(&self) -> bool {
        #[cfg(feature = "mutants")]
        let evicts = self.mutant == Some(Mutant::BackupEvicts);
        #[cfg(not(feature = "mutants"))]
        let evicts = false;
        evicts
    }

    /// The settings of a node in such a run.
    pub(crate) fn apply(&self, config: NodeConfig) -> NodeConfig {
        #[cfg(feature = "mutants")]
        let config = NodeConfig { mutant: self.mutant, ..config };
        config
    }

    fn features(&self) -> &'static str {
        #[cfg(feature = "mutants")]
        if self.mutant.is_some() {
            return " --features mutants";
        }
        ""
    }

    fn arguments(&self) -> String {
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.mutant {
            return format!(" --mutant {mutant:?}");
        }
        String::new()
    }
}
