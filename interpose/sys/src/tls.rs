//! Per-thread words, reached as initial-exec TLS: no function call, no allocation, valid in handlers.
//!
//! Zero when a thread is born, so that nothing needs to be done then.

use core::arch::{asm, global_asm};

/// What a thread of the application keeps for holo. Offsets are used by the gate's assembly.
#[repr(C)]
pub struct Tls {
    /// 1 while this thread is in the dispatcher: signals are deferred.
    pub in_holo: u32,
    /// 1 when a signal was deferred: it is in `info`, all signals are blocked.
    pub deferred: u32,
    /// Number of the last call that was forwarded in place, to issue it again after a park.
    pub last_nr: u64,
    /// The gate's frame while `in_holo`.
    pub regs: *mut crate::gate::Regs,
    /// Signal mask to put back when the deferred signal is raised again.
    pub mask: u64,
    /// The deferred signal.
    pub info: [u64; 16],
    /// Registered rseq area of this thread (raw registration seen by the dispatcher).
    pub rseq: u64,
    /// Length of it, and signature in the upper half.
    pub rseq_len_sig: u64,
    /// Memory in which the last environment for `exec` was built, and its length.
    pub arena: u64,
    /// Length of it.
    pub arena_bytes: u64,
    /// Handlers of the application that were called on this thread.
    pub handlers: u32,
    /// Times that it was parked.
    pub parks: u32,
    /// Thread that last made a child which shares these words (`vfork`, `posix_spawn`); 0: none.
    pub sharer: u64,
    /// 1 while the entry of a signal decides what to do with it.
    pub entering: u32,
    /// 1 when another signal came meanwhile: it is pending, and all signals are blocked.
    pub held: u32,
    /// The mask to put back for it.
    pub held_mask: u64,
    /// What a call had moved that a park cut short; 0: none.
    pub moved: u64,
    /// The gate's frame of the call whose rest is being moved.
    pub transfer: *mut crate::gate::Regs,
    /// 1 from the start of a call that makes a process until the next call that is looked at.
    pub making: u64,
}

const _: () = assert!(size_of::<Tls>() == 248);
const _: () = assert!(core::mem::offset_of!(Tls, deferred) == 4);
const _: () = assert!(core::mem::offset_of!(Tls, last_nr) == 8);
const _: () = assert!(core::mem::offset_of!(Tls, regs) == 16);

global_asm!(
    ".section .tbss,\"awT\",@nobits",
    ".balign 16",
    ".type holo_tls, @object",
    ".size holo_tls, 248",
    ".globl holo_tls",
    ".hidden holo_tls",
    "holo_tls:",
    ".zero 248",
    ".text",
);

/// This thread's words.
#[inline(always)]
#[must_use]
pub fn tls() -> *mut Tls {
    let address: *mut Tls;
    // SAFETY: reads the thread pointer (fs:0 holds itself by the x86-64 ABI) and a constant of the linker.
    unsafe {
        asm!(
            "mov {t}, qword ptr [rip + holo_tls@GOTTPOFF]",
            "add {t}, qword ptr fs:[0]",
            t = out(reg) address,
            options(nostack, readonly)
        );
    }
    address
}
