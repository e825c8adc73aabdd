//! Copies of file contents made in the stop: a reflink, or the kernel's own copying of what is no hole.

use crate::kinds::kernel::reopen;
use crate::leases;
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
    // Looking for holes moves the offset, and to open it again would break a lease.
    let own = if leases::is_held_by(file) { None } else { reopen(file, libc::O_RDONLY).map(File::from).ok() };
    let Some(own) = own else {
        return part(file, &to, 0, bytes).map(|()| to);
    };
    let mut at = 0;
    while at < bytes {
        let Some(data) = seek(&own, at, libc::SEEK_DATA)? else { break };
        let hole = seek(&own, data, libc::SEEK_HOLE)?.unwrap_or(bytes).min(bytes);
        part(&own, &to, data, hole)?;
        at = hole;
    }
    Ok(to)
}

/// Where the next data or hole begins; none behind the last data.
fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: no memory is passed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from.cast_signed(), whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            cause if cause.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            cause => Err(cause),
        },
    }
}

/// Copies what is between two places.
fn part(file: &File, to: &File, from: u64, until: u64) -> io::Result<()> {
    let mut from_at = from.cast_signed();
    while from_at < until.cast_signed() {
        let mut to_at = from_at;
        let left = (until.cast_signed() - from_at) as usize;
        // SAFETY: offsets are ours; neither file's own offset moves.
        let moved = unsafe {
            libc::copy_file_range(file.as_raw_fd(), &raw mut from_at, to.as_raw_fd(), &raw mut to_at, left, 0)
        };
        match moved {
            0 => break,
            moved if moved > 0 => {}
            _ => return slow(file, to, from_at as u64, until),
        }
    }
    Ok(())
}

/// Where the kernel cannot copy between the two file systems.
fn slow(from: &File, to: &File, mut at: u64, until: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    while at < until {
        let want = buffer.len().min((until - at) as usize);
        let got = from.read_at(&mut buffer[..want], at)?;
        if got == 0 {
            break;
        }
        to.write_all_at(&buffer[..got], at)?;
        at += got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Seek;
    use std::os::unix::fs::{FileExt, MetadataExt};

    // Goal: holes are not copied, and the offset of who has the file stays. Method: a large hole with data around it.
    #[test]
    fn holes_stay() {
        const LARGE: u64 = 1 << 34;
        let dir = std::env::temp_dir();
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(&dir).unwrap()
        };
        let mut file = open();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", LARGE).unwrap();
        file.set_len(LARGE + 10_000_000).unwrap();
        file.seek(io::SeekFrom::Start(7)).unwrap();
        let copied = copy(&dir, &file).unwrap();
        assert_eq!(file.stream_position().unwrap(), 7);
        let mut text = [0; 5];
        copied.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"begin");
        copied.read_exact_at(&mut text, LARGE).unwrap();
        assert_eq!(&text, b"end\0\0");
        assert_eq!(copied.metadata().unwrap().len(), LARGE + 10_000_000);
        assert!(copied.metadata().unwrap().blocks() < 1000);
    }
}
