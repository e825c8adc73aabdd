//! What PostgreSQL does at twenty epochs a second under pgbench, its files replicated, beside what it does without holo and with the
//! library alone. As an ordinary user.

use super::pace::{MODES, epochs, newest, stop_parts};
use super::{DIR, LIMIT, median, quantile};
use holo_tests::app::{App, Epoch, Program, start_plain};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, redis, wait};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const SCALE: &str = "10";
const SECONDS: u32 = 8;

struct Row {
    per_s: f64,
    epochs_per_s: f64,
    stop_ms: f64,
    dump_ms: f64,
}

/// The table.
pub(super) fn pgbench() {
    println!(
        "PostgreSQL under pgbench (scale {SCALE}, 4 clients, {SECONDS} s), median of 3 interleaved runs"
    );
    println!("{:<38}{:>22}{:>10}{:>10}{:>10}", "", "transactions/s", "epochs/s", "stop p50", "dump p50");
    let mut rows: [Vec<Row>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (mode, rows) in rows.iter_mut().enumerate() {
            rows.push(once(mode));
        }
    }
    let of = |mode: usize, figure: fn(&Row) -> f64| median(rows[mode].iter().map(figure).collect());
    for (mode, name) in MODES.iter().enumerate() {
        let per_s = |row: &Row| row.per_s;
        println!(
            "{name:<38}{:>16.0} {:>4.0}%{:>10.1}{:>7.1} ms{:>7.1} ms",
            of(mode, per_s),
            of(mode, per_s) / of(0, per_s) * 100.0,
            of(mode, |row| row.epochs_per_s),
            of(mode, |row| row.stop_ms),
            of(mode, |row| row.dump_ms),
        );
    }
}

fn tool(name: &str) -> PathBuf {
    PathBuf::from(BIN).join(name)
}

fn once(mode: usize) -> Row {
    let node = if mode == 0 { Node::without_agent(Who::Nobody) } else { Node::start(Who::Nobody) };
    hand_over(&node.outside(DIR), Who::Nobody);
    let data = node.inside(DIR).join("db");
    let mut init = node.command(tool("initdb"));
    init.arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "-N", "--no-locale"]);
    command::run_ok(&mut init, LIMIT);
    let port = redis::free_port().to_string();
    let args = ["-p", &port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="];
    let mut all = vec!["-D".into(), data.into_os_string()];
    all.extend(args.iter().map(Into::into));
    let program = Program::new(tool("postgres"), &all);
    let (mut app, mut child) = (None, None);
    if mode == 0 {
        child = Some(start_plain(&node, &program, DIR));
    } else {
        let every = if mode == 1 { "0" } else { "50ms" };
        let mut started = App::start(&node, "postgres", &program, DIR, &["--every", every, "--keep", "200"]);
        started.wait_joined(&node);
        app = Some(started);
    }
    let client = |name: &str, args: &[&str]| {
        let mut client = Command::new(tool(name));
        client.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"]).args(args);
        client
    };
    wait::until(Duration::from_secs(20), "the server", || {
        let ready = client("pg_isready", &[]).output();
        ready.is_ok_and(|said| said.status.success()).then_some(())
    });
    command::run_ok(&mut client("pgbench", &["-i", "-q", "-s", SCALE, "postgres"]), LIMIT);
    command::run_ok(&mut client("psql", &["-c", "checkpoint", "postgres"]), LIMIT);
    let seen = if mode == 2 { newest(&epochs(&node, "postgres")) } else { 0 };
    let seconds = SECONDS.to_string();
    let said =
        command::run_ok(&mut client("pgbench", &["-c", "4", "-j", "2", "-T", &seconds, "postgres"]), LIMIT);
    let per_s = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let mut row = Row { per_s: per_s.unwrap_or(f64::NAN), epochs_per_s: 0.0, stop_ms: 0.0, dump_ms: 0.0 };
    if let Some(app) = &mut app {
        if mode == 2 {
            let all: Vec<Epoch> =
                epochs(&node, "postgres").into_iter().filter(|epoch| epoch.number("epoch") > seen).collect();
            let half = |name: &str| {
                let values: Vec<f64> = all.iter().map(|epoch| epoch.number(name) as f64 / 1e3).collect();
                quantile(&values, 0.5)
            };
            row.epochs_per_s = newest(&all).saturating_sub(seen) as f64 / f64::from(SECONDS);
            println!("longest parts of a stop, p50 in ms: {}", stop_parts(&all));
            (row.stop_ms, row.dump_ms) = (half("stop_us"), half("dump_us"));
        }
        app.kill(&node);
    }
    if let Some(child) = &mut child {
        command::run_ok(node.command("kill").args(["-INT", &child.id().to_string()]), LIMIT);
        let _ = child.wait();
    }
    row
}
