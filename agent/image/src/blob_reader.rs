//! A content as a stream.

use std::io::{self, Read};

use crate::{
    blob::Blob,
    error::Result,
    key::{PAGE_BYTES, Page},
    reader::EpochReader,
};

/// Reads a content of an epoch from its start, holes as zeros, with memory for some pages.
#[derive(Debug)]
pub struct BlobReader<'a> {
    epoch: &'a EpochReader,
    blob: &'a Blob,
    at: u64,
    /// Piece that has `at` or follows it.
    piece: usize,
    held: Vec<Page>,
    held_page: u64,
}

impl<'a> BlobReader<'a> {
    pub(crate) fn new(epoch: &'a EpochReader, blob: &'a Blob) -> Result<Self> {
        blob.check()?;
        Ok(Self { epoch, blob, at: 0, piece: 0, held: Vec::new(), held_page: 0 })
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let page_bytes = PAGE_BYTES as u64;
        let (page, skip) = (self.at / page_bytes, (self.at % page_bytes) as usize);
        let pieces = self.blob.names.pieces();
        while pieces.get(self.piece).is_some_and(|piece| piece.end() / page_bytes <= page) {
            self.piece += 1;
        }
        let piece = pieces.get(self.piece);
        let left = |end: u64| {
            usize::try_from(end.min(self.blob.len) - self.at).unwrap_or(usize::MAX).min(into.len())
        };
        let Some(piece) = piece.filter(|piece| piece.address / page_bytes <= page) else {
            let len = left(piece.map_or(u64::MAX, |piece| piece.address));
            into[..len].fill(0);
            self.at += len as u64;
            return Ok(len);
        };
        if !(self.held_page..self.held_page + self.held.len() as u64).contains(&page) {
            let keys = &piece.items[(page - piece.address / page_bytes) as usize..];
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
