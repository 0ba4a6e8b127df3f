//! The command line, as a part that other binaries can take over.

use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyDist;
use crate::run::{Length, Plan, Ratio};
use crate::target::Target;
use crate::values::SizeDist;
use crate::wire::Protocol;

/// How to load a server.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address of the server [default: where a Kiln node listens for the protocol].
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address, help_heading = "Server")]
    pub address: Option<String>,
    /// Unix socket of the server, instead of an address.
    #[arg(long, value_name = "PATH", conflicts_with = "address", help_heading = "Server")]
    pub unix: Option<PathBuf>,
    /// What to speak.
    #[arg(long, value_enum, default_value = "memcached", help_heading = "Server")]
    pub protocol: Protocol,
    /// Native and http: the cache that the keys are in.
    #[arg(long, default_value = "default", value_name = "NAME", help_heading = "Server")]
    pub cache: String,
    /// http: get this path instead of keys, and write nothing.
    #[arg(long, value_name = "PATH", help_heading = "Server")]
    pub http_path: Option<String>,
    /// Process of the server, for its processor time per operation [default: the process on this
    /// machine that listens on the address].
    #[arg(long, value_name = "PID", help_heading = "Server")]
    pub server_pid: Option<u32>,

    /// Connections, spread over the threads.
    #[arg(long, short = 'c', default_value_t = 50, value_name = "N", help_heading = "Load")]
    pub connections: usize,
    /// Threads that generate load, each with its own event loop.
    #[arg(long, short = 't', default_value_t = 1, value_name = "N", help_heading = "Load")]
    pub threads: usize,
    /// Requests each connection has under way at once.
    #[arg(long, short = 'P', default_value_t = 1, value_name = "DEPTH", help_heading = "Load")]
    pub pipeline: usize,
    /// Writes to reads.
    #[arg(
        long,
        default_value = "1:10",
        value_name = "SET:GET",
        value_parser = parse_ratio,
        help_heading = "Load"
    )]
    pub ratio: Ratio,
    /// Open loop: requests per second over all connections, latency counted from when each was due.
    /// Without it the loop is closed: each reply brings the next request.
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub rate: Option<f64>,

    /// How many different keys there are.
    #[arg(long, short = 'k', default_value_t = 1_000_000, value_name = "N", help_heading = "Data")]
    pub keys: u32,
    /// Length of every key in bytes.
    #[arg(long, default_value_t = 30, value_name = "BYTES", help_heading = "Data")]
    pub key_len: usize,
    /// What every key begins with.
    #[arg(long, default_value = "key:", value_name = "TEXT", help_heading = "Data")]
    pub key_prefix: String,
    /// Which keys are asked for how often: `uniform`, `sequential`, or `zipf:S` with
    /// exponent S.
    #[arg(long, default_value = "uniform", value_name = "DIST", help_heading = "Data")]
    pub key_dist: KeyDist,
    /// Lengths of the values: SIZE, or SIZE:WEIGHT,… or FROM-TO:WEIGHT,…, e.g. 64:5,100:80,1024:15.
    #[arg(long, short = 'd', default_value = "100", value_name = "DIST", help_heading = "Data")]
    pub value_size: SizeDist,
    /// Where the key streams start; every connection draws its own.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Data")]
    pub seed: u64,
    /// Check the bytes of every value that comes back; wrong ones are errors.
    #[arg(long, help_heading = "Data")]
    pub verify: bool,

    /// Store every key once before anything else.
    #[arg(long, help_heading = "Course")]
    pub preload: bool,
    /// Run this long before measuring.
    #[arg(
        long,
        default_value = "0s",
        value_name = "TIME",
        value_parser = parse_duration,
        help_heading = "Course"
    )]
    pub warmup: Duration,
    /// Measure this long [default: 10s].
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parse_duration,
        conflicts_with = "requests",
        help_heading = "Course"
    )]
    pub duration: Option<Duration>,
    /// Measure so many requests, instead of a time.
    #[arg(long, short = 'n', value_name = "N", help_heading = "Course")]
    pub requests: Option<u64>,
    /// Give up when no answer at all comes for this long.
    #[arg(
        long,
        default_value = "10s",
        value_name = "TIME",
        value_parser = parse_duration,
        help_heading = "Course"
    )]
    pub stall_timeout: Duration,
}

/// What is wrong with an argument.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgsError {
    /// Not a host and a port.
    #[error("expected HOST:PORT")]
    Address,
    /// Not two numbers.
    #[error("expected SET:GET, two whole numbers")]
    Ratio,
    /// Not a time.
    #[error("expected a time such as 500ms, 10s, 2m or 1h")]
    Duration,
}

impl From<Args> for Plan {
    fn from(args: Args) -> Self {
        Self {
            target: match (args.unix, args.address) {
                (Some(path), _) => Target::Unix(path),
                (None, Some(address)) => Target::Tcp(address),
                (None, None) => Target::Tcp(args.protocol.address_default().to_owned()),
            },
            protocol: args.protocol,
            credentials: None,
            cache: args.cache,
            http_path: args.http_path,
            connections: args.connections,
            threads: args.threads,
            pipeline: args.pipeline,
            ratio: args.ratio,
            keys: args.keys,
            key_prefix: args.key_prefix,
            key_len: args.key_len,
            key_dist: args.key_dist,
            sizes: args.value_size,
            length: match (args.requests, args.duration) {
                (Some(requests), _) => Length::Requests(requests),
                (None, duration) => Length::Duration(duration.unwrap_or(DURATION_DEFAULT)),
            },
            warmup: args.warmup,
            preload: args.preload,
            rate: args.rate,
            seed: args.seed,
            verify: args.verify,
            server_pid: args.server_pid,
            stall_timeout: args.stall_timeout,
        }
    }
}

/// Takes the first host of `kiln://HOST:PORT,…` as well: that is how other commands name a cluster.
fn parse_address(text: &str) -> Result<String, ArgsError> {
    let host = match text.strip_prefix("kiln://") {
        Some(rest) => rest.split([',', '/']).next().unwrap_or(rest),
        None => text,
    };
    let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if matches!(port, Some(Ok(1..))) { Ok(host.to_owned()) } else { Err(ArgsError::Address) }
}

fn parse_ratio(text: &str) -> Result<Ratio, ArgsError> {
    let (sets, gets) = text.split_once(':').ok_or(ArgsError::Ratio)?;
    let number = |text: &str| text.parse().map_err(|_| ArgsError::Ratio);
    Ok(Ratio { sets: number(sets)?, gets: number(gets)? })
}

fn parse_duration(text: &str) -> Result<Duration, ArgsError> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit_seconds = match &text[digits..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(ArgsError::Duration),
    };
    let number: f64 = text[..digits].parse().map_err(|_| ArgsError::Duration)?;
    let duration = Duration::try_from_secs_f64(number * unit_seconds).ok();
    duration.filter(|&duration| duration <= DURATION_MAX).ok_or(ArgsError::Duration)
}

const DURATION_DEFAULT: Duration = Duration::from_secs(10);

/// A month: keeps every deadline within what the clock can hold.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit_and_seconds_without() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "-1s", "1d", "1.2.3", "9999999h"] {
            assert_eq!(parse_duration(wrong), Err(ArgsError::Duration), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port_however_it_is_written() {
        for text in ["a:1", "kiln://a:1", "kiln://a:1,b:2/cache"] {
            assert_eq!(parse_address(text), Ok("a:1".to_owned()), "{text}");
        }
        assert_eq!(parse_address("[::1]:9"), Ok("[::1]:9".to_owned()));
        for wrong in ["", "a", "a:", "a:0", "a:b", "kiln://", "a:70000"] {
            assert_eq!(parse_address(wrong), Err(ArgsError::Address), "{wrong}");
        }
    }

    #[test]
    fn a_ratio_is_writes_then_reads() {
        assert_eq!(parse_ratio("1:10"), Ok(Ratio { sets: 1, gets: 10 }));
        for wrong in ["", "1", "1:", ":1", "1:2:3", "-1:2"] {
            assert_eq!(parse_ratio(wrong), Err(ArgsError::Ratio), "{wrong}");
        }
    }
}
