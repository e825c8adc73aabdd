//! The thread of ours that traces a stopped process.

use crate::face::has_ended;
use holo_abi::{PARK_SIGNAL, sysno};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

const PTRACE_SEIZE: u32 = 0x4206;
const PTRACE_INTERRUPT: u32 = 0x4207;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_GET_SYSCALL_INFO: u32 = 0x420e;
const PTRACE_GETEVENTMSG: u32 = 0x4201;
const PTRACE_O_TRACESYSGOOD: u64 = 1;
const PTRACE_O_TRACECLONE: u64 = 8;
const PTRACE_EVENT_CLONE: i32 = 3;
const PTRACE_EVENT_STOP: i32 = 128;
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
const SYSCALL_ENTRY: u8 = 1;
const MASK_BYTES: u64 = 8;
/// A thread that does not do within this time what it has to is left to itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long we look again at once: an answer takes a few microseconds.
const EAGER: Duration = Duration::from_micros(500);
/// Signals that can come before a stop that was asked for.
const SIGNALS_MAX: usize = 4;
const PARK_BIT: u64 = 1 << (PARK_SIGNAL - 1);

/// How far a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In a stop of ours; with a signal that it is to be given.
    Trapped(i32),
    /// Runs.
    Running,
    /// Runs from call to call; inside `rt_sigreturn` or not.
    Following { returning: bool },
    /// No more ours.
    Gone,
}

struct Tracee {
    tid: i32,
    stage: Stage,
    /// Its own mask, while another one is set.
    mask: Option<u64>,
    /// As far as it was told: its process is stopped. `SIGCONT` traps each tracee, before any signal that follows.
    stopped: bool,
}

/// Traces the threads of one process; by one thread.
pub(super) struct Tracer {
    pid: i32,
    options: u64,
    tracees: Vec<Tracee>,
}

/// A stop as `wait` tells it.
struct Event {
    signal: i32,
    /// Of ptrace, not the delivery of a signal.
    trap: bool,
    /// Thread that was made.
    made: Option<i32>,
}

fn ptrace(request: u32, tid: i32, address: u64, data: u64) -> io::Result<i64> {
    // SAFETY: addresses that are passed are of buffers that live during the call.
    let ret = unsafe { libc::syscall(libc::SYS_ptrace, u64::from(request), i64::from(tid), address, data) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn mask_of(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    ptrace(PTRACE_GETSIGMASK, tid, MASK_BYTES, (&raw mut mask) as u64).map(|_| mask)
}

fn set_mask(tid: i32, mask: u64) -> io::Result<()> {
    ptrace(PTRACE_SETSIGMASK, tid, MASK_BYTES, (&raw const mask) as u64).map(|_| ())
}

fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// Signals that would be delivered before the park signal is.
fn deliverable(pid: i32, tid: i32, mask: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let bits = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
    };
    (bits("SigPnd") | bits("ShdPnd")) & !mask & !PARK_BIT
}

/// Whether a thread enters `rt_sigreturn`.
fn enters_return(tid: i32) -> bool {
    let mut info = [0u64; 11];
    let asked = ptrace(PTRACE_GET_SYSCALL_INFO, tid, size_of_val(&info) as u64, info.as_mut_ptr() as u64);
    // `op` is the first byte, the number of the call the fourth word.
    asked.is_ok() && info[0].to_le_bytes()[0] == SYSCALL_ENTRY && info[3] == sysno::rt_sigreturn as u64
}

/// Polls, eagerly at first.
fn pause(since: Instant) {
    if since.elapsed() < EAGER {
        std::thread::yield_now();
    } else {
        std::thread::sleep(Duration::from_micros(50));
    }
}

impl Tracee {
    /// What it was stopped by, if it is.
    ///
    /// Its own stops name the signal that stopped the process, if one did.
    fn event(&mut self) -> Option<Event> {
        let mut status = 0;
        let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
        // SAFETY: writes one int.
        match unsafe { libc::waitpid(self.tid, &raw mut status, flags) } {
            0 => None,
            pid if pid == self.tid && libc::WIFSTOPPED(status) => {
                let mut made = 0u64;
                let is_made = status >> 16 == PTRACE_EVENT_CLONE
                    && ptrace(PTRACE_GETEVENTMSG, pid, 0, (&raw mut made) as u64).is_ok();
                let made = is_made.then_some(made as i32);
                if status >> 16 == PTRACE_EVENT_STOP {
                    self.stopped = libc::WSTOPSIG(status) != libc::SIGTRAP;
                }
                Some(Event { signal: libc::WSTOPSIG(status), trap: status >> 16 != 0, made })
            }
            // It has ended.
            _ => {
                self.stage = Stage::Gone;
                None
            }
        }
    }

    fn resume(&mut self, request: u32, signal: i32, stage: Stage) {
        let done = ptrace(request, self.tid, 0, signal as u64);
        self.stage = if done.is_ok() { stage } else { Stage::Gone };
    }

    /// Into a stop of ours.
    fn trap(&mut self) -> bool {
        if matches!(self.stage, Stage::Trapped(_) | Stage::Gone) {
            return true;
        }
        if ptrace(PTRACE_INTERRUPT, self.tid, 0, 0).is_err() {
            self.stage = Stage::Gone;
            return true;
        }
        self.wait_trapped()
    }

    fn wait_trapped(&mut self) -> bool {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if let Some(event) = self.event() {
                let signal = if event.signal == SYSCALL_STOP { 0 } else { self.given(&event) };
                self.stage = Stage::Trapped(signal);
                return true;
            }
            // The first thread of a process that goes on is not told of by `wait` when it has ended.
            if since.elapsed() > EAGER && has_ended(self.tid) {
                self.stage = Stage::Gone;
            }
            if self.stage == Stage::Gone {
                return true;
            }
            pause(since);
        }
        false
    }

    /// On to the park handler: it is the first that runs.
    fn go_to_park(&mut self, pid: i32) {
        let Stage::Trapped(signal) = self.stage else { return };
        if let Ok(mask) = mask_of(self.tid)
            && deliverable(pid, self.tid, mask) != 0
            && set_mask(self.tid, !PARK_BIT).is_ok()
        {
            self.mask = Some(mask);
        }
        self.resume(libc::PTRACE_CONT, signal, Stage::Running);
    }

    /// A stop signal on its way to a stopped process does nothing; one that was let go on is stopped by it.
    fn is_vain(&self, signal: i32) -> bool {
        self.stopped && is_stop(signal)
    }

    /// The signal that a thread is to get when it goes on from a stop.
    fn given(&mut self, event: &Event) -> i32 {
        if event.trap || self.is_vain(event.signal) {
            return 0;
        }
        // The frame of the handler gets the mask that the thread had.
        if event.signal == PARK_SIGNAL
            && let Some(mask) = self.mask.take()
        {
            let _ = set_mask(self.tid, mask);
        }
        event.signal
    }

    /// A stop on the way back to the application's code.
    fn on_return(&mut self, event: &Event, returning: bool) {
        let Event { signal, trap, .. } = *event;
        if signal == SYSCALL_STOP && !trap {
            if returning {
                // Registers and mask are the application's; no instruction of it has run.
                let _ = ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
                self.stage = Stage::Gone;
                return;
            }
            let returning = enters_return(self.tid);
            self.resume(libc::PTRACE_SYSCALL, 0, Stage::Following { returning });
        } else {
            let given = self.given(event);
            self.resume(libc::PTRACE_SYSCALL, given, Stage::Following { returning });
        }
    }
}

impl Tracer {
    /// Nobody is traced yet. Threads that are made while a process is stopped are, too: with `growing` they become ours.
    pub(super) fn new(pid: i32, growing: bool) -> Self {
        let options = PTRACE_O_TRACESYSGOOD | if growing { PTRACE_O_TRACECLONE } else { 0 };
        Self { pid, options, tracees: Vec::new() }
    }

    /// Takes threads, those that are not taken yet; all are trapped then.
    pub(super) fn attach(&mut self, tids: &[i32]) -> bool {
        let mut good = true;
        for tid in tids {
            if self.tracees.iter().any(|tracee| tracee.tid == *tid) {
                continue;
            }
            match ptrace(PTRACE_SEIZE, *tid, 0, self.options) {
                Ok(_) => {
                    let mut tracee = Tracee { tid: *tid, stage: Stage::Running, mask: None, stopped: true };
                    good &= tracee.trap();
                    self.tracees.push(tracee);
                }
                // It has ended.
                Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => {}
                Err(_) => good = false,
            }
        }
        good
    }

    /// Lets all run into the park handler, before anything else.
    pub(super) fn park(&mut self) {
        for tracee in &mut self.tracees {
            tracee.go_to_park(self.pid);
        }
    }

    /// Lets all run.
    pub(super) fn go_on(&mut self) {
        for tracee in &mut self.tracees {
            if let Stage::Trapped(signal) = tracee.stage {
                tracee.resume(libc::PTRACE_CONT, signal, Stage::Running);
            }
        }
    }

    /// Lets those go on that came into a stop; whether there were any.
    pub(super) fn attend(&mut self) -> bool {
        let (mut any, mut made) = (false, Vec::new());
        for tracee in self.tracees.iter_mut().filter(|tracee| tracee.stage == Stage::Running) {
            if let Some(event) = tracee.event() {
                let signal = tracee.given(&event);
                tracee.resume(libc::PTRACE_CONT, signal, Stage::Running);
                any = true;
                made.extend(event.made);
            }
        }
        let born =
            made.into_iter().map(|tid| Tracee { tid, stage: Stage::Running, mask: None, stopped: true });
        self.tracees.extend(born);
        any
    }

    pub(super) fn trap(&mut self) -> bool {
        let mut good = true;
        for tracee in &mut self.tracees {
            good &= tracee.trap();
        }
        good
    }

    /// Whether the process is stopped now, which each stop of ours tells; all run on.
    pub(super) fn is_stopped(&mut self) -> bool {
        let mut good = true;
        for tracee in &mut self.tracees {
            // A stop signal that comes first does its work first.
            for _ in 0..SIGNALS_MAX {
                good &= tracee.trap();
                let Stage::Trapped(signal @ 1..) = tracee.stage else { break };
                tracee.resume(libc::PTRACE_CONT, signal, Stage::Running);
            }
        }
        let left = || self.tracees.iter().filter(|tracee| matches!(tracee.stage, Stage::Trapped(_)));
        let stopped = good && left().next().is_some() && left().all(|tracee| tracee.stopped);
        self.go_on();
        stopped
    }

    /// Follows all until they are back in the application's code, where they stop.
    pub(super) fn follow(&mut self) -> bool {
        for tracee in &mut self.tracees {
            if let Stage::Trapped(signal) = tracee.stage {
                tracee.resume(libc::PTRACE_SYSCALL, signal, Stage::Following { returning: false });
            }
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let mut all = true;
            for tracee in &mut self.tracees {
                if let Stage::Following { returning } = tracee.stage {
                    all = false;
                    if let Some(event) = tracee.event() {
                        tracee.on_return(&event, returning);
                    }
                }
            }
            if all {
                return true;
            }
            pause(since);
        }
        false
    }

    /// Leaves all: those that are still ours are stopped where they are.
    pub(super) fn detach(&mut self) {
        for tracee in &mut self.tracees {
            if tracee.stage == Stage::Gone || !tracee.trap() {
                continue;
            }
            if let Some(mask) = tracee.mask.take() {
                let _ = set_mask(tracee.tid, mask);
            }
            if let Stage::Trapped(signal) = tracee.stage {
                let _ = ptrace(libc::PTRACE_DETACH, tracee.tid, 0, signal as u64);
            }
        }
    }
}
