//! Event counters.

use super::kernel::{owned, write_all};
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;

/// An eventfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventState {
    count: u64,
    semaphore: bool,
}

impl EventState {
    pub(crate) fn describe(open: &Open, _: &mut Dumping) -> RmResult<Self> {
        let count = open.info.number("eventfd-count:", 16);
        let count = count.ok_or_else(|| open.unsupported("the kernel does not show its count"))?;
        let semaphore = match open.info.number("eventfd-semaphore:", 10) {
            Some(shown) => shown == 1,
            // Before Linux 6.5.
            None => is_semaphore(&open.fd, count).on("looking at", "event counter")?,
        };
        Ok(Self { count, semaphore })
    }
}

/// Whether reads take one of the counter, by one that is made up for. It may be added to meanwhile, by requests of asynchronous I/O.
fn is_semaphore(fd: &OwnedFd, count: u64) -> io::Result<bool> {
    let lent = 2u64.saturating_sub(count);
    if lent > 0 {
        add(fd, lent)?;
    }
    // At least two are there, of which a semaphore gives one.
    let given = take(fd)?;
    let is_semaphore = given == 1;
    match (is_semaphore, lent) {
        (true, 0) => add(fd, 1)?,
        (true, 1) => {}
        (true, _) => drop(take(fd)?),
        (false, _) if given > lent => add(fd, given - lent)?,
        (false, _) => {}
    }
    Ok(is_semaphore)
}

fn take(fd: &OwnedFd) -> io::Result<u64> {
    let mut value = [0; 8];
    nix::unistd::read(fd, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

fn add(fd: &OwnedFd, value: u64) -> io::Result<()> {
    write_all(fd, &value.to_ne_bytes())
}

/// Makes all counters again.
pub(crate) fn recreate(all: &Each<EventState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let flags = if state.semaphore { libc::EFD_SEMAPHORE } else { 0 } | libc::EFD_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::eventfd(0, flags) }).on("making", "event counter")?;
        if state.count > 0 {
            add(&fd, state.count).on("setting", "event counter")?;
        }
        making.put(*index, fd)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: a look tells semaphores from other counters, and changes neither. Method: both, with small and large counts; then what
    // reads give.
    #[test]
    fn a_look_leaves_a_counter_as_it_is() {
        for semaphore in [false, true] {
            for count in [0, 1, 2, 3, 1000, u64::MAX - 1] {
                let flags = if semaphore { libc::EFD_SEMAPHORE } else { 0 } | libc::EFD_NONBLOCK;
                // SAFETY: no memory is passed.
                let fd = owned(unsafe { libc::eventfd(0, flags) }).unwrap();
                if count > 0 {
                    add(&fd, count).unwrap();
                }
                assert_eq!(is_semaphore(&fd, count).unwrap(), semaphore, "of {count}");
                let mut left = count;
                for _ in 0..3 {
                    let given = if semaphore { left.min(1) } else { left };
                    assert_eq!(
                        take(&fd).ok(),
                        (given > 0).then_some(given),
                        "of {count}, semaphore: {semaphore}"
                    );
                    left -= given;
                }
            }
        }
    }
}
