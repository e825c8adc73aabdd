//! Hot clones: where this node stands by for an application, it is here already, parked, with its memory as of the last epoch.
//!
//! One thread for each such application brings its clone to the newest epoch that was sealed here, and then rests for twice the time
//! that this took: it uses a third of a processor at most. A clone that cannot be kept is made when it is needed, as without this.

use crate::app::{App, Failure};
use crate::dump::{files, roots};
use crate::kinds::registry;
use crate::restore::{forget_pages, page, with_order};
use holo_api::files::is_file;
use holo_api::local::{CloneInfo, ErrorKind};
use holo_image::{EpochReader, PAGE_BYTES};
use holo_rm::clone::{Prepared, Warm};
use holo_rm::manager::RmError;
use holo_rm::registry::Registry;
use parking_lot::{Condvar, Mutex};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Between two signs of life to a clone that waits.
const BEAT: Duration = Duration::from_secs(1);
/// How long a clone is kept that nobody stands by with any more: it may be about to be taken.
const LINGERS: Duration = Duration::from_secs(5);
/// Longest rest between two epochs.
const REST_MAX: Duration = Duration::from_secs(1);
/// Rests after failures, one after the other.
const FAILURES_MAX: u32 = 6;

/// A clone and what it is kept with.
pub(crate) struct Kept {
    warm: Warm,
    registry: Registry,
    roots: Vec<PathBuf>,
    page: PathBuf,
    /// What it is as of.
    image: Arc<EpochReader>,
}

#[derive(Default)]
struct State {
    /// Sealed here, and not yet in the clone.
    wanted: Option<u64>,
    /// Since when there is to be no clone, until the next epoch comes.
    over: Option<Instant>,
    /// The thread was started.
    started: bool,
    view: CloneInfo,
}

/// The hot clone of an application, if there is one.
#[derive(Default)]
pub(crate) struct Hot {
    state: Mutex<State>,
    news: Condvar,
    clone: Mutex<Option<Kept>>,
}

impl Kept {
    /// Makes one from an epoch.
    fn make(app: &App, image: &Arc<EpochReader>) -> Result<Self, Failure> {
        let page = page(app);
        let roots = roots(app);
        let mut registry = registry(|pages| files(app, pages), roots.clone(), app.config.engine);
        let made = with_order(app, image, &[], &page, |order| {
            Warm::make(image, order, &mut registry, roots.clone()).map_err(|cause| failed(&cause))
        });
        if made.is_err() {
            forget_pages(&page);
        }
        Ok(Self { warm: made?, registry, roots, page, image: Arc::clone(image) })
    }

    fn update(&mut self, app: &App, image: &Arc<EpochReader>) -> Result<(), Failure> {
        let Self { warm, registry, page, .. } = self;
        with_order(app, image, &[], page, |order| {
            warm.update(image, order, registry).map_err(|cause| failed(&cause))
        })?;
        self.image = Arc::clone(image);
        Ok(())
    }

    /// The epoch that it is as of, if that is number `epoch`: not another one, put aside since, that had its number.
    pub(crate) fn image(&self, app: &App, epoch: u64) -> Option<Arc<EpochReader>> {
        let now = app.store.epochs().into_iter().find(|meta| meta.epoch == epoch)?;
        let was = self.image.meta();
        (was.epoch == epoch && was.at_unix_ns == now.at_unix_ns).then(|| Arc::clone(&self.image))
    }

    /// Brings it to `image` and makes the rest, up to the last step.
    pub(crate) fn complete(
        self,
        app: &App,
        image: &Arc<EpochReader>,
        stdio: &[OwnedFd],
    ) -> Result<Prepared, Failure> {
        let Self { warm, mut registry, roots: was, page, .. } = self;
        let made = if was == roots(app) {
            with_order(app, image, stdio, &page, |order| {
                warm.complete(image, order, &mut registry).map_err(|cause| failed(&cause))
            })
        } else {
            Err(Failure::new(ErrorKind::Failed, "its protected directories are others now"))
        };
        if made.is_err() {
            forget_pages(&page);
        }
        made
    }

    /// Ends it, if it is one.
    pub(crate) fn forget(kept: Option<Self>) {
        if let Some(Self { warm, page, .. }) = kept {
            drop(warm);
            forget_pages(&page);
        }
    }
}

fn failed(cause: &RmError) -> Failure {
    Failure::new(ErrorKind::Failed, cause.to_string())
}

/// Refuses what would not fit beside all else.
fn check_room(image: &EpochReader) -> Result<(), Failure> {
    let memory = image.pages().iter().filter(|run| !is_file(run.space));
    let needed = memory.map(|run| run.keys.len() as u64).sum::<u64>() * PAGE_BYTES as u64;
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| {
        let rest = line.strip_prefix("MemAvailable:")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    let available = available.unwrap_or(u64::MAX >> 10) << 10;
    if needed + needed / 4 <= available {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(Failure::new(
        ErrorKind::Failed,
        format!("a clone of {} MiB does not fit into the {} MiB that are free", mib(needed), mib(available)),
    ))
}

impl Hot {
    /// An epoch of `app`, for which this node stands by, was sealed here.
    pub(crate) fn received(self: &Arc<Self>, app: &Arc<App>, epoch: u64) {
        if !app.config.hot {
            return;
        }
        let mut state = self.state.lock();
        (state.wanted, state.over) = (Some(epoch), None);
        if !std::mem::replace(&mut state.started, true) {
            let (hot, app) = (Arc::clone(self), Arc::downgrade(app));
            thread::spawn(move || hot.keep(&app));
        }
        self.news.notify_one();
    }

    /// This node does not stand by for it any more, or is about to run it. Does not wait.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock();
        state.over.get_or_insert_with(Instant::now);
        (state.wanted, state.view) = (None, CloneInfo::default());
        self.news.notify_one();
    }

    /// The clone, to be completed; what is on its way to it gets there before.
    pub(crate) fn take(&self) -> Option<Kept> {
        self.retire();
        self.clone.lock().take()
    }

    /// Ends it now.
    pub(crate) fn end(&self) {
        Kept::forget(self.take());
    }

    /// What `holo ps` shows of it.
    pub(crate) fn view(&self) -> CloneInfo {
        self.state.lock().view.clone()
    }

    fn keep(&self, app: &Weak<App>) {
        let mut failures = 0;
        loop {
            let wanted = self.wait();
            let Some(app) = app.upgrade() else {
                Kept::forget(self.clone.lock().take());
                return;
            };
            let start = Instant::now();
            let done = self.look(&app, wanted);
            let took = start.elapsed();
            let mut rest = (took * 2).min(REST_MAX);
            let view = match done {
                Ok(None) => continue,
                Ok(Some((epoch, pages))) => {
                    failures = 0;
                    CloneInfo { epoch, update_us: took.as_micros() as u64, pages, why: String::new() }
                }
                Err(failure) => {
                    failures = (failures + 1).min(FAILURES_MAX);
                    rest = REST_MAX * (1 << (failures - 1)) / 2;
                    CloneInfo { why: failure.message, ..CloneInfo::default() }
                }
            };
            self.show(&app.name, view);
            drop(app);
            thread::sleep(rest);
        }
    }

    /// Waits for news, at most for a beat.
    fn wait(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.wanted.is_none() {
            self.news.wait_for(&mut state, BEAT);
        }
        state.wanted.take()
    }

    fn show(&self, app: &str, view: CloneInfo) {
        let mut state = self.state.lock();
        if state.over.is_some() {
            return;
        }
        if !view.why.is_empty() && state.view.why != view.why {
            eprintln!("holod: {app}: no hot clone: {}", view.why);
        }
        state.view = view;
    }

    /// Does to the clone what is to be done. With its epoch and the pages that were written, if it was brought to one.
    fn look(&self, app: &App, wanted: Option<u64>) -> Result<Option<(u64, u64)>, Failure> {
        let mut clone = self.clone.lock();
        // Asked while nobody can take it: what was taken is not made once more.
        let over = self.state.lock().over;
        if app.living().is_some() || over.is_some_and(|since| since.elapsed() > LINGERS) {
            Kept::forget(clone.take());
            return Ok(None);
        }
        let wanted = wanted.filter(|_| over.is_none() && app.standby_of().is_some());
        let Some(epoch) = wanted else {
            if let Some(kept) = &*clone {
                kept.warm.keep_alive();
            }
            return Ok(None);
        };
        bring(app, &mut clone, epoch).map(|pages| Some((epoch, pages)))
    }
}

/// Brings a clone to an epoch, or makes it; pages that were written.
fn bring(app: &App, clone: &mut Option<Kept>, epoch: u64) -> Result<u64, Failure> {
    let image = app.store.open_epoch(epoch);
    let image = Arc::new(image.map_err(|cause| Failure::new(ErrorKind::BadImage, cause.to_string()))?);
    if let Some(mut kept) = clone.take() {
        let before = kept.warm.pages();
        if kept.roots == roots(app) && kept.update(app, &image).is_ok() {
            let pages = kept.warm.pages() - before;
            *clone = Some(kept);
            return Ok(pages);
        }
        // The application has another shape now.
        Kept::forget(Some(kept));
    }
    check_room(&image)?;
    Ok(clone.insert(Kept::make(app, &image)?).warm.pages())
}
