//! Moments that pass by themselves, and that an epoch would have to cut through: what is on its way between two ends of a
//! connection and can be seen at neither. The epoch is then taken a moment later; where the moment does not pass, it is told.

use super::descriptors::State;
use super::internet::Endpoint;
use super::tcp::{Role, TcpState};
use super::tcp_pairs::{check_whole, pairs, waits_at};
use crate::manager::DumpCx;

/// Looks at what was captured.
pub(crate) fn look(state: &State, cx: &mut DumpCx) {
    let number = |index: u32| state.common[index as usize].number;
    for (client, server) in pairs(&state.tcp) {
        if check_whole(client.2, server.2).is_err() {
            let what = "bytes are on their way between the ends of a connection";
            cx.unsettled.push(format!("descriptor {}: {what}", number(client.0)));
        }
    }
    for (index, socket) in &state.tcp {
        let Role::Listening { waiting, .. } = &socket.role else { continue };
        let ours = state.tcp.iter().filter(|(_, client)| waits_at(client, socket, &state.tcp)).count();
        told(number(*index), *waiting as usize, ours, cx);
    }
    for (_, client) in &state.tcp {
        if let Role::Connected(connection) = &client.role
            && waits(client, state)
            && connection.sent + connection.unsent > 0
        {
            cx.unsettled.push("a connection that was not accepted has received something".into());
        }
    }
    for (index, listener) in state.unix.iter().filter(|(_, socket)| !socket.waiting.is_empty()) {
        let clients = || state.unix.iter().filter(|(_, client)| listener.waiting.contains(&client.inode));
        told(number(*index), listener.waiting.len(), clients().count(), cx);
        if clients().any(|(_, client)| client.outgoing) {
            cx.unsettled.push("a connection that was not accepted has received something".into());
        }
    }
}

fn waits(client: &TcpState, state: &State) -> bool {
    state.tcp.iter().any(|(_, socket)| waits_at(client, socket, &state.tcp))
}

fn told(number: i32, all: usize, ours: usize, cx: &mut DumpCx) {
    if all > ours {
        let what = format!("{} connections that were not accepted are lost in a restore", all - ours);
        cx.remarks.push(format!("descriptor {number}: {what}"));
    }
}

/// Whether an address is reached by connecting to `to`.
pub(crate) fn reaches(to: &Endpoint, at: &Endpoint) -> bool {
    at.port == to.port && (at.ip == to.ip || at.ip.is_unspecified())
}
