//! When the judges are asked, and what they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_cluster::effect::{Item, ItemKey, Outcome};
use kiln_cluster::ids::{Member, Mode, NodeId, Place as Partition, Token, Version};
use kiln_cluster::message::Message;
use kiln_cluster::node::Reply;
use kiln_cluster::topology::{Applied, NodeState, PartitionState, Topology};

use crate::clock::WALL_START_MS;
use crate::faults::CHECK_EVERY;
use crate::history::{Call, Ending};
use crate::judge::convergence::{self, Copy};
use crate::judge::{Violation, eventual, linear, name_of};
use crate::queue::{MS, SECOND, Time};
use crate::world::{Departure, Event, HeldBefore, Loss, World};

/// How long the load goes on after the heal.
const LOAD_AFTER_HEAL: Time = 1_500 * MS;
/// How long it may take until all is well again.
const HEAL_MAX: Time = 90 * SECOND;

/// Clocks this much ahead of the own wall clock are followed; the configured limit less a margin.
const FOLLOWED_AHEAD_MS: u64 = 900;

impl World<'_> {
    fn mode(&self) -> Mode {
        self.plan.cache.mode
    }

    /// The calls' judge, when a client knows how its call ended.
    pub(crate) fn judge_ended(&mut self, id: usize) {
        let call = &self.history[id];
        let verdict = match self.mode() {
            Mode::Strong => self.order.on_ended(id, call, &self.rules),
            Mode::Eventual => self.judge_eventual(id),
        };
        self.take(verdict);
    }

    fn judge_eventual(&mut self, id: usize) -> Result<(), Violation> {
        let call = &self.history[id];
        let Ending::Answered(outcome) = &call.ending else { return Ok(()) };
        match outcome {
            Outcome::Hit(item) => self.eventual.on_seen(&call.key, item),
            // Known limit: what a cut-off owner takes after all owners in sync died is lost, because
            // their deletes are. It hears of it when the cut ends.
            Outcome::Stored(_) | Outcome::Number(..) if self.outdated.contains(&id) => Ok(()),
            Outcome::Stored(version) | Outcome::Number(_, version) => {
                // Two owners may be asked, one after the other, and the second may know less.
                let only = self.held_before.get(&id).filter(|before| before.asked == 1);
                let held = only.and_then(|before| before.held);
                let heard = only.and_then(|before| before.heard);
                self.eventual.on_written(&call.key, *version, held, heard)
            }
            _ => Ok(()),
        }
    }

    /// What the owner that a call reaches holds of the key: its write must be newer.
    pub(crate) fn note_held_before(&mut self, to: NodeId, call: usize) {
        if self.mode() == Mode::Strong {
            return;
        }
        if let Some(before) = self.held_before.get_mut(&call) {
            before.asked += 1;
            return;
        }
        let key = &self.history[call].key;
        let Some(process) = self.process(to) else { return };
        let held = process.node.held(key).map(|held| held.version);
        // A node that is no owner passes the call on to one that may know less.
        let place = self.history[call].place;
        let owns = process
            .node
            .topology()
            .partition(place)
            .is_some_and(|state| state.in_sync.contains(&process.member));
        // A clock that is too far ahead is not followed; the judge does not expect it.
        let wall_ms = self.machines[&to].clock.wall_ms(self.now);
        let near = |heard: &Version| eventual::millis(*heard) < wall_ms + FOLLOWED_AHEAD_MS;
        let heard = Some(process.heard).filter(|_| owns).filter(near);
        let before = HeldBefore { asked: 1, held: held.filter(|_| owns), heard };
        self.held_before.insert(call, before);
    }

    /// Whether a node has not heard yet that the data of a partition were lost: it drops what it
    /// holds before it serves or confirms anything.
    fn is_outdated(&self, who: Member, place: Partition) -> bool {
        let generation = |topology: &Topology| topology.partition(place).map(|s| s.generation);
        let known = self.process_of(who).and_then(|p| generation(p.node.topology()));
        known < generation(self.agreement.topology())
    }

    /// A message brings what its sender had heard of, unless the addressee will not take it.
    pub(crate) fn pass_on_heard(&mut self, to: NodeId, message: &Message, heard: Version) {
        let Some(machine) = self.machines.get_mut(&to) else { return };
        let Some(process) = machine.process.as_mut() else { return };
        let taken =
            message.to == process.member && process.node.topology().is_present(message.from);
        if taken {
            process.heard = process.heard.max(heard);
        }
    }

    /// A node answers: at this moment an acknowledged write is on every copy that counts.
    pub(crate) fn on_reply(&mut self, who: Member, token: Token, reply: Reply) {
        if let (Reply::Done(outcome), Some(attempt)) = (&reply, self.attempts.get(&token).copied())
        {
            let version = match outcome {
                Outcome::Stored(version) | Outcome::Number(_, version) => Some(*version),
                _ => None,
            };
            if let Some(version) = version
                && self.mode() == Mode::Strong
            {
                let verdict = self.judge_acknowledged(who, attempt.call, version);
                self.take(verdict);
            }
            let call = attempt.call;
            if version.is_some() && self.is_outdated(who, self.history[call].place) {
                self.outdated.insert(call);
            }
            if let Some(version) = version
                && let Some(machine) = self.machines.get_mut(&who.node)
                && let Some(process) = machine.process.as_mut()
            {
                process.heard = process.heard.max(version);
            }
        }
        let Some(attempt) = self.attempts.get(&token) else { return };
        let (from, to) = (
            crate::network::Place::Node(who.node.0),
            crate::network::Place::Client(attempt.client),
        );
        if let Some(at) = self.network.fate(from, to, self.now).first {
            self.queue.push(at, Event::Tell { token, reply });
        }
    }

    fn judge_acknowledged(
        &self,
        who: Member,
        id: usize,
        version: Version,
    ) -> Result<(), Violation> {
        let call = &self.history[id];
        let Some(state) = self.agreement.topology().partition(call.place) else { return Ok(()) };
        let may_be_gone = self.order.may_be_gone(call, &self.rules);
        let mut holders = BTreeSet::new();
        for process in self.live() {
            let held = process.node.held(&call.key);
            if held.as_ref().is_some_and(|held| held.version >= version) || may_be_gone {
                holders.insert(process.member);
            }
            let older = held.as_ref().is_some_and(|held| {
                held.version < version && self.is_surely_visible(held.item.as_ref())
            });
            let absent = held.is_none_or(|held| held.version < version);
            if state.in_sync.contains(&process.member) && (older || (absent && !may_be_gone)) {
                let held = process.node.held(&call.key).map(|held| (held.version, held.item));
                let finding = format!(
                    "{who} acknowledged version {version} of call {id}, {} holds {held:?}",
                    process.member
                );
                return Err(Violation::new(
                    "acknowledged writes are on every copy",
                    name_of(&call.key),
                    finding,
                ));
            }
        }
        // A holder may die or drop its copy between the moment at which the primary had all
        // confirmations and a later answer, so only answers of that same turn are judged; and one
        // that left since it confirmed cannot be asked.
        if !self.made_stable {
            return Ok(());
        }
        let gone = self.departures.iter().filter(|gone| {
            gone.at >= call.called && gone.place.is_none_or(|place| place == call.place)
        });
        let mut held_it: BTreeSet<Member> = gone.map(|gone| gone.who).collect();
        held_it.extend(&holders);
        let known = self.process_of(who).and_then(|p| p.node.topology().partition(call.place));
        let wanted = usize::from(self.rules.min_in_sync);
        let knows =
            known.is_some_and(|known| known.primary == Some(who) && known.in_sync.len() < wanted);
        if held_it.len() < wanted || (knows && holders.len() < wanted) {
            let holders = holders.len();
            let finding = format!("version {version} of call {id} is in {holders} memories");
            let rule = "acknowledged writes are in min_in_sync memories";
            return Err(Violation::new(rule, name_of(&call.key), finding));
        }
        Ok(())
    }

    /// Whether an item is there and no clock can be beyond its end: what ended may lie about.
    fn is_surely_visible(&self, item: Option<&Item>) -> bool {
        let latest_ms = WALL_START_MS + self.now / MS + self.rules.clock_error_ms;
        item.is_some_and(|item| item.deadline_ms.is_none_or(|deadline| deadline > latest_ms))
    }

    /// The table changed.
    pub(crate) fn judge_commit(&mut self, before: &Arc<Topology>, applied: &Applied) {
        let topology = Arc::clone(self.agreement.topology());
        if let Err(rule) = topology.check() {
            self.break_promise(Violation::new("the table is sound", "table", rule.into()));
        }
        for &place in &applied.changed {
            let Some(state) = topology.partition(place) else { continue };
            let verdict = self.primaries.on_committed(place, state.term, state.version);
            self.take(verdict);
            let old = before.partition(place);
            let removed = old.into_iter().flat_map(|old| &old.in_sync);
            for &who in removed.filter(|member| !state.in_sync.contains(member)) {
                self.departures.push(Departure { at: self.now, who, place: Some(place) });
            }
            if old.is_some_and(|old| old.generation != state.generation) {
                let survivor = old.and_then(|old| {
                    old.in_sync.iter().find(|&&member| self.process_of(member).is_some()).copied()
                });
                self.note_loss(place, survivor);
            }
        }
    }

    /// The table says that the data of a partition are lost: is it true?
    fn note_loss(&mut self, place: Partition, survivor: Option<Member>) {
        if let Some(survivor) = survivor {
            let finding = format!("declared lost while {survivor} lives and was in sync");
            self.break_promise(Violation::new("a loss is proved", place, finding));
        }
        self.stats.losses += 1;
        self.losses.push(Loss { place, from: self.now, until: Time::MAX });
        let topology = Arc::clone(self.agreement.topology());
        let group = self.plan.cache.group();
        let place_of =
            |key: &ItemKey| Partition { group, partition: topology.partition_of(&key.key) };
        self.order.on_lost(place, self.now, place_of);
        self.eventual.on_lost(|key| place_of(key) == place);
    }

    /// A process hears of another table. Where it is no longer a copy it drops what it holds, which
    /// may be long after the removal was committed and after it confirmed writes.
    pub(crate) fn note_learned(&mut self, node: NodeId, new: &Topology) {
        let Some(process) = self.process(node) else { return };
        let (who, known) = (process.member, Arc::clone(process.node.topology()));
        if known.epoch >= new.epoch {
            return;
        }
        let counts = |state: &PartitionState| state.in_sync.contains(&who);
        for (place, _) in known.places().filter(|(_, state)| counts(state)) {
            if !new.partition(place).is_some_and(counts) {
                self.departures.push(Departure { at: self.now, who, place: Some(place) });
            }
        }
    }

    /// A process died.
    pub(crate) fn note_death(&mut self, who: Member) {
        self.departures.push(Departure { at: self.now, who, place: None });
        if self.mode() == Mode::Eventual {
            let best = |key: &ItemKey| {
                self.live()
                    .filter_map(|process| process.node.held(key))
                    .map(|held| held.version)
                    .max()
            };
            let keys: Vec<ItemKey> = self.eventual.keys().cloned().collect();
            let best: BTreeMap<ItemKey, Option<Version>> =
                keys.into_iter().map(|key| (key.clone(), best(&key))).collect();
            self.eventual.on_deaths(|key| best.get(key).copied().flatten());
        }
    }

    /// Every key on every copy that counts.
    pub(crate) fn audit(&mut self) {
        let verdict = match self.mode() {
            Mode::Strong => self.audit_strong(),
            Mode::Eventual => self.audit_eventual(),
        };
        match verdict {
            Ok(audited) => self.stats.copies_audited += audited,
            Err(violation) => self.break_promise(violation),
        }
    }

    fn audit_strong(&self) -> Result<u64, Violation> {
        let topology = self.agreement.topology();
        let mut audited = 0;
        for key in self.order.keys() {
            let Some(state) = topology.partition(self.place_of(key)) else { continue };
            for &member in &state.in_sync {
                let Some(process) = self.process_of(member) else { continue };
                if self.is_outdated(member, self.place_of(key)) {
                    continue;
                }
                let held = process.node.held(key);
                let version = held
                    .filter(|held| self.is_surely_visible(held.item.as_ref()))
                    .map(|held| held.version);
                self.order.on_copy(key, &member.to_string(), version, self.now, &self.rules)?;
                audited += 1;
            }
        }
        Ok(audited)
    }

    fn audit_eventual(&mut self) -> Result<u64, Violation> {
        let mut seen = Vec::new();
        for process in self.live() {
            for key in self.eventual.keys() {
                if let Some(held) = process.node.held(key) {
                    seen.push((process.member, key.clone(), held));
                }
            }
        }
        let audited = seen.len() as u64;
        for (member, key, held) in seen {
            self.eventual.on_copy(member, &key, held.version, held.item.is_some())?;
            if let Some(item) = &held.item {
                self.eventual.on_seen(&key, item)?;
            }
        }
        Ok(audited)
    }

    /// Looks whether all is well again; a run ends well when it is, twice: before and after every
    /// key was written once more.
    pub(crate) fn check_healed(&mut self) {
        let since = self.now - self.plan.heal_at;
        self.quiet |= since >= LOAD_AFTER_HEAL;
        self.remove_dead_that_left();
        self.unhealed = self.find_unhealed().err();
        if since > HEAL_MAX
            && let Some(violation) = self.unhealed.take()
        {
            self.break_promise(violation);
            return;
        }
        if self.unhealed.is_none() && self.quiet {
            // Where memory is short, writes may be refused for ever.
            if self.probes_drawn || self.profile.is_tight() {
                self.stats.heal_ms = since / MS;
                self.healed_at = Some(self.now);
                return;
            }
            self.probes_drawn = true;
            self.probes = self.clients.probes();
            self.queue.push(self.now, Event::NextCall { client: 0 });
        }
        self.queue.push(self.now + CHECK_EVERY, Event::CheckHealed);
    }

    /// What is not well yet.
    fn find_unhealed(&self) -> Result<(), Violation> {
        let unwell = |subject: &dyn std::fmt::Display, finding: String| {
            Err(Violation::new("it heals within a bound", subject, finding))
        };
        if let Some(open) = self.clients.all.iter().find_map(|client| client.open.as_ref()) {
            return unwell(&"calls", format!("call {} is open", open.id));
        }
        if !self.probes.is_empty() {
            return unwell(&"calls", format!("{} probes to go", self.probes.len()));
        }
        let topology = self.agreement.topology();
        let fit = topology.nodes.values().filter(|info| info.state == NodeState::Ready).count();
        let staying = self.machines.values().filter(|machine| !machine.leaving).count();
        let settled = fit == staying && topology.nodes.len() == staying;
        if !settled && !self.profile.is_tight() {
            let states: Vec<String> = topology
                .nodes
                .iter()
                .map(|(node, info)| format!("n{node} {:?}", info.state))
                .collect();
            return unwell(&"table", format!("{staying} nodes stay, table has {states:?}"));
        }
        let wanted = fit.min(usize::from(self.plan.cache.copies));
        for (place, state) in topology.places() {
            // Small memories may have no room for all copies; what is held must still be right.
            if self.profile.is_tight() {
                self.judge_copies(place, state.in_sync.len())?;
                continue;
            }
            if state.in_sync.len() != wanted || !state.learners.is_empty() {
                return unwell(&place, format!("{wanted} copies wanted: {state:?}"));
            }
            let target: Vec<NodeId> = state.target.clone();
            if !state.in_sync.iter().all(|member| target.contains(&member.node)) {
                return unwell(&place, format!("copies are not where they should be: {state:?}"));
            }
            self.judge_copies(place, wanted)?;
        }
        self.judge_survivors()
    }

    /// The copies of a partition, compared.
    fn judge_copies(&self, place: Partition, wanted: usize) -> Result<(), Violation> {
        let Some(state) = self.agreement.topology().partition(place) else { return Ok(()) };
        let mut copies = Vec::new();
        for &member in &state.in_sync {
            let Some(process) = self.process_of(member) else { continue };
            let clock_ms = self.machines[&member.node].clock.wall_ms(self.now);
            // Items near their end may be gone here and not yet there.
            let margin = 2 * self.rules.clock_error_ms + 1;
            let lives =
                |item: &Item| item.deadline_ms.is_none_or(|deadline| deadline > clock_ms + margin);
            let items = process
                .node
                .copy_of(place)
                .into_iter()
                .filter_map(|(key, held)| held.item.filter(lives).map(|item| (key, item)));
            copies.push(Copy { owner: member, items: items.collect() });
        }
        convergence::judge(place, &copies, wanted, |_| {
            self.rules.evicts && self.mode() == Mode::Strong
        })
    }

    /// What was acknowledged in eventual mode and could survive, did.
    fn judge_survivors(&self) -> Result<(), Violation> {
        if self.mode() == Mode::Strong {
            return Ok(());
        }
        for key in self.eventual.keys() {
            let Some(state) = self.agreement.topology().partition(self.place_of(key)) else {
                continue;
            };
            // A tombstone whose life is over, an end or an eviction leave nothing behind.
            let may_be_absent = self
                .history
                .iter()
                .any(|call| call.key == *key && call.may_remove_from(&self.rules).is_some());
            for &member in &state.in_sync {
                let Some(process) = self.process_of(member) else { continue };
                let held = process.node.held(key).map(|held| (held.version, held.item.is_some()));
                self.eventual.on_healed(member, key, held, may_be_absent)?;
            }
        }
        Ok(())
    }

    /// At the end: every probe was answered, and every history is linearizable.
    pub(crate) fn judge_histories(&mut self) {
        if self.mode() == Mode::Eventual {
            return;
        }
        let mut by_key: BTreeMap<&ItemKey, Vec<&Call>> = BTreeMap::new();
        for call in &self.history {
            by_key.entry(&call.key).or_default().push(call);
        }
        let mut verdict = Ok(());
        for (key, calls) in by_key {
            let place = self.place_of(key);
            let losses: Vec<(Time, Time)> = self
                .losses
                .iter()
                .filter(|loss| loss.place == place)
                .map(|loss| (loss.from, loss.until))
                .collect();
            match linear::judge(&calls, &losses, &self.rules) {
                Ok(finding) => {
                    self.stats.keys_checked += 1;
                    self.stats.keys_undecided += u64::from(finding == linear::Finding::Undecided);
                }
                Err(violation) => {
                    for call in calls {
                        self.trace.say(call.called, || format!("history: {call:?}"));
                    }
                    verdict = Err(violation);
                }
            }
        }
        self.take(verdict);
    }
}
