//! Goal: `holo run` is invisible to the command apart from the environment that the agent asks for, starts one agent
//! where none answers, and never keeps a program from running unless told to.
//! Method: the built command against a fake agent, or with a script in the place of `holod`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use common::{FakeAgent, err, holo, out, run, static_program, write_program};
use holo_api::local::{AppOptions, Consistency, ErrorKind, Reply, Request};

fn registering() -> FakeAgent {
    FakeAgent::canned(vec![Reply::Registered {
        name: "app".into(),
        env: vec![(b"HOLO_NAME".to_vec(), b"app".to_vec()), (b"LD_PRELOAD".to_vec(), b"".to_vec())],
        warning: None,
    }])
}

#[test]
fn registers_then_becomes_the_command() {
    let agent = registering();
    let root = fs::canonicalize(agent.dir.path()).unwrap();
    let mut command = holo(
        agent.dir.path(),
        &[
            "run",
            "--name",
            "a",
            "--every",
            "250ms",
            "--root",
            ".",
            "--standby",
            "n2",
            "--consistency",
            "commit",
            "--on-change",
            "save",
            "--exclude",
            "cache/of/pages",
        ],
    );
    command.current_dir(&root).args(["--", "sh", "-c", "echo $HOLO_NAME $$; exit 7"]);
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(7));
    assert_eq!(out(&done), format!("app {pid}\n"));
    let options = AppOptions {
        every_ms: 250,
        roots: vec![root.as_os_str().as_bytes().to_vec()],
        standby: vec!["n2".into()],
        consistency: Consistency::Commit,
        on_change: vec![root.join("save").as_os_str().as_bytes().to_vec()],
        excludes: vec![root.join("cache/of/pages").as_os_str().as_bytes().to_vec()],
        ..AppOptions::default()
    };
    let argv = ["sh", "-c", "echo $HOLO_NAME $$; exit 7"].map(|arg| arg.as_bytes().to_vec()).to_vec();
    let register = Request::Register { name: "a".into(), options, argv, unprotected: None };
    assert_eq!(agent.asked(), [register]);
}

#[test]
fn signals_and_arguments_are_the_commands_own() {
    let agent = registering();
    let done = agent.holo(&["run", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(done.status.signal(), Some(libc::SIGTERM));
    let done = agent.holo(&["run", "--", "sh", "-c", "echo \"$0 $#\"", "zero", "", "--name", "-- x"]);
    assert_eq!(out(&done), "zero 3\n");
}

#[test]
fn a_command_that_cannot_run() {
    let agent = registering();
    let text = agent.dir.path().join("text");
    write_program(&text, b"exit 9\n");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).unwrap();
    let path = text.to_str().unwrap();
    assert_eq!(agent.holo(&["run", "--", "no-such-command"]).status.code(), Some(127));
    assert_eq!(agent.holo(&["run", "--", "/no/such"]).status.code(), Some(127));
    let done = agent.holo(&["run", "--", path]);
    assert_eq!(done.status.code(), Some(126));
    assert!(err(&done).contains("ermission denied"));
    assert_eq!(agent.holo(&["run", "--", "/"]).status.code(), Some(126));
    assert_eq!(agent.asked(), [], "nothing is registered for nothing");
    // Without a first line it is a shell script.
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(agent.holo(&["run", "--", path]).status.code(), Some(9));
}

#[test]
fn what_the_caller_set_up_is_handed_on() {
    let agent = registering();
    let prepared = |args: &[&str]| {
        let mut command = holo(agent.dir.path(), &["run", "--"]);
        prepare(command.args(args));
        out(&run(command))
    };
    let test = "[ -e /proc/$$/fd/0 ] && echo open || echo closed";
    assert_eq!(prepared(&["sh", "-c", test]), "closed\n");
    // Not with a shell, which sets up its own mask.
    let mut direct = Command::new("cat");
    prepare(direct.arg("/proc/self/status"));
    let signals = |status: &str| -> Vec<String> {
        let wanted = |line: &&str| {
            ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"].iter().any(|name| line.starts_with(name))
        };
        status.lines().filter(wanted).map(str::to_owned).collect()
    };
    let expected = signals(&out(&run(direct)));
    assert_eq!(expected.len(), 5);
    assert_eq!(signals(&prepared(&["cat", "/proc/self/status"])), expected);
}

/// A caller that blocks one signal, ignores another and has closed its standard input.
fn prepare(command: &mut Command) {
    // SAFETY: signal calls only, before exec.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
            libc::close(0);
            Ok(())
        });
    }
}

#[test]
fn programs_out_of_reach() {
    let agent = registering();
    let program = static_program(agent.dir.path());
    let path = program.to_str().unwrap();
    let done = agent.holo(&["run", "--", path]);
    assert_eq!(done.status.code(), Some(42));
    assert!(
        err(&done).contains("statically linked") && err(&done).contains("runs unprotected"),
        "{}",
        err(&done)
    );
    assert!(
        matches!(&agent.asked()[0], Request::Register { unprotected: Some(why), .. } if why.contains("static"))
    );
    let done = agent.holo(&["run", "--require", "--", path]);
    assert_eq!(done.status.code(), Some(125));
    assert!(err(&done).contains("not executed"));
    assert_eq!(agent.asked().len(), 1);
}

#[test]
fn the_agents_warning_is_shown_once() {
    let warning = Some("more than one process: unprotected".to_owned());
    let agent = FakeAgent::canned(vec![Reply::Registered { name: "a".into(), env: vec![], warning }]);
    let done = agent.holo(&["run", "--", "true"]);
    assert_eq!(
        (done.status.code(), err(&done).as_str()),
        (Some(0), "holo: more than one process: unprotected\n")
    );
}

#[test]
fn a_broken_agent_keeps_nothing_from_running() {
    let agent = FakeAgent::canned(vec![]);
    let done = agent.holo(&["run", "--", "sh", "-c", "exit 5"]);
    assert_eq!(done.status.code(), Some(5));
    assert_eq!(err(&done).lines().count(), 1, "{}", err(&done));
    let mut command = holo(agent.dir.path(), &["run", "--", "true"]);
    command.env("HOLO_REQUIRE", "1");
    assert_eq!(run(command).status.code(), Some(125));
}

#[test]
fn a_name_in_use_is_refused() {
    let message = "the name redis is in use".to_owned();
    let agent = FakeAgent::canned(vec![Reply::Error { kind: ErrorKind::Refused, message }]);
    let done = agent.holo(&["run", "--name", "redis", "--", "true"]);
    assert_eq!(done.status.code(), Some(125));
    assert!(err(&done).contains("in use"));
    assert_eq!(agent.holo(&["run", "--root", "/no/such", "--", "true"]).status.code(), Some(125));
}

/// A directory with `holo` and a script `holod` beside it.
fn installed(script: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let holo = dir.path().join("holo");
    assert!(Command::new("cp").arg(common::HOLO).arg(&holo).status().unwrap().success());
    write_program(&dir.path().join("holod"), format!("#!/bin/sh\n{script}\n").as_bytes());
    (dir, holo)
}

fn with_program(program: &Path, state_dir: &Path, args: &[&str]) -> Command {
    let template = holo(state_dir, args);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    for (name, value) in template.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Not a test: what the script in place of `holod` becomes.
#[test]
#[ignore = "helper of the tests that start an agent"]
fn fake_holod() {
    let Some(socket) = std::env::var_os("FAKE_SOCKET") else { return };
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(5));
        std::process::exit(0);
    });
    let env = vec![(b"HOLO_NAME".to_vec(), b"started".to_vec())];
    let reply = Reply::Registered { name: "started".into(), env, warning: None };
    common::serve(&UnixListener::bind(socket).unwrap(), |_, _| vec![reply.clone()], &Mutex::new(Vec::new()));
}

fn serving_script(prelude: &str) -> String {
    let test = std::env::current_exe().unwrap();
    format!(
        "echo \"$@\" >> \"$2/starts\"\nls -l /proc/self/fd > \"$2/fds\"\nps -o sid= -p $$ > \"$2/sid\"\n{prelude}\n\
         FAKE_SOCKET=\"$4\" exec {} --ignored --exact fake_holod",
        test.display()
    )
}

#[test]
fn many_commands_start_one_agent() {
    let (dir, holo) = installed(&serving_script("sleep 0.2"));
    let state = dir.path().join("state");
    let command = || {
        let mut command = with_program(&holo, &state, &["run", "--", "sh", "-c", "echo $HOLO_NAME"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..6).map(|_| command()).collect();
    for child in children {
        let done = child.wait_with_output().unwrap();
        assert_eq!(
            (done.status.code(), out(&done).as_str(), err(&done).as_str()),
            (Some(0), "started\n", "")
        );
    }
    let starts = fs::read_to_string(state.join("starts")).unwrap();
    let expected = format!("--state-dir {0} --socket {0}/agent.sock\n", state.display());
    assert_eq!(starts, expected);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_agent_is_nobodys_child_and_holds_nothing() {
    let (dir, holo) = installed(&serving_script(""));
    let state = dir.path().join("state");
    let children = "cat /proc/$$/task/*/children; echo; grep -E 'S..Pnd' /proc/$$/status; cat /proc/$$/stat | cut -d' ' -f6";
    let mut command = with_program(&holo, &state, &["run", "--", "sh", "-c", children]);
    // SAFETY: signal and descriptor calls only, before exec.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGCHLD);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            // Inherited by whoever does not care.
            libc::dup2(1, 77);
            Ok(())
        });
    }
    let done = run(command);
    assert_eq!(err(&done), "");
    let seen = out(&done);
    let pending: Vec<&str> = seen.lines().filter(|line| line.contains("Pnd")).collect();
    assert!(pending.iter().all(|line| line.ends_with("0000000000000000")), "{seen}");
    // The shell's own `cat` is a child; an agent would be a second one.
    assert!(seen.lines().next().unwrap().split_whitespace().count() <= 1, "{seen}");
    let session = seen.lines().last().unwrap();
    assert_ne!(fs::read_to_string(state.join("sid")).unwrap().trim(), session);
    let fds = fs::read_to_string(state.join("fds")).unwrap();
    assert!(!fds.contains(" 77 ->"), "{fds}");
    assert!(fds.contains("holod.log"), "{fds}");
}

#[test]
fn an_agent_that_dies_is_reported_with_its_words() {
    let (dir, holo) = installed("echo 'disk on fire' >&2; exit 1");
    let state = dir.path().join("state");
    let done = run(with_program(&holo, &state, &["run", "--", "sh", "-c", "exit 3"]));
    assert_eq!(done.status.code(), Some(3), "the command runs untouched");
    let words = err(&done);
    assert!(words.contains("disk on fire") && words.contains("runs unprotected"), "{words}");
    let done = run(with_program(&holo, &state, &["run", "--require", "--", "true"]));
    assert_eq!(done.status.code(), Some(125));
    let done = run(with_program(&holo, &state, &["restore", "x"]));
    assert_eq!(done.status.code(), Some(8));
}

#[test]
fn restore_starts_an_agent() {
    let (dir, holo) = installed(&serving_script(""));
    let state = dir.path().join("state");
    // The fake one gives a wrong answer, but it was there to give it.
    let done = run(with_program(&holo, &state, &["restore", "x"]));
    assert!(err(&done).contains("same version"), "{}", err(&done));
}
