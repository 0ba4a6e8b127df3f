//! What `kiln top` draws, and what keys do to it.
//!
//! Drawing is a function of the figures and the state of the screen, and tested without a terminal
//! at every size down to nothing. Columns are in the order of their worth; those that do not fit
//! are left out whole, so no figure is ever cut in the middle.

use std::time::Duration;

use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph, Row, Sparkline, Table},
};

use super::{
    columns::{COLUMN_GAP, Column, cache_columns, key_columns, node_columns, protocol_columns},
    figures::{CacheFigures, Figures, NodeFigures, ProtocolFigures},
};
use crate::commands::output::{count, size, span};

/// By what nodes and caches are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    /// Operations per second.
    #[default]
    Operations,
    /// Hit ratio, worst first.
    Hits,
    /// Memory used.
    Memory,
    /// Evictions per second.
    Evictions,
    /// Name.
    Name,
}

impl Sort {
    fn name(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Hits => "hits",
            Self::Memory => "memory",
            Self::Evictions => "evictions",
            Self::Name => "name",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Operations => Self::Hits,
            Self::Hits => Self::Memory,
            Self::Memory => Self::Evictions,
            Self::Evictions => Self::Name,
            Self::Name => Self::Operations,
        }
    }
}

/// What is shown, and how.
#[derive(Debug)]
pub(super) struct Screen {
    /// Where the cluster is, for the first line.
    pub(super) address: String,
    pub(super) figures: Figures,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) interval: Duration,
    pub(super) colour: bool,
    /// Operations per second of the last looks, oldest first; at most [`HISTORY_LEN_MAX`].
    history: Vec<u64>,
}

/// What a key asks of the program around the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing but to draw.
    Draw,
    /// The end.
    Quit,
}

impl Screen {
    pub(super) fn new(address: String, sort: Sort, interval: Duration, colour: bool) -> Self {
        Self {
            address,
            figures: Figures::default(),
            sort,
            reversed: false,
            paused: false,
            help: false,
            interval,
            colour,
            history: Vec::new(),
        }
    }

    /// Takes new figures, unless it is paused.
    pub(super) fn update(&mut self, figures: Figures) {
        if self.paused {
            return;
        }
        self.figures = figures;
        if self.figures.interval_seconds > 0.0 {
            if self.history.len() >= HISTORY_LEN_MAX {
                self.history.remove(0);
            }
            self.history.push(self.figures.total.operations_per_second as u64);
        }
        self.arrange();
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Answer {
        match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Answer::Quit;
            }
            KeyCode::Char('q' | 'Q') => return Answer::Quit,
            KeyCode::Esc if !self.help => return Answer::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::Esc => self.help = !self.help,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.arrange();
            }
            KeyCode::Char('r') => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('+') => self.interval = (self.interval / 2).max(INTERVAL_MIN),
            KeyCode::Char('-') => self.interval = (self.interval * 2).min(INTERVAL_MAX),
            _ => {}
        }
        Answer::Draw
    }

    fn arrange(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        // Nodes without figures stand first: they are what one came to see.
        self.figures.nodes.sort_by(|a, b| {
            let key = |node: &NodeFigures| match sort {
                Sort::Operations => -node.operations_per_second,
                Sort::Hits => node.hit_percent.unwrap_or(f64::MAX),
                Sort::Memory => -(node.memory_used as f64),
                Sort::Evictions => -node.evictions_per_second,
                Sort::Name => 0.0,
            };
            let order = key(a).total_cmp(&key(b)).then_with(|| a.name.cmp(&b.name));
            let order = if reversed { order.reverse() } else { order };
            b.error.is_some().cmp(&a.error.is_some()).then(order)
        });
        self.figures.caches.sort_by(|a, b| {
            let key = |cache: &CacheFigures| match sort {
                Sort::Operations => -(cache.reads_per_second + cache.stores_per_second),
                Sort::Hits => cache.hit_percent.unwrap_or(f64::MAX),
                Sort::Memory => -(cache.memory_used as f64),
                Sort::Evictions => -cache.evictions_per_second,
                Sort::Name => 0.0,
            };
            let order = key(a).total_cmp(&key(b)).then_with(|| a.name.cmp(&b.name));
            if reversed { order.reverse() } else { order }
        });
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.is_empty() {
            return;
        }
        let figures = &self.figures;
        let protocols = self.protocols();
        let rows = |len: usize, most: u16| u16::try_from(len).unwrap_or(most).min(most) + 2;
        let roomy = area.height >= ROOMY_HEIGHT;
        let most = if roomy { area.height / 4 } else { 4 };
        let [head, history, nodes, caches, by_protocol, keys, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(if roomy { 5 } else { 0 }),
            Constraint::Length(rows(figures.nodes.len().max(1), most)),
            Constraint::Length(rows(figures.caches.len().max(1), most)),
            Constraint::Length(rows(protocols.len().max(1), 3)),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);

        self.draw_head(frame, head);
        if roomy {
            self.draw_history(frame, history);
        }
        self.draw_table(frame, nodes, &node_columns(), figures.nodes.iter());
        self.draw_table(frame, caches, &cache_columns(), figures.caches.iter());
        self.draw_table(frame, by_protocol, &protocol_columns(), protocols.iter());
        let [hottest, largest] =
            Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
                .spacing(2)
                .areas(keys);
        let hot = key_columns("HOTTEST KEYS", "READS~", hottest.width, |n| count(n as f64));
        self.draw_table(frame, hottest, &hot, figures.hottest.iter());
        let large = key_columns("LARGEST VALUES", "SIZE", largest.width, size);
        self.draw_table(frame, largest, &large, figures.largest.iter());
        let reversed = if self.reversed { ", reversed" } else { "" };
        let foot_text = format!(
            "q quit  ? help  s sort: {}{reversed}  r reverse  p {}  +/- every {}",
            self.sort.name(),
            if self.paused { "go on" } else { "pause" },
            span(u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX)),
        );
        frame.render_widget(Line::styled(foot_text, Modifier::DIM), foot);
        if self.help {
            self.draw_help(frame, area);
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let figures = &self.figures;
        let total = &figures.total;
        let down = figures.nodes.iter().filter(|node| node.error.is_some()).count();
        let nodes = match figures.nodes.len() {
            1 => "1 node".to_owned(),
            len => format!("{len} nodes"),
        };
        let mut first = vec![
            Span::styled("kiln top", Modifier::BOLD),
            Span::raw(format!("  {}  {nodes}", self.address)),
        ];
        if down > 0 {
            first.push(Span::styled(format!(", {down} not answering"), self.alarm()));
        }
        if self.paused {
            first.push(Span::styled("  PAUSED", Modifier::BOLD));
        }
        let hits = total.hit_percent.map_or("-".to_owned(), |percent| format!("{percent:.1}%"));
        let second = format!(
            "ops/s {}  hits {hits}  memory {}/{}  evict/s {}  conn {}  items {}",
            count(total.operations_per_second),
            size(total.memory_used),
            size(total.memory_limit),
            count(total.evictions_per_second),
            total.connections,
            count(total.items as f64),
        );
        frame.render_widget(Paragraph::new(vec![Line::from(first), Line::raw(second)]), area);
    }

    fn draw_history(&self, frame: &mut Frame<'_>, area: Rect) {
        let most = self.history.iter().copied().max().unwrap_or(0);
        let [title, bars] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
        let text = format!("OPERATIONS PER SECOND, at most {}", count(most as f64));
        frame.render_widget(Line::styled(text, Modifier::BOLD), title);
        let first = self.history.len().saturating_sub(usize::from(bars.width));
        frame.render_widget(Sparkline::default().data(&self.history[first..]), bars);
    }

    /// All nodes' figures of each protocol, with the worst latencies.
    fn protocols(&self) -> Vec<ProtocolFigures> {
        let mut sum: Vec<ProtocolFigures> = Vec::new();
        for protocol in self.figures.nodes.iter().flat_map(|node| &node.protocols) {
            match sum.iter_mut().find(|known| known.protocol == protocol.protocol) {
                None => sum.push(protocol.clone()),
                Some(known) => {
                    known.operations_per_second += protocol.operations_per_second;
                    known.latency = match (known.latency, protocol.latency) {
                        (Some(a), Some(b)) if a.p99_us < b.p99_us => Some(b),
                        (None, b) => b,
                        (a, _) => a,
                    };
                }
            }
        }
        sum
    }

    fn draw_table<'a, T: 'a>(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        columns: &[Column<T>],
        rows: impl Iterator<Item = &'a T>,
    ) {
        if area.is_empty() {
            return;
        }
        let mut left = area.width;
        let fitting = columns
            .iter()
            .take_while(|column| {
                let fits = left >= column.width;
                left = left.saturating_sub(column.width + COLUMN_GAP);
                fits
            })
            .count()
            .max(1);
        let columns = &columns[..fitting];
        let align = |column: &Column<T>, text: String| {
            let line = Line::raw(text);
            if column.number { line.right_aligned() } else { line }
        };
        // What is wrong with a row stands over all its columns, so it is written afterwards.
        let mut wrong = Vec::new();
        let rows = rows.take(usize::from(area.height)).enumerate().map(|(index, row)| {
            if let Some(reason) = columns.first().and_then(|column| (column.wrong)(row)) {
                wrong.push((index, reason));
            }
            Row::new(columns.iter().map(|column| align(column, (column.text)(row))))
        });
        let rows: Vec<_> = rows.collect();
        let heading = columns.iter().map(|column| align(column, column.heading.to_owned()));
        let table = Table::new(rows, columns.iter().map(|c| Constraint::Length(c.width)))
            .header(Row::new(heading).style(Modifier::BOLD))
            .column_spacing(COLUMN_GAP);
        frame.render_widget(table, area);
        for (index, reason) in wrong {
            let y = area.y + 1 + u16::try_from(index).unwrap_or(u16::MAX - area.y - 1);
            if y < area.bottom() {
                let line = Rect { y, height: 1, ..area };
                frame.render_widget(Line::styled(reason, self.alarm()), line);
            }
        }
    }

    fn draw_help(&self, frame: &mut Frame<'_>, area: Rect) {
        let (width, height) = (area.width.min(60), area.height.min(HELP.len() as u16 + 2));
        let help = Rect {
            x: area.x + (area.width - width) / 2,
            y: area.y + (area.height - height) / 2,
            width,
            height,
        };
        let lines: Vec<_> = HELP.iter().map(|line| Line::raw(*line)).collect();
        frame.render_widget(Clear, help);
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" help ")), help);
    }

    fn alarm(&self) -> Style {
        let style = Style::default().add_modifier(Modifier::BOLD);
        if self.colour { style.fg(Color::Red) } else { style }
    }
}

const HELP: &[&str] = &[
    "q, Esc    quit",
    "?         this help",
    "s         sort nodes and caches by the next figure:",
    "          operations, hits, memory, evictions, name",
    "r         the other way round",
    "p, space  stop and go on",
    "+ -       look more or less often",
    "",
    "READS~ are estimated from a sample of reads.",
    "Latency: from a request read to its reply written,",
    "over the last seconds, on the node.",
    "A wider terminal shows more columns.",
];

/// From this height on there is room for the history.
const ROOMY_HEIGHT: u16 = 32;

const HISTORY_LEN_MAX: usize = 1000;

pub(super) const INTERVAL_MIN: Duration = Duration::from_millis(100);
pub(super) const INTERVAL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::super::figures::tests::{node, sample};
    use super::*;

    fn screen() -> Screen {
        let mut screen =
            Screen::new("kiln://h:1".to_owned(), Sort::default(), Duration::from_secs(1), false);
        let before = sample(1, vec![Ok(node("alpha", 1)), Err("gone".to_owned())]);
        let now = sample(2, vec![Ok(node("alpha", 5)), Err("connection refused".to_owned())]);
        screen.update(Figures::between(Some(&before), &now));
        screen
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width.max(1)));
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
    }

    fn press(screen: &mut Screen, key: char) -> Answer {
        screen.key(KeyEvent::from(KeyCode::Char(key)))
    }

    #[test]
    fn everything_that_matters_is_seen_at_eighty_by_twenty_four() {
        let text = drawn(&screen(), 80, 24);
        for part in [
            "ops/s 800",
            "hits 90.0%",
            "alpha",
            "h:1: connection refused",
            "sessions",
            "memcached",
            "12000",
            "HOTTEST KEYS",
            "LARGEST VALUES",
            "hot",
            "\\xff",
            "1.0 MiB",
            "EVICT/S",
            "CONN",
            "q quit",
            "1 not answering",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_wide_terminal_shows_more_columns_and_the_history() {
        let text = drawn(&screen(), 160, 50);
        for part in ["ADDRESS", "VERSION", "IN/S", "UP", "OPERATIONS PER SECOND, at most 800"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn no_size_of_the_terminal_is_too_small_to_draw() {
        let mut screen = screen();
        for help in [false, true] {
            screen.help = help;
            for width in (0..=30).chain([79, 80, 81, 200]) {
                for height in (0..=40).chain([100]) {
                    drawn(&screen, width, height);
                }
            }
        }
    }

    #[test]
    fn keys_sort_pause_help_and_quit() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, 's'), Answer::Draw);
        assert_eq!(screen.sort, Sort::Hits);
        press(&mut screen, 'p');
        let before = screen.figures.nodes.len();
        screen.update(Figures::default());
        assert_eq!(screen.figures.nodes.len(), before, "paused");
        press(&mut screen, 'p');
        screen.update(Figures::default());
        assert!(screen.figures.nodes.is_empty());
        press(&mut screen, '?');
        assert!(drawn(&screen, 80, 24).contains("this help"));
        assert_eq!(screen.key(KeyEvent::from(KeyCode::Esc)), Answer::Draw, "closes the help");
        assert_eq!(screen.key(KeyEvent::from(KeyCode::Esc)), Answer::Quit);
        assert_eq!(press(&mut screen, 'q'), Answer::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.key(interrupt), Answer::Quit);
    }

    #[test]
    fn nodes_without_figures_stand_first_whatever_the_order() {
        let mut screen = screen();
        for _ in 0..10 {
            assert!(screen.figures.nodes[0].error.is_some(), "{:?}", screen.sort);
            press(&mut screen, 's');
            press(&mut screen, 'r');
        }
    }

    #[test]
    fn the_history_has_a_bound() {
        let mut screen = screen();
        let figures = Figures { interval_seconds: 1.0, ..Figures::default() };
        for _ in 0..2 * HISTORY_LEN_MAX {
            screen.update(figures.clone());
        }
        assert_eq!(screen.history.len(), HISTORY_LEN_MAX);
    }

    #[test]
    fn nothing_is_coloured_unless_it_is_wanted() {
        let mut screen = screen();
        for colour in [false, true] {
            screen.colour = colour;
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| screen.draw(frame)).unwrap();
            let buffer = terminal.backend().buffer();
            let coloured = buffer.content().iter().any(|cell| cell.fg != Color::Reset);
            assert_eq!(coloured, colour);
        }
    }
}
