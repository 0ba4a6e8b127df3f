//! Changelogs of many partitions at once: looked at, written, shortened.
//!
//! A thin shell around `kiln_stream::changelog`, which decides; each step of all partitions travels
//! together, so that a thousand partitions cost a few rounds and not a thousand.

use std::sync::Arc;

use kiln_stream::changelog::{Changelog, Publication, Recovered, Recovery, Refused, Step, Write};

use super::items::{Answer, Ask, Request, carry_out};
use crate::{
    caches::Cache,
    node::{Node, random},
};

/// Looks at a partition whose items change meanwhile, before what is missing counts as lost.
const LOOKS_MAX: usize = 8;

/// An entry on its way to a changelog.
pub(super) struct Entry {
    pub(super) partition: u32,
    pub(super) log: Changelog,
    pub(super) payload: Vec<u8>,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Appended {
    Done,
    /// Another wrote, or it is not known what was written: recover.
    Torn,
    /// Nothing was written; later it may be.
    NotNow,
    /// Nothing was written: results wait to be written, and until then no snapshot can be.
    Full,
    /// Nothing was written: the cache is full.
    NoRoom,
    /// It never fits.
    TooLarge,
}

/// A snapshot on its way.
pub(super) struct Snapshot {
    pub(super) partition: u32,
    pub(super) log: Changelog,
    pub(super) state: Vec<u8>,
}

/// Reads what is there of partitions. `None` where it cannot be read now.
pub(super) async fn recover(
    node: &Node,
    cache: &Arc<Cache>,
    partitions: &[u32],
) -> Vec<Option<Recovered>> {
    let mut found: Vec<Option<Recovered>> = partitions.iter().map(|_| None).collect();
    let mut looks: Vec<_> = (0..partitions.len()).map(|at| (at, Recovery::new(), 1)).collect();
    while !looks.is_empty() {
        let wants: Vec<_> = looks.iter().map(|(_, look, _)| look.wants()).collect();
        let requests = looks.iter().zip(&wants).flat_map(|((at, ..), names)| {
            let partition = partitions[*at];
            names.iter().map(move |name| Request { partition, name: *name, ask: Ask::Read })
        });
        let mut answers = carry_out(node, cache, requests.collect()).await.into_iter();
        let mut next = Vec::new();
        for ((at, look, count), names) in looks.into_iter().zip(wants) {
            let read: Vec<_> = answers.by_ref().take(names.len()).collect();
            let read: Option<Vec<_>> = read
                .into_iter()
                .map(|answer| match answer {
                    Answer::Found(version, value) => Some(Some((version, value))),
                    Answer::Missing => Some(None),
                    _ => None,
                })
                .collect();
            // Not readable now: whoever wants it asks again.
            let Some(read) = read else { continue };
            match look.take(read) {
                (look, Step::More) => next.push((at, look, count)),
                (_, Step::Done(recovered)) => found[at] = Some(*recovered),
                (_, Step::Torn) if count < LOOKS_MAX => next.push((at, Recovery::new(), count + 1)),
                (_, Step::Torn) => next.push((at, Recovery::forgiving(), count)),
            }
        }
        looks = next;
    }
    found
}

/// Writes entries.
pub(super) async fn append(
    node: &Node,
    cache: &Arc<Cache>,
    mut entries: Vec<Entry>,
) -> Vec<(Entry, Appended)> {
    let item_max = cache.store.value_len_max();
    let mut outcomes: Vec<Option<Appended>> = vec![None; entries.len()];
    look(node, cache, &mut entries, &mut outcomes, item_max).await;
    let mut writes: Vec<std::vec::IntoIter<Write>> = Vec::with_capacity(entries.len());
    for (entry, outcome) in entries.iter().zip(&mut outcomes) {
        let parts = if outcome.is_some() {
            Vec::new()
        } else {
            entry.log.entry(&entry.payload, item_max).unwrap_or_else(|refused| {
                *outcome = Some(match refused {
                    Refused::Full => Appended::Full,
                    Refused::TooLarge => Appended::TooLarge,
                    _ => Appended::NotNow,
                });
                Vec::new()
            })
        };
        writes.push(parts.into_iter());
    }
    // Parts of an entry one after the other; most have one.
    for part in 0.. {
        let (mut requests, mut places) = (Vec::new(), Vec::new());
        for (at, parts) in writes.iter_mut().enumerate() {
            if let Some(write) = parts.next().filter(|_| outcomes[at].is_none()) {
                places.push((at, write.value.len()));
                let ask = Ask::Write(write.expected, write.value);
                requests.push(Request { partition: entries[at].partition, name: write.name, ask });
            }
        }
        if requests.is_empty() {
            break;
        }
        let answers = carry_out(node, cache, requests).await;
        for ((at, len), answer) in places.into_iter().zip(answers) {
            match answer {
                Answer::Written(version) => entries[at].log.appended(version, len),
                Answer::NotNow if part == 0 => outcomes[at] = Some(Appended::NotNow),
                Answer::NoRoom if part == 0 => outcomes[at] = Some(Appended::NoRoom),
                _ => outcomes[at] = Some(Appended::Torn),
            }
        }
    }
    let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Appended::Done));
    entries.into_iter().zip(outcomes).collect()
}

/// Looks at slots whose versions are not known.
async fn look(
    node: &Node,
    cache: &Arc<Cache>,
    entries: &mut [Entry],
    outcomes: &mut [Option<Appended>],
    item_max: usize,
) {
    let (mut requests, mut places) = (Vec::new(), Vec::new());
    for (at, entry) in entries.iter().enumerate() {
        for name in entry.log.unread(entry.payload.len(), item_max) {
            requests.push(Request { partition: entry.partition, name, ask: Ask::Read });
            places.push((at, name));
        }
    }
    if requests.is_empty() {
        return;
    }
    for ((at, name), answer) in places.into_iter().zip(carry_out(node, cache, requests).await) {
        let looked = match &answer {
            Answer::Found(version, value) => entries[at].log.looked(name, Some((*version, value))),
            Answer::Missing => entries[at].log.looked(name, None),
            _ => {
                outcomes[at] = Some(Appended::NotNow);
                continue;
            }
        };
        if looked.is_err() {
            outcomes[at] = Some(Appended::Torn);
        }
    }
}

/// Publishes snapshots. [`Appended::Full`] and [`Appended::TooLarge`] do not come of it.
pub(super) async fn publish(
    node: &Node,
    cache: &Arc<Cache>,
    mut snapshots: Vec<Snapshot>,
) -> Vec<(Snapshot, Appended)> {
    let item_max = cache.store.value_len_max();
    let mut publications: Vec<Publication> = snapshots
        .iter_mut()
        .map(|snapshot| {
            let state = std::mem::take(&mut snapshot.state);
            snapshot.log.publish(&state, random(), item_max)
        })
        .collect();
    let mut outcomes = vec![Appended::Done; snapshots.len()];
    let mut markers: Vec<Option<u64>> = vec![None; snapshots.len()];
    let mut heads = vec![0; snapshots.len()];
    for step in 0..3 {
        let (mut requests, mut places) = (Vec::new(), Vec::new());
        for (at, publication) in publications.iter_mut().enumerate() {
            if outcomes[at] != Appended::Done {
                continue;
            }
            let writes: Vec<Write> = match step {
                0 => publication.marker.take().into_iter().collect(),
                1 => std::mem::take(&mut publication.chunks),
                _ => vec![publication.head.clone()],
            };
            for write in writes {
                places.push(at);
                let ask = Ask::Write(write.expected, write.value);
                let partition = snapshots[at].partition;
                requests.push(Request { partition, name: write.name, ask });
            }
        }
        if requests.is_empty() {
            continue;
        }
        let answers = carry_out(node, cache, requests).await;
        for (at, answer) in places.into_iter().zip(answers) {
            match answer {
                Answer::Written(version) if step == 0 => markers[at] = Some(version),
                Answer::Written(version) => heads[at] = version,
                // What the marker is by now is not known.
                _ if markers[at].is_some() => outcomes[at] = Appended::Torn,
                Answer::NotNow => outcomes[at] = Appended::NotNow,
                Answer::NoRoom => outcomes[at] = Appended::NoRoom,
                _ => outcomes[at] = Appended::Torn,
            }
        }
    }
    let mut garbage = Vec::new();
    for (at, publication) in publications.iter().enumerate() {
        if outcomes[at] == Appended::Done {
            snapshots[at].log.published(publication, heads[at], markers[at]);
            let partition = snapshots[at].partition;
            let names = publication.garbage.iter();
            garbage.extend(names.map(|name| Request { partition, name: *name, ask: Ask::Delete }));
        }
    }
    if !garbage.is_empty() {
        // What stays is found by the next owner.
        carry_out(node, cache, garbage).await;
    }
    snapshots.into_iter().zip(outcomes).collect()
}
