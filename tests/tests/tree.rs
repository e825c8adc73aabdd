//! Goal: applications of many processes are one application: parked at one instant, restored with every id, parent, group,
//! session, shared object and zombie. Method: self-verifying programs in every mode; see their sources.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, wait};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

holo_tests::workloads! {
    tree: Workload::new("tree.c");
    python: Workload::script("/usr/bin/python3", "processes.py");
}

fn start(node: &Node, source: &'static str) -> App {
    hand_over(&node.outside("data/work"), Who::Me);
    let program = Program::new(compile::workload(source), &[node.inside("data/work")]);
    let mut app = App::start(node, "work", &program, "data/work", &["--every", "0"]);
    app.wait_joined(node);
    let first = || holo_tests::workload::progress(node) > 3;
    wait::until(LIMIT, "progress", || first().then_some(()));
    app
}

fn good_end(node: &Node, mut app: App) {
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    assert_eq!(app.wait_exit(LIMIT), 0);
    assert_eq!(holo_tests::workload::result(node), "ok\n");
}

/// A process that is stopped cannot park: said so, and all go on; when it runs again so do checkpoints.
#[test]
fn a_stopped_process_is_told_of() {
    let node = Node::start(Who::Me);
    let app = start(&node, "tree.c");
    // Not the first, which waits for what it asks; a worker that lives all the time.
    let pids = app.real_pids(&node);
    let worker = pids.get(1).expect("a worker").to_string();
    command::run_ok(node.command("kill").args(["-STOP", &worker]), LIMIT);
    let refused = app.try_checkpoint(&node).expect_err("a checkpoint with a stopped process");
    assert!(refused.code() == 5 && refused.stderr.contains("stopped state"), "{}", refused.stderr);
    command::run_ok(node.command("kill").args(["-CONT", &worker]), LIMIT);
    app.checkpoint(&node);
    good_end(&node, app);
}
