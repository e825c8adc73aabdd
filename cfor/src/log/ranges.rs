//! A set of bytes of a file, as ranges that merge when they come.

use std::collections::BTreeMap;

use crate::tree::Extent;

/// Ranges that neither overlap nor touch. Memory is in proportion to them, not to what was inserted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First byte to the one after the last.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// No bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self { ends: BTreeMap::new() }
    }

    /// Places, first byte to the one after the last, in any order; cheaper than one after the other.
    #[must_use]
    pub fn of(mut places: Vec<(u64, u64)>) -> Self {
        places.sort_unstable();
        places.retain(|(start, end)| start < end);
        // What overlaps or touches the one before becomes a part of it.
        places.dedup_by(|(start, end), before| {
            let joins = *start <= before.1;
            if joins {
                before.1 = before.1.max(*end);
            }
            joins
        });
        Self { ends: places.into_iter().collect() }
    }

    /// Adds `len` bytes at `at`. What would go past the last offset there is ends there.
    pub fn insert(&mut self, at: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (mut start, mut end) = (at, at.saturating_add(len));
        // From the last to the first that overlaps or touches.
        while let Some((&old_start, &old_end)) = self.ends.range(..=end).next_back() {
            if old_end < start {
                break;
            }
            (start, end) = (start.min(old_start), end.max(old_end));
            self.ends.remove(&old_start);
        }
        self.ends.insert(start, end);
    }

    /// Takes all bytes from `size` on away.
    pub fn truncate(&mut self, size: u64) {
        drop(self.ends.split_off(&size));
        if let Some((_, end)) = self.ends.iter_mut().next_back() {
            *end = (*end).min(size);
        }
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes in all ranges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ends.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.ends.iter().map(|(start, end)| Extent { at: *start, len: end - start })
    }

    /// Closes the smallest gaps until at most `ranges_max` (1 or more) ranges are left. No byte is lost; those
    /// that were added are counted.
    pub fn coarsen(&mut self, ranges_max: usize) -> u64 {
        let surplus = self.ends.len().saturating_sub(ranges_max.max(1));
        let mut gaps: Vec<(u64, u64)> = self
            .ends
            .iter()
            .zip(self.ends.keys().skip(1))
            .map(|((_, end), next)| (next - end, *end))
            .collect();
        if surplus == 0 || surplus > gaps.len() {
            return 0;
        }
        gaps.sort_unstable();
        gaps.truncate(surplus);
        for (len, at) in &gaps {
            self.insert(*at, *len);
        }
        gaps.iter().map(|(len, _)| len).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pairs(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.at, range.at + range.len)).collect()
    }

    #[test]
    fn overlapping_writes_are_one_range() {
        let mut ranges = Ranges::default();
        ranges.insert(30, 30_000);
        ranges.insert(20, 20_000);
        assert_eq!(pairs(&ranges), [(20, 30_030)]);
    }

    proptest! {
        /// All at once or one after the other.
        #[test]
        fn many_places_are_those_one_by_one(places in proptest::collection::vec((0u64..300, 0u64..20), 0..60)) {
            let mut ranges = Ranges::default();
            places.iter().for_each(|(at, len)| ranges.insert(*at, *len));
            prop_assert_eq!(Ranges::of(places.iter().map(|(at, len)| (*at, at + len)).collect()), ranges);
        }
    }

    #[test]
    fn the_end_of_all_offsets_is_a_bound() {
        let mut ranges = Ranges::default();
        ranges.insert(u64::MAX - 1, 10);
        ranges.insert(5, u64::MAX);
        assert_eq!(pairs(&ranges), [(5, u64::MAX)]);
    }

    proptest! {
        /// The same bytes as a set of bytes, in the fewest ranges; coarsening loses none and counts what it adds.
        #[test]
        fn as_a_set_of_bytes(
            steps in proptest::collection::vec((any::<bool>(), 0u64..300, 0u64..20), 0..60),
            ranges_max in 1usize..10,
        ) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (is_cut, at, len) in steps {
                if is_cut && len < 4 {
                    ranges.truncate(at);
                    model.retain(|byte| *byte < at);
                } else {
                    ranges.insert(at, len);
                    model.extend(at..at + len);
                }
                let all: BTreeSet<u64> = ranges.iter().flat_map(|r| r.at..r.at + r.len).collect();
                prop_assert_eq!(&all, &model);
                let starts = model.iter().filter(|byte| **byte == 0 || !model.contains(&(**byte - 1)));
                prop_assert_eq!(ranges.len(), starts.count());
                prop_assert_eq!(ranges.bytes(), model.len() as u64);
            }
            let added = ranges.coarsen(ranges_max);
            let all: BTreeSet<u64> = ranges.iter().flat_map(|r| r.at..r.at + r.len).collect();
            prop_assert!(ranges.len() <= ranges_max && all.is_superset(&model));
            prop_assert_eq!(all.len() as u64, model.len() as u64 + added);
        }
    }
}
