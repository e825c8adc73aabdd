//! Goal: whatever way a program comes to its system calls, and whatever it starts, it runs as without holo.
//! Method: self-verifying programs in every mode; what a preload cannot reach must run untouched, with a reason.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, paths, process};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

holo_tests::workloads! {
    cancel: Workload::new("cancel.c");
    throw: Workload::new("throw.cc");
    raw: Workload::new("raw.c").env("HOLO_WAYS", "symbols,sites,traps");
    spawn: Workload::new("spawn.c");
    spawn_actions: Workload::new("spawn_actions.c");
    forks: Workload::new("forks.c");
    sanitized: Workload::new("sanitized.c").checkpoints(10);
    slow_loader: Workload::new("slow_loader.c").run_ms(1500);
}

/// A program that holo cannot reach: it runs to its good end, and `holo run` says why it is not protected.
fn left_alone(who: Who, mode: u32, source: &str, reason: &[&str]) {
    let node = Node::start(who);
    hand_over(&node.outside("data/work"), who);
    let program = node.outside("data/program");
    std::fs::copy(compile::workload(source), &program).expect("copy");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).expect("mode");
    let mut app =
        App::start(&node, "alone", &Program::new(&program, &[node.inside("data/work")]), "data/work", &[]);
    app.wait_joined(&node);
    let refused = app.try_checkpoint(&node);
    let row = app.row(&node).unwrap_or_default();
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    assert_eq!(app.wait_exit(LIMIT), 0);
    assert_eq!(
        (&row["state"], row["real_pids"].as_array().map(Vec::len)),
        (&"unprotected".into(), Some(1)),
        "{row}"
    );
    assert!(reason.iter().any(|word| row["reasons"].to_string().to_lowercase().contains(word)), "{row}");
    assert_eq!(app.state(&node), "stopped", "after its end");
    assert_eq!(std::fs::read_to_string(node.outside("data/work/result")).ok().as_deref(), Some("ok\n"));
    let refused = refused.expect_err("a checkpoint of a program that holo cannot reach");
    assert_eq!(refused.code(), 5, "{}", refused.stderr);
    let said = std::fs::read_to_string(node.outside("data/work/stderr")).unwrap_or_default();
    assert!(
        reason.iter().any(|word| said.to_lowercase().contains(word)),
        "no clear reason on stderr: {said:?}"
    );
}

#[test]
fn a_static_program_is_left_alone() {
    left_alone(Who::Me, 0o755, "plain_static.c", &["static"]);
}

/// Needs root: the program belongs to root and is started by another user.
#[test]
fn a_set_user_id_program_is_left_alone() {
    if nix::unistd::geteuid().is_root() {
        left_alone(Who::Nobody, 0o4755, "threads.c", &["set-user-id", "setuid", "set user id"]);
    } else {
        eprintln!("only root can make a set-user-id program of another user");
    }
}

/// `LD_PRELOAD=libholo.so CMD` with nobody to talk to: one warning, the program's own result.
#[test]
fn without_an_agent_the_program_runs_untouched() {
    let node = Node::without_agent(Who::Me);
    let lib = paths::bin("libholo.so");
    let run = |require: &str| {
        let mut sh = node.command("sh");
        sh.env("LD_PRELOAD", &lib).env("HOLO_REQUIRE", require).arg("-c").arg("ls / >/dev/null; exit 7");
        command::run(&mut sh, LIMIT)
    };
    let finished = run("0");
    assert_eq!((finished.code(), finished.stdout.as_str()), (7, ""));
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.starts_with("holo: no agent at "), "{}", finished.stderr);
    assert_eq!(run("1").code(), 125);
}

/// A plain preload joins the agent and is protected.
#[test]
fn a_plain_preload_joins() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside("data/work"), Who::Me);
    let mut command = node.command(compile::workload("threads.c"));
    command
        .arg(node.inside("data/work"))
        .env("LD_PRELOAD", paths::bin("libholo.so"))
        .env("HOLO_NAME", "plain");
    let mut child = command.spawn().expect("start");
    let listed = holo_tests::wait::try_until(LIMIT, || {
        let rows = command::run_ok(&mut node.holo(&["ps", "--json"]), LIMIT);
        rows.contains("\"plain\"").then_some(())
    });
    std::fs::write(node.outside("data/work/stop"), b"").expect("stop");
    let status = command::wait_child(&mut child, LIMIT, "plain preload");
    assert!(listed.is_some(), "holo ps does not show it");
    assert!(status.success() && !process::alive(child.id()));
}

/// The exit status, the signal and the output of `holo run` are the application's.
#[test]
fn status_and_output_pass_through() {
    let node = Node::start(Who::Me);
    let run = |args: &[&str]| command::run(node.holo(&["run", "--every", "0", "--"]).args(args), LIMIT);
    let finished = run(&["sh", "-c", "echo out; echo err >&2; exit 41"]);
    assert_eq!((finished.code(), finished.stdout.as_str()), (41, "out\n"));
    assert!(finished.stderr.contains("err\n"), "{}", finished.stderr);
    let killed = run(&["sh", "-c", "kill -TERM $$"]);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(15));
    assert_eq!(run(&["/nonexistent/program"]).code(), 127);
    assert_eq!(run(&["/etc/passwd"]).code(), 126);
}
