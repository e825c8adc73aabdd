//! A content as a stream.

use std::io::{self, Read};

use crate::{
    blob::Blob,
    error::Result,
    key::{PAGE_BYTES, Page},
    reader::{EpochReader, PART_PAGES},
};

/// Reads a content of an epoch from its start, holes as zeros, with memory for some pages.
#[derive(Debug)]
pub struct BlobReader<'a> {
    epoch: &'a EpochReader,
    blob: &'a Blob,
    at: u64,
    /// Run that has `at` or follows it.
    run: usize,
    held: Vec<Page>,
    held_page: u64,
}

impl<'a> BlobReader<'a> {
    pub(crate) fn new(epoch: &'a EpochReader, blob: &'a Blob) -> Result<Self> {
        blob.check()?;
        Ok(Self { epoch, blob, at: 0, run: 0, held: Vec::new(), held_page: 0 })
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let page_bytes = PAGE_BYTES as u64;
        let (page, skip) = (self.at / page_bytes, (self.at % page_bytes) as usize);
        while self.blob.runs.get(self.run).is_some_and(|run| run.page + run.keys.len() as u64 <= page) {
            self.run += 1;
        }
        let run = self.blob.runs.get(self.run);
        let left = |end: u64| {
            usize::try_from(end.min(self.blob.len) - self.at).unwrap_or(usize::MAX).min(into.len())
        };
        let Some(run) = run.filter(|run| run.page <= page) else {
            let len = left(run.map_or(u64::MAX, |run| run.page * page_bytes));
            into[..len].fill(0);
            self.at += len as u64;
            return Ok(len);
        };
        if !(self.held_page..self.held_page + self.held.len() as u64).contains(&page) {
            let keys = &run.keys[(page - run.page) as usize..];
            let keys = &keys[..keys.len().min(PART_PAGES)];
            self.held.resize(keys.len(), [0; PAGE_BYTES]);
            self.held_page = page;
            let mut pages: Vec<_> = keys.iter().copied().zip(&mut self.held).collect();
            if let Err(cause) = self.epoch.read_pages_into(&mut pages) {
                self.held.clear();
                return Err(io::Error::other(cause));
            }
        }
        let bytes = &self.held.as_flattened()[(page - self.held_page) as usize * PAGE_BYTES + skip..];
        let len = left(u64::MAX).min(bytes.len());
        into[..len].copy_from_slice(&bytes[..len]);
        self.at += len as u64;
        Ok(len)
    }
}
