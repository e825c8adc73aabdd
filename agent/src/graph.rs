//! The dependency graph, as far as it is kept: processes, their threads, descriptors and zones.

use crate::app::App;
use holo_api::local::{Graph, GraphNode};
use holo_rm::kinds::zones;
use holo_rm::tree::state_and_parent;
use std::collections::BTreeMap;
use std::fs;

fn vertex(id: String, kind: &str, label: String) -> GraphNode {
    GraphNode { id, kind: kind.into(), label, replicable: true, reason: String::new(), bytes: 0 }
}

/// What an application has now; empty if it does not run here.
#[must_use]
pub fn of(app: &App) -> Graph {
    let mut graph = Graph::default();
    if app.instance().is_none() {
        return graph;
    }
    let pids: BTreeMap<i32, i32> = app.members.pids().into_iter().collect();
    let info = app.info();
    let first = info.real_pids.first().copied().unwrap_or(0) as i32;
    for (pid, inner) in app.members.pids() {
        let id = format!("process:{inner}");
        let mut process = vertex(id.clone(), "process", command(pid));
        if pid == first {
            if let Some(reason) = info.reasons.first() {
                process.replicable = false;
                process.reason = reason.clone();
            }
            process.bytes = app.store.last().map_or(0, |last| last.bytes_sent);
        }
        graph.nodes.push(process);
        let parent = state_and_parent(pid).and_then(|(_, parent)| pids.get(&parent));
        if let Some(parent) = parent {
            graph.edges.push((format!("process:{parent}"), id, "is the parent of".into()));
        }
        threads(&mut graph, pid, inner);
        descriptors(&mut graph, pid, inner);
        zones_of(&mut graph, pid, inner);
    }
    graph
}

fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
}

fn threads(graph: &mut Graph, pid: i32, inner: i32) {
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let tid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let id = format!("thread:{}", holo_rm::barrier::inner_tid(pid, tid));
        graph.nodes.push(vertex(id.clone(), "thread", name.trim().to_owned()));
        graph.edges.push((format!("process:{inner}"), id, "runs".into()));
    }
}

fn descriptors(graph: &mut Graph, pid: i32, inner: i32) {
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let target =
            fs::read_link(entry.path()).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let id = format!("fd:{inner}:{number}");
        graph.nodes.push(vertex(id.clone(), "descriptor", number));
        graph.edges.push((format!("process:{inner}"), id.clone(), "holds".into()));
        let kind = match target.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None if target.starts_with("anon_inode:") => target.trim_start_matches("anon_inode:").to_owned(),
            None => "file".into(),
        };
        let object = format!("{kind}:{target}");
        add(graph, object.clone(), &kind, target);
        graph.edges.push((id, object, "refers to".into()));
    }
}

fn zones_of(graph: &mut Graph, pid: i32, inner: i32) {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    for zone in zones::parse(&maps).unwrap_or_default() {
        if zone.path.is_empty() || zone.path[0] == b'[' {
            continue;
        }
        let path = String::from_utf8_lossy(&zone.path).into_owned();
        let id = format!("file:{path}");
        add(graph, id.clone(), "file", path);
        let edge = (format!("process:{inner}"), id, "maps".to_owned());
        if !graph.edges.contains(&edge) {
            graph.edges.push(edge);
        }
    }
}

/// Adds a vertex that is not there yet.
fn add(graph: &mut Graph, id: String, kind: &str, label: String) {
    if !graph.nodes.iter().any(|node| node.id == id) {
        graph.nodes.push(vertex(id, kind, label));
    }
}
