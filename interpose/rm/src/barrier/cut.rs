//! The word that tells the threads of a page to park, and who has come for it.

use crate::page::Page;
use holo_abi::control::{cut, slot};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A page with the word of our cut.
pub(super) struct Cut {
    pub(super) page: Arc<Page>,
    word: u64,
    /// How many threads had ever arrived there before.
    pub(super) before: u32,
}

impl Cut {
    pub(super) fn order(page: &Arc<Page>) -> Self {
        let header = &page.control().header;
        let generation = cut::generation(header.cut.load(Ordering::SeqCst)) + 1;
        let word = cut::word(generation, cut::PARK);
        let before = header.arrived.load(Ordering::SeqCst);
        let cut = Self { page: Arc::clone(page), word, before };
        cut.free_left();
        page.keep_alive();
        page.set_patience(true);
        header.cut.store(word, Ordering::SeqCst);
        cut
    }

    /// Lets go who still waits for orders of an agent that died in a stop, threads and snapshots: our signs of life would keep them
    /// waiting for ever.
    pub(super) fn free_left(&self) {
        for index in self.page.used() {
            // The state first: a thread that parks between the two has written the generation before it.
            let waits = matches!(self.page.state(index).load(Ordering::SeqCst), slot::PARKED | slot::DONE);
            // SAFETY: a plain word, written before the state.
            let ours = unsafe { (*self.page.slot(index)).generation } == cut::generation(self.word) as u32;
            if waits && !ours {
                self.page.go(index);
            }
        }
    }

    /// Threads of `pid` (as it sees itself) that are parked for this cut.
    pub(super) fn arrived(&self, pid: i32) -> Vec<usize> {
        let generation = cut::generation(self.word) as u32;
        let ours = |index: &usize| {
            // SAFETY: filled in before the state was set.
            self.page.state(*index).load(Ordering::SeqCst) == slot::PARKED
                && unsafe {
                    (*self.page.slot(*index)).generation == generation
                        && (*self.page.slot(*index)).pid as i32 == pid
                }
        };
        self.page.used().filter(ours).collect()
    }

    pub(super) fn let_go(&self) {
        for index in self.page.used() {
            let state = self.page.state(index);
            // SAFETY: a plain word, written before the state.
            let ours = unsafe { (*self.page.slot(index)).generation } == cut::generation(self.word) as u32;
            if ours && matches!(state.load(Ordering::SeqCst), slot::PARKED | slot::DONE | slot::CALL) {
                self.page.go(index);
            }
        }
    }

    /// From PARK to `state`, unless a thread gave up before.
    pub(super) fn end(&self, state: u64) -> bool {
        let done = cut::word(cut::generation(self.word), state);
        let cut = &self.page.control().header.cut;
        cut.compare_exchange(self.word, done, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32};

    /// A cut on a page of its own.
    fn ordered() -> Cut {
        Cut::order(&Arc::new(Page::create().expect("a page")))
    }

    #[test]
    fn who_waits_for_an_agent_that_died_is_let_go() {
        let cut = ordered();
        let index = cut.page.reserve().expect("a slot");
        cut.page.state(index).store(slot::PARKED, Ordering::SeqCst);
        cut.free_left();
        assert_eq!(cut.page.state(index).load(Ordering::SeqCst), slot::GO);
    }

    /// Threads park while it is looked for such: none of them may be taken for one.
    #[test]
    fn who_parks_meanwhile_is_not_let_go() {
        const ROUNDS: u32 = 100_000;
        let cut = ordered();
        let index = cut.page.reserve().expect("a slot");
        let (ends, gone, looks) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::SeqCst) {
                    cut.free_left();
                    looks.fetch_add(1, Ordering::SeqCst);
                }
            });
            for _ in 0..ROUNDS {
                let state = cut.page.state(index);
                state.store(slot::CLAIMED, Ordering::SeqCst);
                // SAFETY: ours by the claim.
                unsafe { (*cut.page.slot(index)).generation = cut::generation(cut.word) as u32 };
                state.store(slot::PARKED, Ordering::SeqCst);
                for _ in 0..20 {
                    std::hint::spin_loop();
                }
                if state.swap(slot::FREE, Ordering::SeqCst) == slot::GO {
                    gone.fetch_add(1, Ordering::SeqCst);
                }
                // A thread parks once for a cut: no look sees two of them.
                let before = looks.load(Ordering::SeqCst);
                while looks.load(Ordering::SeqCst).wrapping_sub(before) < 2 {
                    std::thread::yield_now();
                }
                // SAFETY: nobody else writes it.
                unsafe { (*cut.page.slot(index)).generation = 0 };
            }
            ends.store(true, Ordering::SeqCst);
        });
        assert_eq!(gone.load(Ordering::SeqCst), 0);
    }
}
