//! What happened in runs, in figures, so that a run that tested nothing is noticed.

use std::fmt;

use kiln_cluster::message::Message;
use kiln_cluster::node::Report;

use crate::agreement::Agreement;
use crate::network::Network;
use crate::queue::{SECOND, Time};
use crate::trace::Trace;

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Sums over a run, or over many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64),+
        }

        impl Stats {
            /// Adds those of another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }
        }

        impl fmt::Display for Stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let all = [$((stringify!($name), self.$name)),+];
                let text: Vec<String> = all
                    .iter()
                    .map(|(name, figure)| format!("{} {figure}", name.replace('_', " ")))
                    .collect();
                f.write_str(&text.join(", "))
            }
        }
    };
}

figures! {
    /// Runs.
    runs,
    /// Seconds simulated.
    simulated_s,
    /// Events.
    events,
    /// Messages between nodes.
    messages,
    /// Messages lost.
    lost_messages,
    /// Calls that clients began.
    calls,
    /// Calls that were answered.
    answered,
    /// Calls that certainly did nothing.
    not_applied,
    /// Calls that ended without certainty.
    unknown,
    /// Attempts beyond the first.
    retries,
    /// Process starts.
    starts,
    /// Kills.
    kills,
    /// Pauses.
    pauses,
    /// Cuts, isolations included.
    cuts,
    /// Suspicions of healthy nodes.
    suspicions,
    /// Nodes that joined during a run.
    joins,
    /// Nodes that were asked to leave.
    drains,
    /// Nodes that left.
    left,
    /// Changes of the controller's leader.
    elections,
    /// Commands committed.
    commits,
    /// Commands that the table refused.
    refused_commits,
    /// Terms in which somebody served.
    terms,
    /// Transfers completed.
    transfers,
    /// Times that all copies of a partition died.
    losses,
    /// Reads that were told of a loss.
    losses_told,
    /// Keys judged by the independent checker.
    keys_checked,
    /// Keys that it could not decide.
    keys_undecided,
    /// Copies compared with what they had to hold.
    copies_audited,
    /// Milliseconds from the heal until all was well.
    heal_ms,
}

impl Stats {
    pub(crate) fn count_message(&mut self, _message: &Message) {
        self.messages += 1;
    }

    pub(crate) fn count_report(&mut self, report: &Report) {
        if let Report::Transfer { done: true, .. } = report {
            self.transfers += 1;
        }
    }

    pub(crate) fn close(
        &mut self,
        now: Time,
        network: &Network,
        agreement: &Agreement,
        trace: &Trace,
    ) {
        self.runs = 1;
        self.simulated_s = now / SECOND;
        self.events = trace.events();
        self.lost_messages = network.lost;
        self.commits = agreement.committed;
        self.refused_commits = agreement.refused;
    }
}
