//! Calls that make processes and threads: what of libholo's must not reach a child, or must.

use crate::dispatch::Verdict;
use crate::{descriptors, filters, late, members, signals, traps, user};
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_sys::sys;

/// Handlers of the child are the default ones.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// A child that shares our memory must not be taken for us; one of a trapped call is trapped too.
pub(crate) fn on_clone(regs: &mut Regs) -> Verdict {
    const VFORK_FLAGS: u64 = 0x4100;
    const CLONE_VM: u64 = 0x100;
    const CLONE_FILES: u64 = 0x400;
    const CLONE_THREAD: u64 = 0x1_0000;
    /// The child has thread-local memory of its own, which begins with its address if libc made it.
    const CLONE_SETTLS: u64 = 0x8_0000;
    let mut flags = match regs.rax.cast_signed() {
        sysno::clone => regs.args[0],
        sysno::clone3 => user::read::<u64>(regs.args[0], regs.rsp).unwrap_or(0),
        sysno::vfork => VFORK_FLAGS,
        _ => 0,
    };
    // Browsers' sandboxes give such a child a piece of their stack, in which our words are whatever is there.
    if regs.rax.cast_signed() == sysno::clone
        && flags & (CLONE_SETTLS | CLONE_THREAD | VFORK_FLAGS) == CLONE_SETTLS | VFORK_FLAGS
        && user::read::<u64>(regs.args[4], regs.rsp) != Ok(regs.args[4])
    {
        flags &= !CLONE_SETTLS;
        regs.args[0] = flags;
    }
    if flags & CLONE_THREAD == 0 {
        members::makes();
    }
    if flags & CLONE_VM == 0 {
        late::wait();
    }
    // Descriptors without our memory. Memory without our descriptors is a `vfork`, which `signals` knows, or rare.
    let shares = flags & (CLONE_VM | CLONE_FILES);
    if shares == CLONE_FILES || shares == CLONE_VM && !signals::is_vfork(flags) {
        descriptors::share();
    }
    if !filters::on() {
        signals::on_clone(flags);
    }
    if traps::on()
        && let Some(raw) = holo_sys::traps::child_raw(regs.raw)
    {
        regs.raw = raw;
    }
    if flags & CLONE_CLEAR_SIGHAND != 0 && regs.rax.cast_signed() == sysno::clone3 && !filters::on() {
        return without_handlers(regs);
    }
    Verdict::Forward
}

/// A child without its parent's handlers (`CLONE_CLEAR_SIGHAND`) would be one without ours: it is made with all, and gives up the
/// application's by itself. One that shares memory or has a stack of its own does not come back here: it gets the answer of an
/// older kernel, and libraries know another way then.
fn without_handlers(regs: &Regs) -> Verdict {
    const CLONE_VM: u64 = 0x100;
    const CLONE_SIGHAND: u64 = 0x800;
    const EINVAL: i64 = -22;
    /// `struct clone_args`: where its stack is, and words that we take.
    const STACK: usize = 5;
    const WORDS: usize = 16;
    let bytes = regs.args[1];
    let mut words = [0u64; WORDS];
    if !bytes.is_multiple_of(8) || bytes as usize > WORDS * 8 {
        return Verdict::Handled(EINVAL);
    }
    for (index, word) in words.iter_mut().enumerate().take(bytes as usize / 8) {
        match user::read::<u64>(regs.args[0] + index as u64 * 8, regs.rsp) {
            Ok(read) => *word = read,
            Err(errno) => return Verdict::Handled(errno),
        }
    }
    if words[0] & (CLONE_VM | CLONE_SIGHAND) != 0 || words[STACK] != 0 {
        return Verdict::Handled(EINVAL);
    }
    words[0] &= !CLONE_CLEAR_SIGHAND;
    // SAFETY: the words outlive the call; the child goes on here, in memory of its own.
    let made = unsafe { sys!(sysno::clone3, words.as_ptr(), bytes) };
    if made == 0 {
        signals::clear_handlers();
        members::enter();
        traps::enter();
    }
    Verdict::Handled(made)
}
