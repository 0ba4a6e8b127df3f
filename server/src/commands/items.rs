//! Commands on single items and on lists of keys.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::Duration,
};

use clap::ValueHint;
use kiln_client::{Cache, Counted, Deleted, Entry, Expiry, Item, Written};
use serde::Serialize;

use super::{
    CommandError, EXIT_CODES,
    connect::{CacheArgs, explain, period},
    item_json::{Changed, EntryJson, ItemJson, Touched},
    output::{self, Format, OutputArgs, Table, shown},
    value::{from_file, from_stdin, given},
};

/// Print the value of a key.
///
/// The bare value, and a line end on a terminal, where control characters are escaped; `-o raw` gives
/// the bytes alone. Exit code 1 when there is no such item.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Get {
    /// The key: any bytes.
    key: OsString,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Get {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let (key, cache) = (self.key.as_bytes(), self.cache.cache().await?);
        let item = cache.get_item(key).await.map_err(|error| explain(&error))?;
        let item = item.ok_or_else(|| missing(key, &cache))?;
        match self.output.asked() {
            Some(Format::Raw) => output::print(&item.value),
            Some(Format::Json) => output::print_json(&ItemJson::of(key, &item)),
            Some(Format::Table) => {
                let mut table = Table::new(&ITEM_HEADINGS);
                item_row(&mut table, key, &item);
                table.print()
            }
            None if io::stdout().is_terminal() => {
                output::print(format!("{}\n", shown(&item.value)))
            }
            None => output::print(&item.value),
        }
    }
}

/// Store a value under a key.
///
/// VALUE is the value itself, @FILE for what is in a file, or - for standard input; a value that
/// begins with @ is written @@.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Set {
    /// The key: any bytes.
    key: OsString,
    /// The value, @FILE, or - for standard input.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<OsString>,
    /// Take the value from a file; - is standard input.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// How long the item lives, or `never` [default: as the cache has it].
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    ttl: Option<Expiry>,
    /// 32 bits that are kept with the value for its readers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    flags: u32,
    /// Only if there is no such item.
    #[arg(long, group = "condition", help_heading = "Conditions")]
    if_absent: bool,
    /// Only if there is such an item.
    #[arg(long, group = "condition", help_heading = "Conditions")]
    if_present: bool,
    /// Only if the item has this version.
    #[arg(long, value_name = "VERSION", group = "condition", help_heading = "Conditions")]
    if_version: Option<u64>,
    /// Write behind the value that is there.
    #[arg(long, group = "condition", help_heading = "Conditions")]
    append: bool,
    /// Write before the value that is there.
    #[arg(long, group = "condition", help_heading = "Conditions")]
    prepend: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Set {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let value = match (&self.file, &self.value) {
            (Some(path), _) if path.as_os_str() == "-" => from_stdin()?,
            (Some(path), _) => from_file(path.clone())?,
            (None, value) => given(value.clone().unwrap_or_default())?,
        };
        let (key, cache) = (self.key.as_bytes(), self.cache.cache().await?);
        let ttl = self.ttl.unwrap_or_default();
        let conditional = if self.if_absent {
            Some(cache.add(key, &value))
        } else if self.if_present {
            Some(cache.replace(key, &value))
        } else if self.append {
            Some(cache.append(key, &value))
        } else if self.prepend {
            Some(cache.prepend(key, &value))
        } else {
            None
        };
        let written = match (conditional, self.if_version) {
            (Some(write), _) => write.expires(ttl).flags(self.flags).await,
            (None, Some(version)) => {
                cache.set(key, &value).expires(ttl).flags(self.flags).if_version(version).await
            }
            (None, None) => {
                let write = cache.set(key, &value).expires(ttl).flags(self.flags);
                write.await.map(|version| Written::Stored { version })
            }
        };
        let place = || format!("`{}` in cache {}", shown(key), cache.name());
        let failed = |text: String| Err(CommandError::Failed(text));
        match written.map_err(|error| explain(&error))? {
            Written::Stored { version } => self.told(key, version),
            Written::NotStored if self.if_absent => {
                failed(format!("not stored: {} exists already", place()))
            }
            Written::NotStored => failed(format!("not stored: there is no {}", place())),
            Written::NotFound => failed(format!("not stored: there is no {}", place())),
            Written::Conflict => failed(format!(
                "not stored: {} has another version; `kiln get -o json` shows it",
                place()
            )),
        }
    }
}

impl Set {
    fn told(&self, key: &[u8], version: u64) -> Result<(), CommandError> {
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&Changed { key, number: None, version }),
            Format::Raw => output::print(format!("{version}\n")),
            Format::Table => output::print(format!("stored {}, version {version}\n", shown(key))),
        }
    }
}

/// Delete keys.
///
/// Exit code 1 when one of them was not there.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Del {
    /// The keys: any bytes.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
    /// Only if the item has this version; for a single key.
    #[arg(long, value_name = "VERSION", help_heading = "Conditions")]
    if_version: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Del {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        if self.if_version.is_some() && self.keys.len() > 1 {
            let text = "--if-version names the version of one item: give a single key";
            return Err(CommandError::Usage(text.to_owned()));
        }
        let cache = self.cache.cache().await?;
        let (mut deleted, mut missing_keys) = (Vec::new(), Vec::new());
        for key in &self.keys {
            let key = key.as_bytes();
            let delete = cache.delete(key);
            let delete = match self.if_version {
                Some(version) => delete.if_version(version),
                None => delete,
            };
            match delete.await.map_err(|error| explain(&error))? {
                Deleted::Deleted => deleted.push(shown(key).into_owned()),
                Deleted::NotFound => missing_keys.push(shown(key).into_owned()),
                Deleted::Conflict => {
                    return Err(CommandError::Failed(format!(
                        "not deleted: `{}` in cache {} has another version",
                        shown(key),
                        cache.name()
                    )));
                }
            }
        }
        match self.output.or(Format::Table) {
            Format::Json => {
                #[derive(Serialize)]
                struct Outcome<'a> {
                    deleted: &'a [String],
                    missing: &'a [String],
                }
                output::print_json(&Outcome { deleted: &deleted, missing: &missing_keys })?;
            }
            Format::Raw => output::print(format!("{}\n", deleted.len()))?,
            Format::Table => {
                for key in &deleted {
                    output::print(format!("deleted {key}\n"))?;
                }
            }
        }
        told_missing(&missing_keys, &cache)
    }
}

/// Add to a number.
///
/// The number is a decimal from 0 to 2^64 - 1. Adding wraps; taking away stops at 0.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Incr {
    /// The key: any bytes.
    key: OsString,
    /// How much; may be negative.
    #[arg(default_value = "1", allow_negative_numbers = true, value_parser = delta)]
    delta: i128,
    /// The number to begin with when there is none; nothing is added to it then.
    #[arg(long, value_name = "N")]
    initial: Option<u64>,
    /// With --initial: how long the new item lives, or `never`.
    #[arg(long, value_name = "TIME", value_parser = expiry, requires = "initial")]
    ttl: Option<Expiry>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

fn delta(text: &str) -> Result<i128, String> {
    let number: i128 = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    match u64::try_from(number.unsigned_abs()) {
        Ok(_) => Ok(number),
        Err(_) => Err("is beyond 2^64".to_owned()),
    }
}

impl Incr {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let (key, cache) = (self.key.as_bytes(), self.cache.cache().await?);
        let amount = u64::try_from(self.delta.unsigned_abs()).unwrap_or(u64::MAX);
        let mut count = if self.delta < 0 {
            cache.decrement(key, amount)
        } else {
            cache.increment(key, amount)
        };
        if let Some(initial) = self.initial {
            count = count.or_create(initial).expires(self.ttl.unwrap_or_default());
        }
        match count.await.map_err(|error| explain(&error))? {
            Counted::Number { number, version } => match self.output.or(Format::Raw) {
                Format::Json => output::print_json(&Changed { key, number: Some(number), version }),
                Format::Raw | Format::Table => output::print(format!("{number}\n")),
            },
            Counted::NotFound => {
                let CommandError::Failed(text) = missing(key, &cache) else {
                    return Err(missing(key, &cache));
                };
                Err(CommandError::Failed(format!("{text}\n  --initial N makes it.")))
            }
            Counted::Conflict => {
                Err(CommandError::Failed(format!("`{}` has another version", shown(key))))
            }
        }
    }
}

/// Give a key a new end.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Touch {
    /// The key: any bytes.
    key: OsString,
    /// How long the item lives from now on, or `never`.
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    ttl: Expiry,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Touch {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let (key, cache) = (self.key.as_bytes(), self.cache.cache().await?);
        if !cache.touch(key, self.ttl).await.map_err(|error| explain(&error))? {
            return Err(missing(key, &cache));
        }
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&Touched { key }),
            Format::Raw => Ok(()),
            Format::Table => output::print(format!("touched {}\n", shown(key))),
        }
    }
}

/// Print the values of several keys.
///
/// Exit code 1 when one of them is missing; the others are printed all the same. With `-o raw` the
/// values alone, one after the other, each with a line end.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Mget {
    /// The keys: any bytes.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Mget {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let cache = self.cache.cache().await?;
        let asked = self.keys.iter().map(|key| cache.get_item(key.as_bytes()));
        let answers = futures_util::future::join_all(asked).await;
        let (mut found, mut missing_keys) = (Vec::new(), Vec::new());
        for (key, answer) in self.keys.iter().zip(answers) {
            match answer.map_err(|error| explain(&error))? {
                Some(item) => found.push((key.as_bytes(), item)),
                None => missing_keys.push(shown(key.as_bytes()).into_owned()),
            }
        }
        match self.output.or_by_terminal() {
            Format::Json => {
                let items: Vec<_> =
                    found.iter().map(|(key, item)| ItemJson::of(key, item)).collect();
                output::print_json(&items)?;
            }
            Format::Raw => {
                for (_, item) in &found {
                    output::print([&item.value[..], b"\n"].concat())?;
                }
            }
            Format::Table => {
                let mut table = Table::new(&ITEM_HEADINGS);
                found.iter().for_each(|(key, item)| item_row(&mut table, key, item));
                table.print()?;
            }
        }
        told_missing(&missing_keys, &cache)
    }
}

/// List keys.
///
/// In no order. Every item that is there from beginning to end is listed; one that is written or
/// deleted meanwhile may be listed or not. As JSON one object in each line.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Scan {
    /// Only keys that begin so.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<OsString>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// The values as well.
    #[arg(long)]
    values: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Scan {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        let cache = self.cache.cache().await?;
        let mut scan = cache.scan().prefix(self.prefix.unwrap_or_default().as_bytes());
        if self.values {
            scan = scan.values();
        }
        let format = self.output.or_by_terminal();
        let (mut pages, mut left) = (scan.pages(), self.limit.unwrap_or(u64::MAX));
        let mut first = true;
        while left > 0
            && let Some(page) = pages.next().await.map_err(|error| explain(&error))?
        {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(page.len());
            left -= take as u64;
            let page = &page[..take];
            match format {
                Format::Json => print_lines(page, |out, entry| {
                    serde_json::to_writer(&mut *out, &EntryJson(entry))?;
                    out.push(b'\n');
                    Ok(())
                })?,
                Format::Raw => print_lines(page, |out, entry| {
                    out.extend_from_slice(&entry.key);
                    if let Some(value) = &entry.value {
                        out.push(b'\t');
                        out.extend_from_slice(value);
                    }
                    out.push(b'\n');
                    Ok(())
                })?,
                // Each page is a table of its own: the whole may be larger than the memory.
                Format::Table => print_page(page, std::mem::take(&mut first))?,
            }
        }
        Ok(())
    }
}

fn print_lines(
    page: &[Entry],
    write: impl Fn(&mut Vec<u8>, &Entry) -> io::Result<()>,
) -> Result<(), CommandError> {
    let mut out = Vec::new();
    for entry in page {
        output::ended(write(&mut out, entry))?;
    }
    output::print(out)
}

fn print_page(page: &[Entry], with_headings: bool) -> Result<(), CommandError> {
    let mut table = Table::new(&["KEY", "BYTES", "TTL", "FLAGS", "VERSION", "VALUE"]);
    for entry in page {
        table.row(vec![
            shown(&entry.key).into_owned().into(),
            entry.value_len.into(),
            output::Cell::Number(ttl(entry.ttl)),
            u64::from(entry.flags).into(),
            entry.version.into(),
            entry.value.as_ref().map_or_else(String::new, |v| shown(v).into_owned()).into(),
        ]);
    }
    if with_headings { table.print() } else { table.print_rows() }
}

const ITEM_HEADINGS: [&str; 5] = ["KEY", "TTL", "FLAGS", "VERSION", "VALUE"];

fn item_row(table: &mut Table, key: &[u8], item: &Item) {
    table.row(vec![
        shown(key).into_owned().into(),
        output::Cell::Number(ttl(item.ttl)),
        u64::from(item.flags).into(),
        item.version.into(),
        shown(&item.value).into_owned().into(),
    ]);
}

fn ttl(ttl: Option<Duration>) -> String {
    ttl.map_or("-".to_owned(), |ttl| output::span(millis(ttl)))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn missing(key: &[u8], cache: &Cache) -> CommandError {
    CommandError::Failed(format!("there is no `{}` in cache {}", shown(key), cache.name()))
}

/// Names what was missing, which is a failure.
fn told_missing(keys: &[String], cache: &Cache) -> Result<(), CommandError> {
    if keys.is_empty() {
        return Ok(());
    }
    let names = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    Err(CommandError::Failed(format!("there is no {names} in cache {}", cache.name())))
}

/// A time, or `never`.
fn expiry(text: &str) -> Result<Expiry, String> {
    match period(text) {
        _ if text == "never" => Ok(Expiry::Never),
        Ok(Duration::ZERO) => Err("is over at once; `never` has no end".to_owned()),
        Ok(time) => Ok(Expiry::After(time)),
        Err(reason) => Err(format!("{reason}, or `never`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_a_time_or_never() {
        assert_eq!(expiry("never"), Ok(Expiry::Never));
        assert_eq!(expiry("1500ms"), Ok(Expiry::After(Duration::from_millis(1500))));
        assert!(expiry("0").unwrap_err().contains("never"));
        assert!(expiry("10").unwrap_err().contains("unit"));
    }

    #[test]
    fn a_difference_has_a_sign_and_sixty_four_bits() {
        assert_eq!(delta("-5"), Ok(-5));
        assert_eq!(delta("18446744073709551615"), Ok(i128::from(u64::MAX)));
        assert!(delta("18446744073709551616").is_err());
        assert!(delta("1.5").is_err());
    }
}
