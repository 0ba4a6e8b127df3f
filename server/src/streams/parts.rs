//! The partitions of one stream on one shard.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiln_cluster::ids::Term;
use kiln_engine::Store;
use kiln_stream::{
    changelog::{Changelog, Recovered, unpack},
    operator::Operator,
    record::{Producer, Record},
};

use super::{
    Stream,
    emit::{Scratch, Target, apply},
    forward::{Owner, owner},
    sink::Sink,
    stream::ProducerClock,
};
use crate::node::Node;

/// Producers whose time is passed on in one tick, per stream; the others follow in the next.
const PRODUCERS_PER_TICK: usize = 64;
/// Producers of other partitions that a shard keeps in mind, per stream.
const HEARD_MAX: usize = 1_024;

/// Where a result of a count or session window is.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Recent {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// What stands in the key: the number of a count window, else the start.
    pub(crate) name: i64,
}

/// The partitions of one stream.
pub(super) struct Parts {
    pub(super) stream: Arc<Stream>,
    /// By partition, divided by the number of shards.
    pub(super) slots: Vec<Option<Box<Slot>>>,
    /// Partitions that had no items in a term, and were not begun.
    pub(super) vacant: HashMap<u32, Term>,
    /// There may be partitions of this node that were not looked at yet.
    pub(super) behind: bool,
    /// Producers heard lately, and when.
    heard: BTreeMap<Box<str>, (ProducerClock, i64)>,
    /// Up to where the times of producers were passed on.
    told: u64,
    /// What this shard last said of its share.
    share: Share,
    pub(super) unwritten_told: bool,
}

/// This shard's part of a stream's gauges.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    state_bytes: u64,
    sensors: u64,
    late_dropped: u64,
    flushes: u64,
}

/// The state of a partition.
pub(super) struct Slot {
    pub(super) operator: Operator,
    bytes: usize,
    pub(super) recent: HashMap<(Box<[u8]>, u16), Vec<Recent>>,
    /// What `recent` keeps, as counted at the last tick.
    recent_bytes: usize,
    /// Where its records are written before they are applied; `None` on a node that is alone.
    pub(super) log: Option<Log>,
    /// When it last heard of producers of other partitions.
    told_at: i64,
    /// It is counted among those that another node would not find.
    volatile: bool,
}

/// The changelog of a partition that is this node's.
pub(super) struct Log {
    pub(super) term: Term,
    pub(super) changelog: Changelog,
    /// Entries that were found: number and hash.
    found: Vec<(u64, u64)>,
}

impl Parts {
    pub(super) fn new(stream: &Arc<Stream>) -> Self {
        Self {
            stream: Arc::clone(stream),
            slots: Vec::new(),
            vacant: HashMap::new(),
            behind: true,
            heard: BTreeMap::new(),
            told: 0,
            share: Share::default(),
            unwritten_told: false,
        }
    }

    pub(super) fn slot(&mut self, place: usize) -> Option<&mut Slot> {
        self.slots.get_mut(place)?.as_deref_mut()
    }

    fn put(&mut self, place: usize, slot: Slot) -> &mut Slot {
        if place >= self.slots.len() {
            self.slots.resize_with(place + 1, || None);
        }
        self.slots[place].insert(Box::new(slot))
    }

    /// The slot of a node that is alone: made when it is first met.
    pub(super) fn slot_alone(&mut self, node: &Node, place: usize, volatile: bool) -> &mut Slot {
        if place >= self.slots.len() {
            self.slots.resize_with(place + 1, || None);
        }
        self.slots[place].get_or_insert_with(|| {
            let mut slot = Slot::new(Operator::new(Arc::clone(&self.stream.plan)), None);
            if volatile {
                slot.volatile = true;
                node.streams.company.add(1);
            }
            Box::new(slot)
        })
    }

    /// A partition without items begins. From here on it may have some.
    pub(super) fn begin(&mut self, partition: u32, place: usize, term: Term) {
        self.vacant.remove(&partition);
        let operator = Operator::new(Arc::clone(&self.stream.plan));
        let log = Log { term, changelog: Changelog::vacant(), found: Vec::new() };
        self.put(place, Slot::new(operator, Some(log)));
    }

    /// A partition goes on as its items tell. What its former owner may not have come to write, is
    /// written again.
    pub(super) fn go_on(
        &mut self,
        place: usize,
        term: Term,
        recovered: Recovered,
        target: &Target,
        sink: &mut Sink,
        scratch: &mut Scratch,
    ) {
        let Recovered { changelog, state, entries, damaged, .. } = recovered;
        let stream = Arc::clone(&self.stream);
        let plan = || Arc::clone(&stream.plan);
        let restored = state.as_deref().map(|state| Slot::restore(plan(), state));
        let (mut slot, mut lost) = match restored {
            None => (Slot::new(Operator::new(plan()), None), damaged),
            Some(Ok(slot)) => (slot, damaged),
            Some(Err(reason)) => {
                tracing::error!(stream = %stream.name, %reason, "a partition's state is lost");
                (Slot::new(Operator::new(plan()), None), true)
            }
        };
        let mut found = Vec::with_capacity(entries.len());
        for (number, payload) in entries {
            found.push((number, Store::hash(&payload)));
            let Some(records) = unpack(&payload) else {
                tracing::error!(stream = %stream.name, "an entry of a partition's log is lost");
                lost = true;
                continue;
            };
            for record in records {
                apply(&stream, &mut slot, &record, target, sink, scratch);
            }
        }
        stream.count(|f| &f.recoveries, 1);
        stream.count(|f| &f.states_lost, u64::from(lost));
        slot.log = Some(Log { term, changelog, found });
        self.put(place, slot);
    }

    /// Notes which producers were heard since the last tick.
    fn listen(&mut self) -> Vec<(Box<str>, ProducerClock)> {
        let (heard, upto) = self.stream.heard_since(self.told, PRODUCERS_PER_TICK);
        self.told = upto;
        heard
    }

    /// Partitions with a changelog that should have a record without readings, and what it is. A
    /// producer heard elsewhere is told of when a window closes by that, and else often enough that
    /// it is not taken for silent.
    pub(super) fn due(&mut self, shard: usize, shards: usize, now: i64) -> Vec<(u32, Vec<Record>)> {
        let idle_timeout = self.stream.plan.definition().idle_timeout.millis();
        for (id, clock) in self.listen() {
            self.heard.insert(id, (clock, now));
        }
        self.heard.retain(|_, (_, at)| at.saturating_add(idle_timeout) > now);
        while self.heard.len() > HEARD_MAX {
            let stillest = self.heard.iter().min_by_key(|(_, (_, at))| *at);
            let Some(id) = stillest.map(|(id, _)| id.clone()) else { break };
            self.heard.remove(&id);
        }
        let times: BTreeMap<&str, i64> =
            self.heard.iter().map(|(id, (clock, _))| (&**id, clock.time_max)).collect();
        let latest = self.heard.values().map(|(_, at)| *at).max();
        let mut due = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot.as_deref_mut().filter(|slot| slot.log.is_some()) else {
                continue;
            };
            let stale = slot.operator.is_waiting()
                && latest.is_some_and(|at| at > slot.told_at)
                && now.saturating_sub(slot.told_at) >= idle_timeout / 4;
            let needs = slot.operator.needs_record(now, &times);
            if !needs && !stale {
                continue;
            }
            let fresh = self.heard.iter().filter(|(_, (_, at))| *at > slot.told_at);
            let mut records: Vec<Record> =
                fresh.map(|(id, (clock, _))| told_of(id, clock, now)).collect();
            records.retain(|record| slot.operator.admit(record, usize::MAX).is_ok());
            if needs
                && (records.is_empty() || slot.operator.next_tick().is_some_and(|at| at <= now))
            {
                records.push(Record::tick(now));
            }
            slot.told_at = now;
            if !records.is_empty() {
                due.push(((place * shards + shard) as u32, records));
            }
        }
        due
    }

    /// Time passes for partitions without a changelog.
    pub(super) fn pass_time(
        &mut self,
        now: i64,
        target: &Target,
        sink: &mut Sink,
        scratch: &mut Scratch,
    ) {
        let heard = self.listen();
        let records: Vec<Record> =
            heard.iter().map(|(id, clock)| told_of(id, clock, now)).collect();
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.log.is_none()) {
            for record in &records {
                if !slot.operator.is_waiting() || slot.operator.admit(record, usize::MAX).is_err() {
                    continue;
                }
                apply(&self.stream, slot, record, target, sink, scratch);
            }
            if slot.operator.next_tick().is_some_and(|at| at <= now) {
                apply(&self.stream, slot, &Record::tick(now), target, sink, scratch);
            }
        }
    }

    /// Counts the memory of all partitions.
    pub(super) fn settle(&mut self, node: &Node) {
        for slot in self.slots.iter_mut().flatten() {
            slot.count_recent();
            slot.settle(node);
        }
    }

    /// Forgets partitions that another node owns now: from here on it gives their results. Returns
    /// which.
    pub(super) fn leave_to_owners(&mut self, node: &Node, shard: usize) -> Vec<u32> {
        let shards = node.streams.shard_count();
        let stream = Arc::clone(&self.stream);
        let mut gone = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let partition = (place * shards + shard) as u32;
            let stays = |slot: &mut Box<Slot>| match owner(node, &stream, partition) {
                Owner::Here(term) => slot.log.as_ref().is_none_or(|log| log.term == term),
                Owner::There(_) => false,
                // Nobody else can have gone on with what is only here.
                Owner::Nobody => slot.log.is_none(),
            };
            if let Some(slot) = slot.take_if(|slot| !stays(slot)) {
                slot.leave(node, &stream);
                gone.push(partition);
            }
        }
        gone
    }

    /// Forgets the state of one partition.
    pub(super) fn forget(&mut self, node: &Node, place: usize) {
        if let Some(slot) = self.slots.get_mut(place).and_then(Option::take) {
            slot.leave(node, &self.stream);
        }
    }

    /// Brings this shard's part of the stream's gauges up to date.
    pub(super) fn tell_share(&mut self, shard: usize) {
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
    pub(super) fn release(&mut self, node: &Node, shard: usize) {
        for mut slot in self.slots.drain(..).flatten() {
            slot.is_kept(node);
            node.streams.state.changed(slot.bytes, 0);
        }
        self.set_share(Share::default());
        self.stream.set_watermark(shard, None);
    }
}

impl Slot {
    fn new(operator: Operator, log: Option<Log>) -> Self {
        Self {
            operator,
            bytes: 0,
            recent: HashMap::new(),
            recent_bytes: 0,
            log,
            told_at: i64::MIN,
            volatile: false,
        }
    }

    /// The state as a snapshot: where results are, with its length before it, and the operator.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut recent: Vec<_> =
            self.recent.iter().map(|((id, at), list)| (id, at, list)).collect();
        recent.sort_unstable_by_key(|(id, at, _)| (*id, *at));
        let mut bytes = vec![0; 4];
        // Plain data into memory: it cannot fail; an empty list would only hide older results.
        if rmp_serde::encode::write(&mut bytes, &recent).is_err() {
            bytes.truncate(4);
        }
        let len = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&self.operator.snapshot());
        bytes
    }

    fn restore(plan: Arc<kiln_stream::plan::Plan>, bytes: &[u8]) -> Result<Self, String> {
        let parts = bytes
            .split_first_chunk::<4>()
            .and_then(|(len, rest)| rest.split_at_checked(u32::from_le_bytes(*len) as usize));
        let (recent, operator) = parts.ok_or("the snapshot is cut")?;
        let operator = Operator::restore(plan, operator).map_err(|error| error.to_string())?;
        let recent: Vec<(Vec<u8>, u16, Vec<Recent>)> =
            rmp_serde::from_slice(recent).unwrap_or_default();
        let mut slot = Self::new(operator, None);
        let recent = recent.into_iter().map(|(id, at, list)| ((id.into(), at), list));
        slot.recent = recent.collect();
        slot.count_recent();
        Ok(slot)
    }

    /// Its state is where another node finds it.
    pub(super) fn kept(&mut self, node: &Node, term: Term, changelog: Changelog) {
        self.log = Some(Log { term, changelog, found: Vec::new() });
        self.is_kept(node);
    }

    fn is_kept(&mut self, node: &Node) {
        if std::mem::take(&mut self.volatile) {
            node.streams.company.done(1);
        }
    }

    fn leave(mut self: Box<Self>, node: &Node, stream: &Stream) {
        if self.log.is_none() {
            tracing::error!(stream = %stream.name, "a partition moved before its state was kept");
            stream.count(|f| &f.states_lost, 1);
        }
        self.is_kept(node);
        node.streams.state.changed(self.bytes, 0);
    }

    fn count_recent(&mut self) {
        let lists = self.recent.iter();
        self.recent_bytes = lists
            .map(|((sensor, _), list)| sensor.len() + 64 + list.capacity() * size_of::<Recent>())
            .sum();
    }

    /// Counts the memory that it keeps now.
    pub(super) fn settle(&mut self, node: &Node) {
        let log = self.log.as_ref().map_or(0, |log| log.changelog.bytes());
        let bytes = size_of::<Self>() + self.operator.bytes() + self.recent_bytes + log;
        node.streams.state.changed(self.bytes, bytes);
        self.bytes = bytes;
    }
}

impl Log {
    /// Whether an entry is among those that were found.
    pub(super) fn has(&self, number: u64, hash: u64) -> bool {
        self.found.contains(&(number, hash))
    }
}

fn told_of(id: &str, clock: &ProducerClock, now: i64) -> Record {
    let producer = Producer {
        id: id.to_owned(),
        epoch: clock.epoch,
        sequence: None,
        time_max: Some(clock.time_max),
    };
    Record { now, producer: Some(Arc::new(producer)), ..Record::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else an owner whose first entry comes too late, since a former owner's was on its way, would
    /// begin again with nothing each time, and find the log to be another's each time.
    #[test]
    fn a_partition_that_was_begun_is_no_longer_held_for_empty() {
        let plan = Stream::plan_of("{}").unwrap();
        let mut parts = Parts::new(&Arc::new(Stream::new(1, "plant", "{}", plan)));
        parts.vacant.insert(7, Term(3));
        parts.begin(7, 7, Term(3));
        assert!(parts.slot(7).is_some());
        assert_eq!(parts.vacant.get(&7), None);
    }
}
