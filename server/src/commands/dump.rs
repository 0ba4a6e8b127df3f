//! `kiln dump`: write all items of a cache to a file.
//!
//! Walks the cache page by page and holds one page at a time, however large the cache is.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::Instant,
};

use clap::ValueHint;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_client::Entry;

use super::{
    CommandError, EXIT_CODES, caches,
    connect::{CacheArgs, explain},
    output,
    records::{FileFormat, Record, Writer},
};

/// Write all items to a file.
///
/// As `kiln load` reads them: one JSON object in each line, or CSV. Every item that is there from
/// beginning to end is written, at least once; one that changes meanwhile may be written as it was
/// or as it became.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Dump {
    /// The file; - is standard output.
    #[arg(value_hint = ValueHint::FilePath, default_value = "-")]
    file: PathBuf,
    /// How to write the items [default: by the file's name, else ndjson].
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Only keys that begin so.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<OsString>,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Dump {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let to_stdout = self.file.as_os_str() == "-";
        let client = self.cache.client().await?;
        // How many items there are is for the progress bar only.
        let items = caches::find(&client, self.cache.name()).await?.items;
        let (output, name): (Box<dyn Write>, String) = if to_stdout {
            (Box::new(io::stdout().lock()), "standard output".to_owned())
        } else {
            let name = self.file.display().to_string();
            let file = File::create(&self.file)
                .map_err(|error| CommandError::Failed(format!("{name}: {error}")))?;
            (Box::new(file), name)
        };
        let format = self.format.unwrap_or_else(|| FileFormat::of(Some(&self.file)));
        let quiet = self.quiet || (to_stdout && io::stdout().is_terminal());
        let bar = bar(if self.prefix.is_some() { 0 } else { items }, quiet);
        let started = Instant::now();

        let scan = client.cache(self.cache.name()).scan().values();
        let mut pages = scan.prefix(self.prefix.clone().unwrap_or_default().as_bytes()).pages();
        let judged = |result: io::Result<()>| match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(CommandError::Closed),
            Err(error) => {
                Err(CommandError::Failed(format!("{name}: {error}; what is there is not complete")))
            }
        };
        let output = BufWriter::with_capacity(BUFFER_LEN, output);
        let mut writer = match Writer::new(format, output) {
            Ok(writer) => writer,
            Err(error) => return judged(Err(error)),
        };
        let mut written = 0u64;
        while let Some(page) = pages.next().await.map_err(|error| explain(&error))? {
            for entry in &page {
                judged(write(&mut writer, entry))?;
            }
            written += page.len() as u64;
            bar.set_position(written);
        }
        judged(writer.flush())?;
        bar.finish_and_clear();
        if !self.quiet && !to_stdout {
            let seconds = started.elapsed().as_secs_f64();
            let rate = output::count(written as f64 / seconds.max(f64::MIN_POSITIVE));
            eprintln!("wrote {written} items to {name} in {seconds:.1} s ({rate}/s)");
        }
        Ok(())
    }
}

fn write(writer: &mut Writer<impl Write>, entry: &Entry) -> io::Result<()> {
    let value = entry.value.as_deref().unwrap_or_default();
    writer.write(&Record {
        key: entry.key[..].into(),
        value: value.into(),
        // An item in its last millisecond still has an end.
        ttl_ms: entry.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)),
        flags: entry.flags,
    })
}

fn bar(items: u64, quiet: bool) -> ProgressBar {
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    let template = match items {
        0 => "{pos} items ({per_sec})",
        _ => "{bar:25} {percent:>3} %  {pos}/{len} items ({per_sec})",
    };
    let bar = ProgressBar::with_draw_target((items > 0).then_some(items), target);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

const BUFFER_LEN: usize = 256 * 1024;
