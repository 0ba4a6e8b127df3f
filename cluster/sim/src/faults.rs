//! What goes wrong, and how it ends.

use std::sync::Arc;

use kiln_cluster::heartbeat::{LocalFacts, Readiness};
use kiln_cluster::ids::{Member, NodeId};
use kiln_cluster::node::Event as NodeEvent;
use kiln_cluster::topology::{NodeState, TopologyCommand};

use crate::network::{Place, Weather, draw_weather};
use crate::queue::{MS, SECOND, Time};
use crate::world::{Event, World};

/// Most machines of a run, those that left included.
const MACHINES_MAX: usize = 12;
/// How often it is looked whether all is well after the heal.
pub(crate) const CHECK_EVERY: Time = 200 * MS;

impl World<'_> {
    /// Draws a fault and the time of the next one.
    pub(crate) fn on_fault(&mut self) {
        if self.healing {
            return;
        }
        let next = self.faults.wait(self.profile.fault_every as f64) as Time;
        self.queue.push(self.now + next.max(MS), Event::Fault);
        let weights = self.profile.faults;
        let kinds = [
            weights.kill,
            weights.pause,
            weights.cut,
            weights.isolate,
            weights.clock,
            weights.suspicion,
            weights.controller,
            weights.weather,
            weights.join,
            weights.drain,
        ];
        let Some(victim) = self.draw_live() else { return };
        match self.faults.weighted(&kinds) {
            0 => self.kill_for_a_while(victim),
            1 => self.pause(victim),
            2 => self.cut(victim),
            3 => self.isolate(victim),
            4 => self.set_clock_wrong(victim),
            5 => self.suspect(victim),
            6 => self.trouble_controller(victim),
            7 => {
                let weather = draw_weather(&mut self.faults, self.profile.delay_max);
                self.trace.say(self.now, || format!("FAULT weather {weather:?}"));
                self.network.set_weather(weather);
            }
            8 => self.join_new(),
            _ => self.drain(victim),
        }
    }

    fn draw_live(&mut self) -> Option<NodeId> {
        let live: Vec<NodeId> = self.live().map(|process| process.member.node).collect();
        (!live.is_empty()).then(|| *self.faults.pick(&live))
    }

    fn kill_for_a_while(&mut self, victim: NodeId) {
        // Now and then all copies shall die, but a run in which they always do shows little.
        let dead = self.machines.values().filter(|m| m.process.is_none() && !m.leaving).count();
        let spare = usize::from(self.plan.cache.copies) - 1;
        if dead >= spare.max(1) && !self.faults.chance(0.15) {
            return;
        }
        self.kill(victim);
        let after =
            *self.faults.pick(&[MS, 30 * MS, 300 * MS, 1_500 * MS, 5 * SECOND, 20 * SECOND]);
        let after = after / 2 + self.faults.below(after);
        self.queue.push(self.now + after, Event::Restart { node: victim });
    }

    /// Ends a process; its memory is gone.
    pub(crate) fn kill(&mut self, victim: NodeId) {
        let Some(machine) = self.machines.get_mut(&victim) else { return };
        let Some(process) = machine.process.take() else { return };
        machine.paused_until = 0;
        machine.backlog.clear();
        self.stats.kills += 1;
        self.trace.say(self.now, || format!("FAULT kill {}", process.member));
        self.note_death(process.member);
    }

    pub(crate) fn restart(&mut self, node: NodeId) {
        let gone = self.machines.get(&node).is_none_or(|machine| machine.leaving);
        if !gone && self.process(node).is_none() {
            self.start(node);
        }
    }

    fn pause(&mut self, victim: NodeId) {
        let span = *self.faults.pick(&[300 * MS, SECOND, 3 * SECOND, 10 * SECOND, 60 * SECOND]);
        let until = self.now + span / 3 + self.faults.below(span);
        if let Some(machine) = self.machines.get_mut(&victim) {
            machine.paused_until = until.max(machine.paused_until);
            self.stats.pauses += 1;
            self.queue.push(until, Event::Resume { node: victim });
        }
        self.trace.say(self.now, || format!("FAULT n{victim} stands still until {until}"));
    }

    fn cut(&mut self, victim: NodeId) {
        let others: Vec<NodeId> =
            self.machines.keys().copied().filter(|&node| node != victim).collect();
        if others.is_empty() {
            return;
        }
        let other = *self.faults.pick(&others);
        let until = self.now + self.span();
        let both = self.faults.chance(0.5);
        self.stats.cuts += 1;
        self.trace
            .say(self.now, || format!("FAULT cut n{victim} > n{other} both {both} to {until}"));
        let (victim, other) = (Place::Node(victim.0), Place::Node(other.0));
        self.network.cut(victim, other, until);
        if both {
            self.network.cut(other, victim, until);
        }
    }

    /// Cuts a node off, or half of them; with or without the controller group.
    fn isolate(&mut self, victim: NodeId) {
        let until = self.now + self.span();
        let mut inside = vec![victim];
        if self.faults.chance(0.3) {
            for node in self.machines.keys() {
                if *node != victim && self.faults.chance(0.4) {
                    inside.push(*node);
                }
            }
        }
        let controller = self.faults.chance(0.5);
        let one_way = self.faults.chance(0.25);
        self.stats.cuts += 1;
        self.trace.say(self.now, || {
            format!("FAULT isolate {inside:?} controller {controller} one way {one_way} to {until}")
        });
        let outside = self.machines.keys().filter(|node| !inside.contains(node));
        let mut outside: Vec<Place> = outside.map(|node| Place::Node(node.0)).collect();
        if controller {
            outside.push(Place::Agreement);
        }
        for inner in inside.iter().map(|node| Place::Node(node.0)) {
            for &outer in &outside {
                self.network.cut(inner, outer, until);
                if !one_way {
                    self.network.cut(outer, inner, until);
                }
            }
        }
    }

    fn set_clock_wrong(&mut self, victim: NodeId) {
        if let Some(machine) = self.machines.get_mut(&victim) {
            machine.clock.step_wall(&mut self.faults, self.profile.clock_offset_ms);
            self.trace.say(self.now, || format!("FAULT clock of n{victim}"));
        }
    }

    /// Lets the controller group believe of a healthy node that it is dead, and decide accordingly.
    fn suspect(&mut self, victim: NodeId) {
        let topology = self.agreement.topology().clone();
        let Some(member) = topology.member(victim) else { return };
        let mut commands = Vec::new();
        if self.faults.chance(0.5) {
            commands.push(TopologyCommand::SetNodeState { member, state: NodeState::Down });
        }
        for (place, state) in topology.places() {
            if !state.in_sync.contains(&member) || self.faults.chance(0.3) {
                continue;
            }
            let version = state.version;
            if state.primary == Some(member) {
                let others = state.in_sync.iter().copied().filter(|&other| other != member);
                let others: Vec<Member> = others.collect();
                if others.is_empty() {
                    continue;
                }
                let to = *self.faults.pick(&others);
                let remove = if self.faults.chance(0.6) { vec![member] } else { Vec::new() };
                commands.push(TopologyCommand::ChangePrimary { place, version, to, remove });
            } else {
                commands.push(TopologyCommand::Shrink { place, version, member });
            }
        }
        self.stats.suspicions += 1;
        self.trace.say(self.now, || format!("FAULT suspicion of n{victim}"));
        for command in commands {
            self.propose(victim, command);
        }
    }

    fn trouble_controller(&mut self, victim: NodeId) {
        if self.faults.chance(0.6) {
            self.trace.say(self.now, || format!("FAULT n{victim} becomes controller"));
            self.make_leader(victim);
        } else {
            self.agreement.out_until = self.now + self.span();
            let until = self.agreement.out_until;
            self.trace.say(self.now, || format!("FAULT no commits until {until}"));
        }
    }

    fn join_new(&mut self) {
        if self.machines.len() >= MACHINES_MAX {
            return;
        }
        let next = self.machines.keys().next_back().map_or(1, |node| node.0 + 1);
        self.stats.joins += 1;
        self.start(NodeId(next));
    }

    fn drain(&mut self, victim: NodeId) {
        let staying = self.machines.values().filter(|machine| !machine.leaving).count();
        if staying <= usize::from(self.plan.cache.copies) {
            return;
        }
        let Some(member) = self.process(victim).map(|process| process.member) else { return };
        if let Some(machine) = self.machines.get_mut(&victim) {
            machine.leaving = true;
        }
        self.stats.drains += 1;
        self.trace.say(self.now, || format!("FAULT drain {member}"));
        let facts = LocalFacts { readiness: Readiness::Leaving, ..LocalFacts::default() };
        self.drive(victim, NodeEvent::Facts(facts));
        self.keep_draining(member);
    }

    /// A leaving node says so until the table has it, and goes when it holds nothing.
    pub(crate) fn keep_draining(&mut self, member: Member) {
        let command = TopologyCommand::SetNodeState { member, state: NodeState::Draining };
        self.propose(member.node, command);
    }

    pub(crate) fn leave_if_drained(&mut self, node: NodeId) {
        if !self.machines.get(&node).is_some_and(|machine| machine.leaving) {
            return;
        }
        let Some(process) = self.process(node) else { return };
        let member = process.member;
        let known = Arc::clone(process.node.topology());
        let state = known.nodes.get(&node).map(|info| info.state);
        let present = known.is_present(member);
        match state {
            Some(NodeState::Draining) if present && known.drain_progress(node).is_done() => {
                self.trace.say(self.now, || format!("{member} is drained and leaves"));
                self.propose(node, TopologyCommand::RemoveNode { member });
                self.stop_drained(node);
            }
            Some(NodeState::Draining) if present => {}
            Some(_) if present => self.keep_draining(member),
            _ => self.stop_drained(node),
        }
    }

    fn stop_drained(&mut self, node: NodeId) {
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.process = None;
            self.stats.left += 1;
        }
    }

    fn span(&mut self) -> Time {
        let span = *self.faults.pick(&[200 * MS, SECOND, 3 * SECOND, 10 * SECOND]);
        span / 2 + self.faults.below(span)
    }

    /// All faults off.
    pub(crate) fn heal(&mut self) {
        self.trace.say(self.now, || "HEAL".into());
        self.healing = true;
        self.network.heal();
        self.network.set_weather(Weather::FAIR);
        self.agreement.out_until = 0;
        let nodes: Vec<NodeId> = self.machines.keys().copied().collect();
        for node in nodes {
            if let Some(machine) = self.machines.get_mut(&node)
                && machine.paused_until > self.now
            {
                machine.paused_until = self.now;
                self.queue.push(self.now, Event::Resume { node });
            }
            self.restart(node);
        }
        self.remove_dead_that_left();
        self.queue.push(self.now + CHECK_EVERY, Event::CheckHealed);
    }

    /// A machine that was leaving and died on the way stays away: an operator says so.
    pub(crate) fn remove_dead_that_left(&mut self) {
        let gone: Vec<NodeId> = self
            .machines
            .iter()
            .filter(|(_, machine)| machine.leaving && machine.process.is_none())
            .map(|(&node, _)| node)
            .collect();
        for node in gone {
            if let Some(member) = self.agreement.topology().member(node) {
                self.propose(node, TopologyCommand::RemoveNode { member });
            }
        }
    }
}
