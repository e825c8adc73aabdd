//! What all sockets have in common: type, names, options, and queues that are read without taking out.

use super::kernel::{self, Bytes, checked, owned};
use super::known_options::KnownOptions;
use super::open::{Making, Open};
use super::packet_filter::PacketFilter;
use super::senders::{Sender, credentials};
use super::sockopts::{self, Options, SO_PEEK_OFF};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;
/// Most bytes that are peeked at first; longer messages make the buffer grow.
const PEEK_BYTES: usize = 256 << 10;
/// Most messages of one queue: kernel limits are far below.
const PEEK_MESSAGES_MAX: usize = 1 << 20;

/// A socket of any family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Socket {
    pub(crate) domain: i32,
    pub(crate) kind: i32,
    pub(crate) protocol: i32,
    pub(crate) options: Arc<Options>,
    /// Own address as the kernel gives it.
    pub(crate) local: Bytes,
    /// The other side's, if connected.
    pub(crate) peer: Option<Bytes>,
    /// What it does not receive.
    filter: Option<PacketFilter>,
}

/// A queued message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Who sent it.
    pub(crate) from: Bytes,
    /// Content.
    pub(crate) data: Bytes,
    /// Descriptions that come with it.
    pub(crate) passed: Vec<u32>,
    /// Who sent it, where the kernel knows.
    pub(crate) sender: Option<Sender>,
}

/// What a peek found.
#[derive(Default)]
pub(crate) struct Queue {
    /// Messages, of a stream: parts.
    pub(crate) messages: Vec<Message>,
    /// Descriptors that come with them: index of the message, duplicates.
    pub(crate) passed: Vec<(usize, Vec<OwnedFd>)>,
}

/// Family, type and protocol of a socket.
pub(crate) fn family(open: &Open) -> RmResult<[i32; 3]> {
    if let Some(known) = open.socket.get() {
        return Ok(*known);
    }
    let get = |name| sockopts::get_int(open, libc::SOL_SOCKET, name).on("reading socket", open.named());
    let asked = [get(SO_DOMAIN)?, get(libc::SO_TYPE)?, get(SO_PROTOCOL)?];
    Ok(*open.socket.get_or_init(|| asked))
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn name_of(fd: &impl AsRawFd, call: NameCall) -> io::Result<Bytes> {
    let mut name = [0u8; 128];
    let mut bytes = name.len() as libc::socklen_t;
    // SAFETY: room of the stated size.
    checked(unsafe { call(fd.as_raw_fd(), name.as_mut_ptr().cast(), &raw mut bytes) })?;
    Ok(Bytes(name[..(bytes as usize).min(name.len())].to_vec()))
}

/// The address of a socket.
pub(crate) fn local_name(fd: &impl AsRawFd) -> io::Result<Bytes> {
    name_of(fd, libc::getsockname)
}

/// The address of the other side.
pub(crate) fn peer_name(fd: &impl AsRawFd) -> io::Result<Bytes> {
    name_of(fd, libc::getpeername)
}

/// Who made the other side of a unix connection, as we see it.
pub(crate) fn peer_maker(fd: &impl AsRawFd) -> Option<Sender> {
    let raw = sockopts::get(fd, libc::SOL_SOCKET, libc::SO_PEERCRED).ok()?;
    Sender::parse(&raw)
}

pub(crate) fn bind(fd: &impl AsRawFd, name: &[u8]) -> io::Result<()> {
    // SAFETY: a buffer of the stated size.
    checked(unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr().cast(), name.len() as u32) }).map(|_| ())
}

pub(crate) fn connect(fd: &impl AsRawFd, name: &[u8]) -> io::Result<()> {
    // SAFETY: a buffer of the stated size.
    checked(unsafe { libc::connect(fd.as_raw_fd(), name.as_ptr().cast(), name.len() as u32) }).map(|_| ())
}

/// Connects as one who does not wait and asks later: an application that was about to be told of the connection can ask once more,
/// by `connect`, which a socket that was told already refuses with `EISCONN`.
///
/// # Errors
/// As `connect`, also `TimedOut` after two seconds.
pub(crate) fn connect_untold(fd: &impl AsRawFd, name: &[u8]) -> io::Result<()> {
    let flags = kernel::fcntl(fd, libc::F_GETFL, 0)?;
    kernel::fcntl(fd, libc::F_SETFL, i64::from(flags | libc::O_NONBLOCK))?;
    match connect(fd, name) {
        Err(cause) if cause.raw_os_error() != Some(libc::EINPROGRESS) => return Err(cause),
        _ => {}
    }
    if poll(fd, libc::POLLOUT, 2000) == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match super::sockopts::get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => kernel::fcntl(fd, libc::F_SETFL, i64::from(flags)).map(|_| ()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

pub(crate) fn listen(fd: &impl AsRawFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: no memory is passed.
    checked(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(|_| ())
}

pub(crate) fn accept(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    let none = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    owned(unsafe { libc::accept4(fd.as_raw_fd(), none, none.cast(), libc::SOCK_CLOEXEC) })
}

pub(crate) fn shutdown(fd: &impl AsRawFd, how: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    checked(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(|_| ())
}

/// Sends without waiting, to `to` if that is not empty.
pub(crate) fn send(fd: &impl AsRawFd, data: &[u8], to: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let name = if to.is_empty() { std::ptr::null() } else { to.as_ptr().cast() };
    // SAFETY: buffers of the stated sizes.
    let sent = checked(unsafe {
        libc::sendto(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), flags, name, to.len() as u32)
    })?;
    Ok(sent as usize)
}

/// Events that are there, or come within `wait_ms`.
pub(crate) fn poll(fd: &impl AsRawFd, events: i16, wait_ms: i32) -> i16 {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut entry, 1, wait_ms) };
    entry.revents
}

/// A new socket.
pub(crate) fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

impl Socket {
    pub(crate) fn describe(open: &Open, known: &mut KnownOptions) -> RmResult<Self> {
        let [domain, kind, protocol] = family(open)?;
        let named = || open.named();
        let (options, filter) = known.of(open, || {
            let options = Options::of(open, domain, kind).on("reading options of", named())?;
            Ok((Arc::new(options), PacketFilter::of(open).on("reading the filter of", named())?))
        })?;
        Ok(Self {
            domain,
            kind,
            protocol,
            options,
            local: local_name(open).on("reading the address of", named())?,
            peer: peer_name(open).ok(),
            filter,
        })
    }

    /// A new socket of this type with these options.
    pub(crate) fn make(&self) -> RmResult<OwnedFd> {
        let fd = socket(self.domain, self.kind, self.protocol).on("making", "a socket")?;
        // What fails now is tried again by `settle`, and told then.
        let _ = self.options.apply(&fd);
        Ok(fd)
    }

    /// The last step: options once more, since making a connection uses its own.
    pub(crate) fn settle(&self, index: u32, fd: OwnedFd, making: &mut Making) -> RmResult<()> {
        for failed in self.options.apply(&fd) {
            making.remark(index, format!("not restored: {failed}"));
        }
        // Last: what waits has passed it once.
        if let Some(Err(cause)) = self.filter.as_ref().map(|filter| filter.attach(&fd)) {
            making.remark(index, format!("its filter was not restored: {cause}"));
        }
        making.put(index, fd)
    }
}

/// Whether an error waits to be told. It must not be asked for what it is: that takes it.
pub(crate) fn has_error(fd: &impl AsRawFd) -> bool {
    poll(fd, 0, 0) & libc::POLLERR != 0
}

/// All that is queued at a socket, left where it is. A socket of messages must have no error: looking would take it.
pub(crate) fn peek(fd: &impl AsRawFd) -> io::Result<Queue> {
    // The application may itself use the peek offset.
    let before = sockopts::get_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap_or(-1);
    sockopts::set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, 0)?;
    let queue = peek_from_start(fd);
    sockopts::set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, before)?;
    queue
}

fn peek_from_start(fd: &impl AsRawFd) -> io::Result<Queue> {
    let stream = sockopts::get_int(fd, libc::SOL_SOCKET, libc::SO_TYPE)? == libc::SOCK_STREAM;
    let mut queue = Queue::default();
    let mut buffer = vec![0; PEEK_BYTES];
    let (mut offset, mut empty) = (0, 0);
    // A stream tells its error behind the last byte, once.
    let all = if stream { waiting(fd) as i32 } else { i32::MAX };
    while queue.messages.len() < PEEK_MESSAGES_MAX && offset < all {
        let (bytes, from, descriptors, sender) = match peek_one(fd, &mut buffer, stream) {
            Ok(found) => found,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
            // Not connected, or an error that waits to be reported: nothing is queued before it.
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOTCONN | libc::EINVAL)) => break,
            Err(cause) => return Err(cause),
        };
        if bytes > buffer.len() {
            buffer.resize(bytes, 0);
            sockopts::set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset)?;
            continue;
        }
        let mut bytes = bytes;
        if !descriptors.is_empty() {
            // A stream gives what is before them in the same part: they come with the first byte that they were sent with.
            let before = if stream { bytes_before(fd, bytes, offset)? } else { 0 };
            if before > 0 {
                bytes = before;
                sockopts::set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset + before as i32)?;
            } else {
                queue.passed.push((queue.messages.len(), descriptors));
            }
        }
        if bytes == 0 {
            // An empty message, or the end, which is told again and again.
            empty += 1;
            if stream || empty > 64 || poll(fd, libc::POLLRDHUP, 0) & (libc::POLLRDHUP | libc::POLLHUP) != 0 {
                break;
            }
        }
        offset += bytes as i32;
        let data = Bytes(buffer[..bytes].to_vec());
        queue.messages.push(Message { from, data, passed: Vec::new(), sender });
    }
    Ok(queue)
}

/// Of a part of `bytes` of a stream that comes with descriptors, the bytes that come without them.
///
/// A peek looks into what follows what it was asked for and brings its descriptors, so that shorter peeks tell nothing. But
/// where the buffer's end is no memory, the kernel gives the sends that fit whole: those before the one with descriptors.
fn bytes_before(fd: &impl AsRawFd, bytes: usize, offset: i32) -> io::Result<usize> {
    let mut room = vec![0u8; bytes - 1];
    let no_memory = libc::iovec { iov_base: std::ptr::dangling_mut::<u8>().cast(), iov_len: bytes };
    let mut parts = [libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() }, no_memory];
    sockopts::set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset)?;
    // SAFETY: a `msghdr` of zeros is valid; the kernel checks what it writes to, which is how this works.
    let got = checked(unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT)
    });
    sockopts::set_int(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset + bytes as i32)?;
    match got {
        Err(cause) if cause.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        got => got.map(|got| got as usize),
    }
}

/// Length, name and descriptors of a message, and who sent it.
type Peeked = (usize, Bytes, Vec<OwnedFd>, Option<Sender>);

/// One message at the peek offset: its whole length, its sender, the descriptors that it carries.
fn peek_one(fd: &impl AsRawFd, buffer: &mut [u8], stream: bool) -> io::Result<Peeked> {
    let mut name = [0u8; 128];
    let mut control = [0u64; 256];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a `msghdr` of zeros is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = name.len() as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let whole = if stream { 0 } else { libc::MSG_TRUNC };
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | whole;
    // SAFETY: all buffers are live and of the stated sizes.
    let got = checked(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    let mut descriptors = Vec::new();
    let mut sender = None;
    // SAFETY: the kernel filled in the control messages; descriptors in them are new and ours.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
        while !at.is_null() {
            sender = sender.or(credentials(at));
            if ((*at).cmsg_level, (*at).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = (*at).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(at).cast::<i32>();
                for i in 0..bytes / 4 {
                    descriptors.push(OwnedFd::from_raw_fd(first.add(i).read_unaligned()));
                }
            }
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
    }
    let named = (message.msg_namelen as usize).min(name.len());
    Ok((got as usize, Bytes(name[..named].to_vec()), descriptors, sender))
}

/// Sends one message with descriptors, to `to` if that is not empty.
pub(crate) fn send_with(
    fd: &impl AsRawFd,
    data: &[u8],
    to: &[u8],
    descriptors: &[BorrowedFd],
) -> io::Result<usize> {
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let bytes = size_of_val(raw.as_slice()) as u32;
    let mut control = vec![0u64; 4 + raw.len()];
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: a `msghdr` of zeros is valid; the control buffer has room for a header and the numbers.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        if !to.is_empty() {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len() as u32;
        }
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(bytes) as usize;
        std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(head), bytes as usize);
        libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    checked(sent).map(|sent| sent as usize)
}

/// Sends all bytes of a stream, waiting a moment where buffers need it.
pub(crate) fn send_all(fd: &impl AsRawFd, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match send(fd, data, &[]) {
            Ok(sent) => data = &data[sent..],
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                if poll(fd, libc::POLLOUT, 500) & libc::POLLOUT == 0 {
                    return Err(cause);
                }
            }
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// Two connected unix sockets.
pub(crate) fn pair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers, which are new.
    unsafe {
        checked(libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Bytes that wait at a socket.
pub(crate) fn waiting(fd: &impl AsRawFd) -> usize {
    kernel::readable_bytes(fd).unwrap_or(0)
}
