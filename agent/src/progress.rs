//! How far an epoch is that takes long: the first one of a large application, above all.

use crate::app::App;
use holo_api::local::{EpochProgress, Step};
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// What takes no longer is not shown.
const SHOWN: Duration = Duration::from_secs(1);

/// Since when an epoch is being taken.
#[derive(Default)]
pub(crate) struct Taking(Mutex<Option<Instant>>);

/// While this lives, an epoch is being taken.
pub(crate) struct Taken<'a>(&'a Taking);

impl Taking {
    pub(crate) fn begin(&self) -> Taken<'_> {
        *self.0.lock() = Some(Instant::now());
        Taken(self)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

/// What has been done for so long, if that is to be shown.
pub(crate) fn shown(
    lasts: Duration,
    step: Step,
    node: &str,
    (done_bytes, total_bytes): (u64, u64),
) -> Option<EpochProgress> {
    (lasts >= SHOWN).then(|| EpochProgress { step, node: node.to_owned(), done_bytes, total_bytes })
}

/// How far an epoch is that is being taken here.
pub(crate) fn of(app: &App) -> Option<EpochProgress> {
    let since = (*app.taking.0.lock())?;
    shown(since.elapsed(), Step::Store, &app.node, app.store.progress())
}
