//! Goal: an application that cannot be parked runs on and is reported; another kernel's vdso is stood in for.
//! Method: a program that keeps the park signal out; restores by an agent that treats every vdso as another build's.
#![allow(missing_docs)]

use holo_tests::compile;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{Workload, progress};
use holo_tests::{command, wait};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn what_never_parks_runs_on_and_is_reported() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside("data/work"), Who::Me);
    let mut command = node.holo(&["run", "--name", "stubborn", "--every", "0", "--park-max", "50ms", "--"]);
    command.arg(compile::workload("never_parks.c")).arg(node.inside("data/work"));
    let mut child = command.spawn().expect("start");
    let moves = |from: u64| wait::try_until(LIMIT, || (progress(&node) > from).then_some(()));
    assert!(moves(5).is_some(), "it does not start");
    for _ in 0..3 {
        let refused = command::run(&mut node.holo(&["checkpoint", "stubborn"]), LIMIT);
        assert_eq!(refused.code(), 5, "{}", refused.stderr);
        assert!(refused.stderr.contains("did not park within 50 ms"), "{}", refused.stderr);
        assert!(refused.stderr.contains("with the park signal blocked"), "{}", refused.stderr);
        assert!(moves(progress(&node)).is_some(), "it does not run on");
    }
    let listed = command::run_ok(&mut node.holo(&["ps", "--json"]), LIMIT);
    assert!(listed.contains("\"unprotected\"") && listed.contains("did not park"), "{listed}");
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    assert!(command::wait_child(&mut child, LIMIT, "stubborn").success());
}

#[test]
fn another_kernels_vdso_is_stood_in_for() {
    for source in ["clocks.c", "threads.c"] {
        Workload::new(source).agent_env("HOLO_TEST_OTHER_VDSO", "1").restored(Who::Nobody);
    }
}
