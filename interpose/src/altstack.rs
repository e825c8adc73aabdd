//! Whether the park signal, and that of trapped calls, comes on alternate signal stacks.
//!
//! It does at first: there are programs whose threads have next to no room elsewhere (goroutines, fibers). But others give one
//! and the same stack to all threads, since they mean to use it once, for the last words of a crash, or one with no room for a
//! frame of this processor. No two threads may be there: from the first such stack on, signals of ours come where the thread
//! is.

use crate::dispatch::Verdict;
use crate::{signals, user};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_sys::sys;

const SS_DISABLE: i32 = 2;
/// What programs took for enough before processors had large registers (`SIGSTKSZ`).
const BYTES_MIN: u64 = 8192;
/// Stacks that are known; with more at once those beyond are taken to be different.
const STACKS_MAX: usize = 1024;

static IN_USE: AtomicBool = AtomicBool::new(true);
/// Where to stop looking.
static END: AtomicU64 = AtomicU64::new(0);
static STACKS: [Stack; STACKS_MAX] = [const { Stack::new() }; STACKS_MAX];

/// The stack of a thread; 0: free.
struct Stack {
    tid: AtomicI32,
    start: AtomicU64,
    end: AtomicU64,
}

impl Stack {
    const fn new() -> Self {
        Self { tid: AtomicI32::new(0), start: AtomicU64::new(0), end: AtomicU64::new(0) }
    }

    fn touches(&self, start: u64, end: u64) -> bool {
        self.start.load(Ordering::Relaxed) < end && start < self.end.load(Ordering::Relaxed)
    }
}

/// `stack_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Wanted {
    start: u64,
    flags: i32,
    pad: i32,
    bytes: u64,
}

/// Do signals of ours come on them?
pub(crate) fn in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

/// `sigaltstack` of the application.
pub(crate) fn on_sigaltstack(regs: &Regs) -> Verdict {
    if regs.args[0] != 0
        && in_use()
        && let Ok(wanted) = user::read::<Wanted>(regs.args[0], regs.rsp)
        && !is_fit(&wanted)
    {
        IN_USE.store(false, Ordering::Relaxed);
        signals::leave_stacks();
    }
    Verdict::Forward
}

/// May this thread park on the stack that it asks for?
fn is_fit(wanted: &Wanted) -> bool {
    let (start, end) = match wanted.flags & SS_DISABLE {
        0 => (wanted.start, wanted.start.saturating_add(wanted.bytes)),
        _ => (0, 0),
    };
    let _held = signals::Lock::take();
    // SAFETY: no memory is passed.
    let (pid, tid) = unsafe { (sys!(sysno::getpid), sys!(sysno::gettid)) };
    let used = END.load(Ordering::Relaxed) as usize;
    let (mut own, mut free, mut alone) = (None, None, true);
    for (index, stack) in STACKS.iter().enumerate().take(used) {
        let of = stack.tid.load(Ordering::Relaxed);
        if of == tid as i32 {
            own = Some(index);
        } else if of == 0 {
            free = free.or(Some(index));
        } else if stack.touches(start, end) {
            // SAFETY: no memory is passed. A thread that has ended, or was left behind by a fork, needs none.
            if unsafe { sys!(sysno::tgkill, pid, of, 0) } == 0 {
                alone = false;
            } else {
                stack.tid.store(0, Ordering::Relaxed);
                free = free.or(Some(index));
            }
        }
    }
    if let Some(index) = own.or(free).or_else(|| (used < STACKS_MAX).then_some(used)) {
        END.fetch_max(index as u64 + 1, Ordering::Relaxed);
        STACKS[index].start.store(start, Ordering::Relaxed);
        STACKS[index].end.store(end, Ordering::Relaxed);
        STACKS[index].tid.store(if end == 0 { 0 } else { tid as i32 }, Ordering::Relaxed);
    }
    end == 0 || alone && wanted.bytes >= BYTES_MIN
}
