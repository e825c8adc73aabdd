//! Goal: a stand-by is brought up while the application works: the first epoch stops it no longer than others and has the files of its
//! cut, and a link that breaks in the middle of the first transfer costs only what was under way.
//! Method: many files beside those that are changed all the time, the agent comparing the first epochs with a second look in the
//! stop; the connection broken again and again while bytes on the stand-by's cable are counted.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::steps::{Act, Steps};
use holo_tests::{command, compile, epochs, wait};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(60);
/// What takes so long is shown.
const SHOWN: Duration = Duration::from_millis(1200);
/// The first epoch of so many instances.
const LIVES: u32 = 5;

/// Files that nobody changes, of bytes that cannot be compressed.
fn fill(dir: &Path, files: usize, bytes: usize) {
    let mut word = 88_172_645_463_325_252_u64;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    for file in 0..files {
        let sub = dir.join(format!("many/d{}", file / 100));
        fs::create_dir_all(&sub).unwrap();
        let content: Vec<u8> = std::iter::repeat_with(&mut next).take(bytes / 8).flatten().collect();
        fs::write(sub.join(format!("f{file}")), content).unwrap();
    }
}

fn program(node: &Node) -> Program {
    Program::new(compile::workload("file_storm.c"), &[node.inside(DIR).into_os_string(), "11".into()])
}

#[test]
fn the_first_epoch_has_the_files_of_its_cut() {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    node.start_agent();
    hand_over(&node.outside(DIR), Who::Me);
    fill(&node.outside(DIR), 3000, 8000);
    let mut app = App::start(&node, "work", &program(&node), DIR, &["--keep", "3"]);
    app.wait_joined(&node);
    let (mut changed, mut marks) = (0, 0);
    for life in 0..LIVES {
        wait::until(LIMIT, "files that are changed", || {
            node.outside(DIR).join("files/d0").exists().then_some(())
        });
        std::thread::sleep(Duration::from_millis(u64::from(life) * 60));
        let epoch = app.checkpoint(&node);
        assert!(!node.log().contains("files check:"), "{}", node.log());
        let parts = &epoch.0["stop_parts_us"];
        assert!(parts["files.check"].as_u64().is_some(), "compared: {parts}");
        // One that was taken again has had its mark in the first try.
        marks += u32::from(parts["mark"].is_u64());
        changed += epoch.number("files_changed");
        if life == 0 {
            assert!(epoch.number("bytes_sent") > 3000 * 8000, "{}", epoch.0);
        }
        app.kill(&node);
        app.restore_unsettled(&node, None);
    }
    let log = node.log();
    let again = log
        .lines()
        .filter_map(|line| line.strip_prefix("holod: files ahead: ")?.split(' ').next()?.parse().ok());
    let again: Vec<u64> = again.collect();
    eprintln!("{again:?} files were read again");
    assert!(
        again.len() >= LIVES as usize && again.iter().all(|count| *count < 200),
        "{again:?} files: {log}"
    );
    assert!(changed > u64::from(LIVES) * 3000, "{changed} files");
    assert!(marks > 0, "read since a moment at which nothing ran: {log}");
    app.kill(&node);
}

/// What `holo ps` says of how far epochs are.
fn progress(app: &App, node: &Node) -> Vec<Value> {
    app.row(node).map_or_else(Vec::new, |row| row["progress"].as_array().unwrap().clone())
}

/// Bytes of pages that a node has of it.
fn stored_bytes(node: &Node) -> u64 {
    let pages = fs::read_dir(node.outside("state/apps/work/pages")).into_iter().flatten();
    pages.map(|file| file.unwrap().metadata().map_or(0, |file| file.blocks() * 512)).sum()
}

#[test]
fn how_far_it_is_shows() {
    const FILES: usize = 3000;
    const BYTES: usize = 100_000;
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    fill(&a.outside(DIR), FILES, BYTES);
    let mut app = App::start(a, "work", &program(a), DIR, &["--standby", "b"]);
    app.wait_joined(a);
    assert!(progress(&app, a).is_empty(), "nothing is under way");
    let whole = (FILES * BYTES) as u64;
    let before = cluster.carried_to(1);
    let mut seen: Vec<Value> = Vec::new();
    let mut texts = String::new();
    std::thread::scope(|scope| {
        let order = scope.spawn(|| app.checkpoint(a));
        // What is quick is not shown.
        wait::until(LIMIT, "a quarter of it stored", || (stored_bytes(a) > whole / 4).then_some(()));
        a.behind_the_agent(|| std::thread::sleep(SHOWN));
        let mut is_held = false;
        while !order.is_finished() {
            if !is_held && cluster.carried_to(1) - before > whole / 4 {
                is_held = true;
                b.behind_the_agent(|| {
                    std::thread::sleep(SHOWN);
                    seen.extend(progress(&app, a));
                    texts += &command::run_ok(&mut a.holo(&["ps"]), LIMIT);
                });
            }
            seen.extend(progress(&app, a));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(is_held, "never saw a quarter of it on its way");
        order.join().unwrap();
    });
    let figures = |step: &str, node: &str| -> Vec<(u64, u64)> {
        let of = seen.iter().filter(|now| now["step"] == step && now["node"] == node);
        of.map(|now| (now["done_bytes"].as_u64().unwrap(), now["total_bytes"].as_u64().unwrap())).collect()
    };
    let (stored, sent) = (figures("store", "a"), figures("send", "b"));
    eprintln!("seen: {} times of storing, {} times of sending", stored.len(), sent.len());
    for figures in [&stored, &sent] {
        assert!(figures.iter().all(|(done, total)| done <= total), "{figures:?}");
        assert!(figures.is_sorted_by_key(|(done, _)| *done), "{figures:?}");
    }
    for (what, figures) in [("stored", &stored), ("sent", &sent)] {
        let (done, total) = *figures.first().unwrap_or_else(|| panic!("nothing {what} was shown"));
        assert!(
            done > 0 && total > whole && total < whole / 5 * 6,
            "{what}: {done} of {total}, files are {whole}"
        );
    }
    assert!(texts.contains("sending to b ") && texts.contains(" MiB of "), "{texts}");
    wait::until(LIMIT, "nothing is under way", || progress(&app, a).is_empty().then_some(()));
    fs::write(a.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(a, LIMIT);
}

#[test]
fn a_link_that_breaks_costs_what_was_under_way() {
    const FILES: usize = 1500;
    const BYTES: usize = 100_000;
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    fill(&a.outside(DIR), FILES, BYTES);
    let mut app = App::start(a, "work", &program(a), DIR, &["--standby", "b"]);
    app.wait_joined(a);
    let whole = (FILES * BYTES) as u64;
    let (before, mut breaks) = (cluster.carried_to(1), 0);
    std::thread::scope(|scope| {
        let order = scope.spawn(|| app.checkpoint(a));
        for part in 1..4 {
            wait::until(LIMIT, "a part of it on its way", || {
                let has_part = cluster.carried_to(1) - before > whole / 5 * part;
                (has_part || order.is_finished()).then_some(())
            });
            let steps = Steps::follow(a.agent_inside().unwrap(), Act::Break, 3);
            wait::until(LIMIT, "a break", || (steps.has_acted() || order.is_finished()).then_some(()));
            breaks += u32::from(steps.end());
        }
        order.join().unwrap();
    });
    let epoch = wait::until(LIMIT, "the epoch on b", || epochs::sealed(b, "work").last().copied());
    let carried = cluster.carried_to(1) - before;
    let log = a.log();
    let is_transfer = |line: &&str| line.starts_with("holod: work: ") && line.contains(" b: ");
    let broken = log.lines().filter(is_transfer).count();
    eprintln!("{breaks} breaks, {broken} of transfers, {:.2} times the bytes", carried as f64 / whole as f64);
    assert!(breaks > 0, "nothing was broken: {log}");
    assert!(carried < whole / 4 * 5, "{carried} bytes for {whole}");
    epochs::open(b, "work", epoch).verify().unwrap();
    fs::write(a.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(a, LIMIT);
}

/// Bytes that `memory_inherited.c` has.
const MEMORY: u64 = 80 << 20;

/// Two nodes and an application with much memory, epochs of which fail when all that can be is stored ahead of them.
fn without_epochs() -> (Cluster, App) {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    let faults = cluster.nodes[0].inside("faults");
    cluster.nodes[0].set_agent_env("HOLO_FAULTS", faults);
    cluster.start_agents(Timing::patient());
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
    let a = &cluster.nodes[0];
    let program = Program::new(compile::workload("memory_inherited.c"), &[a.inside(DIR)]);
    let mut app = App::start(a, "work", &program, DIR, &["--standby", "b"]);
    app.wait_joined(a);
    rounds(a);
    fs::write(a.outside("faults"), "memory dump before").unwrap();
    (cluster, app)
}

/// It goes on, and has found nothing wrong.
fn rounds(node: &Node) {
    let count = || {
        let text = fs::read_to_string(node.outside(DIR).join("progress")).unwrap_or_default();
        text.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0)
    };
    let from = count();
    // More than once around its memory.
    wait::until(LIMIT, "rounds", || {
        assert!(!node.outside(DIR).join("result").exists(), "it ended on {}", node.name);
        (count() > from + 100).then_some(())
    });
}

/// The epoch that is taken now, by how many bytes it took on the way to b; it is whole there, and b goes on from it.
fn taken_over(mut cluster: Cluster, mut app: App) -> u64 {
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    fs::write(a.outside("faults"), "").unwrap();
    assert!(
        epochs::sealed(a, "work").is_empty() && epochs::sealed(b, "work").is_empty(),
        "an epoch was sealed"
    );
    let before = cluster.carried_to(1);
    let epoch = app.checkpoint(a);
    wait::until(LIMIT, "the epoch on b", || epochs::sealed(b, "work").last().copied());
    let carried = cluster.carried_to(1) - before;
    epochs::open(b, "work", epoch.number("epoch")).verify().unwrap();
    wait::until(LIMIT, "b is armed", || b.log().contains("armed: will take over").then_some(()));
    cluster.kill(0);
    app.forget();
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "take-over by b", || (app.state(b) == "running").then_some(()));
    app.settle(b);
    rounds(b);
    fs::write(b.outside(DIR).join("stop"), b"").unwrap();
    app.wait_ended(b, LIMIT);
    assert_eq!(fs::read_to_string(b.outside(DIR).join("result")).unwrap(), "ok\n");
    carried
}

// Goal: a stand-by has got what is stored ahead of the first epoch before that is sealed; the epoch brings what is missing, and is whole.
// Method: bytes on its cable, before the epoch, while attempts fail behind what was stored, and with it; the node is killed.
#[test]
fn what_is_stored_ahead_is_sent_before_the_first_epoch() {
    let (cluster, app) = without_epochs();
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    let before = cluster.carried_to(1);
    app.try_checkpoint(a).expect_err("it fails by order");
    wait::until(LIMIT, "memory on b", || (cluster.carried_to(1) - before > MEMORY).then_some(()));
    wait::until(LIMIT, "memory in the store of b", || (stored_bytes(b) >= MEMORY).then_some(()));
    // What is there is not sent again.
    app.try_checkpoint(a).expect_err("it fails by order");
    std::thread::sleep(Duration::from_millis(500));
    let early = cluster.carried_to(1) - before;
    assert!(early < MEMORY / 10 * 12, "{early} bytes");
    let carried = taken_over(cluster, app);
    eprintln!("{early} bytes before the epoch, {carried} with it");
    assert!(carried < MEMORY / 8, "{carried} bytes");
}

// Goal: whatever breaks in the middle, the first epoch comes and is whole. Method: a connection that breaks, then an agent that dies, b's
// and a's, each half-way through what is sent ahead of it.
#[test]
fn what_is_sent_ahead_may_break_off() {
    let (mut cluster, app) = without_epochs();
    let mut halves = 0;
    for (victim, act, step) in [(1, Act::Break, 400), (1, Act::Kill, 60), (0, Act::Kill, 300)] {
        let node = &cluster.nodes[victim];
        let (before, start) = (cluster.carried_to(1), stored_bytes(&cluster.nodes[1]));
        let steps = Steps::follow(node.agent_inside().unwrap(), act, step);
        app.try_checkpoint(&cluster.nodes[0]).expect_err("it fails by order");
        wait::until(LIMIT, "the end of it", || {
            let all = cluster.carried_to(1) - before > MEMORY;
            (steps.has_acted() || all || start >= MEMORY).then_some(())
        });
        let has_acted = steps.end();
        let sent = cluster.carried_to(1) - before;
        eprintln!("{act:?} of {victim}: {has_acted}, {sent} bytes were sent");
        halves += u32::from(has_acted && (MEMORY / 80..MEMORY).contains(&sent));
        if act == Act::Kill {
            cluster.nodes[victim].kill_agent();
            cluster.start_agent(victim, Timing::patient(), false);
        }
        wait::until(LIMIT, "both are there", || (cluster.seen(0, 1) == "up").then_some(()));
    }
    assert!(halves > 1, "nothing was broken half-way");
    rounds(&cluster.nodes[0]);
    eprintln!("{} bytes with the epoch", taken_over(cluster, app));
}
