//! Goal: roots that cannot be written to, are full or go away harm no application; an epoch, a restore or a switch then is right or
//! refused with the reason, and all is well when the trouble is over.
//! Method: nodes of which one root is a small file system of its own, mounted read-only, filled, or moved away while the program runs.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::command::{self, Finished};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::wait;
use holo_tests::workload::{ends_well, goes_on};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

const DIR: &str = "data/work";
/// The root that there is trouble with.
const ROOT: &str = "data/root";
const LIMIT: Duration = Duration::from_secs(30);
/// Its own writes to the root may fail.
const SCRIPT: &str = "cd $1; echo first >$2/still; i=0
    while [ ! -e stop ]; do
        i=$((i + 1)); (echo $i >$2/n) 2>>errors; printf '%-20s' $i 1<>progress; sleep 0.01
    done
    echo ok >result";

/// Does something in a node, whose mounts are its own; what it printed.
fn sh(node: &Node, script: &str) -> String {
    let mut shell = node.command("sh");
    shell.args(["-ec", script, "sh"]).arg(node.inside(ROOT));
    command::run_ok(&mut shell, LIMIT)
}

/// A file system of 2 MiB as the root.
fn mount(node: &Node) {
    hand_over(&node.outside(ROOT), node.who());
    sh(node, "mount -t tmpfs -o size=2m,mode=755 none $1");
}

const READ_ONLY: &str = "mount -o remount,bind,ro $1";
const WRITABLE: &str = "mount -o remount,bind,rw $1";
const FULL: &str =
    "dd if=/dev/zero of=$1/../filler bs=4k count=0 2>&1; head -c 8m /dev/zero >$1/filler || true";
const NOT_FULL: &str = "rm $1/filler";

fn cluster(names: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(names, Who::Me);
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), node.who()));
    cluster
}

fn start(node: &Node, options: &[&str]) -> App {
    let (dir, root) = (node.inside(DIR), node.inside(ROOT));
    let args = ["-c", SCRIPT, "sh", dir.to_str().unwrap(), root.to_str().unwrap()];
    let program = Program::new("/bin/sh", &args);
    let mut app = App::start_with_roots(node, "work", &program, DIR, &[&dir, &root], options);
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

fn holo(node: &Node, args: &[&str]) -> Finished {
    command::run(&mut node.holo(args), LIMIT)
}

/// An order is refused with these words, and the application goes on.
fn is_refused(finished: &Finished, words: &[&str]) {
    let said = &finished.stderr;
    assert!(!finished.status.success(), "{}", finished.stdout);
    eprintln!("refused: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

/// Paths of the root in the last epoch.
fn captured(node: &Node) -> Vec<String> {
    let shown = command::run_ok(&mut node.holo(&["cfor", "show", "work", "--json"]), LIMIT);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let root = node.inside(ROOT);
    let path = |entry: &Value| entry["path"].as_str().unwrap().to_owned();
    shown["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(path)
        .filter(|path| path.starts_with(root.to_str().unwrap()))
        .collect()
}

fn stop_by_order(node: &Node, app: &mut App) {
    command::run_ok(&mut node.holo(&["stop", "work"]), LIMIT);
    app.forget();
}

/// A root that cannot be written to any more is in epochs, and restored where it is as it was.
#[test]
fn a_root_that_becomes_read_only() {
    let cluster = cluster(&["a"]);
    let a = &cluster.nodes[0];
    mount(a);
    let mut app = start(a, &[]);
    app.checkpoint(a);
    let before = sh(a, "cat $1/n");
    sh(a, READ_ONLY);
    goes_on(a, "the root became read-only");
    app.checkpoint(a);
    assert!(captured(a).iter().any(|path| path.ends_with("/still")));
    stop_by_order(a, &mut app);
    // Nothing is to be written.
    app.restore(a, None);
    goes_on(a, "a restore");
    stop_by_order(a, &mut app);
    // Here something is.
    is_refused(&holo(a, &["restore", "work", "--epoch", "1"]), &["data/root/n", "Read-only file system"]);
    sh(a, WRITABLE);
    app.restore(a, Some(1));
    goes_on(a, "a restore");
    app.checkpoint(a);
    assert!(sh(a, "cat $1/n").trim().parse::<u64>().unwrap() >= before.trim().parse().unwrap());
    ends_well(a, &mut app);
}

/// What takes the space is left out of the root; or a restore moves it away.
#[test]
fn a_root_that_is_full() {
    let cluster = cluster(&["a"]);
    let a = &cluster.nodes[0];
    mount(a);
    let filler = a.inside(ROOT).join("filler");
    let mut app = start(a, &["--exclude", filler.to_str().unwrap()]);
    sh(a, "head -c 1m /dev/urandom >$1/large");
    app.checkpoint(a);
    sh(a, "rm $1/large");
    sh(a, FULL);
    goes_on(a, "the root became full");
    app.checkpoint(a);
    stop_by_order(a, &mut app);
    app.restore(a, None);
    goes_on(a, "a restore");
    stop_by_order(a, &mut app);
    is_refused(&holo(a, &["restore", "work", "--epoch", "1"]), &["data/root/", "No space left"]);
    sh(a, NOT_FULL);
    app.restore(a, Some(1));
    goes_on(a, "a restore");
    assert_eq!(sh(a, "stat -c %s $1/large").trim(), "1048576");
    app.checkpoint(a);
    ends_well(a, &mut app);
}

/// What takes the space is moved away in time.
#[test]
fn a_root_that_is_full_of_what_does_not_belong() {
    let cluster = cluster(&["a"]);
    let a = &cluster.nodes[0];
    mount(a);
    let mut app = start(a, &[]);
    sh(a, "head -c 1m /dev/urandom >$1/large");
    app.checkpoint(a);
    stop_by_order(a, &mut app);
    sh(a, "rm $1/large");
    sh(a, FULL);
    let restored = app.restore(a, None);
    assert!(restored["remarks"].to_string().contains("changed here by others"), "{restored}");
    goes_on(a, "a restore");
    assert_eq!(sh(a, "stat -c %s $1/large; ls $1"), "1048576\nlarge\nn\nstill\n");
    app.checkpoint(a);
    ends_well(a, &mut app);
}

/// Moved away, replaced by another one, brought back, removed.
#[test]
fn a_root_that_goes_and_comes() {
    let cluster = cluster(&["a"]);
    let a = &cluster.nodes[0];
    hand_over(&a.outside(ROOT), a.who());
    let mut app = start(a, &[]);
    app.checkpoint(a);
    sh(a, "mv $1 $1.away");
    goes_on(a, "the root was moved away");
    app.checkpoint(a);
    assert_eq!(captured(a), [""; 0]);
    let gone = format!("{}: does not exist", a.inside(ROOT).display());
    assert!(a.log().contains(&gone), "{}", a.log());
    sh(a, "mkdir $1; echo other >$1/other");
    goes_on(a, "another root came");
    app.checkpoint(a);
    let has = |name: &str| captured(a).iter().any(|path| path.ends_with(&format!("/root/{name}")));
    assert!(has("other") && has("n") && !has("still"), "{:?}", captured(a));
    sh(a, "mv $1 $1.other; mv $1.away $1; echo more >$1/more");
    goes_on(a, "the root came back");
    let epoch = app.checkpoint(a).number("epoch");
    assert!(!has("other") && has("n") && has("still") && has("more"), "{:?}", captured(a));
    sh(a, "mv $1 $1.gone; rm -rf $1.gone");
    goes_on(a, "the root was removed");
    app.checkpoint(a);
    stop_by_order(a, &mut app);
    app.restore(a, Some(epoch));
    goes_on(a, "a restore");
    assert_eq!(sh(a, "cat $1/still $1/more"), "first\nmore\n");
    app.checkpoint(a);
    assert!(has("more"));
    ends_well(a, &mut app);
}

/// A switch to a node whose root has trouble is refused with the reason, and done when that is over.
fn switches_after(trouble: &str, over: &str, words: &[&str]) {
    let cluster = cluster(&["a", "b"]);
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    hand_over(&a.outside(ROOT), a.who());
    mount(b);
    let filler = a.inside(ROOT).join("filler");
    let mut app = start(a, &["--standby", "b", "--exclude", filler.to_str().unwrap()]);
    sh(a, "head -c 1m /dev/urandom >$1/large");
    app.checkpoint(a);
    sh(b, trouble);
    is_refused(&holo(a, &["switch", "work", "--to", "b"]), words);
    goes_on(a, "a switch that was refused");
    assert_eq!((app.state(a).as_str(), app.state(b).as_str()), ("running", "standby"));
    app.checkpoint(a);
    sh(b, over);
    command::run_ok(&mut a.holo(&["switch", "work", "--to", "b"]), LIMIT);
    goes_on(b, "the switch");
    assert_eq!(sh(b, "cat $1/still; stat -c %s $1/large"), "first\n1048576\n");
    app.checkpoint(b);
    ends_well(b, &mut app);
}

#[test]
fn a_stand_by_whose_root_is_read_only() {
    switches_after(READ_ONLY, WRITABLE, &["data/root", "Read-only file system"]);
}

#[test]
fn a_stand_by_whose_root_is_full() {
    switches_after(FULL, NOT_FULL, &["data/root", "No space left"]);
}

/// A node that is to take over and cannot says why, and does when the trouble is over.
#[test]
fn a_take_over_waits_for_the_root() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::default());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), node.who()));
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    hand_over(&a.outside(ROOT), a.who());
    mount(b);
    let mut app = start(a, &["--standby", "b"]);
    app.checkpoint(a);
    sh(b, READ_ONLY);
    wait::until(LIMIT, "b is armed", || b.log().contains("armed: will take over").then_some(()));
    cluster.kill(0);
    app.forget();
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "why b cannot", || b.log().contains("Read-only file system").then_some(()));
    assert_ne!(app.state(b), "running");
    sh(b, WRITABLE);
    wait::until(LIMIT, "take-over by b", || (app.state(b) == "running").then_some(()));
    goes_on(b, "the take-over");
    assert_eq!(sh(b, "cat $1/still"), "first\n");
    ends_well(b, &mut app);
}

/// The state directory as a small file system; to be called before there is an agent.
fn mount_state(node: &Node) {
    hand_over(&node.outside(ROOT), node.who());
    sh(node, "mount -t tmpfs -o size=64m,mode=700 none $1/../../state");
}

/// Less room than what comes next.
const STATE_FULL: &str = "head -c 48m /dev/zero >$1/../../state/filler; head -c 24m /dev/urandom >$1/large";
const STATE_NOT_FULL: &str = "rm $1/../../state/filler";

/// Where the agent has no room for an epoch it says so, and the application goes on; with room there is one.
#[test]
fn an_owner_whose_state_is_full() {
    let mut cluster = Cluster::new(&["a"], Who::Me);
    mount_state(&cluster.nodes[0]);
    cluster.start_agents(Timing::patient());
    let a = &cluster.nodes[0];
    [DIR, ROOT].iter().for_each(|dir| hand_over(&a.outside(dir), a.who()));
    let mut app = start(a, &[]);
    app.checkpoint(a);
    sh(a, STATE_FULL);
    for _ in 0..2 {
        let refused = app.try_checkpoint(a).unwrap_err();
        is_refused(&refused, &["No space left", "keep fewer epochs"]);
        goes_on(a, "an epoch for which there was no room");
    }
    sh(a, STATE_NOT_FULL);
    app.checkpoint(a);
    assert_eq!(app.state(a), "running");
    let sum = sh(a, "cksum <$1/large; echo changed >$1/large");
    stop_by_order(a, &mut app);
    app.restore(a, None);
    goes_on(a, "a restore");
    assert_eq!(sh(a, "cksum <$1/large"), sum);
    ends_well(a, &mut app);
}

/// A stand-by without room has no epoch, which nobody is told it has; with room it gets the next one.
#[test]
fn a_stand_by_whose_state_is_full() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    mount_state(&cluster.nodes[1]);
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| {
        [DIR, ROOT].iter().for_each(|dir| hand_over(&node.outside(dir), node.who()));
    });
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    let mut app = start(a, &["--standby", "b"]);
    let first = app.checkpoint(a).number("epoch");
    let on_b = || app.row(b).and_then(|row| row["epoch"].as_u64()).unwrap_or(0);
    wait::until(LIMIT, "the first epoch on b", || (on_b() >= first).then_some(()));
    let first = on_b();
    sh(b, STATE_FULL);
    sh(a, "head -c 24m /dev/urandom >$1/large");
    let epoch = app.checkpoint(a);
    goes_on(a, "an epoch for which b has no room");
    assert_eq!(epoch.0["where"].to_string(), "[\"local\"]", "{}", epoch.0);
    assert_eq!(on_b(), first);
    wait::until(LIMIT, "why", || {
        let log = a.log();
        let mut refusals = log.lines().filter(|line| line.contains("node b does not take epoch"));
        refusals.any(|line| line.contains("no space left")).then_some(())
    });
    let sum = sh(a, "cksum <$1/large");
    sh(b, STATE_NOT_FULL);
    let epoch = app.checkpoint(a).number("epoch");
    wait::until(LIMIT, "the epoch on b", || (on_b() >= epoch).then_some(()));
    command::run_ok(&mut a.holo(&["switch", "work", "--to", "b"]), LIMIT);
    goes_on(b, "the switch");
    assert_eq!(sh(b, "cksum <$1/large"), sum);
    ends_well(b, &mut app);
}

/// As an ordinary user: a root that may only be read is in epochs, and restored where nothing is to be written; one that may not even be
/// read is no obstacle for the application.
#[test]
fn a_root_of_somebody_else() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make files of others");
        return;
    }
    let node = Node::start(Who::Nobody);
    let root = node.outside(ROOT);
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("still"), "first\n").unwrap();
    hand_over(&node.outside(DIR), node.who());
    let mut app = start(&node, &[]);
    app.checkpoint(&node);
    app.kill(&node);
    app.restore(&node, None);
    goes_on(&node, "a restore");
    app.checkpoint(&node);
    app.kill(&node);
    fs::write(root.join("still"), "other\n").unwrap();
    is_refused(&holo(&node, &["restore", "work"]), &["data/root/still", "Permission denied"]);
    assert_eq!(fs::read_to_string(root.join("still")).unwrap(), "other\n");
    hand_over(&root, node.who());
    app.restore(&node, None);
    goes_on(&node, "a restore");
    assert_eq!(fs::read_to_string(root.join("still")).unwrap(), "first\n");
    // The owner takes the right to write away from itself.
    let mode = |mode| fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
    app.checkpoint(&node);
    mode(0o555);
    app.checkpoint(&node);
    fs::write(root.join("more"), "more\n").unwrap();
    app.kill(&node);
    app.restore(&node, None);
    goes_on(&node, "a restore");
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o555);
    assert!(!root.join("more").exists());
    // Not even read.
    std::os::unix::fs::chown(&root, Some(0), Some(0)).unwrap();
    mode(0o700);
    is_refused(&app.try_checkpoint(&node).unwrap_err(), &["data/root: Permission denied"]);
    goes_on(&node, "its root cannot be read");
    mode(0o755);
    app.checkpoint(&node);
    ends_well(&node, &mut app);
}
