//! Bytes of a connection within the application that one end sent and the other has not received, since it has no room for more.
//!
//! The kernel keeps them for who sent them, and shows them where `TCP_REPAIR` is permitted. It goes on to deliver them while the
//! application stands still: what was received is read once more, with the number of its last byte before and after, and
//! the rest is what the sender has behind that number.

use super::kernel::{Bytes, checked, ioctl_int};
use super::open::{Each, Open};
use super::sockets::waiting;
use super::sockopts::{get_int, set_int};
use super::tcp::{Connection, Role, TcpState, queued};
use super::tcp_pairs::pairs;
use std::io;
use std::os::fd::AsRawFd;

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// Off without a probe of the window.
const OFF: i32 = -1;
/// More than what is delivered while one looks takes turns.
const TRIES: usize = 8;

/// Notes for each end what is on its way from it. What cannot be had is missing, which the restore notices.
pub(crate) fn look(all: &mut Each<TcpState>, opens: &[Open]) {
    let both = |(one, other): &(_, _)| [(*one, *other), (*other, *one)];
    let mut found = Vec::new();
    for ((from, _, sender), (to, _, receiver)) in pairs(all).iter().flat_map(both) {
        let (Some(from_fd), Some(to_fd)) = (opens.get(from as usize), opens.get(to as usize)) else {
            continue;
        };
        let end_under_way = sender.ended_here && !receiver.ended_there;
        if is_quiet(from_fd, to_fd, receiver) {
            // The end came after it was looked for.
            if end_under_way {
                found.push((to, receiver.queued.0.clone(), from, Vec::new()));
            }
        } else if let Some((received, under_way)) = snapshot(from_fd, to_fd, end_under_way) {
            found.push((to, received, from, under_way));
        }
    }
    for (to, received, from, under_way) in found {
        if let Some(connection) = connection(all, to) {
            connection.queued = Bytes(received);
        }
        if let Some(connection) = connection(all, from) {
            connection.under_way = Some(Bytes(under_way));
        }
    }
}

fn connection(all: &mut Each<TcpState>, index: u32) -> Option<&mut Connection> {
    let (_, state) = all.iter_mut().find(|(other, _)| *other == index)?;
    match &mut state.role {
        Role::Connected(connection) => Some(connection),
        Role::Idle | Role::Listening { .. } => None,
    }
}

/// All was acknowledged, and what was read is still all that was received.
fn is_quiet(from: &Open, to: &Open, receiver: &Connection) -> bool {
    ioctl_int(from, libc::TIOCOUTQ).is_ok_and(|bytes| bytes == 0) && waiting(to) == receiver.queued.0.len()
}

/// What was received and not read, and what is on its way behind it; with it, whether the end of the stream is too.
fn snapshot(from: &Open, to: &Open, with_end: bool) -> Option<(Vec<u8>, Vec<u8>)> {
    (0..TRIES).find_map(|_| {
        let before = sequence(to, RECEIVE_QUEUE).ok()?;
        let received = queued(to).ok()?;
        if sequence(to, RECEIVE_QUEUE).ok()? != before {
            return None;
        }
        let (until, mut sent) = sent(from).ok()?;
        let wanted = until.wrapping_sub(before).checked_sub(u32::from(with_end))? as usize;
        let known = sent.len().checked_sub(wanted)?;
        Some((received.0, sent.split_off(known)))
    })
}

/// Runs `look` while the kernel shows the inside of a connection.
fn shown<T>(fd: &Open, queue: i32, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let set = |name, value| set_int(fd, libc::IPPROTO_TCP, name, value);
    // The repair takes this option.
    let reuse = get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    set(TCP_REPAIR, 1)?;
    let looked = set(TCP_REPAIR_QUEUE, queue).and_then(|()| look());
    set(TCP_REPAIR, OFF).or_else(|_| set(TCP_REPAIR, 0))?;
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    looked
}

fn number(fd: &Open) -> io::Result<u32> {
    get_int(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ).map(i32::cast_unsigned)
}

/// The number behind the last byte of a queue.
fn sequence(fd: &Open, queue: i32) -> io::Result<u32> {
    shown(fd, queue, || number(fd))
}

/// All that was given to a connection and not acknowledged, and the number behind it.
fn sent(fd: &Open) -> io::Result<(u32, Vec<u8>)> {
    let mut buffer = vec![0u8; ioctl_int(fd, libc::TIOCOUTQ)? as usize];
    shown(fd, SEND_QUEUE, || {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: a buffer of the stated size.
        let got =
            checked(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })?;
        Ok((number(fd)?, got as usize))
    })
    .map(|(until, got)| {
        buffer.truncate(got);
        (until, buffer)
    })
}
