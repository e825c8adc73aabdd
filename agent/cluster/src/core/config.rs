//! The times of failover and the inequality that makes it safe.

/// Times of the failover protocol; milliseconds of a monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of an owner.
    pub heartbeat_ms: u64,
    /// How long a granted heartbeat lets the owner run, from when it was *sent*.
    pub lease_ms: u64,
    /// How long a node waits after it last *received* a heartbeat that it granted before it stands or votes for
    /// another owner.
    pub failover_ms: u64,
    /// Longest time between the order to fence and the moment in which no thread of the application runs.
    pub fence_ms_max: u64,
    /// How late the clock may be looked at.
    pub tick_ms: u64,
    /// How far the rate of any node's clock may be off, in millionths.
    pub drift_ppm: u64,
    /// Longest planned switch before its commit point; past it, it is aborted.
    pub switch_ms_max: u64,
    /// A node whose newest epoch was further behind the owner's at their first contact does not take over
    /// before it has caught up.
    pub stale_epochs_max: u64,
    /// A refused connection shows that the peer's agent is dead (see [`crate::core`]); off where a packet
    /// filter may refuse in its place.
    pub trust_refused: bool,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat_ms: 100,
            lease_ms: 600,
            failover_ms: 1000,
            fence_ms_max: 100,
            tick_ms: 20,
            drift_ppm: 10_000,
            switch_ms_max: 60_000,
            stale_epochs_max: 64,
            trust_refused: true,
        }
    }
}

/// Why a [`Timing`] is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// A stand-by could run before the owner has stopped.
    #[error(
        "failover of {failover_ms} ms is not safe with a lease of {lease_ms} ms: it must be at least {needed_ms} ms \
         (lease, fence, look at the clock, drift)"
    )]
    FailoverTooShort {
        /// Configured.
        failover_ms: u64,
        /// Configured.
        lease_ms: u64,
        /// Smallest that is safe.
        needed_ms: u64,
    },
    /// One lost heartbeat would fence the owner.
    #[error("lease of {lease_ms} ms must be at least three heartbeats of {heartbeat_ms} ms")]
    LeaseTooShort {
        /// Configured.
        lease_ms: u64,
        /// Configured.
        heartbeat_ms: u64,
    },
    /// A value that makes no sense.
    #[error("{what} of {value} is outside of {least} to {most}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Configured.
        value: u64,
        /// Smallest accepted.
        least: u64,
        /// Largest accepted.
        most: u64,
    },
}

impl Timing {
    /// The smallest safe [`Timing::failover_ms`]: the lease measured by a slow clock, then the fence, must be
    /// over before a fast clock has counted it.
    pub fn failover_ms_least(&self) -> u64 {
        let million = 1_000_000;
        let real =
            self.lease_ms * million / (million - self.drift_ppm) + self.fence_ms_max + 2 * self.tick_ms;
        (real * (million + self.drift_ppm)).div_ceil(million) + 1
    }

    /// Checks everything.
    pub fn validate(&self) -> Result<(), TimingError> {
        let range = |what, value, least, most| {
            let inside = (least..=most).contains(&value);
            if inside { Ok(()) } else { Err(TimingError::OutOfRange { what, value, least, most }) }
        };
        range("heartbeat_ms", self.heartbeat_ms, 5, 60_000)?;
        range("lease_ms", self.lease_ms, 15, 600_000)?;
        range("failover_ms", self.failover_ms, 20, 3_600_000)?;
        range("fence_ms_max", self.fence_ms_max, 1, 60_000)?;
        range("tick_ms", self.tick_ms, 1, 10_000)?;
        range("drift_ppm", self.drift_ppm, 0, 200_000)?;
        range("switch_ms_max", self.switch_ms_max, 100, 86_400_000)?;
        if self.lease_ms < 3 * self.heartbeat_ms {
            return Err(TimingError::LeaseTooShort {
                lease_ms: self.lease_ms,
                heartbeat_ms: self.heartbeat_ms,
            });
        }
        let needed_ms = self.failover_ms_least();
        if self.failover_ms < needed_ms {
            return Err(TimingError::FailoverTooShort {
                failover_ms: self.failover_ms,
                lease_ms: self.lease_ms,
                needed_ms,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: no configuration in which a stand-by may overtake the fence passes.
    #[test]
    fn defaults_are_safe_and_unsafe_ones_are_refused() {
        assert_eq!(Timing::default().validate(), Ok(()));
        let late = Timing { failover_ms: 740, ..Timing::default() };
        assert!(matches!(late.validate(), Err(TimingError::FailoverTooShort { needed_ms: 755, .. })));
        let tight = Timing { heartbeat_ms: 300, ..Timing::default() };
        assert!(matches!(tight.validate(), Err(TimingError::LeaseTooShort { .. })));
        let silly = Timing { drift_ppm: 1_000_000, ..Timing::default() };
        assert!(matches!(silly.validate(), Err(TimingError::OutOfRange { what: "drift_ppm", .. })));
    }
}
