//! Items for pages, by place, in pieces that copies share: what an epoch has of the one before costs nothing.

use std::sync::Arc;

use crate::{
    key::{PAGE_BYTES, PageKey},
    memory::Range,
};

/// Pages of a piece at most; pieces end where the address is a multiple of so many. Tests with few pages want many pieces.
const PIECE_PAGES: u64 = if cfg!(test) { 4 } else { 128 };
const PAGE: u64 = PAGE_BYTES as u64;

/// Names of pages.
pub type Names = Spread<PageKey>;

/// Items for pages, in rising order of their places. The same items at the same places are always the same pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread<T> {
    pieces: Vec<Piece<T>>,
}

/// Items for pages that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece<T> {
    pub(crate) space: u64,
    pub(crate) address: u64,
    pub(crate) items: Arc<Vec<T>>,
}

impl<T> Default for Spread<T> {
    fn default() -> Self {
        Spread { pieces: Vec::new() }
    }
}

impl<T> Piece<T> {
    pub(crate) fn at(&self) -> (u64, u64) {
        (self.space, self.address)
    }

    pub(crate) fn end(&self) -> u64 {
        self.address + self.items.len() as u64 * PAGE
    }

    /// The same items at another place of its space.
    pub(crate) fn moved_to(&self, address: u64) -> Self {
        Piece { space: self.space, address, items: Arc::clone(&self.items) }
    }

    /// Where it may lie: no piece goes beyond.
    fn window(&self) -> (u64, u64) {
        (self.space, self.address / PAGE / PIECE_PAGES)
    }

    fn range(&self) -> Range {
        Range { space: self.space, start: self.address, end: self.end() }
    }
}

fn pages<T: Copy>(pieces: &[Piece<T>]) -> impl Iterator<Item = ((u64, u64), T)> {
    pieces.iter().flat_map(|piece| {
        let places = (piece.address..).step_by(PAGE_BYTES).map(|address| (piece.space, address));
        places.zip(piece.items.iter().copied())
    })
}

impl<T: Copy> Spread<T> {
    /// Items of pages that follow one another, in a space.
    pub fn of(space: u64, address: u64, items: &[T]) -> Self {
        let mut out = Spread::default();
        out.push(space, address, items);
        out
    }

    /// Adds items behind all others.
    pub fn push(&mut self, space: u64, mut address: u64, mut items: &[T]) {
        while !items.is_empty() {
            let room = PIECE_PAGES - address / PAGE % PIECE_PAGES;
            let (part, rest) = items.split_at(items.len().min(room as usize));
            match self.open_piece(space, address) {
                Some(last) => last.extend_from_slice(part),
                None => self.pieces.push(Piece { space, address, items: Arc::new(part.to_vec()) }),
            }
            (address, items) = (address + part.len() as u64 * PAGE, rest);
        }
    }

    /// Adds a piece, or a part of one, behind all others.
    pub(crate) fn push_piece(&mut self, piece: &Piece<T>) {
        let is_whole = piece.address / PAGE / PIECE_PAGES == (piece.end() / PAGE - 1) / PIECE_PAGES;
        match self.open_piece(piece.space, piece.address) {
            Some(last) if is_whole => last.extend_from_slice(&piece.items),
            None if is_whole => self.pieces.push(piece.clone()),
            // It comes from elsewhere.
            _ => self.push(piece.space, piece.address, &piece.items),
        }
    }

    /// The last piece, if the next page at this place belongs to it.
    fn open_piece(&mut self, space: u64, address: u64) -> Option<&mut Vec<T>> {
        let last = self.pieces.last_mut()?;
        let is_next =
            last.space == space && last.end() == address && !(address / PAGE).is_multiple_of(PIECE_PAGES);
        is_next.then(|| Arc::make_mut(&mut last.items))
    }

    /// Adds what of a piece is in a range.
    fn push_part(&mut self, piece: &Piece<T>, (start, end): (u64, u64)) {
        let (from, to) = (start.max(piece.address), end.min(piece.end()));
        if (from, to) == (piece.address, piece.end()) {
            self.push_piece(piece);
        } else if from < to {
            let number = |at: u64| ((at - piece.address) / PAGE) as usize;
            self.push(piece.space, from, &piece.items[number(from)..number(to)]);
        }
    }

    /// The same in another space; all of it must be in one.
    #[must_use]
    pub(crate) fn in_space(&self, space: u64) -> Self {
        Spread { pieces: self.pieces.iter().map(|piece| Piece { space, ..piece.clone() }).collect() }
    }

    pub(crate) fn pieces(&self) -> &[Piece<T>] {
        &self.pieces
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.items.len() as u64).sum()
    }

    /// The items, in order.
    pub fn items(&self) -> impl Iterator<Item = T> {
        self.pieces.iter().flat_map(|piece| piece.items.iter().copied())
    }

    /// Places, space and address, and items of all pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = ((u64, u64), T)> {
        pages(&self.pieces)
    }

    /// The item of the page at an address.
    pub fn get(&self, space: u64, address: u64) -> Option<T> {
        let piece = self.pieces.get(self.first_at(space, address))?;
        let is_there = piece.at() <= (space, address) && piece.space == space;
        is_there.then(|| piece.items[((address - piece.address) / PAGE) as usize])
    }

    /// Where there are pages, in rising order; ranges do not touch.
    pub fn ranges(&self) -> Vec<Range> {
        let mut out: Vec<Range> = Vec::new();
        for piece in &self.pieces {
            match out.last_mut() {
                Some(last) if (last.space, last.end) == piece.at() => last.end = piece.end(),
                _ => out.push(piece.range()),
            }
        }
        out
    }

    /// The first piece that ends behind a place.
    pub(crate) fn first_at(&self, space: u64, address: u64) -> usize {
        // Where they begin is here, where they end is elsewhere in memory: only the last that begins before it is asked for its end.
        let behind = self.pieces.partition_point(|piece| piece.at() <= (space, address));
        let reaches = |piece: &Piece<T>| piece.space == space && piece.end() > address;
        behind - usize::from(behind > 0 && reaches(&self.pieces[behind - 1]))
    }

    /// What is in these ranges, which are in rising order and do not overlap.
    pub fn parts(&self, ranges: &[Range]) -> Self {
        let mut out = Spread::default();
        for range in ranges {
            let first = self.first_at(range.space, range.start);
            let inside = |piece: &&Piece<T>| piece.at() < (range.space, range.end);
            for piece in self.pieces[first..].iter().take_while(inside) {
                out.push_part(piece, (range.start, range.end));
            }
        }
        out
    }

    /// What is in none of these ranges, which are in rising order.
    pub fn without(&self, ranges: &[Range]) -> Self {
        let mut out = Spread::default();
        let mut rest = ranges;
        for piece in &self.pieces {
            let before = rest.iter().take_while(|range| (range.space, range.end) <= piece.at()).count();
            rest = &rest[before..];
            let mut at = piece.address;
            let inside = |range: &&Range| (range.space, range.start) < (piece.space, piece.end());
            for range in rest.iter().take_while(inside) {
                out.push_part(piece, (at, range.start));
                at = at.max(range.end);
            }
            out.push_part(piece, (at, u64::MAX));
        }
        out
    }

    /// Gives the places, in rising order, at which `new` has something else, with what was there and what is. Pieces that both share
    /// are not looked at.
    pub fn differences(&self, new: &Self, mut give: impl FnMut((u64, u64), Option<T>, Option<T>))
    where
        T: PartialEq,
    {
        let (mut old, mut now) = (self.pieces.as_slice(), new.pieces.as_slice());
        while let Some(window) = old.first().into_iter().chain(now.first()).map(Piece::window).min() {
            let inside =
                |pieces: &[Piece<T>]| pieces.iter().take_while(|piece| piece.window() == window).count();
            let ((was, old_rest), (is, now_rest)) = (old.split_at(inside(old)), now.split_at(inside(now)));
            (old, now) = (old_rest, now_rest);
            let same = |(one, other): (&Piece<T>, &Piece<T>)| {
                one.address == other.address && Arc::ptr_eq(&one.items, &other.items)
            };
            if was.len() == is.len() && was.iter().zip(is).all(same) {
                continue;
            }
            let mut before = pages(was).peekable();
            for (at, item) in pages(is) {
                while let Some((gone, item)) = before.next_if(|(was, _)| *was < at) {
                    give(gone, Some(item), None);
                }
                let was = before.next_if(|(was, _)| *was == at).map(|(_, item)| item);
                if was != Some(item) {
                    give(at, was, Some(item));
                }
            }
            before.for_each(|(gone, item)| give(gone, Some(item), None));
        }
    }

    /// All of both, which have no place in common.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut out = Spread { pieces: Vec::with_capacity(self.pieces.len() + other.pieces.len()) };
        let mut others = other.pieces.iter().peekable();
        for piece in &self.pieces {
            while let Some(other) = others.next_if(|other| other.at() < piece.at()) {
                out.push_piece(other);
            }
            out.push_piece(piece);
        }
        others.for_each(|other| out.push_piece(other));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<(u64, u64), u8>;

    fn spread(model: &Model) -> Spread<u8> {
        let mut out = Spread::default();
        model.iter().for_each(|((space, number), item)| out.push(*space, number * PAGE, &[*item]));
        out
    }

    fn model(spread: &Spread<u8>) -> Model {
        spread.pages().map(|((space, address), item)| ((space, address / PAGE), item)).collect()
    }

    fn models() -> impl Strategy<Value = Model> {
        prop::collection::btree_map((0u64..2, 0u64..30), 0u8..3, 0..40)
    }

    proptest! {
        // Goal: parts, what is without them, and both together are what a map says, in the same pieces whatever way they came, and
        // a piece that nothing touched is the same one. Method: random maps and ranges.
        #[test]
        fn is_a_map(all in models(), cuts in models()) {
            let (whole, ranges) = (spread(&all), spread(&cuts).ranges());
            prop_assert_eq!(model(&whole), all.clone());
            prop_assert_eq!(whole.count(), all.len() as u64);
            let (parts, rest) = (whole.parts(&ranges), whole.without(&ranges));
            let (inside, outside): (Model, Model) = all.iter().partition(|(place, _)| cuts.contains_key(place));
            prop_assert_eq!(&parts, &spread(&inside));
            prop_assert_eq!(&rest, &spread(&outside));
            prop_assert_eq!(&parts.and(&rest), &whole);
            prop_assert_eq!(&rest.and(&parts), &whole);
            for space in 0..2 {
                for number in 0..31 {
                    prop_assert_eq!(whole.get(space, number * PAGE), all.get(&(space, number)).copied());
                }
            }
            for (other, old) in [(spread(&cuts), &all), (rest.clone(), &all)] {
                let (new, mut made) = (model(&other), old.clone());
                whole.differences(&other, |(space, address), was, is| {
                    let place = (space, address / PAGE);
                    assert_eq!((was, is), (old.get(&place).copied(), new.get(&place).copied()));
                    assert_ne!(was, is);
                    made.remove(&place);
                    made.extend(is.map(|item| (place, item)));
                });
                prop_assert_eq!(made, new);
            }
            for piece in &rest.pieces {
                let same = whole.pieces.iter().find(|other| *other == piece);
                prop_assert!(same.is_none_or(|other| Arc::ptr_eq(&piece.items, &other.items)));
            }
        }
    }
}
