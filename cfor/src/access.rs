//! The only way to entries: a directory's descriptor and one name, never a path that could be redirected.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::attributes::{VALUE_BYTES_MAX, is_plain, is_replicated};
use crate::path::RelPath;
use crate::tree::{Identity, Time, Xattr};
use crate::validate::XATTRS_MAX;

/// Opens a regular file to read that is referred to, whatever its names are by now.
pub(crate) fn open_referred(file: &File) -> nix::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    match open(path.as_str(), flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) => open(path.as_str(), flags, Mode::empty()),
        other => other,
    }
    .map(File::from)
}

/// The name of a directory in itself.
pub(crate) const SELF: &[u8] = b".";

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    const FLAGS: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

    /// Opens a root. Its path is the caller's and may lead through symbolic links.
    pub(crate) fn open(path: &Path) -> nix::Result<Self> {
        Ok(Self { fd: open(path, Self::FLAGS, Mode::empty())? })
    }

    /// Opens a directory below this one: no symbolic link, no mount point, no way up.
    pub(crate) fn beneath(&self, path: &RelPath) -> nix::Result<Self> {
        let name = if path.is_root() { SELF } else { path.as_bytes() };
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(Self::FLAGS).resolve(resolve);
        match openat2(self, name, how) {
            Ok(fd) => Ok(Self { fd }),
            // Kernels before 5.6, and containers whose filter does not know the call.
            Err(Errno::ENOSYS | Errno::EPERM) => self.walk(path),
            Err(cause) => Err(cause),
        }
    }

    /// [`Self::beneath`] name by name.
    fn walk(&self, path: &RelPath) -> nix::Result<Self> {
        let home = fstat(self)?.st_dev;
        let mut at = Self { fd: openat(self, SELF, Self::FLAGS, Mode::empty())? };
        for name in path.names() {
            at = Self { fd: openat(&at, name, Self::FLAGS | OFlag::O_NOFOLLOW, Mode::empty())? };
            if fstat(&at)?.st_dev != home {
                return Err(Errno::EXDEV);
            }
        }
        Ok(at)
    }

    /// Opens the directory `name` in this one.
    pub(crate) fn child(&self, name: &[u8]) -> nix::Result<Self> {
        RelPath::new(name).ok_or(Errno::EINVAL).and_then(|path| self.beneath(&path))
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> nix::Result<Vec<Vec<u8>>> {
        // Opened again for a position of its own. Looking must not count as access, where that is allowed.
        let quiet = openat(self, SELF, Self::FLAGS | OFlag::O_NOATIME, Mode::empty());
        let fd = match quiet {
            Err(Errno::EPERM) => openat(self, SELF, Self::FLAGS, Mode::empty()),
            other => other,
        };
        let mut names = Vec::new();
        for entry in nix::dir::Dir::from_fd(fd?)?.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What `name` is, a symbolic link itself and not its target.
    pub(crate) fn stat(&self, name: &[u8]) -> nix::Result<FileStat> {
        fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// [`Self::stat`], `None` if there is no such name.
    pub(crate) fn look(&self, name: &[u8]) -> nix::Result<Option<FileStat>> {
        match self.stat(name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Opens a regular file to read. Nothing else that may have taken the name is waited for or followed.
    pub(crate) fn read(&self, name: &[u8]) -> nix::Result<File> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = match openat(self, name, flags | OFlag::O_NOATIME, Mode::empty()) {
            Err(Errno::EPERM) => openat(self, name, flags, Mode::empty()),
            other => other,
        }?;
        if is(&fstat(&fd)?, SFlag::S_IFREG) { Ok(File::from(fd)) } else { Err(Errno::EINVAL) }
    }

    /// Refers to a file without opening it, which nobody hears of.
    pub(crate) fn refer(&self, name: &[u8]) -> nix::Result<File> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(self, name, flags, Mode::empty()).map(File::from)
    }

    /// Opens a regular file to read and write over, with the care of [`Self::read`].
    pub(crate) fn write(&self, name: &[u8]) -> nix::Result<File> {
        let flags =
            OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = openat(self, name, flags, Mode::empty())?;
        if is(&fstat(&fd)?, SFlag::S_IFREG) { Ok(File::from(fd)) } else { Err(Errno::EINVAL) }
    }

    /// Creates a regular file that only its owner may use.
    pub(crate) fn create(&self, name: &[u8]) -> nix::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(self, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
    }

    /// A path to `name` for calls that take no directory descriptor. Its last part is `name` itself, so that
    /// calls which do not follow the last part cannot be led astray.
    fn proc_path(&self, name: &[u8]) -> nix::Result<CString> {
        let mut path = format!("/proc/self/fd/{}/", self.fd.as_raw_fd()).into_bytes();
        path.extend(name);
        CString::new(path).map_err(|_| Errno::EINVAL)
    }

    /// The attributes of `name` that are replicated, sorted; empty where there is no such thing. Of those that users may not set
    /// freely `unread` is told which cannot be read: a file is no worse for it.
    pub(crate) fn xattrs(
        &self,
        name: &[u8],
        unread: &mut dyn FnMut(&[u8], Errno),
    ) -> nix::Result<Vec<Xattr>> {
        let path = self.proc_path(name)?;
        // SAFETY: `path` ends with zero; buffer and length are of one vector.
        let list =
            grown(|buf| unsafe { libc::llistxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) });
        let list = match list {
            Err(Errno::ENOTSUP) => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for key in list.split(|b| *b == 0).filter(|key| is_replicated(key)) {
            match self.xattr(name, key) {
                Ok(Some(value)) => found.push(Xattr { name: key.to_vec(), value }),
                // Removed since it was listed.
                Ok(None) => (),
                Err(cause) if is_plain(key) => return Err(cause),
                Err(cause) => unread(key, cause),
            }
        }
        found.sort_unstable();
        if found.len() > XATTRS_MAX { Err(Errno::E2BIG) } else { Ok(found) }
    }

    /// The value of an attribute; none where there is no such thing.
    pub(crate) fn xattr(&self, name: &[u8], key: &[u8]) -> nix::Result<Option<Vec<u8>>> {
        let path = self.proc_path(name)?;
        let c_key = CString::new(key).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `path` and `c_key` end with zero; buffer and length are of one vector.
        let value = grown(|buf| unsafe {
            libc::lgetxattr(path.as_ptr(), c_key.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
        });
        match value {
            Ok(value) => Ok(Some(value)),
            // Where lists are listed and not supported they have no effect.
            Err(Errno::ENODATA) => Ok(None),
            Err(Errno::ENOTSUP) if !is_plain(key) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Sets an attribute.
    pub(crate) fn set_xattr(&self, name: &[u8], xattr: &Xattr) -> nix::Result<()> {
        let path = self.proc_path(name)?;
        let key = CString::new(xattr.name.as_slice()).map_err(|_| Errno::EINVAL)?;
        let value = &xattr.value;
        // SAFETY: `path` and `key` end with zero; value and length are of one vector.
        let set =
            unsafe { libc::lsetxattr(path.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        Errno::result(set).map(drop)
    }

    /// Removes an attribute.
    pub(crate) fn remove_xattr(&self, name: &[u8], key: &[u8]) -> nix::Result<()> {
        let path = self.proc_path(name)?;
        let key = CString::new(key).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `path` and `key` end with zero.
        Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), key.as_ptr()) }).map(drop)
    }
}

/// Calls `call` with a buffer that is large enough for all that the kernel has to say.
fn grown(mut call: impl FnMut(&mut [u8]) -> isize) -> nix::Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match Errno::result(call(&mut buf)) {
            Ok(len) => {
                buf.truncate(len as usize);
                return Ok(buf);
            }
            Err(Errno::ERANGE) if buf.len() < VALUE_BYTES_MAX => buf.resize(buf.len() * 4, 0),
            Err(cause) => return Err(cause),
        }
    }
}

/// Whether a file is of a kind.
pub(crate) fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// File system and inode number.
pub(crate) fn number(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Times of a file: access, content, anything.
pub(crate) fn times(stat: &FileStat) -> (Time, Time, Time) {
    let time = |seconds, nanos| Time { seconds, nanos: u32::try_from(nanos).unwrap_or(0) };
    (
        time(stat.st_atime, stat.st_atime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
        time(stat.st_ctime, stat.st_ctime_nsec),
    )
}

/// Identity of a file.
pub(crate) fn identity(stat: &FileStat) -> Identity {
    Identity { dev: stat.st_dev, ino: stat.st_ino, ctime: times(stat).2 }
}
