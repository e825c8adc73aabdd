//! Filters of what a socket receives (`SO_ATTACH_FILTER`).

use super::kernel::{Bytes, checked};
use super::sockopts;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;

const SO_LOCK_FILTER: i32 = 44;
const INSTRUCTION_BYTES: usize = 8;

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PacketFilter {
    /// `struct sock_filter`, one after the other.
    program: Bytes,
    /// Nobody may change it.
    locked: bool,
}

/// Asks for at most `room` instructions; how many there are.
fn ask(fd: &impl AsRawFd, program: &mut [u8], room: usize) -> io::Result<usize> {
    let mut count = room as libc::socklen_t;
    // SAFETY: this option counts instructions; there is room for so many.
    checked(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            program.as_mut_ptr().cast(),
            &raw mut count,
        )
    })?;
    Ok(count as usize)
}

impl PacketFilter {
    /// That of a socket, if it has one.
    ///
    /// # Errors
    /// `EACCES`: it is one of `bpf`, which nobody can read.
    pub(crate) fn of(fd: &impl AsRawFd) -> io::Result<Option<Self>> {
        let count = ask(fd, &mut [], 0)?;
        if count == 0 {
            return Ok(None);
        }
        let mut program = vec![0; count * INSTRUCTION_BYTES];
        ask(fd, &mut program, count)?;
        let locked = sockopts::get_int(fd, libc::SOL_SOCKET, SO_LOCK_FILTER)? != 0;
        Ok(Some(Self { program: Bytes(program), locked }))
    }

    /// Attaches it.
    pub(crate) fn attach(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let mut instructions: Vec<libc::sock_filter> = Vec::new();
        for raw in self.program.0.chunks_exact(INSTRUCTION_BYTES) {
            let k = u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]);
            let code = u16::from_ne_bytes([raw[0], raw[1]]);
            instructions.push(libc::sock_filter { code, jt: raw[2], jf: raw[3], k });
        }
        let program = libc::sock_fprog {
            len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
            filter: instructions.as_mut_ptr(),
        };
        // SAFETY: a structure of the stated size, whose instructions live until the call returns.
        checked(unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        })?;
        if self.locked {
            sockopts::set_int(fd, libc::SOL_SOCKET, SO_LOCK_FILTER, 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixDatagram;

    // Goal: a filter is read as it is, and another socket gets the same. Method: one that lets odd first bytes pass.
    #[test]
    fn round_trip() {
        let (one, _other) = UnixDatagram::pair().unwrap();
        assert_eq!(PacketFilter::of(&one).unwrap(), None);
        // ldb [0]; jset 1, 0, 1; ret -1; ret 0
        let program = [[0x30u16, 0, 0, 0], [0x45, 0x100, 1, 0], [6, 0, 0xffff, 0xffff], [6, 0, 0, 0]];
        let program: Vec<u8> = program.as_flattened().iter().flat_map(|part| part.to_ne_bytes()).collect();
        let filter = PacketFilter { program: Bytes(program), locked: true };
        filter.attach(&one).unwrap();
        assert_eq!(PacketFilter::of(&one).unwrap(), Some(filter));
    }
}
