//! Forked processes enter themselves in the page that they share with their parent.
//!
//! The agent finds processes by walking from parents to children. One whose parent ended (a daemon) is nobody's child
//! that it knows; this list leads to it.

use crate::start;
use core::sync::atomic::{AtomicU32, Ordering};
use holo_abi::control::MEMBERS_MAX;
use holo_abi::sysno;
use holo_sys::sys;
use holo_sys::tls::{Tls, tls};

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
