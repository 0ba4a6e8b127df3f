//! The network between nodes is cut, one way or both, while clients still reach all of them.
//!
//! ```text
//!   this namespace:  clients -- bridge -- veth --> namespace 1: n1
//!                                     \-- veth --> namespace 2: n2      a cut is a blackhole route
//!                                      \- veth --> namespace 3: n3      in a node's namespace
//! ```
//!
//! The side that is cut off refuses, or does not know; it must not answer what is no longer true.
//! Where namespaces cannot be made the trial says so and ends well: nothing was seen to be wrong.
//!
//! Namespaces and bridge are named after this process and removed at the end.

use std::{
    io,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    Outcome, TrialError,
    audit::Audit,
    figures::Spread,
    load::{Counts, Pace, Part},
    nodes::{Launch, Nodes, Place},
    say,
    scene::{Scene, WHOLE_MAX},
};

/// How to run the trial.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many cuts.
    #[arg(long, default_value_t = 8, value_name = "N")]
    cycles: u32,
    /// Clients; every other one speaks memcached, the rest the native protocol.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    clients: u16,
    /// Pause of a client after each answer.
    #[arg(long, default_value_t = 2, value_name = "MS")]
    think_ms: u64,
    /// Go on after a cycle in which something was wrong.
    #[arg(long)]
    keep_going: bool,
}

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Cut {
    /// One node from all others, both ways.
    Apart,
    /// One node is heard by nobody.
    Unheard,
    /// One node hears nobody.
    Deaf,
    /// Two nodes from each other; the third has both.
    Pair,
}

impl Cut {
    const ALL: [Self; 4] = [Self::Apart, Self::Unheard, Self::Deaf, Self::Pair];

    /// Who cannot send to whom, when it is about `node`.
    fn blocks(self, node: usize) -> Vec<(usize, usize)> {
        let others = (0..NODES).filter(|other| *other != node);
        let away = others.clone().map(|other| (node, other));
        let towards = others.map(|other| (other, node));
        match self {
            Self::Apart => away.chain(towards).collect(),
            Self::Unheard => away.collect(),
            Self::Deaf => towards.collect(),
            Self::Pair => {
                let other = (node + 1) % NODES;
                vec![(node, other), (other, node)]
            }
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Cycle {
    cycle: u32,
    cut: Cut,
    node: String,
    controller: bool,
    lasts_ms: u64,
    /// The longest wait of memcached clients at other nodes.
    elsewhere_ms: f64,
    /// The longest wait of all clients, those at the node that was cut off included.
    longest_ms: f64,
    whole_ms: f64,
    counts: Counts,
    audit: Audit,
    wrong: Vec<String>,
}

pub(crate) fn run(
    options: &Options,
    launch: Launch,
    seed: u64,
    bar: &ProgressBar,
    cancel: &AtomicBool,
) -> Result<Outcome, TrialError> {
    bar.set_length(u64::from(options.cycles));
    let network = match Network::make() {
        Ok(network) => network,
        Err(error) => {
            let text = format!("SKIPPED: network namespaces cannot be made here: {error}\n");
            let json = serde_json::json!({ "mode": "cuts", "skipped": error.to_string() });
            return Ok(Outcome { text, json, failures: Vec::new() });
        }
    };
    let mut nodes = Nodes::none(launch);
    for at in 0..NODES {
        let place = Place { host: network.host(at), namespace: Some(network.namespace(at)) };
        nodes.add(place)?;
    }
    nodes.until_whole(NODES, WHOLE_MAX)?;
    let pace = Pace::Think(Duration::from_millis(options.think_ms));
    let mut scene = Scene::start(nodes, usize::from(options.clients), pace, seed)?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut cycles: Vec<Cycle> = Vec::new();
    let mut failures = Vec::new();
    for number in 1..=options.cycles {
        if cancel.load(Relaxed) {
            failures.push(format!("ended early, after {} cycles", cycles.len()));
            break;
        }
        let cycle = cycle(&mut scene, &network, &mut rng, number)?;
        say(
            bar,
            &format!(
                "{number:4}  {:<7} {}{}  {:4.1} s  longest wait elsewhere {:5.0} ms, of all {:5.0} ms  whole {:4.1} s  {} answers, \
             {} not applied, {} unknown, {} keys judged",
                format!("{:?}", cycle.cut).to_lowercase(),
                cycle.node,
                if cycle.controller { "*" } else { " " },
                cycle.lasts_ms as f64 / 1000.0,
                cycle.elsewhere_ms,
                cycle.longest_ms,
                cycle.whole_ms / 1000.0,
                cycle.counts.answered,
                cycle.counts.not_applied,
                cycle.counts.unknown,
                cycle.audit.keys,
            ),
        );
        for what in &cycle.wrong {
            say(bar, &format!("      WRONG: {what}"));
            failures.push(format!("cycle {number}: {what}"));
        }
        cycles.push(cycle);
        bar.inc(1);
        if !failures.is_empty() && !options.keep_going {
            break;
        }
    }
    failures.extend(scene.verify()?);
    let of = |value: fn(&Cycle) -> f64| Spread::of(&cycles.iter().map(value).collect::<Vec<_>>());
    let (elsewhere, longest, whole) =
        (of(|cycle| cycle.elsewhere_ms), of(|cycle| cycle.longest_ms), of(|cycle| cycle.whole_ms));
    let mut audit = Audit::default();
    cycles.iter().for_each(|cycle| audit.add(&cycle.audit));
    if audit.undecided > 0 {
        failures.push(format!("{} histories were too hard to judge", audit.undecided));
    }
    let text = format!(
        "{} cuts, {NODES} nodes, {} clients\nlongest wait of clients elsewhere: {elsewhere}\nlongest wait \
         of all:               {longest}\nuntil all copies were back:        {whole}\njudged: {} histories with \
         {} operations, {} undecided\nreplay: kiln-trial --seed {seed} cuts --cycles {} --clients {}\n",
        cycles.len(),
        options.clients,
        audit.keys,
        audit.operations,
        audit.undecided,
        options.cycles,
        options.clients,
    );
    let json = serde_json::json!({
        "mode": "cuts", "seed": seed, "elsewhere_ms": elsewhere, "longest_ms": longest,
        "whole_ms": whole, "audit": audit, "wrong": failures, "cycles": cycles,
    });
    // Nodes end before their namespaces are removed.
    drop(scene);
    Ok(Outcome { text, json, failures })
}

fn cycle(
    scene: &mut Scene,
    network: &Network,
    rng: &mut fastrand::Rng,
    number: u32,
) -> Result<Cycle, TrialError> {
    let cut = Cut::ALL[rng.usize(..Cut::ALL.len())];
    let victim = rng.usize(..NODES);
    let lasts = Duration::from_millis(rng.u64(1_500..5_000));
    let controller = scene.leads(victim);
    scene.load.take_counts();
    scene.load.go_home();
    scene.load.begin(Part::Calm);
    scene.load.go();
    thread::sleep(Duration::from_millis(rng.u64(300..1_000)));

    scene.load.begin(Part::Fault);
    network.block(&cut.blocks(victim))?;
    thread::sleep(lasts);
    scene.load.begin(Part::Return);
    network.heal()?;
    let healed = Instant::now();
    scene.nodes.until_whole(NODES, WHOLE_MAX)?;
    let whole_ms = healed.elapsed().as_secs_f64() * 1000.0;
    scene.load.hold()?;
    let longest = scene.load.longest_ms(Part::Fault);
    // Memcached clients are the even ones, in turns at the nodes.
    let elsewhere: Vec<f64> = longest
        .iter()
        .enumerate()
        .filter(|(client, _)| client.is_multiple_of(2) && client / 2 % NODES != victim)
        .map(|(_, ms)| *ms)
        .collect();
    let counts = scene.load.take_counts();
    let (audit, wrong) = scene.audit()?;
    Ok(Cycle {
        cycle: number,
        cut,
        node: scene.nodes.name(victim).to_owned(),
        controller,
        lasts_ms: u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX),
        elsewhere_ms: Spread::of(&elsewhere).max,
        longest_ms: Spread::of(&longest).max,
        whole_ms,
        counts,
        audit,
        wrong,
    })
}

/// A bridge and a namespace for each node. Dropped, they are removed.
struct Network {
    id: u32,
}

impl Network {
    fn make() -> io::Result<Self> {
        let network = Self { id: std::process::id() };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", network.address(1)), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for at in 0..NODES {
            let (namespace, outer) = (network.namespace(at), format!("kt{}v{at}", network.id));
            ip(&["netns", "add", &namespace])?;
            ip(&[
                "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
            ])?;
            ip(&["link", "set", &outer, "master", &bridge, "up"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            let address = format!("{}/24", network.host(at));
            ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    fn bridge(&self) -> String {
        format!("kt{}b", self.id)
    }

    fn namespace(&self, at: usize) -> String {
        format!("kiln-trial-{}-{}", self.id, at + 1)
    }

    fn host(&self, at: usize) -> String {
        self.address(11 + at)
    }

    /// In a network that only this process uses.
    fn address(&self, last: usize) -> String {
        format!("10.213.{}.{last}", self.id % 250)
    }

    /// Drops what each first one sends to each second one.
    fn block(&self, pairs: &[(usize, usize)]) -> io::Result<()> {
        for (from, to) in pairs {
            let target = format!("{}/32", self.host(*to));
            ip(&["-n", &self.namespace(*from), "route", "add", "blackhole", &target])?;
        }
        Ok(())
    }

    fn heal(&self) -> io::Result<()> {
        (0..NODES).try_for_each(|at| {
            ip(&["-n", &self.namespace(at), "route", "flush", "type", "blackhole"])
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was never made cannot be removed.
        for at in 0..NODES {
            let _ = ip(&["netns", "del", &self.namespace(at)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {}: {}", arguments.join(" "), said.trim())))
}

const NODES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_blocks_the_ways_that_its_name_says() {
        assert_eq!(Cut::Unheard.blocks(0), [(0, 1), (0, 2)]);
        assert_eq!(Cut::Deaf.blocks(1), [(0, 1), (2, 1)]);
        assert_eq!(Cut::Apart.blocks(2), [(2, 0), (2, 1), (0, 2), (1, 2)]);
        assert_eq!(Cut::Pair.blocks(2), [(2, 0), (0, 2)]);
    }
}
