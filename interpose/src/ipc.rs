//! System V objects that the application asked for: the kernel does not tell who uses a semaphore set or a message queue.
//!
//! Their ids are noted in the control page, which forked processes share. Nothing is read back here.

use crate::dispatch::Verdict;
use crate::{start, waits};
use core::sync::atomic::{AtomicU64, Ordering};
use holo_abi::control::object;
use holo_abi::sysno;
use holo_sys::gate::Regs;

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
