//! Goal: flags of files and directories (`chattr`) are those of the epoch after a restore, whatever they had become; what is immutable
//! or append-only keeps no application from being restored, nor its files from being put right and removed.
//! Method: a program compares flags with its memory, all the time; every epoch is compared with the files at its cut. While it is dead
//! somebody takes all flags away, sets others, or removes all files.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::flags::{self, APPEND, IMMUTABLE, NO_ATIME, NO_DUMP};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{ends_well, goes_on, reachable};
use holo_tests::{command, compile, wait};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);

holo_tests::workloads! {
    turned: Workload::new("file_flags.c").agent_env("HOLO_FILES_CHECK", "1").checkpoints(20);
}

fn start(who: Who) -> (Node, App) {
    let mut node = Node::without_agent(who);
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    node.start_agent();
    hand_over(&node.outside(DIR), who);
    let program = Program::new(reachable(compile::workload("file_flags.c"), who), &[node.inside(DIR)]);
    let mut app = App::start(&node, "work", &program, DIR, &[]);
    app.wait_joined(&node);
    goes_on(&node, "its start");
    (node, app)
}

/// Whether a program of the node, or we, can set this here.
fn can_set(node: &Node, wanted: u32) -> bool {
    let probe = node.outside(DIR).join("probe");
    fs::write(&probe, b"").unwrap();
    let done = flags::set(&probe, wanted).and_then(|()| flags::set(&probe, 0));
    fs::remove_file(&probe).unwrap();
    done.inspect_err(|cause| eprintln!("SKIPPED: flags {wanted:x} cannot be set here: {cause}")).is_ok()
}

/// An epoch, and what comes after it is lost.
fn epoch_and_end(node: &Node, app: &mut App) {
    app.checkpoint(node);
    goes_on(node, "an epoch");
    app.checkpoint(node);
    goes_on(node, "an epoch");
    app.kill(node);
}

fn are_there_again(who: Who) {
    let (node, mut app) = start(who);
    if !can_set(&node, NO_DUMP | NO_ATIME) {
        return;
    }
    let dir = node.outside(DIR);
    let meddles: [&dyn Fn(); 4] = [
        &|| flags::set_all(&dir, 0).unwrap(),
        &|| flags::set_all(&dir, NO_DUMP | NO_ATIME).unwrap(),
        &|| {
            holo_cfor::remove_all(&dir).unwrap();
            hand_over(&dir, who);
        },
        // All of it is right already.
        &|| {},
    ];
    for meddle in meddles {
        epoch_and_end(&node, &mut app);
        meddle();
        let said = app.restore(&node, None)["remarks"].to_string();
        assert!(!said.contains("flags"), "{said}");
        goes_on(&node, "the restore");
    }
    ends_well(&node, &mut app);
}

#[test]
fn are_there_again_after_a_restore() {
    are_there_again(Who::Me);
}

#[test]
fn are_there_again_after_a_restore_as_a_user() {
    are_there_again(Who::Nobody);
}

fn of(dir: &Path) -> [u32; 4] {
    ["log", "settings", "shut", "grows"].map(|name| flags::get(&dir.join(name)).unwrap())
}

/// What is immutable in the way of a restore is put aside, and removed with the application.
#[test]
fn what_others_made_immutable_is_put_right_and_removed() {
    let (node, mut app) = start(Who::Me);
    if !can_set(&node, IMMUTABLE) {
        return;
    }
    let dir = node.outside(DIR);
    // The settings are released for a moment now and then.
    let is_held = || (of(&dir) == [APPEND | NO_DUMP, IMMUTABLE, IMMUTABLE, APPEND]).then_some(());
    wait::until(LIMIT, "what is held", is_held);
    epoch_and_end(&node, &mut app);
    flags::set_all(&dir, 0).unwrap();
    fs::create_dir_all(dir.join("others/deep")).unwrap();
    fs::write(dir.join("others/deep/file"), b"theirs").unwrap();
    fs::write(dir.join("file0"), b"theirs").unwrap();
    flags::set_all(&dir, IMMUTABLE).unwrap();
    app.restore(&node, None);
    goes_on(&node, "the restore");
    wait::until(LIMIT, "what is held after the restore", is_held);
    assert!(!dir.join("others").exists());
    let kept = node.outside("state/replaced/work").join(node.inside(DIR).strip_prefix("/").unwrap());
    assert_eq!(fs::read(kept.join("others/deep/file")).unwrap(), b"theirs");
    let shown = command::run_ok(&mut node.holo(&["cfor", "show", "work", "--json"]), LIMIT);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let entries = shown["entries"].as_array().unwrap();
    let log = entries.iter().find(|one| one["path"].as_str().unwrap().ends_with("/log")).unwrap();
    assert_eq!(log["flags"], serde_json::json!(["append-only", "no-dump"]), "{log}");
    ends_well(&node, &mut app);
    command::run_ok(&mut node.holo(&["rm", "work"]), LIMIT);
    wait::until(LIMIT, "what was put aside is removed", || (!kept.exists()).then_some(()));
}
