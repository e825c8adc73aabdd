//! The operating system's disk.

use std::{
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, IoSliceMut},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::uio::preadv,
};

use super::{Disk, DiskFile};

/// Files of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// Tries to lock a file that others keep removing; each try means that another process made progress.
const LOCK_TRIES_MAX: usize = 100;
/// The kernel's bound on buffers in one call.
const BUFFERS_MAX: usize = 1024;
/// Bytes that are written with one call. The page cache keeps what one call wrote as one folio where it can, and some file systems go
/// through all blocks of a folio whenever one of them is written again.
const WRITE_BYTES: usize = 64 << 10;

impl DiskFile for File {
    fn read_vectored_at(&self, into: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let count = into.len().min(BUFFERS_MAX);
        let offset = offset.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(preadv(self, &mut into[..count], offset)?)
    }

    fn write_all_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        from.chunks(WRITE_BYTES).try_for_each(|part| {
            let written = FileExt::write_all_at(self, part, offset);
            offset += part.len() as u64;
            written
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // A name that is not UTF-8 is not ours.
        let name =
            |entry: io::Result<fs::DirEntry>| entry.map(|e| e.file_name().into_string().ok()).transpose();
        fs::read_dir(dir)?.filter_map(name).collect()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::open(path)?))
    }

    fn create(&self, path: &Path, fresh: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(Arc::new(options.read(true).write(true).create(true).truncate(fresh).mode(0o600).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Debug + Send + Sync>>> {
        for _ in 0..LOCK_TRIES_MAX {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno.into()),
            };
            // The holder before us may have removed the file: then our lock is on nothing that others see.
            match fs::metadata(path) {
                Ok(named) if named.ino() == lock.metadata()?.ino() => return Ok(Some(Box::new(lock))),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}
