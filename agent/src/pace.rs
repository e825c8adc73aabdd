//! How often epochs are taken where the period adapts to what they cost (`--every auto --budget 5%`).
//!
//! An epoch takes from the application: the time for which it is parked; processor time of the agent, which it could have
//! used; a fault for each page that it then writes for the first time. The next epoch is due when the time since the last
//! one makes that the part which the budget allows. What an epoch will cost is not known before: it is taken to be the highest of
//! the last ones, of which the older count less and less. So epochs never take more than the budget, but for the first one,
//! which reads all memory and after which nobody is to wait for long, and for such that cost more than the budget of the
//! longest period.

use std::time::Duration;

/// A hundred epochs a second.
pub(crate) const PERIOD_MIN: Duration = Duration::from_millis(10);
/// What a switch may lose at most, however dear an epoch is.
pub(crate) const PERIOD_MAX: Duration = Duration::from_secs(60);
/// After the first epoch.
const PERIOD_FIRST_MAX: Duration = Duration::from_secs(1);
/// A write to a page that is protected.
const FAULT_NS: u64 = 800;
/// Part by which what is expected comes down to what was seen.
const FALL: u64 = 4;

/// What an epoch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Time parked.
    pub(crate) stop_us: u64,
    /// Processor time of the agent.
    pub(crate) cpu_us: u64,
    /// Processors that the agent and the application share.
    pub(crate) cores: u64,
    /// Pages that changed: as many faults come until the next epoch.
    pub(crate) pages: u64,
}

impl Cost {
    /// Of the application's time.
    pub(crate) fn us(&self) -> u64 {
        let faults = self.pages.saturating_mul(FAULT_NS) / 1000;
        self.stop_us.saturating_add(self.cpu_us / self.cores.max(1)).saturating_add(faults)
    }
}

/// What is known of the cost of epochs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    expected_us: Option<u64>,
    taken: u64,
}

impl Pace {
    /// An epoch took so much.
    pub(crate) fn spent(&mut self, cost: &Cost) {
        let us = cost.us();
        self.taken += 1;
        self.expected_us = Some(match self.expected_us {
            // The first one says nothing of those that follow.
            Some(expected) if self.taken > 2 && us < expected => expected - (expected - us).div_ceil(FALL),
            Some(_) | None => us,
        });
    }

    /// From one epoch to the next, for a budget in thousandths.
    pub(crate) fn period(&self, budget_permille: u32) -> Duration {
        let us =
            self.expected_us.unwrap_or(0).saturating_mul(1000).div_ceil(u64::from(budget_permille.max(1)));
        let most = if self.taken < 2 { PERIOD_FIRST_MAX } else { PERIOD_MAX };
        Duration::from_micros(us).clamp(PERIOD_MIN, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cost(us: u64) -> Cost {
        Cost { stop_us: us, ..Cost::default() }
    }

    // Goal: what an epoch takes is all of its parts. Method: one of each, and the largest there are.
    #[test]
    fn parts_of_a_cost() {
        let all = Cost { stop_us: 1000, cpu_us: 500, cores: 2, pages: 100 };
        assert_eq!(all.us(), 1000 + 250 + 80);
        assert_eq!(Cost { stop_us: u64::MAX, cpu_us: 9, cores: 0, pages: u64::MAX }.us(), u64::MAX);
    }

    // Goal: a program that costs the same each time has its budget used up, not more. Method: the period after some epochs.
    #[test]
    fn steady_costs_use_the_budget() {
        for (us, permille, period_us) in [
            (2000, 50, 40_000),
            (10_000, 100, 100_000),
            (1, 50, PERIOD_MIN.as_micros() as u64),
            (1_000_000_000, 1, PERIOD_MAX.as_micros() as u64),
        ] {
            let mut pace = Pace::default();
            pace.spent(&cost(700_000));
            assert!(pace.period(permille) <= PERIOD_FIRST_MAX);
            for _ in 0..40 {
                pace.spent(&cost(us));
            }
            assert_eq!(pace.period(permille), Duration::from_micros(period_us));
        }
    }

    proptest! {
        // Goal: whatever epochs cost, all but the first stay within the budget as long as the longest period allows it, and
        // periods are within their bounds. Method: any costs, followed by the clock that the periods make.
        #[test]
        fn never_more_than_the_budget(
            costs in proptest::collection::vec(0u64..600_000, 1..200), first in any::<u64>(), permille in 10u32..1000
        ) {
            let mut pace = Pace::default();
            pace.spent(&cost(first));
            let (mut spent_us, mut passed_us) = (0u128, 0u128);
            for us in costs {
                pace.spent(&cost(us));
                let period = pace.period(permille);
                prop_assert!((PERIOD_MIN..=PERIOD_MAX).contains(&period));
                spent_us += u128::from(us);
                passed_us += period.as_micros();
                prop_assert!(spent_us * 1000 <= passed_us * u128::from(permille));
            }
        }

        // Goal: after dear epochs the period comes back. Method: one dear epoch at any place among cheap ones.
        #[test]
        fn one_dear_epoch_is_forgotten(cheap in 1u64..5_000, dear in 5_000u64..3_000_000, before in 2usize..20) {
            let mut pace = Pace::default();
            (0..before).for_each(|_| pace.spent(&cost(cheap)));
            let wanted = pace.period(50);
            pace.spent(&cost(dear));
            prop_assert!(pace.period(50) >= wanted);
            (0..60).for_each(|_| pace.spent(&cost(cheap)));
            prop_assert_eq!(pace.period(50), wanted);
        }
    }
}
