//! The Rust client of Kiln.
