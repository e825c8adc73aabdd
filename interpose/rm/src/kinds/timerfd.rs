//! Timer descriptors: kept as the instant of the next expiry on the application's own clock.

use super::clock;
use super::kernel::{checked, owned};
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;

const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
const SECOND_NS: i64 = 1_000_000_000;

/// What a timer counts down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Next {
    /// Not armed.
    Never,
    /// An instant of its clock, as the application reads that clock.
    At(i64),
    /// After so long: a relative time on the wall clock, which may be set meanwhile.
    In(i64),
}

/// A timerfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimerState {
    clock: i32,
    /// Expiries not yet read.
    ticks: u64,
    next: Next,
    interval_ns: i64,
    /// Flags of `timerfd_settime`.
    flags: i32,
}

impl TimerState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let shown = |name: &str| open.unsupported(format!("the kernel does not show `{name}`"));
        let clock = open.info.number("clockid:", 10).ok_or_else(|| shown("clockid"))? as i32;
        let flags = open.info.number("settime flags:", 8).ok_or_else(|| shown("settime flags"))? as i32;
        // A periodic timer that expired stands still until somebody looks; asking makes it go on, and the
        // expiries since then are then among its ticks. So the order is: ask first, then read the ticks.
        let left = get_time(open).on("reading timer", open.named())?;
        let info = open.info_now(dumping.cx.remote)?;
        let left_ns = nanoseconds(left.it_value);
        let absolute = flags & libc::TFD_TIMER_ABSTIME != 0;
        let next = match (left_ns, clock::is_wall(clock)) {
            (0, _) => Next::Never,
            (_, true) if !absolute => Next::In(left_ns),
            _ => Next::At(clock::now(dumping.cx.remote.face, clock).on("reading clock", clock)? + left_ns),
        };
        Ok(Self {
            clock,
            ticks: info.number("ticks:", 10).ok_or_else(|| shown("ticks"))?,
            next,
            interval_ns: nanoseconds(left.it_interval),
            flags,
        })
    }

    /// Arms the timer; as late as possible, since time runs.
    pub(crate) fn arm(&self, fd: &impl AsRawFd, pid: i32) -> io::Result<()> {
        let (flags, value) = match self.next {
            Next::Never => (self.flags, 0),
            Next::In(left) => (0, left.max(1)),
            // Our own reading of the clock differs from the clone's where its time namespace is another.
            Next::At(at) => {
                let ours = at - clock::offset(pid, self.clock)?;
                (self.flags | libc::TFD_TIMER_ABSTIME, ours.max(1))
            }
        };
        let armed = value != 0;
        set_time(fd, flags, value, self.interval_ns)?;
        if self.ticks == 0 {
            return Ok(());
        }
        // SAFETY: the request reads 8 bytes.
        let set = unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const self.ticks) };
        if set == 0 {
            return Ok(());
        }
        // Without that request: a timer that already expired so often.
        match self.next {
            Next::At(_) if self.interval_ns > 0 => {
                let past = self.interval_ns.saturating_mul(self.ticks.try_into().unwrap_or(i64::MAX));
                set_time(fd, flags, value.saturating_sub(past).max(1), self.interval_ns)
            }
            _ if !armed => set_time(fd, 0, 1, 0),
            Next::Never | Next::At(_) | Next::In(_) => Ok(()),
        }
    }
}

/// Makes all timers; they are armed by [`TimerState::arm`].
pub(crate) fn recreate(all: &Each<TimerState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        // SAFETY: no memory is passed.
        let made = owned(unsafe { libc::timerfd_create(state.clock, libc::TFD_CLOEXEC) });
        let plain = match state.clock {
            libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
            libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
            _ => state.clock,
        };
        let fd = match made {
            Err(cause) if cause.raw_os_error() == Some(libc::EPERM) && plain != state.clock => {
                making.remark(*index, "the timer no longer wakes a sleeping machine");
                // SAFETY: no memory is passed.
                owned(unsafe { libc::timerfd_create(plain, libc::TFD_CLOEXEC) })
            }
            made => made,
        };
        making.put(*index, fd.on("making", "timer descriptor")?)?;
    }
    Ok(())
}

fn nanoseconds(time: libc::timespec) -> i64 {
    time.tv_sec * SECOND_NS + time.tv_nsec
}

fn timespec(ns: i64) -> libc::timespec {
    libc::timespec { tv_sec: ns.div_euclid(SECOND_NS), tv_nsec: ns.rem_euclid(SECOND_NS) }
}

fn get_time(fd: &impl AsRawFd) -> io::Result<libc::itimerspec> {
    let mut left = libc::itimerspec { it_interval: timespec(0), it_value: timespec(0) };
    // SAFETY: room for the result.
    checked(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut left) }).map(|_| left)
}

fn set_time(fd: &impl AsRawFd, flags: i32, value_ns: i64, interval_ns: i64) -> io::Result<()> {
    let new = libc::itimerspec { it_interval: timespec(interval_ns), it_value: timespec(value_ns) };
    // SAFETY: a complete structure.
    let ret = unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const new, std::ptr::null_mut()) };
    checked(ret).map(|_| ())
}
