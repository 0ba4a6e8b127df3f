//! What a record led to, on its way to items and followers.

use std::sync::Arc;

use kiln_protocol::command::Ttl;
use kiln_stream::{effects::Effects, record::Record};

use super::{
    Stream,
    parts::{Recent, Slot},
    render,
    sink::Sink,
    stream::LiveEvent,
};
use crate::{caches::Cache, node::Node};

/// Results of count and session windows that can be found again, per sensor and window.
const RECENT_MAX: usize = 256;

/// Memory used again from record to record and from result to result.
#[derive(Default)]
pub(super) struct Scratch {
    effects: Effects,
    key: Vec<u8>,
    text: String,
}

/// Where a stream's results go.
pub(super) struct Target {
    latest: Option<Arc<Cache>>,
    /// `default`, when memcached clients shall find the latest values too.
    also: Option<Arc<Cache>>,
    windows: Option<Arc<Cache>>,
    now_ms: u64,
    directly: bool,
    followed: bool,
    /// The results were given before, by a former owner as far as it came: not counted again.
    pub(super) again: bool,
}

impl Target {
    pub(super) fn of(node: &Node, stream: &Stream, now_ms: u64, directly: bool) -> Self {
        let table = node.caches.load();
        let cache = |name: &str| table.by_name(name).map(|(_, cache)| Arc::clone(cache));
        let also = stream.plan.definition().latest.is_for_memcached();
        let also = also.then(|| Arc::clone(node.default_cache()));
        Self {
            latest: cache(&stream.latest_cache),
            also,
            windows: cache(&stream.windows_cache),
            now_ms,
            directly,
            followed: stream.is_followed(),
            again: false,
        }
    }
}

/// Applies a record, writes what it led to, and tells followers.
pub(super) fn apply<'a>(
    stream: &Stream,
    slot: &mut Slot,
    record: &Record,
    target: &Target,
    sink: &mut Sink,
    scratch: &'a mut Scratch,
) -> &'a Effects {
    let Slot { operator, recent, .. } = slot;
    let Scratch { effects, key, text } = scratch;
    operator.apply_into(record, effects);
    let Target { now_ms, directly, followed, again, .. } = *target;
    let plan = &stream.plan;
    for latest in &effects.latest {
        let sensor = operator.sensor_id(latest.sensor);
        match &target.latest {
            Some(cache) => sink.set_latest(directly, cache, sensor, latest.value, now_ms),
            None => sink.lose(),
        }
        if let Some(cache) = &target.also {
            sink.set_latest(directly, cache, sensor, latest.value, now_ms);
        }
    }
    if effects.is_quiet() {
        return effects;
    }
    let aggregates = &plan.definition().aggregates;
    let ttl = Ttl::After(plan.definition().retention.millis().unsigned_abs());
    let name_of = |window: u16| plan.window_names().get(usize::from(window)).map_or("", |n| n);
    let tell = |kind, sensor: &[u8], text: &str| {
        let event = LiveEvent { kind, sensor: sensor.into(), text: text.to_owned() };
        let event = Arc::new(event);
        stream.tell(Arc::clone(&event));
        event
    };
    for gone in &effects.retractions {
        let sensor = operator.sensor_id(gone.sensor);
        render::key(key, sensor, name_of(gone.window), gone.start);
        if let Some(cache) = &target.windows {
            sink.delete(directly, cache, key, now_ms);
        }
        if let Some(list) = recent.get_mut(&(Box::from(sensor), gone.window)) {
            list.retain(|one| one.name != gone.start);
        }
    }
    if !again {
        stream.count(|f| &f.results, effects.windows().len() as u64);
        stream.count(|f| &f.alarms, effects.alarms.len() as u64);
    }
    for result in effects.windows() {
        let sensor = operator.sensor_id(result.sensor);
        let window = name_of(result.window);
        let definition = plan.definition().windows.get(usize::from(result.window));
        let is_counted = definition.is_some_and(|window| window.count.is_some());
        let name = if is_counted { result.ordinal as i64 } else { result.start };
        render::key(key, sensor, window, name);
        text.clear();
        render::window(text, &result, aggregates);
        match &target.windows {
            Some(cache) => sink.set(directly, cache, key, text.as_bytes(), ttl, now_ms),
            None => sink.lose(),
        }
        if is_counted || definition.is_some_and(|window| window.session.is_some()) {
            let list = recent.entry((sensor.into(), result.window)).or_default();
            list.retain(|one| one.name != name);
            if list.len() >= RECENT_MAX {
                list.remove(0);
            }
            list.push(Recent { start: result.start, end: result.end, name });
        }
        if followed {
            text.clear();
            render::window_event(text, sensor, window, &result, aggregates);
            tell("window", sensor, text);
        }
    }
    for fit in &effects.fits {
        let sensor = operator.sensor_id(fit.sensor);
        let window = name_of(fit.window);
        text.clear();
        render::fit(text, sensor, window, fit);
        render::key(key, sensor, window, fit.start);
        key.extend_from_slice(format!("/fit-{}", fit.fit).as_bytes());
        match &target.windows {
            Some(cache) => sink.set(directly, cache, key, text.as_bytes(), ttl, now_ms),
            None => sink.lose(),
        }
        if followed {
            tell("fit", sensor, text);
        }
    }
    for alarm in &effects.alarms {
        let sensor = operator.sensor_id(alarm.sensor);
        text.clear();
        render::alarm(text, sensor, plan, alarm);
        stream.keep_alarm(tell("alarm", sensor, text));
    }
    for late in &effects.late_readings {
        let sensor = operator.sensor_id(late.sensor);
        text.clear();
        render::reading(text, sensor, late.time, late.value);
        stream.keep_late(tell("late", sensor, text));
    }
    if effects.flushed {
        tracing::debug!(stream = %stream.name, "all producers are silent: open windows were given out");
    }
    effects
}
