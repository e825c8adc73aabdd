//! Recording in the table of file changes (`holo_abi::changes`). Superset of what happens, never less.

use core::sync::atomic::Ordering::{Acquire, Relaxed};
use holo_abi::changes::{
    Bank, Changes, FILES_MAX, GROUP_SHIFT, GROUPS_MAX, LEVELS, PROBES_MAX, SHUT, file_key, flags, group_key,
    place, unit_shift,
};

/// Groups that one range may take before coarser units are used for it.
const GROUPS_PER_RANGE: u64 = 8;
/// A range longer than this is everything from its start on.
const RANGE_BYTES_MAX: u64 = 1 << 40;

/// Where a file is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Its file system is none of the roots'.
    Elsewhere,
    /// Here.
    At(usize),
    /// There is no room: the bank overflows when it is changed.
    Full,
}

/// Place of a device among those that are recorded.
fn device(table: &Changes, dev: u64) -> Option<usize> {
    let devices = &table.devices[..(table.device_count as usize).min(table.devices.len())];
    devices.iter().position(|known| *known == dev)
}

/// Are files of this device recorded?
#[must_use]
pub fn has_device(table: &Changes, dev: u64) -> bool {
    device(table, dev).is_some()
}

/// Key of a file, if its file system is recorded.
#[must_use]
pub fn key(table: &Changes, dev: u64, ino: u64) -> Option<u64> {
    file_key(device(table, dev)?, ino)
}

/// Finds or makes the place of a file.
#[must_use]
pub fn slot(table: &Changes, dev: u64, ino: u64) -> Slot {
    let Some(device) = device(table, dev) else { return Slot::Elsewhere };
    file_key(device, ino).map_or(Slot::Full, |key| slot_of(table, key))
}

/// Finds or makes the place of a file that has this key.
#[must_use]
pub fn slot_of(table: &Changes, key: u64) -> Slot {
    let first = place(key, FILES_MAX.trailing_zeros());
    for step in 0..PROBES_MAX {
        let at = (first + step) % FILES_MAX;
        let word = &table.files[at];
        match word.load(Relaxed) {
            0 => match word.compare_exchange(0, key, Relaxed, Relaxed) {
                Ok(_) => {
                    table.files_used.fetch_add(1, Relaxed);
                    return Slot::At(at);
                }
                Err(now) if now == key => return Slot::At(at),
                Err(_) => {}
            },
            now if now == key => return Slot::At(at),
            _ => {}
        }
    }
    Slot::Full
}

/// The bank to record into.
#[must_use]
pub fn bank(table: &Changes) -> &Bank {
    &table.banks[(table.bank.load(Relaxed) & 1) as usize]
}

/// The bank to record into, and whether files are awaited.
#[inline]
#[must_use]
pub fn bank_and_gate(table: &Changes) -> (&Bank, bool) {
    let word = table.bank.load(Acquire);
    (&table.banks[(word & 1) as usize], word & SHUT != 0)
}

/// A change that there is no room for.
pub fn overflow(bank: &Bank) {
    if bank.overflow.load(Relaxed) == 0 {
        bank.overflow.store(1, Relaxed);
    }
}

/// Sets bits of [`flags`] of a file.
pub fn mark(bank: &Bank, slot: usize, bits: u64) {
    let state = &bank.states[slot].flags;
    if state.load(Relaxed) & bits != bits {
        state.fetch_or(bits, Relaxed);
        bank.files_used.fetch_add(1, Relaxed);
    }
}

/// Is this offset of a file recorded already, and all behind it?
#[must_use]
pub fn is_in_tail(bank: &Bank, slot: usize, at: u64) -> bool {
    at >= !bank.states[slot].tail.load(Relaxed)
}

/// Was an append recorded? The next one is then, too: from the end of the file, or where it was cut to since, all is.
#[must_use]
pub fn is_appended(bank: &Bank, slot: usize) -> bool {
    bank.states[slot].flags.load(Relaxed) & flags::APPENDED != 0
}

/// Bytes are added to a file that has `size` now.
pub fn append(bank: &Bank, slot: usize, size: u64) {
    tail(bank, slot, size);
    mark(bank, slot, flags::APPENDED);
}

/// Everything from `at` on changes.
pub fn tail(bank: &Bank, slot: usize, at: u64) {
    let state = &bank.states[slot].tail;
    // Offset 2^64 - 1 has no byte.
    let wanted = !at.min(u64::MAX - 1);
    if state.load(Relaxed) < wanted {
        state.fetch_max(wanted, Relaxed);
        bank.files_used.fetch_add(1, Relaxed);
    }
}

/// Bytes of a file change.
pub fn range(bank: &Bank, slot: usize, at: u64, len: u64) {
    if len == 0 || is_in_tail(bank, slot, at) || bank.states[slot].flags.load(Relaxed) & flags::WHOLE != 0 {
        return;
    }
    if len > RANGE_BYTES_MAX || at > i64::MAX as u64 {
        return tail(bank, slot, at);
    }
    let last = at + (len - 1);
    let mut level = 0;
    while level + 1 < LEVELS && len >> (unit_shift(level) + GROUP_SHIFT) > GROUPS_PER_RANGE {
        level += 1;
    }
    let shift = unit_shift(level);
    let (mut unit, last) = (at >> shift, last >> shift);
    while unit <= last {
        let (first_bit, last_bit) = (unit & 63, (last - (unit & !63)).min(63));
        let bits = (!0u64 >> (63 - (last_bit - first_bit))) << first_bit;
        if !set(bank, group_key(slot, level, unit << shift), bits) {
            return mark(bank, slot, flags::WHOLE);
        }
        unit = (unit | 63) + 1;
    }
}

/// Sets bits of a group; false: there is no room.
fn set(bank: &Bank, key: u64, bits: u64) -> bool {
    let first = place(key, GROUPS_MAX.trailing_zeros());
    for step in 0..PROBES_MAX {
        let group = &bank.groups[(first + step) % GROUPS_MAX];
        let mut now = group.key.load(Relaxed);
        if now == 0 {
            now = match group.key.compare_exchange(0, key, Relaxed, Relaxed) {
                Ok(_) => {
                    bank.groups_used.fetch_add(1, Relaxed);
                    key
                }
                Err(other) => other,
            };
        }
        if now == key {
            if group.bits.load(Relaxed) & bits != bits {
                group.bits.fetch_or(bits, Relaxed);
            }
            return true;
        }
    }
    false
}
