//! The do-nothing server as a process, so that it can be pinned and its processor time read.
//!
//! Prints `ready HOST:PORT` once it accepts; ends on SIGTERM or SIGINT.

use std::io::{self, Write};

use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Answers memcached text requests with constants and stores nothing.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    listen: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(&args.listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut stdout = io::stdout();
    writeln!(stdout, "ready {}", listener.local_addr()?)?;
    stdout.flush()?;
    tokio::select! {
        served = kiln_null_server::serve(listener) => served,
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}
