//! Goal: what `docs/limits.md` says is not protected is refused with its reason, runs on unharmed, and is protected again when the reason
//! is gone. Method: `limits.c` has and uses one such thing at a time; also what the document promises to the programs
//! themselves (`own_calls.c`, `seccomp.c`, `ways_in.rs` for programs that do not run under holo).
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, wait, workload};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Is refused with this reason, and restorable afterwards where it can be given up.
fn refused(name: &str, reason: &str, lifts: bool) {
    refused_to(Who::Me, name, reason, lifts);
}

fn refused_to(who: Who, name: &str, reason: &str, lifts: bool) {
    let node = Node::start(who);
    hand_over(&node.outside("data/work"), who);
    let args = [
        node.inside("data/work").into_os_string(),
        name.into(),
        compile::workload("static_echo.c").into_os_string(),
    ];
    let program = Program::new(compile::workload("limits.c"), &args);
    let mut app = App::start(&node, "work", &program, "data/work", &["--every", "0"]);
    app.wait_joined(&node);
    let goes_on = || {
        let before = workload::progress(&node);
        wait::until(LIMIT, "progress", || (workload::progress(&node) > before + 5).then_some(()));
    };
    goes_on();
    for _ in 0..3 {
        let said = app.try_checkpoint(&node).expect_err(name);
        assert!(said.code() == 5 && said.stderr.contains(reason), "{name}: {}: {}", said.code(), said.stderr);
        let row = app.row(&node).expect("a row");
        assert_eq!(row["state"], "unprotected", "{row}");
        assert!(row.to_string().contains(reason), "{row}");
        goes_on();
    }
    if lifts {
        std::fs::write(node.outside("data/work/lift"), b"").expect("lift");
        wait::until(LIMIT, "the end of it", || node.outside("data/work/lifted").exists().then_some(()));
        app.checkpoint(&node);
        assert_eq!(app.state(&node), "running");
        app.kill(&node);
        app.restore(&node, None);
        goes_on();
    }
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    wait::until(LIMIT, "the result", || (workload::result(&node) == "ok\n").then_some(()));
}

macro_rules! limits {
    ($($name:ident: $reason:literal, $lifts:literal;)*) => {$(
        #[test]
        fn $name() { refused(stringify!($name), $reason, $lifts) }
    )*};
}

limits! {
    sharing: "shares its descriptors with process", true;
    memory: "does not run under holo", true;
    thread_files: "has descriptors of its own (unshare)", true;
    thread_directory: "has a directory of its own (unshare)", true;
    network: "namespace of its own", true;
    mounts: "namespace of its own", true;
    program: "does not run under holo", true;
    filter: "filter", true;
    guards: "guards (MADV_GUARD_INSTALL)", true;
    table: "local descriptor table", true;
    shm: "System V", true;
    undo: "adjustments", true;
    queue: "asked to be notified", true;
    watch: "watch", true;
    pidfd: "not of the application", true;
    pidfd_thread: "not the first of its process", true;
    fanotify: "fanotify", true;
    lease: "lease", true;
    aio: "asynchronous I/O under way", true;
    urgent: "urgent data that waits", true;
    mark: "urgent data that waits", true;
    answer: "an answer of the kernel that was not read yet", true;
}

/// Root sees everything.
#[test]
fn hidden() {
    refused_to(Who::Nobody, "hidden", "PR_SET_DUMPABLE", true);
}

/// Ordinary users may not make these.
mod privileged {
    use super::refused;

    fn with_root(name: &str, reason: &str) {
        if nix::unistd::geteuid().is_root() {
            refused(name, reason, true);
        } else {
            eprintln!("needs root: not tested");
        }
    }

    #[test]
    fn perf() {
        with_root("perf", "perf_event");
    }

    #[test]
    fn bpf() {
        with_root("bpf", "bpf");
    }
}
