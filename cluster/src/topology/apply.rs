//! The state machine of the controller group: one command at a time, the same result everywhere.
//!
//! A command is checked whole before anything changes, so one that is refused leaves no trace. No
//! floating point, no clock, no randomness and no iteration in an unfixed order takes part: members
//! of the group may be different builds on different machines.

use std::collections::BTreeSet;

use super::{
    Applied, CACHE_NAME_LEN_MAX, CACHES_MAX, COMMANDS_PER_BATCH_MAX, CacheFault, CacheSettings,
    CacheSpec, NODES_MAX, NodeInfo, NodeProfile, NodeState, PartitionState, ReadMode, Rejected,
    STREAM_DEFINITION_LEN_MAX, STREAM_NAME_LEN_MAX, STREAMS_MAX, Topology, TopologyCommand,
};
use crate::ids::{GroupKey, Incarnation, Member, Mode, NodeId, PartitionId, Place};
use crate::placement::COPIES_MAX;

impl Topology {
    /// Carries out a command, or says why not and changes nothing.
    pub fn apply(&mut self, command: &TopologyCommand) -> Result<Applied, Rejected> {
        let applied = match command {
            TopologyCommand::Batch(commands) => self.apply_batch(commands)?,
            single => self.apply_single(single)?,
        };
        self.epoch = self.epoch.next();
        Ok(applied)
    }

    fn apply_batch(&mut self, commands: &[TopologyCommand]) -> Result<Applied, Rejected> {
        if commands.len() > COMMANDS_PER_BATCH_MAX {
            return Err(Rejected::TooMany { limit: COMMANDS_PER_BATCH_MAX });
        }
        let (mut all, mut first_refusal, mut any) = (Applied::default(), None, false);
        for command in commands {
            match self.apply_single(command) {
                Ok(applied) => {
                    any = true;
                    all.changed.extend(applied.changed);
                    all.lost.extend(applied.lost);
                }
                Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
            }
        }
        if any { Ok(all) } else { Err(first_refusal.unwrap_or(Rejected::NoChange)) }
    }

    fn apply_single(&mut self, command: &TopologyCommand) -> Result<Applied, Rejected> {
        match command {
            TopologyCommand::Join { node, incarnation, replaces, profile } => {
                self.join(*node, *incarnation, *replaces, profile)
            }
            TopologyCommand::SetNodeState { member, state } => self.set_node_state(*member, *state),
            TopologyCommand::SetWeight { node, weight } => self.set_weight(*node, *weight),
            TopologyCommand::RemoveNode { member } => self.remove_node(*member),
            TopologyCommand::CreateCache { name, spec } => self.create_cache(name, spec),
            TopologyCommand::ChangeCache { name, settings } => self.change_cache(name, settings),
            TopologyCommand::DropCache { name } => self.drop_cache(name),
            TopologyCommand::SetTargets { group, targets } => self.set_targets(*group, targets),
            TopologyCommand::Assign { place, version, members } => {
                self.assign(*place, *version, members)
            }
            TopologyCommand::AddLearner { place, version, member } => {
                self.holder(*member)?;
                self.change(*place, *version, |state| {
                    if state.involves(*member) {
                        return Err(Rejected::AlreadyThere(*member));
                    }
                    if state.in_sync.is_empty() {
                        return Err(Rejected::NotHeld);
                    }
                    if state.learners.len() >= COPIES_MAX {
                        return Err(Rejected::TooMany { limit: COPIES_MAX });
                    }
                    state.learners.push(*member);
                    Ok(())
                })
            }
            TopologyCommand::RemoveLearner { place, version, member } => {
                self.change(*place, *version, |state| {
                    if !state.learners.contains(member) {
                        return Err(Rejected::NotLearner(*member));
                    }
                    state.learners.retain(|learner| learner != member);
                    Ok(())
                })
            }
            TopologyCommand::Promote { place, version, term, member } => {
                self.present(*member)?;
                self.change(*place, *version, |state| {
                    if state.term != *term {
                        return Err(Rejected::OutdatedTerm { expected: *term, found: state.term });
                    }
                    if !state.learners.contains(member) {
                        return Err(Rejected::NotLearner(*member));
                    }
                    state.learners.retain(|learner| learner != member);
                    state.in_sync.push(*member);
                    Ok(())
                })
            }
            TopologyCommand::Shrink { place, version, member } => {
                self.change(*place, *version, |state| {
                    if state.primary == Some(*member) {
                        return Err(Rejected::IsPrimary(*member));
                    }
                    if !state.in_sync.contains(member) {
                        return Err(Rejected::NotInSync(*member));
                    }
                    state.in_sync.retain(|copy| copy != member);
                    Ok(())
                })
            }
            TopologyCommand::ChangePrimary { place, version, to, remove } => {
                self.change(*place, *version, |state| change_primary(state, *to, remove))
            }
            TopologyCommand::AcknowledgeLoss { group, partition } => {
                self.acknowledge_loss(*group, *partition)
            }
            TopologyCommand::Batch(_) => Err(Rejected::Nested),
            TopologyCommand::CreateStream { name, definition } => {
                self.create_stream(name, definition)
            }
            TopologyCommand::DropStream { name } => {
                let known = self.streams.remove(name);
                known.map(|_| Applied::default()).ok_or(Rejected::UnknownStream)
            }
        }
    }

    fn join(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        replaces: Option<Incarnation>,
        profile: &NodeProfile,
    ) -> Result<Applied, Rejected> {
        let known = self.nodes.get(&node).map(|info| (info.incarnation, info.state));
        let joined = |state| NodeInfo {
            name: profile.name.clone(),
            incarnation,
            addresses: profile.addresses.clone(),
            weight: profile.weight,
            zone: profile.zone.clone(),
            state,
            witness: profile.witness,
        };
        match known {
            None if replaces.is_some() => Err(Rejected::UnknownNode(node)),
            None if self.nodes.len() >= NODES_MAX => Err(Rejected::TooMany { limit: NODES_MAX }),
            None => {
                self.nodes.insert(node, joined(NodeState::Joining));
                Ok(Applied::default())
            }
            // Sent twice, or with another address.
            Some((present, state)) if present == incarnation => {
                if self.nodes.get(&node) == Some(&joined(state)) {
                    return Err(Rejected::NoChange);
                }
                self.nodes.insert(node, joined(state));
                Ok(Applied::default())
            }
            Some((present, _)) if replaces != Some(present) => {
                Err(Rejected::NotPresent(Member { node, incarnation }))
            }
            Some((present, _)) => {
                let applied = self.expel(Member { node, incarnation: present });
                self.nodes.insert(node, joined(NodeState::Joining));
                Ok(applied)
            }
        }
    }

    fn set_node_state(&mut self, member: Member, state: NodeState) -> Result<Applied, Rejected> {
        self.present(member)?;
        match self.nodes.get_mut(&member.node) {
            Some(info) if info.state == state => Err(Rejected::NoChange),
            Some(info) => {
                info.state = state;
                Ok(Applied::default())
            }
            None => Err(Rejected::UnknownNode(member.node)),
        }
    }

    fn set_weight(&mut self, node: NodeId, weight: u32) -> Result<Applied, Rejected> {
        let info = self.nodes.get_mut(&node).ok_or(Rejected::UnknownNode(node))?;
        if info.weight == weight {
            return Err(Rejected::NoChange);
        }
        info.weight = weight;
        Ok(Applied::default())
    }

    fn remove_node(&mut self, member: Member) -> Result<Applied, Rejected> {
        self.present(member)?;
        let mut applied = self.expel(member);
        let expelled: BTreeSet<Place> = applied.changed.iter().copied().collect();
        self.nodes.remove(&member.node);
        for (group, states) in &mut self.groups {
            for (partition, state) in (0..).zip(states) {
                if !state.target.contains(&member.node) {
                    continue;
                }
                state.target.retain(|target| *target != member.node);
                let place = Place { group: *group, partition: PartitionId(partition) };
                if !expelled.contains(&place) {
                    state.version += 1;
                    applied.changed.push(place);
                }
            }
        }
        Ok(applied)
    }

    /// Takes a life that has ended out of every partition. Where it was the primary, the first
    /// remaining copy in the order of the targets follows; where it was the last copy in sync, the
    /// data are lost.
    fn expel(&mut self, member: Member) -> Applied {
        let mut applied = Applied::default();
        let down: BTreeSet<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, info)| info.state == NodeState::Down)
            .map(|(node, _)| *node)
            .collect();
        for (group, states) in &mut self.groups {
            for (partition, state) in (0..).zip(states) {
                if !state.involves(member) {
                    continue;
                }
                let place = Place { group: *group, partition: PartitionId(partition) };
                state.learners.retain(|learner| *learner != member);
                state.in_sync.retain(|copy| *copy != member);
                if state.primary == Some(member) {
                    state.term = state.term.next();
                    state.primary = successor(state, |node| !down.contains(&node));
                    if state.primary.is_none() {
                        state.generation = state.generation.next();
                        state.learners.clear();
                        applied.lost.push(place);
                    }
                }
                state.version += 1;
                applied.changed.push(place);
            }
        }
        applied
    }

    fn create_cache(&mut self, name: &str, spec: &CacheSpec) -> Result<Applied, Rejected> {
        if self.caches.contains_key(name) {
            return Err(Rejected::CacheExists);
        }
        if self.caches.len() >= CACHES_MAX {
            return Err(Rejected::TooMany { limit: CACHES_MAX });
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=CACHE_NAME_LEN_MAX).contains(&name.len()) || !name.bytes().all(is_plain) {
            return Err(CacheFault::Name.into());
        }
        check_cache(spec)?;
        let group = spec.group();
        self.caches.insert(name.to_owned(), CacheSpec { id: self.next_cache, ..spec.clone() });
        self.cache_names.insert(self.next_cache, name.to_owned());
        self.next_cache = self.next_cache.next();
        let partitions = self.partitions as usize;
        self.groups.entry(group).or_insert_with(|| vec![PartitionState::default(); partitions]);
        Ok(Applied::default())
    }

    fn change_cache(&mut self, name: &str, to: &CacheSettings) -> Result<Applied, Rejected> {
        let spec = self.caches.get_mut(name).ok_or(Rejected::UnknownCache)?;
        let changed = CacheSpec {
            min_in_sync: to.min_in_sync,
            read: to.read,
            acks: to.acks,
            eviction: to.eviction,
            on_loss: to.on_loss,
            value_len_max: to.value_len_max,
            default_ttl_ms: to.default_ttl_ms,
            policy: to.policy.clone(),
            memory: to.memory,
            ..spec.clone()
        };
        check_cache(&changed)?;
        if *spec == changed {
            return Err(Rejected::NoChange);
        }
        *spec = changed;
        Ok(Applied::default())
    }

    fn drop_cache(&mut self, name: &str) -> Result<Applied, Rejected> {
        let spec = self.caches.remove(name).ok_or(Rejected::UnknownCache)?;
        self.cache_names.remove(&spec.id);
        Ok(Applied::default())
    }

    fn create_stream(&mut self, name: &str, definition: &str) -> Result<Applied, Rejected> {
        match self.streams.get(name) {
            // Asked twice, as when a node starts again with the same file.
            Some(known) if known == definition => return Err(Rejected::NoChange),
            Some(_) => return Err(Rejected::StreamExists),
            None if self.streams.len() >= STREAMS_MAX => {
                return Err(Rejected::TooMany { limit: STREAMS_MAX });
            }
            None => {}
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=STREAM_NAME_LEN_MAX).contains(&name.len())
            || !name.bytes().all(is_plain)
            || definition.len() > STREAM_DEFINITION_LEN_MAX
        {
            return Err(Rejected::Stream);
        }
        self.streams.insert(name.to_owned(), definition.to_owned());
        Ok(Applied::default())
    }

    fn set_targets(
        &mut self,
        group: GroupKey,
        targets: &[(PartitionId, Vec<NodeId>)],
    ) -> Result<Applied, Rejected> {
        for (partition, nodes) in targets {
            let place = Place { group, partition: *partition };
            self.partition(place).ok_or(Rejected::UnknownPlace(place))?;
            let distinct: BTreeSet<NodeId> = nodes.iter().copied().collect();
            if nodes.len() > COPIES_MAX || distinct.len() != nodes.len() {
                return Err(Rejected::TooMany { limit: COPIES_MAX });
            }
            for node in nodes {
                let info = self.nodes.get(node).ok_or(Rejected::UnknownNode(*node))?;
                if info.witness {
                    return Err(Rejected::HoldsNothing(*node));
                }
            }
        }
        let states = self.groups.get_mut(&group).ok_or(Rejected::UnknownGroup(group))?;
        let mut applied = Applied::default();
        for (partition, nodes) in targets {
            let state = &mut states[partition.0 as usize];
            if state.target != *nodes {
                state.target.clone_from(nodes);
                state.version += 1;
                applied.changed.push(Place { group, partition: *partition });
            }
        }
        if applied.changed.is_empty() { Err(Rejected::NoChange) } else { Ok(applied) }
    }

    fn assign(
        &mut self,
        place: Place,
        version: u64,
        members: &[Member],
    ) -> Result<Applied, Rejected> {
        for member in members {
            self.holder(*member)?;
        }
        let distinct: BTreeSet<Member> = members.iter().copied().collect();
        if members.len() > COPIES_MAX || distinct.len() != members.len() {
            return Err(Rejected::TooMany { limit: COPIES_MAX });
        }
        self.change(place, version, |state| {
            if !state.in_sync.is_empty() {
                return Err(Rejected::Held);
            }
            let Some(first) = members.first() else { return Err(Rejected::NoChange) };
            state.term = state.term.next();
            state.primary = Some(*first);
            state.in_sync = members.to_vec();
            Ok(())
        })
    }

    fn acknowledge_loss(
        &mut self,
        group: GroupKey,
        partition: Option<PartitionId>,
    ) -> Result<Applied, Rejected> {
        let states = self.groups.get_mut(&group).ok_or(Rejected::UnknownGroup(group))?;
        let mut applied = Applied::default();
        for (number, state) in (0..).zip(states) {
            let wanted = partition.is_none_or(|partition| partition.0 == number);
            if wanted && state.has_unacknowledged_loss() {
                state.loss_acknowledged = state.generation;
                state.version += 1;
                applied.changed.push(Place { group, partition: PartitionId(number) });
            }
        }
        if applied.changed.is_empty() { Err(Rejected::NoChange) } else { Ok(applied) }
    }

    /// Changes one partition if it is still at the version that the command was decided on.
    fn change(
        &mut self,
        place: Place,
        version: u64,
        change: impl FnOnce(&mut PartitionState) -> Result<(), Rejected>,
    ) -> Result<Applied, Rejected> {
        let state = self
            .groups
            .get_mut(&place.group)
            .and_then(|states| states.get_mut(place.partition.0 as usize))
            .ok_or(Rejected::UnknownPlace(place))?;
        if state.version != version {
            return Err(Rejected::Outdated { expected: version, found: state.version });
        }
        change(state)?;
        state.version += 1;
        Ok(Applied { changed: vec![place], lost: Vec::new() })
    }

    fn present(&self, member: Member) -> Result<(), Rejected> {
        if self.is_present(member) { Ok(()) } else { Err(Rejected::NotPresent(member)) }
    }

    /// A member that may begin to hold a partition.
    fn holder(&self, member: Member) -> Result<(), Rejected> {
        self.present(member)?;
        match self.nodes.get(&member.node) {
            Some(info) if !info.witness => Ok(()),
            _ => Err(Rejected::HoldsNothing(member.node)),
        }
    }
}

fn change_primary(
    state: &mut PartitionState,
    to: Member,
    remove: &[Member],
) -> Result<(), Rejected> {
    if !state.in_sync.contains(&to) || remove.contains(&to) {
        return Err(Rejected::NotInSync(to));
    }
    if state.primary == Some(to) {
        return Err(Rejected::IsPrimary(to));
    }
    if let Some(stranger) = remove.iter().find(|member| !state.in_sync.contains(member)) {
        return Err(Rejected::NotInSync(*stranger));
    }
    state.in_sync.retain(|copy| !remove.contains(copy));
    state.primary = Some(to);
    state.term = state.term.next();
    Ok(())
}

/// Who follows a primary whose life has ended: the first copy in sync in the order of the targets,
/// one that is up if there is one.
fn successor(state: &PartitionState, is_up: impl Fn(NodeId) -> bool) -> Option<Member> {
    let wish = |copy: &Member| {
        let place = state.target.iter().position(|target| *target == copy.node);
        (!is_up(copy.node), place.unwrap_or(usize::MAX), *copy)
    };
    state.in_sync.iter().copied().min_by_key(wish)
}

fn check_cache(spec: &CacheSpec) -> Result<(), CacheFault> {
    if !(1..=COPIES_MAX).contains(&usize::from(spec.copies)) {
        return Err(CacheFault::Copies);
    }
    if !(1..=spec.copies).contains(&spec.min_in_sync) {
        return Err(CacheFault::MinInSync);
    }
    let fits = match spec.mode {
        Mode::Strong => spec.read != ReadMode::Quorum,
        Mode::Eventual => matches!(spec.read, ReadMode::Any | ReadMode::Quorum),
    };
    if fits { Ok(()) } else { Err(CacheFault::Read) }
}
