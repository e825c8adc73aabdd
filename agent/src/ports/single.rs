//! This node alone.

use crate::app::{App, Failure, epoch_info};
use crate::apps::Apps;
use crate::restore;
use crate::server::{Cluster, From};
use holo_api::local::{EpochInfo, EpochProgress, ErrorKind, NodeInfo, RestoreInfo};
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub(super) struct Single {
    apps: Arc<Apps>,
}

impl Single {
    pub(super) fn new(apps: &Arc<Apps>) -> Self {
        Self { apps: Arc::clone(apps) }
    }
}

impl Cluster for Single {
    fn switch(&self, name: &str, _: Option<&str>) -> Result<RestoreInfo, Failure> {
        Err(Failure::new(
            ErrorKind::NotFound,
            format!("{name}: there is no other node; this one has no keys"),
        ))
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let runs = |app: &Arc<App>| app.instance().map(|_| app.name.clone());
        vec![NodeInfo {
            name: self.apps.node.clone(),
            address: "local".into(),
            state: "self".into(),
            heard_ms: Some(0),
            running: self.apps.list().iter().filter_map(runs).collect(),
            standby: Vec::new(),
        }]
    }

    fn drain(&self, node: &str) -> Result<(), Failure> {
        Err(Failure::new(
            ErrorKind::NotFound,
            format!("drain {node}: there is no other node; this one has no keys"),
        ))
    }

    fn checkpoint(&self, app: &Arc<App>) -> Result<EpochInfo, Failure> {
        app.checkpoint()
    }

    fn restore(&self, app: &Arc<App>, from: &From, stdio: Vec<OwnedFd>) -> Result<RestoreInfo, Failure> {
        restore::ready(app, from.epoch, from.aside, &stdio, true)?.run(app)
    }

    fn stop(&self, app: &Arc<App>) -> Result<(), Failure> {
        app.stop()
    }

    fn remove(&self, name: &str) -> Result<(), Failure> {
        self.apps.remove(name)
    }

    fn holders(&self, _: &str) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn sending(&self, _: &str) -> Vec<EpochProgress> {
        Vec::new()
    }

    fn epochs(&self, app: &Arc<App>) -> Vec<EpochInfo> {
        app.store.epochs().iter().map(epoch_info).collect()
    }

    fn listen(&self) -> Option<String> {
        None
    }
}
