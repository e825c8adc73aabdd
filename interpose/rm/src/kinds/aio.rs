//! Contexts of asynchronous I/O (`io_setup`): not made again yet.
//!
//! A context is known by the address of its ring, and how many requests of it are in flight is told by nobody: what was
//! submitted is counted in the kernel alone. One that were lost with a restore would be waited for in vain.

use super::zones::Zone;
use crate::manager::{RmError, RmResult};

/// How the kernel calls the ring of a context.
const RING: &[u8] = b"/[aio]";

/// Refuses a process that has one.
pub(crate) fn check(pid: i32, zones: &[Zone]) -> RmResult<()> {
    match zones.iter().find(|zone| zone.path == RING && zone.deleted) {
        None => Ok(()),
        Some(ring) => Err(RmError::Unsupported(format!(
            "process {pid} has a context of asynchronous I/O at {:#x} (io_setup)",
            ring.start
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::zones;
    use super::*;

    // Goal: a ring is known, and nothing else is taken for one. Method: lines as Linux 6.18 prints them.
    #[test]
    fn rings() {
        let ring =
            b"7f385fa60000-7f385fa61000 rw-s 00000000 00:13 9240977                    /[aio] (deleted)\n";
        let other =
            b"7f385fa60000-7f385fa61000 rw-s 00000000 00:13 9240977                    /dev/shm/[aio]\n";
        assert!(check(1, &zones::parse(ring).unwrap()).is_err());
        assert!(check(1, &zones::parse(other).unwrap()).is_ok());
    }
}
