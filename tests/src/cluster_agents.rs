//! Agents that know and trust each other, one on each node of a cluster.

use crate::app::ORDER_LIMIT;
use crate::cluster::Cluster;
use crate::{command, wait};
use serde_json::Value;
use std::time::Duration;

/// Port where agents serve each other.
pub const PORT: u16 = 7077;

/// Times of the agents' conversation, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Silence after which an owner parks what it runs.
    pub lease_ms: u64,
    /// Silence after which a stand-by takes over.
    pub failover_ms: u64,
}

impl Timing {
    /// Where no node is to take over by itself, however busy the machine is.
    #[must_use]
    pub fn patient() -> Timing {
        Timing { heartbeat_ms: 200, lease_ms: 15_000, failover_ms: 20_000 }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { heartbeat_ms: 100, lease_ms: 800, failover_ms: 1500 }
    }
}

impl Cluster {
    /// Makes keys on the first node, carries them to the others, starts every agent, and waits until each hears all.
    pub fn start_agents(&mut self, timing: Timing) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.start_agents_of(&all, timing);
    }

    /// The same for some of the nodes; the first of all is among them.
    pub fn start_agents_of(&mut self, some: &[usize], timing: Timing) {
        let first = self.nodes[0].name.clone();
        command::run_ok(&mut self.nodes[0].holo(&["node", "init", &first]), ORDER_LIMIT);
        for &index in some.iter().filter(|index| **index > 0) {
            let bundle =
                self.nodes[0].inside(format!("data/{}.keys", self.nodes[index].name)).display().to_string();
            command::run_ok(
                &mut self.nodes[0].holo(&["node", "add", &self.nodes[index].name, "--out", &bundle]),
                ORDER_LIMIT,
            );
            // Carried by hand: the one step for each node.
            let (from, to) = (
                self.nodes[0].outside(format!("data/{}.keys", self.nodes[index].name)),
                self.nodes[index].outside("data/keys"),
            );
            std::fs::copy(&from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            if let Some(uid) = self.nodes[index].who().uid() {
                std::os::unix::fs::chown(&to, Some(uid), Some(uid)).unwrap_or_else(|e| panic!("keys: {e}"));
            }
        }
        for &index in some {
            self.start_agent(index, timing, index > 0);
        }
        self.wait_up(some);
    }

    /// Starts the agent of a node (again); `keys`: it installs the carried bundle first.
    pub fn start_agent(&mut self, index: usize, timing: Timing, keys: bool) {
        let mut args = vec!["--listen".to_owned(), format!("{}:{PORT}", self.address(index))];
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            args.extend([
                "--peer".to_owned(),
                format!("{}={}:{PORT}", self.nodes[other].name, self.address(other)),
            ]);
        }
        for (name, value) in [
            ("--heartbeat-ms", timing.heartbeat_ms),
            ("--lease-ms", timing.lease_ms),
            ("--failover-ms", timing.failover_ms),
        ] {
            args.extend([name.to_owned(), value.to_string()]);
        }
        if keys {
            args.extend(["--keys".to_owned(), self.nodes[index].inside("data/keys").display().to_string()]);
        }
        self.nodes[index].set_agent_args(&args);
        self.nodes[index].start_agent();
    }

    /// State of a node as another one sees it.
    #[must_use]
    pub fn seen(&self, by: usize, node: usize) -> String {
        let text = command::run(&mut self.nodes[by].holo(&["node", "ls", "--json"]), ORDER_LIMIT).stdout;
        let rows: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let rows = rows.as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["name"] == self.nodes[node].name.as_str());
        row.and_then(|r| r["state"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until every node sees every other.
    pub fn wait_all_up(&self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.wait_up(&all);
    }

    fn wait_up(&self, some: &[usize]) {
        for &by in some {
            for &node in some.iter().filter(|node| **node != by) {
                let what = format!("{} sees {} up", self.nodes[by].name, self.nodes[node].name);
                wait::until(Duration::from_secs(20), &what, || (self.seen(by, node) == "up").then_some(()));
            }
        }
    }
}
