//! At most one member serves a partition in one term, and terms of a partition rise.

use std::collections::BTreeMap;

use kiln_cluster::ids::{Member, Place, Term};

use super::Violation;

/// Who served what in which term.
#[derive(Debug, Default)]
pub struct Primaries {
    served: BTreeMap<(Place, Term), Member>,
    committed: BTreeMap<Place, (Term, u64)>,
}

impl Primaries {
    /// A member says that it serves, or acknowledged something, in a term.
    pub fn on_serving(&mut self, place: Place, term: Term, who: Member) -> Result<(), Violation> {
        match self.served.insert((place, term), who) {
            Some(before) if before != who => Err(Violation::new(
                "one primary per term",
                place,
                format!("{before} and {who} both served in term {term}"),
            )),
            _ => Ok(()),
        }
    }

    /// The agreed table changed: term and version of a partition.
    pub fn on_committed(
        &mut self,
        place: Place,
        term: Term,
        version: u64,
    ) -> Result<(), Violation> {
        let (old_term, old_version) =
            self.committed.insert(place, (term, version)).unwrap_or_default();
        if term < old_term || version < old_version {
            return Err(Violation::new(
                "terms and versions rise",
                place,
                format!("from term {old_term} version {old_version} to {term} and {version}"),
            ));
        }
        Ok(())
    }

    /// Forgets the present primaries: how many terms were served, for the statistics.
    pub fn terms_served(&self) -> usize {
        self.served.len()
    }
}

#[cfg(test)]
mod tests {
    use kiln_cluster::ids::{GroupKey, Incarnation, Mode, NodeId, PartitionId};

    use super::*;

    const PLACE: Place =
        Place { group: GroupKey { mode: Mode::Strong, copies: 2 }, partition: PartitionId(0) };

    fn member(node: u64, incarnation: u64) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn two_members_in_one_term_are_refused_also_two_lives_of_one_node() {
        let mut judge = Primaries::default();
        judge.on_serving(PLACE, Term(1), member(1, 7)).unwrap();
        judge.on_serving(PLACE, Term(1), member(1, 7)).unwrap();
        judge.on_serving(PLACE, Term(2), member(2, 8)).unwrap();
        assert!(judge.on_serving(PLACE, Term(2), member(1, 7)).is_err());
        assert!(judge.on_serving(PLACE, Term(1), member(1, 9)).is_err());
    }

    #[test]
    fn a_table_that_goes_back_is_refused() {
        let mut judge = Primaries::default();
        judge.on_committed(PLACE, Term(2), 5).unwrap();
        judge.on_committed(PLACE, Term(2), 6).unwrap();
        assert!(judge.on_committed(PLACE, Term(1), 7).is_err());
        let mut judge = Primaries::default();
        judge.on_committed(PLACE, Term(2), 5).unwrap();
        assert!(judge.on_committed(PLACE, Term(2), 4).is_err());
    }
}
