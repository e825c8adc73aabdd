//! Calls on sockets with `SO_RCVTIMEO` or `SO_SNDTIMEO`: their time-out is the socket's.
//!
//! The kernel starts it anew with every call, so that a call issued again after a park would wait too long.
//! From the first such option on, these calls come to the dispatcher; after a park they wait for the rest of
//! the time in `poll` first.

use crate::dispatch::Verdict;
use crate::filters;
use crate::{start, transfers, vdso, waits};
use core::sync::atomic::{AtomicBool, Ordering};
use holo_abi::sysno;
use holo_sys::gate::{CLASS, Regs, SLOW};
use holo_sys::sys;
use holo_sys::tls::tls;
use holo_track::timeout::{Deadline, Timespec};

const SOL_SOCKET: u64 = 1;
const SO_RCVTIMEO: u64 = 20;
const SO_SNDTIMEO: u64 = 21;
const SO_RCVTIMEO_NEW: u64 = 66;
const SO_SNDTIMEO_NEW: u64 = 67;
const POLLIN: u16 = 1;
const POLLOUT: u16 = 4;
const EAGAIN: i64 = -11;
const EINPROGRESS: i64 = -115;

static SEEN: AtomicBool = AtomicBool::new(false);

/// Calls that wait by the receiving, and by the sending time-out.
const RECEIVING: [i64; 6] =
    [sysno::read, sysno::readv, sysno::recvfrom, sysno::recvmsg, sysno::accept, sysno::accept4];
const SENDING: [i64; 5] = [sysno::write, sysno::writev, sysno::sendto, sysno::sendmsg, sysno::connect];

/// `setsockopt` of the application.
pub(crate) fn on_setsockopt(regs: &Regs) -> Verdict {
    let [_, level, option, ..] = regs.args;
    let timed = matches!(option, SO_RCVTIMEO | SO_SNDTIMEO | SO_RCVTIMEO_NEW | SO_SNDTIMEO_NEW);
    if level == SOL_SOCKET && timed && !SEEN.swap(true, Ordering::Relaxed) {
        for nr in RECEIVING.iter().chain(&SENDING) {
            // SAFETY: one byte; a thread that still sees the old one makes one more call in place.
            unsafe { (&raw mut CLASS).cast::<u8>().add(*nr as usize).write_volatile(SLOW) };
        }
    }
    let Some(page) = start::control() else { return Verdict::Forward };
    if filters::on() {
        // No epoch is taken of this process, and whoever has the socket, too, is to be asked in the next one.
        page.header.options_set.fetch_add(1, Ordering::AcqRel);
        return Verdict::Forward;
    }
    // Made and counted here: no epoch comes between the two, in which the count would tell of an option that is yet to be set.
    // SAFETY: the application's call with its own arguments.
    let ret = unsafe { holo_sys::raw::call(sysno::setsockopt, regs.args) };
    page.header.options_set.fetch_add(1, Ordering::AcqRel);
    Verdict::Handled(ret)
}

/// Is it one of these calls?
pub(crate) fn concerns(nr: i64) -> bool {
    SEEN.load(Ordering::Relaxed) && (RECEIVING.contains(&nr) || SENDING.contains(&nr))
}

/// The socket's time-out; `None`: it has none, or is no socket.
fn timeout_ns(fd: u64, option: u64) -> Option<i64> {
    let mut value = Timespec::default();
    let mut bytes = size_of::<Timespec>() as u32;
    // SAFETY: a timeval, and its length.
    let ret = unsafe { sys!(sysno::getsockopt, fd, SOL_SOCKET, option, &raw mut value, &raw mut bytes) };
    let ns = value.sec.saturating_mul(1_000_000_000).saturating_add(value.nsec.saturating_mul(1000));
    (ret == 0 && ns > 0).then_some(ns)
}

/// Makes such a call.
pub(crate) fn on_call(regs: &mut Regs) -> Verdict {
    let nr = regs.rax.cast_signed();
    let fd = regs.args[0];
    let receiving = RECEIVING.contains(&nr);
    let (option, events) = if receiving { (SO_RCVTIMEO, POLLIN) } else { (SO_SNDTIMEO, POLLOUT) };
    let Some(timeout_ns) = timeout_ns(fd, option) else { return Verdict::Forward };
    let deadline = Deadline::after(vdso::monotonic_ns(), timeout_ns);
    let late = if nr == sysno::connect { EINPROGRESS } else { EAGAIN };
    loop {
        // SAFETY: own thread's words, which the park changes.
        let parks = unsafe { (&raw const (*tls()).parks).read_volatile() };
        if let Some(ret) = waits::until_parked(nr, &regs.args) {
            // SAFETY: as above.
            let parked = unsafe { (&raw const (*tls()).parks).read_volatile() } != parks;
            return Verdict::Handled(match ret.cast_unsigned() {
                moved if ret > 0 && parked => transfers::go_on(regs, moved),
                _ => ret,
            });
        }
        let ready = [fd as u32, u32::from(events)];
        // A signal that came while it was parked ends the call.
        let ret = waits::until_done_since(sysno::poll, true, || {
            let left_ms = deadline.left_ms(vdso::monotonic_ns());
            [ready.as_ptr() as u64, 1, left_ms.cast_unsigned(), 0, 0, 0]
        });
        if ret <= 0 {
            return Verdict::Handled(if ret == 0 { late } else { ret });
        }
    }
}
