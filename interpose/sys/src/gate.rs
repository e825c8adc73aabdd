//! The gate: where every intercepted system call passes.
//!
//! A trampoline (see `holo_abi::sites`) arrives with the call's registers untouched, `rcx` = its own `raw`
//! label, and the application's stack. Most calls leave at once to `raw`, where the `syscall` is executed in
//! place: nothing of holo is on the stack while a thread blocks, `vfork` and `clone` children simply go
//! on in the trampoline. Calls that [`CLASS`] marks enter the dispatcher with their registers in a
//! [`Regs`] below the red zone.
//!
//! Signals (see `holo-interpose`, signals): each instruction here belongs to a [`Zone`] that says what the
//! handler may do. The exit sequence is restartable: a signal inside it is deferred and the sequence starts
//! again from [`Zone::Exit`]'s label, which sees the deferral.

use core::arch::global_asm;

/// Registers of an intercepted call, as the application had them.
#[repr(C)]
pub struct Regs {
    /// Call number in, result out.
    pub rax: u64,
    /// Arguments 1 to 6: rdi, rsi, rdx, r10, r8, r9.
    pub args: [u64; 6],
    /// Where to go on: `raw` on entry; see [`Regs::forward`] and [`Regs::done`].
    pub rcx: u64,
    /// Callee-saved registers, to show handlers a true context.
    pub rbx: u64,
    /// rbp.
    pub rbp: u64,
    /// r12 to r15.
    pub r12_15: [u64; 4],
    /// The stack pointer of the application.
    pub rsp: u64,
    /// `raw` of the trampoline, kept.
    pub raw: u64,
    /// xmm0 to xmm15: the dispatcher is compiled code.
    pub xmm: [u128; 16],
}

const REGS_BYTES: usize = size_of::<Regs>();
const _: () = assert!(REGS_BYTES == 128 + 256);
const _: () = assert!(core::mem::offset_of!(Regs, rcx) == 56);
const _: () = assert!(core::mem::offset_of!(Regs, rsp) == 112);
const _: () = assert!(core::mem::offset_of!(Regs, raw) == 120);

impl Regs {
    /// The call is made in place, with the registers as they are in `self`.
    pub fn forward(&mut self) {
        self.rcx = self.raw;
        // SAFETY: own thread's words.
        unsafe { (*crate::tls::tls()).last_nr = self.rax };
    }

    /// The call was answered: the application goes on behind the `syscall` (and its `nop`, see `sites`).
    pub fn done(&mut self, ret: i64) {
        self.rax = ret.cast_unsigned();
        self.rcx = self.raw + 3;
    }
}

/// Classes of [`CLASS`]: made in place at once.
pub const PLAIN: u8 = 0;
/// Goes to the dispatcher.
pub const SLOW: u8 = 1;

unsafe extern "C" {
    /// Class of each call number; the library fills it before it patches anything.
    #[link_name = "holo_class"]
    pub static mut CLASS: [u8; 512];
    /// Entry for trampolines.
    pub fn holo_gate();
    /// Makes a call from the dispatcher that may block: `holo_block(nr, args)`.
    ///
    /// Returns [`DEFERRED`] without making the call if a signal was deferred, and [`RESTART`] if a park
    /// interrupted it.
    pub fn holo_block(nr: i64, args: *const [u64; 6]) -> i64;
    /// A trampoline inside libholo: the way in for symbols.
    pub fn holo_syscall(a1: u64, a2: u64, a3: u64, a4: u64, a5: u64, a6: u64, nr: u64) -> i64;
    static holo_gate_end: u8;
    static holo_slow: u8;
    static holo_exit: u8;
    static holo_exit_jump: u8;
    static holo_block_check: u8;
    static holo_block_after: u8;
    static holo_syscall_raw: u8;
}

/// From [`holo_block`]: a park interrupted the call; issue it again with what is left of its time-out.
pub const RESTART: i64 = -512;
/// From [`holo_block`]: deliver the deferred signal first.
pub const DEFERRED: i64 = -513;

/// What a signal handler may do with a thread whose instruction pointer is in the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Not in the gate.
    Outside,
    /// Between the trampoline and the decision; registers are the application's, `rcx` = `raw`.
    Enter,
    /// Saving registers, or between saving and `in_holo`: defer.
    Save,
    /// Leaving: defer, and go back to the start of the exit sequence.
    Exit,
    /// About to jump to `rcx`, everything restored.
    Jump,
    /// At or before a call made by [`holo_block`], or just behind it.
    Block {
        /// Behind it.
        after: bool,
    },
    /// In the library's own trampoline, at or behind its `syscall`.
    Own {
        /// Behind it.
        after: bool,
    },
}

fn address(label: &'static u8) -> u64 {
    core::ptr::from_ref(label) as u64
}

/// Address of the start of the exit sequence, for [`Zone::Exit`].
#[must_use]
pub fn exit_address() -> u64 {
    // SAFETY: only the address of the label is taken.
    address(unsafe { &holo_exit })
}

/// Address of the gate's way to the dispatcher: registers as for [`holo_gate`].
#[must_use]
pub fn slow_address() -> u64 {
    // SAFETY: only the address of the label is taken.
    address(unsafe { &holo_slow })
}

/// Address of [`holo_syscall`]'s `raw`.
#[must_use]
pub fn own_raw() -> u64 {
    // SAFETY: only the address of the label is taken.
    address(unsafe { &holo_syscall_raw })
}

/// Zone of an instruction pointer.
#[must_use]
pub fn zone(rip: u64) -> Zone {
    let start = holo_gate as *const () as u64;
    // SAFETY: only addresses of labels are taken.
    let (end, slow, exit, jump, check, after, own) = unsafe {
        (
            address(&holo_gate_end),
            address(&holo_slow),
            address(&holo_exit),
            address(&holo_exit_jump),
            address(&holo_block_check),
            address(&holo_block_after),
            address(&holo_syscall_raw),
        )
    };
    if rip < start || rip >= end {
        return Zone::Outside;
    }
    if rip < slow {
        Zone::Enter
    } else if rip < exit {
        Zone::Save
    } else if rip < jump {
        Zone::Exit
    } else if rip == jump {
        Zone::Jump
    } else if rip >= check && rip <= after {
        Zone::Block { after: rip == after }
    } else if rip >= own && rip <= own + 2 {
        Zone::Own { after: rip == own + 2 }
    } else {
        Zone::Outside
    }
}

global_asm!(
    ".section .bss.holo_class,\"aw\",@nobits",
    ".globl holo_class",
    ".hidden holo_class",
    // A page of its own: who tracks memory knows when it is written.
    ".balign 4096",
    "holo_class: .zero 4096",
    ".section .text.holo_gate,\"ax\",@progbits",
    ".balign 64",
    ".globl holo_gate",
    ".hidden holo_gate",
    ".type holo_gate, @function",
    "holo_gate:",
    // For unwinders the gate was called by the trampoline: the return address is `raw`, in rcx.
    ".cfi_startproc",
    ".cfi_def_cfa rsp, 0",
    ".cfi_register rip, rcx",
    // The kernel takes the low half only; a clean upper half makes it an index.
    "mov eax, eax",
    "cmp eax, 512",
    "jae 2f",
    "lea r11, [rip + holo_class]",
    "cmp byte ptr [r11 + rax], 0",
    "jne holo_slow",
    "2:",
    "mov r11, qword ptr [rip + holo_tls@GOTTPOFF]",
    "mov qword ptr fs:[r11 + 8], rax",
    "jmp rcx",
    ".globl holo_slow",
    ".hidden holo_slow",
    "holo_slow:",
    "lea rsp, [rsp - {below}]",
    "mov [rsp + 0], rax",
    "mov [rsp + 8], rdi",
    "mov [rsp + 16], rsi",
    "mov [rsp + 24], rdx",
    "mov [rsp + 32], r10",
    "mov [rsp + 40], r8",
    "mov [rsp + 48], r9",
    "mov [rsp + 56], rcx",
    "mov [rsp + 64], rbx",
    "mov [rsp + 72], rbp",
    "mov [rsp + 80], r12",
    "mov [rsp + 88], r13",
    "mov [rsp + 96], r14",
    "mov [rsp + 104], r15",
    "lea r11, [rsp + {below}]",
    "mov [rsp + 112], r11",
    "mov [rsp + 120], rcx",
    "movups [rsp + 128], xmm0",
    "movups [rsp + 144], xmm1",
    "movups [rsp + 160], xmm2",
    "movups [rsp + 176], xmm3",
    "movups [rsp + 192], xmm4",
    "movups [rsp + 208], xmm5",
    "movups [rsp + 224], xmm6",
    "movups [rsp + 240], xmm7",
    "movups [rsp + 256], xmm8",
    "movups [rsp + 272], xmm9",
    "movups [rsp + 288], xmm10",
    "movups [rsp + 304], xmm11",
    "movups [rsp + 320], xmm12",
    "movups [rsp + 336], xmm13",
    "movups [rsp + 352], xmm14",
    "movups [rsp + 368], xmm15",
    "mov r11, qword ptr [rip + holo_tls@GOTTPOFF]",
    "mov qword ptr fs:[r11 + 16], rsp",
    "mov dword ptr fs:[r11], 1",
    // rbx keeps the frame across the call; it is restored from the frame, which Rust may not change.
    "mov rbx, rsp",
    ".cfi_def_cfa rbx, {below}",
    ".cfi_offset rip, 120 - {below}",
    ".cfi_offset rbx, 64 - {below}",
    ".cfi_offset rbp, 72 - {below}",
    ".cfi_offset r12, 80 - {below}",
    ".cfi_offset r13, 88 - {below}",
    ".cfi_offset r14, 96 - {below}",
    ".cfi_offset r15, 104 - {below}",
    "mov rdi, rsp",
    "and rsp, -16",
    "cld",
    "call holo_dispatch",
    "mov rsp, rbx",
    // Restartable from here: every instruction up to the jump only reads the frame.
    ".globl holo_exit",
    ".hidden holo_exit",
    "holo_exit:",
    "mov r11, qword ptr [rip + holo_tls@GOTTPOFF]",
    "mov rsp, qword ptr fs:[r11 + 16]",
    "mov dword ptr fs:[r11], 0",
    "cmp dword ptr fs:[r11 + 4], 0",
    "jne 5f",
    "movups xmm0, [rsp + 128]",
    "movups xmm1, [rsp + 144]",
    "movups xmm2, [rsp + 160]",
    "movups xmm3, [rsp + 176]",
    "movups xmm4, [rsp + 192]",
    "movups xmm5, [rsp + 208]",
    "movups xmm6, [rsp + 224]",
    "movups xmm7, [rsp + 240]",
    "movups xmm8, [rsp + 256]",
    "movups xmm9, [rsp + 272]",
    "movups xmm10, [rsp + 288]",
    "movups xmm11, [rsp + 304]",
    "movups xmm12, [rsp + 320]",
    "movups xmm13, [rsp + 336]",
    "movups xmm14, [rsp + 352]",
    "movups xmm15, [rsp + 368]",
    "mov rax, [rsp + 0]",
    "mov rdi, [rsp + 8]",
    "mov rsi, [rsp + 16]",
    "mov rdx, [rsp + 24]",
    "mov r10, [rsp + 32]",
    "mov r8, [rsp + 40]",
    "mov r9, [rsp + 48]",
    "mov rcx, [rsp + 56]",
    "mov rbx, [rsp + 64]",
    "mov rbp, [rsp + 72]",
    "mov r12, [rsp + 80]",
    "mov r13, [rsp + 88]",
    "mov r14, [rsp + 96]",
    "mov r15, [rsp + 104]",
    "mov rsp, [rsp + 112]",
    ".globl holo_exit_jump",
    ".hidden holo_exit_jump",
    "holo_exit_jump:",
    "jmp rcx",
    // A signal was deferred: raise it again, now that the call is consistent, then leave anew.
    "5:",
    "mov dword ptr fs:[r11], 1",
    "mov rbx, rsp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call holo_raise_deferred",
    "mov rsp, rbx",
    "jmp holo_exit",
    ".cfi_endproc",
    ".balign 16",
    ".globl holo_block",
    ".hidden holo_block",
    ".type holo_block, @function",
    "holo_block:",
    ".cfi_startproc",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "mov r11, qword ptr [rip + holo_tls@GOTTPOFF]",
    ".globl holo_block_check",
    ".hidden holo_block_check",
    "holo_block_check:",
    "cmp dword ptr fs:[r11 + 4], 0",
    "jne 6f",
    "syscall",
    ".globl holo_block_after",
    ".hidden holo_block_after",
    "holo_block_after:",
    "nop",
    "ret",
    "6:",
    "mov rax, {deferred}",
    "ret",
    ".cfi_endproc",
    ".balign 16",
    ".globl holo_syscall",
    ".hidden holo_syscall",
    ".type holo_syscall, @function",
    "holo_syscall:",
    ".cfi_startproc",
    "mov rax, [rsp + 8]",
    "mov r10, rcx",
    "lea rcx, [rip + holo_syscall_raw]",
    "jmp holo_gate",
    ".globl holo_syscall_raw",
    ".hidden holo_syscall_raw",
    "holo_syscall_raw:",
    "syscall",
    "nop",
    "ret",
    ".cfi_endproc",
    ".globl holo_gate_end",
    ".hidden holo_gate_end",
    "holo_gate_end:",
    ".text",
    below = const REGS_BYTES + 128,
    deferred = const DEFERRED,
);
