//! Memory files: name, seals and content; the same object as the memory that is mapped from it.

use super::files::readable;
use super::kernel::{self, Bytes, checked, reopen};
use super::locks::Lock;
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const MFD_HUGETLB: u32 = 4;

/// An open memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemfdState {
    name: Bytes,
    key: (u64, u64),
    pos: i64,
    mode: u32,
    /// `F_GET_SEALS`.
    pub(crate) seals: i32,
    /// Base-2 logarithm of the huge page size, 0 for ordinary pages.
    huge_shift: u32,
    /// Held through this description.
    pub(crate) locks: Vec<Lock>,
}

impl MemfdState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let link = open.link.as_bytes();
        let name = link.strip_prefix(b"/memfd:").unwrap_or(link);
        let file = readable(open).on("opening", open.named())?;
        let mut fs = std::mem::MaybeUninit::<libc::statfs>::zeroed();
        // SAFETY: room for one `statfs`; zeroed is valid.
        let fs = unsafe {
            checked(libc::fstatfs(open.as_raw_fd(), fs.as_mut_ptr())).on("reading", open.named())?;
            fs.assume_init()
        };
        let huge = fs.f_type == HUGETLBFS_MAGIC;
        dumping.shared.stage(dumping.cx, open.key(), &file)?;
        Ok(Self {
            name: Bytes(name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec()),
            key: open.key(),
            pos: open.info.pos,
            mode: open.stat.st_mode & 0o7777,
            seals: kernel::fcntl(open, libc::F_GET_SEALS, 0).on("reading the seals of", open.named())?,
            huge_shift: if huge { (fs.f_bsize as u64).trailing_zeros() } else { 0 },
            locks: Lock::of(open)?,
        })
    }

    fn make_flags(&self) -> u32 {
        match self.huge_shift {
            0 => libc::MFD_ALLOW_SEALING,
            shift => libc::MFD_ALLOW_SEALING | MFD_HUGETLB | shift << 26,
        }
    }
}

/// Makes all memory files again; seals come last, see [`seal`].
pub(crate) fn recreate(all: &Each<MemfdState>, making: &mut Making) -> RmResult<()> {
    let mut first = BTreeSet::new();
    for (index, state) in all {
        let object = making.shared.memfd(state.key, &state.name.0, state.make_flags(), making.contents)?;
        let flags = making.flags(*index);
        // Who made it is no writer to the kernel, which executes no file that has one, and gives no lease to who is none.
        let made = !state.locks.iter().any(Lock::is_lease)
            && flags & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDWR
            && first.insert(state.key);
        let fd = if made { object.try_clone() } else { reopen(&object, flags) };
        let fd = fd.on("opening memory file of", making.common(*index).number)?;
        // SAFETY: no memory is passed.
        unsafe {
            checked(libc::lseek(fd.as_raw_fd(), state.pos, libc::SEEK_SET))
                .on("positioning", "memory file")?;
            checked(libc::fchmod(object.as_raw_fd(), state.mode)).on("setting the mode of", "memory file")?;
        }
        for lock in &state.locks {
            lock.take_for_description(&fd).on("locking", "memory file")?;
        }
        making.put(*index, fd)?;
    }
    Ok(())
}

/// Seals a memory file, once its content is there and memory is mapped from it.
pub(crate) fn seal(state: &MemfdState, fd: &impl AsRawFd) -> std::io::Result<()> {
    const F_ADD_SEALS: i32 = 1033;
    let now = kernel::fcntl(fd, libc::F_GET_SEALS, 0)?;
    let lacking = i64::from(state.seals & !now);
    if lacking == 0 {
        return Ok(());
    }
    let sealed = kernel::fcntl(fd, F_ADD_SEALS, lacking).or_else(|cause| match cause.raw_os_error() {
        // Only who may write seals: all who could have closed it, and the application has kept a descriptor to read.
        Some(libc::EPERM) => {
            kernel::fcntl(&reopen(fd, libc::O_RDWR | libc::O_CLOEXEC)?, F_ADD_SEALS, lacking)
        }
        _ => Err(cause),
    });
    sealed.map(|_| ())
}
