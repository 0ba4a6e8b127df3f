//! The settings of a node, each defined once.
//!
//! The table below is the only place that names a setting: the struct, the flags, the variables,
//! the file's keys, `kiln config show`, the sample file and the help all come from it, so they
//! cannot drift apart. What a value must look like is its type's business (`value.rs`); where it
//! comes from and which source wins is `load.rs`.
//!
//! Always true of a [`Config`]: every value is within its range, and the values fit together.

mod caches;
mod default;
mod load;
mod show;
mod streams;
mod value;

use clap::ValueHint;
use kiln_engine::policy::PolicyKind;

pub(crate) use default::host_name;
pub(crate) use load::{ConfigError, Loaded, Origin, Sources};
pub(crate) use show::{render_effective, render_sample};
pub(crate) use value::{
    Bytes, Count, Eviction, FileMode, Listen, LogFilter, LogFormat, NodeName, OptionalHost,
    OptionalPath, Period, Seeds, Switch, TomlForm, Value, Weight, Zone,
};

/// What is known of a setting beside its value.
pub(crate) struct Setting {
    /// The key in the file; the flag and the variable derive from it.
    pub(crate) key: &'static str,
    /// The heading it stands under.
    pub(crate) group: &'static str,
    /// What it does, as written in the table.
    doc: &'static str,
    /// What stands for the value in the help.
    pub(crate) placeholder: &'static str,
    /// What a valid text looks like.
    form: &'static str,
    /// Used when no source says anything.
    pub(crate) default: Fallback,
    /// Smallest and largest value.
    range: Option<(&'static str, &'static str)>,
    /// How the value is written in a file.
    pub(crate) toml: TomlForm,
    /// What completion offers.
    pub(crate) hint: ValueHint,
    /// Reads a text and gives it back in its canonical form.
    pub(crate) check: fn(&str) -> Result<String, String>,
}

/// The value of a setting that nobody set.
pub(crate) enum Fallback {
    /// Always this text.
    Fixed(&'static str),
    /// Found out at start: how, an example of it, and the way.
    Found(&'static str, &'static str, fn() -> String),
}

impl Setting {
    /// `--like-this`, without the dashes.
    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// `KILN_LIKE_THIS`.
    pub(crate) fn variable(&self) -> String {
        format!("{}{}", load::VARIABLE_PREFIX, self.key.to_ascii_uppercase())
    }

    /// What it does, in one line.
    pub(crate) fn description(&self) -> String {
        self.doc.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// What a value may be.
    pub(crate) fn allowed(&self) -> String {
        match self.range {
            Some((low, high)) => format!("{}; {low} to {high}", self.form),
            None => self.form.to_owned(),
        }
    }

    /// The default as the help shows it.
    pub(crate) fn default_shown(&self) -> &'static str {
        match self.default {
            Fallback::Fixed(text) | Fallback::Found(text, ..) => text,
        }
    }
}

/// Reads `text` and holds it against the range.
fn parse_within<T: Value + PartialOrd>(text: &str, low: &str, high: &str) -> Result<T, String> {
    let value = T::parse(text)?;
    if value < T::parse(low)? || value > T::parse(high)? {
        return Err(format!("must be {low} to {high}"));
    }
    Ok(value)
}

macro_rules! settings {
    ($($group:literal { $(
        $(#[doc = $doc:literal])+
        $key:ident: $type:ident = $default:expr, $placeholder:literal $(, $low:literal ..= $high:literal)?;
    )+ })+) => {
        /// Every setting, checked.
        #[derive(Clone, Debug)]
        pub(crate) struct Config {$($(
            $(#[doc = $doc])+
            pub(crate) $key: $type,
        )+)+}

        /// Every setting, in the order of help and files.
        pub(crate) static SETTINGS: &[Setting] = &[$($(Setting {
            key: stringify!($key),
            group: $group,
            doc: concat!($($doc, "\n"),+),
            placeholder: $placeholder,
            form: <$type as Value>::FORM,
            default: $default,
            range: settings!(@range $($low, $high)?),
            toml: <$type as Value>::TOML,
            hint: <$type as Value>::HINT,
            check: |text| settings!(@parse $type, text $(, $low, $high)?).map(|v| v.to_string()),
        }),+),+];

        impl Config {
            /// Builds the settings from one text each, in the order of [`SETTINGS`].
            fn from_texts(mut next: impl FnMut() -> String) -> Result<Self, String> {
                Ok(Self {$($(
                    $key: settings!(@parse $type, &next() $(, $low, $high)?)?,
                )+)+})
            }
        }
    };
    (@parse $type:ty, $text:expr) => { <$type>::parse($text) };
    (@parse $type:ty, $text:expr, $low:literal, $high:literal) => {
        parse_within::<$type>($text, $low, $high)
    };
    (@range) => { None };
    (@range $low:literal, $high:literal) => { Some(($low, $high)) };
}

use Fallback::{Fixed, Found};

settings! {
    "Node" {
        /// Name of this node in the ready line, logs and metrics.
        name: NodeName = Found("the host's name", "kiln-1", default::host_name), "NAME";
        /// Ceiling for items, index and everything else that grows with the data. When it is
        /// reached, the eviction policy decides what happens.
        memory: Bytes = Found("512MiB, or half of the cgroup's limit if that is less", "512MiB", default::memory),
            "SIZE", "4MiB"..="64TiB";
        /// Worker threads. Each serves its own connections.
        threads: Count = Found("the processors this process may use", "2", default::threads), "N", "1"..="256";
    }
    "Listeners" {
        /// Where memcached clients connect.
        listen_memcached: Listen = Fixed("127.0.0.1:11211"), "HOST:PORT";
        /// Unix socket for memcached clients on this host.
        listen_memcached_unix: OptionalPath = Fixed("off"), "PATH";
        /// Who may connect to the Unix socket.
        unix_socket_mode: FileMode = Fixed("0700"), "MODE";
        /// Where HTTP clients connect: items, caches, health checks, metrics and the dashboard.
        listen_http: Listen = Fixed("127.0.0.1:7380"), "HOST:PORT";
        /// Where Kiln's own clients connect.
        listen_native: Listen = Fixed("127.0.0.1:7311"), "HOST:PORT";
        /// Where other nodes connect. Off makes a node that stays alone.
        listen_peer: Listen = Fixed("127.0.0.1:7312"), "HOST:PORT";
        /// Where sensor readings come in as lines; 127.0.0.1:7313 when the file has streams and
        /// nothing is said here.
        listen_ingest: Listen = Fixed("off"), "HOST:PORT";
    }
    "Cluster" {
        /// Nodes of the cluster to join, at their peer addresses; names are resolved anew each
        /// time. Empty makes a cluster of this node.
        join: Seeds = Fixed(""), "HOST:PORT,...";
        /// Host name or address under which others reach this node; off takes the address it
        /// listens on.
        advertise: OptionalHost = Fixed("off"), "HOST";
        /// Failure zone: copies of an item go to different zones where there are enough. Empty
        /// means none.
        zone: Zone = Fixed(""), "NAME";
        /// Share of the items relative to other nodes. 0 makes a gateway that holds none.
        weight: Weight = Fixed("1"), "NUMBER";
        /// Only vote on who owns what; hold no items.
        witness: Switch = Fixed("false"), "BOOL";
        /// Copies of each item of the cache default, on as many nodes as there are.
        replicas: Count = Fixed("2"), "N", "1"..="8";
        /// Directory where the node keeps who it is and what the cluster agreed on; off keeps it
        /// in memory, and a restart makes a new node.
        data_dir: OptionalPath = Fixed("off"), "DIR";
    }
    "Cache" {
        /// What leaves when memory is full: what the keys' use so far suggests (adaptive), the
        /// least recently used, the least frequently used, or nothing (writes are refused then).
        eviction: Eviction = Fixed(PolicyKind::DEFAULT.name()), "POLICY";
        /// Longest value. At most half of the memory.
        max_item_size: Bytes = Fixed("1MiB"), "SIZE", "1KiB"..="64MiB";
        /// Refuse flush_all, so that one client cannot empty the cache for all.
        disable_flush: Switch = Fixed("false"), "BOOL";
    }
    "Clients" {
        /// Connections of memcached and native clients over all listeners. One more is told so and
        /// closed.
        max_connections: Count = Fixed("4096"), "N", "1"..="1000000";
        /// HTTP connections. When there are so many, the one at rest for longest gives way to one more.
        max_http_connections: Count = Fixed("4096"), "N", "1"..="1000000";
        /// Time for an HTTP client to send a request's head, and again for its body.
        http_request_timeout: Period = Fixed("60s"), "TIME", "1s"..="1h";
        /// Close a connection that sent no request for this long; 0s never does.
        idle_timeout: Period = Fixed("0s"), "TIME", "0s"..="365d";
        /// Replies kept for one client. When they are more, its further requests wait until it has
        /// taken them.
        output_buffer_max: Bytes = Fixed("256KiB"), "SIZE", "16KiB"..="1GiB";
        /// File with lines user:password; clients must then authenticate first. Not for the eyes
        /// of other users: chmod 600.
        auth_file: OptionalPath = Fixed("off"), "FILE";
        /// Allow clients to stop the node with the command shutdown.
        enable_shutdown: Switch = Fixed("false"), "BOOL";
        /// Let viewers of the dashboard look through keys and values.
        dashboard_keys: Switch = Fixed("true"), "BOOL";
    }
    "Process" {
        /// Time for connections to finish what is in flight after SIGTERM; then they are cut.
        shutdown_grace: Period = Fixed("25s"), "TIME", "0s"..="1h";
        /// File to keep the process id in while the node runs.
        pid_file: OptionalPath = Fixed("off"), "FILE";
        /// Shape of the log lines on standard error.
        log_format: LogFormat = Fixed("text"), "FORMAT";
        /// Which log lines are written.
        log_level: LogFilter = Fixed("info"), "FILTER";
    }
}

impl Config {
    /// What is wrong between settings that are right one by one.
    fn conflicts(&self) -> Vec<String> {
        let mut conflicts = Vec::new();
        if self.max_item_size.0 > self.memory.0 / 2 {
            conflicts.push(format!(
                "max_item_size {} is more than half of memory {}: raise memory or lower max_item_size",
                self.max_item_size, self.memory
            ));
        }
        if self.listen_memcached == Listen::Off
            && self.listen_memcached_unix.get().is_none()
            && self.listen_native == Listen::Off
        {
            conflicts.push(
                "no client could connect: listen_memcached, listen_memcached_unix and \
                 listen_native are all off"
                    .to_owned(),
            );
        }
        if self.listen_peer == Listen::Off && !self.join.addresses().is_empty() {
            conflicts.push(
                "join needs a peer listener: set listen_peer to an address that the other nodes \
                 can reach"
                    .to_owned(),
            );
        }
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_every_bound_is_a_valid_value() {
        for setting in SETTINGS {
            let default = match setting.default {
                Fixed(text) => text.to_owned(),
                Found(_, _, find) => find(),
            };
            assert_eq!((setting.check)(&default).as_ref(), Ok(&default), "{}", setting.key);
            for bound in setting.range.into_iter().flat_map(|(low, high)| [low, high]) {
                assert!((setting.check)(bound).is_ok(), "{}: {bound}", setting.key);
            }
        }
    }

    #[test]
    fn a_value_outside_its_range_is_refused() {
        let setting = |key| SETTINGS.iter().find(|s| s.key == key).unwrap();
        assert_eq!((setting("threads").check)("0").unwrap_err(), "must be 1 to 256");
        assert_eq!((setting("max_item_size").check)("65MiB").unwrap_err(), "must be 1KiB to 64MiB");
    }

    #[test]
    fn the_least_memory_is_what_the_store_needs() {
        let memory = SETTINGS.iter().find(|s| s.key == "memory").unwrap();
        let least = Bytes::parse(memory.range.unwrap().0).unwrap();
        assert_eq!(least.0, kiln_engine::MEMORY_MIN as u64);
    }

    #[test]
    fn every_key_flag_and_variable_has_one_spelling() {
        for setting in SETTINGS {
            assert!(setting.key.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            assert_eq!(setting.flag().replace('-', "_"), setting.key);
            assert!(setting.description().ends_with('.'), "{}", setting.key);
        }
        assert_eq!(
            SETTINGS.iter().find(|s| s.key == "pid_file").unwrap().variable(),
            "KILN_PID_FILE"
        );
    }
}
