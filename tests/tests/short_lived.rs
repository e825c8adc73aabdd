//! Goal: an application that ends in the middle of an epoch takes nobody with it, least of all the agent.
//! Method: many programs that live for a few hundredths of a second, with one epoch after the other.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::process;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 60;
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn the_agent_outlives_what_ends_within_an_epoch() {
    let node = Node::start(Who::Me);
    let agent = node.agent_pid().expect("the agent was started");
    hand_over(&node.outside("data/work"), node.who());
    for round in 0..ROUNDS {
        let naps = format!("{}", 0.02 + f64::from(round % 10) / 500.0);
        let mut app = App::start(
            &node,
            &format!("short-{round}"),
            &Program::new("/bin/sleep", &[naps]),
            "data/work",
            &["--park-max", "100ms"],
        );
        let since = Instant::now();
        let code = loop {
            if let Some(code) = app.try_exit() {
                break code;
            }
            assert!(since.elapsed() < LIMIT, "round {round} does not end");
            // Refused or not: it may end at any moment.
            let _ = app.try_checkpoint(&node);
        };
        assert_eq!(code, 0, "round {round}");
        assert!(process::alive(agent), "the agent died in round {round}:\n{}", node.log());
    }
}
