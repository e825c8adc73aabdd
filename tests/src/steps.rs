//! A process is killed, or its connection broken, at one of its steps: before a system call that changes a file or says
//! something to somebody, whichever thread makes it.
//!
//! All threads are traced (`ptrace`) from [`Steps::follow`] on, new ones too; what the process starts is not. Steps are counted over all
//! threads in the order in which the kernel reports them.

use crate::process;
use libc::{c_int, c_long, pid_t, ptrace_syscall_info};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A stop of a thread that is a system call.
const CALL_STOP: c_int = libc::SIGTRAP | 0x80;
/// A thread that waits is not asked to stop for longer than this.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What changes files, or says something to somebody.
const STEPS: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tgkill,
    libc::SYS_ioctl,
];
/// What sends or receives, on sockets and whatever else has a descriptor.
const TALK: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
];

/// What is done at the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The process is killed with -9 before it makes the call.
    Kill,
    /// The connection to another node, on which the call was to send or to receive, is shut down instead. Only such calls count.
    Break,
}

/// A process that is followed.
pub struct Steps {
    counted: Arc<AtomicU64>,
    acted: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    before: Arc<Mutex<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Steps {
    /// Follows a process and acts at step number `at`, from 0 on.
    ///
    /// # Panics
    /// When it cannot be traced.
    #[must_use]
    pub fn follow(pid: u32, act: Act, at: u64) -> Steps {
        let (counted, acted, stop) = (Arc::default(), Arc::default(), Arc::default());
        let before = Arc::default();
        let (tell, told) = mpsc::channel();
        let mut tracer = Tracer {
            pid: pid_t::try_from(pid).unwrap_or_else(|_| panic!("{pid} is no pid")),
            act,
            at,
            threads: BTreeSet::new(),
            counted: Arc::clone(&counted),
            acted: Arc::clone(&acted),
            stop: Arc::clone(&stop),
            before: Arc::clone(&before),
        };
        let thread = std::thread::spawn(move || {
            tracer.seize();
            let _ = tell.send(());
            tracer.run();
        });
        assert!(told.recv().is_ok(), "process {pid} cannot be traced");
        Steps { counted, acted, stop, before, thread: Some(thread) }
    }

    /// Was it done?
    #[must_use]
    pub fn has_acted(&self) -> bool {
        self.acted.load(Ordering::SeqCst)
    }

    /// Steps so far.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::SeqCst)
    }

    /// The call before which it was done.
    #[must_use]
    pub fn before(&self) -> String {
        self.before.lock().map_or_else(|_| String::new(), |text| text.clone())
    }

    /// Lets the process alone. Was anything done to it?
    #[must_use]
    pub fn end(mut self) -> bool {
        self.join();
        self.has_acted()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "the tracer failed");
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.join();
    }
}

/// Works in one thread: the kernel knows tracers by thread.
struct Tracer {
    pid: pid_t,
    act: Act,
    at: u64,
    threads: BTreeSet<pid_t>,
    counted: Arc<AtomicU64>,
    acted: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    before: Arc<Mutex<String>>,
}

fn ptrace(request: libc::c_uint, tid: pid_t, address: usize, data: usize) -> bool {
    // SAFETY: of the requests made here those that write get the address of a place of their size.
    unsafe { libc::ptrace(request, tid, address, data) != -1 }
}

impl Tracer {
    fn seize(&mut self) {
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
        let dir = format!("/proc/{}/task", self.pid);
        // Threads may be made meanwhile: those of traced ones come by themselves.
        loop {
            let tids = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{dir}: {e}")).flatten();
            let tids = tids.filter_map(|entry| entry.file_name().to_str()?.parse::<pid_t>().ok());
            let fresh: Vec<pid_t> = tids.filter(|tid| !self.threads.contains(tid)).collect();
            let seized: Vec<pid_t> = fresh
                .into_iter()
                .filter(|tid| ptrace(libc::PTRACE_SEIZE, *tid, 0, options as usize))
                .collect();
            if seized.is_empty() {
                break;
            }
            for tid in seized {
                self.threads.insert(tid);
                // Its stop is seen in `run`, which then looks at its calls.
                ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0);
            }
        }
        assert!(
            !self.threads.is_empty(),
            "{dir}: nothing can be traced: {}",
            std::io::Error::last_os_error()
        );
    }

    fn run(&mut self) {
        let mut stopping: Option<Instant> = None;
        while !self.threads.is_empty() {
            if stopping.is_none() && self.stop.load(Ordering::SeqCst) {
                stopping = Some(Instant::now());
                for tid in &self.threads {
                    ptrace(libc::PTRACE_INTERRUPT, *tid, 0, 0);
                }
            }
            let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
            let mut status = 0;
            // SAFETY: one word. Only what this thread traces is waited for: it has no children.
            let tid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
            if tid == 0 {
                assert!(stopping.is_none_or(|since| since.elapsed() < STOP_LIMIT), "threads do not stop");
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
            if tid < 0 {
                return;
            }
            if !libc::WIFSTOPPED(status) {
                self.threads.remove(&tid);
                continue;
            }
            self.threads.insert(tid);
            let signal = self.look(tid, status);
            if stopping.is_some() {
                self.threads.remove(&tid);
                ptrace(libc::PTRACE_DETACH, tid, 0, signal as usize);
            } else {
                // Where all is done its calls are of no interest any more.
                let acted = self.acted.load(Ordering::SeqCst);
                let on = if acted { libc::PTRACE_CONT } else { libc::PTRACE_SYSCALL };
                ptrace(on, tid, 0, signal as usize);
            }
        }
    }

    /// The signal with which a stopped thread goes on.
    fn look(&mut self, tid: pid_t, status: c_int) -> c_int {
        let signal = libc::WSTOPSIG(status);
        if signal == CALL_STOP {
            self.call(tid);
            return 0;
        }
        // Stops that are events of tracing have their kind above the signal.
        if status >> 16 != 0 { 0 } else { signal }
    }

    fn call(&mut self, tid: pid_t) {
        // SAFETY: plain words.
        let mut info: ptrace_syscall_info = unsafe { std::mem::zeroed() };
        let into = (&raw mut info) as usize;
        if self.acted.load(Ordering::SeqCst)
            || !ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of::<ptrace_syscall_info>(), into)
            || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY
        {
            return;
        }
        // SAFETY: it says that it is an entry.
        let entry = unsafe { info.u.entry };
        let counts = match self.act {
            Act::Kill => STEPS.contains(&(entry.nr as c_long)),
            Act::Break => TALK.contains(&(entry.nr as c_long)) && self.is_connection(entry.args[0]),
        };
        if !counts || self.counted.fetch_add(1, Ordering::SeqCst) != self.at {
            return;
        }
        if let Ok(mut before) = self.before.lock() {
            *before = format!("call {} of {:x?}", entry.nr, entry.args);
        }
        match self.act {
            // The call is not made: who is killed at its entry ends there.
            Act::Kill => process::kill_all(&[self.pid.unsigned_abs()]),
            Act::Break => shut_down(tid),
        }
        self.acted.store(true, Ordering::SeqCst);
    }

    /// Is it a TCP connection?
    fn is_connection(&self, fd: u64) -> bool {
        let Ok(name) = std::fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)) else { return false };
        let Some(inode) = name.to_str().and_then(|n| n.strip_prefix("socket:[")?.strip_suffix(']')) else {
            return false;
        };
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.pid)).unwrap_or_default();
        table.lines().any(|line| line.split_whitespace().nth(9) == Some(inode))
    }
}

/// Makes `shutdown(fd, SHUT_RDWR)` of a call whose first argument is a descriptor: nothing is read or written by it.
fn shut_down(tid: pid_t) {
    // SAFETY: plain words.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    assert!(ptrace(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers) as usize), "registers of {tid}");
    registers.orig_rax = libc::SYS_shutdown as u64;
    registers.rsi = libc::SHUT_RDWR as u64;
    assert!(ptrace(libc::PTRACE_SETREGS, tid, 0, (&raw mut registers) as usize), "registers of {tid}");
}
