//! Timer descriptors: kept as the instant of the next expiry on the application's own clock.
//!
//! Timers go on while the application is parked. One that is due, and that the kernel has not come to yet, tells that nothing is left,
//! as one that is not armed does: for some microseconds, for milliseconds on a processor that its host has taken away. So those that
//! tell so are looked at once more when all that was due has expired.

use super::clock;
use super::due;
use super::fdinfo::FdInfo;
use super::kernel::{checked, owned};
use super::open::{Dumping, Each, Making, Open};
use super::sockets::poll;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
const SECOND_NS: i64 = 1_000_000_000;
/// A relative time that is not over before the expiries that came before are set.
const SOON_NS: i64 = 50_000;
/// So much an expiry may come later than it would have.
const VAGUE_NS: i64 = 5_000;
/// So often a timer is asked at most: one of a period of microseconds always expires meanwhile.
const LOOKS_MAX: u32 = 8;
/// So often all are waited for that tell of nothing.
const WAITS_MAX: u32 = 4;

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
        let info = || open.info_now(dumping.cx.remote);
        let Told { left_ns, interval_ns, at, info } = look(open, clock, &info)?;
        let absolute = flags & libc::TFD_TIMER_ABSTIME != 0;
        let next = match (left_ns, clock::is_wall(clock)) {
            (0, _) => Next::Never,
            (_, true) if !absolute => Next::In(left_ns),
            _ => {
                let offset = dumping.offsets.of(dumping.cx.remote.face, clock).on("reading clock", clock)?;
                Next::At(at + left_ns + offset)
            }
        };
        let ticks = info.number("ticks:", 10).ok_or_else(|| shown("ticks"))?;
        Ok(Self { clock, ticks, next, interval_ns, flags })
    }

    /// Not armed, or due: nothing is left of it, and it has not expired, or would go on if it had.
    fn tells_nothing(&self) -> bool {
        self.next == Next::Never && (self.ticks == 0 || self.interval_ns != 0)
    }

    /// Arms the timer; as late as possible, since time runs.
    pub(crate) fn arm(&self, fd: &impl AsRawFd, pid: i32) -> io::Result<()> {
        let (flags, value) = match self.next {
            Next::Never => (self.flags, 0),
            Next::In(left) => (0, left.max(SOON_NS)),
            // Our own reading of the clock differs from the clone's where its time namespace is another.
            Next::At(at) => {
                let ours = at - clock::offset(pid, self.clock)?;
                (self.flags | libc::TFD_TIMER_ABSTIME, ours.max(1))
            }
        };
        // One that has a period has expired so often if it began so long ago. Nothing is lost if it is due in this moment.
        let since =
            value.saturating_sub(self.interval_ns.saturating_mul(self.ticks.try_into().unwrap_or(i64::MAX)));
        if matches!(self.next, Next::At(_)) && self.interval_ns > 0 && since > 0 {
            return set_time(fd, flags, since, self.interval_ns);
        }
        set_time(fd, flags, value, self.interval_ns)?;
        if self.ticks == 0 {
            return Ok(());
        }
        // SAFETY: the request reads 8 bytes.
        let set = unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const self.ticks) };
        // Without that request: a timer that has just expired.
        if set != 0 && self.next == Next::Never { set_time(fd, 0, 1, 0) } else { Ok(()) }
    }
}

/// What a timer told.
struct Told {
    left_ns: i64,
    interval_ns: i64,
    /// When, on our clock.
    at: i64,
    info: FdInfo,
}

/// Looks once more at those that told of nothing, when the kernel has come to what these processes armed: who still does is not
/// armed. `again` tells what one tells now, if it has expired.
pub(crate) fn settle(
    timers: &mut Each<TimerState>,
    armed_by: &[i32],
    mut again: impl FnMut(u32) -> RmResult<Option<TimerState>>,
) -> RmResult<()> {
    let mut left: Vec<_> = timers.iter_mut().filter(|(_, state)| state.tells_nothing()).collect();
    for _ in 0..WAITS_MAX {
        if left.is_empty() {
            break;
        }
        due::wait(armed_by);
        let mut unsure = Vec::new();
        for timer in left {
            if let Some(now) = again(timer.0)? {
                timer.1 = now;
                // Its period may have been over once more just then.
                unsure.extend(timer.1.tells_nothing().then_some(timer));
            }
        }
        left = unsure;
    }
    Ok(())
}

/// Has a timer expired, which nobody has read yet?
pub(crate) fn has_expired(fd: &impl AsRawFd) -> bool {
    poll(fd, libc::POLLIN, 0) & libc::POLLIN != 0
}

/// Asks a timer until it has not expired meanwhile.
///
/// A periodic timer that expired stands still until somebody asks; then it goes on, and expiries since are among its ticks.
fn look(fd: &impl AsRawFd, clock: i32, info: &dyn Fn() -> RmResult<FdInfo>) -> RmResult<Told> {
    let time = || clock::ours(clock).on("reading clock", clock);
    let mut looks = 0;
    loop {
        let (asked, before) = (Instant::now(), time()?);
        let told = get_time(fd).on("reading", "a timer descriptor")?;
        let at = time()?;
        let info = info()?;
        let (left_ns, interval_ns) = (nanoseconds(told.it_value), nanoseconds(told.it_interval));
        looks += 1;
        let has_expired = left_ns != 0 && asked.elapsed().as_nanos() as i64 >= left_ns;
        let is_vague = at - before > VAGUE_NS;
        if looks >= LOOKS_MAX || !has_expired && !is_vague {
            return Ok(Told { left_ns, interval_ns, at, info });
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::passed::own_info;
    use super::*;
    use std::os::fd::OwnedFd;

    /// What a timer of the monotonic clock tells.
    fn told(timer: &OwnedFd) -> TimerState {
        let Told { left_ns, interval_ns, at, info } =
            look(timer, libc::CLOCK_MONOTONIC, &|| own_info(timer)).unwrap();
        let next = if left_ns == 0 { Next::Never } else { Next::At(at + left_ns) };
        let ticks = info.number("ticks:", 10).unwrap();
        TimerState { clock: libc::CLOCK_MONOTONIC, ticks, next, interval_ns, flags: 0 }
    }

    // Goal: a timer that is due, and that the kernel has not come to, is not taken for one that is disarmed, and expiries are counted.
    // Method: many that expire at one instant on one processor, which takes it a while; the last of them is looked at on another one.
    #[test]
    fn due() {
        const EACH_NS: i64 = 2_000_000;
        // SAFETY: no memory is passed.
        let make = || owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK) });
        let timers: Vec<OwnedFd> = (0..512).map(|_| make().unwrap()).collect();
        let mut found_due = 0;
        for round in 0..40 {
            let interval_ns = if round % 2 == 0 { EACH_NS } else { 0 };
            if due::run_on(0).is_err() {
                eprintln!("skipped: may not run on the first processor");
                return;
            }
            let first = clock::ours(libc::CLOCK_MONOTONIC).unwrap() + EACH_NS;
            for timer in &timers {
                set_time(timer, libc::TFD_TIMER_ABSTIME, first, interval_ns).unwrap();
            }
            if due::run_on(1).is_err() {
                eprintln!("skipped: may not run on a second processor");
                return;
            }
            let timer = &timers[timers.len() - 1];
            while clock::ours(libc::CLOCK_MONOTONIC).unwrap() < first {
                std::hint::spin_loop();
            }
            let mut states = vec![(0, told(timer))];
            found_due += usize::from(states[0].1.tells_nothing());
            let again = |_| Ok(has_expired(timer).then(|| told(timer)));
            settle(&mut states, &[std::process::id().cast_signed()], again).unwrap();
            let TimerState { ticks, next, .. } = states[0].1;
            if interval_ns == 0 {
                assert_eq!((ticks, next), (1, Next::Never));
                continue;
            }
            let Next::At(next) = next else { panic!("not armed, expired {ticks} times") };
            // To the microseconds that asking takes.
            let before = (next - first + EACH_NS / 2) / EACH_NS;
            assert_eq!(ticks as i64, before, "next at {next}, first at {first}");
        }

        assert!(found_due > 0, "none was due and had not expired: nothing was shown");
    }
}
