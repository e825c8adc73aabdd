//! Processes that are on their way into an application: between `exec`, or `fork`, and their join.

use crate::barrier::{BarrierError, name_of, not_ready};
use crate::face::face;
use crate::proc_file;
use crate::traced;
use crate::tree::{Census, Seat};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long one is awaited whose loader is at work: with some hundred libraries that takes a quarter of a second, and longer on a busy
/// machine.
const LOADING: Duration = Duration::from_secs(2);

/// What is seen of processes before anything stops.
#[derive(Default)]
pub(crate) struct Seen {
    /// They are stopped by job control.
    pub(crate) stopped: HashSet<i32>,
    /// Their first threads have ended.
    pub(crate) headless: HashSet<i32>,
}

/// Looks at all. None may be traced: it would be stopped by our signal.
fn look_at(seats: &[Seat]) -> Result<Seen, BarrierError> {
    let mut seen = Seen::default();
    for pid in seats.iter().map(|seat| seat.pid) {
        let read = |tid: i32| proc_file::read(format!("/proc/{tid}/status")).unwrap_or_default();
        let mut status = read(pid);
        if String::from_utf8_lossy(&status).lines().any(|line| line.starts_with("State:\tZ")) {
            seen.headless.insert(pid);
            status = read(face(pid));
        }
        let status = String::from_utf8_lossy(&status);
        if let Some(tracer) = traced::tracer(&status) {
            return Err(BarrierError::Traced { pid, name: name_of(pid), tracer });
        }
        if status.lines().any(|line| line.starts_with("State:\tT")) {
            seen.stopped.insert(pid);
        }
    }
    Ok(seen)
}

/// Whether libholo is not ready in a process: without its handler our signal would end it.
pub(crate) fn is_starting(seat: &Seat) -> bool {
    seat.page.as_ref().is_none_or(|page| page.control().header.ways.load(Ordering::SeqCst) == 0)
}

/// Whether the loader has mapped libholo, the first of all libraries, and goes on with others: it will start. One with a control
/// page has.
pub(crate) fn is_loading(pid: i32) -> bool {
    let maps = proc_file::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let any = |name: &[u8]| maps.windows(name.len()).any(|part| part == name);
    any(b"/libholo.so\n") && !any(b".page")
}

/// Before anything stops: a process between `exec` and its join is there soon; one that does not come has no libholo.
///
/// Where there is always another one, as under a shell or `make`, the barrier is closed all the same: when all others are
/// parked there will be no more of them, and those that are left arrive.
///
/// Gives what was seen of those that are there.
pub(crate) fn wait_for_starters(census: &dyn Census, patience: Duration) -> Result<Seen, BarrierError> {
    let since = Instant::now();
    let mut seen: HashMap<i32, Instant> = HashMap::new();
    let mut is_slow = false;
    loop {
        let now = Instant::now();
        let seats = census.seats();
        let starting: Vec<i32> = seats.iter().filter(|seat| is_starting(seat)).map(|seat| seat.pid).collect();
        seen.retain(|pid, _| starting.contains(pid));
        if starting.is_empty() {
            return look_at(&seats);
        }
        for pid in &starting {
            if now - *seen.entry(*pid).or_insert(now) < patience {
                continue;
            }
            if now - since >= LOADING || !is_loading(*pid) {
                return Err(not_ready(*pid));
            }
            is_slow = true;
        }
        // None of the first is left, and there are others. Not where one takes longer than all that are parked would wait for it.
        if !is_slow && now - since >= patience / 4 && seen.values().all(|first| *first > since + patience / 8)
        {
            return look_at(&seats);
        }
        std::thread::sleep(Duration::from_millis(if is_slow { 5 } else { 1 }));
    }
}
