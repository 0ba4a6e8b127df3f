//! Each guard of the protocol left out once: the judges must notice.

use kiln_cluster::config::Mutant;

use crate::campaign::Campaign;
use crate::judge::Violation;
use crate::run::Options;

/// A guard, and where its absence shows.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The guard left out.
    pub mutant: Mutant,
    /// `all` strong or eventual profiles in turn, or the one in which it shows.
    pub mode: &'static str,
    /// Seeds within which it must show.
    pub seeds_max: u64,
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub case: Case,
    /// The seeds run until it was caught, and the promise that it broke.
    pub caught: Option<(u64, Violation)>,
}

/// All guards.
pub const CASES: &[Case] = &[
    case(Mutant::ShrinkOnRequest, "strong"),
    case(Mutant::PromotedNotCounted, "strong"),
    case(Mutant::LowerTermAccepted, "strong-slow-network"),
    case(Mutant::IncarnationKept, "strong"),
    case(Mutant::ReadUnconfirmed, "strong"),
    case(Mutant::ReadUnstable, "strong"),
    case(Mutant::BackupEvicts, "strong-tight-memory"),
    case(Mutant::ChunkOverwrites, "strong"),
    case(Mutant::TombstoneEarly, "strong-failovers"),
    case(Mutant::NoAnswerWindow, "strong"),
    case(Mutant::ClockNotMerged, "strong-expiry"),
    case(Mutant::ClockNotMerged, "eventual"),
    case(Mutant::TombstoneEarly, "eventual"),
];

const fn case(mutant: Mutant, mode: &'static str) -> Case {
    Case { mutant, mode, seeds_max: 6_000 }
}

/// The guard with this name.
pub fn named(name: &str) -> Option<Mutant> {
    CASES.iter().map(|case| case.mutant).find(|mutant| format!("{mutant:?}") == name)
}

/// Runs seeds until the judges notice.
pub fn catch(case: &Case) -> Row {
    let options = Options { mutant: Some(case.mutant), ..Options::default() };
    let profiles = Campaign::profiles_named(case.mode).unwrap_or_default();
    let campaign = Campaign { profiles, from: 0, seeds: case.seeds_max, options };
    Row { case: *case, caught: campaign.seeds_until_caught() }
}

/// The table that the test prints.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| guard left out | profile | caught at seed | by the promise |\n");
    text.push_str("|---|---|---:|---|\n");
    for Row { case, caught } in rows {
        let (seeds, rule) = match caught {
            Some((seeds, violation)) => (seeds.to_string(), violation.rule),
            None => (format!("not in {}", case.seeds_max), "-"),
        };
        text.push_str(&format!("| {:?} | {} | {seeds} | {rule} |\n", case.mutant, case.mode));
    }
    text
}
