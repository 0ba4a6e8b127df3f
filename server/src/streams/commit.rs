//! A shard on one node of several: partitions are found in their changelogs, and every record is in
//! one before it counts.

use std::{sync::Arc, time::Instant};

use kiln_cluster::ids::Term;
use kiln_engine::Store;
use kiln_stream::{
    changelog::{Changelog, pack},
    record::Record,
};

use super::{
    Stream,
    emit::{Target, apply},
    forward::{Owner, owner},
    ingest::{IngestError, Receipt},
    items::{Ask, Request, carry_out},
    journal::{Appended, Entry, Snapshot, append, publish, recover},
    parts::Parts,
    shard::{Shard, not_mine},
};
use crate::caches::Cache;

/// How often records are tried again after another wrote to the changelog.
const ATTEMPTS_MAX: usize = 3;
/// Partitions that are recovered at once: bounds what is in memory of them beside the operators.
const RECOVER_AT_ONCE: usize = 128;
/// Bytes of snapshots on their way at once, about.
const SNAPSHOTS_BYTES_MAX: usize = 8 << 20;

/// Records of a partition, each with the place of the receipt that it is told in.
pub(super) struct Work {
    pub(super) partition: u32,
    records: Vec<(usize, Record)>,
    /// Number and hash of the entry that may have been written.
    tried: Option<(u64, u64)>,
}

impl Work {
    pub(super) fn new(partition: u32, records: Vec<(usize, Record)>) -> Self {
        Self { partition, records, tried: None }
    }

    /// None of it was taken in.
    fn leave(self, receipts: &mut [Receipt], why: &IngestError) {
        for (number, record) in self.records {
            if let Some(receipt) = receipts.get_mut(number) {
                receipt.leave(self.partition, record.batch, why.clone());
            }
        }
    }
}

impl Shard {
    /// Finds the state of partitions that this node owns and that are not here as of the term of
    /// now. Afterwards there is a slot where that was possible; for one without items only with
    /// `begin`.
    pub(super) async fn ensure(
        &mut self,
        stream: &Arc<Stream>,
        cache: &Arc<Cache>,
        wanted: &[u32],
        begin: bool,
    ) {
        let node = Arc::clone(&self.node);
        let (mut missing, mut alone) = (Vec::new(), Vec::new());
        let shards = node.streams.shard_count();
        let known = self.streams.entry(stream.id).or_insert_with(|| Parts::new(stream));
        for &partition in wanted {
            let place = partition as usize / shards;
            let term = match owner(&node, stream, partition) {
                Owner::Here(term) => term,
                Owner::There(_) => {
                    known.forget(&node, place);
                    self.sink.forget(stream.id, &[partition]);
                    continue;
                }
                Owner::Nobody => continue,
            };
            match known.slot(place).map(|slot| slot.log.as_ref().map(|log| log.term)) {
                Some(Some(of)) if of == term => continue,
                Some(None) => {
                    alone.push((partition, term));
                    continue;
                }
                Some(Some(_)) => known.forget(&node, place),
                None => {}
            }
            match known.vacant.get(&partition) {
                Some(of) if *of == term => {
                    if begin {
                        known.begin(partition, place, term);
                    }
                }
                _ => missing.push((partition, term)),
            }
        }
        self.keep(stream, cache, alone).await;
        for lot in missing.chunks(RECOVER_AT_ONCE) {
            self.recover(stream, cache, lot, begin).await;
        }
    }

    async fn recover(
        &mut self,
        stream: &Arc<Stream>,
        cache: &Arc<Cache>,
        lot: &[(u32, Term)],
        begin: bool,
    ) {
        let node = Arc::clone(&self.node);
        let began = Instant::now();
        let partitions: Vec<u32> = lot.iter().map(|(partition, _)| *partition).collect();
        let found = recover(&node, cache, &partitions).await;
        let shards = node.streams.shard_count();
        let (mut garbage, mut damaged) = (Vec::new(), Vec::new());
        let mut count = 0;
        {
            let inside = node.cluster.get().map(|cluster| cluster.gate().enter_as_guest());
            let directly = inside.as_ref().is_none_or(Option::is_some);
            let now_ms = node.clock.now_ms();
            let mut target = Target::of(&node, stream, now_ms, directly);
            target.again = true;
            let Some(known) = self.streams.get_mut(&stream.id) else { return };
            for (&(partition, term), recovered) in lot.iter().zip(found) {
                let place = partition as usize / shards;
                let Some(recovered) = recovered else {
                    known.behind = true;
                    continue;
                };
                if recovered.is_vacant() {
                    if begin {
                        known.begin(partition, place, term);
                    } else {
                        known.vacant.insert(partition, term);
                    }
                    continue;
                }
                count += 1;
                known.vacant.remove(&partition);
                let names = recovered.garbage.iter();
                garbage.extend(names.map(|name| Request {
                    partition,
                    name: *name,
                    ask: Ask::Delete,
                }));
                if recovered.damaged {
                    damaged.push(partition);
                }
                self.sink.now_of(stream.id, partition);
                let (sink, scratch) = (&mut self.sink, &mut self.scratch);
                known.go_on(place, term, recovered, &target, sink, scratch);
                if let Some(slot) = known.slot(place) {
                    slot.settle(&node);
                }
            }
        }
        self.sink.flush().await;
        if !garbage.is_empty() {
            carry_out(&node, cache, garbage).await;
        }
        if count > 0 {
            let took_ms = began.elapsed().as_millis() as u64;
            stream.count(|f| &f.recovery_ms, took_ms);
            tracing::info!(
                stream = %stream.name, partitions = count, took_ms,
                "the state of partitions was found in their logs"
            );
        }
        if !damaged.is_empty() {
            tracing::error!(
                stream = %stream.name, partitions = ?damaged,
                "logs of partitions were damaged or incomplete: readings are lost"
            );
            self.snapshot(stream, cache, &damaged, true).await;
        }
    }

    /// Writes down the state of partitions that was only here.
    async fn keep(&mut self, stream: &Arc<Stream>, cache: &Arc<Cache>, alone: Vec<(u32, Term)>) {
        if alone.is_empty() || self.sink.unwritten() > 0 {
            return;
        }
        let node = Arc::clone(&self.node);
        let mut rest = alone.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut lot, mut bytes) = (Vec::new(), 0);
            let mut terms = Vec::new();
            while let Some((partition, term)) = rest.next_if(|_| bytes < SNAPSHOTS_BYTES_MAX) {
                let Some(slot) = self.slot_of(stream, partition) else { continue };
                let state = slot.save();
                bytes += state.len();
                terms.push(term);
                lot.push(Snapshot { partition, log: Changelog::vacant(), state });
            }
            for ((snapshot, outcome), term) in
                publish(&node, cache, lot).await.into_iter().zip(terms)
            {
                let place = self.place_of(snapshot.partition);
                let Some(known) = self.streams.get_mut(&stream.id) else { return };
                match outcome {
                    Appended::Done => {
                        stream.count(|f| &f.snapshots, 1);
                        if let Some(slot) = known.slot(place) {
                            slot.kept(&node, term, snapshot.log);
                        }
                    }
                    // Another node went on with it from nothing.
                    Appended::Torn => known.forget(&node, place),
                    _ => {}
                }
            }
        }
    }

    /// Writes records to the logs of their partitions, applies them and writes what follows.
    pub(super) async fn commit(
        &mut self,
        stream: &Arc<Stream>,
        cache: &Arc<Cache>,
        mut works: Vec<Work>,
        receipts: &mut [Receipt],
    ) {
        let node = Arc::clone(&self.node);
        for attempt in 0..ATTEMPTS_MAX {
            if works.is_empty() {
                break;
            }
            if attempt > 0 {
                let wanted: Vec<u32> = works.iter().map(|work| work.partition).collect();
                self.ensure(stream, cache, &wanted, true).await;
            }
            let (mut entries, mut waiting) = (Vec::new(), Vec::new());
            for work in works.drain(..) {
                let partition = work.partition;
                let log = self.slot_of(stream, partition).and_then(|slot| slot.log.as_mut());
                let Some(log) = log else {
                    work.leave(receipts, &not_mine());
                    continue;
                };
                if work.tried.is_some_and(|(number, hash)| log.has(number, hash)) {
                    // It was written after all, and applied when it was found.
                    for (number, record) in &work.records {
                        if let Some(receipt) = receipts.get_mut(*number) {
                            receipt.accepted += record.batch.len() as u64;
                        }
                    }
                    continue;
                }
                let records: Vec<&Record> = work.records.iter().map(|(_, record)| record).collect();
                let payload = pack(&records);
                let log = std::mem::replace(&mut log.changelog, Changelog::nothing());
                waiting.push((work, log.next()));
                entries.push(Entry { partition, log, payload });
            }
            let done = append(&node, cache, entries).await;
            let inside = node.cluster.get().map(|cluster| cluster.gate().enter_as_guest());
            let directly = inside.as_ref().is_none_or(Option::is_some);
            let target = Target::of(&node, stream, node.clock.now_ms(), directly);
            let (mut records_written, mut bytes_written) = (0, 0);
            for ((entry, outcome), (mut work, number)) in done.into_iter().zip(waiting) {
                let place = self.place_of(work.partition);
                let known = self.streams.entry(stream.id).or_insert_with(|| Parts::new(stream));
                let Some(slot) = known.slot(place) else {
                    work.leave(receipts, &not_mine());
                    continue;
                };
                if let Some(log) = &mut slot.log {
                    log.changelog = entry.log;
                }
                let why = match outcome {
                    Appended::Done => {
                        records_written += 1;
                        bytes_written += entry.payload.len() as u64;
                        self.sink.now_of(stream.id, work.partition);
                        for (number, record) in &work.records {
                            let (sink, scratch) = (&mut self.sink, &mut self.scratch);
                            let effects = apply(stream, slot, record, &target, sink, scratch);
                            if let Some(receipt) = receipts.get_mut(*number) {
                                receipt.add_effects(effects, record);
                            }
                        }
                        slot.settle(&node);
                        continue;
                    }
                    Appended::Torn => {
                        work.tried = Some((number, Store::hash(&entry.payload)));
                        known.forget(&node, place);
                        works.push(work);
                        continue;
                    }
                    Appended::NotNow => not_mine(),
                    Appended::Full => IngestError::Busy(
                        "results cannot be written to their caches fast enough".to_owned(),
                    ),
                    Appended::NoRoom => {
                        IngestError::Busy(format!("the cache `{}` is full", stream.state_cache))
                    }
                    Appended::TooLarge => IngestError::Refused(
                        "a batch has more readings of one partition than a log entry takes"
                            .to_owned(),
                    ),
                };
                work.leave(receipts, &why);
            }
            drop(inside);
            stream.count(|f| &f.log_records, records_written);
            stream.count(|f| &f.log_bytes, bytes_written);
            let more_come = self.more_come();
            self.sink.flush_while(more_come).await;
        }
        for work in works {
            work.leave(receipts, &not_mine());
        }
    }

    /// Publishes snapshots of those partitions whose log is long.
    pub(super) async fn shorten(
        &mut self,
        stream: &Arc<Stream>,
        cache: &Arc<Cache>,
        partitions: &[u32],
    ) {
        let mut long = Vec::new();
        for &partition in partitions {
            let log = self.slot_of(stream, partition).and_then(|slot| slot.log.as_ref());
            if log.is_some_and(|log| log.changelog.wants_snapshot()) {
                long.push(partition);
            }
        }
        self.snapshot(stream, cache, &long, false).await;
    }

    /// Publishes snapshots. What follows from a snapshot's records must be written before: a new
    /// owner writes again only what follows from the entries after it.
    async fn snapshot(
        &mut self,
        stream: &Arc<Stream>,
        cache: &Arc<Cache>,
        partitions: &[u32],
        must: bool,
    ) {
        if !partitions.is_empty() {
            self.sink.flush_of(stream.id, partitions).await;
        }
        if self.sink.unwritten() > 0 && !must {
            return;
        }
        let node = Arc::clone(&self.node);
        let mut rest = partitions.iter().peekable();
        while rest.peek().is_some() {
            let (mut lot, mut bytes) = (Vec::new(), 0);
            while let Some(&partition) = rest.next_if(|_| bytes < SNAPSHOTS_BYTES_MAX) {
                let Some(slot) = self.slot_of(stream, partition) else { continue };
                let state = slot.save();
                let Some(log) = &mut slot.log else { continue };
                bytes += state.len();
                let log = std::mem::replace(&mut log.changelog, Changelog::nothing());
                lot.push(Snapshot { partition, log, state });
            }
            for (snapshot, outcome) in publish(&node, cache, lot).await {
                let place = self.place_of(snapshot.partition);
                let Some(known) = self.streams.get_mut(&stream.id) else { return };
                match outcome {
                    Appended::Torn => known.forget(&node, place),
                    _ => {
                        stream.count(|f| &f.snapshots, u64::from(outcome == Appended::Done));
                        if let Some(log) = known.slot(place).and_then(|slot| slot.log.as_mut()) {
                            log.changelog = snapshot.log;
                        }
                    }
                }
            }
        }
    }
}
