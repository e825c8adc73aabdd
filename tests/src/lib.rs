//! The harness: agents on their own nodes, applications under them, and programs that check themselves.
//!
//! [`node::Node`] is an agent with its own state and socket; [`cluster::Cluster`] puts several into their own
//! network, pid, mount, IPC and UTS namespaces, joined by links that can be cut. [`app::App`] is one application:
//! started, checkpointed, killed, restored, judged. [`workload`] builds the programs of `tests/workloads` and takes them
//! through the modes in which each must pass.
//!
//! Every wait is bounded, every process that a test starts carries a mark and is ended by pid when its node is
//! dropped. Functions panic with what failed, as a test does.

pub mod app;
pub mod cluster;
pub mod cluster_agents;
pub mod command;
pub mod compile;
pub mod epochs;
pub mod flags;
mod leftovers;
pub mod node;
pub mod paths;
pub mod process;
pub mod redis;
pub mod service;
pub mod steps;
pub mod suites;
pub mod trace;
pub mod wait;
pub mod workload;
