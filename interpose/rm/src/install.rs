//! Gives a clone descriptors that the agent made: `SCM_RIGHTS` and `dup3`.

use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call};
use holo_abi::sysno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// `SCM_MAX_FD` of the kernel is 253.
const BATCH: usize = 200;

/// The way to the processes of a clone: all have the same end of one socket pair, and are given to one after the other.
pub struct Channel<'a> {
    /// Our end.
    pub ours: &'a UnixStream,
    /// Number of theirs.
    pub theirs: i32,
}

/// A descriptor for the clone.
pub struct Install<'a> {
    /// What.
    pub fd: BorrowedFd<'a>,
    /// Its number there; whatever is there is replaced.
    pub at: i32,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
}

/// Installs descriptors in a process of the clone; duplicates of one description in one list share it, as they must.
///
/// The kernel puts received descriptors at the lowest free numbers, which may be where others belong. So all
/// places of the list are taken first, with duplicates of the channel.
///
/// # Errors
/// The kernel's.
pub fn install(way: &Channel, remote: &Remote, list: &[Install]) -> RmResult<()> {
    let channel = way.theirs as u64;
    let mut occupy: Vec<_> =
        list.iter().map(|one| call(sysno::dup3, &[channel, one.at as u64, libc::O_CLOEXEC as u64])).collect();
    remote.run_all(&mut occupy).on("taking places for", format!("{} descriptors", list.len()))?;
    for part in list.chunks(BATCH) {
        let fds: Vec<i32> = part.iter().map(|one| one.fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let byte = [IoSlice::new(b"f")];
        sendmsg::<()>(way.ours.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)
            .on("passing", format!("{} descriptors", fds.len()))?;
        let received = receive(way, remote, fds.len())?;
        let mut calls = Vec::new();
        for (from, one) in received.iter().zip(part) {
            let flags = if one.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
            calls.push(call(sysno::dup3, &[u64::from(*from), one.at as u64, flags]));
            calls.push(call(sysno::close, &[u64::from(*from)]));
        }
        remote.run_all(&mut calls).on("placing", "descriptors")?;
    }
    Ok(())
}

/// Lets the clone receive; the numbers where the descriptors arrived.
///
/// They are none of the places in the list, which are taken already.
fn receive(way: &Channel, remote: &Remote, count: usize) -> RmResult<Vec<u32>> {
    const PARTS: usize = 0;
    const BYTE: usize = 64;
    const MESSAGE: usize = 128;
    const ANCILLARY: usize = 512;
    let page = &remote.page;
    let ancillary_bytes = 16 + (count * 4).next_multiple_of(8);
    let part = [page.scratch_address(BYTE), 1];
    let message =
        [0, 0, page.scratch_address(PARTS), 1, page.scratch_address(ANCILLARY), ancillary_bytes as u64, 0];
    page.put(PARTS, bytes_of(&part));
    page.put(MESSAGE, bytes_of(&message));
    remote
        .call(
            sysno::recvmsg,
            &[way.theirs as u64, page.scratch_address(MESSAGE), libc::MSG_CMSG_CLOEXEC as u64],
        )
        .on("receiving", format!("{count} descriptors"))?;
    let got = page.take(ANCILLARY + 16, count * 4);
    Ok(got.chunks_exact(4).map(|raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])).collect())
}

fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: plain words.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}
