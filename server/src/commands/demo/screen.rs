//! What the demonstration draws, and what keys ask for.
//!
//! Drawing is a function of the last look and the state of the screen, and tested without a
//! terminal at every size down to nothing.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use kiln_client::{ClusterStatus, NodeStatus};
use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Gauge, Paragraph, Row, Sparkline, Table},
};

use super::{
    load::{Look, per_second},
    nodes::{NodeLook, Process},
};
use crate::commands::output::{count, size, span};

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A node is to be killed.
    Kill,
    /// A node is to be stopped in good order.
    Stop,
    /// One that does not run is to be started.
    Start,
    /// The end.
    Quit,
}

/// What is shown.
pub(super) struct Screen {
    colour: bool,
    look: Look,
    nodes: Vec<NodeLook>,
    /// Newest last; at most [`SAID_MAX`].
    said: VecDeque<String>,
    /// Requests per second, oldest first; at most [`HISTORY_MAX`].
    history: Vec<u64>,
    rate: String,
    /// Requests answered at the last time that a rate was made.
    counted: (Instant, u64),
    /// A kill would lose data: asked once more.
    is_warned: bool,
}

/// Lines that are remembered.
const SAID_MAX: usize = 64;

/// Rates that are remembered.
const HISTORY_MAX: usize = 256;

/// Over which time a rate is made.
const RATE_EVERY: Duration = Duration::from_millis(500);

impl Screen {
    pub(super) fn new(colour: bool) -> Self {
        Self {
            colour,
            look: Look::default(),
            nodes: Vec::new(),
            said: VecDeque::new(),
            history: Vec::new(),
            rate: "0".to_owned(),
            counted: (Instant::now(), 0),
            is_warned: false,
        }
    }

    /// Something to tell.
    pub(super) fn say(&mut self, text: String) {
        if self.said.len() >= SAID_MAX {
            self.said.pop_front();
        }
        self.said.push_back(text);
    }

    pub(super) fn update(&mut self, look: Look, nodes: Vec<NodeLook>) {
        let (at, answered) = self.counted;
        let time = at.elapsed();
        if time >= RATE_EVERY {
            self.rate = per_second(look.answered, answered, time);
            if self.history.len() >= HISTORY_MAX {
                self.history.remove(0);
            }
            let more = look.answered.saturating_sub(answered);
            self.history.push((more as f64 / time.as_secs_f64()) as u64);
            self.counted = (Instant::now(), look.answered);
        }
        self.look = look;
        self.nodes = nodes;
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        let was_warned = std::mem::take(&mut self.is_warned);
        match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                Some(Wish::Quit)
            }
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Wish::Quit),
            KeyCode::Char('k' | 'K') => {
                let short = self.short();
                if short > 0 && !was_warned {
                    self.is_warned = true;
                    self.say(format!(
                        "{short} partitions have one copy only: killing now may lose data; k again \
                         does it"
                    ));
                    return None;
                }
                Some(Wish::Kill)
            }
            KeyCode::Char('s' | 'S') => Some(Wish::Stop),
            KeyCode::Char('r' | 'R') => Some(Wish::Start),
            _ => None,
        }
    }

    /// Partitions with fewer copies than promised.
    fn short(&self) -> u64 {
        let groups = self.look.status.iter().flat_map(|status| &status.groups);
        groups.map(|group| group.short + group.without_primary).sum()
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.is_empty() {
            return;
        }
        let nodes = u16::try_from(self.nodes.len()).unwrap_or(9) + 1;
        let [head, load, history, table, _, parts, said, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(3),
            Constraint::Length(if area.height >= 24 { 4 } else { 0 }),
            Constraint::Length(nodes),
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(self.headline(), head);
        frame.render_widget(Paragraph::new(self.load_lines()), load);
        let first = self.history.len().saturating_sub(usize::from(history.width));
        frame.render_widget(Sparkline::default().data(&self.history[first..]), history);
        self.draw_nodes(frame, table);
        self.draw_partitions(frame, parts);
        let shown = self.said.len().saturating_sub(usize::from(said.height));
        let lines: Vec<Line<'_>> =
            self.said.iter().skip(shown).map(|text| Line::raw(text.as_str())).collect();
        frame.render_widget(Paragraph::new(lines), said);
        let keys = "k kill a node  r start it again  s stop one in good order  q quit";
        frame.render_widget(Line::styled(keys, Modifier::DIM), foot);
    }

    fn headline(&self) -> Line<'_> {
        let mut spans = vec![Span::styled("kiln demo", Modifier::BOLD)];
        match &self.look.status {
            None => spans.push(Span::raw("  the cluster does not answer at the moment")),
            Some(status) => {
                let leader = status.nodes.iter().find(|node| node.id == status.control.leader);
                let leader = leader.map_or("nobody", |node| &node.name);
                spans.push(Span::raw(format!(
                    "  {} nodes, controller {leader}, epoch {}",
                    status.nodes.len(),
                    status.epoch
                )));
            }
        }
        Line::from(spans)
    }

    fn load_lines(&self) -> Vec<Line<'_>> {
        let tally = &self.look.tally;
        let [median, p99, longest] = self.look.latency_us.map(micros);
        let judged = |what: &str, count: u64| {
            let style = if count > 0 { self.alarm() } else { Style::default() };
            Span::styled(format!("  {what} {count}"), style)
        };
        vec![
            Line::raw(format!(
                "requests/s {}  latency median {median}  p99 {p99}  longest {longest}",
                self.rate
            )),
            Line::from(vec![
                Span::raw(format!("acknowledged writes {}", tally.writes)),
                Span::raw(format!("  checked reads {}", tally.reads)),
                judged("lost", tally.lost),
                judged("doubled", tally.doubled),
            ]),
            Line::raw(format!(
                "failed requests {} (outcome unknown {})  longest gap {}",
                tally.failed,
                tally.unknown,
                span(tally.longest_gap_ms)
            )),
        ]
    }

    fn draw_nodes(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.nodes.iter().map(|look| {
            let told = self
                .look
                .status
                .as_ref()
                .and_then(|status| status.nodes.iter().find(|node| node.name == look.name));
            self.row(look, told)
        });
        let widths = [6, 16, 10, 8, 6, 11, 6, 10].map(Constraint::Length);
        let headings = ["NODE", "PROCESS", "STATE", "OPS/S", "CPU%", "MEMORY", "LEADS", "HOLDS"];
        let table = Table::new(rows, widths)
            .header(Row::new(headings).style(Modifier::BOLD))
            .column_spacing(1);
        frame.render_widget(table, area);
    }

    fn row<'a>(&self, look: &'a NodeLook, told: Option<&'a NodeStatus>) -> Row<'a> {
        let process = match look.process {
            Process::Runs(pid) => format!("pid {pid}"),
            Process::Stopping(pid) => format!("stopping {pid}"),
            Process::Ended => "dead".to_owned(),
        };
        let style = match look.process {
            Process::Ended => self.alarm(),
            Process::Stopping(_) => self.notice(),
            Process::Runs(_) => Style::default(),
        };
        let Some(node) = told else {
            return Row::new([look.name.clone(), process, "-".to_owned()]).style(style);
        };
        let holds = match node.filling {
            0 => node.held.to_string(),
            filling => format!("{}+{filling}", node.held),
        };
        Row::new([
            look.name.clone(),
            process,
            node.state.clone(),
            count(node.operations_per_s as f64),
            format!("{:.0}", node.busy * 100.0),
            size(node.memory_used),
            node.led.to_string(),
            holds,
        ])
        .style(style)
    }

    /// Copies in place, and what is under way.
    fn draw_partitions(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(status) = &self.look.status else { return };
        let [bar, text] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
        let (there, wanted) = copies(status);
        let part = if wanted == 0 { 0.0 } else { there as f64 / wanted as f64 };
        let label = format!("copies in place {there}/{wanted}");
        let style = if there < wanted { self.notice() } else { self.calm() };
        frame.render_widget(
            Gauge::default().ratio(part.clamp(0.0, 1.0)).label(label).gauge_style(style),
            bar,
        );
        let (partitions, bytes) = status
            .transfers
            .iter()
            .fold((0, 0), |(count, bytes), transfer| (count + 1, bytes + transfer.bytes));
        let line = match (self.short(), partitions) {
            (0, 0) => "every partition has all its copies".to_owned(),
            (short, 0) => format!("{short} partitions have a copy missing"),
            (short, count) => format!(
                "{short} partitions have a copy missing, {count} copies are being filled, {} so far",
                size(bytes)
            ),
        };
        frame.render_widget(Line::raw(line), text);
    }

    fn alarm(&self) -> Style {
        self.style(Color::Red)
    }

    fn notice(&self) -> Style {
        self.style(Color::Yellow)
    }

    fn calm(&self) -> Style {
        self.style(Color::Green)
    }

    fn style(&self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else if colour == Color::Green {
            Style::default()
        } else {
            Style::new().add_modifier(Modifier::BOLD)
        }
    }
}

/// Copies where they should be, and all that are wanted.
fn copies(status: &ClusterStatus) -> (u64, u64) {
    status.groups.iter().fold((0, 0), |(there, wanted), group| {
        (there + group.copies_there, wanted + group.copies_wanted)
    })
}

fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use kiln_client::GroupStatus;
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::load::Tally, *};

    fn screen(short: u64) -> Screen {
        let node = |id, name: &str| NodeStatus {
            id,
            name: name.to_owned(),
            state: "ready".to_owned(),
            held: 683,
            led: 341,
            ..NodeStatus::default()
        };
        let status = ClusterStatus {
            nodes: vec![node(1, "n1"), node(2, "n2")],
            groups: vec![GroupStatus {
                short,
                copies_wanted: 2_048,
                copies_there: 2_048 - short,
                ..GroupStatus::default()
            }],
            ..ClusterStatus::default()
        };
        let tally = Tally { writes: 123, lost: 4, ..Tally::default() };
        let look = Look { status: Some(status), tally, ..Look::default() };
        let process = |name: &str, process| NodeLook { name: name.to_owned(), process };
        let mut screen = Screen::new(false);
        screen.update(look, vec![process("n1", Process::Runs(7)), process("n2", Process::Ended)]);
        screen
    }

    fn press(screen: &mut Screen, key: char) -> Option<Wish> {
        screen.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE))
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let mut text = String::new();
        for y in 0..height {
            for x in 0..width {
                text.push_str(buffer[(x, y)].symbol());
            }
            text.push('\n');
        }
        text
    }

    #[test]
    fn everything_that_matters_is_drawn_at_80_by_24() {
        let mut screen = screen(0);
        screen.say("n2 was killed (SIGKILL)".to_owned());
        let text = drawn(&screen, 80, 24);
        for part in [
            "n1",
            "pid 7",
            "dead",
            "341",
            "683",
            "lost 4",
            "acknowledged writes 123",
            "copies in place 2048/2048",
            "n2 was killed",
            "k kill a node",
            "q quit",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn any_size_can_be_drawn() {
        let screen = screen(3);
        for (width, height) in [(1, 1), (3, 40), (200, 2), (40, 10), (79, 23)] {
            drawn(&screen, width, height);
        }
    }

    #[test]
    fn a_kill_that_may_lose_data_is_asked_for_twice() {
        let mut whole = screen(0);
        assert_eq!(press(&mut whole, 'k'), Some(Wish::Kill));
        let mut short = screen(12);
        assert_eq!(press(&mut short, 'k'), None);
        assert!(drawn(&short, 80, 24).contains("k again"));
        assert_eq!(press(&mut short, 'x'), None);
        assert_eq!(press(&mut short, 'k'), None, "another key takes it back");
        assert_eq!(press(&mut short, 'k'), Some(Wish::Kill));
        assert_eq!(press(&mut short, 's'), Some(Wish::Stop));
        assert_eq!(press(&mut short, 'r'), Some(Wish::Start));
        assert_eq!(press(&mut short, 'q'), Some(Wish::Quit));
    }
}
