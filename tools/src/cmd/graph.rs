//! `holo graph`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;

use holo_api::local::{Graph, GraphNode, Request};

use crate::args::{Graph as Args, GraphFormat};
use crate::client::{LONG, call, pick};
use crate::error::CliError;
use crate::paths::Agent;
use crate::{human, json};

pub(super) fn main(args: &Args, agent: &Agent) -> Result<u8, CliError> {
    let graph = call(&agent.socket, &Request::Graph { name: args.name.clone() }, LONG, pick!(Graph))?;
    match args.format {
        GraphFormat::Json => json::print(&json::GraphJson::from(&graph))?,
        GraphFormat::Dot => write!(std::io::stdout().lock(), "{}", dot(&args.name, &graph))?,
        GraphFormat::Text => write!(std::io::stdout().lock(), "{}", text(&graph))?,
    }
    Ok(0)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", human::plain(text).replace('\\', "\\\\").replace('"', "\\\""))
}

fn dot(name: &str, graph: &Graph) -> String {
    let mut out = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", quoted(name));
    for node in &graph.nodes {
        let label = if node.reason.is_empty() {
            node.label.clone()
        } else {
            format!("{}: {}", node.label, node.reason)
        };
        let colour = if node.replicable { "" } else { ", color=red" };
        let _ = writeln!(
            out,
            "  {} [label={}{colour}];",
            quoted(&node.id),
            quoted(&format!("{} {label}", node.kind))
        );
    }
    for (from, to, label) in &graph.edges {
        let _ = writeln!(out, "  {} -> {} [label={}];", quoted(from), quoted(to), quoted(label));
    }
    out + "}\n"
}

/// A tree; a vertex with several ways to it is drawn in full once and named afterwards.
fn text(graph: &Graph) -> String {
    let nodes: BTreeMap<&str, &GraphNode> = graph.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut below: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (from, to, label) in &graph.edges {
        below.entry(from).or_default().push((to, label));
    }
    let targets: BTreeSet<&str> = graph.edges.iter().map(|(_, to, _)| to.as_str()).collect();
    let roots = graph.nodes.iter().filter(|node| !targets.contains(node.id.as_str()));
    let mut drawn = BTreeSet::new();
    let mut out = String::new();
    // Vertices on a circle without an entrance come last, so that nothing is left out.
    for root in roots.chain(&graph.nodes) {
        // An explicit stack: depth is the application's choice.
        let mut stack =
            if drawn.contains(root.id.as_str()) { vec![] } else { vec![(0usize, "", root.id.as_str())] };
        while let Some((depth, edge, id)) = stack.pop() {
            let again = !drawn.insert(id);
            line(&mut out, depth, edge, id, nodes.get(id).copied(), again);
            if !again {
                let children = below.get(id).into_iter().flatten().rev();
                stack.extend(children.map(|&(to, label)| (depth + 1, label, to)));
            }
        }
    }
    out
}

fn line(out: &mut String, depth: usize, edge: &str, id: &str, node: Option<&GraphNode>, again: bool) {
    let edge = if edge.is_empty() { String::new() } else { format!("{edge} ") };
    let body = match node {
        None => id.to_owned(),
        Some(node) if again => format!("{} {} (above)", node.kind, node.label),
        Some(node) => {
            let bytes =
                if node.bytes > 0 { format!(", {}", human::bytes(node.bytes)) } else { String::new() };
            let state = match (node.replicable, node.reason.as_str()) {
                (true, "") => String::new(),
                (true, remark) => format!(" [{remark}]"),
                (false, reason) => format!(" [NOT REPLICABLE: {reason}]"),
            };
            format!("{} {}{bytes}{state}", node.kind, node.label)
        }
    };
    let _ =
        writeln!(out, "{:indent$}{}", "", human::plain(&format!("{edge}{body}")), indent = 2 * depth.min(40));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        let node = |id: &str, kind: &str, label: &str, replicable, bytes| GraphNode {
            id: id.into(),
            kind: kind.into(),
            label: label.into(),
            replicable,
            reason: if replicable { String::new() } else { "device".into() },
            bytes,
        };
        Graph {
            nodes: vec![
                node("process:1", "process", "1 \"sh\"", true, 0),
                node("fd:1:0", "descriptor", "0", true, 0),
                node("fd:1:1", "descriptor", "1", true, 0),
                node("file:/dev/x", "file", "/dev/x", false, 2048),
            ],
            edges: vec![
                ("process:1".into(), "fd:1:0".into(), "holds".into()),
                ("process:1".into(), "fd:1:1".into(), "holds".into()),
                ("fd:1:0".into(), "file:/dev/x".into(), "opens".into()),
                ("fd:1:1".into(), "file:/dev/x".into(), "opens".into()),
            ],
        }
    }

    #[test]
    fn text_draws_each_vertex_once() {
        let expected = "process 1 \"sh\"\n  holds descriptor 0\n    opens file /dev/x, 2.0 KiB [NOT REPLICABLE: device]\n  \
                        holds descriptor 1\n    opens file /dev/x (above)\n";
        assert_eq!(text(&graph()), expected);
    }

    #[test]
    fn circles_end() {
        let mut graph = graph();
        graph.edges.push(("file:/dev/x".into(), "process:1".into(), "circle".into()));
        assert_eq!(text(&graph).matches("process 1").count(), 2);
        graph.edges.push(("file:/dev/x".into(), "unknown".into(), "to".into()));
        assert!(text(&graph).contains("to unknown"));
    }

    #[test]
    fn dot_is_quoted() {
        let out = dot("a", &graph());
        assert!(out.starts_with("digraph \"a\" {"));
        assert!(out.contains("\"process:1\" [label=\"process 1 \\\"sh\\\"\"];"));
        assert!(out.contains("color=red"));
        assert!(out.contains("\"fd:1:1\" -> \"file:/dev/x\" [label=\"opens\"];"));
    }
}
