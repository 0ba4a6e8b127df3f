//! A server that sends back what comes: what the sockets and the loopback alone cost.
//!
//! One thread for each connection, waiting in `read`: there is no shorter way through the kernel,
//! so a round trip here is the floor for any server on the same machine at the same moment.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A running echo. Dropping it stops it.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accept: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// When there is no port or no thread to be had.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let accept = thread::Builder::new().name("echo".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // Without a thread the connection closes, and the run reports it lost.
                let _ = thread::Builder::new().name("echo".to_owned()).spawn(move || serve(stream));
            }
        })?;
        Ok(Self { address, stop, accept: Some(accept) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts. Those that serve end with their connections.
        if TcpStream::connect_timeout(&self.address, WAKE_TIMEOUT).is_ok()
            && let Some(accept) = self.accept.take()
        {
            let _ = accept.join();
        }
    }
}

/// Ends when the peer does.
fn serve(mut stream: TcpStream) {
    let mut buffer = [0; BUFFER_LEN];
    if stream.set_nodelay(true).is_err() {
        return;
    }
    loop {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => {
                if stream.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

const BUFFER_LEN: usize = 16 * 1024;

const WAKE_TIMEOUT: Duration = Duration::from_secs(1);
