//! Which streams there are.
//!
//! In a cluster the table says so, and every node follows it; a node that takes no others keeps
//! them itself. Making a stream makes its caches first: that of the latest values, which may be
//! there already and be shared, and two of the stream's own: `{stream}.windows` of the results, and
//! `{stream}.state`, in which the stream's partitions keep what they have to remember.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwap, Guard};
use kiln_cluster::topology::{STREAMS_MAX, Topology, TopologyCommand};
use kiln_engine::policy::PolicyKind;
use kiln_protocol::native::{ErrorCode, admin::CacheSpec};
use parking_lot::Mutex;

use super::sources;
use super::stream::{DefinitionError, NAME_LEN_MAX, Stream};
use crate::{
    caches::{CacheError, CacheSettings, DEFAULT, Mode},
    cluster::{Cluster, spec_of},
    config::Listen,
    node::Node,
};

/// All streams by name.
pub(crate) type Table = BTreeMap<Box<str>, Arc<Stream>>;

/// The streams of a node.
#[derive(Default)]
pub(crate) struct Registry {
    table: ArcSwap<Table>,
    /// Held by whoever changes the table.
    changing: Mutex<()>,
    next_id: AtomicU64,
}

/// Why a stream was not made or dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// Nothing was done.
    #[error(
        "a stream's name is 1 to {NAME_LEN_MAX} of a-z A-Z 0-9 . _ -, beginning with a letter or \
         a digit"
    )]
    Name,
    /// Nothing was done.
    #[error("{0}")]
    Definition(#[from] DefinitionError),
    /// Nothing was done.
    #[error("sources[{at}]: {reason}")]
    Source {
        /// Which.
        at: usize,
        /// What it lacks.
        reason: &'static str,
    },
    /// Nothing was done.
    #[error("there is a stream `{0}` with another definition; drop it first")]
    Exists(Box<str>),
    /// Nothing was done.
    #[error("there is no such stream")]
    NoSuchStream,
    /// Nothing was done.
    #[error("there are {STREAMS_MAX} streams already")]
    TooMany,
    /// Caches that were made before stay.
    #[error("the cache `{name}` of the stream: {reason}")]
    Cache {
        /// Which.
        name: Box<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// The controller group did not do it, or not in time.
    #[error("{text}")]
    Undecided {
        /// What kind of refusal.
        code: ErrorCode,
        /// Why.
        text: String,
    },
}

impl Registry {
    /// All streams.
    pub(crate) fn load(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// All streams, for whoever waits while it holds them.
    pub(crate) fn load_full(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The stream of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Stream>> {
        self.table.load().get(name).cloned()
    }

    /// Puts a stream in place. True when it is new.
    fn add(&self, name: &str, text: &str) -> Result<bool, StreamError> {
        let plan = Stream::plan_of(text)?;
        let _changing = self.changing.lock();
        let table = self.table.load_full();
        if let Some(known) = table.get(name) {
            let same = *known.text == *text;
            return if same { Ok(false) } else { Err(StreamError::Exists(name.into())) };
        }
        if table.len() >= STREAMS_MAX {
            return Err(StreamError::TooMany);
        }
        let id = self.next_id.fetch_add(1, Relaxed);
        let mut next = Table::clone(&table);
        next.insert(name.into(), Arc::new(Stream::new(id, name, text, plan)));
        self.table.store(Arc::new(next));
        Ok(true)
    }

    fn remove(&self, name: &str) -> bool {
        let _changing = self.changing.lock();
        let mut next = Table::clone(&self.table.load());
        let known = next.remove(name).is_some();
        if known {
            self.table.store(Arc::new(next));
        }
        known
    }

    /// Makes what the table of the cluster has more, drops what it has no longer.
    pub(crate) fn follow(&self, topology: &Topology) {
        let table = self.table.load_full();
        let stays = |stream: &Stream| {
            topology.streams.get(&*stream.name).is_some_and(|text| **text == *stream.text)
        };
        for stream in table.values().filter(|stream| !stays(stream)) {
            self.remove(&stream.name);
        }
        for (name, text) in &topology.streams {
            if table.get(&**name).is_some_and(|stream| stays(stream)) {
                continue;
            }
            if let Err(error) = self.add(name, text) {
                // Made by a later version, most likely.
                tracing::error!(stream = %name, %error, "cannot work with a stream of the cluster");
            }
        }
    }

    /// Makes a stream, or finds it: one of the same definition is as good as made. True when new.
    pub(crate) async fn create(
        &self,
        node: &Node,
        name: &str,
        text: &str,
    ) -> Result<(Arc<Stream>, bool), StreamError> {
        if !is_name(name) {
            return Err(StreamError::Name);
        }
        // In one form, so that two who mean the same say the same.
        let plan = Stream::plan_of(text)?;
        let text = serde_json::to_string(plan.definition()).map_err(DefinitionError::from)?;
        sources::check(plan.definition())?;
        if let Some(known) = self.get(name) {
            let same = *known.text == *text;
            return if same { Ok((known, false)) } else { Err(StreamError::Exists(name.into())) };
        }
        let stream = Stream::new(0, name, &text, plan);
        for cache in [&stream.latest_cache, &stream.windows_cache] {
            make_cache(node, cache, None).await?;
        }
        if node.cluster.get().is_some() {
            // One that is left of a stream of this name and definition goes on.
            make_cache(node, &stream.state_cache, Some(&stream.latest_cache)).await?;
        }
        if let Some(cluster) = node.cluster.get() {
            self.agree(cluster, name, &text).await?;
            // This node's own look at the table may still be to come.
            self.follow(&cluster.topology());
        } else {
            self.add(name, &text)?;
        }
        node.reserve_stream_state();
        tracing::info!(stream = %name, "stream made");
        self.get(name).map(|stream| (stream, true)).ok_or(StreamError::NoSuchStream)
    }

    async fn agree(&self, cluster: &Cluster, name: &str, text: &str) -> Result<(), StreamError> {
        let command =
            TopologyCommand::CreateStream { name: name.to_owned(), definition: text.to_owned() };
        let (wanted, definition) = (name.to_owned(), text.to_owned());
        let shows = move |table: &Topology| table.streams.get(&wanted) == Some(&definition);
        if shows(&cluster.topology()) {
            return Ok(());
        }
        cluster.decide(command, shows).await.map_err(|(code, text)| match code {
            ErrorCode::CacheExists => StreamError::Exists(name.into()),
            ErrorCode::LimitReached => StreamError::TooMany,
            code => StreamError::Undecided { code, text },
        })
    }

    /// Drops a stream and its results. The cache of the latest values stays: it may be another's.
    pub(crate) async fn drop_stream(&self, node: &Node, name: &str) -> Result<(), StreamError> {
        let Some(stream) = self.get(name) else { return Err(StreamError::NoSuchStream) };
        let undecided = |(code, text)| match code {
            ErrorCode::NoSuchCache => StreamError::NoSuchStream,
            code => StreamError::Undecided { code, text },
        };
        if let Some(cluster) = node.cluster.get() {
            let gone = name.to_owned();
            let command = TopologyCommand::DropStream { name: name.to_owned() };
            let shows = move |table: &Topology| !table.streams.contains_key(&gone);
            cluster.decide(command, shows).await.map_err(undecided)?;
            self.remove(name);
            for cache in [&stream.windows_cache, &stream.state_cache] {
                let (gone, name) = (cache.to_string(), cache.to_string());
                let command = TopologyCommand::DropCache { name };
                let shows = move |table: &Topology| !table.caches.contains_key(&gone);
                match cluster.decide(command, shows).await {
                    Ok(()) | Err((ErrorCode::NoSuchCache, _)) => {}
                    Err(error) => return Err(undecided(error)),
                }
            }
        } else {
            self.remove(name);
            match node.caches.drop_cache(&stream.windows_cache, node.clock.now_ms()) {
                Ok(()) => node.topology_changed(),
                Err(CacheError::NoSuchCache) => {}
                Err(error) => {
                    return Err(StreamError::Cache {
                        name: stream.windows_cache.clone(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        tracing::info!(stream = %name, "stream dropped");
        Ok(())
    }
}

/// Makes a cache of a stream unless it is there: with as many copies as `default` has, or, for one in
/// which nothing may be missing, as that of the latest values has.
async fn make_cache(node: &Node, name: &str, latest: Option<&str>) -> Result<(), StreamError> {
    let fail = |reason: String| StreamError::Cache { name: name.into(), reason };
    if name == DEFAULT {
        return Ok(());
    }
    if let Some((_, known)) = node.caches.load().by_name(name) {
        let settings = known.settings_now();
        let keeps = settings.mode == Mode::Strong && settings.eviction == PolicyKind::None;
        if latest.is_some() && !keeps {
            let reason = "there is one already, which is not strong or evicts; a stream keeps its \
                          state there";
            return Err(fail(reason.to_owned()));
        }
        return Ok(());
    }
    let alone = node.config.listen_peer == Listen::Off;
    let copies = if alone { 1 } else { u32::try_from(node.config.replicas.0).unwrap_or(1) };
    let mut spec = CacheSpec { name: name.to_owned(), copies, ..CacheSpec::default() };
    if let Some(latest) = latest {
        let like = node.cluster.get().and_then(|cluster| {
            let topology = cluster.topology();
            topology.caches.get(latest).map(|spec| (spec.copies, spec.min_in_sync))
        });
        if let Some((copies, min_in_sync)) = like {
            (spec.copies, spec.min_in_sync) = (u32::from(copies), u32::from(min_in_sync));
        }
        "none".clone_into(&mut spec.eviction);
    }
    let settings = CacheSettings::from_spec(&spec, node.value_len_max());
    let settings = settings.map_err(|error| fail(error.to_string()))?;
    let Some(cluster) = node.cluster.get() else {
        let made = node.caches.create(settings, node.clock.now_ms());
        if made.map_err(|error| fail(error.to_string()))?.1 {
            node.topology_changed();
        }
        return Ok(());
    };
    let command = cluster.make_cache(name.to_owned(), spec_of(&settings));
    let wanted = name.to_owned();
    let made = move |table: &Topology| table.caches.contains_key(&wanted);
    match cluster.decide(command, made).await {
        Ok(()) | Err((ErrorCode::CacheExists, _)) => {}
        Err((_, text)) => return Err(fail(text)),
    }
    if node.caches.load().by_name(name).is_none() {
        return Err(fail("this node could not make room for it; see its log".to_owned()));
    }
    Ok(())
}

/// The same rule as for caches: a stream gives its name to one.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    name.len() <= NAME_LEN_MAX
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_added_once_and_with_one_definition() {
        let registry = Registry::default();
        assert!(registry.add("s", "{}").unwrap());
        assert!(!registry.add("s", "{}").unwrap());
        let other = registry.add("s", r#"{"format": "csv"}"#);
        assert!(matches!(other, Err(StreamError::Exists(_))));
        assert!(registry.remove("s") && !registry.remove("s"));
    }

    #[test]
    fn the_table_of_the_cluster_is_followed_and_what_is_unknown_in_it_harms_nobody() {
        let registry = Registry::default();
        let mut topology = Topology::new(kiln_cluster::ids::ClusterId(1), 8);
        topology.streams.insert("a".to_owned(), "{}".to_owned());
        topology.streams.insert("odd".to_owned(), r#"{"of a later version": 1}"#.to_owned());
        registry.follow(&topology);
        assert!(registry.get("a").is_some() && registry.get("odd").is_none());
        let id = registry.get("a").unwrap().id;
        // Dropped and made anew between two looks.
        topology.streams.insert("a".to_owned(), r#"{"format":"csv"}"#.to_owned());
        registry.follow(&topology);
        assert_ne!(registry.get("a").unwrap().id, id);
        topology.streams.clear();
        registry.follow(&topology);
        assert!(registry.load().is_empty());
    }

    #[test]
    fn names_are_those_of_caches() {
        for good in ["plant", "a.b-c_1", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "-a", "ä", &"x".repeat(57)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
