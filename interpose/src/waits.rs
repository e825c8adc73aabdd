//! Calls that wait with a relative time-out, or under a temporary signal mask.
//!
//! They are made from here in a loop, so that after a park they can be issued again with what is left of
//! their time-out. Calls without a time-out wait in place, in the trampoline, and are issued again there.

use crate::dispatch::Verdict;
use crate::{signals, user, vdso};
use holo_abi::sysno;
use holo_sys::frame::Context;
use holo_sys::gate::{DEFERRED, RESTART, Regs, holo_block};
use holo_sys::sys;
use holo_sys::tls::tls;
use holo_track::timeout::{Deadline, Timespec};

const EINTR: i64 = -4;
const FUTEX_CMD_MASK: u64 = !(128 | 256);
const FUTEX_WAIT: u64 = 0;
const TIMER_ABSTIME: u64 = 1;

/// Makes a call until it was not interrupted by a park; `args` is asked anew each time.
pub(crate) fn until_done(nr: i64, args: impl FnMut() -> [u64; 6]) -> i64 {
    until_done_since(nr, false, args)
}

/// The same for a thread that was `parked` in the application's call already.
pub(crate) fn until_done_since(nr: i64, mut parked: bool, mut args: impl FnMut() -> [u64; 6]) -> i64 {
    loop {
        let now = args();
        // SAFETY: the application's call with its own arguments, or copies of ours that outlive it.
        match unsafe { holo_block(nr, &raw const now) } {
            RESTART => parked = true,
            DEFERRED => {
                // One that came while the thread was parked in the call ends it; one before it does not.
                let ends = parked && signals::deferred_is_handled();
                // SAFETY: `regs` is the frame of the call that we are in.
                unsafe { signals::raise_deferred((*tls()).regs) };
                if ends {
                    return EINTR;
                }
            }
            ret => return ret,
        }
    }
}

/// Makes a call once; `None` if a park interrupted it.
pub(crate) fn until_parked(nr: i64, args: &[u64; 6]) -> Option<i64> {
    loop {
        // SAFETY: the application's call with its own arguments.
        match unsafe { holo_block(nr, core::ptr::from_ref(args)) } {
            RESTART => return None,
            // SAFETY: `regs` is the frame of the call that we are in.
            DEFERRED => unsafe { signals::raise_deferred((*tls()).regs) },
            ret => return Some(ret),
        }
    }
}

/// Does the kernel restart this call after a handler with `SA_RESTART`? These it never does.
pub(crate) fn restarts(nr: u64) -> bool {
    !matches!(
        nr.cast_signed(),
        sysno::poll
            | sysno::ppoll
            | sysno::select
            | sysno::pselect6
            | sysno::epoll_wait
            | sysno::epoll_pwait
            | sysno::epoll_pwait2
            | sysno::nanosleep
            | sysno::clock_nanosleep
            | sysno::pause
            | sysno::rt_sigsuspend
            | sysno::rt_sigtimedwait
            | sysno::semop
            | sysno::semtimedop
            | sysno::msgrcv
            | sysno::msgsnd
            | sysno::io_getevents
            | sysno::io_pgetevents
    )
}

/// Does the kernel make this call again whatever handler has run (`ERESTARTNOINTR`)? No signal ever ends these.
pub(crate) fn never_ends(context: &Context) -> bool {
    const LOCK_PI: u64 = 6;
    const WAIT_REQUEUE_PI: u64 = 11;
    const LOCK_PI2: u64 = 13;
    match context.rax.cast_signed() {
        sysno::clone | sysno::clone3 | sysno::fork | sysno::vfork | sysno::execve | sysno::execveat => true,
        sysno::futex => matches!(context.rsi & FUTEX_CMD_MASK, LOCK_PI | WAIT_REQUEUE_PI | LOCK_PI2),
        _ => false,
    }
}

/// Where a call has its time-out and its signal mask.
struct Shape {
    /// Index of the argument with the time-out.
    timeout: usize,
    /// How it is written.
    unit: Unit,
    /// Index of the argument with the mask, if it has one.
    mask: Option<Mask>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// An `int` of milliseconds; negative: none.
    Milliseconds,
    /// A pointer to a timespec that the kernel leaves alone.
    Timespec,
    /// A pointer to a timespec into which the kernel writes what is left.
    TimespecLeft,
    /// A pointer to a timeval into which the kernel writes what is left.
    TimevalLeft,
}

#[derive(Clone, Copy)]
enum Mask {
    /// The argument points to it.
    Direct(usize),
    /// The argument points to a pointer to it and its size.
    Pair(usize),
}

fn shape(nr: i64, args: &[u64; 6]) -> Option<Shape> {
    let shape = |timeout, unit, mask| Some(Shape { timeout, unit, mask });
    match nr {
        sysno::poll => shape(2, Unit::Milliseconds, None),
        sysno::epoll_wait => shape(3, Unit::Milliseconds, None),
        sysno::epoll_pwait => shape(3, Unit::Milliseconds, Some(Mask::Direct(4))),
        sysno::epoll_pwait2 => shape(3, Unit::Timespec, Some(Mask::Direct(4))),
        sysno::ppoll => shape(2, Unit::TimespecLeft, Some(Mask::Direct(3))),
        sysno::pselect6 => shape(4, Unit::TimespecLeft, Some(Mask::Pair(5))),
        sysno::select => shape(4, Unit::TimevalLeft, None),
        sysno::futex if args[1] & FUTEX_CMD_MASK == FUTEX_WAIT => shape(3, Unit::Timespec, None),
        sysno::nanosleep => shape(0, Unit::Timespec, None),
        sysno::clock_nanosleep if args[1] & TIMER_ABSTIME == 0 => shape(2, Unit::Timespec, None),
        sysno::rt_sigtimedwait => shape(2, Unit::Timespec, None),
        sysno::semtimedop => shape(3, Unit::Timespec, None),
        sysno::io_getevents => shape(4, Unit::Timespec, None),
        sysno::io_pgetevents => shape(4, Unit::Timespec, Some(Mask::Pair(5))),
        sysno::recvmmsg => shape(4, Unit::TimespecLeft, None),
        _ => None,
    }
}

/// Signals that a call blocks while it waits, and the thread does not: the thread does, too, until the call is done. A park interrupts
/// the call, and one of them that is pending would come in that moment.
pub(crate) struct Held(Option<u64>);

impl Held {
    /// `mask`: that of the call.
    pub(crate) fn block(mask: u64) -> Self {
        const SIG_BLOCK: u64 = 0;
        let mask = mask & !signals::kept();
        if mask == 0 {
            return Self(None);
        }
        let mut before = 0u64;
        // SAFETY: words of ours.
        unsafe { sys!(sysno::rt_sigprocmask, SIG_BLOCK, &raw const mask, &raw mut before, 8) };
        Self((mask & !before != 0).then_some(before))
    }

    pub(crate) fn is_any(&self) -> bool {
        self.0.is_some()
    }

    /// What came meanwhile comes now.
    pub(crate) fn release(self) {
        const SIG_SETMASK: u64 = 2;
        if let Some(before) = self.0 {
            until_done(sysno::rt_sigprocmask, || [SIG_SETMASK, (&raw const before) as u64, 0, 8, 0, 0]);
        }
    }
}

/// The mask of a call, and a copy without the park signal; what the copy is for depends on [`Mask`].
#[derive(Default)]
struct MaskCopy {
    given: u64,
    mask: u64,
    pair: [u64; 2],
}

impl MaskCopy {
    /// If the mask blocks the park signal, fills `self` and returns the argument to use instead.
    fn without_park(&mut self, mask: Mask, args: &[u64; 6], rsp: u64) -> Option<(usize, u64)> {
        let (index, at) = match mask {
            Mask::Direct(index) => (index, args[index]),
            Mask::Pair(index) => {
                if args[index] == 0 {
                    return None;
                }
                self.pair = user::read::<[u64; 2]>(args[index], rsp).ok()?;
                (index, self.pair[0])
            }
        };
        if at == 0 {
            return None;
        }
        self.given = user::read::<u64>(at, rsp).ok()?;
        if self.given & signals::kept() == 0 {
            return None;
        }
        self.mask = self.given & !signals::kept();
        let copy = (&raw const self.mask) as u64;
        self.pair[0] = copy;
        Some((index, if matches!(mask, Mask::Direct(_)) { copy } else { (&raw const self.pair) as u64 }))
    }
}

/// The dispatcher's part for every call in [`shape`].
pub(crate) fn on_wait(regs: &mut Regs) -> Verdict {
    let nr = regs.rax.cast_signed();
    let Some(shape) = shape(nr, &regs.args) else { return Verdict::Forward };
    let given = regs.args[shape.timeout];
    let mut args = regs.args;
    let mut copy = MaskCopy::default();
    let masked = shape.mask.and_then(|mask| copy.without_park(mask, &args, regs.rsp));
    if let Some((index, at)) = masked {
        args[index] = at;
    }
    let held = Held::block(copy.given);
    let timeout_ns = match shape.unit {
        Unit::Milliseconds => match i64::from(given as i32) {
            ms if ms > 0 => Some(ms * 1_000_000),
            _ => None,
        },
        Unit::Timespec | Unit::TimespecLeft if given != 0 => {
            user::read::<Timespec>(given, regs.rsp).ok().and_then(Timespec::to_ns)
        }
        Unit::TimevalLeft if given != 0 => user::read::<Timespec>(given, regs.rsp).ok().and_then(timeval_ns),
        Unit::Timespec | Unit::TimespecLeft | Unit::TimevalLeft => None,
    };
    // None, zero, or something that the kernel is to refuse: nothing to be shortened.
    let Some(timeout_ns) = timeout_ns.filter(|ns| *ns > 0) else {
        if masked.is_none() && !held.is_any() {
            return Verdict::Forward;
        }
        let ret = until_done(nr, || args);
        held.release();
        return Verdict::Handled(ret);
    };
    let ret = timed(nr, &mut args, &shape, timeout_ns, given, regs.rsp);
    held.release();
    Verdict::Handled(ret)
}

fn timeval_ns(time: Timespec) -> Option<i64> {
    // The kernel takes any number of microseconds here.
    (time.sec >= 0 && time.nsec >= 0)
        .then(|| time.sec.saturating_mul(1_000_000_000).saturating_add(time.nsec.saturating_mul(1000)))
}

fn timed(nr: i64, args: &mut [u64; 6], shape: &Shape, timeout_ns: i64, given: u64, rsp: u64) -> i64 {
    let deadline = Deadline::after(vdso::monotonic_ns(), timeout_ns);
    let mut left = Timespec::default();
    let mut rest = Timespec::default();
    let rest_at = match nr {
        sysno::nanosleep => Some(1),
        sysno::clock_nanosleep => Some(3),
        _ => None,
    };
    let rest_given = rest_at.map_or(0, |index: usize| args[index]);
    if let Some(index) = rest_at.filter(|_| rest_given != 0) {
        args[index] = (&raw mut rest) as u64;
    }
    let mut first = true;
    let ret = until_done(nr, || {
        let now = if first { None } else { Some(vdso::monotonic_ns()) };
        first = false;
        let left_ns = now.map_or(timeout_ns, |now| deadline.left_ns(now));
        match shape.unit {
            Unit::Milliseconds => {
                let ms = now.map_or(timeout_ns / 1_000_000, |now| deadline.left_ms(now));
                args[shape.timeout] = ms.cast_unsigned();
            }
            Unit::Timespec | Unit::TimespecLeft => {
                left = Timespec::from_ns(left_ns);
                args[shape.timeout] = (&raw const left) as u64;
            }
            Unit::TimevalLeft => {
                left = Timespec { sec: left_ns / 1_000_000_000, nsec: left_ns % 1_000_000_000 / 1000 };
                args[shape.timeout] = (&raw const left) as u64;
            }
        }
        *args
    });
    match shape.unit {
        // As the kernel does; it ignores a pointer that has become bad.
        Unit::TimespecLeft | Unit::TimevalLeft => {
            let _ = user::write(given, &left, rsp);
        }
        Unit::Milliseconds | Unit::Timespec => {}
    }
    if ret == EINTR && rest_given != 0 && user::write(rest_given, &rest, rsp).is_err() {
        return user::EFAULT;
    }
    ret
}
