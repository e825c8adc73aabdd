//! Unix sockets at the restore.
//!
//! Pairs without names are made as pairs. A connection that was accepted has the listener's name, and can
//! only be made by accepting it: through a listener of our own, before the application's is there.

use super::kernel::identity;
use super::open::{Each, Making, path_of};
use super::sockets::{self, Message, accept, bind, connect, listen, send, shutdown};
use super::terminals::lead_outside;
use super::unix_names::{bind_again, free_name};
use super::unix_sockets::{UnixState, is_named, path_in};
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call};
use holo_abi::sysno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

/// Makes all unix sockets again.
pub(crate) fn recreate(all: &Each<UnixState>, making: &mut Making) -> RmResult<()> {
    let by_inode: BTreeMap<u64, (u32, &UnixState)> =
        all.iter().map(|(index, state)| (state.inode, (*index, state))).collect();
    let mut done = BTreeSet::new();
    for (index, state) in all {
        let other = state.peer_inode.and_then(|peer| by_inode.get(&peer)).copied();
        let Some((other_index, other)) = other.filter(|(_, other)| other.peer_inode == Some(state.inode))
        else {
            continue;
        };
        let datagrams_with_names = state.socket.kind == libc::SOCK_DGRAM && (named(state) || named(other));
        if *index < other_index && !datagrams_with_names {
            let (one, two) = pair((*index, state), (other_index, other), making)?;
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
    making: &mut Making,
) -> RmResult<(OwnedFd, OwnedFd)> {
    let number = making.common(index).number;
    let clone = making.clone;
    let plain = || match clone {
        // So that SO_PEERCRED names the application.
        Some(clone) => pair_by(clone, state.socket.kind),
        None => sockets::pair(state.socket.kind),
    };
    let made = match (named(state), named(other)) {
        (false, false) => plain(),
        // The side with a name is the one that was accepted; if both have one, the other is bound first.
        (_, true) => accepted(state, other),
        (true, false) => accepted(other, state).map(|(client, server)| (server, client)),
    };
    let made = made.or_else(|cause| {
        making.remark(index, format!("the connection lost its name: {cause}"));
        plain()
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

/// A pair that the clone makes; its own numbers of it are closed again.
fn pair_by(clone: &Remote, kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = (kind | libc::SOCK_CLOEXEC) as u64;
    let at = clone.page.scratch_address(0);
    clone.call(sysno::socketpair, &[libc::AF_UNIX as u64, kind, 0, at])?;
    let raw = clone.page.take(0, 8);
    let number = |at: usize| i32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let ends = [number(0), number(4)];
    let borrowed = (clone.borrow_fd(ends[0]), clone.borrow_fd(ends[1]));
    let mut close = ends.map(|end| call(sysno::close, &[end as u64]));
    clone.run_all(&mut close)?;
    Ok((borrowed.0?, borrowed.1?))
}

/// A connection made by accepting it from a listener with the server side's name.
fn accepted(client: &UnixState, server: &UnixState) -> io::Result<(OwnedFd, OwnedFd)> {
    let name = &server.socket.local.0;
    let listener = sockets::socket(libc::AF_UNIX, server.socket.kind, 0)?;
    let path = path_in(name);
    if path.as_ref().is_some_and(|path| path.is_relative()) {
        return Err(io::Error::other("its name is relative to a directory"));
    }
    free_name(name, server.socket.kind)?;
    bind(&listener, name)?;
    let made = (|| {
        listen(&listener, 1)?;
        let one = sockets::socket(libc::AF_UNIX, client.socket.kind, 0)?;
        if named(client) && client.socket.local != server.socket.local {
            free_name(&client.socket.local.0, client.socket.kind)?;
            bind(&one, &client.socket.local.0)?;
            if let Some(bound) = &client.bound
                && let Some(path) = path_in(&client.socket.local.0)
                && bound.now.is_none()
            {
                std::fs::remove_file(path)?;
            }
        }
        connect(&one, name)?;
        let two = accept(&listener)?;
        Ok((one, two))
    })();
    if let Some(path) = path {
        std::fs::remove_file(path)?;
    }
    made
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
