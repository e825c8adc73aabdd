//! Names of unix sockets: abstract ones, and paths with what became of them after `bind`.

use super::kernel::{Bytes, c_path, checked};
use super::open::{Making, path_of};
use super::sockets::{bind, connect, socket};
use super::unix_sockets::{UnixState, is_named, is_socket, path_in};
use crate::manager::{Context, RmResult};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// Removes a socket file that nobody serves any more; a living one is an error.
pub(crate) fn free_name(name: &[u8], kind: i32) -> io::Result<()> {
    let Some(path) = path_in(name).filter(|path| is_socket(path)) else { return Ok(()) };
    match connect(&socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0)?, name) {
        Err(cause) if cause.raw_os_error() == Some(libc::ECONNREFUSED) => std::fs::remove_file(path),
        _ => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
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
    let base = state.bound.as_ref().and_then(|bound| bound.relative_to.as_ref());
    let done = match base {
        None => place(fd, state),
        Some(Bytes(base)) => in_directory(&path_of(base), || place(fd, state)),
    };
    match done.on("binding to", path.display()) {
        Ok(None) => Ok(()),
        Ok(Some(remark)) => {
            making.remark(index, remark);
            Ok(())
        }
        Err(cause) => Err(cause),
    }
}

/// Binds and puts the name where it was; possibly a remark.
fn place(fd: &OwnedFd, state: &UnixState) -> io::Result<Option<String>> {
    let name = &state.socket.local.0;
    let path = path_in(name).ok_or(io::ErrorKind::InvalidInput)?;
    free_name(name, state.socket.kind)?;
    bind(fd, name)?;
    let Some(bound) = &state.bound else { return Ok(None) };
    let Some(Bytes(now)) = &bound.now else {
        return std::fs::remove_file(path).map(|()| None);
    };
    let now = path_of(now);
    let owned = bound.owner.map(|(user, group)| lchown(&path, Some(user), Some(group)));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bound.mode))?;
    let here = std::path::absolute(&path)?;
    // What is at the other name was this socket before the application died.
    if here != now && !same(&here, &now) {
        std::fs::rename(&path, &now)?;
        return Ok(Some(format!("bound as {} and renamed to {}", path.display(), now.display())));
    }
    Ok(owned.and_then(Result::err).map(|cause| format!("the owner of {}: {cause}", path.display())))
}

fn same(one: &Path, other: &Path) -> bool {
    let identity = |path| super::kernel::identity(path, false);
    identity(one).is_some() && identity(one) == identity(other)
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
