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

/// Where `file` has data. A file system that cannot tell says everywhere.
pub(crate) fn extents(file: &File, size: u64) -> nix::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size && found.len() < EXTENTS_MAX {
        let seek = |from: u64, whence| lseek(file, i64::try_from(from).map_err(|_| Errno::EFBIG)?, whence);
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => return Ok(found),
            Err(Errno::EINVAL) => return Ok(whole(size)),
            Err(cause) => return Err(cause),
        };
        let end = (seek(start, Whence::SeekHole)? as u64).min(size);
        if end <= start {
            break;
        }
        found.push(Extent { at: start, len: end - start });
        at = end;
    }
    if found.len() < EXTENTS_MAX { Ok(found) } else { Ok(whole(size)) }
}

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
