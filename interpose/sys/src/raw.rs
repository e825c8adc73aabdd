//! System calls from libholo's own text: never seen by the dispatcher, never through libc.

use core::arch::asm;

/// Makes system call `nr`; the result is negative `errno` on failure.
///
/// # Safety
/// As the call itself: pointers must be what the kernel will take them for.
#[inline(always)]
pub unsafe fn call(nr: i64, args: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11; memory effects are the caller's.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => ret,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    ret
}

/// [`call`] with the arguments written out: `sys!(nr, a, b)`.
#[macro_export]
macro_rules! sys {
    ($nr:expr $(, $arg:expr)* $(,)?) => {{
        let mut args = [0u64; 6];
        let given: &[u64] = &[$($arg as u64),*];
        let mut i = 0;
        while i < given.len() {
            args[i] = given[i];
            i += 1;
        }
        $crate::raw::call($nr, args)
    }};
}

/// Writes a message to a descriptor, as one call; for the few things that libholo says.
pub fn write(fd: i32, bytes: &[u8]) -> i64 {
    // SAFETY: the slice is readable for its length.
    unsafe { sys!(holo_abi::sysno::write, fd, bytes.as_ptr(), bytes.len()) }
}
