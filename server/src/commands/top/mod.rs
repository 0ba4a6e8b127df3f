//! `kiln top`: watch a cluster work.
//!
//! ```text
//!   sampler thread   asks every node each interval, makes figures of two answers
//!        | channel of one
//!   main thread      draws, waits for keys and signals
//! ```
//!
//! What always holds: a node that hangs does not make the keys hang; the terminal is given back as
//! it was however the program ends, also by a panic or a signal; without a terminal nothing is
//! drawn: `--once` prints one look instead.

mod columns;
mod figures;
mod sampler;
mod screen;

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, TryRecvError},
    },
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use super::{
    CommandError, EXIT_CODES,
    connect::{ConnectArgs, period},
    output::{self, Format, OutputArgs, Table},
};
use figures::Figures;
use sampler::Sampler;
use screen::{Answer, INTERVAL_MAX, INTERVAL_MIN, Screen, Sort};

/// Watch a cluster work.
///
/// Nodes, caches, protocols and keys that stand out, with figures per second. Keys: q quit, ? help,
/// s sort, r reverse, p pause, + and - look more or less often.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Top {
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// By what nodes and caches are sorted.
    #[arg(long, value_enum, value_name = "FIGURE", default_value = "operations")]
    sort: Sort,
    /// Look twice, print the figures of the time between, and end.
    #[arg(long)]
    once: bool,
    /// With --once: print as JSON; short for --output json.
    #[arg(long, requires = "once", conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = period(text)?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        Ok(interval)
    } else {
        Err("must be from 100ms to 60s".to_owned())
    }
}

impl Top {
    pub(crate) fn run(self) -> Result<(), CommandError> {
        if self.once || self.output.asked().is_some() {
            return self.once();
        }
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let text =
                "top draws on a terminal, and this is none: `kiln top --once` prints one look";
            return Err(CommandError::Usage(text.to_owned()));
        }
        self.watch()
    }

    fn once(self) -> Result<(), CommandError> {
        let figures = super::block_on(async {
            let sampler = Sampler::connect(&self.connect).await?;
            let before = sampler.sample().await;
            tokio::time::sleep(self.interval).await;
            Ok(Figures::between(Some(&before), &sampler.sample().await))
        })?;
        let mut screen = Screen::new(String::new(), self.sort, self.interval, false);
        screen.update(figures);
        let format = if self.json { Format::Json } else { self.output.or(Format::Table) };
        match format {
            Format::Json => output::print_json(&screen.figures),
            Format::Table | Format::Raw => print_tables(&screen.figures),
        }
    }

    fn watch(self) -> Result<(), CommandError> {
        let ended = Arc::new(AtomicBool::new(false));
        let watched = [
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGHUP,
        ];
        for signal in watched {
            signal_hook::flag::register(signal, Arc::clone(&ended))
                .map_err(|error| CommandError::Failed(format!("cannot watch signals: {error}")))?;
        }
        let address = self.connect.address().to_string();
        let interval_ms = Arc::new(AtomicU64::new(millis(self.interval)));
        let looks = start_sampler(self.connect, Arc::clone(&interval_ms), Arc::clone(&ended))?;
        // The first look decides whether there is anything to draw.
        let first = looks.recv().unwrap_or_else(|_| Err(sampler_ended()))?;
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut screen = Screen::new(address, self.sort, self.interval, colour);
        screen.update(first);

        let terminal = ratatui::try_init().map_err(terminal_failure)?;
        let _restored = Restored;
        let outcome = draw_until_ended(terminal, &mut screen, &looks, &interval_ms, &ended);
        ended.store(true, Ordering::Relaxed);
        outcome
    }
}

/// Gives the terminal back. A panic does it by the hook that ratatui has installed.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

type Look = Result<Figures, CommandError>;

fn start_sampler(
    connect: ConnectArgs,
    interval_ms: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
) -> Result<mpsc::Receiver<Look>, CommandError> {
    let (sender, looks) = mpsc::sync_channel(1);
    let work = move || {
        let outcome = super::block_on(async {
            let sampler = Sampler::connect(&connect).await?;
            let mut before = sampler.sample().await;
            let mut figures = Figures::between(None, &before);
            while !ended.load(Ordering::Relaxed) && sender.send(Ok(figures)).is_ok() {
                let interval = Duration::from_millis(interval_ms.load(Ordering::Relaxed));
                tokio::time::sleep(interval).await;
                let now = sampler.sample().await;
                figures = Figures::between(Some(&before), &now);
                before = now;
            }
            Ok(())
        });
        if let Err(error) = outcome {
            // Nobody is left to tell when the screen is gone already.
            let _ = sender.send(Err(error));
        }
    };
    let spawned = thread::Builder::new().name("kiln-top".to_owned()).spawn(work);
    spawned.map_err(|error| CommandError::Failed(format!("cannot start a thread: {error}")))?;
    Ok(looks)
}

fn draw_until_ended(
    mut terminal: DefaultTerminal,
    screen: &mut Screen,
    looks: &mpsc::Receiver<Look>,
    interval_ms: &AtomicU64,
    ended: &AtomicBool,
) -> Result<(), CommandError> {
    let mut changed = true;
    while !ended.load(Ordering::Relaxed) {
        match looks.try_recv() {
            Ok(look) => {
                screen.update(look?);
                changed = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(sampler_ended()),
        }
        if changed {
            terminal.draw(|frame| screen.draw(frame)).map_err(terminal_failure)?;
            changed = false;
        }
        if event::poll(KEY_WAIT).map_err(terminal_failure)? {
            changed = true;
            match event::read().map_err(terminal_failure)? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    if screen.key(key) == Answer::Quit {
                        return Ok(());
                    }
                    interval_ms.store(millis(screen.interval), Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn print_tables(figures: &Figures) -> Result<(), CommandError> {
    let percent = |percent: Option<f64>| percent.map_or("-".to_owned(), |p| format!("{p:.1}"));
    let rate = |rate: f64| output::Cell::Number(output::count(rate));
    let number = output::Cell::Number;
    let headings =
        ["NODE", "OPS/S", "HIT%", "MEMORY", "LIMIT", "EVICT/S", "CONN", "CPU%", "ITEMS", "ERROR"];
    let mut nodes = Table::new(&headings);
    for node in &figures.nodes {
        nodes.row(vec![
            node.name.clone().into(),
            rate(node.operations_per_second),
            number(percent(node.hit_percent)),
            number(output::size(node.memory_used)),
            number(output::size(node.memory_limit)),
            rate(node.evictions_per_second),
            node.connections.into(),
            number(format!("{:.0}", node.cpu_percent)),
            node.items.into(),
            node.error.clone().unwrap_or_default().into(),
        ]);
    }
    nodes.print()?;
    let headings = ["CACHE", "READS/S", "HIT%", "MEMORY", "LIMIT", "STORES/S", "EVICT/S", "ITEMS"];
    let mut caches = Table::new(&headings);
    for cache in &figures.caches {
        caches.row(vec![
            cache.name.clone().into(),
            rate(cache.reads_per_second),
            number(percent(cache.hit_percent)),
            number(output::size(cache.memory_used)),
            number(output::size(cache.memory_limit)),
            rate(cache.stores_per_second),
            rate(cache.evictions_per_second),
            cache.items.into(),
        ]);
    }
    output::print("\n")?;
    caches.print()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn terminal_failure(error: io::Error) -> CommandError {
    CommandError::Failed(format!("cannot use the terminal: {error}"))
}

fn sampler_ended() -> CommandError {
    CommandError::Failed("the thread that asks the nodes has ended".to_owned())
}

/// How long keys are waited for before figures and signals are looked at again.
const KEY_WAIT: Duration = Duration::from_millis(100);
