//! Goal: real programs, unmodified, give the same results as without holo.
//! Method: programs that check their own content run in every mode; a long transaction is compared by its output.
#![allow(missing_docs)]

use holo_tests::app::{App, Program, start_plain};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, paths, wait};
use std::time::{Duration, Instant};

holo_tests::workloads! {
    python: Workload::script("/usr/bin/python3", "work.py");
    perl: Workload::script("/usr/bin/perl", "work.pl");
    node: Workload::script("/usr/bin/node", "work.js");
    cxx: Workload::new("throw.cc").checkpoints(100);
}

const LIMIT: Duration = Duration::from_secs(120);
const DIR: &str = "data/work";

fn transaction(node: &Node) -> Program {
    hand_over(&node.outside(DIR), node.who());
    let script = paths::tests_dir().join("programs/transaction.sql");
    Program::new(
        "/usr/bin/sqlite3",
        &[node.inside(DIR).join("db"), format!(".read {}", script.display()).into()],
    )
}

fn output(node: &Node) -> String {
    let said = std::fs::read_to_string(node.outside(DIR).join("stderr")).unwrap_or_default();
    assert_eq!(said, "", "sqlite3 complained");
    std::fs::read_to_string(node.outside(DIR).join("stdout")).unwrap_or_default()
}

/// The output without holo, and how long it took.
fn reference() -> (String, Duration) {
    let node = Node::without_agent(Who::Me);
    let start = Instant::now();
    let mut child = start_plain(&node, &transaction(&node), DIR);
    assert!(command::wait_child(&mut child, LIMIT, "sqlite3").success());
    let text = output(&node);
    assert!(text.contains("ok\nresult|"), "{text}");
    (text, start.elapsed())
}

#[test]
fn sqlite_quiet() {
    let node = Node::start(Who::Me);
    let mut app = App::start(&node, "sqlite", &transaction(&node), DIR, &[]);
    assert_eq!(app.wait_exit(LIMIT), 0);
    assert_eq!(output(&node), reference().0);
}

#[test]
fn sqlite_live() {
    let (wanted, took) = reference();
    let node = Node::start(Who::Me);
    let mut app = App::start(&node, "sqlite", &transaction(&node), DIR, &[]);
    app.wait_joined(&node);
    for n in 0..100 {
        match app.try_checkpoint(&node) {
            Ok(epoch) => assert!(epoch.sealed(), "{}", epoch.0),
            // It may have come to its end meanwhile, but not before it could.
            Err(_) if n > 10 && app.state(&node) != "running" => break,
            Err(refused) => panic!("epoch {n}: {}", refused.stderr),
        }
        std::thread::sleep(took / 150);
    }
    assert_eq!(app.wait_exit(LIMIT), 0);
    assert_eq!(output(&node), wanted);
}

fn sqlite_restored(who: Who) {
    let (wanted, took) = reference();
    let node = Node::start(who);
    let mut app = App::start(&node, "sqlite", &transaction(&node), DIR, &[]);
    app.wait_joined(&node);
    // Through the transactions, with a kill after each checkpoint.
    for _ in 0..3 {
        std::thread::sleep(took / 6);
        app.checkpoint(&node);
        std::thread::sleep(Duration::from_millis(20));
        app.kill(&node);
        app.restore_unsettled(&node, None);
    }
    wait::until(LIMIT, "end of the transaction", || (app.state(&node) == "stopped").then_some(()));
    assert_eq!(output(&node), wanted);
}

#[test]
fn sqlite_is_restored() {
    sqlite_restored(Who::Me);
}

#[test]
fn sqlite_is_restored_as_user() {
    sqlite_restored(Who::Nobody);
}
