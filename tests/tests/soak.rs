//! Goal: restoring does not fail one time in a thousand.
//! Method: checkpoint, kill -9, restore, round after round, of a threaded program that checks itself: 25 rounds in every
//! run of the tests, 1,000 (or `HOLO_SOAK_ROUNDS`) with `make soak`.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, wait};
use std::time::{Duration, Instant};

const DIR: &str = "data/work";

/// `between` is done while the application is dead.
fn rounds(source: &'static str, count: u32, who: Who, between: impl Fn(&Node)) {
    let node = Node::start(who);
    hand_over(&node.outside(DIR), who);
    let program = Program::new(compile::workload(source), &[node.inside(DIR)]);
    let mut app = App::start(&node, "soak", &program, DIR, &["--keep", "3"]);
    app.wait_joined(&node);
    let progress = || {
        let said = std::fs::read_to_string(node.outside(DIR).join("result")).unwrap_or_default();
        assert!(said.is_empty(), "the workload ended: {said}");
        let text = std::fs::read_to_string(node.outside(DIR).join("progress")).unwrap_or_default();
        text.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0)
    };
    let start = Instant::now();
    let (mut stop_us, mut restore_us) = (Vec::new(), Vec::new());
    for round in 0..count {
        let from = progress();
        wait::until(Duration::from_secs(20), &format!("progress in round {round}"), || {
            (progress() > from + 1).then_some(())
        });
        // The cut falls at another moment each time.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 5000));
        stop_us.push(app.checkpoint(&node).number("stop_us"));
        app.kill(&node);
        between(&node);
        let restored = app.restore_unsettled(&node, None);
        restore_us.push(restored["restore_us"].as_u64().unwrap_or(0));
        if round % 100 == 99 {
            eprintln!("{} rounds in {:?}", round + 1, start.elapsed());
        }
    }
    app.settle(&node);
    std::fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(&node, Duration::from_secs(20));
    let said = std::fs::read_to_string(node.outside(DIR).join("result")).unwrap_or_default();
    assert_eq!(said, "ok\n");
    let worst = |v: &[u64]| v.iter().max().copied().unwrap_or(0);
    let mean = |v: &[u64]| v.iter().sum::<u64>() / v.len().max(1) as u64;
    eprintln!(
        "{count} rounds in {:?}: stop {} us (worst {}), restore {} us (worst {})",
        start.elapsed(),
        mean(&stop_us),
        worst(&stop_us),
        mean(&restore_us),
        worst(&restore_us)
    );
}

/// Each restore makes the file anew, so that it has other numbers each time, which the program does not see.
#[test]
fn a_file_stays_the_same() {
    rounds("fd_same_file.c", 15, Who::Nobody, |node| {
        std::fs::remove_file(node.outside(DIR).join("dir/file")).expect("the file");
    });
}

#[test]
fn twenty_five_rounds() {
    rounds("threads.c", 25, Who::Me, |_| ());
}

#[test]
fn twenty_five_rounds_as_user() {
    rounds("threads.c", 25, Who::Nobody, |_| ());
}

#[test]
#[ignore = "takes long: make soak"]
fn thousand_rounds() {
    let count = std::env::var("HOLO_SOAK_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    rounds("threads.c", count, Who::Me, |_| ());
}
