//! Producers of readings: at a steady rate, each batch sent until it is acknowledged.
//!
//! Batch n of every producer has the same event time and one reading of every sensor, with a value
//! that follows from producer, batch and sensor: so what must be in a window is known without
//! keeping a list. Every other producer posts over HTTP, the rest send lines over TCP. Each keeps to
//! one node while that answers and goes to the next when it does not.
//!
//! What always holds: a producer sends batch n + 1 after batch n was acknowledged; one that cannot
//! get a batch acknowledged within [`BATCH_MAX`] ends the trial.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{TrialError, ask::CONNECT_MAX, gate::Gate, http};

/// The event time of the first batches.
const BASE: i64 = 1_700_000_000_000;

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) stream: String,
    pub(crate) sensors: i64,
    pub(crate) producers: usize,
    /// Between two batches of a producer, by the clock and in event time.
    pub(crate) step_ms: i64,
}

impl Shape {
    /// The event time of batch n.
    pub(crate) fn time_of(&self, number: i64) -> i64 {
        BASE + number * self.step_ms
    }

    fn value(&self, producer: usize, number: i64, sensor: i64) -> i64 {
        (number * self.producers as i64 + producer as i64) * self.sensors + sensor
    }

    /// Count and sum that a window must have when each producer's batches before its number were
    /// taken in, once.
    pub(crate) fn expected(&self, sensor: i64, window: (i64, i64), numbers: &[i64]) -> (i64, i64) {
        let number_at = |time: i64| ((time - BASE).max(0) + self.step_ms - 1) / self.step_ms;
        let (first, past) = (number_at(window.0), number_at(window.1));
        let mut all = (0, 0);
        for (producer, end) in numbers.iter().enumerate() {
            for number in first..past.min(*end) {
                all = (all.0 + 1, all.1 + self.value(producer, number, sensor));
            }
        }
        all
    }

    fn lines(&self, producer: usize, number: i64, text: &mut String) {
        text.clear();
        let time = self.time_of(number);
        for sensor in 0..self.sensors {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "s{sensor}, {}, {time}", self.value(producer, number, sensor));
        }
    }
}

/// All producers, each on a thread of its own.
pub(crate) struct Producers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    shape: Shape,
    gate: Gate,
    began: Instant,
    /// How long all were held: the rate goes on where it stopped.
    held_ms: AtomicU64,
    /// HTTP and lines, of each node.
    doors: Vec<(SocketAddr, SocketAddr)>,
    /// Batches acknowledged, of each.
    acknowledged: Vec<AtomicI64>,
    /// The longest wait for an acknowledgement since it was taken.
    longest_ms: AtomicU64,
    again: AtomicU64,
    failed: Mutex<Option<String>>,
}

impl Producers {
    /// Starts them, held at first.
    pub(crate) fn start(shape: Shape, doors: Vec<(SocketAddr, SocketAddr)>) -> Self {
        let shared = Arc::new(Shared {
            acknowledged: (0..shape.producers).map(|_| AtomicI64::new(0)).collect(),
            shape,
            gate: Gate::new(),
            began: Instant::now(),
            held_ms: AtomicU64::new(0),
            doors,
            longest_ms: AtomicU64::new(0),
            again: AtomicU64::new(0),
            failed: Mutex::new(None),
        });
        let threads = (0..shared.shape.producers).map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                if let Err(why) = Producer::new(&shared, number).run() {
                    shared.failed.lock().get_or_insert(why);
                }
            })
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Lets them send for as long as `work` takes, and holds them again.
    pub(crate) fn while_sending<T>(
        &self,
        work: impl FnOnce() -> Result<T, TrialError>,
    ) -> Result<T, TrialError> {
        let sent_ms = self.shared.now_ms();
        self.shared.held_ms.fetch_add(sent_ms.saturating_sub(self.due_ms()), Relaxed);
        self.shared.gate.open();
        let done = work();
        self.shared.gate.hold(self.threads.len())?;
        self.check()?;
        done
    }

    /// When the next batch would be due, on the producers' clock.
    fn due_ms(&self) -> u64 {
        let next = self.numbers().into_iter().max().unwrap_or(0);
        (next * self.shared.shape.step_ms).unsigned_abs()
    }

    /// Batches acknowledged, of each.
    pub(crate) fn numbers(&self) -> Vec<i64> {
        self.shared.acknowledged.iter().map(|number| number.load(Relaxed)).collect()
    }

    /// The event time that is due now.
    pub(crate) fn event_time(&self) -> i64 {
        BASE + self.shared.now_ms() as i64
    }

    /// The longest wait for an acknowledgement, and how often a batch was sent again, since the last
    /// call.
    pub(crate) fn take_waits(&self) -> (f64, u64) {
        (self.shared.longest_ms.swap(0, Relaxed) as f64, self.shared.again.swap(0, Relaxed))
    }

    /// Fails when one of them gave up.
    pub(crate) fn check(&self) -> Result<(), TrialError> {
        match &*self.shared.failed.lock() {
            Some(why) => Err(TrialError::Client(why.clone())),
            None => Ok(()),
        }
    }

    /// Has each send one more batch, of a later time, so that all windows before it close. They must
    /// be held.
    pub(crate) fn close_windows(&self, time: i64) -> Result<(), TrialError> {
        for number in 0..self.shared.shape.producers {
            let mut producer = Producer::new(&self.shared, number);
            let text: String = (0..self.shared.shape.sensors)
                .map(|sensor| format!("s{sensor}, 0, {time}\n"))
                .collect();
            let next = self.shared.acknowledged[number].load(Relaxed);
            producer.send_until_acknowledged(next, &text).map_err(TrialError::Client)?;
        }
        Ok(())
    }
}

impl Drop for Producers {
    fn drop(&mut self) {
        self.shared.gate.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// On the producers' clock, which stands while they are held.
    fn now_ms(&self) -> u64 {
        (self.began.elapsed().as_millis() as u64).saturating_sub(self.held_ms.load(Relaxed))
    }
}

struct Producer<'a> {
    shared: &'a Shared,
    number: usize,
    /// Which node it sends to.
    at: usize,
    link: Option<BufReader<TcpStream>>,
}

impl<'a> Producer<'a> {
    fn new(shared: &'a Shared, number: usize) -> Self {
        Self { shared, number, at: number, link: None }
    }

    fn run(&mut self) -> Result<(), String> {
        let mut text = String::new();
        for number in 0.. {
            let due = (number * self.shared.shape.step_ms).unsigned_abs();
            loop {
                if !self.shared.gate.pass() {
                    return Ok(());
                }
                match due.saturating_sub(self.shared.now_ms()) {
                    0 => break,
                    early => thread::sleep(Duration::from_millis(early.min(20))),
                }
            }
            self.shared.shape.lines(self.number, number, &mut text);
            self.send_until_acknowledged(number, &text)?;
            self.shared.acknowledged[self.number].store(number + 1, Relaxed);
        }
        Ok(())
    }

    fn send_until_acknowledged(&mut self, number: i64, text: &str) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let told = if self.number.is_multiple_of(2) {
                self.post(number, text)
            } else {
                self.send_lines(number, text)
            };
            let why = match told {
                Ok(true) => break,
                Ok(false) => "it is to come again".to_owned(),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(error.to_string());
                }
                Err(error) => {
                    self.link = None;
                    self.at += 1;
                    error.to_string()
                }
            };
            if self.shared.gate.is_over() {
                return Ok(());
            }
            if began.elapsed() >= BATCH_MAX {
                return Err(format!(
                    "batch {number} of producer {} never arrives: {why}",
                    self.number
                ));
            }
            self.shared.again.fetch_add(1, Relaxed);
            thread::sleep(AGAIN);
        }
        self.shared.longest_ms.fetch_max(began.elapsed().as_millis() as u64, Relaxed);
        Ok(())
    }

    fn connect(&mut self, over_lines: bool) -> io::Result<&mut BufReader<TcpStream>> {
        if self.link.is_none() {
            let (http, ingest) = self.shared.doors[self.at % self.shared.doors.len()];
            let address = if over_lines { ingest } else { http };
            let stream = TcpStream::connect_timeout(&address, CONNECT_MAX)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            stream.set_write_timeout(Some(ANSWER_MAX))?;
            let mut stream = BufReader::new(stream);
            if over_lines {
                let hello =
                    format!("stream {}\nhello p{} 1\n", self.shared.shape.stream, self.number);
                stream.get_mut().write_all(hello.as_bytes())?;
                let said = line(&mut stream)?;
                if said != "hello\n" {
                    // A node that just started may not know the stream.
                    return Err(io::Error::other(said));
                }
            }
            self.link = Some(stream);
        }
        self.link.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// True when it is acknowledged, false when it is to come again.
    fn post(&mut self, number: i64, text: &str) -> io::Result<bool> {
        let target = format!(
            "/v1/streams/{}/readings?producer=p{}&epoch=1&sequence={number}",
            self.shared.shape.stream, self.number
        );
        match http::exchange(self.connect(false)?, "POST", &target, text.as_bytes())? {
            (200, _) => Ok(true),
            (429, _) => Ok(false),
            // A node that is starting or stopping: another one.
            (404 | 503, body) => Err(io::Error::other(String::from_utf8_lossy(&body).into_owned())),
            (status, body) => Err(wrong(format!("{status}: {}", String::from_utf8_lossy(&body)))),
        }
    }

    fn send_lines(&mut self, number: i64, text: &str) -> io::Result<bool> {
        let stream = self.connect(true)?;
        stream.get_mut().write_all(format!("{text}commit {number}\n").as_bytes())?;
        let said = line(stream)?;
        match said.split(' ').next() {
            Some("ack") if said.starts_with(&format!("ack {number} ")) => Ok(true),
            Some("retry") => Ok(false),
            _ => Err(wrong(said)),
        }
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.take(LINE_MAX).read_line(&mut line)? == 0 || !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// An answer that nobody may give.
fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// How long one batch may be tried.
const BATCH_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// The pause before a batch is sent again.
const AGAIN: Duration = Duration::from_millis(20);
const LINE_MAX: u64 = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_in_a_window_is_what_the_lines_say() {
        let shape = Shape { stream: "s".to_owned(), sensors: 3, producers: 2, step_ms: 100 };
        let (start, end) = (BASE + 250, BASE + 500);
        let numbers = [9, 4];
        let mut found = (0, 0);
        let mut text = String::new();
        for (producer, count) in numbers.iter().enumerate() {
            for number in 0..*count {
                shape.lines(producer, number, &mut text);
                for line in text.lines() {
                    let parts: Vec<&str> = line.split(", ").collect();
                    let time: i64 = parts[2].parse().unwrap();
                    if parts[0] == "s1" && (start..end).contains(&time) {
                        found = (found.0 + 1, found.1 + parts[1].parse::<i64>().unwrap());
                    }
                }
            }
        }
        // Batches 3 and 4 of the first producer, 3 of the second.
        assert_eq!(found.0, 3);
        assert_eq!(shape.expected(1, (start, end), &numbers), found);
    }
}
