//! The dependency graph: processes, threads, descriptors and what they lead to, memory, IPC objects and connections; what of it
//! cannot be replicated, and what each part cost in the last epoch.

mod sockets;

use crate::app::App;
use holo_abi::control::object;
use holo_api::local::{AppState, Graph, GraphNode};
use holo_rm::face::face;
use holo_rm::kinds::zones::{self, Zone, ZoneKind};
use holo_rm::tree::{Census, Seat, state_and_parent};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What parts cost in an epoch, in bytes stored, by ids of the graph.
pub(crate) type Costs = BTreeMap<String, u64>;

/// Id of a process.
pub(crate) fn process_id(inner: i32) -> String {
    format!("process:{inner}")
}

/// Id of the state of a kind that is of the whole application.
pub(crate) fn state_id(kind: &str) -> String {
    format!("state:{kind}")
}

fn vertex(id: String, kind: &str, label: String) -> GraphNode {
    GraphNode { id, kind: kind.into(), label, replicable: true, reason: String::new(), bytes: 0 }
}

/// A graph in the making.
#[derive(Default)]
struct Builder {
    graph: Graph,
    places: BTreeMap<String, usize>,
    edges: BTreeSet<(String, String, String)>,
}

impl Builder {
    /// Adds a vertex that is not there yet; its id.
    fn add(&mut self, node: GraphNode) -> String {
        let id = node.id.clone();
        if !self.places.contains_key(&id) {
            self.places.insert(id.clone(), self.graph.nodes.len());
            self.graph.nodes.push(node);
        }
        id
    }

    fn edge(&mut self, from: &str, to: String, label: &str) {
        let edge = (from.to_owned(), to, label.to_owned());
        if self.edges.insert(edge.clone()) {
            self.graph.edges.push(edge);
        }
    }

    fn node(&mut self, id: &str) -> Option<&mut GraphNode> {
        self.places.get(id).and_then(|at| self.graph.nodes.get_mut(*at))
    }

    fn label(&mut self, id: &str, label: String) {
        if let Some(node) = self.node(id) {
            node.label = label;
        }
    }
}

/// What an application has now; empty if it does not run here.
#[must_use]
pub fn of(app: &App) -> Graph {
    let mut builder = Builder::default();
    if app.instance().is_none() {
        return builder.graph;
    }
    let info = app.info();
    let root = builder.add(vertex(format!("application:{}", app.name), "application", app.name.clone()));
    let seats = app.members.seats();
    let inner: BTreeMap<i32, i32> = seats.iter().map(|seat| (seat.pid, seat.inner)).collect();
    let mut inodes = BTreeSet::new();
    for seat in &seats {
        let face = face(seat.pid);
        let id = builder.add(vertex(process_id(seat.inner), "process", command(face)));
        let parent = state_and_parent(seat.pid).and_then(|(_, parent)| inner.get(&parent));
        match parent {
            Some(parent) => builder.edge(&process_id(*parent), id.clone(), "is the parent of"),
            None => builder.edge(&root, id.clone(), "consists of"),
        }
        threads(&mut builder, seat, &id);
        descriptors(&mut builder, seat, face, &id, &mut inodes);
        zones_of(&mut builder, seat, face, &id);
        ipc_objects(&mut builder, seat, &id);
    }
    if let Some(first) = seats.first() {
        sockets::describe(&mut builder, face(first.pid), &inodes);
    }
    for (id, bytes) in app.costs.lock().iter() {
        if let Some(kind) = id.strip_prefix("state:") {
            let state = builder.add(vertex(id.clone(), "state", kind.to_owned()));
            builder.edge(&root, state, "has");
        }
        // What has ended since is of no process.
        let at = if builder.places.contains_key(id) { id.as_str() } else { root.as_str() };
        if let Some(node) = builder.node(at) {
            node.bytes += bytes;
        }
    }
    // What is said of one that is protected is no obstacle.
    let reasons = info.reasons.iter().filter(|_| info.state != AppState::Running);
    for reason in reasons {
        let at = blamed(reason, &inner).filter(|id| builder.places.contains_key(id)).unwrap_or(root.clone());
        if let Some(node) = builder.node(&at) {
            (node.replicable, node.reason) = (false, reason.clone());
        }
    }
    builder.graph
}

/// The process that a reason names by its pid on this node.
fn blamed(reason: &str, inner: &BTreeMap<i32, i32>) -> Option<String> {
    let (_, rest) = reason.split_once("process ")?;
    let pid = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    inner.get(&pid).map(|pid| process_id(*pid))
}

fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
}

fn threads(builder: &mut Builder, seat: &Seat, process: &str) {
    for entry in fs::read_dir(format!("/proc/{}/task", seat.pid)).into_iter().flatten().flatten() {
        let tid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let id = format!("thread:{}", holo_rm::barrier::inner_tid(seat.pid, tid));
        let id = builder.add(vertex(id, "thread", name.trim().to_owned()));
        builder.edge(process, id, "runs");
    }
}

fn descriptors(builder: &mut Builder, seat: &Seat, face: i32, process: &str, inodes: &mut BTreeSet<u64>) {
    for entry in fs::read_dir(format!("/proc/{face}/fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let target =
            fs::read_link(entry.path()).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let id = builder.add(vertex(format!("fd:{}:{number}", seat.inner), "descriptor", number));
        builder.edge(process, id.clone(), "holds");
        let (kind, object) = match target.split_once(":[") {
            Some((kind, inode)) => {
                if kind == "socket" {
                    inodes.extend(inode.trim_end_matches(']').parse::<u64>());
                }
                (kind, target.clone())
            }
            None => match target.strip_prefix("anon_inode:") {
                // Each is an object of its own, and the kernel has one name for all.
                Some(kind) => (kind, format!("{kind}:{id}")),
                None => ("file", format!("file:{target}")),
            },
        };
        let object = builder.add(vertex(object, kind.trim_matches(['[', ']']), target.clone()));
        builder.edge(&id, object, "refers to");
    }
}

fn zones_of(builder: &mut Builder, seat: &Seat, face: i32, process: &str) {
    let maps = fs::read(format!("/proc/{face}/maps")).unwrap_or_default();
    let mut memory = 0;
    for zone in zones::parse(&maps).unwrap_or_default() {
        let Zone { kind, path, start, end, .. } = &zone;
        let name = String::from_utf8_lossy(path).into_owned();
        let object = match kind {
            ZoneKind::Anonymous | ZoneKind::Stack => {
                memory += end - start;
                continue;
            }
            ZoneKind::Vdso | ZoneKind::Vvar | ZoneKind::Vsyscall => continue,
            ZoneKind::SysV => {
                vertex(format!("shm:{}", zone.inode), "shm", format!("System V segment {}", zone.inode))
            }
            ZoneKind::SharedObject => {
                vertex(format!("shared:{}:{}", zone.device, zone.inode), "shared memory", name)
            }
            ZoneKind::FilePrivate | ZoneKind::FileShared => vertex(format!("file:{name}"), "file", name),
        };
        let id = builder.add(object);
        builder.edge(process, id, "maps");
    }
    let label = format!("{} KiB of its own", memory / 1024);
    let id = builder.add(vertex(format!("memory:{}", seat.inner), "memory", label));
    builder.edge(process, id, "has");
}

fn ipc_objects(builder: &mut Builder, seat: &Seat, process: &str) {
    let Some(page) = &seat.page else { return };
    for (sort, kind, what) in
        [(object::SEMAPHORES, "sem", "System V semaphores"), (object::QUEUE, "msg", "System V queue")]
    {
        for number in page.objects(sort) {
            let id = builder.add(vertex(format!("{kind}:{number}"), kind, format!("{what} {number}")));
            builder.edge(process, id, "uses");
        }
    }
}
