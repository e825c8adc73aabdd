//! Identity of files: after a restore the application sees the device and inode numbers that it knows.
//!
//! Programs compare them, to tell whether a path still leads to the file that they have open. The agent
//! leaves a table in the control page and marks these calls; without a restore none of them comes here.

use crate::dispatch::Verdict;
use crate::{start, user, waits};
use core::sync::atomic::Ordering;
use holo_abi::control::{INODE_CALLS, INODES_MAX, InodeName};
use holo_abi::sysno;
use holo_sys::gate::{CLASS, Regs, SLOW};
use holo_sys::sys;
use holo_sys::tls::tls;

const SEEK_SET: u64 = 0;
const SEEK_CUR: u64 = 1;
/// `st_dev` and `st_ino` lead `struct stat`.
type Identity = [u64; 2];
/// `stx_ino` and `stx_dev_major` with `stx_dev_minor` in `struct statx`.
const STATX_INO: u64 = 32;
const STATX_DEV: u64 = 136;
/// A name in a directory begins with inode number, offset and length.
type NameHead = [u64; 3];

/// Tells the agent where classes are; a program that was started after a restore has the table already.
pub(crate) fn start(header: &mut holo_abi::control::Header) {
    header.class_at = (&raw const CLASS) as u64;
    if header.inodes_count.load(Ordering::Acquire) == 0 {
        return;
    }
    for nr in INODE_CALLS {
        // SAFETY: one byte, in the constructor.
        unsafe { (&raw mut CLASS).cast::<u8>().add(nr as usize).write_volatile(SLOW) };
    }
}

/// The table, if there is one.
fn table() -> Option<&'static [InodeName]> {
    let page = start::control()?;
    let count = page.header.inodes_count.load(Ordering::Acquire) as usize;
    if count == 0 { None } else { Some(&page.inodes[..count.min(INODES_MAX)]) }
}

fn known(table: &[InodeName], real: Identity) -> Option<Identity> {
    table.binary_search_by(|name| name.real.cmp(&real)).ok().map(|at| table[at].app)
}

/// Makes a call of [`INODE_CALLS`].
///
/// The kernel's answer and the table belong together: a park between the two may last until a restore, after which
/// the numbers that the kernel said are of files that are not there, and the table is another one. So the call
/// is made anew after each park.
pub(crate) fn on_call(regs: &Regs) -> Verdict {
    if table().is_none() {
        return Verdict::Forward;
    }
    let nr = regs.rax.cast_signed();
    let args = regs.args;
    // SAFETY: own thread's words.
    let parks = unsafe { &raw const (*tls()).parks };
    let position = if nr == sysno::getdents64 { seek(args[0], 0, SEEK_CUR) } else { 0 };
    loop {
        // SAFETY: as above; a handler on this thread changes it.
        let before = unsafe { parks.read_volatile() };
        let ret = waits::until_done(nr, || args);
        if ret < 0 {
            return Verdict::Handled(ret);
        }
        let table = table().unwrap_or(&[]);
        let shown = match nr {
            sysno::newfstatat => in_stat(table, args[2], regs.rsp),
            sysno::statx => in_statx(table, args[4], regs.rsp),
            sysno::getdents64 => in_directory(table, args[0], args[1], ret as u64, regs.rsp),
            _ => in_stat(table, args[1], regs.rsp),
        };
        // SAFETY: as above.
        if unsafe { parks.read_volatile() } == before {
            // The buffer was good a moment ago: another thread has taken it away.
            return Verdict::Handled(shown.map_or_else(|errno| errno, |()| ret));
        }
        if nr == sysno::getdents64 {
            seek(args[0], position, SEEK_SET);
        }
    }
}

fn seek(fd: u64, to: i64, whence: u64) -> i64 {
    // SAFETY: no memory is passed.
    unsafe { sys!(sysno::lseek, fd, to, whence) }
}

fn in_stat(table: &[InodeName], at: u64, rsp: u64) -> Result<(), i64> {
    let real = user::read::<Identity>(at, rsp)?;
    known(table, real).map_or(Ok(()), |app| user::write(at, &app, rsp))
}

fn in_statx(table: &[InodeName], at: u64, rsp: u64) -> Result<(), i64> {
    let ino = user::read::<u64>(at + STATX_INO, rsp)?;
    let [major, minor] = user::read::<[u32; 2]>(at + STATX_DEV, rsp)?.map(u64::from);
    let dev = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    let Some([dev, ino]) = known(table, [dev, ino]) else { return Ok(()) };
    user::write(at + STATX_INO, &ino, rsp)?;
    let pair = [(dev >> 8 & 0xfff) as u32, (dev & 0xff | dev >> 12 & 0xfff_ff00) as u32];
    user::write(at + STATX_DEV, &pair, rsp)
}

fn in_directory(table: &[InodeName], fd: u64, from: u64, bytes: u64, rsp: u64) -> Result<(), i64> {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`.
    if unsafe { sys!(sysno::fstat, fd, stat.as_mut_ptr()) } < 0 {
        return Ok(());
    }
    let (mut at, end) = (from, from + bytes);
    while at < end {
        let [ino, _, length] = user::read::<NameHead>(at, rsp)?;
        if let Some([_, ino]) = known(table, [stat[0], ino]) {
            user::write(at, &ino, rsp)?;
        }
        match length & 0xffff {
            0 => return Ok(()),
            length => at += length,
        }
    }
    Ok(())
}
