//! Whether it pays to store pages before the stop.
//!
//! A page that is stored before need not be copied in the stop, unless it is stored to again until then: then it was for nothing, and
//! cost the application one fault more. What pages do in the next epoch is taken to be what they did in the last ones.

use crate::kinds::zones::PAGE;

/// What copying a page takes in a stop, microseconds.
const COPY_PAGE_US: f64 = 0.8;
/// Shorter stops are not worth an effort.
const GAIN_US_MIN: f64 = 1500.0;
/// So many pages are worth a pause; a round more has half as many as the one before at most.
const ROUND_PAGES_MIN: u64 = 1000;
const ROUND_PART: u64 = 2;
/// To look for changed pages takes so much for each page of the process, microseconds, and may take so many times the gain.
const LOOK_PAGE_US: f64 = 0.01;
const LOOK_PART_MAX: f64 = 4.0;
/// More of what was stored must not be stored to again: half.
const AGAIN_PART: u64 = 2;
/// Epochs before it is tried again where it was for nothing; they double up to four times.
const WAIT: u32 = 8;
const WAIT_DOUBLINGS: u32 = 4;
/// Part by which what is expected comes down to what was seen.
const FALL: u64 = 4;

/// Variable of the agent's environment: `1` stores pages ahead in all epochs, of all processes, `0` in none.
const VARIABLE: &str = "HOLO_MEMORY_AHEAD";
/// Less is copied or forked in the first stop as fast as all processes are stopped once more.
const FIRST_BYTES_MIN: u64 = 64 << 20;

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    None,
    Always,
    Never,
}

/// What was seen of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Pages that it has.
    pub(crate) all: u64,
    /// Pages that changed.
    pub(crate) changed: u64,
    /// Pages that were stored before the stop.
    pub(crate) stored: u64,
    /// Of these, stored to again before the stop, or gone.
    pub(crate) again: u64,
}

/// What is known of a process's epochs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payoff {
    order: Order,
    looks: u64,
    all: u64,
    expected: u64,
    failures: u32,
    wait: u32,
}

impl Payoff {
    /// As the environment orders.
    pub(crate) fn by_environment() -> Self {
        let order = match std::env::var(VARIABLE).as_deref() {
            Ok("1") => Order::Always,
            Ok("0") => Order::Never,
            Ok(_) | Err(_) => Order::None,
        };
        Self { order, ..Self::default() }
    }

    /// Is a stop of its own worth it before the first epoch, in which all of so much memory begins to be watched?
    pub(crate) fn is_worth_a_mark(&self, bytes: u64) -> bool {
        match self.order {
            Order::Always => true,
            Order::Never => false,
            Order::None => bytes >= FIRST_BYTES_MIN,
        }
    }

    /// Are pages to be stored before the next stop?
    pub(crate) fn is_worth(&self) -> bool {
        match self.order {
            Order::Always => return true,
            Order::Never => return false,
            Order::None => {}
        }
        // What the first epoch had says nothing of those that follow: of a large process it is tried.
        if self.looks < 2 {
            return self.looks == 0 || self.all * PAGE >= FIRST_BYTES_MIN;
        }
        let gain_us = self.expected as f64 * COPY_PAGE_US;
        let look_us = self.all as f64 * LOOK_PAGE_US;
        self.wait == 0 && gain_us >= GAIN_US_MIN && look_us <= gain_us * LOOK_PART_MAX
    }

    /// Are so many pages to be stored, after a round with `last`?
    pub(crate) fn is_worth_a_round(&self, pages: u64, last: u64) -> bool {
        let least = if self.order == Order::Always { 1 } else { ROUND_PAGES_MIN };
        pages >= least && pages <= last / ROUND_PART
    }

    /// After a stop.
    pub(crate) fn saw(&mut self, seen: Seen) {
        let Seen { all, changed, stored, again } = seen;
        self.looks += 1;
        self.all = all;
        if self.looks == 1 {
            return;
        }
        self.expected = match self.expected.checked_sub(changed) {
            Some(more) if self.looks > 2 => self.expected - more.div_ceil(FALL),
            Some(_) | None => changed,
        };
        self.wait = self.wait.saturating_sub(1);
        if stored == 0 {
            return;
        }
        if again * AGAIN_PART > stored {
            self.wait = WAIT << self.failures.min(WAIT_DOUBLINGS);
            self.failures += 1;
        } else {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 1 << 20;

    fn seen(changed: u64, stored: u64, again: u64) -> Seen {
        Seen { all: ALL, changed, stored, again }
    }

    // Goal: only where many pages change, and few of them again. Method: epochs of one sort, from the first on.
    #[test]
    fn worth_where_many_pages_change_once() {
        for (changed, again_percent, is_worth) in [
            (10_000, 0, true),
            (10_000, 40, true),
            (10_000, 60, false),
            (10_000, 100, false),
            (300, 0, false),
            (0, 0, false),
        ] {
            let mut payoff = Payoff::default();
            assert!(payoff.is_worth(), "nothing is known against it");
            payoff.saw(seen(ALL, ALL, 0));
            let mut times = 0;
            for _ in 0..200 {
                let stored = if payoff.is_worth() { changed } else { 0 };
                times += u64::from(stored > 0);
                payoff.saw(seen(changed, stored, stored * again_percent / 100));
            }
            let (least, most) = match (is_worth, changed) {
                (true, _) => (198, 200),
                // Now and then it is tried again.
                (false, 10_000..) => (3, 6),
                (false, _) => (0, 1),
            };
            assert!(
                (least..=most).contains(&times),
                "{changed} pages, {again_percent} % again: {times} times"
            );
        }
    }

    // Goal: a process whose pages came to rest is stored ahead again. Method: hot epochs, then calm ones.
    #[test]
    fn tried_again() {
        let mut payoff = Payoff::default();
        for again in [true, false] {
            for _ in 0..300 {
                let stored = if payoff.is_worth() { 5000 } else { 0 };
                payoff.saw(seen(5000, stored, if again { stored } else { 0 }));
            }
            assert_eq!(payoff.is_worth(), !again);
        }
    }

    // Goal: orders are followed, and small processes are not stopped once more. Method: each order, each size.
    #[test]
    fn orders() {
        for (order, small, large) in
            [(Order::None, false, true), (Order::Always, true, true), (Order::Never, false, false)]
        {
            let payoff = Payoff { order, looks: 9, ..Payoff::default() };
            assert_eq!(payoff.is_worth_a_mark(FIRST_BYTES_MIN - 1), small);
            assert_eq!(payoff.is_worth_a_mark(FIRST_BYTES_MIN), large);
            assert_eq!(payoff.is_worth(), order == Order::Always);
            assert_eq!(payoff.is_worth_a_round(1, u64::MAX), order == Order::Always);
            assert!(payoff.is_worth_a_round(5000, 10_000) && !payoff.is_worth_a_round(5001, 10_000));
        }
    }
}
