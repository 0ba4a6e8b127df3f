//! How much each node should hold.
//!
//! By weight, but a node can hold at most one copy of a partition and a zone only so many. What
//! they cannot take falls to the others, again by weight: the level rises for all alike until a
//! node or a zone is full, that one is left out, and so on. Such shares can always be met by whole
//! copies when each is rounded up, so a cap never below that leaves a table possible.

/// How far a node may be from its share.
///
/// Copies are placed within narrow bounds and move only when they leave wider ones. Without the
/// distance between the two a share that falls from 10.01 to 9.99 would take a copy from every node
/// that was filled to its limit, for nothing.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) share: Vec<f64>,
    /// Nothing is given to a node that holds so much.
    pub(super) room: Vec<u32>,
    /// Above this a node gives copies away.
    pub(super) cap: Vec<u32>,
    /// Below this a node comes first when copies have to find a place.
    pub(super) lean: Vec<u32>,
    /// Below this a node is given copies that others hold, up to its share.
    pub(super) floor: Vec<u32>,
}

/// Why a table is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// There is none yet.
    First,
    /// Nodes came, or have other weights.
    Change,
    /// Nodes that held copies are gone. Their copies restore the balance as far as they can; it is
    /// no time to move others as well.
    Loss,
}

/// What a node may hold above its share. Small enough for memory to be planned by the share; large
/// enough that most partitions stay with the nodes that they prefer.
const OVER: f64 = 1.05;

/// A new table is no more uneven than this.
const UNDER_NEW: f64 = 0.95;

/// A table that exists may be.
const UNDER: f64 = 0.9;

/// After a loss it may be more uneven still.
const UNDER_AFTER_LOSS: f64 = 0.75;

impl Bounds {
    pub(super) fn new(share: Vec<f64>, partitions: u32, occasion: Occasion) -> Self {
        let most = f64::from(partitions);
        let room = |s: &f64| up(*s).max((s * OVER).floor()).min(most) as u32;
        let cap = |s: &f64| (s * OVER + 1.0).floor().min(most) as u32;
        let is_new = occasion == Occasion::First;
        let under = match occasion {
            Occasion::First => UNDER_NEW,
            Occasion::Change => UNDER,
            Occasion::Loss => UNDER_AFTER_LOSS,
        };
        Self {
            room: share.iter().map(room).collect(),
            cap: share.iter().map(|s| if is_new { room(s) } else { cap(s) }).collect(),
            lean: share.iter().map(|s| (s * UNDER_NEW).floor() as u32).collect(),
            floor: share.iter().map(|s| (s * under).floor() as u32).collect(),
            share,
        }
    }
}

/// Rounds up, but takes what division left just above a whole number for that number.
fn up(value: f64) -> f64 {
    (value - 1e-6).ceil().max(0.0)
}

/// Most copies of one partition that a zone must hold: one where there are enough zones.
pub(super) fn zone_limit(zones: &[u16], copies: usize) -> usize {
    let sizes = sizes(zones);
    (1..=copies.max(1))
        .find(|&limit| sizes.iter().map(|&size| limit.min(size)).sum::<usize>() >= copies)
        .unwrap_or(copies.max(1))
}

/// The share of each node in all copies.
pub(super) fn of_copies(
    weights: &[u32],
    zones: &[u16],
    zone_limit: usize,
    partitions: u32,
    copies: usize,
) -> Vec<f64> {
    let whole = f64::from(partitions);
    let node_limits = vec![whole; weights.len()];
    let zone_limits: Vec<f64> =
        sizes(zones).iter().map(|&size| whole * size.min(zone_limit) as f64).collect();
    fill_level(weights, &node_limits, zones, &zone_limits, whole * copies as f64)
}

/// The share of each node in the primaries: nobody leads more than it holds.
pub(super) fn of_primaries(weights: &[u32], held: &[u32], partitions: u32) -> Vec<f64> {
    let limits: Vec<f64> = held.iter().map(|&held| f64::from(held)).collect();
    let whole = f64::from(partitions);
    fill_level(weights, &limits, &vec![0; weights.len()], &[f64::INFINITY], whole)
}

fn sizes(zones: &[u16]) -> Vec<usize> {
    let mut sizes = vec![0; zones.iter().map(|&zone| usize::from(zone) + 1).max().unwrap_or(0)];
    for &zone in zones {
        sizes[usize::from(zone)] += 1;
    }
    sizes
}

/// Raises one level, each node holding `level * weight`, until `total` is held. Each round fixes at
/// least one node or zone, so there are at most as many rounds as both together.
fn fill_level(
    weights: &[u32],
    node_limits: &[f64],
    zones: &[u16],
    zone_limits: &[f64],
    total: f64,
) -> Vec<f64> {
    let mut fixed: Vec<Option<f64>> = vec![None; weights.len()];
    loop {
        let held: f64 = fixed.iter().flatten().sum();
        let free_weight: f64 =
            (0..weights.len()).filter(|&n| fixed[n].is_none()).map(|n| f64::from(weights[n])).sum();
        if free_weight == 0.0 {
            return fixed.into_iter().map(|share| share.unwrap_or(0.0)).collect();
        }
        let mut level = (total - held).max(0.0) / free_weight;
        let mut first_full = None;
        for node in (0..weights.len()).filter(|&n| fixed[n].is_none()) {
            let at = node_limits[node] / f64::from(weights[node]);
            if at < level {
                (level, first_full) = (at, Some(Full::Node(node)));
            }
        }
        for (zone, limit) in zone_limits.iter().enumerate() {
            let members = || (0..weights.len()).filter(|&n| usize::from(zones[n]) == zone);
            let held: f64 = members().filter_map(|n| fixed[n]).sum();
            let free: f64 =
                members().filter(|&n| fixed[n].is_none()).map(|n| f64::from(weights[n])).sum();
            let at = (limit - held).max(0.0) / free;
            if free > 0.0 && at < level {
                (level, first_full) = (at, Some(Full::Zone(zone)));
            }
        }
        for node in 0..weights.len() {
            let full = match first_full {
                None => true,
                Some(Full::Node(full)) => node == full,
                Some(Full::Zone(full)) => usize::from(zones[node]) == full,
            };
            if full && fixed[node].is_none() {
                fixed[node] = Some(level * f64::from(weights[node]));
            }
        }
    }
}

enum Full {
    Node(usize),
    Zone(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(shares: &[f64]) -> Vec<i64> {
        shares.iter().map(|share| share.round() as i64).collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        let shares = of_copies(&[1_000, 2_000, 1_000], &[0, 0, 0], 2, 1_000, 1);
        assert_eq!(rounded(&shares), [250, 500, 250]);
    }

    #[test]
    fn a_node_holds_at_most_one_copy_of_each_partition_and_the_rest_falls_to_the_others() {
        let shares = of_copies(&[10_000, 1_000, 1_000, 2_000], &[0; 4], 2, 1_000, 2);
        assert_eq!(rounded(&shares), [1_000, 250, 250, 500]);
    }

    #[test]
    fn a_zone_of_one_node_takes_what_distinct_zones_demand() {
        let zones = [0, 0, 0, 1];
        assert_eq!(zone_limit(&zones, 2), 1);
        let shares = of_copies(&[1_000; 4], &zones, 1, 900, 2);
        assert_eq!(rounded(&shares), [300, 300, 300, 900]);
    }

    #[test]
    fn with_fewer_zones_than_copies_the_copies_are_spread_as_far_as_they_can_be() {
        assert_eq!(zone_limit(&[0, 0, 0, 1, 1, 1], 3), 2);
        assert_eq!(zone_limit(&[0, 0, 0, 1], 3), 2);
        assert_eq!(zone_limit(&[0, 0, 0], 3), 3);
        assert_eq!(zone_limit(&[0, 0, 0, 0, 1], 4), 3);
    }
}
