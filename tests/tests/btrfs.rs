//! Goal: files on btrfs are in every epoch as they are at the cut. There `stat` shows another device than `/proc/<pid>/maps`, each
//! subvolume has one and inodes of the same numbers, and files share blocks.
//! Method: programs that change files in every way, in two subvolumes at once; the agent compares each epoch with a second look. The file
//! system is an image that is mounted for the test alone, which takes root: without it, or without `mkfs.btrfs`, nothing is tested.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{goes_on, result};
use holo_tests::{command, compile};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(60);
const IMAGE_BYTES: u64 = 512 << 20;

/// Mounts a new file system at a directory, for this thread and the processes that it starts from now on: with the last of them it is
/// gone. None: it cannot be done here.
fn mounted(image: &Path, at: &Path) -> Option<()> {
    fs::File::create(image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let run = |program: &str, args: &[&Path]| {
        Command::new(program).args(args).output().is_ok_and(|done| done.status.success())
    };
    if !nix::unistd::geteuid().is_root() || !run("mkfs.btrfs", &[Path::new("-q"), image]) {
        return None;
    }
    unshare(CloneFlags::CLONE_NEWNS).ok()?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).ok()?;
    run("mount", &[Path::new("-o"), Path::new("loop"), image, at]).then_some(())
}

fn every_epoch_is_its_cut(source: &str, who: Who) {
    let mut node = Node::without_agent(who);
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    let top = node.outside(DIR);
    fs::create_dir_all(&top).unwrap();
    if mounted(&node.outside("image"), &top).is_none() {
        eprintln!("left out: it takes root, mkfs.btrfs and a loop device");
        return;
    }
    // Beside the top's files; their inodes have the same numbers.
    let beside = top.join("beside");
    command::run_ok(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&beside), LIMIT);
    hand_over(&top, who);
    hand_over(&beside, who);
    node.start_agent();
    let binary = compile::workload(source);
    let script = "\"$1\" \"$2/beside\" 2 & \"$1\" \"$2\" 1; touch \"$2/beside/stop\"; wait";
    let args = ["-c".into(), script.into(), "sh".into(), binary, node.inside(DIR)];
    let options = ["--root", beside.to_str().unwrap()];
    let mut app = App::start(&node, "work", &Program::new("/bin/sh", &args), DIR, &options);
    app.wait_joined(&node);
    goes_on(&node, "its start");
    for round in 0..2 {
        for _ in 0..12 {
            app.checkpoint(&node);
        }
        assert!(!node.log().contains("files check:"), "{}", node.log());
        assert_eq!((round, result(&node)), (round, String::new()));
        app.kill(&node);
        app.restore(&node, None);
        goes_on(&node, "a restore");
    }
    fs::write(top.join("stop"), b"").unwrap();
    app.wait_ended(&node, LIMIT);
    assert_eq!(result(&node), "ok\n");
    assert_eq!(fs::read_to_string(beside.join("result")).unwrap(), "ok\n");
}

#[test]
fn maps() {
    every_epoch_is_its_cut("mapped_file.c", Who::Me);
}

#[test]
fn maps_as_a_user() {
    every_epoch_is_its_cut("mapped_file.c", Who::Nobody);
}

#[test]
fn calls() {
    every_epoch_is_its_cut("file_calls.c", Who::Me);
}

#[test]
fn changes() {
    every_epoch_is_its_cut("file_changes.c", Who::Me);
}
