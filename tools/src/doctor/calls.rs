//! What the agent does to an application from outside: read its memory, take its descriptors, compare them.

use std::os::fd::AsRawFd;

use super::child::{self, errno, owned};
use super::{Probe, Status, refused};

const GROUP: &str = "capture";

pub(super) fn probes() -> Vec<Probe> {
    let seccomp =
        "allow this call in the container's seccomp profile; set kernel.yama.ptrace_scope to 0 or 1";
    let probe = |name, means, tried, status| Probe::feature(GROUP, name, means, tried, (status, seccomp));
    vec![
        probe("process_vm_readv", "the agent reads the application's memory", vm_readv(), Status::Missing)
            .needed(),
        probe(
            "pidfd_getfd",
            "the agent reads the state of the application's descriptors",
            getfd(),
            Status::Missing,
        )
        .needed(),
        probe("kcmp", "descriptors that share an open file are found", kcmp(), Status::Missing).needed(),
        probe(
            "close_range_unshare",
            "a thread works on a descriptor table of its own",
            close_range_unshare(),
            Status::Degraded,
        ),
    ]
}

fn works(errno: i64, what: &str) -> Result<String, String> {
    if errno == 0 {
        return Ok("tried, works".to_owned());
    }
    Err(refused(what, i32::try_from(errno).unwrap_or(libc::EIO)))
}

fn vm_readv() -> Result<String, String> {
    let secret = Box::new(0x5eed_u64);
    let at = &raw const *secret;
    let got = child::beside(|pid| {
        let mut copy = 0u64;
        let local = libc::iovec { iov_base: (&raw mut copy).cast(), iov_len: 8 };
        let remote = libc::iovec { iov_base: at.cast_mut().cast(), iov_len: 8 };
        // SAFETY: local memory is ours; the kernel checks the remote address, which the fork shares.
        let done = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
        (errno(done as i64), copy)
    })?;
    match got {
        (0, copy) if copy == *secret => works(0, ""),
        (0, _) => Err("the bytes read are wrong".to_owned()),
        (errno, _) => works(errno, "of an own child"),
    }
}

fn getfd() -> Result<String, String> {
    let (reader, _writer) = std::os::unix::net::UnixStream::pair().map_err(|e| format!("socketpair: {e}"))?;
    let error = child::beside(|pid| {
        // SAFETY: calls without memory; results are checked.
        unsafe {
            let pidfd = match owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) {
                Ok(fd) => fd,
                Err(errno) => return i64::from(errno),
            };
            let fd = owned(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), reader.as_raw_fd(), 0));
            fd.map_or_else(i64::from, |_| 0)
        }
    })?;
    works(error, "of an own child")
}

fn kcmp() -> Result<String, String> {
    const KCMP_FILE: i32 = 0;
    let file = std::fs::File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    let other = std::fs::File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    let (same, differs) = child::beside(|pid| {
        let own = std::process::id();
        // SAFETY: a query without memory.
        let compare = |a: i32, b: i32| unsafe { libc::syscall(libc::SYS_kcmp, own, pid, KCMP_FILE, a, b) };
        let same = compare(file.as_raw_fd(), file.as_raw_fd());
        (if same < 0 { -errno(same) } else { same }, compare(file.as_raw_fd(), other.as_raw_fd()))
    })?;
    match same {
        0 if differs > 0 => works(0, ""),
        0.. => Err("the comparison is wrong".to_owned()),
        error => works(-error, "with an own child"),
    }
}

fn close_range_unshare() -> Result<String, String> {
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    let [error] = child::run(|| {
        // SAFETY: closes nothing that exists, in a child of its own.
        [errno(unsafe { libc::syscall(libc::SYS_close_range, u32::MAX - 1, u32::MAX, CLOSE_RANGE_UNSHARE) })]
    })?;
    works(error, "tried")
}
