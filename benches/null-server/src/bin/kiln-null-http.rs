//! An axum handler that returns a constant: the floor for `GET` of an item over HTTP.
//!
//! One thread, as a worker of Kiln's; the value is 100 bytes. Prints `ready HOST:PORT` once it
//! accepts; ends on SIGTERM or SIGINT. `benches/rest.py` drives it and Kiln side by side.

use std::io::{self, Write};

use axum::{Router, routing::get};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// What every request is answered with.
static VALUE: [u8; 100] = [b'v'; 100];

/// Answers HTTP requests with a constant.
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
    let router = Router::new().route("/v1/caches/{cache}/keys/{key}", get(constant));
    let ended = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    axum::serve(listener, router).with_graceful_shutdown(ended).await
}

async fn constant() -> &'static [u8] {
    &VALUE
}
