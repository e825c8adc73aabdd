//! Inode flags (`chattr`): which are replicated, and asking for and setting them by a descriptor.
//!
//! The kernel gives them to who has the file open. So of files they are asked where content is read, by the same descriptor: a change
//! of theirs changes `ctime`, as one of content does, and a file with another `ctime` is read. Nothing is opened for flags alone but
//! directories that have changed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};

use crate::access::{Dir, SELF, number};
use crate::tree::Kind;

/// `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`: their numbers say `long`, what is passed is an `int`.
const GET: libc::Ioctl = 0x8008_6601_u32 as libc::Ioctl;
const SET: libc::Ioctl = 0x4008_6602;

const COMPRESS: u32 = 0x4;
const SYNC: u32 = 0x8;
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;
const NO_COMPRESS: u32 = 0x400;
const DIR_SYNC: u32 = 0x1_0000;
const NO_COW: u32 = 0x80_0000;

/// All that are replicated, with their names.
const NAMES: [(u32, &str); 9] = [
    (IMMUTABLE, "immutable"),
    (APPEND, "append-only"),
    (0x40, "no-dump"),
    (0x80, "no-atime"),
    (SYNC, "sync"),
    (DIR_SYNC, "dir-sync"),
    (NO_COW, "no-cow"),
    (COMPRESS, "compress"),
    (NO_COMPRESS, "no-compress"),
];

/// Their bits.
const KNOWN: u32 = {
    let (mut all, mut at) = (0, 0);
    while at < NAMES.len() {
        all |= NAMES[at].0;
        at += 1;
    }
    all
};

/// What has them cannot be changed, removed or renamed, not even by root.
pub(crate) const HOLDING: u32 = IMMUTABLE | APPEND;

/// What says how content is stored must be known before there is any.
const AT_BIRTH: u32 = NO_COW | COMPRESS | NO_COMPRESS;

/// One word for each flag.
pub fn names(flags: u32) -> impl Iterator<Item = &'static str> {
    NAMES.iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, name)| *name)
}

/// All in one word.
pub(crate) fn text(flags: u32) -> String {
    let all: Vec<&str> = names(flags).collect();
    if all.is_empty() { "none".into() } else { all.join(",") }
}

/// What is wrong with the flags of an inode of this kind.
pub(crate) fn rules(kind: &Kind, flags: u32) -> Result<(), &'static str> {
    let allowed = match kind {
        Kind::File { .. } => KNOWN & !DIR_SYNC,
        Kind::Dir => KNOWN,
        // They cannot be opened, and on most kernels not be asked.
        Kind::Symlink { .. } | Kind::Fifo | Kind::Socket | Kind::Left => 0,
    };
    if flags & !allowed == 0 { Ok(()) } else { Err("flag is none that is replicated") }
}

/// All flags that the file system tells of.
fn all(file: &impl AsFd) -> nix::Result<u32> {
    let mut word = 0u64;
    // SAFETY: the kernel writes four bytes, file systems in user space perhaps the eight that the number says.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET, &raw mut word) })?;
    Ok(word as u32)
}

fn set_all(file: &impl AsFd, flags: u32) -> nix::Result<()> {
    let word = u64::from(flags);
    // SAFETY: the kernel reads at most the eight bytes that the number says.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), SET, &raw const word) }).map(drop)
}

/// Flags of a regular file; none where the file system has no such thing.
pub(crate) fn of_file(file: &impl AsFd) -> u32 {
    all(file).map_or(0, |flags| flags & KNOWN & !DIR_SYNC)
}

/// Flags of a directory.
pub(crate) fn of_dir(dir: &impl AsFd) -> u32 {
    all(dir).map_or(0, |flags| flags & KNOWN)
}

/// Prepares a new, empty file that is to have these flags.
pub(crate) fn begin(file: &impl AsFd, wanted: u32) {
    let Ok(now) = all(file) else { return };
    // What it got from its directory makes writing slow until it is right at the end. What is refused is said then.
    let first = now & !(AT_BIRTH | SYNC) | wanted & AT_BIRTH;
    if first != now {
        let _ = set_all(file, first);
    }
}

/// Can a file that has content get these flags? On btrfs it stays copied on write, or not, as it is.
pub(crate) fn can_become(file: &impl AsFd, wanted: u32) -> bool {
    let is_other = (of_file(file) ^ wanted) & NO_COW != 0;
    !is_other || fstatfs(file).map_or(true, |found| found.filesystem_type() != BTRFS_SUPER_MAGIC)
}

/// Flags that could not be set or taken away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) flags: u32,
    pub(crate) cause: Option<Errno>,
}

/// Gives a file exactly these flags, of those that are replicated, but for those in `left`: each that can be, where others are refused.
pub(crate) fn set(file: &impl AsFd, wanted: u32, left: u32) -> Result<(), Refused> {
    let mut now = match all(file) {
        Ok(now) => now,
        Err(_) if wanted == 0 => return Ok(()),
        Err(cause) => return Err(Refused { flags: wanted & !left, cause: Some(cause) }),
    };
    let differ = move |now: u32| (now ^ wanted) & KNOWN & !left;
    if differ(now) == 0 {
        return Ok(());
    }
    let mut cause = set_all(file, now ^ differ(now)).err();
    if cause.is_some() {
        // What holds it last.
        for (bit, _) in NAMES.iter().rev() {
            match differ(now) & bit {
                0 => {}
                _ => match set_all(file, now ^ bit) {
                    Ok(()) => now ^= bit,
                    Err(why) => cause = Some(why),
                },
            }
        }
    }
    // Some file systems accept what they cannot do.
    let flags = differ(all(file).unwrap_or(now));
    if flags == 0 { Ok(()) } else { Err(Refused { flags, cause }) }
}

/// What [`Dir::release`] has taken from a file: all its flags before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Released {
    of: (u64, u64),
    flags: u32,
}

impl Dir {
    /// Flags of a directory or regular file.
    pub(crate) fn flags_of(&self, name: &[u8], is_dir: bool) -> nix::Result<u32> {
        if name == SELF {
            return Ok(of_dir(self));
        }
        Ok(if is_dir { of_dir(&self.child(name)?) } else { of_file(&self.read(name)?) })
    }

    /// Calls `call` with what `name` is, opened, if that is a directory or a regular file.
    fn with<T>(&self, name: &[u8], call: impl FnOnce(BorrowedFd<'_>) -> nix::Result<T>) -> nix::Result<T> {
        let stat = self.stat(name)?;
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR if name == SELF => call(self.as_fd()),
            SFlag::S_IFDIR => call(self.child(name)?.as_fd()),
            SFlag::S_IFREG => call(self.read(name)?.as_fd()),
            // To open them does something else, or takes for ever.
            _ => Err(Errno::EPERM),
        }
    }

    /// [`set`] for a directory or regular file.
    pub(crate) fn set_flags(&self, name: &[u8], wanted: u32, left: u32) -> Result<(), Refused> {
        let done = self.with(name, |file| Ok(set(&file, wanted, left)));
        match done {
            Ok(done) => done,
            Err(_) if wanted == 0 => Ok(()),
            Err(cause) => Err(Refused { flags: wanted & !left, cause: Some(cause) }),
        }
    }

    /// Is it immutable or append-only? Not opened for that.
    pub(crate) fn is_held(&self, name: &[u8]) -> bool {
        let held = (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64;
        let Ok(name) = std::ffi::CString::new(name) else { return false };
        let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
        let (fd, how) = (self.as_fd().as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: the name ends with zero; the kernel writes one `struct statx`.
        let done = unsafe { libc::statx(fd, name.as_ptr(), how, 0, found.as_mut_ptr()) };
        // SAFETY: zeros are a valid one.
        done == 0 && unsafe { found.assume_init() }.stx_attributes & held != 0
    }

    /// Makes something that is immutable or append-only changeable. None: it was.
    pub(crate) fn release(&self, name: &[u8]) -> nix::Result<Option<Released>> {
        if !self.is_held(name) {
            return Ok(None);
        }
        self.with(name, |file| {
            let (stat, flags) = (fstat(file)?, all(&file)?);
            set_all(&file, flags & !HOLDING)?;
            Ok(Some(Released { of: number(&stat), flags }))
        })
    }

    /// Gives it back what [`Self::release`] took, if that is still what `name` is.
    pub(crate) fn hold_again(&self, name: &[u8], released: Option<Released>) {
        let Some(Released { of, flags }) = released else { return };
        if self.stat(name).is_ok_and(|stat| number(&stat) == of) {
            // Where it fails nothing is worse than it was when it was released.
            let _ = self.with(name, |file| set_all(&file, flags));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: what is not known, or not of this kind of file, is refused. Method: each bit with each kind.
    #[test]
    fn only_known_flags_pass() {
        let file = Kind::File { size: 0, data: Vec::new() };
        for bit in (0..32).map(|at| 1u32 << at) {
            let is_known = NAMES.iter().any(|(known, _)| *known == bit);
            assert_eq!(rules(&Kind::Dir, bit).is_ok(), is_known, "{bit:x}");
            assert_eq!(rules(&file, bit).is_ok(), is_known && bit != DIR_SYNC, "{bit:x}");
            for kind in [Kind::Fifo, Kind::Socket, Kind::Left, Kind::Symlink { target: b"t".to_vec() }] {
                assert!(rules(&kind, bit).is_err(), "{bit:x}");
            }
        }
        assert_eq!(text(IMMUTABLE | APPEND), "immutable,append-only");
        assert_eq!(text(0), "none");
    }
}
