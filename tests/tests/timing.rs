//! Goal: epochs are taken when they are due: by a period that adapts to what they cost, by growth of memory, by what was changed
//! while the application runs. Method: the epochs of a program whose memory changes and grows when told to, by `holo epochs`.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, wait, workload};
use serde_json::Value;
use std::time::Duration;

const DIR: &str = "data/work";
const DAY_US: u64 = 86_400_000_000;
const LIMIT: Duration = Duration::from_secs(60);

fn start(options: &[&str]) -> (Node, App) {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let program = Program::new(compile::workload("grows_on_order.c"), &[node.inside(DIR)]);
    let mut app = App::start(&node, "timed", &program, DIR, options);
    app.wait_joined(&node);
    (node, app)
}

fn holo(node: &Node, args: &[&str]) -> String {
    command::run_ok(&mut node.holo(args), LIMIT)
}

fn epochs(node: &Node) -> Vec<Value> {
    let text = holo(node, &["epochs", "timed", "--json"]);
    serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("a list").clone()
}

/// Time of day of a cut, from RFC 3339.
fn time_us(epoch: &Value) -> u64 {
    let at = epoch["at"].as_str().expect("a time");
    let time = at.split_once('T').and_then(|(_, time)| time.strip_suffix('Z')).expect("UTC");
    let seconds =
        time.split(':').try_fold(0.0, |sum, part| part.parse::<f64>().map(|part| sum * 60.0 + part));
    (seconds.expect("numbers") * 1e6) as u64
}

fn newest(node: &Node, app: &App) -> u64 {
    app.row(node).and_then(|row| row["epoch"].as_u64()).unwrap_or(0)
}

fn ended(node: &Node, app: &App) {
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(node, LIMIT);
    assert_eq!(workload::result(node), "ok\n");
}

#[test]
fn the_period_keeps_within_the_budget() {
    let (node, app) = start(&["--every", "auto", "--budget", "30%", "--keep", "200"]);
    wait::until(LIMIT, "six epochs", || (newest(&node, &app) >= 6).then_some(()));
    let row = app.row(&node).expect("listed");
    assert_eq!(row["budget_percent"], 30.0, "{row}");
    assert!(row["every_ms"].as_u64().is_some_and(|ms| (10..=60_000).contains(&ms)), "{row}");
    let all = epochs(&node);
    let number = |epoch: &Value, field: &str| epoch[field].as_u64().expect("a number");
    // All but the first, which reads all memory, and the last, whose time has not passed.
    let counted = &all[1..all.len() - 1];
    let stopped_us: u64 = counted.iter().map(|epoch| number(epoch, "stop_us")).sum();
    let passed_us = (time_us(&all[all.len() - 1]) + DAY_US - time_us(&all[1])) % DAY_US;
    // The time of a cut is not that of its order: a tenth is left for that.
    assert!(stopped_us * 1000 <= passed_us * 330, "{stopped_us} us of {passed_us} us");
    for epoch in &all {
        let split = epoch["stop_split_us"].as_object().expect("parts");
        let sum: u64 = split.values().map(|us| us.as_u64().expect("microseconds")).sum();
        assert_eq!(
            split.keys().map(String::as_str).collect::<Vec<_>>(),
            ["copy", "kinds", "park", "scan", "unpark"]
        );
        assert!(sum >= number(epoch, "stop_us"), "{epoch}");
    }
    ended(&node, &app);
}

#[test]
fn periods_and_growth_are_changed_while_it_runs() {
    let (node, mut app) = start(&["--every", "1h", "--keep", "200"]);
    let from = app.checkpoint(&node).number("epoch");
    holo(&node, &["set", "timed", "--every", "20ms"]);
    wait::until(LIMIT, "epochs by the new period", || (newest(&node, &app) >= from + 5).then_some(()));
    holo(&node, &["set", "timed", "--every", "auto", "--budget", "50%"]);
    let from = newest(&node, &app);
    wait::until(LIMIT, "epochs by the budget", || (newest(&node, &app) >= from + 5).then_some(()));
    assert!(command::run(&mut node.holo(&["set", "timed", "--budget", "101%"]), LIMIT).code() == 2);
    // None is due any more, once one that was under way is done.
    holo(&node, &["set", "timed", "--every", "0", "--growth", "32M"]);
    assert!(command::run(&mut node.holo(&["set", "timed", "--budget", "5%"]), LIMIT).code() == 2);
    let quiet = app.checkpoint(&node).number("epoch");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(newest(&node, &app), quiet);
    std::fs::write(node.outside(DIR).join("grow"), b"").expect("grow");
    wait::until(LIMIT, "an epoch since it has grown", || (newest(&node, &app) == quiet + 1).then_some(()));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(newest(&node, &app), quiet + 1);
    // What was set stays set over a restore.
    app.kill(&node);
    app.restore_unsettled(&node, None);
    let row = app.row(&node).expect("listed");
    assert_eq!((&row["every_ms"], &row["growth_bytes"]), (&0.into(), &(32u64 << 20).into()), "{row}");
    ended(&node, &app);
}
