//! Pages stored before the stop (`HOLO_MEMORY_AHEAD`): never, and where it pays.

use crate::{DIR, LIMIT, median};
use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, paths, wait};

/// Epochs of each; the first three after the first one are not counted.
const EPOCHS: usize = 23;
const UNCOUNTED: usize = 3;

/// The first stop, and stops of memory of which 1 % was stored to once, or is every 10 ms.
pub(crate) fn ahead() {
    println!(
        "ms, medians of {}                  first stop  first dump |   stop   scan   copy  ahead    dump | stored ahead, again (pages)",
        EPOCHS - UNCOUNTED
    );
    for (name, mib, pages, is_once) in [
        ("1 GiB, 1 % once", 1024_u64, 2_621_u64, true),
        ("4 GiB, 1 % once", 4096, 10_485, true),
        ("1 GiB, 1 % each 10 ms", 1024, 2_621, false),
        ("4 GiB, 1 % each 10 ms", 4096, 10_485, false),
    ] {
        for order in ["0", ""] {
            let row = of(mib, pages, is_once, order);
            println!(
                "{name:<22} {:<12} {:>10.1} {:>11.0} | {:>6.2} {:>6.2} {:>6.2} {:>6.1} {:>7.1} | {:.0}, {:.0}",
                if order.is_empty() { "where it pays" } else { "never" },
                row[0],
                row[1],
                row[2],
                row[3],
                row[4],
                row[5],
                row[6],
                row[7],
                row[8]
            );
        }
    }
}

fn of(mib: u64, pages: u64, is_once: bool, order: &str) -> [f64; 9] {
    let mut node = Node::without_agent(Who::Me);
    node.set_agent_env("HOLO_MEMORY_AHEAD", order);
    node.start_agent();
    hand_over(&node.outside(DIR), Who::Me);
    let (ready, go) = (node.inside(DIR).join("ready"), node.inside(DIR).join("go"));
    let source = if is_once { "bench/bench_once.c" } else { "bench/bench_memory.c" };
    let binary = compile::build(&paths::tests_dir().join(source));
    let mut args = vec![mib.to_string().into(), ready.clone().into_os_string(), pages.to_string().into()];
    if is_once {
        args.push(go.clone().into_os_string());
    }
    let options = ["--keep", "2", "--every", "0"];
    let mut app = App::start(&node, "ahead", &Program::new(binary, &args), DIR, &options);
    app.wait_joined(&node);
    wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
    let first = app.checkpoint(&node);
    let mut columns: [Vec<f64>; 7] = Default::default();
    for round in 0..EPOCHS {
        if is_once {
            std::fs::write(&go, b"").expect("go");
            wait::until(LIMIT, "a round", || (!go.exists()).then_some(()));
        }
        let epoch = app.checkpoint(&node);
        if round < UNCOUNTED {
            continue;
        }
        let part = |name: &str| epoch.0["stop_parts_us"][name].as_u64().unwrap_or(0) as f64 / 1e3;
        let kind = |name: &str| epoch.0["bytes_by_kind"][name].as_u64().unwrap_or(0) as f64 / 4096.0;
        let row = [
            epoch.number("stop_us") as f64 / 1e3,
            part("memory.track"),
            part("memory.staging") + part("memory.fork"),
            part("ahead"),
            epoch.number("dump_us") as f64 / 1e3,
            kind("memory.ahead"),
            kind("memory.again"),
        ];
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    app.kill(&node);
    let [stop, scan, copy, ahead, dump, clean, again] = columns.map(median);
    let of_first = |field: &str| first.number(field) as f64 / 1e3;
    [of_first("stop_us"), of_first("dump_us"), stop, scan, copy, ahead, dump, clean, again]
}
