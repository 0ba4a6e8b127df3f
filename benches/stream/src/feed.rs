//! Readings to running nodes over HTTP, as lines in numbered batches; what they took in is printed as
//! JSON. What it cost them is for whoever started them to look at.
//!
//! Each connection is a producer of its own, and they take turns: batch n of all is sent by
//! connection n modulo their number, so event time advances evenly. A batch is sent until it is
//! acknowledged, with pauses as the node asks for, at most [`TRIES_MAX`] times. Event time advances
//! with the readings, `rate` per second and sensor, from `start`.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Addresses of nodes for HTTP; connections take them in turn.
    #[arg(long, required = true, value_delimiter = ',')]
    http: Vec<SocketAddr>,
    /// The stream, of format `line`.
    #[arg(long)]
    stream: String,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    connections: u64,
    /// Readings in all, rounded up to whole batches.
    #[arg(long, default_value_t = 10_000_000)]
    readings: u64,
    /// Readings of one batch.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=64_512))]
    batch: u64,
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    sensors: u64,
    /// Readings per second of event time and sensor.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// The event time of the first reading, in milliseconds.
    #[arg(long, default_value_t = 1_700_000_000_000)]
    start: i64,
    /// Readings per second of the clock; as fast as they are taken without it.
    #[arg(long)]
    pace: Option<f64>,
    /// What all producers call themselves, before their number.
    #[arg(long, default_value = "feed-")]
    producer: String,
    /// The number of the first batch: more than the highest of an earlier feed of the same producers.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

/// How often one batch is tried.
const TRIES_MAX: u32 = 600;
const ANSWER_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
const HEADERS_MAX: usize = 64;
const BODY_MAX: usize = 1 << 20;

/// What nodes said of batches.
#[derive(Debug, Default, serde::Serialize)]
struct Sums {
    batches: u64,
    accepted: u64,
    duplicate: u64,
    late: u64,
    rejected: u64,
    /// Tries that were not acknowledged.
    again: u64,
    /// The greatest event time that was sent.
    time_max: i64,
    /// The longest that a try was behind its time, with a pace.
    behind_ms: u64,
    #[serde(skip)]
    waits_ms: Vec<f64>,
}

pub(crate) fn run(options: Options) -> ExitCode {
    let options = Arc::new(options);
    let began = Instant::now();
    let producers: Vec<_> = (0..options.connections)
        .map(|number| {
            let options = Arc::clone(&options);
            thread::spawn(move || Connection::new(&options, number).feed(began))
        })
        .collect();
    let mut all = Sums::default();
    for producer in producers {
        match producer.join().expect("a producer does not panic") {
            Ok(sums) => all.add(sums),
            Err(reason) => {
                eprintln!("{reason}");
                return ExitCode::FAILURE;
            }
        }
    }
    all.waits_ms.sort_by(f64::total_cmp);
    let quantile = |part: f64| {
        let rank = (part * all.waits_ms.len() as f64).ceil() as usize;
        all.waits_ms.get(rank.max(1) - 1).copied().unwrap_or(0.0)
    };
    let mut said = serde_json::json!(all);
    said["seconds"] = began.elapsed().as_secs_f64().into();
    said["p50_ms"] = quantile(0.5).into();
    said["p99_ms"] = quantile(0.99).into();
    println!("{said}");
    ExitCode::SUCCESS
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.batches += other.batches;
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        self.late += other.late;
        self.rejected += other.rejected;
        self.again += other.again;
        self.time_max = self.time_max.max(other.time_max);
        self.behind_ms = self.behind_ms.max(other.behind_ms);
        self.waits_ms.extend(other.waits_ms);
    }
}

/// One producer and its connection.
struct Connection<'a> {
    options: &'a Options,
    number: u64,
    /// Which of the nodes is asked.
    at: usize,
    link: Option<BufReader<TcpStream>>,
    random: u64,
}

impl<'a> Connection<'a> {
    fn new(options: &'a Options, number: u64) -> Self {
        let random = 0x2545_f491_4f6c_dd1d ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { options, number, at: number as usize, link: None, random }
    }

    fn feed(mut self, began: Instant) -> Result<Sums, String> {
        let Options { connections, readings, batch, pace, .. } = *self.options;
        let mut sums = Sums::default();
        let mut text = String::new();
        let batches = readings.div_ceil(batch);
        for (turn, number) in (self.number..batches).step_by(connections as usize).enumerate() {
            let time = self.write_batch(number, &mut text);
            if let Some(pace) = pace {
                let due = Duration::from_secs_f64((number * batch) as f64 / pace);
                match due.checked_sub(began.elapsed()) {
                    Some(early) => thread::sleep(early),
                    None => {
                        let behind = (began.elapsed() - due).as_millis() as u64;
                        sums.behind_ms = sums.behind_ms.max(behind);
                    }
                }
            }
            let sent = Instant::now();
            self.send(self.options.first + turn as u64, &text, &mut sums)?;
            sums.waits_ms.push(sent.elapsed().as_secs_f64() * 1e3);
            sums.batches += 1;
            sums.time_max = sums.time_max.max(time);
        }
        Ok(sums)
    }

    /// The lines of a batch. Returns the time of its last.
    fn write_batch(&mut self, number: u64, text: &mut String) -> i64 {
        let Options { batch, sensors, rate, start, .. } = *self.options;
        text.clear();
        let mut time = start;
        for i in 0..batch {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let made = u128::from(number * batch + i);
            time = start + (made * 1000 / u128::from(sensors * rate)) as i64;
            let (sensor, value) = (self.random % sensors, (self.random >> 44) as f64 / 100.0);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "sensor{sensor}, {value}, {time}");
        }
        time
    }

    /// Sends a batch until it is acknowledged.
    fn send(&mut self, sequence: u64, text: &str, sums: &mut Sums) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            match self.exchange(sequence, text) {
                Ok((200, body)) => {
                    let said: serde_json::Value =
                        serde_json::from_slice(&body).map_err(|error| format!("200: {error}"))?;
                    let figure = |name: &str| said[name].as_u64().unwrap_or(0);
                    sums.accepted += figure("accepted");
                    sums.duplicate += figure("duplicate");
                    sums.late += figure("late");
                    sums.rejected += figure("rejected");
                    return Ok(());
                }
                Ok((429 | 503, body)) => last = String::from_utf8_lossy(&body).into_owned(),
                Ok((status, body)) => {
                    return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
                }
                Err(error) => {
                    last = error.to_string();
                    self.link = None;
                    self.at += 1;
                }
            }
            sums.again += 1;
            thread::sleep(PAUSE);
        }
        Err(format!("a batch is not acknowledged: {last}"))
    }

    fn exchange(&mut self, sequence: u64, text: &str) -> io::Result<(u16, Vec<u8>)> {
        let Options { http, stream: name, producer, .. } = self.options;
        let stream = match &mut self.link {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(http[self.at % http.len()])?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_MAX))?;
                stream.set_write_timeout(Some(ANSWER_MAX))?;
                self.link.insert(BufReader::new(stream))
            }
        };
        let head = format!(
            "POST /v1/streams/{name}/readings?producer={producer}{}&epoch=1&sequence={sequence} HTTP/1.1\r\n\
             host: kiln\r\ncontent-length: {}\r\n\r\n",
            self.number,
            text.len()
        );
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().write_all(text.as_bytes())?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut line = String::new();
        let mut status = None;
        let mut len = 0;
        for _ in 0..HEADERS_MAX {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = line.trim_end().to_ascii_lowercase();
            match status {
                None => {
                    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
                    status = Some(code.ok_or_else(invalid)?);
                }
                Some(status) if text.is_empty() => {
                    if len > BODY_MAX {
                        return Err(invalid());
                    }
                    let mut body = vec![0; len];
                    stream.read_exact(&mut body)?;
                    return Ok((status, body));
                }
                Some(_) => {
                    if let Some(value) = text.strip_prefix("content-length:") {
                        len = value.trim().parse().map_err(|_| invalid())?;
                    }
                }
            }
        }
        Err(invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_time_goes_on_from_batch_to_batch_whichever_connection_sends_them() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line =
            ["feed", "--http", "127.0.0.1:1", "--stream", "s", "--batch", "10", "--sensors", "2"];
        let Line { options } = clap::Parser::parse_from(line.into_iter().chain(["--rate", "5"]));
        let mut text = String::new();
        let last = Connection::new(&options, 0).write_batch(0, &mut text);
        assert_eq!(last, options.start + 900);
        let last = Connection::new(&options, 1).write_batch(1, &mut text);
        assert_eq!((last, text.lines().count()), (options.start + 1_900, 10));
        assert!(
            text.starts_with("sensor") && text.contains(&format!(", {}\n", options.start + 1_000))
        );
    }
}
