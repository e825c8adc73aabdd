//! Proves that a table does what the module's code does.
//!
//! Each trampoline is completed for assumed addresses, decoded again and compared, instruction by
//! instruction, with the code that its patch overwrites. The comparison knows nothing of how trampolines
//! are written: it looks at what the instructions do.

use holo_abi::sites::{FIXUP_GATE, FIXUP_MODULE};
use iced_x86::{Code as Op, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::table::{SiteView, Table};
use crate::{Error, Module};

/// Where the module, the trampoline and the gate are assumed to be.
const MODULE: u64 = 0x7f12_3000_0000;
const TRAMPOLINE: u64 = MODULE - 0x1000_0000;
const GATE: u64 = TRAMPOLINE - 0x1_0000;

/// Checks a table against its module.
///
/// # Errors
/// [`Error::Mismatch`] with the site and what differs.
pub fn check(module: &Module<'_>, table: &Table<'_>) -> Result<(), Error> {
    if table.build_id != module.build_id() {
        return Err(Error::Mismatch { site: 0, what: "build-id differs".into() });
    }
    for site in &table.sites {
        check_site(module, site).map_err(|what| Error::Mismatch { site: site.syscall_at, what })?;
    }
    Ok(())
}

fn check_site(module: &Module<'_>, site: &SiteView<'_>) -> Result<(), String> {
    let found = module.code_at(u64::from(site.patch_at), site.expect.len());
    if found != Some(site.expect) {
        return Err(format!("module has {found:02x?}, not {:02x?}", site.expect));
    }
    let old = decode(site.expect, MODULE + u64::from(site.patch_at))?;
    let code = complete(site)?;
    let mut new = decode(&code, TRAMPOLINE)?.into_iter();
    let syscall_at = MODULE + u64::from(site.syscall_at);
    let raw_at = TRAMPOLINE + u64::from(site.raw_at);
    let mut ended = false;
    for op in &old {
        if ended {
            // Never runs: must be filler, and the trampoline leaves it out.
            if op.code() != Op::Int3 && !is_nop(op) {
                return Err(format!("{op:?} after the end of the code is overwritten"));
            }
            continue;
        }
        if op.code() == Op::Syscall {
            if op.ip() != syscall_at {
                return Err(format!("second syscall at {:#x}", op.ip()));
            }
            check_call(&mut new, raw_at)?;
            continue;
        }
        let next = new.next().ok_or("trampoline ends early")?;
        if !same(op, &next) {
            return Err(format!("{op:?} became {next:?}"));
        }
        ended = matches!(
            op.flow_control(),
            FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Return
                | FlowControl::Exception
        );
    }
    let back = new.next().ok_or("no jump back")?;
    if !back.is_jmp_near() || back.near_branch_target() != MODULE + site.patch_end() {
        return Err(format!("jump back is {back:?}"));
    }
    new.next().map_or(Ok(()), |more| Err(format!("{more:?} after the jump back")))
}

/// `lea rcx, [raw]; jmp gate; raw: syscall; nop`.
fn check_call(new: &mut impl Iterator<Item = Instruction>, raw_at: u64) -> Result<(), String> {
    let mut next = || new.next().ok_or("trampoline ends before its call");
    let (lea, jmp, call, nop) = (next()?, next()?, next()?, next()?);
    let loads = lea.code() == Op::Lea_r64_m
        && lea.op0_register() == Register::RCX
        && lea.is_ip_rel_memory_operand()
        && lea.ip_rel_memory_address() == raw_at;
    let jumps = jmp.is_jmp_near() && jmp.near_branch_target() == GATE;
    let calls = call.code() == Op::Syscall && call.ip() == raw_at && nop.code() == Op::Nopd;
    if loads && jumps && calls { Ok(()) } else { Err(format!("call is {lea:?}; {jmp:?}; {call:?}; {nop:?}")) }
}

/// The trampoline as it stands in memory.
fn complete(site: &SiteView<'_>) -> Result<Vec<u8>, String> {
    let mut code = site.code.to_vec();
    for fixup in &site.fixups {
        let target = match fixup.kind {
            FIXUP_MODULE => MODULE + u64::from(fixup.target),
            FIXUP_GATE => GATE,
            other => return Err(format!("fixup of kind {other}")),
        };
        let end = TRAMPOLINE + u64::from(fixup.at) + 4;
        let distance = i32::try_from(target.wrapping_sub(end) as i64).map_err(|e| e.to_string())?;
        let at = usize::from(fixup.at);
        let place = code.get_mut(at..at + 4).ok_or("fixup outside the code")?;
        place.copy_from_slice(&distance.to_le_bytes());
    }
    Ok(code)
}

fn decode(bytes: &[u8], at: u64) -> Result<Vec<Instruction>, String> {
    let decoded: Vec<_> = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).iter().collect();
    match decoded.iter().find(|op| op.is_invalid()) {
        Some(bad) => Err(format!("no instruction at {:#x}", bad.ip())),
        None => Ok(decoded),
    }
}

/// Whether two instructions at different addresses do the same.
fn same(old: &Instruction, new: &Instruction) -> bool {
    if old.is_jcc_short_or_near() || old.is_jmp_short_or_near() {
        return new.mnemonic() == old.mnemonic()
            && (new.is_jcc_near() || new.is_jmp_near())
            && new.near_branch_target() == old.near_branch_target();
    }
    let memory = !old.is_ip_rel_memory_operand()
        || (new.is_ip_rel_memory_operand() && new.ip_rel_memory_address() == old.ip_rel_memory_address());
    let moves = matches!(old.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    // Everything that an instruction is apart from where it stands.
    memory
        && !moves
        && old.code() == new.code()
        && old.len() == new.len()
        && old.op_count() == new.op_count()
        && (0..old.op_count()).all(|i| same_operand(old, new, i))
        && old.has_lock_prefix() == new.has_lock_prefix()
        && old.has_rep_prefix() == new.has_rep_prefix()
        && old.has_repne_prefix() == new.has_repne_prefix()
}

fn same_operand(old: &Instruction, new: &Instruction, index: u32) -> bool {
    if old.op_kind(index) != new.op_kind(index) {
        return false;
    }
    if old.op_kind(index) == OpKind::Register {
        return old.op_register(index) == new.op_register(index);
    }
    if old.op_kind(index) == OpKind::Memory {
        return old.memory_base() == new.memory_base()
            && old.memory_index() == new.memory_index()
            && old.memory_index_scale() == new.memory_index_scale()
            && old.memory_segment() == new.memory_segment()
            && (old.is_ip_rel_memory_operand()
                || old.memory_displacement64() == new.memory_displacement64());
    }
    // String operands and the like have no immediate and say everything by their kind.
    old.try_immediate(index).ok() == new.try_immediate(index).ok()
}

fn is_nop(op: &Instruction) -> bool {
    op.mnemonic() == Mnemonic::Nop || (op.code() == Op::Xchg_r16_AX && op.op0_register() == Register::AX)
}
