//! Which copy to read from, where a cache lets any of them answer.
//!
//! The caller brings the copies that may answer, what it knows of their load, and a random number;
//! the choice is a pure function of these. Reported load is some hundred milliseconds old: choosing
//! the least loaded of all would send every node to the same one until the next report. The lesser
//! of two taken at random spreads almost as well and does not herd; requests of our own that are
//! under way count at once.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// How a copy is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadBalance {
    /// The less loaded of two taken at random: follows load as it changes.
    #[default]
    LeastOfTwo,
    /// In proportion to the weights: for nodes of known, different strength.
    Weighted,
    /// Each as often as the others.
    Random,
}

/// A copy that may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCopy {
    /// Where it is.
    pub node: NodeId,
    /// Its weight in the table, in thousandths.
    pub weight: u32,
    /// Requests it said it had under way, with those that we sent it since.
    pub load: u32,
}

impl ReadBalance {
    /// Chooses a copy; `None` only if there is none. `random` is uniform over all of `u64`.
    #[must_use]
    pub fn choose(self, copies: &[ReadCopy], random: u64) -> Option<NodeId> {
        let count = copies.len() as u64;
        if count <= 1 {
            return copies.first().map(|copy| copy.node);
        }
        let chosen = match self {
            Self::Random => copies[below(random, count) as usize],
            Self::LeastOfTwo => {
                // Two different ones from one number: all ordered pairs are equally likely, so that
                // a tie falls to either alike.
                let pair = below(random, count * (count - 1));
                let (first, skip) = (pair / (count - 1), pair % (count - 1));
                let second = if skip < first { skip } else { skip + 1 };
                let (first, second) = (copies[first as usize], copies[second as usize]);
                if is_less_loaded(second, first) { second } else { first }
            }
            Self::Weighted => {
                let total: u64 = copies.iter().map(|copy| u64::from(copy.weight)).sum();
                if total == 0 {
                    return Self::Random.choose(copies, random);
                }
                let mut point = below(random, total);
                let hit = copies.iter().find(|copy| {
                    let inside = point < u64::from(copy.weight);
                    point = point.saturating_sub(u64::from(copy.weight));
                    inside
                });
                *hit.unwrap_or(&copies[0])
            }
        };
        Some(chosen.node)
    }
}

/// Load is relative to strength: ten requests are more for a node of half the weight.
fn is_less_loaded(one: ReadCopy, other: ReadCopy) -> bool {
    let relative = |a: ReadCopy, b: ReadCopy| u64::from(a.load) * u64::from(b.weight.max(1));
    relative(one, other) < relative(other, one)
}

/// A uniform number below `limit` from a uniform `u64`; the bias is at most `limit / 2^64`.
fn below(random: u64, limit: u64) -> u64 {
    ((u128::from(random) * u128::from(limit)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const DRAWS: u64 = 60_000;

    /// SplitMix64: the same draws in every run.
    fn draws() -> impl Iterator<Item = u64> {
        (1..=DRAWS).map(|n| {
            let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    fn copies(weights_and_loads: &[(u32, u32)]) -> Vec<ReadCopy> {
        (1..)
            .zip(weights_and_loads)
            .map(|(node, &(weight, load))| ReadCopy { node: NodeId(node), weight, load })
            .collect()
    }

    fn counts(balance: ReadBalance, copies: &[ReadCopy]) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for random in draws() {
            *counts.entry(balance.choose(copies, random).unwrap().0).or_insert(0) += 1;
        }
        counts
    }

    /// Pearson's statistic against the expected parts.
    fn chi_square(counts: &BTreeMap<u64, u64>, parts: &[f64]) -> f64 {
        let whole: f64 = parts.iter().sum();
        (1..)
            .zip(parts)
            .map(|(node, part)| {
                let expected = DRAWS as f64 * part / whole;
                let seen = counts.get(&node).copied().unwrap_or(0) as f64;
                (seen - expected).powi(2) / expected
            })
            .sum()
    }

    /// Exceeded by chance once in a thousand with four degrees of freedom.
    const CHI_SQUARE_4_999: f64 = 18.467;

    #[test]
    fn random_reads_each_copy_as_often_as_the_others() {
        let copies = copies(&[(1_000, 0), (1_000, 50), (9_000, 0), (1_000, 7), (1, 0)]);
        let counts = counts(ReadBalance::Random, &copies);
        assert!(chi_square(&counts, &[1.0; 5]) < CHI_SQUARE_4_999, "{counts:?}");
    }

    #[test]
    fn weighted_reads_in_proportion_to_the_weights() {
        let copies = copies(&[(500, 9), (1_000, 0), (2_000, 3), (1_500, 0), (1_000, 99)]);
        let counts = counts(ReadBalance::Weighted, &copies);
        let parts = [0.5, 1.0, 2.0, 1.5, 1.0];
        assert!(chi_square(&counts, &parts) < CHI_SQUARE_4_999, "{counts:?}");
    }

    #[test]
    fn with_equal_loads_least_of_two_reads_each_copy_as_often_as_the_others() {
        let copies = copies(&[(1_000, 4); 5]);
        let counts = counts(ReadBalance::LeastOfTwo, &copies);
        assert!(chi_square(&counts, &[1.0; 5]) < CHI_SQUARE_4_999, "{counts:?}");
    }

    #[test]
    fn the_most_loaded_of_all_is_never_read_and_the_least_loaded_wins_whenever_it_is_drawn() {
        let copies = copies(&[(1_000, 10), (1_000, 20), (1_000, 30), (1_000, 40), (1_000, 50)]);
        let counts = counts(ReadBalance::LeastOfTwo, &copies);
        assert_eq!(counts.get(&5), None);
        // Of the ten pairs, the first is in four, the second is the lesser in three, and so on.
        let parts = [4.0, 3.0, 2.0, 1.0];
        assert!(chi_square(&counts, &parts) < CHI_SQUARE_4_999, "{counts:?}");
    }

    #[test]
    fn least_of_two_evens_out_where_random_leaves_a_crowd() {
        let busiest = |balance: ReadBalance| -> u32 {
            let mut copies = copies(&[(1_000, 0); 100]);
            for random in draws().take(10_000) {
                let node = balance.choose(&copies, random).unwrap();
                copies[node.0 as usize - 1].load += 1;
            }
            copies.iter().map(|copy| copy.load).max().unwrap()
        };
        let (two, random) = (busiest(ReadBalance::LeastOfTwo), busiest(ReadBalance::Random));
        assert!(two <= 104, "the mean is 100, the busiest has {two}");
        assert!(random >= 115, "the mean is 100, the busiest has {random}");
    }

    #[test]
    fn load_counts_relative_to_strength() {
        let strong_and_weak = copies(&[(4_000, 30), (1_000, 10)]);
        let counts = counts(ReadBalance::LeastOfTwo, &strong_and_weak);
        assert_eq!(counts.get(&1), Some(&DRAWS));
    }

    #[test]
    fn without_weights_all_are_alike_and_without_copies_there_is_no_choice() {
        let weightless = copies(&[(0, 0); 5]);
        let counts = counts(ReadBalance::Weighted, &weightless);
        assert!(chi_square(&counts, &[1.0; 5]) < CHI_SQUARE_4_999, "{counts:?}");
        assert_eq!(ReadBalance::LeastOfTwo.choose(&[], 1), None);
        assert_eq!(ReadBalance::LeastOfTwo.choose(&weightless[..1], 1), Some(NodeId(1)));
    }

    #[test]
    fn the_ends_of_the_random_range_choose_an_existing_copy() {
        let copies = copies(&[(3, 1), (2, 1), (1, 1)]);
        for balance in [ReadBalance::LeastOfTwo, ReadBalance::Weighted, ReadBalance::Random] {
            for random in [0, 1, u64::MAX - 1, u64::MAX] {
                assert!(balance.choose(&copies, random).is_some());
            }
        }
    }
}
