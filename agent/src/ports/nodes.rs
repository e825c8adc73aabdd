//! This node among others: orders of the command line, and news of the applications, carried to the cluster.

use super::epochs::Epochs;
use super::failed;
use super::instances::Instances;
use crate::app::{App, Failure, Hooks, epoch_info};
use crate::apps::Apps;
use crate::progress;
use crate::restore;
use crate::server::{Cluster as Orders, From};
use holo_api::local::{EpochInfo, EpochProgress, ErrorKind, NodeInfo, RestoreInfo, Step};
use holo_cluster::core::{RoleView, Timing};
use holo_cluster::keys::NodeKeys;
use holo_cluster::ports::Ports;
use holo_cluster::{AppStatus, Cluster, ClusterConfig, ClusterError, ClusterHandle, PeerConfig, Sending};
use holo_image::PAGE_BYTES;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long an order for an epoch waits for the stand-bys; then it says where the epoch is.
const SEALED_PATIENCE: Duration = Duration::from_secs(20);
/// How long an order to restore waits for the other nodes' consent and for the clone.
const CLAIM_PATIENCE: Duration = Duration::from_secs(15);
/// How long an order waits for what must follow at once.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(5);
/// How often acknowledgements of stand-bys are noted beside the epochs.
const NOTE: Duration = Duration::from_millis(200);

/// What is said where the other nodes did not agree.
const UNASKED: &str = "; without the consent of its nodes it is not run, since one of them may run it. Where you know that none \
                       does and none will (they are off, or cut off for good), `holo restore --force` runs it unasked";

/// The cluster as this agent drives it.
struct Nodes {
    apps: Arc<Apps>,
    instances: Arc<Instances>,
    handle: OnceLock<ClusterHandle>,
}

fn timing(apps: &Apps) -> Timing {
    let default = Timing::default();
    let [heartbeat, lease, failover] = apps.config.timing_ms;
    Timing {
        heartbeat_ms: heartbeat.unwrap_or(default.heartbeat_ms),
        lease_ms: lease.unwrap_or(default.lease_ms),
        failover_ms: failover.unwrap_or(default.failover_ms),
        ..default
    }
}

fn failure(cause: ClusterError) -> Failure {
    let kind = match &cause {
        ClusterError::NoApp(_) | ClusterError::NoNode(_) => ErrorKind::NotFound,
        ClusterError::Refused { .. } => ErrorKind::Refused,
        ClusterError::Link(_) => ErrorKind::Unreachable,
        ClusterError::Config(_)
        | ClusterError::Timing(_)
        | ClusterError::Key(_)
        | ClusterError::Listen { .. }
        | ClusterError::Record { .. } => ErrorKind::Failed,
    };
    Failure::new(kind, cause.to_string())
}

/// Waits until something follows, at most so long.
fn follows(patience: Duration, there: impl Fn() -> bool) -> bool {
    let until = Instant::now() + patience;
    while !there() {
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Starts the cluster part of the agent.
pub(super) fn start(keys: &NodeKeys, apps: &Arc<Apps>) -> Result<Arc<dyn Orders>, Failure> {
    let timing = timing(apps);
    timing.validate().map_err(failed)?;
    let mut config = ClusterConfig::new(apps.paths.state.clone());
    config.listen.clone_from(&apps.config.listen);
    config.timing = timing;
    // One list of all nodes, this one included, may serve on each of them.
    let others = apps.config.peers.iter().filter(|(name, _)| name != keys.name());
    config.peers =
        others.map(|(name, address)| PeerConfig { name: name.clone(), address: address.clone() }).collect();
    let instances = Arc::new(Instances::new(apps, timing.fence_ms_max));
    let epochs = Arc::new(Epochs { apps: Arc::clone(apps) });
    let ports = Ports {
        apps: instances.clone(),
        source: epochs.clone(),
        sink: epochs,
        log: Arc::new(|line| eprintln!("holod: {line}")),
    };
    apps.guard.keep_watch().map_err(|cause| failed(format!("the guard cannot be started: {cause}")))?;
    let nodes = Arc::new(Nodes { apps: Arc::clone(apps), instances, handle: OnceLock::new() });
    apps.set_hooks(nodes.clone());
    let handle = Cluster::start(config, keys, ports).map_err(failure)?;
    // What exited while no agent was there, or at its end, is not lost: before anybody runs it again.
    for app in apps.list().iter().filter(|app| app.record().exited) {
        // It may be none of the cluster's.
        let _ = handle.ended(&app.name);
    }
    let set = nodes.handle.set(handle);
    assert!(set.is_ok(), "the cluster is started once");
    let noting = Arc::clone(&nodes);
    thread::spawn(move || {
        loop {
            noting.note_acknowledged();
            thread::sleep(NOTE);
        }
    });
    Ok(nodes)
}

impl Nodes {
    /// The cluster; applications that were found are watched before it is there.
    fn cluster(&self) -> Result<&ClusterHandle, Failure> {
        follows(FOLLOW_PATIENCE, || self.handle.get().is_some());
        self.handle.get().ok_or_else(|| failed("the cluster is not there yet"))
    }

    fn status(&self, name: &str) -> Result<Option<AppStatus>, Failure> {
        Ok(self.cluster()?.app_status(name))
    }

    /// Writes beside the epochs who holds them.
    fn note_acknowledged(&self) {
        let Some(cluster) = self.handle.get() else { return };
        for status in cluster.status() {
            let Ok(app) = self.apps.get(&status.name) else { continue };
            for (node, held) in status.sealed_at {
                note(&app, held, &node);
            }
        }
    }

    /// Runs an application that belongs to the cluster, with the consent of its nodes.
    fn claim(&self, app: &Arc<App>, from: &From, stdio: Vec<OwnedFd>) -> Result<RestoreInfo, Failure> {
        let name = &app.name;
        let newest = app.store.last().map(|meta| meta.epoch);
        if from.aside.is_some() || from.epoch.is_some_and(|epoch| Some(epoch) != newest) {
            let message = format!(
                "{name} has stand-bys that hold its newest epoch and would run that; `holo stop {name}` where it runs \
                 ends it, then any epoch can be restored"
            );
            return Err(Failure::new(ErrorKind::Refused, message));
        }
        let since = Instant::now();
        // What is parked here goes on as it is.
        let parked = app.instance();
        self.instances.expect(name, stdio);
        let claimed = self.cluster()?.claim(name, from.force, CLAIM_PATIENCE).map_err(|cause| {
            let mut failure = failure(cause);
            if !from.force && failure.kind == ErrorKind::Refused {
                failure.message += UNASKED;
            }
            failure
        });
        if let (Ok(()), Some((instance, _))) = (&claimed, parked) {
            return Ok(RestoreInfo {
                name: name.clone(),
                epoch: newest.unwrap_or(0),
                restore_us: since.elapsed().as_micros() as u64,
                first_instruction_us: since.elapsed().as_micros() as u64,
                node: self.apps.node.clone(),
                real_pid: instance.real_pid as u32,
                remarks: vec!["it was parked here and runs on, from where it was".into()],
            });
        }
        follows(if claimed.is_ok() { FOLLOW_PATIENCE } else { Duration::ZERO }, || {
            matches!(self.instances.outcome(name), Some(Ok(_)))
        });
        let outcome = self.instances.outcome(name);
        self.instances.expect(name, Vec::new());
        match (claimed, outcome) {
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => {
                Err(failed(format!("{name}: was granted, but does not run yet; see `holo ps`")))
            }
            // What went wrong here says more than that it was not granted.
            (Err(_), Some(Err(cause))) => Err(cause),
            (Err(cause), _) => Err(cause),
        }
    }
}

fn note(app: &App, epoch: u64, node: &str) {
    let known =
        |meta: &holo_image::EpochMeta| meta.epoch != epoch || meta.sealed_where.iter().any(|at| at == node);
    if app.store.epochs().iter().all(known) {
        return;
    }
    // It may have been dropped meanwhile.
    let _ = app.store.update_side(epoch, |side| {
        if !side.sealed_where.iter().any(|at| at == node) {
            side.sealed_where.push(node.to_owned());
        }
    });
}

impl Hooks for Nodes {
    fn launch(&self, name: &str, standby: &[String]) -> Result<(), Failure> {
        let cluster = self.cluster()?;
        if !standby.is_empty() {
            return cluster.launch(name, standby).map_err(failure);
        }
        // Alone it is none of the cluster's, unless the cluster knows the name.
        match cluster.app_status(name) {
            None => Ok(()),
            Some(status) if status.role == RoleView::Ended => cluster.forget(name).map_err(failure),
            Some(_) => cluster.launch(name, &[]).map_err(failure),
        }
    }

    fn sealed(&self, name: &str, epoch: u64) {
        if let Some(cluster) = self.handle.get() {
            // Refused for what has no stand-bys, or is not ours any more.
            let _ = cluster.announce_epoch(name, epoch);
        }
    }

    fn ended(&self, name: &str) {
        if let Ok(cluster) = self.cluster() {
            let _ = cluster.ended(name);
        }
    }
}

impl Orders for Nodes {
    fn switch(&self, name: &str, to: Option<&str>) -> Result<RestoreInfo, Failure> {
        let since = Instant::now();
        let switched = self.cluster()?.switch(name, to).map_err(failure)?;
        let app = self.apps.get(name)?;
        let here = switched.node == self.apps.node;
        follows(FOLLOW_PATIENCE, || app.instance().is_some() == here);
        let run = self.cluster()?.describe(name, &switched.node).unwrap_or_default();
        Ok(RestoreInfo {
            name: name.to_owned(),
            epoch: switched.epoch,
            restore_us: since.elapsed().as_micros() as u64,
            first_instruction_us: switched.pause_us,
            node: switched.node,
            real_pid: run.real_pid,
            remarks: run.remarks,
        })
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let Ok(cluster) = self.cluster() else { return Vec::new() };
        let mut nodes: Vec<NodeInfo> = cluster
            .nodes()
            .into_iter()
            .map(|node| NodeInfo {
                name: node.name,
                address: node.address,
                state: node.state.into(),
                heard_ms: node.heard_ms,
                running: node.running,
                standby: node.standby,
            })
            .collect();
        if let Some(own) = nodes.first_mut() {
            // With what is none of the cluster's.
            let runs = |app: &Arc<App>| app.instance().map(|_| app.name.clone());
            own.running = self.apps.list().iter().filter_map(runs).collect();
        }
        nodes
    }

    fn drain(&self, node: &str) -> Result<(), Failure> {
        let cluster = self.cluster()?;
        cluster.drain_node(node).map(drop).map_err(failure)
    }

    fn checkpoint(&self, app: &Arc<App>) -> Result<EpochInfo, Failure> {
        let mut info = app.checkpoint()?;
        if let Ok(holders) = self.cluster()?.wait_sealed(&app.name, info.epoch, SEALED_PATIENCE) {
            for node in holders {
                note(app, info.epoch, &node);
                if !info.sealed_where.contains(&node) {
                    info.sealed_where.push(node);
                }
            }
        }
        Ok(info)
    }

    fn restore(&self, app: &Arc<App>, from: &From, stdio: Vec<OwnedFd>) -> Result<RestoreInfo, Failure> {
        let name = &app.name;
        let parked = matches!(self.status(name)?, Some(AppStatus { role: RoleView::Fenced { .. }, .. }));
        if let Some(instance) = app.living().filter(|_| !(parked && from.force)) {
            let pid = instance.real_pid;
            let message = if parked {
                format!(
                    "{name} is parked on this node as process {pid}, since its other nodes cannot be asked; it goes on by \
                     itself when they answer. Where you know that none of them runs it and none will (they are off, or cut \
                     off for good), `holo restore --force` lets it go on"
                )
            } else {
                format!("{name} runs on this node as process {pid}; `holo stop {name}` it first")
            };
            return Err(Failure::new(ErrorKind::Refused, message));
        }
        // It has just ended, and the other nodes are about to be told.
        let is_active = |status: Option<AppStatus>| {
            matches!(status, Some(AppStatus { role: RoleView::Active { .. }, .. }))
        };
        follows(FOLLOW_PATIENCE, || !self.status(name).is_ok_and(is_active));
        match self.status(name)? {
            Some(status) if status.role != RoleView::Ended => self.claim(app, from, stdio),
            known => {
                let ready = restore::ready(app, from.epoch, from.aside, &stdio, true)?;
                let standby = app.record().options.standby;
                if known.is_some() || !standby.is_empty() {
                    self.launch(name, &standby)?;
                }
                // What does not run after all must not be known as running.
                ready.run(app).inspect_err(|_| Hooks::ended(self, name))
            }
        }
    }

    fn stop(&self, app: &Arc<App>) -> Result<(), Failure> {
        let name = &app.name;
        if let Some(status) = self.status(name)?
            && status.role != RoleView::Ended
        {
            if let Some(owner) = status.owner.filter(|owner| *owner != self.apps.node) {
                let message = format!("{name} belongs to node {owner}; stop it there");
                return Err(Failure::new(ErrorKind::Refused, message));
            }
            // First: what dies must not be run by a stand-by.
            self.cluster()?.ended(name).map_err(failure)?;
        }
        app.stop()
    }

    fn remove(&self, name: &str) -> Result<(), Failure> {
        let app = self.apps.get(name)?;
        if app.living().is_none()
            && let Some(status) = self.status(name)?
        {
            let owner = status.owner.filter(|owner| *owner != self.apps.node);
            let up =
                |owner: &String| self.nodes().iter().any(|node| node.name == *owner && node.state != "down");
            if let Some(owner) = owner.filter(|owner| status.role != RoleView::Ended && up(owner)) {
                let message =
                    format!("this node is a stand-by of {name} for node {owner}; end it there first");
                return Err(Failure::new(ErrorKind::Refused, message));
            }
            self.cluster()?.forget(name).map_err(failure)?;
        }
        self.apps.remove(name)
    }

    fn holders(&self, name: &str) -> Vec<(String, u64)> {
        let status = self.status(name).ok().flatten();
        let mut held = status.map(|status| status.sealed_at).unwrap_or_default();
        held.retain(|(node, _)| *node != self.apps.node);
        held
    }

    fn sending(&self, name: &str) -> Vec<EpochProgress> {
        let sending = self.status(name).ok().flatten().map(|status| status.sending);
        let bytes = |blocks: u64| blocks * PAGE_BYTES as u64;
        let row = |to: &Sending| {
            progress::shown(to.since.elapsed(), Step::Send, &to.node, (bytes(to.done), bytes(to.total)))
        };
        sending.unwrap_or_default().iter().filter_map(row).collect()
    }

    fn epochs(&self, app: &Arc<App>) -> Vec<EpochInfo> {
        self.note_acknowledged();
        app.store.epochs().iter().map(epoch_info).collect()
    }

    fn listen(&self) -> Option<String> {
        self.handle.get()?.address().map(|address| address.to_string())
    }
}
