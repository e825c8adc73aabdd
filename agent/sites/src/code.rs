//! Decoded code: instructions at true boundaries, and every address that something may jump to.

use std::collections::HashSet;

use iced_x86::{Code as Op, Decoder, DecoderOptions, FlowControl, Instruction};

use crate::module::{Function, Module, Region};

/// Entries of a jump table that are looked at.
const JUMP_TABLE_ENTRIES_MAX: usize = 4096;

/// A stretch of code that is decoded as one: from a function start up to its end or the next start.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    end: u64,
    /// First byte after the padding that may follow `end`.
    padding_end: u64,
    /// Covered by a function; otherwise a hole between functions.
    named: bool,
}

/// An instruction with its encoding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn<'a> {
    /// Decoded at its module-relative address.
    pub(crate) op: Instruction,
    /// Its bytes.
    pub(crate) bytes: &'a [u8],
}

impl Insn<'_> {
    /// Module-relative address.
    pub(crate) fn addr(&self) -> u64 {
        self.op.ip()
    }

    /// The address after it.
    pub(crate) fn end(&self) -> u64 {
        self.op.next_ip()
    }

    /// A `syscall` instruction.
    pub(crate) fn is_syscall(&self) -> bool {
        self.op.code() == Op::Syscall
    }

    /// Filler between functions and before aligned labels.
    pub(crate) fn is_padding(&self) -> bool {
        is_padding(&self.op)
    }
}

fn is_padding(op: &Instruction) -> bool {
    matches!(
        op.code(),
        Op::Nopw | Op::Nopd | Op::Nopq | Op::Nop_rm16 | Op::Nop_rm32 | Op::Nop_rm64 | Op::Int3
    ) || (op.code() == Op::Xchg_r16_AX && op.op0_register() == op.op1_register())
}

/// One bit per byte of code: something may jump there.
#[derive(Debug, Default)]
struct Targets {
    /// Per region: its first address and its bits.
    regions: Vec<(u64, Vec<u64>)>,
}

impl Targets {
    fn new(code: &[Region<'_>]) -> Self {
        Self { regions: code.iter().map(|r| (r.addr, vec![0; r.bytes.len().div_ceil(64)])).collect() }
    }

    /// Region, word and bit of an address.
    fn slot(&self, addr: u64) -> Option<(usize, usize, u64)> {
        let region = self.regions.partition_point(|(low, _)| *low <= addr).checked_sub(1)?;
        let (low, bits) = &self.regions[region];
        let word = usize::try_from((addr - low) / 64).ok().filter(|word| *word < bits.len())?;
        Some((region, word, 1 << ((addr - low) % 64)))
    }

    fn add(&mut self, addr: u64) {
        if let Some((region, word, bit)) = self.slot(addr) {
            self.regions[region].1[word] |= bit;
        }
    }

    /// Addresses that are out of range count as targets, so that nothing is patched there.
    fn has(&self, addr: u64) -> bool {
        self.slot(addr).is_none_or(|(region, word, bit)| self.regions[region].1[word] & bit != 0)
    }
}

/// A stretch of code with `syscall` instructions in it, and the padding that follows.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    /// Instructions by address, without holes.
    pub(crate) insns: Vec<Insn<'a>>,
}

/// All that the planner needs to know about a module's code.
#[derive(Debug)]
pub(crate) struct Code<'a> {
    /// Code with system calls, by address.
    pub(crate) bodies: Vec<Body<'a>>,
    /// `syscall` instructions in code that no function covers.
    pub(crate) stray: u32,
    targets: Targets,
}

impl<'a> Code<'a> {
    /// Decodes a module. Two passes: the first finds targets and `syscall` instructions in all code, the
    /// second keeps the instructions of the few pieces that have system calls.
    pub(crate) fn read(module: &Module<'a>) -> Self {
        let mut targets = Targets::new(&module.code);
        add_mentioned(module, &mut targets);
        let mut with_calls = Vec::new();
        let mut stray = 0;
        let mut tables = HashSet::new();
        for region in &module.code {
            // The function piece just before, if it ends in the middle of its code.
            let mut open: Option<(Piece, u32)> = None;
            for piece in pieces(region, &module.functions) {
                if piece.named {
                    targets.add(piece.start);
                }
                let found = survey(module, region, piece, &mut targets, &mut tables);
                // Assembly may leave its last instructions without an unwind entry, as glibc's `clone3`
                // does: control runs into the hole, so the hole begins at an instruction.
                let joined = open.take().filter(|_| found.clean && !piece.named);
                let (piece, calls) = match joined {
                    Some((before, calls)) => (Piece { start: before.start, named: true, ..piece }, calls),
                    None => (piece, 0),
                };
                let calls = calls + found.calls;
                if piece.named {
                    if joined.is_some_and(|(_, calls)| calls > 0) {
                        with_calls.pop();
                    }
                    if calls > 0 {
                        with_calls.push((region, piece));
                    }
                } else if found.clean {
                    stray += calls;
                }
                open = (piece.named && found.clean && found.runs_on).then_some((piece, calls));
            }
        }
        let bodies = with_calls.into_iter().map(|(region, piece)| body(region, piece)).collect();
        Self { bodies, stray, targets }
    }

    /// Whether something may jump to `addr`.
    pub(crate) fn is_target(&self, addr: u64) -> bool {
        self.targets.has(addr)
    }
}

/// Symbols, relocations and pointers in data: jump tables of position-dependent code, `computed goto`.
fn add_mentioned(module: &Module<'_>, targets: &mut Targets) {
    module.mentioned.iter().for_each(|addr| targets.add(*addr));
    for region in &module.data {
        let skip = usize::try_from(region.addr.wrapping_neg() % 8).unwrap_or(0);
        let words = region.bytes.get(skip..).unwrap_or_default().chunks_exact(8);
        words.filter_map(|w| w.try_into().ok()).for_each(|word| targets.add(u64::from_le_bytes(word)));
    }
}

/// Splits a region at every function start; what no function covers becomes unnamed pieces.
fn pieces(region: &Region<'_>, functions: &[Function]) -> Vec<Piece> {
    let first = functions.partition_point(|f| f.start < region.addr);
    let mut pieces = Vec::new();
    let mut push = |start: u64, end: u64, padding_end: u64, named: bool| {
        if start < end {
            pieces.push(Piece { start, end, padding_end, named });
        }
    };
    let mut covered = region.addr;
    let mut at = region.addr;
    for function in functions[first..].iter().take_while(|f| f.start < region.end()) {
        if function.start > at {
            push(at, covered.min(function.start), function.start, true);
            push(covered.max(at), function.start, function.start, false);
            at = function.start;
        }
        covered = covered.max(function.end);
    }
    push(at, covered.min(region.end()), region.end(), true);
    push(covered.max(at), region.end(), region.end(), false);
    pieces
}

fn decoder<'a>(region: &Region<'a>, start: u64, end: u64) -> Option<(Decoder<'a>, &'a [u8])> {
    let bytes = region.from(start)?.get(..usize::try_from(end.checked_sub(start)?).ok()?)?;
    Some((Decoder::with_ip(64, bytes, start, DecoderOptions::NONE), bytes))
}

/// What the first pass finds in a piece.
#[derive(Clone, Copy, Debug, Default)]
struct Survey {
    /// `syscall` instructions.
    calls: u32,
    /// All of it decoded.
    clean: bool,
    /// Control goes past the last instruction. A `call` at the end is one that does not return.
    runs_on: bool,
}

/// First pass over a piece.
fn survey(
    module: &Module<'_>,
    region: &Region<'_>,
    piece: Piece,
    targets: &mut Targets,
    tables: &mut HashSet<u64>,
) -> Survey {
    let mut found = Survey::default();
    let Some((mut decoder, _)) = decoder(region, piece.start, piece.end) else { return found };
    let mut op = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut op);
        if op.is_invalid() {
            return found;
        }
        found.calls += u32::from(op.code() == Op::Syscall);
        match op.flow_control() {
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::Call
            | FlowControl::XbeginXabortXend => targets.add(op.near_branch_target()),
            FlowControl::Next
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::IndirectCall
            | FlowControl::Interrupt
            | FlowControl::Exception => (),
        }
        if op.is_ip_rel_memory_operand() {
            let addr = op.ip_rel_memory_address();
            targets.add(addr);
            if op.code() == Op::Lea_r64_m && tables.insert(addr) {
                add_jump_table(module, addr, targets);
            }
        }
    }
    found.clean = true;
    found.runs_on = matches!(op.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
        || op.code() == Op::Syscall;
    found
}

/// Treats what `lea` points at as a table of offsets from itself, which is how position-independent code
/// stores jump tables. A table that is none adds addresses that nothing jumps to, which does no harm.
fn add_jump_table(module: &Module<'_>, addr: u64, targets: &mut Targets) {
    let Some(bytes) = module.data.iter().find_map(|region| region.from(addr)) else { return };
    let entries = bytes.chunks_exact(4).filter_map(|entry| entry.try_into().ok());
    for entry in entries.take(JUMP_TABLE_ENTRIES_MAX).map(i32::from_le_bytes) {
        let target = addr.wrapping_add_signed(i64::from(entry));
        if !module.code.iter().any(|region| region.addr <= target && target < region.end()) {
            break;
        }
        targets.add(target);
    }
}

/// Second pass: the instructions of a piece up to the first that does not decode, then its padding.
fn body<'a>(region: &Region<'a>, piece: Piece) -> Body<'a> {
    let mut insns = Vec::new();
    let mut end = piece.start;
    if let Some((mut decoder, bytes)) = decoder(region, piece.start, piece.padding_end) {
        while decoder.can_decode() {
            let at = decoder.position();
            let op = decoder.decode();
            let past = op.ip() >= piece.end;
            // An instruction across the end means that a boundary is not where it was thought to be.
            let astride = !past && op.next_ip() > piece.end;
            if op.is_invalid() || astride || (past && !is_padding(&op)) {
                break;
            }
            end = op.next_ip();
            insns.push(Insn { op, bytes: &bytes[at..decoder.position()] });
        }
    }
    debug_assert!(end <= piece.padding_end);
    Body { insns }
}
