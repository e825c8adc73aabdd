//! Where userfaultfds outlive the agent: in messages that nobody has received, of a socket pair that the clone's init has open.

use super::PROCESSES_MAX;
use crate::kinds::kernel::owned;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Puts descriptors into a socket, in one message with the places of their processes.
pub(super) fn put(into: &UnixStream, all: &[(u32, OwnedFd)]) -> io::Result<()> {
    let places: Vec<u8> = all.iter().flat_map(|(index, _)| index.to_le_bytes()).collect();
    let fds: Vec<RawFd> = all.iter().map(|(_, uffd)| uffd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(into.as_raw_fd(), &[IoSlice::new(&places)], &rights, MsgFlags::MSG_DONTWAIT, None)?;
    Ok(())
}

/// A socket that the clone's init has open.
pub(super) fn end_of(init: &OwnedFd, number: u32) -> io::Result<UnixStream> {
    // SAFETY: no memory is passed.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, init.as_raw_fd(), number, 0) };
    owned(raw as i32).map(UnixStream::from)
}

/// Duplicates of all that is kept in a socket, where it stays.
pub(super) fn kept_in(socket: &UnixStream) -> io::Result<Vec<(u32, OwnedFd)>> {
    let (from, size) = (0i32, size_of::<i32>() as libc::socklen_t);
    // Each look begins where the one before it ended.
    // SAFETY: an option of one int.
    let set = unsafe {
        let option = libc::SO_PEEK_OFF;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const from).cast(), size)
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = Vec::new();
    loop {
        match look(socket, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Ok(more) if more.is_empty() => return Ok(all),
            Ok(more) => all.extend(more),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(all),
            Err(cause) => return Err(cause),
        }
    }
}

/// The descriptors of the next message.
pub(super) fn look(at: &UnixStream, how: MsgFlags) -> io::Result<Vec<(u32, OwnedFd)>> {
    let mut places = [0u8; PROCESSES_MAX * 4];
    let mut room = nix::cmsg_space!([RawFd; PROCESSES_MAX]);
    let mut parts = [IoSliceMut::new(&mut places)];
    let how = how | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(at.as_raw_fd(), &mut parts, Some(&mut room), how)?;
    let bytes = message.bytes;
    let mut fds = Vec::new();
    for one in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = one {
            // SAFETY: just received.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let index = |raw: &[u8]| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
    Ok(places[..bytes].chunks_exact(4).map(index).zip(fds).collect())
}
