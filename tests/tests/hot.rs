//! Goal: what runs on from a hot clone is the application as of the epoch, whatever became of its memory while the clone followed it.
//! Method: programs that check themselves, an epoch every 100 ms; once the clone has followed several of them the application is
//! switched to it by order, and back by the death of its node. Both runs must have begun from a hot clone.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, wait};
use serde_json::Value;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const A: usize = 0;
const B: usize = 1;

fn text(node: &Node, file: &str) -> String {
    std::fs::read_to_string(node.outside(DIR).join(file)).unwrap_or_default()
}

fn progress(node: &Node) -> u64 {
    text(node, "progress").trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
}

fn goes_on(node: &Node) {
    let from = progress(node);
    wait::until(LIMIT, &format!("progress beyond {from} on {}", node.name), || {
        assert_eq!(text(node, "result"), "", "the workload ended on {}", node.name);
        (progress(node) > from + 1).then_some(())
    });
}

/// How often applications began to run on a node from a clone of this sort.
fn runs(node: &Node, sort: &str) -> usize {
    node.log().matches(&format!("by a {sort} clone")).count()
}

fn clone(app: &App, node: &Node) -> Value {
    app.row(node).map_or(Value::Null, |row| row["clone"].clone())
}

/// The clone on `node` has followed at least `count` epochs that came after this call.
fn follows(app: &App, node: &Node, count: u64) -> u64 {
    let epoch = || clone(app, node)["epoch"].as_u64();
    let first = wait::until(LIMIT, &format!("a hot clone on {}", node.name), epoch);
    wait::until(LIMIT, "the clone to follow", || epoch().filter(|now| *now >= first + count))
}

fn start(cluster: &Cluster, source: &str, arguments: &[&str], options: &[&str]) -> App {
    for node in &cluster.nodes {
        hand_over(&node.outside(DIR), node.who());
    }
    let mut all = vec![cluster.nodes[A].inside(DIR).into_os_string()];
    all.extend(arguments.iter().map(Into::into));
    let program = Program::new(compile::workload(source), &all);
    let mut app = App::start(&cluster.nodes[A], "work", &program, DIR, options);
    app.wait_joined(&cluster.nodes[A]);
    app
}

fn good_end(app: &App, node: &Node) {
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(node, LIMIT);
    assert_eq!(text(node, "result"), "ok\n");
}

fn switch(app: &App, cluster: &Cluster) {
    command::run_ok(&mut cluster.nodes[A].holo(&["switch", "work", "--to", "b", "--json"]), ORDER_LIMIT);
    wait::until(LIMIT, "b to run it", || {
        assert_eq!(text(&cluster.nodes[B], "result"), "", "the workload ended on b");
        (app.state(&cluster.nodes[B]) == "running").then_some(())
    });
    app.settle(&cluster.nodes[B]);
    goes_on(&cluster.nodes[B]);
}

/// `keeps_shape`: no process comes or goes, so that the clone can follow.
fn there_and_back(who: Who, source: &str, arguments: &[&str], keeps_shape: bool) {
    let mut cluster = Cluster::new(&["a", "b"], who);
    cluster.start_agents(Timing::default());
    let mut app = start(&cluster, source, arguments, &["--standby", "b", "--every", "100ms"]);
    goes_on(&cluster.nodes[A]);
    follows(&app, &cluster.nodes[B], 5);
    switch(&app, &cluster);
    ran(&cluster.nodes[B], keeps_shape);
    assert_eq!(clone(&app, &cluster.nodes[B]), Value::Null, "a clone where it runs");
    follows(&app, &cluster.nodes[A], 5);
    goes_on(&cluster.nodes[B]);
    cluster.kill(B);
    app.forget();
    wait::until(LIMIT, "take-over by a", || {
        assert_eq!(text(&cluster.nodes[A], "result"), "", "the workload ended on a");
        (app.state(&cluster.nodes[A]) == "running").then_some(())
    });
    app.settle(&cluster.nodes[A]);
    ran(&cluster.nodes[A], keeps_shape);
    goes_on(&cluster.nodes[A]);
    good_end(&app, &cluster.nodes[A]);
}

/// It ran on a node once, from a hot clone unless processes come and go.
fn ran(node: &Node, keeps_shape: bool) {
    let (hot, cold) = (runs(node, "hot"), runs(node, "cold"));
    assert_eq!(hot + cold, 1);
    assert!(hot == 1 || !keeps_shape, "it ran from a cold clone");
}

/// Switched to b, where it is made from the store, and goes on there to its end.
fn made_when_needed(cluster: &Cluster, app: &App) {
    switch(app, cluster);
    assert_eq!((runs(&cluster.nodes[B], "hot"), runs(&cluster.nodes[B], "cold")), (0, 1));
    good_end(app, &cluster.nodes[B]);
}

// Goal: a clone that cannot be kept is told of with its reason, and made when it is needed. Method: pseudo-terminals.
#[test]
fn what_cannot_be_kept_is_told() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::default());
    let app = start(&cluster, "pty_pairs.c", &[], &["--standby", "b", "--every", "100ms"]);
    goes_on(&cluster.nodes[A]);
    let why =
        || clone(&app, &cluster.nodes[B])["why"].as_str().filter(|why| !why.is_empty()).map(str::to_owned);
    let why = wait::until(LIMIT, "a reason", why);
    assert!(why.contains("pseudo-terminals"), "{why}");
    assert_eq!(clone(&app, &cluster.nodes[B])["epoch"], Value::Null);
    made_when_needed(&cluster, &app);
}

// Goal: none is kept where none is wanted. Method: the agents' setting; epochs come in, and nothing is made of them.
#[test]
fn none_are_kept_if_told_so() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    for node in &mut cluster.nodes {
        node.set_agent_env("HOLO_CLONES", "cold");
    }
    cluster.start_agents(Timing::default());
    let app = start(&cluster, "threads.c", &[], &["--standby", "b", "--every", "100ms"]);
    let epoch =
        || app.row(&cluster.nodes[B]).and_then(|row| row["epoch"].as_u64()).filter(|epoch| *epoch > 5);
    wait::until(LIMIT, "epochs on b", epoch);
    assert_eq!(clone(&app, &cluster.nodes[B]), Value::Null);
    made_when_needed(&cluster, &app);
}

#[test]
fn threads_as_root() {
    there_and_back(Who::Me, "threads.c", &[], true);
}

#[test]
fn threads_as_user() {
    there_and_back(Who::Nobody, "threads.c", &[], true);
}

#[test]
fn memory_of_every_type() {
    there_and_back(Who::Me, "memory.c", &[], true);
}

#[test]
fn memory_that_changes_in_every_way() {
    there_and_back(Who::Nobody, "memory_churn.c", &[], true);
}

#[test]
fn memory_that_moves() {
    there_and_back(Who::Me, "memory_moves.c", &[], true);
}

#[test]
fn memory_that_grows() {
    there_and_back(Who::Me, "memory_grow.c", &[], true);
}

#[test]
fn wild_memory() {
    there_and_back(Who::Me, "memory_wild.c", &[], true);
}

#[test]
fn a_tree_of_processes() {
    there_and_back(Who::Nobody, "tree.c", &[], false);
}

#[test]
fn shared_segments() {
    there_and_back(Who::Me, "sysv_shm.c", &[], true);
}

#[test]
fn locks_between_processes() {
    there_and_back(Who::Nobody, "pshared.c", &[], false);
}

#[test]
fn descriptors_that_processes_share() {
    there_and_back(Who::Me, "sharing.c", &[], true);
}

#[test]
fn handlers_of_signals() {
    there_and_back(Who::Me, "handlers.c", &[], true);
}

#[test]
fn wild_memory_of_processes_that_come_and_go() {
    there_and_back(Who::Me, "memory_wild.c", &["forks"], false);
}

#[test]
fn a_process_whose_first_thread_has_ended() {
    there_and_back(Who::Nobody, "headless.c", &["alone"], true);
}

#[test]
fn processes_whose_first_threads_have_ended() {
    there_and_back(Who::Me, "headless.c", &[], false);
}
