//! Which epochs are kept.

use std::time::Duration;

/// An epoch is kept while it is among the newest, or young.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Newest epochs kept; 0 counts as 1.
    pub keep_count: usize,
    /// Epochs younger than this are kept beyond that count.
    pub keep_age: Duration,
}

impl Retention {
    /// Epochs to remove, out of numbers and times (nanoseconds of Unix time) in rising order of numbers. The
    /// newest epoch is never among them.
    pub fn doomed(&self, epochs: &[(u64, u64)], now_unix_ns: u64) -> Vec<u64> {
        let beyond = epochs.len().saturating_sub(self.keep_count.max(1));
        let old = |at: u64| u128::from(now_unix_ns.saturating_sub(at)) >= self.keep_age.as_nanos();
        epochs[..beyond].iter().filter(|(_, at)| old(*at)).map(|(epoch, _)| *epoch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_count_and_age() {
        let second = 1_000_000_000;
        let epochs: Vec<_> = (1..=5).map(|n| (n, n * second)).collect();
        let doomed = |keep_count, secs| {
            let keep_age = Duration::from_secs(secs);
            Retention { keep_count, keep_age }.doomed(&epochs, 6 * second)
        };
        assert_eq!(doomed(2, 0), [1, 2, 3]);
        assert_eq!(doomed(2, 4), [1, 2]);
        assert_eq!(doomed(2, 6), []);
        assert_eq!(doomed(0, 0), [1, 2, 3, 4]);
        assert_eq!(doomed(9, 0), []);
        assert_eq!(Retention { keep_count: 1, keep_age: Duration::ZERO }.doomed(&[], 0), []);
        // A clock that went back makes epochs young, not old.
        let back = Retention { keep_count: 1, keep_age: Duration::from_secs(1) };
        assert_eq!(back.doomed(&epochs, 0), []);
    }
}
