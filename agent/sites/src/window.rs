//! Chooses, for each `syscall`, the instructions that the jump to its trampoline overwrites.

use iced_x86::{Code as Op, FlowControl, InstructionInfoFactory, OpAccess, Register};

use crate::code::{Body, Code, Insn};
use crate::trampoline::{self, Trampoline};

/// Bytes of a `jmp rel32`.
const WINDOW_BYTES_MIN: usize = 5;
/// Bytes that a record can hold.
const WINDOW_BYTES_MAX: usize = 32;
/// Instructions before the `syscall` that a window may begin at.
const BEFORE_MAX: usize = 6;
/// Instructions looked back through for the call number.
const NUMBER_LOOK_BACK_MAX: usize = 16;
/// `rt_sigreturn`.
const SIGRETURN: i64 = 15;

/// A site that can be patched.
#[derive(Debug)]
pub(crate) struct Site {
    /// First byte overwritten, module-relative.
    pub(crate) patch_at: u32,
    /// Address of the `syscall`.
    pub(crate) syscall_at: u32,
    /// The bytes overwritten.
    pub(crate) expect: Vec<u8>,
    /// The call number where it is known, else -1.
    pub(crate) nr: i16,
    /// What runs instead.
    pub(crate) trampoline: Trampoline,
}

/// What is to become of a module's `syscall` instructions.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By address, not overlapping.
    pub(crate) sites: Vec<Site>,
    /// Instructions that cannot be patched.
    pub(crate) left: u32,
}

/// A window: instructions `first..last` of a body, of which those from `idle` on never run.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: usize,
    idle: usize,
    last: usize,
}

/// Plans every site of a module.
pub(crate) fn plan(code: &Code<'_>) -> Plan {
    let mut plan = Plan { sites: Vec::new(), left: code.stray };
    for body in &code.bodies {
        plan_body(code, body, &mut plan);
    }
    plan
}

fn plan_body(code: &Code<'_>, body: &Body<'_>, plan: &mut Plan) {
    let mut chosen: Vec<(usize, Option<i64>, Window)> = Vec::new();
    // The first free instruction, before the previous window was chosen and after.
    let (mut free_before, mut free) = (0, 0);
    for at in (0..body.insns.len()).filter(|at| body.insns[*at].is_syscall()) {
        let nr = number(code, body, at);
        if nr == Some(SIGRETURN) {
            // Unwinders and debuggers know the signal trampoline by these very bytes, and parking in it
            // is useless: neither patched nor left.
            continue;
        }
        let mut window = candidates(code, body, at).find(|w| w.first >= free);
        if window.is_none()
            && let Some((previous, _, held)) = chosen.last_mut()
        {
            // The previous window may stand in the way: look for a pair that fits.
            let other = candidates(code, body, *previous)
                .filter(|w| w.first >= free_before)
                .find_map(|w| Some((w, candidates(code, body, at).find(|next| next.first >= w.last)?)));
            if let Some((moved, found)) = other {
                (*held, window) = (moved, Some(found));
                free = moved.last;
            }
        }
        match window {
            Some(window) => {
                (free_before, free) = (free, window.last);
                chosen.push((at, nr, window));
            }
            None => plan.left += 1,
        }
    }
    for (at, nr, window) in chosen {
        match site(body, at, nr, window) {
            Some(site) => plan.sites.push(site),
            None => plan.left += 1,
        }
    }
}

/// Windows that may replace the `syscall` at `at`, best first: those that begin at the `syscall`, then
/// those that begin as little before it as possible.
fn candidates<'c>(code: &'c Code<'_>, body: &'c Body<'_>, at: usize) -> impl Iterator<Item = Window> + 'c {
    // Going back ends at a place that something jumps to: it may be a window's start, not its middle.
    let firsts = (at.saturating_sub(BEFORE_MAX)..=at).rev().scan(true, move |open, first| {
        let insn = &body.insns[first];
        let usable = *open && (first == at || flows_into_next(insn));
        *open = usable && !code.is_target(insn.addr());
        usable.then_some(first)
    });
    firsts.filter_map(move |first| extend(code, body, first, at))
}

/// The shortest window from `first` over the `syscall` at `at`, if one is long enough.
fn extend(code: &Code<'_>, body: &Body<'_>, first: usize, at: usize) -> Option<Window> {
    let start = body.insns[first].addr();
    let mut idle = None;
    for (index, insn) in body.insns.iter().enumerate().skip(first) {
        let inside = index > first;
        let fits = match idle {
            Some(_) => insn.is_padding(),
            None => index == at || (!insn.is_syscall() && trampoline::is_relocatable(insn)),
        };
        if (inside && code.is_target(insn.addr())) || !fits {
            return None;
        }
        if idle.is_none() && index >= at && !flows_on(insn) {
            idle = Some(index + 1);
        }
        let len = usize::try_from(insn.end() - start).ok()?;
        if len > WINDOW_BYTES_MAX {
            return None;
        }
        if len >= WINDOW_BYTES_MIN && index >= at {
            let last = index + 1;
            return Some(Window { first, idle: idle.unwrap_or(last), last });
        }
    }
    None
}

/// Control reaches the next instruction, at least sometimes.
fn flows_on(insn: &Insn<'_>) -> bool {
    match insn.op.flow_control() {
        FlowControl::Next
        | FlowControl::ConditionalBranch
        | FlowControl::Call
        | FlowControl::IndirectCall
        | FlowControl::XbeginXabortXend
        | FlowControl::Interrupt => true,
        FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Return
        | FlowControl::Exception => false,
    }
}

fn flows_into_next(insn: &Insn<'_>) -> bool {
    flows_on(insn) && !insn.is_syscall() && trampoline::is_relocatable(insn)
}

/// The call number, if an instruction shortly before the `syscall` sets it and nothing jumps in between.
fn number(code: &Code<'_>, body: &Body<'_>, at: usize) -> Option<i64> {
    let mut info = InstructionInfoFactory::new();
    for index in (at.saturating_sub(NUMBER_LOOK_BACK_MAX)..at).rev() {
        let (insn, next) = (&body.insns[index], &body.insns[index + 1]);
        let falls_through =
            matches!(insn.op.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        if code.is_target(next.addr()) || !falls_through {
            return None;
        }
        let op = &insn.op;
        let eax = op.op_count() > 0 && op.op0_register().full_register() == Register::RAX;
        let (is, both) = (op.code(), op.op0_register() == op.op1_register());
        if eax && (is == Op::Mov_r32_imm32 || is == Op::Mov_rm32_imm32) {
            return Some(i64::from(op.immediate32()));
        }
        if eax && is == Op::Mov_rm64_imm32 {
            return Some(op.immediate32to64());
        }
        if eax && both && (is == Op::Xor_rm32_r32 || is == Op::Xor_r32_rm32) {
            return Some(0);
        }
        let writes_rax = info.info(op).used_registers().iter().any(|used| {
            used.register().full_register() == Register::RAX
                && !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead)
        });
        if writes_rax {
            return None;
        }
    }
    None
}

fn site(body: &Body<'_>, at: usize, nr: Option<i64>, window: Window) -> Option<Site> {
    let insns = &body.insns;
    let (before, after) = (&insns[window.first..at], &insns[at + 1..window.idle]);
    let end = insns[window.last - 1].end();
    Some(Site {
        patch_at: u32::try_from(insns[window.first].addr()).ok()?,
        syscall_at: u32::try_from(insns[at].addr()).ok()?,
        expect: insns[window.first..window.last].iter().flat_map(|i| i.bytes).copied().collect(),
        nr: nr.and_then(|nr| i16::try_from(nr).ok()).filter(|nr| *nr >= 0).unwrap_or(-1),
        trampoline: Trampoline::new(before, after, end)?,
    })
}

#[cfg(test)]
mod tests;
