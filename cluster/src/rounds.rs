//! Confirm rounds: before a read is answered, every copy that counts says that it follows no later
//! primary.
//!
//! A round asks each peer once, about all partitions of that pair that have reads waiting. Reads
//! that come while a round is on its way wait for the next one: a round only speaks for reads that
//! came before it was sent. Reads are gathered for `confirm_batch_us`.
//!
//! A lost message costs nothing but time: the partition asks for another round.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{Member, Place, Term};
use crate::time::Mono;

/// Rounds whose answers are still taken; older ones are given up when there are more.
const OPEN_MAX: usize = 256;

/// Asks whether the addressee still follows the sender in these partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRound {
    /// Which round of the sender.
    pub round: u64,
    /// Milliseconds of lease asked for in the partitions that ask for one.
    pub lease_ms: u64,
    /// Partitions, the sender's terms there, and whether a lease is asked for.
    pub places: Vec<(Place, Term, bool)>,
}

/// Answers a [`ConfirmRound`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmReply {
    /// Which round.
    pub round: u64,
    /// Where the addressee follows a later term: which.
    pub refused: Vec<(Place, Term)>,
}

/// Who is to be asked about a partition.
#[derive(Clone, Debug)]
struct Wanted {
    term: Term,
    lease: bool,
    peers: Vec<Member>,
}

/// A round under way.
#[derive(Debug)]
struct Open {
    sent_at: Mono,
    clock_ms: u64,
    /// Who has not answered yet, by partition.
    missing: BTreeMap<Place, Asked>,
}

#[derive(Debug)]
struct Asked {
    lease: bool,
    peers: BTreeSet<Member>,
}

/// A peer's yes to a round, for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The round.
    pub round: u64,
    /// When it was sent.
    pub sent_at: Mono,
    /// The sender's hybrid clock then: what the peer has heard.
    pub clock_ms: u64,
    /// Whether a lease was asked for, and so granted.
    pub lease: bool,
    /// Whether every peer that was asked has now said yes.
    pub complete: bool,
}

/// The rounds of one node.
#[derive(Debug, Default)]
pub struct Rounds {
    last: u64,
    due: Option<Mono>,
    wanted: BTreeMap<Place, Wanted>,
    open: BTreeMap<u64, Open>,
}

impl Rounds {
    /// Has a partition in the next round, which is sent no later than `due`. Returns its number.
    pub fn want(
        &mut self,
        place: Place,
        term: Term,
        peers: impl IntoIterator<Item = Member>,
        lease: bool,
        due: Mono,
    ) -> u64 {
        let wanted = self.wanted.entry(place).or_insert_with(|| Wanted {
            term,
            lease: false,
            peers: Vec::new(),
        });
        wanted.term = term;
        wanted.lease |= lease;
        wanted.peers = peers.into_iter().collect();
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        self.last + 1
    }

    /// Whether a partition is in the next round already.
    #[must_use]
    pub fn is_wanted(&self, place: Place) -> bool {
        self.wanted.contains_key(&place)
    }

    /// When the next round is to be sent.
    #[must_use]
    pub fn due(&self) -> Option<Mono> {
        self.due
    }

    /// Sends the next round if it is due: what to ask of whom.
    pub fn send(
        &mut self,
        now: Mono,
        clock_ms: u64,
        lease_ms: u64,
    ) -> BTreeMap<Member, ConfirmRound> {
        let mut asked: BTreeMap<Member, ConfirmRound> = BTreeMap::new();
        if self.due.is_none_or(|due| due > now) {
            return asked;
        }
        self.due = None;
        self.last += 1;
        let round = self.last;
        let mut missing: BTreeMap<Place, Asked> = BTreeMap::new();
        for (place, wanted) in std::mem::take(&mut self.wanted) {
            for &peer in &wanted.peers {
                asked
                    .entry(peer)
                    .or_insert_with(|| ConfirmRound { round, lease_ms, places: Vec::new() })
                    .places
                    .push((place, wanted.term, wanted.lease));
            }
            let peers = wanted.peers.into_iter().collect();
            missing.insert(place, Asked { lease: wanted.lease, peers });
        }
        self.open.insert(round, Open { sent_at: now, clock_ms, missing });
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
        asked
    }

    /// Takes in an answer: for each partition, what it means.
    pub fn on_reply(
        &mut self,
        from: Member,
        reply: &ConfirmReply,
    ) -> Vec<(Place, Result<Confirmation, Term>)> {
        let Some(open) = self.open.get_mut(&reply.round) else { return Vec::new() };
        let refused: BTreeMap<Place, Term> = reply.refused.iter().copied().collect();
        let mut met = Vec::new();
        for (&place, asked) in &mut open.missing {
            if !asked.peers.contains(&from) {
                continue;
            }
            if let Some(&term) = refused.get(&place) {
                met.push((place, Err(term)));
                continue;
            }
            asked.peers.remove(&from);
            let confirmation = Confirmation {
                round: reply.round,
                sent_at: open.sent_at,
                clock_ms: open.clock_ms,
                complete: asked.peers.is_empty(),
                lease: asked.lease,
            };
            met.push((place, Ok(confirmation)));
        }
        open.missing.retain(|_, asked| !asked.peers.is_empty());
        if open.missing.is_empty() {
            self.open.remove(&reply.round);
        }
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupKey, Incarnation, Mode, NodeId, PartitionId};

    fn place(number: u32) -> Place {
        let group = GroupKey { mode: Mode::Strong, copies: 2 };
        Place { group, partition: PartitionId(number) }
    }

    fn peer(node: u64) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(node) }
    }

    #[test]
    fn one_message_per_peer_asks_about_all_partitions_of_the_pair() {
        let mut rounds = Rounds::default();
        rounds.want(place(1), Term(3), [peer(1), peer(2)], false, Mono(10));
        rounds.want(place(2), Term(4), [peer(2)], true, Mono(20));
        assert!(rounds.send(Mono(9), 0, 5).is_empty());
        let asked = rounds.send(Mono(10), 0, 5);
        assert_eq!(asked[&peer(1)].places, [(place(1), Term(3), false)]);
        assert_eq!(asked[&peer(2)].places, [(place(1), Term(3), false), (place(2), Term(4), true)]);
        assert_eq!(rounds.due(), None);
    }

    #[test]
    fn a_round_is_complete_when_every_peer_said_yes_once() {
        let mut rounds = Rounds::default();
        let round = rounds.want(place(1), Term(3), [peer(1), peer(2)], false, Mono(0));
        rounds.send(Mono(0), 77, 5);
        let yes = ConfirmReply { round, refused: Vec::new() };
        let complete = |met: &[(Place, Result<Confirmation, Term>)]| {
            met.iter().filter(|(_, met)| met.is_ok_and(|met| met.complete)).count()
        };
        assert_eq!(complete(&rounds.on_reply(peer(1), &yes)), 0);
        assert_eq!(rounds.on_reply(peer(1), &yes), []);
        assert_eq!(complete(&rounds.on_reply(peer(2), &yes)), 1);
    }

    #[test]
    fn a_refusal_never_completes_a_round() {
        let mut rounds = Rounds::default();
        let round = rounds.want(place(1), Term(3), [peer(1)], false, Mono(0));
        rounds.send(Mono(0), 0, 5);
        let no = ConfirmReply { round, refused: vec![(place(1), Term(9))] };
        assert_eq!(rounds.on_reply(peer(1), &no), [(place(1), Err(Term(9)))]);
    }

    #[test]
    fn reads_that_come_after_a_round_was_sent_wait_for_the_next() {
        let mut rounds = Rounds::default();
        let first = rounds.want(place(1), Term(3), [peer(1)], false, Mono(0));
        rounds.send(Mono(0), 0, 5);
        let second = rounds.want(place(1), Term(3), [peer(1)], false, Mono(0));
        assert!(second > first);
    }
}
