//! Who asks: a name, and a password that stands on no command line and in no listing of processes.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use super::CommandError;

/// Who asks.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct CredentialArgs {
    /// The user, where the cluster asks for one.
    #[arg(long, env = "KILN_USER", value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// File with the user's password in its first line; only its owner may read it.
    #[arg(
        long,
        env = "KILN_PASSWORD_FILE",
        value_name = "FILE",
        value_hint = clap::ValueHint::FilePath,
        requires = "user"
    )]
    password_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// User and password. A password that others may read is refused.
    pub(crate) fn read(&self) -> Result<Option<(String, String)>, CommandError> {
        let (Some(user), Some(path)) = (&self.user, &self.password_file) else { return Ok(None) };
        let fail = |error: std::io::Error| {
            CommandError::Failed(format!("{} (--password-file): {error}", path.display()))
        };
        let mode = fs::metadata(path).map_err(fail)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(CommandError::Refused(format!(
                "{} (--password-file) can be read by others (mode {:03o}): chmod 600 it first",
                path.display(),
                mode & 0o777
            )));
        }
        let text = fs::read_to_string(path).map_err(fail)?;
        let password = text.lines().next().unwrap_or_default().to_owned();
        Ok(Some((user.clone(), password)))
    }
}
