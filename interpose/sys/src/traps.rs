//! Trampolines for system calls that are trapped (Syscall User Dispatch), and room for those of sites.
//!
//! The kernel exempts one contiguous range from trapping. It is libholo's own text, so all code of holo
//! that executes `syscall` lies in it: the trampolines of trapped calls, made when libholo is built, and
//! the arena, into which those of patched sites are written when traps are on.
//!
//! A trapped `syscall` gets a trampoline for ever; its index is where its return address stands in
//! `BACK`, which is all that differs between one and the next. No code is written while threads run.

use crate::patch::Place;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Sites that can be trapped; past it, traps are given up.
pub const TRAPS_MAX: usize = 2048;
const ENTRY_BYTES: u64 = 64;
const RAW: u64 = 12;
const CHILD_RAW: u64 = 32;
/// Room for trampolines of sites: libc's need 28 KiB.
pub const ARENA_BYTES: u64 = 96 * 1024;

unsafe extern "C" {
    #[link_name = "holo_trap_back"]
    static BACK: [AtomicU64; TRAPS_MAX];
    /// Exempt range, for children.
    #[link_name = "holo_trap_range"]
    static RANGE: [AtomicU64; 2];
    static holo_trap_start: u8;
    static holo_trap_end: u8;
    static holo_arena: u8;
}

/// Records the exempt range for children that are born in a trampoline.
pub fn set_range(start: u64, bytes: u64) {
    // SAFETY: our own words.
    unsafe {
        RANGE[0].store(start, Ordering::Relaxed);
        RANGE[1].store(bytes, Ordering::Relaxed);
    }
}

fn start() -> u64 {
    // SAFETY: only the address is taken.
    core::ptr::from_ref(unsafe { &holo_trap_start }) as u64
}

/// Start of the arena, [`ARENA_BYTES`] long, page-aligned.
#[must_use]
pub fn arena() -> u64 {
    // SAFETY: only the address is taken.
    core::ptr::from_ref(unsafe { &holo_arena }) as u64
}

/// Address to go on at instead of the `syscall` that ends at `after`; `None`: no more room.
#[must_use]
pub fn trampoline(after: u64) -> Option<u64> {
    let first = (after.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize;
    for i in 0..TRAPS_MAX {
        let index = (first + i) % TRAPS_MAX;
        // SAFETY: our own table.
        let word = unsafe { &BACK[index] };
        let mut now = word.load(Ordering::Acquire);
        if now == 0 {
            now = word.compare_exchange(0, after, Ordering::AcqRel, Ordering::Acquire).err().unwrap_or(after);
        }
        if now == after {
            return Some(start() + index as u64 * ENTRY_BYTES);
        }
    }
    None
}

fn entry(at: u64) -> Option<u64> {
    // SAFETY: only the address is taken.
    let end = core::ptr::from_ref(unsafe { &holo_trap_end }) as u64;
    (start()..end).contains(&at).then(|| at - (at - start()) % ENTRY_BYTES)
}

/// For a call that makes a child: the `raw` at which the child asks for traps too.
#[must_use]
pub fn child_raw(raw: u64) -> Option<u64> {
    entry(raw).map(|at| at + CHILD_RAW)
}

/// Finds the trampoline that `rip` is in.
#[must_use]
pub fn find(rip: u64) -> Option<Place> {
    let at = entry(rip)?;
    let raw = at + if rip - at >= CHILD_RAW { CHILD_RAW } else { RAW };
    // SAFETY: our own table; the index is below its length.
    let after = unsafe { BACK[((at - start()) / ENTRY_BYTES) as usize].load(Ordering::Acquire) };
    Some(Place { raw, site: after - 2, offset: rip.cast_signed() - raw.cast_signed() })
}

global_asm!(
    ".section .bss.holo_trap,\"aw\",@nobits",
    ".balign 64",
    ".globl holo_trap_back",
    ".hidden holo_trap_back",
    "holo_trap_back: .zero {max} * 8",
    ".globl holo_trap_range",
    ".hidden holo_trap_range",
    "holo_trap_range: .zero 16",
    ".section .text.holo_trap,\"ax\",@progbits",
    ".balign 4096",
    ".globl holo_arena",
    ".hidden holo_arena",
    "holo_arena: .fill {arena}, 1, 0xcc",
    ".balign 4096",
    ".globl holo_trap_start",
    ".hidden holo_trap_start",
    "holo_trap_start:",
    ".rept {max}",
    "21:",
    "lea rcx, [rip + 22f]",
    "jmp holo_gate",
    "22:",
    "syscall",
    "nop",
    "23:",
    "lea rcx, [rip + 21b]",
    "jmp 25f",
    ".balign 32",
    // `clone`, `fork` and their kin: the kernel does not hand traps down.
    "syscall",
    "nop",
    "test eax, eax",
    "jne 23b",
    "lea rcx, [rip + 21b]",
    "jmp 26f",
    ".balign 64",
    ".endr",
    ".globl holo_trap_end",
    ".hidden holo_trap_end",
    "holo_trap_end:",
    // rcx and r11 are the kernel's to clobber, so they are ours.
    "25:",
    "lea r11, [rip + holo_trap_start]",
    "sub rcx, r11",
    "shr rcx, 3",
    "lea r11, [rip + holo_trap_back]",
    "jmp qword ptr [r11 + rcx]",
    // The child, with whatever stack it was given: no thread-local words, nothing above the stack pointer.
    "26:",
    "lea rsp, [rsp - 128]",
    "push rcx",
    "push rdi",
    "push rsi",
    "push rdx",
    "push r10",
    "push r8",
    "mov edi, 59",
    "mov esi, 1",
    "mov rdx, [rip + holo_trap_range]",
    "mov r10, [rip + holo_trap_range + 8]",
    "xor r8d, r8d",
    "mov eax, 157",
    "syscall",
    "pop r8",
    "pop r10",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "pop rcx",
    "lea rsp, [rsp + 128]",
    "xor eax, eax",
    "jmp 25b",
    ".text",
    max = const TRAPS_MAX,
    arena = const ARENA_BYTES,
);
