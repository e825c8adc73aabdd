//! What a stand-by costs that keeps a hot clone, and whether it keeps up.

use super::{DIR, LIMIT};
use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, paths, wait};
use serde_json::Value;
use std::thread;
use std::time::{Duration, Instant};

const LASTS: Duration = Duration::from_secs(10);
const PERIODS: [&str; 3] = ["200ms", "50ms", "10ms"];

/// What a node has done so far: its newest epoch, that of its clone, and its agent's processor time in seconds.
struct Sample {
    epoch: u64,
    clone: u64,
    cpu_s: f64,
}

/// Processor time of a process, all its threads, in seconds.
pub(super) fn cpu_s(pid: u32) -> f64 {
    const PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / PER_S
}

fn sample(app: &App, node: &Node) -> Sample {
    let row = app.row(node).unwrap_or_default();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let pid = node.agent_inside().unwrap_or(0);
    Sample { epoch: number(&row["epoch"]), clone: number(&row["clone"]["epoch"]), cpu_s: cpu_s(pid) }
}

/// The table.
pub(super) fn standby() {
    let s = LASTS.as_secs();
    println!(
        "a stand-by with a hot clone, {s} s                    epochs a second: sealed    received   clone behind      agents, % of a core: operational   stand-by"
    );
    for (name, shape) in [
        ("1 process, 1 GiB, 500 pages", [1, 1, 1024, 500]),
        ("8 processes, 64 threads, 1 GiB, 1,000", [8, 64, 1024, 1000]),
    ] {
        for period in PERIODS {
            let mut cluster = Cluster::new(&["a", "b"], Who::Me);
            cluster.start_agents(Timing::patient());
            cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
            let ready = cluster.nodes[0].outside(DIR).join("ready");
            let binary = compile::build(&paths::tests_dir().join("bench/bench_tree.c"));
            let mut args = shape.map(|number: u64| number.to_string().into()).to_vec();
            args.push(cluster.nodes[0].inside(DIR).join("ready").into_os_string());
            let options = ["--standby", "b", "--every", period, "--keep", "8"];
            let mut app = App::start(&cluster.nodes[0], "work", &Program::new(binary, &args), DIR, &options);
            app.wait_joined(&cluster.nodes[0]);
            wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
            let filled = sample(&app, &cluster.nodes[0]).epoch;
            wait::until(LIMIT, "a clone with all of it", || {
                (sample(&app, &cluster.nodes[1]).clone > filled + 2).then_some(())
            });
            let looks = |app: &App| [0, 1].map(|node| sample(app, &cluster.nodes[node]));
            let (start, before) = (Instant::now(), looks(&app));
            thread::sleep(LASTS);
            let (seconds, after) = (start.elapsed().as_secs_f64(), looks(&app));
            let part = |node: usize, of: fn(&Sample) -> f64| (of(&after[node]) - of(&before[node])) / seconds;
            let behind = after[1].epoch.saturating_sub(after[1].clone);
            println!(
                "{name:<38} every {period:<6} {:>20.1} {:>11.1} {behind:>7} epochs {:>31.0} {:>10.0}",
                part(0, |sample| sample.epoch as f64),
                part(1, |sample| sample.epoch as f64),
                part(0, |sample| sample.cpu_s * 100.0),
                part(1, |sample| sample.cpu_s * 100.0),
            );
            cluster.kill(0);
        }
    }
}
