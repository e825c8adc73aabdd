//! The table of file changes: which bytes of which files an application has changed since the last cut.
//!
//! One table per application and instance, in shared memory: it outlives every process, so that one that is killed at
//! any instruction has recorded all that the kernel did for it. What a call is going to do is recorded before it is
//! made. Nothing is ever lost for want of room: a file's ranges become the whole file, the table says that it overflowed.
//!
//! ```text
//!   files[slot] = device and inode number                    for all banks
//!   banks[b].states[slot] = flags, end of what is untouched   since the last cut
//!   banks[b].groups = (slot, level, place) -> 64 bits         hash table: units of 4 KiB, 256 KiB, 16 MiB, 1 GiB
//! ```
//!
//! Processes record into the bank that [`Changes::bank`] names. While all threads are parked the agent reads it and
//! names the other one, which is empty. A parked thread that is about to make a call records it again when it goes on.
//!
//! Words are only ever set by processes, so that any number of them may record at once without waiting.
//!
//! Beside it is the gate of files that the agent has yet to read as they were at the cut (`awaited`).

use crate::awaited::Gate;
use crate::names::Heard;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// First word of the table.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HOLOCHG3");
/// File systems that are recorded, those of the roots first. Files elsewhere are not.
pub const DEVICES_MAX: usize = 8;
/// Files of one table; past it a bank overflows.
pub const FILES_MAX: usize = 32768;
/// Groups of 64 units of one bank; where none is free for a range, the file counts as changed all over.
pub const GROUPS_MAX: usize = 32768;
/// Places that are looked at for a file, and for a group.
pub const PROBES_MAX: usize = 32;
/// Bytes of a unit of level 0, as a power of two.
pub const UNIT_SHIFT: u32 = 12;
/// What a level adds to it.
pub const LEVEL_SHIFT: u32 = 6;
/// Units of a group, as a power of two.
pub const GROUP_SHIFT: u32 = 6;
/// Levels of units.
pub const LEVELS: u32 = 4;

/// Bits of [`State::flags`].
pub mod flags {
    /// Changed nobody knows where.
    pub const WHOLE: u64 = 1;
    /// Mapped shared, through a descriptor that may write.
    pub const MAPPED: u64 = 2;
    /// Something was appended: [`super::State::tail`] is no greater than the size.
    pub const APPENDED: u64 = 4;
}

/// What happened to a file.
#[repr(C)]
pub struct State {
    /// See [`flags`].
    pub flags: AtomicU64,
    /// Complement of the offset from which on everything may have changed; 0: there is none.
    pub tail: AtomicU64,
}

/// Units of a file.
#[repr(C)]
pub struct Group {
    /// See [`group_key`]; 0: free.
    pub key: AtomicU64,
    /// A bit for each unit that was written to.
    pub bits: AtomicU64,
}

/// What happened between two cuts.
#[repr(C, align(64))]
pub struct Bank {
    /// 1: more files were changed than there was room for.
    pub overflow: AtomicU32,
    /// Groups in use.
    pub groups_used: AtomicU32,
    /// Files in use.
    pub files_used: AtomicU32,
    /// Files, by their place in [`Changes::files`].
    pub states: [State; FILES_MAX],
    /// Hash table.
    pub groups: [Group; GROUPS_MAX],
}

/// The table.
#[repr(C, align(64))]
pub struct Changes {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`super::VERSION`].
    pub version: u32,
    /// Entries of `devices`.
    pub device_count: u32,
    /// File systems that are recorded.
    pub devices: [u64; DEVICES_MAX],
    /// Bank that is recorded into: 0 or 1; and [`SHUT`] or [`BROKEN`].
    pub bank: AtomicU32,
    /// Changes when what a process remembers of its descriptors is void. Differs from table to table.
    pub generation: AtomicU32,
    /// 1: a process of the application makes calls that nobody sees.
    pub blind: AtomicU32,
    /// Programs that were started, by those who start them, less those that failed.
    pub started: AtomicU32,
    /// Programs that joined.
    pub joined: AtomicU32,
    /// Entries of `files` in use.
    pub files_used: AtomicU32,
    /// 1: somebody takes, or took, a write lease. Set before that is asked of the kernel.
    pub leased: AtomicU32,
    /// 1: the agent has a file open that it opened while the application runs; who takes a write lease waits until it is 0.
    pub opened: AtomicU32,
    /// See [`file_key`]; 0: free.
    pub files: [AtomicU64; FILES_MAX],
    /// Of these files, where who is on the way to write by a descriptor's position may come to write (`holo_track::positions`).
    pub positions: [AtomicU64; FILES_MAX],
    /// See `bank`.
    pub banks: [Bank; 2],
    /// Files that are awaited.
    pub gate: Gate,
    /// Names that were written to or made since the last cut.
    pub names: Heard,
}

/// Bit of [`Changes::bank`]: files are awaited.
pub const SHUT: u32 = 2;
/// Bit of [`Changes::bank`]: they were, and somebody lost patience, and wrote. One word with it: who is late breaks the epoch that it
/// opens the gate of.
pub const BROKEN: u32 = 4;

/// Bytes of the mapping, whole pages.
pub const CHANGES_BYTES: usize = (size_of::<Changes>() + 4095) & !4095;

const INO_BITS: u32 = 58;

/// Key of a file; `None`: no room for such an inode number.
#[must_use]
pub const fn file_key(device: usize, ino: u64) -> Option<u64> {
    if ino >> INO_BITS == 0 && device < DEVICES_MAX {
        Some((device as u64 + 1) << INO_BITS | ino)
    } else {
        None
    }
}

/// Index of the device, and inode number, of a key.
#[must_use]
pub const fn file_of(key: u64) -> (usize, u64) {
    ((key >> INO_BITS).wrapping_sub(1) as usize, key & ((1 << INO_BITS) - 1))
}

/// Bytes of a unit, as a power of two.
#[must_use]
pub const fn unit_shift(level: u32) -> u32 {
    UNIT_SHIFT + level * LEVEL_SHIFT
}

/// Key of the group of a file that has the byte `at`.
#[must_use]
pub const fn group_key(slot: usize, level: u32, at: u64) -> u64 {
    1 << 63 | (slot as u64) << 48 | (level as u64) << 46 | at >> (unit_shift(level) + GROUP_SHIFT)
}

/// File, level and first byte of a group.
#[must_use]
pub const fn group_of(key: u64) -> (usize, u32, u64) {
    let level = (key >> 46 & 3) as u32;
    let first = (key & ((1 << 46) - 1)).wrapping_shl(unit_shift(level) + GROUP_SHIFT);
    ((key >> 48 & 0x7fff) as usize, level, first)
}

/// Where to look first for a key in a table of `1 << bits` places.
#[must_use]
pub const fn place(key: u64, bits: u32) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}

const _: () = assert!(size_of::<State>() == 16 && size_of::<Group>() == 16);
const _: () = assert!(FILES_MAX.is_power_of_two() && FILES_MAX <= 0x8000);
const _: () = assert!(GROUPS_MAX.is_power_of_two() && LEVELS <= 4);
const _: () = assert!(unit_shift(LEVELS - 1) == 30);
const _: () = assert!(core::mem::offset_of!(Changes, files) == 112);
