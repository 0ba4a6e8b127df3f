//! The gate: thousands of seeded runs over all profiles, and what makes them worth something.
//!
//! `cargo test -p kiln-cluster --test simulation -- --nocapture` prints the figures. Longer runs,
//! replays and the sweep are commands of `kiln-sim`; see `docs/simulation.md`.

use std::time::Duration;

use kiln_sim::{Campaign, Options, PROFILES, run_seed};

/// Seeds of the gate.
const SEEDS: u64 = 3_000;
/// A slow machine stops here and says what it reached.
const TIME_MAX: Duration = Duration::from_secs(90);
/// Fewer than this is no gate, however slow the machine.
const SEEDS_MIN: u64 = 500;

#[test]
fn thousands_of_seeds_break_no_promise_and_heal() {
    let profiles = Campaign::profiles_named("all").expect("all profiles");
    let campaign = Campaign { profiles, from: 0, seeds: SEEDS, options: Options::default() };
    let (tally, elapsed) = campaign.run_within(TIME_MAX);
    println!("{}", tally.stats);
    println!("{} of {SEEDS} seeds in {:.1} s", tally.stats.runs, elapsed.as_secs_f64());
    assert!(tally.failed == 0, "{}", tally.reports.join("\n"));
    assert!(tally.stats.runs >= SEEDS_MIN, "only {} seeds in {elapsed:?}", tally.stats.runs);

    // A simulation in which nothing goes wrong, or in which nothing works, proves nothing.
    let stats = tally.stats;
    assert!(stats.answered > stats.calls / 2, "most calls are answered");
    assert!(stats.unknown > 0 && stats.retries > stats.runs, "some are not, or late");
    assert!(stats.kills > stats.runs / 4 && stats.pauses > 0 && stats.cuts > 0);
    assert!(stats.suspicions > 0 && stats.joins > 0 && stats.left > 0);
    assert!(stats.terms > 2 * stats.runs, "primaries change");
    assert!(stats.transfers > 0 && stats.losses > 0 && stats.losses_told > 0);
    assert!(stats.keys_undecided * 50 < stats.keys_checked, "the checker decides nearly always");
}

#[test]
fn the_same_seed_gives_the_same_trace_twice() {
    let options = Options { deep_trace: true, ..Options::default() };
    for (seed, profile) in (900..).zip(PROFILES) {
        let first = run_seed(profile, seed, options);
        let second = run_seed(profile, seed, options);
        assert_eq!(first.trace_hash, second.trace_hash, "{} seed {seed}", profile.name);
        assert_eq!(first.stats, second.stats);
        let other = run_seed(profile, seed + 1_000, options);
        assert_ne!(first.trace_hash, other.trace_hash, "another seed is another run");
    }
}
