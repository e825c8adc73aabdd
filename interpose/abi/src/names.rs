//! Names that an application is about to write to or make, since the last cut: part of the table of file changes.
//!
//! Whoever records a name has asked the kernel for nothing: where it leads the agent finds out in the stop, and whether the call that
//! was about to be made has changed anything there. A relative name has the directory that it is relative to as a number, whose path
//! is an entry of its own. Moves of directories are few: they are recorded by where they are then, with what has become of them.
//!
//! ```text
//!   slots[hash] = 1 + place of an entry in words      0: free
//!   words[place..] = hash, kind and length, directory, bytes
//! ```
//!
//! An entry is written before its slot, so that whoever is killed leaves nothing half done, and it stays as it is until a cut. Entries are
//! in the order of calls. What a name means changes when a directory is moved, so that names are recorded again after that: the count of
//! such moves is part of every hash.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Names of one table; past it they are lost.
pub const NAMES_MAX: usize = 8192;
/// Words of entries.
pub const WORDS_MAX: usize = 1 << 16;
/// Places that are looked at for a name.
pub const PROBES_MAX: usize = 64;
/// Words before the bytes of an entry.
pub const HEAD_WORDS: usize = 3;
/// Bytes of a name, or of a path; with a zero at their end the kernel takes no more.
pub const NAME_BYTES_MAX: usize = 4096;

/// What an entry is.
pub mod kind {
    /// A directory's path; the entry's hash is the directory's number.
    pub const DIRECTORY: u32 = 1;
    /// A name that is opened for writing, cut, or made.
    pub const NAME: u32 = 2;
    /// A name of a new directory.
    pub const MADE: u32 = 3;
    /// A name that something gets which has another one.
    pub const PUT: u32 = 4;
    /// Hashes of two names, of which the first, a directory's, becomes the second; with [`super::moves`].
    pub const MOVED: u32 = 5;
    /// Hashes of two names that are exchanged; the same.
    pub const EXCHANGED: u32 = 6;
}

/// What has become of a move, in the place of the directory's number. It is recorded before it is made, since whoever makes it may be
/// killed meanwhile.
pub mod moves {
    /// It is about to be made.
    pub const ABOUT: u64 = 0;
    /// It was made.
    pub const MADE: u64 = 1;
    /// It was refused.
    pub const FAILED: u64 = 2;
}

/// The names.
#[repr(C, align(64))]
pub struct Heard {
    /// Words in use.
    pub used: AtomicU32,
    /// 1: there was no room for a name.
    pub lost: AtomicU32,
    /// Directories that were moved.
    pub moves: AtomicU32,
    /// Hash table of entries.
    pub slots: [AtomicU64; NAMES_MAX],
    /// Entries.
    pub words: [AtomicU64; WORDS_MAX],
}

/// Words of an entry with so many bytes.
#[must_use]
pub const fn entry_words(bytes: usize) -> usize {
    HEAD_WORDS + bytes.div_ceil(8)
}

/// First value of a hash.
pub const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash with one more word.
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Number of a directory, by device and inode number, after so many moves; never 0.
#[must_use]
pub const fn directory(dev: u64, ino: u64, moves: u32) -> u64 {
    mix(mix(mix(HASH_START, moves as u64), dev), ino) | 1
}

const _: () = assert!(NAMES_MAX.is_power_of_two());
