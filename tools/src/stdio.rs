//! Standard descriptors that the caller closed stay closed for the application.

use std::os::fd::RawFd;

/// Occupies descriptors 0 to 2 where they are closed, so that no socket of ours lands there and a warning is
/// never written into it. The place holders vanish at `exec`.
pub fn hold_closed() {
    loop {
        // SAFETY: the path is a literal with its zero; the descriptor is checked.
        let fd: RawFd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            return;
        }
        if fd > 2 {
            // SAFETY: opened above and known to nobody else.
            unsafe { libc::close(fd) };
            return;
        }
    }
}
