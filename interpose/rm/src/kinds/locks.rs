//! Locks on files: `flock`, open file description locks, POSIX record locks, leases.

use super::fdinfo::FdInfo;
use super::kernel::{bytes_of, checked};
use super::open::Open;
use crate::manager::{Context, RmResult};
use crate::remote::Remote;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Holder {
    /// The description, on the whole file (`flock`).
    Flock,
    /// The description, on a range (`F_OFD_SETLK`).
    Description,
    /// The process, on a range (`F_SETLK`).
    Process,
    /// The description, on the whole file, until somebody opens it otherwise (`F_SETLEASE`).
    Lease,
}

/// A lock as `fdinfo` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lock {
    holder: Holder,
    write: bool,
    start: i64,
    /// Bytes; 0 means to the end of the file.
    bytes: i64,
}

impl Lock {
    /// Locks that a description holds.
    pub(crate) fn of(open: &Open) -> RmResult<Vec<Self>> {
        let mut locks = Vec::new();
        for line in open.info.lines("lock:") {
            locks.push(Self::parse(line).ok_or_else(|| open.unsupported(format!("lock `{line}`")))?);
        }
        locks.retain(|lock| lock.holder != Holder::Process);
        Ok(locks)
    }

    /// Locks that the process holds on the file of one of its descriptors.
    pub(crate) fn of_process(info: &FdInfo) -> Vec<Self> {
        let all = info.lines("lock:").filter_map(Self::parse);
        all.filter(|lock| lock.holder == Holder::Process).collect()
    }

    pub(crate) fn is_lease(&self) -> bool {
        self.holder == Holder::Lease
    }

    /// `1: POSIX  ADVISORY  WRITE 4711 fd:01:1234 0 EOF`. A lease that is being broken is none of these: its holder has
    /// been told, and is to give it up.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1);
        let sort = words.next()?;
        let holder = match sort {
            "FLOCK" => Holder::Flock,
            "OFDLCK" => Holder::Description,
            "POSIX" => Holder::Process,
            "LEASE" => Holder::Lease,
            _ => return None,
        };
        if words.next()? == "BREAKING" {
            return None;
        }
        let write = match words.next()? {
            "READ" => false,
            "WRITE" => true,
            _ => return None,
        };
        let start: i64 = words.nth(2)?.parse().ok()?;
        let bytes = match words.next()? {
            "EOF" => 0,
            end => end.parse::<i64>().ok()?.checked_sub(start)? + 1,
        };
        Some(Self { holder, write, start, bytes })
    }

    fn range(&self) -> libc::flock {
        libc::flock {
            l_type: (if self.write { libc::F_WRLCK } else { libc::F_RDLCK }) as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: self.start,
            l_len: self.bytes,
            l_pid: 0,
        }
    }

    /// Takes the lock for the description, if it is one that descriptions hold.
    pub(crate) fn take_for_description(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let range = self.range();
        // SAFETY: a complete `struct flock`.
        let ret = unsafe {
            match self.holder {
                Holder::Process | Holder::Lease => 0,
                Holder::Flock => {
                    let operation = if self.write { libc::LOCK_EX } else { libc::LOCK_SH };
                    libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB)
                }
                Holder::Description => libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const range),
            }
        };
        checked(ret).map(|_| ())
    }

    /// Takes a lease, if it is one, in the process, whose number for the file is told with the signal. To be done after
    /// its owner is set, and when nobody opens the file any more.
    pub(crate) fn take_lease(&self, remote: &Remote, number: i32) -> RmResult<()> {
        if !self.is_lease() {
            return Ok(());
        }
        let args = [number as u64, libc::F_SETLEASE as u64, u64::from(self.range().l_type.cast_unsigned())];
        remote.call(sysno::fcntl, &args).on("taking the lease of descriptor", number).map(|_| ())
    }

    /// Takes a lock that processes hold, in the process itself. To be done after the last
    /// `close` of any descriptor of the file in that process, which would drop it.
    pub(crate) fn take_in_process(&self, remote: &Remote, number: i32) -> RmResult<()> {
        let at = remote.page.put(0, bytes_of(&self.range()));
        let args = [number as u64, libc::F_SETLK as u64, at];
        remote.call(sysno::fcntl, &args).on("locking the file of descriptor", number).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: the sorts of locks are read, a lease that is being broken is refused. Method: lines as the kernel prints them.
    #[test]
    fn kernel_text() {
        let lock = |line| Lock::parse(line);
        let all = Lock { holder: Holder::Flock, write: true, start: 0, bytes: 0 };
        assert_eq!(lock("1: FLOCK  ADVISORY  WRITE 27 fe:00:1042 0 EOF"), Some(all));
        let posix = Lock { holder: Holder::Process, write: false, start: 10, bytes: 5 };
        assert_eq!(lock("1: POSIX  ADVISORY  READ  27 fe:00:1042 10 14"), Some(posix));
        let ofd = Lock { holder: Holder::Description, write: true, start: 4096, bytes: 0 };
        assert_eq!(lock("2: OFDLCK ADVISORY  WRITE -1 fe:00:1042 4096 EOF"), Some(ofd));
        let lease = Lock { holder: Holder::Lease, write: true, start: 0, bytes: 0 };
        assert_eq!(lock("1: LEASE  ACTIVE    WRITE 27 fe:00:1042 0 EOF"), Some(lease));
        assert_eq!(lock("1: LEASE  BREAKING  READ 27 fe:00:1042 0 EOF"), None);
    }
}
