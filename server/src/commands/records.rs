//! Items in files: one JSON object in each line, or CSV.
//!
//! ```text
//!   {"key":"k","value":"v","ttl_ms":60000,"flags":1}     key_base64, value_base64: bytes, not text
//!   key,value,ttl_ms,flags,encoding                      encoding `base64`: of key and value
//! ```
//!
//! What always holds: what [`Writer`] writes [`Reader`] reads back to the same record; a line that
//! cannot be read is told with its number and the next is read; no line, however long, makes the
//! reader hold more than [`LINE_LEN_MAX`] bytes of it.

use std::{
    borrow::Cow,
    io::{self, BufRead, Read, Write},
    path::Path,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize, ser::SerializeMap};

use super::output::Text;

/// How items are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileFormat {
    /// One JSON object in each line.
    Ndjson,
    /// Comma-separated values with a line of headings.
    Csv,
}

impl FileFormat {
    /// What a file's name says, else JSON.
    pub(crate) fn of(path: Option<&Path>) -> Self {
        let extension = path.and_then(Path::extension).unwrap_or_default();
        if extension.eq_ignore_ascii_case("csv") { Self::Csv } else { Self::Ndjson }
    }
}

/// An item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) key: Cow<'a, [u8]>,
    pub(crate) value: Cow<'a, [u8]>,
    /// Milliseconds left; `None` does not end.
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) flags: u32,
}

/// A line that holds no item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(crate) struct BadLine {
    /// Counted from 1.
    pub(crate) line: u64,
    pub(crate) reason: String,
}

/// Reads items from a file.
pub(crate) enum Reader<R: BufRead> {
    Ndjson(NdjsonReader<R>),
    Csv(Box<CsvReader<R>>),
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(format: FileFormat, input: R) -> Self {
        match format {
            FileFormat::Ndjson => Self::Ndjson(NdjsonReader { input, line: 0, buffer: Vec::new() }),
            FileFormat::Csv => Self::Csv(Box::new(CsvReader::new(input))),
        }
    }

    /// The next item; `None` at the end of the file.
    ///
    /// # Errors
    /// Only when the file itself cannot be read any further.
    pub(crate) fn next(&mut self) -> io::Result<Option<Result<Record<'static>, BadLine>>> {
        match self {
            Self::Ndjson(reader) => reader.next(),
            Self::Csv(reader) => reader.next(),
        }
    }
}

pub(crate) struct NdjsonReader<R> {
    input: R,
    line: u64,
    buffer: Vec<u8>,
}

/// An item as JSON has it. An unknown member is an error: it is a misspelt one, as a rule.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    key_base64: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    value_base64: Option<Cow<'a, str>>,
    #[serde(default)]
    ttl_ms: Option<u64>,
    #[serde(default)]
    flags: u32,
    // Written by some commands beside the item itself; a file may hold them.
    #[serde(default, rename = "version")]
    _version: Option<u64>,
}

impl<R: BufRead> NdjsonReader<R> {
    fn next(&mut self) -> io::Result<Option<Result<Record<'static>, BadLine>>> {
        loop {
            self.buffer.clear();
            let mut input = (&mut self.input).take(LINE_LEN_MAX as u64 + 1);
            if input.read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            self.line += 1;
            let line = self.line;
            if self.buffer.len() > LINE_LEN_MAX {
                self.skip_line()?;
                let reason = format!("longer than {LINE_LEN_MAX} bytes");
                return Ok(Some(Err(BadLine { line, reason })));
            }
            let text = self.buffer.trim_ascii();
            if text.is_empty() {
                continue;
            }
            return Ok(Some(parse_json(text).map_err(|reason| BadLine { line, reason })));
        }
    }

    /// Goes past the rest of a line without holding it.
    fn skip_line(&mut self) -> io::Result<()> {
        self.buffer = Vec::new();
        loop {
            let available = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            let end = available.iter().position(|&b| b == b'\n');
            let (used, done) = match end {
                Some(end) => (end + 1, true),
                None => (available.len(), available.is_empty()),
            };
            self.input.consume(used);
            if done {
                return Ok(());
            }
        }
    }
}

fn parse_json(text: &[u8]) -> Result<Record<'static>, String> {
    // The line number of the error would be that within the line: always 1.
    let line: Line<'_> = serde_json::from_slice(text).map_err(|error| {
        let text = error.to_string();
        text.split(" at line ").next().unwrap_or(&text).to_owned()
    })?;
    let bytes =
        |name: &str, plain: Option<Cow<'_, str>>, coded: Option<Cow<'_, str>>| match (plain, coded)
        {
            (Some(plain), None) => Ok(plain.into_owned().into_bytes()),
            (None, Some(coded)) => decode(&*coded).map_err(|why| format!("{name}_base64: {why}")),
            (None, None) => Err(format!("missing field `{name}`")),
            (Some(_), Some(_)) => Err(format!("both `{name}` and `{name}_base64`")),
        };
    let key = bytes("key", line.key, line.key_base64)?;
    let value = bytes("value", line.value, line.value_base64)?;
    record(key, value, line.ttl_ms, line.flags)
}

fn decode(text: impl AsRef<[u8]>) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|error| error.to_string())
}

fn record(
    key: Vec<u8>,
    value: Vec<u8>,
    ttl_ms: Option<u64>,
    flags: u32,
) -> Result<Record<'static>, String> {
    match ttl_ms {
        _ if key.is_empty() => Err("the key is empty".to_owned()),
        Some(0) => Err("ttl_ms is 0: leave it out for an item that does not end".to_owned()),
        _ => Ok(Record { key: key.into(), value: value.into(), ttl_ms, flags }),
    }
}

pub(crate) struct CsvReader<R: Read> {
    reader: csv::Reader<Bounded<R>>,
    record: csv::ByteRecord,
    /// Where each of [`COLUMNS`] stands; found in the first line.
    places: Option<[Option<usize>; COLUMNS.len()]>,
}

impl<R: Read> CsvReader<R> {
    fn new(input: R) -> Self {
        let bounded = Bounded { input, left: LINE_LEN_MAX };
        let reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bounded);
        Self { reader, record: csv::ByteRecord::new(), places: None }
    }

    fn next(&mut self) -> io::Result<Option<Result<Record<'static>, BadLine>>> {
        loop {
            self.reader.get_mut().left = LINE_LEN_MAX;
            match self.reader.read_byte_record(&mut self.record) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => match error.into_kind() {
                    csv::ErrorKind::Io(error) => return Err(error),
                    kind => return Err(io::Error::other(format!("{kind:?}"))),
                },
            }
            let line = self.record.position().map_or(0, csv::Position::line);
            let bad = |reason| Some(Err(BadLine { line, reason }));
            let places = match self.places {
                Some(places) => places,
                None => match places_in(&self.record) {
                    Ok(Headings::Found(places)) => {
                        self.places = Some(places);
                        continue;
                    }
                    Ok(Headings::None(places)) => *self.places.insert(places),
                    // Every line behind it would be misread.
                    Err(reason) => {
                        let text = format!("line {line}: {reason}");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                },
            };
            return Ok(match self.item(places) {
                Ok(record) => Some(Ok(record)),
                Err(reason) => bad(reason),
            });
        }
    }

    fn item(&self, places: [Option<usize>; COLUMNS.len()]) -> Result<Record<'static>, String> {
        let field = |column: usize| places[column].and_then(|place| self.record.get(place));
        let [key, value, ttl_ms, flags, encoding] = [0, 1, 2, 3, 4].map(field);
        let (Some(key), Some(value)) = (key, value) else {
            return Err("expected key,value,ttl_ms,flags".to_owned());
        };
        let bytes = |name: &str, field: &[u8]| match encoding {
            None | Some(b"") => Ok(field.to_vec()),
            Some(b"base64") => decode(field).map_err(|why| format!("{name}: {why}")),
            Some(_) => Err("encoding is neither empty nor `base64`".to_owned()),
        };
        let number = |name: &str, field: Option<&[u8]>| match field.map(<[u8]>::trim_ascii) {
            None | Some([]) => Ok(None),
            Some(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .map(Some)
                .ok_or_else(|| format!("{name} is no whole number")),
        };
        let flags = number("flags", flags)?.unwrap_or(0);
        let flags = u32::try_from(flags).map_err(|_| "flags are over 32 bits".to_owned())?;
        record(bytes("key", key)?, bytes("value", value)?, number("ttl_ms", ttl_ms)?, flags)
    }
}

/// What the first line of a CSV file is.
enum Headings {
    Found([Option<usize>; COLUMNS.len()]),
    /// An item: the columns stand in their usual order.
    None([Option<usize>; COLUMNS.len()]),
}

fn places_in(first: &csv::ByteRecord) -> Result<Headings, String> {
    let names: Vec<_> = first.iter().map(|field| field.trim_ascii().to_ascii_lowercase()).collect();
    let named = |name: &str| names.iter().position(|field| field == name.as_bytes());
    if named("key").is_none() || named("value").is_none() {
        return Ok(Headings::None(usual_places()));
    }
    if let Some(unknown) =
        names.iter().find(|name| !COLUMNS.iter().any(|column| column.as_bytes() == *name))
    {
        let name = String::from_utf8_lossy(unknown).into_owned();
        return Err(format!("unknown column `{name}`; there are {}", COLUMNS.join(", ")));
    }
    Ok(Headings::Found(COLUMNS.map(named)))
}

fn usual_places() -> [Option<usize>; COLUMNS.len()] {
    std::array::from_fn(Some)
}

/// Gives no more than `left` bytes: a quote that is never closed must not take the whole file.
pub(crate) struct Bounded<R> {
    input: R,
    left: usize,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let text = format!("a record is longer than {LINE_LEN_MAX} bytes: is a quote open?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let len = buf.len().min(self.left);
        let read = self.input.read(&mut buf[..len])?;
        self.left -= read;
        Ok(read)
    }
}

/// Writes items to a file.
pub(crate) enum Writer<W: Write> {
    Ndjson(W),
    Csv(Box<csv::Writer<W>>),
}

/// An item as JSON has it: what says nothing is left out.
impl Serialize for Record<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, bytes) in [("key", &self.key), ("value", &self.value)] {
            let text = Text::of(bytes);
            let (name, text) = text.member(name);
            map.serialize_entry(&name, text)?;
        }
        if let Some(ttl_ms) = self.ttl_ms {
            map.serialize_entry("ttl_ms", &ttl_ms)?;
        }
        if self.flags != 0 {
            map.serialize_entry("flags", &self.flags)?;
        }
        map.end()
    }
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(format: FileFormat, output: W) -> io::Result<Self> {
        match format {
            FileFormat::Ndjson => Ok(Self::Ndjson(output)),
            FileFormat::Csv => {
                let mut writer = csv::Writer::from_writer(output);
                writer.write_record(COLUMNS).map_err(csv_failure)?;
                Ok(Self::Csv(Box::new(writer)))
            }
        }
    }

    pub(crate) fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        match self {
            Self::Ndjson(output) => {
                serde_json::to_writer(&mut *output, record)?;
                output.write_all(b"\n")
            }
            Self::Csv(writer) => {
                let (key, value) = (Text::of(&record.key), Text::of(&record.value));
                let ttl_ms = record.ttl_ms.map_or_else(String::new, |ttl| ttl.to_string());
                let flags = record.flags.to_string();
                if let (Text::Plain(key), Text::Plain(value)) = (&key, &value) {
                    writer.write_record([key, value, &ttl_ms, &flags, ""])
                } else {
                    let coded = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
                    let (key, value) = (coded(&record.key), coded(&record.value));
                    writer.write_record([&*key, &*value, &*ttl_ms, &*flags, "base64"])
                }
                .map_err(csv_failure)
            }
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Ndjson(output) => output.flush(),
            Self::Csv(writer) => writer.flush(),
        }
    }
}

fn csv_failure(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        kind => io::Error::other(format!("{kind:?}")),
    }
}

const COLUMNS: [&str; 5] = ["key", "value", "ttl_ms", "flags", "encoding"];

/// Room for the longest value a node can be set to take (64 MiB), all of it escaped, and its key.
const LINE_LEN_MAX: usize = 160 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: FileFormat, text: &str) -> Vec<Result<Record<'static>, BadLine>> {
        let mut reader = Reader::new(format, text.as_bytes());
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    fn written(format: FileFormat, records: &[Record<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(format, &mut out).unwrap();
        records.iter().for_each(|record| writer.write(record).unwrap());
        writer.flush().unwrap();
        drop(writer);
        out
    }

    fn item<'a>(key: &'a [u8], value: &'a [u8], ttl_ms: Option<u64>, flags: u32) -> Record<'a> {
        Record { key: key.into(), value: value.into(), ttl_ms, flags }
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let records = [
            item(b"plain", b"value", None, 0),
            item(b"with ttl", b"a \"quoted\", value\nof two lines\r\n", Some(1500), 7),
            item("ключ".as_bytes(), "значение".as_bytes(), None, u32::MAX),
            item(&[0, 255, 10], &[0x80; 100], Some(u64::MAX), 1),
            item(b"half", &[0xc3], None, 0),
            item(b"empty", b"", None, 0),
            item(b"controls", b"\0\x1b\x7f", None, 0),
        ];
        for format in [FileFormat::Ndjson, FileFormat::Csv] {
            let bytes = written(format, &records);
            let mut reader = Reader::new(format, &*bytes);
            let back: Vec<_> =
                std::iter::from_fn(|| reader.next().unwrap()).map(Result::unwrap).collect();
            assert_eq!(back, records, "{format:?}");
        }
    }

    #[test]
    fn a_line_of_json_holds_only_what_says_something() {
        let records = [item(b"k", b"v", None, 0), item(b"k", &[255], Some(9), 2)];
        let expected = "{\"key\":\"k\",\"value\":\"v\"}\n\
             {\"key\":\"k\",\"value_base64\":\"/w==\",\"ttl_ms\":9,\"flags\":2}\n";
        assert_eq!(String::from_utf8(written(FileFormat::Ndjson, &records)).unwrap(), expected);
    }

    #[test]
    fn a_bad_line_is_told_with_its_number_and_the_next_is_read() {
        let text = "\n{\"key\":\"a\",\"value\":\"1\"}\nnonsense\n{\"key\":\"b\"}\n\
                    {\"key\":\"c\",\"value\":\"3\",\"ttl\":5}\n{\"key\":\"\",\"value\":\"\"}\n\
                    {\"key\":\"d\",\"value_base64\":\"?\"}\n{\"key\":\"e\",\"value\":\"\"}";
        let found = read(FileFormat::Ndjson, text);
        let reasons: Vec<_> = found.iter().filter_map(|line| line.clone().err()).collect();
        assert_eq!(reasons.iter().map(|bad| bad.line).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
        assert_eq!(reasons[1].to_string(), "line 4: missing field `value`");
        assert!(reasons[2].reason.starts_with("unknown field `ttl`"), "{}", reasons[2]);
        let keys: Vec<_> = found.iter().flatten().map(|record| record.key.clone()).collect();
        assert_eq!(keys, [&b"a"[..], b"e"]);
    }

    #[test]
    fn columns_may_stand_in_any_order_or_without_headings() {
        let expected = vec![Ok(item(b"k", b"v", Some(5), 0))];
        assert_eq!(read(FileFormat::Csv, "ttl_ms,value,key\n5,v,k\n"), expected);
        assert_eq!(read(FileFormat::Csv, "k,v,5\n"), expected);
        assert_eq!(read(FileFormat::Csv, "Key, Value ,TTL_MS\nk,v,5\n"), expected);
        let mut reader = Reader::new(FileFormat::Csv, &b"key,value,tll\nk,v,5\n"[..]);
        let error = reader.next().unwrap_err().to_string();
        assert!(error.starts_with("line 1: unknown column `tll`"), "{error}");
    }

    #[test]
    fn a_bad_record_of_csv_is_told_with_its_line() {
        let found =
            read(FileFormat::Csv, "key,value,flags\na,\"two\nlines\",1\nb,x,many\nc\nd,,\n");
        let lines: Vec<_> =
            found.iter().filter_map(|line| line.clone().err()).map(|bad| bad.line).collect();
        assert_eq!(lines, [4, 5]);
        assert_eq!(found.iter().flatten().count(), 2);
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_fill_the_memory() {
        let input = b"k,\"".chain(io::repeat(b'x'));
        let mut reader = Reader::new(FileFormat::Csv, io::BufReader::new(input));
        if let Reader::Csv(csv) = &mut reader {
            csv.reader.get_mut().left = 1000;
        }
        // The bound is set anew for each record; what counts is that it is kept.
        let Reader::Csv(csv) = &mut reader else { panic!("made for CSV") };
        let mut record = csv::ByteRecord::new();
        let error = csv.reader.read_byte_record(&mut record).unwrap_err();
        assert!(error.to_string().contains("is a quote open?"), "{error}");
    }

    #[test]
    fn the_name_of_a_file_says_its_format() {
        assert_eq!(FileFormat::of(Some(Path::new("a/b.CSV"))), FileFormat::Csv);
        assert_eq!(FileFormat::of(Some(Path::new("a/b.ndjson"))), FileFormat::Ndjson);
        assert_eq!(FileFormat::of(None), FileFormat::Ndjson);
    }
}
