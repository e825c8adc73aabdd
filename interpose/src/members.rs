//! Forked processes enter themselves in the page that they share with their parent.
//!
//! The agent finds processes by walking from parents to children. One whose parent ended (a daemon) is nobody's child
//! that it knows; this list leads to it.

use crate::{filters, start};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use holo_abi::control::{MEMBERS_MAX, mourner};
use holo_abi::sysno;
use holo_sys::sys;
use holo_sys::tls::{Tls, tls};

const PR_GET_PDEATHSIG: u64 = 2;

/// The process that has entered itself; a copy of the parent's word right after a fork.
static ENTERED: AtomicU32 = AtomicU32::new(0);

/// Called where libc makes a new thread known to the kernel, which the child of a `fork` does first.
pub(crate) fn enter() {
    let Some(page) = start::control() else { return };
    // SAFETY: no memory is passed.
    let pid = unsafe { sys!(sysno::getpid) } as u32;
    if page.header.pid == pid || ENTERED.swap(pid, Ordering::Relaxed) == pid {
        return;
    }
    let free = page
        .members
        .iter()
        .position(|member| member.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    let used = free.map_or(MEMBERS_MAX, |index| index + 1);
    page.header.members_used.fetch_max(used as u32, Ordering::AcqRel);
    // Its parent has said so before it was made; a handler that ran in between may have hidden that, see [`parked`].
    changes();
}

/// A thread ends, and no other one with it. Once the first of a process has, the kernel heeds the signal that it wanted at its
/// parent's death as before, and shows it to nobody.
pub(crate) fn leaves() {
    let Some(page) = start::control().filter(|_| !filters::on()) else { return };
    // SAFETY: no memory is passed.
    let (pid, tid) = unsafe { (sys!(sysno::getpid) as u32, sys!(sysno::gettid) as u32) };
    if pid != tid {
        return;
    }
    for old in page.mourners.iter().filter(|word| word.load(Ordering::Relaxed) >> 32 == u64::from(pid)) {
        old.store(0, Ordering::Relaxed);
    }
    let mut signal = 0u32;
    // SAFETY: room for the answer.
    unsafe { sys!(sysno::prctl, PR_GET_PDEATHSIG, &raw mut signal) };
    let word = mourner(pid, signal);
    let is_taken =
        |free: &AtomicU64| free.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let _ = signal != 0 && page.mourners.iter().any(is_taken);
}

/// A process is about to be made, or changed, by this thread: what the agent knows of the tree is old, and is so again after a
/// park that comes before the call, or that lets the kernel begin it anew.
pub(crate) fn makes() {
    // SAFETY: own thread's words.
    unsafe { (*tls()).making = 1 };
    changes();
}

/// The thread was parked: a call that is yet to be made changes what the agent has seen in that time.
pub(crate) fn parked(words: &Tls) {
    if words.making != 0 {
        changes();
    }
}

/// What the agent knows of the tree is old.
pub(crate) fn changes() {
    if let Some(page) = start::control() {
        page.header.changes.fetch_add(1, Ordering::AcqRel);
    }
}
