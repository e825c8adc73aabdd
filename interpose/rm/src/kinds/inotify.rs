//! inotify: the same watches under the same numbers. Events that were queued cannot be read without taking
//! them out; the application is told that events were lost (`IN_Q_OVERFLOW`), which it must expect anyway.

use super::kernel::{self, Bytes, c_path, checked, identity, owned};
use super::open::{Dumping, Each, Making, Open, path_of};
use super::watched;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Sets the number that the next watch gets; kernels without checkpoint support lack it.
const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;
/// Without it: numbers are given in order and never again, reaching a higher one costs two calls each.
const NUMBER_MAX: i32 = 1 << 20;
const EVENT_BYTES: usize = 16;

/// A watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Watch {
    number: i32,
    mask: u32,
    path: Bytes,
}

/// An inotify instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InotifyState {
    /// In rising order of their numbers.
    watches: Vec<Watch>,
    /// Bytes of events not yet read.
    queued: usize,
}

/// A watch as `fdinfo` shows it: number, device, inode, mask.
pub(crate) fn parse(line: &str) -> Option<(i32, (u64, u64), u32)> {
    let hex = |name: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        u64::from_str_radix(word, 16).ok()
    };
    let device = hex("sdev:")?;
    // The kernel's own packing of device numbers.
    let device = libc::makedev((device >> 20) as u32, (device & 0xf_ffff) as u32);
    Some((i32::try_from(hex("wd:")?).ok()?, (device, hex("ino:")?), hex("mask:")? as u32))
}

impl InotifyState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let mut watches = Vec::new();
        for line in open.info.lines("inotify ") {
            let bad = || open.unsupported(format!("watch `{line}`"));
            let (number, key, mask) =
                parse(line).filter(|(number, ..)| *number < NUMBER_MAX).ok_or_else(bad)?;
            let path = watched::find(dumping.cx.remote, key, dumping.watched)
                .ok_or_else(|| open.unsupported(format!("the file of watch {number} was not found")))?;
            watches.push(Watch { number, mask, path: Bytes(path.as_os_str().as_bytes().to_vec()) });
        }
        watches.sort_by_key(|watch| watch.number);
        let queued = kernel::readable_bytes(open).on("reading", open.named())?;
        Ok(Self { watches, queued })
    }
}

/// Makes all instances again.
pub(crate) fn recreate(all: &Each<InotifyState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })
            .on("making", "inotify instance")?;
        let number = making.common(*index).number;
        // First, while nothing else can send events; unless that would use up a number.
        let early = set_next(&fd, 1);
        let tell = |now: bool| if state.queued > 0 && now { overflow(&fd) } else { Ok(()) };
        tell(early).on("telling of lost events on descriptor", number)?;
        fill(&fd, state).on("watching for descriptor", number)?;
        tell(!early).on("telling of lost events on descriptor", number)?;
        if state.queued > 0 {
            making.remark(*index, "queued file events are lost; the application is told so");
        }
        making.put(*index, fd)?;
    }
    Ok(())
}

fn watch(fd: &OwnedFd, path: &Path, mask: u32) -> io::Result<i32> {
    let path = c_path(path)?;
    // SAFETY: a terminated path.
    checked(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

/// Sets the number of the next watch, if the kernel can.
fn set_next(fd: &OwnedFd, number: i32) -> bool {
    // SAFETY: the argument is a number.
    unsafe { libc::ioctl(fd.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, libc::c_long::from(number)) == 0 }
}

fn unwatch(fd: &OwnedFd, number: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    checked(unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), number) }).map(|_| ())
}

/// A file that nobody else knows, with an open descriptor that names it.
fn private_file() -> io::Result<(OwnedFd, std::path::PathBuf)> {
    // SAFETY: a name that ends.
    let fd = owned(unsafe { libc::memfd_create(c"holo".as_ptr(), libc::MFD_CLOEXEC) })?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok((fd, path.into()))
}

fn fill(fd: &OwnedFd, state: &InotifyState) -> io::Result<()> {
    let (_file, spare) = private_file()?;
    let mut last = 0;
    for wanted in &state.watches {
        let set = set_next(fd, wanted.number);
        while !set && last + 1 < wanted.number {
            last = watch(fd, &spare, libc::IN_OPEN)?;
            unwatch(fd, last)?;
            drain(fd, usize::MAX);
        }
        let path = path_of(&wanted.path.0);
        last = watch(fd, &path, wanted.mask | libc::IN_DONT_FOLLOW)
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display())))?;
        if last != wanted.number {
            let what = format!("{}: watch {last} instead of {}", path.display(), wanted.number);
            return Err(io::Error::other(what));
        }
    }
    Ok(())
}

/// Takes out at most `bytes` of events.
fn drain(fd: &OwnedFd, bytes: usize) {
    let mut buffer = [0u64; 8192];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(size_of_val(&buffer));
        // SAFETY: the buffer is ours; the instance does not block.
        let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), part) };
        if got <= 0 {
            return;
        }
        left -= got as usize;
    }
}

/// Makes the queue overflow, and leaves in it nothing but the event that says so.
fn overflow(fd: &OwnedFd) -> io::Result<()> {
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?;
    let most: usize = most.trim().parse().unwrap_or(16384);
    let (_file, spare) = private_file()?;
    let number = watch(fd, &spare, libc::IN_OPEN | libc::IN_CLOSE)?;
    for _ in 0..=most / 2 {
        kernel::open(&spare, libc::O_RDONLY, 0)?;
    }
    // The queue is full: the farewell of this watch is not queued.
    unwatch(fd, number)?;
    drain(fd, most * EVENT_BYTES);
    if kernel::readable_bytes(fd)? < EVENT_BYTES {
        return Err(io::Error::other("the queue did not overflow"));
    }
    Ok(())
}

/// Whether a path still leads to an object.
pub(crate) fn leads_to(path: &Path, key: (u64, u64)) -> bool {
    identity(path, false) == Some(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: numbers with gaps come back, lost events are told. Method: make an instance, read what it shows.
    #[test]
    fn numbers_and_overflow() {
        let watch = |number, path: &str| Watch { number, mask: libc::IN_CREATE, path: Bytes(path.into()) };
        let state = InotifyState { watches: vec![watch(3, "/usr"), watch(7, "/etc")], queued: 16 };
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }).unwrap();
        assert!(set_next(&fd, 1));
        overflow(&fd).unwrap();
        fill(&fd, &state).unwrap();
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        let mut shown: Vec<_> =
            text.lines().filter_map(|line| parse(line.strip_prefix("inotify ")?)).collect();
        shown.sort_by_key(|(number, ..)| *number);
        let numbers: Vec<i32> = shown.iter().map(|(number, ..)| *number).collect();
        assert_eq!(numbers, [3, 7]);
        assert!(leads_to(Path::new("/etc"), shown[1].1), "{shown:?}");
        let mut event = [0u8; 64];
        // SAFETY: room of the stated size.
        let got = unsafe { libc::read(fd.as_raw_fd(), event.as_mut_ptr().cast(), 64) };
        assert_eq!((got, &event[..4], &event[4..8]), (16, &[0xff; 4][..], &0x4000u32.to_ne_bytes()[..]));
    }
}
