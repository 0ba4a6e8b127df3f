//! That the default policy is worth being the default.

use kiln_engine::policy::PolicyKind;
use kiln_hit_ratio::contenders::Contender;
use kiln_hit_ratio::traces::{self, Trace};

const DEFAULT: Contender = Contender::Kiln(PolicyKind::DEFAULT);
const LRU: Contender = Contender::Kiln(PolicyKind::Lru);
const CAPACITIES: [f64; 3] = [0.05, 0.1, 0.2];

#[test]
fn the_default_is_never_far_below_lru_on_synthetic_traces() {
    never_far_below_lru(&traces::synthetic());
}

#[test]
fn the_default_is_well_above_lru_where_popularity_is_skewed() {
    for trace in traces::synthetic().iter().filter(|trace| trace.name.contains("zipf")) {
        let ratio = |contender: Contender| contender.hit_ratio(trace, 0.1, 1);
        let (default, lru, other) = (ratio(DEFAULT), ratio(LRU), ratio(Contender::QuickCache));
        assert!(default > lru + 0.04, "{}: {default:.4}, LRU {lru:.4}", trace.name);
        assert!(default > other - 0.005, "{}: {default:.4}, CLOCK-Pro {other:.4}", trace.name);
    }
}

#[test]
fn the_default_is_never_far_below_lru_on_recorded_traces() {
    let Some(traces) = recorded() else { return };
    never_far_below_lru(&traces);
}

#[test]
fn the_default_finds_more_on_the_mean_of_recorded_traces_than_any_other() {
    let Some(traces) = recorded() else { return };
    let mean = |contender: Contender, shards| {
        let ratio = |trace| contender.hit_ratio(trace, 0.1, shards);
        traces.iter().map(ratio).sum::<f64>() / traces.len() as f64
    };
    let default = mean(DEFAULT, 1);
    assert!(default >= 0.58, "{default:.4}");
    for other in Contender::ALL {
        if other != DEFAULT && other != Contender::Optimum {
            let ratio = mean(other, 1);
            assert!(default > ratio, "{default:.4}, {} {ratio:.4}", other.name());
        }
    }
    assert!(default < mean(Contender::Optimum, 1));
    let sharded = mean(DEFAULT, 8);
    assert!(sharded > default - 0.005, "{sharded:.4} in 8 shards, {default:.4} in one");
}

/// Other implementations of LRU found the same, so the simulation counts as they do.
#[test]
fn lru_finds_what_others_published_for_it() {
    let Some(traces) = recorded() else { return };
    for (name, published) in [("oltp", 0.6652), ("sprite", 0.8648), ("web12", 0.6848)] {
        let trace = traces.iter().find(|trace| trace.name == name).unwrap();
        let ratio = LRU.hit_ratio(trace, 0.1, 1);
        assert!((ratio - published).abs() < 0.0001, "{name}: {ratio:.4}");
    }
}

fn never_far_below_lru(traces: &[Trace]) {
    for trace in traces {
        for capacity in CAPACITIES {
            for shards in [1, 8] {
                let default = DEFAULT.hit_ratio(trace, capacity, shards);
                let lru = LRU.hit_ratio(trace, capacity, shards);
                assert!(
                    default >= lru - 0.02,
                    "{} at {capacity}, {shards} shards: {default:.4}, LRU {lru:.4}",
                    trace.name
                );
            }
        }
    }
}

fn recorded() -> Option<Vec<Trace>> {
    let Some(dir) = traces::recorded_dir() else {
        eprintln!("skipped: KILN_TRACE_DIR is not set");
        return None;
    };
    Some(traces::recorded(&dir).expect("KILN_TRACE_DIR names the traces"))
}
