//! Single threads: which there are, how they are told to park, how ours sleeps until they have.

use holo_abi::{PARK_COOKIE, PARK_SIGNAL};
use std::fs;
use std::io;

/// Threads of a process.
pub(crate) fn tasks(pid: i32) -> io::Result<Vec<i32>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            out.push(tid);
        }
    }
    Ok(out)
}

/// State letter of a thread; `None` when it is gone.
pub(super) fn thread_state(pid: i32, tid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Tells a thread to park.
pub(super) fn signal(pid: i32, tid: i32) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        signo: i32,
        errno: i32,
        code: i32,
        pad: i32,
        pid: u32,
        uid: u32,
        value: u64,
        rest: [u64; 12],
    }
    let info = Info {
        signo: PARK_SIGNAL,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid: std::process::id(),
        // SAFETY: no memory is passed.
        uid: unsafe { libc::getuid() },
        value: PARK_COOKIE,
        rest: [0; 12],
    };
    // SAFETY: a complete siginfo.
    let ret = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, PARK_SIGNAL, &raw const info) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sleeps of this thread end when they should, not up to 50 us later.
pub(super) struct Precise(libc::c_int);

impl Precise {
    /// From now on.
    pub(super) fn sleeps() -> Self {
        // SAFETY: numbers only.
        let before = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000) };
        Self(before)
    }
}

impl Drop for Precise {
    fn drop(&mut self) {
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, libc::c_long::from(self.0)) };
    }
}
