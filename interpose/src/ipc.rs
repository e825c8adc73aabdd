//! System V objects that the application asked for: the kernel does not tell who uses a semaphore set or a message queue.
//!
//! Their ids are noted in the control page, which forked processes share. So is what a process asked to be notified with
//! of a message in a queue, of which the kernel shows all but the value. Nothing is read back here.

use crate::dispatch::Verdict;
use crate::{start, user, waits};
use core::sync::atomic::{AtomicU64, Ordering};
use holo_abi::control::{Notice, object};
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_sys::sys;

const SIGEV_THREAD: u64 = 2;

/// Makes `semget` or `msgget` and notes what it found.
pub(crate) fn on_get(regs: &Regs) -> Verdict {
    let nr = regs.rax.cast_signed();
    let args = regs.args;
    let ret = waits::until_done(nr, || args);
    let kind = if nr == sysno::semget { object::SEMAPHORES } else { object::QUEUE };
    if let (Some(page), Ok(id)) = (start::control(), u32::try_from(ret)) {
        enter(&page.objects, object::word(kind, id));
    }
    Verdict::Handled(ret)
}

/// Makes `mq_notify` and notes what for.
pub(crate) fn on_notify(regs: &Regs) -> Verdict {
    let args = regs.args;
    let [fd, event, ..] = args;
    // Value; signal or socket, and how: the head of `struct sigevent`.
    let head = if event == 0 { None } else { user::read::<[u64; 2]>(event, regs.rsp).ok() };
    let cookie = match head {
        Some([at, what]) if what >> 32 == SIGEV_THREAD => user::read::<[u64; 4]>(at, regs.rsp).ok(),
        _ => None,
    };
    let ret = waits::until_done(sysno::mq_notify, || args);
    if let (Some(page), 0) = (start::control(), ret) {
        // SAFETY: no memory is passed.
        let pid = unsafe { sys!(sysno::getpid) } as u32;
        note(&page.notices, Notice::word(pid, fd as u32), head, cookie.unwrap_or_default());
    }
    Verdict::Handled(ret)
}

/// Keeps the last registration of each descriptor. If there is no entry left, the queue cannot be replicated while
/// it is registered.
fn note(notices: &[Notice], who: u64, head: Option<[u64; 2]>, cookie: [u64; 4]) {
    for notice in notices.iter().filter(|notice| notice.who.load(Ordering::Acquire) == who) {
        notice.who.store(0, Ordering::Release);
    }
    let Some([value, what]) = head else { return };
    const TAKEN: u64 = u64::MAX;
    let free = notices
        .iter()
        .find(|notice| notice.who.compare_exchange(0, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    if let Some(notice) = free {
        notice.value.store(value, Ordering::Relaxed);
        notice.what.store(what, Ordering::Relaxed);
        for (word, to) in cookie.iter().zip(&notice.cookie) {
            to.store(*word, Ordering::Relaxed);
        }
        notice.who.store(who, Ordering::Release);
    }
}

/// Takes a free entry, unless the object has one. If there is none left, the object is found when it is used.
fn enter(objects: &[AtomicU64], word: u64) {
    for entry in objects {
        let mut known = entry.load(Ordering::Acquire);
        if known == 0 {
            known = match entry.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(other) => other,
            };
        }
        if known == word {
            return;
        }
    }
}
