//! Recording names (`holo_abi::names`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use holo_abi::names::{HEAD_WORDS, Heard, NAME_BYTES_MAX, NAMES_MAX, PROBES_MAX, WORDS_MAX, entry_words};

/// What becomes of an entry.
pub enum Place<'a> {
    /// It is there.
    Known,
    /// Room for it, to be [made known](Room::enter).
    Room(Room<'a>),
    /// There is no room.
    Lost,
}

/// Room for an entry.
pub struct Room<'a> {
    heard: &'a Heard,
    hash: u64,
    at: usize,
    bytes: usize,
}

/// Looks for the entry of a hash; makes room for one of so many bytes if there is none.
#[must_use]
pub fn place(heard: &Heard, hash: u64, bytes: usize) -> Place<'_> {
    if is_known(heard, hash) {
        return Place::Known;
    }
    let words = entry_words(bytes);
    let at = heard.used.fetch_add(words as u32, Relaxed) as usize;
    if bytes > NAME_BYTES_MAX || at.saturating_add(words) > WORDS_MAX {
        // Also keeps it from running over.
        heard.used.store(WORDS_MAX as u32, Relaxed);
        heard.lost.store(1, Relaxed);
        return Place::Lost;
    }
    Place::Room(Room { heard, hash, at, bytes })
}

/// Is there an entry of this hash?
#[must_use]
pub fn is_known(heard: &Heard, hash: u64) -> bool {
    entry(heard, hash).is_some()
}

fn entry(heard: &Heard, hash: u64) -> Option<&[AtomicU64]> {
    let places = slots(hash).map(|slot| heard.slots[slot].load(Acquire)).take_while(|at| *at != 0);
    let mut entries = places.filter_map(|at| heard.words.get(at as usize - 1..));
    entries.find(|entry| entry.first().is_some_and(|word| word.load(Relaxed) == hash))
}

/// Notes what has become of a move (`holo_abi::names::moves`).
pub fn settle(heard: &Heard, hash: u64, what: u64) {
    if let Some(word) = entry(heard, hash).and_then(|entry| entry.get(2)) {
        word.store(what, Release);
    }
}

fn slots(hash: u64) -> impl Iterator<Item = usize> {
    let first = hash as usize;
    (0..PROBES_MAX).map(move |step| first.wrapping_add(step) % NAMES_MAX)
}

impl Room<'_> {
    /// Where the bytes go.
    #[must_use]
    pub fn bytes(&self) -> *mut u8 {
        self.heard.words[self.at + HEAD_WORDS..].as_ptr().cast_mut().cast()
    }

    /// Makes the entry known, of which `bytes` were written.
    pub fn enter(self, kind: u32, bytes: usize, directory: u64) {
        let (room, bytes) = (self.at + entry_words(self.bytes), bytes.min(self.bytes));
        let left = (room as u32, (self.at + entry_words(bytes)) as u32);
        // What is not needed is given back, if nobody has taken what is behind it.
        let _ = self.heard.used.compare_exchange(left.0, left.1, Relaxed, Relaxed);
        let bytes = bytes as u64;
        let words = &self.heard.words[self.at..];
        words[0].store(self.hash, Relaxed);
        words[1].store(u64::from(kind) << 32 | bytes, Relaxed);
        words[2].store(directory, Relaxed);
        for slot in slots(self.hash) {
            let slot = &self.heard.slots[slot];
            if slot.load(Relaxed) == 0
                && slot.compare_exchange(0, self.at as u64 + 1, Release, Relaxed).is_ok()
            {
                return;
            }
        }
        self.heard.lost.store(1, Relaxed);
    }
}
