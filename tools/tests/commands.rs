//! Goal: what scripts rely on: JSON fields, exit codes, errors that say what to do.
//! Method: the built command against a fake agent with canned replies.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod common;

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::process::ExitStatusExt;

use common::{FakeAgent, app, epoch, err, holo, json, out, restored, run};
use holo_api::local::{ErrorKind, Graph, NodeInfo, Reply, Request};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn ps() {
    let agent = FakeAgent::canned(vec![Reply::Apps(vec![app()])]);
    let list = json(&agent.holo(&["ps", "--json"]));
    let mut expected = [
        "name",
        "state",
        "reasons",
        "node",
        "epoch",
        "lag_ms",
        "real_pids",
        "cluster_pids",
        "stop_us",
        "standby",
        "command",
        "every_ms",
        "budget_percent",
        "clone",
        "growth_bytes",
        "on_change",
        "standby_lag_ms",
        "progress",
    ];
    expected.sort_unstable();
    assert_eq!(keys(&list[0]), expected);
    assert_eq!(list[0]["state"], "unprotected");
    assert_eq!(list[0]["real_pids"][0], 4711);
    assert_eq!((&list[0]["budget_percent"], &list[0]["standby_lag_ms"]), (&5.0.into(), &1700.into()));
    assert_eq!(list[0]["on_change"], serde_json::json!(["/srv/save"]));
    let sending =
        serde_json::json!({"step": "send", "node": "n2", "done_bytes": 3 << 29, "total_bytes": 5_u64 << 30});
    assert_eq!(list[0]["progress"], serde_json::json!([sending]));
    let text = out(&agent.holo(&["ps"]));
    assert!(text.starts_with("NAME   STATE "), "{text}");
    assert!(
        text.contains("unprotected: io_uring, sending to n2 1.5 GiB of 5.0 GiB")
            && text.contains("1.5 s")
            && text.contains("2.5 ms"),
        "{text}"
    );
}

#[test]
fn checkpoint_and_epochs() {
    let agent = FakeAgent::start(|request, _| match request {
        Request::Checkpoint { .. } => {
            vec![Reply::Progress { what: "pages".into(), done: 1, total: 2 }, Reply::Epoch(epoch())]
        }
        _ => vec![Reply::Epochs(vec![epoch()])],
    });
    let one = json(&agent.holo(&["checkpoint", "redis", "--json"]));
    assert_eq!(one["where"], serde_json::json!(["local", "n2"]));
    assert_eq!((&one["stop_us"], &one["sealed"]), (&2500.into(), &true.into()));
    assert_eq!(json(&agent.holo(&["epochs", "redis", "--json"]))[0], one);
    assert!(out(&agent.holo(&["checkpoint", "redis"])).contains("epoch 7 sealed (local,n2)"));
    assert!(out(&agent.holo(&["epochs", "redis"])).contains("memory 900 B"));
    assert_eq!(one["stop_split_us"]["kinds"], 2500 - 100);
    assert_eq!(agent.asked()[0], Request::Checkpoint { name: "redis".into() });
}

#[test]
fn restore_and_switch() {
    let agent = FakeAgent::canned(vec![Reply::Restored(restored())]);
    let done = agent.holo(&["restore", "redis", "--epoch", "7", "--json"]);
    assert_eq!(json(&done)["first_instruction_us"], 20_000);
    let done = agent.holo(&["switch", "redis", "--to", "n2"]);
    assert!(out(&done).contains("runs from epoch 7 on n1"));
    assert!(err(&done).contains("2 connections were reset"));
    assert_eq!(
        agent.asked(),
        [
            Request::Restore {
                name: "redis".into(),
                epoch: Some(7),
                aside: None,
                force: false,
                attach: false
            },
            Request::Switch { name: "redis".into(), to: Some("n2".into()) }
        ]
    );
}

#[test]
fn what_was_put_aside_and_force() {
    let mut put = epoch();
    put.aside_unix_ms = Some(1_700_000_000_123);
    let agent = FakeAgent::start(move |request, _| match request {
        Request::Epochs { .. } => vec![Reply::Epochs(vec![put.clone()])],
        _ => vec![Reply::Restored(restored())],
    });
    let table = out(&agent.holo(&["epochs", "redis", "--aside"]));
    assert!(table.contains("ASIDE") && table.contains("1700000000123"), "{table}");
    let list = json(&agent.holo(&["epochs", "redis", "--aside", "--json"]));
    assert_eq!(list[0]["aside_unix_ms"], 1_700_000_000_123u64);
    agent.holo(&["restore", "redis", "--epoch", "7", "--aside", "1700000000123", "--force"]);
    let name = || "redis".to_owned();
    let wanted = Request::Restore {
        name: name(),
        epoch: Some(7),
        aside: Some(1_700_000_000_123),
        force: true,
        attach: false,
    };
    let list = Request::Epochs { name: name(), aside: true };
    assert_eq!(agent.asked(), [list.clone(), list, wanted]);
    // A time alone says nothing.
    assert_eq!(agent.holo(&["restore", "redis", "--aside", "1"]).status.code(), Some(2));
}

/// The application of an attached restore: writes to the descriptors that came, ends with `status`.
fn attached(status: i32) -> FakeAgent {
    FakeAgent::start(move |_, stream| {
        let mut byte = [0];
        let mut control = nix::cmsg_space!([i32; 3]);
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::empty();
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut control), flags).unwrap();
        let mut fds = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(list) = part {
                fds = list;
            }
        }
        assert_eq!(fds.len(), 3);
        // SAFETY: just received, owned by nobody else.
        let mut files: Vec<std::fs::File> =
            fds.iter().map(|fd| unsafe { std::fs::File::from_raw_fd(*fd) }).collect();
        std::io::Write::write_all(&mut files[1], b"from the app").unwrap();
        vec![Reply::Restored(restored()), Reply::Exited(status)]
    })
}

#[test]
fn attached_restore_ends_as_the_application() {
    let done = attached(7 << 8).holo(&["restore", "redis", "--attach"]);
    assert_eq!((done.status.code(), out(&done).as_str()), (Some(7), "from the app"));
    let done = attached(libc::SIGTERM).holo(&["restore", "redis", "--attach"]);
    assert_eq!(done.status.signal(), Some(libc::SIGTERM));
}

#[test]
fn stop_rm_drain() {
    let agent = FakeAgent::canned(vec![Reply::Done]);
    for args in [
        &["stop", "redis"][..],
        &["rm", "redis"],
        &["node", "drain", "n1"],
        &["set", "redis", "--every", "auto"],
    ] {
        let done = agent.holo(args);
        assert_eq!((done.status.code(), out(&done).as_str(), err(&done).as_str()), (Some(0), "", ""));
    }
}

#[test]
fn graph_nodes_top() {
    let node = NodeInfo {
        name: "n1".into(),
        address: "local".into(),
        state: "self".into(),
        heard_ms: Some(0),
        running: vec!["redis".into()],
        standby: vec![],
    };
    let agent = FakeAgent::start(move |request, _| match request {
        Request::Graph { .. } => vec![Reply::Graph(Graph::default())],
        Request::Nodes => vec![Reply::Nodes(vec![node.clone()])],
        _ => vec![Reply::Apps(vec![app()])],
    });
    assert_eq!(json(&agent.holo(&["graph", "redis", "--format", "json"]))["nodes"], serde_json::json!([]));
    assert!(out(&agent.holo(&["graph", "redis", "--format", "dot"])).starts_with("digraph \"redis\""));
    let list = json(&agent.holo(&["node", "ls", "--json"]));
    assert_eq!(keys(&list[0]), ["address", "heard_ms", "name", "running", "standby", "state"]);
    let picture = out(&agent.holo(&["top"]));
    assert!(
        picture.contains("on n1") && picture.contains("redis-server") && picture.contains("ADDRESS"),
        "{picture}"
    );
    assert!(picture.contains("UNPARK") && picture.contains("1.0 s (5%)"), "{picture}");
}

/// On a terminal: draws, ends on `q`, leaves the terminal as it was.
#[test]
fn top_on_a_terminal() {
    let agent = FakeAgent::start(|request, _| match request {
        Request::Nodes => vec![Reply::Nodes(vec![])],
        _ => vec![Reply::Apps(vec![app()])],
    });
    let pty = nix::pty::openpty(None, None).unwrap();
    let before = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    let mut command = holo(agent.dir.path(), &["top", "--every", "100ms"]);
    let end = || std::process::Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let mut terminal = std::fs::File::from(pty.master);
    let mut seen = Vec::new();
    let mut read = |until: &str| {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(until) {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 5000u16), Ok(1), "no {until} in {}", String::from_utf8_lossy(&seen));
            let length = std::io::Read::read(&mut terminal, &mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..length]);
        }
        seen.clear();
    };
    // Twice: it is redrawn.
    read("unprotected");
    read("q to quit");
    read("unprotected");
    std::io::Write::write_all(&mut terminal, b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(nix::sys::termios::tcgetattr(&pty.slave).unwrap().local_flags, before.local_flags);
}

#[test]
fn errors_have_codes_and_words() {
    let kinds = [
        (ErrorKind::Failed, 1),
        (ErrorKind::Usage, 2),
        (ErrorKind::NotFound, 3),
        (ErrorKind::Refused, 4),
        (ErrorKind::Unprotected, 5),
        (ErrorKind::BadImage, 6),
        (ErrorKind::Unreachable, 7),
    ];
    for (kind, code) in kinds {
        let agent = FakeAgent::canned(vec![Reply::Error { kind, message: "no redis here".into() }]);
        let done = agent.holo(&["checkpoint", "redis", "--json"]);
        assert_eq!((done.status.code(), err(&done).as_str()), (Some(code), "holo: no redis here\n"));
        assert!(done.stdout.is_empty());
    }
}

#[test]
fn no_agent() {
    let dir = tempfile::tempdir().unwrap();
    for args in
        [&["ps"][..], &["checkpoint", "x"], &["stop", "x"], &["switch", "x"], &["node", "ls"], &["top"]]
    {
        let done = run(holo(dir.path(), args));
        assert_eq!(done.status.code(), Some(8), "{args:?}");
        assert!(err(&done).contains("no agent answers at") && err(&done).contains("holod"), "{}", err(&done));
    }
}

#[test]
fn an_agent_that_breaks_off_or_babbles() {
    let agent = FakeAgent::canned(vec![]);
    let done = agent.holo(&["ps"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(err(&done).contains("while it was to list the applications"), "{}", err(&done));
    let agent = FakeAgent::canned(vec![Reply::Done]);
    assert!(err(&agent.holo(&["ps"])).contains("the same version"));
}

#[test]
fn wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["nonsense"][..], &["restore"], &["ps", "extra"], &["stop", "a/b"]] {
        assert_eq!(run(holo(dir.path(), args)).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(run(holo(dir.path(), &["run", "--every", "5", "true"])).status.code(), Some(125));
    assert_eq!(run(holo(dir.path(), &["--help"])).status.code(), Some(0));
    assert!(out(&run(holo(dir.path(), &["--version"]))).starts_with("holo "));
}

#[test]
fn doctor_tells_in_json() {
    let agent = FakeAgent::canned(vec![]);
    let done = agent.holo(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(if report["ok"] == true { 0 } else { 1 }));
    let probes = report["probes"].as_array().unwrap();
    for probe in probes {
        assert_eq!(keys(probe), ["group", "means", "mend", "name", "required", "status", "why"]);
        assert!(["ok", "degraded", "missing"].contains(&probe["status"].as_str().unwrap()));
        assert_ne!(probe["why"], "");
    }
    let find = |name: &str| probes.iter().find(|probe| probe["name"] == name).unwrap();
    assert_eq!(find("agent")["status"], "ok");
    assert_eq!(find("kernel")["required"], true);
}
