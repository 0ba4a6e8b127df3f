//! `kiln man`: manual pages of every command, from the same description as `--help`.

use std::{fs, path::PathBuf};

use super::CommandError;

/// Write manual pages.
///
/// One file for each command: kiln.1, kiln-get.1, … To read one at once:
/// kiln man /tmp/kiln && man /tmp/kiln/kiln-get.1
#[derive(clap::Args)]
pub(crate) struct Man {
    /// The directory; made when it is missing.
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    directory: PathBuf,
}

impl Man {
    pub(crate) fn run(self, cli: &clap::Command) -> Result<(), CommandError> {
        let directory = &self.directory;
        fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(cli.clone(), directory))
            .map_err(|error| {
                let place = directory.display();
                CommandError::Failed(format!("cannot write manual pages to {place}: {error}"))
            })
    }
}
