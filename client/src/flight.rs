//! Single flight: of many who want the same value computed, one computes it and all get it.
//!
//! What always holds:
//! - at most one computes for a key at a time;
//! - when the one that computes is dropped, one of those who wait takes over: nobody waits for a
//!   computation that nobody makes;
//! - a key is in the table only while somebody computes it or waits for it.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// An error of a computation, shared by all who waited for it.
pub(crate) type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// The computations under way for one cache.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    by_key: Mutex<HashMap<Box<[u8]>, Entry>>,
}

#[derive(Debug)]
struct Entry {
    flight: Arc<Flight>,
    /// Those who compute or wait.
    parts: usize,
}

#[derive(Debug)]
struct Flight {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Clone, Debug)]
enum State {
    Computing,
    /// The one that computed was dropped.
    Free,
    Over(Result<Bytes, SharedError>),
}

/// What a caller has to do.
pub(crate) enum Turn<'a> {
    /// Compute, and tell.
    Compute(Computation<'a>),
    /// Nothing: here it is.
    Shared(Result<Bytes, SharedError>),
}

impl Flights {
    /// Waits for the value of `key`, if another computes it; or is the one to compute it.
    ///
    /// Cancel safe.
    pub(crate) async fn turn<'a>(&'a self, key: &'a [u8]) -> Turn<'a> {
        let flight = {
            let mut by_key = self.by_key.lock();
            match by_key.get_mut(key) {
                Some(entry) => {
                    entry.parts += 1;
                    entry.flight.clone()
                }
                None => {
                    let state = Mutex::new(State::Free);
                    let flight = Arc::new(Flight { state, changed: Notify::new() });
                    by_key.insert(key.into(), Entry { flight: flight.clone(), parts: 1 });
                    flight
                }
            }
        };
        let part = Part { flights: self, key, flight };
        loop {
            let changed = part.flight.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            {
                let mut state = part.flight.state.lock();
                match &*state {
                    State::Over(result) => return Turn::Shared(result.clone()),
                    State::Free => {
                        *state = State::Computing;
                        drop(state);
                        return Turn::Compute(Computation { part: part.clone(), over: false });
                    }
                    State::Computing => {}
                }
            }
            changed.await;
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_key.lock().len()
    }
}

/// Someone who computes or waits.
struct Part<'a> {
    flights: &'a Flights,
    key: &'a [u8],
    flight: Arc<Flight>,
}

impl Clone for Part<'_> {
    fn clone(&self) -> Self {
        if let Some(entry) = self.flights.by_key.lock().get_mut(self.key)
            && Arc::ptr_eq(&entry.flight, &self.flight)
        {
            entry.parts += 1;
        }
        Self { flights: self.flights, key: self.key, flight: self.flight.clone() }
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let mut by_key = self.flights.by_key.lock();
        // Another one is there when this one is over.
        let entry = by_key.get_mut(self.key);
        let Some(entry) = entry.filter(|entry| Arc::ptr_eq(&entry.flight, &self.flight)) else {
            return;
        };
        entry.parts -= 1;
        if entry.parts == 0 {
            by_key.remove(self.key);
        }
    }
}

/// The right, and the duty, to compute a value.
pub(crate) struct Computation<'a> {
    part: Part<'a>,
    over: bool,
}

impl Computation<'_> {
    /// Gives the result to all who wait.
    pub(crate) fn finish(mut self, result: Result<Bytes, SharedError>) {
        self.over = true;
        // Whoever comes from now on begins anew.
        self.part.flights.by_key.lock().remove(self.part.key);
        *self.part.flight.state.lock() = State::Over(result);
        self.part.flight.changed.notify_waiters();
    }
}

impl Drop for Computation<'_> {
    fn drop(&mut self) {
        if !self.over {
            *self.part.flight.state.lock() = State::Free;
            // One takes over. If it is dropped as well before it ran, the next one is told.
            self.part.flight.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Future, poll_fn},
        pin::{Pin, pin},
        task::Poll,
    };

    use futures_util::FutureExt;

    use super::*;

    /// Polls once.
    async fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
    }

    fn error(text: &str) -> SharedError {
        Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(text))
    }

    async fn compute<'a>(flights: &'a Flights, key: &'a [u8]) -> Computation<'a> {
        match flights.turn(key).await {
            Turn::Compute(computation) => computation,
            Turn::Shared(result) => panic!("shared {result:?}"),
        }
    }

    #[tokio::test]
    async fn those_who_come_while_one_computes_share_its_value() {
        let flights = Flights::default();
        let computation = compute(&flights, b"k").await;
        let (mut a, mut b) = (pin!(flights.turn(b"k")), pin!(flights.turn(b"k")));
        assert!(poll(&mut a).await.is_pending() && poll(&mut b).await.is_pending());

        computation.finish(Ok("v".into()));

        for turn in [a.await, b.await] {
            assert!(matches!(turn, Turn::Shared(Ok(value)) if value == "v"));
        }
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn those_who_come_later_begin_anew() {
        let flights = Flights::default();
        compute(&flights, b"k").await.finish(Ok("v".into()));

        compute(&flights, b"k").await.finish(Ok("w".into()));
    }

    #[tokio::test]
    async fn keys_do_not_wait_for_each_other() {
        let flights = Flights::default();
        let _a = compute(&flights, b"a").await;

        compute(&flights, b"b").await.finish(Ok("v".into()));
    }

    #[tokio::test]
    async fn a_failure_is_shared_too() {
        let flights = Flights::default();
        let computation = compute(&flights, b"k").await;
        let mut waiting = pin!(flights.turn(b"k"));
        assert!(poll(&mut waiting).await.is_pending());

        computation.finish(Err(error("no database")));

        match waiting.await {
            Turn::Shared(Err(error)) => assert_eq!(error.to_string(), "no database"),
            _ => panic!("not shared"),
        }
    }

    #[tokio::test]
    async fn when_the_one_that_computes_is_dropped_another_takes_over() {
        let flights = Flights::default();
        let computation = compute(&flights, b"k").await;
        let (mut a, mut b) = (pin!(flights.turn(b"k")), pin!(flights.turn(b"k")));
        assert!(poll(&mut a).await.is_pending() && poll(&mut b).await.is_pending());

        drop(computation);

        let Poll::Ready(Turn::Compute(second)) = poll(&mut a).await else {
            panic!("not taken over")
        };
        assert!(poll(&mut b).await.is_pending());
        second.finish(Ok("v".into()));
        assert!(matches!(b.await, Turn::Shared(Ok(_))));
    }

    #[tokio::test]
    async fn a_takeover_is_passed_on_when_its_taker_is_dropped() {
        let flights = Flights::default();
        let computation = compute(&flights, b"k").await;
        let mut a = Box::pin(flights.turn(b"k"));
        let mut b = Box::pin(flights.turn(b"k"));
        assert!(poll(&mut a).await.is_pending() && poll(&mut b).await.is_pending());
        drop(computation);

        drop(a);

        assert!(matches!(poll(&mut b).await, Poll::Ready(Turn::Compute(_))));
        drop(b);
        assert_eq!(flights.len(), 0, "nobody is left, nor is the key");
    }

    #[test]
    fn a_key_leaves_with_the_last_two_however_close_together_they_leave() {
        let flights = Flights::default();
        let together = std::sync::Barrier::new(2);
        let leave = || {
            for round in 0..2000_u32 {
                let key = round.to_be_bytes();
                let mut turn = Box::pin(flights.turn(&key));
                // One of them is to compute, the other waits.
                let computes = (&mut turn).now_or_never();
                together.wait();
                drop((computes, turn));
            }
        };

        std::thread::scope(|scope| {
            scope.spawn(leave);
            scope.spawn(leave);
        });

        assert_eq!(flights.len(), 0);
    }
}
