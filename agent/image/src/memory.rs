//! The memory of an epoch: what its pages are called, and where they lie here. Two of them are compared, and one is made of
//! another one and what changed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    error::ManifestError,
    key::{PAGE_BYTES, PageKey},
    manifest::{PageRun, SlotRun, push_slots},
    spread::{Names, Piece, Spread},
};

/// The slot of a page of zeros, which lies nowhere.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Pages that are compared at once.
const PART_PAGES: usize = 64;
const PAGE: u64 = PAGE_BYTES as u64;

/// Addresses (or offsets) from `start` up to `end` in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Address space or object.
    pub space: u64,
    /// First byte, at a page's start.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// Names of pages, and a slot for each of them, in the same pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    names: Names,
    slots: Spread<u32>,
}

/// Pages that follow one another.
#[derive(Clone, Copy)]
struct View<'a> {
    space: u64,
    address: u64,
    keys: &'a [PageKey],
    slots: &'a [u32],
}

impl<'a> View<'a> {
    fn at(&self) -> (u64, u64) {
        (self.space, self.address)
    }

    fn end(&self) -> u64 {
        self.address + self.keys.len() as u64 * PAGE
    }

    /// The first pages, and the others if there are any.
    fn split(self, count: usize) -> (Self, Option<Self>) {
        let ((keys, more_keys), (slots, more_slots)) =
            (self.keys.split_at(count), self.slots.split_at(count));
        let address = self.address + count as u64 * PAGE;
        let rest = View { address, keys: more_keys, slots: more_slots, ..self };
        (View { keys, slots, ..self }, (!more_keys.is_empty()).then_some(rest))
    }

    /// [`Self::split`] at a place, which is behind the first page.
    fn until(self, place: (u64, u64)) -> (Self, Option<Self>) {
        let inside = place.0 == self.space && place.1 < self.end();
        let count = if inside { ((place.1 - self.address) / PAGE) as usize } else { self.keys.len() };
        self.split(count)
    }
}

/// What was at a place and what is there now: as many pages of the one as of the other, or none of one of them.
pub(crate) struct Change<'a> {
    pub(crate) space: u64,
    pub(crate) address: u64,
    pub(crate) old: &'a [PageKey],
    pub(crate) new: &'a [PageKey],
    pub(crate) old_slots: &'a [u32],
    pub(crate) new_slots: &'a [u32],
}

impl Change<'_> {
    fn at(piece: &View) -> Self {
        let (space, address) = piece.at();
        Change { space, address, old: &[], new: &[], old_slots: &[], new_slots: &[] }
    }

    pub(crate) fn range(&self) -> Range {
        let count = self.old.len().max(self.new.len()) as u64;
        Range { space: self.space, start: self.address, end: self.address + count * PAGE }
    }
}

impl Memory {
    /// Out of runs in rising order and slots of those of their pages that are not of zeros.
    pub(crate) fn placed(runs: &[PageRun], slots: &mut impl Iterator<Item = u32>) -> Memory {
        let mut place = |key: &PageKey| if key.is_zero() { NOWHERE } else { slots.next().unwrap_or(NOWHERE) };
        let mut out = Memory::default();
        for run in runs {
            let slots: Vec<u32> = run.keys.iter().map(&mut place).collect();
            out.names.push(run.space, run.address, &run.keys);
            out.slots.push(run.space, run.address, &slots);
        }
        out
    }

    /// All of these, in whatever order they are; they must not overlap.
    pub(crate) fn joined(all: &[Memory]) -> Result<Memory, ManifestError> {
        let mut pieces: Vec<_> =
            all.iter().flat_map(|memory| memory.names.pieces().iter().zip(memory.slots.pieces())).collect();
        pieces.sort_by_key(|(names, _)| names.at());
        let overlap = |pair: &&[(&Piece<PageKey>, _)]| {
            let [(one, _), (next, _)] = pair else { return false };
            one.space == next.space && one.end() > next.address
        };
        if let Some([_, (next, _)]) = pieces.windows(2).find(overlap) {
            return Err(ManifestError::Overlap { space: next.space, address: next.address });
        }
        let mut out = Memory::default();
        pieces.into_iter().for_each(|(names, slots)| out.push(names, Arc::clone(&slots.items)));
        Ok(out)
    }

    /// Adds pages behind all others.
    pub(crate) fn push(&mut self, names: &Piece<PageKey>, slots: Arc<Vec<u32>>) {
        debug_assert_eq!(names.items.len(), slots.len());
        self.names.push_piece(names);
        self.slots.push_piece(&Piece { space: names.space, address: names.address, items: slots });
    }

    /// Its pieces from one on.
    fn views_from(&self, first: usize) -> impl Iterator<Item = View<'_>> {
        let both = self.names.pieces()[first..].iter().zip(&self.slots.pieces()[first..]);
        both.map(|(names, slots)| View {
            space: names.space,
            address: names.address,
            keys: &names.items,
            slots: &slots.items,
        })
    }

    fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.views_from(0)
    }

    /// Names of all pages, in runs that do not touch.
    pub(crate) fn runs(&self) -> Vec<PageRun> {
        let mut names = self.names.items();
        let run = |range: Range| PageRun {
            space: range.space,
            address: range.start,
            keys: names.by_ref().take(((range.end - range.start) / PAGE) as usize).collect(),
        };
        self.names.ranges().into_iter().map(run).collect()
    }

    /// How many runs that is.
    pub(crate) fn run_count(&self) -> usize {
        self.names.ranges().len()
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.names.count()
    }

    /// Slots and names of all pages but those of zeros, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, PageKey)> {
        self.slots.items().zip(self.names.items()).filter(|(_, key)| !key.is_zero())
    }

    /// Slots of all pages but those of zeros, in order.
    pub(crate) fn slot_runs(&self) -> Vec<SlotRun> {
        let mut out = Vec::new();
        self.places().for_each(|(first, _)| push_slots(&mut out, SlotRun { first, count: 1 }));
        out
    }

    /// This piece and its slots, if it is here.
    pub(crate) fn same(&self, names: &Piece<PageKey>) -> Option<(&Piece<PageKey>, &Arc<Vec<u32>>)> {
        let at = self.names.first_at(names.space, names.address);
        let known = self.names.pieces().get(at).filter(|known| known.at() == names.at())?;
        let is_same = Arc::ptr_eq(&known.items, &names.items) || known.items == names.items;
        is_same.then(|| (known, &self.slots.pieces()[at].items))
    }

    /// Gives the slot of each page at a place that is called so there, and asks for those of others.
    pub(crate) fn slots_of<E>(
        &self,
        (space, address): (u64, u64),
        keys: &[PageKey],
        mut other: impl FnMut(&[PageKey], &mut Vec<u32>) -> Result<(), E>,
    ) -> Result<Vec<u32>, E> {
        let mut out = Vec::with_capacity(keys.len());
        let end = address + keys.len() as u64 * PAGE;
        for whole in self.views_from(self.names.first_at(space, address)) {
            if whole.at() >= (space, end) {
                break;
            }
            let piece = if whole.address < address { whole.until((space, address)).1 } else { Some(whole) };
            let Some(piece) = piece.map(|piece| piece.until((space, end)).0) else { continue };
            let from = ((piece.address - address) / PAGE) as usize;
            other(&keys[out.len()..from], &mut out)?;
            let same = View {
                space,
                address: piece.address,
                keys: &keys[from..from + piece.keys.len()],
                slots: piece.slots,
            };
            let mut at = from;
            let mut differing: Vec<(usize, usize)> = Vec::new();
            differences(piece, same, &mut |change| {
                let start = ((change.address - address) / PAGE) as usize;
                differing.push((start, start + change.old.len()));
            });
            for (start, end) in differing {
                out.extend_from_slice(&piece.slots[at - from..start - from]);
                other(&keys[start..end], &mut out)?;
                at = end;
            }
            out.extend_from_slice(&piece.slots[at - from..]);
        }
        other(&keys[out.len()..], &mut out)?;
        Ok(out)
    }

    /// The pages in these ranges, and the ranges in which there are none.
    pub(crate) fn parts(&self, ranges: &[Range]) -> (Memory, Vec<Range>) {
        let parts = Memory { names: self.names.parts(ranges), slots: self.slots.parts(ranges) };
        let (mut gaps, there) = (Vec::new(), parts.names.ranges());
        let mut there = there.as_slice();
        for range in ranges {
            let mut at = range.start;
            while let Some(next) =
                there.first().filter(|next| next.space == range.space && next.start < range.end)
            {
                if at < next.start {
                    gaps.push(Range { start: at, end: next.start, ..*range });
                }
                at = next.end;
                if next.end > range.end {
                    break;
                }
                there = &there[1..];
            }
            if at < range.end {
                gaps.push(Range { start: at, ..*range });
            }
        }
        (parts, gaps)
    }

    /// This memory, but for what is gone and what is `fresh`.
    pub(crate) fn changed(&self, gone: &[Range], fresh: &Memory) -> Memory {
        let mut cuts = [fresh.names.ranges().as_slice(), gone].concat();
        cuts.sort_unstable_by_key(|cut| (cut.space, cut.start));
        Memory {
            names: self.names.without(&cuts).and(&fresh.names),
            slots: self.slots.without(&cuts).and(&fresh.slots),
        }
    }

    /// Gives all places, in rising order, at which a page of `new` is called otherwise than here, or lies elsewhere.
    pub(crate) fn compare<'a>(&'a self, new: &'a Memory, mut give: impl FnMut(Change<'a>)) {
        let (mut olds, mut news) = (self.views(), new.views());
        let (mut old, mut now) = (olds.next(), news.next());
        loop {
            match (old, now) {
                (Some(was), is) if is.is_none_or(|is| was.at() < is.at()) => {
                    let (gone, rest) = is.map_or((was, None), |is| was.until(is.at()));
                    give(Change { old: gone.keys, old_slots: gone.slots, ..Change::at(&gone) });
                    old = rest.or_else(|| olds.next());
                }
                (was, Some(is)) if was.is_none_or(|was| is.at() < was.at()) => {
                    let (fresh, rest) = was.map_or((is, None), |was| is.until(was.at()));
                    give(Change { new: fresh.keys, new_slots: fresh.slots, ..Change::at(&fresh) });
                    now = rest.or_else(|| news.next());
                }
                (Some(was), Some(is)) => {
                    let count = was.keys.len().min(is.keys.len());
                    let ((one, old_rest), (other, new_rest)) = (was.split(count), is.split(count));
                    differences(one, other, &mut give);
                    old = old_rest.or_else(|| olds.next());
                    now = new_rest.or_else(|| news.next());
                }
                (None, _) | (_, None) => return,
            }
        }
    }
}

/// [`Memory::compare`] of as many pages at the same place.
fn differences<'a>(was: View<'a>, is: View<'a>, give: &mut impl FnMut(Change<'a>)) {
    // A piece that both share.
    if std::ptr::eq(was.keys, is.keys) && std::ptr::eq(was.slots, is.slots) {
        return;
    }
    let differs = |at: &usize| was.keys[*at] != is.keys[*at] || was.slots[*at] != is.slots[*at];
    for first in (0..was.keys.len()).step_by(PART_PAGES) {
        let part = first..(first + PART_PAGES).min(was.keys.len());
        if was.slots[part.clone()] == is.slots[part.clone()]
            && was.keys[part.clone()] == is.keys[part.clone()]
        {
            continue;
        }
        let mut at = first;
        while at < part.end {
            at += (at..part.end).take_while(|at| !differs(at)).count();
            let end = at + (at..part.end).take_while(|at| differs(at)).count();
            if at < end {
                give(Change {
                    space: was.space,
                    address: was.address + at as u64 * PAGE,
                    old: &was.keys[at..end],
                    new: &is.keys[at..end],
                    old_slots: &was.slots[at..end],
                    new_slots: &is.slots[at..end],
                });
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<(u64, u64), (PageKey, u32)>;

    fn memory(model: &Model) -> Memory {
        let mut out = Memory::default();
        for ((space, address), (key, slot)) in model {
            let names = Piece { space: *space, address: *address, items: Arc::new(vec![*key]) };
            out.push(&names, Arc::new(vec![*slot]));
        }
        out
    }

    fn model(memory: &Memory) -> Model {
        let pages = memory.views().flat_map(|piece| {
            let of = move |(at, (key, slot)): (usize, (&PageKey, &u32))| {
                ((piece.space, piece.address + at as u64 * PAGE), (*key, *slot))
            };
            piece.keys.iter().zip(piece.slots).enumerate().map(of).collect::<Vec<_>>()
        });
        pages.collect()
    }

    fn models() -> impl Strategy<Value = Model> {
        let page = ((0u64..3, 0u64..150), (0u8..3, 0u32..2));
        prop::collection::vec(page, 0..300).prop_map(|pages| {
            let of =
                |((space, page), (key, slot))| ((space, page * PAGE), (PageKey::from_bytes([key; 16]), slot));
            pages.into_iter().map(of).collect()
        })
    }

    proptest! {
        // Goal: what a comparison finds leads from the one memory to the other, and is no more than what differs.
        // Method: random memories beside maps.
        #[test]
        fn what_differs_leads_from_one_to_the_other(old in models(), new in models()) {
            let (was, is) = (memory(&old), memory(&new));
            prop_assert_eq!(&model(&was), &old);
            let mut ranges = Vec::new();
            let mut found = Model::new();
            was.compare(&is, |change| {
                let range = change.range();
                ranges.push(range);
                for at in (range.start..range.end).step_by(PAGE_BYTES) {
                    let place = (range.space, at);
                    assert_ne!(old.get(&place), new.get(&place));
                    let number = ((at - range.start) / PAGE) as usize;
                    assert_eq!(change.old.get(number), old.get(&place).map(|page| &page.0));
                    assert_eq!(change.new.get(number), new.get(&place).map(|page| &page.0));
                    found.insert(place, (PageKey::ZERO, 0));
                }
            });
            let places = old.keys().chain(new.keys()).filter(|at| old.get(at) != new.get(at));
            prop_assert_eq!(found.len(), places.collect::<std::collections::BTreeSet<_>>().len());
            prop_assert!(ranges.is_sorted_by_key(|range| (range.space, range.start)));
            let mut asked = 0;
            for view in is.views() {
                let (keys, slots) = (view.keys, view.slots);
                let found = was.slots_of(view.at(), keys, |keys, out| {
                    asked += keys.len();
                    let place = out.len();
                    out.extend_from_slice(&slots[place..place + keys.len()]);
                    Ok::<(), ()>(())
                });
                let found = found.unwrap();
                for (number, slot) in found.iter().enumerate() {
                    let place = (view.space, view.address + number as u64 * PAGE);
                    let known = old.get(&place).filter(|(key, _)| *key == keys[number]);
                    prop_assert_eq!(*slot, known.map_or(slots[number], |(_, slot)| *slot));
                }
                prop_assert_eq!(found.len(), slots.len());
            }
            let same_name = new.iter().filter(|(at, page)| old.get(at).map(|page| page.0) == Some(page.0)).count();
            prop_assert_eq!(asked, new.len() - same_name);
            let (fresh, gone) = is.parts(&ranges);
            let made = was.changed(&gone, &fresh);
            prop_assert_eq!(model(&made), new);
            prop_assert_eq!(made.runs(), is.runs());
        }
    }
}
