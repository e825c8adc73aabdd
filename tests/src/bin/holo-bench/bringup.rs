//! A stand-by that is brought up while the application works: its first stop, and how much slower it is until the stand-by has all.

use super::standby::cpu_s;
use super::{DIR, LIMIT};
use holo_tests::app::{App, Epoch, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, paths, wait};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Where the application says how it gets on; no root.
const LOGS: &str = "data/logs";
/// How long it works before the first epoch, and after the stand-by has it.
const ALONE: Duration = Duration::from_secs(4);
/// Of the first epoch, and of making the files.
const LONG: Duration = Duration::from_secs(900);
/// Bytes of a file, on average: 50,000 have 10 GiB.
const FILE_BYTES: u64 = 214_748;

/// A line of the application's log.
struct Window {
    at_ms: u64,
    rounds: f64,
    longest_us: f64,
}

fn windows(log: &Path) -> Vec<Window> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let numbers = |line: &str| line.split(' ').filter_map(|n| n.parse().ok()).collect::<Vec<u64>>();
    let all = text.lines().map(numbers).filter(|row| row.len() == 3);
    all.map(|row| Window { at_ms: row[0], rounds: row[1] as f64, longest_us: row[2] as f64 }).collect()
}

fn now_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| Duration::from(now).as_millis() as u64)
}

/// Rounds a second, and the longest of them in ms, between two times.
fn pace(all: &[Window], from: u64, to: u64) -> (f64, f64) {
    let within: Vec<&Window> = all.iter().filter(|one| one.at_ms > from && one.at_ms <= to).collect();
    let seconds = (to - from) as f64 / 1e3;
    let longest = within.iter().map(|one| one.longest_us).fold(0.0, f64::max);
    (within.iter().map(|one| one.rounds).sum::<f64>() / seconds, longest / 1e3)
}

fn held_by_b(app: &App, node: &Node) -> Option<()> {
    let text = command::run_ok(&mut node.holo(&["epochs", &app.name, "--json"]), LIMIT);
    text.contains("\"b\"").then_some(())
}

/// Has a node keep its epochs in memory, as if it had a disk of its own. Takes root.
fn own_disk(node: &Node) -> bool {
    let state = node.inside("state");
    fs::create_dir_all(node.outside("state")).is_ok_and(|()| {
        let mut mount = node.command("mount");
        mount.args(["-t", "tmpfs", "-o", "size=90%,mode=700", "stand-by"]).arg(state);
        command::run(&mut mount, LIMIT).status.success()
    })
}

/// An agent gets of the processors what nobody else wants, as if it had its own.
fn stand_back(agent: u32) {
    let threads = fs::read_dir(format!("/proc/{agent}/task")).into_iter().flatten().flatten();
    for thread in threads.filter_map(|thread| thread.file_name().to_str()?.parse::<i32>().ok()) {
        let normal = libc::sched_param { sched_priority: 0 };
        // SAFETY: a thread's number, and a value that outlives the call.
        unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const normal) };
    }
}

/// The tables, of as many files as the second argument says, over a cable that carries as much as the third says.
pub(super) fn bringup() {
    let files: u64 = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    let is_apart = own_disk(&cluster.nodes[1]);
    cluster.start_agents(Timing::patient());
    stand_back(cluster.nodes[1].agent_inside().unwrap_or(0));
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
    let a = &cluster.nodes[0];
    if let Some(rate) = std::env::args().nth(3) {
        cluster.slow(1, &rate);
    }
    hand_over(&a.outside(LOGS), Who::Me);
    let binary = compile::build(&paths::tests_dir().join("bench/bench_bringup.c"));
    let mut make = a.command(&binary);
    make.arg("make").arg(a.inside(DIR)).args([files, FILE_BYTES].map(|n| n.to_string()));
    command::run_ok(&mut make, LONG);
    command::run_ok(&mut a.command("sync"), LONG);
    let log = a.outside(LOGS).join("log");
    let args = ["work".into(), a.inside(DIR).into_os_string(), a.inside(LOGS).join("log").into_os_string()];
    // Without our files as its output: below the root by another path, they would have all names looked at in each stop.
    let quiet = ["-c".into(), "exec \"$@\" >/dev/null 2>&1".into(), "sh".into(), binary.into_os_string()];
    let args: Vec<_> = quiet.into_iter().chain(args).collect();
    let mut app = App::start(a, "work", &Program::new("/bin/sh", &args), DIR, &["--standby", "b"]);
    app.wait_joined(a);
    std::thread::sleep(ALONE + Duration::from_millis(500));
    let (ordered, before) = (now_ms(), cluster.carried_to(1));
    let agents = || [0, 1].map(|node: usize| cpu_s(cluster.nodes[node].agent_inside().unwrap_or(0)));
    let busy = agents();
    let (first, sealed, held, early) = std::thread::scope(|scope| {
        let order = scope.spawn(|| {
            let text = command::run_ok(&mut a.holo(&["checkpoint", "work", "--json"]), LONG);
            serde_json::from_str(&text).map(Epoch).unwrap_or_else(|e| panic!("{e}: {text}"))
        });
        wait::until(LONG, "the first epoch on a", || {
            std::thread::sleep(Duration::from_millis(20));
            (app.row(a)?["epoch"].as_u64()? > 0).then_some(())
        });
        let (sealed, early) = (now_ms(), cluster.carried_to(1) - before);
        wait::until(LONG, "the first epoch on b", || {
            std::thread::sleep(Duration::from_millis(100));
            held_by_b(&app, a)
        });
        let held = now_ms();
        let first: Epoch = order.join().unwrap_or_else(|_| panic!("no first epoch"));
        (first, sealed, held, early as f64 / (cluster.carried_to(1) - before) as f64)
    });
    let used = agents();
    let second = app.checkpoint(a);
    std::thread::sleep(Duration::from_secs(1));
    let rest = now_ms();
    std::thread::sleep(ALONE);
    let all = windows(&log);
    fs::write(log.with_extension("stop"), b"").unwrap_or_else(|e| panic!("stop: {e}"));
    let mib = files as f64 * FILE_BYTES as f64 / 1048576.0;
    println!(
        "{files} files, {mib:.0} MiB, an application that writes 4 KiB after 4 KiB; both nodes on this machine, the stand-by with what \
         the application leaves of the processors{}",
        if is_apart { ", and its epochs in memory" } else { "" }
    );
    println!("{:<34}{:>10}{:>12}{:>8}{:>16}", "", "seconds", "rounds/s", "", "longest, ms");
    let alone = pace(&all, ordered - ALONE.as_millis() as u64, ordered).0;
    for (name, from, to) in [
        ("before", ordered - ALONE.as_millis() as u64, ordered),
        ("first epoch, until sealed here", ordered, sealed),
        ("until the stand-by has it", sealed, held),
        ("afterwards", rest, rest + ALONE.as_millis() as u64),
    ] {
        let (rate, longest) = pace(&all, from, to);
        let (seconds, part) = ((to - from) as f64 / 1e3, rate / alone * 100.0);
        println!("{name:<34}{seconds:>10.1}{rate:>12.0}{part:>7.0}%{longest:>16.1}");
    }
    println!("of what came to the stand-by, {:.0} % came before the first epoch was sealed", early * 100.0);
    println!("agents until then: {:.1} and {:.1} s of a processor", used[0] - busy[0], used[1] - busy[1]);
    for (name, epoch) in [("first", first), ("second", second)] {
        let (stop, dump) = (epoch.number("stop_us") as f64 / 1e3, epoch.number("dump_us") as f64 / 1e6);
        println!("{name} stop {stop:.1} ms, dump {dump:.2} s; {}", epoch.0["stop_parts_us"]);
    }
}
