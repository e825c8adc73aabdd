//! A copy-on-write snapshot of a parked process: a hidden process that only holds its memory.
//!
//! ```text
//! app thread --clone3(FILES|FS)--> middle --close_range(UNSHARE), clone3(VM)--> snapshot
//!            <-------- wait4(middle) ----- exit
//! ```
//!
//! The middle shares the descriptor table until it replaces it by an empty one, so that no descriptor of
//! the application is ever held open by holo; it is reaped before the application runs on, which therefore
//! has no child that it did not make. The snapshot shares the middle's memory and outlives it.

use crate::barrier::inner_tid;
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, call, outcome};
use crate::tree::{hide, is_alive, outer_tid, unhide};
use holo_abi::control::{CALL_CLONE, slot};
use holo_abi::sysno;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLOSE_RANGE_UNSHARE: u64 = 2;
const WALL: u64 = 0x4000_0000;
const PR_SET_PTRACER: u64 = 0x5961_6d61;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PATIENCE: Duration = Duration::from_secs(10);
const CLONE_ARGS_BYTES: u64 = 88;

/// Whether the process may have no more processes: its user has too many, or its group.
pub(crate) fn is_no_more_processes(cause: &RmError) -> bool {
    matches!(cause, RmError::Kernel { source, .. } if source.raw_os_error() == Some(libc::EAGAIN))
}

/// The snapshot; ends when dropped.
pub struct Snapshot {
    /// Its pid on this node.
    pub pid: i32,
    /// Its slot.
    pub slot: usize,
    page: std::sync::Arc<crate::page::Page>,
    /// Its memory, once it was read.
    memory: OnceLock<fs::File>,
}

/// The child of `parent` (a thread) whose id in its own namespace is `inner`.
fn child(parent: i32, thread: i32, inner: i32) -> io::Result<i32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{thread}/children"))?;
    list.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .find(|pid| inner_tid(*pid, *pid) == inner)
        .ok_or_else(|| io::Error::other(format!("no child {inner} of {thread}")))
}

impl Snapshot {
    /// Takes a snapshot of a parked process.
    ///
    /// # Errors
    /// No memory, no pid, ...: nothing is left behind.
    pub fn take(remote: &Remote) -> RmResult<Self> {
        let page = &remote.page;
        let reserve =
            || page.reserve().ok_or_else(|| RmError::Unsupported("no free slot for a snapshot".into()));
        let middle = reserve()?;
        let Ok(last) = reserve() else {
            page.state(middle).store(slot::FREE, Ordering::SeqCst);
            return Err(RmError::Unsupported("no free slot for a snapshot".into()));
        };
        for index in [middle, last] {
            // SAFETY: reserved by us; nobody else looks at it.
            unsafe {
                (*page.slot(index)).leave = 1;
                (*page.slot(index)).generation = 0;
            }
        }
        let taken = Self::fork(remote, middle, last);
        page.state(middle).store(slot::FREE, Ordering::SeqCst);
        match taken {
            Ok(pid) => {
                hide(pid);
                Ok(Self { pid, slot: last, page: page.clone(), memory: OnceLock::new() })
            }
            Err(cause) => {
                page.state(last).store(slot::FREE, Ordering::SeqCst);
                Err(cause)
            }
        }
    }

    fn fork(remote: &Remote, middle: usize, last: usize) -> RmResult<i32> {
        let page = &remote.page;
        let mut arguments = [0u64; 22];
        arguments[0] = CLONE_FILES | CLONE_FS;
        arguments[11] = CLONE_VM;
        // SAFETY: plain words.
        let bytes =
            unsafe { std::slice::from_raw_parts(arguments.as_ptr().cast::<u8>(), size_of_val(&arguments)) };
        let at = page.put(0, bytes);
        let inner = remote
            .call(CALL_CLONE, &[at, CLONE_ARGS_BYTES, page.slot_address(middle)])
            .on("forking", "a snapshot")?;
        let made = (|| {
            page.wait_state(middle, PATIENCE, |state| state == slot::DONE).on("starting", "a snapshot")?;
            let mut calls = [
                call(sysno::close_range, &[0, u64::from(u32::MAX), CLOSE_RANGE_UNSHARE]),
                call(CALL_CLONE, &[at + CLONE_ARGS_BYTES, CLONE_ARGS_BYTES, page.slot_address(last)]),
            ];
            remote.run_in(middle, &mut calls, true).on("starting", "a snapshot")?;
            outcome(&calls[0]).on("emptying", "the snapshot's descriptors")?;
            let snapshot = outcome(&calls[1]).on("forking", "a snapshot")?;
            page.wait_state(last, PATIENCE, |state| state == slot::DONE).on("starting", "a snapshot")?;
            // SAFETY: filled in by the parked thread.
            let leader = unsafe { (*page.slot(remote.leader)).tid } as i32;
            let thread = outer_tid(remote.pid, leader).on("finding", "the forking thread")?;
            let parent = child(remote.pid, thread, inner as i32).on("finding", "the snapshot's parent")?;
            child(parent, parent, snapshot as i32).on("finding", "the snapshot")
        })();
        // It may be read by us even where only parents may (Yama); fails harmlessly without Yama. In a session of its own neither
        // signals to the application's groups end it, nor does it keep a group alive.
        if made.is_ok() {
            let mut calls = [call(sysno::prctl, &[PR_SET_PTRACER, u64::MAX]), call(sysno::setsid, &[])];
            remote.run_in(last, &mut calls, false).on("opening", "the snapshot")?;
        }
        // An application that is a subreaper must not inherit the snapshot.
        let reaper_at = page.put(512, &[0; 8]);
        remote.call(sysno::prctl, &[PR_GET_CHILD_SUBREAPER, reaper_at]).on("asking", "for a subreaper")?;
        let subreaper = page.take(512, 4) != [0; 4];
        if subreaper {
            remote.call(sysno::prctl, &[PR_SET_CHILD_SUBREAPER, 0]).on("hiding", "the snapshot")?;
        }
        page.start(middle, &[call(sysno::exit_group, &[0])], false);
        let reaped = remote.call(sysno::wait4, &[inner, 0, WALL, 0]).on("reaping", "the snapshot's parent");
        if subreaper {
            remote.call(sysno::prctl, &[PR_SET_CHILD_SUBREAPER, 1]).on("restoring", "the subreaper flag")?;
        }
        let pid = made?;
        reaped?;
        Ok(pid)
    }

    /// Reads its memory.
    ///
    /// By way of its file: `process_vm_readv` gives the process that is read a page of its own, in exchange for each that it
    /// shares with the application.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.page.keep_alive();
        let memory = match self.memory.get() {
            Some(memory) => memory,
            None => {
                let opened = fs::File::open(format!("/proc/{}/mem", self.pid))?;
                self.memory.get_or_init(|| opened)
            }
        };
        memory.read_exact_at(bytes, at)
    }

    /// Makes calls in it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn run(&self, remote: &Remote, calls: &mut [holo_abi::control::Call]) -> io::Result<()> {
        // The process that it was taken of may have ended by now.
        remote.run_while(self.slot, calls, false, &|| is_alive(self.pid))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // SAFETY: our own hidden process, which nobody else ends; its pid is not reused while its parent (an
        // init) has not reaped it, which happens only after this.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // Nobody takes it for a process of the application while it dies.
        let until = std::time::Instant::now() + Duration::from_secs(1);
        while is_alive(self.pid) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
        unhide(self.pid);
        self.page.state(self.slot).store(slot::FREE, Ordering::SeqCst);
    }
}
