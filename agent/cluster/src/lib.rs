//! Everything between agents: who may talk ([`keys`], [`tls`]), how ([`link`], [`server`]), who runs an
//! application ([`core`]), and how epochs get to the other nodes ([`Cluster`]).
//!
//! What an epoch is made of and how an application is parked or recreated is not known here: the agent
//! implements the [`ports`]. The order of events is described in `docs/internals/cluster.md`.

mod clock;
mod cluster;
pub mod core;
mod error;
pub mod keys;
pub mod link;
pub mod ports;
mod records;
pub mod server;
pub mod tls;

pub use cluster::{
    AppStatus, Cluster, ClusterConfig, ClusterHandle, Described, NodeStatus, PeerConfig, Sending, Switched,
};
pub use error::{ClusterError, LinkError};
