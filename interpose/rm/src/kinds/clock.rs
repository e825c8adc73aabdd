//! Clocks as a process in a time namespace of its own reads them.

use super::kernel::checked;
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// Whether a clock is the wall clock, which time namespaces do not move.
pub(crate) fn is_wall(clock: i32) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_TAI)
}

fn is_boot(clock: i32) -> bool {
    matches!(clock, libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM)
}

/// What a process reads more than we do on a clock, in nanoseconds.
///
/// # Errors
/// The process is gone.
pub(crate) fn offset(pid: i32, clock: i32) -> io::Result<i64> {
    if is_wall(clock) {
        return Ok(0);
    }
    let name = if is_boot(clock) { "boottime" } else { "monotonic" };
    let of = |whose: &str| match fs::read_to_string(format!("/proc/{whose}/timens_offsets")) {
        Ok(text) => Ok(line(&text, name)),
        // A kernel without time namespaces has one time.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(cause) => Err(cause),
    };
    Ok(of(&pid.to_string())? - of("self")?)
}

/// What [`offset`] tells, asked for once for a process and kind of clock.
#[derive(Default)]
pub(crate) struct Offsets(BTreeMap<(i32, bool), i64>);

impl Offsets {
    /// As [`offset`].
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) fn of(&mut self, pid: i32, clock: i32) -> io::Result<i64> {
        let key = (pid, is_boot(clock));
        if is_wall(clock) {
            return Ok(0);
        }
        if let Some(known) = self.0.get(&key) {
            return Ok(*known);
        }
        let asked = offset(pid, clock)?;
        self.0.insert(key, asked);
        Ok(asked)
    }
}

/// The time that we read, in nanoseconds.
///
/// # Errors
/// The kernel does not have the clock.
pub(crate) fn ours(clock: i32) -> io::Result<i64> {
    let plain = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    };
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the result.
    checked(unsafe { libc::clock_gettime(plain, &raw mut now) })?;
    Ok(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// `monotonic  <seconds>  <nanoseconds>`.
fn line(text: &str, name: &str) -> i64 {
    let numbers = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut numbers = numbers.split_whitespace().map(|word| word.parse::<i64>().unwrap_or(0));
    numbers.next().unwrap_or(0) * 1_000_000_000 + numbers.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::line;

    // Goal: offsets are read with their sign. Method: the kernel's layout, where nanoseconds are never negative.
    #[test]
    fn offsets() {
        let text = "monotonic          -2   500000000\nboottime            7         0\n";
        assert_eq!(line(text, "monotonic"), -1_500_000_000);
        assert_eq!(line(text, "boottime"), 7_000_000_000);
    }
}
