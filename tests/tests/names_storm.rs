//! Goal: without any `--root`, whatever an application makes, writes to, moves and removes by name, in whatever order and by whatever
//! names, is after a restore as it was at the cut, and nothing else is there.
//! Method: `names_storm.c` does so at random and compares all of it with its memory in every round; an epoch every 70 ms, and again
//! and again it is killed with -9 and restored, at any moment after one. A few times here, half an hour (or `HOLO_STORM_SECONDS`, from
//! `HOLO_STORM_SEED`) with `make soak`.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, wait, workload};
use std::time::{Duration, Instant, SystemTime};

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
/// Kills and restores of one run of the program.
const ROUNDS: u64 = 5;

fn alive(node: &Node, seed: u64) {
    assert_eq!(workload::result(node), "", "seed {seed}: {}", node.log());
}

fn run(who: Who, seed: u64) {
    eprintln!("seed {seed}");
    let mut node = Node::without_agent(who);
    // An epoch that has other files than there were at its cut fails.
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    node.start_agent();
    hand_over(&node.outside(DIR), who);
    let source = workload::reachable(compile::workload("names_storm.c"), who);
    let program = Program::new(source, &[node.inside(DIR), seed.to_string().into()]);
    let mut app = App::start_with_roots(&node, "storm", &program, DIR, &[], &["--every", "70ms"]);
    app.wait_joined(&node);
    let epoch = |app: &App| app.row(&node).and_then(|row| row["epoch"].as_u64()).unwrap_or(0);
    for round in 0..ROUNDS {
        let (from, reached) = (epoch(&app), workload::progress(&node));
        wait::until(LIMIT, "epochs and progress", || {
            alive(&node, seed);
            (epoch(&app) > from + 2 && workload::progress(&node) > reached + 10).then_some(())
        });
        // Wherever it is between two epochs.
        std::thread::sleep(Duration::from_millis((seed * 31 + round * 17) % 80));
        app.kill(&node);
        app.restore_unsettled(&node, None);
    }
    let reached = workload::progress(&node);
    wait::until(LIMIT, "progress at the end", || {
        alive(&node, seed);
        (workload::progress(&node) > reached + 10).then_some(())
    });
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(&node, LIMIT);
    assert_eq!(workload::result(&node), "ok\n", "seed {seed}");
}

fn fresh() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs())
}

#[test]
fn short() {
    run(Who::Me, 1);
}

#[test]
fn short_as_user() {
    run(Who::Nobody, fresh());
}

#[test]
#[ignore = "takes half an hour: make soak"]
fn half_an_hour() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let whole = Duration::from_secs(number("HOLO_STORM_SECONDS").unwrap_or(1800));
    let (start, first) = (Instant::now(), number("HOLO_STORM_SEED").unwrap_or_else(fresh));
    let seeds = (first..).take_while(|_| start.elapsed() < whole);
    let count = seeds.map(|seed| run(if seed % 2 == 0 { Who::Me } else { Who::Nobody }, seed)).count();
    eprintln!("{count} seeds from {first} on, {ROUNDS} kills and restores of each");
}
