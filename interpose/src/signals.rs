//! The application's signal handlers under holo.
//!
//! The kernel calls [`holo_signal_entry`] for every signal that the application handles. Depending on where
//! the thread was:
//!
//! - in the dispatcher or in the gate's save and exit sequences: the signal is *deferred*, all signals are
//!   blocked, and the gate raises it again when it leaves;
//! - in a trampoline, in the gate's first instructions, or at a call made by the dispatcher: the handler
//!   runs at once, with a context that shows the thread at the application's own `syscall` instruction, so
//!   that unwinders (thread cancellation, exceptions), profilers and debuggers find what they would find
//!   without holo. If the handler returns, the true context is put back;
//! - anywhere else: the handler runs with the context as it is.
//!
//! A signal that comes while the entry itself runs for another one must not take the thread for being in the
//! dispatcher, nor overwrite the one that is deferred: it is raised again with everything blocked, and
//! comes when the entry is through with the first.
//!
//! The entry is assembly with unwind information: no compiled frame stands between the handler and the
//! interrupted code.

use crate::dispatch::Verdict;
use crate::{altstack, changes, park, transfers, traps, user, waits};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};
use holo_abi::{PARK_COOKIE, PARK_SIGNAL, sysno};
use holo_sys::frame::{Context, SigInfo, UContext};
use holo_sys::gate::{self, Regs, Zone, holo_block};
use holo_sys::tls::{Tls, tls};
use holo_sys::{patch, sys};
use holo_track::actions::{Action, Actions, SA_RESETHAND, SIG_DFL, SIG_IGN};

/// Actions of the application, by signal.
pub(crate) static ACTIONS: Actions = Actions::new();

const SI_QUEUE: i32 = -1;
const SYS_SECCOMP: i32 = 1;
const EINTR: u64 = (-4i64).cast_unsigned();
const SIG_SETMASK: u64 = 2;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;

unsafe extern "C" {
    pub(crate) fn holo_signal_entry();
    pub(crate) fn holo_restorer();
    static holo_signal_flagged: u8;
    static holo_signal_left: u8;
    static holo_restorer_end: u8;
}

global_asm!(
    ".section .text.holo_signal,\"ax\",@progbits",
    ".balign 16",
    ".globl holo_signal_entry",
    ".hidden holo_signal_entry",
    ".type holo_signal_entry, @function",
    "holo_signal_entry:",
    ".cfi_startproc",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rbx, -16",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset r12, -24",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset r13, -32",
    "sub rsp, {saved}",
    ".cfi_adjust_cfa_offset {saved}",
    "cld",
    "mov r11, qword ptr [rip + holo_tls@GOTTPOFF]",
    "mov eax, 1",
    "xchg dword ptr fs:[r11 + {entering}], eax",
    "holo_signal_flagged:",
    "mov [rsp + {previous}], eax",
    "mov ebx, edi",
    "mov r12, rsi",
    "mov r13, rdx",
    "mov rcx, rsp",
    "call {before}",
    "test rax, rax",
    "jz 2f",
    "mov edi, ebx",
    "mov rsi, r12",
    "mov rdx, r13",
    "mov r11, rax",
    "xor eax, eax",
    "call r11",
    "mov rdi, r13",
    "mov rsi, rsp",
    "call {after}",
    "2:",
    "mov r11, qword ptr [rip + holo_tls@GOTTPOFF]",
    "mov eax, [rsp + {previous}]",
    "mov ecx, eax",
    "and ecx, 1",
    "mov dword ptr fs:[r11 + {entering}], ecx",
    "holo_signal_left:",
    "test eax, eax",
    "jnz 3f",
    "mov dword ptr fs:[r11 + {held}], 0",
    "3:",
    "add rsp, {saved}",
    ".cfi_adjust_cfa_offset -{saved}",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    // Unwinders know a signal frame by these very bytes at the return address, and by the absence of unwind
    // information for it (also one byte before).
    ".balign 16",
    "nop",
    ".globl holo_restorer",
    ".hidden holo_restorer",
    "holo_restorer:",
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
    "holo_restorer_end:",
    ".text",
    // Compiled functions get a hidden name for the gate: nothing but hooks may be in the dynamic table.
    ".globl holo_raise_deferred",
    ".hidden holo_raise_deferred",
    ".type holo_raise_deferred, @function",
    "holo_raise_deferred:",
    "jmp {raise}",
    saved = const size_of::<Saved>(),
    previous = const core::mem::offset_of!(Saved, previous),
    entering = const core::mem::offset_of!(Tls, entering),
    held = const core::mem::offset_of!(Tls, held),
    before = sym signal_before,
    after = sym signal_after,
    raise = sym raise_deferred,
);

/// What is put back when the handler returns; on the entry's stack.
#[repr(C, align(16))]
struct Saved {
    context: Context,
    /// Stack and instruction pointers shown to the handler; 0: nothing was changed.
    shown_rip: u64,
    shown_rsp: u64,
    in_holo: u32,
    /// Bit 0: what `entering` was; bit 1: another entry has yet to look at `held`.
    previous: u32,
    regs: *mut Regs,
    last_nr: u64,
    /// 1: the context is a [`Zone::Block`], of which all registers are put back.
    whole: u32,
    /// 1: a filter of the application's trapped the call, and the handler says what comes out of it.
    trapped: u32,
}

const _: () = assert!(size_of::<Saved>().is_multiple_of(16));

/// Where the interrupted thread was.
enum Place {
    /// In code that holo has no part in.
    User,
    /// Where the signal must wait; go on at this address.
    Defer(u64),
    /// At a call: the application's `syscall`, whether it was made already, and the gate's frame, if any.
    Call { site: u64, made: bool, frame: *mut Regs, next: u64 },
}

fn place(context: &Context, words: &Tls) -> Place {
    let rip = context.rip;
    match gate::zone(rip) {
        Zone::Enter => {
            let site = patch::site_of_raw(context.rcx).unwrap_or(context.rcx);
            Place::Call { site, made: false, frame: core::ptr::null_mut(), next: rip }
        }
        Zone::Save => Place::Defer(rip),
        Zone::Exit => Place::Defer(gate::exit_address()),
        Zone::Jump => trampoline(context.rcx),
        Zone::Block { after } => {
            // SAFETY: in the dispatcher, `regs` is the gate's frame.
            let raw = unsafe { (*words.regs).raw };
            let site = patch::site_of_raw(raw).unwrap_or(raw);
            // The handler will have run: what the call returned is now the application's (see `sites`).
            Place::Call { site, made: after, frame: words.regs, next: if after { rip + 1 } else { rip } }
        }
        Zone::Own { after } => Place::Call {
            site: gate::own_raw(),
            made: after,
            frame: core::ptr::null_mut(),
            next: if after { rip + 1 } else { rip },
        },
        Zone::Outside if words.in_holo != 0 => Place::Defer(rip),
        Zone::Outside => trampoline(rip),
    }
}

fn trampoline(rip: u64) -> Place {
    match patch::find(rip) {
        None => Place::User,
        Some(found) => {
            let next = if found.offset == 2 { rip + 1 } else { rip };
            let made = found.offset >= 2;
            Place::Call { site: found.site, made, frame: core::ptr::null_mut(), next }
        }
    }
}

/// Is the thread at a `syscall` instruction that it has executed already? The instruction leaves the address
/// behind it in `rcx`; before the first time, the gate has put another value there. Such a call was
/// interrupted, by a park or by a signal with `SA_RESTART`, and is to be made again.
pub(crate) fn was_made(context: &Context) -> bool {
    context.rcx == context.rip + 2
}

/// Is it the agent's order to park?
fn is_park(signal: i32, info: &SigInfo) -> bool {
    signal == PARK_SIGNAL && info.code == SI_QUEUE && info.value == PARK_COOKIE
}

/// First half of the entry: returns the handler to call, or 0.
///
/// # Safety
/// By the entry only, with the kernel's arguments.
unsafe extern "C" fn signal_before(
    signal: i32,
    info: *mut SigInfo,
    frame: *mut UContext,
    saved: *mut Saved,
) -> u64 {
    // SAFETY: the kernel's frame and the entry's own stack, for this call only.
    let (info, frame, saved, words) = unsafe { (&mut *info, &mut *frame, &mut *saved, &mut *tls()) };
    if traps::is_trap(signal, info) {
        traps::redirect(&mut frame.context, info);
        return 0;
    }
    if is_busy(info, frame, saved, words) {
        return 0;
    }
    let at = place(&frame.context, words);
    if let Place::Defer(rip) = at {
        frame.context.rip = rip;
        words.info = unsafe_copy(info);
        words.mask = frame.mask;
        words.deferred = 1;
        frame.mask = !0;
        return 0;
    }
    if is_park(signal, info) {
        // Everything is blocked. A restored thread comes back by its frame alone, not through the entry.
        words.entering = 0;
        park::on_park(frame, words);
        return 0;
    }
    let action = ACTIONS.get(signal as usize);
    match action.handler {
        SIG_DFL if signal != PARK_SIGNAL => {
            // The action was changed while the signal was on its way; the kernel knows the rest.
            set_default(signal);
            raise_now(info);
            return 0;
        }
        SIG_DFL | SIG_IGN => return 0,
        _ => {}
    }
    saved.context = frame.context;
    saved.shown_rip = 0;
    saved.whole = 0;
    saved.trapped = u32::from(signal == traps::SIGNAL && info.code == SYS_SECCOMP);
    saved.in_holo = words.in_holo;
    saved.regs = words.regs;
    saved.last_nr = words.last_nr;
    if let Place::Call { site, mut made, frame: regs, mut next } = at {
        let context = &mut frame.context;
        let ends = if regs.is_null() {
            !(waits::never_ends(context) || action.flags & SA_RESTART != 0 && waits::restarts(context.rax))
        } else {
            transfers::is_rest(words)
        };
        if ends && !made && was_made(context) {
            // It came while the thread was parked in this call, which it ends as it would have without the park.
            context.rax = EINTR;
            saved.context.rax = EINTR;
            (made, next) = (true, next + 3);
        }
        saved.context.rip = next;
        context.rip = if made { site + 2 } else { site };
        if !regs.is_null() {
            // SAFETY: the gate's frame, on this thread's stack above this handler.
            let regs = unsafe { &*regs };
            saved.whole = 1;
            context.rsp = regs.rsp;
            context.rbx = regs.rbx;
            context.rbp = regs.rbp;
            context.r8_15[4..].copy_from_slice(&regs.r12_15);
            [context.rdi, context.rsi, context.rdx] = [regs.args[0], regs.args[1], regs.args[2]];
            [context.r8_15[2], context.r8_15[0], context.r8_15[1]] =
                [regs.args[3], regs.args[4], regs.args[5]];
            if !made {
                context.rax = regs.rax;
            }
        }
        saved.shown_rip = context.rip;
        saved.shown_rsp = context.rsp;
        if saved.trapped == 1 {
            // The call's address, which handlers compare with the frame's (Chromium's do, and so Firefox's).
            (info.pid, info.uid) = (context.rip as i32, (context.rip >> 32) as u32);
        }
    }
    if action.flags & SA_RESETHAND != 0 {
        reset(signal, action);
    }
    words.handlers = words.handlers.wrapping_add(1);
    // The handler may make calls, or never come back.
    words.in_holo = 0;
    words.entering = 0;
    compiler_fence(Ordering::SeqCst);
    if words.held != 0 {
        words.held = 0;
        let mask = words.held_mask;
        // SAFETY: a mask of ours. What was held comes here, as if at the handler's first instruction.
        unsafe { sys!(sysno::rt_sigprocmask, SIG_SETMASK, &raw const mask, 0, 8) };
    }
    action.handler
}

/// If the thread was in the entry for another signal, puts this one off until that one is dealt with.
fn is_busy(info: &SigInfo, frame: &mut UContext, saved: &mut Saved, words: &mut Tls) -> bool {
    let rip = frame.context.rip;
    let (flagged, left, end) = (
        (&raw const holo_signal_flagged) as u64,
        (&raw const holo_signal_left) as u64,
        (&raw const holo_restorer_end) as u64,
    );
    let entering = (holo_signal_entry as *const () as u64..flagged).contains(&rip);
    let decides = entering || saved.previous != 0;
    let leaves = (left..end).contains(&rip);
    if !decides && !leaves {
        return false;
    }
    let all = !0u64;
    // SAFETY: a mask of ours. Blocked first: with `SA_NODEFER` it would come at once.
    unsafe { sys!(sysno::rt_sigprocmask, SIG_SETMASK, &raw const all, 0, 8) };
    raise_now(info);
    if decides {
        words.held_mask = frame.mask;
        words.held = 1;
    }
    if entering {
        saved.previous |= 2;
    }
    frame.mask = all;
    true
}

/// Second half: the handler returned.
///
/// # Safety
/// By the entry only.
unsafe extern "C" fn signal_after(frame: *mut UContext, saved: *const Saved) {
    // SAFETY: as in the first half.
    let (frame, saved, words) = unsafe { (&mut *frame, &*saved, &mut *tls()) };
    words.entering = 1;
    compiler_fence(Ordering::SeqCst);
    words.in_holo = saved.in_holo;
    words.regs = saved.regs;
    words.last_nr = saved.last_nr;
    let context = &mut frame.context;
    if saved.shown_rip == 0 || context.rip != saved.shown_rip || context.rsp != saved.shown_rsp {
        // Untouched by us, or the handler sent the thread elsewhere.
        if saved.shown_rip != 0 {
            words.in_holo = 0;
        }
        return;
    }
    if saved.whole == 1 {
        let result = context.rax;
        *context = saved.context;
        if saved.trapped == 1 {
            context.rax = result;
        }
    } else {
        context.rip = saved.context.rip;
    }
    changes::again(&frame.context, words);
}

fn unsafe_copy(info: &SigInfo) -> [u64; 16] {
    // SAFETY: both are 128 bytes of plain data.
    unsafe { core::mem::transmute_copy(info) }
}

/// `SA_RESETHAND`, which the kernel was not told of: as there, all but the handler stays.
fn reset(signal: i32, action: Action) {
    install(signal, &Action { handler: SIG_DFL, ..action });
}

/// Makes sure that the kernel has the default action too.
fn set_default(signal: i32) {
    let _held = Lock::take();
    if ACTIONS.get(signal as usize).handler == SIG_DFL {
        let action = Action::default();
        // SAFETY: sets the default action.
        unsafe { sys!(sysno::rt_sigaction, signal, &raw const action, 0, 8) };
    }
}

/// Keeps the table and the kernel's actions in step. Only held where signals are deferred or blocked, for a
/// few instructions and one call; a child of `fork` may find it held by nobody, so waiting is bounded.
pub(crate) struct Lock;

static LOCK: AtomicU32 = AtomicU32::new(0);

impl Lock {
    pub(crate) fn take() -> Self {
        const TRIES: u32 = 10_000;
        for _ in 0..TRIES {
            if LOCK.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                break;
            }
            // SAFETY: no memory is passed.
            unsafe { sys!(sysno::sched_yield) };
        }
        Self
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        LOCK.store(0, Ordering::Release);
    }
}

fn raise_now(info: &SigInfo) {
    let copy = *info;
    // SAFETY: queues a signal to this thread.
    unsafe {
        sys!(sysno::rt_tgsigqueueinfo, sys!(sysno::getpid), sys!(sysno::gettid), copy.signo, &raw const copy)
    };
}

/// Raises the deferred signal and puts back the mask, at a point where it can be delivered.
///
/// # Safety
/// On a thread that is leaving the dispatcher; `regs` is its frame.
pub(crate) unsafe extern "C" fn raise_deferred(regs: *mut Regs) {
    // SAFETY: own thread's words.
    let words = unsafe { &mut *tls() };
    words.regs = regs;
    let info: SigInfo = {
        let copy = words.info;
        // SAFETY: both are 128 bytes of plain data.
        unsafe { core::mem::transmute(copy) }
    };
    let mask = words.mask;
    words.deferred = 0;
    raise_now(&info);
    let args = [SIG_SETMASK, (&raw const mask) as u64, 0, 8, 0, 0];
    // SAFETY: the mask outlives the call. The signal arrives at this call, where the entry runs the handler.
    unsafe { holo_block(sysno::rt_sigprocmask, &raw const args) };
}

/// Does the deferred signal run a handler of the application?
pub(crate) fn deferred_is_handled() -> bool {
    // SAFETY: own thread's words.
    let words = unsafe { &*tls() };
    let info: SigInfo = {
        let copy = words.info;
        // SAFETY: both are 128 bytes of plain data.
        unsafe { core::mem::transmute(copy) }
    };
    !is_park(info.signo, &info) && ACTIONS.get(info.signo.clamp(1, 64) as usize).is_handler()
}

/// `rt_sigaction` of the application.
pub(crate) fn on_sigaction(regs: &Regs) -> Verdict {
    const EINVAL: i64 = -22;
    let [signal, new_at, old_at, bytes, ..] = regs.args;
    let number = signal as i32;
    if bytes != 8 || !(1..=64).contains(&number) || number == 9 || number == 19 {
        return Verdict::Forward;
    }
    let new = match new_at {
        0 => None,
        at => match user::read::<Action>(at, regs.rsp) {
            Ok(action) => Some(action),
            Err(errno) => return Verdict::Handled(errno),
        },
    };
    // SAFETY: own thread's words.
    if in_sharing_child(unsafe { &mut *tls() }) {
        return in_child(number, new.as_ref(), old_at, regs.rsp);
    }
    let old = ACTIONS.get(number as usize);
    if let Some(new) = new {
        let failed = install(number, &new);
        if failed < 0 {
            return Verdict::Handled(if failed == 0 { EINVAL } else { failed });
        }
    }
    if old_at != 0 && user::write(old_at, &old, regs.rsp).is_err() {
        return Verdict::Handled(user::EFAULT);
    }
    Verdict::Handled(0)
}

/// A child that shares our memory has actions of its own in the kernel: the table is not about them.
fn in_child(signal: i32, new: Option<&Action>, old_at: u64, rsp: u64) -> Verdict {
    let mut old = Action::default();
    // It is trapped like its parent, until it starts another program.
    let new = new.filter(|_| signal != traps::SIGNAL || !traps::on());
    let at = new.map_or(0, |action| core::ptr::from_ref(action) as u64);
    // SAFETY: the application's action, and one of ours.
    let failed = unsafe { sys!(sysno::rt_sigaction, signal, at, &raw mut old, 8) };
    if failed < 0 {
        return Verdict::Handled(failed);
    }
    if old.handler == holo_signal_entry as *const () as u64 {
        old = ACTIONS.get(signal as usize);
    }
    if old_at != 0 && user::write(old_at, &old, rsp).is_err() {
        return Verdict::Handled(user::EFAULT);
    }
    Verdict::Handled(0)
}

/// The application is about to make a thread or process.
pub(crate) fn on_clone(flags: u64) {
    // SAFETY: own thread's words.
    let words = unsafe { &mut *tls() };
    if in_sharing_child(words) {
        return;
    }
    if is_vfork(flags) {
        // SAFETY: no memory is passed.
        words.sharer = unsafe { sys!(sysno::gettid) }.cast_unsigned();
    }
}

/// Does a child of these `clone` flags share our memory, and the words of its maker?
pub(crate) fn is_vfork(flags: u64) -> bool {
    const CLONE_VM: u64 = 0x100;
    const CLONE_SIGHAND: u64 = 0x800;
    const CLONE_SETTLS: u64 = 0x8_0000;
    flags & (CLONE_VM | CLONE_SIGHAND | CLONE_SETTLS) == CLONE_VM
}

/// Is this a `vfork` child, which shares its parent's memory but not its descriptors?
#[inline]
pub(crate) fn is_sharing_child() -> bool {
    // SAFETY: own thread's words.
    in_sharing_child(unsafe { &mut *tls() })
}

/// Is this a `vfork` child, and not the thread that the words belong to?
fn in_sharing_child(words: &mut Tls) -> bool {
    if words.sharer == 0 {
        return false;
    }
    // SAFETY: no memory is passed.
    if unsafe { sys!(sysno::gettid) }.cast_unsigned() != words.sharer {
        return true;
    }
    words.sharer = 0;
    false
}

/// In a new process of one thread: no signal has a handler of the application any more, as after `exec`.
pub(crate) fn clear_handlers() {
    // Nobody who held it is here.
    LOCK.store(0, Ordering::Relaxed);
    for signal in (1..=64).filter(|signal| ACTIONS.get(*signal as usize).is_handler()) {
        install(signal, &Action::default());
    }
}

fn install(signal: i32, new: &Action) -> i64 {
    let _held = Lock::take();
    ACTIONS.set(signal as usize, *new);
    if signal == PARK_SIGNAL {
        return 0;
    }
    let kernel = if signal == traps::SIGNAL && traps::on() { for_traps(new) } else { for_kernel(new) };
    // SAFETY: a complete action; a handler and its restorer are ours.
    unsafe { sys!(sysno::rt_sigaction, signal, &raw const kernel, 0, 8) }
}

fn for_kernel(action: &Action) -> Action {
    let entry = holo_signal_entry as *const () as u64;
    let mut kernel = action.for_kernel(entry, holo_restorer as *const () as u64, PARK_SIGNAL);
    kernel.mask &= !kept();
    kernel
}

/// The action for the signal of trapped calls: always a handler, and never blocked.
fn for_traps(action: &Action) -> Action {
    let own = own();
    let mut kernel = for_kernel(if action.is_handler() { action } else { &own });
    kernel.flags |= SA_NODEFER;
    kernel
}

/// Signals that stay deliverable whatever the application blocks.
static KEPT: AtomicU64 = AtomicU64::new(1 << (PARK_SIGNAL - 1));

/// They, as a mask.
pub(crate) fn kept() -> u64 {
    KEPT.load(Ordering::Relaxed)
}

/// Traps are on: their signal is always handled and never blocked.
pub(crate) fn keep_traps() {
    let mask = 1u64 << (traps::SIGNAL - 1);
    KEPT.fetch_or(mask, Ordering::Relaxed);
    install(traps::SIGNAL, &ACTIONS.get(traps::SIGNAL as usize));
    // SAFETY: unblocks one signal.
    unsafe { sys!(sysno::rt_sigprocmask, 1, &raw const mask, 0, 8) };
}

/// They are not, after all.
pub(crate) fn drop_traps() {
    KEPT.fetch_and(!(1u64 << (traps::SIGNAL - 1)), Ordering::Relaxed);
    install(traps::SIGNAL, &ACTIONS.get(traps::SIGNAL as usize));
}

/// Takes a signal back for which libc installed a handler that was not seen (way in: symbols).
pub(crate) fn take_back(signal: i32) {
    let mut now = Action::default();
    // SAFETY: reads one action.
    unsafe { sys!(sysno::rt_sigaction, signal, 0, &raw mut now, 8) };
    if !now.is_handler() || now.handler == holo_signal_entry as *const () as u64 {
        return;
    }
    ACTIONS.set(signal as usize, now);
    if signal == PARK_SIGNAL {
        take_park();
    } else {
        let kernel = for_kernel(&now);
        // SAFETY: a complete action whose handler and restorer are ours.
        unsafe { sys!(sysno::rt_sigaction, signal, &raw const kernel, 0, 8) };
    }
}

/// Takes the park signal, and notes what was inherited.
pub(crate) fn start() {
    for signal in 1..=64usize {
        let mut action = Action::default();
        // SAFETY: writes one action.
        unsafe { sys!(sysno::rt_sigaction, signal, 0, &raw mut action, 8) };
        ACTIONS.set(signal, action);
    }
    take_park();
    block_park(false);
}

/// A program that does not join: a park signal that was held over `exec` (see there) is dropped.
pub(crate) fn drop_park() {
    let mut pending = 0u64;
    let one = 1u64 << (PARK_SIGNAL - 1);
    let now = [0u64; 2];
    // SAFETY: masks and a time-out of ours.
    unsafe {
        sys!(sysno::rt_sigpending, &raw mut pending, 8);
        if pending & one != 0 {
            sys!(sysno::rt_sigtimedwait, &raw const one, 0, now.as_ptr(), 8);
        }
    }
    block_park(false);
}

/// Blocks or unblocks the park signal in this thread, as only `exec` may.
pub(crate) fn block_park(block: bool) {
    let mask = 1u64 << (PARK_SIGNAL - 1);
    // SAFETY: a mask of one signal; `SIG_BLOCK` is 0, `SIG_UNBLOCK` 1.
    unsafe { sys!(sysno::rt_sigprocmask, u64::from(!block), &raw const mask, 0, 8) };
}

/// Nothing of ours comes on alternate stacks any more.
pub(crate) fn leave_stacks() {
    take_park();
    if traps::on() {
        install(traps::SIGNAL, &ACTIONS.get(traps::SIGNAL as usize));
    }
}

/// The action of a signal that is ours alone.
fn own() -> Action {
    let on_stack = if altstack::in_use() { SA_ONSTACK } else { 0 };
    Action { handler: SIG_IGN + 1, flags: on_stack | SA_RESTART, restorer: 0, mask: !0 }
}

fn take_park() {
    let mut kernel = for_kernel(&own());
    kernel.mask = !0;
    // SAFETY: installs our own entry.
    unsafe { sys!(sysno::rt_sigaction, PARK_SIGNAL, &raw const kernel, 0, 8) };
}
