//! Goal: epochs are taken when they are due: by a period that adapts to what they cost, by growth of memory, by changes of
//! files, by what was changed while the application runs. Method: the epochs of a program whose memory changes and grows when told
//! to, by `holo epochs`.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, wait, workload};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DIR: &str = "data/work";
const DAY_US: u64 = 86_400_000_000;
const LIMIT: Duration = Duration::from_secs(60);
/// Outside the root.
const WATCHED: &str = "data/watched";
/// In which an epoch that is due would come.
const QUIET: Duration = Duration::from_millis(700);

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
    fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
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
    sleep(QUIET);
    assert_eq!(newest(&node, &app), quiet);
    fs::write(node.outside(DIR).join("grow"), b"").expect("grow");
    wait::until(LIMIT, "an epoch since it has grown", || (newest(&node, &app) == quiet + 1).then_some(()));
    sleep(QUIET);
    assert_eq!(newest(&node, &app), quiet + 1);
    // What was set stays set over a restore.
    app.kill(&node);
    app.restore_unsettled(&node, None);
    let row = app.row(&node).expect("listed");
    assert_eq!((&row["every_ms"], &row["growth_bytes"]), (&0.into(), &(32u64 << 20).into()), "{row}");
    ended(&node, &app);
}

/// An application whose epochs files order: one outside its root, and one that it writes to all the time and never closes, which
/// its epochs look at.
fn start_watching(node: &Node, more: &[&str]) -> (App, PathBuf) {
    hand_over(&node.outside(DIR), node.who());
    hand_over(&node.outside(WATCHED), node.who());
    let path = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (save, own) = (path(node.inside(WATCHED).join("save")), path(node.inside(DIR).join("progress")));
    let program = Program::new(compile::workload("grows_on_order.c"), &[node.inside(DIR)]);
    let options = [&["--on-change", &save, "--on-change", &own, "--keep", "200"], more].concat();
    let mut app = App::start(node, "timed", &program, DIR, &options);
    app.wait_joined(node);
    // That it makes the file is a change, too.
    wait::until(LIMIT, "its file", || node.outside(DIR).join("progress").exists().then_some(()));
    sleep(QUIET);
    app.checkpoint(node);
    (app, node.outside(WATCHED).join("save"))
}

/// Epochs that come of something, which must be so many, and one at least.
fn epochs_of(node: &Node, app: &App, what: &str, most: u64, work: impl FnOnce()) {
    let from = newest(node, app);
    work();
    wait::until(LIMIT, &format!("an epoch: {what}"), || (newest(node, app) > from).then_some(()));
    sleep(QUIET);
    let came = newest(node, app) - from;
    assert!((1..=most).contains(&came), "{came} epochs: {what}");
}

fn no_epoch_of(node: &Node, app: &App, what: &str, work: impl FnOnce()) {
    let from = newest(node, app);
    work();
    sleep(QUIET);
    assert_eq!(newest(node, app), from, "{what}");
}

fn write(path: &Path) {
    fs::write(path, b"state").expect("write");
}

fn on_change(node: &Node, app: &App) -> Vec<String> {
    let row = app.row(node).expect("listed");
    row["on_change"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|path| path.as_str().expect("a path").into())
        .collect()
}

fn day_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64 % DAY_US
}

#[test]
fn changes_of_files_make_epochs() {
    let node = Node::start(Who::Me);
    let (app, save) = start_watching(&node, &[]);
    let other = save.with_file_name("other");
    no_epoch_of(&node, &app, "nothing has changed", || ());
    no_epoch_of(&node, &app, "another file", || write(&other));
    // What comes in parts may be two, where the machine is busy.
    epochs_of(&node, &app, "made", 2, || write(&save));
    epochs_of(&node, &app, "written", 1, || write(&save));
    epochs_of(&node, &app, "renamed onto it", 1, || fs::rename(&other, &save).expect("rename"));
    epochs_of(&node, &app, "written after that", 1, || write(&save));
    epochs_of(&node, &app, "touched", 2, || {
        assert!(Command::new("touch").arg(&save).status().expect("touch").success());
    });
    let mut last_us = 0;
    epochs_of(&node, &app, "a burst of 200 changes", 8, || {
        for number in 0..200 {
            write(&other);
            last_us = day_us();
            if number % 2 == 0 {
                write(&save)
            } else {
                fs::rename(&other, &save).expect("rename")
            }
            sleep(Duration::from_millis(1));
        }
    });
    let cut_us = time_us(epochs(&node).last().expect("epochs"));
    let later_us = (cut_us + DAY_US - last_us) % DAY_US;
    assert!(later_us < DAY_US / 2, "the last epoch at {cut_us}, the last change at {last_us}");
    ended(&node, &app);
}

#[test]
fn files_to_watch_are_changed_while_it_runs() {
    let mut node = Node::start(Who::Me);
    let (mut app, save) = start_watching(&node, &[]);
    let set = |node: &Node, args: &[&str]| {
        let mut set = node.holo(&["set", "timed"]);
        command::run(set.args(args).current_dir(save.parent().expect("a directory")), LIMIT)
    };
    let before = on_change(&node, &app);
    assert_eq!(before.len(), 2);
    // What cannot be is refused, and nothing has changed.
    let many = ["--on-change", "x"].repeat(17);
    for (args, code, said) in [
        (&["--on-change", "gone/x"][..], 4, "gone/x is not watched: no such directory"),
        (&["--on-change", "."], 2, "is a directory"),
        (&["--on-change", ""], 2, "--on-change"),
        (&many, 2, "at most 16"),
    ] {
        let done = set(&node, args);
        assert!(done.code() == code && done.stderr.contains(said), "{args:?}: {done:?}");
    }
    assert_eq!(on_change(&node, &app), before);
    let gone = save.with_file_name("gone").join("x").display().to_string();
    let done = command::run(&mut node.holo(&["run", "--on-change", &gone, "--", "true"]), LIMIT);
    assert!(done.code() == 125 && done.stderr.contains("no such directory"), "{done:?}");
    let flag = save.with_file_name("flag");
    assert_eq!(set(&node, &["--on-change", "./flag", "--every", "0"]).code(), 0);
    assert_eq!(on_change(&node, &app), [flag.to_str().expect("UTF-8")]);
    no_epoch_of(&node, &app, "a file that is not watched any more", || write(&save));
    epochs_of(&node, &app, "the new one", 2, || write(&flag));
    // What is not said stays.
    assert_eq!(set(&node, &["--growth", "0"]).code(), 0);
    epochs_of(&node, &app, "it is still watched", 1, || write(&flag));
    // It stays set over a restore and an agent that is killed.
    app.kill(&node);
    app.restore_unsettled(&node, None);
    no_epoch_of(&node, &app, "nothing has changed since the restore", || ());
    epochs_of(&node, &app, "after a restore", 1, || write(&flag));
    node.kill_agent();
    node.start_agent();
    epochs_of(&node, &app, "another agent", 1, || write(&flag));
    assert_eq!(on_change(&node, &app), [flag.to_str().expect("UTF-8")]);
    // A directory that is gone is told of; it is watched again when it is back.
    let reasons = || app.row(&node).expect("listed")["reasons"].to_string();
    fs::remove_dir_all(flag.parent().expect("a directory")).expect("remove");
    wait::until(LIMIT, "a remark", || reasons().contains("flag is not watched").then_some(()));
    assert_eq!(app.state(&node), "running");
    fs::create_dir(flag.parent().expect("a directory")).expect("directory");
    wait::until(LIMIT, "no remark", || (reasons() == "[]").then_some(()));
    epochs_of(&node, &app, "back again", 2, || write(&flag));
    assert_eq!(set(&node, &["--on-change", "none"]).code(), 0);
    no_epoch_of(&node, &app, "none is watched any more", || write(&flag));
    assert_eq!(on_change(&node, &app), [""; 0]);
    ended(&node, &app);
}

#[test]
fn files_are_watched_where_it_runs() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::default());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(WATCHED), node.who()));
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    hand_over(&b.outside(DIR), b.who());
    let (app, save) = start_watching(a, &["--standby", "b"]);
    let files = on_change(a, &app);
    epochs_of(a, &app, "here", 2, || write(&save));
    command::run_ok(&mut a.holo(&["switch", "timed", "--to", "b"]), LIMIT);
    wait::until(LIMIT, "b to run it", || (app.state(b) == "running").then_some(()));
    sleep(QUIET);
    assert_eq!(on_change(b, &app), files);
    no_epoch_of(b, &app, "a file of the other node", || write(&save));
    epochs_of(b, &app, "there", 2, || write(&b.outside(WATCHED).join("save")));
    fs::write(b.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(b, LIMIT);
}
