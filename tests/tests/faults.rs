//! Goal: whatever kind fails in whatever phase, the application is what it was, and nothing is left behind.
//! Method: every phase of every kind is failed by order, before it has done anything and after it has done all: of checkpoints, the
//! application running on; of restores, the next of which succeeds; of switches, the old node running on. Processes, descriptors,
//! threads and control pages are counted.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{goes_on, result};
use holo_tests::{command, compile, process, wait};
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const WHENS: [&str; 2] = ["before", "after"];
/// Every kind of `agent/src/kinds.rs`.
const KINDS: [&str; 14] = [
    "tree",
    "stops",
    "aio",
    "files",
    "process",
    "descriptors",
    "sysv_shm",
    "sysv_sem",
    "sysv_msg",
    "ipc",
    "memory",
    "signals",
    "timers",
    "threads",
];

fn order(node: &Node, text: &str) {
    std::fs::write(node.outside("faults"), text).expect("faults");
}

fn start(node: &Node, options: &[&str]) -> App {
    hand_over(&node.outside(DIR), node.who());
    let program = Program::new(compile::workload("tree.c"), &[node.inside(DIR)]);
    let mut app = App::start(node, "work", &program, DIR, options);
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

fn end(node: &Node, app: &App) {
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(node, LIMIT);
    assert_eq!(result(node), "ok\n");
}

/// What could be left behind.
#[derive(Debug)]
struct Left {
    descriptors: usize,
    control_pages: usize,
    staged: usize,
}

fn count(dir: impl AsRef<std::path::Path>) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn left(node: &Node) -> Left {
    let agent = node.agent_pid().expect("an agent");
    let id = std::fs::read_to_string(node.outside("state/id")).expect("id");
    Left {
        descriptors: count(format!("/proc/{agent}/fd")),
        control_pages: count(format!("/dev/shm/holo-{id}")),
        staged: count(node.outside("state/staging")),
    }
}

/// Looks again and again, each time after `again`: what is held for processes that have ended is given back at the next epoch.
fn is_as_before(node: &Node, before: &Left, after: &str, again: impl Fn()) {
    let no_more = |now: &Left| {
        now.descriptors <= before.descriptors
            && now.control_pages <= before.control_pages
            && now.staged <= before.staged
    };
    let now = wait::try_until(Duration::from_secs(10), || {
        again();
        no_more(&left(node)).then_some(())
    });
    assert!(now.is_some(), "left after {after}: {:?}, before: {before:?}", left(node));
}

#[test]
fn checkpoints() {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_FAULTS", node.inside("faults"));
    node.start_agent();
    let app = start(&node, &[]);
    app.checkpoint(&node);
    let (before, processes) = (left(&node), process::tree(app.real_pids(&node)[0]).len());
    for kind in KINDS {
        for phase in ["pre_dump", "watch", "dump", "post_dump"] {
            for when in WHENS {
                let fault = format!("{kind} {phase} {when}");
                order(&node, &fault);
                let refused = app.try_checkpoint(&node).expect_err(&fault);
                assert!(refused.stderr.contains(&fault), "{fault}: {}", refused.stderr);
                goes_on(&node, &fault);
            }
        }
        order(&node, "");
        is_as_before(&node, &before, kind, || {
            app.checkpoint(&node);
        });
        wait::until(LIMIT, "no process more", || {
            (process::tree(app.real_pids(&node)[0]).len() <= processes).then_some(())
        });
    }
    end(&node, &app);
}

#[test]
fn restores() {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_FAULTS", node.inside("faults"));
    node.start_agent();
    let mut app = start(&node, &[]);
    for kinds in KINDS.chunks(6) {
        app.checkpoint(&node);
        app.kill(&node);
        let restore = || command::run(&mut node.holo(&["restore", "work"]), ORDER_LIMIT);
        order(&node, "tree pre_switch before");
        assert!(!restore().status.success());
        let (alone, before) = (process::marked(&node.mark()).len(), left(&node));
        for kind in kinds {
            for phase in ["pre_switch", "switch", "post_switch"] {
                for when in WHENS {
                    let fault = format!("{kind} {phase} {when}");
                    order(&node, &fault);
                    let refused = restore();
                    assert!(!refused.status.success(), "{fault}: restored");
                    assert!(refused.stderr.contains(&fault), "{fault}: {}", refused.stderr);
                }
            }
            is_as_before(&node, &before, kind, || {});
            wait::until(LIMIT, &format!("no process after {kind}"), || {
                (process::marked(&node.mark()).len() <= alone).then_some(())
            });
        }
        order(&node, "");
        app.restore(&node, None);
        goes_on(&node, "its restore");
    }
    end(&node, &app);
}

/// The clone fails: the old node's application runs on, and the next switch succeeds.
#[test]
fn switches() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    let faults = cluster.nodes[1].inside("faults");
    cluster.nodes[1].set_agent_env("HOLO_FAULTS", faults);
    cluster.start_agents(Timing::default());
    let [a, b] = &cluster.nodes[..] else { panic!("two nodes") };
    hand_over(&b.outside(DIR), b.who());
    let app = start(a, &["--standby", "b"]);
    let switch = || command::run(&mut a.holo(&["switch", "work", "--to", "b"]), ORDER_LIMIT);
    app.checkpoint(a);
    for kind in KINDS {
        let fault =
            format!("{kind} {}", if kind == "threads" { "post_switch after" } else { "switch after" });
        order(b, &fault);
        let refused = switch();
        assert!(!refused.status.success(), "{fault}: switched");
        assert_eq!(app.state(a), "running", "{fault}: {}", refused.stderr);
        goes_on(a, &fault);
        app.checkpoint(a);
    }
    order(b, "");
    let done = switch();
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    goes_on(b, "the switch");
    end(b, &app);
}
