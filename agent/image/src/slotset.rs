//! A set of slots: bits, since the slots of an epoch mostly follow one another.

use crate::slots::SEGMENT_SLOTS;

const WORDS: usize = SEGMENT_SLOTS as usize / 64;

/// A set of slots.
#[derive(Debug, Default)]
pub(crate) struct SlotSet(Vec<Option<Box<[u64; WORDS]>>>);

fn place(slot: u32) -> (usize, usize, u64) {
    let (segment, bit) = ((slot / SEGMENT_SLOTS) as usize, (slot % SEGMENT_SLOTS) as usize);
    (segment, bit / 64, 1 << (bit % 64))
}

impl SlotSet {
    /// Adds a slot. False: it was there.
    pub(crate) fn insert(&mut self, slot: u32) -> bool {
        let (segment, word, bit) = place(slot);
        if self.0.len() <= segment {
            self.0.resize_with(segment + 1, || None);
        }
        let words = self.0[segment].get_or_insert_with(|| Box::new([0; WORDS]));
        let new = words[word] & bit == 0;
        words[word] |= bit;
        new
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        let (segment, word, bit) = place(slot);
        self.0.get(segment).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }

    /// Takes a slot out. False: it was not there.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        let (segment, word, bit) = place(slot);
        let Some(words) = self.0.get_mut(segment).and_then(Option::as_mut) else { return false };
        let old = words[word] & bit != 0;
        words[word] &= !bit;
        old
    }

    /// Takes all out, in rising order.
    pub(crate) fn take(&mut self) -> Vec<u32> {
        let mut out = Vec::new();
        for (segment, words) in std::mem::take(&mut self.0).into_iter().enumerate() {
            for (number, mut word) in words.iter().flat_map(|words| words.iter().copied().enumerate()) {
                let first = segment as u32 * SEGMENT_SLOTS + number as u32 * 64;
                while word != 0 {
                    out.push(first + word.trailing_zeros());
                    word &= word - 1;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        // Goal: a set is a set. Method: random steps beside one of the standard library.
        #[test]
        fn is_a_set(steps in prop::collection::vec((0u8..3, 0u32..3, 0u32..200), 1..200)) {
            let (mut set, mut model) = (SlotSet::default(), BTreeSet::new());
            for (what, segment, offset) in steps {
                let slot = segment * SEGMENT_SLOTS + offset * 7;
                match what {
                    0 => prop_assert_eq!(set.insert(slot), model.insert(slot)),
                    1 => prop_assert_eq!(set.remove(slot), model.remove(&slot)),
                    _ => prop_assert_eq!(set.contains(slot), model.contains(&slot)),
                }
            }
            prop_assert_eq!(set.take(), model.into_iter().collect::<Vec<_>>());
            prop_assert!(set.take().is_empty());
        }
    }
}
