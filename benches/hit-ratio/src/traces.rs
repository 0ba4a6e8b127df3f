//! The traces: recorded ones read from files, synthetic ones made from a seed.
//!
//! A file is gzip of little-endian 32-bit key numbers in the order of access. Key numbers are
//! renumbered from 0, so that they index dense tables and the distinct ones are counted.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use rand::SeedableRng;
use rand_distr::{Distribution, Zipf};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Keys in the order they are asked for.
#[derive(Debug)]
pub struct Trace {
    /// What the table calls it.
    pub name: String,
    /// Key numbers, `0..distinct`.
    pub accesses: Vec<u32>,
    /// How many keys there are.
    pub distinct: u32,
}

impl Trace {
    /// Names the keys anew, by first appearance.
    pub fn new(name: &str, keys: impl IntoIterator<Item = u32>) -> Self {
        let mut numbers = std::collections::HashMap::new();
        let accesses = keys
            .into_iter()
            .map(|key| {
                let next = numbers.len() as u32;
                *numbers.entry(key).or_insert(next)
            })
            .collect();
        Self { name: name.to_owned(), accesses, distinct: numbers.len() as u32 }
    }

    /// Entries that a cache for `fraction` of the keys holds, at least one.
    pub fn capacity(&self, fraction: f64) -> usize {
        ((f64::from(self.distinct) * fraction) as usize).max(1)
    }
}

/// The directory of the recorded traces, or `None` when the environment names none.
pub fn recorded_dir() -> Option<PathBuf> {
    std::env::var_os("KILN_TRACE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Reads all of [`RECORDED`].
pub fn recorded(dir: &Path) -> Result<Vec<Trace>, TraceError> {
    RECORDED.iter().map(|name| read(name, dir.join(format!("{name}.u32.gz")))).collect()
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file is not there or is no gzip.
    #[error("cannot read the trace {}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file ends within a key.
    #[error("{} holds {len} bytes, not a whole number of 32-bit keys", path.display())]
    Torn {
        /// Which file.
        path: PathBuf,
        /// Its length, unpacked.
        len: usize,
    },
}

fn read(name: &str, path: PathBuf) -> Result<Trace, TraceError> {
    let mut bytes = Vec::new();
    let unpacked = File::open(&path).and_then(|file| GzDecoder::new(file).read_to_end(&mut bytes));
    if let Err(source) = unpacked {
        return Err(TraceError::Unreadable { path, source });
    }
    let (keys, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(TraceError::Torn { path, len: bytes.len() });
    }
    Ok(Trace::new(name, keys.iter().map(|&key| u32::from_le_bytes(key))))
}

/// The synthetic traces, the same on every machine.
pub fn synthetic() -> Vec<Trace> {
    vec![
        Trace::new("zipf 0.9", Zipfian::new(0.9).take(SYNTHETIC_LEN)),
        Trace::new("zipf 0.99", Zipfian::new(0.99).take(SYNTHETIC_LEN)),
        Trace::new("scan + zipf", scan_and_zipf().take(SYNTHETIC_LEN)),
        Trace::new("shifting", shifting().take(SYNTHETIC_LEN)),
    ]
}

/// Zipf 0.9, every 20 000 accesses broken by a scan over 8 000 further keys.
fn scan_and_zipf() -> impl Iterator<Item = u32> {
    let (mut popular, mut scan) = (Zipfian::new(0.9), (0..KEYS).cycle());
    (0..28_000_u32).cycle().filter_map(move |at| match at {
        0..20_000 => popular.next(),
        _ => scan.next().map(|key| KEYS + key),
    })
}

/// Zipf 0.99, every 50 000 accesses the 2 500 most popular keys give way to others.
fn shifting() -> impl Iterator<Item = u32> {
    let shift = |at: usize| (at / 50_000) as u32 * 2_500;
    Zipfian::new(0.99).enumerate().map(move |(at, rank)| (rank + shift(at)) % KEYS)
}

/// Ranks drawn by Zipf's law, from 0.
struct Zipfian {
    law: Zipf<f64>,
    random: Xoshiro256PlusPlus,
}

impl Zipfian {
    fn new(exponent: f64) -> Self {
        let law = Zipf::new(f64::from(KEYS), exponent).expect("a count and a positive exponent");
        Self { law, random: Xoshiro256PlusPlus::seed_from_u64(0x6b69_6c6e) }
    }
}

impl Iterator for Zipfian {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        Some(self.law.sample(&mut self.random) as u32 - 1)
    }
}

/// The recorded traces: of the Corda vault service, of the LIRS authors (`loop`, `multi3`,
/// `sprite`), of the ARC authors (`oltp`) and of the cache2k benchmark (`orm_busy`, `web12`).
pub const RECORDED: [&str; 7] =
    ["corda_vault", "loop", "multi3", "oltp", "orm_busy", "sprite", "web12"];

/// Keys that a synthetic trace draws from (a scan has as many of its own).
const KEYS: u32 = 50_000;

const SYNTHETIC_LEN: usize = 1_000_000;
