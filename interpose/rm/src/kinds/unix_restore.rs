//! Unix sockets at the restore.
//!
//! Connections within the application come first (see [`super::unix_pairs`]), since they may need a listener's
//! name for a moment; then listeners, those who wait to be accepted, and datagram sockets. Queues are filled when all
//! descriptions of the application are made, since any of them may be on its way through one.

use super::kernel::{Bytes, identity};
use super::makers::{Maker, Makers};
use super::open::{Common, Each, Making, path_of};
use super::senders::{Noting, PLACE, Post, Sender};
use super::sockets::{self, Message, connect, listen, send, send_with, shutdown};
use super::sockopts::{self, SO_BUF_LOCK, set_int};
use super::terminals::lead_outside;
use super::unix_names::{bind_again, borrow_name, reached};
use super::unix_pairs::{self, Hands};
use super::unix_sockets::{UnixState, is_named, path_in};
use crate::install::{Install, install};
use crate::manager::{Context, RmResult};
use crate::remote::call;
use holo_abi::sysno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Who fills a queue.
enum Filler {
    /// A description of the application.
    Made(u32),
    /// The end of a lost connection, which goes away afterwards.
    Lost(OwnedFd),
}

/// Sockets whose queues are still empty.
#[derive(Default)]
pub(crate) struct Unfinished<'a> {
    streams: Vec<(u32, &'a UnixState, Filler)>,
    datagrams: Vec<(u32, &'a UnixState)>,
}

/// Makes all unix sockets again; [`finish`] fills them.
pub(crate) fn recreate<'a>(all: &'a Each<UnixState>, making: &mut Making) -> RmResult<Unfinished<'a>> {
    let by_inode: BTreeMap<u64, (u32, &UnixState)> =
        all.iter().map(|(index, state)| (state.inode, (*index, state))).collect();
    let mut names: BTreeMap<&Bytes, usize> = BTreeMap::new();
    for (_, state) in all {
        *names.entry(&state.socket.local).or_default() += 1;
    }
    let mut unfinished = Unfinished::default();
    // Who waits is made when its listener is there.
    let mut done: BTreeSet<u32> = all
        .iter()
        .flat_map(|(_, state)| &state.waiting)
        .filter_map(|inode| {
            by_inode.get(inode).filter(|(_, client)| !client.outgoing).map(|(index, _)| *index)
        })
        .collect();
    for (index, state) in all {
        let other = state.peer_inode.and_then(|peer| by_inode.get(&peer)).copied();
        let Some((other_index, other)) = other.filter(|(_, other)| other.peer_inode == Some(state.inode))
        else {
            continue;
        };
        let datagrams_with_names = state.socket.kind == libc::SOCK_DGRAM && (named(state) || named(other));
        if *index < other_index && !datagrams_with_names {
            let (one, two) = pair((*index, state), other, &names, making)?;
            for (index, state, fd, from) in
                [(*index, state, one, other_index), (other_index, other, two, *index)]
            {
                state.socket.settle(index, fd, making)?;
                unfinished.streams.push((index, state, Filler::Made(from)));
                done.insert(index);
            }
        }
    }
    let waits = |state: &UnixState| all.iter().any(|(_, listener)| listener.waiting.contains(&state.inode));
    for (index, state) in all.iter().filter(|(index, _)| !done.contains(index)) {
        let number = making.common(*index).number;
        if is_one_of_a_pair(state) {
            let (fd, other) = sockets::pair(state.socket.kind).on("making", "a pair that was lost")?;
            state.socket.settle(*index, fd, making)?;
            unfinished.streams.push((*index, state, Filler::Lost(other)));
        } else if state.socket.kind == libc::SOCK_DGRAM {
            let fd = state.socket.make()?;
            bind_again(*index, state, &fd, making)?;
            state.socket.settle(*index, fd, making)?;
            unfinished.datagrams.push((*index, state));
        } else if let Some(backlog) = state.backlog {
            let fd = state.socket.make()?;
            bind_again(*index, state, &fd, making)?;
            listen_again(*index, state, &fd, backlog, making).on("listening for descriptor", number)?;
            state.socket.settle(*index, fd, making)?;
            for (client, state) in state.waiting.iter().filter_map(|inode| by_inode.get(inode)) {
                if !state.outgoing {
                    wait_to_be_accepted(*client, state, making)?;
                }
            }
        } else if !state.connected {
            let fd = state.socket.make()?;
            bind_again(*index, state, &fd, making)?;
            state.socket.settle(*index, fd, making)?;
        } else if making.is_stdio(*index) && state.peer_inode.is_some() {
            lead_outside(*index, making)?;
        } else {
            let (fd, other) = sockets::pair(state.socket.kind).on("making", "a connection that was lost")?;
            state.socket.settle(*index, fd, making)?;
            unfinished.streams.push((*index, state, Filler::Lost(other)));
            if waits(state) {
                making
                    .remark(*index, "a unix connection that was not accepted and had been sent to is closed");
            } else if state.peer_inode.is_some() {
                making.remark(*index, "the other side of the unix socket was outside and is closed");
            }
        }
    }
    Ok(unfinished)
}

/// Listens as who did: those who connect are told who that is.
fn listen_again(
    index: u32,
    state: &UnixState,
    fd: &OwnedFd,
    backlog: u32,
    making: &mut Making,
) -> io::Result<()> {
    let Some(way) = &making.way else { return listen(fd, backlog) };
    let there = Makers::of(&[state.peer_maker], making.tree, making.clone);
    let holder = making.tree.get(making.common(index).process as usize);
    let who = state.peer_maker.and_then(|maker| there.hands(Some(maker), making.tree)).or(holder);
    let at = way.theirs + PLACE;
    let listened = match who {
        Some(who) => install(way, who, &[Install { fd: fd.as_fd(), at, cloexec: true }])
            .map_err(io::Error::other)
            .and_then(|()| {
                let args = [at as u64, u64::from(backlog)];
                who.run_all(&mut [call(sysno::listen, &args), call(sysno::close, &args[..1])])
            }),
        None => listen(fd, backlog),
    };
    there.end().map_err(io::Error::other)?;
    listened
}

/// A client that connected and was not accepted: it does so again.
fn wait_to_be_accepted(index: u32, state: &UnixState, making: &mut Making) -> RmResult<()> {
    let to = state.socket.peer.as_ref().map_or(&[][..], |peer| &peer.0);
    let Common { process, number, .. } = *making.common(index);
    let (uid, gid) = state.user;
    let maker = Maker { place: Some(process), who: Sender { pid: 0, uid, gid } };
    let there = Makers::of(&[Some(maker)], making.tree, making.clone);
    let connected = Hands(there.hands(Some(maker), making.tree)).client(state, to);
    there.end()?;
    let fd = connected.on("connecting descriptor", number)?;
    // One that cannot be had stays what it is.
    let _ = std::os::unix::fs::fchown(&fd, Some(uid), Some(gid));
    state.socket.settle(index, fd, making)?;
    shut(&making.made[&index], state.shut).on("shutting descriptor", making.common(index).number)
}

/// Fills the queues, when all descriptions are made.
pub(crate) fn finish(unfinished: Unfinished, all: &Each<UnixState>, making: &mut Making) -> RmResult<()> {
    // What was sent without a name stays so: the kernel would note ours.
    let mut noting = Noting::default();
    all.iter().filter_map(|(index, _)| making.made.get(index)).for_each(|fd| noting.turn(fd, false));
    let mut nameless = Vec::new();
    for (index, state, from) in &unfinished.streams {
        let from = match from {
            Filler::Made(other) => making.made[other].as_fd(),
            Filler::Lost(end) => end.as_fd(),
        };
        let lost =
            refill(from, &state.queued, making).on("refilling descriptor", making.common(*index).number)?;
        nameless.extend(lost.map(|cause| (*index, cause)));
    }
    for (index, cause) in nameless {
        making.remark(index, format!("queued messages lost the identity of their sender: {cause}"));
    }
    for (index, state, from) in unfinished.streams {
        if let (Filler::Lost(_), true) = (&from, state.reset) {
            // It goes away with a byte unread.
            let _ = send(&making.made[&index], &[0], &[]);
        } else if matches!(from, Filler::Made(_)) || state.socket.kind == libc::SOCK_DGRAM {
            shut(&making.made[&index], state.shut).on("shutting descriptor", making.common(index).number)?;
        }
    }
    finish_datagrams(&unfinished.datagrams, all, making)
}

/// A datagram socket without a name that is connected, or was sent to, is of a pair of which the other end is not here.
fn is_one_of_a_pair(state: &UnixState) -> bool {
    state.socket.kind == libc::SOCK_DGRAM
        && !named(state)
        && state.socket.peer.as_ref().is_none_or(|peer| !is_named(&peer.0))
        && (state.connected || !state.queued.is_empty())
}

fn named(state: &UnixState) -> bool {
    is_named(&state.socket.local.0)
}

/// A connection with both ends here.
fn pair(
    (index, state): (u32, &UnixState),
    other: &UnixState,
    names: &BTreeMap<&Bytes, usize>,
    making: &mut Making,
) -> RmResult<(OwnedFd, OwnedFd)> {
    let number = making.common(index).number;
    // Each knows who made the other one.
    let makers = [other.peer_maker, state.peer_maker];
    let there = Makers::of(&makers, making.tree, making.clone);
    if let Some(cause) = &there.failed {
        making.remark(index, format!("the connection lost who made it: {cause}"));
    }
    let hands = makers.map(|maker| Hands(there.hands(maker, making.tree)));
    let made = unix_pairs::connection([state, other], &hands, |name| {
        names.get(name).is_some_and(|count| *count > 1)
    });
    let made = made.or_else(|cause| {
        making.remark(index, format!("the connection lost its name: {cause}"));
        hands[0].pair(state.socket.kind)
    });
    there.end()?;
    made.on("making the connection of descriptor", number)
}

/// The descriptions that come with a message.
fn passed<'a>(message: &Message, made: &'a BTreeMap<u32, OwnedFd>) -> io::Result<Vec<BorrowedFd<'a>>> {
    let find = |index| made.get(index).map(AsFd::as_fd);
    message.passed.iter().map(|index| find(index).ok_or_else(|| io::ErrorKind::InvalidData.into())).collect()
}

/// Sends a message, or a part of a stream as far as there is room; with it, why not in the name of its sender.
fn send_again(
    from: BorrowedFd,
    message: &Message,
    to: &[u8],
    making: &Making,
) -> io::Result<(usize, Option<io::Error>)> {
    let passed = passed(message, &making.made)?;
    let mut lost = None;
    if let (Some(sender), Some(clone), Some(way)) = (message.sender, making.clone, &making.way) {
        match (Post { clone, way }).send(from, message, to, sender, &passed) {
            Ok(sent) => return Ok((sent, None)),
            Err(cause) => lost = Some(cause),
        }
    }
    let sent = match passed.as_slice() {
        [] => send(&from, &message.data.0, to)?,
        descriptors => send_with(&from, &message.data.0, to, descriptors)?,
    };
    Ok((sent, lost))
}

/// While it lives, a socket may send twice as much as it may: what waits is cut into other pieces than it was sent in, and those
/// that were begun to be read counted whole.
struct Room<'a> {
    of: BorrowedFd<'a>,
    bytes: i32,
    locks: Option<i32>,
}

impl<'a> Room<'a> {
    fn make(of: BorrowedFd<'a>) -> Option<Self> {
        let bytes = sockopts::get_int(&of, libc::SOL_SOCKET, libc::SO_SNDBUF).ok()?;
        let locks = sockopts::get_int(&of, libc::SOL_SOCKET, SO_BUF_LOCK).ok();
        // The kernel doubles what it is told, up to a limit.
        set_int(&of, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes).ok()?;
        Some(Self { of, bytes, locks })
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let _ = set_int(&self.of, libc::SOL_SOCKET, libc::SO_SNDBUF, self.bytes / 2);
        if let Some(locks) = self.locks {
            let _ = set_int(&self.of, libc::SOL_SOCKET, SO_BUF_LOCK, locks);
        }
    }
}

/// Fills a queue; why messages lost their sender, if some did.
fn refill(from: BorrowedFd, messages: &[Message], making: &Making) -> io::Result<Option<io::Error>> {
    let mut nameless = None;
    let _room = Room::make(from);
    for message in messages {
        let (mut sent, lost) = send_again(from, message, &[], making)?;
        nameless = nameless.or(lost);
        while sent < message.data.0.len() {
            let data = Bytes(message.data.0[sent..].to_vec());
            let rest = Message { data, passed: Vec::new(), ..message.clone() };
            match send_again(from, &rest, &[], making) {
                Ok((more, _)) => sent += more,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    sockets::send_all(&from, &rest.data.0)?;
                    break;
                }
                Err(cause) => return Err(cause),
            }
        }
    }
    Ok(nameless)
}

fn shut(fd: &OwnedFd, halves: u8) -> io::Result<()> {
    match halves {
        1 => shutdown(fd, libc::SHUT_RD),
        2 => shutdown(fd, libc::SHUT_WR),
        3 => shutdown(fd, libc::SHUT_RDWR),
        _ => Ok(()),
    }
}

/// Datagram sockets are refilled while nobody is connected: a connected one accepts from its peer only.
fn finish_datagrams(
    datagrams: &[(u32, &UnixState)],
    all: &Each<UnixState>,
    making: &mut Making,
) -> RmResult<()> {
    for (index, state) in datagrams {
        let (mut lost, mut nameless) = (0, None);
        for message in &state.queued {
            match resend(state, message, datagrams, making) {
                Ok(why) => nameless = nameless.or(why),
                Err(_) => lost += 1,
            }
        }
        if lost > 0 {
            making.remark(*index, format!("{lost} datagrams are lost"));
        }
        if let Some(cause) = nameless {
            making.remark(*index, format!("queued messages lost the identity of their sender: {cause}"));
        }
    }
    for (index, state) in datagrams {
        let peer = all.iter().find(|(_, other)| Some(other.inode) == state.peer_inode);
        let peer = peer.map(|(_, other)| &other.socket.local);
        let Some(name) = peer.or(state.socket.peer.as_ref()) else { continue };
        // A peer outside, such as the system's log, is there again or on the other node, too.
        let live =
            || is_named(&name.0) && path_in(&name.0).is_none_or(|path| identity(&path, true).is_some());
        let connected = match state.peer_inode.and_then(|peer| making.reach.get(&peer)) {
            Some(reach) => connect(&making.made[index], &reached(reach)).is_ok(),
            None => live() && connect(&making.made[index], &name.0).is_ok(),
        };
        if !connected {
            let name = path_in(&name.0).unwrap_or_else(|| path_of(b"(no name)"));
            making.remark(*index, format!("not connected to its peer {}", name.display()));
        }
        shut(&making.made[index], state.shut).on("shutting descriptor", making.common(*index).number)?;
    }
    Ok(())
}

fn resend(
    to: &UnixState,
    message: &Message,
    datagrams: &[(u32, &UnixState)],
    making: &Making,
) -> io::Result<Option<io::Error>> {
    let sender = datagrams.iter().find(|(_, state)| named(state) && state.socket.local == message.from);
    let stranger;
    let from = match sender {
        Some((index, _)) => &making.made[index],
        None => {
            stranger = sockets::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
            // Where somebody else has its name now, who receives is shown none.
            if is_named(&message.from.0) {
                let _ = borrow_name(&stranger, &message.from.0);
            }
            // Its own may have been larger than that of a new one.
            let room = message.data.0.len().max(64 << 10);
            let _ = set_int(&stranger, libc::SOL_SOCKET, libc::SO_SNDBUF, room as i32);
            &stranger
        }
    };
    let Some(reach) = making.reach.get(&to.inode) else {
        return send_again(from.as_fd(), message, &to.socket.local.0, making).map(|(_, lost)| lost);
    };
    // The way is ours alone, so that we are the sender.
    let (to, passed) = (reached(reach), passed(message, &making.made)?);
    match passed.as_slice() {
        [] => send(from, &message.data.0, &to)?,
        descriptors => send_with(from, &message.data.0, &to, descriptors)?,
    };
    Ok(message.sender.map(|_| io::Error::other("the name of the socket is gone or relative")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: a queue takes more while there is room, and the socket is as it was afterwards. Method: fill it, make room, ask.
    #[test]
    fn room_for_a_while() {
        let (from, _to) = sockets::pair(libc::SOCK_STREAM).unwrap();
        let options = || {
            [libc::SO_SNDBUF, SO_BUF_LOCK]
                .map(|name| sockopts::get_int(&from, libc::SOL_SOCKET, name).unwrap())
        };
        let before = options();
        let part = vec![7; 4096];
        while send(&from, &part, &[]).is_ok() {}
        let room = Room::make(from.as_fd()).unwrap();
        assert!(send(&from, &part, &[]).is_ok());
        drop(room);
        assert_eq!(options(), before);
        assert!(send(&from, &part, &[]).is_err());
    }
}
