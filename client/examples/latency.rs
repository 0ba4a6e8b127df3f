//! How long a lone get takes beside a raw echo over the same loopback.
//!
//! One task, one call after the other, in turns with echoes over plain sockets in the same
//! runtime, so that all see the same machine at the same time. There are two echo servers: one
//! that waits in epoll, as every server of many connections must, and one that blocks in read on
//! its only connection, which is as fast as a loopback can be.
//!
//! ```text
//! cargo run --release --example latency -- kiln://127.0.0.1:7311 [rounds]
//! ```

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use kiln_client::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Calls in a row before it is the other's turn.
const BLOCK: usize = 1000;

/// Bytes of a value, and about those of a request and an answer.
const VALUE_LEN: usize = 100;
const ECHO_LEN: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "kiln://127.0.0.1:7311".to_owned());
    let rounds: usize = arguments.next().map_or(Ok(50), |rounds| rounds.parse())?;
    let threaded = std::env::var_os("THREADS").is_some();
    let runtime = if threaded {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    };
    runtime
        .block_on(async { tokio::spawn(measure(address, rounds)).await })?
        .map_err(|error| error.to_string())?;
    Ok(())
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn measure(address: String, rounds: usize) -> Result<(), Failure> {
    let client = Client::connect(&address).await?;
    client.set("latency", &[b'v'; VALUE_LEN]).await?;
    let mut polled = connect(polled_echo()?).await?;
    let mut blocked = connect(blocked_echo()?).await?;

    let (mut gets, mut polls, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
    // The first round of each warms up.
    for round in 0..=rounds {
        for _ in 0..BLOCK {
            let begun = Instant::now();
            client.get("latency").await?.ok_or("the item is gone")?;
            gets.push(begun.elapsed());
        }
        echo(&mut polled, &mut polls).await?;
        echo(&mut blocked, &mut blocks).await?;
        if round == 0 {
            gets.clear();
            polls.clear();
            blocks.clear();
        }
    }
    client.delete("latency").await?;

    let get = Quantiles::of(&mut gets);
    println!("client get      {get}");
    for (name, samples) in [("polled echo ", &mut polls), ("blocked echo", &mut blocks)] {
        let echo = Quantiles::of(samples);
        let ratio = get.p50.as_secs_f64() / echo.p50.as_secs_f64();
        println!("{name}    {echo}  p50 ratio {ratio:.2}");
    }
    Ok(())
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn echo(stream: &mut TcpStream, samples: &mut Vec<Duration>) -> Result<(), Failure> {
    // With room for more than comes: a read that fills its buffer is followed by another.
    let mut buffer = [0; 2 * ECHO_LEN];
    for _ in 0..BLOCK {
        let begun = Instant::now();
        stream.write_all(&[b'e'; ECHO_LEN]).await?;
        let mut len = 0;
        while len < ECHO_LEN {
            match stream.read(&mut buffer[len..]).await? {
                0 => return Err("the echo has ended".into()),
                more => len += more,
            }
        }
        samples.push(begun.elapsed());
    }
    Ok(())
}

struct Quantiles {
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Quantiles {
    fn of(samples: &mut [Duration]) -> Self {
        samples.sort_unstable();
        let at = |quantile: f64| samples[((samples.len() - 1) as f64 * quantile) as usize];
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:?}  p99 {:?}  max {:?}", self.p50, self.p99, self.max)
    }
}

/// A thread that blocks until it reads something, and sends it back.
fn blocked_echo() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                len => stream.write_all(&buffer[..len])?,
            }
        }
    });
    Ok(address)
}

/// The same with a runtime.
fn polled_echo() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async move {
            let (mut stream, _) = tokio::net::TcpListener::from_std(listener)?.accept().await?;
            stream.set_nodelay(true)?;
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok::<_, std::io::Error>(()),
                    len => stream.write_all(&buffer[..len]).await?,
                }
            }
        })
    });
    Ok(address)
}
