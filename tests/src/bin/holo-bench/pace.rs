//! What redis with 1 GiB does at twenty epochs a second, beside what it does without holo and with the library alone.

use super::{DIR, LIMIT, median, quantile};
use holo_tests::app::{App, Epoch, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, redis, wait};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// Pages of an epoch in which nobody fills memory any more.
const STEADY_PAGES: u64 = 20_000;

/// Parts of a stop that are shown.
const PARTS_SHOWN: usize = 12;

/// How an application runs.
pub(super) const MODES: [&str; 3] =
    ["without holo", "libholo, no epochs", "libholo, twenty epochs a second asked"];

/// What is set and got, and how the clients are told.
const LOADS: [(&str, &[&str]); 2] =
    [("one key", &["-n", "500000"]), ("any of 900,000 keys", &["-n", "500000", "-r", "900000"])];

struct Row {
    set: f64,
    get: f64,
    epochs_per_s: f64,
    stop_ms: f64,
    dump_ms: f64,
    pages: f64,
}

/// The table.
pub(super) fn pace() {
    println!(
        "redis with 950,000 values of 1,000 bytes under redis-benchmark, requests a second, median of 3 interleaved runs"
    );
    for (load, args) in LOADS {
        println!(
            "{load:<38}{:>14}{:>14}{:>10}{:>10}{:>10}{:>10}",
            "SET", "GET", "epochs/s", "stop p50", "dump p50", "pages p50"
        );
        let mut rows: [Vec<Row>; 3] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..3 {
            for (mode, rows) in rows.iter_mut().enumerate() {
                rows.push(once(mode, args));
            }
        }
        let of = |mode: usize, figure: fn(&Row) -> f64| median(rows[mode].iter().map(figure).collect());
        for (mode, name) in MODES.iter().enumerate() {
            let part = |figure| of(mode, figure) / of(0, figure) * 100.0;
            let (set, get) = (|row: &Row| row.set, |row: &Row| row.get);
            println!(
                "{name:<38}{:>9.0}{:>4.0}%{:>9.0}{:>4.0}%{:>10.1}{:>7.1} ms{:>7.1} ms{:>10.0}",
                of(mode, set),
                part(set),
                of(mode, get),
                part(get),
                of(mode, |row| row.epochs_per_s),
                of(mode, |row| row.stop_ms),
                of(mode, |row| row.dump_ms),
                of(mode, |row| row.pages),
            );
        }
    }
}

/// All epochs of an application.
pub(super) fn epochs(node: &Node, app: &str) -> Vec<Epoch> {
    let text = command::run_ok(&mut node.holo(&["epochs", app, "--json"]), LIMIT);
    let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    list.into_iter().map(Epoch).collect()
}

/// Number of the newest; 0: there is none.
pub(super) fn newest(all: &[Epoch]) -> u64 {
    all.iter().map(|epoch| epoch.number("epoch")).max().unwrap_or(0)
}

/// Parts of the stop that take longest, with their median times in milliseconds.
pub(super) fn stop_parts(all: &[Epoch]) -> String {
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (part, us) in all.iter().filter_map(|epoch| epoch.0["stop_parts_us"].as_object()).flatten() {
        times.entry(part).or_default().push(us.as_f64().unwrap_or(f64::NAN) / 1e3);
    }
    let mut medians: Vec<(&str, f64)> = Vec::new();
    for (part, mut times) in times {
        // Others did not have it.
        times.resize(all.len(), 0.0);
        medians.push((part, quantile(&times, 0.5)));
    }
    medians.sort_by(|a, b| b.1.total_cmp(&a.1));
    let longest = medians.iter().take(PARTS_SHOWN);
    longest.map(|(part, ms)| format!("{part} {ms:.2}")).collect::<Vec<_>>().join(", ")
}

fn once(mode: usize, load: &[&str]) -> Row {
    let node = if mode == 0 { Node::without_agent(Who::Me) } else { Node::start(Who::Me) };
    hand_over(&node.outside(DIR), Who::Me);
    let port = redis::free_port();
    let text = port.to_string();
    let args = ["--port", &text, "--save", "", "--appendonly", "no", "--enable-debug-command", "local"];
    let program = Program::new("/usr/bin/redis-server", &args);
    let (mut app, mut child) = (None, None);
    if mode == 0 {
        child = Some(holo_tests::app::start_plain(&node, &program, DIR));
    } else {
        let every = if mode == 1 { "0" } else { "50ms" };
        let mut started = App::start(&node, "redis", &program, DIR, &["--every", every, "--keep", "32"]);
        started.wait_joined(&node);
        app = Some(started);
    }
    wait::until(Duration::from_secs(10), "redis", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let mut fill = Command::new("redis-cli");
    fill.args(["-p", &text, "DEBUG", "POPULATE", "950000", "key", "1000"]);
    command::run_ok(&mut fill, LIMIT);
    if mode == 2 {
        let filled = newest(&epochs(&node, "redis"));
        wait::until(LIMIT, "an epoch with little in it", || {
            let last = epochs(&node, "redis").into_iter().max_by_key(|epoch| epoch.number("epoch"))?;
            (last.number("epoch") > filled + 1 && last.number("pages_dirty") < STEADY_PAGES).then_some(())
        });
    }
    let seen = if mode == 2 { newest(&epochs(&node, "redis")) } else { 0 };
    let start = Instant::now();
    let mut bench = Command::new("redis-benchmark");
    bench.args(["-p", &text, "-t", "set,get", "-c", "50", "-d", "1000", "--csv"]).args(load);
    let csv = command::run_ok(&mut bench, LIMIT);
    let seconds = start.elapsed().as_secs_f64();
    let rate = |test: &str| {
        let of = |line: &str| -> Option<f64> {
            let mut fields = line.split(',').map(|field| field.trim_matches('"'));
            if fields.next() == Some(test) { fields.next()?.parse().ok() } else { None }
        };
        csv.lines().find_map(of).unwrap_or(f64::NAN)
    };
    let mut row =
        Row { set: rate("SET"), get: rate("GET"), epochs_per_s: 0.0, stop_ms: 0.0, dump_ms: 0.0, pages: 0.0 };
    if let Some(app) = &mut app {
        if mode == 2 {
            let all: Vec<Epoch> =
                epochs(&node, "redis").into_iter().filter(|epoch| epoch.number("epoch") > seen).collect();
            println!("longest parts of a stop, p50 in ms: {}", stop_parts(&all));
            let half = |name: &str, unit: f64| {
                let values: Vec<f64> = all.iter().map(|epoch| epoch.number(name) as f64 / unit).collect();
                quantile(&values, 0.5)
            };
            row.epochs_per_s = newest(&all).saturating_sub(seen) as f64 / seconds;
            (row.stop_ms, row.dump_ms) = (half("stop_us", 1e3), half("dump_us", 1e3));
            row.pages = half("pages_dirty", 1.0);
        }
        app.kill(&node);
    }
    if let Some(child) = &mut child {
        let _ = child.kill();
        let _ = child.wait();
    }
    row
}
