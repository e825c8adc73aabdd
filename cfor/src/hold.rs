//! Copies of content that are held until they are stored.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

use crate::access::{identity, number, times};
use crate::copy::{self, RangeReader};
use crate::error::{Error, failed};
use crate::tree::{Extent, Inode, Kind};

/// Files up to this size are staged in memory, which costs less than a new file does.
const MEMORY_FILE_BYTES_MAX: u64 = 1 << 16;
/// Bytes staged in memory in all; past it small files are staged as files too.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// Bytes held until they are stored.
pub(crate) enum Held {
    Memory(Vec<u8>),
    File(PathBuf),
    /// Nothing yet: it is read when the application runs again.
    Rest,
}

/// Where a file is read.
pub(crate) enum Source<'a> {
    Own(File),
    /// The descriptor of who has a lease on it, of which the position must stay.
    Holder(&'a File),
}

impl Source<'_> {
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Own(file) => file,
            Self::Holder(file) => file,
        }
    }

    fn extents(&self, size: u64) -> nix::Result<Vec<Extent>> {
        match self {
            Self::Own(file) => copy::extents(file, size),
            Self::Holder(_) => Ok(copy::whole(size)),
        }
    }
}

/// Why a file was not staged.
pub(crate) enum Refused {
    /// The file itself cannot be read.
    Source(String),
    /// There is no room for the copy.
    Staging(io::Error),
}

/// Holds copies of content.
pub(crate) struct Holder {
    /// Removed with all in it when dropped.
    pub(crate) dir: tempfile::TempDir,
    files: u64,
    memory: u64,
    pub(crate) bytes: u64,
}

impl Holder {
    /// Holds content in a private directory in `staging`.
    pub(crate) fn new(staging: &Path) -> Result<Self, Error> {
        let in_staging = |cause| Error::io("stage in", staging.as_os_str().as_encoded_bytes())(cause);
        let dir = tempfile::Builder::new().prefix("files-").tempdir_in(staging).map_err(in_staging)?;
        Ok(Self { dir, files: 0, memory: 0, bytes: 0 })
    }

    /// Copies a file; returns it as it was found when opened.
    pub(crate) fn take(&mut self, source: &Source<'_>, inode: &Inode) -> Result<(Held, Inode), Refused> {
        let file = source.file();
        let refused = |what: &'static str| move |cause| Refused::Source(failed(what, cause));
        let stat = fstat(file).map_err(refused("cannot be looked at"))?;
        if number(&stat) != (inode.identity.dev, inode.identity.ino) {
            return Err(Refused::Source("was replaced meanwhile".into()));
        }
        let mut now = inode.clone();
        if identity(&stat) != inode.identity {
            // Somebody else writes to it: what is held is what counts.
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let data = source.extents(size).map_err(refused("holes cannot be found"))?;
            now.kind = Kind::File { size, data };
            (now.identity, now.mtime) = (identity(&stat), times(&stat).1);
        }
        let held = self.hold(file, now.data())?;
        Ok((held, now))
    }

    /// Copies ranges of a file; `None` if it is not as it was scanned.
    pub(crate) fn take_ranges(
        &mut self,
        source: &Source<'_>,
        inode: &Inode,
        ranges: &[Extent],
    ) -> Result<Option<Held>, Refused> {
        let file = source.file();
        let stat = fstat(file).map_err(|cause| Refused::Source(failed("cannot be looked at", cause)))?;
        if identity(&stat) != inode.identity {
            return Ok(None);
        }
        self.hold(file, ranges).map(Some)
    }

    fn hold(&mut self, file: &File, data: &[Extent]) -> Result<Held, Refused> {
        let len: u64 = data.iter().map(|extent| extent.len).sum();
        self.bytes += len;
        let read_failed = |cause: io::Error| Refused::Source(format!("cannot be read: {cause}"));
        if self.is_for_memory(len) {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            RangeReader::new(file, data).read_exact(&mut bytes).map_err(read_failed)?;
            self.memory += len;
            return Ok(Held::Memory(bytes));
        }
        let (copy, path) = self.file().map_err(Refused::Staging)?;
        if copy::clone_file(file, &copy).is_err() {
            copy::copy_ranges(file, &copy, data).map_err(|cause| {
                let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&cause.kind());
                if full { Refused::Staging(cause) } else { read_failed(cause) }
            })?;
        }
        Ok(Held::File(path))
    }

    fn is_for_memory(&self, len: u64) -> bool {
        len <= MEMORY_FILE_BYTES_MAX && self.memory + len <= MEMORY_BYTES_MAX
    }

    /// An empty file to hold content in.
    pub(crate) fn file(&mut self) -> io::Result<(File, PathBuf)> {
        let path = self.dir.path().join(self.files.to_string());
        self.files += 1;
        Ok((File::options().write(true).create_new(true).open(&path)?, path))
    }

    /// Holds bytes that were read, which are these extents of a file.
    pub(crate) fn put(&mut self, bytes: Vec<u8>, data: &[Extent]) -> io::Result<Held> {
        self.bytes += bytes.len() as u64;
        if self.is_for_memory(bytes.len() as u64) {
            self.memory += bytes.len() as u64;
            return Ok(Held::Memory(bytes));
        }
        let (copy, path) = self.file()?;
        copy::write_ranges(&copy, data, &bytes)?;
        Ok(Held::File(path))
    }
}

impl Held {
    /// Passes the bytes on, and removes them.
    pub(crate) fn read<C>(
        self,
        data: &[Extent],
        put: impl FnOnce(&mut dyn Read, u64) -> io::Result<C>,
    ) -> io::Result<C> {
        let len = data.iter().map(|extent| extent.len).sum();
        match self {
            Self::Memory(bytes) => put(&mut bytes.as_slice(), len),
            Self::File(path) => {
                let file = File::open(&path)?;
                let content = put(&mut RangeReader::new(&file, data), len)?;
                fs::remove_file(&path)?;
                Ok(content)
            }
            Self::Rest => Err(io::Error::other("was not read after the cut")),
        }
    }
}
