//! Each guard of the protocol, left out once, is noticed.
//!
//! `cargo test -p kiln-cluster --test mutants -- --nocapture` prints the table: the guard, the
//! profiles it was looked for in, the number of seeds until it was caught, and the broken promise.

use kiln_sim::mutants::{CASES, catch, table};

#[test]
fn each_guard_that_is_left_out_is_caught() {
    let rows: Vec<_> = CASES.iter().map(catch).collect();
    println!("{}", table(&rows));
    let missed: Vec<_> = rows.iter().filter(|row| row.caught.is_none()).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}
