//! Goal: an application under holo behaves as without it, by the judgement of programs' own test suites.
//! Method: parts of suites, plain and under holo with epochs all the time; every test must come out the same. All of them:
//! `make suites`.
#![allow(missing_docs)]

use holo_tests::suites::{Suite, compare};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// Most suites are short: epochs come densely.
const PAUSE: Duration = Duration::from_millis(100);

fn same(suites: &[Suite]) {
    let mut epochs = 0;
    for suite in suites {
        let (plain, under, differ) = compare(*suite, PAUSE, LIMIT);
        assert!(plain.results.len() > 1, "{}: nothing ran: {:?}", suite.name(), plain.results);
        assert!(differ.is_empty(), "{}: {differ:#?}", suite.name());
        epochs += under.epochs;
    }
    assert!(epochs > 0, "no epoch was sealed");
}

#[test]
fn python_os_and_mmap() {
    same(&[Suite::Python("test_os", &[]), Suite::Python("test_mmap", &[])]);
}

#[test]
fn python_signal() {
    let fast = &["*PosixTests*", "*WakeupSignalTests*", "*PendingSignalsTests*", "*RaiseSignalTest*"];
    same(&[Suite::Python("test_signal", fast)]);
}

#[test]
fn python_subprocess() {
    same(&[Suite::Python("test_subprocess", &["test.test_subprocess.POSIXProcessTestCase.*"])]);
}

/// Large writes to pipes, cut short by signals of their own only.
#[test]
fn python_io() {
    same(&[Suite::Python("test_io", &["*CSignalsTest*write_unbuffered*", "*CSignalsTest*retry_buffered*"])]);
}

#[test]
fn stressors_of_processes() {
    same(&["clone", "fork", "vfork", "spawn", "seccomp", "wait"].map(Suite::StressNg));
}

#[test]
fn stressors_of_signals_and_pipes() {
    same(&["sigchld", "sigrt", "itimer", "timerfd", "pipe", "sockpair", "futex"].map(Suite::StressNg));
}
