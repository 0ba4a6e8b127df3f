//! The network between nodes and clients: it loses, repeats, delays, reorders and cuts.
//!
//! One sample of [`Network::fate`] per message. Cuts are directed: a one-way cut is half of a cut.
//! Cost: a map lookup and a few draws per message.

use std::collections::BTreeMap;

use crate::queue::{MS, Time};
use crate::rng::Rng;

/// How bad the network is while faults are on.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Probability that a message is lost.
    pub loss: f64,
    /// Probability that a message arrives twice.
    pub duplicate: f64,
    /// Probability that a message is held back by up to `held_max`.
    pub held: f64,
    /// The longest time a message is held back.
    pub held_max: Time,
    /// Usual one-way delay: between this and four times this.
    pub delay: Time,
}

impl Weather {
    /// A good network: no loss, short delays.
    pub const FAIR: Self =
        Self { loss: 0.0, duplicate: 0.0, held: 0.0, held_max: 0, delay: 100_000 };
}

/// Where a message is from and to: a node, or the clients' side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A node, by its id.
    Node(u64),
    /// A client, by its number.
    Client(u32),
    /// The controller group.
    Agreement,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    weather: Weather,
    /// Cut links, with the time at which each heals.
    cuts: BTreeMap<(Place, Place), Time>,
    /// A link that keeps order (one connection): a message never arrives before an earlier one.
    last_arrival: BTreeMap<(Place, Place), Time>,
    ordered: bool,
    /// Messages given to the network.
    pub sent: u64,
    /// Messages it lost.
    pub lost: u64,
}

impl Network {
    /// A network with this weather. `ordered`: links keep the order of messages, as TCP does until
    /// it reconnects.
    pub fn new(rng: Rng, weather: Weather, ordered: bool) -> Self {
        Self {
            rng,
            weather,
            cuts: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            ordered,
            sent: 0,
            lost: 0,
        }
    }

    /// Changes the weather; cuts stay.
    pub fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Cuts the link in one direction until a time.
    pub fn cut(&mut self, from: Place, to: Place, until: Time) {
        let heals = self.cuts.entry((from, to)).or_insert(until);
        *heals = (*heals).max(until);
    }

    /// Ends all cuts.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Whether the link carries nothing now.
    pub fn is_cut(&self, from: Place, to: Place, now: Time) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|&until| now < until)
    }

    /// When copies of a message sent now arrive: none, one or two times.
    pub fn fate(&mut self, from: Place, to: Place, now: Time) -> Arrivals {
        self.sent += 1;
        let mut arrivals = Arrivals { first: None, second: None };
        if self.is_cut(from, to, now) || self.draw(self.weather.loss) {
            self.lost += 1;
            return arrivals;
        }
        arrivals.first = Some(self.arrival(from, to, now));
        if self.draw(self.weather.duplicate) {
            arrivals.second = Some(self.arrival(from, to, now));
        }
        arrivals
    }

    fn draw(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.chance(probability)
    }

    fn arrival(&mut self, from: Place, to: Place, now: Time) -> Time {
        let mut delay = self.weather.delay + self.rng.below(3 * self.weather.delay + 1);
        if self.draw(self.weather.held) {
            delay += self.rng.below(self.weather.held_max + 1);
        }
        let mut at = now + delay;
        if self.ordered {
            let last = self.last_arrival.entry((from, to)).or_default();
            at = at.max(*last + 1);
            *last = at;
        }
        at
    }
}

/// When the copies of one message arrive.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    /// The first copy.
    pub first: Option<Time>,
    /// A repeat.
    pub second: Option<Time>,
}

/// A range of weathers from fair to terrible, drawn per run.
pub fn draw_weather(rng: &mut Rng, delay_max: Time) -> Weather {
    let bad = rng.unit();
    Weather {
        loss: if rng.chance(0.3) { 0.0 } else { 0.15 * bad * rng.unit() },
        duplicate: if rng.chance(0.4) { 0.0 } else { 0.1 * bad },
        held: if rng.chance(0.3) { 0.0 } else { 0.1 * bad },
        held_max: rng.between(5 * MS, 10 * delay_max.max(MS)),
        delay: rng.between(50_000, delay_max.max(100_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Place = Place::Node(1);
    const B: Place = Place::Node(2);

    fn network(weather: Weather, ordered: bool) -> Network {
        Network::new(Rng::new(9), weather, ordered)
    }

    #[test]
    fn a_cut_is_one_way_and_ends_when_it_should() {
        let mut network = network(Weather::FAIR, false);
        network.cut(A, B, 100);
        assert!(network.fate(A, B, 99).first.is_none());
        assert!(network.fate(B, A, 99).first.is_some());
        assert!(network.fate(A, B, 100).first.is_some());
    }

    #[test]
    fn loss_and_repeats_happen_about_as_often_as_told() {
        let weather = Weather { loss: 0.2, duplicate: 0.1, ..Weather::FAIR };
        let mut network = network(weather, false);
        let fates: Vec<Arrivals> = (0..10_000).map(|now| network.fate(A, B, now)).collect();
        let lost = fates.iter().filter(|fate| fate.first.is_none()).count();
        let twice = fates.iter().filter(|fate| fate.second.is_some()).count();
        assert!((1_800..2_200).contains(&lost), "{lost}");
        assert!((650..950).contains(&twice), "{twice}");
    }

    #[test]
    fn an_ordered_link_keeps_order_and_an_unordered_one_does_not() {
        let weather = Weather { held: 0.5, held_max: 50 * MS, ..Weather::FAIR };
        for ordered in [true, false] {
            let mut network = network(weather, ordered);
            let times: Vec<Time> =
                (0..200).filter_map(|at| network.fate(A, B, at * MS).first).collect();
            assert_eq!(times.is_sorted(), ordered);
        }
    }
}
