//! SWITCH on this node: an application run from an epoch.

use crate::app::{App, Failure, now_ns};
use crate::dump::{CONTENTS, CONTENTS_KIND, CONTENTS_VERSION, files, roots};
use crate::hot::Kept;
use crate::kinds::registry;
use crate::late::Memory;
use crate::members::Leaf;
use crate::record::Instance;
use holo_api::local::{ErrorKind, RestoreInfo};
use holo_image::wire;
use holo_image::{Blob, EpochReader};
use holo_rm::clone::{Order, Prepared, Restored, page_path, prepare};
use holo_rm::manager::RmError;
use holo_rm::tree::start_time;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const CONTENTS_BYTES_MAX: u64 = 256 << 20;

/// An application that is complete but has not run yet.
pub struct Ready {
    prepared: Prepared,
    epoch: u64,
    since: Instant,
    /// It was there before it was needed.
    hot: bool,
}

fn contents(image: &EpochReader) -> Result<BTreeMap<String, Blob>, Failure> {
    let bad = |what: String| Failure::new(ErrorKind::BadImage, format!("section `{CONTENTS}`: {what}"));
    let (version, bytes) = image.section(CONTENTS).ok_or_else(|| bad("missing".into()))?;
    if version != CONTENTS_VERSION {
        return Err(bad(format!("version {version} is unknown here; update holo on this node")));
    }
    wire::decode(bytes, CONTENTS_KIND, CONTENTS_BYTES_MAX).map_err(|cause| bad(cause.to_string()))
}

/// Where files of control pages of a clone are.
pub(crate) fn page(app: &App) -> PathBuf {
    app.paths.pages.join(format!("{}.{}.{}.page", app.name, std::process::id(), now_ns()))
}

/// Does something with what a restore needs besides the image.
pub(crate) fn with_order<T>(
    app: &App,
    image: &EpochReader,
    stdio: &[OwnedFd],
    page: &Path,
    what: impl FnOnce(&Order) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let blobs = contents(image)?;
    let output = app.paths.output.join(format!("{}.log", app.name));
    let (restorer, page_path) = (&app.config.restorer, page);
    what(&Order { restorer, blobs: &blobs, stdio, output: &output, page_path, may_run_early: false })
}

fn open(app: &App, epoch: u64, aside: Option<u64>) -> Result<EpochReader, Failure> {
    let opened = match aside {
        Some(at) => app.store.open_aside(at, epoch),
        None => app.store.open_epoch(epoch),
    };
    opened.map_err(|cause| {
        let known = (aside.is_some() && !cause.is_not_found())
            || app.store.epochs().iter().any(|meta| meta.epoch == epoch)
            || app.store.damaged().iter().any(|bad| bad.epoch == epoch);
        let kind = if known { ErrorKind::BadImage } else { ErrorKind::NotFound };
        Failure::new(kind, format!("{} epoch {epoch}: {cause}", app.name))
    })
}

/// Makes the application from its epoch (none: the last; or one that was put aside then), up to the last step; with `early` not all
/// of its memory need be there when it runs.
///
/// # Errors
/// Nothing has changed then but files of the application, which are as of the epoch.
pub fn ready(
    app: &App,
    epoch: Option<u64>,
    aside: Option<u64>,
    stdio: &[OwnedFd],
    early: bool,
) -> Result<Ready, Failure> {
    let since = Instant::now();
    if let Some(instance) = app.living() {
        return Err(Failure::new(
            ErrorKind::Refused,
            format!(
                "{} runs on this node as process {}; `holo stop {0}` it first",
                app.name, instance.real_pid
            ),
        ));
    }
    if app.record().instance.is_some() {
        // It has ended, and that was not seen yet.
        app.others.ended();
    }
    let epoch = match epoch {
        Some(epoch) => epoch,
        None => {
            let last = app.store.last().map(|meta| meta.epoch);
            last.ok_or_else(|| {
                let damaged = app.store.damaged();
                match damaged.last() {
                    Some(bad) => Failure::new(
                        ErrorKind::BadImage,
                        format!("{}: no usable epoch; the newest: {}", app.name, bad.reason),
                    ),
                    None => Failure::new(ErrorKind::NotFound, format!("{} has no epoch yet", app.name)),
                }
            })?
        }
    };
    // What stands by is of the line of epochs that are kept.
    let mut kept = app.hot.take();
    if aside.is_some() {
        Kept::forget(kept.take());
    }
    let image = match kept.as_ref().and_then(|kept| kept.image(app, epoch)) {
        Some(image) => Ok(image),
        None => open(app, epoch, aside).map(Arc::new),
    };
    let image = image.inspect_err(|_| Kept::forget(kept.take()))?;
    let mut work = app.work();
    // What the managers knew of the epoch before is of another past now.
    work.registry.clear();
    app.begin_changes(None);
    if let Some(kept) = kept {
        match kept.complete(app, &image, stdio) {
            Ok(prepared) => return Ok(Ready { prepared, epoch, since, hot: true }),
            Err(cause) => eprintln!("holod: {}: its hot clone is of no use: {cause}", app.name),
        }
    }
    let page = page(app);
    let mut kinds = registry(|pages| files(app, pages), roots(app), app.config.engine);
    let prepared = with_order(app, &image, stdio, &page, |order| {
        let order = Order { may_run_early: early && aside.is_none(), ..*order };
        prepare(&image, &order, &mut kinds).map_err(|cause| {
            forget_pages(&page);
            let kind = match &cause {
                RmError::Image(_) | RmError::BadSection { .. } => ErrorKind::BadImage,
                RmError::Unsupported(_) | RmError::Kernel { .. } => ErrorKind::Failed,
            };
            Failure::new(kind, format!("{} epoch {epoch} cannot be restored here: {cause}", app.name))
        })
    })?;
    Ok(Ready { prepared, epoch, since, hot: false })
}

/// Files of pages of a clone that did not come to be.
pub(crate) fn forget_pages(path: &Path) {
    let numbers = 0..holo_rm::kinds::tree::PROCESSES_MAX;
    for file in numbers.map(|number| page_path(path, number)).take_while(|file| file.exists()) {
        let _ = fs::remove_file(file);
    }
}

impl Ready {
    /// Keeps it waiting.
    pub fn keep_alive(&self) {
        self.prepared.keep_alive();
    }

    /// Number of the epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Lets it run.
    ///
    /// # Errors
    /// It was killed, maybe after it ran, since some of its memory could not be had.
    pub fn run(self, app: &Arc<App>) -> Result<RestoreInfo, Failure> {
        let failed = |what: String| Failure::new(ErrorKind::Failed, format!("{}: {what}", app.name));
        let running = self.prepared.run().map_err(|cause| failed(cause.to_string()))?;

        let first = &running.processes[0];
        let started = start_time(first.pid).ok_or_else(|| failed("the clone ended at once".into()))?;
        let instance = Instance {
            real_pid: first.pid,
            started,
            cluster_pid: first.inner as u32,
            page: first.page_path.clone(),
        };
        let (pid, page) = (first.pid, Arc::clone(&first.page));
        let leaf = |of: &Restored| Leaf { page: Arc::clone(&of.page), path: of.page_path.clone() };
        let processes = running.processes.iter().map(|of| (of.pid, of.inner, leaf(of))).collect();
        let memory = running.late.map_or(Memory::There, Memory::Comes);
        app.adopt(instance, page, Some(running.keeper), processes, memory);
        for remark in &running.remarks {
            eprintln!("holod: {}: {remark}", app.name);
        }
        let first = running.first_instruction.duration_since(self.since);
        app.all_there()?;
        let clone = if self.hot { "hot" } else { "cold" };
        let took = first.as_secs_f64() * 1e3;
        eprintln!(
            "holod: {}: runs from epoch {} after {took:.1} ms, by a {clone} clone",
            app.name, self.epoch
        );
        Ok(RestoreInfo {
            name: app.name.clone(),
            epoch: self.epoch,
            restore_us: self.since.elapsed().as_micros() as u64,
            first_instruction_us: first.as_micros() as u64,
            node: app.node.clone(),
            real_pid: pid as u32,
            remarks: running.remarks.into_iter().chain(app.others.told()).collect(),
        })
    }
}
