//! A thread and the operators it owns: those of every stream's partitions whose number, divided by
//! the number of shards, leaves the shard's own.
//!
//! One after the other, in the order of the queue: admit, apply, write what follows, answer. So no
//! operator needs a lock, and what is written of a sensor keeps the order of its readings. Between
//! jobs, every [`TICK`]: partitions are told how far the producers of the whole stream are, so that
//! windows close in partitions that get few readings; silence is noted; writes that failed are tried
//! again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kiln_protocol::command::Ttl;
use kiln_stream::{
    effects::{Effects, Outcome},
    operator::{Operator, Refused},
    reading::Batch,
    record::{Producer, Record},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{self, MissedTickBehavior},
};

use super::{
    Stream,
    forward::{Owner, owner},
    ingest::{IngestError, Receipt, refuse_all},
    render,
    sink::Sink,
    stream::LiveEvent,
};
use crate::{caches::Cache, node::Node};

/// How often time passes without readings.
const TICK: Duration = Duration::from_millis(100);
/// Producers whose time is passed on in one tick, per stream; the others follow in the next.
const PRODUCERS_PER_TICK: usize = 64;
/// Results of count and session windows that can be found again, per sensor and window.
const RECENT_MAX: usize = 256;

/// What a shard is asked.
pub(super) enum Job {
    /// Readings of partitions of its own.
    Apply(Apply),
    /// Time and value of a sensor's latest reading.
    Latest {
        partition: u32,
        stream: Arc<Stream>,
        sensor: Box<[u8]>,
        reply: oneshot::Sender<Option<(i64, f64)>>,
    },
    /// The results of a count or session window that are kept in mind, oldest first.
    Recent {
        partition: u32,
        stream: Arc<Stream>,
        sensor: Box<[u8]>,
        window: u16,
        reply: oneshot::Sender<Vec<Recent>>,
    },
}

/// Readings of a shard's own partitions.
pub(super) struct Apply {
    pub(super) stream: Arc<Stream>,
    pub(super) producer: Arc<Producer>,
    pub(super) parts: Vec<(u32, Batch)>,
    pub(super) reply: oneshot::Sender<Receipt>,
    /// Room on the way, given back when the job is done.
    pub(super) _room: Arc<OwnedSemaphorePermit>,
}

/// Where a result of a count or session window is.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Recent {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// What stands in the key: the number of a count window, else the start.
    pub(crate) name: i64,
}

/// The thread's state.
pub(super) struct Shard {
    node: Arc<Node>,
    index: usize,
    streams: HashMap<u64, Parts>,
    sink: Sink,
    scratch: Scratch,
    /// The table of the cluster that was looked at last.
    followed: Option<kiln_cluster::ids::Epoch>,
}

/// The partitions of one stream.
struct Parts {
    stream: Arc<Stream>,
    /// By partition, divided by the number of shards.
    slots: Vec<Option<Box<Slot>>>,
    /// Up to where the times of producers were passed on.
    told: u64,
    /// What this shard last said of its share.
    share: Share,
    unwritten_told: bool,
}

/// This shard's part of a stream's gauges.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    state_bytes: u64,
    sensors: u64,
    late_dropped: u64,
    flushes: u64,
}

struct Slot {
    operator: Operator,
    bytes: usize,
    recent: HashMap<(Box<[u8]>, u16), Vec<Recent>>,
    /// What `recent` keeps, as counted at the last tick.
    recent_bytes: usize,
}

/// Memory used again from result to result.
#[derive(Default)]
struct Scratch {
    key: Vec<u8>,
    text: String,
}

/// Where a stream's results go.
struct Target {
    latest: Option<Arc<Cache>>,
    /// `default`, when memcached clients shall find the latest values too.
    also: Option<Arc<Cache>>,
    windows: Option<Arc<Cache>>,
    now_ms: u64,
    directly: bool,
    followed: bool,
}

impl Shard {
    pub(super) fn new(node: Arc<Node>, index: usize) -> Self {
        let sink = Sink::new(Arc::clone(&node));
        Self {
            node,
            index,
            streams: HashMap::new(),
            sink,
            scratch: Scratch::default(),
            followed: None,
        }
    }

    /// Runs until it is told to stop, and then until its queue is empty.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Job>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => self.tick().await,
                job = inbox.recv() => match job {
                    Some(job) => self.run_job(job).await,
                    None => return,
                },
                _ = stop.changed() => {
                    inbox.close();
                    while let Some(job) = inbox.recv().await {
                        self.run_job(job).await;
                    }
                    return;
                }
            }
        }
    }

    async fn run_job(&mut self, job: Job) {
        match job {
            Job::Apply(apply) => {
                let receipt = self.apply(&apply.stream, &apply.producer, apply.parts).await;
                // Whoever asked may have left.
                let _ = apply.reply.send(receipt);
            }
            Job::Latest { partition, stream, sensor, reply } => {
                let slot = self.slot_of(&stream, partition);
                let _ = reply.send(slot.and_then(|slot| slot.operator.latest(&sensor)));
            }
            Job::Recent { partition, stream, sensor, window, reply } => {
                let slot = self.slot_of(&stream, partition);
                let found = slot.and_then(|slot| slot.recent.get(&(sensor, window)).cloned());
                let _ = reply.send(found.unwrap_or_default());
            }
        }
    }

    fn slot_of(&self, stream: &Stream, partition: u32) -> Option<&Slot> {
        let place = partition as usize / self.node.streams.shard_count();
        self.streams.get(&stream.id)?.slots.get(place)?.as_deref()
    }

    async fn apply(
        &mut self,
        stream: &Arc<Stream>,
        producer: &Producer,
        parts: Vec<(u32, Batch)>,
    ) -> Receipt {
        if !self.sink.has_room() {
            let text = "results cannot be written to their caches fast enough".to_owned();
            return refuse_all(stream, parts, IngestError::Busy(text));
        }
        let node = Arc::clone(&self.node);
        let now_ms = node.clock.now_ms();
        let shards = node.streams.shard_count();
        let mut receipt = Receipt::default();
        let known = self.streams.entry(stream.id).or_insert_with(|| Parts::new(stream));
        let mut left = Vec::new();
        {
            let inside = node.cluster.get().map(|cluster| cluster.gate().enter_as_guest());
            let directly = inside.as_ref().is_none_or(Option::is_some);
            let target = Target::of(&node, stream, now_ms, directly);
            for (partition, batch) in parts {
                let slot = known.slot(partition as usize / shards);
                let record = Record {
                    now: now_ms as i64,
                    producer: Some(producer.clone()),
                    offsets: Vec::new(),
                    batch,
                };
                if let Err(refused) = slot.operator.admit(&record, node.streams.state.left()) {
                    receipt.refused = Some(error_of(&refused));
                    left.push((partition, record.batch));
                    continue;
                }
                let effects = slot.operator.apply(&record);
                match effects.outcome {
                    Outcome::Applied => {}
                    Outcome::Duplicate { readings } => receipt.duplicate += readings,
                    Outcome::TooOld { .. } | Outcome::StaleEpoch { .. } => {
                        receipt.stale += record.batch.len() as u64;
                    }
                }
                receipt.accepted += effects.accepted;
                receipt.late += effects.late;
                write_out(stream, slot, &effects, &target, &mut self.sink, &mut self.scratch);
                slot.settle(&node);
            }
        }
        self.sink.flush().await;
        stream.count(|f| &f.accepted, receipt.accepted);
        stream.count(|f| &f.duplicates, receipt.duplicate);
        stream.count(|f| &f.late, receipt.late);
        stream.count(|f| &f.stale, receipt.stale);
        let readings = left.iter().map(|(_, part)| part.len() as u64).sum();
        stream.count(|f| &f.refused, readings);
        receipt.left = left;
        receipt
    }

    /// Time passes.
    async fn tick(&mut self) {
        let node = Arc::clone(&self.node);
        self.sink.retry().await;
        if let Some(cluster) = node.cluster.get() {
            let topology = cluster.topology();
            if self.followed != Some(topology.epoch) {
                self.followed = Some(topology.epoch);
                if self.index == 0 {
                    node.streams.registry.follow(&topology);
                    if !topology.streams.is_empty() {
                        node.reserve_stream_state();
                    }
                }
                for parts in self.streams.values_mut() {
                    parts.leave_to_owners(&node, self.index);
                }
            }
        }
        let table = Arc::clone(&node.streams.registry.load());
        let index = self.index;
        self.streams.retain(|id, parts| {
            let stays = table.get(&parts.stream.name).is_some_and(|stream| stream.id == *id);
            if !stays {
                parts.release(&node, index);
            }
            stays
        });
        let now_ms = node.clock.now_ms();
        for parts in self.streams.values_mut() {
            let inside = node.cluster.get().map(|cluster| cluster.gate().enter_as_guest());
            let directly = inside.as_ref().is_none_or(Option::is_some);
            let target = Target::of(&node, &parts.stream, now_ms, directly);
            parts.pass_time(&node, now_ms as i64, &target, &mut self.sink, &mut self.scratch);
            parts.tell_share(index);
        }
        self.sink.flush().await;
        // Told of the shard as a whole: by whichever stream is first.
        let (unwritten, lost) = (self.sink.unwritten(), self.sink.take_lost());
        for parts in self.streams.values_mut().take(1) {
            parts.stream.count(|f| &f.lost, lost);
            if (unwritten > 0) != parts.unwritten_told {
                parts.unwritten_told = unwritten > 0;
                if unwritten > 0 {
                    tracing::warn!(
                        stream = %parts.stream.name, writes = unwritten,
                        "results cannot be written to their caches, and wait"
                    );
                }
            }
        }
    }
}

impl Parts {
    fn new(stream: &Arc<Stream>) -> Self {
        Self {
            stream: Arc::clone(stream),
            slots: Vec::new(),
            told: 0,
            share: Share::default(),
            unwritten_told: false,
        }
    }

    fn slot(&mut self, place: usize) -> &mut Slot {
        if place >= self.slots.len() {
            self.slots.resize_with(place + 1, || None);
        }
        let plan = &self.stream.plan;
        self.slots[place].get_or_insert_with(|| {
            let operator = Operator::new(Arc::clone(plan));
            Box::new(Slot { operator, bytes: 0, recent: HashMap::new(), recent_bytes: 0 })
        })
    }

    fn pass_time(
        &mut self,
        node: &Node,
        now: i64,
        target: &Target,
        sink: &mut Sink,
        scratch: &mut Scratch,
    ) {
        let (heard, upto) = self.stream.heard_since(self.told, PRODUCERS_PER_TICK);
        self.told = upto;
        let records = heard.into_iter().map(|(id, clock)| Record {
            now,
            producer: Some(Producer {
                id: id.into(),
                epoch: clock.epoch,
                sequence: None,
                time_max: Some(clock.time_max),
            }),
            ..Record::default()
        });
        let records: Vec<Record> = records.collect();
        for slot in self.slots.iter_mut().flatten() {
            for record in &records {
                if !slot.operator.is_waiting() || slot.operator.admit(record, usize::MAX).is_err() {
                    continue;
                }
                let effects = slot.operator.apply(record);
                write_out(&self.stream, slot, &effects, target, sink, scratch);
            }
            if slot.operator.next_tick().is_some_and(|at| at <= now) {
                let effects = slot.operator.apply(&Record::tick(now));
                write_out(&self.stream, slot, &effects, target, sink, scratch);
            }
            slot.count_recent();
            slot.settle(node);
        }
    }

    /// Forgets partitions that another node owns now: from here on it gives their results.
    fn leave_to_owners(&mut self, node: &Node, shard: usize) {
        let shards = node.streams.shard_count();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let partition = (place * shards + shard) as u32;
            if let Some(gone) =
                slot.take_if(|_| matches!(owner(node, &self.stream, partition), Owner::There(_)))
            {
                node.streams.state.changed(gone.bytes, 0);
            }
        }
    }

    /// Brings this shard's part of the stream's gauges up to date.
    fn tell_share(&mut self, shard: usize) {
        let mut share = Share::default();
        let mut watermark: Option<i64> = None;
        for slot in self.slots.iter().flatten() {
            let totals = slot.operator.totals();
            share.state_bytes += slot.bytes as u64;
            share.sensors += slot.operator.sensor_count() as u64;
            share.late_dropped += totals.late_dropped.iter().sum::<u64>();
            share.flushes += totals.flushes;
            if let Some(time) = slot.operator.watermark() {
                watermark = Some(watermark.map_or(time, |least| least.min(time)));
            }
        }
        self.set_share(share);
        self.stream.set_watermark(shard, watermark);
    }

    fn set_share(&mut self, share: Share) {
        let (stream, before) = (&self.stream, self.share);
        stream.moved(|f| &f.state_bytes, before.state_bytes, share.state_bytes);
        stream.moved(|f| &f.sensors, before.sensors, share.sensors);
        stream.moved(|f| &f.late_dropped, before.late_dropped, share.late_dropped);
        stream.moved(|f| &f.flushes, before.flushes, share.flushes);
        self.share = share;
    }

    /// The stream was dropped: gives the memory back.
    fn release(&mut self, node: &Node, shard: usize) {
        for slot in self.slots.iter().flatten() {
            node.streams.state.changed(slot.bytes, 0);
        }
        self.set_share(Share::default());
        self.stream.set_watermark(shard, None);
    }
}

impl Slot {
    fn count_recent(&mut self) {
        let lists = self.recent.iter();
        self.recent_bytes = lists
            .map(|((sensor, _), list)| sensor.len() + 64 + list.capacity() * size_of::<Recent>())
            .sum();
    }

    /// Counts the memory that it keeps now.
    fn settle(&mut self, node: &Node) {
        let bytes = size_of::<Self>() + self.operator.bytes() + self.recent_bytes;
        node.streams.state.changed(self.bytes, bytes);
        self.bytes = bytes;
    }
}

impl Target {
    fn of(node: &Node, stream: &Stream, now_ms: u64, directly: bool) -> Self {
        let table = node.caches.load();
        let cache = |name: &str| table.by_name(name).map(|(_, cache)| Arc::clone(cache));
        let also = stream.plan.definition().latest.is_for_memcached();
        let also = also.then(|| Arc::clone(node.default_cache()));
        Self {
            latest: cache(&stream.latest_cache),
            also,
            windows: cache(&stream.windows_cache),
            now_ms,
            directly,
            followed: stream.is_followed(),
        }
    }
}

fn error_of(refused: &Refused) -> IngestError {
    match refused {
        Refused::TooMuchState { .. } | Refused::TooManyProducers => {
            IngestError::Busy(refused.to_string())
        }
        _ => IngestError::Refused(refused.to_string()),
    }
}

/// Writes what a record led to, and tells followers.
fn write_out(
    stream: &Stream,
    slot: &mut Slot,
    effects: &Effects,
    target: &Target,
    sink: &mut Sink,
    scratch: &mut Scratch,
) {
    let Slot { operator, recent, .. } = slot;
    let Scratch { key, text } = scratch;
    let Target { now_ms, directly, followed, .. } = *target;
    let plan = &stream.plan;
    for latest in &effects.latest {
        text.clear();
        render::number(text, latest.value);
        let sensor = operator.sensor_id(latest.sensor);
        match &target.latest {
            Some(cache) => sink.set(directly, cache, sensor, text.as_bytes(), Ttl::Default, now_ms),
            None => sink.lose(),
        }
        if let Some(cache) = &target.also {
            sink.set(directly, cache, sensor, text.as_bytes(), Ttl::Default, now_ms);
        }
    }
    if effects.is_quiet() {
        return;
    }
    let aggregates = &plan.definition().aggregates;
    let ttl = Ttl::After(plan.definition().retention.millis().unsigned_abs());
    let name_of = |window: u16| plan.window_names().get(usize::from(window)).map_or("", |n| n);
    let tell = |kind, sensor: &[u8], text: &str| {
        let event = LiveEvent { kind, sensor: sensor.into(), text: text.to_owned() };
        let event = Arc::new(event);
        stream.tell(Arc::clone(&event));
        event
    };
    for gone in &effects.retractions {
        let sensor = operator.sensor_id(gone.sensor);
        render::key(key, sensor, name_of(gone.window), gone.start);
        if let Some(cache) = &target.windows {
            sink.delete(directly, cache, key, now_ms);
        }
        if let Some(list) = recent.get_mut(&(Box::from(sensor), gone.window)) {
            list.retain(|one| one.name != gone.start);
        }
    }
    stream.count(|f| &f.results, effects.windows().len() as u64);
    for result in effects.windows() {
        let sensor = operator.sensor_id(result.sensor);
        let window = name_of(result.window);
        let definition = plan.definition().windows.get(usize::from(result.window));
        let is_counted = definition.is_some_and(|window| window.count.is_some());
        let name = if is_counted { result.ordinal as i64 } else { result.start };
        render::key(key, sensor, window, name);
        text.clear();
        render::window(text, &result, aggregates);
        match &target.windows {
            Some(cache) => sink.set(directly, cache, key, text.as_bytes(), ttl, now_ms),
            None => sink.lose(),
        }
        if is_counted || definition.is_some_and(|window| window.session.is_some()) {
            let list = recent.entry((sensor.into(), result.window)).or_default();
            list.retain(|one| one.name != name);
            if list.len() >= RECENT_MAX {
                list.remove(0);
            }
            list.push(Recent { start: result.start, end: result.end, name });
        }
        if followed {
            text.clear();
            render::window_event(text, sensor, window, &result, aggregates);
            tell("window", sensor, text);
        }
    }
    for fit in &effects.fits {
        let sensor = operator.sensor_id(fit.sensor);
        let window = name_of(fit.window);
        text.clear();
        render::fit(text, sensor, window, fit);
        render::key(key, sensor, window, fit.start);
        key.extend_from_slice(format!("/fit-{}", fit.fit).as_bytes());
        match &target.windows {
            Some(cache) => sink.set(directly, cache, key, text.as_bytes(), ttl, now_ms),
            None => sink.lose(),
        }
        if followed {
            tell("fit", sensor, text);
        }
    }
    stream.count(|f| &f.alarms, effects.alarms.len() as u64);
    for alarm in &effects.alarms {
        let sensor = operator.sensor_id(alarm.sensor);
        text.clear();
        render::alarm(text, sensor, plan, alarm);
        stream.keep_alarm(tell("alarm", sensor, text));
    }
    for late in &effects.late_readings {
        let sensor = operator.sensor_id(late.sensor);
        text.clear();
        render::reading(text, sensor, late.time, late.value);
        stream.keep_late(tell("late", sensor, text));
    }
    if effects.flushed {
        tracing::debug!(stream = %stream.name, "all producers are silent: open windows were given out");
    }
}
