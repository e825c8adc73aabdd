//! Options of sockets that were read at an earlier epoch: to ask for all of one socket takes some seventy calls.
//!
//! They are as they were while no process of the application has set one (`counted.rs`); each is read again now and then, since raw
//! system calls outside libc count nothing.

use super::counted::Counts;
use super::packet_filter::PacketFilter;
use super::sockopts::{self, Options};
use crate::manager::RmResult;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

const SO_COOKIE: i32 = 57;
/// Epochs after which those of a socket are read again.
const AGE_MAX: u64 = 32;

/// Shared with the epochs that have it: to copy some fifty values would take longer than all calls for a socket.
type Read = (Arc<Options>, Option<PacketFilter>);

/// By the number that the kernel gives a socket once and never again.
#[derive(Default)]
pub(crate) struct KnownOptions {
    counts: Counts,
    epochs: u64,
    before: HashMap<u64, Read>,
    now: HashMap<u64, Read>,
}

impl KnownOptions {
    /// An epoch begins, in which processes have counted so many calls that set options.
    pub(crate) fn begin(&mut self, counts: Counts) {
        self.epochs += 1;
        self.before = std::mem::take(&mut self.now);
        if counts != self.counts {
            self.before.clear();
        }
        self.counts = counts;
    }

    /// Those of a socket; `read` reads them.
    pub(crate) fn of(&mut self, fd: &impl AsRawFd, read: impl FnOnce() -> RmResult<Read>) -> RmResult<Read> {
        // Linux 4.12.
        let cookie = sockopts::get(fd, libc::SOL_SOCKET, SO_COOKIE).ok();
        let Some(cookie) = cookie.and_then(|raw| Some(u64::from_ne_bytes(raw.try_into().ok()?))) else {
            return read();
        };
        let is_young = cookie % AGE_MAX != self.epochs % AGE_MAX;
        let found = match self.before.remove(&cookie).filter(|_| is_young) {
            Some(known) => known,
            None => read()?,
        };
        if !found.0.move_by_themselves() {
            self.now.insert(cookie, found.clone());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::UdpSocket;

    /// Whether the options of a socket were read.
    fn reads(known: &mut KnownOptions, socket: &UdpSocket) -> bool {
        let mut is_read = false;
        let read = || {
            is_read = true;
            Ok((Arc::default(), None))
        };
        known.of(socket, read).unwrap();
        is_read
    }

    // Goal: options are read again when somebody has set one, when the socket is a new one, and now and then. Method: epochs with and
    // without calls.
    #[test]
    fn they_are_read_again_when_they_may_be_others() {
        let (socket, other) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut known = KnownOptions::default();
        let mut epoch = |calls: u32, socket: &UdpSocket| {
            known.begin(vec![(1, 0, calls)]);
            reads(&mut known, socket)
        };
        assert!(epoch(0, &socket), "nothing is known at first");
        assert!(epoch(1, &socket), "one was set");
        let read = (0..2 * AGE_MAX).filter(|_| epoch(1, &socket)).count();
        assert_eq!(read, 2, "once in {AGE_MAX} epochs");
        assert!(epoch(1, &other));
        assert!(epoch(1, &socket), "an epoch did not have it");
    }
}
