//! Which nodes own a key.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use kiln_client::{GroupView, TopologyView};
use kiln_cluster::placement::{HASH_ID, partition_of};
use serde::{Serialize, ser::SerializeMap};

use super::super::{
    CommandError, EXIT_CODES,
    connect::{CacheArgs, explain},
    output::{self, Format, OutputArgs, Table, Text},
};

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
    pub(super) async fn run(self) -> Result<(), CommandError> {
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
                if owners.owners.is_empty() {
                    eprintln!("nobody owns the key at the moment: kiln cluster status");
                }
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
        let partition = partition_of(key, topology.partitions.max(1)).0;
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

#[cfg(test)]
mod tests {
    use kiln_client::{CacheView, NodeView};
    use xxhash_rust::xxh3::xxh3_64;

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
