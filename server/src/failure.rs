//! How a command ends: the exit code, and one line that says what is wrong.

use std::process::ExitCode;

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or the settings are wrong: nothing was started. Exit code 2.
    Usage(Vec<String>),
    /// Something the command needs is not there or broke. Exit code 1.
    Failed(String),
}

impl Failure {
    /// Says on standard error what is wrong.
    pub(crate) fn report(&self) -> ExitCode {
        let (lines, code) = match self {
            Self::Usage(lines) => (lines.as_slice(), 2),
            Self::Failed(line) => (std::slice::from_ref(line), 1),
        };
        for line in lines {
            eprintln!("kiln: {line}");
        }
        ExitCode::from(code)
    }
}
