//! The window of answers: what became of requests, so that a retry is not carried out twice.
//!
//! It is part of a partition's data: each entry of the log carries its request's name and outcome,
//! every copy records them as it applies, and a snapshot brings the window along. Whoever becomes
//! primary therefore knows the answers to all that was applied.
//!
//! Bounds: `answers_per_client` answers for each of `answer_clients_max` clients. A request older
//! than the answers kept of its client is not carried out and not answered for sure. A client is
//! forgotten only when it was silent for `answer_window_ms`; until then, new clients are refused
//! when the window is full.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::brief::Brief;
use crate::config::StrongConfig;
use crate::few::Few;
use crate::ids::{ClientId, RequestId};
use crate::warm::fetch;

/// Clients whose answers are asked for ahead: mostly a node sees its own and one other.
const CLIENTS_WARMED: usize = 2;

/// The answers kept for one client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAnswers {
    /// Requests up to here may have been answered and forgotten.
    pub floor: u64,
    /// The clock of its last recorded answer.
    pub used_ms: u64,
    /// Answers above the floor, in order of counters.
    pub answers: VecDeque<(u64, Brief)>,
}

impl ClientAnswers {
    /// Roughly what it costs to send.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const HEAD: usize = 32;
        const ANSWER: usize = 24;
        HEAD + self.answers.len() * ANSWER
    }

    fn answer(&self, counter: u64) -> Option<Brief> {
        // Nearly all requests are new: one look at the end says so.
        if self.answers.back().is_none_or(|(last, _)| *last < counter) {
            return None;
        }
        let at = self.answers.binary_search_by_key(&counter, |(counter, _)| *counter).ok()?;
        self.answers.get(at).map(|(_, outcome)| *outcome)
    }

    fn insert(&mut self, counter: u64, outcome: Brief) {
        if self.answers.back().is_none_or(|(last, _)| *last < counter) {
            return self.answers.push_back((counter, outcome));
        }
        match self.answers.binary_search_by_key(&counter, |(counter, _)| *counter) {
            Ok(at) => self.answers[at].1 = outcome,
            Err(at) => self.answers.insert(at, (counter, outcome)),
        }
    }
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Never seen.
    New,
    /// Carried out; this came of it.
    Answered(Brief),
    /// Too old to know.
    Forgotten,
    /// Never seen, and there is no room to remember it.
    Full,
}

/// The window of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    clients: Few<ClientId, ClientAnswers>,
}

impl Answers {
    /// Looks a request up. `pending` is how many requests wait to be recorded: each may be of a
    /// client not seen before.
    #[must_use]
    pub fn look_up(
        &self,
        id: RequestId,
        pending: usize,
        clock_ms: u64,
        config: &StrongConfig,
    ) -> Lookup {
        match self.clients.get(&id.client) {
            Some(client) => match client.answer(id.counter) {
                Some(outcome) => Lookup::Answered(outcome),
                None if id.counter <= client.floor => Lookup::Forgotten,
                None => Lookup::New,
            },
            None if self.clients.len() + pending < config.answer_clients_max => Lookup::New,
            None => {
                let forgettable = self
                    .clients
                    .values()
                    .filter(|client| {
                        client.used_ms.saturating_add(config.answer_window_ms) <= clock_ms
                    })
                    .count();
                let kept = self.clients.len() - forgettable;
                if kept + pending < config.answer_clients_max { Lookup::New } else { Lookup::Full }
            }
        }
    }

    /// Asks for the memory that is found from here.
    pub(crate) fn warm(&self) {
        if let Some((_, first)) = self.clients.at(0) {
            fetch(first);
        }
    }

    /// Asks for the places that are read and written next, when what [`warm`](Self::warm) asked for
    /// is here.
    pub(crate) fn warm_places(&self) {
        for (_, client) in self.clients.iter().take(CLIENTS_WARMED) {
            client.answers.front().into_iter().for_each(fetch);
            client.answers.back().into_iter().for_each(fetch);
        }
    }

    /// Whether the answer to a request is known.
    #[must_use]
    pub fn answered(&self, id: RequestId) -> bool {
        let client = self.clients.get(&id.client);
        client.is_some_and(|client| client.answer(id.counter).is_some())
    }

    /// Records an answer.
    pub fn record(&mut self, id: RequestId, outcome: Brief, clock_ms: u64, config: &StrongConfig) {
        if !self.clients.contains_key(&id.client)
            && self.clients.len() >= config.answer_clients_max.max(1)
            && let Some(oldest) =
                self.clients.iter().min_by_key(|(_, client)| client.used_ms).map(|(&id, _)| id)
        {
            self.clients.remove(&oldest);
        }
        let client = self.clients.get_or_insert_with(id.client, ClientAnswers::default);
        client.used_ms = client.used_ms.max(clock_ms);
        if id.counter > client.floor {
            client.insert(id.counter, outcome);
        }
        while client.answers.len() > config.answers_per_client.max(1) {
            if let Some((counter, _)) = client.answers.pop_front() {
                client.floor = counter;
            }
        }
    }

    /// Takes in part of another copy's window.
    pub fn merge(&mut self, client: ClientId, other: ClientAnswers) {
        let own = self.clients.get_or_insert_with(client, ClientAnswers::default);
        own.floor = own.floor.max(other.floor);
        own.used_ms = own.used_ms.max(other.used_ms);
        for (counter, outcome) in other.answers {
            own.insert(counter, outcome);
        }
        let floor = own.floor;
        own.answers.retain(|(counter, _)| *counter > floor);
    }

    /// All of it, to be sent.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, &ClientAnswers)> {
        self.clients.iter().map(|(&id, client)| (id, client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;

    fn config() -> StrongConfig {
        StrongConfig {
            answers_per_client: 2,
            answer_clients_max: 2,
            answer_window_ms: 100,
            ..StrongConfig::default()
        }
    }

    fn id(client: u64, counter: u64) -> RequestId {
        RequestId { client: ClientId(client), counter }
    }

    #[test]
    fn a_repeated_request_finds_its_answer() {
        let mut answers = Answers::default();
        answers.record(id(1, 1), Brief::Number(5, Version(2)), 10, &config());
        let found = answers.look_up(id(1, 1), 0, 10, &config());
        assert_eq!(found, Lookup::Answered(Brief::Number(5, Version(2))));
        assert_eq!(answers.look_up(id(1, 2), 0, 10, &config()), Lookup::New);
    }

    #[test]
    fn a_request_older_than_the_window_is_never_taken_for_new() {
        let mut answers = Answers::default();
        for counter in [3, 5, 9] {
            answers.record(id(1, counter), Brief::Deleted, 10, &config());
        }
        assert_eq!(answers.look_up(id(1, 3), 0, 10, &config()), Lookup::Forgotten);
        assert_eq!(answers.look_up(id(1, 2), 0, 10, &config()), Lookup::Forgotten);
        assert_eq!(answers.look_up(id(1, 4), 0, 10, &config()), Lookup::New);
        assert!(matches!(answers.look_up(id(1, 9), 0, 10, &config()), Lookup::Answered(_)));
    }

    #[test]
    fn clients_are_refused_rather_than_others_forgotten_too_early() {
        let mut answers = Answers::default();
        answers.record(id(1, 1), Brief::Deleted, 10, &config());
        assert_eq!(answers.look_up(id(2, 1), 0, 20, &config()), Lookup::New);
        assert_eq!(answers.look_up(id(2, 1), 1, 20, &config()), Lookup::Full);
        answers.record(id(2, 1), Brief::Deleted, 20, &config());
        assert_eq!(answers.look_up(id(3, 1), 0, 109, &config()), Lookup::Full);
        assert_eq!(answers.look_up(id(3, 1), 0, 110, &config()), Lookup::New);
        answers.record(id(3, 1), Brief::Deleted, 110, &config());
        assert_eq!(answers.look_up(id(1, 1), 5, 110, &config()), Lookup::Full);
        assert!(matches!(answers.look_up(id(2, 1), 0, 110, &config()), Lookup::Answered(_)));
    }

    #[test]
    fn a_window_taken_from_a_snapshot_answers_like_the_original() {
        let mut answers = Answers::default();
        for counter in 1..=4 {
            answers.record(id(1, counter), Brief::Number(counter, Version(counter)), 10, &config());
        }
        let mut copy = Answers::default();
        copy.record(id(1, 4), Brief::Number(4, Version(4)), 10, &config());
        for (client, window) in answers.iter() {
            copy.merge(client, window.clone());
        }
        assert_eq!(copy, answers);
    }
}
