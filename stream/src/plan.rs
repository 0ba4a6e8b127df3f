//! A definition, checked once and worked out: what the operator reads at every batch.
//!
//! Time windows are made of slices: the greatest length of which every size, slide and distance
//! between offsets is a multiple. A reading touches one slice, whatever the number of windows.

use crate::aggregate::Shape;
use crate::definition::{Definition, Timestamp};
use crate::detect::Detector;
use crate::expression::{ExpressionError, Program, Type};
use crate::parse::{Format, Layout, Unit};
use crate::source::SOURCES_MAX;
use crate::span::Span;
use crate::window::{CountWindow, SessionWindow, TimeWindow};

/// The most windows of a stream.
pub const WINDOWS_MAX: usize = 16;
/// The most slices of a window: a week by minutes.
pub const SLICES_PER_WINDOW_MAX: i64 = 10_080;
/// The most detectors of a stream.
pub const DETECTORS_MAX: usize = 8;
/// The most fits of a stream.
pub const FITS_MAX: usize = 4;
/// The longest name of a window, so that `sensor/window/start` stays a short key.
pub const WINDOW_NAME_LEN_MAX: usize = 64;

/// What a stream does, worked out from its definition.
#[derive(Clone, Debug)]
pub struct Plan {
    definition: Definition,
    names: Vec<String>,
    /// Keeps readings where it is true.
    pub(crate) filter: Option<Program>,
    /// Gives the value.
    pub(crate) map: Option<Program>,
    pub(crate) shape: Shape,
    /// The length of a slice in milliseconds.
    pub(crate) slice: i64,
    /// Where a slice begins: the offset of the first time window.
    pub(crate) base: i64,
    pub(crate) time_windows: Vec<TimeWindow>,
    pub(crate) count_windows: Vec<CountWindow>,
    pub(crate) session_windows: Vec<SessionWindow>,
    has_rest: bool,
}

/// Why a definition cannot be carried out. Each names the field and says what is allowed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// More windows than a stream may have.
    #[error("windows: {count} are given, at most {WINDOWS_MAX} are allowed")]
    TooManyWindows {
        /// How many.
        count: usize,
    },
    /// None or several kinds in one window.
    #[error("windows[{at}]: give exactly one of tumbling, hopping, count and session")]
    Kind {
        /// Which window.
        at: usize,
    },
    /// A hopping window without its slide, or the slide of another kind.
    #[error("windows[{at}].every: a hopping window needs it, no other window may have it")]
    Every {
        /// Which window.
        at: usize,
    },
    /// A count or session window with an offset.
    #[error("windows[{at}].offset: only tumbling and hopping windows may have one")]
    Offset {
        /// Which window.
        at: usize,
    },
    /// A length of zero.
    #[error("windows[{at}].{field}: must be above zero")]
    Zero {
        /// Which window.
        at: usize,
        /// Which field.
        field: &'static str,
    },
    /// A slide longer than the window: readings between windows would count nowhere.
    #[error("windows[{at}].every: at most the length of the window, {size}")]
    SlideTooLong {
        /// Which window.
        at: usize,
        /// Its length.
        size: Span,
    },
    /// Too many slices.
    #[error(
        "windows[{at}]: {slices} slices of {slice}; at most {SLICES_PER_WINDOW_MAX} are allowed. \
         Slices are as long as all sizes, slides and offsets of the stream have in common: make \
         `every` longer or choose sizes that are multiples of each other"
    )]
    TooManySlices {
        /// Which window.
        at: usize,
        /// How many.
        slices: i64,
        /// How long each is.
        slice: Span,
    },
    /// A name that cannot be part of a key.
    #[error(
        "windows[{at}].name: 1 to {WINDOW_NAME_LEN_MAX} letters, digits, dots, dashes and underscores"
    )]
    Name {
        /// Which window.
        at: usize,
    },
    /// Two windows with one name.
    #[error("windows[{at}].name: \"{name}\" is already the name of another window")]
    NameTwice {
        /// The second of them.
        at: usize,
        /// The name.
        name: String,
    },
    /// An aggregate given twice.
    #[error("aggregates: \"{name}\" is given twice")]
    AggregateTwice {
        /// Its name.
        name: &'static str,
    },
    /// A field that the format does not have.
    #[error("{field}: only for {formats}")]
    WrongFormat {
        /// Which field.
        field: &'static str,
        /// The formats that have it.
        formats: &'static str,
    },
    /// A column that `columns` does not have.
    #[error("columns: has no \"{name}\"")]
    ColumnMissing {
        /// The column that is needed.
        name: String,
    },
    /// A length of time that must not be zero.
    #[error("{field}: must be above zero")]
    ZeroSpan {
        /// Which field.
        field: &'static str,
    },
    /// A text that is no expression of the type that is needed here.
    #[error("{field}: {error}")]
    Expression {
        /// `filter` or `map`.
        field: &'static str,
        /// What is wrong, and where.
        error: ExpressionError,
    },
    /// Too many detectors.
    #[error("detectors: {count} are given, at most {DETECTORS_MAX} are allowed")]
    TooManyDetectors {
        /// How many.
        count: usize,
    },
    /// A parameter of a detector outside of its range.
    #[error("detectors[{at}].{field}: {allowed}")]
    Detector {
        /// Which detector.
        at: usize,
        /// Which parameter.
        field: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// Too many sources.
    #[error("sources: {count} are given, at most {SOURCES_MAX} are allowed")]
    TooManySources {
        /// How many.
        count: usize,
    },
    /// A source that cannot work.
    #[error("sources[{at}].{field}: {allowed}")]
    Source {
        /// Which source.
        at: usize,
        /// Which field.
        field: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// Too many fits, or one with orders out of range.
    #[error("fits: {0}")]
    Fits(&'static str),
}

impl Plan {
    /// Works a definition out.
    pub fn new(definition: Definition) -> Result<Self, PlanError> {
        let count = definition.windows.len();
        if count > WINDOWS_MAX {
            return Err(PlanError::TooManyWindows { count });
        }
        check_source(&definition)?;
        check_sources(&definition)?;
        check_detectors(&definition.detectors)?;
        if definition.fits.len() > FITS_MAX {
            return Err(PlanError::Fits("at most 4 are allowed"));
        }
        definition.fits.iter().try_for_each(|fit| fit.check()).map_err(PlanError::Fits)?;
        for (i, aggregate) in definition.aggregates.iter().enumerate() {
            if definition.aggregates[..i].contains(aggregate) {
                return Err(PlanError::AggregateTwice { name: aggregate.name() });
            }
        }
        for (field, span) in [
            ("idle_timeout", definition.idle_timeout),
            ("retention", definition.retention),
            ("ewma_half_life", definition.ewma_half_life),
        ] {
            if span.millis() == 0 {
                return Err(PlanError::ZeroSpan { field });
            }
        }
        let compile = |field, text: &Option<String>, wanted| {
            let compiled = text.as_ref().map(|text| Program::compile(text, wanted)).transpose();
            compiled.map_err(|error| PlanError::Expression { field, error })
        };
        let mut shape = Shape::of(&definition.aggregates, definition.ewma_half_life.millis());
        shape.points |= !definition.fits.is_empty();
        let mut plan = Self {
            names: Vec::with_capacity(count),
            filter: compile("filter", &definition.filter, Type::Bool)?,
            map: compile("map", &definition.map, Type::Double)?,
            shape,
            slice: 1,
            base: 0,
            time_windows: Vec::new(),
            count_windows: Vec::new(),
            session_windows: Vec::new(),
            has_rest: !definition.detectors.is_empty(),
            definition,
        };
        plan.add_windows()?;
        plan.has_rest |= !plan.count_windows.is_empty() || !plan.session_windows.is_empty();
        Ok(plan)
    }

    fn add_windows(&mut self) -> Result<(), PlanError> {
        // Sizes, slides and offsets in milliseconds first; the slice is known when all are read.
        let mut timed: Vec<(usize, i64, i64, i64)> = Vec::new();
        for (at, window) in self.definition.windows.iter().enumerate() {
            let kinds = usize::from(window.tumbling.is_some())
                + usize::from(window.hopping.is_some())
                + usize::from(window.count.is_some())
                + usize::from(window.session.is_some());
            if kinds != 1 {
                return Err(PlanError::Kind { at });
            }
            if window.every.is_some() != window.hopping.is_some() {
                return Err(PlanError::Every { at });
            }
            let above_zero = |field, span: Span| match span.millis() {
                0 => Err(PlanError::Zero { at, field }),
                millis => Ok(millis),
            };
            let by_default;
            if let Some(size) = window.tumbling {
                let millis = above_zero("tumbling", size)?;
                timed.push((at, millis, millis, window.offset.unwrap_or_default().millis()));
                by_default = size.to_string();
            } else if let (Some(size), Some(every)) = (window.hopping, window.every) {
                let (millis, slide) = (above_zero("hopping", size)?, above_zero("every", every)?);
                if slide > millis {
                    return Err(PlanError::SlideTooLong { at, size });
                }
                timed.push((at, millis, slide, window.offset.unwrap_or_default().millis()));
                by_default = format!("{size}-{every}");
            } else if window.offset.is_some() {
                return Err(PlanError::Offset { at });
            } else if let Some(gap) = window.session {
                let gap_millis = above_zero("session", gap)?;
                self.session_windows.push(SessionWindow { window: at as u16, gap: gap_millis });
                by_default = format!("session-{gap}");
            } else {
                let len = u64::from(window.count.unwrap_or_default());
                if len == 0 {
                    return Err(PlanError::Zero { at, field: "count" });
                }
                self.count_windows.push(CountWindow { window: at as u16, len });
                by_default = format!("count-{len}");
            }
            let name = window.name.clone().unwrap_or(by_default);
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            if name.is_empty() || name.len() > WINDOW_NAME_LEN_MAX || !name.bytes().all(allowed) {
                return Err(PlanError::Name { at });
            }
            if self.names.contains(&name) {
                return Err(PlanError::NameTwice { at, name });
            }
            self.names.push(name);
        }
        let Some((_, _, _, base)) = timed.first().copied() else { return Ok(()) };
        self.base = base;
        self.slice = timed.iter().fold(0, |slice, (_, size, slide, offset)| {
            gcd(gcd(slice, *size), gcd(*slide, (offset - base).abs()))
        });
        for (at, size, slide, offset) in timed {
            let slices = size / self.slice;
            if slices > SLICES_PER_WINDOW_MAX {
                let slice = Span::from_millis(self.slice.unsigned_abs());
                return Err(PlanError::TooManySlices { at, slices, slice });
            }
            self.time_windows.push(TimeWindow {
                window: at as u16,
                size: slices,
                slide: slide / self.slice,
                offset: (offset - base) / self.slice,
            });
        }
        Ok(())
    }

    /// Whether a reading touches more than its slice.
    #[inline]
    pub(crate) fn has_more_than_slices(&self) -> bool {
        self.has_rest
    }

    /// What the plan was made of.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The names of the windows, in the order of the definition: that given, or by default `10s`
    /// (tumbling), `10m-1m` (hopping), `count-100` and `session-30s`.
    pub fn window_names(&self) -> &[String] {
        &self.names
    }

    /// The window with this name; for a hopping window also its length, where only one window has
    /// that length.
    pub fn window_named(&self, name: &str) -> Option<usize> {
        let exact = self.names.iter().position(|n| n == name);
        exact.or_else(|| {
            let size = Span::parse(name).ok()?;
            let has_size = |w: &&TimeWindow| w.size * self.slice == size.millis();
            let mut found = self.time_windows.iter().filter(has_size);
            let only = found.next()?;
            found.next().is_none().then_some(usize::from(only.window))
        })
    }

    /// How the text of a source is laid out. `unit` is what a request says about the unit of its
    /// times (the `precision` of InfluxDB), above what the definition says.
    pub fn layout(&self, unit: Option<Unit>) -> Layout {
        let definition = &self.definition;
        let format = definition.format;
        let default_unit = if format == Format::Influx { Unit::Ns } else { Unit::Ms };
        let (field, in_definition) = match &definition.timestamp {
            Timestamp::Word(_) => (None, None),
            Timestamp::Text { field, unit } => (field.clone(), Some(unit.unwrap_or(default_unit))),
        };
        let named = |field: &Option<String>, default: &str| match format {
            Format::Influx => field.clone(),
            _ => Some(field.clone().unwrap_or_else(|| default.to_owned())),
        };
        Layout {
            format,
            unit: in_definition.map(|in_definition| unit.unwrap_or(in_definition)),
            sensor: named(&definition.sensor, "sensor"),
            value: named(&definition.value, "value"),
            time_required: field.is_some(),
            time: field.unwrap_or_else(|| "time".to_owned()),
            columns: definition.columns.clone(),
            ahead_max: Some(definition.ahead_max.millis()),
        }
    }

    /// Applies filter and map to a batch; returns how many readings were filtered out. A reading
    /// whose mapped value is no finite number is filtered out too.
    pub fn transform(&self, batch: &mut crate::reading::Batch) -> u64 {
        crate::expression::transform(self.filter.as_ref(), self.map.as_ref(), batch)
    }
}

fn check_source(definition: &Definition) -> Result<(), PlanError> {
    let format = definition.format;
    let wrong = |field, formats| Err(PlanError::WrongFormat { field, formats });
    let timestamp_field = match &definition.timestamp {
        Timestamp::Text { field, .. } => field.as_ref(),
        Timestamp::Word(_) => None,
    };
    if format == Format::Line && definition.sensor.is_some() {
        return wrong("sensor", "csv, ndjson and influx");
    }
    if format == Format::Line && definition.value.is_some() {
        return wrong("value", "csv, ndjson and influx");
    }
    if matches!(format, Format::Line | Format::Influx) && timestamp_field.is_some() {
        return wrong("timestamp.field", "csv and ndjson");
    }
    if definition.columns.is_empty() {
        return Ok(());
    }
    if format != Format::Csv {
        return wrong("columns", "csv");
    }
    let sensor = definition.sensor.as_deref().unwrap_or("sensor");
    let value = definition.value.as_deref().unwrap_or("value");
    let needed = [Some(sensor), Some(value), timestamp_field.map(String::as_str)];
    for name in needed.into_iter().flatten() {
        if !definition.columns.iter().any(|column| column.eq_ignore_ascii_case(name)) {
            return Err(PlanError::ColumnMissing { name: name.to_owned() });
        }
    }
    Ok(())
}

fn check_sources(definition: &Definition) -> Result<(), PlanError> {
    let sources = &definition.sources;
    if sources.len() > SOURCES_MAX {
        return Err(PlanError::TooManySources { count: sources.len() });
    }
    for (at, source) in sources.iter().enumerate() {
        let wrong = |(field, allowed)| PlanError::Source { at, field, allowed };
        source.check(definition.format).map_err(wrong)?;
        if sources[..at].iter().any(|other| other.name() == source.name()) {
            return Err(wrong(("name", "another source has it; give each its own")));
        }
    }
    Ok(())
}

fn check_detectors(detectors: &[Detector]) -> Result<(), PlanError> {
    if detectors.len() > DETECTORS_MAX {
        return Err(PlanError::TooManyDetectors { count: detectors.len() });
    }
    for (at, detector) in detectors.iter().enumerate() {
        detector.check().map_err(|(field, allowed)| PlanError::Detector { at, field, allowed })?;
    }
    Ok(())
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<Plan, PlanError> {
        Plan::new(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn slices_are_what_all_sizes_slides_and_offsets_have_in_common() {
        let plan = plan(
            r#"{"windows": [{"tumbling": "10s", "offset": "3s"}, {"hopping": "10m", "every": "1m", "offset": "3s"},
                {"hopping": "1m", "every": "25s", "offset": "8s"}, {"count": 5}]}"#,
        )
        .unwrap();
        assert_eq!((plan.slice, plan.base), (5_000, 3_000));
        let sizes: Vec<_> = plan.time_windows.iter().map(|w| (w.size, w.slide, w.offset)).collect();
        assert_eq!(sizes, [(2, 2, 0), (120, 12, 0), (12, 5, 1)]);
        assert_eq!(plan.window_names(), ["10s", "10m-1m", "1m-25s", "count-5"]);
        assert_eq!(plan.window_named("10m"), Some(1));
        assert_eq!(plan.window_named("1h"), None);
    }

    #[test]
    fn a_definition_that_cannot_work_is_refused_with_field_and_rule() {
        for (json, words) in [
            (r#"{"windows": [{}]}"#, "windows[0]: give exactly one of"),
            (r#"{"windows": [{"count": 3, "session": "1s"}]}"#, "windows[0]: give exactly one of"),
            (r#"{"windows": [{"hopping": "1s"}]}"#, "windows[0].every: a hopping window needs it"),
            (r#"{"windows": [{"tumbling": "0s"}]}"#, "windows[0].tumbling: must be above zero"),
            (r#"{"windows": [{"count": 0}]}"#, "windows[0].count: must be above zero"),
            (
                r#"{"windows": [{"hopping": "1s", "every": "2s"}]}"#,
                "at most the length of the window, 1s",
            ),
            (r#"{"windows": [{"count": 9, "offset": "2s"}]}"#, "windows[0].offset: only tumbling"),
            (
                r#"{"windows": [{"tumbling": "1d"}, {"tumbling": "7ms"}]}"#,
                "windows[0]: 86400000 slices of 1ms",
            ),
            (r#"{"windows": [{"count": 9}, {"count": 9}]}"#, "\"count-9\" is already"),
            (r#"{"windows": [{"count": 9, "name": "a/b"}]}"#, "windows[0].name"),
            (r#"{"aggregates": ["sum", "sum"]}"#, "aggregates: \"sum\" is given twice"),
            (r#"{"sensor": "x"}"#, "sensor: only for csv"),
            (r#"{"format": "csv", "columns": ["a"]}"#, "columns: has no \"sensor\""),
            (r#"{"sources": [{"topic": "a"}]}"#, "sources[0].mqtt: give exactly one"),
            (
                r#"{"sources": [{"kafka": "a", "topic": "t"}, {"kafka": "b", "topic": "t"}]}"#,
                "sources[1].name: another source has it",
            ),
            (r#"{"retention": "0s"}"#, "retention: must be above zero"),
            (r#"{"filter": "value +"}"#, "filter: "),
            (r#"{"map": "value > 1.0"}"#, "map: "),
            (r#"{"detectors": [{"ewma_z": {"alpha": 2.0}}]}"#, "detectors[0].alpha"),
        ] {
            let error = plan(json).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
    }
}
