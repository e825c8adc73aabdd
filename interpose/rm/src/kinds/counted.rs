//! What processes count of their calls: what was read of them is as it was as long as nobody has called.

use crate::manager::DumpCx;
use crate::tree::Process;
use holo_abi::control::Header;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Of each page: which it is, processes made and programs executed, and calls of one sort.
pub(crate) type Counts = Vec<(usize, u32, u32)>;

/// What the pages of all processes have counted. Equal to what it was: nobody made such a call, nor anybody who came and went.
pub(crate) fn counted(cx: &DumpCx, calls: impl Fn(&Header) -> &AtomicU32) -> Counts {
    let count = |process: &Process| {
        let page = &process.remote.page;
        let header = &page.control().header;
        let (changes, calls) = (header.changes.load(Ordering::SeqCst), calls(header).load(Ordering::SeqCst));
        (Arc::as_ptr(page) as usize, changes, calls)
    };
    let mut all: Vec<_> = cx.processes.iter().map(count).collect();
    all.sort_unstable();
    all.dedup();
    all
}
