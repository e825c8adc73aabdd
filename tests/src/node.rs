//! A node: one agent with its own state directory and socket, on this host or inside namespaces.

use crate::{command, leftovers, paths, process, wait};
use nix::sys::signal::Signal;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// The variable that marks every process that a node starts.
pub const MARK: &str = "HOLO_TEST_NODE";

/// A user without any privilege (nobody).
pub const NOBODY: u32 = 65534;

/// As whom the agent and its applications run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever runs the tests.
    Me,
    /// The user [`NOBODY`] when the tests run as root, else whoever runs them.
    Nobody,
}

impl Who {
    /// The uid to become, if another than ours.
    #[must_use]
    pub fn uid(self) -> Option<u32> {
        (self == Who::Nobody && nix::unistd::geteuid().is_root()).then_some(NOBODY)
    }
}

/// How a process gets into a node's namespaces.
#[derive(Clone, Debug)]
pub struct Inside {
    /// The first process of the node's pid namespace, as we see it.
    pub init_pid: u32,
    /// The network and the rest live in a user namespace of its own.
    pub user_namespace: bool,
}

/// One agent and the directory that is its world.
pub struct Node {
    /// Name of the node.
    pub name: String,
    who: Who,
    inside: Option<Inside>,
    /// Where its files are for us.
    outside_dir: PathBuf,
    /// Where its files are for it.
    inside_dir: PathBuf,
    mark: String,
    agent: Option<Child>,
    agent_args: Vec<String>,
    agent_env: Vec<(&'static str, OsString)>,
    /// Kept until the node is dropped; none if somebody else owns the directory.
    scratch: Option<TempDir>,
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Makes a directory and gives it to the user who works in it.
///
/// # Panics
/// When either fails.
pub fn hand_over(dir: &Path, who: Who) {
    fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    if let Some(uid) = who.uid() {
        std::os::unix::fs::chown(dir, Some(uid), Some(uid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", dir.display()));
    }
}

impl Node {
    /// A node on this host, with its agent running.
    #[must_use]
    pub fn start(who: Who) -> Node {
        let mut node = Node::without_agent(who);
        node.start_agent();
        node
    }

    /// A node on this host whose agent is not started.
    #[must_use]
    pub fn without_agent(who: Who) -> Node {
        let scratch = paths::scratch();
        let dir = scratch.path().to_path_buf();
        Node::at("local", who, None, dir.clone(), dir, Some(scratch))
    }

    pub(crate) fn at(
        name: &str,
        who: Who,
        inside: Option<Inside>,
        outside_dir: PathBuf,
        inside_dir: PathBuf,
        scratch: Option<TempDir>,
    ) -> Node {
        process::become_subreaper();
        hand_over(&outside_dir, who);
        // The scratch directory itself was made for everybody to pass; the rest is its owner's.
        let _ = fs::set_permissions(&outside_dir, fs::Permissions::from_mode(0o755));
        for part in ["state", "data"] {
            hand_over(&outside_dir.join(part), who);
        }
        Node {
            name: name.to_owned(),
            who,
            inside,
            outside_dir,
            inside_dir,
            mark: unique(),
            agent: None,
            agent_args: Vec::new(),
            agent_env: Vec::new(),
            scratch,
        }
    }

    /// As whom things run here.
    #[must_use]
    pub fn who(&self) -> Who {
        self.who
    }

    /// Are its programs root there?
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn is_root(&self) -> bool {
        command::run_ok(self.command("id").arg("-u"), Duration::from_secs(10)).trim() == "0"
    }

    /// A file of the node as we see it.
    #[must_use]
    pub fn outside(&self, part: impl AsRef<Path>) -> PathBuf {
        self.outside_dir.join(part)
    }

    /// A file of the node as its processes see it.
    #[must_use]
    pub fn inside(&self, part: impl AsRef<Path>) -> PathBuf {
        self.inside_dir.join(part)
    }

    /// Path of the agent's socket, for its processes.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.inside("agent.sock")
    }

    /// The mark of this node's processes, as it stands in their environment.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("{MARK}={}", self.mark)
    }

    /// Whether its pids are those of a namespace of its own.
    #[must_use]
    pub fn has_own_pids(&self) -> bool {
        self.inside.is_some()
    }

    /// A command that runs on this node as its user, with holo's variables set.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.inside {
            None => Command::new(program),
            Some(inside) => {
                let mut enter = Command::new("nsenter");
                enter.arg("-t").arg(inside.init_pid.to_string()).args(["-n", "-m", "-p", "-i", "-u"]);
                if inside.user_namespace {
                    enter.args(["-U", "--preserve-credentials"]);
                }
                enter.arg("--").arg(program);
                enter
            }
        };
        if let Some(uid) = self.who.uid() {
            command.uid(uid).gid(uid);
        }
        command
            .env(MARK, &self.mark)
            .env("HOLO_STATE_DIR", self.inside("state"))
            .env("HOLO_SOCKET", self.socket());
        command.env("HOME", self.inside("data")).env_remove("XDG_RUNTIME_DIR").env_remove("LD_PRELOAD");
        command.current_dir("/");
        command
    }

    /// `holo` with a subcommand.
    #[must_use]
    pub fn holo(&self, args: &[&str]) -> Command {
        let mut command = self.command(paths::bin("holo"));
        command.args(args);
        command
    }

    /// More arguments for the agent at its next start.
    pub fn set_agent_args(&mut self, args: &[String]) {
        self.agent_args = args.to_vec();
    }

    /// A variable for the agent at its next start.
    pub fn set_agent_env(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.agent_env.push((name, value.into()));
    }

    /// Starts the agent and waits until it answers.
    ///
    /// # Panics
    /// When it does not within 10 s.
    pub fn start_agent(&mut self) {
        assert!(self.agent.is_none(), "the agent of {} runs already", self.name);
        let log = fs::File::options().create(true).append(true).open(self.outside("agent.log"));
        let log = log.unwrap_or_else(|e| panic!("log of {}: {e}", self.name));
        let err = log.try_clone().unwrap_or_else(|e| panic!("log of {}: {e}", self.name));
        let mut command = self.command(paths::bin("holod"));
        command.arg("--state-dir").arg(self.inside("state")).arg("--socket").arg(self.socket());
        command.envs(self.agent_env.iter().map(|(name, value)| (name, value)));
        command.args(&self.agent_args).stdin(Stdio::null()).stdout(log).stderr(err);
        self.agent = Some(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
        self.wait_agent();
    }

    /// Waits until the agent answers.
    ///
    /// # Panics
    /// When it does not within 10 s, with its log.
    pub fn wait_agent(&mut self) {
        let answers = wait::try_until(Duration::from_secs(10), || {
            if let Some(Ok(Some(status))) = self.agent.as_mut().map(Child::try_wait) {
                panic!("the agent of {} ended: {status}\n{}", self.name, self.log());
            }
            if !self.outside("agent.sock").exists() {
                return None;
            }
            command::run(&mut self.holo(&["ps", "--json"]), Duration::from_secs(5))
                .status
                .success()
                .then_some(())
        });
        assert!(answers.is_some(), "the agent of {} does not answer\n{}", self.name, self.log());
    }

    /// What the agent wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.outside("agent.log")).unwrap_or_default()
    }

    /// Pid of the agent, as we see it. Inside namespaces: of the process that entered them for it.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Pid of the agent itself, as we see it.
    #[must_use]
    pub fn agent_inside(&self) -> Option<u32> {
        self.agent_pids().first().copied()
    }

    /// The agent's processes: inside namespaces it is the only child of the one that entered them.
    fn agent_pids(&self) -> Vec<u32> {
        let Some(agent) = &self.agent else { return Vec::new() };
        let mut pids = if self.inside.is_some() { process::children(agent.id()) } else { Vec::new() };
        pids.push(agent.id());
        pids
    }

    /// Does something while the agent stands still, and sees all of it at once afterwards.
    pub fn behind_the_agent<T>(&self, work: impl FnOnce() -> T) -> T {
        let pids = self.agent_pids();
        process::signal_all(&pids, Signal::SIGSTOP);
        let done = work();
        process::signal_all(&pids, Signal::SIGCONT);
        done
    }

    /// Kills the agent with -9 and reaps it; applications are left alone.
    pub fn kill_agent(&mut self) {
        let pids = self.agent_pids();
        let Some(mut agent) = self.agent.take() else { return };
        process::kill_all(&pids);
        let _ = agent.wait();
        process::wait_gone(&pids, Duration::from_secs(10));
    }

    /// Ends every process of the node and forgets the agent.
    pub fn sweep(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        process::sweep(&self.mark(), &self.outside("data"));
        leftovers::remove();
        // Control pages are not below the state directory.
        if let Ok(id) = std::fs::read_to_string(self.inside("state").join("id")) {
            let _ = std::fs::remove_dir_all(format!("/dev/shm/holo-{id}"));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- agent of {} (last lines)", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        self.sweep();
        let Some(scratch) = self.scratch.take() else { return };
        let path = scratch.path().to_owned();
        if scratch.close().is_err() {
            // Something in it is immutable.
            let _ = holo_cfor::remove_all(&path);
        }
    }
}
