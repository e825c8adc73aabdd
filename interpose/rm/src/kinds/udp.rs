//! UDP: bound and connected sockets; datagrams that the application sent to itself are queued again. Raw sockets, too.

use super::internet::Endpoint;
use super::multicast::{self, Membership};
use super::open::{Dumping, Each, Making, Open};
use super::sockets::{self, Message, Queue, Socket, connect, send};
use super::tcp_restore::bind_again;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};

/// A UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UdpState {
    socket: Socket,
    queued: Vec<Message>,
    groups: Vec<Membership>,
}

impl UdpState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let socket = Socket::describe(open, dumping.options)?;
        // Behind an error (nobody had the port that it sent to) datagrams are lost, as any may be.
        let queue = match sockets::has_error(open) {
            true => Queue::default(),
            false => sockets::peek(open).on("peeking at", open.named())?,
        };
        let groups = joined(open, &socket, dumping)?;
        Ok(Self { socket, queued: queue.messages, groups })
    }

    /// One of a protocol without ports, or of echo requests: what waits in it is of the network, and may be lost.
    pub(crate) fn describe_raw(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let socket = Socket::describe(open, dumping.options)?;
        let groups = joined(open, &socket, dumping)?;
        Ok(Self { socket, queued: Vec::new(), groups })
    }

    fn local(&self) -> Option<Endpoint> {
        Endpoint::parse(&self.socket.local.0).filter(|local| local.port != 0)
    }
}

/// Groups that it has joined, of those of this host.
fn joined(open: &Open, socket: &Socket, dumping: &mut Dumping) -> RmResult<Vec<Membership>> {
    let of_host = dumping.groups.get_or_insert_with(multicast::of_host);
    multicast::joined(open, socket.domain, of_host).on("reading the groups of", open.named())
}

/// Makes all UDP sockets again.
pub(crate) fn recreate(all: &Each<UdpState>, making: &mut Making) -> RmResult<()> {
    let mut made = Vec::new();
    for (index, state) in all {
        let fd = state.socket.make()?;
        if state.local().is_some() {
            bind_again(*index, &state.socket, &fd, making)?;
        }
        made.push((*index, state, fd));
    }
    // Before the sockets are connected, so that each can still send to and receive from anywhere.
    for (index, state, _) in &made {
        let mut lost = 0;
        for message in &state.queued {
            lost += usize::from(resend(state, message, &made).is_none());
        }
        if lost > 0 {
            making.remark(*index, format!("{lost} datagrams from outside are lost"));
        }
    }
    for (index, state, fd) in made {
        if let Some(peer) = &state.socket.peer
            && let Err(cause) = connect(&fd, &peer.0)
        {
            making.remark(index, format!("not connected to its peer: {cause}"));
        }
        for group in &state.groups {
            if let Err(cause) = group.join(&fd) {
                making.remark(index, format!("{}: {cause}", group.named()));
            }
        }
        state.socket.settle(index, fd, making)?;
    }
    Ok(())
}

/// Sends a datagram again from the socket that it came from; `None` if that was none of ours.
fn resend(to: &UdpState, message: &Message, made: &[(u32, &UdpState, std::os::fd::OwnedFd)]) -> Option<()> {
    let from = Endpoint::parse(&message.from.0)?;
    let receiver = to.local()?;
    let (_, _, sender) = made.iter().find(|(_, state, _)| {
        state.local().is_some_and(|local| {
            local.port == from.port && (local.ip == from.ip || local.ip.is_unspecified())
        })
    })?;
    // A receiver on all addresses is reached on the sender's.
    let ip = if receiver.ip.is_unspecified() { from.ip } else { receiver.ip };
    let domain = made.iter().find(|(_, _, fd)| std::ptr::eq(fd, sender))?.1.socket.domain;
    send(sender, &message.data.0, &Endpoint { ip, ..receiver }.raw(domain)).ok().map(|_| ())
}
