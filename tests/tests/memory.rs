//! Goal: memory of every type is there again, with its protection and sharing, and can grow.
//! Method: self-verifying programs in every mode; every one of several incremental epochs restored.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, process, wait, workload};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Until the program has gone on for more than so many rounds.
fn onward(node: &Node, rounds: u64) {
    let from = workload::progress(node);
    wait::until(LIMIT, "progress", || {
        let said = workload::result(node);
        assert!(said.is_empty(), "the workload ended: {said}");
        (workload::progress(node) > from + rounds).then_some(())
    });
}

holo_tests::workloads! {
    memory: Workload::new("memory.c");
    memory_grow: Workload::new("memory_grow.c");
    sysv_shm: Workload::new("sysv_shm.c");
    memory_churn: Workload::new("memory_churn.c").checkpoints(40).agent_env("HOLO_ENGINE_CHECK", "1");
    memory_moves: Workload::new("memory_moves.c").checkpoints(60).agent_env("HOLO_ENGINE_CHECK", "1");
    memory_wild: Workload::new("memory_wild.c").checkpoints(60).agent_env("HOLO_ENGINE_CHECK", "1");
    shared_pages: Workload::new("shared_pages.c").checkpoints(60).agent_env("HOLO_ENGINE_CHECK", "1");
    shared_pages_of_a_segment: Workload::new("shared_pages.c").arg("segment").checkpoints(60);
    unforkable: Workload::new("unforkable.c").checkpoints(20);
    memory_wild_unchecked: Workload::new("memory_wild.c").arg("forks").checkpoints(60);
    memory_churn_ahead: Workload::new("memory_churn.c").arg("forks").checkpoints(40).agent_env("HOLO_MEMORY_AHEAD", "1")
        .agent_env("HOLO_ENGINE_CHECK", "1");
    memory_moves_ahead: Workload::new("memory_moves.c").checkpoints(60).agent_env("HOLO_MEMORY_AHEAD", "1")
        .agent_env("HOLO_ENGINE_CHECK", "1");
    memory_wild_ahead: Workload::new("memory_wild.c").arg("forks").checkpoints(60).agent_env("HOLO_MEMORY_AHEAD", "1")
        .agent_env("HOLO_ENGINE_CHECK", "1");
    memory_ahead_unchecked: Workload::new("memory_ahead.c").checkpoints(40).agent_env("HOLO_MEMORY_AHEAD", "1");
    memory_ahead: Workload::new("memory_ahead.c").arg("forks").checkpoints(25).agent_env("HOLO_MEMORY_AHEAD", "1")
        .agent_env("HOLO_ENGINE_CHECK", "1");
    memory_ahead_where_it_pays: Workload::new("memory_ahead.c").checkpoints(40);
    memory_direct: Workload::new("memory_direct.c").checkpoints(80).agent_env("HOLO_MEMORY_AHEAD", "1")
        .agent_env("HOLO_ENGINE_CHECK", "1");
    aio_ahead: Workload::new("aio.c").agent_env("HOLO_MEMORY_AHEAD", "1");
    memory_late: Workload::new("memory_late.c").agent_env("HOLO_MEMORY_LATE", "1");
    memory_late_when_touched: Workload::new("memory_late.c").agent_env("HOLO_MEMORY_LATE", "wait");
    memory_late_unseen: Workload::new("memory_late.c").arg("raw").agent_env("HOLO_MEMORY_LATE", "wait");
    memory_wild_late: Workload::new("memory_wild.c").arg("forks").checkpoints(60).agent_env("HOLO_MEMORY_LATE", "1");
    allocator: Workload::new("allocator.c").checkpoints(15);
    jemalloc: Workload::new("allocator.c").arg("required").env("LD_PRELOAD", "libjemalloc.so.2").checkpoints(15);
}

// Goal: each of several incremental epochs is whole: later ones do not disturb it, and it needs no other. Method: take
// six epochs of a program whose memory changes in every way, each compared with a full scan of the same cut; restore them
// newest first, with the program checking every page each time. With the other engine as well.
fn each_epoch(engine: &'static str, source: &str, ahead: &str) {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_ENGINE", engine);
    node.set_agent_env("HOLO_ENGINE_CHECK", "1");
    node.set_agent_env("HOLO_MEMORY_AHEAD", ahead);
    node.start_agent();
    let dir = "data/work";
    hand_over(&node.outside(dir), Who::Me);
    let program = Program::new(compile::workload(source), &[node.inside(dir).as_os_str(), "forks".as_ref()]);
    let mut app = App::start(&node, "churn", &program, dir, &["--keep", "20"]);
    app.wait_joined(&node);
    let (mut epochs, mut stored_ahead) = (Vec::new(), 0);
    for _ in 0..6 {
        onward(&node, 9);
        let epoch = app.checkpoint(&node);
        assert_eq!(epoch.0["engine"], engine, "{}", epoch.0);
        // Some of what was stored ahead was stored to again, not all.
        stored_ahead += u32::from(epoch.0["bytes_by_kind"]["memory.ahead"].as_u64() > Some(0));
        epochs.push((epoch.number("epoch"), epoch.number("pages_dirty"), epoch.number("processes")));
    }
    // Not while the program moves memory.
    assert!(if ahead == "1" { stored_ahead >= 2 } else { stored_ahead == 0 }, "{stored_ahead} of 6 epochs");
    // 4,096 pages are never written again; a child's are all new.
    assert!(epochs[0].1 > 4096, "the first epoch has all: {epochs:?}");
    let less = |(_, pages, processes): &(u64, u64, u64)| *pages < epochs[0].1 || *processes > 1;
    // Where a zone was joined with a new one soft-dirty bits say nothing of its pages.
    let enough = match engine {
        "soft-dirty" => epochs[1..].iter().any(|(_, pages, _)| *pages < epochs[0].1 / 2),
        _ => epochs[1..].iter().all(less),
    };
    assert!(enough, "later ones have less: {epochs:?}");
    for (epoch, ..) in epochs.iter().rev() {
        app.kill(&node);
        app.restore_unsettled(&node, Some(*epoch));
        onward(&node, 9);
    }
    app.kill(&node);
}

#[test]
fn each_epoch_by_userfaultfd() {
    each_epoch("userfaultfd", "memory_churn.c", "0");
}

#[test]
fn each_epoch_stored_ahead() {
    each_epoch("userfaultfd", "memory_churn.c", "1");
    each_epoch("userfaultfd", "memory_ahead.c", "1");
}

#[test]
fn each_epoch_by_full_scan() {
    each_epoch("full-scan", "memory_churn.c", "0");
}

#[test]
fn each_epoch_by_soft_dirty() {
    if process::have_soft_dirty() {
        each_epoch("soft-dirty", "memory_churn.c", "0");
    }
}

/// A node whose agent compares every epoch with a full scan of the same cut.
fn checking_soft_dirty(who: Who) -> Node {
    let mut node = Node::without_agent(who);
    node.set_agent_env("HOLO_ENGINE", "soft-dirty");
    node.set_agent_env("HOLO_ENGINE_CHECK", "1");
    node.start_agent();
    node
}

// Goal: no change of memory is missed by soft-dirty bits. Method: programs that change theirs in every way; every epoch compared with a
// full scan of the same cut, the last one restored; as an ordinary user.
fn checked_by_soft_dirty(source: &str, epochs: usize) {
    if !process::have_soft_dirty() {
        return;
    }
    let node = checking_soft_dirty(Who::Nobody);
    let dir = "data/work";
    hand_over(&node.outside(dir), Who::Nobody);
    let program = Program::new(compile::workload(source), &[node.inside(dir)]);
    let mut app = App::start(&node, "bits", &program, dir, &[]);
    app.wait_joined(&node);
    for _ in 0..epochs {
        onward(&node, 0);
        assert_eq!(app.checkpoint(&node).0["engine"], "soft-dirty", "{source}");
    }
    app.kill(&node);
    app.restore_unsettled(&node, None);
    onward(&node, 1);
    app.kill(&node);
}

#[test]
fn moves_by_soft_dirty() {
    checked_by_soft_dirty("memory_moves.c", 15);
}

#[test]
fn wild_by_soft_dirty() {
    checked_by_soft_dirty("memory_wild.c", 15);
}

#[test]
fn large_by_soft_dirty() {
    checked_by_soft_dirty("memory_ahead.c", 4);
}

// Goal: what the kernel's soft-dirty bits do not tell is found nevertheless, and what they tell is used. Method: a step of the program at a
// time, then an epoch that is compared with a full scan, and restored every third time; at the end, two with nothing between.
#[test]
fn what_soft_dirty_bits_do_not_tell() {
    if !process::have_soft_dirty() {
        return;
    }
    let node = checking_soft_dirty(Who::Me);
    let dir = "data/work";
    hand_over(&node.outside(dir), Who::Me);
    let program = Program::new(compile::workload("memory_bits.c"), &[node.inside(dir)]);
    let mut app = App::start(&node, "bits", &program, dir, &["--every", "0"]);
    app.wait_joined(&node);
    onward(&node, 1);
    app.checkpoint(&node);
    for step in 0..24 {
        std::fs::write(node.outside(dir).join("go"), b"").expect("go");
        wait::until(LIMIT, "a step", || (!node.outside(dir).join("go").exists()).then_some(()));
        let epoch = app.checkpoint(&node);
        assert_eq!(epoch.0["engine"], "soft-dirty");
        if step % 3 == 2 {
            app.kill(&node);
            app.restore_unsettled(&node, None);
        }
        onward(&node, 1);
        if step % 3 == 2 {
            app.checkpoint(&node);
        }
    }
    app.checkpoint(&node);
    let epoch = app.checkpoint(&node);
    // All of it is more than 4,096 pages; zeros that were only read are looked at each time, and all where the kernel merges pages.
    let merges = std::fs::read_to_string("/sys/kernel/mm/ksm/run").is_ok_and(|run| run.trim() == "1");
    assert!(merges || epoch.number("pages_dirty") < 1500, "{}", epoch.0);
    app.kill(&node);
}

// Goal: what was stored ahead of an epoch that then failed, and not stored to since, is in the next one. Method: epochs fail by order at
// every step behind that one; the next is compared with a full scan of the same cut, and restored.
#[test]
fn epochs_after_failed_ones_stored_ahead() {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_FAULTS", node.inside("faults"));
    node.set_agent_env("HOLO_ENGINE_CHECK", "1");
    node.set_agent_env("HOLO_MEMORY_AHEAD", "1");
    node.start_agent();
    let order = |text: &str| std::fs::write(node.outside("faults"), text).expect("faults");
    let dir = "data/work";
    hand_over(&node.outside(dir), Who::Me);
    let program = Program::new(compile::workload("memory_churn.c"), &[node.inside(dir)]);
    let mut app = App::start(&node, "failed", &program, dir, &[]);
    app.wait_joined(&node);
    for faults in [
        &["memory ahead after"][..],
        &["tree dump before", "memory dump before"],
        &["memory dump after", "memory post_dump before", "memory ahead after"],
        &["memory post_dump after", "tree post_dump after"],
    ] {
        app.checkpoint(&node);
        for fault in faults {
            order(fault);
            // Nothing is stored ahead while the program moves memory.
            let refused = wait::until(LIMIT, fault, || {
                onward(&node, 3);
                app.try_checkpoint(&node).err()
            });
            assert!(refused.stderr.contains(fault), "{fault}: {}", refused.stderr);
        }
        order("");
        app.checkpoint(&node);
        app.kill(&node);
        app.restore_unsettled(&node, None);
        onward(&node, 9);
    }
    app.kill(&node);
}

// Goal: processes that have memory in common have it after an epoch: looking at it does not make it each one's own. Method: what the kernel
// counts as shared of each, before and after an epoch for which all of it was stored ahead.
#[test]
fn memory_in_common_stays_so() {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_MEMORY_AHEAD", "1");
    node.start_agent();
    let dir = "data/work";
    hand_over(&node.outside(dir), Who::Me);
    let program = Program::new(compile::workload("memory_inherited.c"), &[node.inside(dir)]);
    let mut app = App::start(&node, "inherited", &program, dir, &[]);
    app.wait_joined(&node);
    onward(&node, 1);
    let shared_kib = || {
        let of = |pid: &u32| {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
            let line = rollup.lines().find_map(|line| line.strip_prefix("Shared_Dirty:")).expect("a sum");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        process::tree(app.real_pids(&node)[0]).iter().map(of).collect::<Vec<_>>()
    };
    let before = shared_kib();
    assert!(before.len() == 2 && before.iter().all(|kib| *kib > 80 << 10), "{before:?}");
    let epoch = app.checkpoint(&node);
    assert!(epoch.0["bytes_by_kind"]["memory.ahead"].as_u64() > Some(80 << 20), "{}", epoch.0);
    let after = shared_kib();
    assert!(after.len() == 2 && after.iter().all(|kib| *kib > 80 << 10), "{before:?} {after:?}");
    app.kill(&node);
}

// Goal: an epoch has the flags that zones have at its cut, also where they were not read again for it. Method: one step of the program at
// a time, then an epoch; at every second one the program is killed and restored, and looks.
#[test]
fn flags_of_zones() {
    let node = Node::start(Who::Me);
    let dir = "data/work";
    hand_over(&node.outside(dir), Who::Me);
    let program = Program::new(compile::workload("memory_flags.c"), &[node.inside(dir)]);
    let mut app = App::start(&node, "flags", &program, dir, &["--every", "0"]);
    app.wait_joined(&node);
    for step in 0..16 {
        std::fs::write(node.outside(dir).join("go"), b"").expect("go");
        wait::until(LIMIT, "a step", || (!node.outside(dir).join("go").exists()).then_some(()));
        app.checkpoint(&node);
        if step % 2 == 1 {
            app.kill(&node);
            app.restore(&node, None);
        }
        onward(&node, 1);
    }
    app.kill(&node);
}

holo_tests::workloads_unprotected! {
    own_userfaultfd: Workload::new("own_userfaultfd.c").checkpoints(20);
}
