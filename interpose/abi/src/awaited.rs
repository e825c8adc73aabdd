//! The gate: files whose content at the last cut the agent has yet to read. Who would destroy bytes of it waits until they
//! were read.
//!
//! ```text
//!   agent, in the stop      files[place] = key, range, AWAITED; then SHUT
//!   agent, afterwards       reads; AWAITED goes; at the end SHUT goes
//!   writer, if SHUT         AWAITED of its file and range? -> what it wants, WANTED; waits for another `turn`
//!   writer, out of patience BROKEN instead of SHUT: the epoch is void
//! ```
//!
//! Large files are read in pieces, each of which has a bit in [`Gate::taken`]: a writer waits for those that it writes to.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Places of files; a hash table that is never more than three quarters full.
pub const PLACES: usize = 1 << 15;
/// Files that may be awaited at once.
pub const AWAITED_MAX: usize = PLACES / 4 * 3;
/// Places that are looked at for a file.
pub const PROBES_MAX: usize = 64;
/// Pieces of all files together.
pub const PIECES_MAX: usize = 1 << 16;
/// Bytes of a piece, as a power of two: at least so many.
pub const PIECE_SHIFT: u32 = 20;
/// Pieces of one file; larger files have larger ones.
pub const PIECES_PER_FILE_MAX: u64 = 4096;

/// Bits of [`Awaited::state`].
pub mod state {
    /// Not all was read yet.
    pub const AWAITED: u32 = 1;
    /// Somebody waits.
    pub const WANTED: u32 = 2;
}

/// A file.
#[repr(C)]
pub struct Awaited {
    /// Key as in [`crate::changes::file_key`]; 0: free.
    pub key: AtomicU64,
    /// The first byte that is awaited.
    pub from: AtomicU64,
    /// The first byte behind all that are.
    pub below: AtomicU64,
    /// Number of the piece that is wanted.
    pub want: AtomicU64,
    /// See [`state`].
    pub state: AtomicU32,
    /// Changes when something was read that is wanted. Never set back.
    pub turn: AtomicU32,
    /// Number of its first piece in [`Gate::taken`], plus one; 0: it has none.
    pub pieces: AtomicU32,
    /// Bytes of a piece, as a power of two.
    pub shift: AtomicU32,
    /// 1: somebody wrote where nothing was awaited, or not any more, or set its times.
    pub passed: AtomicU32,
}

/// All of them.
#[repr(C, align(64))]
pub struct Gate {
    /// Changes when somebody begins to wait.
    pub wanted: AtomicU32,
    /// The place of the file that was wanted last.
    pub latest: AtomicU32,
    /// Changes as long as the agent reads.
    pub signs: AtomicU32,
    /// How often somebody had to wait.
    pub waits: AtomicU32,
    /// Hash table.
    pub files: [Awaited; PLACES],
    /// A bit for each piece that was read.
    pub taken: [AtomicU64; PIECES_MAX / 64],
}

const _: () = assert!(size_of::<Awaited>() == 56);
const _: () = assert!(PLACES.is_power_of_two() && PIECES_PER_FILE_MAX <= PIECES_MAX as u64);
