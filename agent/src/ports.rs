//! What the cluster asks of this node; without other nodes, the answers of a single one.

use crate::app::Failure;
use crate::apps::Apps;
use crate::config::Config;
use crate::server::Cluster;
use holo_api::local::{ErrorKind, NodeInfo, RestoreInfo};
use std::sync::Arc;

/// Name of this node.
///
/// # Errors
/// None now.
pub fn node_name(_config: &Config) -> Result<String, Failure> {
    Ok(nix::unistd::gethostname().map_or_else(|_| "local".into(), |name| name.to_string_lossy().into_owned()))
}

struct Single {
    node: String,
}

/// Starts what there is of a cluster.
///
/// # Errors
/// None now.
pub fn start(apps: &Arc<Apps>) -> Result<Arc<dyn Cluster>, Failure> {
    Ok(Arc::new(Single { node: apps.node.clone() }))
}

impl Cluster for Single {
    fn switch(&self, name: &str, _: Option<&str>) -> Result<RestoreInfo, Failure> {
        Err(Failure::new(ErrorKind::NotFound, format!("{name}: there is no other node")))
    }
    fn nodes(&self) -> Vec<NodeInfo> {
        vec![NodeInfo {
            name: self.node.clone(),
            address: "local".into(),
            state: "self".into(),
            heard_ms: 0,
            running: Vec::new(),
            standby: Vec::new(),
        }]
    }
    fn drain(&self, node: &str) -> Result<(), Failure> {
        Err(Failure::new(ErrorKind::NotFound, format!("no node {node}")))
    }
    fn may_restore(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    fn started(&self, _: &str) {}
    fn stopped(&self, _: &str) {}
    fn listen(&self) -> Option<String> {
        None
    }
}
