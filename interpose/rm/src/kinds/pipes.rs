//! Pipes: what is queued is copied with `tee`, which takes nothing out.

use super::kernel::{self, Bytes, checked, reopen};
use super::open::{Dumping, Each, Making, Open, reads, writes};
use super::sockets::poll;
use super::terminals::lead_outside;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const F_SETPIPE_SZ: i32 = 1031;
const F_GETPIPE_SZ: i32 = 1032;

/// An end of a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PipeState {
    /// Identity of the pipe: ends with the same one belong together.
    pub(crate) inode: u64,
    /// `F_GETPIPE_SZ`, bytes.
    pub(crate) capacity: i32,
    /// The other end was closed at the cut: this one leads nowhere, not outside.
    alone: bool,
    /// Parts in the order in which they come out; with one of its reading ends only.
    pub(crate) queued: Vec<Bytes>,
}

impl PipeState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let capacity = kernel::fcntl(open, F_GETPIPE_SZ, 0).on("reading the size of", open.named())?;
        let first = open.reads() && dumping.recorded.insert(open.key());
        let queued = if first { peek(open, capacity).on("copying", open.named())? } else { Vec::new() };
        // A reader without a writer hangs up, a writer without a reader fails.
        let alone = poll(open, 0, 0) & (libc::POLLHUP | libc::POLLERR) != 0;
        Ok(Self { inode: open.stat.st_ino, capacity, alone, queued })
    }
}

/// A pipe of our own, both ends blocking.
pub(crate) fn pipe(flags: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers, which are new.
    unsafe {
        checked(libc::pipe2(ends.as_mut_ptr(), flags | libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// What is queued, without taking it out: `tee` shares the pages with a scratch pipe of the same size.
pub(crate) fn peek(from: &impl AsRawFd, capacity: i32) -> io::Result<Vec<Bytes>> {
    let queued = kernel::readable_bytes(from)?;
    if queued == 0 {
        return Ok(Vec::new());
    }
    let (scratch, into) = pipe(libc::O_NONBLOCK)?;
    kernel::fcntl(&into, F_SETPIPE_SZ, i64::from(capacity))?;
    // SAFETY: no memory is passed.
    let teed = checked(unsafe {
        libc::tee(from.as_raw_fd(), into.as_raw_fd(), usize::MAX >> 33, libc::SPLICE_F_NONBLOCK)
    })?;
    if teed as usize != queued {
        return Err(io::Error::other(format!("{teed} of {queued} queued bytes could be copied")));
    }
    drop(into);
    let (mut parts, mut buffer) = (Vec::new(), vec![0; queued]);
    let mut done = 0;
    while done < queued {
        // A read ends where a packet ends, and elsewhere not before the queue does.
        // SAFETY: the buffer is ours.
        let got =
            checked(unsafe { libc::read(scratch.as_raw_fd(), buffer.as_mut_ptr().cast(), queued) })? as usize;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        parts.push(Bytes(buffer[..got].to_vec()));
        done += got;
    }
    Ok(parts)
}

/// Puts parts into a pipe that has the room for them; several parts are packets.
pub(crate) fn refill(into: &impl AsRawFd, parts: &[Bytes]) -> io::Result<()> {
    let before = kernel::fcntl(into, libc::F_GETFL, 0)?;
    let packets = if parts.len() > 1 { libc::O_DIRECT } else { 0 };
    kernel::fcntl(into, libc::F_SETFL, i64::from(before & !libc::O_DIRECT | libc::O_NONBLOCK | packets))?;
    parts.iter().try_for_each(|part| kernel::write_all(into, &part.0))?;
    kernel::fcntl(into, libc::F_SETFL, i64::from(before)).map(|_| ())
}

/// Sets the capacity; the user's limits may forbid a large one.
pub(crate) fn resize(pipe: &impl AsRawFd, capacity: i32, index: u32, making: &mut Making) -> RmResult<()> {
    let now = kernel::fcntl(pipe, F_GETPIPE_SZ, 0).on("reading the size of", "a new pipe")?;
    if now != capacity
        && let Err(cause) = kernel::fcntl(pipe, F_SETPIPE_SZ, i64::from(capacity))
    {
        making.remark(index, format!("the pipe holds {now} bytes instead of {capacity}: {cause}"));
    }
    Ok(())
}

/// Makes all pipes again. A pipe of which the other end is elsewhere leads outside: standard descriptors are
/// attached, others see what they would see after the other side died.
pub(crate) fn recreate(all: &Each<PipeState>, making: &mut Making) -> RmResult<()> {
    let mut pipes: BTreeMap<u64, Vec<(u32, &PipeState)>> = BTreeMap::new();
    for (index, state) in all {
        pipes.entry(state.inode).or_default().push((*index, state));
    }
    for ends in pipes.values() {
        let any = |wanted: fn(i32) -> bool| ends.iter().any(|(index, _)| wanted(making.flags(*index)));
        let whole = any(reads) && any(writes);
        let mut inside = Vec::new();
        for (index, state) in ends {
            if !whole && !state.alone && making.is_stdio(*index) {
                lead_outside(*index, making)?;
            } else {
                inside.push((*index, *state));
            }
        }
        let Some((first, state)) = inside.first().copied() else { continue };
        let (reader, writer) = pipe(0).on("making", "a pipe")?;
        resize(&writer, state.capacity, first, making)?;
        for (_, state) in &inside {
            refill(&writer, &state.queued).on("refilling", "a pipe")?;
        }
        let mut unused = [Some(&reader), Some(&writer)];
        for (index, _) in &inside {
            let flags = making.flags(*index);
            // Ends that were opened apart, or for both, get descriptions of their own.
            let fd = match flags & libc::O_ACCMODE {
                libc::O_RDONLY => unused[0].take(),
                libc::O_WRONLY => unused[1].take(),
                _ => None,
            };
            let fd = fd.map_or_else(|| reopen(&reader, flags & !libc::O_DIRECT), OwnedFd::try_clone);
            making.put(*index, fd.on("opening", "a pipe's end")?)?;
        }
        if !whole && !state.alone {
            making.remark(first, "the other end of the pipe was outside and is closed");
        }
    }
    Ok(())
}
