//! Goal: an agent that is killed with -9 in any phase of a checkpoint, a restore or a switch leaves the application and every
//! node at exactly one sealed epoch: the one before, or the new one, whole.
//! Method: as `faults.rs`, but the agent dies where it would fail; started again, it must find what was sealed, and go on.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::command;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{goes_on, result};
use holo_tests::{compile, process, wait};
use serde_json::Value;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
/// The first and the last of all, and those with most to store.
const KINDS: [&str; 4] = ["tree", "files", "memory", "threads"];

fn order(node: &Node, text: &str) {
    std::fs::write(node.outside("faults"), text).unwrap();
}

fn start(node: &Node, options: &[&str]) -> App {
    hand_over(&node.outside(DIR), node.who());
    let program = Program::new(compile::workload("tree.c"), &[node.inside(DIR)]);
    let mut app = App::start(node, "work", &program, DIR, &[options, &["--keep", "100"]].concat());
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

fn epochs(node: &Node) -> Vec<u64> {
    let text = command::run_ok(&mut node.holo(&["epochs", "work", "--json"]), ORDER_LIMIT);
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(all.iter().all(|epoch| epoch["sealed"] == true), "{text}");
    all.iter().map(|epoch| epoch["epoch"].as_u64().unwrap()).collect()
}

/// The agent is gone, and started again with nothing ordered.
fn again(node: &mut Node, after: &str) {
    let agent = node.agent_pid().unwrap();
    process::wait_gone(&[agent], LIMIT);
    node.kill_agent();
    order(node, "");
    node.start_agent();
    assert_eq!(
        std::fs::read_dir(node.outside("state/staging")).map_or(0, Iterator::count),
        0,
        "after {after}"
    );
}

fn faulty(who: Who) -> Node {
    let mut node = Node::without_agent(who);
    let orders = node.inside("faults");
    node.set_agent_env("HOLO_FAULTS", orders);
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    node.start_agent();
    node
}

#[test]
fn checkpoints() {
    let mut node = faulty(Who::Me);
    let mut app = start(&node, &[]);
    app.checkpoint(&node);
    for kind in KINDS {
        for phase in ["dump before", "dump after", "post_dump after"] {
            let fault = format!("{kind} {phase}");
            let before = epochs(&node);
            order(&node, &format!("{fault} kill"));
            let agent = node.agent_pid().unwrap();
            // On a busy machine threads may be late for an epoch, which is given up then.
            wait::until(LIMIT, &format!("the agent dies at {fault}"), || {
                assert!(app.try_checkpoint(&node).is_err(), "{fault}");
                std::thread::sleep(Duration::from_millis(50));
                (!process::alive(agent)).then_some(())
            });
            again(&mut node, &fault);
            assert_eq!(epochs(&node), before, "{fault}");
            goes_on(&node, &fault);
        }
        // What is sealed is whole: the files here are those of it, and the application runs from it.
        let sealed = app.checkpoint(&node).number("epoch");
        assert_eq!(epochs(&node).last(), Some(&sealed));
        app.kill(&node);
        let restored = app.restore_unsettled(&node, None);
        assert_eq!(restored["epoch"].as_u64(), Some(sealed));
        goes_on(&node, "its restore");
    }
    std::fs::write(node.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(&node, LIMIT);
    assert_eq!(result(&node), "ok\n");
}

#[test]
fn restores() {
    let mut node = faulty(Who::Me);
    let mut app = start(&node, &[]);
    let sealed = app.checkpoint(&node).number("epoch");
    for kind in KINDS {
        for phase in ["switch before", "switch after"] {
            let fault = format!("{kind} {phase}");
            if !app.real_pids(&node).is_empty() {
                app.kill(&node);
            }
            order(&node, &format!("{fault} kill"));
            assert!(
                !command::run(&mut node.holo(&["restore", "work"]), ORDER_LIMIT).status.success(),
                "{fault}"
            );
            again(&mut node, &fault);
            assert_eq!(epochs(&node), [sealed], "{fault}");
            // What was half made is gone.
            wait::until(LIMIT, &format!("no half-made clone after {fault}"), || {
                (app.state(&node) == "stopped").then_some(())
            });
            let restored = app.restore_unsettled(&node, None);
            assert_eq!(restored["epoch"].as_u64(), Some(sealed), "{fault}");
            goes_on(&node, &fault);
        }
    }
    std::fs::write(node.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(&node, LIMIT);
    assert_eq!(result(&node), "ok\n");
}

/// The stand-by dies while it makes the clone, and comes back: the application runs on exactly one of the nodes, which is the
/// one that the order's answer says, from what was sealed.
#[test]
fn switches() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    let faults = cluster.nodes[1].inside("faults");
    cluster.nodes[1].set_agent_env("HOLO_FAULTS", faults);
    cluster.start_agents(Timing::default());
    hand_over(&cluster.nodes[1].outside(DIR), Who::Me);
    let app = start(&cluster.nodes[0], &["--standby", "b"]);
    for fault in ["files switch before", "files switch after", "memory switch after"] {
        let sealed = app.checkpoint(&cluster.nodes[0]).number("epoch");
        order(&cluster.nodes[1], &format!("{fault} kill"));
        let mut switch = cluster.nodes[0].holo(&["switch", "work", "--to", "b"]);
        // Until b is back nobody knows whether it has taken over.
        let done = std::thread::scope(|scope| {
            let done = scope.spawn(|| command::run(&mut switch, ORDER_LIMIT));
            again(&mut cluster.nodes[1], fault);
            done.join().unwrap()
        });
        let runs = |node: &Node| app.state(node) == "running";
        wait::until(LIMIT, &format!("it runs on one node after {fault}"), || {
            (runs(&cluster.nodes[0]) != runs(&cluster.nodes[1])).then_some(())
        });
        let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
        let is_over = runs(b);
        assert_eq!(is_over, done.status.success(), "{fault}: {}{}", done.stdout, done.stderr);
        eprintln!("{fault}: runs on {}", if is_over { "b" } else { "a" });
        let (owner, other) = if is_over { (b, a) } else { (a, b) };
        goes_on(owner, fault);
        wait::until(LIMIT, &format!("the clone after {fault}"), || {
            (app.state(other) == "standby" && *epochs(other).last()? >= sealed).then_some(())
        });
        if is_over {
            command::run_ok(&mut b.holo(&["switch", "work", "--to", "a"]), ORDER_LIMIT);
            goes_on(a, "the switch back");
            wait::until(LIMIT, "the clone on b again", || (app.state(b) == "standby").then_some(()));
        }
    }
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    app.checkpoint(a);
    let done = command::run(&mut a.holo(&["switch", "work", "--to", "b"]), ORDER_LIMIT);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    goes_on(b, "the switch");
    std::fs::write(b.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(b, LIMIT);
}
