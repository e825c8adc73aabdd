//! What replication of files costs: calls that write, epochs of files that change, the stop of files that do not.

use crate::{DIR, LIMIT, median};
use holo_tests::app::{App, Epoch, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, compile, paths, wait};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where programs that change files on order look for orders; not a root.
const ORDERS: &str = "data/orders";
const MIB: f64 = 1048576.0;
/// All that `bench_files calls` writes to.
const OLD_BYTES: usize = 16 << 20;

/// How a program runs.
#[derive(Clone, Copy)]
enum Mode {
    Alone,
    /// Under holo, with options.
    Holo(&'static [&'static str]),
}

/// All of them, or the one that the second argument names.
pub(crate) fn files() {
    let only = std::env::args().nth(2).unwrap_or_default();
    let parts: [(&str, fn()); 7] = [
        ("calls", calls),
        ("stream", stream),
        ("scattered", scattered),
        ("rsync", beside_rsync),
        ("gate", gate),
        ("commits", commits),
        ("untouched", untouched),
    ];
    parts.iter().filter(|(name, _)| only.is_empty() || only == *name).for_each(|(_, part)| part());
}

fn program() -> PathBuf {
    compile::build(&paths::tests_dir().join("bench/bench_files.c"))
}

fn arg(value: impl Into<OsString>) -> OsString {
    value.into()
}

/// Runs a program to its end; what it printed. `root` is protected if there is one.
fn run(node: &Node, mode: Mode, root: Option<&Path>, program: &Program) -> String {
    let mut command = match mode {
        Mode::Alone => node.command(&program.path),
        Mode::Holo(options) => {
            let mut holo = node.holo(&["run", "--name", "bench", "--keep", "2", "--park-max", "2s"]);
            holo.args(options);
            if let Some(root) = root {
                holo.arg("--root").arg(root);
            }
            holo.arg("--").arg(&program.path);
            holo
        }
    };
    command::run_ok(command.args(&program.args).envs(program.env.iter().map(|(k, v)| (k, v))), LIMIT)
}

/// Medians of what a program prints in each mode, of runs that take turns.
fn in_turns(rounds: usize, modes: &[(Mode, bool)], program: &dyn Fn(&Node) -> Program) -> Vec<Vec<f64>> {
    let mut all: Vec<Vec<Vec<f64>>> = vec![Vec::new(); modes.len()];
    for round in 0..rounds {
        // Each begins as often as the others: a disk is not as fast after one as after another.
        for at in 0..modes.len() {
            let index = (at + round) % modes.len();
            let (columns, (mode, is_root)) = (&mut all[index], &modes[index]);
            let node = Node::start(Who::Me);
            hand_over(&node.outside(DIR), Who::Me);
            let root = node.inside(DIR);
            let text = run(&node, *mode, is_root.then_some(root.as_path()), &program(&node));
            let row: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            columns.resize(row.len(), Vec::new());
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
    }
    all.into_iter().map(|columns| columns.into_iter().map(median).collect()).collect()
}

/// A write of 4 KiB with libholo, where files are recorded and where they are not.
fn calls() {
    println!(
        "4 KiB, ns a call, median of 7       pwrite     write    append   of a file that was there: pwrite     write"
    );
    let modes =
        [(Mode::Alone, false), (Mode::Holo(&["--every", "0"]), false), (Mode::Holo(&["--every", "0"]), true)];
    let of = |node: &Node| {
        let dir = node.inside(DIR);
        fs::write(node.outside(DIR).join("old"), vec![1; OLD_BYTES]).unwrap_or_else(|e| panic!("old: {e}"));
        Program::new(program(), &[arg("calls"), dir.join("f").into(), dir.join("old").into()])
    };
    let all = in_turns(7, &modes, &of);
    for (name, row) in ["without holo", "libholo, not recorded", "libholo, recorded"].iter().zip(&all) {
        print!("{name:<32}");
        print_calls(row.iter().copied());
    }
    print!("{:<32}", "recording (aim: 100 at most)");
    print_calls(all[2].iter().zip(&all[1]).map(|(with, without)| with - without));
    println!();
}

fn print_calls(all: impl Iterator<Item = f64>) {
    for (at, ns) in all.enumerate() {
        let width = if at == 3 { 34 } else { 10 };
        print!("{ns:>width$.0}");
    }
    println!();
}

/// 1 GiB in writes of 1 MiB.
fn stream() {
    println!("1 GiB in writes of 1 MiB, MiB a second, median of 7 (aim: 97 % at least)");
    let modes =
        [(Mode::Alone, false), (Mode::Holo(&["--every", "0"]), false), (Mode::Holo(&["--every", "0"]), true)];
    let of = |node: &Node| {
        Program::new(program(), &[arg("stream"), node.inside(DIR).join("f").into(), arg("1024")])
    };
    let all = in_turns(7, &modes, &of);
    for (name, row) in ["without holo", "libholo, not recorded", "libholo, recorded"].iter().zip(&all) {
        println!("{name:<32}{:>10.0} {:>6.1} %", row[0], row[0] / all[0][0] * 100.0);
    }
    println!();
}

/// A program that changes files when it is told to.
struct OnOrder {
    node: Node,
    app: App,
    go: PathBuf,
}

impl OnOrder {
    fn start(node: Node, args: &dyn Fn(&Path) -> Vec<OsString>) -> OnOrder {
        hand_over(&node.outside(DIR), Who::Me);
        hand_over(&node.outside(ORDERS), Who::Me);
        let go = node.outside(ORDERS).join("go");
        let program = Program::new(program(), &args(&go));
        let mut app = App::start(&node, "bench", &program, DIR, &["--keep", "2"]);
        app.wait_joined(&node);
        OnOrder { node, app, go }
    }

    /// Has it change files; how many bytes are others then.
    fn order(&self) -> f64 {
        fs::write(&self.go, b"").unwrap_or_else(|e| panic!("{}: {e}", self.go.display()));
        wait::until(LIMIT, "files changed", || (!self.go.exists()).then_some(()));
        let text = fs::read_to_string(self.go.with_extension("bytes")).unwrap_or_default();
        text.trim().parse().unwrap_or(f64::NAN)
    }

    fn epoch(&self) -> Epoch {
        self.app.checkpoint(&self.node)
    }

    /// Bytes that an epoch sends, with the epoch's own file, which names its pages.
    fn sent(&self, epoch: &Epoch) -> f64 {
        let file = format!("state/apps/bench/epochs/{}.epoch", epoch.number("epoch"));
        let names = fs::metadata(self.node.outside(&file)).map_or(f64::NAN, |meta| meta.len() as f64);
        epoch.number("bytes_sent") as f64 + names
    }

    fn end(mut self) {
        self.app.kill(&self.node);
    }
}

fn part(epoch: &Epoch, name: &str) -> f64 {
    epoch.0["stop_parts_us"][name].as_u64().unwrap_or(0) as f64 / 1e3
}

/// A number of kilobytes in a text of `/proc`, as MiB.
fn kib(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    number.unwrap_or(f64::NAN) / 1024.0
}

/// A million small writes all over a large file.
fn scattered() {
    println!(
        "writes of 100 bytes anywhere in 1 GiB     writes   changed pages   table     agent grows by   sent"
    );
    for count in [10_000, 1_000_000] {
        let node = Node::start(Who::Me);
        let file = node.inside(DIR).join("f");
        let on = OnOrder::start(node, &|go| {
            vec![arg("scatter"), file.clone().into(), arg("1024"), arg(count.to_string()), go.into()]
        });
        on.order();
        on.epoch();
        let agent = on.node.agent_pid().unwrap_or(0);
        let of_agent = |file: &str| fs::read_to_string(format!("/proc/{agent}/{file}")).unwrap_or_default();
        // From here on the peak is that of this epoch.
        let _ = fs::write(format!("/proc/{agent}/clear_refs"), b"5");
        let before = kib(&of_agent("status"), "VmHWM:");
        let changed = on.order();
        let epoch = on.epoch();
        let peak = kib(&of_agent("status"), "VmHWM:");
        let maps = of_agent("smaps");
        let table = maps.split_once("/changes").map_or(f64::NAN, |(_, rest)| kib(rest, "Rss:"));
        println!(
            "{:<42}{count:>7} {:>15.0} {table:>5.1} MiB {:>12.1} MiB {:>7.0} MiB",
            "",
            changed / 4096.0,
            peak - before,
            epoch.number("bytes_sent") as f64 / MIB
        );
        on.end();
    }
    println!();
}

/// A tree of 20,000 files of 6,000 bytes below `dir`.
fn tree(dir: &Path, files: usize) {
    for number in 0..files {
        let home = dir.join((number / 100).to_string());
        if number % 100 == 0 {
            fs::create_dir_all(&home).unwrap_or_else(|e| panic!("{}: {e}", home.display()));
        }
        let mut bytes = vec![number as u8; 6000];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let path = home.join(number.to_string());
        fs::write(&path, &bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// Epochs and rsync, of the same changes in the same tree.
fn beside_rsync() {
    println!(
        "20,000 files and one of 256 MiB; medians of 5     changed    holo sends            in      stop   rsync sends            in"
    );
    for (pages, files) in [(4000_usize, 0_usize), (1000, 200), (0, 2000)] {
        let node = Node::start(Who::Me);
        let (large, small) = (node.inside(DIR).join("large"), node.inside(DIR).join("small"));
        tree(&node.outside(DIR).join("small"), 20_000);
        let copy = node.outside("data/copy");
        let source = node.outside(DIR);
        let on = OnOrder::start(node, &|go| {
            let numbers = |n: usize| arg(n.to_string());
            vec![
                arg("change"),
                large.clone().into(),
                arg("256"),
                numbers(pages),
                small.clone().into(),
                numbers(files),
                go.into(),
            ]
        });
        let rsync = || {
            let mut rsync = Command::new("rsync");
            rsync.args(["-a", "--inplace", "--no-whole-file", "--delete", "--stats", "--no-human-readable"]);
            rsync.arg(format!("{}/", source.display())).arg(format!("{}/", copy.display()));
            let start = Instant::now();
            let text = command::run_ok(&mut rsync, LIMIT);
            let field = |name: &str| {
                let rest = text.lines().find_map(|line| line.strip_prefix(name));
                rest.and_then(|rest| rest.trim().replace(',', "").parse::<f64>().ok()).unwrap_or(f64::NAN)
            };
            let bytes = field("Total bytes sent:") + field("Total bytes received:");
            (bytes, start.elapsed().as_secs_f64() * 1e3)
        };
        on.order();
        on.epoch();
        rsync();
        // What an epoch of an application that does nothing sends: state that is no file.
        let idle = median((0..3).map(|_| on.sent(&on.epoch())).collect());
        let mut columns: [Vec<f64>; 6] = Default::default();
        for _ in 0..5 {
            let changed = on.order();
            let epoch = on.epoch();
            let (bytes, ms) = rsync();
            let sent = on.sent(&epoch) - idle;
            let row = [changed, sent, epoch.number("dump_us") as f64 / 1e3, part(&epoch, "files"), bytes, ms];
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        let [changed, sent, dump, stop, bytes, ms] = columns.map(median);
        println!(
            "{:<46} {:>6.1} MiB {:>6.1} MiB {:>5.3}x {dump:>6.0} ms {stop:>6.1} ms {:>6.1} MiB {:>5.3}x {ms:>6.0} ms",
            format!("{pages} pages of the large, {files} of the small"),
            changed / MIB,
            sent / MIB,
            sent / changed,
            bytes / MIB,
            bytes / changed
        );
        on.end();
    }
    println!();
}

/// A node whose agent copies contents in the stop, or reads them afterwards.
fn reading_later(later: bool) -> Node {
    let mut node = Node::without_agent(Who::Me);
    if !later {
        node.set_agent_env("HOLO_FILES_GATE", "0");
    }
    node.start_agent();
    node
}

/// Contents that are copied in the stop and that are read after it: the stop, and what writers wait.
fn gate() {
    println!("stop for files, ms, median of 7; 20,000 files and one of 256 MiB     in the stop   after it");
    for (pages, files) in [(4000_usize, 0_usize), (65_536, 0), (1000, 200), (0, 2000)] {
        let stops = [false, true].map(|later| {
            let node = reading_later(later);
            let (large, small) = (node.inside(DIR).join("large"), node.inside(DIR).join("small"));
            tree(&node.outside(DIR).join("small"), 20_000);
            let on = OnOrder::start(node, &|go| {
                let number = |n: usize| arg(n.to_string());
                let (large, small) = (large.clone(), small.clone());
                let (pages, files) = (number(pages), number(files));
                vec![arg("change"), large.into(), arg("256"), pages, small.into(), files, go.into()]
            });
            on.epoch();
            let stop = |_| {
                on.order();
                part(&on.epoch(), "files")
            };
            stop(0);
            let stops = (0..7).map(stop).collect();
            on.end();
            median(stops)
        });
        let name = format!("{pages} pages of the large, {files} of the small");
        println!("{name:<70}{:>10.1} {:>10.1}", stops[0], stops[1]);
    }
    println!();
    for (files, what) in
        [("0", "pages of a file of 64 MiB"), ("500", "these, and 500 small files that are cut and written")]
    {
        waits(files, what);
    }
}

/// How long calls take that overwrite what epochs are to have.
fn waits(files: &str, what: &str) {
    println!("{what}: us a call, medians of 3 runs of 5 s");
    println!("{:<44}{:>8}{:>8}{:>8}{:>10}{:>14}", "", "p50", "p99", "p99.9", "longest", ">0.1 ms, ppm");
    let epochs: &[&str] = &["--every", "200ms"];
    let modes: [(&str, Mode, bool); 4] = [
        ("without holo", Mode::Alone, true),
        ("libholo, no epochs", Mode::Holo(&["--every", "0"]), true),
        ("five epochs a second, copied in the stop", Mode::Holo(epochs), false),
        ("five epochs a second, read after it", Mode::Holo(epochs), true),
    ];
    let mut all: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); 5]; modes.len()];
    for _ in 0..3 {
        for ((_, mode, later), columns) in modes.iter().zip(&mut all) {
            let node = reading_later(*later);
            hand_over(&node.outside(DIR), Who::Me);
            let root = node.inside(DIR);
            let args = [arg("waits"), root.join("f").into(), arg("64"), arg(files), arg("5")];
            let text = run(&node, *mode, Some(&root), &Program::new(program(), &args));
            let row = text.split_whitespace().filter_map(|n| n.parse::<f64>().ok());
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
    }
    for ((name, ..), columns) in modes.iter().zip(all) {
        let [p50, p99, p999, longest, slow] = &columns.into_iter().map(median).collect::<Vec<_>>()[..] else {
            continue;
        };
        println!("{name:<44}{p50:>8.1}{p99:>8.1}{p999:>8.1}{longest:>10.0}{slow:>14.0}");
    }
    println!();
}

/// Commits of a database that waits for the disk each time.
fn commits() {
    println!(
        "SQLite, synchronous=FULL, commits a second, median of 12 runs, each of 2 s after a first one (aim: 95 % at least)"
    );
    const SCRIPT: &str = "import sqlite3, sys, time
d = sqlite3.connect(sys.argv[1], isolation_level=None)
d.execute('pragma journal_mode=' + sys.argv[2]); d.execute('pragma synchronous=full')
d.execute('create table t (n integer primary key, v text)')
for seconds in 1, 2:
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        d.execute('insert into t (v) values (?)', ('v' * 200,)); n += 1
print(n / seconds)";
    let modes =
        [(Mode::Alone, false), (Mode::Holo(&["--every", "0"]), true), (Mode::Holo(&["--every", "1s"]), true)];
    for journal in ["delete", "wal"] {
        let of = |node: &Node| {
            let args = [arg("-c"), arg(SCRIPT), node.inside(DIR).join("db").into(), arg(journal)];
            Program::new("/usr/bin/python3", &args)
        };
        let all = in_turns(12, &modes, &of);
        let names = ["without holo", "libholo, no epochs", "libholo, an epoch a second"];
        for (name, row) in names.iter().zip(&all) {
            println!("{journal:<8}{name:<28}{:>8.0} {:>6.1} %", row[0], row[0] / all[0][0] * 100.0);
        }
    }
    println!();
}

/// The part of the stop that files take if none of them changes.
fn untouched() {
    println!("files below the root, none changed: part of the stop, median of 20");
    for files in [1, 1000, 20_000] {
        let node = Node::start(Who::Me);
        tree(&node.outside(DIR).join("small"), files);
        // Longer ago than a tick of the kernel's clock of files.
        std::thread::sleep(Duration::from_millis(100));
        let file = node.inside(DIR).join("f");
        let on = OnOrder::start(node, &|go| {
            vec![arg("scatter"), file.clone().into(), arg("1"), arg("1"), go.into()]
        });
        on.epoch();
        on.epoch();
        let stops = (0..20).map(|_| part(&on.epoch(), "files")).collect();
        println!("{files:>8} {:>9.2} ms", median(stops));
        on.end();
    }
}
