//! Unix connections with both ends in the application, made by the clone itself: each end remembers who made
//! the other (`SO_PEERCRED`).
//!
//! A connection that was accepted shares its name with the listener. Such a name in the file system or in
//! use by others is had by accepting again, from a listener that is gone afterwards; one that is its own
//! (given by the kernel, or by `bind` after `socketpair`) is simply bound.

use super::kernel::{Bytes, checked};
use super::sockets;
use super::unix_names::{Freed, free_name};
use super::unix_sockets::{UnixState, is_named, path_in};
use crate::remote::Remote;
use holo_abi::sysno;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Who makes sockets: the clone, or we (where there is no clone).
pub(crate) struct Hands<'a>(pub(crate) Option<&'a Remote>);

impl Hands<'_> {
    fn call(&self, nr: i64, args: [u64; 4]) -> io::Result<i32> {
        match self.0 {
            Some(clone) => clone.call(nr, &args).map(|ret| ret as i32),
            None => {
                // SAFETY: numbers, or addresses from `name` and `room` that live as long as their owner.
                checked(unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3]) })
                    .map(|ret| ret as i32)
            }
        }
    }

    /// Address of a name, where the maker sees it.
    fn name(&self, name: &[u8]) -> u64 {
        self.0.map_or(name.as_ptr() as u64, |clone| clone.page.put(0, name))
    }

    fn with_name(&self, nr: i64, fd: i32, name: &[u8]) -> io::Result<()> {
        self.call(nr, [fd as u64, self.name(name), name.len() as u64, 0]).map(|_| ())
    }

    fn socket(&self, kind: i32) -> io::Result<i32> {
        self.call(sysno::socket, [libc::AF_UNIX as u64, (kind | libc::SOCK_CLOEXEC) as u64, 0, 0])
    }

    /// The maker's descriptor becomes ours alone.
    fn take(&self, fd: i32) -> io::Result<OwnedFd> {
        match self.0 {
            Some(clone) => {
                let borrowed = clone.borrow_fd(fd);
                clone.call(sysno::close, &[fd as u64])?;
                borrowed
            }
            // SAFETY: made by `call` a moment ago, and nobody else's.
            None => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }

    /// A pair without names.
    pub(crate) fn pair(&self, kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
        let Some(clone) = self.0 else { return sockets::pair(kind) };
        let at = clone.page.scratch_address(0);
        self.call(sysno::socketpair, [libc::AF_UNIX as u64, (kind | libc::SOCK_CLOEXEC) as u64, 0, at])?;
        let raw = clone.page.take(0, 8);
        let end = |at: usize| i32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        Ok((self.take(end(0))?, self.take(end(4))?))
    }

    /// A pair whose names are their own.
    fn named_pair(&self, one: &UnixState, other: &UnixState) -> io::Result<(OwnedFd, OwnedFd)> {
        let ends = self.pair(one.socket.kind)?;
        for (fd, state) in [(&ends.0, one), (&ends.1, other)] {
            if is_named(&state.socket.local.0) {
                sockets::bind(fd, &state.socket.local.0)?;
            }
        }
        Ok(ends)
    }

    /// A client with this state's name, connected to `to`.
    pub(crate) fn client(&self, state: &UnixState, to: &[u8]) -> io::Result<OwnedFd> {
        let fd = self.socket(state.socket.kind)?;
        let connected = self.name_client(fd, state).and_then(|()| self.with_name(sysno::connect, fd, to));
        let fd = self.take(fd)?;
        connected.map(|()| fd)
    }

    /// Binds a client to its own name, if it has one.
    fn name_client(&self, fd: i32, client: &UnixState) -> io::Result<()> {
        let name = &client.socket.local.0;
        if !is_named(name) {
            return Ok(());
        }
        let gone = client.bound.as_ref().is_some_and(|bound| bound.now.is_none());
        let Some(path) = path_in(name).filter(|_| gone) else {
            free_name(name, client.socket.kind)?;
            return self.with_name(sysno::bind, fd, name);
        };
        if path.is_relative() {
            return Err(io::Error::other("its name is relative to a directory"));
        }
        let _freed = Freed::make(&path)?;
        self.with_name(sysno::bind, fd, name)?;
        std::fs::remove_file(path)
    }
}

/// A connection between these two, each made by its hands; `shared` tells of a name whether others have it, too.
pub(crate) fn connection(
    [one, other]: [&UnixState; 2],
    [of_one, of_other]: &[Hands; 2],
    shared: impl Fn(&Bytes) -> bool,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let own = |state: &UnixState| {
        let name = &state.socket.local;
        !is_named(&name.0) || path_in(&name.0).is_none() && !shared(name)
    };
    let pids = [of_one, of_other].map(|hands| hands.0.map(|remote| remote.pid));
    // Who makes both ends at once made them by `socketpair`, or it does not matter.
    let at_once = pids[0] == pids[1] || ![one, other].iter().any(|state| is_named(&state.socket.local.0));
    if own(one) && own(other) && at_once {
        return of_one.named_pair(one, other);
    }
    // The side whose name is not its own was accepted; of two names that are, either.
    let one_was_accepted = if own(one) && own(other) { is_named(&one.socket.local.0) } else { own(other) };
    if one_was_accepted {
        accepted((other, of_other), (one, of_one)).map(|(two, one)| (one, two))
    } else {
        accepted((one, of_one), (other, of_other))
    }
}

/// A connection made by accepting it from a listener with the server side's name: client, then server.
fn accepted(client: (&UnixState, &Hands), server: (&UnixState, &Hands)) -> io::Result<(OwnedFd, OwnedFd)> {
    let (state, hands) = server;
    let name = &state.socket.local.0;
    let path = path_in(name);
    if path.as_ref().is_some_and(|path| path.is_relative()) {
        return Err(io::Error::other("its name is relative to a directory"));
    }
    free_name(name, state.socket.kind)?;
    let _freed = path.as_ref().map(|path| Freed::make(path)).transpose()?;
    let listener = hands.socket(state.socket.kind)?;
    let made = hands.with_name(sysno::bind, listener, name).and_then(|()| {
        let made = connect_and_accept(listener, client, server);
        path.map_or(Ok(()), std::fs::remove_file)?;
        made
    });
    drop(hands.take(listener)?);
    made
}

fn connect_and_accept(
    listener: i32,
    (client, clients): (&UnixState, &Hands),
    (server, servers): (&UnixState, &Hands),
) -> io::Result<(OwnedFd, OwnedFd)> {
    servers.call(sysno::listen, [listener as u64, 1, 0, 0])?;
    let one = clients.socket(client.socket.kind)?;
    let connect = || {
        if client.socket.local != server.socket.local {
            clients.name_client(one, client)?;
        }
        clients.with_name(sysno::connect, one, &server.socket.local.0)?;
        servers.call(sysno::accept4, [listener as u64, 0, 0, libc::SOCK_CLOEXEC as u64])
    };
    match connect() {
        Ok(two) => Ok((clients.take(one)?, servers.take(two)?)),
        Err(cause) => {
            drop(clients.take(one)?);
            Err(cause)
        }
    }
}
