//! How an application is parked for an epoch, and before its first one.

use super::alive::Alive;
use super::{Out, STOP_MAX, context, pids, unparked, unprotected};
use crate::app::{App, Failure};
use holo_api::local::ErrorKind;
use holo_rm::at_once::{self, Alert};
use holo_rm::barrier::{self, Parked, Still};
use holo_rm::kinds::vdso::is_in_head;
use holo_rm::registry::Registry;
use holo_rm::remote::Remote;
use holo_rm::tree::{Census, Process};
use parking_lot::MutexGuard;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long threads may take to park, milliseconds, unless the application's options say otherwise.
const PARK_MS: u64 = 100;
/// How often a park is repeated that found a thread at a place that an epoch must not have.
const PARK_TRIES: usize = 5;

/// Nobody else parks the application meanwhile.
pub(super) fn fence(app: &App) -> Result<MutexGuard<'_, ()>, Failure> {
    let fenced =
        || Failure::new(ErrorKind::Refused, format!("{} is parked: its lease has expired", app.name));
    app.cut.try_lock_for(Duration::from_secs(5)).ok_or_else(fenced)
}

/// A stop of its own, in which nothing is captured, for kinds that have to know from when on they know what is changed. How long
/// it took; none: no kind has to.
pub(super) fn mark(app: &App, registry: &mut Registry, out: &mut Out) -> Result<Option<Duration>, Failure> {
    let known = pids(&unparked(&app.members.seats()).unwrap_or_default());
    let mut is_wanted = false;
    let _ = registry.each(&known, &mut |manager, _| {
        is_wanted |= manager.wants_mark();
        Ok(())
    });
    if !is_wanted {
        return Ok(None);
    }
    let _cut = fence(app)?;
    let (parked, processes, _alert) = park(app)?;
    let _alive = Alive::start(parked.pages(), STOP_MAX);
    let done = registry.each(&pids(&processes), &mut |manager, index| {
        if manager.wants_mark() { manager.mark(&mut context(&processes, index, out, app)) } else { Ok(()) }
    });
    let stop = parked.release();
    done.map_err(|cause| unprotected(&cause))?;
    stop.map(Some).map_err(|cause| Failure::new(ErrorKind::Failed, cause.to_string()))
}

/// Parks the application where it can be run on from on any kernel.
pub(super) fn park(app: &App) -> Result<(Parked, Vec<Process>, Alert), Failure> {
    let deadline = match app.record().options.park_ms_max {
        0 => PARK_MS,
        ms => ms,
    };
    let deadline = Duration::from_millis(deadline);
    let mut tries = 0;
    loop {
        let parked = barrier::park(&app.members, deadline)
            .map_err(|cause| Failure::new(ErrorKind::Unprotected, cause.to_string()))?;
        // Not before: those that park need the processors.
        let alert = at_once::alert();
        tries += 1;
        let serving = parked.processes.iter().filter(|still| !still.slots.is_empty());
        let all = at_once::run(serving.collect(), |still: &Still| {
            let remote = Remote::facing(Arc::clone(&still.page), still.pid, still.face, still.slots[0])?;
            remote.saw(still.seen);
            // What cannot be looked at is told of by the kinds.
            let in_head = is_in_head(&remote, &still.slots).unwrap_or(false);
            let (pid, slots, stopped) = (still.inner, still.slots.clone(), still.stopped);
            Ok((Process { remote, pid, slots, stopped }, in_head))
        });
        let all: io::Result<Vec<(Process, bool)>> = all.into_iter().collect();
        let all = all.map_err(|cause| Failure::new(ErrorKind::Failed, cause.to_string()))?;
        // It takes a few instructions to be somewhere else.
        if tries >= PARK_TRIES || !all.iter().any(|(_, in_head)| *in_head) {
            return Ok((parked, all.into_iter().map(|(process, _)| process).collect(), alert));
        }
    }
}
