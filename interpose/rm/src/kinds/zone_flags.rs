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
        // What a process that runs on has unmapped since its zones were read had the flags that were read before.
        for index in zones::add_flags(all, &smaps) {
            let known = self.of.partition_point(|known| known.place.1 <= all[index].start);
            if let Some(known) = self.of.get(known).filter(|known| known.place.0 < all[index].end) {
                all[index].flags.clone_from(&known.flags);
            }
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GONE: (u64, u64) = (0x10_0000, 0x20_0000);

    fn known(place: (u64, u64), flag: [u8; 2], is_private: bool) -> Flags {
        let of = vec![Flagged { place, flags: vec![flag], is_private }];
        Flags { advised: 1, age: 0, of, read: true }
    }

    #[test]
    fn flags_of_a_zone_that_is_gone_are_those_that_were_read_before() {
        // Below all that a process has mapped.
        let mut zones = zones::parse(b"100000-200000 rw-p 00000000 00:00 0 \n").unwrap();
        let mut flags = known(GONE, *b"lo", true);
        assert!(flags.add(std::process::id() as i32, 2, &mut zones.iter_mut().collect::<Vec<_>>()));
        assert_eq!(zones[0].flags, [*b"lo"]);
        let mut flags = known((0x30_0000, 0x40_0000), *b"lo", true);
        let mut zones = zones::parse(b"100000-200000 rw-p 00000000 00:00 0 \n").unwrap();
        assert!(flags.add(std::process::id() as i32, 2, &mut zones.iter_mut().collect::<Vec<_>>()));
        assert!(zones[0].flags.is_empty());
    }

    #[test]
    fn advice_that_may_be_gone_is_read_again() {
        let kept = |flag: [u8; 2], is_private: bool, lasted: &[Range]| {
            let mut flags = known(GONE, flag, is_private);
            flags.keep(lasted);
            !flags.of.is_empty()
        };
        assert!(!kept(*b"nh", true, &[]), "private memory without huge pages may be another zone by now");
        assert!(kept(*b"nh", true, &[GONE]));
        assert!(kept(*b"nh", false, &[]), "that of shared memory is holo's own advice");
        assert!(kept(*b"gd", true, &[]), "a zone that grows is known by its place");
    }
}
