//! Which process listens on an address of this machine.
//!
//! Found by the listening socket itself, so no server has to say what its process is, and none can
//! be mistaken for another. Looks at `/proc` only; what may not be looked at is not found.

use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The process that listens on `address`, if it is here and may be looked at.
#[must_use]
pub fn listening_on(address: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let texts: Vec<_> = tables.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let sockets: Vec<String> = texts
        .iter()
        .flat_map(|text| text.lines().skip(1))
        .filter_map(|line| listener(line, address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let pids = fs::read_dir("/proc").ok()?.flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|&pid: &u32| holds(pid, &sockets))
}

fn holds(pid: u32, sockets: &[String]) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|link| link.to_str().is_some_and(|link| sockets.iter().any(|socket| socket == link)))
}

/// The inode of a listening socket, when the line is one that takes connections to `address`.
fn listener(line: &str, address: SocketAddr) -> Option<&str> {
    let mut fields = line.split_whitespace().skip(1);
    let (host, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let here = state == LISTEN && u16::from_str_radix(port, 16).ok()? == address.port();
    let any = host.bytes().all(|b| b == b'0');
    (here && (any || host == hex(address.ip()))).then_some(inode)
}

/// As the kernel writes addresses: words of 32 bits in the machine's own order.
fn hex(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4);
    words
        .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
        .collect()
}

const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_by_its_address() {
        for host in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let port = listener.local_addr().unwrap().port();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            assert_eq!(listening_on(address), Some(std::process::id()), "{host}");
        }
    }

    #[test]
    fn a_port_where_nobody_listens_has_no_process() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(listening_on(address), None);
    }
}
