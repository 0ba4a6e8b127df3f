//! Opens listening sockets, and says plainly why one cannot be opened.
//!
//! All workers accept from the same socket. `SO_REUSEPORT` with a socket per worker was not taken:
//! it spreads connections by hash, so few connections spread badly; it strands those that wait at
//! a worker that is busy; and a second process of the same user would silently share the port.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::Mode;
use socket2::{Domain, Socket, Type};

use crate::{
    config::{FileMode, Listen},
    connections::Endpoint,
    failure::Failure,
};

/// Connections that the kernel keeps until a worker takes them. The kernel may keep fewer.
const BACKLOG: i32 = 1024;

/// What clients of a listener speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Memcached's text protocol.
    Memcached,
    /// Kiln's own.
    Native,
}

/// A socket on which clients are waited for, and what they speak. It does not block.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) protocol: Protocol,
    pub(crate) socket: ListenerSocket,
}

/// The socket of a listener.
#[derive(Debug)]
pub(crate) enum ListenerSocket {
    /// For clients on the network.
    Tcp(TcpListener),
    /// For clients on this host.
    Unix(UnixListener),
}

/// A connection just accepted. It does not block.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// From the network.
    Tcp(std::net::TcpStream, SocketAddr),
    /// From this host.
    Unix(UnixStream),
}

impl Listener {
    /// Another handle of the same socket.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let socket = match &self.socket {
            ListenerSocket::Tcp(listener) => listener.try_clone().map(ListenerSocket::Tcp),
            ListenerSocket::Unix(listener) => listener.try_clone().map(ListenerSocket::Unix),
        };
        Ok(Self { protocol: self.protocol, socket: socket? })
    }

    /// Takes one connection, if there is one.
    pub(crate) fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, address))
            }
            ListenerSocket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Accepted::Unix(stream))
            }
        }
    }

    /// Where this listens, with the port that was really taken.
    pub(crate) fn endpoint(&self) -> io::Result<Endpoint> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => listener.local_addr().map(Endpoint::Tcp),
            ListenerSocket::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("")).to_string_lossy();
                Ok(Endpoint::Unix(Arc::from(path)))
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            ListenerSocket::Tcp(listener) => listener.as_raw_fd(),
            ListenerSocket::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

/// Opens a TCP listener; `None` when it is off. `key` names the setting in the error.
pub(crate) fn tcp(key: &str, listen: &Listen) -> Result<Option<TcpListener>, Failure> {
    let Listen::On { host, port } = listen else { return Ok(None) };
    let flag = key.replace('_', "-");
    let fail = |what: String| Failure::Failed(format!("cannot listen on {listen} ({key}): {what}"));
    let addresses = (host.as_str(), *port)
        .to_socket_addrs()
        .map_err(|error| fail(format!("the host name is not known: {error}")))?;

    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match bind_tcp(address) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) => last = error,
        }
    }
    Err(fail(match last.kind() {
        io::ErrorKind::AddrInUse => format!(
            "the port is in use; stop the process that has it (ss -ltnp 'sport = :{port}' shows it) \
             or choose another with --{flag}, port 0 for a free one"
        ),
        io::ErrorKind::PermissionDenied => {
            format!(
                "not permitted; choose a port above 1023 with --{flag}, or grant CAP_NET_BIND_SERVICE"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "this host does not have the address; choose one that `ip address` shows with --{flag}"
            )
        }
        _ => last.to_string(),
    }))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?;
    // Connections of a node that just stopped must not keep the next one from starting.
    socket.set_reuse_address(true)?;
    // Inherited by what is accepted: clients that vanish without a word are noticed in the end.
    socket.set_keepalive(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes the file of a Unix socket away when the node stops, if it is still this node's.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let metadata = fs::symlink_metadata(&self.path);
        if metadata.is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a Unix socket. Call before other threads start: the process's umask changes for a moment.
pub(crate) fn unix(path: &Path, mode: FileMode) -> Result<(UnixListener, SocketFile), Failure> {
    let fail = |what: String| {
        Failure::Failed(format!(
            "cannot listen on {} (listen_memcached_unix): {what}",
            path.display()
        ))
    };
    remove_stale(path).map_err(fail)?;
    // The file must not be open to others between its birth and its chmod.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(umask);
    let open = || -> io::Result<_> {
        let listener = bound?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode.0))?;
        listener.set_nonblocking(true)?;
        let metadata = fs::symlink_metadata(path)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok((listener, SocketFile { path: path.into(), identity }))
    };
    open().map_err(|error| fail(error.to_string()))
}

/// A socket file stays behind when a process is killed. It may go only if it is surely that.
fn remove_stale(path: &Path) -> Result<(), String> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(
            "a file that is no socket is there; remove it or choose another path".to_owned()
        );
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| format!("cannot remove the stale socket: {error}")),
        Ok(_) => Err("another process answers there; stop it or choose another path".to_owned()),
        Err(error) => Err(format!("there is a socket that cannot be tried: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(failure: Failure) -> String {
        let Failure::Failed(line) = failure else { panic!("not a usage error") };
        line
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_file_goes_with_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let (listener, file) = unix(&path, FileMode(0o700)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_answers_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(
            message(unix(&path, FileMode(0o700)).unwrap_err()).contains("another process answers")
        );
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "precious").unwrap();
        assert!(message(unix(&path, FileMode(0o700)).unwrap_err()).contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
