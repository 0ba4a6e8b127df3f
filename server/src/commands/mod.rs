//! The commands that talk to a running cluster.
//!
//! Each reads its arguments, asks through the client library, and prints; none knows the protocol.
//! What always holds: data goes to standard output, everything else to standard error; the exit
//! code says what kind of end it was ([`CommandError`]); an error names what failed, where, and
//! what to do next.

mod bench;
mod caches;
mod cluster;
mod connect;
mod credentials;
mod demo;
mod dump;
mod item_json;
mod items;
mod load;
mod man;
mod output;
mod records;
mod stream;
mod top;
mod value;

use std::process::ExitCode;

use cluster::cluster_picture;

/// Where the exit codes are told to people.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: not found, a condition was not met, a part could not be done
  2  the command line is wrong; nothing was done
  3  cannot connect, or no answer in time
  4  refused: credentials, permissions, limits";

/// The commands. Each tells of itself in its own module, for the help as well.
#[derive(clap::Subcommand)]
pub(crate) enum ClientCommand {
    Get(items::Get),
    Set(items::Set),
    Del(items::Del),
    Incr(items::Incr),
    Touch(items::Touch),
    Mget(items::Mget),
    Scan(items::Scan),
    /// Make, list, show and drop caches.
    #[command(subcommand)]
    Cache(caches::CacheCommand),
    /// Show the cluster, change it, check its copies.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Streams of sensor readings: make, list, show, drop, feed from a file, look at a sensor.
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    Load(load::Load),
    Dump(dump::Dump),
    Bench(bench::Bench),
    Demo(demo::Demo),
    Top(top::Top),
    Man(man::Man),
}

/// Why a command did not do its work. Each kind has an exit code of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// Not found, a condition that was not met, a file that cannot be read. 1.
    Failed(String),
    /// The same, and everything there is to say has been said. 1.
    Told,
    /// The command line cannot be meant. 2.
    Usage(String),
    /// No connection, or no answer in time. 3.
    Unreachable(String),
    /// Credentials, permissions, limits. 4.
    Refused(String),
    /// Nobody reads the output any more: no failure.
    Closed,
}

impl CommandError {
    /// Says what is wrong on standard error.
    fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Failed(text) => (text, 1),
            Self::Told => return ExitCode::from(1),
            Self::Usage(text) => (text, 2),
            Self::Unreachable(text) => (text, 3),
            Self::Refused(text) => (text, 4),
            Self::Closed => return ExitCode::SUCCESS,
        };
        eprintln!("kiln: {text}");
        ExitCode::from(code)
    }
}

/// Runs a command to its end. `cli` describes the whole command line, for the manual pages.
pub(crate) fn run(command: ClientCommand, cli: fn() -> clap::Command) -> ExitCode {
    let result = match command {
        ClientCommand::Get(command) => block_on(command.run()),
        ClientCommand::Set(command) => block_on(command.run()),
        ClientCommand::Del(command) => block_on(command.run()),
        ClientCommand::Incr(command) => block_on(command.run()),
        ClientCommand::Touch(command) => block_on(command.run()),
        ClientCommand::Mget(command) => block_on(command.run()),
        ClientCommand::Scan(command) => block_on(command.run()),
        ClientCommand::Cache(command) => block_on(command.run()),
        ClientCommand::Cluster(command) => block_on(command.run()),
        ClientCommand::Stream(command) => block_on(command.run()),
        ClientCommand::Load(command) => block_on(command.run()),
        ClientCommand::Dump(command) => block_on(command.run()),
        ClientCommand::Bench(command) => command.run(),
        ClientCommand::Demo(command) => command.run(),
        ClientCommand::Top(command) => command.run(),
        ClientCommand::Man(command) => command.run(&cli()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// Runs a command that talks to nodes, on this thread.
fn block_on<T>(command: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| CommandError::Failed(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(command)
}
