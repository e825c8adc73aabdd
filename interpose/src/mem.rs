//! Memory functions and unwinder stubs that compiled code expects, hidden.
//!
//! Compiled code calls `memcpy`; taking libc's would run patched or vector code (AVX state is not saved by
//! the gate). libholo never unwinds (`panic = "abort"`), so the unwinder's names end the process and
//! `libgcc_s` is not loaded into every program.

use core::arch::global_asm;

global_asm!(
    ".section .text.holo_mem,\"ax\",@progbits",
    ".globl memcpy",
    ".hidden memcpy",
    ".type memcpy, @function",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".globl memmove",
    ".hidden memmove",
    ".type memmove, @function",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2:",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    ".hidden memset",
    ".type memset, @function",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl memcmp",
    ".hidden memcmp",
    ".type memcmp, @function",
    ".globl bcmp",
    ".hidden bcmp",
    ".type bcmp, @function",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "xor ecx, ecx",
    "3:",
    "cmp rcx, rdx",
    "je 4f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 3b",
    "4:",
    "ret",
    ".globl strlen",
    ".hidden strlen",
    ".type strlen, @function",
    "strlen:",
    "xor eax, eax",
    "5:",
    "cmp byte ptr [rdi + rax], 0",
    "je 6f",
    "inc rax",
    "jmp 5b",
    "6:",
    "ret",
    ".text",
);

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
