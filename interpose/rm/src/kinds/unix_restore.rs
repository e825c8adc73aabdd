//! Unix sockets at the restore.
//!
//! Connections within the application come first (see [`super::unix_pairs`]), since they may need a listener's
//! name for a moment; then listeners and datagram sockets.

use super::kernel::{Bytes, identity};
use super::open::{Each, Making, path_of};
use super::sockets::{self, Message, connect, listen, send, shutdown};
use super::terminals::lead_outside;
use super::unix_names::bind_again;
use super::unix_pairs::Hands;
use super::unix_sockets::{UnixState, is_named, path_in};
use crate::manager::{Context, RmResult};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

/// Makes all unix sockets again.
pub(crate) fn recreate(all: &Each<UnixState>, making: &mut Making) -> RmResult<()> {
    let by_inode: BTreeMap<u64, (u32, &UnixState)> =
        all.iter().map(|(index, state)| (state.inode, (*index, state))).collect();
    let mut names: BTreeMap<&Bytes, usize> = BTreeMap::new();
    for (_, state) in all {
        *names.entry(&state.socket.local).or_default() += 1;
    }
    let mut done = BTreeSet::new();
    for (index, state) in all {
        let other = state.peer_inode.and_then(|peer| by_inode.get(&peer)).copied();
        let Some((other_index, other)) = other.filter(|(_, other)| other.peer_inode == Some(state.inode))
        else {
            continue;
        };
        let datagrams_with_names = state.socket.kind == libc::SOCK_DGRAM && (named(state) || named(other));
        if *index < other_index && !datagrams_with_names {
            let (one, two) = pair((*index, state), (other_index, other), &names, making)?;
            for (index, state, fd) in [(*index, state, one), (other_index, other, two)] {
                state.socket.settle(index, fd, making)?;
                done.insert(index);
            }
        }
    }
    let mut datagrams = Vec::new();
    for (index, state) in all.iter().filter(|(index, _)| !done.contains(index)) {
        let number = making.common(*index).number;
        if state.socket.kind == libc::SOCK_DGRAM {
            let fd = state.socket.make()?;
            bind_again(*index, state, &fd, making)?;
            datagrams.push((*index, state, fd));
        } else if let Some(backlog) = state.backlog {
            let fd = state.socket.make()?;
            bind_again(*index, state, &fd, making)?;
            listen(&fd, backlog).on("listening for descriptor", number)?;
            state.socket.settle(*index, fd, making)?;
        } else if !state.connected {
            let fd = state.socket.make()?;
            bind_again(*index, state, &fd, making)?;
            state.socket.settle(*index, fd, making)?;
        } else if making.is_stdio(*index) && state.peer_inode.is_some() {
            lead_outside(*index, making)?;
        } else {
            let fd = lost(state).on("making", "a connection that was lost")?;
            state.socket.settle(*index, fd, making)?;
            if state.peer_inode.is_some() {
                making.remark(*index, "the other side of the unix socket was outside and is closed");
            }
        }
    }
    finish_datagrams(datagrams, &by_inode, making)
}

fn named(state: &UnixState) -> bool {
    is_named(&state.socket.local.0)
}

/// A connection with both ends here.
fn pair(
    (index, state): (u32, &UnixState),
    (other_index, other): (u32, &UnixState),
    names: &BTreeMap<&Bytes, usize>,
    making: &mut Making,
) -> RmResult<(OwnedFd, OwnedFd)> {
    let number = making.common(index).number;
    let hands = Hands(making.clone);
    let made = hands.connection(state, other, |name| names.get(name).is_some_and(|count| *count > 1));
    let made = made.or_else(|cause| {
        making.remark(index, format!("the connection lost its name: {cause}"));
        hands.pair(state.socket.kind)
    });
    let (one, two) = made.on("making the connection of descriptor", number)?;
    let _ = (state.socket.options.apply(&one), other.socket.options.apply(&two));
    for (index, state) in [(index, state), (other_index, other)] {
        if state.socket.options.int(libc::SOL_SOCKET, libc::SO_PASSCRED).is_some_and(|on| on != 0)
            && !state.queued.is_empty()
        {
            making.remark(index, "queued messages lost the identity of their sender");
        }
    }
    refill(&two, &state.queued).on("refilling descriptor", number)?;
    refill(&one, &other.queued).on("refilling the peer of descriptor", number)?;
    shut(&one, state.shut).on("shutting descriptor", number)?;
    shut(&two, other.shut).on("shutting the peer of descriptor", number)?;
    Ok((one, two))
}

fn refill(from: &OwnedFd, messages: &[Message]) -> io::Result<()> {
    for message in messages {
        let sent = send(from, &message.data.0, &[])?;
        if sent < message.data.0.len() {
            sockets::send_all(from, &message.data.0[sent..])?;
        }
    }
    Ok(())
}

fn shut(fd: &OwnedFd, halves: u8) -> io::Result<()> {
    match halves {
        1 => shutdown(fd, libc::SHUT_RD),
        2 => shutdown(fd, libc::SHUT_WR),
        3 => shutdown(fd, libc::SHUT_RDWR),
        _ => Ok(()),
    }
}

/// A connection whose other side is gone: its queue, then the end.
fn lost(state: &UnixState) -> io::Result<OwnedFd> {
    let (fd, other) = sockets::pair(state.socket.kind)?;
    refill(&other, &state.queued)?;
    Ok(fd)
}

type Datagrams<'a> = Vec<(u32, &'a UnixState, OwnedFd)>;

/// Datagram sockets are refilled while nobody is connected: a connected one accepts from its peer only.
fn finish_datagrams(
    made: Datagrams,
    by_inode: &BTreeMap<u64, (u32, &UnixState)>,
    making: &mut Making,
) -> RmResult<()> {
    for (index, state, _) in &made {
        let lost = state.queued.iter().filter(|message| resend(state, message, &made).is_err()).count();
        if lost > 0 {
            making.remark(*index, format!("{lost} datagrams are lost"));
        }
    }
    for (index, state, fd) in &made {
        let peer = state.peer_inode.and_then(|peer| by_inode.get(&peer)).map(|(_, peer)| &peer.socket.local);
        let Some(name) = peer.or(state.socket.peer.as_ref()) else { continue };
        // A peer outside, such as the system's log, is there again or on the other node, too.
        let live = path_in(&name.0).is_none_or(|path| identity(&path, true).is_some());
        if !live || !is_named(&name.0) || connect(fd, &name.0).is_err() {
            let name = path_in(&name.0).unwrap_or_else(|| path_of(b"(no name)"));
            making.remark(*index, format!("not connected to its peer {}", name.display()));
        }
        shut(fd, state.shut).on("shutting descriptor", making.common(*index).number)?;
    }
    for (index, state, fd) in made {
        state.socket.settle(index, fd, making)?;
    }
    Ok(())
}

fn resend(to: &UnixState, message: &Message, made: &Datagrams) -> io::Result<()> {
    let sender = made.iter().find(|(_, state, _)| named(state) && state.socket.local == message.from);
    let stranger;
    let from = match sender {
        Some((_, _, fd)) => fd,
        None => {
            stranger = sockets::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
            &stranger
        }
    };
    send(from, &message.data.0, &to.socket.local.0).map(|_| ())
}
