//! A fake agent: a thread that serves the socket with the replies of a test.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holo_api::local::{
    AgentStatus, AppInfo, AppState, EpochInfo, EpochProgress, MAGIC, Reply, Request, RestoreInfo, Step,
};
use holo_image::wire::{Kind, read_frame, write_frame};

pub const HOLO: &str = env!("CARGO_BIN_EXE_holo");

/// A directory with a socket that is served until the test ends.
pub struct FakeAgent {
    pub dir: tempfile::TempDir,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeAgent {
    /// Serves `Status` by itself and everything else with `answer`.
    pub fn start(answer: impl FnMut(&Request, &mut UnixStream) -> Vec<Reply> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let log = Arc::clone(&requests);
        std::thread::spawn(move || serve(&listener, answer, &log));
        Self { dir, requests }
    }

    /// The same answers to every request.
    pub fn canned(replies: Vec<Reply>) -> Self {
        Self::start(move |_, _| replies.clone())
    }

    pub fn holo(&self, args: &[&str]) -> Output {
        run(holo(self.dir.path(), args))
    }

    /// Requests apart from `Status`.
    pub fn asked(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

pub fn serve(
    listener: &UnixListener,
    mut answer: impl FnMut(&Request, &mut UnixStream) -> Vec<Reply>,
    log: &Mutex<Vec<Request>>,
) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut magic = [0; 8];
        if stream.read_exact(&mut magic).is_err() {
            continue;
        }
        assert_eq!(magic, MAGIC);
        let request: Request = read_frame(&mut stream, Kind::LOCAL, 1 << 20).unwrap();
        let replies = if request == Request::Status {
            vec![Reply::Status(status())]
        } else {
            log.lock().unwrap().push(request.clone());
            answer(&request, &mut stream)
        };
        for reply in replies {
            // The command may be gone already.
            let _ = write_frame(&mut stream, &reply, Kind::LOCAL);
        }
    }
}

/// The command with an environment of its own.
pub fn holo(state_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(HOLO);
    command.args(args).stdin(Stdio::null());
    for name in ["HOLO_SOCKET", "HOLO_REQUIRE", "XDG_RUNTIME_DIR", "LD_PRELOAD"] {
        command.env_remove(name);
    }
    command.env("HOLO_STATE_DIR", state_dir);
    command
}

/// Runs to the end, which must come.
pub fn run(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // The outputs here are smaller than a pipe.
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn status() -> AgentStatus {
    AgentStatus {
        version: "0.1.0".into(),
        node: "n1".into(),
        pid: 1,
        state_dir: "/state".into(),
        listen: None,
    }
}

pub fn app() -> AppInfo {
    AppInfo {
        name: "redis".into(),
        state: AppState::Unprotected,
        reasons: vec!["io_uring".into()],
        node: "n1".into(),
        epoch: 7,
        lag_ms: 1500,
        real_pids: vec![4711],
        cluster_pids: vec![41],
        stop_us: 2500,
        command: "redis-server".into(),
        standby: vec!["n2".into()],
        every_ms: 1000,
        budget_permille: 50,
        growth_bytes: 0,
        on_change: vec!["/srv/save".into()],
        standby_lag_ms: Some(1700),
        clone: holo_api::local::CloneInfo::default(),
        last: Some(epoch()),
        progress: vec![EpochProgress {
            step: Step::Send,
            node: "n2".into(),
            done_bytes: 3 << 29,
            total_bytes: 5 << 30,
        }],
    }
}

pub fn epoch() -> EpochInfo {
    EpochInfo {
        aside_unix_ms: None,
        epoch: 7,
        at: "2026-01-02T03:04:05Z".into(),
        sealed: true,
        sealed_where: vec!["local".into(), "n2".into()],
        stop_us: 2500,
        dump_us: 90_000,
        processes: 1,
        threads: 4,
        pages_dirty: 100,
        bytes_raw: 409_600,
        bytes_sent: 1000,
        files_changed: 2,
        engine: "uffd".into(),
        stop_parts_us: vec![("park".into(), 100)],
        bytes_by_kind: vec![("memory".into(), 900)],
    }
}

pub fn restored() -> RestoreInfo {
    RestoreInfo {
        name: "redis".into(),
        epoch: 7,
        restore_us: 35_000,
        first_instruction_us: 20_000,
        node: "n1".into(),
        real_pid: 99,
        remarks: vec!["2 connections were reset".into()],
    }
}

/// A program without a loader that exits with 42.
pub fn static_program(dir: &Path) -> PathBuf {
    // mov edi, 42; mov eax, 60; syscall
    let code = [0xbf, 42, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let base = 0x40_0000u64;
    let mut file = vec![0u8; 120];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &(base + 120).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0]);
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    put(80, &base.to_le_bytes());
    put(88, &base.to_le_bytes());
    put(96, &132u64.to_le_bytes());
    put(104, &132u64.to_le_bytes());
    put(112, &4096u64.to_le_bytes());
    file.extend(code);
    let path = dir.join("static");
    write_program(&path, &file);
    path
}

/// Writes a program by way of another process: a descriptor of ours, open for writing, would be inherited by whatever
/// another test forks at that moment, and the program be "busy".
pub fn write_program(path: &Path, bytes: &[u8]) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut child = install.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(child.wait().unwrap().success());
}
