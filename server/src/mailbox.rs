//! What a connection is to tell its client unasked.
//!
//! Other threads put notes in and wake the connection's task; it takes them all at once. The box is
//! bounded: when more has changed than it holds, it says "everything", which is true as well.

use std::{
    sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release},
    task::{self, Poll, Waker},
};

use parking_lot::Mutex;

/// Slots noted before a note for all of a cache takes their place.
const SLOTS_MAX: usize = 4_096;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Keys in these slots of a cache may have changed.
    Slots {
        /// The cache's id.
        cache: u32,
        /// Each at most once.
        slots: Vec<u32>,
    },
    /// Any key of a cache may have changed.
    All {
        /// The cache's id.
        cache: u32,
    },
    /// Nodes or caches came or went.
    Topology,
    /// Answers to requests about streams are ready, or what followers are told.
    Answers,
    /// The node stops.
    Goodbye,
}

/// The mailbox of one connection.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Whether there is something in it.
    pending: AtomicBool,
    /// Whether the client asked for the topology.
    wants_topology: AtomicBool,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    notes: Vec<Note>,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Keys in a slot of a cache may have changed.
    pub(crate) fn invalidate(&self, cache: u32, slot: u32) {
        self.put(|notes| {
            if notes.contains(&Note::All { cache }) {
                return;
            }
            let of_cache = notes.iter_mut().find_map(|note| match note {
                Note::Slots { cache: of, slots } if *of == cache => Some(slots),
                _ => None,
            });
            match of_cache {
                Some(slots) if slots.len() < SLOTS_MAX => slots.push(slot),
                Some(_) => all(notes, cache),
                None => notes.push(Note::Slots { cache, slots: vec![slot] }),
            }
        });
    }

    /// Any key of a cache may have changed.
    pub(crate) fn invalidate_all(&self, cache: u32) {
        self.put(|notes| all(notes, cache));
    }

    /// The client wants to be told of the topology, now and when it changes, or not any more.
    pub(crate) fn want_topology(&self, wanted: bool) {
        self.wants_topology.store(wanted, Release);
        self.topology_changed();
    }

    /// Nodes or caches came or went. Nothing for those who did not ask.
    pub(crate) fn topology_changed(&self) {
        if !self.wants_topology.load(Acquire) {
            return;
        }
        self.put(|notes| {
            if !notes.contains(&Note::Topology) {
                notes.push(Note::Topology);
            }
        });
    }

    /// What was asked of streams is answered.
    pub(crate) fn answers_are_ready(&self) {
        self.put(|notes| {
            if !notes.contains(&Note::Answers) {
                notes.push(Note::Answers);
            }
        });
    }

    /// The node stops.
    pub(crate) fn goodbye(&self) {
        self.put(|notes| notes.push(Note::Goodbye));
    }

    fn put(&self, add: impl FnOnce(&mut Vec<Note>)) {
        let mut inside = self.inside.lock();
        add(&mut inside.notes);
        if !self.pending.swap(true, Release) {
            // The task may be running already; waking it costs a look into the box.
            if let Some(waker) = &inside.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Whether there is something in the box. A note put in before the last request was sent is
    /// seen.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Acquire)
    }

    /// Ready when there is something in the box; else `task` is woken when there is.
    pub(crate) fn poll(&self, task: &mut task::Context<'_>) -> Poll<()> {
        let mut inside = self.inside.lock();
        if self.pending.load(Acquire) {
            return Poll::Ready(());
        }
        if !inside.waker.as_ref().is_some_and(|waker| waker.will_wake(task.waker())) {
            inside.waker = Some(task.waker().clone());
        }
        Poll::Pending
    }

    /// Takes all there is.
    pub(crate) fn take(&self) -> Vec<Note> {
        let mut inside = self.inside.lock();
        self.pending.store(false, Release);
        std::mem::take(&mut inside.notes)
    }
}

fn all(notes: &mut Vec<Note>, cache: u32) {
    notes.retain(|note| !matches!(note, Note::Slots { cache: of, .. } | Note::All { cache: of } if *of == cache));
    notes.push(Note::All { cache });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_gathered_by_cache_and_taken_once() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.is_pending());
        mailbox.invalidate(1, 5);
        mailbox.invalidate(2, 5);
        mailbox.invalidate(1, 6);
        mailbox.topology_changed();
        mailbox.want_topology(true);
        mailbox.topology_changed();
        assert!(mailbox.is_pending());
        assert_eq!(
            mailbox.take(),
            [
                Note::Slots { cache: 1, slots: vec![5, 6] },
                Note::Slots { cache: 2, slots: vec![5] },
                Note::Topology
            ]
        );
        assert!(!mailbox.is_pending() && mailbox.take().is_empty());
    }

    #[test]
    fn a_box_that_overflows_says_that_everything_changed() {
        let mailbox = Mailbox::default();
        for slot in 0..=SLOTS_MAX as u32 {
            mailbox.invalidate(1, slot);
        }
        mailbox.invalidate(1, 3);
        mailbox.invalidate_all(1);
        assert_eq!(mailbox.take(), [Note::All { cache: 1 }]);
    }

    #[test]
    fn a_note_wakes_the_task_that_looked_in_vain() {
        struct Flag(AtomicBool);
        impl task::Wake for Flag {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.store(true, Release);
            }
        }
        let flag = std::sync::Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(std::sync::Arc::clone(&flag));
        let mut task = task::Context::from_waker(&waker);
        let mailbox = Mailbox::default();
        assert!(mailbox.poll(&mut task).is_pending());
        mailbox.goodbye();
        assert!(flag.0.load(Acquire));
        assert!(mailbox.poll(&mut task).is_ready());
        assert_eq!(mailbox.take(), [Note::Goodbye]);
    }
}
