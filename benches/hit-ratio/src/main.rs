//! Prints hit ratios as one markdown table.
//!
//! ```text
//! KILN_TRACE_DIR=DIR kiln-hit-ratio [--capacity 0.1] [--shards 1]
//! ```

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use kiln_hit_ratio::table::Table;
use kiln_hit_ratio::traces::{self, TraceError};

/// Hit ratios of Kiln's eviction policies on real and synthetic traces, beside quick_cache, moka
/// and the optimum. Real traces are read from the directory that KILN_TRACE_DIR names.
#[derive(Debug, Parser)]
struct Args {
    /// Part of the distinct keys that fits in the cache.
    #[arg(long, default_value_t = 0.1, value_parser = fraction)]
    capacity: f64,
    /// Parts that the cache is divided into by the hash of the key. moka and the optimum have
    /// one always.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("kiln-hit-ratio: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), TraceError> {
    let mut table = Table::default();
    let shards = usize::from(args.shards);
    match traces::recorded_dir() {
        Some(dir) => table.run("recorded", &traces::recorded(&dir)?, args.capacity, shards),
        None => println!(
            "KILN_TRACE_DIR is not set: the {} recorded traces are left out.\n",
            traces::RECORDED.len()
        ),
    }
    table.run("synthetic", &traces::synthetic(), args.capacity, shards);
    println!("Hit ratios with room for {} of the keys, shards: {shards}\n", args.capacity);
    print!("{table}");
    Ok(())
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(fraction),
        _ => Err("must be above 0 and at most 1".to_owned()),
    }
}
