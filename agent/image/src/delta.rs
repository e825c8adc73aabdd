//! An epoch as what it changes of another one, its base: else an epoch would be as large as the list of all names of pages.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ManifestError, Result},
    key::{PAGE_BYTES, PageKey},
    manifest::{
        EpochMeta, MANIFEST_BYTES_MAX, Manifest, PageRun, Section, check_extra, check_runs, check_sections,
        push_all,
    },
    memory::{Memory, Range},
    wire::{self, Kind, WireError},
};

/// Which epoch others are changes of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BaseId {
    /// Its number.
    pub epoch: u64,
    /// Time of its cut, nanoseconds of Unix time: numbers come again when epochs were put aside.
    pub at_unix_ns: u64,
}

/// What an epoch consists of, as changes: to be made of its base, or of any epoch between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Figures.
    pub meta: EpochMeta,
    /// States, as in a manifest.
    pub sections: Vec<Section>,
    /// What it is to be made of.
    pub base: BaseId,
    /// Check of what comes out.
    pub sum: Sum,
    /// Where there are no pages any more, in rising order.
    pub gone: Vec<Range>,
    /// Pages that changed since the base, in rising order.
    pub runs: Vec<PageRun>,
    /// Further pages of the base, or of one between, that are none any more, in rising order.
    pub gone_extra: Vec<PageKey>,
    /// Further pages that are new since the base, in rising order.
    pub extra: Vec<PageKey>,
}

/// A check over the names of all pages and their places, which changes with them: names are added and taken out one by one. It
/// finds accidents, not attackers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum(u128);

impl Sum {
    /// Of a memory and the further pages.
    pub(crate) fn of(memory: &Memory, extra: &[(PageKey, u32)]) -> Sum {
        let mut sum = Sum::default();
        memory.names().pieces().iter().for_each(|piece| sum.add(piece.space, piece.address, &piece.items));
        extra.iter().for_each(|(key, _)| sum.add_extra(*key));
        sum
    }

    /// That of what an epoch with this one became.
    fn after(mut self, old: (&Memory, &[(PageKey, u32)]), new: (&Memory, &[(PageKey, u32)])) -> Sum {
        old.0.compare(new.0, |change| {
            self.remove(change.space, change.address, change.old);
            self.add(change.space, change.address, change.new);
        });
        differing(old.1, new.1).into_iter().for_each(|(key, _)| self.remove_extra(key));
        differing(new.1, old.1).into_iter().for_each(|(key, _)| self.add_extra(key));
        self
    }

    pub(crate) fn add(&mut self, space: u64, address: u64, keys: &[PageKey]) {
        each(space, address, keys, |term| self.0 = self.0.wrapping_add(term));
    }

    pub(crate) fn remove(&mut self, space: u64, address: u64, keys: &[PageKey]) {
        each(space, address, keys, |term| self.0 = self.0.wrapping_sub(term));
    }

    // No page of memory is at such an address.
    pub(crate) fn add_extra(&mut self, key: PageKey) {
        self.add(u64::MAX, u64::MAX, &[key]);
    }

    pub(crate) fn remove_extra(&mut self, key: PageKey) {
        self.remove(u64::MAX, u64::MAX, &[key]);
    }
}

/// A number for each page, from its name and its place.
fn each(space: u64, address: u64, keys: &[PageKey], mut give: impl FnMut(u128)) {
    const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let mut at = address;
    for key in keys {
        let place = (u128::from(space) << 64 | u128::from(at)).wrapping_add(1).wrapping_mul(ODD);
        let mixed = (u128::from_le_bytes(key.to_bytes()) ^ place ^ (place >> 71)).wrapping_mul(ODD);
        give((mixed ^ (mixed >> 67)).wrapping_mul(ODD));
        at = at.wrapping_add(PAGE_BYTES as u64);
    }
}

/// Those of `these` that are not among `those`, or lie elsewhere there; both in rising order.
pub(crate) fn differing(these: &[(PageKey, u32)], those: &[(PageKey, u32)]) -> Vec<(PageKey, u32)> {
    let mut rest = those;
    let mut out = Vec::new();
    for one in these {
        let before = rest.iter().take_while(|other| other.0 < one.0).count();
        rest = &rest[before..];
        if rest.first() != Some(one) {
            out.push(*one);
        }
    }
    out
}

impl Delta {
    /// Decodes and checks a frame that nobody vouches for.
    pub fn parse(frame: &[u8]) -> Result<Delta> {
        let delta: Delta =
            wire::decode(frame, Kind::DELTA, MANIFEST_BYTES_MAX).map_err(Error::ReceivedWire)?;
        delta.check()?;
        Ok(delta)
    }

    /// Is it possible? See [`ManifestError`] for what is checked.
    pub fn check(&self) -> Result<(), ManifestError> {
        check_sections(&self.sections)?;
        check_runs(&self.runs)?;
        check_extra(&self.extra)?;
        check_extra(&self.gone_extra)?;
        if self.base.epoch >= self.meta.epoch {
            return Err(ManifestError::BadBase { base: self.base.epoch });
        }
        let run = |run: &PageRun| {
            let end = run.address + (run.keys.len() * PAGE_BYTES) as u64;
            Range { space: run.space, start: run.address, end }
        };
        let mut ranges: Vec<Range> = self.gone.iter().copied().chain(self.runs.iter().map(run)).collect();
        ranges.sort_unstable_by_key(|range| (range.space, range.start));
        let page = PAGE_BYTES as u64;
        let bad = |range: &&Range| {
            range.end <= range.start || !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page)
        };
        if let Some(range) = ranges.iter().find(bad) {
            return Err(ManifestError::BadAddress { space: range.space, address: range.start });
        }
        let overlap = |pair: &&[Range]| pair[0].space == pair[1].space && pair[0].end > pair[1].start;
        match ranges.windows(2).find(overlap) {
            Some(pair) => Err(ManifestError::Overlap { space: pair[1].space, address: pair[1].start }),
            None => Ok(()),
        }
    }

    /// Names of the pages that it names, as often as it does, in its order.
    pub fn references(&self) -> impl Iterator<Item = PageKey> {
        let runs = self.runs.iter().flat_map(|run| run.keys.iter().copied());
        runs.chain(self.extra.iter().copied()).filter(|key| !key.is_zero())
    }

    /// Makes it of its base, or an epoch between, of which `sum` is perhaps known: figures, states, memory and further pages with
    /// their slots. `slots` are those of [`Self::references`].
    pub(crate) fn made_of(
        self,
        old: &Memory,
        extra: &[(PageKey, u32)],
        sum: Option<Sum>,
        mut slots: impl Iterator<Item = u32>,
    ) -> Result<Made, ManifestError> {
        let fresh = Memory::placed(&self.runs, &mut slots);
        let memory = old.changed(&self.gone, &fresh);
        let mut all: Vec<(PageKey, u32)> = Vec::with_capacity(extra.len() + self.extra.len());
        let is = |list: &[PageKey], key: &PageKey| list.binary_search(key).is_ok();
        let stays = |(key, _): &&(PageKey, u32)| !is(&self.gone_extra, key) && !is(&self.extra, key);
        all.extend(extra.iter().filter(stays));
        all.extend(self.extra.iter().copied().zip(slots));
        all.sort_unstable_by_key(|(key, _)| *key);
        let sum = match sum {
            Some(sum) => sum.after((old, extra), (&memory, &all)),
            None => Sum::of(&memory, &all),
        };
        if sum != self.sum {
            return Err(ManifestError::BadBase { base: self.base.epoch });
        }
        Ok(Made { meta: self.meta, sections: self.sections, memory, extra: all })
    }
}

/// A whole epoch, with the slots of its pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    pub(crate) meta: EpochMeta,
    pub(crate) sections: Vec<Section>,
    pub(crate) memory: Memory,
    /// Further pages, in rising order of their names.
    pub(crate) extra: Vec<(PageKey, u32)>,
}

impl Made {
    /// Out of a manifest and the slots of its references, in their order.
    pub(crate) fn of(manifest: Manifest, mut slots: impl Iterator<Item = u32>) -> Made {
        let Manifest { meta, sections, runs, extra } = manifest;
        let memory = Memory::placed(&runs, &mut slots);
        Made { meta, sections, memory, extra: extra.into_iter().zip(slots).collect() }
    }

    /// Slots and names of its pages, as often as it names them.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, PageKey)> {
        self.memory.places().chain(self.extra.iter().map(|(key, slot)| (*slot, *key)))
    }

    /// Its file, written out.
    pub(crate) fn whole(&self) -> Result<Vec<u8>, WireError> {
        let extra: Vec<PageKey> = self.extra.iter().map(|(key, _)| *key).collect();
        let mut slots = self.memory.slot_runs();
        push_all(&mut slots, self.extra.iter().map(|(_, slot)| *slot));
        let mut frame = Manifest::frame_of(&self.meta, &self.sections, &self.memory.runs(), &extra)?;
        frame.extend_from_slice(&wire::encode(&slots, Kind::SLOTS)?);
        Ok(frame)
    }
}
