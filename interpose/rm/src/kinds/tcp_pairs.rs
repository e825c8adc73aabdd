//! Which TCP sockets of the application are the two ends of one connection, and which wait to be accepted.

use super::internet::Endpoint;
use super::moments::reaches;
use super::open::Each;
use super::tcp::{Connection, Role, TcpState};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

pub(crate) type End<'a> = (u32, &'a TcpState, &'a Connection);

fn own(state: &TcpState) -> Option<Endpoint> {
    Endpoint::parse(&state.socket.local.0)
}

fn peer(state: &TcpState) -> Option<Endpoint> {
    state.socket.peer.as_ref().and_then(|peer| Endpoint::parse(&peer.0))
}

/// Connections with both ends here: client and server side.
pub(crate) fn pairs(all: &Each<TcpState>) -> Vec<(End<'_>, End<'_>)> {
    let mut ends = BTreeMap::new();
    let mut ports = BTreeSet::new();
    for (index, state) in all {
        match (&state.role, own(state), peer(state)) {
            (Role::Listening { .. }, Some(local), _) => {
                ports.insert(local.port);
            }
            (Role::Connected(connection), Some(local), Some(peer)) if !connection.failed => {
                ends.insert((local, peer), (*index, state, connection));
            }
            _ => {}
        }
    }
    let mut pairs = Vec::new();
    for ((local, peer), end) in &ends {
        let Some(other) = ends.get(&(*peer, *local)) else { continue };
        // Who listens is the server; else the lower port. Each pair is met twice, from both sides.
        let serves = |port: u16| (!ports.contains(&port), port);
        if (serves(local.port), *local) > (serves(peer.port), *peer) {
            pairs.push((*end, *other));
        }
    }
    pairs
}

/// Whether `client` is connected to `listener`, which has not accepted it.
pub(crate) fn waits_at(client: &TcpState, listener: &TcpState, all: &Each<TcpState>) -> bool {
    let (Role::Connected(connection), Role::Listening { waiting: 1.., .. }) = (&client.role, &listener.role)
    else {
        return false;
    };
    let (Some(local), Some(to), Some(at)) = (own(client), peer(client), own(listener)) else { return false };
    let accepted = |other: &TcpState| own(other) == Some(to) && peer(other) == Some(local);
    !connection.failed
        && !connection.ended_there
        && reaches(&to, &at)
        && !all.iter().any(|(_, other)| accepted(other))
}

/// All that was sent was received, or is known.
///
/// # Errors
/// It was not.
pub(crate) fn check_whole(one: &Connection, other: &Connection) -> io::Result<()> {
    let crossed = |from: &Connection, to: &Connection| {
        // The end of a stream comes after all of it.
        let received =
            if from.ended_here { to.ended_there } else { from.unsent == 0 && from.sent == to.received };
        received || from.under_way.is_some()
    };
    if crossed(one, other) && crossed(other, one) {
        return Ok(());
    }
    Err(io::Error::other("bytes were on their way between its ends"))
}
