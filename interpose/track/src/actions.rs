//! Signal actions: what the application installed, and what the kernel is given instead.
//!
//! Every handler of the application is replaced by holo's, which calls it with a context that shows the
//! call site instead of the gate. Readers are signal handlers, so a sequence lock that never blocks the
//! reader for longer than a writer's few stores; a reader that finds a writer gone (a fork in the middle)
//! takes what is there.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// `SA_SIGINFO`.
pub const SA_SIGINFO: u64 = 4;
/// `SA_RESTORER`.
pub const SA_RESTORER: u64 = 0x0400_0000;
/// `SA_RESETHAND`.
pub const SA_RESETHAND: u64 = 0x8000_0000;
/// `SIG_DFL`.
pub const SIG_DFL: u64 = 0;
/// `SIG_IGN`.
pub const SIG_IGN: u64 = 1;
/// Signals are 1..=64.
pub const SIGNALS: usize = 65;

/// The kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// Handler, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// `sa_restorer`.
    pub restorer: u64,
    /// Blocked while it runs.
    pub mask: u64,
}

impl Action {
    /// Does it run code of the application?
    #[must_use]
    pub fn is_handler(&self) -> bool {
        self.handler > SIG_IGN
    }

    /// What the kernel is to have: holo's entry, with the application's choices. `SA_RESETHAND` is left
    /// out (a deferred signal would find the default action) and performed by the entry.
    #[must_use]
    pub fn for_kernel(&self, entry: u64, restorer: u64, park_signal: i32) -> Self {
        let mask = self.mask & !(1 << (park_signal - 1));
        if !self.is_handler() {
            return Self { mask, ..*self };
        }
        Self {
            handler: entry,
            flags: (self.flags | SA_SIGINFO | SA_RESTORER) & !SA_RESETHAND,
            restorer,
            mask,
        }
    }
}

struct Entry {
    sequence: AtomicU32,
    words: [AtomicU64; 4],
}

/// Actions by signal number.
pub struct Actions {
    entries: [Entry; SIGNALS],
}

impl Actions {
    /// All default.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: [const { Entry { sequence: AtomicU32::new(0), words: [const { AtomicU64::new(0) }; 4] } };
                SIGNALS],
        }
    }

    /// The application's action for `signal` (1..=64).
    #[must_use]
    pub fn get(&self, signal: usize) -> Action {
        let entry = &self.entries[signal];
        for _ in 0..1000 {
            let before = entry.sequence.load(Ordering::Acquire);
            let action = entry.read();
            fence(Ordering::Acquire);
            if before & 1 == 0 && entry.sequence.load(Ordering::Relaxed) == before {
                return action;
            }
            core::hint::spin_loop();
        }
        entry.read()
    }

    /// Records a new action.
    pub fn set(&self, signal: usize, action: Action) {
        let entry = &self.entries[signal];
        let before = entry.sequence.fetch_or(1, Ordering::AcqRel) | 1;
        for (word, value) in
            entry.words.iter().zip([action.handler, action.flags, action.restorer, action.mask])
        {
            word.store(value, Ordering::Relaxed);
        }
        entry.sequence.store(before.wrapping_add(1), Ordering::Release);
    }
}

impl Default for Actions {
    fn default() -> Self {
        Self::new()
    }
}

impl Entry {
    fn read(&self) -> Action {
        let word = |i: usize| self.words[i].load(Ordering::Relaxed);
        Action { handler: word(0), flags: word(1), restorer: word(2), mask: word(3) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_gets_our_entry_and_never_the_park_signal_in_a_mask() {
        let app = Action { handler: 0x1000, flags: SA_RESETHAND | 0x1000_0000, restorer: 7, mask: !0 };
        let kernel = app.for_kernel(0x2000, 0x3000, 33);
        assert_eq!(kernel.handler, 0x2000);
        assert_eq!(kernel.restorer, 0x3000);
        assert_eq!(kernel.mask, !(1 << 32));
        assert_eq!(kernel.flags, 0x1000_0000 | SA_SIGINFO | SA_RESTORER);
        let ignored = Action { handler: SIG_IGN, ..Action::default() };
        assert_eq!(ignored.for_kernel(0x2000, 0x3000, 33), ignored);
    }

    #[test]
    fn what_was_set_is_read() {
        let table = Actions::new();
        let action = Action { handler: 9, flags: 8, restorer: 7, mask: 6 };
        table.set(10, action);
        assert_eq!(table.get(10), action);
        assert_eq!(table.get(11), Action::default());
        table.set(10, Action::default());
        assert_eq!(table.get(10), Action::default());
    }
}
