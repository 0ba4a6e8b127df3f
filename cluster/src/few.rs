//! A map of a few entries in one piece of memory.
//!
//! A partition has one or two other copies, and most answers are of a few nodes' clients. In an
//! ordered map each takes a node of eleven places, and a look at it several reads of memory that is
//! not in the cache; here it is one. Iteration is in the order of keys, as everywhere in the core.
//!
//! Cost: adding and removing moves what lies behind.

/// An ordered map for a few entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<K, V> {
    entries: Vec<(K, V)>,
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<K: Ord + Copy, V> Few<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        // Of so few, the first is mostly the one.
        match self.entries.first() {
            Some((first, _)) if first == key => Ok(0),
            _ => self.entries.binary_search_by_key(key, |(key, _)| *key),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let at = self.find(key).ok()?;
        self.entries.get(at).map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key).ok()?;
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    /// Whether there is one.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Puts a value in the place of any former one.
    pub fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.entries[at].1 = value,
            Err(at) => self.entries.insert(at, (key, value)),
        }
    }

    /// The value of a key, made if there is none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let at = self.find(&key).unwrap_or_else(|at| {
            self.entries.insert(at, (key, make()));
            at
        });
        &mut self.entries[at].1
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        Some(self.entries.remove(at).1)
    }

    /// Keeps what `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain_mut(|(key, value)| keep(key, value));
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at a place in the order of keys.
    pub fn at(&self, place: usize) -> Option<(&K, &V)> {
        self.entries.get(place).map(|(key, value)| (key, value))
    }

    /// All, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// All, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().map(|(key, value)| (&*key, value))
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_holds_what_an_ordered_map_holds() {
        let (mut few, mut map) = (Few::default(), BTreeMap::new());
        let mut number = 1_u64;
        for step in 0..2_000_u64 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let key = (number >> 40) % 12;
            match (number >> 33) % 4 {
                0 => {
                    few.insert(key, step);
                    map.insert(key, step);
                }
                1 => assert_eq!(few.remove(&key), map.remove(&key)),
                2 => {
                    *few.get_or_insert_with(key, || step) += 1;
                    *map.entry(key).or_insert(step) += 1;
                }
                _ => {
                    few.retain(|other, _| other % 5 != key % 5);
                    map.retain(|other, _| other % 5 != key % 5);
                }
            }
            assert_eq!(few.get(&key), map.get(&key));
            assert_eq!(few.contains_key(&key), map.contains_key(&key));
            assert!(few.iter().eq(map.iter()) && few.len() == map.len());
        }
    }
}
