//! The way in for system calls that libc does not make: Syscall User Dispatch (Linux 5.11 and later).
//!
//! A `syscall` instruction outside libholo's text raises `SIGSYS` instead of entering the kernel. The
//! handler only moves the thread to a trampoline for that place (`holo-sys`, traps), which goes through the
//! gate like any other and comes back behind the instruction; blocking calls, signals and parks are then
//! what they are elsewhere. With patched sites, libc's calls do not trap.
//!
//! The kernel ends a process that blocks or ignores `SIGSYS` when it is trapped: as the park signal, it is
//! kept out of every mask, and the kernel always has a handler for it. Threads and processes are born
//! without traps; they ask for them at their first steps in libc, or in the trampoline of the call that
//! made them.

use crate::{signals, start};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use holo_abi::{sysno, ways};
use holo_sys::frame::{Context, SigInfo};
use holo_sys::{sys, traps};

/// `SIGSYS`.
pub(crate) const SIGNAL: i32 = 31;
/// `prctl(PR_SET_SYSCALL_USER_DISPATCH)`.
pub(crate) const PR_DISPATCH: u64 = 59;
const SYS_USER_DISPATCH: i32 = 2;
const ARCH_X86_64: u64 = 0xc000_003e;

static ON: AtomicBool = AtomicBool::new(false);
static FROM: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Are raw system calls trapped in this process?
pub(crate) fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Starts trapping in the constructor's thread; `text` is libholo's mapping up to the end of its code.
pub(crate) fn start(text: (u64, u64)) -> bool {
    FROM.store(text.0, Ordering::Relaxed);
    BYTES.store(text.1 - text.0, Ordering::Relaxed);
    traps::set_range(text.0, text.1 - text.0);
    ON.store(true, Ordering::Relaxed);
    signals::keep_traps();
    if enter() {
        return true;
    }
    ON.store(false, Ordering::Relaxed);
    signals::drop_traps();
    false
}

/// Asks for traps in the calling thread.
pub(crate) fn enter() -> bool {
    let (from, bytes) = (FROM.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    // SAFETY: no memory is passed; our own text is exempt.
    on() && unsafe { sys!(sysno::prctl, PR_DISPATCH, 1, from, bytes, 0) } == 0
}

/// Is it a trapped call?
pub(crate) fn is_trap(signal: i32, info: &SigInfo) -> bool {
    signal == SIGNAL && info.code == SYS_USER_DISPATCH && BYTES.load(Ordering::Relaxed) != 0
}

/// Sends the thread through the trampoline of the instruction that it was trapped at.
pub(crate) fn redirect(context: &mut Context, info: &SigInfo) {
    let native = info.value >> 32 == ARCH_X86_64;
    match native.then(|| traps::trampoline(context.rip)).flatten() {
        Some(at) => context.rip = at,
        None => give_up(context),
    }
}

/// More sites than there is room for, or a call of another architecture: it is made where it stands, and
/// this thread is not trapped any more. The agent sees the missing bit.
fn give_up(context: &mut Context) {
    // SAFETY: no memory is passed.
    unsafe { sys!(sysno::prctl, PR_DISPATCH, 0, 0, 0, 0) };
    if let Some(page) = start::control() {
        page.header.ways.fetch_and(!ways::TRAPS, Ordering::AcqRel);
    }
    ON.store(false, Ordering::Relaxed);
    context.rip -= 2;
}
