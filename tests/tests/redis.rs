//! Goal: an unmodified redis-server keeps every key and goes on serving, through 100 epochs and a kill -9.
//! Method: 200,000 keys, the append-only file on, clients that write numbered values all the time; everything is
//! verified by content, in memory and, after a reload, out of the append-only file.
#![allow(missing_docs)]

use holo_tests::app::{App, start_plain};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::redis::{Redis, free_port};
use holo_tests::{command, wait};
use std::time::Duration;

const KEYS: u32 = 200_000;
const DIR: &str = "data/redis";

fn prepare(node: &Node) -> Redis {
    hand_over(&node.outside(DIR), node.who());
    hand_over(&node.outside("data/logs"), node.who());
    Redis::new("127.0.0.1", free_port(), KEYS, node.outside("data/logs"))
}

fn started(node: &Node) -> (Redis, App) {
    let redis = prepare(node);
    let mut app = App::start(node, "redis", &redis.program(node, DIR), DIR, &[]);
    app.wait_joined(node);
    redis.wait_up(node);
    redis.fill(node);
    (redis, app)
}

/// Everything is there, in memory and in the file.
fn all_there(redis: &Redis, node: &Node, at_least: &[u64]) -> Vec<u64> {
    let last = redis.verify(node, at_least);
    redis.reload(node);
    assert_eq!(redis.verify(node, at_least), last, "the append-only file differs from memory");
    last
}

#[test]
fn plain() {
    let node = Node::without_agent(Who::Me);
    let mut redis = prepare(&node);
    let mut child = start_plain(&node, &redis.program(&node, DIR), DIR);
    redis.wait_up(&node);
    redis.fill(&node);
    let writer = redis.start_writer(&node);
    std::thread::sleep(Duration::from_millis(500));
    let n = writer.stop();
    assert_eq!(all_there(&redis, &node, &[n]), [n]);
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn quiet() {
    let node = Node::start(Who::Me);
    let (mut redis, app) = started(&node);
    let writer = redis.start_writer(&node);
    std::thread::sleep(Duration::from_millis(500));
    let n = writer.stop();
    assert_eq!(all_there(&redis, &node, &[n]), [n]);
    assert_eq!(app.state(&node), "running");
}

/// 100 epochs under two writing clients, none of which loses its connection or waits long.
#[test]
fn live() {
    let node = Node::start(Who::Me);
    let (mut redis, app) = started(&node);
    let writers = [redis.start_writer(&node), redis.start_writer(&node)];
    for _ in 0..100 {
        app.checkpoint(&node);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(writers.iter().all(|w| !w.lost()), "a client lost its connection");
    let numbers = writers.map(holo_tests::redis::Writer::stop);
    assert!(numbers.iter().all(|n| *n > 100), "{numbers:?}");
    assert_eq!(all_there(&redis, &node, &numbers), numbers);
}

fn restored(who: Who) {
    let node = Node::start(who);
    let (mut redis, mut app) = started(&node);
    for round in 0..3 {
        let writers = [redis.start_writer(&node), redis.start_writer(&node)];
        std::thread::sleep(Duration::from_millis(200));
        for _ in 0..5 {
            app.checkpoint(&node);
        }
        let mut before = vec![0; 2 * round];
        before.extend(writers.iter().map(holo_tests::redis::Writer::acknowledged));
        app.checkpoint(&node);
        std::thread::sleep(Duration::from_millis(100));
        app.kill(&node);
        let after = writers.map(holo_tests::redis::Writer::stop);
        app.restore(&node, None);
        redis.wait_up(&node);
        let last = all_there(&redis, &node, &before);
        eprintln!("round {round}: at the epoch {before:?}, at the kill {after:?}, restored {last:?}");
    }
    // It goes on as a server: new clients, and a good end.
    let n = {
        let writer = redis.start_writer(&node);
        wait::until(Duration::from_secs(20), "a write", || (writer.acknowledged() > 0).then_some(()));
        writer.stop()
    };
    assert!(n > 0 && redis.verify(&node, &[]).last() == Some(&n));
    command::run_ok(&mut node.holo(&["stop", "redis"]), Duration::from_secs(30));
    app.wait_ended(&node, Duration::from_secs(10));
}

#[test]
fn is_restored() {
    restored(Who::Me);
}

#[test]
fn is_restored_as_user() {
    restored(Who::Nobody);
}
