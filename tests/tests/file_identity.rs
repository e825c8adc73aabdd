//! Goal: the files of every epoch are identical to those at its cut: names, types, contents, holes, hard links, modes,
//! owners, times, attributes, whatever was done to them since the epoch before, also by processes that were killed.
//! Method: several processes change the same files in every way at random. One is killed wherever it is and the others rest
//! while an epoch is taken; it is applied to an empty directory, which is compared with the files while they still rest.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, epochs, wait};
use std::fs;
use std::time::{Duration, Instant};

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);

fn storm(seed: &str, lasts: Duration) {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let files = node.outside(DIR);
    let pause = |name: &str| node.outside(DIR).join(name);
    let program = Program::new(compile::workload("file_storm.c"), &[node.inside(DIR), seed.into()]);
    let mut app = App::start(&node, "work", &program, DIR, &["--keep", "3"]);
    app.wait_joined(&node);
    let start = Instant::now();
    let (mut count, mut changed, mut by_record) = (0, 0, 0);
    while start.elapsed() < lasts {
        std::thread::sleep(Duration::from_micros(50_000 + count * 7919 % 60_000));
        fs::write(pause("pause"), b"").unwrap();
        wait::until(LIMIT, "the storm rests", || {
            assert_eq!(holo_tests::workload::result(&node), "");
            pause("quiet").exists().then_some(())
        });
        let epoch = app.checkpoint(&node);
        let scratch = tempfile::tempdir_in(node.outside("data")).unwrap();
        let applied = scratch.path().join("applied");
        fs::create_dir(&applied).unwrap();
        epochs::apply(&epochs::open(&node, "work", epoch.number("epoch")), &files, &applied);
        let differences = epochs::differences(&files, &applied);
        assert!(differences.is_empty(), "epoch {} (seed {seed}): {differences:#?}", epoch.number("epoch"));
        if count == 0 {
            fs::write(applied.join("files/d0/other"), b"a difference is seen").unwrap();
            assert!(!epochs::differences(&files, &applied).is_empty());
        }
        count += 1;
        changed += epoch.number("files_changed");
        by_record += u64::from(epoch.0["stop_parts_us"]["files.all"].is_null());
        fs::remove_file(pause("pause")).unwrap();
        wait::until(LIMIT, "the storm goes on", || (!pause("quiet").exists()).then_some(()));
    }
    eprintln!("{count} epochs with {changed} changed files identical, {by_record} without a look at all");
    assert!(by_record > count / 2, "{by_record} of {count} epochs went by what was recorded");
    assert!(count >= 3 && changed > count * 5, "{count} epochs, {changed} changes");
    app.kill(&node);
}

#[test]
fn every_epoch_is_identical() {
    storm("1", Duration::from_secs(8));
}

#[test]
fn every_epoch_is_identical_of_other_changes() {
    storm("2", Duration::from_secs(8));
}

#[test]
#[ignore = "takes long: make soak"]
fn every_epoch_is_identical_for_long() {
    for seed in 100..120 {
        storm(&seed.to_string(), Duration::from_secs(60));
    }
}
