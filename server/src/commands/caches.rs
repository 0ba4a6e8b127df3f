//! Making, listing, showing and dropping caches.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use kiln_client::{CacheInfo, CacheSpec, Client};
use serde::Serialize;

use super::{
    CommandError, EXIT_CODES,
    connect::{ConnectArgs, cache_name, explain, period},
    output::{self, Cell, Format, OutputArgs, Table},
};
use crate::config::{Bytes, Value};

/// Make, list, show and drop caches.
#[derive(clap::Subcommand)]
#[command(after_help = EXIT_CODES)]
pub(crate) enum CacheCommand {
    Create(Create),
    List(List),
    Show(Show),
    Drop(DropCache),
}

/// Make a cache.
///
/// A cache that exists with the same settings is no error.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Create {
    /// 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit.
    #[arg(value_parser = cache_name)]
    name: String,
    /// Memory on each node, taken from the cache `default` [default: the node chooses].
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory: Option<u64>,
    /// What leaves when the cache is full; with `none` writes are refused instead.
    #[arg(long, value_enum, default_value = "adaptive")]
    eviction: Eviction,
    /// How long items live that are written without an end, or `never`.
    #[arg(long, value_name = "TIME", default_value = "never", value_parser = default_ttl)]
    default_ttl: u64,
    /// Longest value [default: the node's limit].
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_item_size: Option<u64>,
    /// What a write promises.
    #[arg(long, value_enum, default_value = "strong", help_heading = "Copies")]
    mode: Mode,
    /// Copies of each item, on distinct nodes.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Copies")]
    copies: u32,
    /// Copies that must be in sync for a write to be accepted.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Copies")]
    min_in_sync: u32,
    /// Where reads go.
    #[arg(long, value_enum, default_value = "leased", help_heading = "Copies")]
    read: Read,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Eviction {
    /// Weighs recency against frequency by what would have been hits.
    Adaptive,
    /// The item whose last use is longest ago.
    Lru,
    /// The item used least often.
    Lfu,
    /// Nothing.
    None,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Mode {
    /// Linearizable.
    Strong,
    /// Always available, equal in the end.
    Eventual,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Read {
    /// To the primary, which asks its copies.
    Primary,
    /// To the primary alone, while it has a lease.
    Leased,
    /// To any copy; may be stale.
    Any,
}

/// The name of an enum's value, as on the command line and on the wire.
fn name_of(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn bytes(text: &str) -> Result<u64, String> {
    match Bytes::parse(text) {
        Ok(Bytes(0)) => Err("must be above 0".to_owned()),
        Ok(Bytes(bytes)) => Ok(bytes),
        Err(reason) => Err(reason),
    }
}

fn default_ttl(text: &str) -> Result<u64, String> {
    match period(text) {
        _ if text == "never" => Ok(0),
        Ok(Duration::ZERO) => Err("is over at once; `never` has no end".to_owned()),
        Ok(time) => u64::try_from(time.as_millis()).map_err(|_| "is too long".to_owned()),
        Err(reason) => Err(format!("{reason}, or `never`")),
    }
}

impl CacheCommand {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        match self {
            Self::Create(command) => command.run().await,
            Self::List(command) => command.run().await,
            Self::Show(command) => command.run().await,
            Self::Drop(command) => command.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let spec = CacheSpec {
            name: self.name.clone(),
            mode: name_of(self.mode),
            copies: self.copies,
            min_in_sync: self.min_in_sync,
            read: name_of(self.read),
            eviction: name_of(self.eviction),
            memory: self.memory.unwrap_or(0),
            default_ttl_ms: self.default_ttl,
            max_item_size: self.max_item_size.unwrap_or(0),
        };
        client.create_cache(&spec).await.map_err(|error| explain(&error))?;
        let cache = find(&client, &self.name).await?;
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&cache),
            Format::Raw => output::print(format!("{}\n", self.name)),
            // A cache of a large share of the memory gets it piece by piece, as `default` gives it.
            Format::Table => output::print(format!(
                "made cache {}: {} of memory, eviction {}\n",
                self.name,
                output::size(self.memory.unwrap_or(0).max(cache.memory)),
                cache.eviction
            )),
        }
    }
}

/// List all caches with their figures.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct List {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl List {
    async fn run(self) -> Result<(), CommandError> {
        let caches = gather(&self.connect.client().await?).await?;
        match self.output.or(Format::Table) {
            Format::Json => {
                #[derive(Serialize)]
                struct List {
                    caches: Vec<CacheJson>,
                }
                output::print_json(&List { caches })
            }
            Format::Raw => {
                output::print(caches.iter().map(|c| c.name.clone() + "\n").collect::<String>())
            }
            Format::Table => {
                let mut table = Table::new(&[
                    "CACHE",
                    "ITEMS",
                    "USED",
                    "MEMORY",
                    "HIT%",
                    "EVICTED",
                    "EVICTION",
                    "MODE",
                    "COPIES",
                    "DEFAULT TTL",
                ]);
                for cache in &caches {
                    table.row(vec![
                        cache.name.clone().into(),
                        cache.items.into(),
                        Cell::Number(output::size(cache.bytes)),
                        Cell::Number(output::size(cache.memory)),
                        Cell::Number(cache.hit_percent()),
                        cache.evictions.into(),
                        cache.eviction.clone().into(),
                        cache.mode.clone().into(),
                        u64::from(cache.copies).into(),
                        Cell::Number(cache.default_ttl()),
                    ]);
                }
                table.print()
            }
        }
    }
}

/// Show the settings and figures of one cache.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Show {
    /// The cache.
    #[arg(value_parser = cache_name)]
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Show {
    async fn run(self) -> Result<(), CommandError> {
        let cache = find(&self.connect.client().await?, &self.name).await?;
        if self.output.or(Format::Table) == Format::Json {
            return output::print_json(&cache);
        }
        let limit = match cache.max_item_size {
            0 => "the node's".to_owned(),
            limit => output::size(limit),
        };
        let mut table = Table::new(&["SETTING", "VALUE"]);
        for (name, value) in [
            ("name", cache.name.clone()),
            ("mode", cache.mode.clone()),
            ("copies", cache.copies.to_string()),
            ("min_in_sync", cache.min_in_sync.to_string()),
            ("read", cache.read.clone()),
            ("eviction", cache.eviction.clone()),
            ("default_ttl", cache.default_ttl()),
            ("max_item_size", limit),
            ("memory", output::size(cache.memory)),
            ("used", output::size(cache.bytes)),
            ("items", cache.items.to_string()),
            ("hits", cache.hits.to_string()),
            ("misses", cache.misses.to_string()),
            ("hit percent", cache.hit_percent()),
            ("stores", cache.stores.to_string()),
            ("deletes", cache.deletes.to_string()),
            ("evictions", cache.evictions.to_string()),
            ("expirations", cache.expirations.to_string()),
        ] {
            table.row(vec![name.into(), value.into()]);
        }
        table.print()
    }
}

/// Remove a cache and all its items.
///
/// Says what will be lost and asks; --yes does not ask.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DropCache {
    /// The cache.
    #[arg(value_parser = cache_name)]
    name: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl DropCache {
    async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let cache = find(&client, &self.name).await?;
        let plan = format!(
            "dropping cache {} loses {} items ({})",
            cache.name,
            cache.items,
            output::size(cache.bytes)
        );
        if !self.yes {
            if !io::stdin().is_terminal() {
                return Err(CommandError::Usage(format!(
                    "{plan}, and nobody is there to ask: --yes does it"
                )));
            }
            eprint!("{plan}. Drop it? [y/N] ");
            let mut answer = String::new();
            let asked =
                io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
            asked.map_err(|error| CommandError::Failed(format!("cannot ask: {error}")))?;
            if !matches!(answer.trim(), "y" | "Y" | "yes") {
                return Err(CommandError::Failed("not dropped".to_owned()));
            }
        }
        if !client.drop_cache(&self.name).await.map_err(|error| explain(&error))? {
            return Err(no_such_cache(&self.name));
        }
        eprintln!("dropped cache {}", self.name);
        Ok(())
    }
}

/// A cache for programs: settings, and figures of all nodes together.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct CacheJson {
    name: String,
    mode: String,
    copies: u32,
    min_in_sync: u32,
    read: String,
    eviction: String,
    default_ttl_ms: u64,
    max_item_size: u64,
    memory: u64,
    pub(crate) bytes: u64,
    pub(crate) items: u64,
    hits: u64,
    misses: u64,
    stores: u64,
    deletes: u64,
    evictions: u64,
    expirations: u64,
}

impl CacheJson {
    fn add(&mut self, info: &CacheInfo) {
        let CacheSpec { name, mode, copies, min_in_sync, read, eviction, .. } = info.spec.clone();
        (self.name, self.mode, self.read, self.eviction) = (name, mode, read, eviction);
        (self.copies, self.min_in_sync) = (copies, min_in_sync);
        self.default_ttl_ms = info.spec.default_ttl_ms;
        self.max_item_size = info.spec.max_item_size;
        self.memory += info.memory;
        self.bytes += info.bytes;
        self.items += info.items;
        self.hits += info.hits;
        self.misses += info.misses;
        self.stores += info.stores;
        self.deletes += info.deletes;
        self.evictions += info.evictions;
        self.expirations += info.expirations;
    }

    fn hit_percent(&self) -> String {
        match self.hits + self.misses {
            0 => "-".to_owned(),
            reads => format!("{:.1}", 100.0 * self.hits as f64 / reads as f64),
        }
    }

    fn default_ttl(&self) -> String {
        match self.default_ttl_ms {
            0 => "never".to_owned(),
            ms => output::span(ms),
        }
    }
}

/// The caches with the figures of all nodes; a node that does not answer is an error, since sums
/// without it would be wrong.
async fn gather(client: &Client) -> Result<Vec<CacheJson>, CommandError> {
    let mut caches: BTreeMap<String, CacheJson> = BTreeMap::new();
    for (_, info) in client.nodes_info().await {
        for cache in &info.map_err(|error| explain(&error))?.caches {
            caches.entry(cache.spec.name.clone()).or_default().add(cache);
        }
    }
    Ok(caches.into_values().collect())
}

pub(crate) async fn find(client: &Client, name: &str) -> Result<CacheJson, CommandError> {
    let caches = gather(client).await?;
    caches.into_iter().find(|cache| cache.name == name).ok_or_else(|| no_such_cache(name))
}

fn no_such_cache(name: &str) -> CommandError {
    CommandError::Failed(format!(
        "there is no cache {name}\n  `kiln cache list` shows what there is."
    ))
}
