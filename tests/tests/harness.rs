//! The harness itself: what needs no agent must be right before anything else is judged with it.
#![allow(missing_docs)]

use holo_tests::cluster::Cluster;
use holo_tests::node::{Node, Who};
use holo_tests::{command, compile, process, wait};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

fn reaches(cluster: &Cluster, from: usize, to: usize) -> bool {
    // A TCP connection to a closed port is refused at once by a host that is there, and times out otherwise.
    let script = format!(
        "import socket,sys\ns=socket.socket();s.settimeout(1)\ntry: s.connect(('{}',1))\n\
         except ConnectionRefusedError: sys.exit(0)\nexcept OSError: sys.exit(1)",
        cluster.address(to)
    );
    let mut python = cluster.nodes[from].command("/usr/bin/python3");
    command::run(python.arg("-c").arg(script), LIMIT).status.success()
}

fn cluster_is_isolated(who: Who) {
    let mut cluster = Cluster::new(&["a", "b"], who);
    let say = |node: &Node, script: &str| command::run_ok(node.command("sh").arg("-c").arg(script), LIMIT);
    assert_eq!(say(&cluster.nodes[0], "hostname"), "a\n");
    assert_eq!(say(&cluster.nodes[1], "hostname"), "b\n");
    // The same path, other contents; /tmp and /dev/shm are private as well.
    let path = cluster.nodes[0].inside("data/file");
    assert_eq!(path, cluster.nodes[1].inside("data/file"));
    say(&cluster.nodes[0], &format!("echo one > {0}; echo t > /tmp/t; echo s > /dev/shm/s", path.display()));
    assert_eq!(std::fs::read_to_string(cluster.nodes[0].outside("data/file")).ok().as_deref(), Some("one\n"));
    assert_eq!(
        say(&cluster.nodes[1], &format!("ls -d {} /tmp/* /dev/shm/* 2>/dev/null; true", path.display())),
        ""
    );
    // Pids are small and each node's own.
    let pids = say(&cluster.nodes[0], "ls /proc | grep -c '^[0-9]'");
    assert!(pids.trim().parse::<u32>().is_ok_and(|n| n < 12), "{pids} processes are visible");
    assert!(reaches(&cluster, 0, 1) && reaches(&cluster, 1, 0), "the nodes do not reach each other");
    cluster.cut(0);
    assert!(!reaches(&cluster, 0, 1) && !reaches(&cluster, 1, 0), "a cut cable carries packets");
    cluster.join(0);
    wait::until(LIMIT, "packets after joining the cable", || reaches(&cluster, 1, 0).then_some(()));
    // A killed node takes everything with it and boots again with its files.
    let mut sleeper = cluster.nodes[0].command("sleep").arg("1000").spawn().expect("sleep");
    wait::until(LIMIT, "sleep in the node", || process::children(sleeper.id()).first().copied());
    cluster.kill(0);
    command::wait_child(&mut sleeper, LIMIT, "sleep in a killed node");
    assert!(!reaches(&cluster, 1, 0));
    cluster.reboot(0);
    assert_eq!(say(&cluster.nodes[0], &format!("cat {}", path.display())), "one\n");
    wait::until(LIMIT, "packets after booting", || reaches(&cluster, 1, 0).then_some(()));
}

#[test]
fn cluster_as_me() {
    cluster_is_isolated(Who::Me);
}

#[test]
fn cluster_as_ordinary_user() {
    cluster_is_isolated(Who::Nobody);
}

#[test]
fn a_node_ends_what_it_started() {
    let mut node = Node::without_agent(Who::Nobody);
    // A grandchild in its own session, orphaned: only the mark finds it.
    let script = "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & exit 0";
    command::run_ok(node.command("sh").arg("-c").arg(format!("({script}) >/dev/null 2>&1")), LIMIT);
    let mark = node.mark();
    let found =
        wait::until(LIMIT, "marked processes", || Some(process::marked(&mark)).filter(|p| p.len() == 4));
    node.sweep();
    assert!(found.iter().all(|pid| !process::alive(*pid)), "{found:?} were left");
}

#[test]
fn time_limits_hold() {
    let started = std::time::Instant::now();
    let late = std::panic::catch_unwind(|| {
        command::run(Command::new("sleep").arg("100"), Duration::from_millis(200));
    });
    assert!(late.is_err() && started.elapsed() < Duration::from_secs(5));
}

#[test]
fn every_workload_compiles_without_warnings() {
    for entry in
        std::fs::read_dir(holo_tests::paths::tests_dir().join("workloads")).expect("workloads").flatten()
    {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "c" || e == "cc") {
            let _program = compile::build(&path);
        }
    }
}
