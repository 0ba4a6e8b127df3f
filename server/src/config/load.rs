//! Where settings come from: default < file < `KILN_*` environment < flag.
//!
//! Every mistake in every source is reported at once, each with its place, so that one run of
//! `kiln config check` is enough. A misspelt name is an error and never ignored: a cache that
//! silently runs without its limit is worse than one that does not start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::{Spanned, de::DeValue};

use kiln_protocol::native::admin::CacheSpec;

use super::{Config, Fallback, SETTINGS, Setting, caches, streams};

pub(super) const VARIABLE_PREFIX: &str = "KILN_";

/// Names the file instead of `--config`.
pub(crate) const CONFIG_VARIABLE: &str = "KILN_CONFIG";

/// Tell the commands that use a cluster where it is and who asks; no settings of a node.
const CLIENT_VARIABLES: [&str; 4] =
    ["KILN_ADDRESS", "KILN_HTTP", "KILN_USER", "KILN_PASSWORD_FILE"];

/// Where lines come in on a node whose file has streams and says nothing else.
const INGEST_WITH_STREAMS: &str = "127.0.0.1:7313";

/// A configuration file is small; something larger is the wrong file.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Everything that can name a setting.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// The file given by flag.
    pub(crate) file: Option<PathBuf>,
    /// The process's environment.
    pub(crate) environment: Vec<(String, String)>,
    /// Flags given, by key.
    pub(crate) flags: Vec<(&'static str, String)>,
}

/// Which source won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File {
        /// Counted from 1.
        line: usize,
    },
    /// A variable.
    Environment,
    /// The command line.
    Flag,
}

/// Settings, and where each came from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Caches that the file asks for.
    pub(crate) caches: Vec<CacheSpec>,
    /// Streams that the file asks for: name and definition, in JSON.
    pub(crate) streams: Vec<(String, String)>,
    /// Canonical text and origin of each setting, in the order of [`SETTINGS`].
    pub(crate) texts: Vec<(String, Origin)>,
}

/// Why the settings cannot be used. The node did not start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ConfigError {
    #[error("{path}: {reason}", path = path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{place}: not TOML: {reason}")]
    Syntax { place: String, reason: String },
    #[error("{place}: unknown setting `{name}`{}", suggest(suggestion.as_deref()))]
    Unknown { place: String, name: String, suggestion: Option<String> },
    #[error("{place}: {key}: {reason}")]
    Invalid { place: String, key: String, reason: String },
    #[error("{0}")]
    Conflict(String),
}

fn suggest(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

impl Sources {
    /// The environment of this process, with flags and file as given.
    pub(crate) fn of_process(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Self {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(k, v)| (text(k), text(v))).collect();
        Self { file, environment, flags }
    }

    /// The file to read, by flag or variable.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let by_variable = || {
            let variable = self.environment.iter().find(|(name, _)| name == CONFIG_VARIABLE);
            variable.map(|(_, path)| path).filter(|path| !path.is_empty()).map(PathBuf::from)
        };
        self.file.clone().or_else(by_variable)
    }

    /// Reads all sources, or reports all that is wrong in them.
    pub(crate) fn load(&self) -> Result<Loaded, Vec<ConfigError>> {
        let file = self.file();
        let mut layers = Layers::default();
        if let Some(path) = &file {
            layers.add_file(path);
        }
        layers.add_environment(&self.environment);
        layers.add_flags(&self.flags);
        let wanted = std::mem::take(&mut layers.caches);
        let streams = std::mem::take(&mut layers.streams);
        let mut texts = layers.finish()?;
        if !streams.is_empty()
            && let Some((text, Origin::Default)) =
                find("listen_ingest").and_then(|index| texts.get_mut(index))
        {
            INGEST_WITH_STREAMS.clone_into(text);
        }

        let mut values = texts.iter().map(|(text, _)| text.clone());
        let config = Config::from_texts(|| values.next().unwrap_or_default())
            .map_err(|reason| vec![ConfigError::Conflict(reason)])?;
        let mut conflicts = config.conflicts();
        let limit = config.max_item_size.0;
        let too_large = wanted.iter().filter(|cache| cache.max_item_size > limit);
        conflicts.extend(too_large.map(|cache| {
            format!(
                "caches.{}.max_item_size is over the node's max_item_size {}",
                cache.name, config.max_item_size
            )
        }));
        if conflicts.is_empty() {
            Ok(Loaded { config, file, caches: wanted, streams, texts })
        } else {
            Err(conflicts.into_iter().map(ConfigError::Conflict).collect())
        }
    }
}

/// The best text so far of each setting, and all mistakes so far.
struct Layers {
    texts: Vec<Option<(String, Origin)>>,
    caches: Vec<CacheSpec>,
    streams: Vec<(String, String)>,
    errors: Vec<ConfigError>,
}

impl Default for Layers {
    fn default() -> Self {
        Self {
            texts: vec![None; SETTINGS.len()],
            caches: Vec::new(),
            streams: Vec::new(),
            errors: Vec::new(),
        }
    }
}

impl Layers {
    fn add_file(&mut self, path: &Path) {
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(reason) => {
                self.errors.push(ConfigError::Unreadable { path: path.into(), reason });
                return;
            }
        };
        let place = |at: usize| {
            let (line, column) = line_and_column(&text, at);
            (line, format!("{}:{line}:{column}", path.display()))
        };
        let table = match toml::de::DeTable::parse(&text) {
            Ok(table) => table,
            Err(error) => {
                let (_, place) = place(error.span().map_or(0, |span| span.start));
                let reason = error.message().replace('\n', ", ");
                self.errors.push(ConfigError::Syntax { place, reason });
                return;
            }
        };
        // In the order of the file, whatever order the parser keeps.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let (line, key_place) = place(key.span().start);
            if key.get_ref() == caches::TABLE {
                let mut wrong = Vec::new();
                self.caches = caches::read(value, &mut wrong);
                self.errors.extend(wrong.into_iter().map(|wrong| {
                    let (_, place) = place(wrong.at);
                    match wrong.unknown {
                        Some(suggestion) => ConfigError::Unknown {
                            place,
                            name: wrong.key,
                            suggestion: suggestion.map(str::to_owned),
                        },
                        None => {
                            ConfigError::Invalid { place, key: wrong.key, reason: wrong.reason }
                        }
                    }
                }));
                continue;
            }
            if key.get_ref() == streams::TABLE {
                match streams::read(value) {
                    Ok(streams) => self.streams = streams,
                    Err(wrong) => self.errors.extend(wrong.into_iter().map(|wrong| {
                        let (_, place) = place(wrong.at);
                        ConfigError::Invalid { place, key: wrong.key, reason: wrong.reason }
                    })),
                }
                continue;
            }
            match scalar_text(value) {
                Some(text) => self.add(key.get_ref(), &key_place, text, Origin::File { line }),
                None if find(key.get_ref()).is_none() => self.unknown(key.get_ref(), key_place),
                None => self.errors.push(ConfigError::Invalid {
                    place: place(value.span().start).1,
                    key: key.get_ref().to_string(),
                    reason: format!("expected one value, found {}", value.get_ref().type_str()),
                }),
            }
        }
    }

    fn add_environment(&mut self, environment: &[(String, String)]) {
        for (name, value) in environment {
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            let elsewhere = name == CONFIG_VARIABLE || CLIENT_VARIABLES.contains(&name.as_str());
            if elsewhere || is_service_link(name, value) {
                continue;
            }
            let key = rest.to_ascii_lowercase();
            // A variable in small letters is not ours to guess at.
            if find(&key).is_some() && rest == rest.to_ascii_uppercase() {
                self.add(&key, name, value.clone(), Origin::Environment);
            } else {
                let suggestion = nearest(&key).map(Setting::variable).or_else(|| {
                    (strsim::levenshtein(&key, "config") <= 2).then(|| CONFIG_VARIABLE.into())
                });
                self.errors.push(ConfigError::Unknown {
                    place: "environment".to_owned(),
                    name: name.clone(),
                    suggestion,
                });
            }
        }
    }

    fn add_flags(&mut self, flags: &[(&'static str, String)]) {
        for (key, value) in flags {
            let place = format!("--{}", key.replace('_', "-"));
            self.add(key, &place, value.clone(), Origin::Flag);
        }
    }

    fn add(&mut self, key: &str, place: &str, text: String, origin: Origin) {
        let Some(index) = find(key) else {
            self.unknown(key, place.to_owned());
            return;
        };
        match (SETTINGS[index].check)(&text) {
            Ok(canonical) => self.texts[index] = Some((canonical, origin)),
            Err(reason) => self.errors.push(ConfigError::Invalid {
                place: place.to_owned(),
                key: key.to_owned(),
                reason: format!("{text:?}: {reason}"),
            }),
        }
    }

    fn unknown(&mut self, key: &str, place: String) {
        let suggestion = nearest(key).map(|setting| setting.key.to_owned());
        self.errors.push(ConfigError::Unknown { place, name: key.to_owned(), suggestion });
    }

    fn finish(self) -> Result<Vec<(String, Origin)>, Vec<ConfigError>> {
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        let fallback = |setting: &Setting| match setting.default {
            Fallback::Fixed(text) => text.to_owned(),
            Fallback::Found(_, _, find) => find(),
        };
        let texts = self.texts.into_iter().zip(SETTINGS);
        Ok(texts.map(|(text, s)| text.unwrap_or_else(|| (fallback(s), Origin::Default))).collect())
    }
}

fn find(key: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.key == key)
}

/// The setting that was probably meant. Dashes for underscores are the commonest mistake.
fn nearest(name: &str) -> Option<&'static Setting> {
    let name: String = name.chars().take(64).collect::<String>().to_lowercase().replace('-', "_");
    SETTINGS
        .iter()
        .map(|setting| (strsim::jaro_winkler(&name, setting.key), setting))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, setting)| setting)
}

/// Variables that Kubernetes sets in every pod when a service is called `kiln` or `kiln-…`:
/// nobody wrote them, so they are no misspelt settings.
fn is_service_link(name: &str, value: &str) -> bool {
    let of_protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || (name.contains("_PORT_") && of_protocol)
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let describe = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        _ => error.to_string(),
    };
    if fs::metadata(path).map_err(describe)?.len() > FILE_LEN_MAX {
        return Err("larger than 1MiB: not a configuration file".to_owned());
    }
    fs::read_to_string(path).map_err(describe)
}

pub(super) fn scalar_text(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(on) => Some(on.to_string()),
        _ => None,
    }
}

/// Counted from 1; columns in characters.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn sources(
        file: Option<&Path>,
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Sources {
        Sources {
            file: file.map(Into::into),
            environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            flags: flags.iter().map(|(k, v)| (*k, (*v).into())).collect(),
        }
    }

    fn messages(sources: &Sources) -> Vec<String> {
        sources.load().unwrap_err().iter().map(ToString::to_string).collect()
    }

    fn text_and_origin(loaded: &Loaded, key: &str) -> (String, Origin) {
        loaded.texts[find(key).unwrap()].clone()
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let file = file("threads = 2\nmax_connections = 20\nmemory = \"20MiB\"\n");
        let env = [("KILN_MAX_CONNECTIONS", "30"), ("KILN_MEMORY", "30m"), ("HOME", "/")];
        let loaded = sources(Some(file.path()), &env, &[("memory", "40m")]).load().unwrap();

        assert_eq!(text_and_origin(&loaded, "memory"), ("40MiB".into(), Origin::Flag));
        assert_eq!(text_and_origin(&loaded, "max_connections"), ("30".into(), Origin::Environment));
        assert_eq!(text_and_origin(&loaded, "threads"), ("2".into(), Origin::File { line: 1 }));
        assert_eq!(text_and_origin(&loaded, "idle_timeout"), ("0s".into(), Origin::Default));
        assert_eq!(loaded.config.memory.0, 40 << 20);
        assert_eq!(loaded.config.max_connections.0, 30);
        assert_eq!(loaded.config.threads.0, 2);
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_with_its_place_and_a_suggestion() {
        let file = file("threads = 2\n  memmory = \"1g\"\nlisten-http = \"off\"\nzebra = [1]\n");
        let at = file.path().display();

        assert_eq!(
            messages(&sources(Some(file.path()), &[], &[])),
            [
                format!("{at}:2:3: unknown setting `memmory`; did you mean `memory`?"),
                format!("{at}:3:1: unknown setting `listen-http`; did you mean `listen_http`?"),
                format!("{at}:4:1: unknown setting `zebra`"),
            ]
        );
    }

    #[test]
    fn an_unknown_variable_is_refused_with_a_suggestion() {
        let env =
            [("KILN_MEMORI", "1g"), ("KILN_CONFG", "x"), ("KILN_memory", "1g"), ("KILNED", "x")];
        assert_eq!(
            messages(&sources(None, &env, &[])),
            [
                "environment: unknown setting `KILN_MEMORI`; did you mean `KILN_MEMORY`?",
                "environment: unknown setting `KILN_CONFG`; did you mean `KILN_CONFIG`?",
                "environment: unknown setting `KILN_memory`; did you mean `KILN_MEMORY`?",
            ]
        );
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_named_kiln_are_no_settings() {
        let env = [
            ("KILN_SERVICE_HOST", "10.0.0.1"),
            ("KILN_SERVICE_PORT", "11211"),
            ("KILN_SERVICE_PORT_MEMCACHED", "11211"),
            ("KILN_PORT", "tcp://10.0.0.1:11211"),
            ("KILN_PORT_11211_TCP", "tcp://10.0.0.1:11211"),
            ("KILN_PORT_11211_TCP_PROTO", "tcp"),
            ("KILN_PORT_11211_TCP_PORT", "11211"),
            ("KILN_PORT_11211_TCP_ADDR", "10.0.0.1"),
            ("KILN_HEADLESS_SERVICE_HOST", "10.0.0.1"),
            ("KILN_HEADLESS_PORT_7380_TCP", "tcp://10.0.0.1:7380"),
        ];
        assert!(sources(None, &env, &[]).load().is_ok());
        assert_eq!(
            messages(&sources(None, &[("KILN_PORTS", "1"), ("KILN_HTTP_PORT", "1")], &[])).len(),
            2
        );
    }

    #[test]
    fn a_bad_value_names_the_place_the_text_and_what_is_expected() {
        let file = file("idle_timeout = 30\nthreads = [1]\n");
        let at = file.path().display();
        assert_eq!(
            messages(&sources(Some(file.path()), &[("KILN_THREADS", "0")], &[])),
            [
                format!(
                    "{at}:1:1: idle_timeout: \"30\": needs a unit; expected a duration: 1500ms, 30s, 5m or 1h"
                ),
                format!("{at}:2:11: threads: expected one value, found array"),
                "KILN_THREADS: threads: \"0\": must be 1 to 256".to_owned(),
            ]
        );
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused_with_line_and_column() {
        let file = file("threads = 2\nmemory = = 3\n");
        let message = messages(&sources(Some(file.path()), &[], &[])).remove(0);
        assert!(
            message.starts_with(&format!("{}:2:10: not TOML: ", file.path().display())),
            "{message}"
        );
    }

    #[test]
    fn a_missing_file_is_an_error_whether_flag_or_variable_named_it() {
        let missing = Path::new("/nowhere/kiln.toml");
        let expected = ["/nowhere/kiln.toml: no such file"];
        assert_eq!(messages(&sources(Some(missing), &[], &[])), expected);
        assert_eq!(
            messages(&sources(None, &[("KILN_CONFIG", "/nowhere/kiln.toml")], &[])),
            expected
        );
    }

    #[test]
    fn caches_of_a_file_are_read_with_their_units_and_refused_with_their_place() {
        let good =
            file("[caches.users]\nmemory = \"8m\"\ndefault_ttl = \"2s\"\n[caches.\"a.b\"]\n");
        let loaded = sources(Some(good.path()), &[], &[]).load().unwrap();
        let names: Vec<_> = loaded.caches.iter().map(|cache| cache.name.as_str()).collect();
        assert_eq!(names, ["a.b", "users"]);
        let users = &loaded.caches[1];
        assert_eq!((users.memory, users.default_ttl_ms, users.copies), (8 << 20, 2_000, 1));

        let bad = file(
            "[caches.users]\nmemori = 1\nmemory = \"x\"\n[caches.\"a b\"]\n[caches.default]\n\
             [caches.two]\ncopies = 9\n",
        );
        let at = bad.path().display();
        let found = messages(&sources(Some(bad.path()), &[], &[]));
        for expected in [
            format!("{at}:2:1: unknown setting `caches.users.memori`; did you mean `memory`?"),
            format!("{at}:3:1: caches.users.memory: expected bytes"),
            format!("{at}:4:9: caches.a b: a name is 1 to 64"),
            format!("{at}:5:9: caches.default: the settings of the node"),
            format!("{at}:6:9: caches.two: copies must be 1 to 8"),
        ] {
            assert!(
                found.iter().any(|line| line.starts_with(&expected)),
                "{expected} in {found:#?}"
            );
        }
        assert_eq!(found.len(), 5);

        let large = file("max_item_size = \"1m\"\n[caches.users]\nmax_item_size = \"2m\"\n");
        assert!(messages(&sources(Some(large.path()), &[], &[]))[0].contains("caches.users"));
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let too_large = sources(None, &[], &[("memory", "8m"), ("max_item_size", "5m")]);
        assert!(messages(&too_large)[0].contains("more than half of memory"));
        let deaf = sources(None, &[], &[("listen_memcached", "off"), ("listen_native", "off")]);
        assert!(messages(&deaf)[0].contains("no client could connect"));
    }
}
