//! Goal: what others changed where trees are applied is told, what whoever the trees are of left there is not.
//! Method: a tree is applied; then it changes itself, and so does the place, before and after the time from which on changes are others'.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use common::Bench;
use holo_cfor::{Hint, Report, Targets, Time, apply, verify};
use std::fs;
use std::time::Duration;

/// Time stamps advance by the kernel's tick.
fn now() -> Time {
    std::thread::sleep(Duration::from_millis(30));
    let now = Time::now();
    std::thread::sleep(Duration::from_millis(30));
    now
}

fn applied(bench: &mut Bench, since: Option<Time>) -> Report {
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = Targets { since, ..bench.targets(true) };
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
    report
}

fn told(bench: &mut Bench, since: Option<Time>) -> Vec<String> {
    let report = applied(bench, since);
    assert_eq!(report.others.count, report.others.first.len());
    let below = format!("{}/", bench.path("b").display());
    let name = |path: &Vec<u8>| format!("{}/", String::from_utf8_lossy(path)).replace(&below, "");
    let mut names: Vec<String> = report.others.first.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn what_others_changed_is_told() {
    let mut bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    for name in ["same", "changed", "linked", "gone/it", "old", "renamed/to"] {
        fs::create_dir_all(a.join(name).parent().unwrap()).unwrap();
        fs::write(a.join(name), name).unwrap();
    }
    // What is missing where nothing has been yet was not taken away.
    assert_eq!(told(&mut bench, Some(Time::default())), [""; 0]);
    fs::write(b.join("old"), "its own").unwrap();
    fs::write(b.join("old too"), "its own").unwrap();
    let left = now();
    fs::write(b.join("changed"), "by others").unwrap();
    fs::remove_file(b.join("linked")).unwrap();
    std::os::unix::fs::symlink("same", b.join("linked")).unwrap();
    fs::remove_file(b.join("gone/it")).unwrap();
    fs::rename(b.join("renamed/to"), b.join("renamed/from")).unwrap();
    fs::create_dir(b.join("added")).unwrap();
    fs::write(b.join("added/it"), "by others").unwrap();
    // New in the tree.
    fs::create_dir(a.join("new")).unwrap();
    fs::write(a.join("new/it"), "new").unwrap();
    fs::write(a.join("same"), "no more").unwrap();
    // Of two directories names are missing, and of the top, where others were, the new one.
    assert_eq!(
        told(&mut bench, Some(left)),
        ["", "added/", "changed/", "gone/", "linked/", "renamed/", "renamed/from/"]
    );
    let kept = bench.path("replaced");
    let kept = kept.join(b.strip_prefix("/").unwrap());
    for (name, had) in [("changed", "by others"), ("added/it", "by others"), ("old", "its own")] {
        assert_eq!(fs::read_to_string(kept.join(name)).unwrap(), had);
    }
}

#[test]
fn what_was_left_is_not_told() {
    let mut bench = Bench::new();
    let b = bench.path("b");
    fs::write(bench.path("a/file"), "1").unwrap();
    fs::write(b.join("file"), "left").unwrap();
    fs::write(b.join("more"), "left").unwrap();
    let left = now();
    assert_eq!(told(&mut bench, Some(left)), [""; 0]);
    // Nobody asks.
    fs::write(b.join("file"), "2").unwrap();
    assert_eq!(told(&mut bench, None), [""; 0]);
}

/// Where the trees never were, all that is other than they is somebody's.
#[test]
fn what_was_there_before_is_told() {
    let mut bench = Bench::new();
    fs::write(bench.path("a/file"), "1").unwrap();
    fs::write(bench.path("a/same"), "1").unwrap();
    fs::write(bench.path("b/file"), "0").unwrap();
    fs::write(bench.path("b/same"), "1").unwrap();
    assert_eq!(told(&mut bench, Some(Time::default())), ["file/"]);
}
