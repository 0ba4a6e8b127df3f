//! The commands as people and scripts use them: the real binary against a real node.

// A failed unwrap fails the test.
#![allow(clippy::unwrap_used)]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod describing;
mod files;
mod items;
mod measuring;
mod several;
mod terminal;
