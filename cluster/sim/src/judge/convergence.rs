//! After the heal: every partition has as many copies as it should, and they are equal byte by byte.

use std::collections::BTreeMap;

use kiln_cluster::effect::{Item, ItemKey};
use kiln_cluster::ids::{Member, Place};

use super::{Violation, name_of};

/// The visible items of one copy of one partition.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Whose.
    pub owner: Member,
    /// The items whose end has not come, by key.
    pub items: BTreeMap<ItemKey, Item>,
}

/// Whether the copies of a partition are what they should be. In a cache that `evicts(key)`, an
/// item may be absent from a copy; where it is present it must be the same.
pub fn judge(
    place: Place,
    copies: &[Copy],
    wanted: usize,
    evicts: impl Fn(&ItemKey) -> bool,
) -> Result<(), Violation> {
    if copies.len() != wanted {
        let owners: Vec<String> = copies.iter().map(|copy| copy.owner.to_string()).collect();
        let finding = format!("{wanted} wanted, held by [{}]", owners.join(" "));
        return Err(Violation::new("as many copies as configured", place, finding));
    }
    let Some((first, others)) = copies.split_first() else { return Ok(()) };
    for other in others {
        for (key, item) in first.items.iter().chain(&other.items) {
            let pair = (first.items.get(key), other.items.get(key));
            match pair {
                (Some(one), Some(two)) if one == two => {}
                (Some(_), None) | (None, Some(_)) if evicts(key) => {}
                _ => {
                    let finding = format!(
                        "{} holds {:?}, {} holds {:?} (seen: {})",
                        first.owner, pair.0, other.owner, pair.1, item.version
                    );
                    return Err(Violation::new("copies are equal", name_of(key), finding));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kiln_cluster::ids::{CacheId, GroupKey, Incarnation, Mode, NodeId, PartitionId, Version};

    use super::*;

    const PLACE: Place =
        Place { group: GroupKey { mode: Mode::Strong, copies: 2 }, partition: PartitionId(0) };

    fn copy(node: u64, items: &[(&'static str, u64, Option<u64>)]) -> Copy {
        let items = items.iter().map(|&(value, version, deadline_ms)| {
            let key = ItemKey { cache: CacheId(1), key: Bytes::from_static(b"k") };
            let value = Bytes::from_static(value.as_bytes());
            (key, Item { value, version: Version(version), deadline_ms, ..Item::default() })
        });
        let owner = Member { node: NodeId(node), incarnation: Incarnation(1) };
        Copy { owner, items: items.collect() }
    }

    fn refused(copies: &[Copy], evicts: bool) -> bool {
        judge(PLACE, copies, 2, |_| evicts).is_err()
    }

    #[test]
    fn copies_that_differ_in_any_field_are_refused() {
        let right = copy(1, &[("a", 1, None)]);
        assert!(!refused(&[right.clone(), copy(2, &[("a", 1, None)])], false));
        assert!(refused(&[right.clone(), copy(2, &[("b", 1, None)])], true));
        assert!(refused(&[right.clone(), copy(2, &[("a", 2, None)])], true));
        assert!(refused(&[right, copy(2, &[("a", 1, Some(9))])], true));
    }

    #[test]
    fn a_missing_item_is_legal_only_where_items_are_evicted() {
        let pair = [copy(1, &[("a", 1, None)]), copy(2, &[])];
        assert!(refused(&pair, false));
        assert!(!refused(&pair, true));
    }

    #[test]
    fn a_copy_too_few_is_refused() {
        assert!(refused(&[copy(1, &[])], true));
    }
}
