//! A node, and commands run against it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::common::{Finished, Node, kiln};

/// A node with room for some items, and the address for `--address`.
pub struct Cluster {
    /// The node.
    pub node: Node,
    /// Where it is, for `--address`.
    pub address: String,
}

impl Cluster {
    pub fn start(flags: &[&str]) -> Self {
        let node = Node::start(flags);
        let address = format!("kiln://{}", node.address("native"));
        Self { node, address }
    }

    /// A command against this cluster.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = kiln(arguments);
        command.env("KILN_ADDRESS", &self.address);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().unwrap())
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.err);
        finished.out
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Runs a command that must fail with this code, and returns what it said.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(code), "{arguments:?}: {}{}", finished.out, finished.err);
        finished.err
    }

    pub fn with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that stops reading early closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        Finished::from(child.wait_with_output().unwrap())
    }
}
