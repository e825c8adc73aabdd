//! `execve` with whatever environment the caller built: the preload and the `HOLO_*` variables go along.
//!
//! The new environment is built in memory of its own, which is released at this thread's next `exec`: a
//! `vfork` child shares the parent's memory, and nothing may be left on a stack that both use.

use crate::dispatch::Verdict;
use crate::{changes, filters, members, signals, start, user};
use holo_abi::sysno;
use holo_sys::gate::{DEFERRED, RESTART, Regs, holo_block};
use holo_sys::{sys, tls::tls};
use holo_track::environ::{self, ADDED_MAX, Plan, Wanted};

const PROT_RW: u64 = 3;
const PRIVATE_ANONYMOUS: u64 = 0x22;
const PRELOAD: &[u8] = b"LD_PRELOAD=";
/// What a program must know that inherits a filter (see `filters`).
const FILTERED: [&[u8]; ADDED_MAX] = {
    let mut variables: [&[u8]; ADDED_MAX] = [b""; ADDED_MAX];
    variables[0] = b"HOLO_FILTERED=1\0";
    variables
};

/// Length of a NUL-terminated string.
unsafe fn length(at: *const u8) -> usize {
    let mut bytes = 0;
    // SAFETY: the caller's string is terminated.
    while unsafe { *at.add(bytes) } != 0 {
        bytes += 1;
    }
    bytes
}

/// `execve` (environment in argument 2) or `execveat` (in 3).
pub(crate) fn on_exec(regs: &mut Regs, environment: usize) -> Verdict {
    if start::control().is_none() {
        return Verdict::Forward;
    }
    // SAFETY: what the application passed to `exec`.
    if let Some(built) = unsafe { extended(regs.args[environment], regs.rsp) } {
        regs.args[environment] = built;
    }
    if filters::on() {
        changes::on_exec(false);
        // It gets no park signal, which would have to be held.
        members::changes();
        return Verdict::Forward;
    }
    let args = regs.args;
    loop {
        // The new program has no handler for the park signal until its constructor ran, and one that is on
        // its way would end it: it stays blocked until then.
        signals::block_park(true);
        // Only now: no park comes between this word and the new program.
        members::changes();
        // Nor between this one: at a cut, whoever is counted and has not joined will not.
        changes::on_exec(false);
        // SAFETY: own thread's words, and the application's call. A `vfork` parent has the same words: when
        // it goes on, they must not say that it is in here.
        let ret = unsafe {
            (*tls()).in_holo = 0;
            let ret = holo_block(regs.rax.cast_signed(), &raw const args);
            (*tls()).in_holo = 1;
            ret
        };
        changes::on_exec(true);
        match ret {
            RESTART => {}
            // SAFETY: `regs` is the frame of the call that we are in.
            DEFERRED => unsafe { signals::raise_deferred(regs) },
            failed => {
                signals::block_park(false);
                return Verdict::Handled(failed);
            }
        }
    }
}

/// The environment at `at` with what holo needs in it; `None`: it has everything, or cannot be read.
///
/// # Safety
/// `at` is 0, a wild pointer, or a NULL-terminated array of strings.
pub(crate) unsafe fn extended(at: u64, rsp: u64) -> Option<u64> {
    let under_filter = Wanted { variables: FILTERED, count: 1, ..*start::wanted()? };
    let wanted = if filters::on() { &under_filter } else { start::wanted()? };
    // A wild pointer is the kernel's to refuse.
    if at != 0 && user::read::<u64>(at, rsp).is_err() {
        return None;
    }
    let entries = at as *const *const u8;
    let mut count = 0;
    if at != 0 {
        // SAFETY: a NULL-terminated array of strings, as `exec` needs it.
        while !unsafe { *entries.add(count) }.is_null() {
            count += 1;
        }
    }
    // SAFETY: as above.
    let strings = (0..count).map(|i| unsafe {
        let string = *entries.add(i);
        core::slice::from_raw_parts(string, length(string))
    });
    let plan = environ::plan(strings, wanted);
    if plan.is_empty() || filters::on() && (plan.preload_missing || plan.preload_at.is_some()) {
        return None;
    }
    // SAFETY: `entries` has `count` strings.
    unsafe { build(entries, count, &plan, wanted) }
}

/// Builds the environment; `None` if there is no memory (the program then starts without holo).
unsafe fn build(entries: *const *const u8, count: usize, plan: &Plan, wanted: &Wanted) -> Option<u64> {
    // SAFETY: `entries` has `count` strings; the arena is sized for all that is written.
    unsafe {
        let old = plan.preload_at.map_or(0, |index| length(*entries.add(index)));
        let pointers = (count + environ::ADDED_MAX + 2) * 8;
        let bytes = (pointers + old + wanted.library.len() + PRELOAD.len() + 2 + 4095) & !4095;
        let words = tls();
        if (*words).arena != 0 {
            sys!(sysno::munmap, (*words).arena, (*words).arena_bytes);
            (*words).arena = 0;
        }
        let arena = sys!(sysno::mmap, 0, bytes, PROT_RW, PRIVATE_ANONYMOUS, -1i64, 0);
        if arena < 0 {
            return None;
        }
        (*words).arena = arena as u64;
        (*words).arena_bytes = bytes as u64;
        let list = arena as *mut *const u8;
        let text = (arena as usize + pointers) as *mut u8;
        let mut used = 0;
        let mut put = |piece: &[u8]| {
            core::ptr::copy_nonoverlapping(piece.as_ptr(), text.add(used), piece.len());
            used += piece.len();
        };
        let mut next = 0;
        for i in 0..count {
            let entry = if plan.preload_at == Some(i) { text.cast_const() } else { *entries.add(i) };
            list.add(next).write(entry);
            next += 1;
        }
        match plan.preload_at {
            // Ours first: its constructor must run before the others'.
            Some(index) => {
                put(PRELOAD);
                put(wanted.library);
                put(b":");
                put(core::slice::from_raw_parts(
                    (*entries.add(index)).add(PRELOAD.len()),
                    old - PRELOAD.len(),
                ));
                put(b"\0");
            }
            None if plan.preload_missing => {
                list.add(next).write(text);
                next += 1;
                put(PRELOAD);
                put(wanted.library);
                put(b"\0");
            }
            None => {}
        }
        for i in 0..wanted.count {
            if plan.missing & (1 << i) != 0 {
                list.add(next).write(wanted.variables[i].as_ptr());
                next += 1;
            }
        }
        list.add(next).write(core::ptr::null());
        Some(arena as u64)
    }
}
