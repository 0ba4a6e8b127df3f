//! How commands reach a cluster: the options they share, and what its errors mean for people.

use std::time::Duration;

use kiln_client::{Address, Builder, Cache, Client, Error, ErrorCode, Reason};

use super::{CommandError, credentials::CredentialArgs};
use crate::config::{Period, Value};

/// Where the cluster is and who asks.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectArgs {
    /// The cluster: kiln://HOST:PORT,HOST:PORT/CACHE. One node that answers is enough.
    #[arg(
        long,
        env = "KILN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "kiln://127.0.0.1:7311"
    )]
    address: Address,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Longest wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = period)]
    timeout: Duration,
}

impl ConnectArgs {
    /// The cluster as it was named.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// A client of the cluster; its default cache is that of the address.
    pub(crate) async fn client(&self) -> Result<Client, CommandError> {
        let name = concat!("kiln-cli/", env!("CARGO_PKG_VERSION"));
        let mut builder = Client::builder()
            .address(self.address.clone())
            .name(name)
            .timeout(self.timeout)
            .connect_timeout(self.timeout);
        if let Some((user, password)) = self.credentials.read()? {
            builder = builder.credentials(user, password);
        }
        builder.connect().await.map_err(|error| explain(&error))
    }
}

/// Where the cluster is, who asks, and which cache is meant.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct CacheArgs {
    /// The cache [default: that of the address, else `default`].
    #[arg(long, value_name = "NAME", value_parser = cache_name)]
    cache: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl CacheArgs {
    /// The cache's name.
    pub(crate) fn name(&self) -> &str {
        self.cache.as_deref().unwrap_or(self.connect.address.cache())
    }

    /// A client of the cluster.
    pub(crate) async fn client(&self) -> Result<Client, CommandError> {
        self.connect.client().await
    }

    /// The cache that is meant.
    pub(crate) async fn cache(&self) -> Result<Cache, CommandError> {
        Ok(self.client().await?.cache(self.name()))
    }
}

/// A name that a cache can have.
pub(crate) fn cache_name(name: &str) -> Result<String, String> {
    Builder::check_cache_name(name).map_err(|error| error.to_string())?;
    Ok(name.to_owned())
}

/// What an error of the client means for the exit code, and what to do next.
pub(crate) fn explain(error: &Error) -> CommandError {
    let text = error.to_string();
    match error.code() {
        Some(ErrorCode::Unauthenticated) => {
            return CommandError::Refused(format!("{text}\n  Name --user and --password-file."));
        }
        Some(
            ErrorCode::Forbidden
            | ErrorCode::FrameTooLarge
            | ErrorCode::ValueTooLarge
            | ErrorCode::BadKey
            | ErrorCode::OutOfMemory
            | ErrorCode::Busy
            | ErrorCode::LimitReached
            | ErrorCode::BadHello,
        ) => return CommandError::Refused(text),
        Some(ErrorCode::NoSuchCache) => {
            return CommandError::Failed(format!(
                "{text}\n  `kiln cache list` shows what there is."
            ));
        }
        Some(ErrorCode::DeadlineExceeded | ErrorCode::ShuttingDown) => {
            return CommandError::Unreachable(text);
        }
        _ => {}
    }
    match error.reason() {
        Reason::Unreachable { address, .. } => {
            let hint = if address.ends_with(":11211") {
                "Port 11211 is memcached's; the native protocol is on 7311 unless set otherwise."
            } else {
                "Is a node running there? `kiln serve` starts one; --address or KILN_ADDRESS names \
                 another."
            };
            CommandError::Unreachable(format!("{text}\n  {hint}"))
        }
        Reason::Disconnected { .. } | Reason::DeadlineExceeded { .. } | Reason::Closed => {
            CommandError::Unreachable(text)
        }
        Reason::TooLarge { .. } | Reason::Refused { .. } => CommandError::Refused(text),
        _ => CommandError::Failed(text),
    }
}

/// A time, as the settings of a node are written.
pub(crate) fn period(text: &str) -> Result<Duration, String> {
    Period::parse(text).map(|period| period.0)
}
