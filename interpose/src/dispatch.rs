//! The dispatcher: what happens to each call that the gate does not pass at once.

use crate::{
    aio, altstack, changes, clones, exec, filters, inodes, ipc, late, members, moves, named, owners, signals,
    socket_waits, start, trace, transfers, traps, user, waits,
};
use core::sync::atomic::Ordering;
use holo_abi::control::exiting;
use holo_abi::sysno;
use holo_sys::gate::{CLASS, PLAIN, Regs, SLOW};
use holo_sys::tls::tls;

const ENOSYS: i64 = -38;
const EPROTONOSUPPORT: i64 = -93;
const IPPROTO_MPTCP: u64 = 262;
const EINVAL: i64 = -22;
const MADV_WIPEONFORK: u64 = 18;
/// `MADV_REMOVE`, and advices that stay with a zone: `MADV_DONTFORK` to `MADV_KEEPONFORK`.
const FLAG_ADVICES: core::ops::RangeInclusive<u64> = 9..=19;
/// Those about the order in which memory is read.
const ORDER_ADVICES: core::ops::RangeInclusive<u64> = 0..=2;
/// `mseal`, which no libc has a name for yet.
const MSEAL: i64 = 462;

/// What becomes of a call.
pub(crate) enum Verdict {
    /// It is made in place, with the registers as they are now.
    Forward,
    /// This is its result.
    Handled(i64),
}

const PTRACE_TRACEME: u64 = 0;

/// Calls that need the dispatcher; all others are made in place at once.
const SLOW_CALLS: &[i64] = &[
    sysno::ptrace,
    sysno::chown,
    sysno::lchown,
    sysno::fchown,
    sysno::fchownat,
    sysno::setuid,
    sysno::setgid,
    sysno::setreuid,
    sysno::setregid,
    sysno::setresuid,
    sysno::setresgid,
    sysno::rt_sigaction,
    sysno::rt_sigprocmask,
    sysno::rt_sigsuspend,
    sysno::rt_sigtimedwait,
    sysno::poll,
    sysno::ppoll,
    sysno::select,
    sysno::pselect6,
    sysno::epoll_wait,
    sysno::epoll_pwait,
    sysno::epoll_pwait2,
    sysno::futex,
    sysno::nanosleep,
    sysno::clock_nanosleep,
    sysno::semtimedop,
    sysno::io_getevents,
    sysno::io_pgetevents,
    sysno::io_setup,
    sysno::io_submit,
    sysno::io_destroy,
    sysno::recvmmsg,
    sysno::execve,
    sysno::execveat,
    sysno::exit,
    sysno::exit_group,
    sysno::getppid,
    sysno::socket,
    sysno::setsockopt,
    sysno::madvise,
    sysno::rseq,
    sysno::io_uring_setup,
    sysno::clone,
    sysno::clone3,
    sysno::fork,
    sysno::vfork,
    sysno::set_robust_list,
    sysno::prctl,
    sysno::seccomp,
    sysno::semget,
    sysno::msgget,
    sysno::mremap,
    sysno::userfaultfd,
    sysno::ioctl,
    sysno::mlock,
    sysno::mlock2,
    sysno::munlock,
    sysno::mlockall,
    sysno::munlockall,
    MSEAL,
    sysno::mq_notify,
    sysno::unshare,
    sysno::setns,
    sysno::sigaltstack,
];

/// Fills the gate's table; `trace` sends every call through the dispatcher, to be counted.
pub(crate) fn classify(trace: bool) {
    // SAFETY: called by the constructor, before anything is patched, with one thread.
    unsafe {
        let class = &raw mut CLASS;
        for nr in 0..512 {
            (*class)[nr] = if trace { SLOW } else { PLAIN };
        }
        for nr in SLOW_CALLS {
            (*class)[*nr as usize] = SLOW;
        }
        // The stack pointer must be exact at the call itself, and the frame is not ours to look at.
        (*class)[sysno::rt_sigreturn as usize] = PLAIN;
    }
}

// The gate's hidden name for it.
core::arch::global_asm!(
    ".globl holo_dispatch",
    ".hidden holo_dispatch",
    ".type holo_dispatch, @function",
    "holo_dispatch:",
    "jmp {dispatch}",
    dispatch = sym dispatch,
);

/// Called by the gate with the call's registers.
///
/// # Safety
/// By the gate only.
unsafe extern "C" fn dispatch(regs: *mut Regs) {
    // SAFETY: the gate's frame on this thread's stack, ours until we return.
    let regs = unsafe { &mut *regs };
    // Also what is left of one that a park cut short.
    changes::on_call(regs);
    // SAFETY: own thread's words.
    let words = unsafe { &mut *tls() };
    words.making = 0;
    let moved = transfers::take(words);
    if moved != 0 {
        let all = transfers::go_on(regs, moved);
        return regs.done(all);
    }
    trace::count(regs.rax);
    match decide(regs) {
        Verdict::Forward => regs.forward(),
        Verdict::Handled(ret) => regs.done(ret),
    }
}

fn decide(regs: &mut Regs) -> Verdict {
    match regs.rax.cast_signed() {
        sysno::rt_sigaction => signals::on_sigaction(regs),
        sysno::rt_sigprocmask => on_sigprocmask(regs),
        sysno::rt_sigsuspend => on_sigsuspend(regs),
        sysno::sigaltstack => altstack::on_sigaltstack(regs),
        // A process with a filter parks no more. Where that traps a call, the result is what the application's handler leaves in the
        // registers: those of its own call, not of one of ours.
        nr if filters::on() && is_made_for(nr) => Verdict::Forward,
        sysno::poll
        | sysno::ppoll
        | sysno::select
        | sysno::pselect6
        | sysno::epoll_wait
        | sysno::epoll_pwait
        | sysno::epoll_pwait2
        | sysno::futex
        | sysno::nanosleep
        | sysno::clock_nanosleep
        | sysno::rt_sigtimedwait
        | sysno::semtimedop
        | sysno::io_getevents
        | sysno::io_pgetevents
        | sysno::recvmmsg => waits::on_wait(regs),
        sysno::setsockopt => socket_waits::on_setsockopt(regs),
        nr if !filters::on() && socket_waits::concerns(nr) => socket_waits::on_call(regs),
        sysno::stat | sysno::fstat | sysno::lstat | sysno::newfstatat | sysno::statx | sysno::getdents64 => {
            inodes::on_call(regs)
        }
        sysno::io_setup => aio::on_setup(regs),
        sysno::io_submit => aio::on_submit(regs),
        sysno::io_destroy => aio::on_destroy(regs),
        sysno::semget | sysno::msgget => ipc::on_get(regs),
        sysno::mq_notify if !filters::on() => ipc::on_notify(regs),
        sysno::chown
        | sysno::lchown
        | sysno::fchown
        | sysno::fchownat
        | sysno::setuid
        | sysno::setgid
        | sysno::setreuid
        | sysno::setregid
        | sysno::setresuid
        | sysno::setresgid => owners::on_call(regs),
        sysno::execve => exec::on_exec(regs, 2),
        sysno::execveat => exec::on_exec(regs, 3),
        sysno::exit => {
            members::leaves();
            Verdict::Forward
        }
        sysno::exit_group => {
            if let Some(page) = start::control().filter(|_| !filters::on() && start::is_first()) {
                page.header.exiting.store(exiting(regs.args[0] as u8), Ordering::Relaxed);
            }
            trace::write_out();
            Verdict::Forward
        }
        sysno::getppid => shown_ppid(),
        // What the agent knows of the process is old, as after one was made.
        sysno::unshare | sysno::setns => {
            members::makes();
            Verdict::Forward
        }
        sysno::dup2 | sysno::dup3 => changes::on_dup(regs),
        sysno::close | sysno::close_range => changes::on_close(regs),
        sysno::fcntl => changes::on_fcntl(regs),
        sysno::rename | sysno::renameat | sysno::renameat2 => changes::on_rename(regs),
        nr if named::concerns(nr) => named::on_call(regs),
        sysno::madvise => on_madvise(regs.args[2]),
        sysno::mlock | sysno::mlock2 | sysno::munlock | sysno::mlockall | sysno::munlockall | MSEAL => {
            moves::advised();
            Verdict::Forward
        }
        sysno::mremap => moves::on_mremap(regs),
        sysno::userfaultfd => moves::on_userfaultfd(),
        sysno::ioctl if regs.args[1] as u32 == moves::USERFAULTFD_IOC_NEW => moves::on_userfaultfd(),
        sysno::rseq => {
            // SAFETY: own thread's words.
            let words = unsafe { &mut *tls() };
            let unregister = regs.args[2] & 1 != 0;
            words.rseq = if unregister { 0 } else { regs.args[0] };
            words.rseq_len_sig = regs.args[1] & 0xffff_ffff | regs.args[3] << 32;
            traps::enter();
            Verdict::Forward
        }
        // What libc does first in a new thread, and in the child of `fork`.
        sysno::set_robust_list => {
            if !filters::on() {
                members::enter();
            }
            traps::enter();
            Verdict::Forward
        }
        sysno::clone | sysno::clone3 | sysno::fork | sysno::vfork => clones::on_clone(regs),
        // As a kernel without it answers: what it knows of its flows cannot be captured; programs fall back to TCP.
        sysno::socket if regs.args[2] == IPPROTO_MPTCP => Verdict::Handled(EPROTONOSUPPORT),
        // As a kernel without it answers: there is one range per thread, but libc's calls are made from two places.
        sysno::prctl if regs.args[0] == traps::PR_DISPATCH => Verdict::Handled(EINVAL),
        sysno::ptrace if regs.args[0] == PTRACE_TRACEME && !filters::on() => filters::on_trace_me(regs),
        sysno::prctl | sysno::seccomp if filters::concerns(regs) => filters::on_filter(regs),
        sysno::io_uring_setup => {
            // Its rings hold requests in flight that cannot be captured; programs fall back to epoll.
            if let Some(page) = start::control() {
                page.header.uring_refused.store(1, Ordering::Relaxed);
            }
            Verdict::Handled(ENOSYS)
        }
        _ => Verdict::Forward,
    }
}

/// Is this a call that holo makes in place of the application?
fn is_made_for(nr: i64) -> bool {
    matches!(
        nr,
        sysno::poll
            | sysno::ppoll
            | sysno::select
            | sysno::pselect6
            | sysno::epoll_wait
            | sysno::epoll_pwait
            | sysno::epoll_pwait2
            | sysno::futex
            | sysno::nanosleep
            | sysno::clock_nanosleep
            | sysno::rt_sigtimedwait
            | sysno::semtimedop
            | sysno::io_getevents
            | sysno::io_pgetevents
            | sysno::recvmmsg
            | sysno::stat
            | sysno::fstat
            | sysno::lstat
            | sysno::newfstatat
            | sysno::statx
            | sysno::getdents64
    )
}

fn on_madvise(advice: u64) -> Verdict {
    late::wait();
    if advice == MADV_WIPEONFORK
        && let Some(page) = start::control()
    {
        page.header.wipe_on_fork.store(1, Ordering::Relaxed);
    }
    if FLAG_ADVICES.contains(&advice) || ORDER_ADVICES.contains(&advice) {
        moves::advised();
    }
    Verdict::Forward
}

/// The parent of the first process is not in the clone's namespace: it is shown as it was before the restore.
fn shown_ppid() -> Verdict {
    match start::control().map(|page| page.header.ppid.load(Ordering::Relaxed)) {
        None | Some(0) => Verdict::Forward,
        // A child that was forked has its parent in the namespace.
        Some(_) if !start::is_first() => Verdict::Forward,
        Some(id) => Verdict::Handled(i64::from(id)),
    }
}

/// The park signal stays deliverable whatever the application blocks.
fn on_sigprocmask(regs: &mut Regs) -> Verdict {
    let [how, set, old, bytes, ..] = regs.args;
    if set == 0 || how == 1 || bytes != 8 {
        return Verdict::Forward;
    }
    let Ok(wanted) = user::read::<u64>(set, regs.rsp) else { return Verdict::Forward };
    if wanted & signals::kept() == 0 {
        return Verdict::Forward;
    }
    let allowed = wanted & !signals::kept();
    let args = [how, (&raw const allowed) as u64, old, bytes, 0, 0];
    // Not a plain call: a signal that was deferred has blocked everything, so it must be delivered before
    // the mask is looked at or changed.
    Verdict::Handled(waits::until_done(sysno::rt_sigprocmask, || args))
}

fn on_sigsuspend(regs: &mut Regs) -> Verdict {
    let Ok(mask) = user::read::<u64>(regs.args[0], regs.rsp) else { return Verdict::Forward };
    let held = waits::Held::block(mask);
    if mask & signals::kept() == 0 && !held.is_any() {
        return Verdict::Forward;
    }
    let allowed = mask & !signals::kept();
    let args = [(&raw const allowed) as u64, regs.args[1], 0, 0, 0, 0];
    let ret = waits::until_done(sysno::rt_sigsuspend, || args);
    held.release();
    Verdict::Handled(ret)
}
