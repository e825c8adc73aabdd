//! `sock_diag(7)` for single unix sockets: peer, pending connections, queue, path.

use super::kernel::{bytes_of, checked, owned};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
/// `UDIAG_SHOW_NAME | VFS | PEER | ICONS | RQLEN | MEMINFO | UID`.
const SHOW_ALL: u32 = 0x7f;

/// What the kernel knows of a unix socket and does not tell its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixDiag {
    /// `TCP_ESTABLISHED` (1), `TCP_CLOSE` (7) or `TCP_LISTEN` (10).
    pub state: u8,
    /// Inode of the socket that it is connected to.
    pub peer: Option<u64>,
    /// Inodes of the sockets that are connected and were not accepted yet, oldest first.
    pub pending: Vec<u64>,
    /// Backlog, of a listening socket.
    pub backlog: u32,
    /// Shut down halves: 1 receive, 2 send.
    pub shutdown: u8,
    /// Inode and device of the path it is bound to.
    pub bound_inode: Option<u32>,
}

/// An open query socket; made with the first question.
#[derive(Default)]
pub struct SockDiag(Option<OwnedFd>);

#[repr(C)]
#[derive(Clone, Copy)]
struct UnixRequest {
    bytes: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

impl SockDiag {
    /// The unix socket with this inode; `None` if the agent's network namespace has none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unix(&mut self, inode: u64) -> io::Result<Option<UnixDiag>> {
        let socket = match &self.0 {
            Some(socket) => socket,
            None => {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
                // SAFETY: no memory is passed.
                let fd = owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
                self.0.insert(fd)
            }
        };
        let request = UnixRequest {
            bytes: size_of::<UnixRequest>() as u32,
            kind: SOCK_DIAG_BY_FAMILY,
            flags: libc::NLM_F_REQUEST as u16,
            sequence: 1,
            port: 0,
            family: libc::AF_UNIX as u8,
            protocol: 0,
            pad: 0,
            states: u32::MAX,
            inode: inode as u32,
            show: SHOW_ALL,
            cookie: [u32::MAX; 2],
        };
        let request = bytes_of(&request);
        // Aligned for netlink headers; a listening socket names each pending connection with 4 bytes.
        let mut reply = vec![0u64; 8192];
        let fd = socket.as_raw_fd();
        // SAFETY: buffers are ours.
        let got = unsafe {
            checked(libc::send(fd, request.as_ptr().cast(), request.len(), 0))?;
            checked(libc::recv(fd, reply.as_mut_ptr().cast(), reply.len() * 8, 0))? as usize
        };
        // SAFETY: initialised words.
        let reply = unsafe { std::slice::from_raw_parts(reply.as_ptr().cast::<u8>(), got) };
        parse(reply)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |raw| u32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |raw| u16::from_ne_bytes([raw[0], raw[1]]))
}

fn parse(reply: &[u8]) -> io::Result<Option<UnixDiag>> {
    const HEADER: usize = 16;
    const MESSAGE: usize = 16;
    let bytes = (word(reply, 0) as usize).min(reply.len());
    if half(reply, 4) == NLMSG_ERROR {
        return match word(reply, HEADER) as i32 {
            error if error == -libc::ENOENT => Ok(None),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
    }
    let mut found = UnixDiag { state: reply.get(HEADER + 2).copied().unwrap_or(0), ..UnixDiag::default() };
    let mut rest = reply.get(HEADER + MESSAGE..bytes).unwrap_or_default();
    while rest.len() >= 4 {
        let whole = (half(rest, 0) as usize).clamp(4, rest.len());
        let value = &rest[4..whole];
        match half(rest, 2) {
            1 => found.bound_inode = Some(word(value, 0)),
            2 => found.peer = Some(u64::from(word(value, 0))).filter(|peer| *peer != 0),
            3 => found.pending = (0..value.len() / 4).map(|i| u64::from(word(value, i * 4))).collect(),
            4 => found.backlog = word(value, 4),
            6 => found.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
        rest = &rest[whole.next_multiple_of(4).min(rest.len())..];
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::kernel::stat;
    use std::os::unix::net::{UnixListener, UnixStream};

    // Goal: peers, shut halves and pending connections are seen. Method: sockets of our own, in both states.
    #[test]
    fn peers() {
        let mut diag = SockDiag::default();
        let (one, other) = UnixStream::pair().unwrap();
        let ino = |fd: &UnixStream| stat(fd).unwrap().st_ino;
        let found = diag.unix(ino(&one)).unwrap().unwrap();
        assert_eq!((found.state, found.peer, found.shutdown), (1, Some(ino(&other)), 0));
        one.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(diag.unix(ino(&one)).unwrap().unwrap().shutdown, 2);
        assert_eq!(diag.unix(ino(&other)).unwrap().unwrap().shutdown, 1);
        drop(other);
        assert_eq!(diag.unix(ino(&one)).unwrap().unwrap().peer, None);
        let dir = tempfile();
        let listener = UnixListener::bind(&dir).unwrap();
        let waiting = UnixStream::connect(&dir).unwrap();
        let found = diag.unix(stat(&listener).unwrap().st_ino).unwrap().unwrap();
        assert_eq!((found.state, found.pending), (10, vec![ino(&waiting)]));
        assert!(found.backlog >= 128 && found.bound_inode.is_some());
        std::fs::remove_file(dir).unwrap();
        assert_eq!(diag.unix(stat(&std::io::stdin()).unwrap().st_ino | 1 << 31).unwrap(), None);
    }

    fn tempfile() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("holo-diag-{}", std::process::id()))
    }
}
