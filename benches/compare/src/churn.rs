//! Whether the memory ceiling holds while value sizes change.
//!
//! An allocator that is good at the first fill may be bad at the second with other sizes: freed
//! places do not fit what comes next. So phases of small, large, mixed and shrinking values follow
//! each other, again and again, with overwrites, deletes and times to live, far more data than
//! fits, while resident memory is read ten times a second.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::Serialize;

use crate::server::{Kind, Launch, Running, rss_of, start_or_skip};
use crate::{CompareError, Outcome};

/// How the churn test goes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Churn")]
pub(crate) struct Options {
    /// The server's memory ceiling in MiB.
    #[arg(
        long,
        default_value_t = 256,
        value_name = "MIB",
        value_parser = clap::value_parser!(u64).range(16..=65_536)
    )]
    ceiling_mib: u64,
    /// How long to churn; the four phases repeat within it.
    #[arg(
        long,
        default_value_t = 120,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(4..=604_800)
    )]
    churn_seconds: u64,
    /// Where the random choices start.
    #[arg(long, default_value_t = 1, value_name = "N")]
    churn_seed: u64,
}

/// What was seen of one kind of phase, over all its turns.
#[derive(Clone, Debug, Default, Serialize)]
struct Seen {
    phase: &'static str,
    rss_max: u64,
    of_ceiling: f64,
    rss_samples: u64,
    written: u64,
    written_bytes: u64,
    refused: u64,
    deleted: u64,
    read: u64,
    items_at_end: u64,
}

pub(crate) fn run(
    kinds: &[Kind],
    launch: &Launch,
    options: &Options,
    cancel: &AtomicBool,
) -> Result<Outcome, CompareError> {
    let (mut markdown, mut results, mut passed) = (String::new(), Vec::new(), true);
    let speaking = |kind: &&Kind| matches!(kind, Kind::Kiln | Kind::Memcached);
    for &kind in kinds.iter().filter(speaking) {
        let Some(mut server) = start_or_skip(kind, launch, options.ceiling_mib)? else { continue };
        let seen = churn(&mut server, options, cancel)?;
        // The ceiling is Kiln's promise; memcached counts only its slabs and is shown, not judged.
        let judged = kind == Kind::Kiln;
        let held = seen.iter().all(|seen| seen.of_ceiling <= LIMIT && seen.rss_samples > 0);
        passed &= !judged || held;
        markdown += &table(&server, options, &seen, judged);
        results
            .push(serde_json::json!({ "server": kind, "version": server.version, "phases": seen }));
    }
    if results.is_empty() {
        return Err(CompareError::NoServer);
    }
    let json = serde_json::json!({
        "mode": "churn", "ceiling_mib": options.ceiling_mib, "seconds": options.churn_seconds, "servers": results,
    });
    Ok(Outcome { markdown, json, passed })
}

fn churn(
    server: &mut Running,
    options: &Options,
    cancel: &AtomicBool,
) -> Result<Vec<Seen>, CompareError> {
    let ceiling = options.ceiling_mib << 20;
    let whole = Duration::from_secs(options.churn_seconds);
    let turn = (whole / PHASES.len() as u32).min(TURN_MAX);
    let mut churner = Churner::new(server, ceiling, options.churn_seed)?;
    let mut seen: Vec<Seen> =
        PHASES.iter().map(|phase| Seen { phase: phase.name(), ..Seen::default() }).collect();
    let watch = RssWatch::default();
    thread::scope(|scope| {
        let (pid, watch) = (server.pid(), &watch);
        scope.spawn(move || watch.run(pid));
        // Ends the watching thread on every way out; the scope waits for it.
        let _ending = EndWatch(watch);
        let start = Instant::now();
        for (index, phase) in PHASES.iter().enumerate().cycle() {
            if start.elapsed() >= whole {
                break;
            }
            watch.phase.store(index, Ordering::Relaxed);
            let turn_start = Instant::now();
            while turn_start.elapsed() < turn {
                if cancel.load(Ordering::Relaxed) {
                    return Err(CompareError::Interrupted);
                }
                let progress = turn_start.elapsed().as_secs_f64() / turn.as_secs_f64();
                churner.batch(*phase, progress.min(1.0), &mut seen[index])?;
            }
            if !server.is_alive() {
                return Err(CompareError::Died { server: server.kind });
            }
            seen[index].items_at_end = server.items()?;
        }
        Ok(())
    })?;
    for (seen, (rss_max, samples)) in seen.iter_mut().zip(watch.maxima.iter().zip(&watch.samples)) {
        seen.rss_max = rss_max.load(Ordering::Relaxed);
        seen.rss_samples = samples.load(Ordering::Relaxed);
        seen.of_ceiling = seen.rss_max as f64 / ceiling as f64;
    }
    Ok(seen)
}

/// Reads resident memory ten times a second and keeps the maximum of each phase.
#[derive(Debug, Default)]
struct RssWatch {
    phase: AtomicUsize,
    maxima: [AtomicU64; PHASES.len()],
    samples: [AtomicU64; PHASES.len()],
    ended: AtomicBool,
}

impl RssWatch {
    fn run(&self, pid: u32) {
        while !self.ended.load(Ordering::Relaxed) {
            if let Ok(rss) = rss_of(pid) {
                let phase = self.phase.load(Ordering::Relaxed);
                self.maxima[phase].fetch_max(rss, Ordering::Relaxed);
                self.samples[phase].fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(SAMPLE_EVERY);
        }
    }
}

struct EndWatch<'a>(&'a RssWatch);

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

/// Which sizes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Small,
    Large,
    Mixed,
    Shrinking,
}

const PHASES: [Phase; 4] = [Phase::Small, Phase::Large, Phase::Mixed, Phase::Shrinking];

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Small => "small (50-500 B)",
            Self::Large => "large (10-900 KiB)",
            Self::Mixed => "mixed (80 % small, 15 % 1-10 KiB, 5 % large)",
            Self::Shrinking => "shrinking (900 KiB to 50 B)",
        }
    }

    /// The length of the next value, `progress` of the way (0 to 1) through the phase.
    fn size(self, progress: f64, rng: &mut impl Rng) -> usize {
        match self {
            Self::Small => rng.random_range(SMALL),
            Self::Large => rng.random_range(LARGE),
            Self::Mixed => match rng.random_range(0..100) {
                0..80 => rng.random_range(SMALL),
                80..95 => rng.random_range(1024..=10 * 1024),
                _ => rng.random_range(LARGE),
            },
            Self::Shrinking => {
                let size_max = shrunk_to(progress);
                rng.random_range(size_max / 2..=size_max)
            }
        }
    }

    fn size_mean(self, progress: f64) -> u64 {
        match self {
            Self::Small => 275,
            Self::Large => 455 * 1024,
            Self::Mixed => 24 * 1024,
            Self::Shrinking => shrunk_to(progress) as u64 * 3 / 4,
        }
    }
}

/// Falls by the same factor in equal times, so that every size class has its turn.
fn shrunk_to(progress: f64) -> usize {
    let (largest, smallest) = (*LARGE.end() as f64, *SMALL.start() as f64);
    (largest * (smallest / largest).powf(progress)) as usize
}

/// Writes batches over several connections, one after the other.
struct Churner {
    connections: Vec<BufReader<TcpStream>>,
    turn: usize,
    rng: Xoshiro256PlusPlus,
    noise: Vec<u8>,
    output: Vec<u8>,
    ceiling: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Set,
    Delete,
}

impl Churner {
    fn new(server: &Running, ceiling: u64, seed: u64) -> io::Result<Self> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut noise = vec![0; *LARGE.end() + NOISE_OFFSETS];
        rng.fill_bytes(&mut noise);
        let connections = (0..CONNECTIONS)
            .map(|_| server.connect().map(BufReader::new))
            .collect::<io::Result<_>>()?;
        Ok(Self { connections, turn: 0, rng, noise, output: Vec::new(), ceiling })
    }

    fn batch(&mut self, phase: Phase, progress: f64, seen: &mut Seen) -> io::Result<()> {
        // About three times what fits: keys are overwritten, evicted and missed alike.
        let keys = (3 * self.ceiling / phase.size_mean(progress).max(1)).clamp(1_000, KEYS_MAX);
        self.turn = (self.turn + 1) % self.connections.len();
        self.output.clear();
        let mut asked = Vec::with_capacity(BATCH_REQUESTS);
        while asked.len() < BATCH_REQUESTS && self.output.len() < BATCH_BYTES {
            let key = self.rng.random_range(0..keys);
            if self.rng.random_range(0..100) < DELETE_PERCENT {
                write!(self.output, "delete churn:{key}\r\n")?;
                asked.push(Asked::Delete);
                continue;
            }
            let size = phase.size(progress, &mut self.rng);
            let lives = self.rng.random_range(0..100) < TTL_PERCENT;
            let ttl = if lives { self.rng.random_range(1..=10) } else { 0 };
            write!(self.output, "set churn:{key} 0 {ttl} {size}\r\n")?;
            self.output.extend_from_slice(value_of(key, size, &self.noise));
            self.output.extend_from_slice(b"\r\n");
            asked.push(Asked::Set);
            seen.written_bytes += size as u64;
        }
        let connection = &mut self.connections[self.turn];
        // The replies are short lines: the server can always write them, so this cannot lock up.
        connection.get_mut().write_all(&self.output)?;
        let mut line = Vec::new();
        for asked in asked {
            read_line(connection, &mut line)?;
            match (asked, line.as_slice()) {
                (Asked::Set, b"STORED\r\n") => seen.written += 1,
                (Asked::Set, refusal) if refusal.starts_with(b"SERVER_ERROR") => seen.refused += 1,
                (Asked::Delete, b"DELETED\r\n") => seen.deleted += 1,
                (Asked::Delete, b"NOT_FOUND\r\n") => {}
                (_, other) => return Err(unexpected(other)),
            }
        }
        let key = self.rng.random_range(0..keys);
        seen.read += u64::from(read_value(connection, key, &self.noise, &mut line)?);
        Ok(())
    }
}

/// Each key's values start elsewhere in the noise, so that one key's bytes under another are seen.
fn value_of(key: u64, len: usize, noise: &[u8]) -> &[u8] {
    let start = key as usize % NOISE_OFFSETS;
    &noise[start..start + len]
}

/// Reads one key, so that recency has something to follow; says whether it was there and fails
/// when its bytes are wrong.
fn read_value(
    connection: &mut BufReader<TcpStream>,
    key: u64,
    noise: &[u8],
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    write!(connection.get_mut(), "get churn:{key}\r\n")?;
    read_line(connection, line)?;
    if line == b"END\r\n" {
        return Ok(false);
    }
    let len = std::str::from_utf8(line).ok().and_then(|line| line.split_whitespace().nth(3));
    let len = len.and_then(|len| len.parse().ok()).filter(|&len: &usize| len <= *LARGE.end());
    let len = len.ok_or_else(|| unexpected(line))?;
    let mut data = vec![0; len + b"\r\nEND\r\n".len()];
    connection.read_exact(&mut data)?;
    if &data[..len] == value_of(key, len, noise) && &data[len..] == b"\r\nEND\r\n" {
        return Ok(true);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("churn:{key} came back damaged")))
}

fn read_line(connection: &mut BufReader<TcpStream>, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    connection.by_ref().take(LINE_LEN_MAX).read_until(b'\n', line)?;
    if line.ends_with(b"\n") { Ok(()) } else { Err(unexpected(line)) }
}

fn unexpected(line: &[u8]) -> io::Error {
    let line = String::from_utf8_lossy(&line[..line.len().min(100)]).trim_end().to_owned();
    io::Error::new(io::ErrorKind::InvalidData, format!("the server answered `{line}`"))
}

fn table(server: &Running, options: &Options, seen: &[Seen], judged: bool) -> String {
    let mut text = format!(
        "{} ({}) with a ceiling of {} MiB, churned for {} s.\n\n\
         | phase | max RSS MiB | of the ceiling | samples | sets | written MiB | refused | deleted | reads hit | items at its end | |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
        server.kind, server.version, options.ceiling_mib, options.churn_seconds
    );
    for seen in seen {
        let mark = match judged {
            true if seen.of_ceiling <= LIMIT && seen.rss_samples > 0 => "pass (<= 1.10)",
            true => "**FAIL** (<= 1.10)",
            false => "",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.3} | {} | {} | {} | {} | {} | {} | {} | {mark} |",
            seen.phase,
            seen.rss_max as f64 / f64::from(1 << 20),
            seen.of_ceiling,
            seen.rss_samples,
            seen.written,
            seen.written_bytes >> 20,
            seen.refused,
            seen.deleted,
            seen.read,
            seen.items_at_end
        );
    }
    text
}

/// Resident memory may exceed the ceiling by a tenth.
const LIMIT: f64 = 1.10;

const SMALL: std::ops::RangeInclusive<usize> = 50..=500;
const LARGE: std::ops::RangeInclusive<usize> = 10 * 1024..=900 * 1024;

/// A phase is left after this, so that a long run goes round many times.
const TURN_MAX: Duration = Duration::from_secs(15);

const SAMPLE_EVERY: Duration = Duration::from_millis(100);
const CONNECTIONS: usize = 8;
const BATCH_REQUESTS: usize = 512;
const BATCH_BYTES: usize = 256 * 1024;
/// At how many places of the noise a value can start.
const NOISE_OFFSETS: usize = 4096;
const KEYS_MAX: u64 = 20_000_000;
const DELETE_PERCENT: u32 = 10;
const TTL_PERCENT: u32 = 30;
const LINE_LEN_MAX: u64 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_keeps_to_its_sizes() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        for step in 0..=1000 {
            let progress = f64::from(step) / 1000.0;
            assert!(SMALL.contains(&Phase::Small.size(progress, &mut rng)));
            assert!(LARGE.contains(&Phase::Large.size(progress, &mut rng)));
            assert!(Phase::Mixed.size(progress, &mut rng) <= *LARGE.end());
            assert!(Phase::Shrinking.size(progress, &mut rng) <= shrunk_to(progress));
        }
    }

    #[test]
    fn shrinking_runs_from_the_largest_size_to_the_smallest() {
        assert_eq!(shrunk_to(0.0), *LARGE.end());
        assert!(shrunk_to(1.0).abs_diff(*SMALL.start()) <= 1);
        assert!((1..100).all(|step| {
            shrunk_to(f64::from(step) / 100.0) < shrunk_to(f64::from(step - 1) / 100.0)
        }));
    }
}
