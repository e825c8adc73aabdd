//! A process whose threads serve system calls: the agent's hands in it.
//!
//! The same for a parked application (capture) and a clone in the making (restore). Reads and writes of
//! memory go through `process_vm_readv`/`writev`, descriptors through `pidfd_getfd`, all else through calls
//! made by a thread of the process itself.

mod memory;

use crate::asks::{Answers, Asks};
use crate::face;
use crate::family::Family;
use crate::fds::{self, Fd};
use crate::manager::RmResult;
use crate::page::Page;
use crate::proc_file;
use crate::tasks::{self, Task};
use crate::tree::{Stat, children, stat, state_and_parent};
use holo_abi::control::Call;
use holo_abi::sysno;
use memory::transfer;
pub use memory::{read_guarded, read_many, read_memory, write_many};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a call list may take.
pub const CALL_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is checked meanwhile that the process still lives.
const LIFE_CHECK: Duration = Duration::from_millis(100);

/// A process and the thread in it that serves us by default.
pub struct Remote {
    /// Its control page.
    pub page: Arc<Page>,
    /// Its pid on this node.
    pub pid: i32,
    /// The thread that it is looked at through, see [`crate::face`]; its pid, most often.
    pub face: i32,
    /// Slot of the thread that makes calls for the process.
    pub leader: usize,
    pidfd: OwnedFd,
    /// Of the face, if that is not the first thread.
    face_fd: Option<OwnedFd>,
    tasks: OnceLock<Vec<Task>>,
    maps: OnceLock<Vec<u8>>,
    stat: OnceLock<Option<Stat>>,
    children: OnceLock<Vec<i32>>,
    fds: OnceLock<Vec<Fd>>,
    status: OnceLock<String>,
    auxv: OnceLock<Vec<u8>>,
    pub(crate) family: Family,
    pub(crate) asks: Asks,
}

/// A call list entry.
#[must_use]
pub fn call(nr: i64, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { nr, args: all, ret: i64::MIN }
}

/// A result as `io::Result`.
///
/// # Errors
/// The call's `errno`; `Interrupted` if it was never made.
pub fn outcome(call: &Call) -> io::Result<u64> {
    match call.ret {
        i64::MIN => Err(io::Error::new(io::ErrorKind::Interrupted, "the call was not made")),
        ret @ -4095..0 => Err(io::Error::from_raw_os_error(-ret as i32)),
        ret => Ok(ret.cast_unsigned()),
    }
}

impl Remote {
    /// A process with a page whose thread in slot `leader` is waiting.
    ///
    /// # Errors
    /// The process is gone.
    pub fn new(page: Arc<Page>, pid: i32, leader: usize) -> io::Result<Self> {
        Self::facing(page, pid, pid, leader)
    }

    /// The same, looked at through one of its threads.
    ///
    /// # Errors
    /// The process, or the thread, is gone.
    pub fn facing(page: Arc<Page>, pid: i32, face: i32, leader: usize) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made.
        let pidfd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        Ok(Self {
            page,
            pid,
            face,
            leader,
            pidfd,
            face_fd: if face == pid { None } else { face::open(face).ok() },
            tasks: OnceLock::new(),
            maps: OnceLock::new(),
            stat: OnceLock::new(),
            children: OnceLock::new(),
            fds: OnceLock::new(),
            status: OnceLock::new(),
            auxv: OnceLock::new(),
            family: Family::default(),
            asks: Asks::default(),
        })
    }

    /// `/proc/<pid>/<rest>`, of its face.
    #[must_use]
    pub fn proc(&self, rest: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{rest}", self.face))
    }

    /// Its threads, as they were when they were first asked for: only while it is parked.
    ///
    /// # Errors
    /// The process is gone.
    pub fn tasks(&self) -> io::Result<&[Task]> {
        if self.tasks.get().is_none() {
            let (tasks, status) = tasks::read(self.pid, self.face)?;
            // The file of the process says the same.
            if !status.is_empty() {
                let _ = self.status.set(status);
            }
            let _ = self.tasks.set(tasks);
        }
        Ok(self.tasks.get().map_or(&[], Vec::as_slice))
    }

    /// What `/proc/<pid>/stat` said when it was first asked for: only while it is parked. None: the process is gone.
    pub fn stat(&self) -> Option<Stat> {
        *self.stat.get_or_init(|| stat(self.pid))
    }

    /// What was seen of it already, since it parked.
    pub fn saw(&self, seen: Option<Stat>) {
        if seen.is_some() {
            self.stat.get_or_init(|| seen);
        }
    }

    /// Children of its threads, as they were when they were first asked for: only while it is parked.
    pub fn children(&self) -> &[i32] {
        self.children.get_or_init(|| children(self.pid))
    }

    /// What it has open, as it was when it was first asked for: only while it is parked, for those who leave nothing open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fds(&self) -> RmResult<&[Fd]> {
        if self.fds.get().is_none() {
            let _ = self.fds.set(fds::read_parked(self)?);
        }
        Ok(self.fds.get().map_or(&[], Vec::as_slice))
    }

    /// `/proc/<pid>/status`, as it was when it was first asked for: only while it is parked.
    ///
    /// # Errors
    /// The process is gone.
    pub fn status(&self) -> io::Result<&str> {
        if self.status.get().is_none() {
            let _ = self.status.set(self.proc_text("status")?);
        }
        Ok(self.status.get().map_or("", String::as_str))
    }

    /// Its auxiliary vector, as it was when it was first asked for: only while it is parked.
    ///
    /// # Errors
    /// The process is gone.
    pub fn auxv(&self) -> io::Result<&[u8]> {
        if self.auxv.get().is_none() {
            let _ = self.auxv.set(proc_file::read(self.proc("auxv"))?);
        }
        Ok(self.auxv.get().map_or(&[], Vec::as_slice))
    }

    /// Reads what kinds will ask of `/proc`, so that several processes are looked at at once. What cannot be read is told
    /// of where it is asked for.
    pub fn look(&self) {
        self.stat();
        let _ = (self.tasks().is_ok(), self.status().is_ok(), self.maps().is_ok(), self.fds().is_ok());
    }

    /// Its `maps`, as they were when they were first asked for: only while it is parked, for those who leave no zone behind.
    ///
    /// # Errors
    /// The process is gone.
    pub fn maps(&self) -> io::Result<&[u8]> {
        if self.maps.get().is_none() {
            let maps = proc_file::read(self.proc("maps")).map_err(|cause| self.unreadable(cause))?;
            let _ = self.maps.set(maps);
        }
        Ok(self.maps.get().map_or(&[], Vec::as_slice))
    }

    /// Why `/proc` does not show its memory.
    fn unreadable(&self, cause: io::Error) -> io::Error {
        if cause.kind() != io::ErrorKind::PermissionDenied {
            return cause;
        }
        let why = "lets nobody of its user look at it (`PR_SET_DUMPABLE`, or a program that may not be read)";
        io::Error::new(cause.kind(), format!("process {} {why}", self.pid))
    }

    /// One of [`Self::tasks`], by the id that it sees itself.
    ///
    /// # Errors
    /// There is none.
    pub fn task(&self, inner: i32) -> io::Result<&Task> {
        let found = self.tasks()?.iter().find(|task| task.inner == inner);
        found.ok_or_else(|| io::Error::other(format!("no thread {inner} in {}", self.pid)))
    }

    /// Reads a `/proc` file of the process.
    ///
    /// # Errors
    /// With the path.
    pub fn proc_text(&self, rest: &str) -> io::Result<String> {
        let path = self.proc(rest);
        proc_file::read(&path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display())))
    }

    /// Makes one call in the leader.
    ///
    /// # Errors
    /// The call's.
    pub fn call(&self, nr: i64, args: &[u64]) -> io::Result<u64> {
        self.call_in(self.leader, nr, args)
    }

    /// Makes one call in the thread of `slot`.
    ///
    /// # Errors
    /// The call's.
    pub fn call_in(&self, slot: usize, nr: i64, args: &[u64]) -> io::Result<u64> {
        let mut list = [call(nr, args)];
        self.run_in(slot, &mut list, false)?;
        outcome(&list[0])
    }

    /// Makes a list of calls in the leader, any length; results are in the list.
    ///
    /// # Errors
    /// Only that the thread does not answer.
    pub fn run(&self, calls: &mut [Call], stop: bool) -> io::Result<()> {
        self.run_in(self.leader, calls, stop)
    }

    /// [`Self::run`] in the thread of `slot`.
    ///
    /// # Errors
    /// Only that the thread does not answer.
    pub fn run_in(&self, slot: usize, calls: &mut [Call], stop: bool) -> io::Result<()> {
        self.run_while(slot, calls, stop, &|| !self.ended())
    }

    /// [`Self::run_in`] for a thread of another process with the same page, which `lives` knows.
    ///
    /// # Errors
    /// Only that the thread does not answer.
    pub fn run_while(
        &self,
        slot: usize,
        calls: &mut [Call],
        stop: bool,
        lives: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        if slot == self.leader {
            self.settle()?;
        }
        for part in calls.chunks_mut(holo_abi::control::BATCH_CALLS) {
            self.page.keep_alive();
            self.page.start(slot, part, stop);
            let done = self.finish(slot, part, lives)?;
            if stop && (done < part.len() || part.iter().any(|call| outcome(call).is_err())) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes a list of calls that is in the memory of the process, in the leader; all of them, whatever fails.
    ///
    /// # Errors
    /// Only that the thread does not answer.
    pub fn run_at(&self, calls_at: u64, count: usize) -> io::Result<()> {
        self.settle()?;
        self.start_at(calls_at, count);
        self.finish_list()
    }

    /// The beginning of [`Self::run_at`].
    pub(crate) fn start_at(&self, calls_at: u64, count: usize) {
        self.page.keep_alive();
        self.page.start_at(self.leader, calls_at, count);
    }

    /// The end of it.
    pub(crate) fn finish_list(&self) -> io::Result<()> {
        self.finish(self.leader, &mut [], &|| !self.ended()).map(|_| ())
    }

    /// Waits until it has made the calls that it was asked for at the beginning of the stop: before it is let go.
    ///
    /// # Errors
    /// It does not answer.
    pub fn settle(&self) -> io::Result<()> {
        self.asks.settle(self)
    }

    /// What it answered to what kinds asked for at the beginning of the stop.
    ///
    /// # Errors
    /// It does not answer, or was not asked.
    pub fn answers(&self) -> io::Result<&Answers> {
        self.asks.answers(self)
    }

    /// Waits for a list, as long as there is somebody to run it.
    fn finish(&self, slot: usize, part: &mut [Call], lives: &dyn Fn() -> bool) -> io::Result<usize> {
        let since = Instant::now();
        loop {
            match self.page.finish(slot, part, LIFE_CHECK) {
                Err(cause) if cause.kind() == io::ErrorKind::TimedOut && since.elapsed() < CALL_PATIENCE => {
                    if !lives() {
                        return Err(io::Error::from_raw_os_error(libc::ESRCH));
                    }
                    // By somebody outside, since it was parked: it answers when it is let go on. A snapshot does not stop.
                    // SAFETY: a plain word, written before the slot was in use.
                    let is_parked = unsafe { (*self.page.slot(slot)).generation } != 0;
                    if is_parked && state_and_parent(self.pid).is_some_and(|(state, _)| state == 'T') {
                        return Err(io::Error::other(format!("process {} was stopped meanwhile", self.pid)));
                    }
                    if is_parked && self.page.is_given_up() {
                        return Err(io::Error::other(format!(
                            "process {} ran on: it had no sign of life from the agent",
                            self.pid
                        )));
                    }
                }
                done => return done,
            }
        }
    }

    /// Whether the process ended; a zombie has.
    #[must_use]
    pub fn ended(&self) -> bool {
        let mut entry = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 1 }
    }

    /// Whether the thread that it is looked at through has ended and it has not.
    #[must_use]
    pub fn has_lost_face(&self) -> bool {
        face::has_ended(self.face) && !self.ended()
    }

    /// Makes a list of calls, all of which must succeed.
    ///
    /// # Errors
    /// The first failure, with the call's name.
    pub fn run_all(&self, calls: &mut [Call]) -> io::Result<()> {
        self.run(calls, true)?;
        for call in calls.iter() {
            outcome(call).map_err(|cause| {
                let name = sysno::NAMES.iter().find(|(nr, _)| i64::from(*nr) == call.nr);
                let name = name.map_or("call", |(_, name)| *name);
                let args = call.args.map(|arg| format!("{arg:#x}")).join(", ");
                io::Error::new(cause.kind(), format!("{name}({args}): {cause}"))
            })?;
        }
        Ok(())
    }

    /// Reads memory.
    ///
    /// # Errors
    /// The kernel's; a partial read is an error.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        read_memory(self.face, at, bytes)
    }

    /// Writes memory.
    ///
    /// # Errors
    /// The kernel's; a partial write is an error.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        transfer(self.face, at, bytes.as_ptr().cast_mut(), bytes.len(), true)
    }

    /// A duplicate of the process's descriptor `fd`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn borrow_fd(&self, fd: i32) -> io::Result<OwnedFd> {
        let through = self.face_fd.as_ref().unwrap_or(&self.pidfd);
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, through.as_raw_fd(), fd, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made.
        Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
    }

    /// The process's pidfd.
    #[must_use]
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }
}
