//! TCP at the cut: listening, connected within the application, connected to elsewhere.

use super::kernel::Bytes;
use super::open::{Dumping, Open};
use super::sockets::{self, Socket};
use super::sockopts;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
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
        let there = sockets::poll(open, libc::POLLPRI, 0);
        let failed = there & libc::POLLERR != 0;
        let role = match info.state() {
            state::LISTEN => Role::Listening { backlog: info.sacked(), waiting: info.unacked() },
            state::CLOSE if info.segments_in() == 0 && !failed => Role::Idle,
            state::SYN_SENT | state::SYN_RECEIVED => {
                Role::Connected(Connection { failed: true, ..Connection::default() })
            }
            now => {
                let ended = now == state::CLOSE || now > state::CLOSE_WAIT;
                let queued = received(open, there).on("peeking at", open.named())?;
                Role::Connected(Connection {
                    queued: queued.ok_or_else(|| open.unsupported("urgent data that waits"))?,
                    ended_here: ended || matches!(now, state::FIN_WAIT1 | state::FIN_WAIT2),
                    ended_there: ended || now == state::CLOSE_WAIT,
                    failed: now != state::ESTABLISHED && failed,
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

/// The receive queue, left as it is. `None`: urgent data waits, or the place where it was is yet to be read: a peek ends there, and so does
/// what the kernel counts.
fn received(fd: &impl AsRawFd, there: i16) -> std::io::Result<Option<Bytes>> {
    if there & libc::POLLPRI != 0 {
        return Ok(None);
    }
    let bytes = sockets::waiting(fd);
    if bytes == 0 {
        return Ok(Some(Bytes::default()));
    }
    let offset = PeekOffset::of(fd);
    // Kernels before 6.9 have no offsets for streams of TCP.
    if offset.set(0).is_err() {
        return peeked(fd, bytes).map(Some);
    }
    let queue = peeked(fd, bytes)?;
    // What is read next is behind what was counted: unless it came just now, and is counted, too.
    let is_behind = peek(fd, &mut [0]).is_ok_and(|got| got > 0) && sockets::waiting(fd) == bytes;
    Ok((!is_behind).then_some(queue))
}

/// The receive queue, left as it is: one peek takes all of a TCP queue.
pub(crate) fn queued(fd: &impl AsRawFd) -> std::io::Result<Bytes> {
    let bytes = sockets::waiting(fd);
    if bytes == 0 {
        return Ok(Bytes::default());
    }
    let offset = PeekOffset::of(fd);
    if offset.before != NO_OFFSET {
        offset.set(NO_OFFSET)?;
    }
    peeked(fd, bytes)
}

const NO_OFFSET: i32 = -1;

/// Where peeks begin (`SO_PEEK_OFF`): as it was before, when this is dropped. The application may itself use it.
struct PeekOffset<'a, F: AsRawFd> {
    fd: &'a F,
    before: i32,
    is_set: Cell<bool>,
}

impl<'a, F: AsRawFd> PeekOffset<'a, F> {
    fn of(fd: &'a F) -> Self {
        let before = sockopts::get_int(fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF).unwrap_or(NO_OFFSET);
        Self { fd, before, is_set: Cell::new(false) }
    }

    fn set(&self, value: i32) -> std::io::Result<()> {
        sockopts::set_int(self.fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF, value)?;
        self.is_set.set(true);
        Ok(())
    }
}

impl<F: AsRawFd> Drop for PeekOffset<'_, F> {
    fn drop(&mut self) {
        if self.is_set.get() {
            let _ = sockopts::set_int(self.fd, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF, self.before);
        }
    }
}

fn peek(fd: &impl AsRawFd, buffer: &mut [u8]) -> std::io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: a buffer of the stated size.
    let got = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    super::kernel::checked(got).map(|got| got as usize)
}

/// So many bytes at the peek offset.
fn peeked(fd: &impl AsRawFd, bytes: usize) -> std::io::Result<Bytes> {
    let mut buffer = vec![0u8; bytes];
    let got = peek(fd, &mut buffer)?;
    if got != bytes {
        return Err(std::io::Error::other(format!("{got} of {bytes} queued bytes could be read")));
    }
    Ok(Bytes(buffer))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    fn look(fd: &TcpStream) -> Option<Bytes> {
        received(fd, sockets::poll(fd, libc::POLLPRI, 0)).unwrap()
    }

    // Goal: what comes while one looks is not taken for urgent data, the queue is as it was sent, and the application's own peek offset
    // stays. Method: a sender that does not stop, a reader that takes what was looked at.
    #[test]
    fn what_comes_meanwhile_is_not_urgent() {
        let (mut from, mut to) = pair();
        let (bytes, ends) = ((0..=255u8).collect::<Vec<_>>(), AtomicBool::new(false));
        let own =
            sockopts::set_int(&to, libc::SOL_SOCKET, sockopts::SO_PEEK_OFF, 0).map_or(NO_OFFSET, |()| 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    from.write_all(&bytes[..64]).unwrap();
                    from.write_all(&bytes[64..]).unwrap();
                }
                from.shutdown(std::net::Shutdown::Both).unwrap();
            });
            let (mut at, mut looks) = (0usize, 0);
            while looks < 20_000 {
                let queue = look(&to).unwrap().0;
                let mut taken = vec![0; queue.len()];
                to.read_exact(&mut taken).unwrap();
                assert_eq!(queue, taken);
                assert!(taken.iter().zip(at..).all(|(byte, at)| *byte == at as u8));
                at += taken.len();
                looks += usize::from(!taken.is_empty());
            }
            assert_eq!(PeekOffset::of(&to).before, own);
            ends.store(true, Ordering::Relaxed);
            let _ = to.read_to_end(&mut Vec::new());
        });
    }

    // Goal: urgent data is told from other data, also after it was read, where what follows it waits. Method: the three states.
    #[test]
    fn urgent_data_is_seen() {
        let (from, mut to) = pair();
        let send = |bytes: &[u8], flags: i32| {
            // SAFETY: a buffer of the stated size.
            let sent = unsafe { libc::send(from.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
            assert_eq!(sent, bytes.len() as isize);
        };
        send(b"one", 0);
        sockets::poll(&to, libc::POLLIN, 5000);
        assert_eq!(look(&to), Some(Bytes(b"one".to_vec())));
        send(b"!", libc::MSG_OOB);
        send(b"two", 0);
        sockets::poll(&to, libc::POLLPRI, 5000);
        assert_eq!(look(&to), None);
        let mut urgent = 0u8;
        // SAFETY: room for one byte.
        let got = unsafe { libc::recv(to.as_raw_fd(), (&raw mut urgent).cast(), 1, libc::MSG_OOB) };
        assert_eq!((got, urgent), (1, b'!'));
        if PeekOffset::of(&to).set(0).is_ok() {
            assert_eq!(look(&to), None, "its place is yet to be read");
        }
        to.read_exact(&mut [0; 3]).unwrap();
        to.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(look(&to), Some(Bytes::default()));
    }
}
