//! Goal: applications that were started on different nodes keep all their ids when they meet on a third, whichever of them are equal.
//! Method: two trees of processes with System V segments that check their ids each round, switched to one node by order, replicated on
//! from there, killed and restored there.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, wait};
use std::collections::BTreeSet;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const C: usize = 2;

fn read(node: &Node, name: &str, file: &str) -> String {
    std::fs::read_to_string(node.outside(format!("data/{name}")).join(file)).unwrap_or_default()
}

fn goes_on(node: &Node, name: &str) {
    let progress = || read(node, name, "progress").trim().parse::<u64>().unwrap_or(0);
    let from = progress();
    wait::until(LIMIT, &format!("progress of {name} on {}", node.name), || {
        assert_eq!(read(node, name, "result"), "", "{name} ended on {}", node.name);
        (progress() > from + 3).then_some(())
    });
}

/// Ids that live as long as the application: those of short-lived children come and go.
fn first_id(app: &App, node: &Node) -> u64 {
    app.row(node).expect("a row")["cluster_pids"][0].as_u64().expect("a pid")
}

fn meet(who: Who) {
    let mut cluster = Cluster::new(&["a", "b", "c"], who);
    cluster.start_agents(Timing::default());
    let mut apps = Vec::new();
    for (home, name) in ["one", "two"].into_iter().enumerate() {
        let dir = format!("data/{name}");
        for node in &cluster.nodes {
            hand_over(&node.outside(&dir), node.who());
        }
        let node = &cluster.nodes[home];
        let program = Program::new(compile::workload("tree.c"), &[node.inside(&dir)]);
        let mut app = App::start(node, name, &program, &dir, &["--standby", "c"]);
        app.wait_joined(node);
        goes_on(node, name);
        let epoch = app.checkpoint(node);
        assert!(epoch.0["where"].to_string().contains("\"c\""), "not on the stand-by: {}", epoch.0);
        apps.push((home, name, first_id(&app, node), app));
    }
    let there = &cluster.nodes[C];
    for (home, name, id, app) in &apps {
        wait::until(LIMIT, "the clone on c", || (app.state(there) == "standby").then_some(()));
        command::run_ok(&mut cluster.nodes[*home].holo(&["switch", name, "--to", "c"]), ORDER_LIMIT);
        wait::until(LIMIT, "running on c", || (app.state(there) == "running").then_some(()));
        assert_eq!(first_id(app, there), *id, "{name} has another id on c");
        goes_on(there, name);
    }
    let mut real = BTreeSet::new();
    for (_, name, id, app) in &mut apps {
        app.checkpoint(there);
        let pids = app.real_pids(there);
        app.forget();
        // In the node, whose numbers these are; children that live for a moment may be gone.
        let list: Vec<String> = pids.iter().map(u32::to_string).collect();
        let _ = command::run(there.command("kill").arg("-9").args(&list), ORDER_LIMIT);
        wait::until(LIMIT, "its end", || (app.state(there) == "stopped").then_some(()));
        real.extend(pids);
        app.restore(there, None);
        assert_eq!(first_id(app, there), *id, "{name} has another id after a restore on c");
        goes_on(there, name);
    }
    assert!(real.len() >= 2 * 6, "two trees are {} processes", real.len());
    for (_, name, _, app) in &apps {
        std::fs::write(there.outside(format!("data/{name}")).join("stop"), b"").expect("stop");
        app.wait_ended(there, LIMIT);
        assert_eq!(read(there, name, "result"), "ok\n");
    }
}

#[test]
fn on_a_third_node() {
    meet(Who::Me);
}

#[test]
fn on_a_third_node_as_user() {
    meet(Who::Nobody);
}
