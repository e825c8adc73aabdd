//! `make bench`: what holo costs, as ratios within one run, since machines and hours differ.
#![allow(clippy::print_stdout)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, paths, process, redis, wait};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "holo-bench/ahead.rs"]
mod ahead;
#[path = "holo-bench/bringup.rs"]
mod bringup;
#[path = "holo-bench/criu.rs"]
mod criu;
#[path = "holo-bench/files.rs"]
mod files;
#[path = "holo-bench/pace.rs"]
mod pace;
#[path = "holo-bench/pgbench.rs"]
mod pgbench;
#[path = "holo-bench/restores.rs"]
mod restores;
#[path = "holo-bench/standby.rs"]
mod standby;
#[path = "holo-bench/switches.rs"]
mod switches;

const LIMIT: Duration = Duration::from_secs(300);
const DIR: &str = "data/work";

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    let parts: [(&str, fn()); 16] = [
        ("start", start_up),
        ("calls", calls),
        ("memory", memory),
        ("incremental", incremental),
        ("engines", engines),
        ("stops", stops),
        ("ahead", ahead::ahead),
        ("restores", restores::restores),
        ("criu", criu::criu),
        ("switches", switches::switches),
        ("standby", standby::standby),
        ("files", files::files),
        ("bringup", bringup::bringup),
        ("redis", redis_throughput),
        ("pace", pace::pace),
        ("pgbench", pgbench::pgbench),
    ];
    for (name, part) in parts {
        if only.is_empty() || only == name {
            part();
            println!();
        }
    }
}

/// Start-up of small programs: untouched, and with the library joined to an agent.
fn start_up() {
    println!("start-up, median of 60 runs        alone        holo       added");
    let node = Node::start(Who::Me);
    let library = paths::bin("libholo.so");
    let cases: [(&str, &[&str]); 2] = [("/bin/true", &[]), ("/usr/bin/python3", &["-c", "pass"])];
    for (program, args) in cases {
        let once = |preload: bool| {
            let mut command = node.command(program);
            command.args(args).stdin(Stdio::null());
            if preload {
                command.env("LD_PRELOAD", &library);
            }
            let start = Instant::now();
            let status = command.status();
            assert!(status.is_ok_and(|s| s.success()), "{program}");
            start.elapsed().as_secs_f64() * 1e3
        };
        let (mut alone, mut holo) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            alone.push(once(false));
            holo.push(once(true));
        }
        let (alone, holo) = (median(alone), median(holo));
        println!(
            "{:<28} {alone:>9.2} ms {holo:>8.2} ms {:>8.2} ms",
            format!("{program} {}", args.join(" ")),
            holo - alone
        );
    }
}

/// Cost of a call on each way in.
fn calls() {
    println!("nanoseconds a call            getuid    read 0   poll 0s  raw instruction");
    let node = Node::start(Who::Me);
    let program = compile::build(&paths::tests_dir().join("bench/bench_calls.c"));
    for ways in ["", "symbols", "sites", "symbols,sites", "symbols,sites,traps"] {
        let mut command = node.command(&program);
        if !ways.is_empty() {
            command.env("LD_PRELOAD", paths::bin("libholo.so")).env("HOLO_WAYS", ways);
        }
        let text = command::run_ok(&mut command, LIMIT);
        let name = if ways.is_empty() { "without holo" } else { ways };
        print!("{name:<26}");
        text.split_whitespace().for_each(|n| print!("{n:>10}"));
        println!();
    }
}

/// Stop, dump, bytes and restore by touched memory.
fn memory() {
    println!("touched memory      stop       dump     written    restore   (medians of 5; restore of 3)");
    for mib in [16_u64, 256, 1024] {
        let node = Node::start(Who::Me);
        hand_over(&node.outside(DIR), Who::Me);
        let ready = node.inside(DIR).join("ready");
        let binary = compile::build(&paths::tests_dir().join("bench/bench_memory.c"));
        let program = Program::new(binary, &[mib.to_string().into(), ready.clone().into_os_string()]);
        let mut app = App::start(&node, "memory", &program, DIR, &["--keep", "2"]);
        app.wait_joined(&node);
        wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
        let (mut stop, mut dump, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            let epoch = app.checkpoint(&node);
            stop.push(epoch.number("stop_us") as f64 / 1e3);
            dump.push(epoch.number("dump_us") as f64 / 1e3);
            bytes.push(epoch.number("bytes_sent") as f64 / f64::from(1 << 20));
        }
        let mut restore = Vec::new();
        for _ in 0..3 {
            app.kill(&node);
            let restored = app.restore_unsettled(&node, None);
            restore.push(restored["restore_us"].as_f64().unwrap_or(f64::NAN) / 1e3);
        }
        let first = bytes.first().copied().unwrap_or(f64::NAN);
        println!(
            "{mib:>8} MiB  {:>8.1} ms {:>7.0} ms {first:>8.0} MiB {:>8.0} ms   later epochs write {:.1} MiB",
            median(stop),
            median(dump),
            median(restore),
            median(bytes)
        );
    }
}

/// A part of rising values, such as 0.99.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Epochs of memory of which a fixed part changes, one behind the other, with each engine.
fn incremental() {
    changing(&[
        (1024, 2621, "userfaultfd"),
        (1024, 2621, "full-scan"),
        (16, 1000, "userfaultfd"),
        (16, 1000, "full-scan"),
    ]);
}

/// The engines that old kernels have.
fn engines() {
    if process::have_soft_dirty() {
        changing(&[(256, 655, "soft-dirty"), (256, 655, "full-scan")]);
    }
}

fn changing(cases: &[(u64, u64, &str)]) {
    println!(
        "changing memory, 60 epochs        first stop   stop p50    p99     dump p50   dirty    written"
    );
    for &(mib, pages, engine) in cases {
        let mut node = Node::without_agent(Who::Me);
        node.set_agent_env("HOLO_ENGINE", engine);
        node.start_agent();
        hand_over(&node.outside(DIR), Who::Me);
        let ready = node.inside(DIR).join("ready");
        let binary = compile::build(&paths::tests_dir().join("bench/bench_memory.c"));
        let args = [mib.to_string().into(), ready.clone().into_os_string(), pages.to_string().into()];
        let mut app = App::start(&node, "memory", &Program::new(binary, &args), DIR, &["--keep", "2"]);
        app.wait_joined(&node);
        wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
        let first = app.checkpoint(&node).number("stop_us") as f64 / 1e3;
        let mut columns: [Vec<f64>; 4] = Default::default();
        for _ in 0..if mib > 100 && engine == "full-scan" { 10 } else { 60 } {
            let epoch = app.checkpoint(&node);
            let fields = ["stop_us", "dump_us", "pages_dirty", "bytes_sent"];
            columns
                .iter_mut()
                .zip(fields)
                .for_each(|(column, field)| column.push(epoch.number(field) as f64));
        }
        let [stop, dump, dirty, sent] = &columns;
        println!(
            "{mib:>5} MiB, {pages} pages, {engine:<12} {first:>7.1} ms {:>7.2} ms {:>6.2} ms {:>7.1} ms {:>7.0} {:>6.1} MiB",
            quantile(stop, 0.5) / 1e3,
            quantile(stop, 0.99) / 1e3,
            quantile(dump, 0.5) / 1e3,
            quantile(dirty, 0.5),
            quantile(sent, 0.5) / f64::from(1 << 20)
        );
        app.kill(&node);
    }
}

/// Where the stop goes: many processes and threads of which little changes, and one large process; with each engine.
fn stops() {
    println!(
        "stop in ms                     engine        first     p50     p99 |   park   scan   copy  kinds unpark (p50)"
    );
    for (name, processes, threads, mib, pages, engines) in [
        ("8 processes, 64 threads, 1 GiB", 8, 64, 1024, 1000, &["userfaultfd", "full-scan"][..]),
        ("1 process, 1 GiB, 1 %", 1, 1, 1024, 2_621, &["userfaultfd", "full-scan"]),
        ("1 process, 4 GiB, 1 %", 1, 1, 4096, 10_485, &["userfaultfd"]),
    ] {
        for &engine in engines {
            let mut node = Node::without_agent(Who::Me);
            node.set_agent_env("HOLO_ENGINE", engine);
            node.start_agent();
            hand_over(&node.outside(DIR), Who::Me);
            let ready = node.inside(DIR).join("ready");
            let binary = compile::build(&paths::tests_dir().join("bench/bench_tree.c"));
            let numbers = [processes, threads, mib, pages].map(|number: u64| number.to_string().into());
            let mut args = numbers.to_vec();
            args.push(ready.clone().into_os_string());
            let mut app = App::start(&node, "stops", &Program::new(binary, &args), DIR, &["--keep", "2"]);
            app.wait_joined(&node);
            wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
            let first = app.checkpoint(&node).number("stop_us") as f64 / 1e3;
            let mut columns: [Vec<f64>; 6] = Default::default();
            for _ in 0..if engine == "full-scan" {
                8
            } else if mib > 1024 {
                30
            } else {
                100
            } {
                let epoch = app.checkpoint(&node);
                let part = |name: &str| epoch.0["stop_parts_us"][name].as_u64().unwrap_or(0) as f64 / 1e3;
                let stop = epoch.number("stop_us") as f64 / 1e3;
                let (park, unpark, scan) = (part("park"), part("unpark"), part("memory.track"));
                let copy = part("memory.staging") + part("memory.fork");
                let kinds = stop - park - unpark - scan - copy;
                columns
                    .iter_mut()
                    .zip([stop, park, scan, copy, kinds, unpark])
                    .for_each(|(column, value)| column.push(value));
            }
            let p50 = columns.each_ref().map(|column| quantile(column, 0.5));
            println!(
                "{name:<30} {engine:<12} {first:>6.1} {:>7.2} {:>7.2} | {:>6.2} {:>6.2} {:>6.2} {:>6.2} {:>6.2}",
                p50[0],
                quantile(&columns[0], 0.99),
                p50[1],
                p50[2],
                p50[3],
                p50[4],
                p50[5]
            );
            app.kill(&node);
        }
    }
}

/// redis-benchmark without holo, with the library and no epochs, and with an epoch a second.
fn redis_throughput() {
    println!("redis-benchmark, requests a second, median of 5 interleaved runs");
    let mut figures: Vec<[Vec<f64>; 4]> = (0..3).map(|_| Default::default()).collect();
    for _ in 0..5 {
        for (mode, columns) in figures.iter_mut().enumerate() {
            let row = redis_once(mode);
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
    }
    println!("{:<28}{:>12}{:>12}{:>14}{:>14}", "", "SET", "GET", "SET pipelined", "GET pipelined");
    let base: Vec<f64> = figures[0].iter().map(|c| median(c.clone())).collect();
    for (name, columns) in
        ["without holo", "libholo, no epochs", "libholo, an epoch a second"].iter().zip(&figures)
    {
        print!("{name:<28}");
        for (column, base) in columns.iter().zip(&base) {
            let value = median(column.clone());
            print!("{:>8.0} {:>4.0}%", value, value / base * 100.0);
        }
        println!();
    }
}

fn redis_once(mode: usize) -> [f64; 4] {
    let node = if mode == 0 { Node::without_agent(Who::Me) } else { Node::start(Who::Me) };
    hand_over(&node.outside(DIR), Who::Me);
    let port = redis::free_port();
    let text = port.to_string();
    let args = ["--port", &text, "--save", "", "--appendonly", "no"];
    let program = Program::new("/usr/bin/redis-server", &args);
    let mut app = None;
    let mut child = None;
    if mode == 0 {
        child = Some(holo_tests::app::start_plain(&node, &program, DIR));
    } else {
        let every = if mode == 1 { "0" } else { "1s" };
        let mut started = App::start(&node, "redis", &program, DIR, &["--every", every]);
        started.wait_joined(&node);
        app = Some(started);
    }
    wait::until(Duration::from_secs(10), "redis", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let mut row = [0.0; 4];
    for (half, pipeline, count) in [(0, "1", "150000"), (2, "16", "1000000")] {
        let mut bench = Command::new("redis-benchmark");
        bench.args([
            "-p", &text, "-t", "set,get", "-n", count, "-c", "50", "-P", pipeline, "-r", "100000", "--csv",
        ]);
        let csv = command::run_ok(&mut bench, LIMIT);
        for line in csv.lines() {
            let fields: Vec<&str> = line.split(',').map(|f| f.trim_matches('"')).collect();
            let value = fields.get(1).and_then(|f| f.parse().ok()).unwrap_or(f64::NAN);
            match fields.first() {
                Some(&"SET") => row[half] = value,
                Some(&"GET") => row[half + 1] = value,
                _ => {}
            }
        }
    }
    if let Some(child) = &mut child {
        let _ = child.kill();
        let _ = child.wait();
    }
    if let Some(app) = &mut app {
        app.kill(&node);
    }
    row
}
