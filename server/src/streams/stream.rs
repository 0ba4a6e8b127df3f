//! One stream on this node: what was agreed of it, worked out, and what is counted of it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use kiln_cluster::topology::STREAM_NAME_LEN_MAX;
use kiln_stream::{
    definition::Definition,
    plan::{Plan, PlanError},
};
use parking_lot::Mutex;

use super::sources::SourceState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

/// What is behind a stream's name in that of the cache of its state.
const STATE_SUFFIX: &str = ".state";

/// The stream that would keep its state in a cache of this name.
pub(crate) fn stream_of_state(cache: &str) -> Option<&str> {
    cache.strip_suffix(STATE_SUFFIX)
}

/// Longest name of a stream.
pub(crate) const NAME_LEN_MAX: usize = STREAM_NAME_LEN_MAX;
/// Events that a follower may be behind before it misses some.
const LIVE_LEN_MAX: usize = 1_024;
/// Alarms and late readings kept, of each kind.
const RING_LEN_MAX: usize = 1_024;
/// Producers whose time is kept apart; see [`Stream::heard`].
const CLOCKS_MAX: usize = 1_024;

/// Followers of all streams of a node at a time.
pub(crate) const FOLLOWERS_MAX: usize = 256;

static FOLLOWERS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(FOLLOWERS_MAX)));

/// A place among the followers, if there is one.
pub(crate) fn follower_place() -> Option<OwnedSemaphorePermit> {
    Arc::clone(&FOLLOWERS).try_acquire_owned().ok()
}

/// A stream.
pub(crate) struct Stream {
    /// Unique over the life of the node.
    pub(crate) id: u64,
    pub(crate) name: Box<str>,
    pub(crate) plan: Arc<Plan>,
    /// The definition as it was agreed.
    pub(crate) text: Box<str>,
    /// The cache of the latest values.
    pub(crate) latest_cache: Box<str>,
    /// The cache of the results.
    pub(crate) windows_cache: Box<str>,
    /// The cache of the changelogs of its partitions.
    pub(crate) state_cache: Box<str>,
    pub(crate) figures: Figures,
    /// What it fetches by itself, in the order of the definition.
    pub(crate) sources: Box<[SourceState]>,
    clocks: Mutex<HashMap<Box<str>, ProducerClock>>,
    /// Rises when a producer's time does.
    clock_version: AtomicU64,
    live: broadcast::Sender<Arc<LiveEvent>>,
    alarms: Mutex<VecDeque<Arc<LiveEvent>>>,
    late: Mutex<VecDeque<Arc<LiveEvent>>>,
}

/// How far a producer is, over all partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProducerClock {
    pub(crate) epoch: u64,
    pub(crate) time_max: i64,
    /// When it rose last, in [`Stream::clock_version`]s.
    pub(crate) version: u64,
}

/// Something that followers are told.
#[derive(Debug)]
pub(crate) struct LiveEvent {
    /// `window`, `alarm`, `fit`, `late` or `retraction`.
    pub(crate) kind: &'static str,
    pub(crate) sensor: Box<[u8]>,
    /// JSON.
    pub(crate) text: String,
}

/// No watermark yet.
const NO_TIME: i64 = i64::MIN;

/// One for each shard.
#[derive(Debug)]
struct Watermarks([AtomicI64; super::SHARDS_MAX]);

impl Default for Watermarks {
    fn default() -> Self {
        Self([const { AtomicI64::new(NO_TIME) }; super::SHARDS_MAX])
    }
}

macro_rules! figures {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What is counted of a stream on this node since it started.
        #[derive(Debug, Default)]
        pub(crate) struct Figures {
            $($(#[doc = $doc])+ pub(crate) $name: AtomicU64,)+
            /// The least watermark of its partitions at the last look, by shard; [`NO_TIME`] before
            /// there is one.
            watermarks: Watermarks,
        }

        /// The same, read.
        #[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub(crate) struct FigureValues {
            $($(#[doc = $doc])+ pub(crate) $name: u64,)+
        }

        impl Figures {
            /// Reads all.
            pub(crate) fn read(&self) -> FigureValues {
                FigureValues { $($name: self.$name.load(Relaxed),)+ }
            }
        }
    };
}

figures! {
    /// Readings taken in.
    accepted,
    /// Readings of batches that were applied before.
    duplicates,
    /// Readings that came too late for at least one window.
    late,
    /// Readings that came too late for a window and are not in it, for each window.
    late_dropped,
    /// Lines that gave no reading.
    rejected,
    /// Readings that the filter left out.
    filtered,
    /// Readings of an earlier life of their producer, or too old to tell.
    stale,
    /// Readings refused for want of room; their producers were told.
    refused,
    /// Window results given.
    results,
    /// Alarms raised or cleared.
    alarms,
    /// Times that open windows were given out because all producers were silent.
    flushes,
    /// Results that could not be written to their cache, and wait.
    unwritten,
    /// Results given up: their cache was dropped, or can never take them.
    lost,
    /// Bytes of state.
    state_bytes,
    /// Sensors known.
    sensors,
    /// Entries written to logs.
    log_records,
    /// Bytes of them.
    log_bytes,
    /// Snapshots published.
    snapshots,
    /// Partitions whose state was found in their logs.
    recoveries,
    /// Milliseconds that took.
    recovery_ms,
    /// Partitions whose state, or a part of it, was not found.
    states_lost,
}

impl Stream {
    /// Works a definition out. `text` is how it is agreed on.
    pub(crate) fn new(id: u64, name: &str, text: &str, plan: Plan) -> Self {
        let sources = plan.definition().sources.iter().map(SourceState::new).collect();
        let latest = plan.definition().latest.cache().unwrap_or(name).into();
        Self {
            id,
            name: name.into(),
            plan: Arc::new(plan),
            text: text.into(),
            latest_cache: latest,
            windows_cache: format!("{name}.windows").into(),
            state_cache: format!("{name}{STATE_SUFFIX}").into(),
            figures: Figures::default(),
            sources,
            clocks: Mutex::default(),
            clock_version: AtomicU64::new(0),
            live: broadcast::Sender::new(LIVE_LEN_MAX),
            alarms: Mutex::default(),
            late: Mutex::default(),
        }
    }

    /// Reads the text of a definition.
    pub(crate) fn plan_of(text: &str) -> Result<Plan, DefinitionError> {
        let definition: Definition = serde_json::from_str(text)?;
        Ok(Plan::new(definition)?)
    }

    /// The greatest event time that a producer has sent, with what it is just sending.
    pub(crate) fn time_with(&self, producer: &str, time: i64) -> i64 {
        self.clocks.lock().get(producer).map_or(time, |clock| clock.time_max.max(time))
    }

    /// A producer's readings up to an event time are applied: told before, other partitions would
    /// take those still on their way for late. Returns the greatest it has sent to the whole
    /// stream through this node: partitions that get few of its readings close their windows by
    /// that.
    pub(crate) fn heard(&self, producer: &str, epoch: u64, time_max: i64) -> i64 {
        let mut clocks = self.clocks.lock();
        if let Some(clock) = clocks.get_mut(producer) {
            if epoch > clock.epoch || time_max > clock.time_max {
                clock.epoch = clock.epoch.max(epoch);
                clock.time_max = clock.time_max.max(time_max);
                clock.version = self.clock_version.fetch_add(1, Relaxed) + 1;
            }
            return clock.time_max;
        }
        if clocks.len() >= CLOCKS_MAX {
            // Whoever has been still for longest; partitions know it by themselves.
            let stillest = clocks.iter().min_by_key(|(_, clock)| clock.version);
            if let Some(id) = stillest.map(|(id, _)| id.clone()) {
                clocks.remove(&id);
            }
        }
        let version = self.clock_version.fetch_add(1, Relaxed) + 1;
        clocks.insert(producer.into(), ProducerClock { epoch, time_max, version });
        time_max
    }

    /// The producers whose time rose after a version, at most `limit`, oldest first; and the
    /// version up to which these are all.
    pub(crate) fn heard_since(
        &self,
        version: u64,
        limit: usize,
    ) -> (Vec<(Box<str>, ProducerClock)>, u64) {
        let newest = self.clock_version.load(Relaxed);
        if newest == version {
            return (Vec::new(), version);
        }
        let clocks = self.clocks.lock();
        let fresh = clocks.iter().filter(|(_, clock)| clock.version > version);
        let mut fresh: Vec<_> = fresh.map(|(id, clock)| (id.clone(), *clock)).collect();
        fresh.sort_unstable_by_key(|(_, clock)| clock.version);
        fresh.truncate(limit);
        let upto = fresh.last().map_or(newest, |(_, clock)| clock.version);
        (fresh, upto)
    }

    /// Counts.
    pub(crate) fn count(&self, which: impl Fn(&Figures) -> &AtomicU64, by: u64) {
        if by > 0 {
            which(&self.figures).fetch_add(by, Relaxed);
        }
    }

    /// A gauge's part of one shard is another.
    pub(crate) fn moved(&self, which: impl Fn(&Figures) -> &AtomicU64, from: u64, to: u64) {
        if from != to {
            which(&self.figures).fetch_add(to.wrapping_sub(from), Relaxed);
        }
    }

    /// The least watermark of a shard's partitions.
    pub(crate) fn set_watermark(&self, shard: usize, watermark: Option<i64>) {
        if let Some(place) = self.figures.watermarks.0.get(shard) {
            place.store(watermark.unwrap_or(NO_TIME), Relaxed);
        }
    }

    /// The least watermark of its partitions on this node.
    pub(crate) fn watermark(&self) -> Option<i64> {
        let all = self.figures.watermarks.0.iter().map(|place| place.load(Relaxed));
        all.filter(|time| *time != NO_TIME).min()
    }

    /// Follows what the stream gives.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Arc<LiveEvent>> {
        self.live.subscribe()
    }

    /// Whether anyone follows: events need not be made for nobody.
    pub(crate) fn is_followed(&self) -> bool {
        self.live.receiver_count() > 0
    }

    /// Tells followers.
    pub(crate) fn tell(&self, event: Arc<LiveEvent>) {
        // An error is that nobody follows.
        let _ = self.live.send(event);
    }

    /// Keeps an alarm for whoever asks later.
    pub(crate) fn keep_alarm(&self, event: Arc<LiveEvent>) {
        push(&self.alarms, event);
    }

    /// Keeps a reading that came too late.
    pub(crate) fn keep_late(&self, event: Arc<LiveEvent>) {
        push(&self.late, event);
    }

    /// The last alarms, oldest first.
    pub(crate) fn alarms(&self) -> Vec<Arc<LiveEvent>> {
        self.alarms.lock().iter().cloned().collect()
    }

    /// The last readings that came too late, oldest first.
    pub(crate) fn late(&self) -> Vec<Arc<LiveEvent>> {
        self.late.lock().iter().cloned().collect()
    }
}

/// Why a text is no stream's definition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DefinitionError {
    /// Not JSON, or a name that is not known.
    #[error("{0}")]
    Text(#[from] serde_json::Error),
    /// The parts do not fit together.
    #[error("{0}")]
    Plan(#[from] PlanError),
}

fn push(ring: &Mutex<VecDeque<Arc<LiveEvent>>>, event: Arc<LiveEvent>) {
    let mut ring = ring.lock();
    if ring.len() >= RING_LEN_MAX {
        ring.pop_front();
    }
    ring.push_back(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(text: &str) -> Stream {
        Stream::new(1, "plant", text, Stream::plan_of(text).unwrap())
    }

    #[test]
    fn caches_are_named_after_the_stream_unless_it_names_one() {
        let own = stream("{}");
        assert_eq!((&*own.latest_cache, &*own.windows_cache), ("plant", "plant.windows"));
        assert_eq!(&*stream(r#"{"latest": "sensorDataCache"}"#).latest_cache, "sensorDataCache");
    }

    #[test]
    fn the_time_of_a_producer_is_the_greatest_it_sent_and_is_told_once() {
        let stream = stream("{}");
        assert_eq!(stream.heard("a", 0, 100), 100);
        assert_eq!(stream.heard("a", 0, 50), 100);
        assert_eq!(stream.heard("b", 0, 70), 70);
        let (fresh, upto) = stream.heard_since(0, 10);
        assert_eq!(fresh.len(), 2);
        assert!(stream.heard_since(upto, 10).0.is_empty());
        let (first, upto) = stream.heard_since(0, 1);
        assert_eq!(&*first[0].0, "a");
        assert_eq!(&*stream.heard_since(upto, 1).0[0].0, "b");
    }

    #[test]
    fn the_number_of_producers_that_are_kept_is_bounded() {
        let stream = stream("{}");
        for i in 0..CLOCKS_MAX as i64 + 10 {
            stream.heard(&format!("p{i}"), 0, i);
        }
        assert_eq!(stream.clocks.lock().len(), CLOCKS_MAX);
    }
}
