//! Unix sockets at the cut: queues are peeked at, peers asked of the kernel.

use super::kernel::{self, Bytes, identity};
use super::makers::{self, Maker};
use super::open::{Dumping, Open, path_of};
use super::senders::{self, Noting};
use super::sockets::{self, Message, Socket};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `TCP_LISTEN`, which unix sockets use, too.
const LISTENING: u8 = 10;

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnixState {
    pub(crate) socket: Socket,
    pub(crate) inode: u64,
    /// Inode of the socket that it is connected to.
    pub(crate) peer_inode: Option<u64>,
    /// Who made the other side, or listens (`SO_PEERCRED`).
    pub(crate) peer_maker: Option<Maker>,
    /// User and group that made it.
    pub(crate) user: (u32, u32),
    /// It was connected once; the other side is gone if `peer_inode` is none of ours.
    pub(crate) connected: bool,
    /// Backlog, if listening.
    pub(crate) backlog: Option<u32>,
    /// Inodes of the sockets that are connected to it and were not accepted, oldest first.
    pub(crate) waiting: Vec<u64>,
    /// The other side has not read all that was sent.
    pub(crate) outgoing: bool,
    /// Halves that are shut down: 1 receive, 2 send.
    pub(crate) shut: u8,
    /// The other side went away before it had read all, which nobody was told yet (`ECONNRESET`).
    pub(crate) reset: bool,
    /// Messages that wait to be received; of streams: parts.
    pub(crate) queued: Vec<Message>,
    /// The path that it is bound to.
    pub(crate) bound: Option<BoundPath>,
}

/// A socket in the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoundPath {
    /// Directory that the name in the address is relative to, if it is.
    pub(crate) relative_to: Option<Bytes>,
    /// Where it is now, which differs from the address when it was renamed; `None` if its name is gone.
    pub(crate) now: Option<Bytes>,
    pub(crate) mode: u32,
    /// User and group.
    pub(crate) owner: Option<(u32, u32)>,
}

/// The path in an address; abstract and absent names have none.
pub(crate) fn path_in(name: &[u8]) -> Option<PathBuf> {
    let path = name.get(2..)?;
    let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
    (end > 0).then(|| path_of(&path[..end]))
}

/// Whether an address has a name at all.
pub(crate) fn is_named(name: &[u8]) -> bool {
    name.len() > 2
}

impl UnixState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let socket = Socket::describe(open, dumping.options)?;
        let found = dumping.diag.unix(open.stat.st_ino).on("asking for", open.named())?;
        let found = found.ok_or_else(|| open.unsupported("a socket of another network namespace"))?;
        let listening = found.state == LISTENING;
        // Most have nothing: a poll is less than what follows.
        let there = sockets::poll(open, libc::POLLIN, 0);
        let reset = there & libc::POLLERR != 0;
        let queued = if listening || there & libc::POLLIN == 0 || reset && sockets::waiting(open) == 0 {
            Vec::new()
        } else if reset && socket.kind != libc::SOCK_STREAM {
            return Err(open.unsupported("an error that waits before its messages"));
        } else {
            let mut noting = Noting::default();
            noting.turn(open, true);
            let mut queue = sockets::peek(open).on("peeking at", open.named())?;
            for (message, descriptors) in queue.passed {
                for fd in descriptors {
                    let index = dumping.passed.index_of(fd, open.process)?;
                    queue.messages[message].passed.push(index);
                }
            }
            senders::as_seen_inside(&mut queue.messages, open, dumping.cx)
                .on("asking who sent to", open.named())?;
            queue.messages
        };
        let peer_maker = if listening || found.peer.is_some() {
            makers::peer_maker(open, dumping.cx).on("asking who made", open.named())?
        } else {
            None
        };
        let bound = path_in(&socket.local.0).filter(|_| found.bound_inode.is_some());
        let bound = bound.map(|path| BoundPath::of(&path, found.bound_inode, dumping));
        Ok(Self {
            connected: found.state == 1 || socket.peer.is_some() || found.peer.is_some(),
            socket,
            inode: open.stat.st_ino,
            user: (open.stat.st_uid, open.stat.st_gid),
            peer_inode: found.peer,
            peer_maker,
            backlog: listening.then_some(found.backlog),
            waiting: found.pending,
            outgoing: !listening && kernel::ioctl_int(open, libc::TIOCOUTQ).is_ok_and(|bytes| bytes > 0),
            shut: found.shutdown,
            reset,
            queued,
            bound,
        })
    }
}

impl BoundPath {
    fn of(path: &Path, inode: Option<u32>, dumping: &Dumping) -> Self {
        let cwd = std::fs::read_link(dumping.cx.remote.proc("cwd")).unwrap_or_default();
        let absolute = cwd.join(path);
        let is = |path: &Path| identity(path, false).is_some_and(|(_, ino)| Some(ino as u32) == inode);
        let now = if is(&absolute) {
            Some(absolute)
        } else {
            // Renamed into place, as careful servers do: mostly within its directory.
            let entries = absolute.parent().and_then(|parent| std::fs::read_dir(parent).ok());
            entries.and_then(|entries| entries.flatten().map(|entry| entry.path()).find(|path| is(path)))
        };
        let found = now.as_ref().and_then(|path| std::fs::symlink_metadata(path).ok());
        let bytes = |path: &Path| {
            use std::os::unix::ffi::OsStrExt;
            Bytes(path.as_os_str().as_bytes().to_vec())
        };
        Self {
            relative_to: path.is_relative().then(|| bytes(&cwd)),
            mode: found.as_ref().map_or(0o777, |found| found.permissions().mode() & 0o7777),
            owner: found.map(|found| (found.uid(), found.gid())),
            now: now.as_deref().map(bytes),
        }
    }
}

/// Whether a file is a socket.
pub(crate) fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.mode() & libc::S_IFMT == libc::S_IFSOCK)
}
