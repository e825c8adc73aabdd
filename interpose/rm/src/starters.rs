//! Processes that are on their way into an application: between `exec`, or `fork`, and their join.

use crate::barrier::{BarrierError, not_ready};
use crate::tree::{Census, Seat, state_and_parent};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Processes that are stopped by job control.
fn stopped_of(seats: &[Seat]) -> HashSet<i32> {
    let stopped = |pid: &i32| state_and_parent(*pid).is_some_and(|(state, _)| state == 'T');
    seats.iter().map(|seat| seat.pid).filter(stopped).collect()
}

/// Whether libholo is not ready in a process: without its handler our signal would end it.
pub(crate) fn is_starting(seat: &Seat) -> bool {
    seat.page.as_ref().is_none_or(|page| page.control().header.ways.load(Ordering::SeqCst) == 0)
}

/// Before anything stops: a process between `exec` and its join is there soon; one that does not come has no libholo.
///
/// Where there is always another one, as under a shell or `make`, the barrier is closed all the same: when all others are
/// parked there will be no more of them, and those that are left arrive.
///
/// Gives those that are stopped by job control.
pub(crate) fn wait_for_starters(
    census: &dyn Census,
    patience: Duration,
) -> Result<HashSet<i32>, BarrierError> {
    let since = Instant::now();
    let mut seen: HashMap<i32, Instant> = HashMap::new();
    loop {
        let now = Instant::now();
        let seats = census.seats();
        let starting: Vec<i32> = seats.iter().filter(|seat| is_starting(seat)).map(|seat| seat.pid).collect();
        seen.retain(|pid, _| starting.contains(pid));
        if starting.is_empty() {
            return Ok(stopped_of(&seats));
        }
        for pid in &starting {
            if now - *seen.entry(*pid).or_insert(now) >= patience {
                return Err(not_ready(*pid));
            }
        }
        // None of the first is left, and there are others.
        if now - since >= patience / 4 && seen.values().all(|first| *first > since + patience / 8) {
            return Ok(stopped_of(&seats));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
