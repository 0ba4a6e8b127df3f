//! Sizes and costs: what a cluster of 3, 10, 50 or 200 nodes sends, moves and misses.
//!
//! Real nodes on a calm network: no faults but the one that is measured. Times are simulated, sizes
//! are those of the MessagePack encoding. The year is a model of its own that takes the measured
//! failover and rebuild times, because a year of heartbeats would show nothing more.

mod calm;
mod year;

use std::fmt::Write as _;

use self::calm::{Calm, Measured, min_in_sync};
use self::year::Year;
use crate::queue::{MS, SECOND};

/// Sizes of clusters.
const NODES: [u64; 4] = [3, 10, 50, 200];
/// Copies.
const COPIES: [u8; 2] = [2, 3];
/// Partitions of the group.
pub const PARTITIONS: u32 = 1_024;
/// Items in the cluster before the loss.
const ITEMS: u32 = 40_000;
/// Bytes of a value.
const VALUE_LEN: usize = 1_024;
/// Bytes a second that a node may spend on transfers.
const BANDWIDTH: u64 = 16 << 20;
/// Nodes killed one after the other, for the failover times.
const KILLS: u32 = 5;
/// Mean times to failure and to repair of one node, in seconds.
const RELIABILITY: [(&str, f64, &str, f64); 3] = [
    ("30 days", 30.0 * 86_400.0, "5 min", 300.0),
    ("30 days", 30.0 * 86_400.0, "4 h", 14_400.0),
    ("1 day", 86_400.0, "5 min", 300.0),
];

/// All tables, as they stand in `docs/simulation.md`.
pub fn tables(sizes: Option<u64>) -> String {
    let mut measured = Vec::new();
    for nodes in NODES.into_iter().filter(|&nodes| sizes.is_none_or(|max| nodes <= max)) {
        for copies in COPIES {
            measured.push((nodes, copies, measure(nodes, copies)));
        }
    }
    costs(&measured) + "\n" + &years(&measured)
}

fn measure(nodes: u64, copies: u8) -> Measured {
    let mut calm = Calm::form(nodes, copies, BANDWIDTH);
    calm.measure_idle(10 * SECOND);
    calm.measure_writes(ITEMS, VALUE_LEN);
    for _ in 0..KILLS {
        calm.measure_loss();
    }
    calm.measured
}

fn costs(measured: &[(u64, u8, Measured)]) -> String {
    let mut text = format!(
        "{PARTITIONS} partitions, {ITEMS} items of {VALUE_LEN} bytes, {} MiB/s for transfers per \
         node, one-way delay 0.1 to 0.4 ms, {KILLS} losses one after the other\n\n",
        BANDWIDTH >> 20
    );
    text.push_str(
        "| nodes | copies | min_in_sync | messages per write | heartbeats sent per node and second | their bytes \
         per node and second | moved after one loss | time to full copies | unavailable per \
         failover: mean | longest |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (nodes, copies, m) in measured {
        let _ = writeln!(
            text,
            "| {nodes} | {copies} | {} | {:.2} | {:.1} | {:.0} | {:.2} MiB | {:.1} s | {:.0} ms | {:.0} ms |",
            min_in_sync(*copies),
            m.messages_per_write,
            m.beats_per_second,
            m.beat_bytes_per_second,
            m.moved_bytes as f64 / f64::from(1 << 20),
            m.rebuild.iter().sum::<u64>() as f64 / m.rebuild.len().max(1) as f64 / SECOND as f64,
            m.mean_failover() as f64 / MS as f64,
            m.failover.iter().max().copied().unwrap_or_default() as f64 / MS as f64,
        );
    }
    text
}

fn years(measured: &[(u64, u8, Measured)]) -> String {
    let mut text = String::from(
        "| nodes | copies | MTTF of a node | MTTR | availability of a partition, simulated | one \
         copy, MTTF / (MTTF + MTTR) | with failover, MTTF / (MTTF + failover) | partitions lost per \
         year |\n|---:|---:|---|---|---:|---:|---:|---:|\n",
    );
    for (nodes, copies, m) in measured {
        for (mttf_name, mttf, mttr_name, mttr) in RELIABILITY {
            let failover = m.mean_failover() as f64 / SECOND as f64;
            let rebuild =
                m.rebuild.iter().max().copied().unwrap_or_default() as f64 / SECOND as f64;
            let year = Year { nodes: *nodes, copies: *copies, mttf, mttr, failover, rebuild };
            let outcome = year.simulate(nodes * 1_000 + u64::from(*copies));
            let _ = writeln!(
                text,
                "| {nodes} | {copies} | {mttf_name} | {mttr_name} | {:.7} % | {:.5} % | {:.7} % | {:.4} |",
                outcome.availability * 100.0,
                mttf / (mttf + mttr) * 100.0,
                mttf / (mttf + failover) * 100.0,
                outcome.lost_per_year,
            );
        }
    }
    text
}
