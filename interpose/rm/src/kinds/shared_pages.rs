//! Which pages of shared memory and of mapped files were stored to since the last sealed epoch, so that only those are copied in the
//! stop.
//!
//! What several processes map is written through each of their page tables: it is watched in all of them, and a page has changed if
//! one of them says so. What cannot be seen so makes all of an object count as changed: a process that came or went, a map that
//! did, memory that was given back. What is written through descriptors is not seen here: of files `Files` knows that, and memory
//! without a name that has a descriptor is staged as a whole, see `shared.rs`.

use crate::at_once;
use crate::kinds::counted::{Counts, counted};
use crate::kinds::increment::{kept, named};
use crate::kinds::memory::NAME;
use crate::kinds::memory_read::resident;
use crate::kinds::pagemap::Pagemap;
use crate::kinds::shared::ObjectKey;
use crate::kinds::zones::{self, Zone, ZoneKind};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::Remote;
use crate::track::ranges::{self, Range};
use crate::track::{Tracking, Userfaultfd};
use holo_abi::sysno;
use holo_image::{Names, PageKey};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Less is copied as fast as it is looked at.
const OBJECT_BYTES_MIN: u64 = 1 << 20;

const HUGE_BYTES: u64 = 2 << 20;
const MADV_NOHUGEPAGE: u64 = 15;

/// A process: pid on this node and start time.
type Who = (i32, u64);

/// A map of an object in a process.
#[derive(Clone, Copy, PartialEq, Eq)]
struct View {
    who: Who,
    start: u64,
    end: u64,
    offset: u64,
}

/// What is known of an object; places are offsets in it.
#[derive(Default)]
struct Object {
    /// Names of its pages in the last sealed epoch.
    known: Names,
    /// In the epoch that is being written.
    draft: Option<Names>,
    /// Changed since the last sealed epoch.
    changed: Vec<Range>,
    /// Its maps at the last look, if all of them were watched from then on.
    views: Vec<View>,
    /// `changed` has all since the last sealed epoch.
    is_based: bool,
    /// Nobody can have changed it unseen since then.
    is_told: bool,
    /// What zones have given in this stop.
    given: Vec<Range>,
}

#[derive(Default)]
struct Inner {
    watchers: BTreeMap<Who, Userfaultfd>,
    objects: BTreeMap<ObjectKey, Object>,
    /// What the pages of the processes counted at the last look: processes made and programs executed, and memory given back.
    counts: Counts,
}

/// Which pages of an object are to be copied, and which are as they are known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) read: Vec<Range>,
    pub(crate) keep: Vec<Range>,
}

/// The shared memory of an application, from epoch to epoch. Clones are the same.
#[derive(Clone, Default)]
pub struct SharedPages {
    tracking: Tracking,
    inner: Arc<Mutex<Inner>>,
}

/// The manager that looks, before all that wants to know.
pub struct Watching {
    pages: SharedPages,
    roots: Vec<PathBuf>,
}

impl Watching {
    /// One that looks for `pages`; of files only those are watched that are below `roots`, or stored to.
    #[must_use]
    pub fn new(pages: SharedPages, roots: Vec<PathBuf>) -> Self {
        Self { pages, roots }
    }

    fn is_wanted(&self, zone: &Zone) -> bool {
        match zone.kind {
            ZoneKind::SharedObject | ZoneKind::SysV => Some(zone.device) == device(),
            ZoneKind::FileShared => {
                let path = Path::new(OsStr::from_bytes(&zone.path));
                zone.prot & 2 != 0 || self.roots.iter().any(|root| path.starts_with(root))
            }
            ZoneKind::Anonymous
            | ZoneKind::Stack
            | ZoneKind::FilePrivate
            | ZoneKind::Vdso
            | ZoneKind::Vvar
            | ZoneKind::Vsyscall => false,
        }
    }

    /// Maps of all objects that are wanted, by object.
    fn find<'a>(&self, cx: &DumpCx<'a>) -> RmResult<BTreeMap<ObjectKey, Vec<(&'a Remote, View)>>> {
        let (mut found, mut wanted) = (BTreeMap::<ObjectKey, Vec<_>>::new(), BTreeSet::new());
        for process in cx.processes {
            let remote = &process.remote;
            let maps = remote.maps().on("reading", "maps")?;
            let started = remote.stat().map_or(0, |stat| stat.started);
            for zone in zones::parse_shared(maps).map_err(RmError::Unsupported)? {
                // Holo's own.
                if [remote.page.address(), remote.page.changes_at()].contains(&zone.start) {
                    continue;
                }
                let key = (zone.device, zone.inode);
                if self.is_wanted(&zone) {
                    wanted.insert(key);
                }
                let (start, end, offset) = (zone.start, zone.end, zone.offset);
                let view = View { who: (remote.pid, started), start, end, offset };
                found.entry(key).or_default().push((remote, view));
            }
        }
        found.retain(|key, _| wanted.contains(key));
        Ok(found)
    }
}

/// The device of the file system that has memory without a name; memory of huge pages has another.
pub(crate) fn device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        // SAFETY: a terminated name; what is returned is ours.
        let fd = unsafe { libc::memfd_create(c"holo".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        nix::sys::stat::fstat(&fd).ok().map(|stat| stat.st_dev)
    })
}

impl SharedPages {
    /// Watched as `tracking` watches all else.
    #[must_use]
    pub fn new(tracking: Tracking) -> Self {
        Self { tracking, inner: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the stop: what of an object that a zone shows is to be copied, and what is known, without what another zone has given.
    pub(crate) fn part(&self, remote: &Remote, zone: &Zone) -> RmResult<Part> {
        let there = resident(remote, zone)?;
        let mut inner = self.inner();
        let there: Vec<Range> = there.iter().map(|range| moved(*range, zone.start, zone.offset)).collect();
        let object = inner.objects.entry((zone.device, zone.inode)).or_default();
        let there = ranges::without(&there, &object.given);
        object.given = ranges::normal([object.given.as_slice(), &there].concat());
        let keep = ranges::without(&ranges::both(&there, &named(&object.known)), &object.changed);
        Ok(Part { read: ranges::without(&there, &keep), keep })
    }

    /// Where a file or segment was stored to through maps since the last sealed epoch; `None`: it may be anywhere.
    #[must_use]
    pub fn stored(&self, key: ObjectKey) -> Option<Vec<Range>> {
        self.inner().objects.get(&key).filter(|object| object.is_based).map(|object| object.changed.clone())
    }

    /// Names of pages of an object that are as they were.
    pub(crate) fn kept(&self, key: ObjectKey, keep: &[Range]) -> Names {
        self.inner().objects.get(&key).map_or_else(Names::default, |object| kept(&object.known, keep))
    }

    /// Pages of an object in the epoch that is being written.
    pub(crate) fn drafted(&self, key: ObjectKey, names: &Names) {
        if let Some(object) = self.inner().objects.get_mut(&key) {
            object.draft = Some(object.draft.take().unwrap_or_default().and(names));
        }
    }

    /// The store has not what is known.
    pub(crate) fn forget(&self) {
        self.inner().objects.values_mut().for_each(|object| object.known = Names::default());
    }

    /// Has what is kept to be compared with what is there?
    pub(crate) fn checks(&self) -> bool {
        self.tracking.checks()
    }

    /// Compares pages that are kept with what is there.
    pub(crate) fn check(&self, key: ObjectKey, keep: &[Range], bytes: &[u8]) -> RmResult<()> {
        let kept: Vec<PageKey> = self.kept(key, keep).items().collect();
        if kept == PageKey::of_all(bytes) {
            return Ok(());
        }
        let what = "shared memory changed without being tracked".to_owned();
        Err(RmError::BadSection { kind: NAME, what })
    }
}

fn moved((start, end): Range, from: u64, to: u64) -> Range {
    (start - from + to, end - from + to)
}

impl ResourceManager for Watching {
    fn name(&self) -> &'static str {
        "shared_pages"
    }

    /// Looks at all objects in all processes, and watches them from here on.
    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let mut inner = self.pages.inner();
        let found = self.find(cx)?;
        let counts = counted(cx, |header| &header.advised);
        let nobody_came = counts == inner.counts;
        inner.counts = counts;
        inner.objects.retain(|key, _| found.contains_key(key));
        let mut jobs: BTreeMap<Who, Job> = BTreeMap::new();
        for (key, views) in &found {
            let object = inner.objects.entry(*key).or_default();
            (object.draft, object.given) = (None, Vec::new());
            let is_here = |old: &View| views.iter().any(|(_, view)| view == old);
            object.is_told = nobody_came && !object.views.is_empty() && object.views.iter().all(is_here);
            let before = std::mem::take(&mut object.views);
            if views.iter().all(|(_, view)| view.end - view.start < OBJECT_BYTES_MIN) {
                continue;
            }
            object.views = views.iter().map(|(_, view)| *view).collect();
            for (remote, view) in views {
                let job =
                    jobs.entry(view.who).or_insert_with(|| Job { remote, watcher: None, views: Vec::new() });
                job.views.push((*key, *view, before.contains(view)));
            }
        }
        for (who, job) in &mut jobs {
            job.watcher = inner.watchers.remove(who);
        }
        inner.watchers.clear();
        let done =
            at_once::run(jobs.into_iter().collect(), |(who, job)| (who, job.run(&self.pages.tracking)));
        let mut lost = BTreeSet::new();
        for (who, (watcher, watched)) in done {
            inner.watchers.extend(watcher.map(|watcher| (who, watcher)));
            for (key, view, watched) in watched {
                let Some(object) = inner.objects.get_mut(&key) else { continue };
                match watched {
                    Some(Watched { written, is_new }) => {
                        object.is_told &= !is_new;
                        let written = written.iter().map(|range| moved(*range, view.start, view.offset));
                        object.changed.extend(written);
                    }
                    None => drop(lost.insert(key)),
                }
            }
        }
        for (key, object) in &mut inner.objects {
            if lost.contains(key) {
                object.views.clear();
            }
            if object.views.is_empty() || !object.is_told {
                object.is_based = false;
                object.known = Names::default();
                object.changed.clear();
            }
            object.changed = ranges::normal(std::mem::take(&mut object.changed));
        }
        Ok(())
    }

    fn sealed(&mut self) {
        for object in self.pages.inner().objects.values_mut() {
            object.known = object.draft.take().unwrap_or_default();
            object.changed.clear();
            object.is_based = !object.views.is_empty();
        }
    }

    /// What was to be copied comes again.
    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.pages.inner().objects.values_mut().for_each(|object| object.draft = None);
    }

    /// Made with memory.
    fn switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }
}

/// The views of one process.
struct Job<'a> {
    remote: &'a Remote,
    watcher: Option<Userfaultfd>,
    /// With whether they were watched at the last look.
    views: Vec<(ObjectKey, View, bool)>,
}

type Done = (Option<Userfaultfd>, Vec<(ObjectKey, View, Option<Watched>)>);

impl Job<'_> {
    fn run(self, tracking: &Tracking) -> Done {
        let Self { remote, watcher, views } = self;
        let watcher = watcher.or_else(|| tracking.watcher(remote));
        let mut failed = false;
        let watched = views
            .into_iter()
            .map(|(key, view, before)| {
                let watched = watcher.as_ref().and_then(|watcher| watch(watcher, remote, &view, before));
                failed |= watched.is_none();
                (key, view, watched)
            })
            .collect();
        // Of a program that it does not execute any more, perhaps: the next look begins with another.
        (watcher.filter(|_| !failed), watched)
    }
}

struct Watched {
    /// Addresses of what may have been written; of holes too.
    written: Vec<Range>,
    /// It is watched from now on only.
    is_new: bool,
}

/// Watches a zone, and what was written since it was looked at last. `None`: it cannot be watched.
fn watch(watcher: &Userfaultfd, remote: &Remote, view: &View, before: bool) -> Option<Watched> {
    if remote.page.control().header.hands_off.load(Ordering::SeqCst) != 0 {
        return None;
    }
    remote.page.keep_alive();
    let pagemap = Pagemap::open(remote.face).ok()?;
    let is_new = !before || !pagemap.is_watched(view.start);
    if is_new && !watcher.watch_shared(remote, view.start, view.end).ok()? {
        return Some(Watched { written: Vec::new(), is_new: false });
    }
    // A huge page is marked as a whole, and is there again as a whole when one byte of it is stored to.
    if is_new && view.end - view.start >= HUGE_BYTES {
        let _ = remote.call(sysno::madvise, &[view.start, view.end - view.start, MADV_NOHUGEPAGE]);
    }
    let written = pagemap.mark(&[(view.start, view.end)]).ok()?;
    Some(Watched { written, is_new })
}
