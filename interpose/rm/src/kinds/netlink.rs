//! Netlink sockets that only ask and listen: routes, kernel events, socket tables.

use super::kernel::Bytes;
use super::open::{Dumping, Each, Making, Open};
use super::sockets::{self, Socket, bind};
use super::sockopts;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};

const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// `NETLINK_ROUTE`, `SOCK_DIAG`, `SELINUX`, `AUDIT`, `KOBJECT_UEVENT`, `GENERIC`: the kernel keeps nothing for the asker.
const KEEPS_NOTHING: [i32; 6] = [0, 4, 7, 9, 15, 16];

/// A netlink socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetlinkState {
    socket: Socket,
    /// Multicast groups, a bit each.
    groups: Bytes,
    /// Messages that wait.
    waiting: usize,
}

impl NetlinkState {
    pub(crate) fn describe(open: &Open, _: &mut Dumping) -> RmResult<Self> {
        let socket = Socket::describe(open)?;
        if !KEEPS_NOTHING.contains(&socket.protocol) {
            return Err(open.unsupported(format!("netlink protocol {}", socket.protocol)));
        }
        let groups = sockopts::get(open, libc::SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS).unwrap_or_default();
        Ok(Self { socket, groups: Bytes(groups), waiting: sockets::waiting(open) })
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
        if state.waiting > 0 {
            making.remark(*index, "messages of the kernel are lost");
        }
        state.socket.settle(*index, fd, making)?;
    }
    Ok(())
}
