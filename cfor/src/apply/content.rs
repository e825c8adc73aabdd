//! Content of files: comparing what is there, writing what is not.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::FileStat;

use super::{Applier, Place, Refused};
use crate::access::{identity, times};
use crate::capture::ContentSource;
use crate::change::is_untouched;
use crate::copy::{self, RangeReader, fill};
use crate::flags;
use crate::leases::NoLeases;
use crate::scan;
use crate::tree::{Extent, Inode, Kind};

/// Bytes read, compared and written at once.
const BUFFER_BYTES: usize = 1 << 18;

impl<S: ContentSource> Applier<'_, S> {
    /// Whether a file of the right size has the right bytes, with holes where they should be.
    pub(super) fn has_content(&mut self, place: Place<'_>, stat: &FileStat, at: u32, inode: &Inode) -> bool {
        let mut now = inode.clone();
        (now.identity, now.mtime) = (identity(stat), times(stat).1);
        let tree = &self.captured.tree;
        if !self.captured.mapped.contains(&at) && is_untouched(inode, tree.taken_at, &now) {
            // The very file that was captured, and nobody has changed it since.
            return true;
        }
        self.compare(place, stat, at, inode).unwrap_or(false)
    }

    fn compare(&mut self, place: Place<'_>, stat: &FileStat, at: u32, inode: &Inode) -> io::Result<bool> {
        let Kind::File { size, data } = &inode.kind else { return Ok(false) };
        let Some(content) = self.captured.contents.get(&at) else { return Ok(false) };
        let file = place.dir.read(place.name)?;
        if *size > 0 && !flags::can_become(&file, inode.flags) {
            return Ok(false);
        }
        if scan::data(place.dir, place.name, stat, *size, &NoLeases)? != *data {
            return Ok(false);
        }
        let mut here = RangeReader::new(&file, data);
        let mut wanted = self.source.open(content)?;
        let (mut left, mut right) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
        loop {
            let len = fill(&mut here, &mut left)?;
            if fill(&mut *wanted, &mut right)? != len || left[..len] != right[..len] {
                return Ok(false);
            }
            if len < BUFFER_BYTES {
                return Ok(true);
            }
        }
    }

    /// Writes a new file.
    pub(super) fn write(&mut self, place: Place<'_>, at: u32, inode: &Inode) -> Result<(), Refused> {
        self.write_file(place, at, inode).map_err(|cause| (place.full.to_vec(), format!("write: {cause}")))
    }

    fn write_file(&mut self, place: Place<'_>, at: u32, inode: &Inode) -> io::Result<()> {
        let file = place.dir.create(place.name)?;
        flags::begin(&file, inode.flags);
        self.fill_file(&file, &[], at, inode)
    }

    /// Writes over the file that is there, which keeps its number and its other names. The old content is
    /// copied to where replaced things go, first. Where it cannot be done the file is to be made anew: it may
    /// be a running program, or this user may not write to it.
    pub(super) fn rewrite(&mut self, place: Place<'_>, at: u32, inode: &Inode) -> bool {
        let Ok(file) = place.dir.write(place.name) else { return false };
        if self.keep_copy(place).is_err() {
            return false;
        }
        self.rewrite_file(&file, at, inode).is_ok()
    }

    fn rewrite_file(&mut self, file: &File, at: u32, inode: &Inode) -> io::Result<()> {
        let Kind::File { size, data } = &inode.kind else { return Err(io::ErrorKind::InvalidInput.into()) };
        // Content that is lost shows here, before anything is changed.
        drop(self.source.open(self.captured.contents.get(&at).ok_or(io::ErrorKind::NotFound)?)?);
        file.set_len(*size)?;
        let mut end = 0;
        for extent in data.iter().chain([&Extent { at: *size, len: 0 }]) {
            punch(file, Extent { at: end, len: extent.at.saturating_sub(end) })?;
            end = extent.at + extent.len;
        }
        let here = copy::extents(file, *size)?;
        self.fill_file(file, &here, at, inode)
    }

    /// Gives a file its size and content. Where it has data (`here`) only what differs is written.
    fn fill_file(&mut self, file: &File, here: &[Extent], at: u32, inode: &Inode) -> io::Result<()> {
        let Kind::File { size, data } = &inode.kind else { return Err(io::ErrorKind::InvalidInput.into()) };
        let content = self.captured.contents.get(&at).ok_or(io::ErrorKind::NotFound)?;
        file.set_len(*size)?;
        let mut reader = self.source.open(content)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut old = if here.is_empty() { Vec::new() } else { vec![0; BUFFER_BYTES] };
        for extent in data {
            let (mut to, end) = (extent.at, extent.at + extent.len);
            while to < end {
                let wanted = usize::try_from(end - to).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
                let read = fill(&mut *reader, &mut buffer[..wanted])?;
                if read < wanted {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "stored content is too short"));
                }
                let after = to + read as u64;
                // Data where there is a hole must be written even if it is zeros.
                let around = here.get(here.partition_point(|old| old.at + old.len < after));
                let has_data = around.is_some_and(|old| old.at <= to);
                let same = has_data
                    && file.read_exact_at(&mut old[..read], to).is_ok()
                    && old[..read] == buffer[..read];
                if !same {
                    file.write_all_at(&buffer[..read], to)?;
                    self.report.bytes += read as u64;
                }
                to = after;
            }
        }
        // A longer one is not what was captured.
        match reader.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "stored content is too long")),
        }
    }
}

/// Takes the data of a range away.
fn punch(file: &File, hole: Extent) -> io::Result<()> {
    let (Ok(at), Ok(len)) = (i64::try_from(hole.at), i64::try_from(hole.len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if len == 0 {
        return Ok(());
    }
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Where it cannot, the old bytes would stay: the file is made anew.
    Ok(fallocate(file, how, at, len)?)
}
