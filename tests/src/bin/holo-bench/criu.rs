//! CRIU beside holo: one process, stopped for a first and for a later image, and restored from it.

use crate::{DIR, LIMIT, median};
use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, paths, process, wait};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Later images of each; of CRIU each is a tree of images that begins anew.
const ROUNDS: usize = 5;
const MIB_USUAL: u64 = 1024;
/// Variable that says how much memory the process has, for slow machines.
const VARIABLE: &str = "HOLO_BENCH_MIB";

/// Milliseconds.
struct Figures {
    first_stop: f64,
    later_stop: f64,
    restore: f64,
}

pub(crate) fn criu() {
    let mib = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(MIB_USUAL);
    println!("one process of {mib} MiB, 1 % stored to every 10 ms; ms, medians of {ROUNDS}");
    println!("                       first stop   later stop   restored (holo: first instruction)");
    let row = |name: &str, of: &Figures| {
        println!("{name:<22} {:>10.1} {:>12.1} {:>10.1}", of.first_stop, of.later_stop, of.restore);
    };
    row("holo", &with_holo(mib));
    match unusable() {
        None => row("CRIU", &with_criu(mib)),
        Some(why) => {
            println!("CRIU does not run here: {why}");
            println!(
                "known of CRIU 4.2 on another machine, not measured here: stopped 660 ms a GiB, restored 480 to 940 ms a GiB"
            );
        }
    }
}

fn program(mib: u64, ready: &Path) -> (PathBuf, [String; 3]) {
    let binary = compile::build(&paths::tests_dir().join("bench/bench_memory.c"));
    let pages = mib * 256 / 100;
    (binary, [mib.to_string(), ready.display().to_string(), pages.to_string()])
}

fn with_holo(mib: u64) -> Figures {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let ready = node.inside(DIR).join("ready");
    let (binary, args) = program(mib, &ready);
    let options = ["--keep", "2", "--every", "0"];
    let mut app = App::start(&node, "criu", &Program::new(binary, &args), DIR, &options);
    app.wait_joined(&node);
    wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
    let stop = |app: &App| app.checkpoint(&node).number("stop_us") as f64 / 1e3;
    let first_stop = stop(&app);
    let later = (0..ROUNDS).map(|_| stop(&app)).collect();
    let restores = (0..ROUNDS).map(|_| {
        app.kill(&node);
        let restored = app.restore_unsettled(&node, None);
        restored["first_instruction_us"].as_f64().unwrap_or(f64::NAN) / 1e3
    });
    Figures { first_stop, restore: median(restores.collect()), later_stop: median(later) }
}

/// Why CRIU cannot be measured.
fn unusable() -> Option<String> {
    let mut check = Command::new("criu");
    match check.arg("check").stdin(Stdio::null()).output() {
        Err(cause) => Some(format!("{cause}; install Debian's package `criu`")),
        Ok(out) if out.status.success() => None,
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            Some(said.lines().next().unwrap_or("`criu check` fails").to_owned())
        }
    }
}

/// A run of `criu`; what it said.
fn run(args: &[&str], dir: &Path) -> String {
    let mut criu = Command::new("criu");
    criu.args(args).arg("-D").arg(dir).args(["--shell-job", "--display-stats"]);
    let done = command::run(&mut criu, LIMIT);
    assert!(done.status.success(), "criu {args:?}: {}{}", done.stdout, done.stderr);
    done.stdout + &done.stderr
}

/// The time in which nothing ran, milliseconds.
fn frozen(said: &str) -> f64 {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Frozen time:"));
    let us = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    us.unwrap_or(f64::NAN) / 1e3
}

fn with_criu(mib: u64) -> Figures {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let ready = node.inside(DIR).join("ready");
    let (binary, args) = program(mib, &ready);
    let mut plain = Command::new(binary);
    plain.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: one call that is safe between fork and exec.
    unsafe {
        plain.pre_exec(|| {
            libc::setsid();
            Ok(())
        })
    };
    let mut child = plain.spawn().expect("the program");
    let pid = child.id();
    wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
    let image = |name: &str| {
        let dir = node.outside("data").join(name);
        fs::create_dir(&dir).expect("a directory");
        dir
    };
    let target = pid.to_string();
    let first = image("0");
    let dump = ["dump", "-t", &target, "--leave-running", "--track-mem"];
    let first_stop = frozen(&run(&dump, &first));
    // A later image holds what was stored to since the one before, which it needs.
    let mut later = Vec::new();
    for round in 1..=ROUNDS {
        let (dir, before) = (image(&round.to_string()), format!("../{}", round - 1));
        let last = round == ROUNDS;
        let mut args = vec!["dump", "-t", &target, "--track-mem", "--prev-images-dir", &before];
        if !last {
            args.push("--leave-running");
        }
        later.push(frozen(&run(&args, &dir)));
    }
    command::wait_child(&mut child, LIMIT, "the program");
    let dir = node.outside("data").join(ROUNDS.to_string());
    let restores = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        run(&["restore", "--restore-detached"], &dir);
        let took = begun.elapsed().as_secs_f64() * 1e3;
        // SAFETY: the process that was just made again.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        process::wait_gone(&[pid], LIMIT);
        took
    });
    Figures { first_stop, restore: median(restores.collect()), later_stop: median(later) }
}
