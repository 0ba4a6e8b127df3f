//! How bytes reach a node.
//!
//! Connections are made by a [`Connector`]. [`TcpConnector`] is the usual one; another may put TLS
//! or a simulated network in its place, and the client above stays the same.

use std::{future::Future, io, pin::Pin, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Makes connections to nodes.
///
/// Called by a background task for each attempt, which is given up, and the future dropped, when
/// it takes longer than the connect timeout. It must not block the thread.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `address`, a `host:port`.
    fn connect(&self, address: Arc<str>) -> Connecting;
}

/// An attempt to connect.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Transport>> + Send>>;

/// A connection: two directions that are used at the same time.
pub struct Transport {
    /// From the node. Dropping it must not end the other direction.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// To the node. Dropping both ends the connection.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Whether a write that fails has surely sent nothing of what it was given, as with plain TCP.
    /// A writer that buffers or encrypts cannot say so, and then nothing that it was given counts
    /// as not sent.
    pub failed_writes_send_nothing: bool,
}

impl Transport {
    /// A transport over any two-way stream, for example a TLS stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
            failed_writes_send_nothing: false,
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// Plain TCP without delays for gathering small packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, address: Arc<str>) -> Connecting {
        Box::pin(async move {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok(Transport {
                reader: Box::new(reader),
                writer: Box::new(writer),
                failed_writes_send_nothing: true,
            })
        })
    }
}
