//! `kiln bench`: the load generator, with the command line's own exit codes and credentials.

use kiln_load::{BenchArgs, BenchError, Credentials, RunError, cancel_on_signal};

use super::{CommandError, EXIT_CODES, credentials::CredentialArgs};

/// Load a server with gets and sets and measure it.
///
/// Kiln by any of its protocols, memcached, Redis. The table goes to standard output, progress to
/// standard error. Values are a function of their key: with --verify every value that comes back is
/// checked, also one stored by an earlier run with the same sizes.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Bench {
    #[command(flatten)]
    bench: BenchArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
}

const EXAMPLES: &str = "\
Examples:
  kiln bench --preload --pipeline 16 --key-dist zipf:0.99
  kiln bench --rate 50000 --duration 60s --hdr latency.hgrm     open loop: stalls count in full
  kiln bench --compare memcached,native --pipeline 16 --preload processor time side by side
  kiln bench --protocol native --echo -c 1                      beside a bare echo";

impl Bench {
    pub(crate) fn run(self) -> Result<(), CommandError> {
        let credentials = self.credentials.read()?;
        let credentials = credentials.map(|(user, password)| Credentials { user, password });
        let cancel = cancel_on_signal()
            .map_err(|error| CommandError::Failed(format!("cannot watch signals: {error}")))?;
        let finding = self.bench.run(credentials, &cancel).map_err(explain)?;
        self.bench.print(&finding).map_err(explain)?;
        match finding.errors() {
            0 => Ok(()),
            _ => Err(CommandError::Told),
        }
    }
}

fn explain(error: BenchError) -> CommandError {
    let text = error.to_string();
    match error {
        BenchError::Run(RunError::Plan { .. }) => CommandError::Usage(text),
        BenchError::Run(RunError::Connect { .. }) => CommandError::Unreachable(format!(
            "{text}\n  Is it running there? `kiln serve` starts a node; --address names another."
        )),
        BenchError::Run(RunError::Stalled { .. }) => CommandError::Unreachable(text),
        BenchError::Run(RunError::Refused { .. }) => CommandError::Refused(text),
        _ => CommandError::Failed(text),
    }
}
