//! Kiln's engine beside other in-process caches, all given the same work.
//!
//! Two programs share this: the criterion bench, for watching one figure closely, and the binary
//! `kiln-micro`, which takes all contestants in turn over several rounds and prints medians. On a
//! shared machine only figures of the same minutes can be set beside each other.
//!
//! What always holds: every contestant is asked for the same keys in the same order, hashes each
//! key itself, and copies each value found into the caller's buffer; no figure is given for a
//! contestant that lost or garbled an item.

pub mod contestants;
pub mod footprint;
pub mod keys;
pub mod passes;
