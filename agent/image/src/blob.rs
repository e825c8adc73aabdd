//! Contents of files, as lists of pages.

use serde::{Deserialize, Serialize};

use crate::{
    error::ManifestError,
    key::{PAGE_BYTES, PageKey},
    memory::Range,
    spread::Names,
};

/// Content of a file: its pages by name, the last one filled up with zeros; pages of zeros are left out.
///
/// Put it into a section; the epoch that it was put into keeps its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Length in bytes.
    pub len: u64,
    /// What is not zero; places are bytes of the file, in space 0.
    #[serde(with = "runs")]
    pub names: Names,
}

/// The space of names of a content.
const SPACE: u64 = 0;
const PAGE: u64 = PAGE_BYTES as u64;

/// How names are written: runs in rising order, the number of the first page and the names of each.
mod runs {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(names: &Names, out: S) -> Result<S::Ok, S::Error> {
        let runs = names.ranges().into_iter().map(|range| {
            let keys: Vec<PageKey> = names.parts(&[range]).items().collect();
            (range.start / PAGE, keys)
        });
        out.collect_seq(runs.collect::<Vec<_>>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Names, D::Error> {
        let (mut names, mut end) = (Names::default(), 0);
        for (page, keys) in Vec::<(u64, Vec<PageKey>)>::deserialize(from)? {
            let behind = page.checked_add(keys.len() as u64).filter(|behind| *behind <= u64::MAX / PAGE);
            if page < end || keys.is_empty() || behind.is_none() {
                return Err(D::Error::custom("pages of a content that are out of order"));
            }
            names.push(SPACE, page * PAGE, &keys);
            end = behind.unwrap_or_default();
        }
        Ok(names)
    }
}

/// A part of a content that is made of another one, see [`EpochWriter::patch_blob`](crate::EpochWriter::patch_blob).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobPart {
    /// Bytes of the old content, from a page's start.
    Base {
        /// First byte.
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

impl Blob {
    /// Appends a page; pages of zeros only count.
    pub(crate) fn push(&mut self, page: u64, key: PageKey) {
        if key.is_zero() {
            return;
        }
        self.names.push(SPACE, page * PAGE, &[key]);
    }

    /// Appends pages of another blob to this one, which ends at a page's start.
    pub(crate) fn push_of(&mut self, base: &Blob, first: u64, count: u64) {
        let to = self.len.div_ceil(PAGE);
        let part = Range { space: SPACE, start: first * PAGE, end: (first + count) * PAGE };
        for piece in base.names.parts(&[part]).pieces() {
            self.names.push_piece(&piece.moved_to(to * PAGE + piece.address - part.start));
        }
    }

    /// Names of its pages.
    pub fn keys(&self) -> impl Iterator<Item = PageKey> {
        self.names.items()
    }

    /// A content by the names of all its pages.
    pub fn of_keys(len: u64, keys: &[PageKey]) -> Blob {
        let mut blob = Blob { len, ..Blob::default() };
        keys.iter().zip(0..).for_each(|(key, page)| blob.push(page, *key));
        blob
    }

    /// Numbers of the pages in which two files differ, of which these contents are the data: what is between the extents, first
    /// byte and length each, is holes, which are zeros. `None`: the data does not lie in pages.
    pub fn differing_pages(
        &self,
        own: &[(u64, u64)],
        other: &Blob,
        others: &[(u64, u64)],
    ) -> Option<Vec<u64>> {
        let (mut a, mut b) = (self.placed(own)?.peekable(), other.placed(others)?.peekable());
        let mut found = Vec::new();
        loop {
            let (page, differs) = match (a.peek(), b.peek()) {
                (None, None) => return Some(found),
                (Some((page, key)), Some((other, other_key))) if page == other => (*page, key != other_key),
                (Some((page, key)), other) if other.is_none_or(|(other, _)| page < other) => {
                    (*page, !key.is_zero())
                }
                (_, Some((page, key))) | (Some((page, key)), None) => (*page, !key.is_zero()),
            };
            a.next_if(|(one, _)| *one == page);
            b.next_if(|(one, _)| *one == page);
            if differs {
                found.push(page);
            }
        }
    }

    /// Numbers in the file and names of its pages of data.
    fn placed<'a>(&'a self, extents: &'a [(u64, u64)]) -> Option<impl Iterator<Item = (u64, PageKey)> + 'a> {
        // All but the end of the last must be whole pages.
        let in_pages = extents
            .iter()
            .rev()
            .enumerate()
            .all(|(back, (at, len))| at.is_multiple_of(PAGE) && (back == 0 || len.is_multiple_of(PAGE)));
        if !in_pages {
            return None;
        }
        let numbers = extents.iter().flat_map(|(at, len)| at / PAGE..(at + len).div_ceil(PAGE));
        let mut pages = self.names.pages().map(|((_, at), key)| (at / PAGE, key)).peekable();
        Some(numbers.zip(0u64..).map(move |(number, place)| {
            while pages.next_if(|(page, _)| *page < place).is_some() {}
            let found = pages.peek().filter(|(page, _)| *page == place);
            (number, found.map_or(PageKey::ZERO, |(_, key)| *key))
        }))
    }

    /// Checks one that was received: runs in order, inside the length, without zero pages.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bad = ManifestError::BadBlob { len: self.len };
        let fits =
            self.names.ranges().last().is_none_or(|last| last.end.div_ceil(PAGE) <= self.len.div_ceil(PAGE));
        if !fits || self.names.pieces().iter().any(|piece| piece.space != SPACE) {
            return Err(bad);
        }
        if self.keys().any(PageKey::is_zero) { Err(bad) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::{self, Kind};

    // Goal: a content that was received is possible, or refused. Method: lists of runs, written as a content is.
    #[test]
    fn runs_must_fit() {
        let key = PageKey::from_bytes([1; 16]);
        let run = |page: u64, count: usize| (page, vec![key; count]);
        let fits = |len: u64, runs: Vec<(u64, Vec<PageKey>)>| {
            let frame = wire::encode(&(len, runs), Kind::STATE).unwrap();
            wire::decode::<Blob>(&frame, Kind::STATE, 1 << 20).is_ok_and(|blob| {
                assert_eq!(blob.len, len);
                blob.check().is_ok()
            })
        };
        assert!(fits(0, vec![]));
        assert!(fits(4097, vec![run(0, 2)]));
        assert!(fits(1 << 40, vec![run(0, 2), run(2, 1), run((1 << 28) - 1, 1)]));
        assert!(!fits(4096, vec![run(0, 2)]));
        assert!(!fits(1 << 20, vec![run(2, 2), run(3, 1)]));
        assert!(!fits(1 << 20, vec![run(0, 0)]));
        assert!(!fits(u64::MAX, vec![run(u64::MAX, 1)]));
        assert!(!fits(u64::MAX, vec![run(u64::MAX / 4096, 1)]));
        assert!(!fits(4096, vec![(0, vec![PageKey::ZERO])]));
    }

    // Goal: what is written is what is read. Method: a content with holes, longer than a piece; its bytes are those of runs.
    #[test]
    fn written_as_runs() {
        let key = |n: u8| PageKey::from_bytes([n; 16]);
        let keys: Vec<PageKey> = (1..30).map(|n| if n % 11 == 0 { PageKey::ZERO } else { key(n) }).collect();
        let blob = Blob::of_keys(29 * 4096 - 5, &keys);
        let runs: Vec<(u64, Vec<PageKey>)> = vec![
            (0, (1..11).map(key).collect()),
            (11, (12..22).map(key).collect()),
            (22, (23..30).map(key).collect()),
        ];
        let frame = wire::encode(&blob, Kind::STATE).unwrap();
        assert_eq!(frame, wire::encode(&(blob.len, runs), Kind::STATE).unwrap());
        assert_eq!(wire::decode::<Blob>(&frame, Kind::STATE, 1 << 20).unwrap(), blob);
    }

    #[test]
    fn pages_that_differ_are_found_whatever_the_holes() {
        let key = |byte| if byte == 0 { PageKey::ZERO } else { PageKey::from_bytes([byte; 16]) };
        let blob = |bytes: &[u8]| {
            Blob::of_keys(bytes.len() as u64 * 4096, &bytes.iter().map(|b| key(*b)).collect::<Vec<_>>())
        };
        let page = |at: u64, count: u64| (at * 4096, count * 4096);
        // Pages 0..3 and 10..12 against 0..2, a hole, zeros, and 10..12 of which one is another.
        let (a, b) = (blob(&[1, 2, 0, 4, 5]), blob(&[1, 2, 0, 4, 6]));
        let (of_a, of_b) = ([page(0, 3), page(10, 2)], [page(0, 2), page(5, 1), page(10, 2)]);
        assert_eq!(a.differing_pages(&of_a, &b, &of_b), Some(vec![11]));
        assert_eq!(a.differing_pages(&of_a, &Blob::default(), &[]), Some(vec![0, 1, 10, 11]));
        assert_eq!(Blob::default().differing_pages(&[], &a, &of_a), Some(vec![0, 1, 10, 11]));
        assert_eq!(a.differing_pages(&of_a, &b, &[(512, 4096)]), None);
    }
}
