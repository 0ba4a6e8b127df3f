//! The REST interface against the real binary: every promise of `docs/rest.md`.

// A failed unwrap fails the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod actions;
mod batch;
mod caches;
mod client;
mod description;
mod errors;
mod gateway;
mod items;
mod scan;
mod several;
mod streams;
mod times;
