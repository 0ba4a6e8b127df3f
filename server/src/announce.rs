//! What a node says when it starts: one line for programs, a banner for people.

use std::{
    fmt,
    io::{self, Write},
    net::SocketAddr,
};

use crate::{config::Loaded, connections::Endpoint, node::Node};

/// The line on standard output that says the node can serve. Tools read it: only ever append.
pub(crate) struct ReadyLine<'a> {
    /// The node.
    pub(crate) node: &'a Node,
}

impl fmt::Display for ReadyLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Node { config, endpoints, .. } = self.node;
        write!(f, "ready name={}", config.name)?;
        write!(f, " memcached={}", OrOff(endpoints.memcached_tcp()))?;
        write!(f, " native={}", OrOff(endpoints.native))?;
        write!(f, " http={}", OrOff(endpoints.http))?;
        write!(f, " peer={} ingest={}", OrOff(endpoints.peer), OrOff(endpoints.ingest))
    }
}

impl ReadyLine<'_> {
    /// Writes the line. A node whose starter does not listen serves all the same.
    pub(crate) fn print(&self) {
        let mut out = io::stdout().lock();
        if let Err(error) = writeln!(out, "{self}").and_then(|()| out.flush()) {
            tracing::warn!(%error, "cannot write the ready line");
        }
    }
}

/// Tells people on standard error what runs, where, and what to try.
pub(crate) fn banner(node: &Node, loaded: &Loaded) -> String {
    let Node { config, endpoints, .. } = node;
    let memcached = endpoints.memcached_tcp();
    let file = loaded.file.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
    let mut lines = vec![
        format!("Kiln {}, node {}, pid {}", env!("BUILD_VERSION"), config.name, std::process::id()),
        format!("  memcached  {}", OrOff(memcached)),
    ];
    lines.extend(unix(node).map(|path| format!("             {path} (Unix socket)")));
    lines.push(format!("  native     {}", OrOff(endpoints.native)));
    lines.push(match endpoints.http {
        Some(address) => format!("  http       http://{address} (/livez /readyz /metrics)"),
        None => "  http       off".to_owned(),
    });
    lines.push(match endpoints.peer {
        Some(address) => format!("  nodes      {address} (kiln serve --join {address})"),
        None => "  nodes      off".to_owned(),
    });
    if let Some(address) = endpoints.ingest {
        lines.push(format!(
            "  readings   {address} (echo 'sensor1, 12' | nc -N {} {})",
            address.ip(),
            address.port()
        ));
    }
    lines.push(format!(
        "  memory     {}, eviction {}, longest value {}",
        config.memory, config.eviction, config.max_item_size
    ));
    lines.push(format!(
        "  threads    {}, at most {} connections",
        config.threads, config.max_connections
    ));
    lines.push(format!("  config     {file} (kiln config show --origin)"));
    let command = memcached
        .map(|address| format!("nc {} {}", address.ip(), address.port()))
        .or_else(|| unix(node).map(|path| format!("nc -U {path}")));
    lines.extend(
        command.map(|command| format!("  try        printf 'version\\r\\nquit\\r\\n' | {command}")),
    );
    lines.push(String::new());
    lines.join("\n")
}

fn unix(node: &Node) -> Option<&str> {
    node.endpoints.memcached.iter().find_map(|endpoint| match endpoint {
        Endpoint::Unix(path) => Some(path.as_ref()),
        Endpoint::Tcp(_) => None,
    })
}

struct OrOff(Option<SocketAddr>);

impl fmt::Display for OrOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Sources, node::Endpoints};

    fn node(endpoints: Endpoints) -> (Node, Loaded) {
        let flags = vec![("name", "n1".to_owned()), ("memory", "8m".to_owned())];
        let loaded = Sources { flags, ..Sources::default() }.load().unwrap();
        (Node::new(loaded.config.clone(), None, endpoints).unwrap(), loaded)
    }

    fn memcached(endpoint: Endpoint) -> Endpoints {
        Endpoints { memcached: vec![endpoint], ..Endpoints::default() }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_ready_line_names_every_listener_with_its_real_port() {
        let (node, _) = node(Endpoints {
            memcached: vec![Endpoint::Tcp(at("127.0.0.1:4711"))],
            native: Some(at("127.0.0.1:4712")),
            http: Some(at("[::1]:80")),
            peer: Some(at("127.0.0.1:4713")),
            ingest: Some(at("127.0.0.1:4714")),
        });
        assert_eq!(
            ReadyLine { node: &node }.to_string(),
            "ready name=n1 memcached=127.0.0.1:4711 native=127.0.0.1:4712 http=[::1]:80 \
             peer=127.0.0.1:4713 ingest=127.0.0.1:4714"
        );
    }

    #[test]
    fn a_listener_that_is_off_says_so_in_the_ready_line() {
        let (node, _) = node(memcached(Endpoint::Unix("/run/k.sock".into())));
        assert_eq!(
            ReadyLine { node: &node }.to_string(),
            "ready name=n1 memcached=off native=off http=off peer=off ingest=off"
        );
    }

    #[test]
    fn the_banner_shows_a_command_to_try_for_the_listener_there_is() {
        let (tcp, loaded) = node(memcached(Endpoint::Tcp(at("127.0.0.1:4711"))));
        assert!(banner(&tcp, &loaded).contains("| nc 127.0.0.1 4711\n"));
        let (unix, loaded) = node(memcached(Endpoint::Unix("/run/k.sock".into())));
        assert!(banner(&unix, &loaded).contains("| nc -U /run/k.sock\n"));
    }
}
