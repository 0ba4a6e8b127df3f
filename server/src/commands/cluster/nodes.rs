//! What operators change about nodes.
//!
//! What can be undone is done at once; what loses data says first what is lost, and asks. Asking
//! for what is so already succeeds.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_client::{Client, ClusterChange, ClusterStatus, NodeStatus, change};

use super::{
    super::{
        CommandError, EXIT_CODES,
        connect::{ConnectArgs, explain, period},
    },
    gather::{self, find_node},
};
use crate::config::Value;

/// Between two looks at a node that hands over.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Have a node hand over all it holds, before it is stopped.
///
/// It goes on serving until others have everything, and takes nothing new. Without --wait the
/// command returns when the cluster has taken note. A node that is stopped by SIGTERM does the same
/// by itself.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Drain {
    /// The node: its name, or the beginning of its id.
    node: String,
    /// Wait until it holds nothing any more, and show how far it is.
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
    /// With --wait: longest wait.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = period)]
    within: Duration,
    /// Use the node again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Drain {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let status = gather::status(&client).await?;
        let node = find_node(&status, &self.node)?.clone();
        let action = if self.undo { change::UNDO_DRAIN } else { change::DRAIN };
        ask(&client, &node, action, |change| change).await?;
        if self.undo {
            eprintln!("{} is used again", node.name);
            return Ok(());
        }
        if self.wait {
            return wait(&client, &node, self.within).await;
        }
        match node.held + node.filling {
            0 => eprintln!("{} holds nothing: it can be stopped", node.name),
            left => eprintln!("{} hands over {left} partitions; --wait shows how far", node.name),
        }
        Ok(())
    }
}

/// Waits until a node holds nothing.
async fn wait(client: &Client, node: &NodeStatus, within: Duration) -> Result<(), CommandError> {
    let deadline = Instant::now() + within;
    let all = node.held.max(1);
    let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr_with_hz(5));
    let template = "{msg} {bar:25} {percent:>3} %  {pos}/{len} partitions handed over";
    let bar = match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    };
    let bar = bar.with_message(node.name.clone());
    let mut left = all;
    loop {
        match gather::status(client).await {
            Ok(status) => {
                let now = status.nodes.iter().find(|now| now.id == node.id);
                if let Some(now) = now.filter(|now| now.incarnation == node.incarnation) {
                    left = now.held + now.filling;
                    bar.set_position(all.saturating_sub(now.held));
                    if now.state == "down" && left > 0 {
                        bar.abandon();
                        return Err(CommandError::Failed(format!(
                            "{} went down with {left} partitions left",
                            node.name
                        )));
                    }
                    if now.state != "draining" && left > 0 {
                        bar.abandon();
                        return Err(CommandError::Failed(format!(
                            "{} is not draining any more: it is {}",
                            node.name, now.state
                        )));
                    }
                } else {
                    // It left, or it was restarted and holds nothing.
                    left = 0;
                }
            }
            // The node that was asked may be the one that leaves.
            Err(CommandError::Unreachable(_)) => {}
            Err(error) => return Err(error),
        }
        if left == 0 {
            bar.finish_and_clear();
            eprintln!("{} holds nothing any more: it can be stopped", node.name);
            return Ok(());
        }
        if Instant::now() >= deadline {
            bar.abandon();
            return Err(CommandError::Failed(format!(
                "{} still has {left} partitions\n  It goes on; `kiln cluster status` shows why it \
                 takes long.",
                node.name
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Take a node that is gone for good out of the cluster.
///
/// What it alone held is lost by this. A node that comes back after all joins as a new one.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Remove {
    /// The node: its name, or the beginning of its id.
    node: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Also when it is up and holds something.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Remove {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let status = gather::status(&client).await?;
        let node = find_node(&status, &self.node)?.clone();
        let plan = plan_of_removal(&status, &node);
        if node.state != "down" && node.held > 0 && !self.force {
            return Err(CommandError::Refused(format!(
                "{} is up and holds {} partitions\n  `kiln cluster drain {} --wait` hands them \
                 over first; --force removes it all the same.",
                node.name, node.held, node.name
            )));
        }
        if !self.yes {
            confirm(&plan, "Remove it?")?;
        }
        eprintln!("{plan}");
        ask(&client, &node, change::REMOVE, |change| ClusterChange { force: self.force, ..change })
            .await?;
        eprintln!("removed {}", node.name);
        Ok(())
    }
}

/// What a removal means.
fn plan_of_removal(status: &ClusterStatus, node: &NodeStatus) -> String {
    let name = &node.name;
    let mut plan = match node.last_copies {
        0 => format!("removing {name} loses nothing: all that it holds has copies elsewhere"),
        1 => format!("removing {name} loses 1 partition, of which it has the only copy"),
        lost => format!("removing {name} loses {lost} partitions, of which it has the only copy"),
    };
    if node.last_copies > 0 && node.state == "down" {
        plan.push_str("; if it can be started again with its memory gone, they are lost as well");
    }
    let voters = &status.control.voters;
    let others_up = voters
        .iter()
        .filter(|voter| **voter != node.id)
        .filter(|voter| status.nodes.iter().any(|n| n.id == **voter && n.state != "down"));
    if voters.contains(&node.id) && others_up.count() * 2 <= voters.len() {
        plan.push_str("; it votes, and without it there may be no majority to decide this");
    }
    plan
}

/// Give a node a larger or smaller share of the keys.
///
/// 1 is usual; a node with 2 holds twice as much as one with 1, a node with 0 holds nothing and
/// passes requests on. Copies move at once.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Weight {
    /// The node: its name, or the beginning of its id.
    node: String,
    /// From 0 to 1000, with three decimals.
    #[arg(value_parser = weight)]
    weight: f64,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn weight(text: &str) -> Result<f64, String> {
    crate::config::Weight::parse(text).map(|weight| f64::from(weight.milli()) / 1_000.0)
}

impl Weight {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let status = gather::status(&client).await?;
        let node = find_node(&status, &self.node)?;
        let weight = self.weight;
        ask(&client, node, change::WEIGHT, |change| ClusterChange { weight, ..change }).await?;
        eprintln!(
            "{} has weight {weight}, it had {}; `kiln cluster rebalance --dry-run` shows what moves",
            node.name, node.weight
        );
        Ok(())
    }
}

/// Say that losses of data were seen, so that caches that block on a loss go on.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct AcknowledgeLoss {
    #[command(flatten)]
    connect: ConnectArgs,
}

impl AcknowledgeLoss {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let client = self.connect.client().await?;
        let status = gather::status(&client).await?;
        let lost: u64 = status.groups.iter().map(|group| group.lost).sum();
        if lost == 0 {
            eprintln!("no partition has lost data that was not acknowledged");
            return Ok(());
        }
        let action = change::ACKNOWLEDGE_LOSS.to_owned();
        let change = ClusterChange { action, ..ClusterChange::default() };
        client.change_cluster(&change).await.map_err(|error| explain(&error))?;
        for group in status.groups.iter().filter(|group| group.lost > 0) {
            eprintln!(
                "acknowledged: {} partitions of {} lost all copies",
                group.lost,
                group.caches.join(", ")
            );
        }
        Ok(())
    }
}

/// Asks for a change of the life of the node that was looked at.
async fn ask(
    client: &Client,
    node: &NodeStatus,
    action: &str,
    with: impl FnOnce(ClusterChange) -> ClusterChange,
) -> Result<(), CommandError> {
    let change = with(ClusterChange {
        action: action.to_owned(),
        node: node.id,
        incarnation: node.incarnation,
        ..ClusterChange::default()
    });
    client.change_cluster(&change).await.map_err(|error| explain(&error))
}

/// Tells what is about to happen, and asks.
fn confirm(plan: &str, question: &str) -> Result<(), CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::Usage(format!(
            "{plan}\n  Nobody is there to ask: --yes does it."
        )));
    }
    eprint!("{plan}. {question} [y/N] ");
    let mut answer = String::new();
    io::stderr()
        .flush()
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| CommandError::Failed(format!("cannot ask: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CommandError::Failed("nothing was done".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use kiln_client::ControlView;

    use super::{super::gather::tests::node, *};

    #[test]
    fn a_removal_says_what_is_lost() {
        let mut status = ClusterStatus {
            nodes: vec![node(1, "a"), node(2, "b")],
            control: ControlView { leader: 1, voters: vec![1], ..ControlView::default() },
            ..ClusterStatus::default()
        };
        let plan = |status: &ClusterStatus, at: usize| plan_of_removal(status, &status.nodes[at]);
        assert!(plan(&status, 1).contains("loses nothing"));
        assert!(plan(&status, 0).contains("no majority"));
        status.nodes[1].last_copies = 5;
        assert!(plan(&status, 1).contains("loses 5 partitions"));
        status.control.voters = vec![1, 2, 3];
        status.nodes.push(node(3, "c"));
        assert!(!plan(&status, 0).contains("majority"));
    }

    #[test]
    fn a_weight_is_read_as_in_the_settings() {
        assert_eq!(weight("2.5"), Ok(2.5));
        assert_eq!(weight("0"), Ok(0.0));
        assert!(weight("-1").is_err() && weight("1001").is_err() && weight("nan").is_err());
    }
}
