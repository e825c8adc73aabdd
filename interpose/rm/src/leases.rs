//! Write leases (`F_SETLEASE`) that parked processes hold: to open the file would break them.

use crate::fds::Fd;
use crate::manager::{Context, RmError, RmResult};
use crate::remote::Remote;
use crate::tree::Process;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Descriptors of their holders, by device and inode number of the file. Whoever reads must not move positions, and
/// close them before the holders go on.
///
/// # Errors
/// [`RmError::Unsupported`] for a descriptor that does not read.
pub fn held(processes: &[Process]) -> RmResult<BTreeMap<(u64, u64), File>> {
    let mut held = BTreeMap::new();
    for process in processes {
        for fd in process.remote.fds()?.iter().filter(|fd| is_write_lease(fd)) {
            let (number, file) = borrow(&process.remote, fd)?;
            held.insert(number, file);
        }
    }
    Ok(held)
}

/// Does this description hold the lease?
pub(crate) fn is_held_by(file: &impl AsRawFd) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_WRLCK }
}

/// Has anybody on this node a write lease on a file with this inode number?
pub(crate) fn is_any_on(ino: u64) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let end = format!(":{ino}");
    locks
        .lines()
        .filter(|line| is_write(line))
        .any(|line| line.split_whitespace().any(|word| word.ends_with(&end)))
}

/// `1: LEASE  ACTIVE    WRITE 4711 fd:01:1234 0 EOF`
fn is_write(line: &str) -> bool {
    line.contains(" LEASE ") && line.contains(" WRITE ")
}

fn is_write_lease(fd: &Fd) -> bool {
    fd.info.lines("lock:").any(is_write)
}

fn borrow(remote: &Remote, fd: &Fd) -> RmResult<((u64, u64), File)> {
    let object = fd.link.to_string_lossy();
    if fd.flags() & libc::O_ACCMODE == libc::O_WRONLY || fd.flags() & libc::O_DIRECT != 0 {
        return Err(RmError::Unsupported(format!(
            "descriptor {} ({object}): it has a write lease, and cannot be read through",
            fd.number
        )));
    }
    let file = remote.borrow_fd(fd.number).map(File::from);
    let named =
        |file: File| -> io::Result<_> { file.metadata().map(|meta| ((meta.dev(), meta.ino()), file)) };
    file.and_then(named).on("borrowing", object)
}
