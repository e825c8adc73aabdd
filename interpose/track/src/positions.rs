//! Writes by a position that several share: a description that was inherited, or passed, or that threads use.
//!
//! Who asks where the position is and then writes there may come late: another one, who asked as well, writes first and moves it. So
//! all who have asked announce it, in one word per file, and what each records is what all of them may write until then:
//!
//! ```text
//!   end     32 bits   behind the last byte that they may write, modulo 4 GiB
//!   reach   27 bits   so far before it the last of them asked; 0: nobody joins
//!   joined   5 bits   so many have joined since the position moved; half of those before it did
//! ```
//!
//! Once the position is at the end all of them are done. One that is before it may also have been moved back, by who writes one
//! place over and over. So no more than [`JOINED_MAX`] join, nor more than 128 MiB, and then it begins anew: what is recorded in vain
//! has a bound.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

const END_BITS: u32 = 32;
const JOINED_BITS: u32 = 5;
const REACH_BITS: u32 = 64 - END_BITS - JOINED_BITS;
const END_MASK: u64 = (1 << END_BITS) - 1;
const REACH_MAX: u64 = (1 << REACH_BITS) - 1;
/// Twice as many as may be on the way at once.
pub const JOINED_MAX: u64 = (1 << JOINED_BITS) - 1;
/// Whoever is not heard so often may write anywhere.
const TRIES_MAX: u32 = 64;

/// Announces a write of `len` bytes at the position that `ask` tells. Where it may come to write, and how far that reaches; none: there
/// is no position.
pub fn announce(word: &AtomicU64, len: u64, mut ask: impl FnMut() -> Option<u64>) -> Option<(u64, u64)> {
    for _ in 0..TRIES_MAX {
        // Before it is asked: who announced something since may have moved the position.
        let known = word.load(Acquire);
        let at = ask()?;
        let (reach, next) = join(known, at, len);
        if word.compare_exchange(known, next, AcqRel, Acquire).is_ok() {
            return Some((at, reach));
        }
    }
    Some((0, u64::MAX))
}

/// How far one more reaches that asks for `len` bytes at `at`, and the word that says so.
fn join(word: u64, at: u64, len: u64) -> (u64, u64) {
    let end = word >> (64 - END_BITS);
    let known = word >> JOINED_BITS & REACH_MAX;
    let joined = word & JOINED_MAX;
    let ahead = end.wrapping_sub(at) & END_MASK;
    let (reach, joined) = match ahead {
        _ if ahead == 0 || ahead > known || joined == JOINED_MAX => (len, 0),
        _ if ahead == known => (len.saturating_add(ahead), joined + 1),
        _ => (len.saturating_add(ahead), joined / 2),
    };
    let end = at.wrapping_add(reach) & END_MASK;
    let known = if reach > REACH_MAX { 0 } else { reach };
    (reach, end << (64 - END_BITS) | known << JOINED_BITS | joined)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::{vec, vec::Vec};

    /// Writers of one position, each somewhere between asking and writing.
    struct Model {
        word: AtomicU64,
        position: u64,
        recorded: Vec<bool>,
        /// What each is about to write.
        flying: Vec<u64>,
    }

    impl Model {
        fn new(position: u64) -> Self {
            Self { word: AtomicU64::new(0), position, recorded: vec![false; 1 << 20], flying: Vec::new() }
        }

        fn ask(&mut self, len: u64) -> u64 {
            let (at, reach) = announce(&self.word, len, || Some(self.position)).expect("a position");
            let end = (at + reach).min(self.recorded.len() as u64);
            self.recorded[at as usize..end as usize].fill(true);
            self.flying.push(len);
            reach
        }

        fn write(&mut self, who: usize) {
            let len = self.flying.remove(who);
            let written = &self.recorded[self.position as usize..(self.position + len) as usize];
            assert!(written.iter().all(|is_recorded| *is_recorded), "{len} bytes at {}", self.position);
            self.position += len;
        }
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state >> 11
    }

    // Goal: whoever comes first, each writes where somebody recorded. Method: any order of up to eight writers of any lengths.
    #[test]
    fn all_that_is_written_is_recorded() {
        for seed in 1..400 {
            let mut state = seed * 0x9e37_79b9;
            let mut model = Model::new(random(&mut state) % 100_000);
            for _ in 0..200 {
                if model.flying.len() == 8 || !model.flying.is_empty() && random(&mut state) & 1 == 0 {
                    let who = random(&mut state) as usize % model.flying.len();
                    model.write(who);
                } else {
                    let len = 1 + random(&mut state) % if seed & 1 == 0 { 20 } else { 4000 };
                    model.ask(len);
                }
            }
            assert!(model.position < 1 << 20);
        }
    }

    // Goal: who is alone records what it writes, no more. Method: one after the other, from a place beyond the word's modulus on.
    #[test]
    fn one_writer_records_its_own() {
        let word = AtomicU64::new(0);
        let mut position = (1 << 40) - 5000;
        for len in [1, 4096, 100_000, 1 << 31, 7, 7] {
            assert_eq!(announce(&word, len, || Some(position)), Some((position, len)));
            position += len;
        }
        assert_eq!(announce(&word, 9, || Some(77)), Some((77, 9)), "elsewhere");
        assert_eq!(announce(&word, 9, || None), None);
    }

    // Goal: one place written over and over does not become the whole file. Method: more often than writers can be on the way.
    #[test]
    fn what_is_written_over_and_over_stays_small() {
        let mut model = Model::new(0);
        for _ in 0..1000 {
            assert!(model.ask(4096) <= 4096 * (JOINED_MAX + 1));
            model.flying.clear();
        }
        assert!(model.recorded[4096 * (JOINED_MAX as usize + 1)..].iter().all(|is_recorded| !is_recorded));
    }

    // Goal: who announces at the same moment is heard. Method: another one does, between the question and the answer.
    #[test]
    fn who_comes_in_between_is_joined() {
        let word = AtomicU64::new(0);
        let mut is_first = true;
        let found = announce(&word, 100, || {
            if std::mem::take(&mut is_first) {
                assert_eq!(announce(&word, 5000, || Some(10)), Some((10, 5000)));
            }
            Some(10)
        });
        assert_eq!(found, Some((10, 5100)));
    }
}
