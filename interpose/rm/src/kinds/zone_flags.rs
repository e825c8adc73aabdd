//! Flags of zones that were asked for with `madvise` or `mlock`.
//!
//! `smaps` shows them, which takes as long as the process is large: it is read only when they may have changed.

use super::zones::{self, Zone};
use crate::track::ranges::Range;
use std::fs;

/// Epochs after which flags are read again even if no call is known that changed them: a raw one may have.
const AGE_MAX: u32 = 64;

/// Place and flags of a zone.
struct Flagged {
    place: (u64, u64),
    flags: Vec<[u8; 2]>,
    is_private: bool,
}

impl Flagged {
    /// Would another zone at this place have the same flags, as far as it matters?
    fn is_told(&self) -> bool {
        // That shared memory is to have no huge pages is mostly holo's own advice, and harmless.
        let is_harmless =
            |flag: &[u8; 2]| flag == b"gd" || flag == b"nr" || flag == b"nh" && !self.is_private;
        self.flags.iter().all(is_harmless)
    }
}

/// Flags of zones as they were read last.
#[derive(Default)]
pub(crate) struct Flags {
    /// Calls that change flags, up to then.
    advised: u32,
    /// Epochs since then.
    age: u32,
    of: Vec<Flagged>,
    /// They were read once.
    read: bool,
}

impl Flags {
    /// Adds the flags of the zones of a process, of which `advised` calls that change flags are known. False: it has ended.
    pub(crate) fn add(&mut self, pid: i32, advised: u32, all: &mut [&mut Zone]) -> bool {
        if self.are_those_of(all) && self.advised == advised && self.age < AGE_MAX {
            self.age += 1;
            all.iter_mut().zip(&self.of).for_each(|(zone, known)| zone.flags.clone_from(&known.flags));
            return true;
        }
        // That of a zombie is empty.
        let Some(smaps) = fs::read(format!("/proc/{pid}/smaps")).ok().filter(|smaps| !smaps.is_empty())
        else {
            return false;
        };
        zones::add_flags(all, &smaps);
        let flagged = |zone: &&mut Zone| {
            let (place, is_private) = ((zone.start, zone.end), zone.is_private());
            Flagged { place, flags: zone.flags.clone(), is_private }
        };
        let of = all.iter().map(flagged).collect();
        *self = Self { advised, age: 0, of, read: true };
        true
    }

    /// They were never read.
    pub(crate) fn is_new(&self) -> bool {
        !self.read
    }

    /// Zones with flags that are not among the rising ones that `lasted` may be others by now, at the same places.
    pub(crate) fn keep(&mut self, lasted: &[Range]) {
        let lasts = |known: &Flagged| known.is_told() || lasted.binary_search(&known.place).is_ok();
        if !self.of.iter().all(lasts) {
            self.of.clear();
        }
    }

    fn are_those_of(&self, all: &[&mut Zone]) -> bool {
        self.of.len() == all.len()
            && self.of.iter().zip(all).all(|(known, zone)| known.place == (zone.start, zone.end))
    }
}
