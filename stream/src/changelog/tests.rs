//! A store of items that compares versions, and owners that come, go, and write late.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ITEM_MAX: usize = 64;

/// The items of one partition.
#[derive(Clone, Debug, Default)]
struct Items {
    items: BTreeMap<Name, (u64, Vec<u8>)>,
    version: u64,
}

impl Items {
    fn write(&mut self, write: &Write) -> Option<u64> {
        let held = self.items.get(&write.name).map(|(version, _)| *version);
        let holds = match write.expected {
            Expected::Any => true,
            Expected::Absent => held.is_none(),
            Expected::Version(version) => held == Some(version),
        };
        assert!(write.value.len() <= ITEM_MAX);
        holds.then(|| {
            self.version += 1;
            self.items.insert(write.name, (self.version, write.value.clone()));
            self.version
        })
    }

    fn read(&self, recovery: &Recovery) -> Vec<Option<(u64, Vec<u8>)>> {
        recovery.wants().iter().map(|name| self.items.get(name).cloned()).collect()
    }

    fn recover(&self) -> Recovered {
        let mut recovery = Recovery::new();
        loop {
            let found = self.read(&recovery);
            match recovery.take(found) {
                (next, Step::More) => recovery = next,
                (_, Step::Done(recovered)) => return *recovered,
                (_, Step::Torn) => panic!("nobody else writes"),
            }
        }
    }
}

/// An owner; its state is the list of all payloads.
struct Owner {
    log: Changelog,
    state: Vec<u8>,
}

impl Owner {
    fn of(items: &Items) -> Self {
        let recovered = items.recover();
        assert!(!recovered.damaged);
        let mut state = recovered.state.unwrap_or_default();
        recovered.entries.iter().for_each(|(_, payload)| state.extend_from_slice(payload));
        Self { log: recovered.changelog, state }
    }

    /// Writes an entry, at most so many of its parts. True when it is acknowledged.
    fn append(&mut self, items: &mut Items, payload: &[u8], parts: usize) -> bool {
        let unread = self.log.unread(payload.len(), ITEM_MAX);
        for name in unread {
            let found = items.items.get(&name).cloned();
            let found = found.as_ref().map(|(version, value)| (*version, &value[..]));
            if self.log.looked(name, found).is_err() {
                return false;
            }
        }
        let Ok(writes) = self.log.entry(payload, ITEM_MAX) else { return false };
        let whole = writes.len() <= parts;
        for write in writes.iter().take(parts) {
            let Some(version) = items.write(write) else { return false };
            self.log.appended(version, write.value.len());
        }
        if whole {
            self.state.extend_from_slice(payload);
        }
        whole
    }

    /// Publishes a snapshot, at most so many of its steps. True when it counts.
    fn publish(&mut self, items: &mut Items, set: u64, steps: usize) -> bool {
        let publication = self.log.publish(&self.state, set, ITEM_MAX);
        let all = publication.marker.iter().chain(&publication.chunks).chain([&publication.head]);
        let all: Vec<_> = all.collect();
        let mut versions = Vec::new();
        for write in all.iter().take(steps) {
            let Some(version) = items.write(write) else { return false };
            versions.push(version);
        }
        if all.len() > steps {
            return false;
        }
        let marker = publication.marker.as_ref().map(|_| versions[0]);
        self.log.published(&publication, versions[all.len() - 1], marker);
        for name in &publication.garbage {
            items.items.remove(name);
        }
        true
    }
}

fn entry(number: usize) -> Vec<u8> {
    format!("<{number}>").into_bytes()
}

#[test]
fn a_new_owner_finds_what_was_acknowledged_in_order() {
    let mut items = Items::default();
    let mut owner = Owner::of(&items);
    assert!(items.recover().is_vacant());
    let mut expected = Vec::new();
    for number in 0..1_000 {
        // Some take several slots.
        let payload = entry(number).repeat(1 + number % 7 * 5);
        if owner.log.wants_snapshot() {
            assert!(owner.publish(&mut items, number as u64 + 1, usize::MAX));
        }
        assert!(owner.append(&mut items, &payload, usize::MAX), "{number}");
        expected.extend_from_slice(&payload);
        assert_eq!(Owner::of(&items).state, expected, "{number}");
    }
    // Chunks of former snapshots are gone.
    let Some((_, head)) = items.items.get(&Name::Head).cloned() else { panic!("no head") };
    let set = u64::from_le_bytes(head[18..26].try_into().unwrap());
    let chunks = items.items.keys().filter(|name| matches!(name, Name::Chunk { .. }));
    let stray = chunks.filter(|name| !matches!(name, Name::Chunk { set: of, .. } if *of == set));
    assert_eq!(stray.count(), 0);
    let stray = items.recover().garbage;
    assert!(stray.iter().all(|name| !items.items.contains_key(name)));
}

#[test]
fn a_full_log_takes_nothing_until_a_snapshot_is_published() {
    let mut items = Items::default();
    let mut owner = Owner::of(&items);
    for number in 0..RING as usize {
        assert!(owner.append(&mut items, b"x", 1), "{number}");
    }
    assert!(owner.log.wants_snapshot());
    assert_eq!(owner.log.entry(b"x", ITEM_MAX), Err(Refused::Full));
    assert!(owner.publish(&mut items, 1, usize::MAX));
    assert!(owner.append(&mut items, b"x", 1));
    let long = vec![0; ITEM_MAX * PARTS_MAX];
    assert_eq!(owner.log.entry(&long, ITEM_MAX), Err(Refused::TooLarge));
}

#[test]
fn of_two_owners_one_writes_and_the_other_is_told() {
    let mut items = Items::default();
    let mut first = Owner::of(&items);
    assert!(first.append(&mut items, b"a", 1));
    let mut second = Owner::of(&items);
    assert!(second.append(&mut items, b"b", 1));
    assert!(!first.append(&mut items, b"c", 1));
    assert!(second.publish(&mut items, 1, usize::MAX));
    assert!(!first.publish(&mut items, 2, usize::MAX));
    assert_eq!(Owner::of(&items).state, b"ab");
    // A write that arrives a lap later still finds nothing as it was.
    let late = first.log.entry(b"d", ITEM_MAX).unwrap();
    for number in 0..3 * RING {
        if second.log.wants_snapshot() {
            assert!(second.publish(&mut items, 3 + number, usize::MAX));
        }
        assert!(second.append(&mut items, b".", 1));
        assert_eq!(items.write(&late[0]), None);
    }
}

#[test]
fn chunks_of_an_owner_that_died_are_found() {
    let mut items = Items::default();
    let mut owner = Owner::of(&items);
    for number in 0..20 {
        assert!(owner.append(&mut items, &entry(number), 1));
    }
    assert!(!owner.publish(&mut items, 77, 3));
    let recovered = items.recover();
    assert_eq!(recovered.state, None);
    assert_eq!(recovered.entries.len(), 20);
    assert!(recovered.garbage.contains(&Name::Chunk { set: 77, index: 1 }));
    let next = Owner::of(&items);
    assert_eq!(next.state, owner.state);
}

#[test]
fn a_log_that_goes_on_during_the_look_is_looked_at_anew() {
    let mut items = Items::default();
    let mut owner = Owner::of(&items);
    assert!(owner.append(&mut items, b"a", 1));
    let recovery = Recovery::new();
    let found = items.read(&recovery);
    let (recovery, step) = recovery.take(found);
    assert!(matches!(step, Step::More));
    for number in 0..2 * RING {
        if owner.log.wants_snapshot() {
            assert!(owner.publish(&mut items, number + 1, usize::MAX));
        }
        assert!(owner.append(&mut items, b"x", 1));
    }
    let found = items.read(&recovery);
    assert!(matches!(recovery.take(found).1, Step::Torn));
}

#[test]
fn what_is_lost_or_damaged_is_told_and_numbers_still_rise() {
    let mut items = Items::default();
    let mut owner = Owner::of(&items);
    for number in 0..300_u64 {
        if owner.log.wants_snapshot() {
            assert!(owner.publish(&mut items, number + 1, usize::MAX));
        }
        assert!(owner.append(&mut items, b"xy", 1));
    }
    for name in items.items.keys().copied().collect::<Vec<_>>() {
        for change in [None, Some(vec![]), Some(b"nonsense".to_vec())] {
            let mut items = items.clone();
            match change {
                None => drop(items.items.remove(&name)),
                Some(value) => drop(items.items.insert(name, (10_000, value))),
            }
            let mut recovery = Recovery::forgiving();
            let recovered = loop {
                let found = items.read(&recovery);
                match recovery.take(found) {
                    (next, Step::More) => recovery = next,
                    (_, Step::Done(recovered)) => break *recovered,
                    (_, Step::Torn) => panic!("{name:?}: it forgives"),
                }
            };
            assert!(recovered.changelog.next() >= 300, "{name:?}");
            // It goes on: the snapshot first.
            let mut owner = Owner { log: recovered.changelog, state: b"new".to_vec() };
            assert!(owner.publish(&mut items, 9_999, usize::MAX));
            assert!(owner.append(&mut items, b"!", 1), "{name:?}");
            // A slot that cannot be read may still follow: whether it was an entry, nobody knows.
            let next = items.recover();
            let entries: Vec<&[u8]> = next.entries.iter().map(|(_, entry)| &entry[..]).collect();
            assert_eq!((next.state.as_deref(), entries), (Some(&b"new"[..]), vec![&b"!"[..]]));
        }
    }
}

/// What happens to a partition.
#[derive(Clone, Debug)]
enum Event {
    /// The owner at this place of the list writes so many bytes, and dies after so many writes.
    Append {
        owner: usize,
        len: usize,
        parts: usize,
    },
    Publish {
        owner: usize,
        steps: usize,
    },
    /// Another owner begins in this place.
    Recover {
        owner: usize,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let append = (0..3_usize, 1..200_usize, prop_oneof![4 => Just(usize::MAX), 1 => 0..4_usize])
        .prop_map(|(owner, len, parts)| Event::Append { owner, len, parts });
    let publish = (0..3_usize, prop_oneof![2 => Just(usize::MAX), 1 => 0..6_usize])
        .prop_map(|(owner, steps)| Event::Publish { owner, steps });
    let recover = (0..3_usize).prop_map(|owner| Event::Recover { owner });
    prop::collection::vec(prop_oneof![12 => append, 2 => publish, 2 => recover], 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Three who each believe that they own the partition, in any interleaving.
    #[test]
    fn what_was_acknowledged_is_there_once_and_in_order(events in events()) {
        let mut items = Items::default();
        let mut owners: Vec<Owner> = (0..3).map(|_| Owner::of(&items)).collect();
        let mut acknowledged = Vec::new();
        let mut dead = [false; 3];
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Append { owner, len, parts } => {
                    if dead[owner] {
                        continue;
                    }
                    let payload = entry(number).repeat(1 + len / 8);
                    if owners[owner].log.wants_snapshot()
                        && !owners[owner].publish(&mut items, number as u64 + 1, usize::MAX)
                    {
                        dead[owner] = true;
                        continue;
                    }
                    let done = owners[owner].append(&mut items, &payload, parts);
                    if done {
                        acknowledged.extend_from_slice(&payload);
                    }
                    dead[owner] = !done;
                }
                Event::Publish { owner, steps } => {
                    if !dead[owner] {
                        dead[owner] = !owners[owner].publish(&mut items, number as u64 + 1, steps);
                    }
                }
                Event::Recover { owner } => {
                    owners[owner] = Owner::of(&items);
                    dead[owner] = false;
                }
            }
            let now = Owner::of(&items);
            prop_assert_eq!(&now.state, &acknowledged);
        }
    }
}
