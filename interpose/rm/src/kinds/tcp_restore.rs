//! TCP at the restore.
//!
//! Connections first, through listeners of our own that are gone before the application's are there: an
//! outsider never meets a half-made application. Every address is bound with `SO_REUSEADDR`, since
//! connections of the dead instance may linger; the option becomes the application's again afterwards.

use super::internet::Endpoint;
use super::open::{Each, Making};
use super::sockets::{self, Socket, accept, bind, connect, connect_untold, listen, send_all, shutdown};
use super::sockopts::{SO_BUF_LOCK, SO_SNDBUFFORCE, get_int, set_int};
use super::tcp::{Connection, Role, TcpState};
use super::tcp_pairs::{End, check_whole, pairs, waits_at};
use super::terminals::lead_outside;
use super::time_wait::end_waits;
use crate::manager::{Context, RmResult};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

const IP_LOCAL_PORT_RANGE: i32 = 51;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IPV6_FREEBIND: i32 = 78;
/// So much fits into a new connection.
const SMALL: usize = 16 << 10;
/// How long an address may be busy with what the dead instance left.
const BUSY: Duration = Duration::from_millis(2500);

/// Makes all TCP sockets again.
pub(crate) fn recreate(all: &Each<TcpState>, making: &mut Making) -> RmResult<()> {
    let mut done: BTreeSet<u32> = BTreeSet::new();
    let mut connected = Vec::new();
    let mut listeners = BTreeMap::new();
    let mut addresses: BTreeMap<&[u8], usize> = BTreeMap::new();
    for (_, state) in all.iter().filter(|(_, state)| !matches!(state.role, Role::Connected(_))) {
        *addresses.entry(&state.socket.local.0).or_default() += 1;
    }
    for (client, server) in pairs(all) {
        let made = connected_pair(client, server, &mut listeners).or_else(|cause| {
            if cause.kind() != io::ErrorKind::AddrInUse {
                return Err(cause);
            }
            let made = pair_elsewhere(client, server)?;
            let [from, to] = [client, server].map(|end| named(&end.1.socket.local.0));
            let what = format!(
                "the connection within the application, {from} to {to}, has other ports: its own are in use"
            );
            making.remark(client.0, what);
            Ok(made)
        });
        match made {
            Ok((one, other)) => {
                connected.extend([(client.0, &client.1.socket, one), (server.0, &server.1.socket, other)]);
                done.extend([client.0, server.0]);
            }
            Err(why) => {
                making.remark(client.0, format!("the connection within the application is reset: {why}"))
            }
        }
    }
    drop(listeners);
    let listening = || all.iter().filter(|(_, state)| matches!(state.role, Role::Listening { .. }));
    let waits = |state: &TcpState| {
        let sent_nothing = matches!(&state.role, Role::Connected(c) if c.sent + c.unsent == 0);
        sent_nothing && listening().any(|(_, listener)| waits_at(state, listener, all))
    };
    for (index, state) in all {
        match &state.role {
            Role::Connected(_) if done.contains(index) || waits(state) => {}
            Role::Connected(_) if making.is_stdio(*index) => lead_outside(*index, making)?,
            Role::Connected(connection) => {
                let fd = lost(&state.socket, connection).on("making", "a connection that was lost")?;
                state.socket.settle(*index, fd, making)?;
                making.remark(*index, "a connection to the outside is reset");
            }
            Role::Idle => {
                let fd = state.socket.make()?;
                if Endpoint::parse(&state.socket.local.0).is_some_and(|local| local.port != 0) {
                    bind_again(*index, &state.socket, &fd, making)?;
                }
                state.socket.settle(*index, fd, making)?;
            }
            Role::Listening { backlog, .. } => {
                let fd = state.socket.make()?;
                // Of several at one address each may have left the option that all of them needed.
                if addresses.get(&state.socket.local.0[..]).is_some_and(|count| *count > 1) {
                    set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
                        .on("preparing descriptor", making.common(*index).number)?;
                }
                bind_again(*index, &state.socket, &fd, making)?;
                listen(&fd, *backlog).on("listening for descriptor", making.common(*index).number)?;
                connected.push((*index, &state.socket, fd));
            }
        }
    }
    // Not before: of a connection without `SO_REUSEADDR` nobody could bind the port any more, not even who listens there.
    for (index, socket, fd) in connected {
        socket.settle(index, fd, making)?;
    }
    // Those who wait to be accepted, when the listeners are there.
    for (index, state) in all.iter().filter(|(index, state)| !done.contains(index) && waits(state)) {
        let fd = wait_to_be_accepted(*index, state, making);
        let fd = fd.on("connecting descriptor", making.common(*index).number)?;
        state.socket.settle(*index, fd, making)?;
    }
    Ok(())
}

/// A client that connected and was not accepted: it does so again, from another port if its own is in use.
fn wait_to_be_accepted(index: u32, state: &TcpState, making: &mut Making) -> io::Result<OwnedFd> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let local = Endpoint::parse(&state.socket.local.0).ok_or_else(invalid)?;
    let to = &state.socket.peer.as_ref().ok_or_else(invalid)?.0;
    patient(local.port, || connect_from(&state.socket, local, to)).or_else(|_| {
        let fd = fresh(&state.socket)?;
        connect(&fd, to)?;
        making.remark(index, "the connection within the application has another port: its own is in use");
        Ok(fd)
    })
}

/// A connection between the same addresses by whatever ports are free.
fn pair_elsewhere(
    (_, client, from_server): End,
    (_, server, from_client): End,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let address = Endpoint::parse(&server.socket.local.0).ok_or(io::ErrorKind::InvalidData)?;
    let listener = fresh(&server.socket)?;
    bind(&listener, &Endpoint { port: 0, ..address }.raw(server.socket.domain))?;
    listen(&listener, 1)?;
    let one = fresh(&client.socket)?;
    connect(&one, &Endpoint { port: port_of(&listener)?, ..address }.raw(client.socket.domain))?;
    let local = Endpoint::parse(&sockets::local_name(&one)?.0).ok_or(io::ErrorKind::InvalidData)?;
    let other = accepted_from(&listener, local)?;
    refill((one, from_server), (other, from_client))
}

fn port_in(address: &[u8]) -> u16 {
    Endpoint::parse(address).map_or(0, |at| at.port)
}

fn named(address: &[u8]) -> String {
    Endpoint::parse(address).map_or_else(|| "?".into(), |at| format!("{}:{}", at.ip, at.port))
}

fn port_of(listener: &OwnedFd) -> io::Result<u16> {
    let name = sockets::local_name(listener)?;
    Endpoint::parse(&name.0).map(|at| at.port).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Accepts our own connection: anybody may connect to a listener.
fn accepted_from(listener: &OwnedFd, local: Endpoint) -> io::Result<OwnedFd> {
    loop {
        if sockets::poll(listener, libc::POLLIN, 2000) == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let other = accept(listener)?;
        if sockets::peer_name(&other).ok().and_then(|name| Endpoint::parse(&name.0)) == Some(local) {
            return Ok(other);
        }
    }
}

fn connected_pair(
    (_, client, from_server): End,
    (_, server, from_client): End,
    listeners: &mut BTreeMap<Vec<u8>, OwnedFd>,
) -> io::Result<(OwnedFd, OwnedFd)> {
    check_whole(from_server, from_client)?;
    let address = &server.socket.local.0;
    let local = Endpoint::parse(&client.socket.local.0).ok_or(io::ErrorKind::InvalidData)?;
    let remote = client.socket.peer.as_ref().ok_or(io::ErrorKind::InvalidData)?;
    let one = patient(local.port, || {
        if !listeners.contains_key(address) {
            // What keeps the server's port may be another connection's, of which that end closed first.
            let listener = listener_at(&server.socket).inspect_err(|_| end_waits(port_in(address)))?;
            listeners.insert(address.clone(), listener);
        }
        // What lingers between the two is ended from the server's address, which must be free for that.
        connect_from(&client.socket, local, &remote.0).inspect_err(|_| drop(listeners.remove(address)))
    })?;
    let listener = listeners.get(address).ok_or(io::ErrorKind::NotFound)?;
    let other = accepted_from(listener, local)?;
    refill((one, from_server), (other, from_client))
}

/// A listener of our own at the server's address.
fn listener_at(server: &Socket) -> io::Result<OwnedFd> {
    let fd = fresh(server)?;
    set_int(&fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0)?;
    bind(&fd, &server.local.0)?;
    listen(&fd, 64)?;
    Ok(fd)
}

/// Has a new connection take so much: buffers of old ones have grown. The kernel goes on from there.
fn make_room(fd: &OwnedFd, bytes: usize) -> io::Result<()> {
    if bytes < SMALL {
        return Ok(());
    }
    let locks = get_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK);
    let room = i32::try_from(bytes.saturating_mul(2)).unwrap_or(i32::MAX);
    if set_int(fd, libc::SOL_SOCKET, SO_SNDBUFFORCE, room).is_err() {
        set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, room)?;
    }
    // What the application had set is set again at the end.
    locks.map_or(Ok(()), |locks| set_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK, locks))
}

/// Gives both ends what they had received, or was on its way to them, and the end of what had ended.
fn refill(
    (one, from_server): (OwnedFd, &Connection),
    (other, from_client): (OwnedFd, &Connection),
) -> io::Result<(OwnedFd, OwnedFd)> {
    for (from, to, sender) in [(&other, from_server, from_client), (&one, from_client, from_server)] {
        // A tail must not wait for the acknowledgement of what is before it.
        set_int(from, libc::IPPROTO_TCP, libc::TCP_CORK, 0)?;
        set_int(from, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        let under_way = sender.under_way.as_ref().map_or(&[][..], |bytes| &bytes.0);
        make_room(from, to.queued.0.len() + under_way.len())?;
        send_all(from, &to.queued.0)?;
        send_all(from, under_way)?;
    }
    for (fd, connection) in [(&one, from_server), (&other, from_client)] {
        if connection.ended_here {
            shutdown(fd, libc::SHUT_WR)?;
        }
    }
    Ok((one, other))
}

/// A socket of the same family and options that may bind a lingering address.
fn fresh(like: &Socket) -> io::Result<OwnedFd> {
    let fd = sockets::socket(like.domain, libc::SOCK_STREAM, 0)?;
    let _ = like.options.apply(&fd);
    set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    Ok(fd)
}

/// Connects to `remote` with exactly this own address.
///
/// A range of one port leaves the choice to `connect`, which may take a port whose other connections
/// linger; `bind` is the way where the kernel has no ranges, or where the port is outside of the system's.
fn connect_from(socket: &Socket, local: Endpoint, remote: &[u8]) -> io::Result<OwnedFd> {
    let ranged = || {
        let fd = fresh(socket)?;
        choose_port(&fd, local, socket.domain)?;
        connect_untold(&fd, remote)?;
        set_int(&fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0)?;
        let got = Endpoint::parse(&sockets::local_name(&fd)?.0);
        if got == Some(local) { Ok(fd) } else { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) }
    };
    ranged().or_else(|_| {
        let fd = fresh(socket)?;
        bind(&fd, &local.raw(socket.domain))?;
        // What lingers between the two is no address that does not exist.
        connect_untold(&fd, remote).map_err(|cause| {
            let busy = cause.kind() == io::ErrorKind::AddrNotAvailable;
            if busy { io::Error::from_raw_os_error(libc::EADDRINUSE) } else { cause }
        })?;
        Ok(fd)
    })
}

/// Has the next `connect` take exactly this own address.
pub(crate) fn choose_port(fd: &OwnedFd, local: Endpoint, domain: i32) -> io::Result<()> {
    let range = i32::from(local.port) | i32::from(local.port) << 16;
    set_int(fd, libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
    set_int(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range)?;
    bind(fd, &Endpoint { port: 0, ..local }.raw(domain))
}

/// Tries for a while as long as an address with this port is busy.
fn patient<T>(port: u16, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + BUSY;
    let mut pause = Duration::ZERO;
    loop {
        match attempt() {
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                end_waits(port);
                sleep(pause);
                pause = Duration::from_millis(20);
            }
            done => return done,
        }
    }
}

/// Binds to the address of the cut; where this node does not have it (yet), all the same.
pub(crate) fn bind_again(index: u32, socket: &Socket, fd: &OwnedFd, making: &mut Making) -> RmResult<()> {
    let address = &socket.local.0;
    let named = named(address);
    if socket.kind == libc::SOCK_STREAM {
        set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).on("preparing socket for", &named)?;
    }
    let bound = patient(port_in(address), || bind(fd, address)).or_else(|cause| {
        if cause.kind() != io::ErrorKind::AddrNotAvailable {
            return Err(cause);
        }
        let (level, name) = match socket.domain {
            libc::AF_INET6 => (libc::IPPROTO_IPV6, IPV6_FREEBIND),
            _ => (libc::IPPROTO_IP, libc::IP_FREEBIND),
        };
        set_int(fd, level, name, 1)?;
        bind(fd, address)?;
        making.remark(index, format!("the address {named} is not one of this node"));
        Ok(())
    });
    bound.on("binding to", &named)
}

/// A connection whose other side is gone: what was received can be read, then comes the end if the other
/// side had sent one, else `ECONNRESET`.
fn lost(socket: &Socket, connection: &Connection) -> io::Result<OwnedFd> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for place in Endpoint::loopback(socket.domain) {
        match lost_at(socket, connection, &place) {
            Ok(fd) => return Ok(fd),
            Err(cause) => last = cause,
        }
    }
    // No loopback at all: a socket that was never connected reports a hang-up, too.
    sockets::socket(socket.domain, libc::SOCK_STREAM, 0).map_err(|_| last)
}

fn lost_at(socket: &Socket, connection: &Connection, place: &Endpoint) -> io::Result<OwnedFd> {
    let listener = sockets::socket(socket.domain, libc::SOCK_STREAM, 0)?;
    bind(&listener, &place.raw(socket.domain))?;
    listen(&listener, 1)?;
    let fd = sockets::socket(socket.domain, libc::SOCK_STREAM, 0)?;
    connect(&fd, &sockets::local_name(&listener)?.0)?;
    let other = accept(&listener)?;
    set_int(&other, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    send_all(&other, &connection.queued.0)?;
    if connection.ended_there && !connection.failed {
        drop(other);
        if connection.ended_here {
            shutdown(&fd, libc::SHUT_WR)?;
        }
        return Ok(fd);
    }
    super::sockopts::set(&other, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0])?;
    drop(other);
    // On loopback the reset is there at once; on a busy machine nearly.
    sockets::poll(&fd, 0, 200);
    Ok(fd)
}
