//! The gate of files that are awaited (`holo_abi::awaited`): who may write.

use core::sync::atomic::Ordering::SeqCst;
use holo_abi::awaited::{Awaited, Gate, PIECE_SHIFT, PLACES, PROBES_MAX, state};
use holo_abi::changes::place;

/// What a writer waits for.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// The file.
    pub file: &'a Awaited,
    /// [`Awaited::turn`] before it was looked at.
    pub turn: u32,
}

/// Finds the place of a file.
#[must_use]
pub fn find(gate: &Gate, key: u64) -> Option<usize> {
    let first = place(key, PLACES.trailing_zeros());
    for step in 0..PROBES_MAX {
        let at = (first + step) % PLACES;
        match gate.files[at].key.load(SeqCst) {
            0 => return None,
            now if now == key => return Some(at),
            _ => {}
        }
    }
    None
}

/// May the bytes `at..end` of a file be destroyed? If not, what is to be waited for.
#[must_use]
pub fn look(gate: &Gate, key: u64, at: u64, end: u64) -> Option<Wait<'_>> {
    let place = find(gate, key)?;
    let file = &gate.files[place];
    let turn = file.turn.load(SeqCst);
    if file.state.load(SeqCst) & state::AWAITED == 0 {
        return None;
    }
    match missing(gate, file, at, end) {
        None => {
            file.passed.store(1, SeqCst);
            None
        }
        Some(piece) => {
            file.want.store(piece, SeqCst);
            let before = file.state.fetch_or(state::WANTED, SeqCst);
            gate.latest.store(place as u32, SeqCst);
            gate.wanted.fetch_add(1, SeqCst);
            // It may have been read since, and nobody would wake us.
            let is_there = before & state::AWAITED != 0 && missing(gate, file, at, end).is_some();
            is_there.then_some(Wait { file, turn })
        }
    }
}

/// The number of the first piece of `at..end` that was not read yet.
fn missing(gate: &Gate, file: &Awaited, at: u64, end: u64) -> Option<u64> {
    let (from, below) = (file.from.load(SeqCst), file.below.load(SeqCst));
    let (at, end) = (at.max(from), end.min(below));
    if at >= end {
        return None;
    }
    let Some(first) = (file.pieces.load(SeqCst) as usize).checked_sub(1) else { return Some(0) };
    let shift = file.shift.load(SeqCst).clamp(PIECE_SHIFT, 63);
    (at >> shift..=(end - 1) >> shift).find(|piece| !is_taken(gate, first + *piece as usize))
}

fn is_taken(gate: &Gate, piece: usize) -> bool {
    let word = &gate.taken[piece / 64 % gate.taken.len()];
    word.load(SeqCst) & 1 << (piece % 64) != 0
}

/// Marks a file that is awaited as one that was written to, where nothing was awaited, or has other times.
pub fn pass(gate: &Gate, key: u64) {
    if let Some(place) = find(gate, key) {
        gate.files[place].passed.store(1, SeqCst);
    }
}
