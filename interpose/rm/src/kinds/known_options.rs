//! Options of sockets that were read at an earlier epoch: to ask for all of one socket takes some seventy calls.
//!
//! They are as they were while no process of the application has set one (`counted.rs`); each is read again now and then, since raw
//! system calls outside libc count nothing.

use super::counted::{Counts, counted};
use super::packet_filter::PacketFilter;
use super::sockopts::{self, Options};
use crate::manager::{DumpCx, RmResult};
use std::collections::HashMap;
use std::os::fd::AsRawFd;

const SO_COOKIE: i32 = 57;
/// Epochs after which those of a socket are read again.
const AGE_MAX: u64 = 32;

type Read = (Options, Option<PacketFilter>);

/// By the number that the kernel gives a socket once and never again.
#[derive(Default)]
pub(crate) struct KnownOptions {
    counts: Counts,
    epochs: u64,
    before: HashMap<u64, Read>,
    now: HashMap<u64, Read>,
}

impl KnownOptions {
    /// An epoch begins; the application is parked.
    pub(crate) fn begin(&mut self, cx: &DumpCx) {
        let counts = counted(cx, |header| &header.options_set);
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
