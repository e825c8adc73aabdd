//! Goal: without any `--root`, the files that an application has open for writing, or mapped, when an epoch is cut are in it, and those
//! that it has written to before: a restore on this node or another one gives them the contents of the cut. Files of others are left as
//! they are.
//! Method: a program that appends to one file, writes another one in place, stores to a third through a map, and puts a new file in place
//! of a fourth, which it keeps open. It has copies of them all in memory, and compares in every round.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::wait;
use holo_tests::workload::{captured, ends_well, goes_on, rounds};
use std::fs;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
/// Of `SCRIPT`, besides `progress`, `stdout` and `stderr`.
const FILES: [&str; 4] = ["log", "base", "map", "conf"];
const SCRIPT: &str = "
import mmap, os, sys, time
os.chdir(sys.argv[1])
PAGES = 64
log = open('log', 'ab', buffering=0)
base = os.open('base', os.O_RDWR | os.O_CREAT, 0o600)
file = os.open('map', os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(base, PAGES * 4096)
os.ftruncate(file, PAGES * 4096)
memory = mmap.mmap(file, PAGES * 4096)
os.close(file)
lines, based, mapped, conf, n = b'', bytearray(PAGES * 4096), bytearray(PAGES * 4096), None, 0

def read(name):
    with open(name, 'rb') as file:
        return file.read()

def check(name, what):
    if read(name) != what:
        open('result', 'w').write(f'round {n}: {name} is not as it was: {len(read(name))} bytes, {len(what)} expected\\n')
        sys.exit(1)

with open('closed', 'w') as file:
    file.write('its own')
while not os.path.exists('stop'):
    n += 1
    line = b'line %d\\n' % n
    lines += line
    log.write(line)
    at = n * 7919 % (PAGES * 4096 - 100)
    based[at:at + len(line)] = line
    os.pwrite(base, line, at)
    mapped[at:at + len(line)] = line
    memory[at:at + len(line)] = line
    if n % 5 == 0:
        new = os.open('new', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(new, line)
        os.rename('new', 'conf')
        if conf is not None:
            os.close(conf)
        conf = new
        said = line
    check('log', lines)
    check('base', based)
    check('map', mapped)
    if conf is not None:
        check('conf', said)
    fd = os.open('progress', os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b'%-20d' % n)
    os.close(fd)
    time.sleep(0.005)
open('result', 'w').write('ok\\n')
";

fn start(node: &Node, options: &[&str]) -> App {
    hand_over(&node.outside(DIR), node.who());
    let dir = node.inside(DIR);
    let program = Program::new("/usr/bin/python3", &["-c", SCRIPT, dir.to_str().unwrap()]);
    let mut app = App::start_with_roots(node, "work", &program, DIR, &[], options);
    app.wait_joined(node);
    rounds(node, 20);
    app
}

fn is_restored_here(who: Who) {
    let node = Node::start(who);
    let mut app = start(&node, &[]);
    let outside = |name: &str| node.outside(DIR).join(name);
    fs::write(outside("other"), "not its own").unwrap();
    for _ in 0..3 {
        app.checkpoint(&node);
        let has = captured(&node);
        assert!(FILES.iter().all(|name| has.iter().any(|one| one == name)), "{has:?}");
        assert!(has.iter().any(|one| one == "closed") && !has.iter().any(|one| one == "other"), "{has:?}");
        fs::write(outside("closed"), "written later").unwrap();
        rounds(&node, 20);
        app.kill(&node);
        // The program compares: with what was written after the cut they would differ.
        app.restore(&node, None);
        goes_on(&node, "the restore");
        rounds(&node, 20);
    }
    assert_eq!(fs::read_to_string(outside("other")).unwrap(), "not its own");
    assert_eq!(fs::read_to_string(outside("closed")).unwrap(), "its own");
    ends_well(&node, &mut app);
}

#[test]
fn open_files_are_restored() {
    is_restored_here(Who::Me);
}

#[test]
fn open_files_are_restored_as_a_user() {
    is_restored_here(Who::Nobody);
}

fn is_taken_over(mut cluster: Cluster) {
    cluster.start_agents(Timing::default());
    let a = &cluster.nodes[0];
    let mut app = start(a, &["--standby", "b"]);
    app.checkpoint(a);
    rounds(a, 20);
    app.checkpoint(a);
    rounds(a, 20);
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "b is armed", || b.log().contains("armed: will take over").then_some(()));
    cluster.kill(0);
    app.forget();
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "take-over by b", || (app.state(b) == "running").then_some(()));
    app.settle(b);
    rounds(b, 20);
    assert!(b.outside(DIR).join("base").exists());
    assert_eq!(fs::read_to_string(b.outside(DIR).join("closed")).unwrap(), "its own");
    ends_well(b, &mut app);
}

#[test]
fn open_files_are_on_a_node_that_takes_over() {
    is_taken_over(Cluster::new(&["a", "b"], Who::Me));
}

#[test]
fn open_files_are_on_a_node_that_takes_over_as_a_user() {
    is_taken_over(Cluster::ordinary(&["a", "b"]));
}
