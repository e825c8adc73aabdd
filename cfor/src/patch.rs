//! What of a file's new content is in its old one, when it is known where the file was written to.
//!
//! Content is the data of a file without its holes, so that a filled hole moves all that follows. Parts are whole
//! pages in both, for stores that keep content in pages: a file whose data does not lie in pages is copied whole.

use std::cmp::Ordering;

use crate::log::Ranges;
use crate::tree::Extent;

/// Parts of content begin at multiples of it, in the file and in the content.
pub const PART_BYTES: u64 = 4096;

/// A part of new content; they follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// As in the old content, from byte `at` on.
    Base {
        /// First byte in the old content.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// New bytes.
    Fresh {
        /// Bytes.
        len: u64,
    },
}

/// New content as parts, and where in the file its new bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) parts: Vec<Part>,
    pub(crate) fresh: Vec<Extent>,
}

impl Plan {
    fn keep(&mut self, at: u64, len: u64) {
        match self.parts.last_mut() {
            Some(Part::Base { at: old_at, len: old_len }) if *old_at + *old_len == at => *old_len += len,
            _ => self.parts.push(Part::Base { at, len }),
        }
    }

    fn read(&mut self, at: u64, len: u64) {
        match self.fresh.last_mut() {
            Some(last) if last.at + last.len == at => last.len += len,
            _ => self.fresh.push(Extent { at, len }),
        }
        match self.parts.last_mut() {
            Some(Part::Fresh { len: old_len }) => *old_len += len,
            _ => self.parts.push(Part::Fresh { len }),
        }
    }
}

/// A layout: size and data of a file.
pub(crate) type Layout<'a> = (u64, &'a [Extent]);

/// Whether data begins and ends at pages, but for the end of the file.
fn in_pages((size, data): Layout<'_>) -> bool {
    data.iter().all(|extent| {
        let end = extent.at + extent.len;
        extent.at.is_multiple_of(PART_BYTES) && (end.is_multiple_of(PART_BYTES) || end == size)
    })
}

/// The first byte of the first page that holds anything of a range, and the first byte behind its last.
fn pages(extent: &Extent) -> (u64, u64) {
    let end = extent.at.saturating_add(extent.len);
    (extent.at - extent.at % PART_BYTES, end.checked_next_multiple_of(PART_BYTES).unwrap_or(u64::MAX))
}

/// What is new of a file that had layout `old`, has `new`, and was changed in `touched` only. `None`: not in pages.
pub(crate) fn plan(old: Layout<'_>, new: Layout<'_>, touched: &Ranges) -> Option<Plan> {
    if !in_pages(old) || !in_pages(new) {
        return None;
    }
    let mut plan = Plan::default();
    let touched: Vec<(u64, u64)> = touched.iter().map(|extent| pages(&extent)).collect();
    let mut touched = touched.into_iter().peekable();
    // Old extents with the place of each in the old content.
    let mut content = 0;
    let mut known = old.1.iter().map(|extent| {
        // The last page of a file that has another size now is another page.
        let end = extent.at + extent.len;
        let whole = if end == new.0 && old.0 == new.0 { end } else { end - end % PART_BYTES };
        let place = (extent.at, whole, content);
        content += extent.len;
        place
    });
    let mut known_now = known.next();
    for extent in new.1 {
        let (mut at, end) = (extent.at, extent.at + extent.len);
        let last =
            if old.0 == new.0 || end.is_multiple_of(PART_BYTES) { end } else { end - end % PART_BYTES };
        while at < end {
            while touched.peek().is_some_and(|(_, until)| *until <= at) {
                touched.next();
            }
            while known_now.is_some_and(|(_, until, _)| until <= at) {
                known_now = known.next();
            }
            let (is_touched, mut next) = match touched.peek() {
                Some((from, until)) if *from <= at => (true, *until),
                Some((from, _)) => (false, *from),
                None => (false, u64::MAX),
            };
            next = next.min(end);
            let source = match known_now {
                Some((from, until, place)) => match from.cmp(&at) {
                    Ordering::Less | Ordering::Equal if at < last => {
                        next = if is_touched { next } else { next.min(until).min(last) };
                        Some(place + (at - from))
                    }
                    Ordering::Less | Ordering::Equal => None,
                    Ordering::Greater => {
                        next = if is_touched { next } else { next.min(from) };
                        None
                    }
                },
                None => None,
            };
            match source {
                Some(place) if !is_touched => plan.keep(place, next - at),
                _ => plan.read(at, next - at),
            }
            at = next;
        }
    }
    Some(plan)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// A file in units of half a page: `None` is a hole.
    type Model = Vec<Option<u8>>;

    const UNIT: u64 = PART_BYTES / 2;

    /// Holes are whole pages only.
    fn settle(model: &mut Model) {
        for page in model.chunks_mut(2) {
            if page.iter().any(Option::is_some) {
                page.iter_mut().for_each(|unit| *unit = unit.or(Some(0)));
            }
        }
    }

    fn layout(model: &Model) -> (u64, Vec<Extent>) {
        let mut data: Vec<Extent> = Vec::new();
        for (at, unit) in model.iter().enumerate() {
            let at = at as u64 * UNIT;
            match data.last_mut() {
                _ if unit.is_none() => {}
                Some(last) if last.at + last.len == at => last.len += UNIT,
                _ => data.push(Extent { at, len: UNIT }),
            }
        }
        (model.len() as u64 * UNIT, data)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// The parts, taken from the old content and the new file, are the new content; and nothing is read that was
        /// neither touched, nor a hole, nor at an end of the file.
        #[test]
        fn parts_are_the_new_content(
            old in proptest::collection::vec(proptest::option::of(1u8..5), 0..40),
            steps in proptest::collection::vec((0u8..3, 0usize..40, 1usize..6, 10u8..200), 0..6),
        ) {
            let mut old: Model = old;
            settle(&mut old);
            let (mut new, mut touched) = (old.clone(), Ranges::default());
            for (what, at, len, byte) in steps {
                match what {
                    // Written.
                    0 => {
                        new.resize(new.len().max(at + len), None);
                        new[at..at + len].fill(Some(byte));
                        touched.insert(at as u64 * UNIT, len as u64 * UNIT);
                    }
                    // Cut, or made longer.
                    1 => {
                        touched.insert(at.min(new.len()) as u64 * UNIT, u64::MAX);
                        new.resize(at, None);
                    }
                    // A hole.
                    _ => {
                        let (from, to) = ((at & !1).min(new.len()), ((at + len) & !1).min(new.len()));
                        if from < to {
                            new[from..to].fill(None);
                            touched.insert(from as u64 * UNIT, (to - from) as u64 * UNIT);
                        }
                    }
                }
                settle(&mut new);
            }
            let ((old_size, old_data), (new_size, new_data)) = (layout(&old), layout(&new));
            let plan = plan((old_size, &old_data), (new_size, &new_data), &touched).unwrap();
            let old_content: Vec<u8> = old.iter().filter_map(|unit| *unit).collect();
            let mut fresh: Vec<u8> = Vec::new();
            for extent in &plan.fresh {
                let range = (extent.at / UNIT) as usize..((extent.at + extent.len) / UNIT) as usize;
                fresh.extend(new[range].iter().map(|unit| unit.unwrap()));
            }
            let (mut fresh, mut content) = (fresh.into_iter(), Vec::new());
            for part in &plan.parts {
                match part {
                    Part::Base { at, len } => {
                        prop_assert_eq!(at % PART_BYTES, 0);
                        let range = (at / UNIT) as usize..((at + len) / UNIT) as usize;
                        content.extend_from_slice(&old_content[range]);
                    }
                    Part::Fresh { len } => content.extend(fresh.by_ref().take((len / UNIT) as usize)),
                }
            }
            prop_assert_eq!(content, new.iter().filter_map(|unit| *unit).collect::<Vec<u8>>());
            prop_assert!(fresh.next().is_none());
            if touched.is_empty() {
                prop_assert!(plan.fresh.is_empty(), "{:?}", plan);
            }
        }
    }

    #[test]
    fn a_write_into_a_large_file_is_one_page() {
        let data = [Extent { at: 0, len: 1 << 30 }];
        let mut touched = Ranges::default();
        touched.insert(5 * PART_BYTES + 100, 10);
        let plan = plan((1 << 30, &data), (1 << 30, &data), &touched).unwrap();
        assert_eq!(plan.fresh, [Extent { at: 5 * PART_BYTES, len: PART_BYTES }]);
        assert_eq!(plan.parts.len(), 3);
    }

    #[test]
    fn data_that_is_not_in_pages_is_refused() {
        let data = [Extent { at: 512, len: 4096 }];
        assert_eq!(plan((8192, &data), (8192, &data), &Ranges::default()), None);
    }
}
