//! What the hit ratio of a cache would be with less memory or with more: its miss-ratio curve,
//! estimated while it is used.
//!
//! SHARDS with a fixed number of samples (Waldspurger and others, FAST 2015). Keys are chosen by
//! their hash, so of a key either every use is looked at or none. For a use of a chosen key, the
//! number of other chosen keys used since, divided by the rate, is its reuse distance: the number of
//! items that a cache which drops the least recently used one must hold for the use to be a hit.
//! When more than [`SAMPLES_MAX`] keys are chosen, the rate falls. What chance made too many or too
//! few of is put right in the first bucket, as its authors propose (SHARDS-adj).
//!
//! Always true: at most [`SAMPLES_MAX`] keys are kept; counts are halved by [`Curve::age`], so that
//! the curve is about the last minutes.
//!
//! Cost: for a use that is not looked at, a multiplication and a comparison; at most one key in
//! [`RATE_START`] is looked at, for about the time of two lookups. A cache of few keys has few
//! samples: see [`Curve::samples`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

/// Keys that are kept.
const SAMPLES_MAX: usize = 4_096;

/// One key in so many is chosen at first.
const RATE_START: u32 = 32;

/// Hashes are looked at in so many bits.
const BITS: u32 = 24;

/// Caches of one process that have a curve, each of at most 800 KiB: those that were used first.
const CURVES_MAX: usize = 16;

static CURVES: AtomicUsize = AtomicUsize::new(0);

/// Places in time before all are numbered anew.
const TIMES: usize = 4 * SAMPLES_MAX;

/// Buckets of distances: sixteen an octave.
const PER_OCTAVE: usize = 16;
const BUCKETS: usize = 48 * PER_OCTAVE;

/// The curve of one cache, as its users fill it.
#[derive(Debug)]
pub(crate) struct Tracked {
    /// Keys whose value is below this are chosen.
    threshold: AtomicU64,
    /// All uses, looked at or not.
    uses: Uses,
    curve: Mutex<Option<Box<Curve>>>,
}

/// On a line of its own: every worker writes it with every batch, and the threshold beside it would
/// have to be fetched again for every read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Uses(AtomicU64);

impl Default for Tracked {
    fn default() -> Self {
        Self {
            threshold: AtomicU64::new(u64::from((1 << BITS) / RATE_START)),
            uses: Uses::default(),
            curve: Mutex::new(None),
        }
    }
}

impl Tracked {
    /// A read of a key with this hash. It is to be counted, too.
    #[inline]
    pub(crate) fn read(&self, hash: u64) {
        if value_of(hash) < self.threshold.load(Relaxed) {
            self.look(hash);
        }
    }

    /// So many reads were made.
    #[inline]
    pub(crate) fn count(&self, reads: u64) {
        // Of several threads, now and then one's count is lost: the sum is for a correction only.
        self.uses.0.store(self.uses.0.load(Relaxed) + reads, Relaxed);
    }

    #[cold]
    fn look(&self, hash: u64) {
        // Rather one sample less than a wait.
        let Some(mut curve) = self.curve.try_lock() else { return };
        if curve.is_none() {
            if CURVES.fetch_add(1, Relaxed) >= CURVES_MAX {
                CURVES.fetch_sub(1, Relaxed);
                return;
            }
            self.uses.0.store(0, Relaxed);
        }
        let curve = curve.get_or_insert_with(Box::default);
        curve.read(hash);
        self.threshold.store(curve.threshold, Relaxed);
    }

    /// What the hit ratio would be with so many items each; nothing when too little was seen.
    pub(crate) fn hit_ratios(&self, items: &[f64]) -> Option<Vec<f64>> {
        let mut curve = self.curve.lock();
        let curve = curve.as_mut()?;
        curve.uses += self.uses.0.swap(0, Relaxed) as f64;
        (curve.samples() >= SAMPLES_MIN && curve.total() > 0.0).then(|| curve.hit_ratios(items))
    }

    /// Lets old uses count for half. Call it every minute or so.
    pub(crate) fn age(&self) {
        if let Some(curve) = self.curve.lock().as_mut() {
            curve.uses += self.uses.0.swap(0, Relaxed) as f64;
            curve.age();
        }
    }
}

/// Fewer chosen keys tell nothing.
const SAMPLES_MIN: usize = 32;

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.curve.get_mut().is_some() {
            CURVES.fetch_sub(1, Relaxed);
        }
    }
}

/// What is known of the chosen keys.
#[derive(Debug)]
struct Curve {
    threshold: u64,
    /// When each was used last.
    last: HashMap<u64, u32>,
    /// The same by value, so that the greatest goes first.
    by_value: BTreeSet<(u64, u64)>,
    /// How many keys were used last in a stretch of time.
    tree: Vec<u32>,
    now: u32,
    /// Uses by reuse distance, in uses of chosen keys.
    counts: Vec<f64>,
    /// Uses of keys that were not known.
    cold: f64,
    /// All uses, of which `threshold / 2^24` should be of chosen keys.
    uses: f64,
}

impl Default for Curve {
    fn default() -> Self {
        Self {
            threshold: u64::from((1 << BITS) / RATE_START),
            last: HashMap::new(),
            by_value: BTreeSet::new(),
            tree: vec![0; TIMES + 1],
            now: 0,
            counts: vec![0.0; BUCKETS],
            cold: 0.0,
            uses: 0.0,
        }
    }
}

impl Curve {
    fn rate(&self) -> f64 {
        self.threshold as f64 / f64::from(1 << BITS)
    }

    fn samples(&self) -> usize {
        self.last.len()
    }

    fn total(&self) -> f64 {
        self.cold + self.counts.iter().sum::<f64>()
    }

    fn read(&mut self, hash: u64) {
        let value = value_of(hash);
        if value >= self.threshold {
            return;
        }
        if self.now as usize >= TIMES {
            self.number_anew();
        }
        self.now += 1;
        match self.last.insert(hash, self.now) {
            Some(before) => {
                let distance = self.since(before);
                self.add(before, -1);
                let items = f64::from(distance + 1) / self.rate();
                self.counts[bucket(items)] += 1.0;
            }
            None => {
                self.cold += 1.0;
                self.by_value.insert((value, hash));
            }
        }
        self.add(self.now, 1);
        if self.last.len() > SAMPLES_MAX {
            self.lower();
        }
    }

    /// Lowers the rate until there is room for one more.
    fn lower(&mut self) {
        let before = self.rate();
        let Some((value, _)) = self.by_value.last().copied() else { return };
        self.threshold = value.max(1);
        while let Some(&(value, hash)) = self.by_value.last()
            && value >= self.threshold
        {
            self.by_value.pop_last();
            if let Some(time) = self.last.remove(&hash) {
                self.add(time, -1);
            }
        }
        // Counted at the old rate, they would weigh too much.
        let scale = self.rate() / before;
        self.counts.iter_mut().for_each(|count| *count *= scale);
        self.cold *= scale;
    }

    /// Keys used last after `time`.
    fn since(&self, time: u32) -> u32 {
        let mut upto = 0;
        let mut at = time as usize;
        while at > 0 {
            upto += self.tree[at];
            at &= at - 1;
        }
        // This key itself is at its old time still.
        (self.last.len() as u32).saturating_sub(upto)
    }

    fn add(&mut self, time: u32, delta: i32) {
        let mut at = time as usize;
        while at <= TIMES {
            self.tree[at] = self.tree[at].wrapping_add_signed(delta);
            at += at & at.wrapping_neg();
        }
    }

    fn number_anew(&mut self) {
        let mut times: Vec<(u32, u64)> =
            self.last.iter().map(|(hash, time)| (*time, *hash)).collect();
        times.sort_unstable();
        self.tree.iter_mut().for_each(|count| *count = 0);
        self.now = 0;
        for (_, hash) in times {
            self.now += 1;
            self.last.insert(hash, self.now);
            self.add(self.now, 1);
        }
    }

    fn hit_ratios(&self, items: &[f64]) -> Vec<f64> {
        let seen = self.total();
        // By chance the chosen keys have more or fewer uses than their share; those that are too
        // many or missing are of keys that are used all the time.
        let wanted = self.uses * self.rate();
        let correction = wanted - seen;
        let total = wanted.max(f64::MIN_POSITIVE);
        let ratio = |items: &f64| {
            let whole = bucket(items.max(1.0));
            let hits: f64 = self.counts[..whole].iter().sum();
            // Of the bucket that the size falls into, a part.
            let (low, high) = (floor(whole), floor(whole + 1));
            let part = ((items - low) / (high - low)).clamp(0.0, 1.0);
            ((hits + self.counts[whole] * part + correction) / total).clamp(0.0, 1.0)
        };
        items.iter().map(ratio).collect()
    }

    fn age(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2.0);
        self.cold /= 2.0;
        self.uses /= 2.0;
    }
}

/// The value by which a key is chosen: independent of what the store uses of the hash.
#[inline]
fn value_of(hash: u64) -> u64 {
    (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - BITS)
}

fn bucket(items: f64) -> usize {
    let at = (items.max(1.0).log2() * PER_OCTAVE as f64) as usize;
    at.min(BUCKETS - 2)
}

/// The smallest number of items in a bucket.
fn floor(bucket: usize) -> f64 {
    (bucket as f64 / PER_OCTAVE as f64).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses of keys, made up: some keys far more often than others.
    struct Zipf {
        sums: Vec<f64>,
        state: u64,
    }

    impl Zipf {
        fn new(keys: usize, skew: f64, seed: u64) -> Self {
            let mut sum = 0.0;
            let sums = (1..=keys)
                .map(|rank| {
                    sum += (rank as f64).powf(-skew);
                    sum
                })
                .collect();
            Self { sums, state: seed }
        }

        fn next(&mut self) -> u64 {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let at =
                (self.state >> 11) as f64 / (1_u64 << 53) as f64 * self.sums[self.sums.len() - 1];
            self.sums.partition_point(|sum| *sum < at) as u64
        }
    }

    fn use_of(tracked: &Tracked, key: u64) {
        tracked.count(1);
        tracked.read(xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes()));
    }

    /// Hits of a cache of so many items that drops the least recently used one, simulated.
    fn simulated(uses: &[u64], items: usize) -> f64 {
        let mut at = HashMap::new();
        let mut by_age = std::collections::BTreeMap::new();
        let mut hits = 0;
        for (now, key) in uses.iter().enumerate() {
            if let Some(before) = at.insert(*key, now) {
                by_age.remove(&before);
                hits += 1;
            } else if at.len() > items
                && let Some((_, oldest)) = by_age.pop_first()
            {
                at.remove(&oldest);
            }
            by_age.insert(now, *key);
        }
        hits as f64 / uses.len() as f64
    }

    /// The same for all sizes at once: how many different keys were used between two uses of one.
    fn distances(uses: &[u64]) -> Vec<usize> {
        let (mut tree, mut last) = (vec![0_i32; uses.len() + 1], HashMap::new());
        let add = |tree: &mut Vec<i32>, mut at: usize, delta| {
            while at < tree.len() {
                tree[at] += delta;
                at += at & at.wrapping_neg();
            }
        };
        let upto = |tree: &[i32], mut at: usize| {
            let mut sum = 0;
            while at > 0 {
                sum += tree[at];
                at &= at - 1;
            }
            sum as usize
        };
        let mut distances = Vec::new();
        for (now, key) in (1..).zip(uses) {
            if let Some(before) = last.insert(*key, now) {
                distances.push(last.len() - upto(&tree, before) + 1);
                add(&mut tree, before, -1);
            }
            add(&mut tree, now, 1);
        }
        distances.sort_unstable();
        distances
    }

    /// The mean error of the curve over sizes from 1,000 to 256,000 items, four an octave.
    fn error(uses: &[u64]) -> f64 {
        let tracked = Tracked::default();
        uses.iter().for_each(|key| use_of(&tracked, *key));
        let sizes: Vec<f64> =
            (0..=32).map(|step| 1_000.0 * (f64::from(step) / 4.0).exp2()).collect();
        let told = tracked.hit_ratios(&sizes).unwrap();
        let distances = distances(uses);
        let truth = |size: f64| {
            let hits = distances.partition_point(|distance| *distance <= size as usize);
            hits as f64 / uses.len() as f64
        };
        let check = (simulated(uses, 20_000) - truth(20_000.0)).abs();
        assert!(check < 1e-9, "the two ways to the true curve agree: {check}");
        let errors: Vec<f64> =
            sizes.iter().zip(&told).map(|(size, told)| (truth(*size) - told).abs()).collect();
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        println!(
            "mean error {mean:.4}, greatest {:.4}",
            errors.iter().copied().fold(0.0, f64::max)
        );
        mean
    }

    #[test]
    fn the_curve_of_a_zipf_load_is_within_two_hundredths_of_the_true_one() {
        for (skew, seed) in [(0.8, 7), (0.99, 11), (1.1, 13)] {
            let mut zipf = Zipf::new(200_000, skew, seed);
            let uses: Vec<u64> = (0..600_000).map(|_| zipf.next()).collect();
            assert!(error(&uses) < 0.02, "skew {skew}");
        }
    }

    #[test]
    fn the_curve_of_a_load_with_scans_is_within_two_hundredths_of_the_true_one() {
        let mut zipf = Zipf::new(100_000, 0.9, 17);
        let mut uses = Vec::new();
        for _ in 0..4 {
            uses.extend((0..120_000).map(|_| zipf.next()));
            // A walk through keys that are used for nothing else.
            uses.extend(1_000_000..1_060_000_u64);
        }
        assert!(error(&uses) < 0.02);
    }

    #[test]
    fn memory_is_bounded_and_a_load_of_few_keys_is_not_judged() {
        let mut curve = Curve::default();
        for key in 0..2_000_000_u64 {
            curve.read(xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes()));
            assert!(curve.samples() <= SAMPLES_MAX && curve.by_value.len() == curve.samples());
        }
        assert!(curve.rate() < 1.0 / f64::from(RATE_START));
        let few = Tracked::default();
        (0..1_000_u64).for_each(|number| use_of(&few, number % 4));
        assert_eq!(few.hit_ratios(&[10.0]), None);
    }

    #[test]
    fn what_was_long_ago_counts_for_less() {
        let tracked = Tracked::default();
        let hits = |base: u64| {
            (0..10).for_each(|_| (base..base + 20_000).for_each(|key| use_of(&tracked, key)));
        };
        hits(0);
        let before = tracked.hit_ratios(&[30_000.0]).unwrap()[0];
        (0..10).for_each(|_| tracked.age());
        (100_000..300_000).for_each(|key| use_of(&tracked, key));
        let after = tracked.hit_ratios(&[30_000.0]).unwrap()[0];
        assert!(before > 0.8 && after < 0.1, "{before} {after}");
    }
}
