//! Starts an agent where none answers: once, however many commands want one at the same moment, and without leaving
//! the application a child, a descriptor or a signal that it would not have had.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::client;
use crate::error::CliError;
use crate::paths::{Agent, program};

/// Longest wait until the agent answers, another command's start included.
const START_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
/// Part of the log that an error shows.
const LOG_TAIL_BYTES: usize = 600;

/// Why no agent could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not installed.
    #[error("the program holod is neither next to holo nor in PATH; install it, or start it yourself")]
    NoProgram,
    /// A file or directory of the agent.
    #[error("{what} {path}: {source}")]
    File {
        /// Operation.
        what: &'static str,
        /// Object.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It did not start.
    #[error("cannot execute {path}: {source}")]
    Exec {
        /// Program.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It started and ended.
    #[error("{program} ended before it answered at {socket}; see {log}{tail}")]
    Died {
        /// Program.
        program: PathBuf,
        /// Socket.
        socket: PathBuf,
        /// Log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// It is silent.
    #[error("no agent answered at {socket} within {} s; see {log}{tail}", START_MAX.as_secs())]
    Late {
        /// Socket.
        socket: PathBuf,
        /// Log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
}

/// Makes sure that an agent answers.
pub fn ensure(agent: &Agent) -> Result<(), CliError> {
    match client::status(&agent.socket) {
        Ok(_) => Ok(()),
        Err(CliError::NoAgent { .. }) => Ok(start(agent)?),
        Err(other) => Err(other),
    }
}

fn start(agent: &Agent) -> Result<(), StartError> {
    let deadline = Instant::now() + START_MAX;
    let program = program("holod").ok_or(StartError::NoProgram)?;
    let file = |what, path: &Path, source| StartError::File { what, path: path.to_owned(), source };
    for dir in [Some(agent.state_dir.as_path()), agent.socket.parent()].into_iter().flatten() {
        // Checkpoints hold the application's memory: for its user alone.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| file("cannot create the directory", dir, e))?;
    }
    let _lock = lock(agent, deadline)?;
    // Whoever held the lock before has started it.
    if client::status(&agent.socket).is_ok() {
        return Ok(());
    }
    let log_path = agent.state_dir.join("holod.log");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(|e| file("cannot open the log", &log_path, e))?;
    let log_start_bytes = log.metadata().map_or(0, |meta| meta.len());
    let life =
        spawn(&program, agent, log).map_err(|source| StartError::Exec { path: program.clone(), source })?;
    let tail = || log_tail(&log_path, log_start_bytes);
    loop {
        if client::status(&agent.socket).is_ok() {
            return Ok(());
        }
        if life.as_ref().is_none_or(ended) {
            let (socket, tail) = (agent.socket.clone(), tail());
            return Err(StartError::Died { program, socket, log: log_path, tail });
        }
        if Instant::now() >= deadline {
            return Err(StartError::Late { socket: agent.socket.clone(), tail: tail(), log: log_path });
        }
        sleep(POLL);
    }
}

/// One starter at a time for a state directory; the kernel drops the lock of one that dies.
fn lock(agent: &Agent, deadline: Instant) -> Result<Flock<File>, StartError> {
    let path = agent.state_dir.join("start.lock");
    let fail = |source| StartError::File { what: "cannot lock", path: path.clone(), source };
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(fail)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(fail(io::ErrorKind::TimedOut.into())),
            Err((_, errno)) => return Err(fail(errno.into())),
        }
        sleep(POLL);
    }
}

/// Starts the agent in its own session, child of nobody here. Returns a pidfd, none if it has already ended.
fn spawn(program: &Path, agent: &Agent, log: File) -> io::Result<Option<OwnedFd>> {
    let (pid_out, pid_in) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(&agent.state_dir).arg("--socket").arg(&agent.socket);
    // When this command runs inside a protected application, the agent must not become a part of it.
    for name in ["LD_PRELOAD", "HOLO_NAME", "HOLO_TOKEN"] {
        command.env_remove(name);
    }
    command.current_dir("/").stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
    let report: RawFd = pid_in.as_raw_fd();
    // SAFETY: this process has one thread; the closure makes system calls only.
    unsafe { command.pre_exec(move || detach(report)) };
    let mut middle = command.spawn()?;
    drop(pid_in);
    // With SIGCHLD ignored by our caller there is nothing to wait for.
    let _ = middle.wait();
    discard_child_signal();
    let pid = read_pid(File::from(pid_out))?;
    // SAFETY: a new descriptor, or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd @ 0..) = i32::try_from(fd) else { return Ok(None) };
    // SAFETY: just opened, owned by nobody else.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// In the child: leave the session, then let a grandchild go on, so that the application, which this process becomes,
/// has no child.
fn detach(report: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls; the buffer outlives its write. `_exit` runs no handlers.
    unsafe {
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            pid => {
                let bytes = pid.to_ne_bytes();
                let done = libc::write(report, bytes.as_ptr().cast(), bytes.len());
                libc::_exit(i32::from(done != 4));
            }
        }
        libc::umask(0o077);
        // An ignored SIGCHLD would rob the agent of its children's ends. Two are the C library's and refuse.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // A pipe of our caller's that the agent kept open would never end.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
}

fn read_pid(mut pipe: File) -> io::Result<i32> {
    let mut bytes = [0; 4];
    pipe.read_exact(&mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// A pending SIGCHLD survives `exec`: where our caller blocks that signal, take back the one that we caused.
fn discard_child_signal() {
    // SAFETY: sets and times are initialised before use; the calls have no other effect than the one described.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        if libc::sigpending(&mut pending) == 0 && libc::sigismember(&pending, libc::SIGCHLD) == 1 {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&set, std::ptr::null_mut(), &now);
        }
    }
}

fn ended(life: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: life.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry; does not wait.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

/// What this start added to the log, its end only.
fn log_tail(path: &Path, from: u64) -> String {
    let Ok(bytes) = fs::read(path) else { return String::new() };
    let new = bytes.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
    let text =
        String::from_utf8_lossy(&new[new.len().saturating_sub(LOG_TAIL_BYTES)..]).trim_end().to_owned();
    if text.is_empty() { text } else { format!(":\n{text}") }
}

/// Writes a message on stderr that nothing depends on. Parts of it come from elsewhere: no control characters but line
/// ends.
pub fn warn(message: &str) {
    let lines: Vec<String> = message.lines().map(crate::human::plain).collect();
    // In one piece: the application's own words may come at the same moment.
    let _ = io::stderr().write_all(format!("holo: {}\n", lines.join("\n")).as_bytes());
}
