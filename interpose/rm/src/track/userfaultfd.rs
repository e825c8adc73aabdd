//! Asynchronous write-protection by userfaultfd, read and renewed with `PAGEMAP_SCAN` (Linux 6.7).
//!
//! The userfaultfd belongs to the application's memory, so a parked thread makes it; the agent takes a duplicate
//! and the thread closes its own in the same stop. All else is done from outside. When the agent closes the
//! duplicate, or dies, the kernel lifts the protection.
//!
//! A page counts as unchanged only if it is there, in a zone that was watched before, and still protected: zones that
//! are new, moved (`mremap`), or executed anew are not watched, pages that were given back (`MADV_DONTNEED`) are not there.
//!
//! No call of the application fails because of it: see `lifts.rs`.

use super::lifts::{Holder, Lifts};
use super::ranges::{self, Range};
use super::youth::Youth;
use super::{Found, Tracker, is_tracked};
use crate::at_once;
use crate::kinds::pagemap::{PFNZERO, PRESENT, Pagemap, Region, SWAPPED, WRITTEN};
use crate::kinds::zones::zones_can_be_asked_for;
use crate::kinds::zones::{PAGE, Zone, ZoneKind};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::Remote;
use holo_abi::{sysno, ways};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

const USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
pub(crate) const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// What the engine needs.
pub(crate) const FEATURES: u64 = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
const MODE_WP: u64 = 2;
/// Pages between changed ones that are looked at with them: a call of their own takes longer.
const GAP_BYTES: u64 = 64 * PAGE;
/// Zones that are asked for with one call, if it takes no long walk.
const ASKED_BYTES_MAX: u64 = 4 << 20;
/// Memory without holes at the last look that is looked at by a call of its own.
const DENSE_BYTES_MIN: u64 = 128 * PAGE;
/// Part of such memory that may have become holes: a quarter, if that is much.
const HOLES_PART: u64 = 4;
/// As many pages are read without asking which of them are holes.
const HOLES_BYTES_MAX: u64 = 256 * PAGE;
/// Memory whose pages are in one table, and go at once.
const TABLE_BYTES: u64 = 512 * PAGE;
/// Less is not watched before the first look.
const LARGE_BYTES: u64 = 1 << 20;
/// Memory of a running process that is protected at once.
const FRESH_BYTES: u64 = 8 << 20;
/// Tables that another thread looks for: fewer take no longer than to start it.
const PART_TABLES_MIN: u64 = 100;
/// End of what a process can have.
const ADDRESS_END: u64 = 1 << 47;

/// The descriptor, until its protection is lifted altogether.
struct Held(Mutex<Option<OwnedFd>>);

impl Held {
    fn with<T>(&self, then: impl FnOnce(&mut Option<OwnedFd>) -> T) -> T {
        then(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches a zone. Without effect if it is watched already.
    fn register(&self, start: u64, end: u64) -> io::Result<()> {
        let words = &mut [start, end - start, MODE_WP, 0];
        self.with(|uffd| match uffd {
            Some(uffd) => ioctl(uffd, UFFDIO_REGISTER, words),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        })
    }

    /// Takes marks of an earlier protection off pages that came here with them: they would pass for unchanged.
    fn unmark(&self, start: u64, end: u64) -> io::Result<()> {
        self.with(|uffd| match uffd {
            Some(uffd) => ioctl(uffd, UFFDIO_WRITEPROTECT, &mut [start, end - start, 0]),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        })
    }
}

impl Holder for Held {
    fn lift(&self, start: u64, end: u64) {
        let end = end.min(ADDRESS_END).next_multiple_of(PAGE);
        self.with(|uffd| {
            let lifted = uffd
                .as_ref()
                .map(|uffd| ioctl(uffd, UFFDIO_UNREGISTER, &mut [start, end.saturating_sub(start)]));
            // Closed, it lifts all.
            if matches!(lifted, Some(Err(_))) {
                *uffd = None;
            }
        });
    }
}

/// The engine.
pub struct Userfaultfd {
    held: Arc<Held>,
    lifts: Lifts,
    /// Pages of watched zones that were the process's own at the last look.
    own: Vec<Range>,
    youth: Youth,
    /// Watched already, and never protected: marks of an earlier protection may be there.
    fresh: Vec<Range>,
}

pub(crate) fn ioctl(fd: &OwnedFd, request: libc::c_ulong, words: &mut [u64]) -> io::Result<()> {
    // SAFETY: callers pass the words that the request reads and writes.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for features, without which a new userfaultfd does nothing.
pub(crate) fn open(uffd: &OwnedFd, features: u64) -> io::Result<()> {
    ioctl(uffd, UFFDIO_API, &mut [UFFD_API, features, 0])
}

/// A userfaultfd of a process that serves calls, made with these flags, and asked for these features.
pub(crate) fn make(remote: &Remote, flags: i32, features: u64) -> RmResult<OwnedFd> {
    let flags = (libc::O_CLOEXEC | flags) as u64;
    let number = remote.call(sysno::userfaultfd, &[flags]).on("making", "a userfaultfd")?;
    let borrowed = remote.borrow_fd(number as i32);
    remote.call(sysno::close, &[number]).on("closing", "the application's userfaultfd")?;
    let uffd = borrowed.on("taking", "the userfaultfd")?;
    open(&uffd, features).on("asking for", "features of userfaultfd")?;
    Ok(uffd)
}

impl Userfaultfd {
    /// Makes one for a parked process.
    ///
    /// # Errors
    /// The kernel does not allow it, or lacks the features.
    pub fn new(remote: &Remote, lifts: &Lifts) -> RmResult<Self> {
        // Without them an `mremap` would not be seen before it fails.
        if remote.page.control().header.ways.load(Ordering::SeqCst) & ways::SITES == 0 {
            return Err(RmError::Unsupported("calls inside libc are not seen".into()));
        }
        if !zones_can_be_asked_for() {
            return Err(RmError::Unsupported("the kernel has no PROCMAP_QUERY".into()));
        }
        let uffd = make(remote, USER_MODE_ONLY, FEATURES)?;
        Pagemap::open(remote.face).and_then(|pagemap| pagemap.scans()).on("trying", "PAGEMAP_SCAN")?;
        Ok(Self {
            held: Arc::new(Held(Mutex::new(Some(uffd)))),
            lifts: lifts.clone(),
            own: Vec::new(),
            youth: Youth::default(),
            fresh: Vec::new(),
        })
    }

    /// Watches a zone that is not. False: it cannot be, or another descriptor does, or must not be now.
    fn watch(&self, remote: &Remote, zone: &Zone) -> io::Result<bool> {
        let holder: Arc<dyn Holder> = self.held.clone();
        match self.lifts.protecting(&remote.page, &holder, || self.held.register(zone.start, zone.end)) {
            // The memory that it belonged to is gone: the process executed another program.
            Some(Err(cause)) if cause.raw_os_error() == Some(libc::ESRCH) => Err(cause),
            Some(done) => Ok(done.is_ok()),
            None => Ok(false),
        }
    }

    /// Watches a zone of shared memory. False: nothing can be stored through it, it was mapped so.
    pub(crate) fn watch_shared(&self, remote: &Remote, start: u64, end: u64) -> io::Result<bool> {
        let holder: Arc<dyn Holder> = self.held.clone();
        match self.lifts.protecting(&remote.page, &holder, || self.held.register(start, end)) {
            Some(Ok(())) => Ok(true),
            Some(Err(cause)) if cause.raw_os_error() == Some(libc::EPERM) => Ok(false),
            Some(Err(cause)) => Err(cause),
            None => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// Watches and protects a zone that was not watched: all that it has counts as changed. False: it cannot be watched.
    fn begin(&self, remote: &Remote, pagemap: &Pagemap, zone: &Zone) -> io::Result<bool> {
        if !self.watch(remote, zone)? {
            return Ok(false);
        }
        self.mark_anew(pagemap, pagemap.protect(zone.start, zone.end)?)?;
        Ok(true)
    }

    /// Regions that were protected for the first time: those that had a mark before get a new one.
    fn mark_anew(&self, pagemap: &Pagemap, regions: Vec<Region>) -> io::Result<()> {
        for region in regions.iter().filter(|region| region.categories & WRITTEN == 0) {
            self.held.unmark(region.start, region.end)?;
            pagemap.protect(region.start, region.end)?;
        }
        Ok(())
    }

    /// Protects a part of a zone that is [`Self::fresh`], while the process runs; which pages of it are the process's own.
    fn protect_fresh(&self, pagemap: &Pagemap, (start, end): Range) -> io::Result<Vec<Range>> {
        let mut own = Vec::new();
        for at in (start..end).step_by(FRESH_BYTES as usize) {
            let regions = pagemap.protect(at, end.min(at + FRESH_BYTES))?;
            let there = regions.iter().filter(|region| region.categories & PFNZERO == 0);
            own.extend(there.map(|region| (region.start, region.end)));
            self.mark_anew(pagemap, regions)?;
        }
        Ok(own)
    }

    /// [`Self::begin`]; after an `exec`, when the memory that the descriptor belonged to is gone, with another one.
    fn begin_or_anew(
        &mut self,
        remote: &Remote,
        pagemap: &Pagemap,
        zone: &Zone,
        parked: bool,
    ) -> RmResult<bool> {
        let begun = match self.begin(remote, pagemap, zone) {
            Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) && parked => {
                *self = Self::new(remote, &self.lifts)?;
                self.begin(remote, pagemap, zone)
            }
            begun => begun,
        };
        begun.on("protecting", format!("zone {:#x}", zone.start))
    }
}

/// The parts of rising regions that lie in rising zones, with the zone's place.
fn by_zone<'a>(regions: &'a [Region], zones: &'a [&Zone]) -> impl Iterator<Item = (usize, Range, u64)> + 'a {
    let mut first = 0;
    regions.iter().flat_map(move |region| {
        while zones.get(first).is_some_and(|zone| zone.end <= region.start) {
            first += 1;
        }
        let reaching = zones[first..].iter().enumerate().take_while(|(_, zone)| zone.start < region.end);
        reaching.map(move |(index, zone)| {
            (first + index, (region.start.max(zone.start), region.end.min(zone.end)), region.categories)
        })
    })
}

/// May its pages be protected while the process runs? In a map of a file marks do not tell enough.
fn is_ahead(zone: &Zone) -> bool {
    is_tracked(zone) && zone.kind != ZoneKind::FilePrivate
}

/// Ranges with no other zones than tracked ones.
fn spans(zones: &[Zone]) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    let mut go_on = false;
    for zone in zones {
        match out.last_mut() {
            Some(last) if go_on && is_tracked(zone) => last.1 = zone.end,
            _ if is_tracked(zone) => out.push((zone.start, zone.end)),
            _ => {}
        }
        go_on = is_tracked(zone);
    }
    out
}

/// Which zones are watched, where it was not `seen` already. Those that follow one another in a span are asked for at once, which tells
/// whether all are.
fn add_watched(pagemap: &Pagemap, zones: &[&Zone], spans: &[Range], seen: &mut [bool]) {
    let mut at = 0;
    while let Some(first) = (at..zones.len()).find(|index| !seen[*index]) {
        let start = zones[first].start;
        let span_end = spans.iter().find(|span| start < span.1).map_or(start, |span| span.1);
        let end = span_end.min(start + ASKED_BYTES_MAX);
        let count = zones[first..].iter().take_while(|zone| zone.end <= end).count().max(1);
        let part = first..first + count;
        if count > 1 && pagemap.are_watched(start, zones[part.end - 1].end) {
            seen[part].fill(true);
        } else {
            for index in part {
                seen[index] = seen[index] || pagemap.is_watched(zones[index].start);
            }
        }
        at = first + count;
    }
}

/// The parts whose table of pages is there: of a table that is gone some kernels do not say that nothing is marked in it.
/// It is, where a page in it was `told` not to be marked.
fn in_tables(pagemap: &Pagemap, quiet: &[Range], told: &[Range]) -> io::Result<Vec<Range>> {
    // Of each table that is not told of, a page that is in it if it is there.
    let (mut parts, mut asked): (Vec<(Range, Option<usize>)>, Vec<u64>) = (Vec::new(), Vec::new());
    let (mut next, mut known) = (0, None);
    for &(start, end) in quiet {
        let mut at = start;
        while at < end {
            let table = at / TABLE_BYTES * TABLE_BYTES;
            let until = end.min(table + TABLE_BYTES);
            while told.get(next).is_some_and(|range| range.1 <= table) {
                next += 1;
            }
            let ask = match known {
                Some((same, ask)) if same == table => ask,
                _ if told.get(next).is_some_and(|range| range.0 < table + TABLE_BYTES) => None,
                _ => {
                    // The last one: the kernel looks at all in the table that are behind it.
                    asked.push(until - PAGE);
                    Some(asked.len() - 1)
                }
            };
            known = Some((table, ask));
            parts.push(((at, until), ask));
            at = until;
        }
    }
    let answers = at_once::run(at_once::parts(&asked, |_| 1, PART_TABLES_MIN), |part| {
        part.iter().map(|page| pagemap.has(*page)).collect::<io::Result<Vec<bool>>>()
    });
    let answers: io::Result<Vec<Vec<bool>>> = answers.into_iter().collect();
    let answers = answers?.concat();
    let there = parts.into_iter().filter(|(_, ask)| ask.is_none_or(|ask| answers[ask]));
    Ok(ranges::normal(there.map(|(range, _)| range).collect()))
}

impl Tracker for Userfaultfd {
    fn name(&self) -> &'static str {
        "userfaultfd"
    }

    fn take(&mut self, remote: &Remote, zones: &[Zone], parked: bool) -> RmResult<Found> {
        if remote.page.control().header.hands_off.load(Ordering::SeqCst) != 0 {
            return Ok(Found::All);
        }
        if self.held.with(|uffd| uffd.is_none()) {
            if !parked {
                return Ok(Found::All);
            }
            *self = Self::new(remote, &self.lifts)?;
        }
        let mut pagemap = Pagemap::open(remote.face).on("opening", "pagemap")?;
        // All of it is read.
        let fresh = std::mem::take(&mut self.fresh);
        let spans = ranges::without(&spans(zones), &fresh);
        let zones: Vec<&Zone> = zones.iter().filter(|zone| is_tracked(zone)).collect();
        remote.page.keep_alive();
        // In a map of a file a page that is gone keeps its mark: all of it is looked at.
        let (files, anonymous): (Vec<Range>, Vec<Range>) = {
            let place = |zone: &&Zone| (zone.start, zone.end);
            let (files, rest): (Vec<&Zone>, Vec<&Zone>) =
                zones.iter().partition(|zone| zone.kind == ZoneKind::FilePrivate);
            let rest: Vec<Range> = rest.iter().map(place).collect();
            (files.iter().map(place).collect(), ranges::without(&rest, &fresh))
        };
        // Where there were no holes, what is not marked was written, or is a hole now, which few pages ever become: one look
        // finds and marks it.
        let mut dense = ranges::both(&self.own, &anonymous);
        dense.retain(|(start, end)| end - start >= DENSE_BYTES_MIN);
        let anew = pagemap.mark(&dense).on("protecting", "pages")?;
        let unmarked = pagemap.unmarked(&ranges::without(&spans, &dense)).on("reading", "pagemap")?;
        let mut look = ranges::both(&unmarked, &anonymous);
        look.extend(&files);
        let look = ranges::bridged(&ranges::normal(look), GAP_BYTES);
        // Zones that are not watched are left out.
        let regions = pagemap.protect_watched(&look).on("protecting", "pages")?;
        let mut seen = vec![false; zones.len()];
        let unmarked = ranges::normal([unmarked, anew.clone()].concat());
        let (mut written, mut same, mut gone) = (Vec::new(), Vec::new(), unmarked.clone());
        // A hole has zeros, as what is read there; many of them are left out.
        let holes = ranges::bytes(&anew) > HOLES_BYTES_MAX.max(ranges::bytes(&dense) / HOLES_PART);
        written.extend(if holes { pagemap.there(&anew).on("reading", "pagemap")? } else { anew.clone() });
        for (index, zone) in zones.iter().enumerate() {
            let next = anew.partition_point(|range| range.1 <= zone.start);
            seen[index] = anew.get(next).is_some_and(|range| range.0 < zone.end);
        }
        let (mut of_files, mut marked, mut unwatched) = (Vec::new(), Vec::new(), Vec::new());
        for (index, range, categories) in by_zone(&regions, &zones) {
            seen[index] = true;
            let is_marked = categories & WRITTEN == 0;
            if categories & PFNZERO != 0 {
                gone.push(range);
            } else if zones[index].kind != ZoneKind::FilePrivate {
                // Of a page that is not in memory the first look does not see the mark.
                if is_marked { &mut same } else { &mut written }.push(range);
            } else if is_marked && categories & (PRESENT | SWAPPED) == PRESENT {
                marked.push(range);
            } else {
                // What is not present may stand for the file's page, whatever its mark; reading it shows the right
                // content in both cases.
                of_files.push(range);
            }
        }
        let own_before = std::mem::take(&mut self.own);
        let is_fresh = |zone: &Zone| fresh.iter().any(|range| range.0 < zone.end && zone.start < range.1);
        add_watched(&pagemap, &zones, &spans, &mut seen);
        let watched: Vec<bool> = zones.iter().zip(seen).map(|(zone, seen)| seen && !is_fresh(zone)).collect();
        let due = self.youth.due(&zones, &watched);
        for (zone, due) in zones.iter().zip(due) {
            let Some(due) = due else { continue };
            remote.page.keep_alive();
            // What is not watched is read every time.
            let begun = (due || is_fresh(zone)) && self.begin_or_anew(remote, &pagemap, zone, parked)?;
            let own = pagemap.own_ranges(zone.start, zone.end).on("reading", "pagemap")?;
            if begun {
                self.own.extend(&own);
            } else if is_fresh(zone) {
                self.fresh.push((zone.start, zone.end));
            }
            unwatched.extend(own);
        }
        let mut own = |ranges: &[Range]| -> RmResult<Vec<Range>> {
            let mut out = Vec::new();
            for (start, end) in ranges::bridged(ranges, GAP_BYTES) {
                out.extend(pagemap.own_ranges(start, end).on("reading", "pagemap")?);
            }
            Ok(ranges::both(&out, ranges))
        };
        written.extend(own(&ranges::normal(of_files))?);
        // A page of the process's own may have become the file's again, with its mark.
        same.extend(own(&ranges::both(&ranges::normal(marked), &own_before))?);
        let in_memory = |(zone, watched): &(&&Zone, &bool)| **watched && zone.kind != ZoneKind::FilePrivate;
        let in_memory: Vec<Range> =
            zones.iter().zip(&watched).filter(in_memory).map(|(zone, _)| (zone.start, zone.end)).collect();
        let quiet = ranges::both(&ranges::without(&own_before, &ranges::normal(gone)), &in_memory);
        same.extend(in_tables(&pagemap, &quiet, &unmarked).on("reading", "pagemap")?);
        self.own.extend(written.iter().chain(&same));
        self.own = ranges::normal(std::mem::take(&mut self.own));
        written.extend(unwatched);
        let lasting = zones.iter().zip(&watched).filter(|(_, watched)| **watched);
        let lasting = lasting.map(|(zone, _)| (zone.start, zone.end)).collect();
        Ok(Found::Since { written: ranges::normal(written), same: ranges::normal(same), lasting })
    }

    fn prepare(&mut self, remote: &Remote, zones: &[Zone]) -> RmResult<()> {
        for zone in zones.iter().filter(|zone| is_ahead(zone) && zone.bytes() >= LARGE_BYTES) {
            if self.watch(remote, zone).on("watching", format!("zone {:#x}", zone.start))? {
                self.fresh.push((zone.start, zone.end));
            }
        }
        self.fresh = ranges::normal(std::mem::take(&mut self.fresh));
        Ok(())
    }

    fn ahead(&mut self, remote: &Remote, zones: &[Zone]) -> RmResult<Option<Vec<Range>>> {
        let is_off = remote.page.control().header.hands_off.load(Ordering::SeqCst) != 0;
        if is_off || self.held.with(|uffd| uffd.is_none()) {
            return Ok(None);
        }
        let pagemap = Pagemap::open(remote.face).on("opening", "pagemap")?;
        let zones = zones.iter().filter(|zone| is_ahead(zone)).map(|zone| (zone.start, zone.end));
        let zones = ranges::normal(zones.collect());
        let watched = ranges::without(&zones, &self.fresh);
        let mut written = pagemap.protect_written(&watched).on("protecting", "pages")?;
        for range in ranges::both(&self.fresh, &zones) {
            // Where it is another zone by now the stop will see.
            if let Ok(own) = self.protect_fresh(&pagemap, range) {
                written.extend(own);
                self.fresh = ranges::without(&self.fresh, &[range]);
            }
        }
        let written = ranges::normal(written);
        // The next look must find them by what it knows: they are marked.
        self.own = ranges::normal([self.own.as_slice(), &written].concat());
        Ok(Some(written))
    }
}
