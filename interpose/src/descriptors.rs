//! Which of this process's descriptors lead to files whose changes are recorded: asked of the kernel once.
//!
//! What is known of a descriptor is forgotten before its number is closed or replaced, and while that lasts nothing is remembered
//! of it: who asks the kernel then may see the old file, when the number leads to another one already. Who asked before and has
//! its answer only now does not keep it, since the word that it found is no longer there.

use crate::signals;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use holo_abi::changes::Changes;
use holo_abi::sysno;
use holo_sys::sys;
use holo_track::changes::{self, Slot};

/// Descriptors above are asked of the kernel each time.
const KNOWN_MAX: usize = 4096;
const F_GETFL: u64 = 3;
const O_ACCMODE: i64 = 3;
const O_APPEND: i64 = 0o2000;
const O_PATH: i64 = 0o10_000_000;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

/// What a descriptor leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nothing that is recorded.
    Other,
    /// A file with a place in the table.
    File { slot: usize, append: bool },
    /// A file that there is no place for.
    Full,
}

// A word: what was void when it was written; how many calls are closing it; or generation, slot and kind.
const KIND: u64 = 7;
const VOID: u64 = 0;
const OTHER: u64 = 1;
const FILE: u64 = 2;
const APPEND: u64 = 3;
const FULL: u64 = 4;
const CLOSING: u64 = 5;
/// Of a count of calls.
const ONE: u64 = KIND + 1;

static KNOWN: [AtomicU64; KNOWN_MAX] = [const { AtomicU64::new(VOID) }; KNOWN_MAX];
/// Makes each void word another one.
static VOIDS: AtomicU64 = AtomicU64::new(0);
/// A process with memory of its own shares our descriptors: what it closes is not seen here.
static SHARED: AtomicBool = AtomicBool::new(false);

fn word(generation: u32, target: Target) -> u64 {
    let low = match target {
        Target::Other => OTHER,
        Target::File { slot, append } => (slot as u64) << 3 | if append { APPEND } else { FILE },
        Target::Full => FULL,
    };
    u64::from(generation) << 32 | low
}

/// Makes a call that closes or replaces the descriptors from `first` to `last`.
///
/// Of a call that never comes back, since its thread was cancelled in it, the count stays: writes to that number then ask each time.
pub(crate) fn closing(first: u64, last: u64, make: impl FnOnce() -> i64) -> i64 {
    let numbers = first as u32 as usize..(last as u32 as usize).saturating_add(1).min(KNOWN_MAX);
    let known = KNOWN.get(numbers).unwrap_or_default();
    // Others may be closing it, too.
    let begin = |now| Some(if now & KIND == CLOSING { now + ONE } else { CLOSING + ONE });
    let end = |now| {
        let others = now & KIND == CLOSING && now >= CLOSING + 2 * ONE;
        Some(if others { now - ONE } else { VOIDS.fetch_add(ONE, Relaxed) })
    };
    for word in known {
        let _ = word.fetch_update(Relaxed, Relaxed, begin);
    }
    let ret = make();
    for word in known {
        let _ = word.fetch_update(Relaxed, Relaxed, end);
    }
    ret
}

/// From now on nothing is remembered.
pub(crate) fn share() {
    SHARED.store(true, Relaxed);
}

/// What `fd` leads to; asks the kernel if it is not known.
#[inline]
pub(crate) fn target(table: &Changes, fd: u64) -> Target {
    let generation = table.generation.load(Relaxed);
    let known = KNOWN.get(fd as u32 as usize);
    let now = known.map_or(VOID, |known| known.load(Relaxed));
    if !matches!(now & KIND, VOID | CLOSING)
        && (now >> 32) as u32 == generation
        && !SHARED.load(Relaxed)
        && !signals::is_sharing_child()
    {
        return match now & KIND {
            OTHER => Target::Other,
            FULL => Target::Full,
            kind => Target::File { slot: (now as u32 >> 3) as usize, append: kind == APPEND },
        };
    }
    ask(table, fd, generation, now)
}

#[cold]
fn ask(table: &Changes, fd: u64, generation: u32, now: u64) -> Target {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`; no memory in the other call.
    let (failed, open) =
        unsafe { (sys!(sysno::fstat, fd, stat.as_mut_ptr()), sys!(sysno::fcntl, fd, F_GETFL)) };
    if failed < 0 || open < 0 {
        // The call will say why.
        return Target::Other;
    }
    let writes = open & O_ACCMODE != 0 && open & O_PATH == 0;
    let target = if stat[3] as u32 & S_IFMT == S_IFREG && writes {
        match changes::slot(table, stat[0], stat[1]) {
            Slot::Elsewhere => Target::Other,
            Slot::At(slot) => {
                if stat[6] == 0 {
                    changes::tail(changes::bank(table), slot, 0);
                }
                Target::File { slot, append: open & O_APPEND != 0 }
            }
            Slot::Full => Target::Full,
        }
    } else {
        Target::Other
    };
    if let Some(known) = KNOWN.get(fd as u32 as usize)
        && now & KIND != CLOSING
        && !SHARED.load(Relaxed)
        && !signals::is_sharing_child()
    {
        // Not if it was closed meanwhile.
        let _ = known.compare_exchange(now, word(generation, target), Relaxed, Relaxed);
    }
    target
}
