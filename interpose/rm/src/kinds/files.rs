//! Files and directories: reopened by name; those without a name are made again from their content.

use super::kernel::{self, Bytes, identity, reopen};
use super::locks::Lock;
use super::open::{Dumping, Each, Making, Open, path_of, reads};
use super::shared::content_name;
use crate::barrier::inner_tid;
use crate::grow::{any_child, end};
use crate::leases;
use crate::manager::{Context, RmResult};
use crate::remote::Remote;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const DELETED: &[u8] = b" (deleted)";

/// An open file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileState {
    /// Its name now (the kernel follows renames), without `(deleted)`.
    path: Bytes,
    /// Offset.
    pub(crate) pos: i64,
    /// Device and inode.
    key: (u64, u64),
    /// Type and permissions.
    mode: u32,
    /// User, group, and when it was changed last, in seconds and nanoseconds.
    owner: (u32, u32),
    changed: (i64, i64),
    /// The name does not lead to it: its content is in the image.
    ghost: bool,
    /// Locks held through this description or by the process on this file.
    pub(crate) locks: Vec<Lock>,
}

impl FileState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let link = open.link.as_bytes();
        if !link.starts_with(b"/") {
            return Err(open.unsupported("an object of this type cannot be made again"));
        }
        let directory = open.file_type() == libc::S_IFDIR;
        let follow = open.file_type() != libc::S_IFLNK;
        let named = identity(Path::new(&open.link), follow) == Some(open.key());
        let path = if named { link } else { link.strip_suffix(DELETED).unwrap_or(link) };
        let proc = path.starts_with(b"/proc/");
        let ghost = !named && !proc;
        if ghost && open.file_type() == libc::S_IFREG {
            let file = readable(open).on("opening", open.named())?;
            dumping.shared.stage(dumping.cx, open.key(), &file)?;
        } else if ghost && !directory {
            return Err(open.unsupported("its name is gone"));
        } else if is_shared_memory(path) && open.file_type() == libc::S_IFREG {
            // A name in memory only: nobody else keeps its content across a restart of the machine.
            let file = readable(open).on("opening", open.named())?;
            dumping.shared.stage(dumping.cx, open.key(), &file)?;
        }
        // A restored process has a /proc of its own, where its files are under the pids that it knows.
        let outer = dumping.cx.processes.iter().find_map(|process| {
            let rest = path.strip_prefix(format!("/proc/{}/", process.pid).as_bytes())?;
            Some([format!("/proc/{}/", process.remote.pid).as_bytes(), rest].concat())
        });
        let path = outer.unwrap_or_else(|| path.to_vec());
        Ok(Self {
            path: Bytes(path),
            pos: open.info.pos,
            key: open.key(),
            mode: open.stat.st_mode,
            owner: (open.stat.st_uid, open.stat.st_gid),
            changed: (open.stat.st_mtime, open.stat.st_mtime_nsec),
            ghost,
            locks: Lock::of(open)?,
        })
    }

    /// Where it is now: files of the application's processes are those of the clone's.
    fn place(&self, pids: &[(i32, i32)]) -> PathBuf {
        let moved = pids.iter().find_map(|(old, new)| {
            let rest = self.path.0.strip_prefix(format!("/proc/{old}/").as_bytes())?;
            Some(path_of(&[format!("/proc/{new}/").as_bytes(), rest].concat()))
        });
        moved.unwrap_or_else(|| path_of(&self.path.0))
    }

    fn open(&self, flags: i32, making: &mut Making) -> RmResult<OwnedFd> {
        let path = self.place(making.pids);
        let asked = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
        if is_shared_memory(&self.path.0) {
            return self.shared_memory(&path, asked, making);
        }
        if let Some((pid, _, rest)) = of_thread(&path) {
            // Its thread is not there yet: see `reopen_of_thread`.
            let stand_in = Path::new("/proc").join(pid.to_string()).join(rest);
            return kernel::open(&stand_in, asked, 0)
                .or_else(|cause| open_of_nobody(&stand_in, asked, making.clone).unwrap_or(Err(cause)))
                .on("opening", stand_in.display());
        }
        // The application never waits here for a writer or a lease.
        kernel::open(&making.in_clone(&path), asked, 0)
            .or_else(|_| kernel::open(&path, asked, 0))
            .or_else(|cause| match cause.raw_os_error() {
                Some(libc::EPERM) => kernel::open(&path, asked & !libc::O_NOATIME, 0),
                Some(libc::EACCES) => open_forbidden(&path, asked),
                Some(libc::ENOENT | libc::ESRCH) => {
                    open_of_nobody(&path, asked, making.clone).unwrap_or(Err(cause))
                }
                _ => Err(cause),
            })
            .on("opening", path.display())
    }

    /// A file in memory: as it was at the cut, also where a later one is there.
    fn shared_memory(&self, path: &Path, flags: i32, making: &mut Making) -> RmResult<OwnedFd> {
        if self.mode & libc::S_IFMT == libc::S_IFREG {
            let object = making.shared.get_or_make(self.key, || {
                let made = kernel::open(path, libc::O_RDWR | libc::O_CREAT, 0o600);
                let file = File::from(made.on("making", path.display())?);
                making.contents.fill(&content_name(self.key), &file)?;
                self.set_attributes(&file).on("setting the attributes of", path.display())?;
                Ok(file.into())
            })?;
            return reopen(&object, flags).on("opening", path.display());
        }
        kernel::open(path, flags, 0).on("opening", path.display())
    }

    fn ghost(&self, flags: i32, making: &mut Making) -> RmResult<OwnedFd> {
        let path = making.in_clone(&self.place(making.pids));
        if self.mode & libc::S_IFMT == libc::S_IFDIR {
            return directory_without_name(&path, flags).on("making directory", path.display());
        }
        let object = making.shared.get_or_make(self.key, || {
            let made = if self.is_nameable() { nameable(&path) } else { without_name(&path) };
            let file = made.on("making unnamed file", path.display())?;
            making.contents.fill(&content_name(self.key), &file)?;
            Ok(file.into())
        })?;
        let fd = reopen(&object, flags).on("opening unnamed file", path.display())?;
        self.set_attributes(&object).on("setting the attributes of", path.display())?;
        Ok(fd)
    }

    /// Was it made without a name (`O_TMPFILE`), so that it may be given one? The kernel shows such by their number.
    fn is_nameable(&self) -> bool {
        self.path.0.rsplit(|byte| *byte == b'/').next() == Some(format!("#{}", self.key.1).as_bytes())
    }

    /// Gives a file that was made anew the attributes that it had.
    fn set_attributes(&self, file: &impl AsFd) -> io::Result<()> {
        let fd = file.as_fd();
        // An owner that cannot be had stays what it is.
        let _ = std::os::unix::fs::fchown(fd, Some(self.owner.0), Some(self.owner.1));
        let times = [
            libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
            libc::timespec { tv_sec: self.changed.0, tv_nsec: self.changed.1 },
        ];
        // SAFETY: two times.
        unsafe {
            kernel::checked(libc::fchmod(fd.as_raw_fd(), self.mode & 0o7777))?;
            kernel::checked(libc::futimens(fd.as_raw_fd(), times.as_ptr()))?;
        }
        Ok(())
    }
}

/// Process, thread (as it sees itself) and the rest of a path below `/proc/<pid>/task/<tid>`.
fn of_thread(path: &Path) -> Option<(i32, i32, PathBuf)> {
    let mut parts = path.strip_prefix("/proc").ok()?.components();
    let mut next = || Some(parts.next()?.as_os_str().to_str()?.to_owned());
    let (pid, task, tid) = (next()?.parse().ok()?, next()?, next()?.parse().ok()?);
    (task == "task").then(|| (pid, tid, parts.as_path().to_owned()))
}

/// A file of a thread, opened when the threads are there; none if it is none.
pub(crate) fn reopen_of_thread(
    file: &FileState,
    flags: i32,
    pids: &[(i32, i32)],
) -> RmResult<Option<OwnedFd>> {
    let path = file.place(pids);
    let Some((pid, tid, rest)) = of_thread(&path) else { return Ok(None) };
    if !pids.iter().any(|(_, now)| *now == pid) {
        return Ok(None);
    }
    let outer = crate::tree::outer_tid(pid, tid).on("finding", format!("thread {tid}"))?;
    let path = PathBuf::from(format!("/proc/{pid}/task/{outer}")).join(rest);
    let asked = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
    let fd = kernel::open(&path, asked, 0).on("opening", path.display())?;
    // SAFETY: no memory is passed. What has no position stays where it is.
    unsafe { libc::lseek(fd.as_raw_fd(), file.pos, libc::SEEK_SET) };
    Ok(Some(fd))
}

/// Makes all files again.
pub(crate) fn recreate(all: &Each<FileState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let flags = making.flags(*index);
        let fd = if state.ghost { state.ghost(flags, making)? } else { state.open(flags, making)? };
        if flags & libc::O_PATH == 0 && state.pos != 0 {
            // Files that cannot be positioned (some of /proc) have no offset worth keeping.
            // SAFETY: no memory is passed.
            let moved = kernel::checked(unsafe { libc::lseek(fd.as_raw_fd(), state.pos, libc::SEEK_SET) });
            if let Err(cause) = moved {
                making.remark(*index, format!("the offset {} was not set: {cause}", state.pos));
            }
        }
        for lock in &state.locks {
            lock.take_for_description(&fd).on("locking", path_of(&state.path.0).display())?;
        }
        making.put(*index, fd)?;
    }
    Ok(())
}

/// A readable handle of the same file without moving its offset.
pub(crate) fn readable(open: &Open) -> io::Result<File> {
    if reads(open.info.flags) {
        return Ok(File::from(open.fd.try_clone()?));
    }
    if leases::is_held_by(&open.fd) {
        return Err(io::Error::other("it has a write lease, and cannot be read through"));
    }
    Ok(File::from(reopen(&open.fd, libc::O_RDONLY)?))
}

fn is_shared_memory(path: &[u8]) -> bool {
    path.starts_with(b"/dev/shm/")
}

/// The mode forbids what was allowed when the application opened (or made) the file: for a moment it does not.
fn open_forbidden(path: &Path, flags: i32) -> io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    let denied = io::Error::from_raw_os_error(libc::EACCES);
    let before = std::fs::metadata(path)?.permissions();
    let allowed = std::fs::Permissions::from_mode(before.mode() | 0o600);
    std::fs::set_permissions(path, allowed).map_err(|_| denied)?;
    let opened = kernel::open(path, flags, 0);
    std::fs::set_permissions(path, before)?;
    opened
}

/// A file of `/proc` of a process that is gone: that of one that lived until it was opened.
fn open_of_nobody(path: &Path, flags: i32, clone: Option<&Remote>) -> Option<io::Result<OwnedFd>> {
    let mut parts = path.strip_prefix("/proc").ok()?.components();
    let _gone: i32 = parts.next()?.as_os_str().to_str()?.parse().ok()?;
    let rest = parts.as_path().to_path_buf();
    let clone = clone?;
    let moment = any_child(clone).ok()?;
    let pid = moment.pid.to_string();
    let opened = kernel::open(&Path::new("/proc").join(&pid).join(rest), flags, 0);
    end(&moment, Some((clone, inner_tid(moment.pid, moment.pid)))).ok()?;
    Some(opened)
}

/// A new file whose name is gone, where the old one was if that place still exists.
fn without_name(path: &Path) -> io::Result<File> {
    match kernel::open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600) {
        Ok(fd) => std::fs::remove_file(path).map(|()| File::from(fd)),
        Err(_) => nameable(path),
    }
}

/// A new file that has no name yet, likewise.
fn nameable(path: &Path) -> io::Result<File> {
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    let parent = path.parent().filter(|parent| parent.is_dir());
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
    kernel::open(&parent, flags, 0o600)
        .or_else(|_| kernel::open(&std::env::temp_dir(), flags, 0o600))
        .map(File::from)
}

fn directory_without_name(path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let mut place = path.to_path_buf();
    if std::fs::create_dir(&place).is_err() {
        place = std::env::temp_dir().join(format!("holo-gone-{}-{}", std::process::id(), flags));
        std::fs::create_dir(&place)?;
    }
    let opened = kernel::open(&place, flags, 0);
    std::fs::remove_dir(&place)?;
    opened
}
