//! Looks at the node once a second, for all viewers together.
//!
//! A tick reads the counters, compares them with the last ones, and keeps the result. When there
//! are viewers it is also written as JSON, once, whatever their number. Long lists are told less
//! often ([`LIST_PERIOD`]): they are for the eye.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{Semaphore, broadcast},
    time::{self, MissedTickBehavior},
};

use super::{
    events::{Events, View},
    history::{Field, Figure, History, PERIOD_MS, Sample},
    keys,
    reading::{self, CacheFigures, Reading},
    snapshot::{
        ClusterState, HotKey, Known, NodeFigures, SelfView, Snapshot, Stream, Tick, Topology,
    },
    streams::StreamMeter,
    viewers::VIEWERS_MAX,
};
use crate::{
    caches::Table,
    hottest,
    http::metrics,
    native::{self, cluster_view},
    node::Node,
};

/// Ticks that wait for a slow viewer.
const FRAMES_MAX: usize = 8;

/// A list of more than so many entries …
const LIST_LEN_SHORT: usize = 50;
/// … is told once in so many ticks.
const LIST_PERIOD: u64 = 5;

/// Hottest keys told.
const HOTTEST_MAX: usize = 12;

/// One event for all viewers, as it goes over the wire.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Rises with each tick.
    pub(super) seq: u64,
    pub(super) bytes: Bytes,
}

/// The dashboard of a node.
pub(super) struct Dashboard {
    pub(super) node: Arc<Node>,
    state: Mutex<State>,
    frames: broadcast::Sender<Frame>,
    /// A place for each viewer.
    pub(super) places: Arc<Semaphore>,
}

/// What is kept from tick to tick.
#[derive(Default)]
struct State {
    seq: u64,
    before: Option<Reading>,
    history: History,
    caches: BTreeMap<u32, CacheFigures>,
    events: Events,
    known: Known,
    figures: Vec<NodeFigures>,
    cluster: ClusterState,
    hottest: Vec<HotKey>,
    streams: Vec<Stream>,
    stream_meter: StreamMeter,
    /// The snapshot of this tick, once someone wanted it: many who come at once share it.
    snapshot: Option<Bytes>,
}

/// Ticks until the node stops.
pub(super) async fn run(dashboard: Arc<Dashboard>) {
    let mut ticks = time::interval(Duration::from_millis(PERIOD_MS));
    // A second that was missed is a gap; two ticks in a row would show a spike.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = ticks.tick() => dashboard.tick(),
            () = dashboard.node.shutdown.begun() => break,
        }
    }
}

impl Dashboard {
    /// A dashboard that has seen nothing yet.
    pub(super) fn new(node: Arc<Node>) -> Self {
        let (frames, _) = broadcast::channel(FRAMES_MAX);
        let places = Arc::new(Semaphore::new(VIEWERS_MAX));
        Self { node, state: Mutex::default(), frames, places }
    }

    /// Everything so far, and what comes after it: frames up to the first's `seq` are contained.
    pub(super) fn subscribe(&self) -> (Frame, broadcast::Receiver<Frame>) {
        // Before the snapshot, so that no tick is lost in between.
        let frames = self.frames.subscribe();
        (self.snapshot(), frames)
    }

    /// Everything so far.
    pub(super) fn snapshot(&self) -> Frame {
        let mut state = self.state.lock();
        let bytes = match &state.snapshot {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = state.write_snapshot(&self.node);
                state.snapshot = Some(bytes.clone());
                bytes
            }
        };
        Frame { seq: state.seq, bytes }
    }

    /// Looks at the node.
    fn tick(&self) {
        let mut state = self.state.lock();
        let frame = state.tick(&self.node, self.frames.receiver_count() > 0);
        drop(state);
        if let Some(frame) = frame {
            // An error says that the last viewer has just gone.
            let _ = self.frames.send(frame);
        }
    }
}

impl State {
    fn tick(&mut self, node: &Node, has_viewers: bool) -> Option<Frame> {
        let table = node.caches.load();
        let reading = Reading::take(node, &table);
        let topology_changed = self.look_at_topology(node, &table);
        let status = cluster_view::status(node);
        self.seq += 1;
        self.snapshot = None;

        let view = View {
            topology: Arc::clone(&self.known.view),
            evictions: reading.sum(|stats| stats.evictions),
            refused_writes: reading.sum(|stats| stats.no_memory),
            refused_connections: node.connections.rejected(),
            lost: status.groups.iter().map(|group| group.lost).sum(),
            memory: node.memory() as u64,
        };
        let newest_event = self.events.observe(view, reading.at_ms);
        if self.seq % LIST_PERIOD == 1 && node.config.dashboard_keys.0 {
            self.hottest = hottest_keys(node, &table);
        }
        let sample = self.before.as_ref().map(|before| {
            let mut sample = reading.since(before, &mut self.caches);
            reading::add_latencies(&mut sample, node);
            sample
        });
        if self.seq % LIST_PERIOD == 1 {
            for cache in table.iter() {
                if let Some(figures) = self.caches.get_mut(&cache.id) {
                    figures.set_curve(metrics::estimated(cache));
                }
            }
        }
        self.figures = NodeFigures::of(&status);
        self.cluster = ClusterState::of(status, &self.known.told);
        let now_ms = reading.at_ms;
        self.streams = self.stream_meter.look(node, now_ms);
        self.before = Some(reading);
        // The first tick only reads: rates need two.
        let sample = sample?;
        self.complete_own_figures(node, &sample);
        self.history.push(sample.clone());
        if !has_viewers {
            return None;
        }

        let caches: Vec<_> = self.caches.values().cloned().collect();
        let is_due = |len: usize| len <= LIST_LEN_SHORT || self.seq.is_multiple_of(LIST_PERIOD);
        let tick = Tick {
            seq: self.seq,
            now_ms,
            row: &sample,
            events: self.events.since(newest_event),
            topology: topology_changed.then_some(&self.known.told),
            figures: is_due(self.figures.len()).then_some(&self.figures),
            caches: (topology_changed || is_due(caches.len())).then_some(&caches),
            hottest: (self.seq % LIST_PERIOD == 1).then_some(&self.hottest),
            state: &self.cluster,
            streams: is_due(self.streams.len()).then_some(&self.streams),
        };
        Some(Frame { seq: self.seq, bytes: event("tick", &tick) })
    }

    /// Whether it is another than before.
    fn look_at_topology(&mut self, node: &Node, table: &Table) -> bool {
        let view = native::topology(node);
        if view == *self.known.view {
            return false;
        }
        let told = Topology::of(node, &view, table);
        self.known = Known { view: Arc::new(view), told };
        true
    }

    /// Of itself a node knows more, and what it knows is newer.
    fn complete_own_figures(&mut self, node: &Node, sample: &Sample) {
        let own_id = self.known.told.nodes.iter().find(|known| known.is_self).map(|own| own.id);
        let Some(own) = self.figures.iter_mut().find(|figures| Some(figures.id) == own_id) else {
            return;
        };
        let figure = |field| Figure(sample.get(field).unwrap_or(f64::NAN));
        let ops = [Field::OpsMemcached, Field::OpsNative, Field::OpsHttp];
        own.ops = Figure(ops.iter().filter_map(|field| sample.get(*field)).sum());
        own.busy = Figure(figure(Field::Cpu).0 / processors());
        own.memory = figure(Field::Memory);
        own.memory_limit = Figure(node.memory() as f64);
        own.heard_ms_ago = Some(0);
        own.hit_ratio = Figure(reading::recent_ratio(self.caches.values()));
        own.items = figure(Field::Items);
        own.connections = figure(Field::Connections);
        own.uptime_ms = Some(node.clock.uptime().as_millis() as u64);
    }

    fn write_snapshot(&self, node: &Node) -> Bytes {
        let caches: Vec<_> = self.caches.values().cloned().collect();
        let snapshot = Snapshot {
            seq: self.seq,
            now_ms: node.clock.now_ms(),
            node: SelfView::of(node),
            history: &self.history,
            topology: &self.known.told,
            figures: &self.figures,
            caches: &caches,
            state: &self.cluster,
            streams: &self.streams,
            hottest: &self.hottest,
            events: self.events.all(),
        };
        event("snapshot", &snapshot)
    }
}

/// Processors that this process may use.
fn processors() -> f64 {
    thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

fn hottest_keys(node: &Node, table: &Table) -> Vec<HotKey> {
    let sketches: Vec<_> = node.workers.iter().map(|worker| worker.hottest.lock()).collect();
    let found = hottest::merge(sketches.iter().map(|sketch| &**sketch), HOTTEST_MAX);
    drop(sketches);
    let name = |id| table.iter().find(|cache| cache.id == id).map(|cache| &cache.settings.name);
    // Keys of dropped caches are still in the sketches for a while.
    let known = found.into_iter().filter_map(|(cache, key, count)| {
        Some(HotKey {
            cache: name(cache)?.as_ref().into(),
            key: keys::text(&key),
            ops: Figure(hottest::per_second(count).round()),
        })
    });
    known.collect()
}

/// A server-sent event. JSON has no line breaks, so one line carries it.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    // Writing to memory cannot fail, and these structures have no map with keys that JSON lacks.
    let written = serde_json::to_writer(&mut text, data);
    debug_assert!(written.is_ok(), "{written:?}");
    text.extend_from_slice(b"\n\n");
    text.into()
}
