//! Eventual mode: a write is newer than what its owner held, a copy never goes back, no value is
//! invented, and what was acknowledged outlives everything but the death of all its holders.
//!
//! Per key the judge keeps the highest acknowledged version as a floor. When a process dies, the
//! floor falls to the highest version that a living one still holds: that much the mode does not
//! promise. What is left must be on all owners after the heal.

use std::collections::{BTreeMap, BTreeSet};

use kiln_cluster::effect::{Item, ItemKey, Operation};
use kiln_cluster::ids::{Member, Version};

use super::{Violation, name_of};

/// The judge of all eventual keys of a run.
#[derive(Debug, Default)]
pub struct Eventual {
    floors: BTreeMap<ItemKey, Version>,
    /// The newest version each copy was seen with.
    held: BTreeMap<(Member, ItemKey), Version>,
    /// Values that some call wrote or may have written.
    written: BTreeMap<ItemKey, BTreeSet<Vec<u8>>>,
}

impl Eventual {
    /// A call that may write a value begins.
    pub fn on_called(&mut self, key: &ItemKey, operation: &Operation) {
        if let Operation::Store { value, .. } = operation {
            self.written.entry(key.clone()).or_default().insert(value.to_vec());
        }
    }

    /// A write was acknowledged as `version`; when its owner took the request it held `before` of
    /// the key, and had been sent messages by nodes that knew of `heard`, of any key.
    pub fn on_written(
        &mut self,
        key: &ItemKey,
        version: Version,
        before: Option<Version>,
        heard: Option<Version>,
    ) -> Result<(), Violation> {
        if heard.is_some_and(|heard| millis(version) < millis(heard)) {
            return Err(Violation::new(
                "versions follow what was heard",
                name_of(key),
                format!("wrote {version} after hearing of {heard:?}"),
            ));
        }
        if before.is_some_and(|before| version <= before) {
            return Err(Violation::new(
                "a write is newer than what it replaces",
                name_of(key),
                format!("wrote {version} over {before:?}"),
            ));
        }
        let floor = self.floors.entry(key.clone()).or_default();
        *floor = version.max(*floor);
        Ok(())
    }

    /// A value was seen, by a client or on a copy.
    pub fn on_seen(&self, key: &ItemKey, item: &Item) -> Result<(), Violation> {
        let number = std::str::from_utf8(&item.value).is_ok_and(|text| text.parse::<u64>().is_ok());
        let known = self.written.get(key).is_some_and(|known| consists_of(&item.value, known));
        if number || known {
            return Ok(());
        }
        Err(Violation::new(
            "no value is invented",
            name_of(key),
            format!("{:?} was never written", item.value),
        ))
    }

    /// A living copy holds this now: the version, and whether an item is visible.
    pub fn on_copy(
        &mut self,
        copy: Member,
        key: &ItemKey,
        version: Version,
        visible: bool,
    ) -> Result<(), Violation> {
        let newest = self.held.entry((copy, key.clone())).or_default();
        if version < *newest && visible {
            return Err(Violation::new(
                "a copy never goes back",
                name_of(key),
                format!("{copy} held {newest} and now {version}"),
            ));
        }
        *newest = version.max(*newest);
        Ok(())
    }

    /// Processes died; `best` is the newest version of a key on those that live.
    pub fn on_deaths(&mut self, best: impl Fn(&ItemKey) -> Option<Version>) {
        for (key, floor) in &mut self.floors {
            *floor = (*floor).min(best(key).unwrap_or_default());
        }
    }

    /// All owners of some keys were gone, and the table says so: copies start again, empty.
    pub fn on_lost(&mut self, lost: impl Fn(&ItemKey) -> bool) {
        self.floors.retain(|key, _| !lost(key));
        self.held.retain(|(_, key), _| !lost(key));
    }

    /// After the heal, an owner holds this: the version and whether it is visible.
    pub fn on_healed(
        &self,
        copy: Member,
        key: &ItemKey,
        held: Option<(Version, bool)>,
        may_be_absent: bool,
    ) -> Result<(), Violation> {
        let Some(&floor) = self.floors.get(key) else { return Ok(()) };
        let finding = match held {
            Some((version, true)) if version < floor => format!("{copy} holds {version}"),
            None if floor > Version(0) && !may_be_absent => format!("{copy} holds nothing"),
            _ => return Ok(()),
        };
        let finding = format!("{finding}, acknowledged was {floor}");
        Err(Violation::new("acknowledged writes survive the heal", name_of(key), finding))
    }

    /// The keys written so far.
    pub fn keys(&self) -> impl Iterator<Item = &ItemKey> {
        self.floors.keys()
    }
}

/// The milliseconds of a stamp; the counter below them travels with items only.
pub fn millis(version: Version) -> u64 {
    version.0 >> 16
}

/// Whether `value` can be cut into known pieces (appended and prepended ones).
fn consists_of(value: &[u8], known: &BTreeSet<Vec<u8>>) -> bool {
    // Pieces end with a semicolon and hold none within, so there is only one way to cut.
    value.split_inclusive(|&byte| byte == b';').all(|piece| known.contains(piece))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kiln_cluster::effect::{StoreMode, Ttl};
    use kiln_cluster::ids::{CacheId, Incarnation, NodeId};

    use super::*;

    fn key() -> ItemKey {
        ItemKey { cache: CacheId(2), key: Bytes::from_static(b"e") }
    }

    fn member(node: u64) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(1) }
    }

    fn item(value: &'static str) -> Item {
        let value = Bytes::from_static(value.as_bytes());
        Item { value, version: Version(1), ..Item::default() }
    }

    fn wrote(judge: &mut Eventual, value: &'static str) {
        let value = Bytes::from_static(value.as_bytes());
        let (mode, ttl) = (StoreMode::Set, Ttl::Never);
        judge.on_called(&key(), &Operation::Store { mode, value, flags: 0, ttl, compare: None });
    }

    #[test]
    fn a_write_not_above_what_its_owner_held_is_refused() {
        let mut judge = Eventual::default();
        judge.on_written(&key(), Version(5), None, None).unwrap();
        judge.on_written(&key(), Version(6), Some(Version(5)), None).unwrap();
        judge.on_written(&key(), Version(6), Some(Version(6)), None).unwrap_err();
        judge.on_written(&key(), Version(4), Some(Version(6)), None).unwrap_err();
    }

    #[test]
    fn a_write_stamped_before_what_its_owner_had_heard_of_is_refused() {
        let mut judge = Eventual::default();
        let at = |ms: u64| Version(ms << 16 | 3);
        judge.on_written(&key(), at(500), None, Some(at(499))).unwrap();
        judge.on_written(&key(), at(500), None, Some(at(500))).unwrap();
        judge.on_written(&key(), at(500), None, Some(at(501))).unwrap_err();
    }

    #[test]
    fn an_invented_value_is_refused_and_a_composed_one_is_not() {
        let mut judge = Eventual::default();
        wrote(&mut judge, "1.1;");
        wrote(&mut judge, "1.2;");
        judge.on_seen(&key(), &item("1.2;1.1;")).unwrap();
        judge.on_seen(&key(), &item("17")).unwrap();
        judge.on_seen(&key(), &item("1.3;")).unwrap_err();
        judge.on_seen(&key(), &item("1.1;1.")).unwrap_err();
    }

    #[test]
    fn a_copy_that_shows_an_older_item_is_refused_also_after_it_forgot_the_delete() {
        let mut judge = Eventual::default();
        judge.on_copy(member(1), &key(), Version(5), true).unwrap();
        judge.on_copy(member(1), &key(), Version(8), false).unwrap();
        judge.on_copy(member(2), &key(), Version(5), true).unwrap();
        judge.on_copy(member(1), &key(), Version(5), true).unwrap_err();
    }

    #[test]
    fn an_acknowledged_write_missing_after_the_heal_is_refused_unless_its_holders_died() {
        let mut judge = Eventual::default();
        judge.on_written(&key(), Version(5), None, None).unwrap();
        judge.on_healed(member(1), &key(), Some((Version(5), true)), false).unwrap();
        judge.on_healed(member(1), &key(), Some((Version(4), true)), false).unwrap_err();
        judge.on_healed(member(1), &key(), None, false).unwrap_err();
        judge.on_healed(member(1), &key(), None, true).unwrap();
        judge.on_deaths(|_| Some(Version(4)));
        judge.on_healed(member(1), &key(), Some((Version(4), true)), false).unwrap();
        judge.on_deaths(|_| None);
        judge.on_healed(member(1), &key(), None, false).unwrap();
    }
}
