//! What happened lately, in plain words.
//!
//! Events are found by comparing what the node knew a second ago with what it knows now: whoever
//! changes a topology need not think of telling, and the words are in one place. What comes and
//! goes within a second is not seen.
//!
//! Invariants: at most [`EVENTS_MAX`] are kept; numbers rise by one. Cost: a pass over nodes,
//! caches and partitions when the topology changed, a handful of comparisons otherwise.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use kiln_protocol::native::admin::TopologyView;
use serde::Serialize;

/// Events kept.
pub(super) const EVENTS_MAX: usize = 200;

/// Of one kind at one moment, told one by one; more are summed up in one line.
const SINGLES_MAX: usize = 5;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Weight {
    /// As intended.
    Info,
    /// Worth a look.
    Warning,
    /// Items were or may be lost.
    Error,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Event {
    /// Rises by one.
    pub(super) number: u64,
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
    /// How much it matters.
    pub(super) weight: Weight,
    /// What it is about: `node`, `cache`, `partition`, `memory` or `connection`.
    pub(super) about: &'static str,
    /// A sentence.
    pub(super) text: String,
}

/// What the node knows at one moment, as far as events come of it.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Who is there, and who owns what.
    pub(super) topology: Arc<TopologyView>,
    /// Items dropped so far for want of room.
    pub(super) evictions: u64,
    /// Writes refused so far for want of room.
    pub(super) refused_writes: u64,
    /// Connections turned away so far.
    pub(super) refused_connections: u64,
    /// Partitions that lost all copies, and no operator has said yet that this is known.
    pub(super) lost: u64,
    /// The ceiling of memory in bytes.
    pub(super) memory: u64,
}

/// Recent events, and what they are found by.
#[derive(Debug, Default)]
pub(super) struct Events {
    kept: VecDeque<Event>,
    number: u64,
    before: Option<View>,
    /// Partitions that nodes became primaries of, and have not been told yet.
    promoted: BTreeMap<u64, u32>,
    promoting: Period,
    evicting: Episode,
    refusing_writes: Episode,
    refusing_connections: Episode,
}

/// Something that goes on for a while: told when it begins, and again only after a pause.
#[derive(Debug, Default)]
struct Episode {
    last_ms: Option<u64>,
}

/// Something that comes in many small steps: told when it rests, and now and then meanwhile.
#[derive(Debug, Default)]
struct Period {
    /// The first step and the last.
    steps_ms: Option<(u64, u64)>,
}

/// A period ends with so much silence, or after so long.
const PERIOD_REST_MS: u64 = 3_000;
const PERIOD_MAX_MS: u64 = 30_000;

impl Period {
    /// Takes note, and says whether it is time to tell.
    fn ends(&mut self, happens: bool, now_ms: u64) -> bool {
        if happens {
            let first_ms = self.steps_ms.map_or(now_ms, |(first_ms, _)| first_ms);
            self.steps_ms = Some((first_ms, now_ms));
        }
        let ends = self.steps_ms.is_some_and(|(first_ms, last_ms)| {
            now_ms.saturating_sub(last_ms) >= PERIOD_REST_MS
                || now_ms.saturating_sub(first_ms) >= PERIOD_MAX_MS
        });
        if ends {
            self.steps_ms = None;
        }
        ends
    }
}

/// An episode ends with so much silence.
const EPISODE_GAP_MS: u64 = 60_000;

impl Episode {
    /// Takes note, and says whether this is the beginning.
    fn begins(&mut self, happens: bool, now_ms: u64) -> bool {
        if !happens {
            return false;
        }
        let last_ms = self.last_ms.replace(now_ms);
        last_ms.is_none_or(|last_ms| now_ms.saturating_sub(last_ms) >= EPISODE_GAP_MS)
    }
}

impl Events {
    /// Compares with the last view. Returns the number of the newest event known before.
    pub(super) fn observe(&mut self, view: View, now_ms: u64) -> u64 {
        let newest = self.number;
        match self.before.take() {
            None => self.begin(&view, now_ms),
            Some(before) => {
                let promotions = |promoted: &BTreeMap<u64, u32>| promoted.values().sum::<u32>();
                let promoted_before = promotions(&self.promoted);
                if !Arc::ptr_eq(&before.topology, &view.topology) {
                    self.compare_nodes(&before.topology, &view.topology, now_ms);
                    self.compare_owners(&before.topology, &view.topology, now_ms);
                    self.compare_caches(&before.topology, &view.topology, now_ms);
                }
                let happened = promotions(&self.promoted) != promoted_before;
                self.tell_promotions(&view.topology, happened, now_ms);
                self.compare_figures(&before, &view, now_ms);
            }
        }
        self.before = Some(view);
        newest
    }

    /// All that are kept, oldest first.
    pub(super) fn all(&self) -> Vec<Event> {
        self.since(0)
    }

    /// Those after a number, oldest first.
    pub(super) fn since(&self, number: u64) -> Vec<Event> {
        self.kept.iter().filter(|event| event.number > number).cloned().collect()
    }

    fn tell(&mut self, at_ms: u64, weight: Weight, about: &'static str, text: String) {
        if self.kept.len() == EVENTS_MAX {
            self.kept.pop_front();
        }
        self.number += 1;
        self.kept.push_back(Event { number: self.number, at_ms, weight, about, text });
    }

    fn begin(&mut self, view: &View, now_ms: u64) {
        let nodes = view.topology.nodes.len();
        let text = match nodes {
            0 | 1 => "This node started, alone.".to_owned(),
            _ => format!("This node started in a cluster of {nodes} nodes."),
        };
        self.tell(now_ms, Weight::Info, "node", text);
    }

    fn compare_nodes(&mut self, before: &TopologyView, now: &TopologyView, now_ms: u64) {
        let old: BTreeMap<_, _> = before.nodes.iter().map(|node| (node.id, node)).collect();
        let new: BTreeMap<_, _> = now.nodes.iter().map(|node| (node.id, node)).collect();
        let mut told = Vec::new();
        for (id, node) in &new {
            let name = &node.name;
            match old.get(id) {
                None if node.zone.is_empty() => {
                    told.push((Weight::Info, format!("Node {name} joined.")));
                }
                None => {
                    let text = format!("Node {name} joined in zone {}.", node.zone);
                    told.push((Weight::Info, text));
                }
                Some(known) if known.state != node.state => {
                    told.push(state_change(name, &node.state));
                }
                Some(_) => {}
            }
        }
        for (id, node) in &old {
            if !new.contains_key(id) {
                let text = match node.state.as_str() {
                    "draining" => format!("Node {} left as planned.", node.name),
                    _ => format!("Node {} was removed from the cluster.", node.name),
                };
                told.push((Weight::Info, text));
            }
        }
        self.tell_many(told, "node", now_ms, |more| format!("{more} more changes of nodes."));
    }

    fn compare_owners(&mut self, before: &TopologyView, now: &TopologyView, now_ms: u64) {
        // By id: places in the list of nodes move when one comes or goes.
        let id = |topology: &TopologyView, place: Option<&u32>| {
            Some(topology.nodes.get(*place? as usize)?.id)
        };
        let (mut lost, mut found) = (0, 0);
        let mut exposed = (0, 0);
        for (index, group) in now.groups.iter().enumerate() {
            let Some(old) = before.groups.get(index) else { continue };
            for (partition, owners) in group.owners.iter().enumerate() {
                let Some(old_owners) = old.owners.get(partition) else { continue };
                let was = id(before, old_owners.first());
                match (was, id(now, owners.first())) {
                    (Some(_), None) => lost += 1,
                    (None, Some(_)) => found += 1,
                    (Some(was), Some(is)) if was != is => {
                        *self.promoted.entry(is).or_default() += 1
                    }
                    _ => {}
                }
                exposed.0 += u32::from(old_owners.len() < old.copies as usize);
                exposed.1 += u32::from(owners.len() < group.copies as usize);
            }
        }
        if lost > 0 {
            let what = count(lost, "partition is", "partitions are");
            let text = format!("{what} not served: no node has a copy at hand.");
            self.tell(now_ms, Weight::Error, "partition", text);
        }
        if found > 0 {
            let text = format!("{} served again.", count(found, "partition is", "partitions are"));
            self.tell(now_ms, Weight::Info, "partition", text);
        }
        match exposed {
            (0, few) if few > 0 => {
                let text = format!(
                    "{} fewer copies than wanted.",
                    count(few, "partition has", "partitions have")
                );
                self.tell(now_ms, Weight::Warning, "partition", text);
            }
            (few, 0) if few > 0 => {
                let text = "Every partition has all its copies again.".to_owned();
                self.tell(now_ms, Weight::Info, "partition", text);
            }
            _ => {}
        }
    }

    /// Partitions move one by one: what became of them is told when they rest.
    fn tell_promotions(&mut self, topology: &TopologyView, happened: bool, now_ms: u64) {
        if !self.promoting.ends(happened, now_ms) {
            return;
        }
        let promoted = std::mem::take(&mut self.promoted).into_iter();
        let told = promoted.filter_map(|(id, partitions)| {
            let name = &topology.nodes.iter().find(|node| node.id == id)?.name;
            let of = count(partitions, "partition", "partitions");
            Some((Weight::Info, format!("Node {name} became primary of {of}.")))
        });
        let told = told.collect();
        self.tell_many(told, "partition", now_ms, |more| {
            format!("{more} more nodes became primaries.")
        });
    }

    fn compare_caches(&mut self, before: &TopologyView, now: &TopologyView, now_ms: u64) {
        let names = |topology: &TopologyView| -> BTreeSet<String> {
            topology.caches.iter().map(|cache| cache.name.clone()).collect()
        };
        let (old, new) = (names(before), names(now));
        let made = new.difference(&old).map(|name| format!("Cache {name} was made."));
        let dropped = old.difference(&new).map(|name| format!("Cache {name} was dropped."));
        let told = made.chain(dropped).map(|text| (Weight::Info, text)).collect();
        self.tell_many(told, "cache", now_ms, |more| format!("{more} more changes of caches."));
    }

    fn compare_figures(&mut self, before: &View, now: &View, now_ms: u64) {
        if now.lost > before.lost {
            let lost = u32::try_from(now.lost - before.lost).unwrap_or(u32::MAX);
            let text = format!(
                "{} lost with all copies.",
                count(lost, "partition was", "partitions were")
            );
            self.tell(now_ms, Weight::Error, "partition", text);
        }
        if before.memory != now.memory {
            let word = if now.memory > before.memory { "raised" } else { "lowered" };
            let text = format!("The memory ceiling was {word} to {} MiB.", now.memory >> 20);
            self.tell(now_ms, Weight::Info, "memory", text);
        }
        if self.evicting.begins(now.evictions > before.evictions, now_ms) {
            let text = "Memory is full: items are being evicted to make room.".to_owned();
            self.tell(now_ms, Weight::Info, "memory", text);
        }
        if self.refusing_writes.begins(now.refused_writes > before.refused_writes, now_ms) {
            let text = "Memory is full: writes are being refused.".to_owned();
            self.tell(now_ms, Weight::Warning, "memory", text);
        }
        let refused = now.refused_connections > before.refused_connections;
        if self.refusing_connections.begins(refused, now_ms) {
            let text = "All connections are taken: clients are being turned away.".to_owned();
            self.tell(now_ms, Weight::Warning, "connection", text);
        }
    }

    fn tell_many(
        &mut self,
        mut told: Vec<(Weight, String)>,
        about: &'static str,
        now_ms: u64,
        sum: impl Fn(usize) -> String,
    ) {
        let more = told.len().saturating_sub(SINGLES_MAX);
        // One line too many is no longer than the line that would stand for it.
        if more > 1 {
            told.truncate(SINGLES_MAX);
        }
        for (weight, text) in told {
            self.tell(now_ms, weight, about, text);
        }
        if more > 1 {
            self.tell(now_ms, Weight::Info, about, sum(more));
        }
    }
}

fn state_change(name: &str, state: &str) -> (Weight, String) {
    match state {
        "ready" => (Weight::Info, format!("Node {name} is ready.")),
        "joining" => (Weight::Info, format!("Node {name} is back and starts empty.")),
        "draining" => (Weight::Info, format!("Node {name} hands its partitions over to leave.")),
        "down" => (Weight::Warning, format!("Node {name} is down.")),
        "suspect" => (Weight::Warning, format!("Node {name} has not been heard of for a while.")),
        other => (Weight::Info, format!("Node {name} is {other}.")),
    }
}

fn count(number: u32, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_protocol::native::admin::{CacheView, GroupView, NodeView};

    fn node(id: u64, state: &str) -> NodeView {
        let name = format!("n{id}");
        NodeView { id, name, state: state.to_owned(), ..NodeView::default() }
    }

    fn view(epoch: u64, nodes: &[(u64, &str)], owners: &[&[u32]]) -> View {
        let group = GroupView {
            mode: "strong".to_owned(),
            copies: 2,
            owners: owners.iter().map(|owners| owners.to_vec()).collect(),
        };
        let topology = TopologyView {
            epoch,
            nodes: nodes.iter().map(|(id, state)| node(*id, state)).collect(),
            groups: vec![group],
            ..TopologyView::default()
        };
        View { topology: Arc::new(topology), memory: 1 << 20, ..View::default() }
    }

    fn texts(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.text.as_str()).collect()
    }

    fn between(before: View, now: View) -> Vec<Event> {
        let mut events = Events::default();
        events.observe(before, 1);
        let newest = events.observe(now, 2);
        events.since(newest)
    }

    #[test]
    fn nodes_that_come_go_or_change_are_told_by_name() {
        let before = view(1, &[(1, "ready"), (2, "ready"), (3, "draining")], &[]);
        let now = view(2, &[(1, "ready"), (2, "down"), (4, "joining")], &[]);
        let events = between(before, now);
        let expected = ["Node n2 is down.", "Node n4 joined.", "Node n3 left as planned."];
        assert_eq!(texts(&events), expected);
        assert_eq!(events[0].weight, Weight::Warning);
    }

    #[test]
    fn promotions_are_summed_for_each_node_until_they_rest_however_the_list_is_ordered() {
        let mut events = Events::default();
        let two = [(1, "ready"), (2, "ready")];
        // Node 1 is gone then, so that node 2 has moved to place 0, and node 3 came behind it.
        let later = [(2, "ready"), (3, "ready")];
        events.observe(view(1, &two, &[&[0, 1], &[0, 1], &[1, 0], &[1, 0]]), 0);
        events.observe(view(2, &later, &[&[0, 1], &[0, 1], &[0, 1], &[0, 1]]), 1_000);
        let last = view(3, &later, &[&[0, 1], &[0, 1], &[0, 1], &[1, 0]]);
        for second in 2..=10 {
            events.observe(last.clone(), second * 1_000);
        }
        let all = events.all();
        let told: Vec<_> = all.iter().filter(|event| event.about == "partition").collect();
        let texts: Vec<_> = told.iter().map(|event| event.text.as_str()).collect();
        let expected =
            ["Node n2 became primary of 2 partitions.", "Node n3 became primary of 1 partition."];
        assert_eq!(texts, expected);
        assert!(told.iter().all(|event| event.at_ms == 2_000 + PERIOD_REST_MS));
    }

    #[test]
    fn promotions_that_do_not_rest_are_told_now_and_then() {
        let mut events = Events::default();
        let two = [(1, "ready"), (2, "ready")];
        for second in 0..=61 {
            let owners: &[&[u32]] = if second % 2 == 0 { &[&[0, 1]] } else { &[&[1, 0]] };
            events.observe(view(second, &two, owners), second * 1_000);
        }
        let all = events.all();
        let told = all.iter().filter(|event| event.text.contains("became primary"));
        let told: Vec<_> = told.map(|event| event.at_ms).collect();
        // One line for each node, each half minute.
        assert_eq!(told, [31_000, 31_000]);
    }

    #[test]
    fn lost_and_exposed_partitions_are_told() {
        let two = [(1, "ready"), (2, "ready")];
        let whole = view(1, &two, &[&[0, 1], &[1, 0]]);
        let broken = view(2, &two, &[&[0], &[]]);
        let events = between(whole.clone(), broken.clone());
        let expected = [
            "1 partition is not served: no node has a copy at hand.",
            "2 partitions have fewer copies than wanted.",
        ];
        assert_eq!(texts(&events), expected);
        assert_eq!(events[0].weight, Weight::Error);
        let events = between(broken, whole);
        let expected =
            ["1 partition is served again.", "Every partition has all its copies again."];
        assert_eq!(texts(&events), expected);
    }

    #[test]
    fn what_goes_on_is_told_when_it_begins_and_again_after_a_pause() {
        let mut events = Events::default();
        let at = |evictions| View { evictions, ..view(1, &[(1, "ready")], &[]) };
        events.observe(at(0), 0);
        for (second, evictions) in [(1, 5), (2, 9), (3, 9), (50, 12), (120, 13)] {
            events.observe(at(evictions), second * 1_000);
        }
        let all = events.all();
        let told: Vec<_> =
            all.iter().filter(|event| event.about == "memory").map(|event| event.at_ms).collect();
        assert_eq!(told, [1_000, 120_000]);
    }

    #[test]
    fn a_hundred_nodes_that_go_down_at_once_take_six_lines() {
        let all = |state| (1..=100).map(|id| (id, state)).collect::<Vec<_>>();
        let events = between(view(1, &all("ready"), &[]), view(2, &all("down"), &[]));
        assert_eq!(events.len(), SINGLES_MAX + 1);
        assert_eq!(events[SINGLES_MAX].text, "95 more changes of nodes.");
    }

    #[test]
    fn caches_that_come_and_go_are_told_and_the_list_is_bounded() {
        let with = |epoch, name: &str| {
            let mut view = view(epoch, &[(1, "ready")], &[]);
            let cache = CacheView { name: name.to_owned(), ..CacheView::default() };
            Arc::make_mut(&mut view.topology).caches = vec![cache];
            view
        };
        let events = between(with(1, "old"), with(2, "new"));
        assert_eq!(texts(&events), ["Cache new was made.", "Cache old was dropped."]);

        let mut events = Events::default();
        for round in 0..EVENTS_MAX as u64 + 10 {
            events.observe(with(round, &format!("c{round}")), round);
        }
        let all = events.all();
        assert_eq!(all.len(), EVENTS_MAX);
        assert!(all.windows(2).all(|pair| pair[1].number == pair[0].number + 1));
    }
}
