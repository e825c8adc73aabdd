//! Calls that a zone which the agent has write-protected would answer in another way.
//!
//! The agent finds changed pages by write-protecting zones (`rm/src/track`). The kernel does not merge such a zone with
//! memory that came later, not even when the protection is lifted, and an `mremap` of both fails: then it is made zone by
//! zone. Nor does the kernel give another userfaultfd a place in a protected zone, or move several at once: before such a
//! call the protection is lifted, and what it covered counts as changed.
//!
//! Where it finds them by soft-dirty bits instead, it must know of memory that the kernel has moved with those bits.

mod by_zone;

use crate::dispatch::Verdict;
use crate::{filters, late, start};
use core::sync::atomic::{AtomicU32, Ordering};
use holo_abi::control::{Control, lift, tracked};
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_sys::sys;

/// `ioctl` on `/dev/userfaultfd` that makes one.
pub(crate) const USERFAULTFD_IOC_NEW: u32 = 0xaa00;
const EFAULT: i64 = -14;
/// `MREMAP_FIXED | MREMAP_DONTUNMAP`: may have moved a part of the range before they fail.
const MOVES_FIRST: u64 = 2 | 4;
const MAYMOVE: u64 = 1;
const FIXED: u64 = 2;
/// The kernel moves tables of pages, where all pages of one go to another one.
const TABLE_BYTES: u64 = 2 << 20;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const PAGE: u64 = 4096;
/// The agent answers in tens of microseconds. If it died, the kernel has lifted the protection.
const WAITS_MAX: u32 = 100;
const WAIT_NS: u64 = 10_000_000;

/// A call changes flags of zones.
pub(crate) fn advised() {
    if let Some(page) = start::control() {
        page.header.advised.fetch_add(1, Ordering::AcqRel);
    }
}

/// A word of the page that counts those that live.
struct Raised<'a>(&'a AtomicU32);

impl<'a> Raised<'a> {
    fn begin(word: &'a AtomicU32) -> Self {
        word.fetch_add(1, Ordering::SeqCst);
        Self(word)
    }

    /// While it lives, the agent protects nothing.
    fn hands_off(page: &'a Control) -> Self {
        Self::begin(&page.header.hands_off)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        // A restored process has a new page, on which it is nobody.
        let _ =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| Some(count.saturating_sub(1)));
    }
}

pub(crate) fn on_mremap(regs: &Regs) -> Verdict {
    let Some(page) = start::control() else { return Verdict::Forward };
    let [start, .., flags, to, _] = regs.args;
    late::wait();
    if filters::on() {
        if flags & MAYMOVE != 0 {
            // How it ends is not seen.
            core::mem::forget(Raised::begin(&page.header.moving));
        }
        return Verdict::Forward;
    }
    if flags & MAYMOVE == 0 {
        return Verdict::Handled(remap(page, regs));
    }
    let _moving = Raised::begin(&page.header.moving);
    let ret = remap(page, regs);
    // One that failed may have moved a part.
    let to = match ret {
        ..0 if flags & FIXED == 0 => start,
        ..0 => to,
        ret => ret.cast_unsigned(),
    };
    if to != start && (to ^ start) % TABLE_BYTES == 0 {
        page.header.moved.fetch_add(1, Ordering::SeqCst);
    }
    Verdict::Handled(ret)
}

fn remap(page: &Control, regs: &Regs) -> i64 {
    let [start, bytes, _, flags, ..] = regs.args;
    // SAFETY: the application's call with its own arguments.
    let call = || unsafe { holo_sys::raw::call(sysno::mremap, regs.args) };
    if flags & MOVES_FIRST == 0 {
        let ret = call();
        // It has done nothing yet where it is a border between zones that it fails at.
        if ret != EFAULT || page.header.tracked.load(Ordering::SeqCst) == 0 {
            return ret;
        }
        let _hands_off = Raised::hands_off(page);
        return by_zone::mremap(regs.args).unwrap_or(ret);
    }
    let _hands_off = Raised::hands_off(page);
    ask_to_lift(page, start, start.saturating_add(bytes));
    let ret = call();
    if ret != EFAULT || page.header.tracked.load(Ordering::SeqCst) == 0 {
        return ret;
    }
    by_zone::mremap(regs.args).unwrap_or(ret)
}

/// The application has userfaultfds of its own: from now on the agent has none in its processes.
pub(crate) fn on_userfaultfd() -> Verdict {
    if let Some(page) = start::control().filter(|_| !filters::on()) {
        core::mem::forget(Raised::hands_off(page));
        ask_to_lift(page, 0, u64::MAX);
    }
    Verdict::Forward
}

/// Returns when no page of the range is protected, or nobody is there who could have protected it.
fn ask_to_lift(page: &Control, start: u64, end: u64) {
    let header = &page.header;
    let free = || {
        let is_free = |lift: &&holo_abi::control::Lift| {
            lift.state.compare_exchange(lift::FREE, lift::CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        page.lifts.iter().find(is_free)
    };
    let mut request = None;
    for _ in 0..WAITS_MAX {
        if header.tracked.load(Ordering::SeqCst) & tracked::NOW == 0 {
            break;
        }
        let Some(lift) = request else {
            request = free();
            match request {
                Some(lift) => {
                    lift.start.store(start & !(PAGE - 1), Ordering::SeqCst);
                    lift.end.store(end, Ordering::SeqCst);
                    lift.state.store(lift::ASKED, Ordering::SeqCst);
                    header.lifts_asked.fetch_add(1, Ordering::SeqCst);
                    // SAFETY: a word of the page; the call only wakes.
                    unsafe { sys!(sysno::futex, header.lifts_asked.as_ptr(), FUTEX_WAKE, i32::MAX) };
                }
                // All are in use: for some microseconds.
                None => wait(&header.hands_off, header.hands_off.load(Ordering::SeqCst)),
            }
            continue;
        };
        let state = lift.state.load(Ordering::SeqCst);
        // After a restore the page is a new one, with requests of nobody.
        if state != lift::ASKED {
            break;
        }
        wait(&lift.state, state);
    }
    if let Some(lift) = request {
        lift.state.store(lift::FREE, Ordering::SeqCst);
    }
}

/// Until a word is no longer `value`, or for a moment.
fn wait(word: &AtomicU32, value: u32) {
    let moment = [0u64, WAIT_NS];
    // SAFETY: a word of the page, and a time-out on our stack.
    unsafe { sys!(sysno::futex, word.as_ptr(), FUTEX_WAIT, value, moment.as_ptr()) };
}
