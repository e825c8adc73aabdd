//! Call-site tables: where the `syscall` instructions of a module are and how each is replaced.
//!
//! Made by the agent (`iced-x86`), cached per build-id, applied by the library, which needs no
//! disassembler. A table is a [`TableHeader`], then `count` records, each a [`Site`], its trampoline code
//! (`code_len` bytes), its [`Fixup`]s, padded with zeros to a multiple of 4.
//!
//! A site is patched by writing, over `patch_len >= 5` bytes at `patch_at`, a `jmp rel32` to its
//! trampoline followed by `int3`s. The trampoline is:
//!
//! ```text
//!   <relocated instructions before the syscall, if the patch begins before it>
//!   lea rcx, [rip + raw]        48 8d 0d xx xx xx xx
//!   jmp gate                    e9 <fixup GATE>
//! raw:                          (at raw_at)
//!   syscall                     0f 05
//!   nop                         90
//!   <relocated instructions after the syscall, if the patch covers any>
//!   jmp back                    e9 <fixup to patch_at + patch_len>
//! ```
//!
//! The gate either jumps to `raw` (the call is made in place, with every register and the stack as the
//! application had them) or past the `syscall` with the result in `rax`. `rcx` and `r11` are the kernel's
//! to clobber, so nothing of the application is lost. The `nop` tells "the call just returned" from "the
//! application's handler has run since" (see `holo-sys`, park).

/// First word of a table.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HOLOSIT1");

/// Start of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TableHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`super::VERSION`].
    pub version: u32,
    /// Records that follow.
    pub count: u32,
    /// Bytes of the whole table.
    pub bytes: u32,
    /// Sum of all `code_len`, each rounded up to 16: the trampoline area's size.
    pub code_bytes: u32,
    /// `syscall` instructions found that cannot be patched.
    pub left: u32,
    /// Bytes of build-id, at most 20.
    pub build_id_len: u32,
    /// The module's build-id, zero-padded.
    pub build_id: [u8; 20],
    /// Zero.
    pub reserved: u32,
}

/// One call site. Addresses are module-relative (ELF virtual addresses).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// First byte that the patch overwrites.
    pub patch_at: u32,
    /// Address of the original `syscall` instruction.
    pub syscall_at: u32,
    /// Offset of the `syscall` in the trampoline.
    pub raw_at: u16,
    /// Length of the trampoline code.
    pub code_len: u16,
    /// Bytes overwritten, 5..=32.
    pub patch_len: u8,
    /// Fixups that follow the code.
    pub fixups: u8,
    /// The call number if a `mov eax, imm32` just before sets it, else -1.
    pub nr: i16,
    /// The bytes that must stand at `patch_at` before patching, to be sure of the module; zero-padded.
    pub expect: [u8; 32],
}

/// A `rel32` in trampoline code to be completed when its address is known:
/// `rel32 = target - (address of the rel32 + 4)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Fixup {
    /// Offset of the 4 bytes in the code.
    pub at: u16,
    /// See [`FIXUP_MODULE`] and [`FIXUP_GATE`].
    pub kind: u16,
    /// Module-relative target, for [`FIXUP_MODULE`]; bytes between the end of the `rel32` and the end of
    /// the instruction are already subtracted.
    pub target: u32,
}

/// The target is in the module.
pub const FIXUP_MODULE: u16 = 0;
/// The target is the gate.
pub const FIXUP_GATE: u16 = 1;

const _: () = assert!(size_of::<TableHeader>() == 56);
const _: () = assert!(size_of::<Site>() == 48);
const _: () = assert!(size_of::<Fixup>() == 8);
