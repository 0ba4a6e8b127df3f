//! The rules, mostly of strong mode, each as one story, on a network that does what the test says. The
//! simulator tries what nobody thought of; these say what is meant.

mod clear;
mod direct;
mod failover;
mod handoff;
mod late;
mod memory;
mod world;
mod writes;
