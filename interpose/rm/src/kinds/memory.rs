//! Memory: zones, their contents, the process's memory layout.
//!
//! Pages that did not change since the last sealed epoch are taken over by name (`increment.rs`). In the stop
//! the others are copied if they are few; else only a copy-on-write snapshot is taken, and what a snapshot
//! cannot hold is copied: shared objects, zones that `fork` leaves out. All else is read from it afterwards.

use crate::asks::{Asked, Asking};
use crate::face::face;
use crate::kinds::changing::Changing;
use crate::kinds::hashes;
use crate::kinds::increment::{self, Increment, Plan, Runs};
use crate::kinds::left_out::LeftOut;
use crate::kinds::memory_look::{advised, layout, own, parse_zones, read_zones};
use crate::kinds::memory_objects::Objects;
use crate::kinds::memory_read::{check, read_snapshot, wanted, whole};
use crate::kinds::pagemap::Pagemap;
use crate::kinds::shared::SharedObjects as Common;
use crate::kinds::shared_pages::SharedPages;
use crate::kinds::vdso::VdsoState;
use crate::kinds::zone_flags::Flags;
use crate::kinds::zones::{self, PAGE, Zone, ZoneKind};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call, read_guarded};
use crate::snapshot::{self, Snapshot};
use crate::track::{Tracking, ranges};
use holo_abi::control::CONTROL_BYTES;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Name of the kind and of its section.
pub const NAME: &str = "memory";
pub(crate) const VERSION: u16 = 1;
/// Zones of one process; the kernel's default limit is 65530.
const ZONES_MAX: usize = 1 << 20;
/// Most of a process that cannot be forked.
const UNFORKED_BYTES_MAX: u64 = 1 << 30;

/// Addresses of the process's parts, as `prctl(PR_SET_MM_MAP)` takes them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Layout {
    /// `start_code` to `env_end`, in the order of `struct prctl_mm_map`.
    pub words: [u64; 11],
    /// Auxiliary vector.
    #[serde(with = "holo_image::wire::bytes")]
    pub auxv: Vec<u8>,
}

/// A shared memory object without a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SharedObject {
    /// Its identity on the node of the epoch.
    pub key: (u64, u64),
    /// Name as `maps` shows it.
    #[serde(with = "holo_image::wire::bytes")]
    pub path: Vec<u8>,
    /// Bytes that the zones reach.
    pub bytes: u64,
}

/// State.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemoryState {
    /// Zones, in rising order, without the control page and what the kernel provides.
    pub zones: Vec<Zone>,
    /// Layout.
    pub layout: Layout,
    /// Shared objects.
    pub objects: Vec<SharedObject>,
    /// The kernel's code.
    pub vdso: VdsoState,
    /// Files mapped privately: path, size, and a hash of the content.
    pub files: Vec<(Vec<u8>, u64, [u8; 32])>,
}

/// The manager.
#[derive(Default)]
pub struct Memory {
    asked: Option<Asked>,
    flags: Flags,
    /// Calls that change flags, at the cut.
    advised: u32,
    /// Flags were read in the stop.
    flagged: bool,
    state: Option<MemoryState>,
    snapshot: Option<Snapshot>,
    /// Copied in the stop: address, bytes.
    copied: Vec<(u64, Vec<u8>)>,
    /// Zones that are in `copied` instead of the snapshot.
    by_hand: Vec<(u64, u64)>,
    increment: Increment,
    /// What is read and what is kept; none: all is read.
    plan: Option<Plan>,
    /// Pages to be read, copied in the stop; the buffer is used again.
    staging: Vec<u8>,
    staged: bool,
    /// It could not be forked: all was copied in the stop.
    unforked: bool,
    /// Times within the stop: name and microseconds.
    pub parts_us: Vec<(String, u64)>,
    /// Directories whose files come with the image.
    roots: Vec<std::path::PathBuf>,
    /// Shared objects.
    objects: Objects,
    /// Files that changed while a snapshot was read.
    changing: Changing,
    /// All of it is to begin to be watched in a stop of its own.
    wants_mark: bool,
    /// Since that stop flags were not read.
    marked: bool,
}

impl Memory {
    /// A manager; files under `roots` come with the image, `shared` are the objects that descriptors hold too;
    /// `tracking` is one for all processes, as `shared_pages` is.
    #[must_use]
    pub fn new(
        roots: Vec<std::path::PathBuf>,
        shared: Common,
        tracking: Tracking,
        shared_pages: SharedPages,
    ) -> Self {
        let objects = Objects::new(shared, shared_pages);
        Self { roots, objects, increment: Increment::new(tracking), ..Self::default() }
    }

    /// Reads ranges of the parked process itself.
    fn copy_now(&mut self, cx: &DumpCx, zone: &Zone, ranges: &[(u64, u64)]) -> RmResult<()> {
        for (start, end) in ranges {
            let mut bytes = vec![0; (end - start) as usize];
            cx.remote.page.keep_alive();
            let done = match zone.prot & 1 {
                0 => read_guarded(cx.remote.face, *start, &mut bytes),
                _ => cx.remote.read(*start, &mut bytes),
            };
            done.on("copying", format!("zone {:#x}", zone.start))?;
            self.copied.push((*start, bytes));
        }
        Ok(())
    }

    /// Copies private maps of files without a name: the file is gone with the application.
    fn copy_nameless(&mut self, cx: &DumpCx, all: &[Zone]) -> RmResult<()> {
        for zone in all.iter().filter(|zone| zone.kind == ZoneKind::FilePrivate && zone.deleted) {
            self.by_hand.push((zone.start, zone.end));
            let ranges = whole(cx.remote, zone);
            self.copy_now(cx, zone, &ranges)?;
        }
        Ok(())
    }

    /// Takes a snapshot, and copies what fork left out or wiped, and what others may take from the snapshot.
    fn fork(&mut self, cx: &DumpCx, all: &mut [Zone]) -> RmResult<()> {
        let own = own(cx.remote);
        // They are not in the snapshot, where the flags of all others are read.
        if all.iter().any(|zone| zone.kind == ZoneKind::SysV) {
            let mut flagged: Vec<&mut Zone> = all.iter_mut().filter(|zone| !zone.is_kernels()).collect();
            self.flagged = self.flags.add(cx.remote.face, self.advised, &mut flagged);
        }
        let snapshot = {
            let _hands = cx.remote.page.hands();
            let _left_out = LeftOut::of(cx.remote, all)?;
            Snapshot::take(cx.remote)
        };
        // One that may have no more processes (`RLIMIT_NPROC`) is copied.
        self.unforked = snapshot.as_ref().is_err_and(snapshot::is_no_more_processes);
        let (there, mut room) = match &snapshot {
            Ok(snapshot) => (read_zones(snapshot.pid, own)?, u64::MAX),
            Err(_) => (Vec::new(), UNFORKED_BYTES_MAX),
        };
        let snapshot = if self.unforked { None } else { Some(snapshot?) };
        self.changing.cut(all);
        let wiped = if cx.remote.page.control().header.wipe_on_fork.load(Ordering::Relaxed) == 0 {
            Vec::new()
        } else {
            let mut flagged = all.to_vec();
            let smaps = fs::read(cx.remote.proc("smaps")).on("reading", "smaps")?;
            zones::add_flags(&mut flagged.iter_mut().collect::<Vec<_>>(), &smaps);
            flagged.retain(|zone| zone.flags.contains(b"wf"));
            flagged
        };
        let mut pagemap = Pagemap::open(cx.remote.face).on("opening", "pagemap")?;
        for zone in all.iter().filter(|zone| zone.is_private()) {
            if zone.kind == ZoneKind::FilePrivate && zone.deleted {
                continue;
            }
            let left_out = there.binary_search_by_key(&zone.start, |other| other.start).is_err()
                && !there.iter().any(|other| other.start <= zone.start && zone.end <= other.end);
            let is_wiped = wiped.iter().any(|other| other.start == zone.start);
            if !left_out && !is_wiped && !self.changing.has(zone) {
                continue;
            }
            self.by_hand.push((zone.start, zone.end));
            if self.staged {
                continue;
            }
            let ranges = match &self.plan {
                Some(plan) => ranges::both(&plan.read, &[(zone.start, zone.end)]),
                None => pagemap.own_ranges(zone.start, zone.end).on("reading", "pagemap")?,
            };
            room = room.checked_sub(ranges::bytes(&ranges)).ok_or_else(|| {
                RmError::Unsupported(
                    "it may have no more processes, and has too much memory to be copied in a stop".into(),
                )
            })?;
            self.copy_now(cx, zone, &ranges)?;
        }
        self.by_hand = ranges::normal(std::mem::take(&mut self.by_hand));
        self.snapshot = snapshot;
        Ok(())
    }

    fn mark(&mut self, name: &str, since: &mut std::time::Instant) {
        self.parts_us.push((name.into(), since.elapsed().as_micros() as u64));
        *since = std::time::Instant::now();
    }
}

impl ResourceManager for Memory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.wants_mark = self.increment.wants_mark(cx.remote);
        Ok(())
    }

    fn wants_mark(&self) -> bool {
        self.wants_mark
    }

    fn mark(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        (self.wants_mark, self.marked, self.flags) = (false, true, Flags::default());
        self.advised = advised(cx.remote);
        let started = cx.remote.stat().map_or(0, |stat| stat.started);
        self.increment.mark(cx, started, &read_zones(cx.remote.face, own(cx.remote))?)
    }

    fn watch(&mut self, cx: &mut DumpCx) -> RmResult<bool> {
        let looks = self.increment.looks_ahead(cx.remote);
        if !looks && !self.marked {
            return Ok(false);
        }
        // It has ended, if they cannot be read.
        let Ok(mut zones) = read_zones(cx.remote.face, own(cx.remote)) else { return Ok(false) };
        let is_wanted =
            looks && !zones.iter().any(super::aio::is_ring) && self.increment.watch_ahead(cx.remote, &zones);
        if std::mem::take(&mut self.marked) {
            // In the stop it would take long. What changes since the mark is known.
            let mut zones: Vec<&mut Zone> = zones.iter_mut().filter(|zone| !zone.is_kernels()).collect();
            self.flags.add(cx.remote.face, self.advised, &mut zones);
        }
        Ok(is_wanted)
    }

    fn ahead(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.increment.store_ahead(cx)
    }

    fn ahead_lost(&mut self) {
        self.increment.ahead.forget();
    }

    fn bytes(&self) -> &[(&'static str, u64)] {
        self.increment.ahead.figures()
    }

    fn ask(&mut self, _: &Remote, asking: &mut Asking) {
        self.asked = asking.add(0, |_| vec![call(sysno::brk, &[0])]);
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let mut since = std::time::Instant::now();
        self.parts_us.clear();
        self.copied.clear();
        self.objects.clear();
        self.by_hand.clear();
        (self.unforked, self.flagged) = (false, false);
        let own = own(cx.remote);
        self.advised = advised(cx.remote);
        let mut all = parse_zones(cx.remote.maps().on("reading", "maps")?, own)?;
        let rings = super::aio::owned(cx.remote, &all)?;
        all.retain(|zone| !rings.contains(&zone.start));
        let (layout, started) = layout(cx, &self.asked.take().unwrap_or_default())?;
        let objects = self.objects.take(cx, &all)?;
        self.copy_nameless(cx, &all)?;
        self.mark("zones", &mut since);
        let taken = self.increment.take(cx, started, &all);
        self.flags.keep(taken.as_ref().map_or(&[], |plan| plan.as_ref().map_or(&[], |plan| &plan.lasting)));
        self.plan = taken?;
        self.mark("track", &mut since);
        // Without fork where that is shorter; a copy that fails is no reason to fail.
        self.staged = self.plan.as_ref().is_some_and(|plan| {
            plan.copies(&all) && increment::copy(cx.remote, &plan.read, &mut self.staging).is_ok()
        });
        if self.staged {
            self.mark("staging", &mut since);
        }
        if !self.staged || self.increment.checks() {
            self.fork(cx, &mut all)?;
            self.mark("fork", &mut since);
        }
        let code = match all.iter().find(|zone| zone.kind == ZoneKind::Vdso) {
            Some(zone) => {
                let mut code = vec![0; zone.bytes() as usize];
                cx.remote.read(zone.start, &mut code).on("reading", "the vdso")?;
                code
            }
            None => Vec::new(),
        };
        let (kernels, mut zones): (Vec<_>, Vec<_>) = all.into_iter().partition(Zone::is_kernels);
        // Without a snapshot there may be nobody left to ask: many new processes live for a moment only.
        if !self.flagged && self.snapshot.is_none() && self.flags.is_new() {
            self.flagged =
                self.flags.add(cx.remote.face, self.advised, &mut zones.iter_mut().collect::<Vec<_>>());
        }
        self.state = Some(MemoryState {
            zones,
            layout,
            objects,
            vdso: VdsoState { zones: kernels, code },
            files: Vec::new(),
        });
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let (snapshot, Some(mut state)) = (self.snapshot.take(), self.state.take()) else {
            return Err(RmError::BadSection { kind: NAME, what: "nothing was captured".into() });
        };
        // That which it had in the stop may have ended.
        let flags_of = snapshot.as_ref().map_or_else(|| face(cx.remote.pid), |snapshot| snapshot.pid);
        let mut zones: Vec<&mut Zone> = state.zones.iter_mut().collect();
        if !self.flagged && !self.flags.add(flags_of, self.advised, &mut zones) {
            let ended = format!("process {} ended while its memory was stored", cx.remote.pid);
            cx.unsettled.push(ended.clone());
            return Err(RmError::Unsupported(ended));
        }
        let copied = std::mem::take(&mut self.copied);
        let plan = self.plan.take();
        let mut keep = plan.as_ref().map(|plan| plan.keep.clone()).unwrap_or_default();
        let mut runs = Runs::new();
        if let Some(snapshot) = &snapshot {
            // The application cannot read them, the snapshot may.
            let mut calls: Vec<_> = state
                .zones
                .iter()
                .filter(|zone| zone.is_private() && zone.prot & 1 == 0)
                .map(|zone| call(sysno::mprotect, &[zone.start, zone.bytes(), 1]))
                .collect();
            snapshot.run(cx.remote, &mut calls).on("opening", "zones of the snapshot")?;
        }
        let base = cx.space(0);
        let writer = cx.writer.as_mut().ok_or(RmError::BadSection { kind: NAME, what: "no image".into() })?;
        match (&snapshot, &plan) {
            (_, Some(plan)) if self.staged => {
                // All at once: they are few, and named on all processors.
                let mut keys = writer.put_page_bytes(&self.staging)?.into_iter();
                for (start, end) in &plan.read {
                    runs.insert(*start, keys.by_ref().take(((end - start) / PAGE) as usize).collect());
                }
            }
            (Some(snapshot), _) => {
                let wanted = wanted(snapshot, &state.zones, &self.by_hand, plan.as_ref())?;
                keep = ranges::without(&keep, &wanted);
                read_snapshot(snapshot, &wanted, writer, &mut runs)?;
            }
            (None, _) if self.unforked => {}
            (None, _) => return Err(RmError::BadSection { kind: NAME, what: "no snapshot".into() }),
        }
        for (at, bytes) in &copied {
            runs.insert(*at, writer.put_page_bytes(bytes)?);
        }
        self.objects.store(writer, base)?;
        let names = self.increment.names(runs, &keep, writer.figures_mut());
        if let Err(cause) = writer.put_names(base, &names) {
            self.increment.forget();
            return Err(cause.into());
        }
        if let Some(snapshot) = &snapshot
            && self.increment.checks()
        {
            check(snapshot, &state.zones, &self.by_hand, &names, &keep)?;
        }
        if snapshot.is_some()
            && !self.staged
            && let Some(path) = self.changing.look(&state.zones)
        {
            let path = String::from_utf8_lossy(path);
            cx.unsettled.push(format!("{path} changed while the memory mapped from it was copied"));
            return Err(RmError::Unsupported(format!("{path} changes while it is mapped privately")));
        }
        if plan.is_some() {
            self.increment.drafted(names);
        }
        drop(snapshot);
        let mut paths: Vec<&[u8]> = state
            .zones
            .iter()
            .filter(|zone| zone.kind == ZoneKind::FilePrivate && !zone.deleted)
            .map(|zone| zone.path.as_slice())
            .filter(|path| {
                let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
                !self.roots.iter().any(|root| path.starts_with(root))
            })
            .collect();
        paths.sort_unstable();
        paths.dedup();
        let paths: Vec<Vec<u8>> = paths.into_iter().map(<[u8]>::to_vec).collect();
        for path in paths {
            if let Some((bytes, hash)) = hashes::of(Path::new(std::ffi::OsStr::from_bytes(&path))) {
                state.files.push((path, bytes, hash));
            }
        }
        cx.put(NAME, VERSION, &state)
    }

    fn sealed(&mut self) {
        self.increment.sealed();
    }

    fn engine(&self) -> Option<&'static str> {
        self.increment.engine()
    }

    fn parts_us(&self) -> &[(String, u64)] {
        &self.parts_us
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.increment.aborted();
        self.objects.clear();
        self.plan = None;
        self.snapshot = None;
        self.state = None;
        self.copied.clear();
    }

    /// Files that are mapped but not in the image must be the same here.
    fn pre_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: MemoryState = cx.section(NAME, VERSION)?;
        if state.zones.len() > ZONES_MAX {
            return Err(RmError::BadSection { kind: NAME, what: format!("{} zones", state.zones.len()) });
        }
        let mut last = 0;
        for zone in &state.zones {
            if zone.start < last
                || zone.end <= zone.start
                || (zone.start | zone.end) % PAGE != 0
                || zone.end > 1 << 47
            {
                return Err(RmError::BadSection { kind: NAME, what: format!("a zone at {:#x}", zone.start) });
            }
            last = zone.end;
        }
        for (path, bytes, hash) in &state.files {
            let name = String::from_utf8_lossy(path).into_owned();
            match hashes::of(Path::new(std::ffi::OsStr::from_bytes(path))) {
                Some((found, same)) if found == *bytes && same == *hash => {}
                Some(_) => {
                    return Err(RmError::Unsupported(format!(
                        "{name} differs on this node; install the same package on both nodes"
                    )));
                }
                None => {
                    return Err(RmError::Unsupported(format!(
                        "{name} is missing on this node; install the same package on both nodes"
                    )));
                }
            }
        }
        Ok(())
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        crate::kinds::memory_restore::restore(cx, self.objects.shared())
    }
}

/// Where a control page is, for those who map around it.
#[must_use]
pub fn control_zone(page_at: u64) -> (u64, u64) {
    (page_at, page_at + CONTROL_BYTES as u64)
}
