//! The items with the longest values, as far as a sample shows them.
//!
//! Nothing watches for them: each question walks a bounded stretch of the cache further and keeps
//! the largest met so far, so someone who keeps asking sees more and more. What was kept is looked
//! up again before it is told.

use kiln_engine::Store;

/// Kept and told.
const KEPT_MAX: usize = 16;

/// Looks into the index for one question: where it is nearly empty, few items are seen in many.
const LOOKS_MAX: usize = 64;

/// The largest items met so far.
#[derive(Debug, Default)]
pub(crate) struct Largest {
    kept: Vec<(Box<[u8]>, u64)>,
    /// Where the walk goes on.
    cursor: u64,
}

impl Largest {
    /// Walks past some `items` more, and returns keys with the lengths of their values, longest
    /// first.
    pub(crate) fn sample(
        &mut self,
        store: &Store,
        items: usize,
        now_ms: u64,
    ) -> &[(Box<[u8]>, u64)] {
        self.kept.retain_mut(|(key, len)| {
            let now = store.peek(key, Store::hash(key), now_ms);
            now.map(|info| *len = info.value_len as u64).is_some()
        });
        let mut seen = 0;
        for _ in 0..LOOKS_MAX {
            let page = store.scan(self.cursor, (items / 16).max(1), now_ms, |entry| {
                let len = entry.info.value_len as u64;
                let least = self.kept.iter().map(|(_, len)| *len).min().unwrap_or(0);
                let is_kept = || self.kept.iter().any(|(key, _)| **key == *entry.key);
                if (self.kept.len() < KEPT_MAX || len > least) && !is_kept() {
                    if self.kept.len() == KEPT_MAX
                        && let Some(place) = self.kept.iter().position(|(_, len)| *len == least)
                    {
                        self.kept.swap_remove(place);
                    }
                    self.kept.push((entry.key.into(), len));
                }
            });
            seen += page.seen;
            self.cursor = page.next.unwrap_or(0);
            if page.next.is_none() || seen >= items {
                break;
            }
        }
        self.kept.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_engine::{StoreConfig, WriteOptions};

    #[test]
    fn someone_who_keeps_asking_sees_the_largest() {
        let config = StoreConfig { memory: 32 << 20, ..StoreConfig::default() };
        let store = Store::new(config).unwrap();
        for number in 0..20_000_usize {
            let key = number.to_string();
            let value = vec![0; if number % 1_000 == 7 { number } else { 10 }];
            let hash = Store::hash(key.as_bytes());
            store.write(key.as_bytes(), hash, &value, &WriteOptions::default(), 1);
        }
        let mut largest = Largest::default();
        for _ in 0..30 {
            largest.sample(&store, 2_000, 2);
        }
        let found: Vec<u64> =
            largest.sample(&store, 2_000, 2).iter().map(|(_, len)| *len).collect();
        let expected: Vec<u64> = (4..20).rev().map(|thousands| thousands * 1_000 + 7).collect();
        assert_eq!(found, expected);

        store.flush(None, 3);
        assert!(largest.sample(&store, 2_000, 3).is_empty());
    }
}
