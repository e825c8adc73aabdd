//! Copies of file contents made in the stop: a reflink, or the kernel's own copying.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FICLONE: libc::c_ulong = 0x4004_9409;

/// Copies the whole content of `file` into an unnamed file in `dir`. The offset of `file` is not touched.
///
/// # Errors
/// The kernel's.
pub fn copy(dir: &Path, file: &File) -> io::Result<File> {
    let to = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)?;
    let bytes = file.metadata()?.len();
    // SAFETY: two open descriptors.
    if unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, file.as_raw_fd()) } == 0 {
        return Ok(to);
    }
    to.set_len(bytes)?;
    let mut from_at = 0i64;
    while from_at < bytes as i64 {
        let mut to_at = from_at;
        let left = (bytes as i64 - from_at) as usize;
        // SAFETY: offsets are ours; neither file's own offset moves.
        let moved = unsafe {
            libc::copy_file_range(file.as_raw_fd(), &raw mut from_at, to.as_raw_fd(), &raw mut to_at, left, 0)
        };
        match moved {
            0 => break,
            moved if moved > 0 => {}
            _ => return slow(file, &to, from_at as u64, bytes).map(|()| to),
        }
    }
    Ok(to)
}

/// Where the kernel cannot copy between the two file systems.
fn slow(from: &File, to: &File, mut at: u64, bytes: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    while at < bytes {
        let got = from.read_at(&mut buffer, at)?;
        if got == 0 {
            break;
        }
        to.write_all_at(&buffer[..got], at)?;
        at += got as u64;
    }
    Ok(())
}
