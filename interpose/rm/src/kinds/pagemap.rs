//! Which pages of a zone a process has: `PAGEMAP_SCAN`, or `/proc/<pid>/pagemap` on kernels before 6.7.

use crate::at_once;
use crate::kinds::zones::PAGE;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Not write-protected, or written since.
pub(crate) const WRITTEN: u64 = 1 << 1;
/// A page of a file.
const FILE: u64 = 1 << 2;
/// In memory.
pub(crate) const PRESENT: u64 = 1 << 3;
/// Not in memory, but not missing.
pub(crate) const SWAPPED: u64 = 1 << 4;
/// The page of zeros.
pub(crate) const PFNZERO: u64 = 1 << 5;
/// Not missing.
const THERE: u64 = PRESENT | SWAPPED;
/// Regions that one call returns.
const BUFFER_REGIONS: usize = 512;
/// Memory is divided among the processors in pieces of this size.
const PIECE_BYTES: u64 = 64 << 20;
/// More is not divided.
const PIECES_BYTES_MAX: u64 = 16 << 30;
/// Memory of a running process is looked at in pieces of this size: it cannot map memory meanwhile.
const RUNNING_PIECE_BYTES: u64 = 8 << 20;
/// Calls that are made by another thread: fewer take no longer than to start it.
const PART_CALLS_MIN: u64 = 200;
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

/// A process's page map.
pub struct Pagemap {
    file: File,
    scan: bool,
}

/// Asks for what is there and is not the page of zeros.
fn there() -> ScanArg {
    ScanArg {
        category_inverted: PFNZERO,
        category_mask: PFNZERO,
        category_anyof_mask: THERE,
        return_mask: THERE,
        ..ScanArg::default()
    }
}

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// The process is gone, or not ours.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/pagemap"))?, scan: true })
    }

    /// Ranges in `start..end` of pages that are the process's own: present or swapped out, not the zero page,
    /// not a page of a file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn own_ranges(&mut self, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
        if self.scan {
            match self.scan_ranges(start, end) {
                Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    self.scan = false;
                }
                result => return result,
            }
        }
        self.read_ranges(start, end)
    }

    fn scan_ranges(&self, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut out = Vec::new();
        let arg = ScanArg {
            category_inverted: FILE | PFNZERO,
            category_mask: FILE | PFNZERO,
            category_anyof_mask: THERE,
            return_mask: THERE,
            ..ScanArg::default()
        };
        self.walk(&mut buffer(), start, end, arg, |region| push(&mut out, region.start, region.end))?;
        Ok(out)
    }

    /// What in `start..end` is not write-protected: pages written since they were, and holes. Nothing is changed.
    ///
    /// The kernel has a path of its own for just this question, four times as fast as one that asks what is there.
    pub(crate) fn unmarked(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
        self.unmarked_with(ranges, 0)
    }

    /// [`Self::unmarked`], and marks all of that in the same step: holes too, which is for where there are hardly any. In
    /// zones that cannot be protected nothing is found or changed.
    pub(crate) fn mark(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
        self.unmarked_with(ranges, WP_MATCHING)
    }

    fn unmarked_with(&self, ranges: &[(u64, u64)], flags: u64) -> io::Result<Vec<(u64, u64)>> {
        let arg = ScanArg { flags, category_mask: WRITTEN, return_mask: WRITTEN, ..ScanArg::default() };
        let pieces = |(start, end): &(u64, u64)| {
            let (start, end) = (*start, *end);
            let firsts = (start..end).step_by(PIECE_BYTES as usize);
            // What is reserved and not there has no weight, but cannot be told from what is.
            firsts.map(move |first| (first, end.min(first.saturating_add(PIECE_BYTES))))
        };
        let pieces: Vec<(u64, u64)> = match ranges.iter().map(|(start, end)| end - start).sum::<u64>() {
            // Nobody has so much memory: most of it is reserved only.
            PIECES_BYTES_MAX.. => ranges.to_vec(),
            _ => ranges.iter().flat_map(pieces).collect(),
        };
        let parts = at_once::parts(&pieces, |(start, end)| end - start, 2 * PIECE_BYTES);
        let found = at_once::run(parts, |part| -> io::Result<Vec<(u64, u64)>> {
            let (mut out, mut buffer) = (Vec::new(), buffer());
            for (start, end) in part {
                self.walk(&mut buffer, *start, *end, arg, |region| push(&mut out, region.start, region.end))?;
            }
            Ok(out)
        });
        let mut out: Vec<(u64, u64)> = Vec::new();
        for part in found {
            part?.into_iter().for_each(|(start, end)| push(&mut out, start, end));
        }
        Ok(out)
    }

    /// Pages in `start..end` that are not missing, with their categories; those of them that are not write-protected
    /// yet become so in the same step.
    ///
    /// It is not asked which are pages of a file: that takes five times as long.
    pub(crate) fn protect(&self, start: u64, end: u64) -> io::Result<Vec<Region>> {
        self.protect_with(&[(start, end)], WP_MATCHING | CHECK_WPASYNC)
    }

    /// [`Self::protect`] for many ranges, in all zones that can be protected.
    pub(crate) fn protect_watched(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<Region>> {
        self.protect_with(ranges, WP_MATCHING)
    }

    /// Pages in these ranges that are there and were written since they were protected, which they are again in the same step;
    /// for processes that run. In zones that cannot be protected nothing is found or changed.
    pub(crate) fn protect_written(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
        let arg = ScanArg {
            flags: WP_MATCHING,
            category_inverted: PFNZERO,
            category_mask: PFNZERO | WRITTEN,
            category_anyof_mask: THERE,
            return_mask: WRITTEN,
            ..ScanArg::default()
        };
        self.walk_running(ranges, arg)
    }

    /// [`Self::there`] for processes that run.
    pub(crate) fn there_running(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
        self.walk_running(ranges, there())
    }

    fn walk_running(&self, ranges: &[(u64, u64)], arg: ScanArg) -> io::Result<Vec<(u64, u64)>> {
        let (mut out, mut buffer) = (Vec::new(), buffer());
        for &(start, end) in ranges {
            for first in (start..end).step_by(RUNNING_PIECE_BYTES as usize) {
                let last = end.min(first + RUNNING_PIECE_BYTES);
                self.walk(&mut buffer, first, last, arg, |region| push(&mut out, region.start, region.end))?;
            }
        }
        Ok(out)
    }

    /// What in these ranges is there and is not the page of zeros. Nothing is changed; for memory that is no map of a file.
    pub(crate) fn there(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
        let arg = there();
        let (mut out, mut buffer) = (Vec::new(), buffer());
        for (start, end) in ranges {
            self.walk(&mut buffer, *start, *end, arg, |region| push(&mut out, region.start, region.end))?;
        }
        Ok(out)
    }

    fn protect_with(&self, ranges: &[(u64, u64)], flags: u64) -> io::Result<Vec<Region>> {
        let return_mask = WRITTEN | PFNZERO | THERE;
        let arg = ScanArg { flags, category_anyof_mask: THERE, return_mask, ..ScanArg::default() };
        let parts = at_once::parts(ranges, |_| 1, PART_CALLS_MIN);
        let found = at_once::run(parts, |part| -> io::Result<Vec<Region>> {
            let (mut out, mut buffer) = (Vec::new(), buffer());
            for (start, end) in part {
                self.walk(&mut buffer, *start, *end, arg, |region| out.push(region))?;
            }
            Ok(out)
        });
        let mut out = Vec::new();
        for part in found {
            out.extend(part?);
        }
        Ok(out)
    }

    /// Whether a page is not missing.
    pub(crate) fn has(&self, page: u64) -> io::Result<bool> {
        let mut entry = [0; 8];
        self.file.read_exact_at(&mut entry, page / PAGE * 8)?;
        Ok(u64::from_le_bytes(entry) >> 62 & 3 != 0)
    }

    /// Whether a zone is one whose pages can be write-protected without telling anybody.
    pub(crate) fn is_watched(&self, start: u64) -> bool {
        let arg = ScanArg { flags: CHECK_WPASYNC, return_mask: PRESENT, ..ScanArg::default() };
        self.walk(&mut [Region::default()], start, start + PAGE, arg, |_| ()).is_ok()
    }

    /// Whether all zones in `start..end` are such.
    pub(crate) fn are_watched(&self, start: u64, end: u64) -> bool {
        // No page is in memory and not in memory: nothing is returned.
        let category_mask = PRESENT | SWAPPED;
        let arg = ScanArg { flags: CHECK_WPASYNC, category_mask, return_mask: PRESENT, ..ScanArg::default() };
        self.walk(&mut [Region::default()], start, end, arg, |_| ()).is_ok()
    }

    /// Whether `PAGEMAP_SCAN` is there.
    pub(crate) fn scans(&self) -> io::Result<()> {
        let arg = ScanArg { return_mask: PRESENT, ..ScanArg::default() };
        self.walk(&mut [Region::default()], PAGE, 2 * PAGE, arg, |_| ())
    }

    fn walk(
        &self,
        buffer: &mut [Region],
        start: u64,
        end: u64,
        mut arg: ScanArg,
        mut each: impl FnMut(Region),
    ) -> io::Result<()> {
        arg.size = size_of::<ScanArg>() as u64;
        arg.end = end;
        arg.vec = buffer.as_mut_ptr() as u64;
        arg.vec_len = buffer.len() as u64;
        let mut at = start;
        while at < end {
            arg.start = at;
            // SAFETY: a complete argument; the buffer outlives the call.
            let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            buffer[..count as usize].iter().for_each(|region| each(*region));
            if arg.walk_end <= at {
                break;
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    fn read_ranges(&self, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut out = Vec::new();
        let mut buffer = vec![0u8; 64 * 1024];
        let mut at = start;
        while at < end {
            let want = (((end - at) / PAGE) as usize * 8).min(buffer.len());
            let got = self.file.read_at(&mut buffer[..want], at / PAGE * 8)?;
            if got == 0 {
                break;
            }
            for entry in buffer[..got].chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or([0; 8]));
                if entry >> 62 & 3 != 0 && entry >> 61 & 1 == 0 {
                    push(&mut out, at, at + PAGE);
                }
                at += PAGE;
            }
        }
        Ok(out)
    }
}

fn buffer() -> Vec<Region> {
    vec![Region::default(); BUFFER_REGIONS]
}

fn push(out: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match out.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => out.push((start, end)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Both ways see exactly the pages that were written.
    #[test]
    fn touched_pages_are_found() {
        let bytes = 64 * PAGE as usize;
        // SAFETY: a fresh anonymous mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        let base = at as u64;
        // SAFETY: inside the mapping; no huge pages, so that single pages can be told.
        unsafe {
            libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE);
            for page in [3u64, 4, 9] {
                *((base + page * PAGE) as *mut u8) = 1;
            }
            // Reading maps the zero page, which is not own.
            std::ptr::read_volatile((base + 20 * PAGE) as *const u8);
        }
        let want = vec![(base + 3 * PAGE, base + 5 * PAGE), (base + 9 * PAGE, base + 10 * PAGE)];
        let mut map = Pagemap::open(std::process::id() as i32).unwrap();
        assert_eq!(map.own_ranges(base, base + bytes as u64).unwrap(), want);
        map.scan = false;
        let by_reading = map.own_ranges(base, base + bytes as u64).unwrap();
        for range in &want {
            assert!(by_reading.iter().any(|found| found.0 <= range.0 && found.1 >= range.1));
        }
        // SAFETY: ours.
        unsafe { libc::munmap(at, bytes) };
    }

    // Goal: zones count as watched only if each of them is, whatever they hold. Method: three that follow one another, the outer ones of
    // which are watched, with pages in all; then the middle one is gone.
    #[test]
    fn zones_are_watched_if_each_is() {
        use crate::track::userfaultfd::{FEATURES, UFFDIO_REGISTER, ioctl, open};
        use std::os::fd::{FromRawFd, OwnedFd};
        let bytes = 4 * PAGE as usize;
        let (private, none) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, std::ptr::null_mut());
        // SAFETY: a fresh anonymous mapping, the middle of which becomes a zone of its own; pages of it are written to.
        let base = unsafe {
            let at = libc::mmap(none, 3 * bytes, libc::PROT_READ | libc::PROT_WRITE, private, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            for page in [0, 5, 9] {
                *at.cast::<u8>().add(page * PAGE as usize) = 1;
            }
            libc::mprotect(at.add(bytes), bytes, libc::PROT_READ);
            at as u64
        };
        // SAFETY: no memory is passed; a new descriptor.
        let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
        // SAFETY: just made.
        let uffd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        open(&uffd, FEATURES).unwrap();
        let size = bytes as u64;
        for start in [base, base + 2 * size] {
            ioctl(&uffd, UFFDIO_REGISTER, &mut [start, size, 2, 0]).unwrap();
        }
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        assert!(map.are_watched(base, base + size) && map.is_watched(base + 2 * size));
        assert!(!map.are_watched(base, base + 2 * size) && !map.are_watched(base, base + 3 * size));
        // SAFETY: ours.
        unsafe { libc::munmap((base + size) as *mut libc::c_void, bytes) };
        assert!(map.are_watched(base, base + 3 * size));
        // SAFETY: ours.
        unsafe { libc::munmap(base as *mut libc::c_void, 3 * bytes) };
    }
}
