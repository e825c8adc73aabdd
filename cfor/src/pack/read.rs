//! Reading a packed file, in any order.

use std::io::{self, Read, Seek, SeekFrom};

use bincode::Options;

use super::{
    BLOCK_BYTES, END, EXPANSION_MAX, HEAD_BYTES, INDEX_BYTES, IS_PLAIN, MAGIC, PackError, Piece,
    STRUCTURE_BYTES_MAX, TAIL_BYTES, VERSION, VERSION_1, VERSION_2, check, damaged, options, pieces,
};
use crate::capture::{Captured, CapturedByInode, CapturedWithoutFlags, ContentSource};

/// A packed file that was opened: its structure is in memory and checked, contents are read when they are asked for.
#[derive(Debug)]
pub struct Packed<F> {
    captured: Captured<Piece>,
    contents: Contents<F>,
}

#[derive(Debug)]
struct Contents<F> {
    file: F,
    /// Bytes of all contents.
    len: u64,
    blocks: Vec<Block>,
    /// Number and bytes of the block that was read last.
    held: Option<(usize, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    at: u64,
    stored: u32,
    is_plain: bool,
    sum: [u8; 16],
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[at..at + N]);
    word
}

/// Reads exactly `len` bytes; memory grows with what is there.
fn take(file: &mut impl Read, len: u64, part: &'static str) -> Result<Vec<u8>, PackError> {
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < len { Err(damaged(part, "is cut short")) } else { Ok(bytes) }
}

impl<F: Read + Seek> Packed<F> {
    /// Opens a packed file and checks all of it but the contents, which are checked when they are read.
    ///
    /// # Errors
    /// [`PackError`] with what is wrong with it.
    pub fn open(mut file: F) -> Result<Self, PackError> {
        let all = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut head = Vec::new();
        (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut head)?;
        if head.len() < 12 || head[..8] != MAGIC {
            return Err(PackError::Foreign);
        }
        let version = u32::from_le_bytes(word(&head, 8));
        if ![VERSION, VERSION_1, VERSION_2].contains(&version) {
            return Err(PackError::Version { found: version });
        }
        if head.len() < HEAD_BYTES {
            return Err(damaged("the head", "is cut short"));
        }
        let (plain, stored) = (u64::from_le_bytes(word(&head, 12)), u64::from_le_bytes(word(&head, 20)));
        if plain > STRUCTURE_BYTES_MAX || stored > all || plain > stored.saturating_mul(EXPANSION_MAX) {
            return Err(damaged("the structure", "has an impossible length"));
        }
        let bytes = take(&mut file, stored, "the structure")?;
        if check(&[&head[..28], &bytes]) != word(&head, 28) {
            return Err(damaged("the structure", "does not match its checksum"));
        }
        let bytes = lz4_flex::block::decompress(&bytes, plain as usize)
            .map_err(|cause| damaged("the structure", cause.to_string()))?;
        let decoded = match version {
            VERSION_1 => options().with_limit(plain).deserialize(&bytes).map(|CapturedByInode(old)| old),
            VERSION_2 => options().with_limit(plain).deserialize(&bytes).map(|CapturedWithoutFlags(old)| old),
            _ => options().with_limit(plain).deserialize(&bytes),
        };
        let captured: Captured<Piece> =
            decoded.map_err(|cause| damaged("the structure", cause.to_string()))?;
        captured.validate()?;
        if !pieces(&captured).eq(captured.contents.iter().map(|(at, piece)| (*at, *piece))) {
            return Err(damaged("the structure", "names contents that are not there"));
        }
        let len = captured.contents.values().try_fold(0u64, |sum, piece| sum.checked_add(piece.len));
        let len = len.ok_or_else(|| damaged("the structure", "names too many bytes"))?;
        let contents = Contents::open(file, len, HEAD_BYTES as u64 + stored, all)?;
        Ok(Self { captured, contents })
    }

    /// The trees, and where their contents are.
    #[must_use]
    pub fn captured(&self) -> &Captured<Piece> {
        &self.captured
    }

    /// The trees, and their contents to read.
    #[must_use]
    pub fn split(self) -> (Captured<Piece>, impl ContentSource<Content = Piece>) {
        (self.captured, self.contents)
    }
}

impl<F: Read + Seek> Contents<F> {
    fn open(mut file: F, len: u64, first: u64, all: u64) -> Result<Self, PackError> {
        let count = len.div_ceil(BLOCK_BYTES);
        let index_bytes = count.checked_mul(INDEX_BYTES);
        let index_at = index_bytes.and_then(|bytes| all.checked_sub(TAIL_BYTES)?.checked_sub(bytes));
        let (Some(index_at), Some(index_bytes)) = (index_at.filter(|at| *at >= first), index_bytes) else {
            return Err(damaged("the index", "is cut short"));
        };
        file.seek(SeekFrom::Start(index_at))?;
        let index = take(&mut file, index_bytes, "the index")?;
        let tail = take(&mut file, TAIL_BYTES, "the tail")?;
        if tail[16..] != END || check(&[&index]) != tail[..16] {
            return Err(damaged("the index", "does not match its checksum"));
        }
        let mut blocks = Vec::new();
        let mut at = first;
        for entry in index.chunks_exact(INDEX_BYTES as usize) {
            let stored = u32::from_le_bytes(word(entry, 0));
            let block = Block {
                at,
                stored: stored & !IS_PLAIN,
                is_plain: stored & IS_PLAIN != 0,
                sum: word(entry, 4),
            };
            at += u64::from(block.stored);
            blocks.push(block);
        }
        if at != index_at {
            return Err(damaged("the file", "does not end where its index says"));
        }
        Ok(Self { file, len, blocks, held: None })
    }

    /// A block's bytes.
    fn block(&mut self, number: usize) -> Result<&[u8], PackError> {
        if self.held.as_ref().is_none_or(|(held, _)| *held != number) {
            let block = self.blocks[number];
            let plain = (self.len - number as u64 * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
            self.file.seek(SeekFrom::Start(block.at))?;
            // No more than what its plain bytes may be made into.
            if u64::from(block.stored) > BLOCK_BYTES {
                return Err(damaged("a block", "has an impossible length"));
            }
            let stored = take(&mut self.file, u64::from(block.stored), "a block")?;
            if check(&[&stored]) != block.sum {
                return Err(damaged("a block", "does not match its checksum"));
            }
            let bytes = if block.is_plain {
                stored
            } else {
                lz4_flex::block::decompress(&stored, plain)
                    .map_err(|cause| damaged("a block", cause.to_string()))?
            };
            if bytes.len() != plain {
                return Err(damaged("a block", "has another length than it should"));
            }
            self.held = Some((number, bytes));
        }
        Ok(self.held.as_ref().map_or(&[], |(_, bytes)| bytes))
    }
}

impl<F: Read + Seek> ContentSource for Contents<F> {
    type Content = Piece;

    fn open<'a>(&'a mut self, content: &'a Piece) -> io::Result<Box<dyn Read + 'a>> {
        let end = content.at.checked_add(content.len).filter(|end| *end <= self.len);
        let end =
            end.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "content of another file"))?;
        Ok(Box::new(Content { contents: self, at: content.at, end }))
    }
}

struct Content<'a, F> {
    contents: &'a mut Contents<F>,
    at: u64,
    end: u64,
}

impl<F: Read + Seek> Read for Content<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.end || into.is_empty() {
            return Ok(0);
        }
        let (number, skip) = ((self.at / BLOCK_BYTES) as usize, (self.at % BLOCK_BYTES) as usize);
        let left = self.end - self.at;
        let block =
            self.contents.block(number).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))?;
        let bytes = &block[skip..];
        let len = bytes.len().min(into.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
        into[..len].copy_from_slice(&bytes[..len]);
        self.at += len as u64;
        Ok(len)
    }
}
