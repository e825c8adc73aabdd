//! Goal: whoever dies at whatever step while an epoch is packed, sent, received or made a clone of, and wherever the link breaks:
//! the stand-by has exactly one newest sealed epoch, which is the one before or the new one, whole, byte by byte that of its owner,
//! with the files that were there at its cut; nothing is left behind, the application runs on, and replication goes on.
//! Method: an agent is followed from before the order of an epoch on, and killed before one of its system calls, or its connection
//! broken there, each time at a later one until an epoch comes through: at some of them here, at every one with `make soak`. The
//! application's files rest meanwhile, and are compared with those of the epoch.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::steps::{Act, Steps};
use holo_tests::{command, compile, epochs, process, wait};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DIR: &str = "data/work";
const APP: &str = "work";
const LIMIT: Duration = Duration::from_secs(40);
const A: usize = 0;
const B: usize = 1;
/// How long the application changes its files between two epochs.
const STORM: Duration = Duration::from_millis(60);
/// Asking is work for an agent that is followed.
const LOOK: Duration = Duration::from_millis(20);
/// More steps than an epoch ever takes.
const STEPS_MAX: u64 = 100_000;

/// An epoch may be of the owner alone so often before it is strange.
const TRIES_MAX: u32 = 5;

/// What became of an epoch.
enum Outcome {
    /// It was done, before this call.
    Acted(String),
    /// It has fewer steps.
    CameThrough,
    /// The stand-by was not asked.
    WithoutStandby,
}

struct Sweep {
    cluster: Cluster,
    app: App,
    /// Files of the newest epoch that was compared, and its number.
    known: (u64, TempDir),
    /// Processes of the stand-by with its clone.
    processes: usize,
}

impl Sweep {
    fn start(who: Who) -> Sweep {
        let mut cluster = Cluster::new(&["a", "b"], who);
        cluster.start_agents(Timing::patient());
        for node in &cluster.nodes {
            hand_over(&node.outside(DIR), node.who());
        }
        let program = Program::new(
            compile::workload("file_storm.c"),
            &[cluster.nodes[A].inside(DIR).into_os_string(), "7".into()],
        );
        let options = ["--standby", "b", "--keep", "1000"];
        let mut app = App::start(&cluster.nodes[A], APP, &program, DIR, &options);
        app.wait_joined(&cluster.nodes[A]);
        let known = (0, cluster.scratch());
        let mut sweep = Sweep { cluster, app, known, processes: 0 };
        sweep.rest();
        sweep.comes_through();
        sweep.processes = wait::until(LIMIT, "a clone on b", || {
            sweep.clone_epoch().map(|_| process::marked(&sweep.b().mark()).len())
        });
        sweep
    }

    fn a(&self) -> &Node {
        &self.cluster.nodes[A]
    }

    fn b(&self) -> &Node {
        &self.cluster.nodes[B]
    }

    /// What the clone on the stand-by is as of; none where its agent does not answer.
    fn clone_epoch(&self) -> Option<u64> {
        let rows = command::run(&mut self.b().holo(&["ps", "--json"]), ORDER_LIMIT).stdout;
        let rows: serde_json::Value = serde_json::from_str(&rows).ok()?;
        rows.as_array()?.iter().find(|row| row["name"] == APP)?["clone"]["epoch"].as_u64()
    }

    fn files(&self) -> PathBuf {
        self.a().outside(DIR)
    }

    /// The application changes its files for a while, and rests.
    fn rest(&self) {
        let _ = fs::remove_file(self.files().join("pause"));
        wait::until(LIMIT, "the storm goes on", || (!self.files().join("quiet").exists()).then_some(()));
        std::thread::sleep(STORM);
        fs::write(self.files().join("pause"), b"").unwrap();
        wait::until(LIMIT, "the storm rests", || {
            assert_eq!(holo_tests::workload::result(self.a()), "");
            self.files().join("quiet").exists().then_some(())
        });
    }

    /// The newest epoch on the stand-by is its owner's, and its files are those of its cut.
    fn judge(&mut self, when: &str) -> u64 {
        let (ours, theirs) = (epochs::sealed(self.a(), APP), epochs::sealed(self.b(), APP));
        let newest = *theirs.last().unwrap_or_else(|| panic!("no epoch on b {when}"));
        assert!(ours.contains(&newest), "b has {newest}, a has {ours:?}, {when}");
        assert!(newest >= self.known.0, "b had {}, and has {newest} {when}", self.known.0);
        let epoch = epochs::open(self.b(), APP, newest);
        epoch.verify().unwrap_or_else(|e| panic!("epoch {newest} on b {when}: {e}"));
        let own = epochs::open(self.a(), APP, newest).export_manifest().unwrap();
        assert!(epoch.export_manifest().unwrap() == own, "epoch {newest} on b is another one {when}");
        let scratch = self.cluster.scratch();
        // Below the root's own path on that node.
        epochs::apply(&epoch, &self.a().inside(DIR), scratch.path());
        let files = if newest == self.known.0 { self.known.1.path().to_owned() } else { self.files() };
        let differences = epochs::differences(&files, scratch.path());
        assert!(differences.is_empty(), "epoch {newest} {when}: {differences:#?}");
        if newest > self.known.0 {
            self.known = (newest, scratch);
        }
        newest
    }

    /// Epochs are taken and get to the stand-by.
    fn comes_through(&mut self) {
        let sealed = wait::until(LIMIT, "an epoch on both nodes", || {
            let epoch = self.app.try_checkpoint(self.a()).ok()?;
            epoch.0["where"].to_string().contains("\"b\"").then(|| epoch.number("epoch"))
        });
        assert_eq!(self.judge("when it came through"), sealed);
    }

    /// One epoch with something done to `victim` at step `at`; none: it came through before. Else before which call it was.
    fn round(&mut self, victim: usize, act: Act, at: u64) -> Option<String> {
        for _ in 0..TRIES_MAX {
            match self.try_round(victim, act, at) {
                Outcome::Acted(when) => return Some(when),
                Outcome::CameThrough => return None,
                // After a break it takes a moment until epochs go to it again.
                Outcome::WithoutStandby => self.comes_through(),
            }
        }
        panic!("no epoch goes to the stand-by while {act:?} at step {at} is waited for");
    }

    fn try_round(&mut self, victim: usize, act: Act, at: u64) -> Outcome {
        self.rest();
        let before = *epochs::sealed(self.a(), APP).last().unwrap();
        let agent = self.cluster.nodes[victim].agent_inside().unwrap();
        let steps = Steps::follow(agent, act, at);
        let mut order = self.a().holo(&["checkpoint", APP, "--json"]);
        let order = std::thread::spawn(move || command::run(&mut order, ORDER_LIMIT));
        wait::until(LIMIT, "a step", || (steps.has_acted() || order.is_finished()).then_some(()));
        if victim == B && act == Act::Kill {
            // The clone follows after the epoch is sealed.
            wait::until(LIMIT, "the clone of the epoch", || {
                std::thread::sleep(LOOK);
                (steps.has_acted() || self.clone_epoch() > Some(before)).then_some(())
            });
        }
        let (acted, call) = (steps.has_acted(), steps.before());
        let when = format!("{act:?} at step {at} of {}, {call}", self.cluster.nodes[victim].name);
        if acted && act == Act::Kill {
            process::wait_gone(&[agent], LIMIT);
            self.cluster.nodes[victim].kill_agent();
            drop(steps);
            // While it is dead: what it left on its disk.
            let newest = self.judge(&when);
            assert!(newest == before || newest == before + 1, "{newest} after {before}, {when}");
            self.cluster.start_agent(victim, Timing::patient(), false);
        } else {
            drop(steps);
        }
        let done = order.join().unwrap();
        // One that did not get an epoch lost its own connection, or threads that were not looked after for too long.
        if acted {
            return Outcome::Acted(when);
        }
        assert!(done.status.success(), "{when}: {}", done.stderr);
        let epoch: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let nodes = epoch["where"].as_array().unwrap();
        if nodes.iter().any(|node| node == "b") { Outcome::CameThrough } else { Outcome::WithoutStandby }
    }

    /// Nothing is left of what was half done; the application works.
    fn goes_on(&mut self, when: &str) {
        self.comes_through();
        for node in &self.cluster.nodes {
            let staged = fs::read_dir(node.outside("state/staging")).map_or(0, Iterator::count);
            assert_eq!(staged, 0, "left on {} {when}", node.name);
        }
        assert_eq!(self.app.state(self.a()), "running", "{when}");
    }

    /// The application goes on from what the stand-by has, there, with these files.
    fn switches(&mut self) {
        wait::until(LIMIT, "no process more on b", || {
            (process::marked(&self.b().mark()).len() <= self.processes).then_some(())
        });
        self.rest();
        wait::until(LIMIT, "b is ready", || (self.app.state(self.b()) == "standby").then_some(()));
        command::run_ok(&mut self.a().holo(&["switch", APP, "--to", "b"]), ORDER_LIMIT);
        wait::until(LIMIT, "b runs it", || (self.app.state(self.b()) == "running").then_some(()));
        let (here, there) = (self.files(), self.b().outside(DIR));
        let mut differences = epochs::differences(&here, &there);
        // What is mapped was read to be so.
        differences.retain(|one| !one.what.starts_with("access time"));
        assert!(differences.is_empty(), "after the switch: {differences:#?}");
        fs::remove_file(there.join("pause")).unwrap();
        wait::until(LIMIT, "the storm goes on", || (!there.join("quiet").exists()).then_some(()));
        fs::write(there.join("stop"), b"").unwrap();
        self.app.wait_ended(self.b(), LIMIT);
        assert_eq!(holo_tests::workload::result(self.b()), "ok\n");
    }
}

/// Acts at one step of an epoch after the other, `stride` apart, until an epoch comes through: at least `rounds` times.
fn sweep(victim: usize, act: Act, stride: u64, rounds: u32) {
    let mut sweep = Sweep::start(Who::Me);
    let (mut at, mut done, start) = (0, 0, Instant::now());
    while let Some(when) = sweep.round(victim, act, at) {
        eprintln!("{when}");
        sweep.goes_on(&when);
        (at, done) = (at + stride, done + 1);
        assert!(at < STEPS_MAX, "an epoch without end");
    }
    eprintln!("{done} times, {at} steps, {:?}", start.elapsed());
    assert!(done >= rounds, "{act:?} {done} times only");
    sweep.switches();
}

#[test]
fn the_standby_is_killed() {
    sweep(B, Act::Kill, 6, 3);
}

#[test]
fn the_owners_agent_is_killed() {
    sweep(A, Act::Kill, 50, 3);
}

#[test]
fn the_link_breaks() {
    sweep(A, Act::Break, 9, 3);
}

#[test]
#[ignore = "takes long: make soak"]
fn the_standby_is_killed_at_every_step() {
    sweep(B, Act::Kill, 1, 15);
}

#[test]
#[ignore = "takes long: make soak"]
fn the_owners_agent_is_killed_at_every_step() {
    sweep(A, Act::Kill, 1, 100);
}

#[test]
#[ignore = "takes long: make soak"]
fn the_link_breaks_at_every_step() {
    sweep(A, Act::Break, 1, 15);
    sweep(B, Act::Break, 1, 15);
}
