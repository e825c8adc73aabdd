//! A port of the loopback that stays this test's own, also while nobody listens there.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt, socket,
    sockopt,
};

/// Held by a socket that is bound and never listens: connections are refused, and the kernel gives the port to nobody else.
pub struct Port {
    _held: OwnedFd,
    address: SockaddrIn,
}

impl Port {
    pub fn new() -> Port {
        let held = bound(&SockaddrIn::new(127, 0, 0, 1, 0));
        let address = getsockname(held.as_raw_fd()).unwrap();
        Port { _held: held, address }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::V4(self.address.into())
    }

    pub fn listen(&self) -> TcpListener {
        let socket = bound(&self.address);
        listen(&socket, Backlog::MAXCONN).unwrap();
        socket.into()
    }
}

fn bound(address: &SockaddrIn) -> OwnedFd {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
    // Else the port could not be taken again while connections of the listener before linger.
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), address).unwrap();
    socket
}
