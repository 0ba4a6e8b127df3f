//! How commands tell what they found: as a table for people, as JSON or as bare bytes for programs.
//!
//! What always holds: data goes to standard output and nothing else does; nothing is coloured and
//! nothing cut to a width unless standard output is a terminal; `NO_COLOR` turns colour off; a
//! reader that has seen enough (`| head`) ends a command and is no failure.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::CommandError;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns with headings, as wide as the terminal.
    Table,
    /// One documented object, or one in each line.
    Json,
    /// Bare values, one in each line.
    Raw,
}

/// The option that every command with output has.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Form of the output [default: what suits the command and the terminal].
    #[arg(short, long, value_enum, value_name = "FORM", help_heading = "Output")]
    output: Option<Format>,
}

impl OutputArgs {
    /// The form that was asked for, or else this one.
    pub(crate) fn or(self, default: Format) -> Format {
        self.output.unwrap_or(default)
    }

    /// The form that was asked for; without one a table for people and bare values for programs.
    pub(crate) fn or_by_terminal(self) -> Format {
        self.or(if io::stdout().is_terminal() { Format::Table } else { Format::Raw })
    }

    /// What was asked for.
    pub(crate) fn asked(self) -> Option<Format> {
        self.output
    }
}

/// Writes to standard output.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    ended(out.write_all(text.as_ref()).and_then(|()| out.flush()))
}

/// Writes one JSON object, indented, and a line end.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CommandError::Failed(format!("cannot write as JSON: {error}")))?;
    print(text + "\n")
}

/// Judges the end of writing: a closed pipe ends the command quietly.
pub(crate) fn ended(result: io::Result<()>) -> Result<(), CommandError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(CommandError::Closed),
        Err(error) => {
            Err(CommandError::Failed(format!("cannot write to standard output: {error}")))
        }
    }
}

/// Columns with headings. Numbers are set to the right.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One field of a table.
#[derive(Debug)]
pub(crate) enum Cell {
    /// Set to the left.
    Text(String),
    /// Set to the right.
    Number(String),
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(number.to_string())
    }
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    /// Prints it for the terminal that there is, or for a file.
    pub(crate) fn print(&self) -> Result<(), CommandError> {
        let terminal = io::stdout().is_terminal();
        let width = if terminal { terminal_width() } else { None };
        print(self.render(width, terminal && colour_is_wanted()))
    }

    /// Prints it without headings: a further part of what was printed before.
    pub(crate) fn print_rows(&self) -> Result<(), CommandError> {
        let width = if io::stdout().is_terminal() { terminal_width() } else { None };
        let text = self.render(width, false);
        print(text.split_once('\n').map_or("", |(_, rows)| rows))
    }

    /// As it is printed to a file.
    #[cfg(test)]
    pub(crate) fn as_text(&self) -> String {
        self.render(None, false)
    }

    /// As text; lines are cut to `width` columns when there is one.
    fn render(&self, width: Option<usize>, bold: bool) -> String {
        let text = |cell: &Cell| match cell {
            Cell::Text(text) | Cell::Number(text) => text.width(),
        };
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column)).map(text);
                cells.chain([self.headings[column].width()]).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        let headings: Vec<Cell> = (0..self.headings.len())
            .map(|column| match self.rows.first().and_then(|row| row.get(column)) {
                Some(Cell::Number(_)) => Cell::Number(self.headings[column].to_owned()),
                _ => Cell::Text(self.headings[column].to_owned()),
            })
            .collect();
        let heading = cut(&line(&headings, &widths), width).into_owned();
        if bold {
            let _ = writeln!(out, "\x1b[1m{heading}\x1b[0m");
        } else {
            let _ = writeln!(out, "{heading}");
        }
        for row in &self.rows {
            let _ = writeln!(out, "{}", cut(&line(row, &widths), width));
        }
        out
    }
}

fn line(cells: &[Cell], widths: &[usize]) -> String {
    let mut out = String::new();
    for (index, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        if index > 0 {
            out.push_str("  ");
        }
        let pad = |text: &str| " ".repeat(width.saturating_sub(text.width()));
        match cell {
            Cell::Text(text) => {
                out.push_str(text);
                out.push_str(&pad(text));
            }
            Cell::Number(text) => {
                out.push_str(&pad(text));
                out.push_str(text);
            }
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// The first `width` columns, with a mark when something is missing.
fn cut(line: &str, width: Option<usize>) -> Cow<'_, str> {
    let Some(width) = width.filter(|&width| line.width() > width) else {
        return Cow::Borrowed(line);
    };
    let mut out = String::new();
    for c in line.chars() {
        if out.width() + c.to_string().width() + 1 > width {
            break;
        }
        out.push(c);
    }
    Cow::Owned(out + "…")
}

/// Columns of the terminal, when there is one that says so.
fn terminal_width() -> Option<usize> {
    let (columns, _) = ratatui::crossterm::terminal::size().ok()?;
    (columns > 0).then_some(usize::from(columns))
}

fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Bytes for people: as they are when they can be printed, else with escapes.
pub(crate) fn shown(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Cow::Borrowed(text),
        _ => {
            let mut out = String::new();
            for chunk in bytes.utf8_chunks() {
                for c in chunk.valid().chars() {
                    if c.is_control() {
                        let _ = write!(out, "{}", c.escape_default());
                    } else {
                        out.push(c);
                    }
                }
                for byte in chunk.invalid() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            Cow::Owned(out)
        }
    }
}

/// Bytes in JSON: under `name` when they are text, else in base64 under `name_base64`. Text is UTF-8
/// without control characters but for those of lines and columns, so escapes at most double it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    /// Text.
    Plain(String),
    /// Anything.
    Base64(String),
}

impl Text {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) if bytes.iter().all(|b| *b >= b' ' || b"\t\n\r".contains(b)) => {
                Self::Plain(text.to_owned())
            }
            _ => Self::Base64(BASE64_STANDARD.encode(bytes)),
        }
    }

    /// The member's name and its text.
    pub(crate) fn member(&self, name: &'static str) -> (Cow<'static, str>, &str) {
        match self {
            Self::Plain(text) => (Cow::Borrowed(name), text),
            Self::Base64(text) => (Cow::Owned(format!("{name}_base64")), text),
        }
    }
}

/// Bytes with a unit that keeps them short: `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// A large number with a letter that keeps it short: `12.3k`.
pub(crate) fn count(number: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(unit, _)| number >= *unit) {
        Some((unit, letter)) => format!("{:.1}{letter}", number / unit),
        None => format!("{number:.0}"),
    }
}

/// A span with its largest unit, and the next when it says something: `2m 5s`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["KEY", "BYTES", "NOTE"]);
        table.row(vec!["a".into(), 5.into(), "short".into()]);
        table.row(vec!["longer".into(), 12345.into(), "ä wide one".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_field_and_numbers_stand_right() {
        let expected = "\
KEY     BYTES  NOTE
a           5  short
longer  12345  ä wide one
";
        assert_eq!(table().render(None, false), expected);
    }

    #[test]
    fn lines_longer_than_the_terminal_are_cut_with_a_mark() {
        let text = table().render(Some(17), false);
        assert!(text.lines().all(|line| line.width() <= 17), "{text}");
        assert!(text.lines().nth(2).unwrap().ends_with('…'), "{text}");
        for width in 0..4 {
            table().render(Some(width), true);
        }
    }

    #[test]
    fn only_headings_are_bold_and_only_when_asked() {
        assert_eq!(table().render(None, true).matches('\x1b').count(), 2);
        assert!(!table().render(None, false).contains('\x1b'));
    }

    #[test]
    fn bytes_that_would_disturb_a_terminal_are_escaped() {
        assert_eq!(shown("grüße".as_bytes()), "grüße");
        assert_eq!(shown(b"a\x1b[1mb\n\xff"), "a\\u{1b}[1mb\\n\\xff");
    }

    #[test]
    fn bytes_that_are_no_text_are_base64_in_json() {
        assert_eq!(Text::of(b"plain").member("key"), ("key".into(), "plain"));
        assert_eq!(Text::of(b"a\0").member("key").0, "key_base64");
        assert_eq!(Text::of(&[0xff, 0]).member("key"), ("key_base64".into(), "/wA="));
    }

    #[test]
    fn sizes_counts_and_spans_are_short() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!((count(999.0), count(12_345.0)), ("999".to_owned(), "12.3k".to_owned()));
        assert_eq!((span(999), span(125_000)), ("999ms".to_owned(), "2m 5s".to_owned()));
        assert_eq!(span(90_061_000), "1d 1h");
    }
}
