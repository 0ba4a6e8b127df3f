//! What became of requests that change something, so that a retry is not carried out twice.
//!
//! Kept by the owner that took the request and by no other: a retry that reaches another owner is
//! carried out again, which only increments and appends can notice. That is part of what eventual
//! mode gives up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::effect::{ItemKey, Outcome};
use crate::ids::{ClientId, RequestId};
use crate::time::Mono;
use crate::version::Write;

/// What is remembered of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What it came to here.
    pub outcome: Outcome,
    /// The key.
    pub key: ItemKey,
    /// The write it made, if any: a retry asks for its copies again.
    pub write: Option<Write>,
}

/// What the window says of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// Not seen.
    New,
    /// Carried out.
    Answered(&'a Answered),
    /// Older than what is kept of this client.
    Forgotten,
}

struct Client {
    answers: VecDeque<(u64, Answered)>,
    /// The highest counter that was pushed out.
    dropped: Option<u64>,
    heard: Mono,
}

/// The answers of one partition on one owner.
pub struct Window {
    clients: BTreeMap<ClientId, Client>,
    by_age: BTreeSet<(Mono, ClientId)>,
    per_client: usize,
    clients_max: usize,
}

impl Window {
    /// An empty window with its bounds.
    pub fn new(per_client: usize, clients_max: usize) -> Self {
        Self { clients: BTreeMap::new(), by_age: BTreeSet::new(), per_client, clients_max }
    }

    /// What became of a request.
    pub fn lookup(&self, id: RequestId) -> Lookup<'_> {
        let Some(client) = self.clients.get(&id.client) else { return Lookup::New };
        if let Some((_, answered)) =
            client.answers.iter().find(|(counter, _)| *counter == id.counter)
        {
            return Lookup::Answered(answered);
        }
        match client.dropped {
            Some(dropped) if id.counter <= dropped => Lookup::Forgotten,
            _ => Lookup::New,
        }
    }

    /// Remembers an answer; the oldest of the client, or the client silent for longest, makes room.
    pub fn remember(&mut self, id: RequestId, answered: Answered, now: Mono) {
        if !self.clients.contains_key(&id.client)
            && self.clients.len() >= self.clients_max
            && let Some((_, silent)) = self.by_age.pop_first()
        {
            self.clients.remove(&silent);
        }
        let client = self.clients.entry(id.client).or_insert_with(|| Client {
            answers: VecDeque::new(),
            dropped: None,
            heard: now,
        });
        self.by_age.remove(&(client.heard, id.client));
        client.heard = now;
        self.by_age.insert((now, id.client));
        if client.answers.len() >= self.per_client
            && let Some((counter, _)) = client.answers.pop_front()
        {
            client.dropped = client.dropped.max(Some(counter));
        }
        client.answers.push_back((id.counter, answered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CacheId, Version};

    fn id(client: u64, counter: u64) -> RequestId {
        RequestId { client: ClientId(client), counter }
    }

    fn answered(version: u64) -> Answered {
        let key = ItemKey { cache: CacheId(0), key: b"k".as_slice().into() };
        Answered { outcome: Outcome::Stored(Version(version)), key, write: None }
    }

    #[test]
    fn a_retry_is_answered_a_new_request_is_not_and_one_too_old_is_told_so() {
        let mut window = Window::new(2, 10);
        for counter in 1..=3 {
            window.remember(id(7, counter), answered(counter), Mono(counter));
        }
        assert_eq!(window.lookup(id(7, 3)), Lookup::Answered(&answered(3)));
        assert_eq!(window.lookup(id(7, 4)), Lookup::New);
        assert_eq!(window.lookup(id(7, 1)), Lookup::Forgotten);
        assert_eq!(window.lookup(id(8, 1)), Lookup::New);
    }

    #[test]
    fn the_client_silent_for_longest_makes_room() {
        let mut window = Window::new(2, 2);
        window.remember(id(1, 1), answered(1), Mono(1));
        window.remember(id(2, 1), answered(2), Mono(2));
        window.remember(id(1, 2), answered(3), Mono(3));
        window.remember(id(3, 1), answered(4), Mono(4));
        assert_eq!(window.lookup(id(2, 1)), Lookup::New);
        assert_eq!(window.lookup(id(1, 2)), Lookup::Answered(&answered(3)));
        assert_eq!(window.by_age.len(), 2);
    }
}
