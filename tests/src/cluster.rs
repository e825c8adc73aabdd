//! Nodes that share nothing by accident: each in its own network, pid, mount, IPC and UTS namespaces.
//!
//! ```text
//!   outer user + network namespace:   bridge holo0
//!                                     |         |
//!                                   veth a    veth b      <- a link is cut and joined here
//!                                     |         |
//!   node namespaces:               eth0 .1    eth0 .2
//! ```
//!
//! Every node sees its files at the same path, backed by a directory of its own; `/tmp` and `/dev/shm` are
//! its own too. As root no user namespace is needed; as anybody else one is made, and nothing but that. Programs that
//! refuse to run as root need [`Cluster::ordinary`]: there a node's first process enters a user namespace of its own, in which
//! it and all that follows are an ordinary user without privileges.

use crate::node::{Inside, Node, Who, hand_over};
use crate::{command, paths, process, wait};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

/// First process of a namespace: says that it is there, then reaps what comes to it until its input ends. We hold the
/// other end of that, so that a test that is killed leaves nothing behind.
const INIT: &str = "echo ready; cat >/dev/null";
/// An ordinary user of a user namespace.
const AS_USER: &str = "--user --map-user=65534 --map-group=65534";

/// A network with nodes.
pub struct Cluster {
    /// The nodes, in the order of their names.
    pub nodes: Vec<Node>,
    inits: Vec<Option<Child>>,
    outer: Child,
    user_namespace: bool,
    ordinary: bool,
    who: Who,
    scratch: TempDir,
}

fn spawn_init(mut command: Command) -> Child {
    // `unshare` complains when its child is killed, which is how we end it.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).unwrap_or_else(|e| panic!("{command:?}: {e}"));
    }
    assert_eq!(line, "ready\n", "{command:?} made no namespace");
    child
}

impl Cluster {
    /// Nodes with these names, their links up, no agent started.
    #[must_use]
    pub fn new(names: &[&str], who: Who) -> Cluster {
        Cluster::make(names, who, false)
    }

    /// The same, but on the nodes everybody is an ordinary user, not root.
    #[must_use]
    pub fn ordinary(names: &[&str]) -> Cluster {
        Cluster::make(names, Who::Me, true)
    }

    fn make(names: &[&str], who: Who, ordinary: bool) -> Cluster {
        process::become_subreaper();
        let scratch = paths::scratch();
        let user_namespace = !nix::unistd::geteuid().is_root() || who.uid().is_some();
        let mut outer = Command::new("unshare");
        // The pid namespace has no other use than that all of it ends with its first process.
        outer.args(["--net", "--mount", "--pid", "--kill-child"]);
        if user_namespace {
            outer.args(["--user", "--map-root-user"]);
        }
        outer.args(["--fork", "sh", "-c", INIT]);
        become_user(&mut outer, who);
        let outer = spawn_init(outer);
        let mut cluster =
            Cluster { nodes: Vec::new(), inits: Vec::new(), outer, user_namespace, ordinary, who, scratch };
        cluster.ip(&["link", "add", "holo0", "type", "bridge"]);
        cluster.ip(&["link", "set", "holo0", "up"]);
        for name in names {
            cluster.add(name);
        }
        cluster
    }

    /// A directory of the test's own on the file system of the nodes.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn scratch(&self) -> TempDir {
        tempfile::tempdir_in(self.scratch.path()).unwrap_or_else(|e| panic!("scratch directory: {e}"))
    }

    /// The process that holds the outer namespaces.
    fn outer_pid(&self) -> u32 {
        process::children(self.outer.id()).first().copied().unwrap_or_else(|| self.outer.id())
    }

    /// A command in the network where the bridge is.
    #[must_use]
    pub fn outer_command(&self, program: &str) -> Command {
        self.command_in_network_of(self.outer_pid(), program)
    }

    /// A command with the privileges of the outer namespaces in the network of a process.
    fn command_in_network_of(&self, pid: u32, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("-t")
            .arg(self.outer_pid().to_string())
            .args(["-m", &format!("--net=/proc/{pid}/ns/net")]);
        if self.user_namespace {
            command.args(["-U", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        become_user(&mut command, self.who);
        command
    }

    fn ip(&self, args: &[&str]) {
        command::run_ok(self.outer_command("ip").args(args), LIMIT);
    }

    /// Where the nodes' own directories appear in each of them.
    fn common_dir(&self) -> PathBuf {
        self.scratch.path().join("node")
    }

    fn add(&mut self, name: &str) {
        let backing = self.scratch.path().join(name);
        hand_over(&backing, self.who);
        fs::create_dir_all(self.common_dir()).unwrap_or_else(|e| panic!("{name}: {e}"));
        self.inits.push(None);
        let index = self.nodes.len();
        self.boot(index, name);
        let inside = self.inside(index);
        self.nodes.push(Node::at(name, self.who, Some(inside), backing, self.common_dir(), None));
        self.connect(index, name);
    }

    fn boot(&mut self, index: usize, name: &str) {
        let backing = self.scratch.path().join(name);
        let setup = format!(
            "set -e; mount --make-rprivate /; mount --bind '{}' '{}'; mount -t tmpfs tmpfs /tmp; \
             mount -t tmpfs tmpfs /dev/shm; hostname {name}; ip link set lo up; {}",
            backing.display(),
            self.common_dir().display(),
            // In place of the shell: the first process of the pid namespace.
            if self.ordinary { format!("exec unshare {AS_USER} sh -c '{INIT}'") } else { INIT.to_owned() }
        );
        let mut unshare = self.outer_command("unshare");
        unshare.args([
            "--net",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--mount-proc",
            "--kill-child",
            "--fork",
        ]);
        unshare.arg("sh").arg("-c").arg(setup);
        self.inits[index] = Some(spawn_init(unshare));
    }

    fn inside(&self, index: usize) -> Inside {
        let unshare = self.inits[index].as_ref().map(Child::id).unwrap_or_default();
        let init_pid =
            wait::until(LIMIT, "first process of the node", || process::children(unshare).first().copied());
        Inside { init_pid, user_namespace: self.user_namespace || self.ordinary }
    }

    fn connect(&self, index: usize, name: &str) {
        let (near, far, pid) =
            (format!("v-{name}"), format!("w-{name}"), self.inside(index).init_pid.to_string());
        self.ip(&["link", "add", &near, "type", "veth", "peer", "name", &far]);
        self.ip(&["link", "set", &far, "netns", &pid]);
        self.ip(&["link", "set", &near, "master", "holo0"]);
        self.ip(&["link", "set", &near, "up"]);
        let init = self.inside(index).init_pid;
        let ip = |args: &[&str]| command::run_ok(self.command_in_network_of(init, "ip").args(args), LIMIT);
        ip(&["link", "set", &far, "name", "eth0"]);
        ip(&["address", "add", &format!("{}/24", self.address(index)), "dev", "eth0"]);
        ip(&["link", "set", "eth0", "up"]);
    }

    /// Address of a node.
    #[must_use]
    pub fn address(&self, index: usize) -> String {
        format!("10.77.0.{}", index + 1)
    }

    /// Cuts a node's cable: packets are lost, nothing is told to either side.
    pub fn cut(&self, index: usize) {
        self.ip(&["link", "set", &format!("v-{}", self.nodes[index].name), "down"]);
    }

    /// Joins it again.
    pub fn join(&self, index: usize) {
        self.ip(&["link", "set", &format!("v-{}", self.nodes[index].name), "up"]);
    }

    /// Bytes that went over a node's cable to it.
    ///
    /// # Panics
    /// When `ip` does not tell.
    #[must_use]
    pub fn carried_to(&self, index: usize) -> u64 {
        let cable = format!("v-{}", self.nodes[index].name);
        let text =
            command::run_ok(self.outer_command("ip").args(["-s", "-j", "link", "show", &cable]), LIMIT);
        let links: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap_or_else(|| panic!("{cable}: {text}"))
    }

    /// From now on a node's cable carries no more than this to it, as `tc` has it: `100mbit`.
    pub fn slow(&self, index: usize, rate: &str) {
        let cable = format!("v-{}", self.nodes[index].name);
        let mut tc = self.outer_command("tc");
        tc.args(["qdisc", "replace", "dev", &cable, "root", "tbf", "rate", rate]);
        command::run_ok(tc.args(["burst", "256k", "latency", "50ms"]), LIMIT);
    }

    /// Kills a whole node with -9: the first process of its pid namespace, and the kernel everything with it. Its files
    /// stay. Its cable is cut first, so that the dying kernel objects say nothing to the others.
    pub fn kill(&mut self, index: usize) {
        self.cut(index);
        let init = self.inside(index).init_pid;
        let members = process::tree(init);
        let _ = Command::new("kill").arg("-9").arg(init.to_string()).status();
        if let Some(mut child) = self.inits[index].take() {
            command::wait_child(&mut child, LIMIT, "end of the node");
        }
        process::wait_gone(&members, LIMIT);
        self.nodes[index].sweep();
    }

    /// Boots a killed node again with the files that it had; no agent is started.
    pub fn reboot(&mut self, index: usize) {
        let name = self.nodes[index].name.clone();
        // The far end of the old cable died with its namespace, and the near end with it, if not at once.
        let near = format!("v-{name}");
        wait::until(LIMIT, "end of the old cable", || {
            (!command::run(self.outer_command("ip").args(["link", "show", &near]), LIMIT).status.success())
                .then_some(())
        });
        self.boot(index, &name);
        let (backing, common, inside) =
            (self.scratch.path().join(&name), self.common_dir(), self.inside(index));
        self.nodes[index] = Node::at(&name, self.who, Some(inside), backing, common, None);
        self.connect(index, &name);
    }
}

fn become_user(command: &mut Command, who: Who) {
    if let Some(uid) = who.uid() {
        command.uid(uid).gid(uid);
    }
    command.current_dir("/");
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.sweep();
        }
        for init in self.inits.iter_mut().flatten() {
            let pids = process::tree(init.id());
            for pid in pids.iter().rev() {
                let _ = Command::new("kill").arg("-9").arg(pid.to_string()).stderr(Stdio::null()).status();
            }
            let _ = init.wait();
        }
        for pid in process::tree(self.outer.id()).into_iter().rev() {
            let _ = Command::new("kill").arg("-9").arg(pid.to_string()).stderr(Stdio::null()).status();
        }
        let _ = self.outer.wait();
    }
}
