//! Local restores (`holo restore`): memory read before the application runs (`HOLO_MEMORY_LATE=0`), and while it does.

use crate::{DIR, LIMIT, median};
use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, paths, wait};
use std::time::Duration;

/// Restores of each, one of the one and one of the other by turns.
const ROUNDS: usize = 7;

const PAUSE: Duration = Duration::from_secs(1);

/// To the first instruction, and until all memory is there.
pub(crate) fn restores() {
    println!("ms, medians of {ROUNDS}                  first instruction   all there");
    for (name, mib) in [("16 MiB", 16), ("256 MiB", 256), ("1 GiB", 1024), ("2 GiB", 2048)] {
        let mut both = [("before", Restoring::new(mib, "0")), ("while it runs", Restoring::new(mib, ""))];
        for _ in 0..ROUNDS {
            both.iter_mut().for_each(|(_, one)| one.round());
        }
        for (when, one) in both {
            let [first, all] = one.columns.map(median);
            println!("{name:<10} memory {when:<14} {first:>17.1} {all:>11.1}");
        }
    }
}

struct Restoring {
    node: Node,
    app: App,
    columns: [Vec<f64>; 2],
}

impl Restoring {
    fn new(mib: u64, order: &str) -> Self {
        let mut node = Node::without_agent(Who::Me);
        node.set_agent_env("HOLO_MEMORY_LATE", order);
        node.start_agent();
        hand_over(&node.outside(DIR), Who::Me);
        let ready = node.inside(DIR).join("ready");
        let binary = compile::build(&paths::tests_dir().join("bench/bench_memory.c"));
        let args = [mib.to_string().into(), ready.clone().into_os_string()];
        let options = ["--keep", "2", "--every", "0"];
        let mut app = App::start(&node, "restores", &Program::new(binary, &args), DIR, &options);
        app.wait_joined(&node);
        wait::until(LIMIT, "memory touched", || ready.exists().then_some(()));
        // The second one is a change, as most are: what it is a change of is in the agent's memory.
        app.checkpoint(&node);
        app.checkpoint(&node);
        Self { node, app, columns: Default::default() }
    }

    fn round(&mut self) {
        self.app.kill(&self.node);
        // The kernel still gives its memory back.
        std::thread::sleep(PAUSE);
        let restored = self.app.restore_unsettled(&self.node, None);
        let ms = |field: &str| restored[field].as_f64().unwrap_or(f64::NAN) / 1e3;
        let row = [ms("first_instruction_us"), ms("restore_us")];
        self.columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
}
