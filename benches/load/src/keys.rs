//! Which key a request names, and how it is spelt.
//!
//! Keys are numbered; a number becomes text of a fixed length by writing its digits over the end of
//! a template. A skewed draw is scattered over the numbers by a bijection, because neighbours in
//! number were also stored next to each other, and a hot set lying together in memory would flatter
//! the server.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt};
use rand_distr::{Distribution, Zipf};

/// How the draws spread over the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDist {
    /// Every key is as likely as any other.
    Uniform,
    /// One after the other, all connections together, and again from the first.
    Sequential,
    /// The key of rank `k` is drawn in proportion to `1 / k^exponent`.
    Zipf {
        /// Zero is uniform; caches in the field show 0.6 to 1.2.
        exponent: f64,
    },
}

impl FromStr for KeyDist {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let exponent = match text.split_once(':') {
            None if text == "uniform" => return Ok(Self::Uniform),
            None if text == "sequential" => return Ok(Self::Sequential),
            Some(("zipf", exponent)) => exponent.parse().ok(),
            _ => None,
        };
        exponent
            .filter(|exponent: &f64| exponent.is_finite() && (0.0..=ZIPF_MAX).contains(exponent))
            .map(|exponent| Self::Zipf { exponent })
            .ok_or_else(|| {
                format!("expected `uniform`, `sequential` or `zipf:S` with S from 0 to {ZIPF_MAX}")
            })
    }
}

impl fmt::Display for KeyDist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Sequential => f.write_str("sequential"),
            Self::Zipf { exponent } => write!(f, "zipf:{exponent}"),
        }
    }
}

/// Draws key numbers below a bound.
#[derive(Clone, Debug)]
pub struct KeyPicker {
    keys: u32,
    sequential: bool,
    skew: Option<(Zipf<f64>, u32)>,
}

impl KeyPicker {
    /// A picker over the numbers `0..keys`; `None` when there are no keys or the exponent is not
    /// one a zipf distribution can have.
    #[must_use]
    pub fn new(keys: u32, dist: KeyDist) -> Option<Self> {
        let skew = match dist {
            KeyDist::Uniform | KeyDist::Sequential => None,
            KeyDist::Zipf { exponent } => {
                Some((Zipf::new(f64::from(keys), exponent).ok()?, scatter_factor(keys)))
            }
        };
        (keys > 0).then_some(Self { keys, sequential: dist == KeyDist::Sequential, skew })
    }

    /// The number of the next key to ask for. `turn` counts the requests of all connections that
    /// share a sequence.
    pub fn draw(&self, rng: &mut impl Rng, turn: u64) -> u32 {
        match &self.skew {
            None if self.sequential => (turn % u64::from(self.keys)) as u32,
            None => rng.random_range(0..self.keys),
            Some((zipf, factor)) => {
                // Samples are whole numbers from 1 to `keys`, so both conversions are exact.
                let rank = zipf.sample(rng) as u64 - 1;
                (rank * u64::from(*factor) % u64::from(self.keys)) as u32
            }
        }
    }
}

/// A factor that shares no divisor with `keys`: multiplying by it modulo `keys` is a bijection.
fn scatter_factor(keys: u32) -> u32 {
    // The golden ratio spreads neighbours widest; one of the next few numbers is always coprime.
    let start = (f64::from(keys) * 0.618_033_988_749_895) as u32;
    (start.max(1)..=u32::MAX).find(|&factor| gcd(factor, keys) == 1).unwrap_or(1)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Spells key numbers as text of one fixed length: a prefix, zeros, the number.
#[derive(Clone, Debug)]
pub struct KeyShape {
    template: Vec<u8>,
    digits: usize,
}

impl KeyShape {
    /// A shape of `len` bytes for the numbers below `keys`; `None` when they do not fit in it.
    #[must_use]
    pub fn new(prefix: &str, len: usize, keys: u32) -> Option<Self> {
        let digits_needed =
            keys.saturating_sub(1).checked_ilog10().map_or(1, |log| log as usize + 1);
        let digits = len.checked_sub(prefix.len()).filter(|&room| room >= digits_needed)?;
        let mut template = prefix.as_bytes().to_vec();
        template.resize(len, b'0');
        Some(Self { template, digits: digits.min(DIGITS_MAX) })
    }

    /// How many bytes every key has.
    #[must_use]
    pub fn key_len(&self) -> usize {
        self.template.len()
    }

    /// Appends the text of key `number`.
    pub fn write(&self, number: u32, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.template);
        let end = output.len();
        let field = &mut output[end - self.digits..];
        let mut rest = number;
        for digit in field.iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

/// Digits of the largest `u32`.
const DIGITS_MAX: usize = 10;

/// Beyond this nearly every draw is the first key.
const ZIPF_MAX: f64 = 10.0;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;

    fn counts(keys: u32, dist: KeyDist, draws: usize) -> Vec<u64> {
        let picker = KeyPicker::new(keys, dist).unwrap();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let mut counts = vec![0; keys as usize];
        for turn in 0..draws {
            counts[picker.draw(&mut rng, turn as u64) as usize] += 1;
        }
        counts
    }

    #[test]
    fn zipf_ranks_are_drawn_in_proportion_to_the_power_of_their_rank() {
        let draws = 1_000_000;
        let mut counts = counts(1000, KeyDist::Zipf { exponent: 0.99 }, draws);
        counts.sort_unstable_by(|a, b| b.cmp(a));

        let norm: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [1usize, 2, 10, 100] {
            let expected = draws as f64 * (rank as f64).powf(-0.99) / norm;
            let seen = counts[rank - 1] as f64;
            assert!((seen / expected - 1.0).abs() < 0.1, "rank {rank}: {seen} for {expected}");
        }
    }

    #[test]
    fn hot_keys_of_a_skewed_draw_are_not_neighbours() {
        let counts = counts(1000, KeyDist::Zipf { exponent: 0.99 }, 100_000);
        let mut ranked: Vec<_> = (0..1000).collect();
        ranked.sort_unstable_by_key(|&key: &usize| std::cmp::Reverse(counts[key]));

        assert!(ranked[..4].windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 50), "{ranked:?}");
    }

    #[test]
    fn scattering_is_a_bijection_for_any_number_of_keys() {
        for keys in [1u32, 2, 3, 6, 10, 97, 1000, 4096] {
            let factor = u64::from(scatter_factor(keys));
            let mut hit = vec![false; keys as usize];
            for rank in 0..u64::from(keys) {
                hit[(rank * factor % u64::from(keys)) as usize] = true;
            }
            assert!(hit.iter().all(|&hit| hit), "{keys}");
        }
    }

    #[test]
    fn uniform_draws_reach_every_key_about_equally() {
        let counts = counts(100, KeyDist::Uniform, 100_000);

        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn sequential_draws_pass_every_key_before_any_comes_again() {
        assert_eq!(counts(100, KeyDist::Sequential, 300), [3; 100]);
    }

    #[test]
    fn a_key_is_its_prefix_zeros_and_its_number() {
        let shape = KeyShape::new("key:", 12, 1_000_000).unwrap();
        let mut text = Vec::new();
        shape.write(0, &mut text);
        shape.write(987_654, &mut text);

        assert_eq!(text, b"key:00000000key:00987654");
    }

    #[test]
    fn a_length_that_cannot_hold_every_number_is_refused() {
        assert!(KeyShape::new("key:", 9, 100_001).is_none());
        assert!(KeyShape::new("key:", 9, 100_000).is_some());
        assert!(KeyShape::new("key:", 3, 1).is_none());
    }

    #[test]
    fn key_distributions_are_read_as_written() {
        assert_eq!("uniform".parse(), Ok(KeyDist::Uniform));
        assert_eq!("sequential".parse(), Ok(KeyDist::Sequential));
        for text in ["uniform", "sequential", "zipf:0.99"] {
            assert_eq!(text.parse::<KeyDist>().unwrap().to_string(), text);
        }
        assert_eq!("zipf:0.99".parse(), Ok(KeyDist::Zipf { exponent: 0.99 }));
        for wrong in ["zipf", "zipf:", "zipf:-1", "zipf:nan", "zipf:inf", "gauss:1", ""] {
            assert!(wrong.parse::<KeyDist>().is_err(), "{wrong}");
        }
    }
}
