//! Requests in flight by their ids.
//!
//! An id is the place in a table and a count of how often that place was used, so that a node that
//! answers twice is found out rather than believed. The table grows to the most requests that were
//! ever in flight at once, which the connection's permits bound.

use std::{task::Waker, time::Instant};

use crate::{Error, answer::Answer};

/// Who waits for an answer.
pub(super) enum Waiter {
    /// A call.
    Task(Option<Waker>),
    /// A call that was given up: the answer is thrown away.
    Nobody,
    /// The connection itself, since this moment.
    Ping(Instant),
}

struct Slot {
    used: bool,
    turn: u16,
    waiter: Waiter,
    answer: Option<Result<Answer, Error>>,
    expired: bool,
    deadline: Instant,
    /// Where in the stream of bytes the request begins.
    offset: u64,
    permits: u32,
}

/// What a call finds in its slot.
#[allow(clippy::large_enum_variant)] // moved once, never kept
pub(super) enum Taken {
    Waiting,
    Answered(Result<Answer, Error>, u32),
    Expired,
}

/// What an answer met.
pub(super) enum Delivered {
    /// A call, which is woken.
    Call,
    /// Nobody; so many permits are free again.
    Nobody(u32),
    /// A ping of this moment.
    Ping(Instant),
    /// No request has this id.
    Unknown,
}

/// The requests in flight.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Calls and pings without an answer, given up or not.
    waiting: usize,
    /// Pings among them.
    pings: usize,
}

impl Slots {
    /// Requests that have no answer yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes a slot. The permits see to it that there are never more than 65,536.
    pub(super) fn insert(
        &mut self,
        waiter: Waiter,
        deadline: Instant,
        offset: u64,
        permits: u32,
    ) -> u32 {
        self.waiting += 1;
        self.pings += usize::from(matches!(waiter, Waiter::Ping(_)));
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.slots.len();
            self.slots.push(Slot {
                used: false,
                turn: 0,
                waiter: Waiter::Nobody,
                answer: None,
                expired: false,
                deadline,
                offset,
                permits,
            });
            u16::try_from(index).expect("permits bound the requests in flight below 2^16")
        });
        let slot = &mut self.slots[usize::from(index)];
        // Never 0, so that an id is never 0, which asks for no answer.
        slot.turn = slot.turn.checked_add(1).unwrap_or(1);
        slot.used = true;
        slot.waiter = waiter;
        slot.answer = None;
        slot.expired = false;
        slot.deadline = deadline;
        slot.offset = offset;
        slot.permits = permits;
        u32::from(slot.turn) << 16 | u32::from(index)
    }

    fn find(&mut self, id: u32) -> Option<(u16, &mut Slot)> {
        let index = (id & 0xffff) as u16;
        let slot = self.slots.get_mut(usize::from(index))?;
        (slot.used && u32::from(slot.turn) == id >> 16).then_some((index, slot))
    }

    fn release(&mut self, index: u16) -> u32 {
        let slot = &mut self.slots[usize::from(index)];
        slot.used = false;
        self.pings -= usize::from(matches!(slot.waiter, Waiter::Ping(_)));
        slot.waiter = Waiter::Nobody;
        self.free.push(index);
        slot.permits
    }

    /// Gives an answer to whom it belongs. A call's waker is pushed to `wakers`.
    pub(super) fn deliver(
        &mut self,
        id: u32,
        answer: Answer,
        wakers: &mut Vec<Waker>,
    ) -> Delivered {
        let Some((index, slot)) = self.find(id) else {
            return Delivered::Unknown;
        };
        if slot.answer.is_some() {
            return Delivered::Unknown;
        }
        let delivered = match &mut slot.waiter {
            Waiter::Task(waker) => {
                wakers.extend(waker.take());
                slot.answer = Some(Ok(answer));
                Delivered::Call
            }
            Waiter::Nobody => Delivered::Nobody(self.release(index)),
            Waiter::Ping(since) => {
                let since = *since;
                self.release(index);
                Delivered::Ping(since)
            }
        };
        self.waiting -= 1;
        delivered
    }

    /// Takes what came for a call, or keeps its waker.
    pub(super) fn poll(&mut self, id: u32, waker: &Waker) -> Taken {
        let Some((index, slot)) = self.find(id) else {
            // Not reached: a call asks only until it had its answer.
            return Taken::Expired;
        };
        if let Some(answer) = slot.answer.take() {
            return Taken::Answered(answer, self.release(index));
        }
        if slot.expired {
            slot.waiter = Waiter::Nobody;
            return Taken::Expired;
        }
        match &mut slot.waiter {
            Waiter::Task(Some(kept)) if kept.will_wake(waker) => {}
            kept => *kept = Waiter::Task(Some(waker.clone())),
        }
        Taken::Waiting
    }

    /// A call is given up. Returns the permits that are free.
    pub(super) fn abandon(&mut self, id: u32) -> u32 {
        let Some((index, slot)) = self.find(id) else {
            return 0;
        };
        if slot.answer.take().is_some() {
            return self.release(index);
        }
        slot.waiter = Waiter::Nobody;
        0
    }

    /// Wakes the calls whose deadline has passed. Returns the next deadline, and the one that has
    /// been over for longest without the node having answered.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> (Option<Instant>, Option<Instant>) {
        let mut next: Option<Instant> = None;
        let mut oldest: Option<Instant> = None;
        for slot in self.slots.iter_mut().filter(|slot| slot.used && slot.answer.is_none()) {
            if slot.deadline > now {
                next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
                continue;
            }
            oldest = Some(oldest.map_or(slot.deadline, |oldest| oldest.min(slot.deadline)));
            slot.expired = true;
            if let Waiter::Task(waker) = &mut slot.waiter {
                wakers.extend(waker.take());
            }
        }
        (next, oldest)
    }

    /// Pings under way.
    pub(super) fn pings(&self) -> usize {
        self.pings
    }

    /// Ends all that have no answer; `error` is told where in the stream each begins.
    pub(super) fn fail_all(&mut self, wakers: &mut Vec<Waker>, error: impl Fn(u64) -> Error) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if !slot.used || slot.answer.is_some() {
                continue;
            }
            self.waiting -= 1;
            match &mut slot.waiter {
                Waiter::Task(waker) => {
                    wakers.extend(waker.take());
                    slot.answer = Some(Err(error(slot.offset)));
                }
                Waiter::Nobody | Waiter::Ping(_) => {
                    self.release(index as u16);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::Reason;

    fn call(slots: &mut Slots, deadline: Instant) -> u32 {
        slots.insert(Waiter::Task(None), deadline, 0, 1)
    }

    #[test]
    fn an_answer_reaches_its_call_and_no_other() {
        let now = Instant::now();
        let mut slots = Slots::default();
        let (first, second) = (call(&mut slots, now), call(&mut slots, now));
        let mut wakers = Vec::new();

        assert!(matches!(slots.deliver(second, Answer::NotFound, &mut wakers), Delivered::Call));

        assert!(matches!(slots.poll(first, Waker::noop()), Taken::Waiting));
        let taken = slots.poll(second, Waker::noop());
        assert!(matches!(taken, Taken::Answered(Ok(Answer::NotFound), 1)));
        assert_eq!(slots.waiting(), 1);
    }

    #[test]
    fn an_answer_to_an_earlier_use_of_a_slot_is_found_out() {
        let now = Instant::now();
        let mut slots = Slots::default();
        let first = call(&mut slots, now);
        slots.deliver(first, Answer::NotFound, &mut Vec::new());
        slots.poll(first, Waker::noop());
        let second = call(&mut slots, now);

        assert_ne!(first, second);
        let again = slots.deliver(first, Answer::NotFound, &mut Vec::new());
        assert!(matches!(again, Delivered::Unknown));
        assert!(matches!(slots.poll(second, Waker::noop()), Taken::Waiting));
    }

    #[test]
    fn a_second_answer_before_the_first_was_taken_is_found_out() {
        let mut slots = Slots::default();
        let id = call(&mut slots, Instant::now());
        slots.deliver(id, Answer::NotFound, &mut Vec::new());

        let again = slots.deliver(id, Answer::Exists, &mut Vec::new());

        assert!(matches!(again, Delivered::Unknown));
        assert_eq!(slots.waiting(), 0);
    }

    #[test]
    fn the_slot_of_a_call_given_up_is_kept_until_its_answer_came() {
        let mut slots = Slots::default();
        let id = call(&mut slots, Instant::now());
        assert_eq!(slots.abandon(id), 0);
        let other = call(&mut slots, Instant::now());
        assert_ne!(id & 0xffff, other & 0xffff);

        let delivered = slots.deliver(id, Answer::NotFound, &mut Vec::new());

        assert!(matches!(delivered, Delivered::Nobody(1)));
        let reused = call(&mut slots, Instant::now());
        assert_eq!(id & 0xffff, reused & 0xffff);
    }

    #[test]
    fn a_deadline_ends_the_call_but_not_the_request() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut slots = Slots::default();
        let (soon, late) = (call(&mut slots, now), call(&mut slots, later));

        assert_eq!(slots.expire(now, &mut Vec::new()), (Some(later), Some(now)));

        assert!(matches!(slots.poll(soon, Waker::noop()), Taken::Expired));
        assert!(matches!(slots.poll(late, Waker::noop()), Taken::Waiting));
        let delivered = slots.deliver(soon, Answer::NotFound, &mut Vec::new());
        assert!(matches!(delivered, Delivered::Nobody(1)));
    }

    #[test]
    fn when_all_fail_each_is_told_by_where_it_began() {
        let now = Instant::now();
        let mut slots = Slots::default();
        let sent = slots.insert(Waiter::Task(None), now, 10, 1);
        let unsent = slots.insert(Waiter::Task(None), now, 20, 1);
        slots.insert(Waiter::Ping(now), now, 30, 0);

        slots.fail_all(&mut Vec::new(), |offset| match offset {
            0..20 => Error::Indeterminate(Arc::new(Reason::Closed)),
            _ => Error::NotApplied(Arc::new(Reason::Closed)),
        });

        let taken = slots.poll(sent, Waker::noop());
        assert!(matches!(taken, Taken::Answered(Err(Error::Indeterminate(_)), 1)));
        let taken = slots.poll(unsent, Waker::noop());
        assert!(matches!(taken, Taken::Answered(Err(Error::NotApplied(_)), 1)));
        assert_eq!(slots.waiting(), 0);
    }
}
