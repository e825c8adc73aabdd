//! What the agent configures and is shown.

use std::{path::PathBuf, time::Instant};

use crate::core::{RoleView, Timing};

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Name, as in its certificate.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

/// Configuration of the cluster part of an agent.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Records go to `<state_dir>/cluster/`.
    pub state_dir: PathBuf,
    /// Where other agents are served; none: this node only dials, and cannot be a stand-by.
    pub listen: Option<String>,
    /// All other nodes.
    pub peers: Vec<PeerConfig>,
    /// Times of failover; must be the same on all nodes.
    pub timing: Timing,
    /// Most connections served at a time.
    pub connections_max: usize,
    /// Longest wait for the other side during a transfer; must exceed the time that sealing an epoch takes.
    pub transfer_ms_max: u64,
}

impl ClusterConfig {
    /// Defaults for a state directory.
    pub fn new(state_dir: PathBuf) -> ClusterConfig {
        ClusterConfig {
            state_dir,
            listen: None,
            peers: Vec::new(),
            timing: Timing::default(),
            connections_max: 256,
            transfer_ms_max: 120_000,
        }
    }
}

/// An application as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppStatus {
    /// Name.
    pub name: String,
    /// What this node does with it.
    pub role: RoleView,
    /// Its nodes, in the configured order.
    pub members: Vec<String>,
    /// Node that owns it, as far as known here.
    pub owner: Option<String>,
    /// Incarnation.
    pub incarnation: u64,
    /// (Owner) A stand-by is armed: the application survives this node, and needs its lease.
    pub guarded: bool,
    /// Newest usable epoch here.
    pub epoch: u64,
    /// (Owner) Newest epoch that each other node holds.
    pub sealed_at: Vec<(String, u64)>,
    /// (Owner) What is being brought to other nodes.
    pub sending: Vec<Sending>,
}

/// How much of an epoch another node has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The node.
    pub node: String,
    /// It lacks epochs since.
    pub since: Instant,
    /// Blocks brought since then, by connections that broke, too.
    pub done: u64,
    /// Blocks known to be needed in all; may change; 0: not known yet.
    pub total: u64,
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Configured address, or `local`.
    pub address: String,
    /// `self`, `up`, `down`, `draining`.
    pub state: &'static str,
    /// Milliseconds since it was last heard; none: never. 0 for ourselves.
    pub heard_ms: Option<u64>,
    /// Why it is down.
    pub trouble: Option<String>,
    /// Version of its program, if it ever answered.
    pub version: String,
    /// Applications that it owns, as far as known here.
    pub running: Vec<String>,
    /// Applications that it is a stand-by for.
    pub standby: Vec<String>,
}

/// An instance, as the node that runs it describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Its pid there.
    pub real_pid: u32,
    /// What could not be kept when it was recreated.
    pub remarks: Vec<String>,
}

/// Result of a planned switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// Node that runs it now.
    pub node: String,
    /// Epoch that it runs from.
    pub epoch: u64,
    /// From the order to park until the new owner was known to run, microseconds.
    pub pause_us: u64,
}
