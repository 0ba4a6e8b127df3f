//! The end of a cycle: everything is read once more and judged.
//!
//! Clients are held meanwhile. Some keys are kept beyond their cycle: nobody writes them any more,
//! so in every later cycle they must be exactly what they were.

use std::{fs, sync::Arc};

use kiln_linearizability::{Answer, Operation, Verdict};

use crate::{
    TrialError,
    ask::{Asker, Told},
    history::Key,
    load::{Load, insist},
    nodes::Nodes,
};

/// What an audit looked at and found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Audit {
    /// Keys with a history that was judged.
    pub(crate) keys: usize,
    /// Operations in those histories.
    pub(crate) operations: usize,
    /// Histories that the search could not decide.
    pub(crate) undecided: usize,
    /// Keys of earlier cycles that were looked at again.
    pub(crate) kept: usize,
}

impl Audit {
    pub(crate) fn add(&mut self, other: &Self) {
        self.keys += other.keys;
        self.operations += other.operations;
        self.undecided += other.undecided;
        self.kept += other.kept;
    }
}

/// Reads and judges. Its askers take turns, so that every node and protocol answers some.
pub(crate) struct Auditor {
    askers: Vec<Asker>,
    turn: usize,
    kept: Vec<(String, Answer)>,
    rng: fastrand::Rng,
}

impl Auditor {
    pub(crate) fn new(askers: Vec<Asker>, seed: u64) -> Self {
        Self { askers, turn: 0, kept: Vec::new(), rng: fastrand::Rng::with_seed(seed) }
    }

    /// Judges all that the clients did since the last audit. They must be held. What is wrong is
    /// returned, and the histories behind it are written into the directory of the nodes.
    pub(crate) fn audit(
        &mut self,
        load: &Load,
        nodes: &Nodes,
    ) -> Result<(Audit, Vec<String>), TrialError> {
        self.askers.iter_mut().for_each(Asker::go_home);
        let mut wrong = load.take_wrong();
        wrong.extend(load.audit_counters(self.next()));
        let mut audit = Audit::default();
        wrong.extend(self.look_at_kept(&mut audit));
        for key in load.shared.history.take() {
            audit.keys += 1;
            let last = self.read_into(load, &key);
            audit.operations += key.operations();
            match (key.judge(), last) {
                (Verdict::Linearizable, Ok(answer)) => self.keep(&key, answer),
                (_, Err(what)) => wrong.push(format!("key {}: {what}", key.name)),
                (Verdict::Undecided, _) => audit.undecided += 1,
                (Verdict::Violation, _) => {
                    let path = nodes.directory().join(format!("history-{}.txt", key.name));
                    fs::write(&path, key.text())?;
                    wrong.push(format!(
                        "key {}: no order explains its {} operations, see {}",
                        key.name,
                        key.operations(),
                        path.display()
                    ));
                }
            }
        }
        Ok((audit, wrong))
    }

    /// The last read of a key, which belongs to its history.
    fn read_into(&mut self, load: &Load, key: &Arc<Key>) -> Result<Answer, String> {
        let history = &load.shared.history;
        let called = history.call();
        let answer = insist(self.next(), &key.name, &Operation::Get)?;
        let told = Told::Answer(answer.clone());
        history.note(key, AUDITOR, called, Operation::Get, &told);
        Ok(answer)
    }

    fn look_at_kept(&mut self, audit: &mut Audit) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, was) in std::mem::take(&mut self.kept) {
            audit.kept += 1;
            match insist(self.next(), &name, &Operation::Get) {
                Ok(is) if is == was => self.kept.push((name, was)),
                Ok(is) => wrong.push(format!("key {name}, at rest: was {was:?}, is {is:?}")),
                Err(what) => wrong.push(format!("key {name}, at rest: {what}")),
            }
        }
        wrong
    }

    fn keep(&mut self, key: &Key, answer: Answer) {
        let entry = (key.name.clone(), answer);
        if self.kept.len() < KEPT_MAX {
            self.kept.push(entry);
        } else {
            let at = self.rng.usize(..KEPT_MAX);
            self.kept[at] = entry;
        }
    }

    fn next(&mut self) -> &mut Asker {
        self.turn = (self.turn + 1) % self.askers.len();
        &mut self.askers[self.turn]
    }
}

/// Keys that are looked at again in every later cycle.
const KEPT_MAX: usize = 1000;

/// The auditor's number among the clients.
const AUDITOR: usize = 1000;
