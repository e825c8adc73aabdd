//! Inode flags (`chattr`) of files and directories.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `FS_NODUMP_FL`: whoever owns the file may set it.
pub const NO_DUMP: u32 = 0x40;
/// `FS_NOATIME_FL`: the same.
pub const NO_ATIME: u32 = 0x80;
/// `FS_IMMUTABLE_FL`: only root may set it.
pub const IMMUTABLE: u32 = 0x10;
/// `FS_APPEND_FL`: the same.
pub const APPEND: u32 = 0x20;
const ALL: u32 = NO_DUMP | NO_ATIME | IMMUTABLE | APPEND;

fn word(file: &File) -> io::Result<u32> {
    let mut word = 0u64;
    // SAFETY: FS_IOC_GETFLAGS writes four bytes, or eight, to a word that outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), 0x8008_6601, &raw mut word) };
    if done == 0 { Ok(word as u32) } else { Err(io::Error::last_os_error()) }
}

/// Those of the four that are set.
///
/// # Errors
/// It cannot be opened, or the file system has none.
pub fn get(path: &Path) -> io::Result<u32> {
    word(&File::open(path)?).map(|word| word & ALL)
}

/// Sets exactly these of the four.
///
/// # Errors
/// It cannot be opened, the file system has none, or this user may not.
pub fn set(path: &Path, wanted: u32) -> io::Result<()> {
    let file = File::open(path)?;
    let word = u64::from(word(&file)? & !ALL | wanted);
    // SAFETY: FS_IOC_SETFLAGS reads four bytes, or eight, of a word that outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), 0x4008_6602, &raw const word) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets exactly these of all files and directories below `path`, and of it.
///
/// # Errors
/// As for [`set`], and what cannot be listed.
pub fn set_all(path: &Path, wanted: u32) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            set_all(&entry?.path(), wanted)?;
        }
    }
    if kind.is_dir() || kind.is_file() { set(path, wanted) } else { Ok(()) }
}
