//! Where a cluster is, as one line of text: `kiln://host:port,host:port/cache`.
//!
//! The hosts are only a way in: the first that answers tells of the others. Passwords have no
//! place in an address, which ends up in logs and process lists.

use std::{fmt, str::FromStr};

/// The port of the native protocol where an address names none.
pub const PORT: u16 = 7311;

/// Most hosts in an address.
pub const HOSTS_MAX: usize = 64;

/// The cache where an address names none.
pub const DEFAULT_CACHE: &str = "default";

/// A parsed address.
///
/// ```
/// let address: kiln_client::Address = "kiln://one:7311,two/sessions".parse()?;
/// assert_eq!(address.hosts(), ["one:7311", "two:7311"]);
/// assert_eq!(address.cache(), "sessions");
/// # Ok::<(), kiln_client::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    hosts: Vec<String>,
    cache: String,
}

impl Address {
    /// The hosts, each with its port.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The cache that the client's own operations go to; `default` when the address names none.
    pub fn cache(&self) -> &str {
        &self.cache
    }
}

impl Default for Address {
    /// A node on this machine with its usual port.
    fn default() -> Self {
        Self { hosts: vec![format!("127.0.0.1:{PORT}")], cache: DEFAULT_CACHE.to_owned() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kiln://{}", self.hosts.join(","))?;
        if self.cache == DEFAULT_CACHE { Ok(()) } else { write!(f, "/{}", self.cache) }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It begins with a scheme other than `kiln://`.
    #[error("unknown scheme {scheme:?}, an address is kiln://host:port,host:port/cache")]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// It contains a user or password.
    #[error("credentials do not belong into an address: give them to the builder")]
    Credentials,
    /// A host is empty or has characters that no host has.
    #[error("{host:?} is no host:port")]
    Host {
        /// The host.
        host: String,
    },
    /// A port is no number from 1 to 65535.
    #[error("{port:?} is no port, that is a number from 1 to 65535")]
    Port {
        /// The port.
        port: String,
    },
    /// There are too many hosts.
    #[error("{count} hosts, at most {HOSTS_MAX} are used: a few are enough as a way in")]
    TooManyHosts {
        /// How many there are.
        count: usize,
    },
    /// The cache's name is none.
    #[error(
        "{name:?} is no name of a cache: 1 to 64 of a-z A-Z 0-9 . _ -, first a letter or a digit"
    )]
    Cache {
        /// The name.
        name: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = match text.split_once("://") {
            Some(("kiln", rest)) => rest,
            Some((scheme, _)) => return Err(AddressError::Scheme { scheme: scheme.to_owned() }),
            None => text,
        };
        let (hosts, cache) = match rest.split_once('/') {
            Some((hosts, "")) => (hosts, DEFAULT_CACHE),
            Some((hosts, cache)) => (hosts, cache),
            None => (rest, DEFAULT_CACHE),
        };
        if hosts.contains('@') {
            return Err(AddressError::Credentials);
        }
        let count = hosts.split(',').count();
        if count > HOSTS_MAX {
            return Err(AddressError::TooManyHosts { count });
        }
        let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        check_cache_name(cache)?;
        Ok(Self { hosts, cache: cache.to_owned() })
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`, with the port in the end.
fn host(text: &str) -> Result<String, AddressError> {
    let wrong = || AddressError::Host { host: text.to_owned() };
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inner, after) = rest.split_once(']').ok_or_else(wrong)?;
            inner.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or_else(wrong)?),
            };
            (&text[..inner.len() + 2], port)
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || !(name.starts_with('[') || name.chars().all(is_name)) {
        return Err(wrong());
    }
    let port = match port {
        None => PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(AddressError::Port { port: port.to_owned() }),
        },
    };
    Ok(format!("{name}:{port}"))
}

/// The rule for names of caches, the same as the nodes'.
pub(crate) fn check_cache_name(name: &str) -> Result<(), AddressError> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(AddressError::Cache { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    #[test]
    fn an_address_names_hosts_and_a_cache() {
        let address = parse("kiln://a:1,b-2.example:65535,[::1]:9/s.1").unwrap();

        assert_eq!(address.hosts(), ["a:1", "b-2.example:65535", "[::1]:9"]);
        assert_eq!(address.cache(), "s.1");
        assert_eq!(parse(&address.to_string()), Ok(address));
    }

    #[test]
    fn port_and_cache_have_defaults_and_the_scheme_may_be_left_out() {
        for text in ["kiln://h", "kiln://h/", "h", "h:7311/default"] {
            let address = parse(text).unwrap();
            assert_eq!(address.hosts(), ["h:7311"], "{text}");
            assert_eq!(address.cache(), "default", "{text}");
        }
        assert_eq!(parse("[::1]").unwrap().hosts(), ["[::1]:7311"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let host = |host: &str| Err(AddressError::Host { host: host.to_owned() });
        let port = |port: &str| Err(AddressError::Port { port: port.to_owned() });

        assert_eq!(parse(""), host(""));
        assert_eq!(parse("a,,b"), host(""));
        assert_eq!(parse("a b"), host("a b"));
        assert_eq!(parse("[::1"), host("[::1"));
        assert_eq!(parse("[::g]:1"), host("[::g]:1"));
        assert_eq!(parse("[::1]1"), host("[::1]1"));
        assert_eq!(parse("a:0"), port("0"));
        assert_eq!(parse("a:65536"), port("65536"));
        assert_eq!(parse("a:"), port(""));
        assert_eq!(parse("kiln://me:secret@h"), Err(AddressError::Credentials));
        assert_eq!(parse("http://h"), Err(AddressError::Scheme { scheme: "http".to_owned() }));
        for name in ["a/b", "-a", "ä", &"n".repeat(65)] {
            let cache = Err(AddressError::Cache { name: name.to_owned() });
            assert_eq!(parse(&format!("h/{name}")), cache);
        }
        let many = vec!["h"; HOSTS_MAX + 1].join(",");
        assert_eq!(parse(&many), Err(AddressError::TooManyHosts { count: HOSTS_MAX + 1 }));
    }
}
