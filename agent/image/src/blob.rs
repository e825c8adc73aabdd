//! Contents of files, as lists of pages.

use serde::{Deserialize, Serialize};

use crate::{
    error::ManifestError,
    key::{PAGE_BYTES, PageKey},
};

/// Content of a file: its pages by name, the last one filled up with zeros; pages of zeros are left out.
///
/// Put it into a section; the epoch that it was put into keeps its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Length in bytes.
    pub len: u64,
    /// What is not zero, in rising order, with a gap between two runs.
    pub runs: Vec<BlobRun>,
}

/// Pages of a file that follow one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRun {
    /// Number of the first page in the file.
    pub page: u64,
    /// Names; never empty, never [`PageKey::ZERO`].
    pub keys: Vec<PageKey>,
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
        match self.runs.last_mut() {
            Some(run) if run.page + run.keys.len() as u64 == page => run.keys.push(key),
            _ => self.runs.push(BlobRun { page, keys: vec![key] }),
        }
    }

    /// Appends pages of another blob to this one, which ends at a page's start. Calls `each` with every name.
    pub(crate) fn push_of<E>(
        &mut self,
        base: &Blob,
        first: u64,
        count: u64,
        mut each: impl FnMut(PageKey) -> Result<(), E>,
    ) -> Result<(), E> {
        let to = self.len / PAGE_BYTES as u64;
        let from = base.runs.partition_point(|run| run.page + run.keys.len() as u64 <= first);
        for run in base.runs[from..].iter().take_while(|run| run.page < first + count) {
            let skip = first.saturating_sub(run.page);
            let end = (run.keys.len() as u64).min(first + count - run.page);
            for number in skip..end {
                let key = run.keys[number as usize];
                each(key)?;
                self.push(to + run.page + number - first, key);
            }
        }
        Ok(())
    }

    /// Names of its pages.
    pub fn keys(&self) -> impl Iterator<Item = PageKey> {
        self.runs.iter().flat_map(|run| run.keys.iter().copied())
    }

    /// A content by the names of all its pages.
    pub fn of_keys(len: u64, keys: &[PageKey]) -> Blob {
        let mut blob = Blob { len, runs: Vec::new() };
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
        const PAGE: u64 = PAGE_BYTES as u64;
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
        let mut run = 0;
        Some(numbers.zip(0u64..).map(move |(number, place)| {
            while self.runs.get(run).is_some_and(|run| run.page + run.keys.len() as u64 <= place) {
                run += 1;
            }
            let found = self.runs.get(run).filter(|run| run.page <= place);
            (number, found.map_or(PageKey::ZERO, |run| run.keys[(place - run.page) as usize]))
        }))
    }

    /// Checks one that was received: runs in order, inside the length, without zero pages.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bad = ManifestError::BadBlob { len: self.len };
        let pages = self.len.div_ceil(PAGE_BYTES as u64);
        let mut next = 0;
        for run in &self.runs {
            let end = run.page.checked_add(run.keys.len() as u64);
            match end {
                Some(end) if run.page >= next && end <= pages && !run.keys.is_empty() => next = end,
                _ => return Err(bad),
            }
        }
        if self.keys().any(PageKey::is_zero) { Err(bad) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_must_fit() {
        let key = PageKey::from_bytes([1; 16]);
        let run = |page, count| BlobRun { page, keys: vec![key; count] };
        let fits = |len, runs| Blob { len, runs }.check().is_ok();
        assert!(fits(0, vec![]));
        assert!(fits(4097, vec![run(0, 2)]));
        assert!(fits(1 << 40, vec![run(0, 2), run(2, 1), run((1 << 28) - 1, 1)]));
        assert!(!fits(4096, vec![run(0, 2)]));
        assert!(!fits(1 << 20, vec![run(2, 2), run(3, 1)]));
        assert!(!fits(1 << 20, vec![run(0, 0)]));
        assert!(!fits(u64::MAX, vec![run(u64::MAX, 1)]));
        assert!(!fits(4096, vec![BlobRun { page: 0, keys: vec![PageKey::ZERO] }]));
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
