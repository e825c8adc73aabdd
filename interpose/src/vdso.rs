//! The monotonic clock through the vdso, found by hand: libc must not be called.

use core::sync::atomic::{AtomicUsize, Ordering};
use holo_sys::sys;
use holo_track::timeout::{SECOND_NS, Timespec};

static CLOCK_GETTIME: AtomicUsize = AtomicUsize::new(0);

const NAME: &[u8] = b"__vdso_clock_gettime\0";

/// Finds `clock_gettime` in the vdso at `base`; without it the system call is used.
///
/// # Safety
/// `base` is `AT_SYSINFO_EHDR`, mapped by the kernel.
pub(crate) unsafe fn find(base: usize) {
    if base == 0 {
        return;
    }
    // SAFETY: the kernel's own, complete ELF image; dynamic section with string, symbol and hash tables.
    unsafe {
        let word = |at: usize| *(at as *const u64);
        let headers = base + word(base + 32) as usize;
        let count = *((base + 56) as *const u16) as usize;
        let (mut bias, mut dynamic) = (None, 0);
        for header in (0..count).map(|i| headers + i * 56) {
            match *(header as *const u32) {
                1 if bias.is_none() => {
                    bias = Some(base + word(header + 8) as usize - word(header + 16) as usize)
                }
                2 => dynamic = base + word(header + 8) as usize,
                _ => {}
            }
        }
        let (Some(bias), true) = (bias, dynamic != 0) else { return };
        let (mut strings, mut symbols, mut hash, mut gnu_hash) = (0, 0, 0, 0);
        let mut at = dynamic;
        while word(at) != 0 {
            let value = bias + word(at + 8) as usize;
            match word(at) {
                4 => hash = value,
                5 => strings = value,
                6 => symbols = value,
                0x6fff_fef5 => gnu_hash = value,
                _ => {}
            }
            at += 16;
        }
        if strings == 0 || symbols == 0 {
            return;
        }
        let total = if hash == 0 { gnu_symbols(gnu_hash) } else { *((hash + 4) as *const u32) as usize };
        for symbol in (0..total).map(|i| symbols + i * 24) {
            let name = (strings + *(symbol as *const u32) as usize) as *const u8;
            if (0..NAME.len()).all(|i| *name.add(i) == NAME[i]) {
                CLOCK_GETTIME.store(bias + word(symbol + 8) as usize, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// Number of symbols by the GNU hash table.
unsafe fn gnu_symbols(hash: usize) -> usize {
    if hash == 0 {
        return 0;
    }
    // SAFETY: as for `find`: header, bloom words, buckets, chains.
    unsafe {
        let word = |i: usize| *((hash + i * 4) as *const u32) as usize;
        let (buckets, first, bloom) = (word(0), word(1), word(2));
        let table = hash + 16 + bloom * 8;
        let at = |i: usize| *((table + i * 4) as *const u32) as usize;
        let Some(mut last) = (0..buckets).map(at).max() else { return 0 };
        if last < first {
            return first;
        }
        while at(buckets + last - first) & 1 == 0 {
            last += 1;
        }
        last + 1
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn monotonic_ns() -> i64 {
    let mut now = Timespec::default();
    let function = CLOCK_GETTIME.load(Ordering::Relaxed);
    // The vdso may have to make a system call, which must not be trapped from here.
    if function != 0 && !crate::traps::on() {
        // SAFETY: the vdso's function of this signature.
        let call: extern "C" fn(i32, *mut Timespec) -> i32 = unsafe { core::mem::transmute(function) };
        if call(1, &raw mut now) == 0 {
            return now.sec * SECOND_NS + now.nsec;
        }
    }
    // SAFETY: writes one timespec.
    unsafe { sys!(holo_abi::sysno::clock_gettime, 1, &raw mut now) };
    now.sec * SECOND_NS + now.nsec
}
