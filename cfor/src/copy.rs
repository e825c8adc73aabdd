//! Ranges of files: where data is, copying it, reading it as one stream.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::tree::Extent;
use crate::validate::EXTENTS_MAX;

/// Bytes copied at once where the kernel cannot copy by itself.
const BUFFER_BYTES: usize = 1 << 18;

/// Extents of a file that are looked for; what comes after the last of them counts as data. It takes the kernel about a second.
const LOOKS_MAX: usize = 1 << 20;

/// Where `file` has data. A file system that cannot tell says everywhere. Of more holes than there may be it is the largest that
/// count, others are data.
pub(crate) fn extents(file: &File, size: u64) -> nix::Result<Vec<Extent>> {
    extents_within(file, size, EXTENTS_MAX, LOOKS_MAX)
}

fn extents_within(file: &File, size: u64, extents_max: usize, looks_max: usize) -> nix::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let (mut at, mut looks) = (0, 0);
    while at < size {
        let seek = |from: u64, whence| lseek(file, i64::try_from(from).map_err(|_| Errno::EFBIG)?, whence);
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => return Ok(whole(size)),
            Err(cause) => return Err(cause),
        };
        looks += 1;
        let end = if looks < looks_max { (seek(start, Whence::SeekHole)? as u64).min(size) } else { size };
        if end <= start {
            break;
        }
        found.push(Extent { at: start, len: end - start });
        // Holes that are not among the largest now will not be when there are more.
        if found.len() >= extents_max * 2 {
            join(&mut found, extents_max);
        }
        at = end;
    }
    join(&mut found, extents_max);
    Ok(found)
}

/// Joins extents over the smallest holes between them, until there are `extents_max`.
fn join(found: &mut Vec<Extent>, extents_max: usize) {
    let Some(over) = found.len().checked_sub(extents_max).filter(|over| *over > 0) else { return };
    let hole = |pair: &[Extent]| pair[1].at - (pair[0].at + pair[0].len);
    // The place tells holes of one size apart, so that the same file always gives the same.
    let mut holes: Vec<_> = found.windows(2).enumerate().map(|(at, pair)| (hole(pair), at)).collect();
    let (_, bound, _) = holes.select_nth_unstable(over - 1);
    let bound = *bound;
    let mut kept: Vec<Extent> = Vec::with_capacity(extents_max);
    for (at, extent) in found.iter().enumerate() {
        match kept.last_mut() {
            Some(last) if (extent.at - (last.at + last.len), at - 1) <= bound => {
                last.len = extent.at + extent.len - last.at;
            }
            _ => kept.push(*extent),
        }
    }
    *found = kept;
}

/// Whether all of a file has blocks, be they written or only reserved. A file system that cannot tell says yes.
pub(crate) fn is_allocated(file: &File, size: u64) -> bool {
    let mut at = 0;
    while at < size {
        let mut map = Map { start: at, length: size - at, room: MAP_EXTENTS as u32, ..Map::default() };
        // SAFETY: the kernel writes as many extents as there is room for, into `map`, which outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        if done != 0 {
            return true;
        }
        let before = at;
        for extent in map.extents.iter().take(map.mapped as usize) {
            if extent.at > at {
                return false;
            }
            at = at.max(extent.at.saturating_add(extent.len));
        }
        if at == before {
            return false;
        }
    }
    true
}

/// `FS_IOC_FIEMAP`, which libc does not have.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
/// Extents asked for at once.
const MAP_EXTENTS: usize = 32;

/// `struct fiemap`, with its extents.
#[repr(C)]
#[derive(Default)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [MapExtent; MAP_EXTENTS],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MapExtent {
    at: u64,
    physical: u64,
    len: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

const _: () = assert!(size_of::<MapExtent>() == 56 && size_of::<Map>() == 32 + 56 * MAP_EXTENTS);

/// A file without holes.
pub(crate) fn whole(size: u64) -> Vec<Extent> {
    if size == 0 { Vec::new() } else { vec![Extent { at: 0, len: size }] }
}

/// Makes `new` share all of `old` (`FICLONE`), where the file system can.
pub(crate) fn clone_file(old: &File, new: &File) -> nix::Result<()> {
    // SAFETY: the request takes a descriptor and no memory.
    Errno::result(unsafe { libc::ioctl(new.as_raw_fd(), libc::FICLONE, old.as_raw_fd()) }).map(drop)
}

/// Copies ranges to the same places of `new`. What `old` lacks by now stays zero.
pub(crate) fn copy_ranges(old: &File, new: &File, data: &[Extent]) -> io::Result<()> {
    let mut kernel = true;
    let mut buffer = Vec::new();
    for extent in data {
        let (mut at, end) = (extent.at, extent.at + extent.len);
        while at < end {
            let copied = if kernel { copy_in_kernel(old, new, at, end - at) } else { Err(Errno::EXDEV) };
            match copied {
                Ok(0) => break,
                Ok(copied) => at += copied,
                Err(Errno::EINTR) => (),
                // Other file systems, old kernels, /proc and the like.
                Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
                    kernel = false;
                    buffer.resize(BUFFER_BYTES, 0);
                    let wanted = usize::try_from(end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
                    match old.read_at(&mut buffer[..wanted], at)? {
                        0 => break,
                        read => {
                            new.write_all_at(&buffer[..read], at)?;
                            at += read as u64;
                        }
                    }
                }
                Err(cause) => return Err(cause.into()),
            }
        }
    }
    Ok(())
}

fn copy_in_kernel(old: &File, new: &File, at: u64, len: u64) -> nix::Result<u64> {
    let (mut from, mut to) = (at as libc::off64_t, at as libc::off64_t);
    let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
    // SAFETY: both offsets outlive the call, which changes nothing else.
    let copied =
        unsafe { libc::copy_file_range(old.as_raw_fd(), &mut from, new.as_raw_fd(), &mut to, len, 0) };
    Errno::result(copied).map(|copied| copied as u64)
}

/// Writes bytes to ranges of a file, one after the other.
pub(crate) fn write_ranges(new: &File, data: &[Extent], mut bytes: &[u8]) -> io::Result<()> {
    for extent in data {
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(bytes.len());
        let (now, later) = bytes.split_at(len);
        new.write_all_at(now, extent.at)?;
        bytes = later;
    }
    Ok(())
}

/// Reads ranges of a file as one stream of exactly their length; what the file lacks is zeros.
#[derive(Debug)]
pub(crate) struct RangeReader<'a, F> {
    file: F,
    left: std::slice::Iter<'a, Extent>,
    now: Extent,
}

impl<'a, F: Borrow<File>> RangeReader<'a, F> {
    pub(crate) fn new(file: F, data: &'a [Extent]) -> Self {
        Self { file, left: data.iter(), now: Extent { at: 0, len: 0 } }
    }
}

impl<F: Borrow<File>> Read for RangeReader<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.now.len == 0 {
            match self.left.next() {
                Some(next) => self.now = *next,
                None => return Ok(0),
            }
        }
        let wanted = usize::try_from(self.now.len).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..wanted];
        let read = match self.file.borrow().read_at(buf, self.now.at)? {
            0 => {
                buf.fill(0);
                wanted
            }
            read => read,
        };
        self.now.at += read as u64;
        self.now.len -= read as u64;
        Ok(read)
    }
}

/// Fills `buf` as far as `reader` goes.
pub(crate) fn fill(reader: &mut (impl Read + ?Sized), buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match reader.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => (),
            Err(cause) => return Err(cause),
        }
    }
    Ok(len)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pages(pages: &[u64], size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for page in pages {
            file.write_all_at(&[1; 4096], page * 4096).unwrap();
        }
        file
    }

    fn in_pages(extents: &[Extent]) -> Vec<(u64, u64)> {
        extents.iter().map(|extent| (extent.at / 4096, extent.len / 4096)).collect()
    }

    // Goal: past the bound the largest holes stay, in bounded memory. Method: a few pages, and a small bound that is passed once and
    // many times; a model that sorts all holes.
    #[test]
    fn the_largest_holes_stay() {
        let file = pages(&[2, 4, 8, 10, 20, 22], 40 * 4096);
        let within = |max| in_pages(&extents_within(&file, 40 * 4096, max, 1000).unwrap());
        assert_eq!(within(6), [(2, 1), (4, 1), (8, 1), (10, 1), (20, 1), (22, 1)]);
        // Passed at the end only; of holes of one size the first are joined over.
        assert_eq!(within(5), [(2, 3), (8, 1), (10, 1), (20, 1), (22, 1)]);
        assert_eq!(within(4), [(2, 3), (8, 3), (20, 1), (22, 1)]);
        assert_eq!(within(3), [(2, 3), (8, 3), (20, 3)]);
        assert_eq!(within(2), [(2, 9), (20, 3)]);
        assert_eq!(within(1), [(2, 21)]);
        let holes: Vec<u64> = (0..200).map(|at| 1 + at * 7919 % 223).collect();
        let at: Vec<u64> =
            holes.iter().scan(0, |at, hole| Some(std::mem::replace(at, *at + hole + 1))).collect();
        let size = (at[199] + 1) * 4096;
        let file = pages(&at, size);
        let found = in_pages(&extents_within(&file, size, 10, 1000).unwrap());
        let mut wanted = holes[..199].to_vec();
        wanted.sort_unstable_by(|a, b| b.cmp(a));
        let mut kept: Vec<u64> = found.windows(2).map(|pair| pair[1].0 - (pair[0].0 + pair[0].1)).collect();
        kept.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(kept, wanted[..9]);
        assert_eq!(found.last().map(|(at, len)| at + len), Some(at[199] + 1));
    }

    // Goal: the time it takes is bounded, and nothing is lost behind the bound.
    #[test]
    fn what_is_not_looked_at_is_data() {
        let file = pages(&[2, 4, 8], 40 * 4096);
        let found = extents_within(&file, 40 * 4096, 100, 2).unwrap();
        assert_eq!(in_pages(&found), [(2, 1), (4, 36)]);
    }
}
