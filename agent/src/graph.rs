//! The dependency graph, as far as it is kept: the process, its threads, descriptors and zones.

use crate::app::App;
use holo_api::local::{Graph, GraphNode};
use holo_rm::kinds::zones;
use std::fs;

fn vertex(id: String, kind: &str, label: String) -> GraphNode {
    GraphNode { id, kind: kind.into(), label, replicable: true, reason: String::new(), bytes: 0 }
}

/// What an application has now; empty if it does not run here.
#[must_use]
pub fn of(app: &App) -> Graph {
    let mut graph = Graph::default();
    let Some((instance, _)) = app.instance() else { return graph };
    let pid = instance.real_pid;
    let process = format!("process:{}", instance.cluster_pid);
    let info = app.info();
    let mut root = vertex(process.clone(), "process", info.command.clone());
    if let Some(reason) = info.reasons.first() {
        root.replicable = false;
        root.reason = reason.clone();
    }
    if let Some(last) = app.store.last() {
        root.bytes = last.bytes_sent;
    }
    graph.nodes.push(root);
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let tid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let id = format!("thread:{}", holo_rm::barrier::inner_tid(pid, tid));
        graph.nodes.push(vertex(id.clone(), "thread", name.trim().to_owned()));
        graph.edges.push((process.clone(), id, "runs".into()));
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let target =
            fs::read_link(entry.path()).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let id = format!("fd:{}:{number}", instance.cluster_pid);
        graph.nodes.push(vertex(id.clone(), "descriptor", number));
        graph.edges.push((process.clone(), id.clone(), "holds".into()));
        let kind = match target.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None if target.starts_with("anon_inode:") => target.trim_start_matches("anon_inode:").to_owned(),
            None => "file".into(),
        };
        add(&mut graph, format!("{kind}:{target}"), &kind, target);
        if let Some(object) = graph.nodes.last().map(|node| node.id.clone()) {
            graph.edges.push((id, object, "refers to".into()));
        }
    }
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    for zone in zones::parse(&maps).unwrap_or_default() {
        if zone.path.is_empty() || zone.path[0] == b'[' {
            continue;
        }
        let path = String::from_utf8_lossy(&zone.path).into_owned();
        let id = format!("file:{path}");
        add(&mut graph, id.clone(), "file", path);
        let edge = (process.clone(), id, "maps".to_owned());
        if !graph.edges.contains(&edge) {
            graph.edges.push(edge);
        }
    }
    graph
}

/// Adds a vertex, or moves the one that is there to the end.
fn add(graph: &mut Graph, id: String, kind: &str, label: String) {
    match graph.nodes.iter().position(|node| node.id == id) {
        Some(at) => {
            let node = graph.nodes.remove(at);
            graph.nodes.push(node);
        }
        None => graph.nodes.push(vertex(id, kind, label)),
    }
}
