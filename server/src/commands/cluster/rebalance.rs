//! What is still to be moved so that all copies are where the controller wants them.
//!
//! The controller moves copies by itself, throttled; there is nothing to start. What one wants to
//! know is how much of it is ahead, as before a node is stopped for good.

use kiln_client::{ClusterStatus, MoveView};
use serde::Serialize;

use super::{
    super::{
        CommandError, EXIT_CODES,
        connect::ConnectArgs,
        output::{self, Format, OutputArgs, Table},
    },
    gather::{self, id, name},
};

/// Show what the controller still has to move.
///
/// It moves copies by itself whenever nodes come, go or change their weight.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Rebalance {
    /// Only show; there is nothing else that needs doing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct MoveJson<'a> {
    mode: &'a str,
    copies: u32,
    what: &'a str,
    from: Option<String>,
    to: Option<String>,
    partitions: u64,
}

#[derive(Serialize)]
struct PlanJson<'a> {
    epoch: u64,
    partitions: u64,
    moves: Vec<MoveJson<'a>>,
}

impl Rebalance {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        if !self.dry_run {
            return Err(CommandError::Usage(
                "copies are moved by the controller itself\n  `kiln cluster rebalance --dry-run` \
                 shows what it still has to move."
                    .to_owned(),
            ));
        }
        let client = self.connect.client().await?;
        let status = gather::status(&client).await?;
        let left: u64 = moves(&status).map(|(_, _, moved)| moved.partitions).sum();
        match self.output.or(Format::Table) {
            Format::Json => {
                let id = |node: u64| (node != 0).then(|| id(node));
                let moves = moves(&status).map(|(mode, copies, moved)| MoveJson {
                    mode,
                    copies,
                    what: &moved.what,
                    from: id(moved.from),
                    to: id(moved.to),
                    partitions: moved.partitions,
                });
                let moves = moves.collect();
                output::print_json(&PlanJson { epoch: status.epoch, partitions: left, moves })
            }
            Format::Raw => output::print(format!("{left}\n")),
            Format::Table if left == 0 => output::print("everything is where it should be\n"),
            Format::Table => table(&status).print(),
        }
    }
}

fn moves(status: &ClusterStatus) -> impl Iterator<Item = (&str, u32, &MoveView)> {
    status
        .groups
        .iter()
        .flat_map(|group| group.moves.iter().map(move |moved| (&*group.mode, group.copies, moved)))
}

fn table(status: &ClusterStatus) -> Table {
    let mut table = Table::new(&["PARTITIONS OF", "WHAT", "FROM", "TO", "HOW MANY"]);
    for (mode, copies, moved) in moves(status) {
        let what = match (&*moved.what, moved.from, moved.to) {
            ("primary", ..) => "order of writes",
            (_, 0, _) => "missing copy",
            (_, _, 0) => "copy too many",
            _ => "copy",
        };
        let node = |id: u64| if id == 0 { "-".to_owned() } else { name(status, id) };
        table.row(vec![
            format!("{mode} x{copies}").into(),
            what.into(),
            node(moved.from).into(),
            node(moved.to).into(),
            moved.partitions.into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use kiln_client::GroupStatus;

    use super::{super::gather::tests::node, *};

    #[test]
    fn moves_are_told_by_what_they_are_and_between_whom() {
        let moved =
            |what: &str, from, to| MoveView { what: what.to_owned(), from, to, partitions: 7 };
        let status = ClusterStatus {
            nodes: vec![node(1, "a"), node(2, "b")],
            groups: vec![GroupStatus {
                mode: "strong".to_owned(),
                copies: 2,
                moves: vec![
                    moved("copy", 1, 2),
                    moved("copy", 0, 2),
                    moved("copy", 1, 0),
                    moved("primary", 1, 2),
                ],
                ..GroupStatus::default()
            }],
            ..ClusterStatus::default()
        };
        let text = table(&status).as_text();
        let expected = "\
PARTITIONS OF  WHAT             FROM  TO  HOW MANY
strong x2      copy             a     b          7
strong x2      missing copy     -     b          7
strong x2      copy too many    a     -          7
strong x2      order of writes  a     b          7
";
        assert_eq!(text, expected);
    }
}
