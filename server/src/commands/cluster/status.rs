//! How the cluster is, at a glance.
//!
//! What matters most stands first: a line about the whole, the nodes, how well partitions are kept,
//! what is under way, what to do. Columns that say nothing, as zones when none is named, are left
//! out, so that a usual cluster fits into 80 columns.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal},
    time::Duration,
};

use kiln_client::{ClusterStatus, GroupStatus, NodeStatus};
use serde::Serialize;

use super::{
    super::{
        CommandError, EXIT_CODES,
        connect::{ConnectArgs, period},
        output::{self, Cell, Format, OutputArgs, Table, count, size, span},
    },
    gather::{self, id, name},
};

/// Nodes, how well partitions are kept, transfers, warnings, events.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Status {
    /// Look again each time so much has passed, until interrupted.
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "1s",
          value_parser = interval)]
    watch: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = period(text)?;
    if interval < INTERVAL_MIN {
        return Err("must be 100ms or more".to_owned());
    }
    Ok(interval)
}

const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Events shown to people.
const EVENTS_SHOWN: usize = 8;

/// Transfers shown to people.
const TRANSFERS_SHOWN: usize = 8;

/// Cells of a progress bar.
const BAR_LEN: u64 = 12;

impl Status {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let format = self.output.or(Format::Table);
        let Some(interval) = self.watch else {
            return show(&gather::status(&client).await?, None, format, false);
        };
        let mut before: Option<ClusterStatus> = None;
        loop {
            match gather::status(&client).await {
                Ok(status) => {
                    if format == Format::Table && io::stdout().is_terminal() {
                        // Home, and everything below is erased: what is drawn again does not
                        // flicker as it would if the screen were cleared first.
                        output::print("\x1b[H\x1b[J")?;
                    }
                    show(&status, before.as_ref(), format, true)?;
                    before = Some(status);
                }
                // It may come back, and that is what one watches for.
                Err(CommandError::Unreachable(text)) => eprintln!("kiln: {text}"),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(interval).await;
        }
    }
}

fn show(
    status: &ClusterStatus,
    before: Option<&ClusterStatus>,
    format: Format,
    again: bool,
) -> Result<(), CommandError> {
    match format {
        Format::Json if again => {
            let text = serde_json::to_string(&StatusJson::of(status));
            let text = text
                .map_err(|error| CommandError::Failed(format!("cannot write as JSON: {error}")))?;
            output::print(text + "\n")
        }
        Format::Json => output::print_json(&StatusJson::of(status)),
        Format::Raw => {
            let lines = status.nodes.iter().map(|n| format!("{}\t{}\n", n.name, n.state));
            output::print(lines.collect::<String>())
        }
        Format::Table => show_tables(status, before),
    }
}

fn show_tables(status: &ClusterStatus, before: Option<&ClusterStatus>) -> Result<(), CommandError> {
    output::print(headline(status))?;
    nodes(status).print()?;
    output::print("\n")?;
    groups(status).print()?;
    let transfers = transfers(status, before);
    if let Some((table, more)) = transfers {
        output::print("\n")?;
        table.print()?;
        if more > 0 {
            output::print(format!("… and {more} more\n"))?;
        }
    }
    output::print(warnings(status) + &events(status))
}

fn headline(status: &ClusterStatus) -> String {
    let ready = status.nodes.iter().filter(|node| node.state == "ready").count();
    let nodes = status.nodes.len();
    let health = match status.warnings.first().map(|warning| &*warning.level) {
        Some("error") => "needs help",
        Some("warning") => "works, with less safety than promised",
        _ => "healthy",
    };
    let plural = if nodes == 1 { "node" } else { "nodes" };
    let mut text = format!(
        "cluster {}: {health}, {ready} of {nodes} {plural} ready, epoch {}\n",
        status.cluster_id, status.epoch
    );
    let voters: Vec<String> =
        status.control.voters.iter().map(|voter| name(status, *voter)).collect();
    let controller = match status.control.leader {
        0 => "nobody".to_owned(),
        leader => name(status, leader),
    };
    let _ = writeln!(
        text,
        "controller {controller} (term {}), voters {}\n",
        status.control.term,
        voters.join(", ")
    );
    text
}

fn nodes(status: &ClusterStatus) -> Table {
    let zones = status.nodes.iter().any(|node| !node.zone.is_empty());
    let weights = status.nodes.iter().any(|node| node.weight != 1.0 || node.witness);
    let mut headings = vec!["NODE", "ID", "STATE"];
    headings.extend(zones.then_some("ZONE"));
    headings.extend(weights.then_some("WEIGHT"));
    headings.extend(["HEARD", "OPS/S", "CPU%", "MEMORY", "LEADS", "HOLDS", "WANTED"]);
    let mut table = Table::new(&headings);
    for node in &status.nodes {
        let mut cells: Vec<Cell> =
            vec![node.name.clone().into(), id(node.id)[..8].into(), node.state.clone().into()];
        let zone = if node.zone.is_empty() { "-" } else { &node.zone };
        cells.extend(zones.then(|| zone.into()));
        let weight = if node.witness { "witness".to_owned() } else { node.weight.to_string() };
        cells.extend(weights.then_some(Cell::Number(weight)));
        let is_up = node.state != "down";
        let number = |text: String| Cell::Number(if is_up { text } else { "-".to_owned() });
        cells.extend([
            Cell::Number(heard(node)),
            number(count(node.operations_per_s as f64)),
            number(format!("{:.0}", node.busy * 100.0)),
            number(size(node.memory_used)),
            node.led.into(),
            held(node),
            node.wanted.into(),
        ]);
        table.row(cells);
    }
    table
}

fn heard(node: &NodeStatus) -> String {
    match node.heard_ms_ago {
        None => "never".to_owned(),
        Some(ms) if ms < 1_000 && node.state != "down" => "now".to_owned(),
        Some(ms) => span(ms),
    }
}

/// Full copies, and those that are being filled.
fn held(node: &NodeStatus) -> Cell {
    match node.filling {
        0 => node.held.into(),
        filling => Cell::Number(format!("{}+{filling}", node.held)),
    }
}

fn groups(status: &ClusterStatus) -> Table {
    let headings =
        ["PARTITIONS", "WHOLE", "COPY MISSING", "NOT SERVED", "LOST", "IN PLACE", "CACHES"];
    let mut table = Table::new(&headings);
    for group in &status.groups {
        table.row(vec![
            format!("{} x{}", group.mode, group.copies).into(),
            group.whole.into(),
            group.short.into(),
            group.without_primary.into(),
            group.lost.into(),
            in_place(group).into(),
            group.caches.join(", ").into(),
        ]);
    }
    table
}

/// How many of the copies that the controller wants are where it wants them.
fn in_place(group: &GroupStatus) -> String {
    bar(group.copies_there, group.copies_wanted)
}

fn bar(done: u64, all: u64) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    let done = done.min(all);
    let filled = (done * BAR_LEN / all) as usize;
    // Only what is done is full.
    let percent = done * 100 / all;
    format!("[{}{}] {percent}%", "#".repeat(filled), "-".repeat(BAR_LEN as usize - filled))
}

/// What is moved from one node to another.
#[derive(Default)]
struct Flow {
    partitions: u64,
    bytes: u64,
    /// When the first of them began.
    since_ms: u64,
}

fn flows(status: &ClusterStatus) -> BTreeMap<(u64, u64), Flow> {
    let mut flows: BTreeMap<(u64, u64), Flow> = BTreeMap::new();
    for transfer in &status.transfers {
        let flow = flows.entry((transfer.from, transfer.to)).or_default();
        if flow.partitions == 0 || transfer.since_ms < flow.since_ms {
            flow.since_ms = transfer.since_ms;
        }
        flow.partitions += 1;
        flow.bytes += transfer.bytes;
    }
    flows
}

/// The transfers, and how many were left out.
fn transfers(status: &ClusterStatus, before: Option<&ClusterStatus>) -> Option<(Table, usize)> {
    let all = flows(status);
    if all.is_empty() {
        return None;
    }
    let mut table = Table::new(&["TRANSFER", "PARTITIONS", "BYTES", "RATE", "FILLED"]);
    for ((from, to), flow) in all.iter().take(TRANSFERS_SHOWN) {
        let target = status.nodes.iter().find(|node| node.id == *to);
        let filled = target.map_or(String::new(), |node| bar(node.held, node.wanted));
        table.row(vec![
            format!("{} -> {}", name(status, *from), name(status, *to)).into(),
            flow.partitions.into(),
            Cell::Number(size(flow.bytes)),
            Cell::Number(rate(status, flow, before, (*from, *to))),
            filled.into(),
        ]);
    }
    Some((table, all.len().saturating_sub(TRANSFERS_SHOWN)))
}

/// Since the last look if there was one and the same partitions were under way, else since the
/// transfers began.
fn rate(
    status: &ClusterStatus,
    flow: &Flow,
    before: Option<&ClusterStatus>,
    between: (u64, u64),
) -> String {
    let last = before.and_then(|before| {
        let last = flows(before).remove(&between)?;
        let bytes = flow.bytes.checked_sub(last.bytes)?;
        Some((bytes, status.now_ms.saturating_sub(before.now_ms)))
    });
    let since = (flow.bytes, status.now_ms.saturating_sub(flow.since_ms));
    let (bytes, ms) = last.unwrap_or(since);
    match ms {
        0 => "-".to_owned(),
        ms => format!("{}/s", size((u128::from(bytes) * 1_000 / u128::from(ms)) as u64)),
    }
}

fn warnings(status: &ClusterStatus) -> String {
    let mut out = String::new();
    for warning in &status.warnings {
        let level = match &*warning.level {
            "error" => "ERROR  ",
            "warning" => "warning",
            _ => "note   ",
        };
        let _ = write!(out, "\n{level}  {}\n         {}", warning.text, warning.advice);
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn events(status: &ClusterStatus) -> String {
    let mut out = String::new();
    let shown = status.events.len().saturating_sub(EVENTS_SHOWN);
    for event in &status.events[shown..] {
        let ago = span(status.now_ms.saturating_sub(event.at_ms));
        let _ = write!(out, "\n{ago:>8} ago  {}", event.text);
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

/// The cluster for programs. Ids are text: they are longer than what JSON numbers keep.
#[derive(Serialize)]
struct StatusJson<'a> {
    cluster_id: &'a str,
    epoch: u64,
    partitions: u32,
    now_ms: u64,
    controller: Option<String>,
    term: u64,
    voters: Vec<String>,
    nodes: Vec<NodeJson<'a>>,
    groups: Vec<GroupJson<'a>>,
    transfers: Vec<TransferJson>,
    warnings: &'a [kiln_client::Warning],
    events: &'a [kiln_client::EventView],
    caches: Vec<&'a str>,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    id: String,
    name: &'a str,
    state: &'a str,
    zone: &'a str,
    weight: f64,
    witness: bool,
    voter: bool,
    heard_ms_ago: Option<u64>,
    operations_per_second: u64,
    busy: f64,
    memory_used: u64,
    memory_limit: u64,
    /// Partitions that the node orders writes for, of all groups.
    primary_partitions: u64,
    /// Partitions that it has other full copies of.
    copies_partitions: u64,
    /// Partitions that it is being filled with.
    filling_partitions: u64,
    /// Partitions that it shall have.
    wanted_partitions: u64,
    /// Partitions of which it has the only full copy.
    last_copies: u64,
    native: &'a str,
    memcached: &'a str,
    http: &'a str,
    peer: &'a str,
}

#[derive(Serialize)]
struct GroupJson<'a> {
    mode: &'a str,
    copies: u32,
    copies_possible: u32,
    caches: &'a [String],
    whole: u64,
    copy_missing: u64,
    not_served: u64,
    lost: u64,
    copies_wanted: u64,
    copies_in_place: u64,
}

#[derive(Serialize)]
struct TransferJson {
    mode: String,
    copies: u32,
    partition: u32,
    from: String,
    to: String,
    bytes: u64,
    since_ms: u64,
}

impl<'a> StatusJson<'a> {
    fn of(status: &'a ClusterStatus) -> Self {
        let mut caches: Vec<&str> = status
            .groups
            .iter()
            .flat_map(|group| group.caches.iter().map(String::as_str))
            .collect();
        caches.sort_unstable();
        let voters = &status.control.voters;
        Self {
            cluster_id: &status.cluster_id,
            epoch: status.epoch,
            partitions: status.partitions,
            now_ms: status.now_ms,
            controller: (status.control.leader != 0).then(|| id(status.control.leader)),
            term: status.control.term,
            voters: voters.iter().map(|voter| id(*voter)).collect(),
            nodes: status
                .nodes
                .iter()
                .map(|node| NodeJson::of(node, voters.contains(&node.id)))
                .collect(),
            groups: status.groups.iter().map(GroupJson::of).collect(),
            transfers: status
                .transfers
                .iter()
                .map(|transfer| TransferJson {
                    mode: transfer.mode.clone(),
                    copies: transfer.copies,
                    partition: transfer.partition,
                    from: id(transfer.from),
                    to: id(transfer.to),
                    bytes: transfer.bytes,
                    since_ms: transfer.since_ms,
                })
                .collect(),
            warnings: &status.warnings,
            events: &status.events,
            caches,
        }
    }
}

impl<'a> NodeJson<'a> {
    fn of(node: &'a NodeStatus, voter: bool) -> Self {
        Self {
            id: id(node.id),
            name: &node.name,
            state: &node.state,
            zone: &node.zone,
            weight: node.weight,
            witness: node.witness,
            voter,
            heard_ms_ago: node.heard_ms_ago,
            operations_per_second: node.operations_per_s,
            busy: node.busy,
            memory_used: node.memory_used,
            memory_limit: node.memory_limit,
            primary_partitions: node.led,
            copies_partitions: node.held.saturating_sub(node.led),
            filling_partitions: node.filling,
            wanted_partitions: node.wanted,
            last_copies: node.last_copies,
            native: &node.native,
            memcached: &node.memcached,
            http: &node.http,
            peer: &node.peer,
        }
    }
}

impl<'a> GroupJson<'a> {
    fn of(group: &'a GroupStatus) -> Self {
        Self {
            mode: &group.mode,
            copies: group.copies,
            copies_possible: group.copies_possible,
            caches: &group.caches,
            whole: group.whole,
            copy_missing: group.short,
            not_served: group.without_primary,
            lost: group.lost,
            copies_wanted: group.copies_wanted,
            copies_in_place: group.copies_there,
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_client::{ControlView, EventView, TransferView, Warning};
    use unicode_width::UnicodeWidthStr;

    use super::{super::gather::tests::node, *};

    fn status() -> ClusterStatus {
        let mut nodes = vec![node(0x1f3a_9c20_0000_0001, "n1"), node(2, "n2"), node(3, "n3")];
        for node in &mut nodes {
            node.held = 683;
            node.led = 342;
            node.wanted = 683;
            node.operations_per_s = 12_345;
            node.heard_ms_ago = Some(80);
            node.memory_used = 12 << 20;
        }
        nodes[2].state = "draining".to_owned();
        nodes[2].filling = 12;
        let transfer = |partition| TransferView {
            from: 2,
            to: 3,
            partition,
            bytes: 3 << 20,
            since_ms: 90_000,
            ..TransferView::default()
        };
        ClusterStatus {
            cluster_id: "00c0ffee00c0ffee".to_owned(),
            epoch: 412,
            partitions: 1_024,
            now_ms: 96_000,
            control: ControlView {
                leader: 2,
                term: 3,
                voters: vec![0x1f3a_9c20_0000_0001, 2, 3],
                ..ControlView::default()
            },
            nodes,
            groups: vec![GroupStatus {
                mode: "strong".to_owned(),
                copies: 2,
                copies_possible: 2,
                caches: vec!["default".to_owned()],
                whole: 1_012,
                short: 12,
                copies_wanted: 2_048,
                copies_there: 2_036,
                ..GroupStatus::default()
            }],
            transfers: vec![transfer(1), transfer(2)],
            events: vec![EventView { at_ms: 91_000, text: "node n3 joined".to_owned() }],
            warnings: vec![Warning {
                level: "note".to_owned(),
                text: "n3 hands over".to_owned(),
                advice: "wait".to_owned(),
            }],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn a_usual_cluster_fits_into_80_columns() {
        let status = status();
        let transfers = transfers(&status, None).unwrap().0;
        for table in [nodes(&status), groups(&status), transfers] {
            let text = table.as_text();
            assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        }
        assert!(headline(&status).lines().all(|line| line.width() <= 80));
        assert!(headline(&status).contains("healthy, 2 of 3 nodes ready"), "{}", headline(&status));
        assert!(headline(&status).contains("controller n2 (term 3), voters n1, n2, n3"));
    }

    #[test]
    fn columns_that_say_nothing_are_left_out() {
        let mut status = status();
        assert!(!nodes(&status).as_text().contains("ZONE"));
        status.nodes[0].zone = "east".to_owned();
        status.nodes[1].weight = 2.5;
        status.nodes[2].witness = true;
        let text = nodes(&status).as_text();
        for part in ["ZONE", "east", "WEIGHT", "2.5", "witness", "683+12"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn transfers_are_told_by_pair_of_nodes_with_their_rate() {
        let now = status();
        let text = transfers(&now, None).unwrap().0.as_text();
        // 6 MiB in 6 s.
        for part in ["n2 -> n3", "6.0 MiB", "1.0 MiB/s", "100%"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Since the last look: 4 MiB in 2 s.
        let mut before = status();
        before.now_ms -= 2_000;
        before.transfers.iter_mut().for_each(|transfer| transfer.bytes = 1 << 20);
        let text = transfers(&now, Some(&before)).unwrap().0.as_text();
        assert!(text.contains("2.0 MiB/s"), "{text}");
        assert!(transfers(&ClusterStatus::default(), None).is_none());
    }

    #[test]
    fn a_bar_is_full_only_when_all_is_done() {
        assert_eq!(bar(0, 3), format!("[{}] 0%", "-".repeat(12)));
        assert_eq!(bar(2_047, 2_048), format!("[{}-] 99%", "#".repeat(11)));
        assert_eq!(bar(5, 3), format!("[{}] 100%", "#".repeat(12)));
        assert_eq!(bar(0, 0), "-");
    }

    #[test]
    fn ids_are_text_for_programs_and_warnings_come_with_advice() {
        let status = status();
        let json = serde_json::to_value(StatusJson::of(&status)).unwrap();
        assert_eq!(json["nodes"][0]["id"], "1f3a9c2000000001");
        assert_eq!(json["controller"], "0000000000000002");
        assert_eq!(json["nodes"][0]["copies_partitions"], 341);
        assert_eq!(json["warnings"][0]["advice"], "wait");
        assert_eq!(json["groups"][0]["copy_missing"], 12);
        assert!(warnings(&status).contains("note     n3 hands over\n         wait"));
        assert!(events(&status).contains("5s ago  node n3 joined"));
    }
}
