//! The programs of `tests/workloads` and the modes in which each must pass.
//!
//! plain: without holo; quiet: under holo, no checkpoint; live: many checkpoints while it runs; restored: checkpoint, kill
//! -9, restore, twice; user: the same as a user without privileges.

use crate::app::{App, ORDER_LIMIT, Program, start_plain};
use crate::cluster::Cluster;
use crate::cluster_agents::Timing;
use crate::node::{Node, Who, hand_over};
use crate::{command, compile, paths, service, wait};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A virtual machine that starts on a busy machine takes its time.
const END_LIMIT: Duration = Duration::from_secs(90);
const ROUND_LIMIT: Duration = Duration::from_secs(30);
/// On a busy machine fewer checkpoints have to do.
const LIVE_LIMIT: Duration = Duration::from_secs(12);
const DIR: &str = "data/work";

/// A workload and how it is run.
#[derive(Clone, Debug)]
pub struct Workload {
    source: &'static str,
    interpreter: Option<&'static str>,
    args: Vec<&'static str>,
    env: Vec<(&'static str, &'static str)>,
    agent_env: Vec<(&'static str, &'static str)>,
    run_ms: u64,
    checkpoints: u32,
    protected: bool,
}

impl Workload {
    /// A source of `tests/workloads`.
    #[must_use]
    pub fn new(source: &'static str) -> Workload {
        let (args, env, agent_env) = (Vec::new(), Vec::new(), Vec::new());
        Workload {
            source,
            interpreter: None,
            args,
            env,
            agent_env,
            run_ms: 800,
            checkpoints: 30,
            protected: true,
        }
    }

    /// A script of `tests/programs` with its interpreter.
    #[must_use]
    pub fn script(interpreter: &'static str, script: &'static str) -> Workload {
        Workload { interpreter: Some(interpreter), checkpoints: 100, run_ms: 1500, ..Workload::new(script) }
    }

    /// With this many checkpoints in the mode `live`.
    #[must_use]
    pub fn checkpoints(mut self, checkpoints: u32) -> Workload {
        self.checkpoints = checkpoints;
        self
    }

    /// With this time to run in the modes `plain` and `quiet`.
    #[must_use]
    pub fn run_ms(mut self, run_ms: u64) -> Workload {
        self.run_ms = run_ms;
        self
    }

    /// With an argument after the directory.
    #[must_use]
    pub fn arg(mut self, arg: &'static str) -> Workload {
        self.args.push(arg);
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: &'static str) -> Workload {
        self.env.push((name, value));
        self
    }

    /// With a variable in the environment of the agent that captures and restores it.
    #[must_use]
    pub fn agent_env(mut self, name: &'static str, value: &'static str) -> Workload {
        self.agent_env.push((name, value));
        self
    }

    /// It holds something that cannot be replicated yet: a checkpoint may be refused, the program must not notice.
    #[must_use]
    pub fn unprotected(mut self) -> Workload {
        self.protected = false;
        self
    }

    fn program(&self, node: &Node) -> Program {
        let mut args: Vec<OsString> = vec![node.inside(DIR).into()];
        args.extend(self.args.iter().map(|a| OsString::from(*a)));
        let path = match self.interpreter {
            None => compile::workload(self.source),
            Some(interpreter) => {
                let script = paths::tests_dir().join("programs").join(self.source);
                args.insert(0, reachable(script, node.who()).into());
                service::need(interpreter)
            }
        };
        let path = reachable(path, node.who());
        let mut program = Program::new(path, &args);
        program.env = self.env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        program
    }

    /// Without holo.
    pub fn plain(&self) {
        let node = Node::without_agent(Who::Me);
        hand_over(&node.outside(DIR), node.who());
        let mut child = start_plain(&node, &self.program(&node), DIR);
        sleep(Duration::from_millis(self.run_ms));
        stop(&node);
        let status = command::wait_child(&mut child, END_LIMIT, self.source);
        judge(&node, status.code());
    }

    fn start(&self, node: &Node) -> App {
        hand_over(&node.outside(DIR), node.who());
        let mut app = App::start(node, "work", &self.program(node), DIR, &[]);
        app.wait_joined(node);
        app
    }

    /// Under holo, no checkpoint.
    pub fn quiet(&self) {
        let node = Node::start(Who::Me);
        let mut app = self.start(&node);
        sleep(Duration::from_millis(self.run_ms));
        stop(&node);
        judge(&node, Some(app.wait_exit(END_LIMIT)));
    }

    /// A node whose agent has the workload's environment.
    fn node(&self, who: Who) -> Node {
        let mut node = Node::without_agent(who);
        for (name, value) in &self.agent_env {
            node.set_agent_env(name, value);
        }
        node.start_agent();
        node
    }

    /// Many checkpoints while it runs.
    pub fn live(&self) {
        let node = self.node(Who::Me);
        let mut app = self.start(&node);
        wait_progress(&node, 0);
        let since = Instant::now();
        for done in 0..self.checkpoints {
            if done >= 10 && since.elapsed() > LIVE_LIMIT {
                break;
            }
            self.checkpoint(&app, &node);
            sleep(Duration::from_millis(15));
            assert_alive(&mut app, &node);
        }
        wait_progress(&node, progress(&node));
        stop(&node);
        judge(&node, Some(app.wait_exit(END_LIMIT)));
    }

    fn checkpoint(&self, app: &App, node: &Node) {
        if self.protected {
            app.checkpoint(node);
        } else if let Err(refused) = app.try_checkpoint(node) {
            assert_eq!(refused.code(), 5, "refused, but not as unprotected: {}", refused.stderr);
        }
    }

    /// Checkpoint, kill -9, restore, twice; it goes on from where the epoch was and ends well.
    pub fn restored(&self, who: Who) {
        let node = self.node(who);
        let mut app = self.start(&node);
        wait_progress(&node, 1);
        for _ in 0..2 {
            app.checkpoint(&node);
            sleep(Duration::from_millis(40));
            app.checkpoint(&node);
            let reached = progress(&node);
            app.kill(&node);
            app.restore(&node, None);
            let again = progress(&node);
            assert!(again + 1_000_000 > reached, "progress is {again}, was {reached} at the epoch");
            wait_progress(&node, again);
        }
        stop(&node);
        app.wait_ended(&node, END_LIMIT);
        judge(&node, None);
    }

    /// As an ordinary user: by order to a node in other namespaces, and back; nothing is lost and it ends well.
    pub fn switched(&self) {
        let mut cluster = Cluster::ordinary(&["a", "b"]);
        cluster.start_agents(Timing::patient());
        let nodes = &cluster.nodes;
        nodes.iter().for_each(|node| hand_over(&node.outside(DIR), node.who()));
        let mut app = App::start(&nodes[0], "work", &self.program(&nodes[0]), DIR, &["--standby", "b"]);
        app.wait_joined(&nodes[0]);
        wait_progress(&nodes[0], 1);
        for (from, to) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            let reached = progress(from);
            command::run_ok(&mut from.holo(&["switch", "work", "--to", &to.name]), ORDER_LIMIT);
            assert!(progress(to) >= reached, "a planned switch lost some of {reached} rounds");
            wait::until(END_LIMIT, "the new owner", || (app.state(to) == "running").then_some(()));
            app.settle(to);
            wait_progress(to, progress(to));
        }
        stop(&nodes[0]);
        app.wait_ended(&nodes[0], END_LIMIT);
        judge(&nodes[0], None);
    }
}

/// A program where `who` can execute it.
///
/// # Panics
/// When the user cannot reach it.
#[must_use]
pub fn reachable(path: PathBuf, who: Who) -> PathBuf {
    assert!(
        who.uid().is_none() || paths::reachable_by_others(&path),
        "{}: other users cannot reach it; put the checkout where they can, or run the tests as an ordinary user",
        path.display()
    );
    path
}

/// Finished rounds, by the workload's own count.
#[must_use]
pub fn progress(node: &Node) -> u64 {
    let text = fs::read_to_string(node.outside(DIR).join("progress")).unwrap_or_default();
    text.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
}

/// What the workload said at its end.
#[must_use]
pub fn result(node: &Node) -> String {
    fs::read_to_string(node.outside(DIR).join("result")).unwrap_or_default()
}

/// Waits for so many more rounds.
///
/// # Panics
/// When the workload has ended, or they are not finished in time.
pub fn rounds(node: &Node, count: u64) {
    let from = progress(node);
    wait::until(ROUND_LIMIT, "rounds", || {
        assert_eq!(result(node), "", "{}", node.log());
        (progress(node) > from + count).then_some(())
    });
}

/// Ends the workload, which must have found nothing wrong.
///
/// # Panics
/// When it has, or does not end in time.
pub fn ends_well(node: &Node, app: &mut App) {
    stop(node);
    app.wait_ended(node, END_LIMIT);
    assert_eq!(result(node), "ok\n");
}

/// Names in the newest epoch, below the workload's directory where they are.
///
/// # Panics
/// When it cannot be shown.
#[must_use]
pub fn captured(node: &Node) -> Vec<String> {
    let shown = command::run_ok(&mut node.holo(&["cfor", "show", "work", "--json"]), ORDER_LIMIT);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let name = |entry: &serde_json::Value| {
        let path = Path::new(entry["path"].as_str().expect("a path"));
        path.strip_prefix(node.inside(DIR)).unwrap_or(path).display().to_string()
    };
    shown["entries"].as_array().expect("entries").iter().map(name).collect()
}

/// Waits for rounds after something that must not have hurt.
///
/// # Panics
/// When the workload has ended, or none is finished in time.
pub fn goes_on(node: &Node, after: &str) {
    let from = progress(node);
    wait::until(ROUND_LIMIT, &format!("progress after {after}"), || {
        assert_eq!(result(node), "", "the workload ended after {after}");
        (progress(node) > from).then_some(())
    });
}

fn wait_progress(node: &Node, from: u64) {
    wait::until(END_LIMIT, &format!("progress beyond round {from}"), || {
        let said = result(node);
        assert!(said.is_empty(), "the workload ended: {said}{}", stderr(node));
        (progress(node) > from).then_some(())
    });
}

fn assert_alive(app: &mut App, node: &Node) {
    let said = result(node);
    assert!(said.is_empty() && app.is_child(), "the workload ended: {said}{}", stderr(node));
}

pub(crate) fn stderr(node: &Node) -> String {
    fs::read_to_string(node.outside(DIR).join("stderr")).unwrap_or_default()
}

fn stop(node: &Node) {
    let path = node.outside(DIR).join("stop");
    fs::write(&path, b"").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn judge(node: &Node, code: Option<i32>) {
    let said = wait::try_until(Duration::from_secs(2), || Some(result(node)).filter(|s| !s.is_empty()));
    assert_eq!(said.as_deref(), Some("ok\n"), "exit {code:?}, stderr: {}", stderr(node));
    assert!(matches!(code, None | Some(0)), "it said ok but exited with {code:?}: {}", stderr(node));
}

/// One module for each workload, one test for each mode.
#[macro_export]
macro_rules! workloads {
    ($($name:ident: $workload:expr;)*) => {$(
        mod $name {
            use holo_tests::node::Who;
            use holo_tests::workload::Workload;
            fn workload() -> Workload { $workload }
            #[test]
            fn plain() { workload().plain() }
            #[test]
            fn quiet() { workload().quiet() }
            #[test]
            fn live() { workload().live() }
            #[test]
            fn restored() { workload().restored(Who::Me) }
            #[test]
            fn user() { workload().restored(Who::Nobody) }
        }
    )*};
}

/// The same for what cannot be restored yet: it must be left alone, and run on under checkpoints.
#[macro_export]
macro_rules! workloads_unprotected {
    ($($name:ident: $workload:expr;)*) => {$(
        mod $name {
            use holo_tests::workload::Workload;
            fn workload() -> Workload { $workload.unprotected() }
            #[test]
            fn plain() { workload().plain() }
            #[test]
            fn quiet() { workload().quiet() }
            #[test]
            fn live() { workload().live() }
        }
    )*};
}
