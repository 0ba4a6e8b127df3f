//! The cluster as its topology has it.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use kiln_client::{GroupView, TopologyView};
use serde::{Serialize, ser::SerializeMap};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    CommandError, EXIT_CODES,
    connect::{CacheArgs, ConnectArgs, explain},
    output::{self, Cell, Format, OutputArgs, Table, Text},
};

/// Show the cluster.
#[derive(clap::Subcommand)]
#[command(after_help = EXIT_CODES)]
pub(crate) enum ClusterCommand {
    Status(Status),
    Owners(Owners),
}

impl ClusterCommand {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        match self {
            Self::Status(command) => command.run().await,
            Self::Owners(command) => command.run().await,
        }
    }
}

/// Nodes, their state and their share of the partitions.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Status {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// The cluster for programs.
#[derive(Serialize)]
struct StatusJson {
    cluster_id: String,
    epoch: u64,
    partitions: u32,
    nodes: Vec<NodeJson>,
    caches: Vec<String>,
}

#[derive(Serialize)]
struct NodeJson {
    id: u64,
    name: String,
    state: String,
    zone: String,
    weight: f64,
    native: String,
    memcached: String,
    http: String,
    /// Partitions that the node serves, in the first table of owners.
    primary_partitions: usize,
    /// Partitions that it keeps copies of.
    copies_partitions: usize,
}

impl Status {
    async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let topology = client.topology().await.map_err(|error| explain(&error))?;
        let status = StatusJson::of(topology);
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&status),
            Format::Raw => {
                let lines = status.nodes.iter().map(|n| format!("{}\t{}\n", n.name, n.state));
                output::print(lines.collect::<String>())
            }
            Format::Table => status.print(),
        }
    }
}

impl StatusJson {
    fn of(topology: TopologyView) -> Self {
        let first = topology.groups.first();
        let owned = |place: usize, rank: fn(usize) -> bool| {
            let owners = first.map_or(&[][..], |group| &group.owners);
            let mine = owners.iter().filter(|owners| {
                owners.iter().position(|&node| node as usize == place).is_some_and(rank)
            });
            mine.count()
        };
        let nodes = topology.nodes.iter().enumerate().map(|(place, node)| NodeJson {
            id: node.id,
            name: node.name.clone(),
            state: node.state.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            native: node.native.clone(),
            memcached: node.memcached.clone(),
            http: node.http.clone(),
            primary_partitions: owned(place, |rank| rank == 0),
            copies_partitions: owned(place, |rank| rank > 0),
        });
        Self {
            nodes: nodes.collect(),
            caches: topology.caches.iter().map(|cache| cache.name.clone()).collect(),
            cluster_id: topology.cluster_id,
            epoch: topology.epoch,
            partitions: topology.partitions,
        }
    }

    fn print(&self) -> Result<(), CommandError> {
        let ready = self.nodes.iter().filter(|node| node.state == "ready").count();
        output::print(format!(
            "cluster {}, epoch {}: {ready} of {} nodes ready, {} partitions, caches {}\n\n",
            self.cluster_id,
            self.epoch,
            self.nodes.len(),
            self.partitions,
            self.caches.join(", ")
        ))?;
        let mut table = Table::new(&[
            "NODE",
            "STATE",
            "PRIMARY",
            "COPIES",
            "ZONE",
            "WEIGHT",
            "NATIVE",
            "MEMCACHED",
            "HTTP",
        ]);
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        for node in &self.nodes {
            table.row(vec![
                node.name.clone().into(),
                node.state.clone().into(),
                (node.primary_partitions as u64).into(),
                (node.copies_partitions as u64).into(),
                or_dash(&node.zone).into(),
                Cell::Number(node.weight.to_string()),
                or_dash(&node.native).into(),
                or_dash(&node.memcached).into(),
                or_dash(&node.http).into(),
            ]);
        }
        table.print()
    }
}

/// Which partition a key falls into, and who owns it.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Owners {
    /// The key: any bytes.
    key: OsString,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Owners {
    async fn run(self) -> Result<(), CommandError> {
        let client = self.cache.client().await?;
        let topology = client.topology().await.map_err(|error| explain(&error))?;
        let owners = OwnersJson::of(self.key.as_bytes(), self.cache.name(), &topology)?;
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&owners),
            Format::Raw => {
                let lines = owners.owners.iter().map(|owner| owner.name.clone() + "\n");
                output::print(lines.collect::<String>())
            }
            Format::Table => {
                output::print(format!(
                    "partition {} of {}\n\n",
                    owners.partition, topology.partitions
                ))?;
                let mut table = Table::new(&["NODE", "ROLE", "STATE", "NATIVE"]);
                for owner in &owners.owners {
                    table.row(vec![
                        owner.name.clone().into(),
                        owner.role.into(),
                        owner.state.clone().into(),
                        owner.native.clone().into(),
                    ]);
                }
                table.print()
            }
        }
    }
}

/// The owners of a key for programs.
struct OwnersJson {
    key: Text,
    cache: String,
    partition: u32,
    owners: Vec<OwnerJson>,
}

#[derive(Debug, PartialEq, Serialize)]
struct OwnerJson {
    name: String,
    role: &'static str,
    state: String,
    native: String,
}

impl OwnersJson {
    fn of(key: &[u8], cache: &str, topology: &TopologyView) -> Result<Self, CommandError> {
        let failed = |text: String| Err(CommandError::Failed(text));
        let Some(view) = topology.caches.iter().find(|view| view.name == cache) else {
            return failed(format!(
                "there is no cache {cache}\n  `kiln cache list` shows what there is."
            ));
        };
        if topology.hash_id != HASH_ID {
            let id = topology.hash_id;
            return failed(format!(
                "the cluster places keys by hash {id}, unknown to this version"
            ));
        }
        let group = topology.groups.get(view.group as usize);
        let partition = (xxh3_64(key) % u64::from(topology.partitions.max(1))) as u32;
        let places = group.and_then(|group: &GroupView| group.owners.get(partition as usize));
        let owners = places.into_iter().flatten().enumerate().filter_map(|(rank, &place)| {
            let node = topology.nodes.get(place as usize)?;
            Some(OwnerJson {
                name: node.name.clone(),
                role: if rank == 0 { "primary" } else { "copy" },
                state: node.state.clone(),
                native: node.native.clone(),
            })
        });
        let (key, cache, owners) = (Text::of(key), cache.to_owned(), owners.collect());
        Ok(Self { key, cache, partition, owners })
    }
}

impl Serialize for OwnersJson {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let (name, text) = self.key.member("key");
        map.serialize_entry(&name, text)?;
        map.serialize_entry("cache", &self.cache)?;
        map.serialize_entry("partition", &self.partition)?;
        map.serialize_entry("owners", &self.owners)?;
        map.end()
    }
}

/// XXH3-64 with seed 0, modulo the number of partitions.
const HASH_ID: u32 = 1;

#[cfg(test)]
mod tests {
    use kiln_client::{CacheView, NodeView};

    use super::*;

    fn topology() -> TopologyView {
        let node = |name: &str| NodeView {
            name: name.to_owned(),
            state: "ready".to_owned(),
            ..NodeView::default()
        };
        TopologyView {
            partitions: 4,
            hash_id: 1,
            nodes: vec![node("a"), node("b"), node("c")],
            groups: vec![GroupView {
                owners: vec![vec![0, 1], vec![1, 2], vec![2, 0], vec![0, 2]],
                ..GroupView::default()
            }],
            caches: vec![CacheView { name: "default".to_owned(), ..CacheView::default() }],
            ..TopologyView::default()
        }
    }

    #[test]
    fn a_node_has_the_partitions_that_it_is_first_or_later_in() {
        let status = StatusJson::of(topology());
        let shares: Vec<_> =
            status.nodes.iter().map(|n| (n.primary_partitions, n.copies_partitions)).collect();
        assert_eq!(shares, [(2, 1), (1, 1), (1, 2)]);
    }

    #[test]
    fn owners_are_those_of_the_keys_partition_primary_first() {
        let topology = topology();
        for key in ["one", "two", "three", "four", "five"] {
            let owners = OwnersJson::of(key.as_bytes(), "default", &topology).unwrap();
            let expected = &topology.groups[0].owners[(xxh3_64(key.as_bytes()) % 4) as usize];
            let names: Vec<_> = owners.owners.iter().map(|owner| &*owner.name).collect();
            let expected: Vec<_> =
                expected.iter().map(|&place| &*topology.nodes[place as usize].name).collect();
            assert_eq!(names, expected);
            assert_eq!((owners.owners[0].role, owners.owners[1].role), ("primary", "copy"));
        }
    }

    #[test]
    fn a_cache_or_a_hash_that_is_not_known_is_an_error() {
        assert!(OwnersJson::of(b"k", "other", &topology()).is_err());
        let strange = TopologyView { hash_id: 2, ..topology() };
        assert!(OwnersJson::of(b"k", "default", &strange).is_err());
        let empty = TopologyView { groups: vec![], partitions: 0, ..topology() };
        assert!(OwnersJson::of(b"k", "default", &empty).unwrap().owners.is_empty());
    }
}
