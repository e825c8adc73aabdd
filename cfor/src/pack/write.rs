//! Writing a packed file.

use std::io::{Read, Write};

use bincode::Options;

use super::{
    BLOCK_BYTES, END, IS_PLAIN, MAGIC, PackError, STRUCTURE_BYTES_MAX, VERSION, check, options, pieces,
};
use crate::Error;
use crate::capture::{Captured, ContentSource};
use crate::copy::fill;

/// Packs trees with their contents. `out` receives one small write for the structure and one for each block.
///
/// # Errors
/// [`PackError::Source`] where a content cannot be read or has another length than its file's data; `out`'s own.
pub fn write<S: ContentSource>(
    captured: &Captured<S::Content>,
    source: &mut S,
    out: &mut impl Write,
) -> Result<(), PackError> {
    captured.validate()?;
    let packed = Captured {
        tree: captured.tree.clone(),
        contents: pieces(captured).collect(),
        mapped: captured.mapped.clone(),
    };
    let structure =
        options().serialize(&packed).map_err(|cause| PackError::Source(std::io::Error::other(cause)))?;
    if structure.len() as u64 > STRUCTURE_BYTES_MAX {
        return Err(Error::invalid("too many entries for a packed file", b"").into());
    }
    let stored = lz4_flex::block::compress(&structure);
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((structure.len() as u64).to_le_bytes());
    head.extend((stored.len() as u64).to_le_bytes());
    let sum = check(&[&head, &stored]);
    head.extend(sum);
    out.write_all(&head)?;
    out.write_all(&stored)?;
    let mut blocks = Blocks { plain: Vec::new(), index: Vec::new(), out };
    for ((inode, content), (_, piece)) in captured.contents.iter().zip(pieces(captured)) {
        let mut reader = source.open(content).map_err(PackError::Source)?;
        let copied = blocks.take(&mut reader, piece.len)?;
        if copied != piece.len || reader.read(&mut [0]).map_err(PackError::Source)? != 0 {
            let what = format!("content of inode {inode} has another length than its file's data");
            return Err(PackError::Source(std::io::Error::new(std::io::ErrorKind::InvalidData, what)));
        }
    }
    blocks.finish()?;
    let Blocks { index, out, .. } = blocks;
    out.write_all(&index)?;
    out.write_all(&[&check(&[&index])[..], &END].concat())?;
    Ok(out.flush()?)
}

struct Blocks<'a, W> {
    plain: Vec<u8>,
    index: Vec<u8>,
    out: &'a mut W,
}

impl<W: Write> Blocks<'_, W> {
    /// Takes so many bytes; returns how many there were.
    fn take(&mut self, from: &mut dyn Read, len: u64) -> Result<u64, PackError> {
        let mut left = len;
        while left > 0 {
            let held = self.plain.len();
            let wanted = left.min(BLOCK_BYTES - held as u64) as usize;
            self.plain.resize(held + wanted, 0);
            let read = fill(from, &mut self.plain[held..]).map_err(PackError::Source)?;
            self.plain.truncate(held + read);
            left -= read as u64;
            if self.plain.len() as u64 == BLOCK_BYTES {
                self.finish()?;
            } else if read < wanted {
                break;
            }
        }
        Ok(len - left)
    }

    /// Writes what is held.
    fn finish(&mut self) -> Result<(), PackError> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let packed = lz4_flex::block::compress(&self.plain);
        let is_plain = packed.len() >= self.plain.len();
        let stored = if is_plain { &self.plain } else { &packed };
        self.index.extend((stored.len() as u32 | if is_plain { IS_PLAIN } else { 0 }).to_le_bytes());
        self.index.extend(check(&[stored]));
        self.out.write_all(stored)?;
        self.plain.clear();
        Ok(())
    }
}
