//! `HOLO_TRACE=1`: counts calls by number, to compare what holo saw with what the kernel saw.
//!
//! At `exit_group` the counts are written to `$HOLO_TRACE_FILE.<pid>`, a line `number count` each.

use crate::early::Early;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use holo_abi::sysno;
use holo_sys::sys;

static ON: AtomicBool = AtomicBool::new(false);
static COUNTS: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];
static FILE: Early<[u8; 256]> = Early::new([0; 256]);

/// Starts counting; `file` is `HOLO_TRACE_FILE`'s value.
pub(crate) fn start(file: &[u8]) {
    let take = file.len().min(230);
    // SAFETY: constructor, one thread.
    let kept = unsafe { FILE.get_mut() };
    kept[..take].copy_from_slice(&file[..take]);
    ON.store(true, Ordering::Relaxed);
}

/// Marks the end of libholo's own start for who compares the counts with the kernel's: from this call on, every
/// call is one of the program's. It fails, and is meant to.
pub(crate) fn mark_start() {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    let mut path = *FILE.get();
    let Some(end) = path.iter().position(|byte| *byte == 0).filter(|end| *end > 0) else { return };
    path[end..end + 6].copy_from_slice(b".start");
    for counter in &COUNTS {
        counter.store(0, Ordering::Relaxed);
    }
    // SAFETY: a NUL-terminated path (the array is longer than it).
    unsafe { sys!(sysno::open, path.as_ptr(), 0) };
}

/// Counts one call.
pub(crate) fn count(nr: u64) {
    if let Some(counter) = COUNTS.get(nr as usize) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn decimal(mut value: u64, out: &mut [u8]) -> usize {
    let mut digits = [0u8; 20];
    let mut count = 0;
    loop {
        digits[count] = b'0' + (value % 10) as u8;
        value /= 10;
        count += 1;
        if value == 0 {
            break;
        }
    }
    for i in 0..count {
        out[i] = digits[count - 1 - i];
    }
    count
}

/// Writes the counts out.
pub(crate) fn write_out() {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    let mut path = *FILE.get();
    let Some(end) = path.iter().position(|byte| *byte == 0).filter(|end| *end > 0) else { return };
    path[end] = b'.';
    // SAFETY: no memory is passed.
    let pid = unsafe { sys!(sysno::getpid) } as u64;
    decimal(pid, &mut path[end + 1..]);
    const CREATE_TRUNCATE_WRITE_CLOEXEC: u64 = 0o100 | 0o1000 | 1 | 0o2_000_000;
    // SAFETY: a NUL-terminated path (the array is longer than it).
    let fd = unsafe { sys!(sysno::open, path.as_ptr(), CREATE_TRUNCATE_WRITE_CLOEXEC, 0o600) };
    if fd < 0 {
        return;
    }
    for (nr, counter) in COUNTS.iter().enumerate() {
        let value = counter.load(Ordering::Relaxed);
        if value == 0 {
            continue;
        }
        let mut line = [0u8; 64];
        let mut at = decimal(nr as u64, &mut line);
        line[at] = b' ';
        at += 1 + decimal(value, &mut line[at + 1..]);
        line[at] = b'\n';
        holo_sys::raw::write(fd as i32, &line[..=at]);
    }
    // SAFETY: our own descriptor.
    unsafe { sys!(sysno::close, fd) };
}
