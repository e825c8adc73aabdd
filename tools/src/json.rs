//! JSON that scripts rely on: the names are spelled here, not derived from what travels between programs.

use std::io::Write;

use holo_api::local::{
    AppInfo, AppState, CloneInfo, EpochInfo, EpochProgress, Graph, GraphNode, NodeInfo, RestoreInfo, Step,
    StopSplit,
};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::error::CliError;

/// Prints one value and a line end.
pub fn print<T: Serialize + ?Sized>(value: &T) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Pairs as an object, in their order.
#[derive(Debug)]
struct Pairs<'a>(&'a [(String, u64)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// An element of `holo epochs --json`; `holo checkpoint --json` prints one.
#[derive(Debug, Serialize)]
pub struct Epoch<'a> {
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aside_unix_ms: Option<u64>,
    at: &'a str,
    sealed: bool,
    r#where: &'a [String],
    stop_us: u64,
    dump_us: u64,
    processes: u32,
    threads: u32,
    pages_dirty: u64,
    bytes_raw: u64,
    bytes_sent: u64,
    files_changed: u64,
    engine: &'a str,
    stop_parts_us: Pairs<'a>,
    bytes_by_kind: Pairs<'a>,
    stop_split_us: Split,
}

/// The stop time by what it is spent on.
#[derive(Debug, Serialize)]
struct Split {
    park: u64,
    scan: u64,
    copy: u64,
    kinds: u64,
    unpark: u64,
}

impl From<StopSplit> for Split {
    fn from(split: StopSplit) -> Self {
        let StopSplit { park, scan, copy, kinds, unpark } = split;
        Self { park, scan, copy, kinds, unpark }
    }
}

impl<'a> From<&'a EpochInfo> for Epoch<'a> {
    fn from(info: &'a EpochInfo) -> Self {
        Self {
            epoch: info.epoch,
            aside_unix_ms: info.aside_unix_ms,
            at: &info.at,
            sealed: info.sealed,
            r#where: &info.sealed_where,
            stop_us: info.stop_us,
            dump_us: info.dump_us,
            processes: info.processes,
            threads: info.threads,
            pages_dirty: info.pages_dirty,
            bytes_raw: info.bytes_raw,
            bytes_sent: info.bytes_sent,
            files_changed: info.files_changed,
            engine: &info.engine,
            stop_parts_us: Pairs(&info.stop_parts_us),
            bytes_by_kind: Pairs(&info.bytes_by_kind),
            stop_split_us: info.split().into(),
        }
    }
}

/// An element of `holo ps --json`.
#[derive(Debug, Serialize)]
pub struct App<'a> {
    name: &'a str,
    state: &'static str,
    reasons: &'a [String],
    node: &'a str,
    epoch: u64,
    lag_ms: u64,
    stop_us: u64,
    real_pids: &'a [u32],
    cluster_pids: &'a [u32],
    standby: &'a [String],
    command: &'a str,
    every_ms: u64,
    /// None: the period is fixed.
    budget_percent: Option<f64>,
    growth_bytes: u64,
    on_change: &'a [String],
    /// None: no stand-by holds an epoch.
    standby_lag_ms: Option<u64>,
    /// None: this node keeps no clone of it in memory.
    clone: Option<Clone<'a>>,
    progress: Vec<Progress<'a>>,
}

/// The clone that a stand-by keeps in memory.
#[derive(Debug, Serialize)]
struct Clone<'a> {
    /// None: see `why`.
    epoch: Option<u64>,
    update_us: u64,
    pages: u64,
    why: &'a str,
}

/// How far an epoch is that takes long.
#[derive(Debug, Serialize)]
struct Progress<'a> {
    step: &'static str,
    node: &'a str,
    done_bytes: u64,
    total_bytes: u64,
}

impl<'a> From<&'a EpochProgress> for Progress<'a> {
    fn from(now: &'a EpochProgress) -> Self {
        let step = match now.step {
            Step::Store => "store",
            Step::Send => "send",
        };
        Self { step, node: &now.node, done_bytes: now.done_bytes, total_bytes: now.total_bytes }
    }
}

impl<'a> From<&'a AppInfo> for App<'a> {
    fn from(info: &'a AppInfo) -> Self {
        Self {
            name: &info.name,
            state: state(info.state),
            reasons: &info.reasons,
            node: &info.node,
            epoch: info.epoch,
            lag_ms: info.lag_ms,
            stop_us: info.stop_us,
            real_pids: &info.real_pids,
            cluster_pids: &info.cluster_pids,
            standby: &info.standby,
            command: &info.command,
            every_ms: info.every_ms,
            budget_percent: (info.budget_permille > 0).then(|| f64::from(info.budget_permille) / 10.0),
            growth_bytes: info.growth_bytes,
            on_change: &info.on_change,
            standby_lag_ms: info.standby_lag_ms,
            clone: (info.clone != CloneInfo::default()).then(|| Clone {
                epoch: (info.clone.epoch > 0).then_some(info.clone.epoch),
                update_us: info.clone.update_us,
                pages: info.clone.pages,
                why: &info.clone.why,
            }),
            progress: info.progress.iter().map(Progress::from).collect(),
        }
    }
}

/// The word for a state.
#[must_use]
pub fn state(state: AppState) -> &'static str {
    match state {
        AppState::Running => "running",
        AppState::Standby => "standby",
        AppState::Unprotected => "unprotected",
        AppState::Stopped => "stopped",
    }
}

/// `holo restore --json` and `holo switch --json`.
#[derive(Debug, Serialize)]
pub struct Restored<'a> {
    name: &'a str,
    epoch: u64,
    restore_us: u64,
    first_instruction_us: u64,
    node: &'a str,
    real_pid: u32,
    remarks: &'a [String],
}

impl<'a> From<&'a RestoreInfo> for Restored<'a> {
    fn from(info: &'a RestoreInfo) -> Self {
        Self {
            name: &info.name,
            epoch: info.epoch,
            restore_us: info.restore_us,
            first_instruction_us: info.first_instruction_us,
            node: &info.node,
            real_pid: info.real_pid,
            remarks: &info.remarks,
        }
    }
}

/// An element of `holo node ls --json`.
#[derive(Debug, Serialize)]
pub struct Node<'a> {
    name: &'a str,
    address: &'a str,
    state: &'a str,
    /// None: never.
    heard_ms: Option<u64>,
    running: &'a [String],
    standby: &'a [String],
}

impl<'a> From<&'a NodeInfo> for Node<'a> {
    fn from(info: &'a NodeInfo) -> Self {
        Self {
            name: &info.name,
            address: &info.address,
            state: &info.state,
            heard_ms: info.heard_ms,
            running: &info.running,
            standby: &info.standby,
        }
    }
}

#[derive(Debug, Serialize)]
struct Vertex<'a> {
    id: &'a str,
    kind: &'a str,
    label: &'a str,
    replicable: bool,
    reason: &'a str,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    label: &'a str,
}

/// `holo graph --format json`.
#[derive(Debug, Serialize)]
pub struct GraphJson<'a> {
    nodes: Vec<Vertex<'a>>,
    edges: Vec<Edge<'a>>,
}

impl<'a> From<&'a Graph> for GraphJson<'a> {
    fn from(graph: &'a Graph) -> Self {
        let vertex = |node: &'a GraphNode| Vertex {
            id: &node.id,
            kind: &node.kind,
            label: &node.label,
            replicable: node.replicable,
            reason: &node.reason,
            bytes: node.bytes,
        };
        Self {
            nodes: graph.nodes.iter().map(vertex).collect(),
            edges: graph.edges.iter().map(|(from, to, label)| Edge { from, to, label }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keys(json: &str) -> Vec<String> {
        let lines = json.lines().filter_map(|line| line.strip_prefix("  \"")?.split_once('"'));
        lines.map(|(key, _)| key.to_owned()).collect()
    }

    #[test]
    fn epoch_fields_are_the_contract() {
        let info = EpochInfo {
            stop_parts_us: vec![("park".into(), 5), ("fork".into(), 3)],
            sealed_where: vec!["local".into()],
            ..EpochInfo::default()
        };
        let text = serde_json::to_string_pretty(&Epoch::from(&info)).unwrap();
        let expected = "epoch at sealed where stop_us dump_us processes threads pages_dirty bytes_raw bytes_sent \
                        files_changed engine stop_parts_us bytes_by_kind stop_split_us";
        assert_eq!(keys(&text).join(" "), expected);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["where"][0], "local");
        assert_eq!(value["stop_parts_us"]["park"], 5);
        assert_eq!(value["stop_split_us"]["park"], 5);
    }

    #[test]
    fn restore_fields_are_the_contract() {
        let text = serde_json::to_string_pretty(&Restored::from(&RestoreInfo::default())).unwrap();
        let expected = "name epoch restore_us first_instruction_us node real_pid remarks";
        assert_eq!(keys(&text).join(" "), expected);
    }
}
