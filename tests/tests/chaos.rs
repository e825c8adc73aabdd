//! Goal: whatever an application does, in whatever order, survives epochs, kills and restores.
//! Method: `chaos.c` forks, executes, opens, maps, sends and signals at random and checks all of it; an epoch every 200 ms, and
//! again and again all of it is killed with -9 and restored. Twenty seconds here, half an hour (or `HOLO_CHAOS_SECONDS`, from
//! `HOLO_CHAOS_SEED`) with `make soak`; afterwards nothing may be left of it.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, wait, workload};
use std::time::{Duration, Instant, SystemTime};

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);

fn newest(node: &Node, app: &App) -> u64 {
    app.row(node).and_then(|row| row["epoch"].as_u64()).unwrap_or(0)
}

fn alive(node: &Node) {
    let said = workload::result(node);
    let stderr = std::fs::read_to_string(node.outside(DIR).join("stderr")).unwrap_or_default();
    assert!(said.is_empty(), "the workload ended: {said}{stderr}");
}

fn run(who: Who, seed: u64, whole: Duration, between: Duration) {
    eprintln!("seed {seed}");
    let node = Node::start(who);
    hand_over(&node.outside(DIR), who);
    let source = workload::reachable(compile::workload("chaos.c"), who);
    let program = Program::new(source, &[node.inside(DIR), seed.to_string().into()]);
    let mut app = App::start(&node, "chaos", &program, DIR, &["--every", "200ms"]);
    app.wait_joined(&node);
    let start = Instant::now();
    let (mut rounds, mut epochs) = (0, 0);
    while start.elapsed() < whole {
        let (from, reached) = (newest(&node, &app), workload::progress(&node));
        let until = Instant::now() + between;
        wait::until(between + LIMIT, "epochs and progress", || {
            alive(&node);
            let on = newest(&node, &app) > from + 2 && workload::progress(&node) > reached;
            (on && Instant::now() > until).then_some(())
        });
        epochs += newest(&node, &app) - from;
        if app.real_pids(&node).is_empty() {
            alive(&node);
        }
        app.kill(&node);
        app.restore_unsettled(&node, None);
        rounds += 1;
    }
    let reached = workload::progress(&node);
    wait::until(LIMIT, "progress at the end", || {
        alive(&node);
        (workload::progress(&node) > reached + 3).then_some(())
    });
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(&node, LIMIT);
    assert_eq!(workload::result(&node), "ok\n");
    eprintln!("{rounds} kills and restores, {epochs} epochs in {:?}", start.elapsed());
}

fn fresh() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs())
}

#[test]
fn short() {
    run(Who::Me, 1, Duration::from_secs(15), Duration::from_secs(3));
}

#[test]
fn short_as_user() {
    run(Who::Nobody, fresh(), Duration::from_secs(15), Duration::from_secs(3));
}

#[test]
#[ignore = "takes half an hour: make soak"]
fn half_an_hour() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let whole = Duration::from_secs(number("HOLO_CHAOS_SECONDS").unwrap_or(1800));
    run(Who::Nobody, number("HOLO_CHAOS_SEED").unwrap_or_else(fresh), whole, Duration::from_secs(20));
}
