//! Goal: what an application was is not lost when its name is used again, when it is restored from an older epoch, or when
//! its nodes cannot be asked; and an order is what brings it back, not a mistake.
//! Method: two nodes that share nothing; programs that check themselves; the epochs that each node shows.
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

fn cluster(timing: Timing) -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(timing);
    for node in &cluster.nodes {
        hand_over(&node.outside(DIR), node.who());
    }
    cluster
}

fn threads(cluster: &Cluster) -> Program {
    Program::new(compile::workload("threads.c"), &[cluster.nodes[A].inside(DIR)])
}

fn start(cluster: &Cluster, on: usize, options: &[&str]) -> App {
    let mut app = App::start(&cluster.nodes[on], "work", &threads(cluster), DIR, options);
    app.wait_joined(&cluster.nodes[on]);
    app
}

fn progress(node: &Node) -> u64 {
    let text = std::fs::read_to_string(node.outside(DIR).join("progress")).unwrap_or_default();
    text.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
}

fn goes_on(node: &Node) {
    let from = progress(node);
    wait::until(LIMIT, &format!("progress beyond {from} on {}", node.name), || {
        (progress(node) > from + 1).then_some(())
    });
}

fn good_end(app: &App, node: &Node) {
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(node, LIMIT);
    let said = std::fs::read_to_string(node.outside(DIR).join("result")).unwrap_or_default();
    assert_eq!(said, "ok\n");
}

fn sealed_on_b(app: &App, cluster: &Cluster) -> u64 {
    let epoch = app.checkpoint(&cluster.nodes[A]);
    assert!(epoch.0["where"].to_string().contains("\"b\""), "not on the stand-by: {}", epoch.0);
    wait::until(LIMIT, "the clone on b", || (app.state(&cluster.nodes[B]) == "standby").then_some(()));
    epoch.number("epoch")
}

fn json(node: &Node, args: &[&str]) -> Value {
    let text = command::run_ok(&mut node.holo(args), ORDER_LIMIT);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// Number and time of each epoch that was put aside.
fn aside(node: &Node) -> Vec<(u64, u64)> {
    let list = json(node, &["epochs", "work", "--aside", "--json"]);
    let pair = |epoch: &Value| Some((epoch["epoch"].as_u64()?, epoch["aside_unix_ms"].as_u64()?));
    list.as_array().into_iter().flatten().filter_map(pair).collect()
}

fn epochs(node: &Node) -> Vec<u64> {
    let list = json(node, &["epochs", "work", "--json"]);
    list.as_array().into_iter().flatten().filter_map(|epoch| epoch["epoch"].as_u64()).collect()
}

/// Node b has an application of its own; node a launches another one of that name with b as its stand-by.
#[test]
fn a_launch_elsewhere_puts_epochs_of_that_name_aside() {
    let cluster = cluster(Timing::default());
    let mut own = start(&cluster, B, &["--every", "0"]);
    goes_on(&cluster.nodes[B]);
    let reached = progress(&cluster.nodes[B]);
    let epoch = own.checkpoint(&cluster.nodes[B]).number("epoch");
    command::run_ok(&mut cluster.nodes[B].holo(&["stop", "work"]), ORDER_LIMIT);
    own.forget();

    let mut app = start(&cluster, A, &["--standby", "b"]);
    sealed_on_b(&app, &cluster);
    let there = aside(&cluster.nodes[B]);
    assert_eq!(there.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [epoch]);

    // Not while the other one has the name, but then it runs again, from where it was.
    let time = there[0].1.to_string();
    let number = epoch.to_string();
    let order = ["restore", "work", "--epoch", &number, "--aside", &time];
    let refused = command::run(&mut cluster.nodes[B].holo(&order), ORDER_LIMIT);
    assert_eq!(refused.code(), 4, "{}", refused.stderr);
    command::run_ok(&mut cluster.nodes[A].holo(&["stop", "work"]), ORDER_LIMIT);
    app.forget();
    wait::until(LIMIT, "b knows the end", || (app.state(&cluster.nodes[B]) == "stopped").then_some(()));
    std::fs::write(cluster.nodes[B].outside(DIR).join("progress"), b"0").expect("progress");
    let restored = command::run_ok(&mut cluster.nodes[B].holo(&order), ORDER_LIMIT);
    assert!(restored.contains(&format!("epoch {epoch} ")), "{restored}");
    goes_on(&cluster.nodes[B]);
    assert!(progress(&cluster.nodes[B]) >= reached, "not the application that ran on b");
    good_end(&own, &cluster.nodes[B]);
    // What was put aside goes, too.
    assert!(cluster.nodes[B].outside("state/apps/work/aside").exists());
    let mut rm = cluster.nodes[B].holo(&["rm", "work"]);
    wait::until(LIMIT, "b forgets it", || (command::run(&mut rm, ORDER_LIMIT).code() == 0).then_some(()));
    assert!(!cluster.nodes[B].outside("state/apps/work").exists());
}

/// It ended and is restored from an older epoch: a new run. What the stand-by holds of the run before stays there.
#[test]
fn a_restore_of_an_ended_one_keeps_what_the_standby_has() {
    let cluster = cluster(Timing::default());
    let mut app = start(&cluster, A, &["--standby", "b", "--every", "0"]);
    goes_on(&cluster.nodes[A]);
    let first = sealed_on_b(&app, &cluster);
    let last = sealed_on_b(&app, &cluster);
    command::run_ok(&mut cluster.nodes[A].holo(&["stop", "work"]), ORDER_LIMIT);
    app.forget();
    wait::until(LIMIT, "b knows the end", || (app.state(&cluster.nodes[B]) == "stopped").then_some(()));
    assert_eq!(epochs(&cluster.nodes[B]), [first, last]);
    app.restore(&cluster.nodes[A], Some(first));
    let held = || {
        let node = &cluster.nodes[B];
        let mut held: Vec<u64> = aside(node).iter().map(|(epoch, _)| *epoch).chain(epochs(node)).collect();
        held.sort_unstable();
        held
    };
    assert_eq!(held(), [first, last], "the stand-by dropped them before it holds any of the new run");
    wait::until(LIMIT, "b follows", || (app.state(&cluster.nodes[B]) == "standby").then_some(()));
    assert_eq!(held(), [first, last]);
    let new = sealed_on_b(&app, &cluster);
    assert_eq!(epochs(&cluster.nodes[B]), [new]);
    assert_eq!(held(), [first, last, new]);
    good_end(&app, &cluster.nodes[A]);
}

/// The stand-by is gone for good: the owner parks, says what to do, and goes on by force.
#[test]
fn force_lets_a_parked_owner_go_on() {
    let mut cluster = cluster(Timing::default());
    let app = start(&cluster, A, &["--standby", "b"]);
    goes_on(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    cluster.kill(B);
    wait::until(LIMIT, "a parks it", || (app.state(&cluster.nodes[A]) == "stopped").then_some(()));
    let refused = command::run(&mut cluster.nodes[A].holo(&["restore", "work"]), ORDER_LIMIT);
    assert_eq!(refused.code(), 4);
    assert!(
        refused.stderr.contains("is parked on this node") && refused.stderr.contains("--force"),
        "{}",
        refused.stderr
    );
    let on_a = progress(&cluster.nodes[A]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(progress(&cluster.nodes[A]), on_a, "it ran without consent");
    let done = json(&cluster.nodes[A], &["restore", "work", "--force", "--json"]);
    assert_eq!(
        done["real_pid"].as_u64(),
        app.real_pids(&cluster.nodes[A]).first().map(|pid| u64::from(*pid))
    );
    goes_on(&cluster.nodes[A]);
    wait::until(LIMIT, "a shows it", || (app.state(&cluster.nodes[A]) == "running").then_some(()));
    good_end(&app, &cluster.nodes[A]);
}

/// Both nodes died, and only the stand-by comes back: it holds the newest epoch and cannot know that it may run it.
#[test]
fn force_runs_a_clone_after_the_loss_of_all() {
    let mut cluster = cluster(Timing::default());
    let mut app = start(&cluster, A, &["--standby", "b"]);
    goes_on(&cluster.nodes[A]);
    let reached = progress(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    // Before it could take over.
    cluster.nodes[B].kill_agent();
    cluster.kill(A);
    app.forget();
    cluster.start_agent(B, Timing::default(), false);
    let refused = command::run(&mut cluster.nodes[B].holo(&["restore", "work"]), ORDER_LIMIT);
    assert_eq!(refused.code(), 4, "{}", refused.stderr);
    let said = &refused.stderr;
    assert!(said.contains("not reachable: a") && said.contains("--force"), "{said}");
    let done = json(&cluster.nodes[B], &["restore", "work", "--force", "--json"]);
    assert_eq!(done["node"], "b");
    app.settle(&cluster.nodes[B]);
    assert!(progress(&cluster.nodes[B]) >= reached, "rounds before the sealed epoch are lost");
    goes_on(&cluster.nodes[B]);
    good_end(&app, &cluster.nodes[B]);
}

/// Its text on a node, and that no process of it is there.
fn stopped_with(app: &App, node: &Node, text: &str) {
    wait::until(LIMIT, &format!("`{text}` on {}", node.name), || {
        let row = app.row(node)?;
        let said = row["state"] == "stopped" && row["reasons"].to_string().contains(text);
        (said && row["real_pids"].as_array()?.is_empty()).then_some(())
    });
}

/// It is killed by a signal that is not holo's: it stays stopped, with the reason, its epochs stay everywhere, and an order
/// runs it again on either node.
#[test]
fn a_crash_stays_stopped_and_an_order_runs_it_again() {
    let cluster = cluster(Timing::default());
    let mut app = start(&cluster, A, &["--standby", "b", "--every", "0"]);
    goes_on(&cluster.nodes[A]);
    let reached = progress(&cluster.nodes[A]);
    let epoch = sealed_on_b(&app, &cluster);
    let pid = app.real_pids(&cluster.nodes[A])[0];
    command::run_ok(cluster.nodes[A].command("kill").args(["-SEGV", &pid.to_string()]), ORDER_LIMIT);
    app.forget();
    stopped_with(&app, &cluster.nodes[A], "killed by SIGSEGV");
    stopped_with(&app, &cluster.nodes[B], "ended on node a");
    std::thread::sleep(Duration::from_secs(3));
    for node in &cluster.nodes {
        assert_eq!(app.state(node), "stopped", "run again by itself on {}", node.name);
        assert_eq!(epochs(node), [epoch]);
    }
    app.restore(&cluster.nodes[B], None);
    assert!(progress(&cluster.nodes[B]) >= reached);
    goes_on(&cluster.nodes[B]);
    good_end(&app, &cluster.nodes[B]);
    stopped_with(&app, &cluster.nodes[B], "exited with status 0");
}

/// It exits while its agent is down, and the agent is back before the stand-by's patience ends: it has ended.
#[test]
fn an_exit_without_an_agent_is_an_end() {
    let timing = Timing { heartbeat_ms: 100, lease_ms: 5_000, failover_ms: 9_000 };
    let mut cluster = cluster(timing);
    let mut app = start(&cluster, A, &["--standby", "b", "--every", "0"]);
    goes_on(&cluster.nodes[A]);
    sealed_on_b(&app, &cluster);
    cluster.nodes[A].kill_agent();
    std::fs::write(cluster.nodes[A].outside(DIR).join("stop"), b"").expect("stop");
    assert_eq!(app.wait_exit(LIMIT), 0);
    cluster.start_agent(A, timing, false);
    stopped_with(&app, &cluster.nodes[A], "exited with status 0");
    stopped_with(&app, &cluster.nodes[B], "ended on node a");
    // Longer than until it would be run again.
    std::thread::sleep(Duration::from_secs(12));
    for node in &cluster.nodes {
        assert_eq!(app.state(node), "stopped", "run again on {}", node.name);
    }
}

/// An agent that comes back cannot use the control page of what runs (it was removed, or is an older version's): the
/// application runs on unprotected, and nothing runs it a second time.
#[test]
fn what_cannot_be_controlled_is_not_run_twice() {
    let timing = Timing { heartbeat_ms: 100, lease_ms: 8_000, failover_ms: 15_000 };
    let mut cluster = cluster(timing);
    let mut app = start(&cluster, A, &["--every", "0"]);
    goes_on(&cluster.nodes[A]);
    app.checkpoint(&cluster.nodes[A]);
    let pids = app.real_pids(&cluster.nodes[A]);
    cluster.nodes[A].kill_agent();
    command::run_ok(cluster.nodes[A].command("sh").args(["-c", "rm /dev/shm/holo-*/*.page"]), ORDER_LIMIT);
    cluster.start_agent(A, timing, false);
    let row = app.row(&cluster.nodes[A]).unwrap_or_default();
    assert_eq!((&row["state"], &row["real_pids"]), (&"unprotected".into(), &pids.clone().into()), "{row}");
    assert!(row["reasons"].to_string().contains("control page"), "{row}");
    let refused = command::run(&mut cluster.nodes[A].holo(&["restore", "work"]), ORDER_LIMIT);
    assert_eq!(refused.code(), 4, "a second instance runs: {}", refused.stderr);
    goes_on(&cluster.nodes[A]);
    command::run_ok(&mut cluster.nodes[A].holo(&["stop", "work"]), ORDER_LIMIT);
    app.forget();
    let on_a = progress(&cluster.nodes[A]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(progress(&cluster.nodes[A]), on_a, "it was not stopped");
    app.restore(&cluster.nodes[A], None);
    goes_on(&cluster.nodes[A]);
    good_end(&app, &cluster.nodes[A]);
}
