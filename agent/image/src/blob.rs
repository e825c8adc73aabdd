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
}
