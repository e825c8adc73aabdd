//! Signal actions, masks, and waiting for signals: libc's structures translated to the kernel's.

use super::{gate, table, with_errno};
use crate::signals::holo_restorer;
use core::sync::atomic::{AtomicU64, Ordering};
use holo_abi::sysno as nr;
use holo_track::actions::{Action, SA_RESETHAND, SA_RESTORER, SIG_DFL, SIG_IGN};
use libc::{c_int, sighandler_t, siginfo_t, sigset_t, timespec};

/// Signals that `siginterrupt` made interrupt calls.
static INTERRUPTING: AtomicU64 = AtomicU64::new(0);

const SIG_ERR: sighandler_t = !0;
const SIG_HOLD: sighandler_t = 2;
const SIG_BLOCK: c_int = 0;
const SIG_UNBLOCK: c_int = 1;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_INTERRUPT: u64 = 0x2000_0000;
/// libc's own: cancellation and `setuid` in threads. Programs can neither handle nor block them.
const LIBC_SIGNALS: u64 = 3 << 31;
const MASK_BYTES: u64 = 8;

table! {
    sigaction(number: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int = own(
        act(number, new, old));
    __sigaction(number: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int = own(
        act(number, new, old));
    signal(number: c_int, handler: sighandler_t) -> sighandler_t = own(bsd(number, handler));
    ssignal(number: c_int, handler: sighandler_t) -> sighandler_t = own(bsd(number, handler));
    bsd_signal(number: c_int, handler: sighandler_t) -> sighandler_t = own(bsd(number, handler));
    sysv_signal(number: c_int, handler: sighandler_t) -> sighandler_t = own(sysv(number, handler));
    __sysv_signal(number: c_int, handler: sighandler_t) -> sighandler_t = own(sysv(number, handler));
    sigset(number: c_int, handler: sighandler_t) -> sighandler_t = own(set(number, handler));
    sigignore(number: c_int) -> c_int = own(if simple(number, SIG_IGN as sighandler_t, 0) == SIG_ERR { -1 } else { 0 });
    siginterrupt(number: c_int, on: c_int) -> c_int = own(interrupt(number, on != 0));

    sigprocmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int = own(
        with_errno(mask(how, new, old)) as c_int);
    pthread_sigmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int = own(
        -mask(how, new, old) as c_int);
    sigsuspend(mask: *const sigset_t) -> c_int = wait(nr::rt_sigsuspend, mask, MASK_BYTES);
    __sigsuspend(mask: *const sigset_t) -> c_int = wait(nr::rt_sigsuspend, mask, MASK_BYTES);
    pause() -> c_int = wait(nr::pause);
    sigpause(mask: c_int) -> c_int = own(suspend_with(mask as u32 as u64));
    __xpg_sigpause(number: c_int) -> c_int = own(suspend_without(number));
    __sigpause(what: c_int, is_signal: c_int) -> c_int = own(
        if is_signal != 0 { suspend_without(what) } else { suspend_with(what as u32 as u64) });

    sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, time: *const timespec) -> c_int = own(
        with_errno(wait_for(set, info, time)) as c_int);
    sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int = own(
        with_errno(wait_for(set, info, core::ptr::null())) as c_int);
    sigwait(set: *const sigset_t, number: *mut c_int) -> c_int = own(wait_one(set, number));
}

fn invalid() -> c_int {
    with_errno(-i64::from(libc::EINVAL)) as c_int
}

fn bit(signal: c_int) -> u64 {
    1u64.wrapping_shl((signal - 1) as u32)
}

fn valid(signal: c_int) -> bool {
    (1..=64).contains(&signal) && bit(signal) & LIBC_SIGNALS == 0
}

unsafe fn set_action(signal: c_int, new: Option<&Action>, old: &mut Action) -> c_int {
    let at = new.map_or(0, |action| core::ptr::from_ref(action) as u64);
    // SAFETY: actions of the kernel's shape.
    let ret = unsafe { gate(nr::rt_sigaction, &[signal as u64, at, core::ptr::from_mut(old) as u64, 8]) };
    with_errno(ret) as c_int
}

fn first_word(set: &sigset_t) -> u64 {
    // SAFETY: a signal set is 1024 bits; the kernel has 64.
    unsafe { core::ptr::from_ref(set).cast::<u64>().read() }
}

unsafe fn act(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    if !valid(signal) {
        return invalid();
    }
    // SAFETY: the caller's structures, which libc reads and writes in the same way.
    unsafe {
        let new = new.as_ref().map(|new| Action {
            handler: new.sa_sigaction as u64,
            flags: new.sa_flags as u32 as u64 | SA_RESTORER,
            restorer: holo_restorer as *const () as u64,
            mask: first_word(&new.sa_mask),
        });
        let mut before = Action::default();
        if set_action(signal, new.as_ref(), &mut before) < 0 {
            return -1;
        }
        if let Some(old) = old.as_mut() {
            old.sa_sigaction = before.handler as usize;
            old.sa_flags = before.flags as c_int;
            old.sa_mask = core::mem::zeroed();
            (&raw mut old.sa_mask).cast::<u64>().write(before.mask);
            old.sa_restorer = core::mem::transmute::<u64, Option<extern "C" fn()>>(before.restorer);
        }
        0
    }
}

/// An action without anything special; returns the handler before, or `SIG_ERR`.
unsafe fn simple_with(signal: c_int, handler: sighandler_t, flags: u64, mask: u64) -> sighandler_t {
    if !valid(signal) || handler == SIG_ERR {
        invalid();
        return SIG_ERR;
    }
    let restorer = holo_restorer as *const () as u64;
    let new = Action { handler: handler as u64, flags: flags | SA_RESTORER, restorer, mask };
    let mut old = Action::default();
    // SAFETY: a complete action.
    if unsafe { set_action(signal, Some(&new), &mut old) } < 0 {
        SIG_ERR
    } else {
        old.handler as sighandler_t
    }
}

unsafe fn simple(signal: c_int, handler: sighandler_t, flags: u64) -> sighandler_t {
    // SAFETY: as above.
    unsafe { simple_with(signal, handler, flags, 0) }
}

unsafe fn bsd(signal: c_int, handler: sighandler_t) -> sighandler_t {
    let interrupts = valid(signal) && INTERRUPTING.load(Ordering::Relaxed) & bit(signal) != 0;
    // SAFETY: a complete action.
    unsafe { simple_with(signal, handler, if interrupts { 0 } else { SA_RESTART }, bit(signal)) }
}

unsafe fn sysv(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: a complete action.
    unsafe { simple(signal, handler, SA_RESETHAND | SA_NODEFER | SA_INTERRUPT) }
}

/// `sigset`: an action and the signal's blocking in one.
unsafe fn set(signal: c_int, handler: sighandler_t) -> sighandler_t {
    if !valid(signal) {
        invalid();
        return SIG_ERR;
    }
    // SAFETY: masks and actions of ours.
    unsafe {
        let (one, mut before) = (bit(signal), 0u64);
        let how = if handler == SIG_HOLD { SIG_BLOCK } else { SIG_UNBLOCK };
        let old = if handler == SIG_HOLD {
            let mut old = Action::default();
            if set_action(signal, None, &mut old) < 0 {
                return SIG_ERR;
            }
            old.handler as sighandler_t
        } else {
            simple(signal, handler, 0)
        };
        if old == SIG_ERR {
            return SIG_ERR;
        }
        gate(nr::rt_sigprocmask, &[how as u64, (&raw const one) as u64, (&raw mut before) as u64, 8]);
        if before & one != 0 { SIG_HOLD } else { old }
    }
}

unsafe fn interrupt(signal: c_int, on: bool) -> c_int {
    if !valid(signal) {
        return invalid();
    }
    let mut action = Action::default();
    // SAFETY: actions of ours.
    unsafe {
        if set_action(signal, None, &mut action) < 0 {
            return -1;
        }
        if on {
            INTERRUPTING.fetch_or(bit(signal), Ordering::Relaxed);
            action.flags &= !SA_RESTART;
        } else {
            INTERRUPTING.fetch_and(!bit(signal), Ordering::Relaxed);
            action.flags |= SA_RESTART;
        }
        if action.handler == SIG_DFL {
            action.restorer = holo_restorer as *const () as u64;
        }
        set_action(signal, Some(&action), &mut Action::default())
    }
}

/// `rt_sigprocmask`; libc's own signals are never blocked.
unsafe fn mask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> i64 {
    // SAFETY: the caller's sets; the kernel writes the first word of `old`, as for libc.
    unsafe {
        let kept = if how == SIG_UNBLOCK { !0 } else { !LIBC_SIGNALS };
        let wanted = new.as_ref().map(|new| first_word(new) & kept);
        let at = wanted.as_ref().map_or(0, |mask| core::ptr::from_ref(mask) as u64);
        gate(nr::rt_sigprocmask, &[how as u64, at, old as u64, MASK_BYTES])
    }
}

unsafe fn suspend_with(mask: u64) -> c_int {
    // SAFETY: a mask of ours.
    unsafe { table!(@wait nr::rt_sigsuspend, &raw const mask, MASK_BYTES) }
}

unsafe fn suspend_without(signal: c_int) -> c_int {
    if !(1..=64).contains(&signal) {
        return invalid();
    }
    let mut now = 0u64;
    // SAFETY: a mask of ours.
    unsafe {
        gate(nr::rt_sigprocmask, &[SIG_BLOCK as u64, 0, (&raw mut now) as u64, MASK_BYTES]);
        suspend_with(now & !bit(signal))
    }
}

/// `rt_sigtimedwait`; as libc does, a signal from `tgkill` is reported as from a user.
unsafe fn wait_for(set: *const sigset_t, info: *mut siginfo_t, time: *const timespec) -> i64 {
    // SAFETY: the caller's structures.
    unsafe {
        let ret =
            super::gate_cancellable(nr::rt_sigtimedwait, &[set as u64, info as u64, time as u64, MASK_BYTES]);
        if ret >= 0
            && let Some(info) = info.as_mut()
            && info.si_code == libc::SI_TKILL
        {
            info.si_code = libc::SI_USER;
        }
        ret
    }
}

/// `sigwait` returns its error, and is not interrupted.
unsafe fn wait_one(set: *const sigset_t, signal: *mut c_int) -> c_int {
    loop {
        // SAFETY: the caller's set.
        match unsafe { wait_for(set, core::ptr::null_mut(), core::ptr::null()) } {
            ret if ret == -i64::from(libc::EINTR) => {}
            ret if ret < 0 => return -ret as c_int,
            ret => {
                // SAFETY: the caller's word.
                unsafe { *signal = ret as c_int };
                return 0;
            }
        }
    }
}
