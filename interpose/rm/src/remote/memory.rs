//! Memory of a process, read and written from outside.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads memory of a process that the process itself may have no right to read, as it is, with guards for example.
///
/// # Errors
/// The kernel's; a partial read is an error.
pub fn read_guarded(pid: i32, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let path = format!("/proc/{pid}/mem");
    let what = |cause: io::Error| io::Error::new(cause.kind(), format!("{path} at {at:#x}: {cause}"));
    fs::File::open(&path).map_err(what)?.read_exact_at(bytes, at).map_err(what)
}

/// Reads memory of any process that we may read.
///
/// # Errors
/// The kernel's; a partial read is an error.
pub fn read_memory(pid: i32, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    transfer(pid, at, bytes.as_mut_ptr(), bytes.len(), false)
}

pub(super) fn transfer(pid: i32, at: u64, ours: *mut u8, bytes: usize, write: bool) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        // The kernel moves at most 2 GiB at once.
        let part = (bytes - done).min(1 << 30);
        // SAFETY: within the caller's buffer.
        let local = libc::iovec { iov_base: unsafe { ours.add(done) }.cast(), iov_len: part };
        let remote = libc::iovec { iov_base: (at + done as u64) as *mut libc::c_void, iov_len: part };
        // SAFETY: the buffer is the caller's; the kernel checks the other side.
        let moved = unsafe {
            if write {
                libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0)
            } else {
                libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0)
            }
        };
        if moved <= 0 {
            let cause = io::Error::last_os_error();
            let verb = if write { "writing" } else { "reading" };
            let at = at + done as u64;
            return Err(io::Error::new(
                cause.kind(),
                format!("{verb} {part} bytes at {at:#x} of {pid}: {cause}"),
            ));
        }
        done += moved as usize;
    }
    Ok(())
}

/// The kernel's limit of ranges in one call.
const VECTORS_MAX: usize = 1024;

/// Ranges of another process's memory.
fn vectors(ranges: &[(u64, u64)]) -> (Vec<libc::iovec>, usize) {
    let vector = |(start, end): &(u64, u64)| libc::iovec {
        iov_base: *start as *mut libc::c_void,
        iov_len: (end - start) as usize,
    };
    let vectors: Vec<libc::iovec> = ranges.iter().map(vector).collect();
    let bytes = vectors.iter().map(|vector| vector.iov_len).sum();
    (vectors, bytes)
}

fn moved_all(moved: isize, want: usize, pid: i32) -> io::Result<()> {
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    if moved as usize == want {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{moved} of {want} bytes of {pid}")))
}

/// Reads many ranges of a process's memory, one behind the other, into a buffer of their size.
///
/// # Errors
/// The kernel's; a partial read is an error.
pub fn read_many(pid: i32, ranges: &[(u64, u64)], bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    for part in ranges.chunks(VECTORS_MAX) {
        let (theirs, want) = vectors(part);
        let room = bytes.get_mut(done..done + want).ok_or(io::ErrorKind::InvalidInput)?;
        let ours = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: want };
        // SAFETY: the buffer is the caller's and large enough; the kernel checks the other side.
        let moved = unsafe {
            libc::process_vm_readv(pid, &raw const ours, 1, theirs.as_ptr(), theirs.len() as libc::c_ulong, 0)
        };
        moved_all(moved, want, pid)?;
        done += want;
    }
    Ok(())
}

/// Writes many ranges of a process's memory out of a buffer of their size, one behind the other.
///
/// # Errors
/// The kernel's; a partial write is an error.
pub fn write_many(pid: i32, ranges: &[(u64, u64)], bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    for part in ranges.chunks(VECTORS_MAX) {
        let (theirs, want) = vectors(part);
        let from = bytes.get(done..done + want).ok_or(io::ErrorKind::InvalidInput)?;
        let ours = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: want };
        // SAFETY: only read; the kernel checks the other side.
        let moved = unsafe {
            libc::process_vm_writev(
                pid,
                &raw const ours,
                1,
                theirs.as_ptr(),
                theirs.len() as libc::c_ulong,
                0,
            )
        };
        moved_all(moved, want, pid)?;
        done += want;
    }
    Ok(())
}
