//! How long nobody serves: planned switches, and the death of a node, with clones kept in memory and without.

use super::{DIR, LIMIT, median};
use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, paths, wait};
use serde_json::Value;

const SWITCHES: usize = 6;

/// Milliseconds from the order to run it to its first instruction, of the last time that a node ran something.
fn made_in(node: &Node) -> f64 {
    let log = node.log();
    let line = log.lines().rev().find(|line| line.contains("runs from epoch")).unwrap_or_default();
    let after = line.split("after ").nth(1).and_then(|rest| rest.split(' ').next());
    after.and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// The newest epoch is on `node`, and in its clone if it keeps one.
fn wait_ready(app: &App, node: &Node, hot: bool) {
    wait::until(LIMIT, "the stand-by", || {
        let row = app.row(node)?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let (epoch, clone) = (number(&row["epoch"]), number(&row["clone"]["epoch"]));
        (row["state"] == "standby" && epoch > 2 && (!hot || clone + 3 > epoch)).then_some(())
    });
}

/// Time without service, by memory.
pub(super) fn switches() {
    println!(
        "no service, ms (median)            clones    planned: park to run    made by the stand-by    node killed: made"
    );
    for (name, shape) in [
        ("1 process, 16 MiB", [1, 1, 16, 500]),
        ("1 process, 256 MiB", [1, 1, 256, 500]),
        ("1 process, 1 GiB", [1, 1, 1024, 500]),
        ("8 processes, 64 threads, 1 GiB", [8, 64, 1024, 1000]),
    ] {
        for how in ["cold", "hot"] {
            let mut cluster = Cluster::new(&["a", "b"], Who::Me);
            for node in &mut cluster.nodes {
                node.set_agent_env("HOLO_CLONES", how);
            }
            cluster.start_agents(Timing::patient());
            cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), Who::Me));
            let ready = cluster.nodes[0].outside(DIR).join("ready");
            let binary = compile::build(&paths::tests_dir().join("bench/bench_tree.c"));
            let mut args = shape.map(|number: u64| number.to_string().into()).to_vec();
            args.push(cluster.nodes[0].inside(DIR).join("ready").into_os_string());
            let options = ["--standby", "b", "--every", "200ms", "--keep", "2"];
            let mut app = App::start(&cluster.nodes[0], "work", &Program::new(binary, &args), DIR, &options);
            app.wait_joined(&cluster.nodes[0]);
            wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
            let (mut planned, mut made) = (Vec::new(), Vec::new());
            for number in 0..SWITCHES {
                let (from, to) = (number % 2, (number + 1) % 2);
                wait_ready(&app, &cluster.nodes[to], how == "hot");
                let name = &cluster.nodes[to].name;
                let order = ["switch", "work", "--to", name, "--json"];
                let done = command::run_ok(&mut cluster.nodes[from].holo(&order), ORDER_LIMIT);
                let done: Value = serde_json::from_str(&done).expect("JSON");
                planned.push(done["first_instruction_us"].as_f64().unwrap_or(f64::NAN) / 1e3);
                made.push(made_in(&cluster.nodes[to]));
                wait::until(LIMIT, "the new owner", || {
                    (app.state(&cluster.nodes[to]) == "running").then_some(())
                });
            }
            wait_ready(&app, &cluster.nodes[1], how == "hot");
            cluster.kill(0);
            app.forget();
            wait::until(LIMIT, "take-over", || (app.state(&cluster.nodes[1]) == "running").then_some(()));
            println!(
                "{name:<34} {how:<8} {:>18.1} {:>23.1} {:>20.1}",
                median(planned),
                median(made),
                made_in(&cluster.nodes[1])
            );
        }
    }
}
