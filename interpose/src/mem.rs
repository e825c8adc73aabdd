//! Memory functions and unwinder stubs that compiled code expects, hidden.
//!
//! Compiled code calls `memcpy`; taking libc's would run patched or vector code (AVX state is not saved by
//! the gate). libholo never unwinds (`panic = "abort"`), so the unwinder's names end the process and
//! `libgcc_s` is not loaded into every program.

use core::arch::global_asm;

holo_sys::memory_functions!();

macro_rules! never_unwinds {
    ($($name:literal),*) => {
        global_asm!(
            ".section .text.holo_unwind,\"ax\",@progbits",
            $(concat!(".globl ", $name), concat!(".hidden ", $name), concat!($name, ":"),)*
            "ud2",
            ".text",
        );
    };
}

never_unwinds!(
    "_Unwind_Resume",
    "_Unwind_Backtrace",
    "_Unwind_GetCFA",
    "_Unwind_GetTextRelBase",
    "_Unwind_GetDataRelBase",
    "_Unwind_SetGR",
    "_Unwind_SetIP",
    "_Unwind_RaiseException",
    "_Unwind_DeleteException",
    "_Unwind_FindEnclosingFunction"
);

// A cancelled thread is unwound through the hooks; the personality function that the compiler names for
// them asks for their clean-up actions. There are none in code that does not unwind.
global_asm!(
    ".section .text.holo_unwind,\"ax\",@progbits",
    ".globl _Unwind_GetIP",
    ".hidden _Unwind_GetIP",
    "_Unwind_GetIP:",
    ".globl _Unwind_GetIPInfo",
    ".hidden _Unwind_GetIPInfo",
    "_Unwind_GetIPInfo:",
    ".globl _Unwind_GetRegionStart",
    ".hidden _Unwind_GetRegionStart",
    "_Unwind_GetRegionStart:",
    ".globl _Unwind_GetLanguageSpecificData",
    ".hidden _Unwind_GetLanguageSpecificData",
    "_Unwind_GetLanguageSpecificData:",
    "xor eax, eax",
    "ret",
    ".text",
);
