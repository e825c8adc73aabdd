//! Connections of a dead instance that linger in `TIME_WAIT`.
//!
//! For a minute they keep their port from being bound again, unless the application had set `SO_REUSEADDR` itself. Of a
//! connection between two addresses of this host the other end can be played: a new `connect` from there is answered with an
//! acknowledgement that belongs to nothing, which the kernel answers with a reset, and that ends the wait (RFC 1337 calls it
//! assassination, and it is what restoring needs).

use super::internet::Endpoint;
use super::sockets::{self, bind, connect, local_name, socket};
use super::sockopts::set_int;
use super::tcp_restore::choose_port;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

/// `TCP_TIME_WAIT` as `/proc/net/tcp` shows it.
const TIME_WAIT: &str = "06";
/// A busy server leaves thousands; so many descriptors may be had.
const AT_ONCE: usize = 64;

/// Ends the waits of connections within this host that have this port at one of their ends.
pub(crate) fn end_waits(port: u16) {
    for (table, domain) in [("/proc/net/tcp", libc::AF_INET), ("/proc/net/tcp6", libc::AF_INET6)] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        let has_port = |(local, remote): &(Endpoint, Endpoint)| local.port == port || remote.port == port;
        let found: Vec<_> = text.lines().filter_map(waiting).filter(has_port).collect();
        for some in found.chunks(AT_ONCE) {
            // One that cannot be had is no worse than before.
            let knocks: Vec<_> =
                some.iter().filter_map(|(local, remote)| knock(domain, remote, local).ok()).collect();
            // On one host all of it has happened by now; on a busy one nearly. Who was heard waits for more.
            if let Some(last) = knocks.last() {
                sockets::poll(last, libc::POLLOUT, 1);
            }
        }
    }
}

fn knock(domain: i32, from: &Endpoint, to: &Endpoint) -> io::Result<OwnedFd> {
    let chosen = || {
        let fd = socket(domain, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        choose_port(&fd, *from, domain)?;
        begin(&fd, &to.raw(domain))?;
        // Outside of the system's range of ports, another one was taken.
        let got = Endpoint::parse(&local_name(&fd)?.0);
        if got == Some(*from) { Ok(fd) } else { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) }
    };
    let bound = |_| {
        let fd = socket(domain, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        bind(&fd, &from.raw(domain))?;
        begin(&fd, &to.raw(domain)).map(|()| fd)
    };
    chosen().or_else(bound)
}

fn begin(fd: &OwnedFd, to: &[u8]) -> io::Result<()> {
    match connect(fd, to) {
        Err(cause) if cause.raw_os_error() != Some(libc::EINPROGRESS) => Err(cause),
        _ => Ok(()),
    }
}

/// Both addresses of a line about a connection in `TIME_WAIT`.
fn waiting(line: &str) -> Option<(Endpoint, Endpoint)> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, remote) = (endpoint(fields.next()?)?, endpoint(fields.next()?)?);
    (fields.next()? == TIME_WAIT).then_some((local, remote))
}

/// Words of the address in the machine's order, a colon, the port, all in hexadecimal digits.
fn endpoint(text: &str) -> Option<Endpoint> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for (i, part) in bytes.chunks_mut(4).enumerate() {
                part.copy_from_slice(&word(i * 8)?.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(Endpoint { ip, port: u16::from_str_radix(port, 16).ok()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::sockets::{accept, listen};

    // Goal: an address is free again at once. Method: the accepted side closes first; binding fails before, succeeds after.
    #[test]
    fn a_wait_ends() {
        let listener = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let any = Endpoint { ip: Ipv4Addr::LOCALHOST.into(), port: 0 };
        bind(&listener, &any.raw(libc::AF_INET)).unwrap();
        listen(&listener, 4).unwrap();
        let name = local_name(&listener).unwrap().0;
        for _ in 0..3 {
            let client = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
            connect(&client, &name).unwrap();
            drop(accept(&listener).unwrap());
            drop(client);
        }
        drop(listener);
        let again = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(bind(&again, &name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        end_waits(Endpoint::parse(&name).unwrap().port);
        bind(&again, &name).unwrap();
    }

    // Goal: so it is where the other end's port is none that the system gives out. Method: the connecting side closes first.
    #[test]
    fn a_wait_with_a_low_port_ends() {
        let listener = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let low = |port| Endpoint { ip: Ipv4Addr::LOCALHOST.into(), port }.raw(libc::AF_INET);
        let name = (2000..9000).map(low).find(|name| bind(&listener, name).is_ok()).unwrap();
        listen(&listener, 4).unwrap();
        let client = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        connect(&client, &name).unwrap();
        let own = local_name(&client).unwrap().0;
        let accepted = accept(&listener).unwrap();
        drop((client, accepted, listener));
        let again = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(bind(&again, &own).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        end_waits(Endpoint::parse(&own).unwrap().port);
        bind(&again, &own).unwrap();
    }

    // Goal: the kernel's table is read. Method: lines as Linux prints them; another state is none.
    #[test]
    fn lines() {
        let line = " 286: 0100007F:DF95 0100007F:DE10 06 00000000:00000000 03:000015D8 00000000     0        0 0 3 0";
        let at = |port| Endpoint { ip: Ipv4Addr::LOCALHOST.into(), port };
        assert_eq!(waiting(line), Some((at(0xdf95), at(0xde10))));
        assert_eq!(waiting(&line.replace(" 06 ", " 01 ")), None);
        assert_eq!(endpoint("00000000000000000000000001000000:0016").unwrap().ip, Ipv6Addr::LOCALHOST);
        assert_eq!(waiting("  sl  local_address rem_address   st"), None);
    }
}
