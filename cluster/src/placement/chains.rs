//! Moves that bring nodes within their bounds.
//!
//! Where a single move from an overfull to an underfull node is not possible, because the latter
//! holds those partitions already or a zone is full, a chain is: one gives to another, which gives
//! to a third. The shortest chain is found by breadth-first search, which makes this a maximum
//! flow: if a table within the caps exists, it is reached.

use super::shares::Bounds;

/// One slot of one partition changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) partition: u32,
    pub(super) slot: u8,
    pub(super) to: u16,
}

/// A table whose entries can change hands: copies, or primaries.
pub(super) trait Board {
    /// What each node should hold.
    fn bounds(&self) -> &Bounds;
    /// What each node holds.
    fn held(&self) -> &[u32];
    /// Who would give; `None` is a gap.
    fn holder(&self, of: Move) -> Option<u16>;
    /// Whether the move is possible as things stand.
    fn may(&self, of: Move) -> bool;
    /// How much the partition likes the receiver, best first.
    fn rank(&self, of: Move) -> u16;
    /// Whether the receiver had it when this began, so that nothing moves after all.
    fn is_return(&self, of: Move) -> bool;
    /// All possible moves away from a node, or into gaps.
    fn moves_from(&self, from: Option<u16>, visit: &mut dyn FnMut(Move));
    /// All possible moves to a node.
    fn moves_into(&self, to: u16, visit: &mut dyn FnMut(Move));
    /// Whether there are gaps.
    fn vacant(&self) -> bool;
    /// Carries out a possible move.
    fn apply(&mut self, to_do: Move);
}

/// Brings every node below its floor up to its share, from those above theirs.
pub(super) fn lift(board: &mut impl Board) {
    for to in 0..board.held().len() {
        if board.held()[to] < board.bounds().floor[to] {
            lift_directly(board, to as u16);
        }
    }
    // What single moves could not reach. Each chain adds one to a node below its floor and takes
    // none below its share, so this ends.
    for to in 0..board.held().len() {
        while board.held()[to] < board.bounds().floor[to] {
            let spare = (0..board.held().len()).filter(|&n| spare(board, n));
            let from: Vec<Option<u16>> = spare.map(|n| Some(n as u16)).collect();
            let chain = shortest_chain(board, &from, |node| usize::from(node) == to);
            if !chain.is_some_and(|chain| carry_out(board, &chain)) {
                break;
            }
        }
    }
}

/// Fills gaps and brings every node above its cap back to it.
pub(super) fn relieve(board: &mut impl Board) {
    let nodes = 0..board.held().len();
    for from in nodes.map(|node| Some(node as u16)).chain([None]) {
        // Each step lowers the sum of gaps and excess by one, so this ends.
        while from.map_or(board.vacant(), |node| is_overfull(board, node)) {
            if let Some(direct) = best_direct(board, from) {
                board.apply(direct);
                continue;
            }
            // With none a primary stays where only its owners' other load would let it go.
            let chain = shortest_chain(board, &[from], |node| has_room(board, node));
            if !chain.is_some_and(|chain| carry_out(board, &chain)) {
                break;
            }
        }
    }
}

/// In the order in which partitions like the receiver best: first from nodes above their cap, which
/// must give anyway, then from those above their share. Of the holders of one partition the fullest
/// gives, by what it holds at that moment.
fn lift_directly(board: &mut impl Board, to: u16) {
    let mut moves = Vec::new();
    board.moves_into(to, &mut |of| moves.push(of));
    moves.sort_by_cached_key(|&of| (board.rank(of), of.partition));
    let node = usize::from(to);
    for only_overfull in [true, false] {
        for of_partition in moves.chunk_by(|one, other| one.partition == other.partition) {
            if f64::from(board.held()[node] + 1) > board.bounds().share[node] {
                return;
            }
            let gives = |of: &Move| {
                let from = board.holder(*of)?;
                let is_full = if only_overfull {
                    is_overfull(board, from)
                } else {
                    spare(board, usize::from(from))
                };
                (is_full && board.may(*of)).then(|| (fullness(board, from), *of))
            };
            let fullest = of_partition
                .iter()
                .filter_map(gives)
                .max_by(|one, other| one.0.total_cmp(&other.0));
            if let Some((_, of)) = fullest {
                board.apply(of);
            }
        }
    }
}

/// What a node holds, relative to what it should.
fn fullness(board: &impl Board, node: u16) -> f64 {
    let node = usize::from(node);
    f64::from(board.held()[node]) / board.bounds().share[node].max(f64::MIN_POSITIVE)
}

fn spare(board: &impl Board, node: usize) -> bool {
    f64::from(board.held()[node]) >= board.bounds().share[node].floor() + 1.0
}

fn has_room(board: &impl Board, node: u16) -> bool {
    board.held()[usize::from(node)] < board.bounds().room[usize::from(node)]
}

fn is_overfull(board: &impl Board, node: u16) -> bool {
    board.held()[usize::from(node)] > board.bounds().cap[usize::from(node)]
}

/// The best single move: one that is undone, else to a node below its share, where it is liked
/// best.
fn best_direct(board: &impl Board, from: Option<u16>) -> Option<Move> {
    let mut best = None;
    board.moves_from(from, &mut |of| {
        if !has_room(board, of.to) {
            return;
        }
        let to = usize::from(of.to);
        let above = f64::from(board.held()[to]) >= board.bounds().share[to];
        let moves = !board.is_return(of);
        let key = (moves, above, board.rank(of), of.partition, of.slot, of.to);
        if best.is_none_or(|(least, _)| key < least) {
            best = Some((key, of));
        }
    });
    best.map(|(_, of)| of)
}

/// Breadth first from all of `from` together. A shortest chain touches no partition in a way that
/// makes a later link impossible: that link would have been reached directly, by a shorter chain.
fn shortest_chain(
    board: &impl Board,
    from: &[Option<u16>],
    accept: impl Fn(u16) -> bool,
) -> Option<Vec<Move>> {
    let mut reached_by: Vec<Option<Move>> = vec![None; board.held().len()];
    let mut queue: std::collections::VecDeque<Option<u16>> = from.iter().copied().collect();
    let starts = |node: u16| from.contains(&Some(node));
    while let Some(node) = queue.pop_front() {
        let mut found = None;
        board.moves_from(node, &mut |of| {
            let to = usize::from(of.to);
            if found.is_some() || starts(of.to) || reached_by[to].is_some() {
                return;
            }
            reached_by[to] = Some(of);
            queue.push_back(Some(of.to));
            if accept(of.to) {
                found = Some(of);
            }
        });
        if let Some(last) = found {
            let mut chain = vec![last];
            // Back to a start, over at most as many links as there are nodes.
            while let Some(giver) = chain.last().and_then(|of| board.holder(*of)) {
                match reached_by[usize::from(giver)] {
                    Some(of) => chain.push(of),
                    None => break,
                }
            }
            return Some(chain);
        }
    }
    None
}

/// The receiver's end first: each link then frees the room that the next one needs.
fn carry_out(board: &mut impl Board, chain: &[Move]) -> bool {
    for &of in chain {
        let possible = board.may(of);
        debug_assert!(possible, "a link of a shortest chain stays possible");
        if !possible {
            return false;
        }
        board.apply(of);
    }
    true
}
