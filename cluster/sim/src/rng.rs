//! The only source of chance in a simulation.
//!
//! A seed must mean the same run for years, so the generator is fixed here rather than taken from a
//! library that may change its stream: SplitMix64, which passes the usual batteries and is a few
//! instructions. Every part of the simulation draws from its own stream ([`Rng::fork`]), so that
//! one more draw in the workload does not change what the network does.

/// A seeded stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut rng = Self(seed ^ 0x6b69_6c6e_5f73_696d);
        rng.next();
        rng
    }

    /// An independent stream for the part called `part`.
    pub fn fork(&mut self, part: u64) -> Self {
        Self::new(self.next() ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True once in `1 / probability` draws.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A waiting time with this mean (exponential), capped at 50 means.
    pub fn wait(&mut self, mean: f64) -> f64 {
        (-(1.0 - self.unit()).ln() * mean).min(50.0 * mean)
    }

    /// One of `items`; they must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// An index, in proportion to `weights`; 0 when all are zero.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut left = self.below(weights.iter().map(|&weight| u64::from(weight)).sum());
        for (index, &weight) in weights.iter().enumerate() {
            if left < u64::from(weight) {
                return index;
            }
            left -= u64::from(weight);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_numbers_for_ever() {
        let mut rng = Rng::new(7);
        let first: Vec<u64> = (0..3).map(|_| rng.below(1_000_000)).collect();
        assert_eq!(first, [GOLDEN[0], GOLDEN[1], GOLDEN[2]]);
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_both_ends() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 5];
        for _ in 0..1_000 {
            seen[rng.between(3, 7) as usize - 3] = true;
            assert!(rng.unit() < 1.0);
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(rng.below(0), 0);
        assert!(rng.between(5, u64::MAX) >= 5);
    }

    #[test]
    fn weights_are_respected() {
        let mut rng = Rng::new(2);
        let mut count = [0_u32; 3];
        for _ in 0..10_000 {
            count[rng.weighted(&[1, 0, 3])] += 1;
        }
        assert_eq!(count[1], 0);
        assert!((2_000..3_000).contains(&count[0]), "{count:?}");
    }

    const GOLDEN: [u64; 3] = [347_892, 603_294, 16_238];
}
