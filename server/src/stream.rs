//! A client's socket, of whatever kind.
//!
//! The request path reads and writes by hand: one read, one `try_write` for the whole batch, and
//! only then a wait. An enum rather than a type parameter keeps one copy
//! of that path in the binary; the branch costs nothing beside a system call.

use std::io::{self, IoSlice};

use tokio::net::{TcpStream, UnixStream};

/// A connected socket that does not block.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Over the network. Nagle's algorithm is off.
    Tcp(TcpStream),
    /// On this host.
    Unix(UnixStream),
}

impl Stream {
    /// Waits until there may be room to write. Dropping the future loses nothing.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    /// Writes as much as the socket takes; `WouldBlock` is nothing.
    #[inline]
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Writes as much as the socket takes of several pieces; `WouldBlock` is nothing.
    #[inline]
    pub(crate) fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
            Self::Unix(stream) => stream.try_write_vectored(pieces),
        }
    }
}
