//! Goal: without any `--root`, files that an application has written to and closed are in its epochs, as are directories and links that it
//! has made: a restore on this node or another one gives them the contents of the cut, and what it made after the cut is gone. Files that
//! it only tried to write to, and files of others, are left as they are.
//! Method: a program that opens, writes to and closes all of its files in every round, by every way to name them, moves and removes some
//! and makes new ones that must not be there. It has in memory what there should be, and compares in every round.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{captured, ends_well, goes_on, rounds};
use holo_tests::{command, wait};
use std::fs;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const SCRIPT: &str = "
import os, random, sys, time
os.chdir(sys.argv[1])
top = os.getcwd()
files, dirs, links, moves, n = {}, set(), {}, 0, 0
some = random.Random(1)

def wrong(why):
    with open(top + '/result', 'w') as file:
        file.write('round %d: %s\\n' % (n, why))
    os._exit(1)

def write(name, what, how='wb'):
    with open(name, how) as file:
        file.write(what)

def check():
    found, found_dirs = {}, set()
    for dir, below, names in os.walk('own'):
        found_dirs.add(dir)
        for name in names + below:
            path = os.path.join(dir, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
            elif name in names:
                with open(path, 'rb') as file:
                    found[path] = file.read()
    expected = dict(files)
    expected.update(links)
    if found_dirs != dirs:
        wrong('directories %s, expected %s' % (sorted(found_dirs), sorted(dirs)))
    if found.keys() != expected.keys():
        wrong('there are %s, not %s' % (sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())))
    for name in found:
        if found[name] != expected[name]:
            wrong('%s is %r, not %r' % (name, found[name][:40], expected[name][:40]))

os.mkdir('own')
os.mkdir('own/tree', 0o750)
dirs.update(['own', 'own/tree'])
handle = os.open('own', os.O_RDONLY)
for name in ['own/log', 'own/by-fd', 'own/in-place', 'own/child', 'own/with spaces and \\xfc', 'own/tree/leaf', 'own/' + 'x' * 250]:
    files[name] = b''
    write(name, b'')
files['own/in-place'] = bytes(300000)
write('own/in-place', files['own/in-place'])
tree = 'own/tree'
try:
    open('readonly', 'r+b')
except OSError:
    pass
while not os.path.exists('stop'):
    n += 1
    line = b'line %d\\n' % n
    # Appended to, by names of all sorts.
    for name in ['own/log', 'own/with spaces and \\xfc', 'own/' + 'x' * 250]:
        files[name] += line
        write(some.choice([name, os.path.abspath(name), './own/../' + name]), line, 'ab')
    files['own/by-fd'] += line
    with open(os.open('by-fd', os.O_WRONLY | os.O_APPEND, dir_fd=handle), 'ab') as file:
        file.write(line)
    # In the midst.
    at = n * 7919 % 299000
    files['own/in-place'] = files['own/in-place'][:at] + line + files['own/in-place'][at + len(line):]
    with open('own/in-place', 'r+b') as file:
        file.seek(at)
        file.write(line)
    # Put in place of another one.
    write('own/new', line)
    os.rename('own/new', 'own/conf')
    files['own/conf'] = line
    # New ones that are there for a while.
    job = 'own/job.%d' % n
    write(job, line)
    files[job] = line
    if n > 8 and 'own/job.%d' % (n - 8) in files:
        os.unlink('own/job.%d' % (n - 8))
        del files['own/job.%d' % (n - 8)]
    if n % 10 == 0:
        for kind in ['link', 'hard', 'dirlink']:
            name = 'own/%s' % kind
            if os.path.lexists(name):
                os.unlink(name)
        os.symlink('job.%d' % n, 'own/link')
        os.symlink(os.path.basename(tree), 'own/dirlink')
        os.link(job, 'own/hard')
        links['own/link'], links['own/dirlink'] = 'job.%d' % n, os.path.basename(tree)
        files['own/hard'] = line
    if n % 7 == 0:
        # A directory gets another name, and one is made that must not be there yet.
        name = 'own/tree.%d' % n
        os.rename(tree, name)
        os.mkdir(name + '/made.%d' % n)
        files[name + '/leaf'] = files.pop(tree + '/leaf') + line
        for dir in [dir for dir in dirs if dir == tree or dir.startswith(tree + '/')]:
            dirs.remove(dir)
            dirs.add(name + dir[len(tree):])
        dirs.add(name + '/made.%d' % n)
        tree = name
        write(tree + '/leaf', line, 'ab')
        if 'own/dirlink' in links:
            os.unlink('own/dirlink')
            del links['own/dirlink']
    if n % 5 == 0:
        files['own/child'] += line
        child = os.fork()
        if child == 0:
            write('own/child', line, 'ab')
            os._exit(0)
        os.waitpid(child, 0)
    check()
    fd = os.open(top + '/progress', os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b'%-20d' % n)
    os.close(fd)
    time.sleep(0.005)
write(top + '/result', b'ok\\n')
";

fn start(node: &Node, options: &[&str]) -> App {
    let dir = node.outside(DIR);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("readonly"), "of others").unwrap();
    fs::set_permissions(dir.join("readonly"), std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    hand_over(&dir, node.who());
    let dir = node.inside(DIR);
    let program = Program::new("/usr/bin/python3", &["-c", SCRIPT, dir.to_str().unwrap()]);
    let mut app = App::start_with_roots(node, "work", &program, DIR, &[], options);
    app.wait_joined(node);
    rounds(node, 30);
    app
}

fn is_restored_here(who: Who) {
    let mut node = Node::without_agent(who);
    // An epoch that has other files than there were at its cut fails.
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    node.start_agent();
    let mut app = start(&node, &[]);
    let outside = |name: &str| node.outside(DIR).join(name);
    fs::write(outside("other"), "not its own").unwrap();
    for _ in 0..4 {
        app.checkpoint(&node);
        let has = captured(&node);
        for name in ["own/log", "own/by-fd", "own/conf", "own/in-place", "own/link", "own/hard", "progress"] {
            assert!(has.iter().any(|one| one == name), "{name} of {has:?}");
        }
        // Of others, or only looked at.
        assert!(!has.iter().any(|one| one == "other" || one == "readonly"), "{has:?}");
        rounds(&node, 25);
        app.kill(&node);
        // The program compares: with what was written, made and moved after the cut they would differ.
        app.restore(&node, None);
        goes_on(&node, "the restore");
        rounds(&node, 25);
    }
    assert_eq!(fs::read_to_string(outside("other")).unwrap(), "not its own");
    assert_eq!(fs::read_to_string(outside("readonly")).unwrap(), "of others");
    ends_well(&node, &mut app);
}

#[test]
fn closed_files_are_restored() {
    is_restored_here(Who::Me);
}

#[test]
fn closed_files_are_restored_as_a_user() {
    is_restored_here(Who::Nobody);
}

/// Goal: what the agent knows of the files outlives it. Method: it is killed and started again between epoch and restore.
#[test]
fn closed_files_are_restored_by_an_agent_that_was_started_again() {
    let mut node = Node::start(Who::Me);
    let mut app = start(&node, &[]);
    for _ in 0..2 {
        app.checkpoint(&node);
        node.kill_agent();
        node.start_agent();
        app.settle(&node);
        rounds(&node, 25);
        app.checkpoint(&node);
        rounds(&node, 25);
        app.kill(&node);
        app.restore(&node, None);
        goes_on(&node, "the restore");
        rounds(&node, 25);
    }
    ends_well(&node, &mut app);
}

fn is_taken_over(mut cluster: Cluster) {
    cluster.start_agents(Timing::default());
    let a = &cluster.nodes[0];
    let mut app = start(a, &["--standby", "b"]);
    app.checkpoint(a);
    rounds(a, 25);
    app.checkpoint(a);
    rounds(a, 25);
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "b is armed", || b.log().contains("armed: will take over").then_some(()));
    cluster.kill(0);
    app.forget();
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "take-over by b", || (app.state(b) == "running").then_some(()));
    app.settle(b);
    rounds(b, 25);
    let mode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        b.outside(DIR).join(name).metadata().unwrap().mode() & 0o7777
    };
    let trees = fs::read_dir(b.outside(DIR).join("own")).unwrap();
    let names = trees.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let tree = names.filter(|name| name.starts_with("tree")).max().unwrap();
    assert_eq!(mode(&format!("own/{tree}")), 0o750);
    ends_well(b, &mut app);
}

/// Goal: what the application removed on another node is not there when it comes back. Method: it is switched there and back, twice.
#[test]
fn closed_files_are_switched_there_and_back() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::default());
    let mut app = start(&cluster.nodes[0], &["--standby", "b"]);
    for round in 0..4 {
        let (from, to) = (round % 2, 1 - round % 2);
        let node = &cluster.nodes[from];
        rounds(node, 25);
        let finished = command::run(&mut node.holo(&["switch", "work"]), LIMIT);
        assert!(finished.status.success(), "{}", finished.stderr);
        let node = &cluster.nodes[to];
        app.settle(node);
        goes_on(node, "the switch");
        rounds(node, 25);
    }
    ends_well(&cluster.nodes[0], &mut app);
}

#[test]
fn closed_files_are_on_a_node_that_takes_over() {
    is_taken_over(Cluster::new(&["a", "b"], Who::Me));
}

#[test]
fn closed_files_are_on_a_node_that_takes_over_as_a_user() {
    is_taken_over(Cluster::ordinary(&["a", "b"]));
}
