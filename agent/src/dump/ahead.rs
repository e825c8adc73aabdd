//! What is stored before a stop, while the application runs.

use super::park::{fence, park};
use super::{Out, context, pids, unparked, unseen};
use crate::app::{App, Failure};
use holo_api::local::ErrorKind;
use holo_rm::registry::Registry;
use holo_rm::tree::{Census, Process};
use std::time::Duration;

/// All kinds store what they can, until they want no more. For how long the application was parked for that; none: it was not.
///
/// What is stored stays in the store until an epoch is sealed, which finds it there.
pub(super) fn ahead(app: &App, registry: &mut Registry, out: &mut Out) -> Result<Option<Duration>, Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new(ErrorKind::Failed, cause.to_string());
    let mut pauses = None;
    loop {
        let running = unparked(&app.members.seats()).map_err(|cause| failed(&cause))?;
        if running.is_empty() {
            return Ok(pauses);
        }
        let mut is_wanted = false;
        let watched = registry.each(&pids(&running), &mut |manager, index| {
            is_wanted |= manager.watch(&mut context(&running, index, out, app))?;
            Ok(())
        });
        watched.map_err(|cause| unseen(&cause, &running, out))?;
        if !is_wanted {
            return Ok(pauses);
        }
        *pauses.get_or_insert(Duration::ZERO) += pause(app)?;
        store(app, registry, &running, out)?;
    }
}

/// All threads park and run on: none is in a call any more that it was in before.
fn pause(app: &App) -> Result<Duration, Failure> {
    let _cut = fence(app)?;
    let (parked, ..) = park(app)?;
    parked.release().map_err(|cause| Failure::new(ErrorKind::Failed, cause.to_string()))
}

fn store(app: &App, registry: &mut Registry, running: &[Process], out: &mut Out) -> Result<(), Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new(ErrorKind::Failed, cause.to_string());
    let pids = pids(running);
    let mut writer = app.store.begin(app.store.newest_number() + 1).map_err(|cause| failed(&cause))?;
    let done = registry.each(&pids, &mut |manager, index| {
        let mut cx = context(running, index, out, app);
        cx.writer = Some(&mut writer);
        manager.ahead(&mut cx)
    });
    let left = writer.leave();
    if done.is_err() || left.is_err() {
        let _ = registry.each(&pids, &mut |manager, _| {
            manager.ahead_lost();
            Ok(())
        });
    }
    done.map_err(|cause| unseen(&cause, running, out))?;
    left.map_err(|cause| failed(&cause))
}
