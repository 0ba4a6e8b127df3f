//! The types that settings have: each is read from text once and holds only what is valid.
//!
//! File, environment and flags all deliver text, so a value means the same wherever it was
//! written. `Display` gives text that parses back to the same value: `kiln config show` relies on
//! it.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_engine::policy::PolicyKind;

/// A type that a setting can have.
pub(crate) trait Value: Sized + Display {
    /// What a valid text looks like, for the help and for errors.
    const FORM: &'static str;
    /// How the value is written in TOML.
    const TOML: TomlForm = TomlForm::Quoted;
    /// What completion should offer.
    const HINT: clap::ValueHint = clap::ValueHint::Other;

    /// Reads the text, or says what is wrong with it without repeating it.
    fn parse(text: &str) -> Result<Self, String>;
}

/// How a value is written in TOML; reading accepts any scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TomlForm {
    /// A string.
    Quoted,
    /// An integer.
    Integer,
    /// `true` or `false`; as a flag it needs no value.
    Boolean,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

const UNITS: [(u64, &str); 4] =
    [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

impl Value for Bytes {
    const FORM: &'static str = "bytes: 67108864, 64MiB, 64M or 64m (K, M, G, T: powers of 1024)";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split_number(text);
        let number: u64 = number.parse().map_err(|_| format!("expected {}", Self::FORM))?;
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" | "mb" | "gb" | "tb" => {
                return Err(format!("{unit} is read in two ways; write {}iB", &unit[..1]));
            }
            _ => return Err(format!("unknown unit {unit:?}; expected {}", Self::FORM)),
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| "is beyond 2^64 bytes".to_owned())
    }
}

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(size, _)| self.0 != 0 && self.0.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A span of time, in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(pub(crate) Duration);

impl Value for Period {
    const FORM: &'static str = "a duration: 1500ms, 30s, 5m or 1h";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split_number(text);
        let number: u64 = number.parse().map_err(|_| format!("expected {}", Self::FORM))?;
        let factor_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" if number == 0 => 1,
            "" => return Err(format!("needs a unit; expected {}", Self::FORM)),
            _ => return Err(format!("unknown unit {unit:?}; expected {}", Self::FORM)),
        };
        let ms = number.checked_mul(factor_ms).ok_or("is too long")?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1_000) { write!(f, "{}s", ms / 1_000) } else { write!(f, "{ms}ms") }
    }
}

/// A whole number of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Count(pub(crate) usize);

impl Value for Count {
    const FORM: &'static str = "a whole number";
    const TOML: TomlForm = TomlForm::Integer;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("expected {}", Self::FORM))
    }
}

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether something is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Switch(pub(crate) bool);

impl Value for Switch {
    const FORM: &'static str = "true or false";
    const TOML: TomlForm = TomlForm::Boolean;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("expected {}", Self::FORM))
    }
}

impl Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a node: it appears in the ready line, logs and metrics, so it has no spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeName(String);

impl NodeName {
    const LEN_MAX: usize = 63;

    /// The nearest valid name to `text`, or `kiln` when nothing of it is left.
    pub(crate) fn from_lossy(text: &str) -> Self {
        let valid = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name: String = text.chars().filter(valid).take(Self::LEN_MAX).collect();
        if name.is_empty() { Self("kiln".to_owned()) } else { Self(name) }
    }
}

impl Value for NodeName {
    const FORM: &'static str = "1 to 63 of A-Z a-z 0-9 . _ -";

    fn parse(text: &str) -> Result<Self, String> {
        let name = Self::from_lossy(text);
        if name.0 == text { Ok(name) } else { Err(format!("expected {}", Self::FORM)) }
    }
}

impl Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where to listen for TCP connections, if at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    /// The listener is not opened.
    Off,
    /// A host name or address, and a port; 0 takes a free one.
    On {
        /// Without the brackets of an IPv6 address.
        host: String,
        /// 0 takes a free port.
        port: u16,
    },
}

impl Value for Listen {
    const FORM: &'static str = "HOST:PORT, or off; port 0 takes a free one";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let wrong = || format!("expected {}", Self::FORM);
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) => {
                inner
                    .parse::<Ipv6Addr>()
                    .map_err(|_| "not an IPv6 address in brackets".to_owned())?;
                inner
            }
            None if host.contains(':') => {
                return Err(format!("write an IPv6 address in brackets: [{host}]:{port}"));
            }
            None => host,
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(valid) {
            return Err(wrong());
        }
        Ok(Self::On { host: host.to_owned(), port })
    }
}

impl Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On { host, port } if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
                write!(f, "[{host}]:{port}")
            }
            Self::On { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Addresses of nodes to ask, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seeds(Vec<String>);

impl Seeds {
    /// More are of no use: one that answers is enough.
    const MAX: usize = 64;

    /// HOST:PORT each.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.0.clone()
    }
}

impl Value for Seeds {
    const FORM: &'static str = "HOST:PORT, or several with commas between; empty for none";

    fn parse(text: &str) -> Result<Self, String> {
        let mut seeds = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match Listen::parse(part)? {
                Listen::On { port: 1.., .. } => seeds.push(part.to_owned()),
                _ => return Err(format!("{part}: expected {}", Self::FORM)),
            }
        }
        if seeds.len() > Self::MAX {
            return Err(format!("at most {} addresses", Self::MAX));
        }
        Ok(Self(seeds))
    }
}

impl Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// A host name or address, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OptionalHost(Option<String>);

impl OptionalHost {
    /// The host, unless it is off.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl Value for OptionalHost {
    const FORM: &'static str = "a host name or address without port, or off";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let is_address = text.parse::<IpAddr>().is_ok();
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || !(is_address || text.chars().all(valid)) {
            return Err(format!("expected {}", Self::FORM));
        }
        Ok(Self(Some(text.to_owned())))
    }
}

impl Display for OptionalHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get().unwrap_or("off"))
    }
}

/// A failure zone, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zone(String);

impl Value for Zone {
    const FORM: &'static str = "up to 63 of A-Z a-z 0-9 . _ -; empty for none";

    fn parse(text: &str) -> Result<Self, String> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.len() > NodeName::LEN_MAX || !text.chars().all(valid) {
            return Err(format!("expected {}", Self::FORM));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A share relative to those of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight(u32);

impl Weight {
    /// A thousand times the greatest ratio that makes sense between two machines.
    const MILLI_MAX: u32 = 1_000_000;

    /// In thousandths.
    pub(crate) fn milli(self) -> u32 {
        self.0
    }
}

impl Value for Weight {
    const FORM: &'static str = "a number from 0 to 1000, at most three decimals";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected {}", Self::FORM);
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || part.len() > 3 || !digits(whole) || !digits(part) {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let part: u32 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
        let milli = whole.checked_mul(1_000).and_then(|milli| milli.checked_add(part));
        milli.filter(|milli| *milli <= Self::MILLI_MAX).map(Self).ok_or_else(wrong)
    }
}

impl Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1_000, self.0 % 1_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// The path of a file or socket that need not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OptionalPath(Option<PathBuf>);

impl OptionalPath {
    /// The path, unless it is off.
    pub(crate) fn get(&self) -> Option<&Path> {
        self.0.as_deref()
    }
}

impl Value for OptionalPath {
    const FORM: &'static str = "a path, or off";
    const HINT: clap::ValueHint = clap::ValueHint::FilePath;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err(format!("expected {}", Self::FORM)),
            "off" => Ok(Self(None)),
            path => Ok(Self(Some(path.into()))),
        }
    }
}

impl Display for OptionalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("off"),
            Some(path) => path.display().fmt(f),
        }
    }
}

/// Who may use a file, as `chmod` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileMode(pub(crate) u32);

impl Value for FileMode {
    const FORM: &'static str = "octal digits: 0700";

    fn parse(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(Self(mode)),
            _ => Err(format!("expected {}", Self::FORM)),
        }
    }
}

impl Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// The eviction policy of the cache `default`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Eviction(pub(crate) PolicyKind);

impl Value for Eviction {
    const FORM: &'static str = "adaptive, lru, lfu or none";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("expected {}", Self::FORM))
    }
}

impl Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Value for LogFormat {
    const FORM: &'static str = "text or json";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("expected {}", Self::FORM)),
        }
    }
}

impl Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Text { "text" } else { "json" })
    }
}

/// Which log lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    /// The filter in the form that the log takes. The Raft library tells at `info` what others tell
    /// at `debug`: it would drown the node's own lines.
    pub(crate) fn directives(&self) -> Cow<'_, str> {
        match self.0.eq_ignore_ascii_case("info") {
            true => Cow::Borrowed("info,openraft=warn"),
            false => Cow::Borrowed(&self.0),
        }
    }
}

impl Value for LogFilter {
    const FORM: &'static str =
        "error, warn, info, debug, trace or off, or a filter as RUST_LOG has it: info,kiln=debug";

    fn parse(text: &str) -> Result<Self, String> {
        // The filter's own parser takes any word for a target, so a misspelt level would pass.
        let plain = ["error", "warn", "info", "debug", "trace", "off"];
        let a_word = text.chars().all(|c| c.is_ascii_alphanumeric());
        if text.is_empty() || (a_word && !plain.contains(&text.to_ascii_lowercase().as_str())) {
            return Err(format!("expected {}", Self::FORM));
        }
        match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("{error}; expected {}", Self::FORM)),
        }
    }
}

impl Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The leading digits of a text, and the rest without the space between.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_in_every_usual_spelling() {
        for text in ["67108864", "65536K", "64MiB", "64M", "64m", "64 MiB", "64mib", "67108864B"] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(64 << 20)), "{text}");
        }
        assert_eq!(Bytes::parse("1g"), Ok(Bytes(1 << 30)));
        assert_eq!(Bytes::parse("2TiB"), Ok(Bytes(2 << 40)));
    }

    #[test]
    fn a_size_that_can_be_misread_is_refused() {
        for text in [
            "",
            "MiB",
            "-1",
            "+1",
            "1.5G",
            "64MB",
            "64 M M",
            "64x",
            "18446744073709551616",
            "17179869184G",
        ] {
            assert!(Bytes::parse(text).is_err(), "{text}");
        }
        assert_eq!(Bytes::parse("64MB").unwrap_err(), "MB is read in two ways; write MiB");
    }

    #[test]
    fn a_duration_has_a_unit_unless_it_is_zero() {
        let ms = |n| Ok(Period(Duration::from_millis(n)));
        assert_eq!(Period::parse("1500ms"), ms(1_500));
        assert_eq!(Period::parse("30s"), ms(30_000));
        assert_eq!(Period::parse("5m"), ms(300_000));
        assert_eq!(Period::parse("1h"), ms(3_600_000));
        assert_eq!(Period::parse("0"), ms(0));
        for text in [
            "30",
            "s",
            "",
            "1.5s",
            "-1s",
            "30 sec",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(Period::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_parses_back_to_the_same_value() {
        fn check<T: Value + PartialEq + fmt::Debug>(texts: &[&str]) {
            for text in texts {
                let value = T::parse(text).unwrap();
                assert_eq!(T::parse(&value.to_string()), Ok(value), "{text}");
            }
        }
        check::<Bytes>(&["0", "1", "1023", "1024", "1536", "64m", "3g"]);
        check::<Period>(&["0", "1ms", "1500ms", "60s", "5m"]);
        check::<Listen>(&["off", "127.0.0.1:0", "[::1]:11211", "localhost:1"]);
        check::<FileMode>(&["0", "700", "0777"]);
        check::<OptionalPath>(&["off", "/run/kiln.sock"]);
        check::<LogFilter>(&["info", "info,kiln=debug"]);
    }

    #[test]
    fn a_listener_needs_a_host_and_a_port() {
        for text in
            ["", "11211", ":11211", "host", "host:", "host:65536", "::1:11211", "[x]:1", "a b:1"]
        {
            assert!(Listen::parse(text).is_err(), "{text}");
        }
        assert!(Listen::parse("::1:11211").unwrap_err().contains("[::1]:11211"));
    }

    #[test]
    fn a_misspelt_log_level_is_refused() {
        assert!(LogFilter::parse("inof").is_err());
        assert!(LogFilter::parse("kiln=loud").is_err());
    }

    #[test]
    fn every_eviction_policy_is_offered_by_name() {
        for kind in PolicyKind::ALL {
            assert_eq!(Eviction::parse(kind.name()), Ok(Eviction(kind)));
            assert!(Eviction::FORM.contains(kind.name()));
        }
        assert!(Eviction::parse("fifo").is_err());
    }

    #[test]
    fn a_host_name_becomes_a_valid_node_name() {
        assert_eq!(NodeName::from_lossy("my host\n").to_string(), "myhost");
        assert_eq!(NodeName::from_lossy("***").to_string(), "kiln");
        assert!(NodeName::parse("my host").is_err());
        assert!(NodeName::parse(&"a".repeat(64)).is_err());
    }
}
