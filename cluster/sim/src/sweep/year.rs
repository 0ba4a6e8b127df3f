//! Years of a cluster whose nodes fail and come back, at the level of who holds what.

use std::collections::BTreeSet;

use super::PARTITIONS;
use crate::queue::Queue;
use crate::rng::Rng;

/// Seconds of a year.
const YEAR_S: f64 = 365.0 * 86_400.0;
/// Years simulated per line of the table.
const YEARS: f64 = 20.0;

/// What a year is made of. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Year {
    /// Nodes.
    pub nodes: u64,
    /// Copies.
    pub copies: u8,
    /// Mean time to failure of one node, exponential.
    pub mttf: f64,
    /// Mean time until it is back, empty, exponential.
    pub mttr: f64,
    /// From the death of a primary until another serves.
    pub failover: f64,
    /// From a death until the copies are full again.
    pub rebuild: f64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Share of partition time in which reads and writes were served.
    pub availability: f64,
    /// Partitions all of whose copies died before one was rebuilt, per year.
    pub lost_per_year: f64,
}

enum Event {
    Fail(u64),
    Return(u64),
    Rebuilt,
}

/// A partition's copies, the primary first.
type Owners = Vec<u64>;

struct Model {
    rng: Rng,
    up: BTreeSet<u64>,
    partitions: Vec<Owners>,
    /// Since when a partition without any copy waits for a node.
    waiting: Vec<Option<f64>>,
    unserved: f64,
    lost: u64,
}

impl Year {
    /// Simulates twenty of them.
    pub fn simulate(&self, seed: u64) -> Outcome {
        let mut model = Model::new(self, seed);
        let mut queue = Queue::default();
        for node in 0..self.nodes {
            queue.push(micros(model.rng.wait(self.mttf)), Event::Fail(node));
        }
        let end = micros(YEAR_S * YEARS);
        while let Some((at, event)) = queue.pop() {
            if at > end {
                break;
            }
            let now = at as f64 / 1e6;
            match event {
                Event::Fail(node) => {
                    model.fail(node, now, self.failover);
                    queue.push(at + micros(self.rebuild), Event::Rebuilt);
                    queue.push(at + micros(model.rng.wait(self.mttr)), Event::Return(node));
                }
                Event::Return(node) => {
                    model.up.insert(node);
                    model.refill(now, self.copies);
                    queue.push(at + micros(model.rng.wait(self.mttf)), Event::Fail(node));
                }
                Event::Rebuilt => model.refill(now, self.copies),
            }
        }
        let all = f64::from(PARTITIONS) * YEAR_S * YEARS;
        Outcome {
            availability: 1.0 - model.unserved / all,
            lost_per_year: model.lost as f64 / YEARS,
        }
    }
}

impl Model {
    fn new(year: &Year, seed: u64) -> Self {
        let mut model = Self {
            rng: Rng::new(seed),
            up: (0..year.nodes).collect(),
            partitions: vec![Owners::new(); PARTITIONS as usize],
            waiting: vec![None; PARTITIONS as usize],
            unserved: 0.0,
            lost: 0,
        };
        model.refill(0.0, year.copies);
        model
    }

    fn fail(&mut self, node: u64, now: f64, failover: f64) {
        self.up.remove(&node);
        for (partition, owners) in self.partitions.iter_mut().enumerate() {
            let Some(position) = owners.iter().position(|&owner| owner == node) else { continue };
            owners.remove(position);
            if owners.is_empty() {
                self.lost += 1;
                self.waiting[partition] = Some(now);
            } else if position == 0 {
                self.unserved += failover;
            }
        }
    }

    /// Gives partitions the copies that they lack, on nodes that are up.
    fn refill(&mut self, now: f64, copies: u8) {
        let up: Vec<u64> = self.up.iter().copied().collect();
        for (partition, owners) in self.partitions.iter_mut().enumerate() {
            let wanted = usize::from(copies).min(up.len());
            while owners.len() < wanted {
                let node = *self.rng.pick(&up);
                if !owners.contains(&node) {
                    owners.push(node);
                }
            }
            if !owners.is_empty()
                && let Some(since) = self.waiting[partition].take()
            {
                self.unserved += now - since;
            }
        }
    }
}

fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_one_copy_the_model_agrees_with_the_formula() {
        let (mttf, mttr) = (86_400.0, 3_600.0);
        // A lost partition waits for the next rebuild, here as long as for the node itself.
        let year = Year { nodes: 1, copies: 1, mttf, mttr, failover: 0.0, rebuild: 0.0 };
        let outcome = year.simulate(1);
        let formula = mttf / (mttf + mttr);
        assert!((outcome.availability - formula).abs() < 0.004, "{outcome:?} and {formula}");
    }

    #[test]
    fn more_copies_lose_less() {
        let year = |copies| Year {
            nodes: 10,
            copies,
            mttf: 86_400.0,
            mttr: 14_400.0,
            failover: 1.2,
            rebuild: 600.0,
        };
        let [one, two, three] = [1, 2, 3].map(|copies| year(copies).simulate(5));
        assert!(one.lost_per_year > two.lost_per_year * 10.0);
        assert!(two.lost_per_year > three.lost_per_year);
        assert!(one.availability < two.availability);
    }
}
