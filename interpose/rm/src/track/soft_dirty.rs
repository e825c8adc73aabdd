//! Soft-dirty bits: `4` written to `/proc/<pid>/clear_refs`, read as bit 55 of `/proc/<pid>/pagemap` (kernels with
//! `CONFIG_MEM_SOFT_DIRTY`). All is done from outside, the application sees nothing of it.
//!
//! ```text
//! stop:  is all of the last look valid? --> read pagemap --> clear --> store to the witness
//! ```
//!
//! A page that is the process's own begins with its bit set, whatever made it: so holes, zones that are new, and programs that
//! are executed need no care. A page counts as unchanged only if its bit is clear and it is swapped out, or present and of this
//! process alone: the page of zeros, which takes the place of what was given back (`MADV_DONTNEED`) when that is read, has no
//! bit and never counts as one's own alone. Nor does what a forked process still shares with another one: it is read each time.
//!
//! What is written between reading and clearing would be lost: all threads are parked, and what those do that wait, they did
//! since the last look, too. Where bits do not tell, all pages count as written:
//! - somebody else cleared them: the witness, a page which the agent stores to after it has cleared, and nobody else, has no bit;
//! - `mremap` moved tables of pages as they are, which libholo counts ([`Header::moved`]);
//! - the kernel merged pages with equal ones (KSM), for which it drops bits.
//!
//! [`Header::moved`]: holo_abi::control::Header::moved

use super::ranges::{self, Range};
use super::{Found, Tracker, is_tracked};
use crate::at_once;
use crate::kinds::zones::{PAGE, Zone, ZoneKind};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::Remote;
use holo_abi::ways;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

const SOFT_DIRTY: u64 = 1 << 55;
/// No other process has it.
const ALONE: u64 = 1 << 56;
/// A page of a file, or of shared memory.
const FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// What `clear_refs` takes for these bits.
const CLEAR_SOFT_DIRTY: &[u8] = b"4";
/// Of memory that one call reads of.
const READ_BYTES: u64 = 32 << 20;
/// Memory is divided among the processors in pieces of this size.
const PIECE_BYTES: u64 = 64 << 20;
/// Where more than so much is mapped, most of it is reserved only, and looking for what is there takes too long in a stop.
const MAPPED_BYTES_MAX: u64 = 64 << 30;
/// Size of huge pages that are asked for.
const HUGE_BYTES: u64 = 2 << 20;

/// What must be as it was at the last look.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    witness: u64,
    moved: u32,
    /// No thread was in a call that may move memory.
    at_rest: bool,
}

/// The engine.
pub(super) struct SoftDirty {
    last: Option<Look>,
}

/// Pages of a process.
#[derive(Default)]
struct Pages {
    written: Vec<Range>,
    same: Vec<Range>,
}

impl Pages {
    fn add(&mut self, at: u64, entry: u64) {
        let out = match entry & (PRESENT | SWAPPED | FILE | SOFT_DIRTY | ALONE) {
            entry if entry & (PRESENT | SWAPPED) == 0 || entry & FILE != 0 => return,
            entry if entry & SOFT_DIRTY == 0 && entry & (SWAPPED | ALONE) != 0 => &mut self.same,
            _ => &mut self.written,
        };
        match out.last_mut() {
            Some(last) if last.1 == at => last.1 = at + PAGE,
            _ => out.push((at, at + PAGE)),
        }
    }
}

fn open_pagemap(face: i32) -> io::Result<File> {
    File::open(format!("/proc/{face}/pagemap"))
}

fn open_clear(face: i32) -> io::Result<File> {
    fs::OpenOptions::new().write(true).open(format!("/proc/{face}/clear_refs"))
}

fn clear(face: i32) -> io::Result<()> {
    io::Write::write_all(&mut open_clear(face)?, CLEAR_SOFT_DIRTY)
}

/// Has the page its bit, and is it there?
fn is_written(pagemap: &File, page: u64) -> io::Result<bool> {
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, page / PAGE * 8)?;
    Ok(u64::from_le_bytes(entry) & (PRESENT | SOFT_DIRTY) == PRESENT | SOFT_DIRTY)
}

/// The process's own pages in these ranges.
fn look(pagemap: &File, ranges: &[Range]) -> io::Result<Pages> {
    let pieces = |&(start, end): &Range| {
        (start..end).step_by(PIECE_BYTES as usize).map(move |at| (at, end.min(at + PIECE_BYTES)))
    };
    let pieces: Vec<Range> = ranges.iter().flat_map(pieces).collect();
    let parts = at_once::parts(&pieces, |(start, end)| end - start, 2 * PIECE_BYTES);
    let found = at_once::run(parts, |part| -> io::Result<Pages> {
        let (mut pages, mut buffer) = (Pages::default(), vec![0; (READ_BYTES / PAGE) as usize * 8]);
        for &(start, end) in part {
            let mut at = start;
            while at < end {
                let want = ((end - at).min(READ_BYTES) / PAGE) as usize * 8;
                let got = pagemap.read_at(&mut buffer[..want], at / PAGE * 8)?;
                if got < 8 {
                    break;
                }
                for entry in buffer[..got].chunks_exact(8) {
                    pages.add(at, u64::from_le_bytes(entry.try_into().unwrap_or([0; 8])));
                    at += PAGE;
                }
            }
        }
        Ok(pages)
    });
    let mut all = Pages::default();
    for part in found {
        let part = part?;
        all.written.extend(part.written);
        all.same.extend(part.same);
    }
    Ok(Pages { written: ranges::normal(all.written), same: ranges::normal(all.same) })
}

/// Has the kernel merged pages of the process with equal ones?
fn has_merged(face: i32) -> bool {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // Linux 5.19; before that only whether it merges at all.
    let merged = number(&format!("/proc/{face}/ksm_merging_pages"));
    merged.or_else(|| number("/sys/kernel/mm/ksm/run")).is_some_and(|merged| merged != 0)
}

/// May the zone be of huge pages of a file system of its own? They have no bits.
fn may_be_huge(zone: &Zone) -> bool {
    let is_whole = |at: u64| at.is_multiple_of(HUGE_BYTES);
    zone.kind == ZoneKind::FilePrivate && [zone.start, zone.end, zone.offset].into_iter().all(is_whole)
}

impl SoftDirty {
    /// For a parked process.
    ///
    /// # Errors
    /// The kernel has no such bits, does not let us at those of the process, or not all that moves memory is seen.
    pub(super) fn new(remote: &Remote) -> RmResult<Self> {
        if remote.page.control().header.ways.load(Ordering::SeqCst) & ways::SITES == 0 {
            return Err(RmError::Unsupported("calls inside libc are not seen".into()));
        }
        open_clear(remote.face).on("opening", "clear_refs")?;
        let pagemap = open_pagemap(remote.face).on("opening", "pagemap")?;
        let witness = testify(remote).on("storing to", "the library's page")?;
        if !is_written(&pagemap, witness).on("reading", "pagemap")? {
            return Err(RmError::Unsupported("the kernel has no soft-dirty bits".into()));
        }
        Ok(Self { last: None })
    }

    fn look(&mut self, remote: &Remote, zones: &[Range], unsure: &[Range]) -> io::Result<Found> {
        let pagemap = open_pagemap(remote.face)?;
        let header = &remote.page.control().header;
        let resting = |word: &std::sync::atomic::AtomicU32| word.load(Ordering::SeqCst) == 0;
        let now = Look {
            witness: header.class_at,
            moved: header.moved.load(Ordering::SeqCst),
            at_rest: resting(&header.moving) && resting(&header.hands_off),
        };
        let holds = self.last.take() == Some(now)
            && now.at_rest
            && is_written(&pagemap, now.witness)?
            && !has_merged(remote.face);
        let Pages { mut written, mut same } = look(&pagemap, zones)?;
        let doubted = if holds { ranges::both(&same, unsure) } else { same.clone() };
        same = ranges::without(&same, &doubted);
        written = ranges::normal([written, doubted].concat());
        remote.page.keep_alive();
        clear(remote.face)?;
        testify(remote)?;
        remote.page.keep_alive();
        self.last = Some(now);
        // A zone that was moved here is not told from the one that it replaced.
        Ok(Found::Since { written, same, lasting: Vec::new() })
    }
}

/// Stores to the witness what it has already; where that is.
fn testify(remote: &Remote) -> io::Result<u64> {
    // SAFETY: the header of a page that lives as long as `remote`.
    let at = unsafe { (*remote.page.header()).class_at };
    let mut byte = [0];
    remote.read(at, &mut byte)?;
    remote.write(at, &byte)?;
    Ok(at)
}

impl Tracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn take(&mut self, remote: &Remote, zones: &[Zone], parked: bool) -> RmResult<Found> {
        let tracked: Vec<&Zone> = zones.iter().filter(|zone| is_tracked(zone)).collect();
        let places = |wanted: &dyn Fn(&Zone) -> bool| {
            let wanted = tracked.iter().filter(|zone| wanted(zone));
            ranges::normal(wanted.map(|zone| (zone.start, zone.end)).collect())
        };
        let (all, unsure) = (places(&|_| true), places(&may_be_huge));
        if !parked || ranges::bytes(&all) > MAPPED_BYTES_MAX {
            self.last = None;
            return Ok(Found::All);
        }
        // What fails leaves nothing that the next look could rely on; that all pages are read works nevertheless.
        Ok(self.look(remote, &all, &unsure).unwrap_or(Found::All))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: a page is the same only where its bit says so and it is the process's own alone, or swapped out. Method: every kind of
    // entry.
    #[test]
    fn entries() {
        let sorted = |entry: u64| {
            let mut pages = Pages::default();
            pages.add(PAGE, entry);
            (pages.written.len(), pages.same.len())
        };
        assert_eq!(sorted(0), (0, 0));
        assert_eq!(sorted(SOFT_DIRTY), (0, 0));
        assert_eq!(sorted(PRESENT | FILE | ALONE), (0, 0));
        assert_eq!(sorted(PRESENT | FILE | ALONE | SOFT_DIRTY), (0, 0));
        assert_eq!(sorted(PRESENT | ALONE), (0, 1));
        assert_eq!(sorted(PRESENT | ALONE | SOFT_DIRTY), (1, 0));
        // The page of zeros, or one that was forked.
        assert_eq!(sorted(PRESENT), (1, 0));
        assert_eq!(sorted(SWAPPED), (0, 1));
        assert_eq!(sorted(SWAPPED | SOFT_DIRTY), (1, 0));
    }

    // Goal: huge pages of a file are told by where they can be only. Method: a map of a file, and with other edges.
    #[test]
    fn maps_that_may_be_huge() {
        let zone = |line: &str| crate::kinds::zones::parse(line.as_bytes()).unwrap().remove(0);
        assert!(may_be_huge(&zone("200000-600000 rw-p 00200000 00:2f 7 /huge/x\n")));
        assert!(!may_be_huge(&zone("200000-600000 rw-p 00001000 00:2f 7 /usr/lib/x\n")));
        assert!(!may_be_huge(&zone("200000-601000 rw-p 00000000 00:2f 7 /usr/lib/x\n")));
        assert!(!may_be_huge(&zone("200000-600000 rw-p 00000000 00:00 0 \n")));
    }

    // Goal: the kernel's bits show what was written, given back, mapped anew and moved since they were cleared. Method: do so in a
    // map of the test's own; where the kernel has no such bits, nothing is ever said to be the same wrongly: it is not chosen.
    #[test]
    fn bits_of_the_kernel() {
        const PAGES: u64 = 32;
        let me = std::process::id() as i32;
        let map = |at: u64, pages: u64| {
            let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
            let (rw, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: new memory, or in place of the test's own.
            let at = unsafe { libc::mmap(at as *mut _, (pages * PAGE) as usize, rw, flags | fixed, -1, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            at as u64
        };
        let base = map(0, PAGES);
        let at = |page: u64| base + page * PAGE;
        // SAFETY: within the map.
        let store = |page: u64| unsafe { (at(page) as *mut u8).write_volatile(page as u8 + 1) };
        // SAFETY: the same.
        let read = |page: u64| unsafe { (at(page) as *const u8).read_volatile() };
        // SAFETY: the same.
        unsafe { libc::madvise(base as *mut _, (PAGES * PAGE) as usize, libc::MADV_NOHUGEPAGE) };
        (0..PAGES / 2).for_each(store);
        let pagemap = open_pagemap(me).unwrap();
        if !is_written(&pagemap, at(0)).unwrap() {
            return;
        }
        let is_in =
            |set: &[Range], page: u64| set.iter().any(|range| range.0 <= at(page) && at(page) < range.1);
        let in_set = |set: &[Range]| (0..PAGES).filter(|page| is_in(set, *page)).collect::<Vec<u64>>();
        clear(me).unwrap();
        store(1);
        let pages = look(&pagemap, &[(base, at(PAGES))]).unwrap();
        assert_eq!(in_set(&pages.written), [1]);
        assert_eq!(in_set(&pages.same), (0..PAGES / 2).filter(|page| *page != 1).collect::<Vec<_>>());
        // SAFETY: the same.
        unsafe { libc::madvise(at(2) as *mut _, 2 * PAGE as usize, libc::MADV_DONTNEED) };
        assert_eq!(read(3), 0);
        assert_eq!(map(at(4), 2), at(4));
        assert_eq!(read(5), 0);
        // SAFETY: the same; to a place within the map.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(at(6) as *mut _, PAGE as usize, PAGE as usize, flags, at(8) as *mut libc::c_void)
        };
        assert_eq!(moved as u64, at(8));
        store(PAGES / 2);
        assert_eq!(read(PAGES / 2 + 1), 0);
        let pages = look(&pagemap, &[(base, at(PAGES))]).unwrap();
        let (written, same) = (in_set(&pages.written), in_set(&pages.same));
        assert!([1, 3, 5, 8, 16, 17].iter().all(|page| written.contains(page)), "{written:?}");
        // In a zone that the kernel joined to a new one all count as written.
        assert!(!same.iter().any(|page| [2, 4, 6].contains(page) || *page > PAGES / 2), "{same:?}");
        clear(me).unwrap();
        let pages = look(&pagemap, &[(base, at(PAGES))]).unwrap();
        assert!(is_in(&pages.same, 1) && is_in(&pages.written, 3));
    }
}
