//! One thread and its connections: waits for the sockets, the clock and the stage to change.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::connection::{Bench, Connection, Pace};
use crate::run::{Event, Shared, Stage};
use crate::tally::{Recent, Tally};

/// What a worker lets others see while it runs. Its own cache lines: written at every wake-up.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Gauge {
    pub(crate) done: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) outstanding: AtomicU64,
    /// The director wants to know what was measured lately.
    pub(crate) wanted: AtomicBool,
    /// What was measured since the director took it last.
    pub(crate) recent: Mutex<Recent>,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            outstanding: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            recent: Mutex::new(Recent::new()),
        }
    }
}

/// A thread's share of the run.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    bench: Bench<'a>,
    /// All that was measured before what `bench` holds.
    total: Tally,
    connections: Vec<Connection>,
    poll: Poll,
    timer: Option<Timer>,
    next_slot: u64,
    preloaded: bool,
    shared: &'a Shared,
    gauge: &'a Gauge,
    end: Announce<'a>,
}

/// Tells the director that this worker is no more, also when it panics.
#[derive(Debug)]
pub(crate) struct Announce<'a>(
    pub(crate) std::sync::mpsc::SyncSender<Event>,
    pub(crate) &'a Shared,
);

impl Drop for Announce<'_> {
    fn drop(&mut self) {
        // The director may already have stopped listening; then there is nobody left to tell.
        let _ = self.0.try_send(Event::Ended);
    }
}

impl<'a> Worker<'a> {
    /// `quota` is this worker's share of a run of so many requests, `period_seconds` the distance
    /// between two of its slots in an open loop.
    pub(crate) fn new(
        load: &'a crate::connection::Workload<'a>,
        connections: Vec<Connection>,
        quota: u64,
        period_seconds: Option<f64>,
        gauge: &'a Gauge,
        end: Announce<'a>,
    ) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let timer = period_seconds.map(|_| Timer::new(&poll)).transpose()?;
        let start = Instant::now();
        let bench = Bench {
            load,
            stage: Stage::Idle,
            tally: Tally::new(),
            quota,
            done: 0,
            outstanding: 0,
            pace: period_seconds.map(|period_seconds| Pace { start, period_seconds }),
        };
        let shared = end.1;
        let mut worker = Self {
            bench,
            total: Tally::new(),
            connections,
            poll,
            timer,
            next_slot: 0,
            preloaded: false,
            shared,
            gauge,
            end,
        };
        for (index, connection) in worker.connections.iter_mut().enumerate() {
            connection.register(worker.poll.registry(), Token(index))?;
        }
        Ok((worker, waker))
    }

    /// Works until the run is over or no connection is left.
    pub(crate) fn run(mut self) -> io::Result<Tally> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut drain_until = None;
        loop {
            let timeout =
                drain_until.map(|at: Instant| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            let stage = self.shared.stage();
            if stage != self.bench.stage {
                self.enter(stage);
                if stage == Stage::Drain {
                    drain_until = Some(Instant::now() + self.bench.load.plan.stall_timeout);
                }
            }
            for event in &events {
                if let Some(connection) = self.connections.get_mut(event.token().0) {
                    if event.is_readable() || event.is_read_closed() || event.is_error() {
                        connection.receive(event.is_read_closed(), &mut self.bench);
                    }
                    if event.is_writable() {
                        connection.send(&mut self.bench);
                    }
                }
            }
            self.serve_pace()?;
            self.publish();
            if self.is_over(drain_until) {
                break;
            }
        }
        for connection in &mut self.connections {
            connection.give_up(&mut self.bench);
        }
        self.publish();
        self.total.absorb(&mut self.bench.tally);
        Ok(self.total)
    }

    fn enter(&mut self, stage: Stage) {
        self.bench.stage = stage;
        if let (Some(pace), Stage::Warmup | Stage::Measure) = (&mut self.bench.pace, stage) {
            pace.start = Instant::now();
            self.next_slot = 0;
            let step = self.connections.len() as u64;
            for (index, connection) in self.connections.iter_mut().enumerate() {
                connection.restart_pace(index as u64, step);
            }
        }
        if stage == Stage::Drain {
            self.total.unsent = self.connections.iter().map(Connection::unsent).sum();
        }
        for connection in &mut self.connections {
            connection.send(&mut self.bench);
        }
    }

    /// Open loop: hands out the slots that are due and sets the timer for the next.
    fn serve_pace(&mut self) -> io::Result<()> {
        let (Some(pace), Some(timer)) = (self.bench.pace, &mut self.timer) else { return Ok(()) };
        if !matches!(self.bench.stage, Stage::Warmup | Stage::Measure) {
            return Ok(());
        }
        let connections_len = self.connections.len() as u64;
        let now = Instant::now();
        while pace.due_at(self.next_slot) <= now {
            let owner = (self.next_slot % connections_len) as usize;
            self.connections[owner].slot_due(&mut self.bench);
            self.next_slot += 1;
        }
        let wait = pace.due_at(self.next_slot).saturating_duration_since(Instant::now());
        timer.set(wait)
    }

    fn is_over(&mut self, drain_until: Option<Instant>) -> bool {
        let plan = self.bench.load.plan;
        if self.connections.iter().all(|connection| !connection.is_alive()) {
            return true;
        }
        match self.bench.stage {
            Stage::Preload if !self.preloaded => {
                self.preloaded = self.connections.iter().all(|c| c.has_preloaded(plan.keys));
                if self.preloaded {
                    // Capacity for every message of every worker: this never blocks.
                    let _ = self.end.0.try_send(Event::Preloaded);
                }
                false
            }
            Stage::Measure => self.bench.quota == 0 && self.bench.outstanding == 0,
            Stage::Drain => {
                self.bench.outstanding == 0 || drain_until.is_some_and(|at| Instant::now() >= at)
            }
            Stage::Abort => true,
            Stage::Idle | Stage::Preload | Stage::Warmup => false,
        }
    }

    fn publish(&mut self) {
        self.gauge.done.store(self.bench.done, Ordering::Relaxed);
        let errors = self.total.errors.total() + self.bench.tally.errors.total();
        self.gauge.errors.store(errors, Ordering::Relaxed);
        self.gauge.outstanding.store(self.bench.outstanding, Ordering::Relaxed);
        if self.gauge.wanted.load(Ordering::Relaxed) {
            self.gauge.wanted.store(false, Ordering::Relaxed);
            if let Ok(mut recent) = self.gauge.recent.lock() {
                recent.note(&self.bench.tally);
            }
            self.total.absorb(&mut self.bench.tally);
        }
    }
}

/// A timer that epoll waits for: its own time-outs are whole milliseconds, far too coarse here.
#[derive(Debug)]
struct Timer(OwnedFd);

impl Timer {
    fn new(poll: &Poll) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Self(fd))
    }

    /// Fires once after `wait`. Setting it again also clears what has not been read.
    fn set(&mut self, wait: Duration) -> io::Result<()> {
        // All zero would disarm it.
        let wait = wait.max(TIMER_MIN);
        let at = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

/// Tokens below these are connections.
const WAKER: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// Events taken in one call; more wait for the next.
const EVENTS_MAX: usize = 1024;

const TIMER_MIN: Duration = Duration::from_micros(5);
