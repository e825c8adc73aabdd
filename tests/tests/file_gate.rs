//! Goal: what an epoch has of files is what was there at the cut, although it is read afterwards and the application writes on,
//! in every way that destroys what was there; and nobody waits for an agent that is dead.
//! Method: processes that write all the time. The agent reads all files once more in the stop of every epoch, begins to read what
//! is awaited only milliseconds after it, so that writers do come by, and refuses an epoch that differs (`HOLO_FILES_CHECK`).
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{goes_on, result};
use holo_tests::{command, compile, process, wait};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(60);
const WORK: Duration = Duration::from_secs(5);
/// What a call takes at most, whatever happens: patience, and a disk and processors that others use, too.
const CALL_MAX: Duration = Duration::from_secs(20);

holo_tests::workloads! {
    always: Workload::new("file_gate.c").agent_env("HOLO_FILES_CHECK", "1").checkpoints(10);
}

fn checking(who: Who) -> Node {
    let mut node = Node::without_agent(who);
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    let orders = node.inside("faults");
    node.set_agent_env("HOLO_FAULTS", orders);
    node.start_agent();
    node
}

fn start(node: &Node, options: &[&str]) -> App {
    hand_over(&node.outside(DIR), node.who());
    let program = Program::new(compile::workload("file_gate.c"), &[node.inside(DIR)]);
    let mut app = App::start(node, "work", &program, DIR, &[&["--keep", "1000"], options].concat());
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

/// Ends the application; how long its longest call took.
fn stop(node: &Node, app: &mut App) -> Duration {
    fs::write(node.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(node, LIMIT);
    assert_eq!(result(node), "ok\n");
    let waits = fs::read_to_string(node.outside(DIR).join("waits0")).unwrap();
    Duration::from_micros(waits.trim().parse().unwrap())
}

fn epochs(node: &Node) -> Vec<Value> {
    let text = command::run_ok(&mut node.holo(&["epochs", "work", "--json"]), LIMIT);
    serde_json::from_str(&text).unwrap()
}

/// How many writers waited, in all epochs.
fn waited(node: &Node) -> u64 {
    let log = node.log();
    let counts = log.lines().filter_map(|line| line.strip_prefix("holod: files gate: "));
    counts.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn every_epoch_is_its_cut(who: Who) {
    let node = checking(who);
    let mut app = start(&node, &["--every", "50ms"]);
    std::thread::sleep(WORK);
    wait::until(LIMIT, "epochs in which writers waited", || {
        assert_eq!(result(&node), "");
        (epochs(&node).len() >= 10 && waited(&node) >= 20).then_some(())
    });
    let all = epochs(&node);
    let changed: u64 = all.iter().map(|epoch| epoch["files_changed"].as_u64().unwrap()).sum();
    let longest = stop(&node, &mut app);
    let log = node.log();
    let again = log.lines().filter(|line| line.contains("taken again")).count();
    eprintln!(
        "{} epochs, {changed} changed files, {} writers waited, the longest call took {longest:?}, {again} taken again",
        all.len(),
        waited(&node)
    );
    assert!(!log.contains("files check:"), "{log}");
    assert!(changed > all.len() as u64, "{changed} changes");
    assert!(again * 5 < all.len(), "{again} of {} epochs were taken again: {log}", all.len());
    assert!(longest < CALL_MAX, "{longest:?}");
}

#[test]
fn files_that_are_written_to_all_the_time() {
    every_epoch_is_its_cut(Who::Me);
}

#[test]
fn as_a_user() {
    every_epoch_is_its_cut(Who::Nobody);
}

/// The agent dies while files are awaited: whoever waits goes on, and what the next agent takes is right.
#[test]
fn an_agent_that_dies_while_files_are_awaited() {
    let mut node = checking(Who::Me);
    let mut app = start(&node, &[]);
    app.checkpoint(&node);
    for _ in 0..3 {
        // The first that is asked after the stop, a moment before reading begins.
        fs::write(node.outside("faults"), "threads post_dump before kill").unwrap();
        let agent = node.agent_pid().unwrap();
        wait::until(LIMIT, "the agent dies", || {
            assert!(app.try_checkpoint(&node).is_err());
            std::thread::sleep(Duration::from_millis(50));
            (!process::alive(agent)).then_some(())
        });
        goes_on(&node, "the death of the agent");
        node.kill_agent();
        fs::write(node.outside("faults"), b"").unwrap();
        node.start_agent();
        goes_on(&node, "the start of another one");
        for _ in 0..3 {
            app.checkpoint(&node);
        }
        assert!(!node.log().contains("files check:"), "{}", node.log());
    }
    let longest = stop(&node, &mut app);
    eprintln!("the longest call took {longest:?}");
    // It is what it is about: somebody did wait for an agent that was dead.
    assert!(longest > Duration::from_millis(100) && longest < CALL_MAX, "{longest:?}");
}

/// A program that does not come by the gate writes to a file that is awaited: such an epoch is taken again.
#[test]
fn programs_that_do_not_record() {
    let node = checking(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let writer = compile::workload("static_writer.c");
    let script = "cd $1; head -c 1048576 /dev/zero >f
        while [ ! -e stop ]; do
            # Changed by recorded calls in each epoch, so that it is awaited.
            printf %1000s x | dd of=f bs=1000 conv=notrunc seek=$((i % 1000)) 2>/dev/null
            i=$((i + 1)); printf '%-20s' $i 1<>progress
            sleep 0.01
            $2 f $((i % 10)) || { echo bad >result; exit 1; }
        done
        echo ok >result";
    let dir = node.inside(DIR);
    let args = ["-c", script, "sh", dir.to_str().unwrap(), writer.to_str().unwrap()];
    let mut app = App::start(&node, "work", &Program::new("/bin/sh", &args), DIR, &["--keep", "1000"]);
    app.wait_joined(&node);
    goes_on(&node, "its start");
    let mut sealed = 0;
    wait::until(LIMIT, "epochs, some of which were taken again", || {
        assert_eq!(result(&node), "");
        // One that finds such a program alive is refused.
        sealed += usize::from(app.try_checkpoint(&node).is_ok());
        (sealed >= 10 && node.log().contains("taken again")).then_some(())
    });
    let log = node.log();
    assert!(!log.contains("files check:"), "{log}");
    fs::write(node.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(&node, LIMIT);
    assert_eq!(result(&node), "ok\n");
}

/// Somebody outside writes to a file that the application writes to as well: no epoch fails for that, and soon none is taken again.
#[test]
fn somebody_else_writes() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let script = "cd $1; head -c 300000 /dev/zero >f
        while [ ! -e stop ]; do
            printf %1000s x | dd of=f bs=1000 conv=notrunc seek=$((i % 100)) 2>/dev/null
            i=$((i + 1)); printf '%-20s' $i 1<>progress
        done
        echo ok >result";
    let dir = node.inside(DIR);
    let args = ["-c", script, "sh", dir.to_str().unwrap()];
    let mut app = App::start(&node, "work", &Program::new("/bin/sh", &args), DIR, &[]);
    app.wait_joined(&node);
    goes_on(&node, "its start");
    let file = fs::File::options().write(true).open(node.outside(DIR).join("f")).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0u64.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(b"from outside", 200_000 + at % 50_000).unwrap();
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        for _ in 0..20 {
            app.checkpoint(&node);
        }
        ended.store(true, Ordering::Relaxed);
    });
    let again = node.log().lines().filter(|line| line.contains("by others")).count();
    assert!(again <= 2, "{}", node.log());
    fs::write(node.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(&node, LIMIT);
    assert_eq!(result(&node), "ok\n");
}
