//! The memory of an epoch: what its pages are called, and where they lie here. Two of them are compared, and one is made of
//! another one and what changed.

use serde::{Deserialize, Serialize};

use crate::{
    key::{PAGE_BYTES, PageKey},
    manifest::{PageRun, SlotRun, push_slots},
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

/// Runs of pages in rising order; those that touch are one. With a slot for each page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    runs: Vec<PageRun>,
    slots: Vec<Vec<u32>>,
}

/// Pages that follow one another.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    space: u64,
    address: u64,
    keys: &'a [PageKey],
    slots: &'a [u32],
}

impl<'a> Piece<'a> {
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
        let rest = Piece { address, keys: more_keys, slots: more_slots, ..self };
        (Piece { keys, slots, ..self }, (!more_keys.is_empty()).then_some(rest))
    }

    /// [`Self::split`] at a place, which is behind the first page.
    fn until(self, place: (u64, u64)) -> (Self, Option<Self>) {
        let inside = place.0 == self.space && place.1 < self.end();
        let count = if inside { ((place.1 - self.address) / PAGE) as usize } else { self.keys.len() };
        self.split(count)
    }

    /// What none of these ranges has; they are sorted and do not overlap.
    fn without(self, cuts: &[Range], out: &mut Vec<Piece<'a>>) {
        let first = cuts.partition_point(|cut| (cut.space, cut.end) <= self.at());
        let mut rest = Some(self);
        for cut in &cuts[first..] {
            let Some(piece) = rest.filter(|piece| cut.space == piece.space && cut.start < piece.end()) else {
                break;
            };
            if cut.start > piece.address {
                let (kept, more) = piece.until((cut.space, cut.start));
                out.push(kept);
                rest = more;
            }
            rest = rest.and_then(|piece| match (piece.end() > cut.end, piece.address < cut.end) {
                (true, true) => piece.until((cut.space, cut.end)).1,
                (_, true) => None,
                (_, false) => Some(piece),
            });
        }
        out.extend(rest);
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
    fn at(piece: &Piece) -> Self {
        let (space, address) = piece.at();
        Change { space, address, old: &[], new: &[], old_slots: &[], new_slots: &[] }
    }

    pub(crate) fn range(&self) -> Range {
        let count = self.old.len().max(self.new.len()) as u64;
        Range { space: self.space, start: self.address, end: self.address + count * PAGE }
    }
}

impl Memory {
    /// Out of runs in rising order and a slot for each of their pages.
    pub(crate) fn of(runs: Vec<PageRun>, slots: impl IntoIterator<Item = Vec<u32>>) -> Memory {
        let mut out = Memory::default();
        let mut rest: usize = runs.iter().map(|run| run.keys.len()).sum();
        for (run, slots) in runs.into_iter().zip(slots) {
            let count = run.keys.len();
            if out.goes_on_at(run.space, run.address) {
                // The rest is perhaps all of that run: room is made once.
                if let (Some(run), Some(slots)) = (out.runs.last_mut(), out.slots.last_mut())
                    && run.keys.capacity() < run.keys.len() + count
                {
                    run.keys.reserve(rest);
                    slots.reserve(rest);
                }
                out.push(Piece { space: run.space, address: run.address, keys: &run.keys, slots: &slots });
            } else {
                out.runs.push(run);
                out.slots.push(slots);
            }
            rest -= count;
        }
        out
    }

    /// Out of runs in rising order and slots of those of their pages that are not of zeros.
    pub(crate) fn placed(runs: Vec<PageRun>, slots: &mut impl Iterator<Item = u32>) -> Memory {
        let mut place = |key: &PageKey| if key.is_zero() { NOWHERE } else { slots.next().unwrap_or(NOWHERE) };
        let slots: Vec<Vec<u32>> = runs.iter().map(|run| run.keys.iter().map(&mut place).collect()).collect();
        Memory::of(runs, slots)
    }

    fn goes_on_at(&self, space: u64, address: u64) -> bool {
        self.runs
            .last()
            .is_some_and(|run| run.space == space && run.address + run.keys.len() as u64 * PAGE == address)
    }

    fn push(&mut self, piece: Piece) {
        if self.goes_on_at(piece.space, piece.address)
            && let (Some(run), Some(slots)) = (self.runs.last_mut(), self.slots.last_mut())
        {
            run.keys.extend_from_slice(piece.keys);
            slots.extend_from_slice(piece.slots);
        } else {
            let Piece { space, address, keys, slots } = piece;
            self.runs.push(PageRun { space, address, keys: keys.to_vec() });
            self.slots.push(slots.to_vec());
        }
    }

    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.runs.iter().zip(&self.slots).map(|(run, slots)| Piece {
            space: run.space,
            address: run.address,
            keys: &run.keys,
            slots,
        })
    }

    pub(crate) fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    pub(crate) fn into_runs(self) -> Vec<PageRun> {
        self.runs
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.runs.iter().map(|run| run.keys.len() as u64).sum()
    }

    /// Slots and names of all pages but those of zeros, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, PageKey)> {
        let all = self.pieces().flat_map(|piece| piece.slots.iter().copied().zip(piece.keys.iter().copied()));
        all.filter(|(_, key)| !key.is_zero())
    }

    /// Slots of all pages but those of zeros, in order.
    pub(crate) fn slot_runs(&self) -> Vec<SlotRun> {
        let mut out = Vec::new();
        self.places().for_each(|(first, _)| push_slots(&mut out, SlotRun { first, count: 1 }));
        out
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
        let first = self.first_at(space, address);
        for (run, slots) in self.runs[first..].iter().zip(&self.slots[first..]) {
            let whole = Piece { space: run.space, address: run.address, keys: &run.keys, slots };
            if whole.at() >= (space, end) {
                break;
            }
            let piece = if whole.address < address { whole.until((space, address)).1 } else { Some(whole) };
            let Some(piece) = piece.map(|piece| piece.until((space, end)).0) else { continue };
            let from = ((piece.address - address) / PAGE) as usize;
            other(&keys[out.len()..from], &mut out)?;
            let same = Piece {
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

    /// The first run that ends behind a place.
    fn first_at(&self, space: u64, address: u64) -> usize {
        self.runs.partition_point(|run| {
            (run.space, run.address + run.keys.len() as u64 * PAGE) <= (space, address)
        })
    }

    /// The pages in these ranges, and the ranges in which there are none.
    pub(crate) fn parts(&self, ranges: &[Range]) -> (Memory, Vec<Range>) {
        let (mut parts, mut gaps) = (Memory::default(), Vec::new());
        for range in ranges {
            let mut at = range.start;
            let first = self.first_at(range.space, range.start);
            for (run, slots) in self.runs[first..].iter().zip(&self.slots[first..]) {
                let whole = Piece { space: run.space, address: run.address, keys: &run.keys, slots };
                if whole.at() >= (range.space, range.end) {
                    break;
                }
                let piece = if whole.address < range.start {
                    whole.until((range.space, range.start)).1
                } else {
                    Some(whole)
                };
                let Some(piece) = piece.map(|piece| piece.until((range.space, range.end)).0) else {
                    continue;
                };
                if at < piece.address {
                    gaps.push(Range { start: at, end: piece.address, ..*range });
                }
                at = piece.end();
                parts.push(piece);
            }
            if at < range.end {
                gaps.push(Range { start: at, ..*range });
            }
        }
        (parts, gaps)
    }

    /// This memory, but for what is gone and what is `fresh`.
    pub(crate) fn changed(&self, gone: &[Range], fresh: &Memory) -> Memory {
        let mut cuts: Vec<Range> = fresh
            .pieces()
            .map(|piece| Range { space: piece.space, start: piece.address, end: piece.end() })
            .chain(gone.iter().copied())
            .collect();
        cuts.sort_unstable_by_key(|cut| (cut.space, cut.start));
        let mut pieces: Vec<Piece> = Vec::new();
        self.pieces().for_each(|piece| piece.without(&cuts, &mut pieces));
        pieces.extend(fresh.pieces());
        pieces.sort_by_key(Piece::at);
        let mut out = Memory::default();
        pieces.into_iter().for_each(|piece| out.push(piece));
        out
    }

    /// Gives all places, in rising order, at which a page of `new` is called otherwise than here, or lies elsewhere.
    pub(crate) fn compare<'a>(&'a self, new: &'a Memory, mut give: impl FnMut(Change<'a>)) {
        let (mut olds, mut news) = (self.pieces(), new.pieces());
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
fn differences<'a>(was: Piece<'a>, is: Piece<'a>, give: &mut impl FnMut(Change<'a>)) {
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
            out.push(Piece { space: *space, address: *address, keys: &[*key], slots: &[*slot] });
        }
        out
    }

    fn model(memory: &Memory) -> Model {
        let pages = memory.pieces().flat_map(|piece| {
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
            for (run, slots) in is.runs.iter().zip(&is.slots) {
                let found = was.slots_of((run.space, run.address), &run.keys, |keys, out| {
                    asked += keys.len();
                    let place = out.len();
                    out.extend_from_slice(&slots[place..place + keys.len()]);
                    Ok::<(), ()>(())
                });
                let found = found.unwrap();
                for (number, slot) in found.iter().enumerate() {
                    let place = (run.space, run.address + number as u64 * PAGE);
                    let known = old.get(&place).filter(|(key, _)| *key == run.keys[number]);
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
