//! Goal: an application outlives its node. Two nodes that share nothing, epochs streamed from one to the other.
//! Method: redis under writing clients and programs that check themselves; the node is killed whole, its cable cut, its
//! agent killed, or the switch ordered; what the stand-by has must be complete as of the last sealed epoch.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::redis::{Redis, Writer};
use holo_tests::{command, compile, paths, wait};
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const A: usize = 0;
const B: usize = 1;
/// Where clients are: a node without an agent.
const CLIENTS: usize = 2;

fn cluster(who: Who) -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"], who);
    cluster.start_agents(Timing::default());
    cluster
}

fn progress(node: &Node) -> u64 {
    let text = std::fs::read_to_string(node.outside(DIR).join("progress")).unwrap_or_default();
    text.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
}

fn said(node: &Node) -> String {
    std::fs::read_to_string(node.outside(DIR).join("result")).unwrap_or_default()
}

fn goes_on(node: &Node) {
    let from = progress(node);
    wait::until(LIMIT, &format!("progress beyond {from} on {}", node.name), || {
        assert_eq!(said(node), "", "the workload ended on {}", node.name);
        (progress(node) > from + 1).then_some(())
    });
}

fn start(cluster: &Cluster, program: &Program, options: &[&str]) -> App {
    for node in &cluster.nodes {
        hand_over(&node.outside(DIR), node.who());
    }
    let mut all = vec!["--standby", "b"];
    all.extend(options);
    let mut app = App::start(&cluster.nodes[A], "work", program, DIR, &all);
    app.wait_joined(&cluster.nodes[A]);
    app
}

fn workload(cluster: &Cluster, source: &str) -> Program {
    Program::new(compile::workload(source), &[cluster.nodes[A].inside(DIR)])
}

fn script(cluster: &Cluster, interpreter: &str, script: &str) -> Program {
    let script = paths::tests_dir().join("programs").join(script);
    Program::new(interpreter, &[script, cluster.nodes[A].inside(DIR)])
}

fn good_end(app: &App, node: &Node) {
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(node, LIMIT);
    assert_eq!(said(node), "ok\n");
}

fn sealed_on_b(app: &App, cluster: &Cluster) {
    let epoch = app.checkpoint(&cluster.nodes[A]);
    assert!(epoch.0["where"].to_string().contains("\"b\""), "not on the stand-by: {}", epoch.0);
    wait::until(LIMIT, "the clone on b", || (app.state(&cluster.nodes[B]) == "standby").then_some(()));
}

/// By order to B, and back to A; nothing is lost and it is active on one node only.
fn ordered_switch(who: Who, program: impl Fn(&Cluster) -> Program) {
    let cluster = cluster(who);
    let app = start(&cluster, &program(&cluster), &[]);
    goes_on(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    for (from, to, name) in [(A, B, "b"), (B, A, "a")] {
        goes_on(&cluster.nodes[from]);
        let reached = progress(&cluster.nodes[from]);
        let done = command::run_ok(
            &mut cluster.nodes[from].holo(&["switch", "work", "--to", name, "--json"]),
            ORDER_LIMIT,
        );
        let pid = app.real_pids(&cluster.nodes[to])[0];
        assert!(
            done.contains(&format!("\"real_pid\": {pid},")) || done.contains(&format!("\"real_pid\":{pid},")),
            "{done}"
        );
        assert!(progress(&cluster.nodes[to]) >= reached, "a planned switch lost {reached} rounds");
        wait::until(LIMIT, "the new owner shows it", || {
            (app.state(&cluster.nodes[to]) == "running").then_some(())
        });
        app.settle(&cluster.nodes[to]);
        assert_ne!(app.state(&cluster.nodes[from]), "running", "active on two nodes");
        goes_on(&cluster.nodes[to]);
    }
    good_end(&app, &cluster.nodes[A]);
}

/// The whole node is killed; the stand-by takes over by itself from the last sealed epoch.
fn killed_node(who: Who, program: impl Fn(&Cluster) -> Program) {
    let mut cluster = cluster(who);
    let mut app = start(&cluster, &program(&cluster), &[]);
    goes_on(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    let reached = progress(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    cluster.kill(A);
    app.forget();
    wait::until(LIMIT, "take-over by b", || (app.state(&cluster.nodes[B]) == "running").then_some(()));
    app.settle(&cluster.nodes[B]);
    assert!(progress(&cluster.nodes[B]) >= reached, "rounds before the sealed epoch are lost");
    goes_on(&cluster.nodes[B]);
    good_end(&app, &cluster.nodes[B]);
}

#[test]
fn threads_are_switched() {
    ordered_switch(Who::Me, |c| workload(c, "threads.c"));
}

#[test]
fn threads_are_switched_as_user() {
    ordered_switch(Who::Nobody, |c| workload(c, "threads.c"));
}

#[test]
fn threads_outlive_their_node() {
    killed_node(Who::Me, |c| workload(c, "threads.c"));
}

#[test]
fn threads_outlive_their_node_as_user() {
    killed_node(Who::Nobody, |c| workload(c, "threads.c"));
}

#[test]
fn a_tree_is_switched() {
    ordered_switch(Who::Me, |c| workload(c, "tree.c"));
}

#[test]
fn a_tree_outlives_its_node_as_user() {
    killed_node(Who::Nobody, |c| workload(c, "tree.c"));
}

/// Other inodes and devices are behind the names on another node; the program does not see them.
#[test]
fn file_identity_is_switched() {
    ordered_switch(Who::Me, |c| workload(c, "fd_identity.c"));
}

#[test]
fn exceptions_are_switched() {
    ordered_switch(Who::Me, |c| workload(c, "throw.cc"));
}

#[test]
fn python_is_switched() {
    ordered_switch(Who::Me, |c| script(c, "/usr/bin/python3", "work.py"));
}

#[test]
fn perl_is_switched() {
    ordered_switch(Who::Me, |c| script(c, "/usr/bin/perl", "work.pl"));
}

#[test]
fn node_is_switched() {
    ordered_switch(Who::Me, |c| script(c, "/usr/bin/node", "work.js"));
}

/// A long transaction that changes its node in the middle gives the result that it gives without holo.
#[test]
fn sqlite_is_switched() {
    let cluster = cluster(Who::Me);
    let sql = paths::tests_dir().join("programs/transaction.sql");
    let database = cluster.nodes[A].inside(DIR).join("db");
    let program = Program::new(
        "/usr/bin/sqlite3",
        &[
            database.clone().into_os_string(),
            // Where standard output goes was opened outside of the nodes.
            format!(".output {}", database.with_file_name("answer").display()).into(),
            format!(".read {}", sql.display()).into(),
        ],
    );
    let reference = command::run_ok(
        std::process::Command::new("/usr/bin/sqlite3")
            .arg(":memory:")
            .arg(format!(".read {}", sql.display())),
        Duration::from_secs(120),
    );
    let app = start(&cluster, &program, &[]);
    std::thread::sleep(Duration::from_millis(700));
    command::run_ok(&mut cluster.nodes[A].holo(&["switch", "work", "--to", "b"]), ORDER_LIMIT);
    app.wait_ended(&cluster.nodes[B], Duration::from_secs(120));
    let text = std::fs::read_to_string(cluster.nodes[B].outside(DIR).join("answer")).unwrap_or_default();
    // The first line names the journal's mode, which a database in memory does not have.
    let tail = |t: &str| t.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(tail(&text), tail(&reference));
}

/// The main job: redis under writing clients, 100 epochs streamed, the node killed, every key of the last sealed epoch
/// on the stand-by, which serves at once and is protected again.
fn redis_outlives_its_node(who: Who) {
    let mut cluster = Cluster::new(&["a", "b", "clients"], who);
    cluster.start_agents_of(&[A, B], Timing::default());
    for node in &cluster.nodes {
        hand_over(&node.outside("data/logs"), node.who());
    }
    let logs = cluster.nodes[CLIENTS].outside("data/logs");
    let mut redis = Redis::new(&cluster.address(A), 6400, 200_000, logs);
    let program = redis.program(&cluster.nodes[A], DIR);
    let mut app = start(&cluster, &program, &[]);
    redis.wait_up(&cluster.nodes[CLIENTS]);
    redis.fill(&cluster.nodes[CLIENTS]);
    let writers = [redis.start_writer(&cluster.nodes[CLIENTS]), redis.start_writer(&cluster.nodes[CLIENTS])];
    let mut before = Vec::new();
    for _ in 0..100 {
        before = writers.iter().map(Writer::acknowledged).collect();
        sealed_on_b(&app, &cluster);
    }
    assert!(writers.iter().all(|w| !w.lost()), "a client lost its connection");
    cluster.kill(A);
    app.forget();
    redis.host = cluster.address(B);
    wait::until(LIMIT, "take-over by b", || (app.state(&cluster.nodes[B]) == "running").then_some(()));
    app.settle(&cluster.nodes[B]);
    redis.wait_up(&cluster.nodes[CLIENTS]);
    let last = redis.verify(&cluster.nodes[CLIENTS], &before);
    redis.reload(&cluster.nodes[CLIENTS]);
    assert_eq!(
        redis.verify(&cluster.nodes[CLIENTS], &before),
        last,
        "the append-only file differs from memory"
    );
    let after: Vec<u64> = writers.iter().map(Writer::acknowledged).collect();
    eprintln!("acknowledged at the epoch {before:?}, at the kill {after:?}, on b {last:?}");
    drop(writers);
    let writer = redis.start_writer(&cluster.nodes[CLIENTS]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(writer.stop() > 0);
}

/// By order, under writing clients: every write that a client saw acknowledged is on the other node.
#[test]
fn redis_is_switched() {
    let mut cluster = Cluster::new(&["a", "b", "clients"], Who::Me);
    cluster.start_agents_of(&[A, B], Timing::default());
    let logs = cluster.nodes[CLIENTS].outside("data/logs");
    hand_over(&logs, cluster.nodes[CLIENTS].who());
    let mut redis = Redis::new(&cluster.address(A), 6400, 20_000, logs);
    let program = redis.program(&cluster.nodes[A], DIR);
    let app = start(&cluster, &program, &[]);
    redis.wait_up(&cluster.nodes[CLIENTS]);
    redis.fill(&cluster.nodes[CLIENTS]);
    let writers = [redis.start_writer(&cluster.nodes[CLIENTS]), redis.start_writer(&cluster.nodes[CLIENTS])];
    sealed_on_b(&app, &cluster);
    std::thread::sleep(Duration::from_millis(500));
    command::run_ok(&mut cluster.nodes[A].holo(&["switch", "work", "--to", "b"]), ORDER_LIMIT);
    redis.host = cluster.address(B);
    app.settle(&cluster.nodes[B]);
    redis.wait_up(&cluster.nodes[CLIENTS]);
    let acknowledged: Vec<u64> = writers.iter().map(Writer::acknowledged).collect();
    assert!(acknowledged.iter().all(|count| *count > 0), "nobody wrote: {acknowledged:?}");
    redis.verify(&cluster.nodes[CLIENTS], &acknowledged);
    redis.reload(&cluster.nodes[CLIENTS]);
    redis.verify(&cluster.nodes[CLIENTS], &acknowledged);
}

#[test]
fn redis_outlives_its_node_as_me() {
    redis_outlives_its_node(Who::Me);
}

#[test]
fn redis_outlives_its_node_as_user() {
    redis_outlives_its_node(Who::Nobody);
}

/// A cut cable: the owner parks its application before the stand-by runs it; when the cable is back, one goes on.
#[test]
fn a_partition_never_makes_two_owners() {
    partition("threads.c");
}

#[test]
fn a_partition_never_makes_two_owners_of_a_tree() {
    partition("tree.c");
}

fn partition(source: &'static str) {
    let cluster = cluster(Who::Me);
    let app = start(&cluster, &workload(&cluster, source), &[]);
    goes_on(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    cluster.cut(A);
    // From the moment when B makes progress, A must make none any more.
    let base = progress(&cluster.nodes[B]);
    wait::until(LIMIT, "take-over by b", || (app.state(&cluster.nodes[B]) == "running").then_some(()));
    let on_a = progress(&cluster.nodes[A]);
    wait::until(LIMIT, "progress on b", || (progress(&cluster.nodes[B]) > base + 2).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(progress(&cluster.nodes[A]), on_a, "both nodes run the application");
    cluster.join(A);
    goes_on(&cluster.nodes[B]);
    wait::until(LIMIT, "a gives up what it ran", || {
        (app.state(&cluster.nodes[A]) != "running").then_some(())
    });
    assert_eq!(progress(&cluster.nodes[A]), on_a, "the fenced owner ran again");
    good_end(&app, &cluster.nodes[B]);
}

/// Either agent is killed and started again: the application does not notice, epochs go on.
#[test]
fn agents_restart_at_any_time() {
    restarts("threads.c");
}

#[test]
fn agents_restart_at_any_time_of_a_tree() {
    restarts("tree.c");
}

fn restarts(source: &'static str) {
    let timing = Timing { heartbeat_ms: 100, lease_ms: 8_000, failover_ms: 15_000 };
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(timing);
    let app = start(&cluster, &workload(&cluster, source), &[]);
    sealed_on_b(&app, &cluster);
    for index in [B, A, B] {
        cluster.nodes[index].kill_agent();
        goes_on(&cluster.nodes[A]);
        cluster.start_agent(index, timing, false);
        cluster.wait_all_up();
        wait::until(LIMIT, "an epoch after the restart of an agent", || {
            app.try_checkpoint(&cluster.nodes[A]).ok()
        });
        goes_on(&cluster.nodes[A]);
    }
    good_end(&app, &cluster.nodes[A]);
}

/// Only the owner's agent is killed: its guard stops the application when the lease runs out, the stand-by takes over,
/// and an agent that comes back ends what was left.
#[test]
fn the_lease_is_held_without_the_agent() {
    lease_without_agent("threads.c");
}

#[test]
fn the_lease_is_held_without_the_agent_of_a_tree() {
    lease_without_agent("tree.c");
}

fn lease_without_agent(source: &'static str) {
    let timing = Timing::default();
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(timing);
    let app = start(&cluster, &workload(&cluster, source), &[]);
    goes_on(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    cluster.nodes[A].kill_agent();
    let base = progress(&cluster.nodes[B]);
    wait::until(LIMIT, "take-over by b", || (app.state(&cluster.nodes[B]) == "running").then_some(()));
    let on_a = progress(&cluster.nodes[A]);
    wait::until(LIMIT, "progress on b", || (progress(&cluster.nodes[B]) > base + 2).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(progress(&cluster.nodes[A]), on_a, "both nodes run the application");
    cluster.start_agent(A, timing, false);
    cluster.wait_all_up();
    wait::until(LIMIT, "a ends what was left", || {
        (app.row(&cluster.nodes[A])?["real_pids"].as_array()?.is_empty()).then_some(())
    });
    assert_eq!(progress(&cluster.nodes[A]), on_a, "what was left ran again");
    goes_on(&cluster.nodes[B]);
    good_end(&app, &cluster.nodes[B]);
}

/// A node without keys, and one with keys of another cluster, are refused.
#[test]
fn strangers_are_refused() {
    let timing = Timing::default();
    let mut cluster = Cluster::new(&["a", "b", "c"], Who::Me);
    cluster.start_agents_of(&[A, B], timing);
    let c = 2;
    let own = command::run(&mut cluster.nodes[c].holo(&["node", "init", "b"]), ORDER_LIMIT);
    assert!(own.status.success(), "{}", own.stderr);
    cluster.start_agent(c, timing, false);
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(cluster.seen(A, c), "up");
    assert_ne!(cluster.seen(c, A), "up");
    assert_eq!(cluster.seen(A, B), "up");
}
