//! A thread and the operators it owns: those of every stream's partitions whose number, divided by
//! the number of shards, leaves the shard's own.
//!
//! ```text
//!   alone        admit, apply, write what follows, answer
//!   one of many  own it? (else recover) -> admit -> log -> apply, write what follows -> answer
//! ```
//!
//! One after the other, in the order of the queue; where a log is written, all batches that wait are
//! written together, each partition's as one entry. So no operator needs a lock, and what is written
//! of a sensor keeps the order of its readings. Between jobs, every [`TICK`]: partitions are told how
//! far the producers of the whole stream are, so that windows close in partitions that get few
//! readings; silence is noted; writes that failed are tried again; partitions that came to this node
//! are looked at.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use kiln_stream::{
    effects::Outcome,
    operator::Refused,
    reading::{Batch, Part},
    record::{Producer, Record, SourceOffset},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{self, MissedTickBehavior},
};

use super::{
    QUEUE_LEN_MAX, Stream,
    commit::Work,
    emit::{Scratch, Target, apply},
    forward::{Owner, owner},
    ingest::{IngestError, Receipt, refuse_all},
    parts::{Parts, Recent, Slot},
    sink::Sink,
};
use crate::{caches::Cache, node::Node};

/// How often time passes without readings.
const TICK: Duration = Duration::from_millis(100);
/// Batches that are written to logs together.
const GROUP_JOBS_MAX: usize = 64;
/// Readings of them.
const GROUP_READINGS_MAX: usize = 4 * Batch::LEN_MAX;
/// Partitions that are looked at in one tick.
const LOOKS_PER_TICK: usize = 512;

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
    /// How far sources were read.
    #[cfg(feature = "kafka")]
    Offsets {
        partition: u32,
        stream: Arc<Stream>,
        sources: [String; 2],
        reply: oneshot::Sender<Option<[Option<i64>; 2]>>,
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
    pub(super) parts: Vec<(u32, Part)>,
    /// How far sources were read, which is noted in each of the partitions.
    pub(super) offsets: Vec<SourceOffset>,
    pub(super) reply: oneshot::Sender<Receipt>,
    /// Room on the way, given back when the job is done.
    pub(super) _room: Arc<OwnedSemaphorePermit>,
}

/// The thread's state.
pub(super) struct Shard {
    pub(super) node: Arc<Node>,
    index: usize,
    pub(super) streams: HashMap<u64, Parts>,
    pub(super) sink: Sink,
    pub(super) scratch: Scratch,
    /// The table of the cluster that was looked at last.
    followed: Option<kiln_cluster::ids::Epoch>,
    /// Jobs taken from the queue and not begun.
    taken: VecDeque<Job>,
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
            taken: VecDeque::new(),
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
                    Some(job) => self.run_jobs(job, &mut inbox).await,
                    None => break,
                },
                _ = stop.changed() => {
                    inbox.close();
                    while let Some(job) = inbox.recv().await {
                        self.run_jobs(job, &mut inbox).await;
                    }
                    break;
                }
            }
        }
        self.sink.flush().await;
    }

    /// Whether other jobs wait.
    pub(super) fn more_come(&self) -> bool {
        !self.taken.is_empty() || self.node.streams.shards[self.index].capacity() < QUEUE_LEN_MAX
    }

    /// Runs a job, and with it those that wait and can be written to logs together.
    async fn run_jobs(&mut self, first: Job, inbox: &mut mpsc::Receiver<Job>) {
        self.taken.push_back(first);
        while let Some(job) = self.taken.pop_front() {
            match job {
                Job::Apply(apply) => self.run_apply(apply, inbox).await,
                Job::Latest { partition, stream, sensor, reply } => {
                    let slot = self.found(&stream, partition).await;
                    let _ = reply.send(slot.and_then(|slot| slot.operator.latest(&sensor)));
                }
                #[cfg(feature = "kafka")]
                Job::Offsets { partition, stream, sources, reply } => {
                    let slot = self.found(&stream, partition).await;
                    let offset = |source: &String| slot.as_ref()?.operator.offset(source);
                    let offsets = sources.each_ref().map(offset);
                    let _ = reply.send(slot.is_some().then_some(offsets));
                }
                Job::Recent { partition, stream, sensor, window, reply } => {
                    let slot = self.found(&stream, partition).await;
                    let found = slot.and_then(|slot| slot.recent.get(&(sensor, window)).cloned());
                    let _ = reply.send(found.unwrap_or_default());
                }
            }
        }
    }

    async fn run_apply(&mut self, mut first: Apply, inbox: &mut mpsc::Receiver<Job>) {
        if !self.sink.has_room() {
            let text = "results cannot be written to their caches fast enough".to_owned();
            let receipt = refuse_all(&first.stream, first.parts, IngestError::Busy(text));
            // Whoever asked may have left.
            let _ = first.reply.send(receipt);
            return;
        }
        let Some(cache) = self.log_of(&first.stream) else {
            let Apply { stream, producer, parts, offsets, .. } = &mut first;
            let parts = std::mem::take(parts);
            let receipt = self.apply_alone(stream, producer, parts, offsets).await;
            let _ = first.reply.send(receipt);
            return;
        };
        let stream = Arc::clone(&first.stream);
        let readings = |job: &Apply| job.parts.iter().map(|(_, part)| part.len()).sum::<usize>();
        let mut count = readings(&first);
        let mut jobs = vec![first];
        while jobs.len() < GROUP_JOBS_MAX && count < GROUP_READINGS_MAX {
            match inbox.try_recv() {
                Ok(Job::Apply(job)) if job.stream.id == stream.id => {
                    count += readings(&job);
                    jobs.push(job);
                }
                Ok(other) => {
                    self.taken.push_back(other);
                    break;
                }
                Err(_) => break,
            }
        }
        self.apply_logged(&stream, &cache, jobs).await;
    }

    /// The cache of the changelogs, if records of a stream have to be written there first. From then
    /// on it stays so.
    fn log_of(&self, stream: &Stream) -> Option<Arc<Cache>> {
        if !self.node.streams.company.is_expected() {
            return None;
        }
        self.state_cache(stream)
    }

    fn state_cache(&self, stream: &Stream) -> Option<Arc<Cache>> {
        self.node.cluster.get()?;
        let table = self.node.caches.load();
        table.by_name(&stream.state_cache).map(|(_, cache)| Arc::clone(cache))
    }

    pub(super) fn place_of(&self, partition: u32) -> usize {
        partition as usize / self.node.streams.shard_count()
    }

    pub(super) fn slot_of(&mut self, stream: &Stream, partition: u32) -> Option<&mut Slot> {
        let place = self.place_of(partition);
        self.streams.get_mut(&stream.id)?.slot(place)
    }

    /// The slot of a partition, looked for in its changelog if this node owns it.
    async fn found(&mut self, stream: &Arc<Stream>, partition: u32) -> Option<&mut Slot> {
        if let Some(cache) = self.log_of(stream) {
            self.ensure(stream, &cache, &[partition], false).await;
        }
        self.slot_of(stream, partition)
    }

    /// On a node that is alone: nothing is written before.
    async fn apply_alone(
        &mut self,
        stream: &Arc<Stream>,
        producer: &Arc<Producer>,
        parts: Vec<(u32, Part)>,
        offsets: &[SourceOffset],
    ) -> Receipt {
        let node = Arc::clone(&self.node);
        let volatile = self.state_cache(stream).is_some();
        if volatile && !node.streams.company.enter_alone() {
            // Another node came just now; whoever sends this again finds the log.
            let text = "another node is joining".to_owned();
            return refuse_all(stream, parts, IngestError::Busy(text));
        }
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
                let slot = known.slot_alone(&node, partition as usize / shards, volatile);
                let record = Record {
                    now: now_ms as i64,
                    producer: Some(Arc::clone(producer)),
                    offsets: offsets.to_vec(),
                    batch,
                };
                if let Err(refused) = slot.operator.admit(&record, node.streams.state.left()) {
                    receipt.refused = Some(error_of(&refused));
                    left.push((partition, record.batch));
                    continue;
                }
                let (sink, scratch) = (&mut self.sink, &mut self.scratch);
                receipt.add_effects(apply(stream, slot, &record, &target, sink, scratch), &record);
                slot.settle(&node);
            }
        }
        self.sink.flush().await;
        if volatile {
            node.streams.company.done(1);
        }
        count(stream, &receipt);
        let readings = left.iter().map(|(_, part)| part.len() as u64).sum();
        stream.count(|f| &f.refused, readings);
        receipt.left = left;
        receipt
    }

    /// On one node of several: every partition's records are an entry of its log before they count.
    async fn apply_logged(&mut self, stream: &Arc<Stream>, cache: &Arc<Cache>, jobs: Vec<Apply>) {
        let node = Arc::clone(&self.node);
        let now_ms = node.clock.now_ms();
        let mut parts = Vec::with_capacity(jobs.iter().map(|job| job.parts.len()).sum());
        let mut replies = Vec::with_capacity(jobs.len());
        for (number, job) in jobs.into_iter().enumerate() {
            let of_job = job.parts.into_iter();
            parts.extend(of_job.map(|(partition, part)| (partition, number, part)));
            replies.push((job.reply, job.producer, job.offsets, job._room));
        }
        // Those of a partition stay in the order in which they came.
        parts.sort_by_key(|(partition, ..)| *partition);
        let mut receipts: Vec<Receipt> = replies.iter().map(|_| Receipt::default()).collect();
        let mut wanted: Vec<u32> = parts.iter().map(|(partition, ..)| *partition).collect();
        wanted.dedup();
        self.ensure(stream, cache, &wanted, true).await;
        let mut works = Vec::with_capacity(wanted.len());
        let mut room = node.streams.state.left();
        let mut parts = parts.into_iter().peekable();
        for partition in wanted.iter().copied() {
            let of_partition = |part: &(u32, usize, Part)| part.0 == partition;
            let mut records = Vec::with_capacity(replies.len());
            while let Some((_, number, batch)) = parts.next_if(of_partition) {
                let producer = &replies[number].1;
                let Some(slot) = self.slot_of(stream, partition) else {
                    receipts[number].leave(partition, batch, not_mine());
                    continue;
                };
                let readings = batch.len() as u64;
                let outcome = slot.operator.judge(producer, readings);
                if outcome != Outcome::Applied {
                    receipts[number].count(outcome, readings);
                    continue;
                }
                let record = Record {
                    now: now_ms as i64,
                    producer: Some(Arc::clone(producer)),
                    offsets: replies[number].2.clone(),
                    batch,
                };
                if let Err(refused) = slot.operator.admit(&record, room) {
                    receipts[number].leave(partition, record.batch, error_of(&refused));
                    continue;
                }
                room = room.saturating_sub(slot.operator.growth_max(record.batch.len()));
                records.push((number, record));
            }
            if !records.is_empty() {
                works.push(Work::new(partition, records));
            }
        }
        self.commit(stream, cache, works, &mut receipts).await;
        for ((reply, ..), receipt) in replies.into_iter().zip(receipts) {
            count(stream, &receipt);
            let readings = receipt.left.iter().map(|(_, part)| part.len() as u64).sum();
            stream.count(|f| &f.refused, readings);
            // Whoever asked may have left.
            let _ = reply.send(receipt);
        }
        self.shorten(stream, cache, &wanted).await;
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
                    parts.behind = true;
                    let gone = parts.leave_to_owners(&node, self.index);
                    self.sink.forget(parts.stream.id, &gone);
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
        let streams: Vec<Arc<Stream>> = table.values().cloned().collect();
        for stream in &streams {
            if let Some(cache) = self.log_of(stream) {
                self.tick_logged(stream, &cache).await;
            }
        }
        let now_ms = node.clock.now_ms();
        let kept = node.caches.load_full();
        for parts in self.streams.values_mut() {
            let alone = parts.slots.iter().flatten().any(|slot| slot.log.is_none());
            // Streams that an earlier version made have no changelogs.
            let volatile = kept.by_name(&parts.stream.state_cache).is_some();
            if alone && (!volatile || node.streams.company.enter_alone()) {
                let inside = node.cluster.get().map(|cluster| cluster.gate().enter_as_guest());
                let directly = inside.as_ref().is_none_or(Option::is_some);
                let target = Target::of(&node, &parts.stream, now_ms, directly);
                parts.pass_time(now_ms as i64, &target, &mut self.sink, &mut self.scratch);
                if volatile {
                    node.streams.company.done(1);
                }
            }
            parts.settle(&node);
            parts.tell_share(index);
        }
        let more_come = self.more_come();
        self.sink.flush_while(more_come).await;
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

    async fn tick_logged(&mut self, stream: &Arc<Stream>, cache: &Arc<Cache>) {
        let node = Arc::clone(&self.node);
        let (shard, shards) = (self.index, node.streams.shard_count());
        let parts = self.streams.entry(stream.id).or_insert_with(|| Parts::new(stream));
        // Not kept yet, or this node's and not looked at.
        let slots = (shard as u32..node.streams.partitions(&node)).step_by(shards);
        let mut wanted = Vec::new();
        let is_behind = std::mem::take(&mut parts.behind);
        for partition in slots {
            let slot = parts.slot(partition as usize / shards).map(|slot| slot.log.is_some());
            let missing = || match owner(&node, stream, partition) {
                Owner::Here(term) => parts_lack(&parts.vacant, partition, term),
                _ => false,
            };
            if slot == Some(false) || (slot.is_none() && is_behind && missing()) {
                wanted.push(partition);
            }
        }
        // Those that could not be read now are tried again, too.
        parts.behind = is_behind && !wanted.is_empty();
        wanted.truncate(LOOKS_PER_TICK);
        if !wanted.is_empty() {
            self.ensure(stream, cache, &wanted, false).await;
        }
        let now = node.clock.now_ms() as i64;
        let Some(parts) = self.streams.get_mut(&stream.id) else { return };
        let due = parts.due(shard, shards, now);
        if due.is_empty() {
            return;
        }
        let works = due.into_iter().map(|(partition, records)| {
            let records = records.into_iter().map(|record| (usize::MAX, record)).collect();
            Work::new(partition, records)
        });
        let works: Vec<_> = works.collect();
        let touched: Vec<u32> = works.iter().map(|work| work.partition).collect();
        self.commit(stream, cache, works, &mut []).await;
        self.shorten(stream, cache, &touched).await;
    }
}

fn parts_lack(
    vacant: &HashMap<u32, kiln_cluster::ids::Term>,
    partition: u32,
    term: kiln_cluster::ids::Term,
) -> bool {
    vacant.get(&partition) != Some(&term)
}

/// Why a partition's readings were not taken in here.
pub(super) fn not_mine() -> IngestError {
    IngestError::Busy("the owner of some sensors is just changing".to_owned())
}

fn count(stream: &Stream, receipt: &Receipt) {
    stream.count(|f| &f.accepted, receipt.accepted);
    stream.count(|f| &f.duplicates, receipt.duplicate);
    stream.count(|f| &f.late, receipt.late);
    stream.count(|f| &f.stale, receipt.stale);
}

fn error_of(refused: &Refused) -> IngestError {
    match refused {
        Refused::TooMuchState { .. } | Refused::TooManyProducers => {
            IngestError::Busy(refused.to_string())
        }
        _ => IngestError::Refused(refused.to_string()),
    }
}
