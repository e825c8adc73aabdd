//! Who sent what waits in a unix socket: the kernel keeps process, user and group with each message of which one side wanted that
//! (`SO_PASSCRED`), or the sender said so itself, and shows them to who receives it.
//!
//! At a restore a process of the clone sends such messages, in the name of who did. That must be a process which is there:
//! of one that has ended another is made with its number, for a moment.

use super::open::Open;
use super::sockets::Message;
use super::sockopts::{self, SO_PEEK_OFF};
use crate::grow::{child_with, end};
use crate::install::{Channel, Install, install};
use crate::manager::DumpCx;
use crate::remote::{Remote, call, outcome};
use crate::tree::is_nested;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

const SO_PASSPIDFD: i32 = 76;
/// Of the socket and what passes through it, above the channel's number.
pub(super) const PLACE: i32 = 16;
/// Places in the scratch area.
const PARTS_AT: usize = 0;
pub(super) const HEAD_AT: usize = 64;
const NAME_AT: usize = 128;
pub(super) const CONTROL_AT: usize = 512;
const DATA_AT: usize = 8 << 10;
/// Longest part of a stream at once, and message that needs no memory of its own.
const DATA_BYTES: usize = 128 << 10;
/// Header and alignment of an ancillary message.
const HEAD_BYTES: usize = 16;
pub(super) const CREDENTIALS_BYTES: usize = 12;

/// A process, as the application sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sender {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Sender {
    /// Out of `struct ucred`; none: the kernel has kept none, or one of a namespace that we do not see.
    pub(crate) fn of(raw: [u32; 3]) -> Option<Self> {
        let [pid, uid, gid] = raw;
        i32::try_from(pid).ok().filter(|pid| *pid > 0).map(|pid| Self { pid, uid, gid })
    }

    /// Out of the bytes of one.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(raw.get(at..at + 4)?.try_into().ok()?));
        Self::of([word(0)?, word(4)?, word(8)?])
    }
}

/// While it lives, sockets show who sent a message, or note it of none but those who say so.
#[derive(Default)]
pub(crate) struct Noting(Vec<(RawFd, i32, i32)>);

impl Noting {
    /// Of a socket that lives longer.
    pub(crate) fn turn(&mut self, fd: &impl AsRawFd, on: bool) {
        for (name, wanted) in [(libc::SO_PASSCRED, i32::from(on)), (SO_PASSPIDFD, 0)] {
            // Kernels that do not know the second have none.
            if let Ok(before) = sockopts::get_int(fd, libc::SOL_SOCKET, name)
                && before != wanted
                && sockopts::set_int(fd, libc::SOL_SOCKET, name, wanted).is_ok()
            {
                self.0.push((fd.as_raw_fd(), name, before));
            }
        }
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        for (fd, name, before) in self.0.drain(..).rev() {
            let _ = sockopts::set_int(&fd, libc::SOL_SOCKET, name, before);
        }
    }
}

/// Puts the pids that the application sees where `messages` of a socket, all that wait, have those that we see.
pub(crate) fn as_seen_inside(messages: &mut [Message], open: &Open, cx: &DumpCx) -> io::Result<()> {
    let mut offset = 0;
    let mut nested = None;
    for message in messages {
        if let Some(sender) = &mut message.sender {
            match cx.place(sender.pid) {
                Some(place) => sender.pid = cx.processes[place as usize].pid,
                None if *nested.get_or_insert_with(|| is_nested(cx.remote.pid)) => {
                    message.sender = asked(cx.remote, open, offset)?;
                }
                // Has ended, or is outside: the number is the same.
                None => {}
            }
        }
        offset += message.data.0.len();
    }
    Ok(())
}

/// The sender of the message at `offset`, as a process itself sees it.
fn asked(remote: &Remote, open: &Open, offset: usize) -> io::Result<Option<Sender>> {
    if open.number < 0 {
        return Ok(None);
    }
    let page = &remote.page;
    let room = HEAD_BYTES + CREDENTIALS_BYTES.next_multiple_of(8);
    page.put(PARTS_AT, &words(&[page.scratch_address(DATA_AT), 1]));
    let parts = [page.scratch_address(PARTS_AT), 1, page.scratch_address(CONTROL_AT), room as u64, 0];
    let head_at = page.put(HEAD_AT, &words(&[&[0, 0][..], &parts].concat()));
    page.put(CONTROL_AT, &vec![0; room]);
    let before = sockopts::get_int(open, libc::SOL_SOCKET, SO_PEEK_OFF)?;
    sockopts::set_int(open, libc::SOL_SOCKET, SO_PEEK_OFF, offset as i32)?;
    // There is no room for descriptors, which therefore do not come.
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let done = remote.call(sysno::recvmsg, &[open.number as u64, head_at, flags as u64]);
    sockopts::set_int(open, libc::SOL_SOCKET, SO_PEEK_OFF, before)?;
    done?;
    let control = page.take(CONTROL_AT, room);
    let word = |at: usize| control[at..at + 4].try_into().map_or(0, i32::from_le_bytes);
    let is_credentials = word(8) == libc::SOL_SOCKET && word(12) == libc::SCM_CREDENTIALS;
    Ok(Sender::parse(&control[HEAD_BYTES..]).filter(|_| is_credentials))
}

pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The process of the clone that sends in the name of others.
pub(crate) struct Post<'a> {
    pub(crate) clone: &'a Remote,
    pub(crate) way: &'a Channel<'a>,
}

impl Post<'_> {
    /// Sends a message, or as much of it as a stream takes, through `from` to `to` if that is not empty; how much.
    pub(crate) fn send(
        &self,
        from: BorrowedFd,
        message: &Message,
        to: &[u8],
        sender: Sender,
        passed: &[BorrowedFd],
    ) -> io::Result<usize> {
        let first = self.way.theirs + PLACE;
        let all: Vec<BorrowedFd> = [&[from], passed].concat();
        let list: Vec<Install> =
            all.iter().zip(first..).map(|(fd, at)| Install { fd: fd.as_fd(), at, cloexec: true }).collect();
        install(self.way, self.clone, &list).map_err(io::Error::other)?;
        let sent = self.send_from(self.clone, first, message, to, sender, passed.len());
        let sent = match sent {
            Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => {
                let moment = child_with(self.clone, sender.pid).map_err(io::Error::other)?;
                let sent = self.send_from(&moment, first, message, to, sender, passed.len());
                end(&moment, Some((self.clone, sender.pid))).map_err(io::Error::other)?;
                sent
            }
            sent => sent,
        };
        let mut close: Vec<_> = list.iter().map(|one| call(sysno::close, &[one.at as u64])).collect();
        self.clone.run(&mut close, false)?;
        sent
    }

    fn send_from(
        &self,
        who: &Remote,
        first: i32,
        message: &Message,
        to: &[u8],
        sender: Sender,
        passed: usize,
    ) -> io::Result<usize> {
        let page = &who.page;
        let data = &message.data.0;
        let mut mapped = None;
        let data_at = if data.len() <= DATA_BYTES {
            page.put(DATA_AT, data)
        } else {
            let room = (data.len() as u64).next_multiple_of(4096);
            let at = who.call(sysno::mmap, &[0, room, 3, 0x22, u64::MAX, 0])?;
            mapped = Some([at, room]);
            who.write(at, data)?;
            at
        };
        let mut control = words(&[(HEAD_BYTES + CREDENTIALS_BYTES) as u64]);
        for word in [
            libc::SOL_SOCKET as u32,
            libc::SCM_CREDENTIALS as u32,
            sender.pid.cast_unsigned(),
            sender.uid,
            sender.gid,
            0,
        ] {
            control.extend(word.to_le_bytes());
        }
        if passed > 0 {
            control.extend(((HEAD_BYTES + passed * 4) as u64).to_le_bytes());
            for word in
                [libc::SOL_SOCKET, libc::SCM_RIGHTS].into_iter().chain(first + 1..=first + passed as i32)
            {
                control.extend(word.to_le_bytes());
            }
            control.resize(control.len().next_multiple_of(8), 0);
        }
        let control_at = page.put(CONTROL_AT, &control);
        let name_at = if to.is_empty() { 0 } else { page.put(NAME_AT, to) };
        let parts_at = page.put(PARTS_AT, &words(&[data_at, data.len() as u64]));
        let head = [name_at, to.len() as u64, parts_at, 1, control_at, control.len() as u64, 0];
        let head_at = page.put(HEAD_AT, &words(&head));
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;
        let mut calls = vec![call(sysno::sendmsg, &[first as u64, head_at, flags])];
        calls.extend(mapped.map(|zone| call(sysno::munmap, &zone)));
        who.run(&mut calls, false)?;
        outcome(&calls[0]).map(|sent| sent as usize)
    }
}

/// Credentials in an ancillary message of `recvmsg`.
///
/// # Safety
/// A whole message that the kernel has filled in.
pub(crate) unsafe fn credentials(head: *const libc::cmsghdr) -> Option<Sender> {
    // SAFETY: the length of the message says that it has them.
    unsafe {
        let whole = (*head).cmsg_len >= HEAD_BYTES + CREDENTIALS_BYTES;
        let is = ((*head).cmsg_level, (*head).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
        (whole && is).then(|| Sender::of(libc::CMSG_DATA(head).cast::<[u32; 3]>().read_unaligned())).flatten()
    }
}
