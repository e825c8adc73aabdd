//! The thread through which a process is looked at.
//!
//! A process goes on after its first thread has ended (`pthread_exit` in `main`). Through that one, and so by the number of the
//! process, the kernel shows no memory, descriptors, directory or namespaces any more; through each of the others it shows what
//! it showed before. All threads are looked up in `/proc` like processes, those that are not listed there, too.

use crate::barrier::tasks;
use crate::proc_file;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Flag of descriptors of single threads (Linux 6.9), for the C library does not name it.
pub(crate) const PIDFD_THREAD: i32 = libc::O_EXCL;

/// The first thread of a process, or one that lives where that has ended. Of a process that is gone, its pid.
#[must_use]
pub fn face(pid: i32) -> i32 {
    if has_ended(pid) { others(pid).next().unwrap_or(pid) } else { pid }
}

/// Threads of a process that live, but for the first.
pub(crate) fn others(pid: i32) -> impl Iterator<Item = i32> {
    let all = tasks(pid).unwrap_or_default().into_iter();
    all.filter(move |tid| *tid != pid && !has_ended(*tid))
}

/// Whether a thread has ended; by the number of a process, its first one.
pub(crate) fn has_ended(tid: i32) -> bool {
    let stat = proc_file::read(format!("/proc/{tid}/stat")).ok();
    let state = stat.and_then(|text| {
        let at = text.windows(2).rposition(|pair| pair == b") ")?;
        text.get(at + 2).copied()
    });
    matches!(state, None | Some(b'Z' | b'X'))
}

/// What the first thread of a process, which has ended, left as its exit status, as `wait` gives it.
pub(crate) fn status_of_first(pid: i32) -> i32 {
    let stat = proc_file::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let last = stat.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(last).ok().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A descriptor for a thread that is not the first of its process, by which the kernel gives descriptors of the process.
///
/// # Errors
/// It is gone; `EINVAL` before Linux 6.9.
pub(crate) fn open(tid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tree::{look, share_memory, start_time, stat};
    use std::time::{Duration, Instant};

    /// A process of ours that ends with us, of which the first thread calls `exit(status)` and the other one stays.
    fn headless(status: i32) -> i32 {
        extern "C" fn stay(_: *mut libc::c_void) -> *mut libc::c_void {
            loop {
                // SAFETY: no memory is passed.
                unsafe { libc::pause() };
            }
        }
        // SAFETY: the child makes a thread, which is all that a fork of a process with several leaves it.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let mut thread = std::mem::zeroed();
                libc::pthread_create(&raw mut thread, std::ptr::null(), stay, std::ptr::null_mut());
                libc::syscall(libc::SYS_exit, status);
            }
            pid
        }
    }

    // Goal: a process is seen through another thread when its first one has ended, and is the same one as before. Method: one
    // whose first thread ends, by what the kernel shows of it.
    #[test]
    fn another_thread_is_the_face() {
        let pid = headless(5);
        let until = Instant::now() + Duration::from_secs(10);
        // The other one may not have come to its wait by then.
        while !(has_ended(pid) && stat(pid).is_some_and(|seen| seen.state == 'S')) {
            assert!(Instant::now() < until, "its first thread lives, or the other one does not wait");
        }
        let face = face(pid);
        assert!(face != pid && !has_ended(face));
        assert_eq!(status_of_first(pid), 5 << 8);
        let seen = stat(pid).unwrap();
        assert!(seen.first_has_ended && seen.threads == 1 && seen.parts[0] != 0);
        assert_eq!((seen.exit_signal, start_time(pid)), (libc::SIGCHLD, Some(seen.started)));
        let look = look(pid).unwrap();
        assert_eq!((look.state, look.face), ('S', face));
        let me = std::process::id() as i32;
        assert!(!share_memory(face, me) && share_memory(face, face));
        assert_eq!(self::face(me), me);
        if let Ok(fd) = open(face) {
            // SAFETY: no memory is passed.
            let got =
                unsafe { libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&fd), 0, 0) };
            assert!(got >= 0, "{}", io::Error::last_os_error());
            // SAFETY: just made.
            drop(unsafe { OwnedFd::from_raw_fd(got as i32) });
        }
        // SAFETY: our own child.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        assert_eq!(self::face(pid), pid);
    }
}
