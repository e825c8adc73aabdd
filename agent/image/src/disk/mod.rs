//! The store's port to the operating system: the few file operations that it needs.
//!
//! It is narrow so that a disk in memory (`sim`, with the feature of that name) can stand in for the real one and fail,
//! fill up, or lose power at every single operation.

mod real;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

use std::{
    fmt::Debug,
    io::{self, IoSliceMut},
    path::Path,
    sync::Arc,
};

pub use real::RealDisk;

/// An open file; concurrent use is allowed.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads into the buffers in turn, from `offset`; returns the bytes read, fewer only before the end of the
    /// file or when the system feels like it.
    fn read_vectored_at(&self, into: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize>;
    /// Writes all of it at `offset`; after an error any part of it may have been written.
    fn write_all_at(&self, from: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file off; durable or not, as it comes.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills the buffer from `offset`, or fails with [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.read_vectored_at(&mut [IoSliceMut::new(&mut into[done..])], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Files and directories. New ones are readable by their owner only: images are memory.
pub trait Disk: Debug + Send + Sync {
    /// Makes a directory and those above it; fine if it exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens a file to read.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file to read and write, makes it if it does not exist, and empties it if `fresh`.
    fn create(&self, path: &Path, fresh: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file or directory, replacing a file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name; fails if that exists, or where files have one name only.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Locks a file (made if it does not exist) until the result is dropped; none: another has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Debug + Send + Sync>>>;
}

/// Reads a whole file, if it has at most `limit` bytes (else fails with [`io::ErrorKind::InvalidData`]).
pub(crate) fn read_file(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let length = file.length()?;
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes, at most {limit}")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
