//! Writes trampolines: the overwritten instructions, made independent of where they run.
//!
//! The layout is drawn in [`holo_abi::sites`].

use holo_abi::sites::{FIXUP_GATE, FIXUP_MODULE, Fixup};
use iced_x86::{Code as Op, Decoder, DecoderOptions, FlowControl};

use crate::code::Insn;

/// `lea rcx, [rip + 5]`: over the `jmp gate`, to the `syscall`.
const LEA_RAW: [u8; 7] = [0x48, 0x8d, 0x0d, 5, 0, 0, 0];
const JMP_REL32: u8 = 0xe9;
/// `syscall; nop`.
const RAW: [u8; 3] = [0x0f, 0x05, 0x90];

/// Code to run instead of a window.
#[derive(Debug, Default)]
pub(crate) struct Trampoline {
    /// With zeros where fixups go.
    pub(crate) code: Vec<u8>,
    /// What to complete.
    pub(crate) fixups: Vec<Fixup>,
    /// Offset of the `syscall`.
    pub(crate) raw_at: u16,
}

/// Whether an instruction does the same from another address, given a fixup.
///
/// `call` would push another return address; interrupts and `endbr` mark places that others know by
/// address; `loop` and `jrcxz` have no long form.
pub(crate) fn is_relocatable(insn: &Insn<'_>) -> bool {
    let op = &insn.op;
    match op.flow_control() {
        FlowControl::Next => !matches!(op.code(), Op::Endbr64 | Op::Endbr32),
        FlowControl::ConditionalBranch => op.is_jcc_short_or_near(),
        FlowControl::UnconditionalBranch => op.is_jmp_short_or_near(),
        FlowControl::IndirectBranch | FlowControl::Return => true,
        FlowControl::Exception => matches!(op.code(), Op::Ud2),
        FlowControl::Call
        | FlowControl::IndirectCall
        | FlowControl::Interrupt
        | FlowControl::XbeginXabortXend => false,
    }
}

impl Trampoline {
    /// The trampoline of a `syscall` with `before` and `after` in its window, that resumes at `back`.
    /// `None` when an address is beyond what the format can say.
    pub(crate) fn new(before: &[Insn<'_>], after: &[Insn<'_>], back: u64) -> Option<Self> {
        let mut made = Self::default();
        for insn in before {
            made.relocate(insn)?;
        }
        made.code.extend(LEA_RAW);
        made.jump(&[JMP_REL32], FIXUP_GATE, 0)?;
        made.raw_at = u16::try_from(made.code.len()).ok()?;
        made.code.extend(RAW);
        for insn in after {
            made.relocate(insn)?;
        }
        made.jump(&[JMP_REL32], FIXUP_MODULE, back)?;
        Some(made)
    }

    fn jump(&mut self, opcode: &[u8], kind: u16, target: u64) -> Option<()> {
        self.code.extend(opcode);
        let at = u16::try_from(self.code.len()).ok()?;
        self.fixups.push(Fixup { at, kind, target: u32::try_from(target).ok()? });
        self.code.extend([0; 4]);
        Some(())
    }

    fn relocate(&mut self, insn: &Insn<'_>) -> Option<()> {
        let op = &insn.op;
        if op.is_jmp_short_or_near() {
            return self.jump(&[JMP_REL32], FIXUP_MODULE, op.near_branch_target());
        }
        if op.is_jcc_short_or_near() {
            let near = [0x0f, 0x80 | condition(insn)?];
            return self.jump(&near, FIXUP_MODULE, op.near_branch_target());
        }
        let start = self.code.len();
        self.code.extend(insn.bytes);
        if op.is_ip_rel_memory_operand() {
            // Only the displacement changes; whatever follows it (an immediate) stays.
            let mut decoder = Decoder::with_ip(64, insn.bytes, insn.addr(), DecoderOptions::NONE);
            let offsets = decoder.decode();
            let offsets = decoder.get_constant_offsets(&offsets);
            if offsets.displacement_size() != 4 {
                return None;
            }
            let at = start + offsets.displacement_offset();
            let tail = u64::try_from(self.code.len() - (at + 4)).ok()?;
            let target = op.ip_rel_memory_address().checked_sub(tail)?;
            self.fixups.push(Fixup {
                at: u16::try_from(at).ok()?,
                kind: FIXUP_MODULE,
                target: u32::try_from(target).ok()?,
            });
            self.code.get_mut(at..at + 4)?.fill(0);
        }
        Some(())
    }
}

/// The condition of a `jcc`, from its opcode: `7x` short, `0f 8x` near, prefixes before.
fn condition(insn: &Insn<'_>) -> Option<u8> {
    let immediate = if insn.op.is_jcc_short() { 1 } else { 4 };
    let opcode = insn.bytes.len().checked_sub(immediate + 1)?;
    Some(insn.bytes.get(opcode)? & 0x0f)
}
