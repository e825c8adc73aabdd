//! Asynchronous I/O: how many requests of each context the kernel has taken. It tells nobody how many are under way, which the agent
//! must know at a cut: what was taken less what came back.
//!
//! The calls are made from here, where parks are put off: at a cut what was taken is counted.

use crate::dispatch::Verdict;
use crate::{filters, user};
use core::sync::atomic::{AtomicU64, Ordering};
use holo_abi::aio::{CONTEXTS_MAX, Context};
use holo_abi::control::Header;
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_sys::{raw, sys};

/// An entry that is being filled in.
const CLAIMED: u64 = u64::MAX;

static CONTEXTS: [Context; CONTEXTS_MAX] =
    [const { Context { at: AtomicU64::new(0), pid: AtomicU64::new(0), taken: AtomicU64::new(0) } };
        CONTEXTS_MAX];

/// Tells the agent where the table is.
pub(crate) fn start(header: &mut Header) {
    header.aio_at = (&raw const CONTEXTS) as u64;
}

/// Makes `io_setup`, and counts from then on.
pub(crate) fn on_setup(regs: &Regs) -> Verdict {
    if filters::on() {
        return Verdict::Forward;
    }
    // SAFETY: the application's call with its own arguments.
    let ret = unsafe { raw::call(sysno::io_setup, regs.args) };
    if ret == 0
        && let Ok(at) = user::read::<u64>(regs.args[1], regs.rsp)
    {
        enter(at);
    }
    Verdict::Handled(ret)
}

/// Makes `io_submit`.
pub(crate) fn on_submit(regs: &Regs) -> Verdict {
    if filters::on() {
        return Verdict::Forward;
    }
    // SAFETY: as above.
    let ret = unsafe { raw::call(sysno::io_submit, regs.args) };
    if ret > 0
        && let Some(context) = places(regs.args[0]).find(|context| is(context, regs.args[0]))
    {
        context.taken.fetch_add(ret.cast_unsigned(), Ordering::AcqRel);
    }
    Verdict::Handled(ret)
}

/// Makes `io_destroy`.
pub(crate) fn on_destroy(regs: &Regs) -> Verdict {
    if filters::on() {
        return Verdict::Forward;
    }
    // Before: afterwards the address may be another context's.
    forget(regs.args[0]);
    // SAFETY: as above.
    Verdict::Handled(unsafe { raw::call(sysno::io_destroy, regs.args) })
}

fn is(context: &Context, at: u64) -> bool {
    context.at.load(Ordering::Acquire) == at
}

/// All entries, beginning with the one where the context at `at` is, nearly always.
fn places(at: u64) -> impl Iterator<Item = &'static Context> {
    let (before, behind) = CONTEXTS.split_at((at >> 12) as usize % CONTEXTS_MAX);
    behind.iter().chain(before)
}

fn forget(at: u64) {
    for context in places(at) {
        let _ = context.at.compare_exchange(at, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// If there is no entry left, it is not counted, and the application cannot be replicated.
fn enter(at: u64) {
    // What a parent had there, before this process was forked.
    forget(at);
    // SAFETY: no memory is passed.
    let pid = unsafe { sys!(sysno::getpid) }.cast_unsigned();
    let claim = |context: &&Context, free: &dyn Fn(&Context, u64) -> bool| {
        let now = context.at.load(Ordering::Acquire);
        now != CLAIMED
            && free(context, now)
            && context.at.compare_exchange(now, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    let empty = |context: &&Context| claim(context, &|_, now| now == 0);
    // A parent's: this process has none of its contexts.
    let inherited = |context: &&Context| claim(context, &|entry, _| entry.pid.load(Ordering::Relaxed) != pid);
    if let Some(context) = places(at).find(empty).or_else(|| places(at).find(inherited)) {
        context.pid.store(pid, Ordering::Relaxed);
        context.taken.store(0, Ordering::Relaxed);
        context.at.store(at, Ordering::Release);
    }
}
