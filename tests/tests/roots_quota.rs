//! Goal: a stand-by whose quota is used up refuses a switch with the reason, harms nobody, and is switched to when there is room again.
//! Method: a root there is a file system of its own, btrfs in a file, which limits root, too; the limit is set and lifted. That takes root,
//! `mkfs.btrfs` and a loop device: without them nothing is tested.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::command::{self, Finished};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{goes_on, result};
use std::fs;
use std::time::Duration;

const DIR: &str = "data/work";
const ROOT: &str = "data/root";
const LIMIT: Duration = Duration::from_secs(30);
const IMAGE_BYTES: u64 = 128 << 20;
const SCRIPT: &str = "cd $1; echo first >$2/still; head -c 4m /dev/urandom >$2/large
    while [ ! -e stop ]; do i=$((i + 1)); echo $i >$2/n; printf '%-20s' $i 1<>progress; sleep 0.01; done
    echo ok >result";

/// In a node, whose mounts are its own and end with it.
fn sh(node: &Node, script: &str) -> Finished {
    let mut shell = node.command("sh");
    shell.args(["-ec", script, "sh"]).arg(node.inside(ROOT)).arg(node.inside("image"));
    command::run(&mut shell, LIMIT)
}

#[test]
fn a_stand_by_whose_quota_is_used_up() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: it takes root");
        return;
    }
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    let b = &cluster.nodes[1];
    hand_over(&b.outside(ROOT), b.who());
    fs::File::create(b.outside("image")).unwrap().set_len(IMAGE_BYTES).unwrap();
    let made = sh(b, "mkfs.btrfs -q $2; mount -o loop $2 $1; btrfs quota enable $1");
    if !made.status.success() {
        eprintln!("left out: it takes mkfs.btrfs with quotas and a loop device: {}", made.stderr);
        return;
    }
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), node.who()));
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    hand_over(&a.outside(ROOT), a.who());
    let (dir, root) = (a.inside(DIR), a.inside(ROOT));
    let args = ["-c", SCRIPT, "sh", dir.to_str().unwrap(), root.to_str().unwrap()];
    let program = Program::new("/bin/sh", &args);
    let mut app = App::start_with_roots(a, "work", &program, DIR, &[&dir, &root], &["--standby", "b"]);
    app.wait_joined(a);
    goes_on(a, "its start");
    app.checkpoint(a);
    assert!(sh(b, "btrfs qgroup limit 1M 0/5 $1; sync").status.success());
    let switch = || command::run(&mut a.holo(&["switch", "work", "--to", "b"]), LIMIT);
    let refused = switch();
    let said = &refused.stderr;
    assert!(!refused.status.success(), "{}", refused.stdout);
    assert!(said.contains("data/root/large") && said.contains("quota exceeded"), "{said}");
    goes_on(a, "a switch that was refused");
    assert_eq!((app.state(a).as_str(), app.state(b).as_str()), ("running", "standby"));
    app.checkpoint(a);
    assert!(sh(b, "btrfs qgroup limit none 0/5 $1; sync").status.success());
    let done = switch();
    assert!(done.status.success(), "{}", done.stderr);
    goes_on(b, "the switch");
    let sums = [a, b].map(|node| sh(node, "cksum <$1/large").stdout);
    assert!(sums[0] == sums[1] && !sums[0].is_empty(), "{sums:?}");
    app.checkpoint(b);
    fs::write(b.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(b, LIMIT);
    assert_eq!(result(b), "ok\n");
}
