//! All copies compared.
//!
//! Every node walks its own copies and tells, for each partition, how many items there are and the
//! sum of their digests. Copies with equal items give equal numbers. A partition that is written
//! while it is walked gives numbers of no moment at all, so those that differ are looked at again
//! after a pause; only a difference that stays while nothing is written is one. What is still being
//! written after the last look is told as such: it was not seen equal, and not seen different.
//!
//! A cache that evicts may miss an item on one copy and not on another: each keeps within its own
//! memory. That is told apart from items that differ by asking for the items themselves. Copies
//! that miss an item although they never evicted any have lost it.
//!
//! Cost: every look passes over all items of every node that has a suspected partition.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures_util::future::join_all;
use kiln_client::{Client, ClusterStatus, DigestRequest, TopologyView};
use kiln_protocol::native::admin::DIGEST_ITEM_PARTITIONS_MAX;
use serde::Serialize;

use super::{
    super::{
        CommandError, EXIT_CODES,
        connect::{ConnectArgs, cache_name, explain},
        output::{self, Format, OutputArgs, Table, shown},
    },
    gather::{self, name},
};

/// Compare all copies of all items.
///
/// Exit code 1 when copies differ, with a list. Partitions that are written all the time cannot be
/// compared; they are counted, and are no failure unless --strict.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Verify {
    /// Only this cache.
    #[arg(long, value_name = "NAME", value_parser = cache_name)]
    cache: Option<String>,
    /// Looks at partitions that seem to differ.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    looks: u32,
    /// Partitions that could not be compared, and copies that are missing, are failures too.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(400);

/// Items that end sooner than this after a look are left out of it.
const LASTING_MS: u64 = 20_000;

/// Partitions named in a request; of more, all are asked for.
const NAMED_MAX: usize = 256;

/// Steps of one walk, so that a node that answers nonsense does not keep the command for ever.
const STEPS_MAX: usize = 1_000_000;

/// Items that are told by key.
const TOLD_MAX: usize = 20;

/// Digests of one copy: items and sum.
type Sums = HashMap<u32, (u64, u64)>;

/// What is known of a cache.
#[derive(Debug, Default, Serialize)]
struct CacheReport {
    cache: String,
    partitions: u64,
    items: u64,
    /// With at least two copies, all equal.
    equal: u64,
    /// With one copy: nothing to compare.
    single: u64,
    /// With fewer copies than are promised.
    short: u64,
    /// Without any.
    lost: u64,
    /// Written all the time.
    busy: u64,
    /// Equal but for items that one copy has evicted.
    evicted: u64,
    /// Not equal.
    differ: Vec<u32>,
}

/// An item that is not the same on all copies.
#[derive(Debug, Serialize)]
struct Difference {
    cache: String,
    partition: u32,
    key: String,
    /// What is wrong with it.
    what: String,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    equal: bool,
    caches: Vec<CacheReport>,
    /// Some of the items that differ.
    differences: Vec<Difference>,
    unreachable: Vec<String>,
}

impl Verify {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let topology = client.topology().await.map_err(|error| explain(&error))?;
        let caches: Vec<String> = topology.caches.iter().map(|cache| cache.name.clone()).collect();
        let caches = match &self.cache {
            None => caches,
            Some(name) if caches.contains(name) => vec![name.clone()],
            Some(name) => {
                return Err(CommandError::Failed(format!(
                    "there is no cache {name}\n  `kiln cache list` shows what there is."
                )));
            }
        };
        let status = gather::status(&client).await?;
        let mut report = Report::default();
        for cache in caches {
            let mut walk = Walk::new(&client, &cache, &status, self.looks);
            walk.run().await?;
            report.caches.push(walk.report);
            report.differences.extend(walk.differences);
            report.unreachable.extend(walk.unreachable);
        }
        report.differences.truncate(TOLD_MAX);
        report.unreachable.sort();
        report.unreachable.dedup();
        let judged = |cache: &CacheReport| {
            cache.differ.is_empty() && !(self.strict && cache.busy + cache.short + cache.lost > 0)
        };
        report.equal = report.caches.iter().all(judged) && report.unreachable.is_empty();
        self.print(&report)?;
        if report.equal { Ok(()) } else { Err(CommandError::Told) }
    }

    fn print(&self, report: &Report) -> Result<(), CommandError> {
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(report),
            Format::Raw => output::print(if report.equal { "equal\n" } else { "differ\n" }),
            Format::Table => {
                table(report).print()?;
                let mut text = String::from("\n");
                for difference in &report.differences {
                    let Difference { cache, partition, key, what } = difference;
                    text.push_str(&format!("partition {partition} of {cache}: {key}: {what}\n"));
                }
                for node in &report.unreachable {
                    text.push_str(&format!("{node} could not be asked\n"));
                }
                text.push_str(if report.equal {
                    "all copies that could be compared are equal\n"
                } else {
                    "NOT all copies are equal\n"
                });
                output::print(text)
            }
        }
    }
}

fn table(report: &Report) -> Table {
    let mut table = Table::new(&[
        "CACHE",
        "ITEMS",
        "EQUAL",
        "DIFFER",
        "EVICTED",
        "BEING WRITTEN",
        "ONE COPY",
        "LOST",
    ]);
    for cache in &report.caches {
        table.row(vec![
            cache.cache.clone().into(),
            cache.items.into(),
            cache.equal.into(),
            (cache.differ.len() as u64).into(),
            cache.evicted.into(),
            cache.busy.into(),
            cache.single.into(),
            cache.lost.into(),
        ]);
    }
    table
}

/// The comparison of one cache.
struct Walk<'a> {
    client: &'a Client,
    cache: &'a str,
    status: &'a ClusterStatus,
    looks: u32,
    report: CacheReport,
    differences: Vec<Difference>,
    unreachable: Vec<String>,
}

/// What one look at a partition showed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// Nobody has it.
    Lost,
    /// One copy with so many items.
    Single(u64),
    /// Equal copies with so many items.
    Equal(u64),
    /// The copies by node, each with what it told.
    Unequal(Vec<(u64, (u64, u64))>),
    /// A copy could not be asked.
    Unknown,
}

impl<'a> Walk<'a> {
    fn new(client: &'a Client, cache: &'a str, status: &'a ClusterStatus, looks: u32) -> Self {
        Self {
            client,
            cache,
            status,
            looks,
            report: CacheReport { cache: cache.to_owned(), ..CacheReport::default() },
            differences: Vec::new(),
            unreachable: Vec::new(),
        }
    }

    async fn run(&mut self) -> Result<(), CommandError> {
        let mut suspects: Option<BTreeSet<u32>> = None;
        let mut last: BTreeMap<u32, Seen> = BTreeMap::new();
        let mut stays: BTreeSet<u32> = BTreeSet::new();
        for look in 0..self.looks {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let (copies, owners) = self.owners().await?;
            let looked_at: BTreeSet<u32> = match &suspects {
                None => (0..owners.len() as u32).collect(),
                Some(suspects) => suspects.clone(),
            };
            if look == 0 {
                self.report.partitions = owners.len() as u64;
                let short = owners.iter().filter(|owners| owners.len() < copies as usize);
                self.report.short = short.count() as u64;
            }
            let sums = self.look(&owners, &looked_at).await;
            let mut next = BTreeSet::new();
            stays.clear();
            for partition in looked_at {
                let owners = owners.get(partition as usize).map_or(&[][..], Vec::as_slice);
                let seen = compare(partition, owners, &sums);
                match &seen {
                    Seen::Lost => self.report.lost += 1,
                    Seen::Single(items) => {
                        self.report.single += 1;
                        self.report.items += items;
                    }
                    Seen::Equal(items) => {
                        self.report.equal += 1;
                        self.report.items += items;
                    }
                    Seen::Unequal(_) | Seen::Unknown => {
                        // The same twice: nobody writes it, and it does not become equal.
                        if last.get(&partition) == Some(&seen) && seen != Seen::Unknown {
                            stays.insert(partition);
                        }
                        next.insert(partition);
                    }
                }
                last.insert(partition, seen);
            }
            let is_done = next.is_empty();
            suspects = Some(next);
            if is_done {
                break;
            }
        }
        let suspects = suspects.unwrap_or_default();
        let mut unequal = Vec::new();
        for partition in suspects {
            match last.remove(&partition) {
                Some(Seen::Unequal(copies)) if stays.contains(&partition) => {
                    unequal.push((partition, copies));
                }
                Some(Seen::Unknown) => {}
                _ => self.report.busy += 1,
            }
        }
        for some in unequal.chunks(DIGEST_ITEM_PARTITIONS_MAX) {
            self.explain(some).await;
        }
        Ok(())
    }

    /// Copies that are promised, and the ids of the nodes that have each partition.
    async fn owners(&self) -> Result<(u32, Vec<Vec<u64>>), CommandError> {
        let topology = self.client.topology().await.map_err(|error| explain(&error))?;
        owners_of(&topology, self.cache).ok_or_else(|| {
            CommandError::Failed(format!("the cache {} was dropped meanwhile", self.cache))
        })
    }

    /// Asks every node that has one of these partitions.
    async fn look(&mut self, owners: &[Vec<u64>], looked_at: &BTreeSet<u32>) -> HashMap<u64, Sums> {
        let nodes: BTreeSet<u64> = looked_at
            .iter()
            .filter_map(|partition| owners.get(*partition as usize))
            // A single copy is only counted.
            .flatten()
            .copied()
            .collect();
        let named: Vec<u32> = if looked_at.len() > NAMED_MAX {
            Vec::new()
        } else {
            looked_at.iter().copied().collect()
        };
        let request = DigestRequest {
            cache: self.cache.to_owned(),
            ends_after_ms: now_ms() + LASTING_MS,
            partitions: named,
            ..DigestRequest::default()
        };
        let asked = nodes.into_iter().map(async |node| (node, self.sums(node, &request).await));
        let mut all = HashMap::new();
        for (node, sums) in join_all(asked).await {
            match sums {
                Some(sums) => drop(all.insert(node, sums)),
                None => {
                    let name = name(self.status, node);
                    if !self.unreachable.contains(&name) {
                        self.unreachable.push(name);
                    }
                }
            }
        }
        // Who has answered now can be asked after all.
        let answered: Vec<String> = all.keys().map(|node| name(self.status, *node)).collect();
        self.unreachable.retain(|name| !answered.contains(name));
        all
    }

    /// Walks through the copies of a node.
    async fn sums(&self, node: u64, request: &DigestRequest) -> Option<Sums> {
        let mut sums = Sums::new();
        let mut request = request.clone();
        for _ in 0..STEPS_MAX {
            let digests = self.client.copy_digests(node, &request).await?.ok()?;
            for digest in digests.partitions {
                let (items, sum) = sums.entry(digest.partition).or_default();
                *items += digest.items;
                *sum = sum.wrapping_add(digest.sum);
            }
            request.cursor = digests.cursor;
            if request.cursor.is_none() {
                return Some(sums);
            }
        }
        None
    }

    /// Finds out how copies differ.
    async fn explain(&mut self, partitions: &[Differing]) {
        let nodes: BTreeSet<u64> = partitions
            .iter()
            .flat_map(|(_, copies)| copies.iter().map(|(node, _)| *node))
            .collect();
        let mut items: HashMap<u64, Items> = HashMap::new();
        let mut evicting: BTreeSet<u64> = BTreeSet::new();
        for node in nodes {
            let request = DigestRequest {
                cache: self.cache.to_owned(),
                ends_after_ms: now_ms() + LASTING_MS,
                partitions: partitions.iter().map(|(partition, _)| *partition).collect(),
                items: true,
                ..DigestRequest::default()
            };
            items.insert(node, self.items(node, request).await);
            if let Some(Ok(info)) = self.client.node_info_of(node).await {
                let cache = info.caches.iter().find(|cache| cache.spec.name == self.cache);
                if cache.is_some_and(|cache| cache.evictions > 0) {
                    evicting.insert(node);
                }
            }
        }
        for (partition, copies) in partitions {
            let nodes: Vec<u64> = copies.iter().map(|(node, _)| *node).collect();
            let found = differences(*partition, &nodes, &items, &evicting);
            if found.is_empty() {
                // Only items that an evicting copy dropped; or it became equal at last.
                self.report.evicted += 1;
                continue;
            }
            self.report.differ.push(*partition);
            for (key, what) in found {
                if self.differences.len() < TOLD_MAX {
                    self.differences.push(Difference {
                        cache: self.cache.to_owned(),
                        partition: *partition,
                        key: shown(&key).into_owned(),
                        what: what.in_words(|node| name(self.status, node)),
                    });
                }
            }
        }
    }

    async fn items(&self, node: u64, mut request: DigestRequest) -> Items {
        let mut items = Items::new();
        for _ in 0..STEPS_MAX {
            let Some(Ok(digests)) = self.client.copy_digests(node, &request).await else { break };
            for item in digests.items {
                items.insert((item.partition, item.hash), (item.key, item.digest));
            }
            request.cursor = digests.cursor;
            if request.cursor.is_none() {
                break;
            }
        }
        items
    }
}

/// A partition, and what each node's copy sums up to.
type Differing = (u32, Vec<(u64, (u64, u64))>);

/// An item as a node has it.
type ItemOf<'a> = (u64, &'a (Vec<u8>, u64));

/// The items of a node: by partition and hash, key and digest.
type Items = HashMap<(u32, u64), (Vec<u8>, u64)>;

/// What is wrong with an item.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// Copies have it, and not the same.
    Differs(Vec<u64>),
    /// These do not have it.
    Missing(Vec<u64>),
}

impl Wrong {
    fn in_words(&self, name: impl Fn(u64) -> String) -> String {
        let names =
            |nodes: &[u64]| nodes.iter().map(|node| name(*node)).collect::<Vec<_>>().join(", ");
        match self {
            Self::Differs(nodes) => format!("not the same on {}", names(nodes)),
            Self::Missing(nodes) => format!("missing on {}", names(nodes)),
        }
    }
}

/// Items of a partition that are not the same on all of these nodes, but for those that an evicting
/// one has dropped.
fn differences(
    partition: u32,
    nodes: &[u64],
    items: &HashMap<u64, Items>,
    evicting: &BTreeSet<u64>,
) -> Vec<(Vec<u8>, Wrong)> {
    let mut by_item: BTreeMap<u64, Vec<ItemOf<'_>>> = BTreeMap::new();
    for node in nodes {
        for ((of, hash), item) in items.get(node).into_iter().flatten() {
            if *of == partition {
                by_item.entry(*hash).or_default().push((*node, item));
            }
        }
    }
    let mut found = Vec::new();
    for copies in by_item.into_values() {
        let Some((_, (key, digest))) = copies.first() else { continue };
        let key = key.clone();
        if copies.iter().any(|(_, (_, other))| other != digest) {
            found.push((key, Wrong::Differs(copies.iter().map(|(node, _)| *node).collect())));
            continue;
        }
        let has = |node: &u64| copies.iter().any(|(has, _)| has == node);
        let missing: Vec<u64> =
            nodes.iter().filter(|node| !has(node) && !evicting.contains(node)).copied().collect();
        if !missing.is_empty() {
            found.push((key, Wrong::Missing(missing)));
        }
    }
    found
}

fn compare(partition: u32, owners: &[u64], sums: &HashMap<u64, Sums>) -> Seen {
    let mut copies = Vec::new();
    for owner in owners {
        let Some(sums) = sums.get(owner) else { return Seen::Unknown };
        copies.push((*owner, sums.get(&partition).copied().unwrap_or_default()));
    }
    copies.sort_unstable();
    match copies.as_slice() {
        [] => Seen::Lost,
        [(_, (items, _))] => Seen::Single(*items),
        [(_, first), rest @ ..] if rest.iter().all(|(_, other)| other == first) => {
            Seen::Equal(first.0)
        }
        _ => Seen::Unequal(copies),
    }
}

fn owners_of(topology: &TopologyView, cache: &str) -> Option<(u32, Vec<Vec<u64>>)> {
    let cache = topology.caches.iter().find(|view| view.name == cache)?;
    let group = topology.groups.get(cache.group as usize)?;
    let id = |place: &u32| topology.nodes.get(*place as usize).map(|node| node.id);
    let owners = group.owners.iter().map(|owners| owners.iter().filter_map(id).collect());
    Some((group.copies, owners.collect()))
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_equal_when_all_their_sums_are() {
        let told = |items, sum| Sums::from([(5, (items, sum))]);
        let sums = HashMap::from([(1, told(2, 7)), (2, told(2, 7)), (3, told(2, 8))]);
        assert_eq!(compare(5, &[1, 2], &sums), Seen::Equal(2));
        assert_eq!(compare(5, &[3, 1], &sums), Seen::Unequal(vec![(1, (2, 7)), (3, (2, 8))]));
        assert_eq!(compare(5, &[3], &sums), Seen::Single(2));
        assert_eq!(compare(5, &[], &sums), Seen::Lost);
        assert_eq!(compare(5, &[1, 4], &sums), Seen::Unknown);
        // Empty copies are not told of, and equal.
        assert_eq!(compare(6, &[1, 2], &sums), Seen::Equal(0));
    }

    #[test]
    fn an_item_that_an_evicting_copy_dropped_is_no_difference_but_a_changed_one_is() {
        let item = |hash: u64, digest| ((0, hash), (vec![hash as u8], digest));
        let items = HashMap::from([
            (1, Items::from([item(10, 1), item(11, 1), item(12, 1)])),
            (2, Items::from([item(10, 1), item(11, 2)])),
        ]);
        let nobody = BTreeSet::new();
        assert_eq!(
            differences(0, &[1, 2], &items, &nobody),
            [(vec![11], Wrong::Differs(vec![1, 2])), (vec![12], Wrong::Missing(vec![2]))]
        );
        let evicting = BTreeSet::from([2]);
        assert_eq!(
            differences(0, &[1, 2], &items, &evicting),
            [(vec![11], Wrong::Differs(vec![1, 2]))]
        );
        assert!(differences(1, &[1, 2], &items, &nobody).is_empty());
        let words = Wrong::Missing(vec![2]).in_words(|node| format!("n{node}"));
        assert_eq!(words, "missing on n2");
    }
}
