//! `kiln load`: store the items of a file.
//!
//! ```text
//!   reader thread: file -> records --(bounded channel of batches)--> client: many sets in flight
//! ```
//!
//! What always holds: the file is read no faster than the cluster stores, so memory does not grow
//! with it; every line is either stored or counted as a failure; it stops after a bounded number of
//! failures, and at once when the cluster is gone.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::ValueHint;
use futures_util::stream::{FuturesUnordered, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_client::{Cache, Error, Expiry};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    CommandError, EXIT_CODES,
    connect::{CacheArgs, explain},
    output::{self, Format, OutputArgs, shown},
    records::{BadLine, FileFormat, Reader, Record},
};

/// Store items from a file.
///
/// One JSON object in each line, {"key":"k","value":"v","ttl_ms":60000,"flags":1}, with key_base64 and
/// value_base64 for bytes that are no text; or CSV with the columns key,value,ttl_ms,flags,encoding.
/// A line that cannot be read or stored is told with its number and left out.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Load {
    /// The file; - is standard input.
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// How the items are written [default: by the file's name, else ndjson].
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Stop at the first line that cannot be read or stored.
    #[arg(long, conflicts_with = "errors_max")]
    strict: bool,
    /// Stop after so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    errors_max: u64,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// What came of it, for programs.
#[derive(Debug, Serialize)]
struct Summary {
    stored: u64,
    /// Lines that could not be read.
    bad_lines: u64,
    /// Items that the cluster did not take.
    refused: u64,
    /// Bytes of the file that were read.
    bytes: u64,
    seconds: f64,
    /// Whether the whole file was read.
    complete: bool,
}

impl Load {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let name = self.file.display().to_string();
        let fail = |error: io::Error| CommandError::Failed(format!("{name}: {error}"));
        let stdin = self.file.as_os_str() == "-";
        let (input, len): (Box<dyn Read + Send>, u64) = if stdin {
            (Box::new(io::stdin()), 0)
        } else {
            let file = File::open(&self.file).map_err(fail)?;
            let len = file.metadata().map_err(fail)?.len();
            (Box::new(file), len)
        };
        // Storing an item twice is as good as once, so a lost answer is no failure.
        let cache = self.cache.cache().await?.with_repeated_writes();
        let format = self.format.unwrap_or_else(|| FileFormat::of(Some(&self.file)));
        let bytes = Arc::new(AtomicU64::new(0));
        let bar = bar(len, self.quiet);
        let started = Instant::now();

        let batches = read_in_background(format, input, Arc::clone(&bytes)).map_err(fail)?;
        let mut loading = Loading {
            cache: &cache,
            bar: &bar,
            bytes: &bytes,
            name: &name,
            errors_max: if self.strict { 0 } else { self.errors_max },
            stored: 0,
            bad_lines: 0,
            refused: 0,
            size_in_flight: 0,
        };
        let ended = loading.run(batches).await;
        bar.finish_and_clear();
        let Loading { stored, bad_lines, refused, .. } = loading;
        let summary = Summary {
            stored,
            bad_lines,
            refused,
            bytes: bytes.load(Relaxed),
            seconds: started.elapsed().as_secs_f64(),
            complete: ended.is_ok(),
        };
        self.tell(&summary)?;
        ended?;
        if bad_lines + refused > 0 { Err(CommandError::Told) } else { Ok(()) }
    }

    fn tell(&self, summary: &Summary) -> Result<(), CommandError> {
        if self.output.or(Format::Table) == Format::Json {
            return output::print_json(summary);
        }
        let Summary { stored, bad_lines, refused, bytes, seconds, .. } = *summary;
        let rate = output::count(stored as f64 / seconds.max(f64::MIN_POSITIVE));
        let failed = match (bad_lines, refused) {
            (0, 0) => String::new(),
            _ => format!("; {bad_lines} lines not read, {refused} items not stored"),
        };
        let size = output::size(bytes);
        eprintln!("stored {stored} items of {size} in {seconds:.1} s ({rate}/s){failed}");
        Ok(())
    }
}

/// A record with the number of its line, or why there is none.
type Read1 = Result<Record<'static>, BadLine>;

/// What the reader thread sends.
enum Batch {
    Records(Vec<Read1>),
    /// The file cannot be read any further.
    Broken(io::Error),
}

fn read_in_background(
    format: FileFormat,
    input: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
) -> io::Result<mpsc::Receiver<Batch>> {
    let (sender, batches) = mpsc::channel(BATCHES_MAX);
    thread::Builder::new().name("kiln-load".to_owned()).spawn(move || {
        let counted = Counted { input, bytes };
        let mut reader = Reader::new(format, BufReader::with_capacity(BUFFER_LEN, counted));
        let outcome = send_all(&mut reader, &sender);
        if let Err(error) = outcome {
            // Nobody may be listening any more: then it is over anyway.
            let _ = sender.blocking_send(Batch::Broken(error));
        }
    })?;
    Ok(batches)
}

fn send_all(reader: &mut Reader<impl BufRead>, sender: &mpsc::Sender<Batch>) -> io::Result<()> {
    let (mut batch, mut size) = (Vec::new(), 0);
    loop {
        let next = reader.next()?;
        let over = next.is_none();
        if let Some(record) = next {
            size += record.as_ref().map_or(0, |record| record.key.len() + record.value.len());
            batch.push(record);
        }
        if batch.len() >= BATCH_LEN || size >= BATCH_SIZE || (over && !batch.is_empty()) {
            let full = std::mem::take(&mut batch);
            size = 0;
            if sender.blocking_send(Batch::Records(full)).is_err() {
                return Ok(());
            }
        }
        if over {
            return Ok(());
        }
    }
}

/// Counts what is read, for the progress bar.
struct Counted<R> {
    input: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buf)?;
        self.bytes.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

struct Loading<'a> {
    cache: &'a Cache,
    bar: &'a ProgressBar,
    bytes: &'a AtomicU64,
    name: &'a str,
    errors_max: u64,
    stored: u64,
    bad_lines: u64,
    refused: u64,
    /// Bytes of the values of sets that are not over.
    size_in_flight: usize,
}

impl Loading<'_> {
    async fn run(&mut self, mut batches: mpsc::Receiver<Batch>) -> Result<(), CommandError> {
        let mut in_flight = FuturesUnordered::new();
        let mut drawn = Instant::now();
        while let Some(batch) = batches.recv().await {
            let records = match batch {
                Batch::Records(records) => records,
                Batch::Broken(error) => {
                    self.settle(&mut in_flight, 0).await?;
                    return Err(CommandError::Failed(format!("{}: {error}", self.name)));
                }
            };
            for record in records {
                let record = match record {
                    Ok(record) => record,
                    Err(bad) => {
                        // What stands before the line is stored before it is judged.
                        self.settle(&mut in_flight, 0).await?;
                        self.bad_lines += 1;
                        self.failed(&format!("{}: {bad}", self.name))?;
                        continue;
                    }
                };
                self.settle(&mut in_flight, IN_FLIGHT_MAX - 1).await?;
                self.size_in_flight += record.value.len();
                in_flight.push(store(self.cache, record));
            }
            if drawn.elapsed() >= REDRAW {
                drawn = Instant::now();
                self.draw();
            }
        }
        self.settle(&mut in_flight, 0).await
    }

    /// Waits until no more than so many sets are in flight, and their values hold little memory.
    async fn settle(
        &mut self,
        in_flight: &mut FuturesUnordered<impl Future<Output = Ended>>,
        most: usize,
    ) -> Result<(), CommandError> {
        while in_flight.len() > most || self.size_in_flight >= IN_FLIGHT_SIZE {
            let Some(ended) = in_flight.next().await else { break };
            self.size_in_flight -= ended.size;
            self.ended(&ended.key, ended.outcome)?;
        }
        Ok(())
    }

    /// Judges the end of a set.
    fn ended(&mut self, key: &[u8], outcome: Result<(), Error>) -> Result<(), CommandError> {
        let error = match outcome {
            Ok(()) => {
                self.stored += 1;
                return Ok(());
            }
            Err(error) => error,
        };
        self.refused += 1;
        match explain(&error) {
            // The cluster, or the right to use it, is gone: nothing behind this can be stored.
            gone @ CommandError::Unreachable(_) => Err(gone),
            _ if error.code().is_some_and(ends_all) => Err(explain(&error)),
            _ => self.failed(&format!("`{}` is not stored: {error}", shown(key))),
        }
    }

    fn failed(&mut self, what: &str) -> Result<(), CommandError> {
        self.bar.suspend(|| eprintln!("kiln: {what}"));
        if self.bad_lines + self.refused > self.errors_max {
            let text = match self.errors_max {
                0 => "stopped at the first failure (--strict)".to_owned(),
                most => format!("stopped after {most} failures (--errors-max)"),
            };
            return Err(CommandError::Failed(text));
        }
        Ok(())
    }

    fn draw(&self) {
        self.bar.set_position(self.bytes.load(Relaxed));
        let rate = self.stored as f64 / self.bar.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let failed = match self.bad_lines + self.refused {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let (stored, rate) = (output::count(self.stored as f64), output::count(rate));
        self.bar.set_message(format!("{stored} items, {rate} items/s{failed}"));
    }
}

fn ends_all(code: kiln_client::ErrorCode) -> bool {
    use kiln_client::ErrorCode;
    matches!(code, ErrorCode::Unauthenticated | ErrorCode::Forbidden | ErrorCode::NoSuchCache)
}

/// A set that is over.
struct Ended {
    key: Vec<u8>,
    /// Bytes of the value.
    size: usize,
    outcome: Result<(), Error>,
}

async fn store(cache: &Cache, record: Record<'static>) -> Ended {
    let Record { key, value, ttl_ms, flags } = record;
    let ttl = ttl_ms.map_or(Expiry::Never, |ms| Expiry::After(Duration::from_millis(ms)));
    let outcome = cache.set(&key, &value).expires(ttl).flags(flags).await.map(drop);
    Ended { key: key.into_owned(), size: value.len(), outcome }
}

fn bar(len: u64, quiet: bool) -> ProgressBar {
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    let template = match len {
        0 => "{bytes} ({bytes_per_sec})  {msg}",
        _ => "{bar:25} {percent:>3} %  {bytes}/{total_bytes} ({bytes_per_sec})  {msg}",
    };
    let bar = ProgressBar::with_draw_target((len > 0).then_some(len), target);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Records handed over at once, and their bytes.
const BATCH_LEN: usize = 256;
const BATCH_SIZE: usize = 1 << 20;

/// Batches that wait to be stored.
const BATCHES_MAX: usize = 4;

/// Sets in flight, and the bytes of their values.
const IN_FLIGHT_MAX: usize = 512;
const IN_FLIGHT_SIZE: usize = 8 << 20;

const BUFFER_LEN: usize = 256 * 1024;

const REDRAW: Duration = Duration::from_millis(200);
