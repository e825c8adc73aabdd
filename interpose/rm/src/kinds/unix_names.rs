//! Names of unix sockets: abstract ones, and paths with what became of them after `bind`.

use super::kernel::{self, Bytes, c_path, checked};
use super::open::{Making, path_of};
use super::sockets::{bind, connect, socket};
use super::unix_sockets::{UnixState, is_named, is_socket, path_in};
use crate::manager::{Context, RmResult};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Removes a socket file that nobody serves any more; a living one is an error.
pub(crate) fn free_name(name: &[u8], kind: i32) -> io::Result<()> {
    let Some(path) = path_in(name).filter(|path| is_socket(path)) else { return Ok(()) };
    match connect(&socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0)?, name) {
        Err(cause) if cause.raw_os_error() == Some(libc::ECONNREFUSED) => std::fs::remove_file(path),
        _ => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}

/// A name for a moment.
fn unused_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("holo-name-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A path that is free for a moment: what had it is aside, directories that lacked are there.
pub(crate) struct Freed {
    path: PathBuf,
    aside: Option<PathBuf>,
    made: Vec<PathBuf>,
}

impl Freed {
    /// Frees a path that a socket had and will not have again.
    pub(crate) fn make(path: &Path) -> io::Result<Self> {
        let mut freed = Self { path: std::path::absolute(path)?, aside: None, made: Vec::new() };
        let missing: Vec<_> = freed.path.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
        let missing: Vec<_> = missing.into_iter().rev().map(Path::to_path_buf).collect();
        for dir in missing {
            std::fs::create_dir(&dir)?;
            freed.made.push(dir);
        }
        if std::fs::symlink_metadata(&freed.path).is_ok() {
            let aside = freed.path.with_file_name(format!(".{}", unused_name()));
            std::fs::rename(&freed.path, &aside)?;
            freed.aside = Some(aside);
        }
        Ok(freed)
    }
}

impl Drop for Freed {
    fn drop(&mut self) {
        if let Some(aside) = &self.aside {
            let _ = std::fs::rename(aside, &self.path);
        }
        for dir in self.made.iter().rev() {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Binds a socket to the name that it had, if any.
pub(crate) fn bind_again(index: u32, state: &UnixState, fd: &OwnedFd, making: &mut Making) -> RmResult<()> {
    let name = &state.socket.local.0;
    if !is_named(name) {
        return Ok(());
    }
    let Some(path) = path_in(name) else {
        let shown = String::from_utf8_lossy(&name[2..]).replace('\0', "@");
        return bind(fd, name).on("binding to", shown);
    };
    let bound = state.bound.as_ref();
    let done = match bound.and_then(|bound| bound.relative_to.as_ref()) {
        None => place(fd, state),
        // Where nobody finds it, any directory does, in which nothing else has the name.
        Some(_) if bound.is_some_and(|bound| bound.now.is_none()) => in_empty_directory(|| place(fd, state)),
        Some(Bytes(base)) => in_directory(&path_of(base), || place(fd, state)),
    };
    let placed = done.on("binding to", path.display())?;
    if let Some(remark) = placed.remark {
        making.remark(index, remark);
    }
    making.reach.extend(placed.reach.map(|reach| (state.inode, reach)));
    Ok(())
}

/// What became of a name.
#[derive(Default)]
struct Placed {
    remark: Option<String>,
    /// The way to a socket whose name is gone, or is relative to a directory.
    reach: Option<OwnedFd>,
}

/// Binds and puts the name where it was.
fn place(fd: &OwnedFd, state: &UnixState) -> io::Result<Placed> {
    let name = &state.socket.local.0;
    let path = path_in(name).ok_or(io::ErrorKind::InvalidInput)?;
    // This thread may have a directory of its own.
    let here = std::fs::read_link("/proc/thread-self/cwd")?.join(&path);
    let now = state.bound.as_ref().and_then(|bound| bound.now.as_ref()).map(|now| path_of(&now.0));
    // Of a name that it has no more, or has not any more, others may have become the owners.
    let freed = match (&state.bound, &now) {
        (Some(_), None) => Some(Freed::make(&here)?),
        (Some(_), Some(now)) if *now != here => Some(Freed::make(&here)?),
        _ => None,
    };
    if freed.is_none() {
        free_name(name, state.socket.kind)?;
    }
    bind(fd, name)?;
    let Some(bound) = &state.bound else { return Ok(Placed::default()) };
    let hidden = now.is_none() || path.is_relative();
    let reach = hidden.then(|| kernel::open(&path, libc::O_PATH | libc::O_NOFOLLOW, 0).ok()).flatten();
    let Some(now) = now else {
        std::fs::remove_file(&path)?;
        return Ok(Placed { reach, remark: None });
    };
    let owned = bound.owner.map(|(user, group)| lchown(&path, Some(user), Some(group)));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bound.mode))?;
    // What is at the other name was this socket before the application died.
    if here != now && !same(&here, &now) {
        std::fs::rename(&path, &now)?;
        let remark = Some(format!("bound as {} and renamed to {}", path.display(), now.display()));
        return Ok(Placed { reach, remark });
    }
    let remark = owned.and_then(Result::err).map(|cause| format!("the owner of {}: {cause}", path.display()));
    Ok(Placed { reach, remark })
}

/// Binds a socket to the name of one that is gone, which goes again at once.
pub(crate) fn borrow_name(fd: &impl AsRawFd, name: &[u8]) -> io::Result<()> {
    let Some(path) = path_in(name) else { return bind(fd, name) };
    if path.is_relative() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let _freed = Freed::make(&path)?;
    bind(fd, name)?;
    std::fs::remove_file(&path)
}

/// The address of a socket by an open file of its name, for this process.
pub(crate) fn reached(by: &OwnedFd) -> Vec<u8> {
    let path = format!("/proc/self/fd/{}", by.as_raw_fd());
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path.as_bytes(), &[0]].concat()
}

fn same(one: &Path, other: &Path) -> bool {
    let identity = |path| super::kernel::identity(path, false);
    identity(one).is_some() && identity(one) == identity(other)
}

fn in_empty_directory<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let dir = std::env::temp_dir().join(unused_name());
    std::fs::create_dir(&dir)?;
    let done = in_directory(&dir, work);
    std::fs::remove_dir(&dir)?;
    done
}

/// Runs `work` with a current directory of its own: a thread may leave the one of its process.
fn in_directory<T: Send>(dir: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let dir = c_path(dir)?;
    let run = || {
        // SAFETY: this thread alone changes; it ends with `work`.
        unsafe {
            checked(libc::unshare(libc::CLONE_FS))?;
            checked(libc::chdir(dir.as_ptr()))?;
        }
        work()
    };
    std::thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|_| Err(io::Error::other("the thread died")))
    })
}
