//! What an item costs beyond its key and value.
//!
//! Resident memory when full less resident memory when empty, divided by the items the server
//! itself says it holds. memcached comes out near 69 bytes and Redis near 86: when they do not,
//! the figure for Kiln says nothing either.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_load::{Length, Plan, SizeDist};
use serde::Serialize;

use crate::server::{Kind, Launch, Running, start_or_skip};
use crate::speed::load;
use crate::{CompareError, Outcome};

/// How the memory comparison goes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Memory")]
pub(crate) struct Options {
    /// Items stored in each server.
    #[arg(
        long,
        default_value_t = 5_000_000,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    items: u32,
}

/// One server, empty and full.
#[derive(Clone, Debug, Serialize)]
struct Filled {
    server: Kind,
    version: String,
    rss_empty: u64,
    rss_full: u64,
    items: u64,
    /// Beyond key and value, per item held.
    overhead_bytes: f64,
}

pub(crate) fn run(
    kinds: &[Kind],
    launch: &Launch,
    options: &Options,
    cancel: &AtomicBool,
) -> Result<Outcome, CompareError> {
    let mut rows = Vec::new();
    for &kind in kinds.iter().filter(|kind| **kind != Kind::Null) {
        if let Some(mut server) = start_or_skip(kind, launch, MEMORY_MIB)? {
            rows.push(fill(&mut server, options, cancel)?);
        }
    }
    if rows.is_empty() {
        return Err(CompareError::NoServer);
    }
    let passed = rows.iter().all(|row| {
        row.server != Kind::Kiln || (row.overhead_bytes <= LIMIT_BYTES && complete(row, options))
    });
    Ok(Outcome {
        markdown: markdown(&rows, options),
        json: serde_json::json!({ "mode": "memory", "rows": rows }),
        passed,
    })
}

fn fill(
    server: &mut Running,
    options: &Options,
    cancel: &AtomicBool,
) -> Result<Filled, CompareError> {
    let rss_empty = settled_rss(server, cancel)?;
    eprintln!("kiln-compare: filling {}", server.kind);
    let plan = Plan {
        connections: 8,
        keys: options.items,
        key_len: KEY_LEN as usize,
        sizes: SizeDist::fixed(VALUE_LEN as usize).unwrap_or(Plan::default().sizes),
        preload: true,
        length: Length::Requests(0),
        ..server.plan()
    };
    load(server, &plan, cancel)?;
    let rss_full = settled_rss(server, cancel)?;
    let items = server.items()?;
    let grown = rss_full.saturating_sub(rss_empty) as f64;
    let overhead_bytes = grown / items.max(1) as f64 - (KEY_LEN + VALUE_LEN) as f64;
    let version = server.version.clone();
    Ok(Filled { server: server.kind, version, rss_empty, rss_full, items, overhead_bytes })
}

/// Resident memory once it stands still: a hash table may go on growing after the last write.
fn settled_rss(server: &mut Running, cancel: &AtomicBool) -> Result<u64, CompareError> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut last = server.rss()?;
    let mut still = 0;
    while still < STILL_LOOKS && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
        if cancel.load(Ordering::Relaxed) {
            return Err(CompareError::Interrupted);
        }
        if !server.is_alive() {
            return Err(CompareError::Died { server: server.kind });
        }
        let rss = server.rss()?;
        still = if rss.abs_diff(last) <= last / 1000 { still + 1 } else { 0 };
        last = rss;
    }
    Ok(last)
}

fn complete(row: &Filled, options: &Options) -> bool {
    row.items == u64::from(options.items)
}

fn markdown(rows: &[Filled], options: &Options) -> String {
    let mut text = format!(
        "{} items of {KEY_LEN}-byte keys and {VALUE_LEN}-byte values, ceiling {MEMORY_MIB} MiB.\n\n\
         | server | version | items held | RSS empty MiB | RSS full MiB | bytes per item beyond key and value | |\n\
         |---|---|---:|---:|---:|---:|---|\n",
        options.items
    );
    for row in rows {
        let mark = match row.server {
            _ if !complete(row, options) => "**lost items**",
            Kind::Kiln if row.overhead_bytes > LIMIT_BYTES => "**FAIL** (<= 40)",
            Kind::Kiln => "pass (<= 40)",
            _ => "",
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {mark} |",
            row.server,
            row.version,
            row.items,
            mib(row.rss_empty),
            mib(row.rss_full),
            row.overhead_bytes
        );
        if row.rss_empty > EMPTY_SUSPICIOUS {
            let _ = writeln!(
                text,
                "\n{} is resident before anything is stored; the growth says too little.\n",
                row.server
            );
        }
    }
    text
}

/// What the issue asks of Kiln at most.
const LIMIT_BYTES: f64 = 40.0;

const KEY_LEN: u64 = 30;
const VALUE_LEN: u64 = 100;
const MEMORY_MIB: u64 = 4096;

/// An empty server beyond this has touched its item memory already.
const EMPTY_SUSPICIOUS: u64 = 256 << 20;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const STILL_LOOKS: u32 = 3;
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
