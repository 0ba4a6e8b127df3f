//! How long a key's value is, and which bytes it has.
//!
//! Both are functions of the key's number alone: whoever stored it, a reader can tell whether what
//! came back is right. A value opens with a hash of its key, so that two keys' values differ, and
//! goes on with a slice of one block of noise, so that neither making nor checking it costs more
//! than a copy or a comparison.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Lengths and how often each occurs: `100`, or `64:5,100:80,1000-2000:15`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeDist {
    /// Upper bound of each share on a scale of 2^32, beside its shortest and longest length.
    shares: Vec<(u64, usize, usize)>,
    /// As it was written.
    text: String,
}

/// Why a size distribution cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SizeDistError {
    /// Not `SIZE`, `SIZE:WEIGHT` or `FROM-TO:WEIGHT`.
    #[error("`{part}`: expected SIZE, SIZE:WEIGHT or FROM-TO:WEIGHT")]
    Malformed {
        /// The part that could not be read.
        part: String,
    },
    /// A value longer than any server takes.
    #[error("a value of {size} bytes is more than {SIZE_MAX}")]
    TooLarge {
        /// The length asked for.
        size: usize,
    },
    /// The weights say nothing.
    #[error("the weights add up to zero, or to more than {WEIGHT_SUM_MAX}")]
    Weights,
}

impl SizeDist {
    /// Every value has `size` bytes; `None` beyond 64 MiB.
    #[must_use]
    pub fn fixed(size: usize) -> Option<Self> {
        let shares = vec![(SCALE, size, size)];
        (size <= SIZE_MAX).then(|| Self { shares, text: size.to_string() })
    }

    /// The longest value there can be.
    #[must_use]
    pub fn size_max(&self) -> usize {
        self.shares.iter().map(|&(_, _, longest)| longest).max().unwrap_or(0)
    }

    /// The length that a uniformly distributed `hash` selects.
    fn pick(&self, hash: u64) -> usize {
        let (position, spread) = (hash >> 32, hash & (SCALE - 1));
        let share = self.shares.iter().find(|&&(bound, _, _)| position < bound);
        let Some(&(_, from, to)) = share.or(self.shares.last()) else { return 0 };
        from + ((spread * (to - from + 1) as u64) >> 32) as usize
    }
}

impl fmt::Display for SizeDist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SizeDist {
    type Err = SizeDistError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(parse_share).collect::<Result<Vec<_>, _>>()?;
        let sum = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.0));
        let sum =
            sum.filter(|sum| (1..=WEIGHT_SUM_MAX).contains(sum)).ok_or(SizeDistError::Weights)?;
        let mut passed = 0;
        let shares = parts
            .into_iter()
            .map(|(weight, from, to)| {
                passed += weight;
                (passed * SCALE / sum, from, to)
            })
            .collect();
        Ok(Self { shares, text: text.to_owned() })
    }
}

fn parse_share(part: &str) -> Result<(u64, usize, usize), SizeDistError> {
    let malformed = || SizeDistError::Malformed { part: part.to_owned() };
    let (sizes, weight) = part.split_once(':').unwrap_or((part, "1"));
    let (from, to) = sizes.split_once('-').unwrap_or((sizes, sizes));
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| malformed());
    let (from, to, weight) = (number(from)?, number(to)?, number(weight)? as u64);
    match () {
        () if to > SIZE_MAX => Err(SizeDistError::TooLarge { size: to }),
        () if from > to => Err(malformed()),
        () => Ok((weight, from, to)),
    }
}

/// The values of all keys.
#[derive(Clone, Debug)]
pub struct Values {
    sizes: SizeDist,
    noise: Vec<u8>,
}

impl Values {
    /// Values whose lengths follow `sizes`.
    #[must_use]
    pub fn new(sizes: SizeDist) -> Self {
        let mut noise = vec![0; sizes.size_max() + NOISE_OFFSETS];
        Xoshiro256PlusPlus::seed_from_u64(NOISE_SEED).fill_bytes(&mut noise);
        Self { sizes, noise }
    }

    /// The longest value there is.
    #[must_use]
    pub fn len_max(&self) -> usize {
        self.sizes.size_max()
    }

    /// How long the value of key `number` is.
    #[must_use]
    pub fn len_of(&self, number: u32) -> usize {
        self.sizes.pick(mix(u64::from(number) ^ NOISE_SEED))
    }

    /// Appends the value of key `number`.
    pub fn write(&self, number: u32, output: &mut Vec<u8>) {
        let (opening, body) = self.parts(number);
        output.extend_from_slice(&opening[..opening.len().min(self.len_of(number))]);
        output.extend_from_slice(body);
    }

    /// Whether `data` is the value of key `number`.
    #[must_use]
    pub fn matches(&self, number: u32, data: &[u8]) -> bool {
        let (opening, body) = self.parts(number);
        let opening = &opening[..opening.len().min(self.len_of(number))];
        data.strip_prefix(opening).is_some_and(|rest| rest == body)
    }

    fn parts(&self, number: u32) -> ([u8; 8], &[u8]) {
        let hash = mix(u64::from(number));
        let offset = hash as usize % NOISE_OFFSETS;
        let body_len = self.len_of(number).saturating_sub(8);
        (hash.to_le_bytes(), &self.noise[offset..offset + body_len])
    }
}

/// The finaliser of splitmix64: every bit of the number reaches every bit of the hash.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The largest value: what servers can be configured to take.
const SIZE_MAX: usize = 64 * 1024 * 1024;

/// Keeps `weight * SCALE` within 64 bits.
const WEIGHT_SUM_MAX: u64 = 1_000_000;

const SCALE: u64 = 1 << 32;

/// At how many places of the noise a value can start.
const NOISE_OFFSETS: usize = 4096;

const NOISE_SEED: u64 = 0x6b69_6c6e;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_number_is_the_length_of_every_value() {
        let sizes: SizeDist = "100".parse().unwrap();

        assert_eq!(sizes.size_max(), 100);
        assert!([0, 1, u64::MAX / 2, u64::MAX].iter().all(|&hash| sizes.pick(hash) == 100));
        assert_eq!(Some(sizes), SizeDist::fixed(100));
    }

    #[test]
    fn weighted_lengths_occur_in_proportion_to_their_weights() {
        let values = Values::new("64:5,100:80,1024:15".parse().unwrap());
        let mut seen = std::collections::BTreeMap::new();
        for number in 0..100_000 {
            *seen.entry(values.len_of(number)).or_insert(0i32) += 1;
        }

        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [64, 100, 1024]);
        for (size, expected) in [(64, 5_000), (100, 80_000), (1024, 15_000)] {
            assert!(
                (seen[&size] - expected).abs() < expected / 20 + 200,
                "{size}: {}",
                seen[&size]
            );
        }
    }

    #[test]
    fn a_range_covers_its_ends_and_nothing_beyond() {
        let values = Values::new("10-12".parse().unwrap());
        let seen: std::collections::BTreeSet<_> = (0..1000).map(|n| values.len_of(n)).collect();

        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [10, 11, 12]);
    }

    #[test]
    fn a_distribution_that_cannot_be_meant_is_refused() {
        for wrong in ["", "x", "1:2:3", "5-1", "-5", "100,", "1:x", "1.5"] {
            let error = wrong.parse::<SizeDist>().unwrap_err();
            assert!(matches!(error, SizeDistError::Malformed { .. }), "{wrong}: {error}");
        }
        assert_eq!(
            "67108865".parse::<SizeDist>(),
            Err(SizeDistError::TooLarge { size: 67_108_865 })
        );
        assert_eq!("1:0,2:0".parse::<SizeDist>(), Err(SizeDistError::Weights));
        assert_eq!("1:2000000".parse::<SizeDist>(), Err(SizeDistError::Weights));
    }

    #[test]
    fn a_value_matches_its_own_key_and_no_other() {
        let values = Values::new("0-40".parse().unwrap());
        for number in 0..2000 {
            let mut data = Vec::new();
            values.write(number, &mut data);
            assert_eq!(data.len(), values.len_of(number));
            assert!(values.matches(number, &data));
            if data.len() >= 8 {
                assert!(!values.matches(number + 1, &data));
                assert!(!values.matches(number, &data[..data.len() - 1]));
                *data.last_mut().unwrap() ^= 1;
                assert!(!values.matches(number, &data));
            }
        }
    }
}
