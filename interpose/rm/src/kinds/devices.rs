//! Devices without a state: they are opened again.

use super::files::FileState;
use super::open::{Dumping, Open};
use crate::manager::RmResult;

/// Memory devices (major 1) that have no state: null, zero, full, random, urandom.
const STATELESS: [u32; 5] = [3, 5, 7, 8, 9];

/// Whether a character device can simply be opened again.
pub(crate) fn is_stateless(open: &Open) -> bool {
    let device = open.stat.st_rdev;
    libc::major(device) == 1 && STATELESS.contains(&libc::minor(device))
}

/// As a file; others cannot be replicated.
pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<FileState> {
    if !is_stateless(open) {
        return Err(open.unsupported("a device whose state cannot be replicated"));
    }
    FileState::describe(open, dumping)
}
