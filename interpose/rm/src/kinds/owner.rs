//! Who gets the signal of a descriptor (`F_SETOWN_EX`, `F_SETSIG`, `O_ASYNC`).

use super::kernel::{self, checked};
use crate::barrier::inner_tid;
use crate::manager::{Context, RmResult};
use crate::remote::Remote;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::os::fd::AsRawFd;

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: u64 = 15;
const F_GETOWN_EX: i32 = 16;

/// Owner as the application sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// `F_OWNER_TID`, `F_OWNER_PID`, `F_OWNER_PGRP`.
    kind: i32,
    /// Its id in the application's namespace.
    id: i32,
    /// Signal, 0 for `SIGIO`.
    signal: i32,
    /// Whether signals are on.
    on: bool,
}

impl Owner {
    /// Owner of a description; `None` if there never was one.
    pub(crate) fn of(fd: &impl AsRawFd, flags: i32) -> RmResult<Option<Self>> {
        if flags & libc::O_PATH != 0 {
            return Ok(None);
        }
        let mut owner = [0i32; 2];
        // SAFETY: room for `struct f_owner_ex`.
        let ret = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) };
        checked(ret).on("reading the owner of", fd.as_raw_fd())?;
        let signal = kernel::fcntl(fd, F_GETSIG, 0).on("reading the signal of", fd.as_raw_fd())?;
        if owner[1] == 0 && signal == 0 && flags & libc::O_ASYNC == 0 {
            return Ok(None);
        }
        // The kernel translates ids for the reader; the application may live in a namespace of its own.
        let id = if owner[1] == 0 { 0 } else { inner_tid(owner[1], owner[1]) };
        Ok(Some(Self { kind: owner[0], id, signal, on: flags & libc::O_ASYNC != 0 }))
    }

    /// Sets it from inside the clone, where ids mean what they meant.
    pub(crate) fn set(&self, remote: &Remote, number: i32) -> RmResult<()> {
        let fd = number as u64;
        let at = remote.page.put(0, kernel::bytes_of(&[self.kind, self.id]));
        if self.id != 0 {
            remote
                .call(sysno::fcntl, &[fd, F_SETOWN_EX, at])
                .on("setting the owner of descriptor", number)?;
        }
        let set = |command: i32, value: u64| remote.call(sysno::fcntl, &[fd, command as u64, value]);
        if self.signal != 0 {
            set(F_SETSIG, self.signal as u64).on("setting the signal of descriptor", number)?;
        }
        if self.on {
            let flags = set(libc::F_GETFL, 0).on("reading flags of descriptor", number)?;
            set(libc::F_SETFL, flags | libc::O_ASYNC as u64).on("setting O_ASYNC of descriptor", number)?;
        }
        Ok(())
    }
}
