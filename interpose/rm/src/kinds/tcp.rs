//! TCP at the cut: listening, connected within the application, connected to elsewhere.

use super::kernel::Bytes;
use super::open::{Dumping, Open};
use super::sockets::{self, Socket};
use super::sockopts;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::os::fd::AsRawFd;

/// States of the kernel's `tcp_states.h`.
mod state {
    pub(super) const ESTABLISHED: u8 = 1;
    pub(super) const SYN_SENT: u8 = 2;
    pub(super) const SYN_RECEIVED: u8 = 3;
    pub(super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LISTEN: u8 = 10;
}

/// A connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    /// Bytes that were received and not read.
    pub(crate) queued: Bytes,
    /// We sent our end.
    pub(crate) ended_here: bool,
    /// The other side sent its end.
    pub(crate) ended_there: bool,
    /// An error waits to be reported.
    pub(crate) failed: bool,
    /// Bytes given to the network so far, each once.
    pub(crate) sent: u64,
    /// Bytes not yet given to it.
    pub(crate) unsent: u64,
    /// Of what was sent to a peer within the application, what that has not received, if it is known.
    pub(crate) under_way: Option<Bytes>,
    /// Bytes received so far.
    pub(crate) received: u64,
}

/// What a TCP socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Neither listening nor connected; perhaps bound.
    Idle,
    /// Listening.
    Listening {
        /// As given to `listen`.
        backlog: u32,
        /// Connections not yet accepted.
        waiting: u32,
    },
    /// Connected, or ended.
    Connected(Connection),
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TcpState {
    pub(crate) socket: Socket,
    pub(crate) role: Role,
}

/// `struct tcp_info`, by offset: the kernel's has grown, libc's has not.
struct Info(Vec<u8>);

impl Info {
    fn of(fd: &impl AsRawFd) -> std::io::Result<Self> {
        let mut info = vec![0u8; 256];
        let mut bytes = info.len() as libc::socklen_t;
        // SAFETY: room of the stated size.
        super::kernel::checked(unsafe {
            let at = info.as_mut_ptr().cast();
            libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut bytes)
        })?;
        Ok(Self(info))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    fn state(&self) -> u8 {
        self.0[0]
    }

    /// `tcpi_unacked`: of a listening socket, connections not yet accepted.
    fn unacked(&self) -> u32 {
        self.word(24)
    }

    /// `tcpi_sacked`: of a listening socket, its backlog.
    fn sacked(&self) -> u32 {
        self.word(28)
    }

    fn received(&self) -> u64 {
        self.long(128)
    }

    fn segments_in(&self) -> u32 {
        self.word(140)
    }

    fn unsent(&self) -> u32 {
        self.word(144)
    }

    /// `tcpi_bytes_sent - tcpi_bytes_retrans`.
    fn sent(&self) -> u64 {
        self.long(200).saturating_sub(self.long(208))
    }
}

impl TcpState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let socket = Socket::describe(open, dumping.options)?;
        if sockopts::get(open, libc::IPPROTO_TCP, libc::TCP_ULP).is_ok_and(|name| !name.is_empty()) {
            return Err(open.unsupported("a protocol in the kernel on top of TCP"));
        }
        let info = Info::of(open).on("reading TCP state of", open.named())?;
        if info.state() != state::LISTEN && has_urgent(open) {
            return Err(open.unsupported("urgent data that waits"));
        }
        let role = match info.state() {
            state::LISTEN => Role::Listening { backlog: info.sacked(), waiting: info.unacked() },
            state::CLOSE if info.segments_in() == 0 && !failed(open) => Role::Idle,
            state::SYN_SENT | state::SYN_RECEIVED => {
                Role::Connected(Connection { failed: true, ..Connection::default() })
            }
            now => {
                let ended = now == state::CLOSE || now > state::CLOSE_WAIT;
                Role::Connected(Connection {
                    queued: queued(open).on("peeking at", open.named())?,
                    ended_here: ended || matches!(now, state::FIN_WAIT1 | state::FIN_WAIT2),
                    ended_there: ended || now == state::CLOSE_WAIT,
                    failed: now != state::ESTABLISHED && failed(open),
                    sent: info.sent(),
                    unsent: u64::from(info.unsent()),
                    under_way: None,
                    received: info.received(),
                })
            }
        };
        Ok(Self { socket, role })
    }
}

fn failed(fd: &impl AsRawFd) -> bool {
    sockets::poll(fd, 0, 0) & libc::POLLERR != 0
}

/// Whether urgent data waits, or the place where it was is yet to be read: a peek ends there, and so does what the kernel counts.
fn has_urgent(fd: &impl AsRawFd) -> bool {
    if sockets::poll(fd, libc::POLLPRI, 0) & libc::POLLPRI != 0 {
        return true;
    }
    let Some(behind) = i32::try_from(sockets::waiting(fd)).ok().filter(|bytes| *bytes > 0) else {
        return false;
    };
    // Kernels before 6.9 have no offsets for streams of TCP.
    let offset = |value| sockopts::set_int(fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF, value);
    let Ok(before) = sockopts::get_int(fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF) else { return false };
    if offset(behind).is_err() {
        return false;
    }
    let mut byte = 0u8;
    // SAFETY: room for one byte.
    let more = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, flags) > 0
    };
    let _ = offset(before);
    more
}

/// The receive queue, left as it is: one peek takes all of a TCP queue.
pub(crate) fn queued(fd: &impl AsRawFd) -> std::io::Result<Bytes> {
    let bytes = sockets::waiting(fd);
    let mut buffer = vec![0u8; bytes];
    if bytes == 0 {
        return Ok(Bytes::default());
    }
    let offset = sockopts::get_int(fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF).unwrap_or(-1);
    let peek_offset = |value| sockopts::set_int(fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF, value);
    if offset != -1 {
        peek_offset(-1)?;
    }
    // SAFETY: a buffer of the stated size.
    let got = super::kernel::checked(unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
    });
    if offset != -1 {
        peek_offset(offset)?;
    }
    let got = got? as usize;
    if got != bytes {
        return Err(std::io::Error::other(format!("{got} of {bytes} queued bytes could be read")));
    }
    Ok(Bytes(buffer))
}
