//! Goal: every epoch has the files as they were at its cut, however they were changed since the one before.
//! Method: processes that change files in every way at random and hold copies in memory; after a restore memory and files
//! must agree.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, wait};
use std::fs;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);

holo_tests::workloads! {
    random: Workload::new("file_changes.c").arg("1");
    calls: Workload::new("file_calls.c").arg("1").agent_env("HOLO_FILES_CHECK", "1").checkpoints(20);
    mapped: Workload::new("mapped_file.c").agent_env("HOLO_FILES_CHECK", "1").checkpoints(40);
    leases: Workload::new("leases.c");
    names_full: Workload::new("file_names.c").arg("full").agent_env("HOLO_FILES_CHECK", "1").checkpoints(12);
    names: Workload::new("file_names.c").agent_env("HOLO_FILES_CHECK", "1").checkpoints(12);
    closes: Workload::new("file_closes.c").agent_env("HOLO_FILES_CHECK", "1").checkpoints(12);
}

fn result(node: &Node) -> String {
    fs::read_to_string(node.outside(DIR).join("result")).unwrap_or_default()
}

/// Epochs one on the other, then a restore of the last, several times.
fn many_epochs(seed: &str) {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let args = [node.inside(DIR), seed.into()];
    let mut app = App::start(
        &node,
        "work",
        &Program::new(compile::workload("file_changes.c"), &args),
        DIR,
        &["--every", "0"],
    );
    app.wait_joined(&node);
    for round in 0..3u64 {
        for epoch in 0..8 {
            std::thread::sleep(Duration::from_micros(20_000 + (round * 8 + epoch) * 7919 % 9000));
            app.checkpoint(&node);
            assert_eq!(result(&node), "");
        }
        app.kill(&node);
        app.restore(&node, None);
        let from = holo_tests::workload::progress(&node);
        wait::until(LIMIT, "progress after a restore", || {
            assert_eq!(result(&node), "");
            (holo_tests::workload::progress(&node) > from + 40).then_some(())
        });
    }
    fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(&node, LIMIT);
    assert_eq!(result(&node), "ok\n");
}

#[test]
fn many_epochs_and_restores() {
    many_epochs("11");
}

#[test]
fn many_epochs_and_restores_of_other_changes() {
    many_epochs("12");
}
