//! Runs simulations from the command line.
//!
//! ```text
//!   kiln-sim run --seeds 200000 --mode all     many seeds; ends with figures, or with failing seeds
//!   kiln-sim replay 4711 --profile NAME        one seed again, with its event log
//!   kiln-sim mutants                           the table of guards left out (feature `mutants`)
//!   kiln-sim sweep                             sizes and costs, as the tables of docs/simulation.md
//!   kiln-sim profiles                          what kinds of runs there are
//! ```

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use kiln_sim::{Campaign, Options, PROFILES, Profile, replay};

/// Simulated clusters under seeded faults.
#[derive(Parser)]
#[command(name = "kiln-sim", about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs many seeds.
    Run {
        /// How many.
        #[arg(long, default_value_t = 3_000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// strong, eventual, all, or the name of a profile.
        #[arg(long, default_value = "all")]
        mode: String,
        /// Go on after failing seeds.
        #[arg(long)]
        keep_going: bool,
        /// Leave out a guard (feature `mutants`).
        #[arg(long)]
        mutant: Option<String>,
    },
    /// Runs one seed again with its event log.
    Replay {
        /// Which.
        seed: u64,
        /// On which profile.
        #[arg(long)]
        profile: String,
        /// Lines of the log, about the subject of the violation and of all; all of them with 0.
        #[arg(long, default_value_t = 200)]
        lines: usize,
        /// Leave out a guard (feature `mutants`).
        #[arg(long)]
        mutant: Option<String>,
    },
    /// Shows by which seed each left-out guard is caught.
    Mutants,
    /// Prints sizes and costs.
    Sweep {
        /// No clusters larger than this.
        #[arg(long)]
        nodes_max: Option<u64>,
    },
    /// Lists the profiles.
    Profiles,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seeds, from, mode, keep_going, mutant } => {
            run(seeds, from, &mode, keep_going, mutant.as_deref())
        }
        Command::Replay { seed, profile, lines, mutant } => {
            again(seed, &profile, lines, mutant.as_deref())
        }
        Command::Mutants => mutants(),
        Command::Sweep { nodes_max } => {
            print!("{}", kiln_sim::sweep::tables(nodes_max));
            ExitCode::SUCCESS
        }
        Command::Profiles => {
            PROFILES.iter().for_each(|profile| println!("{}", profile.name));
            ExitCode::SUCCESS
        }
    }
}

fn run(seeds: u64, from: u64, mode: &str, keep_going: bool, mutant: Option<&str>) -> ExitCode {
    let Some(profiles) = Campaign::profiles_named(mode) else { return no_such_profile(mode) };
    let Some(options) = options(mutant) else { return ExitCode::FAILURE };
    let started = Instant::now();
    let mut said = started;
    let campaign = Campaign { profiles, from, seeds, options };
    let mut reported = 0;
    let tally = campaign.run(|tally| {
        // A long run tells what it finds at once.
        tally.reports.iter().skip(reported).for_each(|report| println!("{report}"));
        reported = tally.reports.len();
        if said.elapsed().as_secs() >= 30 {
            said = Instant::now();
            let (runs, failed) = (tally.stats.runs, tally.failed);
            eprintln!("{runs} seeds, {failed} failed, {} s", started.elapsed().as_secs());
        }
        keep_going || tally.failed == 0
    });
    println!("{}", tally.stats);
    println!(
        "{} seeds of mode {mode} in {:.1} s, {} failed",
        tally.stats.runs,
        started.elapsed().as_secs_f64(),
        tally.failed
    );
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn again(seed: u64, profile: &str, lines: usize, mutant: Option<&str>) -> ExitCode {
    let Some(profile) = Profile::named(profile) else { return no_such_profile(profile) };
    let Some(options) = options(mutant) else { return ExitCode::FAILURE };
    let lines = if lines == 0 { usize::MAX } else { lines };
    let result = replay(profile, seed, options, lines);
    print!("{}", result.log);
    println!("{}", result.stats);
    println!("trace hash {:016x}", result.trace_hash);
    match result.violation {
        Some(violation) => {
            println!("VIOLATION {violation}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn no_such_profile(name: &str) -> ExitCode {
    eprintln!("no profile {name}; `kiln-sim profiles` lists them");
    ExitCode::FAILURE
}

#[cfg(feature = "mutants")]
fn options(mutant: Option<&str>) -> Option<Options> {
    let Some(name) = mutant else { return Some(Options::default()) };
    match kiln_sim::mutants::named(name) {
        Some(mutant) => Some(Options { mutant: Some(mutant), ..Options::default() }),
        None => {
            eprintln!("no mutant {name}");
            None
        }
    }
}

#[cfg(not(feature = "mutants"))]
fn options(mutant: Option<&str>) -> Option<Options> {
    if mutant.is_some() {
        eprintln!("build with --features mutants");
        return None;
    }
    Some(Options::default())
}

#[cfg(feature = "mutants")]
fn mutants() -> ExitCode {
    let rows: Vec<_> = kiln_sim::mutants::CASES.iter().map(kiln_sim::mutants::catch).collect();
    print!("{}", kiln_sim::mutants::table(&rows));
    match rows.iter().all(|row| row.caught.is_some()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

#[cfg(not(feature = "mutants"))]
fn mutants() -> ExitCode {
    eprintln!("build with --features mutants");
    ExitCode::FAILURE
}
