//! Sensor readings to latest values, windows, forecasts and anomalies: decisions only.
//!
//! ```text
//!   bytes -> parse::Intake -> Batch -> Plan::transform (filter, map) -> split by partition -> Record
//!   Record -> Operator::apply -> Effects: latest values, window results, alarms
//! ```
//!
//! A stream is a [`definition::Definition`], checked once into a [`plan::Plan`]. Each partition of a
//! stream is one [`operator::Operator`], whose state changes by records alone: the same records in
//! the same order give the same state on every copy, digest included.
//!
//! The crate is pure: no clock, no sockets, no randomness. Time travels in records.

pub mod aggregate;
pub mod changelog;
pub mod definition;
pub mod detect;
pub mod downsample;
pub mod effects;
pub mod expression;
pub mod fit;
mod index;
mod number;
pub mod operator;
pub mod parse;
pub mod plan;
mod prefetch;
pub mod producers;
pub mod reading;
pub mod record;
mod sensor;
pub mod snapshot;
pub mod source;
pub mod span;
mod window;
