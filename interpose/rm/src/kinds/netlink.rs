//! Netlink sockets that only ask and listen: routes, kernel events, socket tables.

use super::kernel::Bytes;
use super::open::{Dumping, Each, Making, Open};
use super::sockets::{self, Socket, bind};
use super::sockopts;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// Every protocol answers this one with an error.
const NO_SUCH_TYPE: u16 = 0x7fff;
/// `NETLINK_ROUTE`, `SOCK_DIAG`, `SELINUX`, `AUDIT`, `KOBJECT_UEVENT`, `GENERIC`: the kernel keeps nothing for the asker.
const KEEPS_NOTHING: [i32; 6] = [0, 4, 7, 9, 15, 16];

/// A netlink socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetlinkState {
    socket: Socket,
    /// Multicast groups, a bit each.
    groups: Bytes,
    /// The first message that waits.
    waiting: Bytes,
}

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// Length and numbers of a message: its type, its sequence, and the error that an acknowledgement tells.
fn parse(message: &[u8]) -> Option<(u16, [u8; 4], i32)> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let error = message.get(HEADER_BYTES..HEADER_BYTES + 4)?.try_into().ok()?;
    Some((kind, message.get(8..12)?.try_into().ok()?, i32::from_ne_bytes(error)))
}

/// The first message that waits, left where it is.
fn waiting(open: &Open) -> Vec<u8> {
    let mut buffer = vec![0u8; 8192];
    // SAFETY: a buffer of the stated size.
    let got = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(open.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
    };
    buffer.truncate(usize::try_from(got).unwrap_or(0));
    buffer
}

/// Has the kernel acknowledge again: it answers whatever asks it to.
fn acknowledge(fd: &OwnedFd, sequence: [u8; 4], failed: bool) -> io::Result<usize> {
    let kind = if failed { NO_SUCH_TYPE } else { libc::NLMSG_NOOP as u16 };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut request = (HEADER_BYTES as u32).to_ne_bytes().to_vec();
    request.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    request.extend(sequence);
    request.extend([0; 4]);
    sockets::send(fd, &request, &[])
}

impl NetlinkState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let socket = Socket::describe(open, dumping.options)?;
        if !KEEPS_NOTHING.contains(&socket.protocol) {
            return Err(open.unsupported(format!("netlink protocol {}", socket.protocol)));
        }
        let groups = sockopts::get(open, libc::SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS).unwrap_or_default();
        let there = sockets::poll(open, libc::POLLIN, 0);
        let waiting =
            if there & libc::POLLERR == 0 && there & libc::POLLIN != 0 { waiting(open) } else { Vec::new() };
        // Who asked waits for the rest, which the kernel would not send; a listener is used to losses.
        let listens = groups.iter().any(|byte| *byte != 0);
        if parse(&waiting).is_some_and(|(kind, ..)| kind != libc::NLMSG_ERROR as u16) && !listens {
            return Err(open.unsupported("an answer of the kernel that was not read yet"));
        }
        Ok(Self { socket, groups: Bytes(groups), waiting: Bytes(waiting) })
    }
}

/// Makes all netlink sockets again.
pub(crate) fn recreate(all: &Each<NetlinkState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let fd = state.socket.make()?;
        let mut local = state.socket.local.0.clone();
        let bound = local.get(4..8).is_some_and(|port| port != [0; 4]);
        if bound && bind(&fd, &local).is_err() {
            // Ports are unique in the network namespace; the kernel chooses another one.
            local[4..8].fill(0);
            bind(&fd, &local).on("binding", "a netlink socket")?;
            making.remark(*index, "the netlink socket has another port");
        }
        for (at, byte) in state.groups.0.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                let group = (at * 8 + bit + 1) as i32;
                if let Err(cause) = sockopts::set_int(&fd, libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group) {
                    making.remark(*index, format!("netlink group {group}: {cause}"));
                }
            }
        }
        let peer = state.socket.peer.as_ref().map_or(&[][..], |peer| &peer.0);
        if peer.get(4..12).is_some_and(|to| to != [0; 8])
            && let Err(cause) = sockets::connect(&fd, peer)
        {
            making.remark(*index, format!("the netlink socket is not connected: {cause}"));
        }
        match parse(&state.waiting.0) {
            Some((kind, sequence, error)) if kind == libc::NLMSG_ERROR as u16 => {
                acknowledge(&fd, sequence, error != 0).on("asking", "the kernel to acknowledge")?;
            }
            Some(_) => making.remark(*index, "messages of the kernel are lost"),
            None => {}
        }
        state.socket.settle(*index, fd, making)?;
    }
    Ok(())
}
