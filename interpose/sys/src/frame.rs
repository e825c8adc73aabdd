//! The kernel's signal frame, as `rt_sigreturn` reads it (x86-64 `struct ucontext` and `siginfo`).

/// General registers in `uc_mcontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// r8 to r15.
    pub r8_15: [u64; 8],
    /// rdi.
    pub rdi: u64,
    /// rsi.
    pub rsi: u64,
    /// rbp.
    pub rbp: u64,
    /// rbx.
    pub rbx: u64,
    /// rdx.
    pub rdx: u64,
    /// rax.
    pub rax: u64,
    /// rcx.
    pub rcx: u64,
    /// rsp.
    pub rsp: u64,
    /// rip.
    pub rip: u64,
    /// Flags.
    pub eflags: u64,
    /// cs, gs, fs, ss.
    pub segments: u64,
    /// Error code.
    pub err: u64,
    /// Trap number.
    pub trapno: u64,
    /// `oldmask`.
    pub oldmask: u64,
    /// Fault address.
    pub cr2: u64,
    /// Vector state, in the same frame.
    pub fpstate: u64,
    /// Zero.
    pub reserved: [u64; 8],
}

/// `struct ucontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UContext {
    /// `uc_flags`.
    pub flags: u64,
    /// `uc_link`.
    pub link: u64,
    /// Alternate stack: pointer.
    pub stack_sp: u64,
    /// Flags.
    pub stack_flags: u64,
    /// Size.
    pub stack_size: u64,
    /// Registers.
    pub context: Context,
    /// Blocked signals.
    pub mask: u64,
}

/// `siginfo_t`, 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SigInfo {
    /// Signal.
    pub signo: i32,
    /// `errno`.
    pub errno: i32,
    /// Source.
    pub code: i32,
    /// Padding.
    pub pad: i32,
    /// Sender's pid (queued signals).
    pub pid: i32,
    /// Sender's uid.
    pub uid: u32,
    /// Value.
    pub value: u64,
    /// The rest.
    pub rest: [u64; 12],
}

const _: () = assert!(size_of::<SigInfo>() == 128);
const _: () = assert!(core::mem::offset_of!(UContext, context) == 40);
const _: () = assert!(core::mem::offset_of!(Context, rip) == 128);
const _: () = assert!(core::mem::offset_of!(UContext, mask) == 40 + 256);
