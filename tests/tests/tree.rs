//! Goal: applications of many processes are one application: parked at one instant, restored with every id, parent, group,
//! session, shared object and zombie. Method: self-verifying programs in every mode; see their sources.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, process, wait};
use nix::sys::signal::Signal;
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

holo_tests::workloads! {
    tree: Workload::new("tree.c");
    stopped: Workload::new("stopped.c");
    python: Workload::script("/usr/bin/python3", "processes.py");
    sharing: Workload::new("sharing.c");
    adopted: Workload::new("adopted.c");
    siblings: Workload::new("siblings.c");
    sessions: Workload::new("sessions.c");
    daemons: Workload::new("daemons.c");
    headless: Workload::new("headless.c").checkpoints(100);
}

fn start(node: &Node, source: &'static str) -> App {
    hand_over(&node.outside("data/work"), Who::Me);
    let program = Program::new(compile::workload(source), &[node.inside("data/work")]);
    let mut app = App::start(node, "work", &program, "data/work", &["--every", "0"]);
    app.wait_joined(node);
    let first = || holo_tests::workload::progress(node) > 3;
    wait::until(LIMIT, "progress", || first().then_some(()));
    app
}

fn good_end(node: &Node, mut app: App) {
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    assert_eq!(app.wait_exit(LIMIT), 0);
    assert_eq!(holo_tests::workload::result(node), "ok\n");
}

/// Somebody debugs a worker: epochs are refused with the reason, no signal of ours comes to the debugger, and they are taken
/// again when it has gone.
#[test]
fn a_traced_process_is_left_alone() {
    let node = Node::start(Who::Me);
    let app = start(&node, "tree.c");
    let worker = *app.real_pids(&node).get(1).expect("a worker");
    let record = node.outside("data/trace");
    let mut strace = node.command("strace");
    strace.args(["-f", "-e", "trace=none", "-o"]).arg(&record).args(["-p", &worker.to_string()]);
    let mut strace = strace.stderr(Stdio::null()).spawn().expect("strace");
    let is_traced = || process::tracer(worker).is_some_and(|tracer| tracer == strace.id());
    wait::until(LIMIT, "the tracer", || is_traced().then_some(()));
    for _ in 0..5 {
        let refused = app.try_checkpoint(&node).expect_err("an epoch of a traced process");
        assert!(refused.code() == 5 && refused.stderr.contains("is traced by"), "{}", refused.stderr);
    }
    assert_eq!(app.state(&node), "unprotected");
    let before = holo_tests::workload::progress(&node);
    wait::until(LIMIT, "progress", || (holo_tests::workload::progress(&node) > before + 3).then_some(()));
    process::signal_all(&[worker], Signal::SIGURG);
    let sees = || std::fs::read_to_string(&record).is_ok_and(|seen| seen.contains("SIGURG"));
    wait::until(LIMIT, "the signal", || sees().then_some(()));
    process::signal_all(&[strace.id()], Signal::SIGTERM);
    command::wait_child(&mut strace, LIMIT, "strace");
    let seen = std::fs::read_to_string(&record).expect("what strace saw");
    // Signal 33 has this name.
    assert!(!seen.contains("SIGRT_1") && !seen.contains("SIGSTOP"), "{seen}");
    app.checkpoint(&node);
    assert_eq!(app.state(&node), "running");
    good_end(&node, app);
}

/// Its first thread ends while epochs are taken: all are, they go on with what changes, and it is restored from the last.
#[test]
fn a_process_that_becomes_headless() {
    let mut node = Node::start(Who::Me);
    hand_over(&node.outside("data/work"), Who::Me);
    let program = Program::new(
        compile::workload("headless.c"),
        &[node.inside("data/work"), std::path::PathBuf::from("later")],
    );
    let mut app = App::start(&node, "work", &program, "data/work", &["--every", "0"]);
    app.wait_joined(&node);
    for _ in 0..3 {
        app.checkpoint(&node);
    }
    let leave = node.outside("data/work/leave");
    let leaver = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        std::fs::write(leave, b"").expect("leave");
    });
    let pid = *app.real_pids(&node).first().expect("a process");
    let mut after = 0;
    wait::until(LIMIT, "epochs after its end", || {
        app.checkpoint(&node);
        after += u32::from(process::state(pid) == Some('Z'));
        (after == 5).then_some(())
    });
    leaver.join().expect("leave");
    holo_tests::workload::goes_on(&node, "its end");
    let epoch = app.checkpoint(&node);
    let dirty = epoch.number("pages_dirty");
    assert!(dirty < 1000, "{dirty} pages: it is not known what changed");
    app.kill(&node);
    app.restore(&node, None);
    holo_tests::workload::goes_on(&node, "the restore");
    let pid = *app.real_pids(&node).first().expect("a process");
    assert_eq!(process::state(pid), Some('Z'));
    node.kill_agent();
    node.start_agent();
    wait::until(LIMIT, "an epoch of another agent", || app.try_checkpoint(&node).ok());
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    app.wait_ended(&node, LIMIT);
    assert_eq!(holo_tests::workload::result(&node), "ok\n");
}

/// A worker that others wait for is stopped from outside: epochs are taken, it stays stopped, and all go on afterwards.
#[test]
fn a_stopped_process_is_captured() {
    let node = Node::start(Who::Me);
    let app = start(&node, "tree.c");
    // Not the first, which waits for what it asks; a worker that lives all the time.
    let worker = *app.real_pids(&node).get(1).expect("a worker");
    command::run_ok(node.command("kill").args(["-STOP", &worker.to_string()]), LIMIT);
    wait::until(LIMIT, "the stop", || (process::state(worker) == Some('T')).then_some(()));
    for _ in 0..5 {
        app.checkpoint(&node);
        assert_eq!(process::state(worker), Some('T'));
    }
    let before = holo_tests::workload::progress(&node);
    command::run_ok(node.command("kill").args(["-CONT", &worker.to_string()]), LIMIT);
    let moves = || holo_tests::workload::progress(&node) > before + 3;
    wait::until(LIMIT, "progress", || moves().then_some(()));
    app.checkpoint(&node);
    good_end(&node, app);
}

// Goal: programs that become another user before they execute the next one (setpriv, gosu, su in a start script) stay part of the
// application: the main one, and a child. Method: a shell of root's starts both; epochs, a kill, a restore. Needs root.
#[test]
fn programs_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("needs root: not tested");
        return;
    }
    let node = Node::start(Who::Me);
    let (main, child) = ("data/work", "data/child");
    hand_over(&node.outside(main), Who::Nobody);
    hand_over(&node.outside(child), Who::Nobody);
    let become_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let program = compile::workload("tree.c");
    let (program, here, there) = (
        program.display(),
        node.inside(main).display().to_string(),
        node.inside(child).display().to_string(),
    );
    let script = format!("{become_nobody} {program} {there} & exec {become_nobody} {program} {here}");
    let mut app =
        App::start(&node, "work", &Program::new("/bin/sh", &["-c", &script]), main, &["--every", "0"]);
    app.wait_joined(&node);
    let progress = |dir: &str| {
        let text = std::fs::read_to_string(node.outside(dir).join("progress")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let goes_on = || {
        let before = (progress(main), progress(child));
        wait::until(LIMIT, "progress of both", || {
            for dir in [main, child] {
                let said = std::fs::read_to_string(node.outside(dir).join("result")).unwrap_or_default();
                assert!(said.is_empty(), "{dir}: {said}");
            }
            (progress(main) > before.0 + 3 && progress(child) > before.1 + 3).then_some(())
        });
    };
    goes_on();
    for _ in 0..3 {
        app.checkpoint(&node);
        goes_on();
    }
    app.kill(&node);
    app.restore(&node, None);
    goes_on();
    for dir in [main, child] {
        std::fs::write(node.outside(dir).join("stop"), b"").expect("stop");
        wait::until(LIMIT, "a good end", || {
            let said = std::fs::read_to_string(node.outside(dir).join("result")).unwrap_or_default();
            (said == "ok\n").then_some(())
        });
    }
}

/// Runs `program`, which starts `daemon.c` for `data/work`, through an epoch, a kill and a restore; then the daemon is told to end.
fn a_daemon_is_replicated(program: &Program, node: &Node) {
    hand_over(&node.outside("data/work"), Who::Me);
    let mut app = App::start(node, "work", program, "data/work", &["--every", "0"]);
    let goes_on = || {
        let before = holo_tests::workload::progress(node);
        let moves = || holo_tests::workload::progress(node) > before + 3;
        wait::until(LIMIT, "progress", || moves().then_some(()));
    };
    goes_on();
    app.checkpoint(node);
    goes_on();
    app.kill(node);
    let reached = holo_tests::workload::progress(node);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(holo_tests::workload::progress(node), reached, "the daemon is no part of the application");
    app.restore(node, None);
    goes_on();
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    let ended = || holo_tests::workload::result(node) == "ok\n";
    wait::until(LIMIT, "a good end", || ended().then_some(()));
}

/// The main process is the daemon: what was started has ended.
#[test]
fn a_daemon_stands_for_the_application() {
    let node = Node::start(Who::Me);
    let program = Program::new(compile::workload("daemon.c"), &[node.inside("data/work")]);
    a_daemon_is_replicated(&program, &node);
}

/// A start script starts a daemon and waits for something else. No epoch is taken while the daemon has a parent.
#[test]
fn a_daemon_of_a_script() {
    let node = Node::start(Who::Me);
    let daemon = compile::workload("daemon.c");
    let script = format!("{} {}; exec sleep 1000", daemon.display(), node.inside("data/work").display());
    a_daemon_is_replicated(&Program::new("/bin/sh", &["-c", &script]), &node);
}

/// A shell that starts a program in the background is gone before that has begun: the program is the application then.
#[test]
fn a_program_outlives_who_started_it() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside("data/work"), Who::Me);
    let program = compile::workload("threads.c");
    let script = format!("{} {} &", program.display(), node.inside("data/work").display());
    let program = Program::new("/bin/sh", &["-c", &script]);
    let mut app = App::start(&node, "work", &program, "data/work", &["--every", "0", "--require"]);
    assert_eq!(app.wait_exit(LIMIT), 0);
    let goes_on = || {
        let before = holo_tests::workload::progress(&node);
        wait::until(LIMIT, "progress", || (holo_tests::workload::progress(&node) > before + 3).then_some(()));
    };
    goes_on();
    app.checkpoint(&node);
    assert_eq!(app.state(&node), "running");
    goes_on();
    app.kill(&node);
    app.restore(&node, None);
    goes_on();
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    wait::until(LIMIT, "a good end", || (holo_tests::workload::result(&node) == "ok\n").then_some(()));
}
