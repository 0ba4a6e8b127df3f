//! Puts version and commit into the binary: `BUILD_VERSION` is `0.1.0` or `0.1.0 (1a2b3c4d5e6f)`.
//! The names do not begin with `KILN_`: `cargo run` hands them on to the node, which takes such
//! variables for settings.
//!
//! The commit is what `BUILD_COMMIT` says (images are often built without the repository), else
//! what git says, else left out.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    // Moves with every commit and checkout. A watched file that is missing would rebuild each time.
    let log = Path::new("../.git/logs/HEAD");
    if log.exists() {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let commit = env::var("BUILD_COMMIT").ok().or_else(commit_by_git);
    let commit = commit.map(|c| c.trim().to_owned()).filter(|c| !c.is_empty());
    let long = commit.as_ref().map_or(version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo:rustc-env=BUILD_VERSION={long}");
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit.unwrap_or_default());
}

fn commit_by_git() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
