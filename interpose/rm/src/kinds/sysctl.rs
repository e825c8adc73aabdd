//! Settings under `/proc/sys` that are a namespace's own: read and written by one who is in it.

use crate::remote::{Remote, call};
use holo_abi::sysno;
use std::io;

const VALUE_BYTES_MAX: usize = 128;
const VALUE_AT: usize = 256;

fn open(remote: &Remote, name: &str, flags: u64) -> io::Result<u64> {
    let path = format!("/proc/sys/{name}\0");
    remote.call(sysno::open, &[remote.page.put(0, path.as_bytes()), flags])
}

/// Reads one.
///
/// # Errors
/// The kernel lacks it, there is no `/proc`, or the kernel's.
pub(super) fn read(remote: &Remote, name: &str) -> io::Result<String> {
    let fd = open(remote, name, libc::O_RDONLY as u64)?;
    let at = remote.page.scratch_address(VALUE_AT);
    let mut calls = [call(sysno::read, &[fd, at, VALUE_BYTES_MAX as u64]), call(sysno::close, &[fd])];
    remote.run_all(&mut calls)?;
    let bytes = (calls[0].ret.max(0) as usize).min(VALUE_BYTES_MAX);
    Ok(String::from_utf8_lossy(&remote.page.take(VALUE_AT, bytes)).trim().to_owned())
}

/// Writes one.
///
/// # Errors
/// As [`read`]; it may not be written.
pub(super) fn write(remote: &Remote, name: &str, value: &str) -> io::Result<()> {
    let fd = open(remote, name, libc::O_WRONLY as u64)?;
    let at = remote.page.put(0, value.as_bytes());
    let mut calls = [call(sysno::write, &[fd, at, value.len() as u64]), call(sysno::close, &[fd])];
    remote.run_all(&mut calls)
}
