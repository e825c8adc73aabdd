//! The barrier's end in each thread: how it waits, and how no call shows that it did.

use crate::{changes, filters, members, signals, start, transfers};
use core::sync::atomic::Ordering;
use holo_abi::control::{Call, Control, Slot, cut, slot};
use holo_abi::sysno;
use holo_sys::frame::UContext;
use holo_sys::gate::{self, RESTART, Zone};
use holo_sys::tls::Tls;
use holo_sys::{patch, serve, sys};

const EINTR: u64 = (-4i64).cast_unsigned();
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_TIMERSLACK: u64 = 30;
const FUTEX_WAKE: u64 = 1;

/// Parks this thread if a cut is wanted; returns when it is let go.
///
/// The thread is at a point where its frame alone resumes it: in user code, or about to make a call.
pub(crate) fn on_park(frame: &mut UContext, words: &mut Tls) {
    // Even if the cut was called off meanwhile: the signal has interrupted the call.
    issue_again(frame, words);
    words.parks = words.parks.wrapping_add(1);
    if filters::on() {
        return;
    }
    let Some(page) = start::control() else { return };
    let word = page.header.cut.load(Ordering::Acquire);
    if cut::state(word) != cut::PARK {
        return;
    }
    let Some(slot) = claim(page) else { return };
    fill(slot, frame, words, cut::generation(word));
    // SAFETY: exclusive by the claim; the page stays mapped.
    unsafe {
        let raw = core::ptr::from_ref(slot).cast_mut();
        slot.state.store(slot::PARKED, Ordering::SeqCst);
        // The agent may have called the cut off before it could see this slot.
        if page.header.cut.load(Ordering::SeqCst) != word {
            slot.state.store(slot::GO, Ordering::SeqCst);
        }
        page.header.arrived.fetch_add(1, Ordering::AcqRel);
        sys!(sysno::futex, page.header.arrived.as_ptr(), FUTEX_WAKE, i32::MAX);
        serve::holo_serve(raw, (&raw const page.header).cast_mut());
    }
    if slot.state.load(Ordering::Acquire) != slot::GO {
        close_for_agent(slot);
    }
    members::parked(words);
    slot.state.store(slot::FREE, Ordering::Release);
    changes::again(&frame.context, words);
}

/// Nobody let this thread go: the agent died. What it had just made in this process, to take and close it, is closed. A list
/// that came later would have done so.
fn close_for_agent(slot: &Slot) {
    // Lists elsewhere make no descriptors that stay, and their memory may be gone.
    if slot.calls_at != slot.calls.as_ptr() as u64 {
        return;
    }
    let made = slot.calls_done.min(slot.calls_count) as usize;
    let left = |call: &&Call| call.nr == sysno::userfaultfd && call.ret >= 0;
    for call in slot.calls.iter().take(made).filter(left) {
        // SAFETY: no memory is passed; the application has never seen the number.
        unsafe { sys!(sysno::close, call.ret) };
    }
}

/// A call that the park interrupted is made again: its frame is set back to the call. (Where `SA_RESTART`
/// applies the kernel has done so itself.) `rcx` still tells that it was made before, see `signals`.
fn issue_again(frame: &mut UContext, words: &mut Tls) {
    let context = &mut frame.context;
    let failed = context.rax == EINTR;
    let call = match gate::zone(context.rip) {
        Zone::Block { after: true } if failed => {
            context.rax = RESTART.cast_unsigned();
            context.rip += 1;
            None
        }
        Zone::Block { after: false } if signals::was_made(context) => {
            context.rax = RESTART.cast_unsigned();
            context.rip += 3;
            None
        }
        Zone::Block { after: true } => {
            transfers::on_park_in_wait(context, words);
            None
        }
        Zone::Own { after: true } if failed => Some(context.rip - 2),
        Zone::Own { after: true } => {
            transfers::on_park(context, context.rip - 2, words);
            None
        }
        Zone::Outside if failed => {
            patch::find(context.rip).filter(|found| found.offset == 2).map(|found| found.raw)
        }
        Zone::Outside => {
            if let Some(found) = patch::find(context.rip).filter(|found| found.offset == 2) {
                transfers::on_park(context, found.raw, words);
            }
            None
        }
        Zone::Enter | Zone::Save | Zone::Exit | Zone::Jump | Zone::Block { .. } | Zone::Own { .. } => None,
    };
    if let Some(at) = call {
        if words.last_nr.cast_signed() == sysno::close {
            // The descriptor is gone; its number must not be closed once more.
            context.rax = 0;
            return;
        }
        context.rip = at;
        context.rax = words.last_nr;
    }
}

fn claim(page: &Control) -> Option<&Slot> {
    let (index, slot) = page.slots.iter().enumerate().find(|(_, slot)| {
        slot.state.compare_exchange(slot::FREE, slot::CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })?;
    page.header.slots_used.fetch_max(index as u32 + 1, Ordering::AcqRel);
    Some(slot)
}

fn fill(slot: &Slot, frame: &mut UContext, words: &Tls, generation: u64) {
    let raw = core::ptr::from_ref(slot).cast_mut();
    // SAFETY: the slot is claimed by this thread; the kernel writes only the words named.
    unsafe {
        (*raw).tid = sys!(sysno::gettid) as u32;
        (*raw).pid = sys!(sysno::getpid) as u32;
        (*raw).frame = core::ptr::from_mut(frame) as u64;
        sys!(sysno::arch_prctl, ARCH_GET_FS, &raw mut (*raw).fs_base);
        sys!(sysno::arch_prctl, ARCH_GET_GS, &raw mut (*raw).gs_base);
        sys!(sysno::prctl, PR_GET_TID_ADDRESS, &raw mut (*raw).tid_address);
        sys!(sysno::get_robust_list, 0, &raw mut (*raw).robust_head, &raw mut (*raw).robust_len);
        (*raw).slack_ns = sys!(sysno::prctl, PR_GET_TIMERSLACK).max(0).cast_unsigned();
        let (rseq, len, signature) = start::rseq_of(words, (*raw).fs_base);
        (*raw).rseq = rseq;
        (*raw).rseq_len = len;
        (*raw).rseq_sig = signature;
        (*raw).generation = generation as u32;
        (*raw).calls_count = 0;
        (*raw).calls_done = 0;
        (*raw).leave = 0;
    }
}
