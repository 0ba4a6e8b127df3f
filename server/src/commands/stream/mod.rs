//! Streams from the command line: make, list, show, drop, feed from a file, look at a sensor.

mod http;
mod ingest;
mod plot;

use std::{io::Read, path::PathBuf};

use hyper::Method;
use kiln_stream::definition::Definition;
use serde_json::Value;

use self::http::{HttpArgs, segment};
use super::{
    CommandError, EXIT_CODES,
    output::{self, Format, OutputArgs, Table},
};

/// Longest file with a definition.
const DEFINITION_LEN_MAX: u64 = 16 << 10;

/// Make, list, show and drop streams of sensor readings, feed them, look at sensors.
#[derive(clap::Subcommand)]
#[command(after_help = EXIT_CODES)]
pub(crate) enum StreamCommand {
    Create(Create),
    List(List),
    Show(Show),
    Drop(DropStream),
    Ingest(ingest::Ingest),
    Plot(plot::Plot),
}

impl StreamCommand {
    pub(crate) async fn run(self) -> Result<(), CommandError> {
        match self {
            Self::Create(command) => command.run().await,
            Self::List(command) => command.run().await,
            Self::Show(command) => command.run().await,
            Self::Drop(command) => command.run().await,
            Self::Ingest(command) => command.run().await,
            Self::Plot(command) => command.run().await,
        }
    }
}

/// Make a stream.
///
/// A stream that exists with the same definition is no error. What is not in the file or named here
/// has its default.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Create {
    /// 1 to 56 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit.
    name: String,
    /// The definition, as JSON or TOML; - for standard input.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// How the text of its sources is laid out: line, csv, ndjson or influx.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// A window: 10s, 10m/1m (hopping, every minute), count:100 or session:30s. Several times.
    #[arg(long = "window", value_name = "WINDOW", value_parser = window)]
    windows: Vec<Value>,
    /// What is computed over each window, with commas between.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    aggregates: Vec<String>,
    /// The cache of the latest values [default: named like the stream].
    #[arg(long, value_name = "CACHE")]
    latest: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    http: HttpArgs,
}

impl Create {
    async fn run(self) -> Result<(), CommandError> {
        let mut definition = match &self.file {
            Some(path) => read_definition(path)?,
            None => Value::Object(serde_json::Map::new()),
        };
        let mut set = |name: &str, value: Value| definition[name] = value;
        if let Some(format) = self.format {
            set("format", format.into());
        }
        if !self.windows.is_empty() {
            set("windows", Value::Array(self.windows));
        }
        if !self.aggregates.is_empty() {
            set("aggregates", self.aggregates.into());
        }
        if let Some(latest) = self.latest {
            set("latest", latest.into());
        }
        // Before anything is sent, with the words of the definition itself.
        serde_json::from_value::<Definition>(definition.clone())
            .map_err(|error| CommandError::Usage(format!("the definition is wrong: {error}")))?;
        let target = format!("/v1/streams/{}", segment(&self.name));
        let body = definition.to_string().into_bytes();
        let made = self.http.open()?.must(Method::PUT, &target, body).await?;
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&made),
            Format::Raw => output::print(format!("{}\n", self.name)),
            Format::Table => output::print(format!(
                "made stream {}: latest values in the cache {}, windows {} in the cache {}\n",
                self.name,
                text(&made["latest_cache"]),
                names(&made["windows"]),
                text(&made["windows_cache"])
            )),
        }
    }
}

fn read_definition(path: &PathBuf) -> Result<Value, CommandError> {
    let fail = |error: String| CommandError::Failed(format!("{}: {error}", path.display()));
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(DEFINITION_LEN_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(DEFINITION_LEN_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| fail(error.to_string()))?;
    let value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?
    } else {
        toml::from_str(&text).map_err(|error| fail(error.to_string()))?
    };
    if value.is_object() { Ok(value) } else { Err(fail("expected an object".to_owned())) }
}

/// A window as it is written on the command line.
fn window(text: &str) -> Result<Value, String> {
    if let Some(count) = text.strip_prefix("count:") {
        let count: u32 = count.parse().map_err(|_| "expected count:NUMBER".to_owned())?;
        return Ok(serde_json::json!({ "count": count }));
    }
    if let Some(gap) = text.strip_prefix("session:") {
        return Ok(serde_json::json!({ "session": gap }));
    }
    Ok(match text.split_once('/') {
        Some((size, every)) => serde_json::json!({ "hopping": size, "every": every }),
        None => serde_json::json!({ "tumbling": text }),
    })
}

/// List all streams with their figures on a node.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct List {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    http: HttpArgs,
}

impl List {
    async fn run(self) -> Result<(), CommandError> {
        let list = self.http.open()?.must(Method::GET, "/v1/streams", Vec::new()).await?;
        let streams = list["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(&list),
            Format::Raw => {
                let names = streams.iter().map(|stream| text(&stream["name"]).to_owned() + "\n");
                output::print(names.collect::<String>())
            }
            Format::Table => {
                let mut table = Table::new(&[
                    "STREAM", "FORMAT", "WINDOWS", "SENSORS", "READINGS", "LATE", "REJECTED",
                    "STATE",
                ]);
                for stream in streams {
                    let figure = |name: &str| stream["figures"][name].as_u64().unwrap_or(0);
                    table.row(vec![
                        text(&stream["name"]).into(),
                        text(&stream["definition"]["format"]).into(),
                        names(&stream["windows"]).into(),
                        figure("sensors").into(),
                        figure("accepted").into(),
                        figure("late").into(),
                        figure("rejected").into(),
                        output::size(figure("state_bytes")).into(),
                    ]);
                }
                table.print()
            }
        }
    }
}

/// Show a stream: its definition and its figures on a node.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Show {
    /// The stream.
    name: String,
    #[command(flatten)]
    http: HttpArgs,
}

impl Show {
    async fn run(self) -> Result<(), CommandError> {
        let target = format!("/v1/streams/{}", segment(&self.name));
        output::print_json(&self.http.open()?.must(Method::GET, &target, Vec::new()).await?)
    }
}

/// Drop a stream and its results. The cache of the latest values stays.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DropStream {
    /// The stream.
    name: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    http: HttpArgs,
}

impl DropStream {
    async fn run(self) -> Result<(), CommandError> {
        if !self.yes {
            let text = format!(
                "dropping the stream {} removes its windows on all nodes; say --yes if that is meant",
                self.name
            );
            return Err(CommandError::Usage(text));
        }
        let target = format!("/v1/streams/{}", segment(&self.name));
        self.http.open()?.must(Method::DELETE, &target, Vec::new()).await?;
        output::print(format!("dropped stream {}\n", self.name))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn names(value: &Value) -> String {
    let names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_written_short() {
        for (short, long) in [
            ("10s", r#"{"tumbling":"10s"}"#),
            ("10m/1m", r#"{"every":"1m","hopping":"10m"}"#),
            ("count:100", r#"{"count":100}"#),
            ("session:30s", r#"{"session":"30s"}"#),
        ] {
            assert_eq!(window(short).unwrap(), serde_json::from_str::<Value>(long).unwrap());
        }
        assert!(window("count:many").is_err());
    }
}
