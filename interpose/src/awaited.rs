//! Waiting at the gate (`holo_abi::awaited`): a call that would destroy bytes which the agent has yet to read, as they were at
//! the cut, is made when it has them.
//!
//! To the application it looks like a slow disk: signals are put off meanwhile, as the kernel does in a write to a file. Whoever
//! waits in vain, because the agent is dead or cannot read, opens the gate: no epoch is made of that cut.

use crate::vdso;
use core::sync::atomic::Ordering;
use holo_abi::changes::{BROKEN, Changes, SHUT};
use holo_abi::sysno;
use holo_sys::sys;
use holo_track::{awaited, changes};

const FUTEX_WAIT: u64 = 0;
const EAGAIN: i64 = -11;
const EINTR: i64 = -4;
/// How long a waiting writer sleeps at most, before it looks whether the agent is at work.
const TICK_NS: u64 = 10_000_000;
/// Ticks without a sign of the agent until a writer waits no longer.
const QUIET_TICKS: u32 = 30;
/// Nor does it wait longer than this in all.
const WAIT_NS_MAX: i64 = 1_000_000_000;

/// Waits until the bytes `at..end` of the file with this key may be destroyed. Afterwards the file counts as changed since the
/// cut, if it is still awaited.
#[cold]
pub(crate) fn pass(table: &Changes, key: Option<u64>, at: u64, end: u64) {
    let Some(key) = key else { return };
    let gate = &table.gate;
    let (mut signs, mut quiet) = (gate.signs.load(Ordering::SeqCst), 0);
    let mut since = None;
    while table.bank.load(Ordering::SeqCst) & SHUT != 0 {
        let Some(wait) = awaited::look(gate, key, at, end) else { return };
        let began = *since.get_or_insert_with(|| {
            gate.waits.fetch_add(1, Ordering::Relaxed);
            vdso::monotonic_ns()
        });
        let moment = [0u64, TICK_NS];
        // SAFETY: a word of the table, and a time-out on our stack.
        let ret =
            unsafe { sys!(sysno::futex, wait.file.turn.as_ptr(), FUTEX_WAIT, wait.turn, moment.as_ptr()) };
        let now = gate.signs.load(Ordering::SeqCst);
        quiet = match ret {
            _ if now != signs => 0,
            0 | EAGAIN | EINTR => quiet,
            _ => quiet + 1,
        };
        signs = now;
        if quiet >= QUIET_TICKS || vdso::monotonic_ns() - began > WAIT_NS_MAX {
            let open = |word| (word & SHUT != 0).then_some(word & !SHUT | BROKEN);
            let _ = table.bank.fetch_update(Ordering::SeqCst, Ordering::SeqCst, open);
        }
    }
}

/// A write lease is about to be taken: from now on the agent opens no file while the application runs; waits until it has none open.
/// It would break the lease, of which the application is told, or there would be none.
#[cold]
pub(crate) fn lease(table: &Changes) {
    table.leased.store(1, Ordering::SeqCst);
    let since = vdso::monotonic_ns();
    // One that was killed has none open, whatever it said.
    while table.opened.load(Ordering::SeqCst) != 0 && vdso::monotonic_ns() - since < WAIT_NS_MAX {
        let moment = [0u64, TICK_NS];
        // SAFETY: a word of the table, and a time-out on our stack.
        unsafe { sys!(sysno::futex, table.opened.as_ptr(), FUTEX_WAIT, 1u64, moment.as_ptr()) };
    }
}

/// The file that a descriptor leads to has other times from now on, as if it was written to.
#[cold]
pub(crate) fn touch(table: &Changes, key: Option<u64>) {
    if let Some(key) = key {
        awaited::pass(&table.gate, key);
    }
}

/// Key of the file that a descriptor leads to.
#[cold]
pub(crate) fn of_descriptor(table: &Changes, fd: u64) -> Option<u64> {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`.
    let failed = unsafe { sys!(sysno::fstat, fd, stat.as_mut_ptr()) };
    if failed < 0 { None } else { changes::key(table, stat[0], stat[1]) }
}

/// Key of the file that a name leads to.
#[cold]
pub(crate) fn of_name(table: &Changes, dir: u64, name: u64, flags: u64) -> Option<u64> {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`; the kernel checks the name.
    let failed = unsafe { sys!(sysno::newfstatat, dir, name, stat.as_mut_ptr(), flags) };
    if failed < 0 { None } else { changes::key(table, stat[0], stat[1]) }
}
