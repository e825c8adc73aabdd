//! `make demo`: redis-server on node A under writing clients; A is killed; B answers.
#![allow(clippy::print_stdout)]

use holo_tests::app::App;
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Who, hand_over};
use holo_tests::redis::{Redis, Writer};
use holo_tests::wait;
use std::time::{Duration, Instant};

const KEYS: u32 = 200_000;
const DIR: &str = "data/redis";
const LIMIT: Duration = Duration::from_secs(60);

fn say(start: Instant, text: &str) {
    println!("{:7.2} s  {text}", start.elapsed().as_secs_f64());
}

fn main() {
    let start = Instant::now();
    let mut cluster = Cluster::new(&["a", "b", "clients"], Who::Me);
    say(start, "three nodes with their own network, processes and files: a, b, and one for clients");
    cluster.start_agents_of(&[0, 1], Timing::default());
    say(start, "holod runs on a and b; keys were made on a and carried to b");
    for node in &cluster.nodes {
        hand_over(&node.outside(DIR), node.who());
        hand_over(&node.outside("data/logs"), node.who());
    }
    let mut redis = Redis::new(&cluster.address(0), 6379, KEYS, cluster.nodes[2].outside("data/logs"));
    redis.pause_ms = 0;
    let program = redis.program(&cluster.nodes[0], DIR);
    let options = ["--standby", "b", "--every", "500ms"];
    let mut app = App::start(&cluster.nodes[0], "redis", &program, DIR, &options);
    app.wait_joined(&cluster.nodes[0]);
    say(start, "holo run --name redis --standby b --every 500ms --root DIR -- redis-server ... on a");
    redis.wait_up(&cluster.nodes[2]);
    redis.fill(&cluster.nodes[2]);
    say(start, &format!("{KEYS} keys are set, with the append-only file on; two clients go on writing"));
    let writers = [redis.start_writer(&cluster.nodes[2]), redis.start_writer(&cluster.nodes[2])];
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        let row = app.row(&cluster.nodes[0]).unwrap_or_default();
        let written: u64 = writers.iter().map(Writer::acknowledged).sum();
        say(
            start,
            &format!(
                "a: {} at epoch {}, last stop {:.1} ms, {written} writes acknowledged",
                row["state"].as_str().unwrap_or("?"),
                row["epoch"],
                row["stop_us"].as_f64().unwrap_or(0.0) / 1e3
            ),
        );
    }
    let before: Vec<u64> = writers.iter().map(Writer::acknowledged).collect();
    let epoch = app.checkpoint(&cluster.nodes[0]);
    say(start, &format!("epoch {} is sealed on {}", epoch.0["epoch"], epoch.0["where"]));
    std::thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    cluster.kill(0);
    app.forget();
    say(start, "kill -9 of node a: its agent, its redis and everything else");
    wait::until(LIMIT, "take-over by b", || (app.state(&cluster.nodes[1]) == "running").then_some(()));
    redis.host = cluster.address(1);
    redis.wait_up(&cluster.nodes[2]);
    say(start, &format!("redis answers on b, {:.2} s after the death of a", killed.elapsed().as_secs_f64()));
    let acknowledged: Vec<u64> = writers.iter().map(Writer::acknowledged).collect();
    drop(writers);
    let have = redis.verify(&cluster.nodes[2], &before);
    redis.reload(&cluster.nodes[2]);
    assert_eq!(redis.verify(&cluster.nodes[2], &before), have, "the append-only file differs from memory");
    say(start, &format!("all {KEYS} keys are there, and in the append-only file too, compared by content"));
    let sum = |v: &[u64]| v.iter().sum::<u64>();
    let (had, all) = (sum(&have), sum(&acknowledged));
    say(
        start,
        &format!(
            "of {all} acknowledged writes {had} are there; lost: the {} after the last sealed epoch",
            all.saturating_sub(had)
        ),
    );
    let writer = redis.start_writer(&cluster.nodes[2]);
    std::thread::sleep(Duration::from_millis(500));
    say(start, &format!("b goes on serving: {} more writes in half a second", writer.stop()));
}
