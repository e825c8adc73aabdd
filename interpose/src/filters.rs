//! Filters that the application lays on its own system calls (`seccomp`), and its own traps for them.
//!
//! A call that the filter does not know may end the process, also one of holo's. From its first filter on holo makes no
//! call of its own in this process, and the agent, which sees the filter from outside, sends it no park signal. Whoever
//! is first of a cut and a filter in the making has its way: the filter is announced before it is made, the cut is
//! announced before signals are sent, and each looks at the other's word afterwards.
//!
//! ```text
//! here:   filters += 2; cut is PARK?    yes: filters -= 2, be parked, try again    no: make the filter, filters -= 2
//! agent:  cut = PARK;   filters > 1?    yes: call the cut off                      no: signal
//! ```

use crate::dispatch::Verdict;
use crate::{start, waits};
use core::sync::atomic::{AtomicBool, Ordering};
use holo_abi::control::{Control, cut, filters};
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_track::timeout::Timespec;

const PR_SET_SECCOMP: u64 = 22;
const SET_MODE_FILTER: u64 = 1;
const FLAG_TSYNC: u64 = 1;
const FLAG_NEW_LISTENER: u64 = 8;
static YIELD: Timespec = Timespec { sec: 0, nsec: 200_000 };
/// A cut ends sooner, unless its agent died in the middle of it.
const YIELDS_MAX: u32 = 5000;

/// A copy of it is the child's after a fork, as the filter is.
static ON: AtomicBool = AtomicBool::new(false);

/// Has this process laid a filter on its calls?
pub(crate) fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Is this call to lay one?
pub(crate) fn concerns(regs: &Regs) -> bool {
    match regs.rax.cast_signed() {
        sysno::seccomp => regs.args[0] <= SET_MODE_FILTER,
        sysno::prctl => regs.args[0] == PR_SET_SECCOMP,
        _ => false,
    }
}

/// Makes such a call.
pub(crate) fn on_filter(regs: &Regs) -> Verdict {
    let Some(page) = start::control() else { return Verdict::Forward };
    let (nr, args) = (regs.rax.cast_signed(), regs.args);
    let ret = announced(page, || waits::until_done(nr, || args));
    let flags = if nr == sysno::seccomp { args[1] } else { 0 };
    // Threads that could not be given it: the result is one's id.
    let refused = ret > 0 && flags & (FLAG_TSYNC | FLAG_NEW_LISTENER) == FLAG_TSYNC;
    if ret >= 0 && !refused {
        ON.store(true, Ordering::Relaxed);
    }
    page.header.filters.fetch_sub(filters::MAKING, Ordering::SeqCst);
    Verdict::Handled(ret)
}

/// `ptrace(PTRACE_TRACEME)`: from then on a park signal would stop the thread, and its tracer be told. The agent sees the tracer, as it
/// sees filters.
pub(crate) fn on_trace_me(regs: &Regs) -> Verdict {
    let Some(page) = start::control() else { return Verdict::Forward };
    let args = regs.args;
    let ret = announced(page, || waits::until_done(sysno::ptrace, || args));
    page.header.filters.fetch_sub(filters::MAKING, Ordering::SeqCst);
    Verdict::Handled(ret)
}

/// Makes a call while no cut is under way; `MAKING` is the caller's to take back.
fn announced(page: &Control, make: impl Fn() -> i64) -> i64 {
    let word = &page.header.filters;
    for left in (0..YIELDS_MAX).rev() {
        word.fetch_add(filters::MAKING, Ordering::SeqCst);
        word.fetch_or(filters::EVER, Ordering::SeqCst);
        if cut::state(page.header.cut.load(Ordering::SeqCst)) != cut::PARK || left == 0 {
            break;
        }
        word.fetch_sub(filters::MAKING, Ordering::SeqCst);
        // Parked meanwhile.
        waits::until_done(sysno::nanosleep, || [(&raw const YIELD) as u64, 0, 0, 0, 0, 0]);
    }
    make()
}
