//! DUMP: one epoch of one application.

mod ahead;
mod alive;
mod asking;
mod park;

use crate::app::{App, Failure, now_ns};
use crate::fence::{Held, Kept, Progress};
use crate::files::Files;
use crate::graph::{Costs, process_id, state_id};
use crate::kinds::registry;
use crate::record::Instance;
use alive::Alive;
use asking::Asking;
use holo_api::local::ErrorKind;
use holo_image::wire::{self, Kind};
use holo_image::{Blob, BlobPart, EpochMeta, EpochSide, EpochWriter, PAGE_BYTES};
use holo_rm::face::face;
use holo_rm::kinds::memory::NAME as MEMORY;
use holo_rm::kinds::shared_pages::SharedPages;
use holo_rm::manager::{DumpCx, RmError, Sections, Since};
use holo_rm::page::Page;
use holo_rm::registry::Registry;
use holo_rm::remote::Remote;
use holo_rm::tree::{Census, Process, Seat};
use park::{fence, mark, park};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Section with the contents that kinds staged: name to blob.
pub const CONTENTS: &str = "contents";
/// Version of it.
pub const CONTENTS_VERSION: u16 = 1;
/// Envelope of it.
pub const CONTENTS_KIND: Kind = Kind::new(34, 1);
/// How pages are found that changed, where no kind tracks them: all are looked at.
const ENGINE: &str = "full-scan";
/// How often an epoch is tried again that would cut through a moment which passes by itself, and the wait before each.
const MOMENTS: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(3),
    Duration::from_millis(10),
    Duration::from_millis(30),
];
/// No stop lasts longer: past it the parked threads are no longer told that we are alive.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Nor does storing an epoch.
const STORE_MAX: Duration = Duration::from_secs(3600);

/// The files manager of an application.
pub(crate) fn files(app: &App, pages: SharedPages) -> Files {
    let replaced = app.paths.replaced.join(&app.name);
    let (changes, names) = (Arc::clone(&app.changes), Arc::clone(&app.names));
    let mut excludes = vec![app.paths.state.clone()];
    excludes.extend(app.record().options.excludes.iter().map(|path| PathBuf::from(OsStr::from_bytes(path))));
    let (others, store) = (Arc::clone(&app.others), app.store.clone());
    Files::new(roots(app), excludes, (Some(replaced), others), (changes, names), pages, store)
}

pub(crate) fn roots(app: &App) -> Vec<PathBuf> {
    app.record().options.roots.iter().map(|root| PathBuf::from(OsStr::from_bytes(root))).collect()
}

/// Adds to the sum of that name.
fn add(sums: &mut Vec<(String, u64)>, name: &str, more: u64) {
    match sums.iter_mut().find(|(known, _)| known == name) {
        Some((_, sum)) => *sum += more,
        None => sums.push((name.to_owned(), more)),
    }
}

/// Processor time of this agent, of all its threads.
fn cpu_us() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0, |time| Duration::from(time).as_micros() as u64)
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// Takes an epoch, seals it in the local store. On any failure the application runs on and is shown as
/// unprotected with the reason.
///
/// # Errors
/// Why there is no new epoch.
pub fn take(app: &App) -> Result<EpochMeta, Failure> {
    let (instance, _) = app.instance().ok_or_else(|| not_running(app))?;
    let (since, cpu) = (Instant::now(), cpu_us());
    let taken = attempt(app, &instance, None);
    // One that failed stopped it for no longer than it took.
    let (stop_us, pages) =
        taken.as_ref().map_or_else(|_| (micros(since), 0), |meta| (meta.stop_us, meta.pages_dirty));
    app.spent(stop_us, cpu_us().saturating_sub(cpu), pages);
    match &taken {
        Ok(meta) => {
            app.set_reasons(Vec::new());
            app.sealed(meta.epoch);
        }
        // Gone is not unprotected.
        Err(failure) if app.instance().is_some() && failure.kind != ErrorKind::Refused => {
            app.set_reasons(vec![failure.message.clone()]);
        }
        Err(_) => {}
    }
    taken
}

/// What the phases fill in.
#[derive(Default)]
struct Out {
    sections: Sections,
    remarks: Vec<String>,
    unsettled: Vec<String>,
    staged: Vec<holo_rm::manager::Staged>,
    files_changed: u64,
}

impl Out {
    /// Adds what was found of another process.
    fn merge(&mut self, mut other: Self) {
        self.sections.0.append(&mut other.sections.0);
        self.remarks.append(&mut other.remarks);
        self.unsettled.append(&mut other.unsettled);
        self.staged.append(&mut other.staged);
        self.files_changed += other.files_changed;
    }
}

/// Takes the last epoch before a planned switch: the application stays parked in `kept` from its cut on. It is told in
/// `progress` when nothing runs any more; nobody else is told of the epoch.
///
/// # Errors
/// Why there is no such epoch.
pub(crate) fn last<'a>(
    app: &'a App,
    of: &Instance,
    kept: &mut Option<Kept<'a>>,
    progress: &Progress,
) -> Result<EpochMeta, Failure> {
    let meta = attempt(app, of, Some(Keep { kept, progress }))?;
    if kept
        .as_ref()
        .is_none_or(|kept| kept.held.is_lost() || kept.parked.pages().iter().any(|page| page.is_given_up()))
    {
        let message =
            format!("{}: ran on after its last epoch was cut, so that it is not the last", app.name);
        return Err(Failure::new(ErrorKind::Failed, message));
    }
    app.retain();
    Ok(meta)
}

/// Where a parked application is left.
struct Keep<'k, 'a> {
    kept: &'k mut Option<Kept<'a>>,
    progress: &'k Progress,
}

fn attempt<'a>(
    app: &'a App,
    instance: &Instance,
    mut keep: Option<Keep<'_, 'a>>,
) -> Result<EpochMeta, Failure> {
    app.all_there()?;
    let mut work = app.work();
    let since = Instant::now();
    // It may have ended while another epoch was taken.
    if app.instance().is_none_or(|(now, _)| now != *instance) {
        return Err(not_running(app));
    }
    if work.registry.is_empty() {
        work.registry = registry(|pages| files(app, pages), roots(app), app.config.engine);
    }
    let registry = &mut work.registry;
    let _taken = app.taking.begin();
    let mut moments = MOMENTS.iter();
    let is_to_stay = keep.is_some();
    let outcome = loop {
        let mut out = Out::default();
        app.store.restart_progress();
        let wait = moments.next();
        let outcome = phases(app, instance, registry, &mut out, since, wait.is_some(), &mut keep);
        if outcome.is_ok() {
            break outcome;
        }
        let processes = unparked(&app.members.seats()).unwrap_or_default();
        if processes.is_empty() {
            // Nobody is left to whom anything could be put back.
            work.registry.clear();
            break outcome;
        }
        // What cannot fail has nothing to say.
        let _ = registry.each_reversed(&pids(&processes), &mut |manager, index| {
            manager.abort_dump(&mut context(&processes, index, &mut out, app));
            Ok(())
        });
        // One that stays parked has been cut already.
        let again = !out.unsettled.is_empty() && keep.is_some() == is_to_stay;
        if let Some(wait) = wait.filter(|_| again) {
            thread::sleep(*wait);
            continue;
        }
        // A process that ended meanwhile is no obstacle.
        if app.instance().is_none() {
            work.registry.clear();
            return Err(not_running(app));
        }
        break outcome;
    };
    let mut meta = outcome?;
    meta.dump_us = micros(since);
    let side = app.store.update_side(meta.epoch, |side: &mut EpochSide| {
        side.dump_us = Some(meta.dump_us);
    });
    if let Err(cause) = side {
        eprintln!("holod: {}: {cause}", app.name);
    }
    Ok(meta)
}

fn not_running(app: &App) -> Failure {
    if let Some((_, why)) = app.out_of_reach() {
        return Failure::new(ErrorKind::Unprotected, why);
    }
    Failure::new(ErrorKind::Refused, format!("{} does not run on this node", app.name))
}

/// The processes while they run: they serve no calls.
fn unparked(seats: &[Seat]) -> io::Result<Vec<Process>> {
    let ready = seats.iter().filter_map(|seat| Some((seat, seat.page.clone()?)));
    let process = |(seat, page): (&Seat, Arc<Page>)| match Remote::facing(page, seat.pid, face(seat.pid), 0) {
        Ok(remote) => Some(Ok(Process { remote, pid: seat.inner, slots: Vec::new(), stopped: false })),
        // It has ended since it was seen.
        Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => None,
        Err(cause) => Some(Err(cause)),
    };
    ready.filter_map(process).collect()
}

fn pids(processes: &[Process]) -> Vec<i32> {
    processes.iter().map(|process| process.pid).collect()
}

fn context<'a>(processes: &'a [Process], index: usize, out: &'a mut Out, app: &'a App) -> DumpCx<'a> {
    DumpCx {
        remote: &processes[index].remote,
        slots: &processes[index].slots,
        processes,
        index,
        sections: &mut out.sections,
        remarks: &mut out.remarks,
        unsettled: &mut out.unsettled,
        staged: &mut out.staged,
        staging_dir: &app.paths.staging,
        writer: None,
        files_changed: out.files_changed,
    }
}

/// Why the processes cannot be looked at. It is tried again where a thread that one was looked at through has ended since, perhaps with
/// its process.
fn unseen(cause: &RmError, processes: &[Process], out: &mut Out) -> Failure {
    let blind = processes.iter().filter(|process| process.remote.has_lost_face() || process.remote.ended());
    let what =
        |process: &Process| format!("a thread of process {} has just ended: {cause}", process.remote.pid);
    out.unsettled.extend(blind.map(what));
    unprotected(cause)
}

fn unprotected(cause: &RmError) -> Failure {
    Failure::new(ErrorKind::Unprotected, cause.to_string())
}

/// PRE_DUMP: the application runs.
fn prepare(app: &App, registry: &mut Registry, out: &mut Out) -> Result<(), Failure> {
    let running = unparked(&app.members.seats());
    let running = running.map_err(|cause| Failure::new(ErrorKind::Failed, cause.to_string()))?;
    if running.is_empty() {
        return Ok(());
    }
    let done = registry.each(&pids(&running), &mut |manager, index| {
        let done = manager.pre_dump(&mut context(&running, index, out, app));
        // One that ends meanwhile is no obstacle.
        if running[index].remote.ended() { Ok(()) } else { done }
    });
    done.map_err(|cause| unseen(&cause, &running, out))
}

fn phases<'a>(
    app: &'a App,
    of: &Instance,
    registry: &mut Registry,
    out: &mut Out,
    since: Instant,
    may_wait: bool,
    keep: &mut Option<Keep<'_, 'a>>,
) -> Result<EpochMeta, Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::new(ErrorKind::Failed, cause.to_string());
    prepare(app, registry, out)?;
    let marked = mark(app, registry, out)?;
    if marked.is_some() {
        prepare(app, registry, out)?;
    }
    let mut parts = vec![("prepare".to_owned(), micros(since))];
    let start = Instant::now();
    let paused = ahead::ahead(app, registry, out)?;
    parts.push(("ahead".into(), micros(start)));
    parts.extend(paused.map(|stop| ("pause".to_owned(), stop.as_micros() as u64)));
    parts.extend(marked.map(|stop| ("mark".to_owned(), stop.as_micros() as u64)));
    let cut = fence(app)?;
    let (parked, processes, alert) = park(app)?;
    let alive = Alive::start(parked.pages(), STOP_MAX);
    let at_unix_ns = now_ns();
    parts.push(("park".into(), micros(parked.since)));
    if processes.is_empty() {
        return Err(not_running(app));
    }
    let pids = pids(&processes);
    let mut asking = Asking { app, processes: &processes, may_wait, parts: &mut parts };
    asking.all(registry, &pids, out).map_err(|cause| unprotected(&cause))?;
    out.remarks.append(&mut out.unsettled);
    let threads = parked.threads();
    drop(alert);
    let stop = match keep.take() {
        None => {
            let release = Instant::now();
            let stop = parked.release().map_err(|cause| failed(&cause))?;
            released(registry, &pids);
            parts.push(("unpark".into(), micros(release)));
            drop(cut);
            stop
        }
        Some(Keep { kept, progress }) => {
            let stop = parked.since.elapsed();
            let held = Held::start(parked.pages(), &app.guard, of);
            released(registry, &pids);
            *kept = Some(Kept { parked, held, cut });
            progress.parked();
            stop
        }
    };
    // Snapshots wait while others are stored.
    let pages = processes.iter().map(|process| Arc::clone(&process.remote.page)).collect();
    let _alive = Alive::start(pages, STORE_MAX);
    drop(alive);
    let mut meta = EpochMeta {
        at_unix_ns,
        node: app.node.clone(),
        stop_us: (stop + marked.unwrap_or_default() + paused.unwrap_or_default()).as_micros() as u64,
        processes: processes.len() as u32,
        threads: threads as u32,
        engine: engines(registry, &pids),
        stop_parts_us: parts,
        sealed_where: vec!["local".into()],
        ..EpochMeta::default()
    };
    store(app, &processes, registry, out, &mut meta)?;
    Ok(meta)
}

/// Stores a content of which an epoch has most.
fn patched(writer: &mut EpochWriter, copy: &File, since: &Since) -> holo_image::Result<Blob> {
    let (mut parts, mut fresh, mut at) = (Vec::new(), Vec::new(), 0);
    for &(start, end) in &since.changed {
        parts.push(BlobPart::Base { at, len: start - at });
        parts.push(BlobPart::Fresh { len: end - start });
        let from = fresh.len();
        fresh.resize(from + (end - start) as usize, 0);
        copy.read_exact_at(&mut fresh[from..], start).map_err(holo_image::Error::Source)?;
        at = end;
    }
    parts.push(BlobPart::Base { at, len: since.base.len - at });
    let blob = writer.patch_blob(&since.base, &parts, &mut fresh.as_slice())?;
    writer.keep_blob(&blob)?;
    Ok(blob)
}

/// Tells all kinds that the stop is over.
fn released(registry: &mut Registry, pids: &[i32]) {
    let _ = registry.each(pids, &mut |manager, _| {
        manager.released();
        Ok(())
    });
}

/// How changes were found, in the processes of an application: one word, or several if they differ.
fn engines(registry: &mut Registry, pids: &[i32]) -> String {
    let mut all = BTreeSet::new();
    let _ = registry.each(pids, &mut |manager, _| {
        all.extend(manager.engine());
        Ok(())
    });
    if all.is_empty() { ENGINE.into() } else { Vec::from_iter(all).join("+") }
}

/// POST_DUMP: the application runs; what was captured goes into the store.
fn store(
    app: &App,
    processes: &[Process],
    registry: &mut Registry,
    out: &mut Out,
    meta: &mut EpochMeta,
) -> Result<(), Failure> {
    let bad =
        |cause: &dyn std::fmt::Display| Failure::new(ErrorKind::Failed, format!("{}: {cause}", app.name));
    let mut writer = app.store.begin(app.store.newest_number() + 1).map_err(|cause| bad(&cause))?;
    let mut dirty = 0;
    let mut bytes_by_kind: Vec<(&'static str, u64)> = Vec::new();
    let mut costs = Costs::new();
    let mut cost = |part: String, bytes: u64| {
        if bytes > 0 {
            *costs.entry(part).or_default() += bytes;
        }
    };
    let stored = registry.each_reversed(&pids(processes), &mut |manager, index| {
        let before = writer.figures();
        let mut cx = context(processes, index, out, app);
        cx.writer = Some(&mut writer);
        let done = manager.post_dump(&mut cx);
        let changed = cx.files_changed;
        out.files_changed = changed;
        let after = writer.figures();
        let put = after.pages_put - before.pages_put;
        let bytes = put * PAGE_BYTES as u64;
        let part = if manager.name() == MEMORY {
            process_id(processes[index].pid)
        } else {
            state_id(manager.name())
        };
        cost(part, after.bytes_written - before.bytes_written);
        dirty += if manager.engine().is_some_and(|engine| engine != ENGINE) {
            put - (after.pages_zero - before.pages_zero)
        } else {
            after.pages_new - before.pages_new
        };
        match bytes_by_kind.iter_mut().find(|(name, _)| *name == manager.name()) {
            Some((_, sum)) => *sum += bytes,
            None if bytes > 0 => bytes_by_kind.push((manager.name(), bytes)),
            None => {}
        }
        for (name, bytes) in manager.bytes() {
            match bytes_by_kind.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += bytes,
                None => bytes_by_kind.push((name, *bytes)),
            }
        }
        done
    });
    stored.map_err(|cause| unprotected(&cause))?;
    meta.bytes_by_kind = bytes_by_kind.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let mut contents: BTreeMap<String, Blob> = BTreeMap::new();
    for staged in out.staged.drain(..) {
        let before = writer.figures().bytes_written;
        let blob = match &staged.since {
            Some(since) => patched(&mut writer, &staged.copy, since),
            None => writer.put_file(&staged.copy),
        };
        let blob = blob.map_err(|cause| bad(&cause))?;
        cost(state_id("contents"), writer.figures().bytes_written - before);
        contents.insert(staged.name, blob);
    }
    let _ = registry.each(&pids(processes), &mut |manager, _| {
        manager.stored(&contents);
        Ok(())
    });
    let bytes = wire::encode(&contents, CONTENTS_KIND).map_err(|cause| bad(&cause))?;
    out.sections.0.insert(CONTENTS.to_owned(), (CONTENTS_VERSION, bytes));
    let mut section_bytes = 0;
    for (kind, (version, bytes)) in std::mem::take(&mut out.sections.0) {
        section_bytes += bytes.len() as u64;
        let of = |(_, index): (&str, &str)| processes.get(index.parse::<usize>().ok()?);
        match kind.split_once('@').and_then(of) {
            Some(process) => cost(process_id(process.pid), bytes.len() as u64),
            None => cost(state_id(&kind), bytes.len() as u64),
        }
        writer.put_section(&kind, version, bytes).map_err(|cause| bad(&cause))?;
    }
    let figures = writer.figures();
    meta.pages_dirty = dirty;
    meta.bytes_raw = figures.pages_put * PAGE_BYTES as u64 + section_bytes;
    meta.bytes_sent = figures.bytes_written + section_bytes;
    meta.files_changed = out.files_changed;
    meta.bytes_by_kind.push(("states".into(), section_bytes));
    for remark in &out.remarks {
        eprintln!("holod: {}: {remark}", app.name);
    }
    let sealed = writer.seal(meta.clone()).map_err(|cause| bad(&cause))?;
    let _ = registry.each(&pids(processes), &mut |manager, _| {
        manager.sealed();
        Ok(())
    });
    *meta = sealed.meta;
    *app.costs.lock() = costs;
    Ok(())
}
