//! How calls of clients go through the world: attempts, replies, retries, ends.

use kiln_cluster::effect::{ItemKey, Operation, Outcome};
use kiln_cluster::ids::{Mode, NodeId, PartitionId, Place as Partition, Token};
use kiln_cluster::node::{Event as NodeEvent, Refusal, Reply};

use crate::clients::OpenCall;
use crate::history::{Call, Ending};
use crate::judge::{Violation, name_of};
use crate::network::Place;
use crate::queue::{MS, SECOND, Time};
use crate::world::{Attempt, Event, World};

/// Attempts that one call makes at most.
const ATTEMPTS_MAX: u32 = 200;

/// How long a write may take when all is well again: clients may still ask nodes that are gone.
const PROBE_MAX: Time = 10 * SECOND;

impl World<'_> {
    /// Where a key lies.
    pub(crate) fn place_of(&self, key: &ItemKey) -> Partition {
        let partition = self.agreement.topology().partition_of(&key.key);
        Partition { group: self.plan.cache.group(), partition: PartitionId(partition.0) }
    }

    pub(crate) fn on_next_call(&mut self, client: u32) {
        if self.clients.all[client as usize].open.is_some() {
            return;
        }
        let (key, operation) = match self.next_probe(client) {
            Some(probe) => probe,
            None if self.quiet => return,
            None => self.clients.draw(client),
        };
        let place = self.place_of(&key);
        let request = self.clients.request(client, key.clone(), place, operation.clone());
        let id = self.history.len();
        let clock_low_ms =
            self.machines.values().map(|machine| machine.clock.wall_ms(self.now)).min();
        self.history.push(Call {
            client,
            counter: request.id.map_or(0, |id| id.counter),
            key,
            place,
            operation,
            called: self.now,
            returned: Time::MAX,
            ending: Ending::Open,
            clock_low_ms: clock_low_ms.unwrap_or_default(),
        });
        self.stats.calls += 1;
        let call = &self.history[id];
        self.trace.say(self.now, || format!("call {id} by client {client}: {request:?}"));
        match place.group.mode {
            Mode::Strong => self.order.on_called(id, call, &self.rules),
            Mode::Eventual => self.eventual.on_called(&call.key, &call.operation),
        }
        let give_up_at = match self.probes_drawn {
            true => self.now + PROBE_MAX,
            false => self.now + self.clients.give_up_after(),
        };
        self.clients.all[client as usize].open = Some(OpenCall {
            id,
            request,
            attempts: 0,
            uncertain: false,
            hint: None,
            retries_wanted: 0,
            give_up_at,
        });
        self.attempt(client);
    }

    /// After the heal, one client writes each key once: these calls must succeed.
    fn next_probe(&mut self, client: u32) -> Option<(ItemKey, Operation)> {
        if client != 0 {
            return None;
        }
        let key = self.probes.pop()?;
        let operation = self.clients.probe(&key);
        Some((key, operation))
    }

    /// A retry is due, unless something overtook it.
    pub(crate) fn on_retry(&mut self, client: u32, call: usize, wanted: u32) {
        let open = self.clients.all[client as usize].open.as_ref();
        if open.is_some_and(|open| open.id == call && open.retries_wanted == wanted) {
            self.attempt(client);
        }
    }

    /// Sends the open call of a client to a node.
    pub(crate) fn attempt(&mut self, client: u32) {
        let Some(open) = self.clients.all[client as usize].open.as_ref() else { return };
        let (id, hinted) = (open.id, open.hint);
        let Some(node) = hinted.or_else(|| self.guess_node(id)) else {
            self.retry_later(client, 100 * MS);
            return;
        };
        let open = self.clients.all[client as usize].open.as_mut();
        let Some(open) = open else { return };
        open.hint = None;
        open.attempts += 1;
        let retry = open.attempts > 1;
        self.stats.retries += u64::from(retry);
        self.tokens += 1;
        let token = Token(self.tokens);
        self.attempts.insert(token, Attempt { client, call: id, node });
        let to = Place::Node(node.0);
        let arrivals = self.network.fate(Place::Client(client), to, self.now);
        // A repeated request is a new one to the node: it comes with a token of its own.
        if let Some(at) = arrivals.second {
            self.tokens += 1;
            let again = Token(self.tokens);
            self.attempts.insert(again, Attempt { client, call: id, node });
            self.queue.push(at, Event::Ask { to: node, token: again });
        }
        if let Some(at) = arrivals.first {
            self.queue.push(at, Event::Ask { to: node, token });
        }
        let patience = match self.probes_drawn {
            true => PROBE_MAX / 20,
            false => self.clients.patience(),
        };
        self.queue.push(self.now + patience, Event::Impatient { token });
    }

    /// The primary as the table has it, or, now and then, any node that runs.
    fn guess_node(&mut self, id: usize) -> Option<NodeId> {
        let place = self.history[id].place;
        let topology = self.agreement.topology();
        let state = topology.partition(place);
        let primary = match place.group.mode {
            Mode::Strong => state.and_then(|state| state.primary).map(|member| member.node),
            // Any owner will do.
            Mode::Eventual => {
                let owners: Vec<NodeId> = state
                    .iter()
                    .flat_map(|state| &state.in_sync)
                    .map(|member| member.node)
                    .collect();
                (!owners.is_empty()).then(|| *self.clients.pick(&owners))
            }
        };
        if primary.is_some() && !self.clients.chance(0.25) {
            return primary;
        }
        let known: Vec<NodeId> = self.machines.keys().copied().collect();
        (!known.is_empty()).then(|| *self.clients.pick(&known))
    }

    /// An attempt reaches a node.
    pub(crate) fn on_ask(&mut self, to: NodeId, token: Token) {
        let again = |to, token| Event::Ask { to, token };
        let Some(token) = self.unless_paused(to, token, again) else { return };
        let Some(attempt) = self.attempts.get(&token).copied() else { return };
        let Some(open) = self.clients.all[attempt.client as usize].open.as_ref() else {
            // The call has ended; a late attempt of it still reaches the node.
            self.ask_late(to, token, attempt);
            return;
        };
        if open.id != attempt.call {
            self.ask_late(to, token, attempt);
            return;
        }
        let request = open.request.clone();
        self.note_held_before(to, attempt.call);
        self.drive(to, NodeEvent::Request { token, request });
    }

    fn ask_late(&mut self, to: NodeId, token: Token, attempt: Attempt) {
        if let Some(request) = self.ended.get(&attempt.call).cloned() {
            self.drive(to, NodeEvent::Request { token, request });
        }
    }

    /// A reply reaches its client.
    pub(crate) fn on_told(&mut self, token: Token, reply: Reply) {
        let Some(attempt) = self.attempts.remove(&token) else { return };
        let Attempt { client, call, .. } = attempt;
        let is_open = self.clients.all[client as usize].open.as_ref().is_some_and(|o| o.id == call);
        if !is_open {
            self.judge_second_answer(call, &reply);
            return;
        }
        self.trace.say(self.now, || format!("call {call} is told {reply:?} by n{}", attempt.node));
        match reply {
            Reply::Done(outcome) => self.end(client, Ending::Answered(outcome)),
            // Memory will not grow: ask for something else, unless an earlier attempt is uncertain.
            Reply::NotApplied(Refusal::OutOfMemory) if !self.is_uncertain(client) => {
                self.end(client, Ending::NotApplied);
            }
            Reply::NotApplied(refusal) => {
                let hint = match refusal {
                    Refusal::NotPrimary(hint) => hint,
                    _ => None,
                };
                if let Some(open) = self.clients.all[client as usize].open.as_mut() {
                    open.hint = hint;
                }
                let pause = if hint.is_some() { MS } else { 20 * MS };
                self.retry_or_end(client, pause);
            }
            Reply::Indeterminate => {
                self.mark_uncertain(client);
                self.retry_or_end(client, 5 * MS);
            }
        }
    }

    /// An attempt had no answer for long enough.
    pub(crate) fn on_impatient(&mut self, token: Token) {
        let Some(attempt) = self.attempts.get(&token) else { return };
        let (client, call) = (attempt.client, attempt.call);
        let open = self.clients.all[client as usize].open.as_ref();
        if open.is_some_and(|open| open.id == call) {
            self.mark_uncertain(client);
            self.retry_or_end(client, MS);
        }
    }

    /// Whether the open call of a client may have taken effect already.
    fn is_uncertain(&self, client: u32) -> bool {
        let open = self.clients.all[client as usize].open.as_ref();
        open.is_none_or(|open| open.uncertain) || self.waits_for_other_attempts(client)
    }

    fn mark_uncertain(&mut self, client: u32) {
        if let Some(open) = self.clients.all[client as usize].open.as_mut() {
            open.uncertain = true;
        }
    }

    fn retry_or_end(&mut self, client: u32, pause: Time) {
        let Some(open) = self.clients.all[client as usize].open.as_ref() else { return };
        let tired = self.now >= open.give_up_at || open.attempts >= ATTEMPTS_MAX;
        let waits = self.waits_for_other_attempts(client);
        match (tired, open.uncertain || waits) {
            (false, _) => self.retry_later(client, pause),
            (true, true) => self.end(client, Ending::Unknown),
            (true, false) => self.end(client, Ending::NotApplied),
        }
    }

    /// Whether another attempt of the open call is still on its way: it may take effect yet.
    fn waits_for_other_attempts(&self, client: u32) -> bool {
        let open = self.clients.all[client as usize].open.as_ref();
        open.is_some_and(|open| self.attempts.values().any(|attempt| attempt.call == open.id))
    }

    fn retry_later(&mut self, client: u32, pause: Time) {
        let Some(open) = self.clients.all[client as usize].open.as_mut() else { return };
        open.retries_wanted += 1;
        let (id, wanted) = (open.id, open.retries_wanted);
        self.queue.push(self.now + pause, Event::Retry { client, call: id, wanted });
    }

    fn end(&mut self, client: u32, ending: Ending) {
        let Some(open) = self.clients.all[client as usize].open.take() else { return };
        let call = &mut self.history[open.id];
        let is_probe = self.probes_drawn && !self.profile.is_tight();
        if is_probe && !matches!(ending, Ending::Answered(_)) {
            let finding = format!("call {} ended as {ending:?} when all was well", open.id);
            let violation = Violation::new("it heals within a bound", name_of(&call.key), finding);
            self.violation.get_or_insert(violation);
        }
        if ending != Ending::Unknown {
            call.returned = self.now;
        }
        call.ending = ending;
        match &call.ending {
            Ending::Answered(outcome) => {
                self.stats.answered += 1;
                self.stats.losses_told += u64::from(matches!(outcome, Outcome::Lost(_)));
                self.clients.learn(client, &call.key, call.place, outcome);
            }
            Ending::NotApplied => self.stats.not_applied += 1,
            Ending::Unknown | Ending::Open => self.stats.unknown += 1,
        }
        self.trace.say(self.now, || format!("call {} ended: {:?}", open.id, call.ending));
        self.ended.insert(open.id, open.request);
        self.judge_ended(open.id);
        let think = self.clients.think(self.plan.think);
        self.queue.push(self.now + think, Event::NextCall { client });
    }

    /// Two attempts of one change must have one answer.
    fn judge_second_answer(&mut self, call: usize, reply: &Reply) {
        let call = &self.history[call];
        let (Reply::Done(outcome), Ending::Answered(first)) = (reply, &call.ending) else { return };
        let changes = matches!(first, Outcome::Stored(_) | Outcome::Number(..) | Outcome::Deleted);
        if changes && first != outcome && call.place.group.mode == Mode::Strong {
            let lost = self.losses.iter().any(|l| l.place == call.place && l.from >= call.called);
            if !lost {
                let finding = format!("{first:?} and {outcome:?} for {:?}", call.operation);
                let violation =
                    Violation::new("one answer per request", name_of(&call.key), finding);
                self.break_promise(violation);
            }
        }
    }
}
