//! Goal: a restored application runs before all of its memory was read, and nothing that happens meanwhile harms it.
//! Method: a program that checks every page; its restore is held back (`HOLO_MEMORY_LATE=wait`), its agent is killed, a page of the image
//! is damaged. Only root's agent may fill memory late; another one's restore is the same, with all memory read first.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{goes_on, progress, result};
use holo_tests::{command, compile, wait};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
/// An order that has nothing to wait for is over after it; one that reads nothing by itself waits longer.
const MOMENT: Duration = Duration::from_millis(500);
const PAGE: usize = 4096;

/// The program, with an epoch, killed.
fn killed(order: &str) -> (Node, App) {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_MEMORY_LATE", order);
    node.start_agent();
    hand_over(&node.outside(DIR), Who::Me);
    let mut app = start(&node);
    app.checkpoint(&node);
    app.kill(&node);
    (node, app)
}

fn start(node: &Node) -> App {
    let args = [node.inside(DIR).into_os_string(), "touches".into()];
    let program = Program::new(compile::workload("memory_late.c"), &args);
    let mut app = App::start(node, "work", &program, DIR, &[]);
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

fn restore(node: &Node) -> Child {
    let mut order = node.holo(&["restore", "work"]);
    order.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("holo restore")
}

/// Waits until it runs again: its file is brought to the epoch's count first.
fn wait_runs(node: &Node, killed_at: u64) {
    let changed =
        |from: u64| wait::until(LIMIT, "progress", || Some(progress(node)).filter(|now| *now != from));
    changed(changed(killed_at));
}

/// Restores it; true if it went on before all was read.
fn runs_early(node: &Node) -> bool {
    let reached = progress(node);
    let mut order = restore(node);
    wait_runs(node, reached);
    std::thread::sleep(MOMENT);
    let early = order.try_wait().expect("holo restore").is_none();
    assert!(command::wait_child(&mut order, LIMIT, "holo restore").success(), "{}", node.log());
    early
}

fn ends_well(node: &Node, app: &App) {
    fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(node, LIMIT);
    assert_eq!(result(node), "ok\n");
}

#[test]
fn it_runs_before_all_was_read() {
    let (node, mut app) = killed("wait");
    assert_eq!(runs_early(&node), node.is_root());
    goes_on(&node, "the restore");
    // What came late is in the next epoch as all else.
    app.checkpoint(&node);
    app.kill(&node);
    assert_eq!(runs_early(&node), node.is_root());
    goes_on(&node, "the second restore");
    ends_well(&node, &app);
}

#[test]
fn not_if_it_is_not_wanted() {
    let (node, app) = killed("0");
    assert!(!runs_early(&node));
    ends_well(&node, &app);
}

// Method: the agent dies while most pages are missing. Who touches one waits; the next agent reads the rest.
#[test]
fn the_agent_is_killed_meanwhile() {
    let (mut node, mut app) = killed("wait");
    if !node.is_root() {
        return;
    }
    let reached = progress(&node);
    let mut order = restore(&node);
    wait_runs(&node, reached);
    node.kill_agent();
    assert!(!command::wait_child(&mut order, LIMIT, "holo restore").success(), "its agent is gone");
    assert_eq!(result(&node), "");
    node.start_agent();
    goes_on(&node, "the agent's start");
    assert!(node.log().contains("the rest of its memory is read from epoch 1"), "{}", node.log());
    app.checkpoint(&node);
    app.kill(&node);
    app.restore(&node, None);
    goes_on(&node, "the restore");
    ends_well(&node, &app);
}

/// The page of the program's second thread with that number, in the store.
fn stored(node: &Node, number: u64) -> (PathBuf, usize) {
    let dir = node.outside("state").join("apps/work/pages");
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for file in files.map(|entry| entry.expect("an entry").path()) {
        let bytes = fs::read(&file).expect("pages");
        let is_it = |page: &[u8]| {
            page[PAGE - 8..] == number.to_le_bytes() && page[8..PAGE - 8].iter().all(|byte| *byte == 0)
        };
        if let Some(index) = bytes.chunks_exact(PAGE).position(is_it) {
            return (file, index * PAGE);
        }
    }
    panic!("no page {number} in {}", dir.display())
}

fn flip(file: &PathBuf, at: usize) {
    let mut bytes = fs::read(file).expect("pages");
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("pages");
}

// Goal: a damaged page is an error that names it, and the application does not go on with something else.
#[test]
fn a_page_is_damaged() {
    let (node, app) = killed("1");
    let (file, at) = stored(&node, 5000);
    flip(&file, at + 100);
    let refused = command::run(&mut node.holo(&["restore", "work"]), ORDER_LIMIT);
    assert_eq!(refused.code(), 6, "{}", refused.stderr);
    assert!(refused.stderr.contains("is damaged"), "{}", refused.stderr);
    if node.is_root() {
        assert!(refused.stderr.contains("cannot be filled in"), "{}", refused.stderr);
    }
    wait::until(LIMIT, "its end", || (app.state(&node) == "stopped").then_some(()));
    // What the restore came to says nothing of the next instance, of which the epoch has the page anew.
    let mut app = start(&node);
    app.checkpoint(&node);
    app.kill(&node);
    app.restore(&node, None);
    goes_on(&node, "the restore");
    ends_well(&node, &app);
}
