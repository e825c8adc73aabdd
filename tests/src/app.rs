//! One application: started under holo, checkpointed, killed, restored, judged.

use crate::command::{self, Finished};
use crate::node::Node;
use crate::{leftovers, paths, process, wait};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Bound of every single order to holo.
pub const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// A process that dies this long after a restore makes the restore a failure.
pub const SETTLE: Duration = Duration::from_secs(1);

/// What is to be run, without holo's part.
#[derive(Clone, Debug)]
pub struct Program {
    /// Command.
    pub path: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Environment on top of ours.
    pub env: Vec<(String, String)>,
}

impl Program {
    /// A program with arguments.
    #[must_use]
    pub fn new<S: AsRef<OsStr>>(path: impl Into<PathBuf>, args: &[S]) -> Program {
        let args = args.iter().map(|a| a.as_ref().to_owned()).collect();
        Program { path: path.into(), args, env: Vec::new() }
    }

    /// With a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A started application, on whatever node it now runs.
pub struct App {
    /// Name under which holo knows it.
    pub name: String,
    child: Option<Child>,
    /// Options after `holo run`, for the record in failures.
    shown: String,
}

/// An epoch as `holo checkpoint --json` shows it.
#[derive(Clone, Debug)]
pub struct Epoch(pub Value);

impl Epoch {
    /// A number of the epoch.
    ///
    /// # Panics
    /// When it has no such field.
    #[must_use]
    pub fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    /// Is it sealed?
    #[must_use]
    pub fn sealed(&self) -> bool {
        self.0["sealed"] == true
    }
}

fn parse(finished: &Finished, what: &str) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{what}: {e}: {:?}", finished.stdout))
}

/// Directs a command's standard streams into `stdin` (nothing), `stdout` and `stderr` under `dir`.
fn redirect(command: &mut Command, node: &Node, dir: &str) {
    let open = |name: &str| {
        let path = node.outside(dir).join(name);
        let file = fs::File::options().create(true).append(true).open(&path);
        let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if let Some(uid) = node.who().uid() {
            let _ = std::os::unix::fs::fchown(&file, Some(uid), Some(uid));
        }
        file
    };
    command.stdin(Stdio::null()).stdout(open("stdout")).stderr(open("stderr"));
}

/// Starts a program on a node without holo, its output under `dir` of the node.
#[must_use]
pub fn start_plain(node: &Node, program: &Program, dir: &str) -> Child {
    let mut command = node.command(&program.path);
    command.args(&program.args).envs(program.env.iter().map(|(k, v)| (k, v)));
    redirect(&mut command, node, dir);
    command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

impl App {
    /// Starts a program under holo, checkpoints on order only; its output goes to files under `dir` of the node, which is
    /// a protected root.
    #[must_use]
    pub fn start(node: &Node, name: &str, program: &Program, dir: &str, options: &[&str]) -> App {
        let root = node.inside(dir);
        Self::start_with_roots(node, name, program, dir, &[&root], options)
    }

    /// The same, with these protected roots; there may be none.
    #[must_use]
    pub fn start_with_roots(
        node: &Node,
        name: &str,
        program: &Program,
        dir: &str,
        roots: &[&Path],
        options: &[&str],
    ) -> App {
        let mut command = node.command(paths::bin("holo"));
        command.args(["run", "--name", name]);
        if !options.contains(&"--every") {
            command.args(["--every", "0"]);
        }
        if !options.contains(&"--park-max") {
            // A thread in a slow file operation on a machine busy with other tests takes its time.
            command.args(["--park-max", "2s"]);
        }
        for root in roots {
            command.arg("--root").arg(root);
        }
        command.args(options).arg("--").arg(&program.path).args(&program.args);
        command.envs(program.env.iter().map(|(k, v)| (k, v)));
        redirect(&mut command, node, dir);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        App { name: name.to_owned(), child: Some(child), shown: format!("{command:?}") }
    }

    /// The row of `holo ps` for this application, if there is one.
    #[must_use]
    pub fn row(&self, node: &Node) -> Option<Value> {
        let finished = command::run(&mut node.holo(&["ps", "--json"]), ORDER_LIMIT);
        assert!(finished.status.success(), "holo ps: {}{}", finished.stdout, finished.stderr);
        let all = parse(&finished, "holo ps");
        all.as_array()?.iter().find(|row| row["name"] == self.name.as_str()).cloned()
    }

    /// Its state on a node: `running`, `standby`, `unprotected`, `stopped` or `none`.
    #[must_use]
    pub fn state(&self, node: &Node) -> String {
        let row = self.row(node);
        row.and_then(|r| r["state"].as_str().map(str::to_owned)).unwrap_or_else(|| "none".to_owned())
    }

    /// Its processes on a node, as the node's agent sees them.
    #[must_use]
    pub fn real_pids(&self, node: &Node) -> Vec<u32> {
        let row = self.row(node).unwrap_or(Value::Null);
        let pids = row["real_pids"].as_array().cloned().unwrap_or_default();
        pids.iter().filter_map(|p| u32::try_from(p.as_u64()?).ok()).collect()
    }

    /// Waits until the agent knows the application as joined.
    pub fn wait_joined(&mut self, node: &Node) {
        wait::until(Duration::from_secs(15), &format!("{} joined ({})", self.name, self.shown), || {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                panic!("{} ended at once: {status} ({})", self.name, self.shown);
            }
            matches!(self.state(node).as_str(), "running" | "unprotected").then_some(())
        });
    }

    /// Orders an epoch; the error is what holo said and its exit code.
    ///
    /// # Errors
    /// When holo exits with another code than 0.
    pub fn try_checkpoint(&self, node: &Node) -> Result<Epoch, Finished> {
        let finished = command::run(&mut node.holo(&["checkpoint", &self.name, "--json"]), ORDER_LIMIT);
        if finished.status.success() { Ok(Epoch(parse(&finished, "holo checkpoint"))) } else { Err(finished) }
    }

    /// Takes an epoch, which must be sealed.
    ///
    /// # Panics
    /// When it is refused or not sealed.
    pub fn checkpoint(&self, node: &Node) -> Epoch {
        let epoch = self.try_checkpoint(node);
        let epoch =
            epoch.unwrap_or_else(|f| panic!("checkpoint of {}: exit {}: {}", self.name, f.code(), f.stderr));
        assert!(epoch.sealed(), "the epoch is not sealed: {}", epoch.0);
        epoch
    }

    /// Kills every process of the application with -9 and waits until they are reaped.
    ///
    /// # Panics
    /// When holo shows no process, or when one remains; on a node with pids of its own, which are others' here.
    pub fn kill(&mut self, node: &Node) {
        assert!(!node.has_own_pids(), "{}: pids of the node are not ours: kill the node", self.name);
        let pids = self.real_pids(node);
        assert!(!pids.is_empty(), "{} has no process: {:?}", self.name, self.row(node));
        let pids = node.behind_the_agent(|| process::kill_trees(&pids));
        // Our own child is reaped through its handle, the others by whoever has them.
        self.forget_child();
        process::wait_gone(&pids, Duration::from_secs(10));
        wait::until(Duration::from_secs(10), "the agent sees that it is dead", || {
            (self.state(node) == "stopped").then_some(())
        });
    }

    /// Its node was killed with it: nothing here is its parent any more.
    pub fn forget(&mut self) {
        self.forget_child();
    }

    fn forget_child(&mut self) {
        if let Some(mut child) = self.child.take() {
            command::wait_child(&mut child, Duration::from_secs(10), &self.name);
        }
    }

    /// Restores the last epoch (or the one given) and requires that every process is alive a settling time later.
    ///
    /// # Panics
    /// When holo refuses, or a process is gone after [`SETTLE`].
    pub fn restore(&mut self, node: &Node, epoch: Option<u64>) -> Value {
        let restored = self.restore_unsettled(node, epoch);
        self.settle(node);
        restored
    }

    /// Restores without the settling check (for many rounds).
    ///
    /// # Panics
    /// When holo refuses.
    pub fn restore_unsettled(&mut self, node: &Node, epoch: Option<u64>) -> Value {
        let number = epoch.map(|n| n.to_string());
        let mut args = vec!["restore", self.name.as_str(), "--json"];
        if let Some(number) = &number {
            args.extend(["--epoch", number]);
        }
        let finished = command::run(&mut node.holo(&args), ORDER_LIMIT);
        assert!(
            finished.status.success(),
            "restore of {}: exit {}: {}{}",
            self.name,
            finished.code(),
            finished.stderr,
            crate::workload::result(node)
        );
        parse(&finished, "holo restore")
    }

    /// Requires that the application runs and still does after [`SETTLE`].
    ///
    /// # Panics
    /// When a process is gone.
    pub fn settle(&self, node: &Node) {
        let pids = self.real_pids(node);
        let said = || {
            // Its end is in the agent's log by then.
            sleep(SETTLE);
            let (result, stderr) = (crate::workload::result(node), crate::workload::stderr(node));
            format!("{result}{stderr}{:?}", self.row(node))
        };
        assert!(!pids.is_empty(), "{} runs nowhere after the restore: {}", self.name, said());
        sleep(SETTLE);
        let row = self.row(node);
        assert!(
            // Others may come and go.
            matches!(self.state(node).as_str(), "running" | "unprotected")
                && self.real_pids(node).first() == pids.first(),
            "{} did not survive its restore by {SETTLE:?}: {row:?}, then {}",
            self.name,
            said()
        );
    }

    /// Waits for the end of an application that we started ourselves and gives its exit code (-1: a signal).
    ///
    /// # Panics
    /// When it was restored meanwhile (then nobody here is its parent) or does not end.
    pub fn wait_exit(&mut self, limit: Duration) -> i32 {
        let mut child =
            self.child.take().unwrap_or_else(|| panic!("{} is not our child any more", self.name));
        command::wait_child(&mut child, limit, &self.name).code().unwrap_or(-1)
    }

    /// The exit code of an application that we started ourselves, once it has ended (-1: a signal).
    ///
    /// # Panics
    /// When it was restored meanwhile.
    pub fn try_exit(&mut self) -> Option<i32> {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} is not our child any more", self.name));
        let status = child.try_wait().unwrap_or_else(|e| panic!("{}: wait: {e}", self.name))?;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits until a restored application has ended.
    pub fn wait_ended(&self, node: &Node, limit: Duration) {
        wait::until(limit, &format!("end of {}", self.name), || {
            matches!(self.state(node).as_str(), "stopped" | "none").then_some(())
        });
    }

    /// Was it started by us and never restored?
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.child.is_some()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::tree(child.id()).into_iter().for_each(leftovers::note);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
