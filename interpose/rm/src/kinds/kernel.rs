//! Thin, checked wrappers of the calls that descriptor kinds need and std has not.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A byte string in a state: one copy on the wire instead of a call per byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Bytes(#[serde(with = "holo_image::wire::bytes")] pub(crate) Vec<u8>);

/// A call's result as `io::Result`.
pub(crate) fn checked<T: PartialOrd + Default>(ret: T) -> io::Result<T> {
    if ret < T::default() { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// A new descriptor as its owner.
pub(crate) fn owned(ret: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: callers pass the result of a call that makes a descriptor.
    checked(ret).map(|raw| unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A path for the kernel.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// `open(2)` with these flags exactly (and `O_CLOEXEC`, which is a matter of the number).
pub(crate) fn open(path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: a terminated path.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) })
}

/// Opens the object behind one of our descriptors again: a new description of the same object.
pub(crate) fn reopen(fd: &impl AsRawFd, flags: i32) -> io::Result<OwnedFd> {
    let mut kept = flags & !(libc::O_NOFOLLOW | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        // It contains O_DIRECTORY, and the file is none.
        kept &= !libc::O_TMPFILE;
    }
    open(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())), kept, 0)
}

/// Reads all of a small file in an open directory, as the kernel makes it up: a short read is its end.
pub(crate) fn read_at(dir: &impl AsRawFd, name: &CStr) -> io::Result<Vec<u8>> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: a terminated name.
    let fd = owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags) })?;
    let mut text = Vec::new();
    // Fresh heap memory costs more than the call, so that parts go by way of the stack.
    let mut part = [0u8; 4096];
    loop {
        // SAFETY: the buffer is ours.
        let got =
            checked(unsafe { libc::read(fd.as_raw_fd(), part.as_mut_ptr().cast(), part.len()) })? as usize;
        text.extend_from_slice(&part[..got]);
        if got < part.len() {
            return Ok(text);
        }
    }
}

/// Where a link in an open directory points.
pub(crate) fn link_at(dir: &impl AsRawFd, name: &CStr) -> io::Result<OsString> {
    let mut target = [0u8; libc::PATH_MAX as usize];
    // SAFETY: a terminated name and room of the stated size.
    let got = checked(unsafe {
        libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), target.as_mut_ptr().cast(), target.len())
    })?;
    Ok(OsString::from_vec(target[..got as usize].to_vec()))
}

/// `fstat`.
pub(crate) fn stat(fd: &impl AsRawFd) -> io::Result<libc::stat> {
    let mut stat = std::mem::MaybeUninit::uninit();
    // SAFETY: room for one `stat`, filled in on success.
    unsafe {
        checked(libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()))?;
        Ok(stat.assume_init())
    }
}

/// Device and inode of a path.
pub(crate) fn identity(path: &Path, follow: bool) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let found = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    found.ok().map(|found| (found.dev(), found.ino()))
}

/// `fcntl` with a word.
pub(crate) fn fcntl(fd: &impl AsRawFd, command: i32, arg: i64) -> io::Result<i32> {
    // SAFETY: callers use commands whose argument is a number.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), command, arg) })
}

/// Whether somebody has a record lock on its file. One of the description itself is not seen.
pub(crate) fn is_locked(fd: &impl AsRawFd) -> bool {
    const F_OFD_GETLK: i32 = 36;
    // SAFETY: a `flock` of zeros is valid: all of the file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    // SAFETY: the kernel writes one `flock`.
    let asked = checked(unsafe { libc::fcntl(fd.as_raw_fd(), F_OFD_GETLK, &raw mut lock) });
    asked.is_err() || lock.l_type != libc::F_UNLCK as i16
}

/// `ioctl` that fills in a number.
pub(crate) fn ioctl_int(fd: &impl AsRawFd, request: libc::c_ulong) -> io::Result<i32> {
    let mut value = 0i32;
    // SAFETY: callers use requests that write an `int`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) }).map(|_| value)
}

/// Bytes that can be read (`FIONREAD`).
pub(crate) fn readable_bytes(fd: &impl AsRawFd) -> io::Result<usize> {
    ioctl_int(fd, libc::FIONREAD).map(|bytes| bytes.max(0) as usize)
}

/// Writes all, or fails: for objects that have the room by construction.
pub(crate) fn write_all(fd: &impl AsRawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the buffer is ours.
        let done = checked(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })?;
        bytes = &bytes[done as usize..];
    }
    Ok(())
}

/// What `kcmp(2)` compares.
pub(crate) mod compare {
    /// Two descriptor numbers: the same description?
    pub(crate) const FILE: i32 = 0;
    /// All descriptors of two processes.
    pub(crate) const FILES: i32 = 2;
    /// Their directory, root and file mode mask.
    pub(crate) const FS: i32 = 3;
    /// A descriptor number with a member of an epoll set.
    pub(crate) const EPOLL_TFD: i32 = 7;
}

/// `kcmp` within one process or between two; a total order of kernel objects.
pub(crate) fn kcmp(pids: (i32, i32), kind: i32, one: u64, other: u64) -> io::Result<Ordering> {
    // SAFETY: arguments are numbers, or for epoll the address of a live slot.
    match checked(unsafe { libc::syscall(libc::SYS_kcmp, pids.0, pids.1, kind, one, other) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::other("the objects cannot be ordered")),
    }
}

/// A plain structure as bytes, for the kernel.
pub(crate) fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: callers use `repr(C)` structures of the kernel without padding that matters.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
