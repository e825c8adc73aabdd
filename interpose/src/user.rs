//! Reading and writing the application's memory where a bad pointer must give `EFAULT`, not a crash; but see [`filters`].

use crate::filters;
use holo_abi::sysno;
use holo_sys::sys;

/// The kernel's refusal of a bad pointer.
pub(crate) const EFAULT: i64 = -14;

/// Pointers this close above the stack pointer are in the caller's frame, which is mapped.
const NEAR_BYTES: u64 = 2048;

fn in_frame(at: u64, rsp: u64) -> bool {
    at.wrapping_sub(rsp) < NEAR_BYTES
}

/// Copies `T` from the application.
pub(crate) fn read<T: Copy + Default>(at: u64, rsp: u64) -> Result<T, i64> {
    let mut value = T::default();
    if in_frame(at, rsp) {
        // SAFETY: on the calling thread's stack, just above its stack pointer.
        return Ok(unsafe { (at as *const T).read_unaligned() });
    }
    transfer(sysno::process_vm_readv, (&raw mut value) as u64, at, size_of::<T>())?;
    Ok(value)
}

/// Copies `T` to the application.
pub(crate) fn write<T: Copy>(at: u64, value: &T, rsp: u64) -> Result<(), i64> {
    if in_frame(at, rsp) {
        // SAFETY: as in `read`.
        unsafe { (at as *mut T).write_unaligned(*value) };
        return Ok(());
    }
    transfer(sysno::process_vm_writev, core::ptr::from_ref(value) as u64, at, size_of::<T>())
}

fn transfer(nr: i64, ours: u64, theirs: u64, bytes: usize) -> Result<(), i64> {
    if filters::on() {
        // The call is none of the application's: its filter may end the process for it. Few pass a bad pointer.
        let (from, to) = if nr == sysno::process_vm_readv { (theirs, ours) } else { (ours, theirs) };
        // SAFETY: ours is `bytes` long; theirs is as good as the application's own.
        unsafe { core::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        return Ok(());
    }
    let local = [ours, bytes as u64];
    let remote = [theirs, bytes as u64];
    // SAFETY: the kernel checks the application's side; ours is `bytes` long.
    let done = unsafe { sys!(nr, sys!(sysno::getpid), local.as_ptr(), 1, remote.as_ptr(), 1, 0) };
    if done == bytes as i64 { Ok(()) } else { Err(EFAULT) }
}
