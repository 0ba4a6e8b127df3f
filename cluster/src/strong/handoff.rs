//! Filling a learner: snapshot, live stream, promotion.
//!
//! ```text
//!   slot free --> Fill(base) --> Ready --> chunks, a few on their way at a time   --> last one taken
//!                                     \--> appends from base on, as they happen   --> caught up
//!   caught up with everything confirmed: the learner counts from now on
//!   it has said that it holds by the present version: Promote is proposed
//! ```
//!
//! Add before remove: the controller drops a surplus copy only after the promotion is committed.
//!
//! Bounds: `transfers_max` transfers and `transfer_bytes_per_s` bytes a second of the whole node,
//! `chunks_in_flight` chunks of about `chunk_bytes`, `retain_bytes_max` bytes of log for a learner
//! that lags; one that lags more starts anew.

use crate::context::Context;
use crate::ids::{Member, Term, TransferId};
use crate::node::Report;
use crate::store::{Cursor, ITEM_OVERHEAD_BYTES, Store};
use crate::topology::TopologyCommand;

use super::primary::{Phase, Promotion, Stage, Transfer};
use super::{Replica, StrongMessage};

/// Clients whose answers go into one chunk.
const CLIENTS_PER_CHUNK: usize = 64;
/// How long a transfer without a slot waits before it asks again.
const SLOT_RETRY_MS: u64 = 50;
/// How long after its proposal a promotion is proposed again.
const PROPOSE_AGAIN_MS: u64 = 500;

impl Replica {
    /// Goes on with transfers as far as slots, windows and bandwidth allow.
    pub(super) fn feed_learners<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &self.primary else { return };
        if !primary.serves() {
            return;
        }
        let due: Vec<Member> = primary
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.transfer.as_ref().is_some_and(|transfer| {
                    transfer.stage != Stage::Done && transfer.act_at <= cx.now.mono
                })
            })
            .map(|(&member, _)| member)
            .collect();
        for member in due {
            self.feed(cx, member);
        }
        self.drop_laggards(cx);
    }

    fn feed<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let now = cx.now.mono;
        let config = &cx.config.strong;
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&to) else { return };
        let Some(transfer) = &mut peer.transfer else { return };
        match transfer.stage {
            Stage::Done => {}
            Stage::Waiting => {
                if !cx.slots.take(self.place, to, config.transfers_max) {
                    transfer.act_at = now.after_ms(SLOT_RETRY_MS);
                    return;
                }
                transfer.id = TransferId(cx.slots.number());
                transfer.stage = Stage::Asked;
                transfer.base = self.applied;
                self.ask_to_begin(cx, to);
            }
            Stage::Asked => self.ask_to_begin(cx, to),
            Stage::Flowing => self.send_chunks(cx, to),
        }
    }

    fn ask_to_begin<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&to) else { return };
        let Some(transfer) = &mut peer.transfer else { return };
        transfer.act_at = cx.now.mono.after_ms(cx.config.strong.resend_after_ms);
        let message = StrongMessage::Fill {
            term: self.term,
            version: self.state.version,
            generation: self.generation,
            transfer: transfer.id,
            base: transfer.base,
        };
        self.send(cx, to, message);
    }

    /// A learner has dropped what it had.
    pub(super) fn on_ready<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
        id: TransferId,
    ) {
        if term != self.term {
            return;
        }
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&from) else { return };
        let Some(transfer) = &mut peer.transfer else { return };
        if transfer.id != id || transfer.stage != Stage::Asked {
            return;
        }
        transfer.stage = Stage::Flowing;
        transfer.act_at = cx.now.mono;
        transfer.answers =
            self.answers.iter().map(|(client, window)| (client, window.clone())).collect();
        transfer.cursor = Some(Cursor::Start);
        peer.started = true;
        peer.source = id;
        peer.acked = transfer.base;
        peer.sent = transfer.base;
        peer.told = transfer.base;
        self.send_entries(cx, from);
    }

    /// Sends chunks while the window and the bandwidth allow, and again what was lost.
    fn send_chunks<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let now = cx.now;
        let config = &cx.config.strong;
        let (place, term, applied) = (self.place, self.term, self.applied);
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&to) else { return };
        let Some(transfer) = &mut peer.transfer else { return };
        let mut messages = Vec::new();
        if transfer.resend_at <= now.mono
            && !transfer.flying.is_empty()
            && cx.bandwidth.ready(now).is_ok()
        {
            transfer.resend_at = now.mono.after_ms(config.resend_after_ms);
            cx.bandwidth.spend(transfer.flying.iter().map(|(_, bytes, _)| bytes).sum());
            messages.extend(transfer.flying.iter().map(|(_, _, message)| message.clone()));
        }
        // Without bandwidth: when there will be some. With a full window: when to send again.
        let mut act_at = None;
        while transfer.flying.len() < config.chunks_in_flight
            && let Some(cursor) = &transfer.cursor
        {
            if let Err(later) = cx.bandwidth.ready(now).and_then(|()| cx.walks.step(now)) {
                act_at = Some(later);
                break;
            }
            let answers: Vec<_> =
                transfer.answers.drain(..transfer.answers.len().min(CLIENTS_PER_CHUNK)).collect();
            let mut bytes: usize = answers.iter().map(|(_, window)| window.bytes()).sum();
            let mut items = Vec::new();
            if transfer.answers.is_empty() {
                transfer.cursor = cx.store.scan(
                    place,
                    cursor.clone(),
                    config.chunk_items,
                    config.chunk_bytes,
                    &mut |key, item| {
                        bytes += key.key.len() + item.value.len() + ITEM_OVERHEAD_BYTES;
                        items.push((key.clone(), item));
                    },
                );
            }
            cx.bandwidth.spend(bytes);
            let index = transfer.next;
            transfer.next += 1;
            let last = transfer.cursor.is_none().then_some(applied);
            let message =
                StrongMessage::Chunk { term, transfer: transfer.id, index, last, answers, items };
            transfer.flying.push_back((index, bytes, message.clone()));
            transfer.resend_at = now.mono.after_ms(config.resend_after_ms);
            messages.push(message);
        }
        transfer.act_at = act_at
            .map_or(transfer.resend_at, |at| {
                if transfer.flying.is_empty() { at } else { at.min(transfer.resend_at) }
            })
            .max(now.mono.after_us(1));
        for message in messages {
            self.send(cx, to, message);
        }
    }

    /// A learner has taken chunks in.
    pub(super) fn on_taken<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
        id: TransferId,
        next: u64,
    ) {
        if term != self.term {
            return;
        }
        let place = self.place;
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&from) else { return };
        let Some(transfer) = &mut peer.transfer else { return };
        if transfer.id != id || transfer.stage != Stage::Flowing || next > transfer.next {
            return;
        }
        let before = transfer.flying.len();
        while transfer.flying.front().is_some_and(|(index, _, _)| *index < next) {
            if let Some((_, bytes, _)) = transfer.flying.pop_front() {
                transfer.bytes += bytes as u64;
            }
        }
        if transfer.flying.len() == before {
            return;
        }
        transfer.resend_at = cx.now.mono.after_ms(cx.config.strong.resend_after_ms);
        let done = transfer.flying.is_empty() && transfer.cursor.is_none();
        if done {
            transfer.stage = Stage::Done;
            transfer.act_at = crate::time::Mono::MAX;
            cx.slots.release(place, from);
        } else {
            transfer.act_at = cx.now.mono;
        }
        let bytes = transfer.bytes;
        cx.report(Report::Transfer { place, to: from, bytes, done });
    }

    /// A copy does not know of this term.
    pub(super) fn on_unstarted<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
    ) {
        if term != self.term {
            return;
        }
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&from) else { return };
        if peer.transfer.is_some() {
            // It was removed and forgot everything, and was added again.
            self.restart_transfer(cx, from);
        } else if !peer.started && matches!(primary.phase, Phase::Starting { .. }) {
            self.send_start(cx, from);
        }
    }

    /// Fills a learner from the beginning, unless it may have been promoted already.
    pub(super) fn restart_transfer<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let Some(primary) = &mut self.primary else { return };
        if primary.promoting.get(&to).is_some_and(|promotion| promotion.proposed.is_some()) {
            return;
        }
        let Some(peer) = primary.peers.get_mut(&to) else { return };
        if peer.transfer.is_none() {
            return;
        }
        primary.promoting.remove(&to);
        peer.started = false;
        peer.resend_at = None;
        peer.version = 0;
        let mut transfer = Transfer::waiting(cx.now.mono);
        transfer.act_at = cx.now.mono.after_ms(SLOT_RETRY_MS);
        peer.transfer = Some(transfer);
        cx.slots.release(self.place, to);
        self.trim();
        // Without this copy the rest may be confirmed.
        self.advance(cx);
    }

    /// Learners for whose sake too much is kept start anew.
    fn drop_laggards<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        while self.log.base() < self.applied
            && self.log.bytes()
                > cx.config.strong.retain_bytes_max + cx.config.strong.pending_bytes_max
        {
            let Some(primary) = &self.primary else { return };
            let slowest = primary
                .peers
                .iter()
                .filter(|(member, peer)| {
                    peer.transfer.as_ref().is_some_and(|transfer| transfer.stage != Stage::Waiting)
                        && !primary.promoting.contains_key(member)
                })
                .min_by_key(|(_, peer)| peer.acked)
                .map(|(&member, _)| member);
            let Some(slowest) = slowest else { return };
            self.restart_transfer(cx, slowest);
        }
    }

    /// Has learners that hold everything counted, and then proposes their promotion.
    pub(super) fn propose_promotions<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let now = cx.now.mono;
        let clock_ms = cx.clock.advance(cx.now);
        let (place, version, term) = (self.place, self.state.version, self.term);
        let Some(primary) = &mut self.primary else { return };
        if !primary.serves() {
            return;
        }
        let mut counted = Vec::new();
        for (&member, peer) in primary.peers.iter() {
            let done = peer.transfer.as_ref().is_some_and(|transfer| transfer.stage == Stage::Done);
            if done
                && peer.started
                && peer.acked >= self.applied
                && self.state.learners.contains(&member)
                && !primary.promoting.contains_key(&member)
            {
                counted.push(member);
            }
        }
        for &member in &counted {
            let again_at = now.after_ms(cx.config.strong.resend_after_ms);
            primary.promoting.insert(member, Promotion { clock_ms, proposed: None, again_at });
        }
        let mut proposals = Vec::new();
        for (&member, promotion) in &mut primary.promoting {
            let Some(peer) = primary.peers.get(&member) else { continue };
            // The learner has heard of the clock that reads were judged by before it counted, and
            // no removal decided by now can make it forget.
            let heard = peer.clock_ms >= promotion.clock_ms && peer.version >= version;
            let anew = promotion.proposed != Some(version);
            if heard && (anew || promotion.again_at <= now) {
                promotion.proposed = Some(version);
                promotion.again_at = now.after_ms(PROPOSE_AGAIN_MS);
                proposals.push(member);
            } else if !heard && promotion.again_at <= now {
                promotion.again_at = now.after_ms(cx.config.strong.resend_after_ms);
                counted.push(member);
            }
        }
        for &member in &counted {
            self.probe(cx, member);
        }
        if !counted.is_empty() {
            self.ask_counted_too(cx);
        }
        for member in proposals {
            cx.propose(TopologyCommand::Promote { place, version, term, member });
        }
    }
}
