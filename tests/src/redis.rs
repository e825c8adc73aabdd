//! A redis-server with clients that write to it and verify it by content.

use crate::app::Program;
use crate::node::Node;
use crate::{command, paths, wait};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// Where a server listens and what it holds.
pub struct Redis {
    /// Address for clients.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `key:0` to `key:n-1` are filled.
    pub keys: u32,
    /// Writers that were ever started.
    pub writers: u32,
    /// Pause of a writer after each write, so that the append-only file does not outgrow a long test.
    pub pause_ms: u32,
    logs: PathBuf,
}

/// A client that writes numbered values until it is stopped.
pub struct Writer {
    child: Child,
    log: PathBuf,
}

/// A port of the loopback that is free now.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    // None that the kernel gives to connections: the server must find it free again after it was killed.
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
    let mut ports = (0..COUNT).map(|i| (FIRST + start.wrapping_add(i) % COUNT) as u16);
    let is_free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    ports.find(is_free).unwrap_or_else(|| panic!("no free port"))
}

impl Redis {
    /// A server to be started by `program`; clients log into `logs`.
    #[must_use]
    pub fn new(host: &str, port: u16, keys: u32, logs: PathBuf) -> Redis {
        Redis { host: host.to_owned(), port, keys, writers: 0, pause_ms: 1, logs }
    }

    /// The command line: append-only file on, no snapshots or rewrites by children.
    #[must_use]
    pub fn program(&self, node: &Node, dir: &str) -> Program {
        let dir = node.inside(dir).display().to_string();
        let port = self.port.to_string();
        let args = [
            "--port",
            &port,
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
            "--dir",
            &dir,
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--auto-aof-rewrite-percentage",
            "0",
            "--enable-debug-command",
            "yes",
        ];
        Program::new("/usr/bin/redis-server", &args)
    }

    fn client(&self, node: &Node, what: &str, rest: &[&str]) -> Command {
        let mut command = node.command("/usr/bin/python3");
        command.arg(paths::tests_dir().join("programs/redis_client.py"));
        command.args([what, &self.host, &self.port.to_string()]).args(rest);
        command
    }

    /// Waits until the server answers.
    pub fn wait_up(&self, node: &Node) {
        let verify = || self.client(node, "verify", &["0", "0"]);
        // An empty or filled server both answer; only the connection matters here.
        wait::until(LIMIT, "redis answers", || {
            let finished = command::run(&mut verify(), LIMIT);
            (finished.status.success() || finished.stderr.contains("keys, wanted")).then_some(())
        });
    }

    /// Fills the keys.
    pub fn fill(&self, node: &Node) {
        command::run_ok(&mut self.client(node, "fill", &[&self.keys.to_string()]), LIMIT);
    }

    /// Starts another writer.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_writer(&mut self, node: &Node) -> Writer {
        let number = self.writers.to_string();
        self.writers += 1;
        self.resume_writer(node, &number)
    }

    /// Starts a writer with a number that had one: it goes on after the last value that the server has.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn resume_writer(&self, node: &Node, number: &str) -> Writer {
        let log = self.logs.join(format!("writer{number}"));
        let _ = fs::remove_file(self.logs.join(format!("writer{number}.stop")));
        let log_text = log.display().to_string();
        let mut command = self.client(node, "write", &[number, &log_text, &self.pause_ms.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Writer { child, log }
    }

    /// Verifies every key and every acknowledged write that the server should have: of each writer at least
    /// `at_least`. Gives the last number of each.
    ///
    /// # Panics
    /// At the first difference.
    pub fn verify(&self, node: &Node, at_least: &[u64]) -> Vec<u64> {
        let (keys, writers) = (self.keys.to_string(), self.writers.to_string());
        let text = command::run_ok(&mut self.client(node, "verify", &[&keys, &writers]), LIMIT);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("verify: {e}: {text}"));
        let last = answer["last"].as_array().cloned().unwrap_or_default();
        let last: Vec<u64> = last.iter().map(|n| n.as_u64().unwrap_or(0)).collect();
        for (writer, (have, want)) in last.iter().zip(at_least).enumerate() {
            assert!(
                have >= want,
                "writer {writer}: {want} writes were acknowledged before the epoch, {have} are there"
            );
        }
        last
    }

    /// Makes the server forget its memory and read its append-only file.
    pub fn reload(&self, node: &Node) {
        command::run_ok(&mut self.client(node, "reload", &[]), LIMIT);
    }
}

impl Writer {
    /// Number of the last acknowledged write.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.rsplit('\n').next().and_then(|l| l.split(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Did it lose its connection?
    #[must_use]
    pub fn lost(&self) -> bool {
        fs::read_to_string(&self.log).unwrap_or_default().contains(" lost ")
    }

    /// Ends it and gives the number of its last acknowledged write.
    ///
    /// # Panics
    /// When it does not end, or complained about wrong answers.
    pub fn stop(mut self) -> u64 {
        let stop = PathBuf::from(format!("{}.stop", self.log.display()));
        fs::write(&stop, b"").unwrap_or_else(|e| panic!("{}: {e}", stop.display()));
        let status = command::wait_child(&mut self.child, LIMIT, "writer");
        let _ = fs::remove_file(&stop);
        assert!(status.success(), "a writer got wrong answers: {status}");
        self.acknowledged()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
