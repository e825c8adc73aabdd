//! Transfers that a park cut short: a call that had moved some of its bytes returns their number, as for any signal.
//!
//! Without the park it would have gone on, until all was moved or a signal of the application came. The park sends the
//! thread through the dispatcher once more, which makes calls for the rest and answers with the sum. Where a short
//! result is nobody's doing (a pipe that had less, a socket that does not block) the next call says so: it fails, or
//! moves nothing, and the sum is the result. Calls for which it would block instead, as a plain `read`, are left alone.

use crate::{signals, user};
use core::ptr;
use holo_abi::sysno;
use holo_sys::frame::Context;
use holo_sys::gate::{self, DEFERRED, RESTART, Regs, holo_block};
use holo_sys::sys;
use holo_sys::tls::{Tls, tls};

const MSG_PEEK: u64 = 2;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_WAITFORONE: u64 = 0x1_0000;
const MESSAGE_BYTES: u64 = 64;
const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;
/// Major number of `/dev/zero`, `/dev/urandom` and their like, which always have more.
const MEMORY_DEVICES: u64 = 1;

/// A park has interrupted the thread behind the `syscall` at `raw`, which returned. If it may have been cut short, the
/// thread is sent to the dispatcher with the result so far.
pub(crate) fn on_park(context: &mut Context, raw: u64, words: &mut Tls) {
    let done = context.rax.cast_signed();
    let asked = match words.last_nr.cast_signed() {
        sysno::write | sysno::read | sysno::sendto | sysno::sendmmsg | sysno::recvmmsg => context.rdx,
        sysno::recvfrom if context.r8_15[2] & MSG_WAITALL != 0 => context.rdx,
        sysno::recvmsg if context.rdx & MSG_WAITALL != 0 => u64::MAX,
        sysno::writev | sysno::sendmsg => u64::MAX,
        sysno::getrandom => context.rsi,
        sysno::sendfile => context.r8_15[2],
        sysno::copy_file_range => context.r8_15[0],
        _ => 0,
    };
    if done <= 0 || done.cast_unsigned() >= asked {
        return;
    }
    if words.last_nr.cast_signed() == sysno::recvmmsg {
        clear_error(context.rdi);
    }
    words.moved = context.rax;
    context.rax = words.last_nr;
    context.rcx = raw;
    context.rip = gate::slow_address();
}

/// A park has interrupted the thread behind a call of the dispatcher.
pub(crate) fn on_park_in_wait(context: &Context, words: &Tls) {
    // SAFETY: in the dispatcher, `regs` is the gate's frame.
    let nr = unsafe { (*words.regs).rax };
    if nr.cast_signed() == sysno::recvmmsg && (1..context.rdx).contains(&context.rax) {
        clear_error(context.rdi);
    }
}

/// The kernel keeps the error for the next caller that ended `recvmmsg` early, even if it is the number with which it
/// tells itself to make a call again.
fn clear_error(fd: u64) {
    const SOL_SOCKET: u64 = 1;
    const SO_ERROR: u64 = 4;
    let mut value = 0u32;
    let mut bytes = 4u32;
    // SAFETY: an int, and its length.
    unsafe { sys!(sysno::getsockopt, fd, SOL_SOCKET, SO_ERROR, &raw mut value, &raw mut bytes) };
}

/// What the thread that comes to the dispatcher has moved already; 0: it comes with a new call.
pub(crate) fn take(words: &mut Tls) -> u64 {
    words.transfer = ptr::null_mut();
    core::mem::take(&mut words.moved)
}

/// Is the thread in a call for the rest? A signal of the application ends it even where it would be made again.
pub(crate) fn is_rest(words: &Tls) -> bool {
    !words.transfer.is_null() && words.transfer == words.regs
}

/// Moves the rest; returns how much it is in all.
pub(crate) fn go_on(regs: *mut Regs, mut done: u64) -> i64 {
    let words = tls();
    // SAFETY: the gate's frame on this thread's stack, and its own words.
    let (regs, parks) = unsafe {
        (*words).transfer = regs;
        (&*regs, &raw const (*words).parks)
    };
    while goes_on(regs)
        && let Some((nr, args, asked)) = rest(regs, done)
    {
        // SAFETY: own words, which a handler on this thread changes.
        let parked = unsafe { parks.read_volatile() };
        // SAFETY: the application's call, for a part of what it gave.
        match unsafe { holo_block(nr, &raw const args) } {
            RESTART => {}
            DEFERRED if signals::deferred_is_handled() => break,
            // SAFETY: `regs` is the frame of the call that we are in.
            DEFERRED => unsafe { signals::raise_deferred((*words).regs) },
            moved if moved > 0 => {
                done += moved.cast_unsigned();
                // SAFETY: as above.
                if moved.cast_unsigned() < asked && unsafe { parks.read_volatile() } == parked {
                    break;
                }
            }
            _ => break,
        }
    }
    // SAFETY: own words.
    unsafe { (*words).transfer = ptr::null_mut() };
    done.cast_signed()
}

/// Would the call have gone on by itself?
fn goes_on(regs: &Regs) -> bool {
    let args = &regs.args;
    match regs.rax.cast_signed() {
        sysno::write | sysno::writev => matches!(file(args[0]).0, S_IFIFO | S_IFSOCK | S_IFCHR),
        sysno::read => matches!(file(args[0]), (S_IFCHR, device) if device >> 8 == MEMORY_DEVICES),
        sysno::recvfrom => args[3] & (MSG_WAITALL | MSG_PEEK) == MSG_WAITALL,
        sysno::recvmsg => args[2] & (MSG_WAITALL | MSG_PEEK) == MSG_WAITALL,
        sysno::recvmmsg => args[3] & (MSG_WAITFORONE | MSG_DONTWAIT) == 0 && args[4] == 0,
        sysno::sendto
        | sysno::sendmsg
        | sysno::sendmmsg
        | sysno::getrandom
        | sysno::sendfile
        | sysno::copy_file_range => true,
        _ => false,
    }
}

/// Type and device number of an open file.
fn file(fd: u64) -> (u32, u64) {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`.
    let failed = unsafe { sys!(sysno::fstat, fd, stat.as_mut_ptr()) };
    if failed < 0 { (0, 0) } else { (stat[3] as u32 & S_IFMT, stat[5]) }
}

/// The call for the rest, or a part of it, and how much that is; `None`: nothing is left.
fn rest(regs: &Regs, done: u64) -> Option<(i64, [u64; 6], u64)> {
    let nr = regs.rax.cast_signed();
    let mut args = regs.args;
    let [fd, at, ..] = args;
    // Which argument says where, and which how much; how far one unit of the result reaches.
    let (place, size, unit) = match nr {
        sysno::write | sysno::read | sysno::sendto | sysno::recvfrom => (Some(1), 2, 1),
        sysno::getrandom => (Some(0), 1, 1),
        sysno::sendfile => (None, 3, 1),
        sysno::copy_file_range => (None, 4, 1),
        sysno::sendmmsg | sysno::recvmmsg => (Some(1), 2, MESSAGE_BYTES),
        sysno::writev => {
            let (at, bytes) = piece(at, args[2], done, regs.rsp)?;
            return Some((sysno::write, [fd, at, bytes, 0, 0, 0], bytes));
        }
        sysno::sendmsg | sysno::recvmsg => {
            let [vector, count] = user::read::<[u64; 2]>(at + 16, regs.rsp).ok()?;
            let (at, bytes) = piece(vector, count, done, regs.rsp)?;
            let nr = if nr == sysno::sendmsg { sysno::sendto } else { sysno::recvfrom };
            return Some((nr, [fd, at, bytes, args[2], 0, 0], bytes));
        }
        _ => return None,
    };
    let left = args[size].checked_sub(done).filter(|left| *left > 0)?;
    args[size] = left;
    if let Some(place) = place {
        args[place] += done * unit;
    }
    Some((nr, args, left))
}

/// What is left of the element of an `iovec` in which byte `skip` is.
fn piece(vector: u64, count: u64, mut skip: u64, rsp: u64) -> Option<(u64, u64)> {
    for index in 0..count.min(1024) {
        let [at, bytes] = user::read::<[u64; 2]>(vector + index * 16, rsp).ok()?;
        if skip < bytes {
            return Some((at + skip, bytes - skip));
        }
        skip -= bytes;
    }
    None
}
