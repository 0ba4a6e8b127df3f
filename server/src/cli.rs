//! The command line.
//!
//! The flags of the settings are not written here: they come from the table in `config`, so a
//! setting has the same name, range and help everywhere.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{
    Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    commands::{self, ClientCommand},
    config::{self, ConfigError, Loaded, SETTINGS, Sources, TomlForm},
    failure::Failure,
    serve,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for serve: stopped in good order
  1  failed: a port is taken, a file cannot be read, …
  2  the command line or a setting is wrong; nothing was started
  3  a command cannot connect, or has no answer in time
  4  a command was refused: credentials, permissions, limits";

/// Kiln, a distributed in-memory key-value cache that speaks memcached.
///
/// Without a command it serves, as `kiln serve` does: one node, everything on this host only. The
/// commands that use a cluster find it by --address or KILN_ADDRESS.
#[derive(Parser)]
#[command(name = "kiln", version = env!("BUILD_VERSION"), after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node.
    ///
    /// Settings: default < file < KILN_* environment < flag. Sizes: 64MiB, 64M, 64m; times: 1500ms,
    /// 30s, 5m. When the node can serve, it prints one line on standard output: ready name=… .
    #[command(after_help = EXIT_CODES)]
    Serve(SettingArgs),
    #[command(flatten)]
    Client(Box<ClientCommand>),
    /// Check settings, show those in effect, print a sample file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    ///
    /// For bash: kiln completion bash > /etc/bash_completion.d/kiln
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a file, with the environment, and report everything that is wrong.
    Check {
        /// The file [env: KILN_CONFIG]
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// Print the settings in effect as TOML.
    Show {
        /// Add where each value came from: default, file, env or flag.
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Print a commented file with every setting.
    Sample,
}

/// `--config`, and one flag for each setting.
struct SettingArgs {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

impl Args for SettingArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("TOML file with settings; `kiln config sample` prints one [env: KILN_CONFIG]")
            .value_hint(ValueHint::FilePath)
            .value_parser(clap::value_parser!(PathBuf));
        SETTINGS.iter().map(setting_arg).fold(command.arg(config), clap::Command::arg)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flag = |key| matches.get_one::<String>(key).map(|text| (key, text.clone()));
        Ok(Self {
            file: matches.get_one::<PathBuf>("config").cloned(),
            flags: SETTINGS.iter().filter_map(|setting| flag(setting.key)).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn setting_arg(setting: &'static config::Setting) -> Arg {
    let help = format!(
        "{} {} [default: {}] [env: {}]",
        setting.description(),
        capitalised(&setting.allowed()),
        setting.default_shown(),
        setting.variable(),
    );
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.placeholder)
        .help(help)
        .help_heading(setting.group)
        .value_hint(setting.hint)
        .value_parser(|text: &str| (setting.check)(text));
    match setting.toml {
        TomlForm::Boolean => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        TomlForm::Quoted | TomlForm::Integer => arg,
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

impl SettingArgs {
    fn load(self) -> Result<Loaded, Failure> {
        load(&Sources::of_process(self.file, self.flags))
    }
}

/// Reads the command line and does what it says.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(error));
    let result = match cli.command {
        None => load(&Sources::of_process(None, Vec::new())).and_then(serve::run),
        Some(Command::Serve(settings)) => settings.load().and_then(serve::run),
        Some(Command::Client(command)) => return commands::run(*command, Cli::command),
        Some(Command::Config(command)) => config_command(command),
        Some(Command::Completion { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
            print(&script)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Says what is wrong with the command line, and what would be right for habits from elsewhere.
fn refuse(error: clap::Error) -> ! {
    let foreign = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(argument))) => {
            FOREIGN_FLAGS.iter().find(|(flag, _)| argument == flag)
        }
        _ => None,
    };
    if let Some((flag, ours)) = foreign {
        let _ = error.print();
        eprintln!("\n  tip: memcached's {flag} is `kiln serve {ours}` here");
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Flags of memcached that fingers know, and what they are called here.
const FOREIGN_FLAGS: &[(&str, &str)] = &[
    ("-m", "--memory 64MiB"),
    ("-p", "--listen-memcached 127.0.0.1:11211"),
    ("-l", "--listen-memcached 0.0.0.0:11211"),
    ("-s", "--listen-memcached-unix PATH"),
    ("-t", "--threads 4"),
    ("-c", "--max-connections 4096"),
    ("-I", "--max-item-size 1MiB"),
    ("-M", "--eviction none"),
    ("-A", "--enable-shutdown"),
    ("-F", "--disable-flush"),
    ("-P", "--pid-file FILE"),
    ("-Y", "--auth-file FILE"),
    ("-v", "--log-level debug"),
];

fn config_command(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { file } => {
            let sources = Sources::of_process(file, Vec::new());
            let Some(path) = sources.file() else {
                let usage = "nothing to check: name a file, as in `kiln config check kiln.toml`, \
                             or set KILN_CONFIG";
                return Err(Failure::Usage(vec![usage.to_owned()]));
            };
            load(&sources)?;
            print(format!("{}: ok\n", path.display()).as_bytes())
        }
        ConfigCommand::Show { origin, settings } => {
            print(config::render_effective(&settings.load()?, origin).as_bytes())
        }
        ConfigCommand::Sample => print(config::render_sample().as_bytes()),
    }
}

fn load(sources: &Sources) -> Result<Loaded, Failure> {
    let describe = |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect();
    sources.load().map_err(|errors| Failure::Usage(describe(errors)))
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &[&str]) -> Result<Vec<(&'static str, String)>, clap::Error> {
        let cli = Cli::try_parse_from(["kiln", "serve"].iter().chain(line))?;
        let Some(Command::Serve(settings)) = cli.command else { panic!("serve was asked for") };
        Ok(settings.flags)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_switch_needs_no_value_but_can_be_turned_off() {
        assert_eq!(
            settings(&["--enable-shutdown"]).unwrap(),
            [("enable_shutdown", "true".to_owned())]
        );
        assert_eq!(
            settings(&["--enable-shutdown=false"]).unwrap(),
            [("enable_shutdown", "false".to_owned())]
        );
    }

    #[test]
    fn only_flags_that_were_given_count() {
        assert!(settings(&[]).unwrap().is_empty());
        assert_eq!(settings(&["--memory", "64m"]).unwrap(), [("memory", "64MiB".to_owned())]);
    }

    #[test]
    fn a_node_to_join_is_named_with_its_port() {
        assert_eq!(settings(&["--join", "a:1,b:2"]).unwrap(), [("join", "a:1,b:2".to_owned())]);
        assert_eq!(settings(&["--join", "a"]).unwrap_err().exit_code(), 2);
    }
}
