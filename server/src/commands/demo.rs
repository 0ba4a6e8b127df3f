//! `kiln demo`: a real cluster on this machine, loaded and watched, whose nodes can be killed.
//!
//! ```text
//!   main thread    owns the nodes, draws, takes keys (or follows the script)
//!   load thread    counts in the cache and checks every answer; asks how the cluster is
//!   n1 n2 n3       `kiln serve` of this same program, with directories that are removed at the end
//! ```
//!
//! What always holds: no node outlives the program, however it ends: by a key, a signal, a panic,
//! or a kill that cannot be caught, for which the system is asked to end the nodes with the thread
//! that started them.

mod load;
mod nodes;
mod screen;
mod script;

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use super::{
    CommandError, EXIT_CODES,
    output::{self, Format, OutputArgs},
};
use load::{Load, Tally};
use nodes::Nodes;
use screen::{Screen, Wish};

/// Start a cluster on this machine, load it, and watch it survive.
///
/// Real nodes with directories of their own, which are removed at the end. Keys: k kill a node, r
/// start it again, s stop one in good order, q quit. Without a terminal, or with --no-tui, nodes are
/// killed and started by a script, and a summary is printed.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Demo {
    /// Nodes.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Copies of each item.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    replicas: u16,
    /// End after so many seconds [default: with a terminal when told to, else after one round].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Clients that count at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Follow a script instead of keys, and print a summary.
    #[arg(long)]
    no_tui: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// How long keys are waited for before the screen is drawn again.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// How long all counters may take to be read at the end.
const LAST_READS_MAX: Duration = Duration::from_secs(30);

impl Demo {
    pub(crate) fn run(self) -> Result<(), CommandError> {
        let drawn = !self.no_tui
            && self.output.asked().is_none()
            && io::stdout().is_terminal()
            && io::stdin().is_terminal();
        let ended = watch_signals()?;
        eprintln!("starting {} nodes …", self.nodes);
        let mut nodes = Nodes::start(self.nodes, self.replicas, &ended)?;
        eprintln!("{}", nodes.introduction());
        let load = Load::start(nodes.addresses(), self.clients)?;
        let outcome = if drawn {
            self.watch(&mut nodes, &load, &ended)
        } else {
            script::run(&mut nodes, &load, self.seconds, &ended)
        };
        let tally = load.finish(LAST_READS_MAX);
        drop(nodes);
        outcome?;
        self.print(&tally)?;
        if tally.lost == 0 && tally.doubled == 0 && tally.is_checked {
            Ok(())
        } else {
            Err(CommandError::Told)
        }
    }

    fn watch(
        &self,
        nodes: &mut Nodes,
        load: &Load,
        ended: &AtomicBool,
    ) -> Result<(), CommandError> {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut screen = Screen::new(colour);
        let terminal = ratatui::try_init().map_err(terminal_failure)?;
        let _restored = Restored;
        let deadline = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let is_over =
            || ended.load(Ordering::Relaxed) || deadline.is_some_and(|end| Instant::now() >= end);
        draw_until(terminal, &mut screen, nodes, load, is_over)
    }

    fn print(&self, tally: &Tally) -> Result<(), CommandError> {
        match self.output.or(Format::Table) {
            Format::Json => output::print_json(tally),
            Format::Table | Format::Raw => output::print(tally.to_string()),
        }
    }
}

fn draw_until(
    mut terminal: DefaultTerminal,
    screen: &mut Screen,
    nodes: &mut Nodes,
    load: &Load,
    is_over: impl Fn() -> bool,
) -> Result<(), CommandError> {
    while !is_over() {
        for text in nodes.reap() {
            screen.say(text);
        }
        screen.update(load.look(), nodes.looks());
        terminal.draw(|frame| screen.draw(frame)).map_err(terminal_failure)?;
        if !event::poll(KEY_WAIT).map_err(terminal_failure)? {
            continue;
        }
        let Event::Key(key) = event::read().map_err(terminal_failure)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        let said = match screen.key(key) {
            Some(Wish::Quit) => return Ok(()),
            Some(Wish::Kill) => nodes.kill_any(),
            Some(Wish::Stop) => nodes.stop_any(),
            Some(Wish::Start) => nodes.start_again(),
            None => continue,
        };
        match said {
            Ok(text) => screen.say(text),
            Err(CommandError::Failed(text)) => screen.say(text),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Set when the program is told to end.
fn watch_signals() -> Result<Arc<AtomicBool>, CommandError> {
    let ended = Arc::new(AtomicBool::new(false));
    let watched =
        [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP];
    for signal in watched {
        signal_hook::flag::register(signal, Arc::clone(&ended))
            .map_err(|error| CommandError::Failed(format!("cannot watch signals: {error}")))?;
    }
    Ok(ended)
}

/// Sleeps in short steps, until so much time has passed or the program is told to end.
fn pause(time: Duration, ended: &AtomicBool) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline && !ended.load(Ordering::Relaxed) {
        thread::sleep(STEP.min(time));
    }
}

/// Between two looks at what is waited for.
const STEP: Duration = Duration::from_millis(20);

/// Gives the terminal back. A panic does it by the hook that ratatui has installed.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn terminal_failure(error: io::Error) -> CommandError {
    CommandError::Failed(format!("cannot use the terminal: {error}"))
}
