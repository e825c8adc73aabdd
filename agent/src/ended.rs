//! How a process ended that is, most often, nobody's child here.
//!
//! Asked in this order: the kernel, by the pidfd (`PIDFD_GET_INFO`, since Linux 6.15; it knows once the parent has reaped
//! the process) or by `/proc` while it is a zombie; the keeper of a restored one; what the process itself noted in its
//! control page when it called `exit_group`. The last one also speaks of what happened while no agent was there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// How long the parent of a process that ended is given to reap it.
const REAP_PATIENCE: Duration = Duration::from_millis(100);

/// Waits for a process to end, at most so long, or until one of the others can be read; true: it has ended.
#[must_use]
pub(crate) fn wait(pidfd: &OwnedFd, others: [Option<BorrowedFd<'_>>; 2], most: Duration) -> bool {
    // The kernel passes over a negative one.
    let of = |fd: Option<BorrowedFd<'_>>| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls = [of(Some(pidfd.as_fd())), of(others[0]), of(others[1])];
    let ms = most.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: three descriptors.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), 3, if ms == 0 && !most.is_zero() { 1 } else { ms }) };
    ready > 0 && polls[0].revents != 0
}

/// `struct pidfd_info`, first published version (`linux/pidfd.h`).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);
/// `_IOWR(0xff, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `wait` status of the process behind a pidfd, if the kernel tells.
fn by_pidfd(pidfd: &OwnedFd) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the structure has the size that the number says.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } == 0;
    (done && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// The same of a zombie; 0 in `/proc` also means that we may not see it.
fn by_proc(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let status = fields.get(49)?.parse().ok()?;
    (fields.first() == Some(&"Z") && status != 0).then_some(status)
}

/// `wait` status of a process that has ended; none: the kernel does not tell.
#[must_use]
pub(crate) fn status(pidfd: &OwnedFd, pid: i32) -> Option<i32> {
    let until = Instant::now() + REAP_PATIENCE;
    loop {
        if let Some(status) = by_pidfd(pidfd).or_else(|| by_proc(pid)) {
            return Some(status);
        }
        // Gone, and the kernel does not tell: one before 6.15.
        let gone = std::fs::metadata(format!("/proc/{pid}")).is_err();
        if gone || Instant::now() >= until {
            return by_pidfd(pidfd);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.to_string())
}

/// In words; no status: nobody knows how.
#[must_use]
pub(crate) fn text(pid: i32, name: &str, status: Option<i32>) -> String {
    match status {
        None => format!("process {pid} ended, this kernel does not tell how"),
        Some(status) if libc::WIFSIGNALED(status) => format!(
            "process {pid} was killed by {}{}, not by holo; its epochs are kept, `holo restore {name}` runs it again",
            signal_name(libc::WTERMSIG(status)),
            if libc::WCOREDUMP(status) { " (core dumped)" } else { "" },
        ),
        Some(status) => format!("process {pid} exited with status {}", libc::WEXITSTATUS(status)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::FromRawFd;
    use std::process::Command;

    fn pidfd(pid: i32) -> OwnedFd {
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        assert!(raw >= 0);
        // SAFETY: just made.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }

    // Goal: the end of a process is known, whether its parent reaps it or leaves a zombie.
    #[test]
    fn an_end_is_told() {
        for (script, said) in [
            ("exit 3", "exited with status 3"),
            ("kill -SEGV $$", "was killed by SIGSEGV"),
            ("kill -KILL $$", "was killed by SIGKILL, not by holo"),
        ] {
            let mut child = Command::new("sh")
                .args(["-c", &format!("read x; {script}")])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = child.id() as i32;
            let fd = pidfd(pid);
            drop(child.stdin.take());
            let until = Instant::now() + Duration::from_secs(5);
            while holo_rm::tree::start_time(pid).is_some() {
                assert!(Instant::now() < until);
                thread::sleep(Duration::from_millis(2));
            }
            let zombie = status(&fd, pid);
            assert!(text(pid, "a", zombie).contains(said), "{zombie:?}");
            child.wait().unwrap();
            if let Some(reaped) = status(&fd, pid) {
                assert_eq!(Some(reaped), zombie);
            }
        }
    }
}
