//! Goal: the graph shows what an application has, what hangs together, what is not replicable and what parts cost. Method: a program of
//! known make-up, and its graph as JSON, text and dot.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, wait, workload};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

const PROGRAM: &str = r#"
import ctypes, os, socket, sys, threading, time
work = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0, 8192, 0o1600)
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None)
sems = libc.semget(0, 1, 0o1600)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()
outside = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
left, right = socket.socketpair()
read, write = os.pipe()
log = open(work + "/log", "w")
threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
child = os.fork()
if child == 0:
    dirt = bytearray(os.urandom(3 << 20))
    os.write(write, b"x")
    while not os.path.exists(work + "/stop"):
        time.sleep(0.02)
    os._exit(0)
# The child has its memory.
os.read(read, 1)
count = 0
while not os.path.exists(work + "/stop"):
    count += 1
    open(work + "/progress", "w").write("%d\n" % count)
    time.sleep(0.01)
os.waitpid(child, 0)
libc.semctl(sems, 0, 0)
open(work + "/result", "w").write("ok\n")
"#;

fn edge(graph: &Value, from: &str, to: &str, label: &str) -> bool {
    let has =
        |edge: &Value, key: &str, wanted: &str| edge[key].as_str().is_some_and(|id| id.starts_with(wanted));
    let edges = graph["edges"].as_array().expect("edges");
    edges.iter().any(|edge| has(edge, "from", from) && has(edge, "to", to) && edge["label"] == label)
}

fn nodes<'a>(graph: &'a Value, kind: &str) -> Vec<&'a Value> {
    graph["nodes"].as_array().expect("nodes").iter().filter(|node| node["kind"] == kind).collect()
}

#[test]
fn shows_all_of_an_application() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside("data/work"), Who::Me);
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = stranger.local_addr().expect("an address").port().to_string();
    let script = node.outside("data/work/program.py");
    std::fs::write(&script, PROGRAM).expect("a program");
    let args = [
        node.inside("data/work/program.py").into_os_string(),
        node.inside("data/work").into_os_string(),
        port.into(),
    ];
    let mut app =
        App::start(&node, "work", &Program::new("/usr/bin/python3", &args), "data/work", &["--every", "0"]);
    app.wait_joined(&node);
    wait::until(LIMIT, "progress", || (workload::progress(&node) > 2).then_some(()));
    let epoch = app.checkpoint(&node);
    let pids = app.row(&node).expect("a row")["cluster_pids"].as_array().expect("pids").clone();
    let [first, child] = [0, 1].map(|at: usize| pids[at].as_u64().expect("a pid"));
    let graph = command::run_ok(&mut node.holo(&["graph", "work", "--format", "json"]), ORDER_LIMIT);
    let graph: Value = serde_json::from_str(&graph).expect("JSON");

    assert!(edge(&graph, "application:work", &format!("process:{first}"), "consists of"));
    assert!(edge(&graph, &format!("process:{first}"), &format!("process:{child}"), "is the parent of"));
    assert_eq!(nodes(&graph, "thread").len(), 3, "{graph}");
    for (kind, label) in
        [("shm", "System V segment"), ("sem", "System V semaphores"), ("pipe", "pipe:["), ("memory", "KiB")]
    {
        assert!(
            nodes(&graph, kind).iter().any(|node| node["label"].as_str().expect("label").contains(label)),
            "{kind}: {graph}"
        );
    }
    // A parent and its child hold the same pipe, both sides of both connections, one way to the outside.
    let pipe = nodes(&graph, "pipe")[0]["id"].as_str().expect("an id");
    for pid in [first, child] {
        assert!(edge(&graph, &format!("fd:{pid}:"), pipe, "refers to"), "{pipe}: {graph}");
    }
    assert!(edge(&graph, "socket:", "socket:", "is connected to"), "{graph}");
    assert!(edge(&graph, "socket:", "peer:TCP 127.0.0.1:", "is connected to"), "{graph}");
    let peers = nodes(&graph, "peer");
    assert!(peers.len() == 1 && peers[0]["replicable"] == false, "{peers:?}");
    let labels: Vec<&str> =
        nodes(&graph, "socket").iter().filter_map(|node| node["label"].as_str()).collect();
    assert!(labels.iter().any(|label| label.ends_with("listening")), "{labels:?}");
    assert_eq!(labels.iter().filter(|label| label.starts_with("unix ")).count(), 2, "{labels:?}");

    // Who has what costs that.
    let cost = |id: String| {
        let all = graph["nodes"].as_array().expect("nodes");
        all.iter()
            .find(|node| node["id"] == id.as_str())
            .and_then(|node| node["bytes"].as_u64())
            .expect("bytes")
    };
    assert!(cost(format!("process:{child}")) > 3 << 20, "{graph}");
    let sum: u64 =
        graph["nodes"].as_array().expect("nodes").iter().filter_map(|node| node["bytes"].as_u64()).sum();
    assert_eq!(sum, epoch.number("bytes_sent"));

    let text = command::run_ok(&mut node.holo(&["graph", "work"]), ORDER_LIMIT);
    assert!(text.contains("NOT REPLICABLE: connected to outside the application"), "{text}");
    let dot = command::run_ok(&mut node.holo(&["graph", "work", "--format", "dot"]), ORDER_LIMIT);
    assert!(
        dot.starts_with("digraph \"work\"")
            && dot.contains(&format!("\"process:{first}\" -> \"process:{child}\"")),
        "{dot}"
    );
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    wait::until(LIMIT, "the result", || (workload::result(&node) == "ok\n").then_some(()));
}
