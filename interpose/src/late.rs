//! Memory of a restored process that is still being read: calls that would confuse what comes with what was there wait for it.
//!
//! Such a page is filled in when it is touched, or before (`rm/src/clone/late.rs`). What is copied to another process or moved must be
//! there; what is given back must not come again.

use crate::start;
use core::sync::atomic::Ordering;
use holo_abi::sysno;
use holo_sys::sys;

const FUTEX_WAIT: u64 = 0;
const WAIT_NS: u64 = 10_000_000;

/// Returns when all of the process's memory is there.
pub(crate) fn wait() {
    // A park may come in between; a restored process has another page after it.
    while let Some(page) = start::control().filter(|page| page.header.late.load(Ordering::SeqCst) != 0) {
        let moment = [0u64, WAIT_NS];
        // SAFETY: a word of the page, and a time-out on our stack.
        unsafe { sys!(sysno::futex, page.header.late.as_ptr(), FUTEX_WAIT, 1, moment.as_ptr()) };
    }
}
