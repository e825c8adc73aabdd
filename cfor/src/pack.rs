//! Captured trees as one file: structure first, then contents.
//!
//! | part | is |
//! |---|---|
//! | head, 44 bytes | `HOLOCFOR`, version (4), bytes of the structure, plain and stored (8 each), check of the head and the stored structure (16) |
//! | structure | [`Captured`] with a [`Piece`] for each content: `bincode`, then LZ4 |
//! | blocks | contents one after the other in the order of inodes, cut into blocks of 256 KiB, each LZ4 if that is shorter |
//! | index | for each block: stored bytes (4, the top bit: not compressed), check of the stored bytes (16) |
//! | tail, 24 bytes | check of the index (16), `HOLOPEND` |
//!
//! Integers are little-endian; a check is the first 16 bytes of a BLAKE3. Holes are in the structure and cost nothing. Writing
//! and reading take memory for the structure and one block. What is read is believed only after its check, and every rule of a
//! tree is checked when the structure is decoded; bytes that are left over are an error. A reader refuses versions that it
//! does not know; it knows 1 and 2, too.

mod read;
mod write;

use std::io;

use serde::{Deserialize, Serialize};

use crate::capture::Captured;

pub use read::Packed;
pub use write::write;

const MAGIC: [u8; 8] = *b"HOLOCFOR";
const END: [u8; 8] = *b"HOLOPEND";
/// Since 2 inodes are encoded attribute by attribute; since 3 they have flags.
const VERSION: u32 = 3;
const VERSION_1: u32 = 1;
const VERSION_2: u32 = 2;
const HEAD_BYTES: usize = 44;
const TAIL_BYTES: u64 = 24;
const INDEX_BYTES: u64 = 20;
/// Plain bytes of a block.
const BLOCK_BYTES: u64 = 1 << 18;
/// Plain bytes of a structure.
const STRUCTURE_BYTES_MAX: u64 = 2 << 30;
/// LZ4 makes no byte into more than this many.
const EXPANSION_MAX: u64 = 256;
const IS_PLAIN: u32 = 1 << 31;

/// A content in a packed file: bytes of all contents together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// Why trees could not be packed, or a packed file not be read.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Not a packed file at all.
    #[error("is no packed file of holo")]
    Foreign,
    /// Written by another version.
    #[error("has version {found}, this holo reads version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// Shorter, longer or other than it was written.
    #[error("is damaged: {part} {what}")]
    Damaged {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// It breaks a rule of trees.
    #[error(transparent)]
    Tree(#[from] crate::Error),
    /// A content could not be read where it was.
    #[error("reading a content: {0}")]
    Source(#[source] io::Error),
    /// The file could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn damaged(part: &'static str, what: impl Into<String>) -> PackError {
    PackError::Damaged { part, what: what.into() }
}

fn check(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut check = [0; 16];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    check
}

fn options() -> impl bincode::Options {
    use bincode::Options;
    bincode::DefaultOptions::new().with_fixint_encoding().with_little_endian().reject_trailing_bytes()
}

/// The places of contents, by inode, and the bytes of all.
fn pieces<C>(captured: &Captured<C>) -> impl Iterator<Item = (u32, Piece)> {
    let mut at = 0;
    captured.contents.keys().map(move |inode| {
        let data = captured.tree.inodes[*inode as usize].data();
        let piece = Piece { at, len: data.iter().map(|extent| extent.len).sum() };
        at += piece.len;
        (*inode, piece)
    })
}
