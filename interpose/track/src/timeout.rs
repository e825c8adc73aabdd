//! Relative time-outs of calls that may be interrupted by a park and issued again.
//!
//! A time-out is kept as a deadline on the monotonic clock, so that time spent parked, or on the way to
//! another node, counts.

/// Nanoseconds in a second.
pub const SECOND_NS: i64 = 1_000_000_000;

/// A `timespec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: i64,
}

impl Timespec {
    /// From nanoseconds, not negative.
    #[must_use]
    pub fn from_ns(ns: i64) -> Self {
        let ns = if ns < 0 { 0 } else { ns };
        Self { sec: ns / SECOND_NS, nsec: ns % SECOND_NS }
    }

    /// In nanoseconds; `None` if the kernel would refuse it, so that it is left to refuse it.
    #[must_use]
    pub fn to_ns(self) -> Option<i64> {
        if self.sec < 0 || !(0..SECOND_NS).contains(&self.nsec) {
            return None;
        }
        Some(self.sec.saturating_mul(SECOND_NS).saturating_add(self.nsec))
    }
}

/// A point on the monotonic clock at which a call gives up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(i64);

impl Deadline {
    /// `timeout_ns` from `now_ns`.
    #[must_use]
    pub fn after(now_ns: i64, timeout_ns: i64) -> Self {
        Self(now_ns.saturating_add(timeout_ns))
    }

    /// What is left at `now_ns`, nanoseconds, not negative.
    #[must_use]
    pub fn left_ns(self, now_ns: i64) -> i64 {
        self.0.saturating_sub(now_ns).max(0)
    }

    /// What is left in whole milliseconds, rounded up: `poll` must not wake early.
    #[must_use]
    pub fn left_ms(self, now_ns: i64) -> i64 {
        let ns = self.left_ns(now_ns);
        ns / 1_000_000 + i64::from(ns % 1_000_000 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_never_grows_and_never_rounds_down() {
        let deadline = Deadline::after(1_000, 5_000_001);
        assert_eq!(deadline.left_ns(1_000), 5_000_001);
        assert_eq!(deadline.left_ms(1_000), 6);
        assert_eq!(deadline.left_ms(5_001_000), 1);
        assert_eq!(deadline.left_ms(5_001_001), 0);
        assert_eq!(deadline.left_ns(i64::MAX), 0);
        assert_eq!(Deadline::after(i64::MAX, i64::MAX).left_ns(0), i64::MAX);
    }

    #[test]
    fn bad_timespecs_are_left_to_the_kernel() {
        assert_eq!(Timespec { sec: -1, nsec: 0 }.to_ns(), None);
        assert_eq!(Timespec { sec: 0, nsec: SECOND_NS }.to_ns(), None);
        assert_eq!(Timespec { sec: 2, nsec: 5 }.to_ns(), Some(2 * SECOND_NS + 5));
        assert_eq!(Timespec::from_ns(-5), Timespec::default());
        assert_eq!(Timespec { sec: i64::MAX, nsec: 0 }.to_ns(), Some(i64::MAX));
    }
}
