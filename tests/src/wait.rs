//! Bounded waiting.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(3);

/// Waits until `look` gives a value.
///
/// # Panics
/// After `limit`, saying `what` was awaited.
pub fn until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(LOOK);
    }
}

/// As [`until`], but gives up quietly.
pub fn try_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let value = look();
        if value.is_some() || start.elapsed() >= limit {
            return value;
        }
        sleep(LOOK);
    }
}
