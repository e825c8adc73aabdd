//! Goal: what is left out of a root (`--exclude`) is neither in epochs nor touched by a restore, on this node and on another one; all
//! else is as it was at the epoch.
//! Method: a script that writes to a file and to one below a directory that is left out; after an epoch somebody puts a file into each.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{ends_well, goes_on, progress};
use holo_tests::{command, wait};
use std::fs;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const SCRIPT: &str = "cd $1; mkdir -p cache/deep
    while [ ! -e stop ]; do
        i=$((i + 1)); mkdir -p cache/deep; echo $i >cache/deep/n; echo $i >n; printf '%-20s' $i 1<>progress; sleep 0.01
    done
    echo ok >result";

fn start(node: &Node, options: &[&str]) -> App {
    hand_over(&node.outside(DIR), node.who());
    let dir = node.inside(DIR);
    let program = Program::new("/bin/sh", &["-c", SCRIPT, "sh", dir.to_str().unwrap()]);
    let mut app = App::start(node, "work", &program, DIR, options);
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

/// Which of the files that somebody put there after the epoch are there after a restore: below the root, below the directory.
fn left_after_a_restore(node: &Node, excludes: &[&str]) -> [bool; 2] {
    let paths: Vec<String> =
        excludes.iter().map(|path| node.inside(DIR).join(path).to_str().unwrap().to_owned()).collect();
    let options: Vec<&str> = paths.iter().flat_map(|path| ["--exclude", path]).collect();
    let mut app = start(node, &options);
    app.checkpoint(node);
    let at = progress(node);
    wait::until(LIMIT, "more rounds", || (progress(node) > at + 20).then_some(()));
    app.kill(node);
    let places = ["later", "cache/deep/later"].map(|name| node.outside(DIR).join(name));
    places.iter().for_each(|place| fs::write(place, b"later").unwrap());
    app.restore(node, None);
    let found = places.each_ref().map(|place| place.exists());
    goes_on(node, "the restore");
    // Another epoch, in which what was left out still is.
    app.checkpoint(node);
    let shown = command::run_ok(&mut node.holo(&["cfor", "show", "work", "--json"]), LIMIT);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let has = |end: &str| {
        shown["entries"]
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["path"].as_str().unwrap().ends_with(end))
    };
    assert!(has("work/n"), "{shown}");
    assert_eq!(has("cache/deep/n"), excludes.is_empty(), "{shown}");
    command::run_ok(&mut node.holo(&["cfor", "log", "work", "--json"]), LIMIT);
    ends_well(node, &mut app);
    found
}

#[test]
fn what_is_left_out_is_left_alone() {
    let node = Node::start(Who::Me);
    assert_eq!(left_after_a_restore(&node, &["cache", "not/there"]), [false, true]);
}

#[test]
fn what_is_left_out_is_left_alone_as_a_user() {
    let node = Node::start(Who::Nobody);
    assert_eq!(left_after_a_restore(&node, &["cache"]), [false, true]);
}

/// That the tests above show something.
#[test]
fn what_is_not_left_out_is_as_it_was() {
    let node = Node::start(Who::Me);
    assert_eq!(left_after_a_restore(&node, &[]), [false, false]);
}

#[test]
fn another_node_has_nothing_of_it() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    let cache = a.inside(DIR).join("cache");
    let mut app = start(a, &["--standby", "b", "--exclude", cache.to_str().unwrap()]);
    app.checkpoint(a);
    fs::create_dir_all(b.outside(DIR).join("cache/deep")).unwrap();
    fs::write(b.outside(DIR).join("cache/deep/bs"), b"b").unwrap();
    wait::until(LIMIT, "a switch", || {
        let said = command::run(&mut a.holo(&["switch", "work", "--to", "b"]), LIMIT);
        // It may have had a file of it open.
        assert!(said.status.success() || said.stderr.contains("cache/deep/n"), "{}", said.stderr);
        said.status.success().then_some(())
    });
    goes_on(b, "the switch");
    // What b had below it stays as well.
    assert_eq!(fs::read(b.outside(DIR).join("cache/deep/bs")).unwrap(), b"b");
    ends_well(b, &mut app);
}

/// A whiteout is a device, which no epoch has: the call fails as on a file system that knows none, and nothing is renamed.
#[test]
fn no_whiteout_is_left_behind() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let script = "import ctypes, os, sys
os.chdir(sys.argv[1])
open('a', 'w').close()
libc = ctypes.CDLL(None, use_errno=True)
print(libc.renameat2(-100, b'a', -100, b'b', 4), ctypes.get_errno(), sorted(set(os.listdir()) - {'stdout', 'stderr'}))";
    let dir = node.inside(DIR);
    let program = Program::new("/usr/bin/python3", &["-c", script, dir.to_str().unwrap()]);
    let _app = App::start(&node, "work", &program, DIR, &[]);
    let said = wait::until(LIMIT, "what the program says", || {
        fs::read_to_string(node.outside(DIR).join("stdout")).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(said, "-1 22 ['a']\n");
}
