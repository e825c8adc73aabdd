//! Which place of the page files holds what, and which are free. No I/O.
//!
//! A slot is free when nothing holds it: no kept epoch, no epoch being written or received, nothing withheld.
//! Only free slots are ever written, so that what a sealed epoch has is never touched.

use std::collections::BTreeMap;

use crate::{error::ManifestError, key::PageKey, keymap::KeyMap};

/// Slots of one page file (256 MiB): few open files for large images, and a file whose pages are all free can
/// be given back.
pub(crate) const SEGMENT_SLOTS: u32 = 1 << 16;
/// Free extents that are looked at for one that is long enough; bounds the search when free space is scattered.
const SEARCH_EXTENTS_MAX: usize = 64;
/// Extents shorter than this are avoided while longer ones are found: small writes are slow.
/// Tests reuse every slot at once.
const GOOD_EXTENT_SLOTS: u32 = if cfg!(test) { 1 } else { 64 };

/// First slot number that cannot be used.
const SLOTS_END: u32 = u32::MAX - u32::MAX % SEGMENT_SLOTS;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: PageKey,
    holders: u32,
    /// How often the newest epoch names it.
    named: u32,
    /// Since which epoch of the line it is named, if it is.
    born: u32,
    /// Its page may be found here.
    good: bool,
}

/// The table of slots.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// For each segment what its first slots are; slots behind those were never held.
    segments: Vec<Vec<Slot>>,
    /// Slots that exist; all numbers are below.
    end: u32,
    /// Free extents below `end`: first slot and length; never adjacent in a segment, never across segments.
    free: BTreeMap<u32, u32>,
    /// Where a page lies.
    index: KeyMap<u32>,
    /// Slots below this are not given out, since an epoch that cannot be read may have them.
    floor: u32,
    /// A page of a held slot was found damaged.
    damaged: bool,
}

impl Slots {
    /// A table of `end` slots that are all free.
    pub(crate) fn new(end: u32) -> Slots {
        let mut table = Slots { end, ..Slots::default() };
        let mut first = 0;
        while first < end {
            let next = segment_end(first).min(end);
            table.free.insert(first, next - first);
            first = next;
        }
        table
    }

    fn slot(&self, slot: u32) -> Slot {
        let segment = self.segments.get((slot / SEGMENT_SLOTS) as usize);
        segment.and_then(|s| s.get((slot % SEGMENT_SLOTS) as usize)).copied().unwrap_or_default()
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        assert!(slot < self.end, "slot {slot} of {}", self.end);
        let (segment, place) = ((slot / SEGMENT_SLOTS) as usize, (slot % SEGMENT_SLOTS) as usize);
        if self.segments.len() <= segment {
            self.segments.resize_with(segment + 1, Vec::new);
        }
        let slots = &mut self.segments[segment];
        if slots.len() <= place {
            slots.resize(place + 1, Slot::default());
        }
        &mut slots[place]
    }

    /// Slots that hold something.
    pub(crate) fn used(&self) -> u32 {
        self.end - self.free.values().sum::<u32>()
    }

    /// Where a page lies.
    pub(crate) fn find(&self, key: PageKey) -> Option<u32> {
        self.index.get(&key).copied()
    }

    /// Where a page lies, if that is `near`: what was stored one after another is mostly asked for so, and the table's own order
    /// is much faster to go through than its index.
    pub(crate) fn is_at(&self, key: PageKey, near: u32) -> bool {
        let slot = self.slot(near);
        slot.good && slot.key == key
    }

    /// The page that may be found in a slot.
    pub(crate) fn page_at(&self, slot: u32) -> Option<PageKey> {
        let known = self.slot(slot);
        known.good.then_some(known.key)
    }

    /// Says which slots have which pages, for one more holder. Of two slots with one page, the one that came
    /// first is found. Fails, and changes nothing, if a slot is said to have another page than before.
    ///
    /// # Panics
    /// If a slot is not in the table.
    pub(crate) fn hold_all(&mut self, pages: &[(u32, PageKey)]) -> Result<(), ManifestError> {
        let differs = |(slot, key): &&(u32, PageKey)| {
            let known = self.slot(*slot);
            known.holders > 0 && known.key != *key
        };
        if let Some((slot, _)) = pages.iter().find(differs) {
            return Err(ManifestError::SlotConflict { slot: *slot });
        }
        for &(slot, key) in pages {
            let entry = self.slot_mut(slot);
            (entry.key, entry.good) = (key, true);
            self.hold(slot);
            self.index.entry(key).or_insert(slot);
        }
        Ok(())
    }

    /// One more holder of a slot.
    pub(crate) fn hold(&mut self, slot: u32) {
        if self.slot(slot).holders == 0 {
            self.take_free(slot);
        }
        self.slot_mut(slot).holders += 1;
    }

    /// One holder less; the last one frees the slot.
    pub(crate) fn release(&mut self, slot: u32) {
        let entry = self.slot_mut(slot);
        assert!(entry.holders > 0, "slot {slot} has no holder to release");
        entry.holders -= 1;
        if entry.holders == 0 {
            let key = entry.key;
            self.forget(slot, key);
            if slot >= self.floor {
                self.put_free(slot, 1);
            }
        }
    }

    /// Makes a page be stored again when it comes again, since this slot's content is damaged.
    pub(crate) fn damage(&mut self, slot: u32, key: PageKey) {
        self.damaged = true;
        self.forget(slot, key);
    }

    /// Can every page be found that is in a held slot?
    pub(crate) fn is_sound(&self) -> bool {
        !self.damaged
    }

    /// Does the newest epoch name it?
    pub(crate) fn is_named(&self, slot: u32) -> bool {
        self.slot(slot).named > 0
    }

    /// Since which epoch of the line it is named.
    pub(crate) fn born(&self, slot: u32) -> u32 {
        self.slot(slot).born
    }

    /// The newest epoch, `serial`, names it once more; the first time holds it.
    pub(crate) fn name(&mut self, slot: u32, serial: u32) {
        if self.slot(slot).named == 0 {
            self.hold(slot);
            self.slot_mut(slot).born = serial;
        }
        self.slot_mut(slot).named += 1;
    }

    /// The newest epoch names it once less; whether that was the last time. It stays held.
    pub(crate) fn unname(&mut self, slot: u32) -> bool {
        let entry = self.slot_mut(slot);
        assert!(entry.named > 0, "slot {slot} is not named");
        entry.named -= 1;
        entry.named == 0
    }

    fn forget(&mut self, slot: u32, key: PageKey) {
        self.slot_mut(slot).good = false;
        if self.index.get(&key) == Some(&slot) {
            self.index.remove(&key);
        }
    }

    /// Lets a page be found in this slot (which is held and written).
    pub(crate) fn publish(&mut self, slot: u32, key: PageKey) {
        let entry = self.slot_mut(slot);
        (entry.key, entry.good) = (key, true);
        self.index.insert(key, slot);
    }

    /// Takes up to `want` free slots that follow one another in one segment, for one holder each. None: the
    /// table cannot grow any more.
    pub(crate) fn take(&mut self, want: u32) -> Option<(u32, u32)> {
        let good = want.min(GOOD_EXTENT_SLOTS);
        let mut search = self.free.iter().take(SEARCH_EXTENTS_MAX);
        let found = search.find(|(_, length)| **length >= good).map(|(first, length)| (*first, *length));
        let scattered = self.free.len() > SEARCH_EXTENTS_MAX;
        let (first, length) = match found {
            Some(extent) => extent,
            // Much is free, though in small pieces: rather use it than grow for ever.
            None if scattered => self.free.first_key_value().map(|(first, length)| (*first, *length))?,
            None => self.append(want)?,
        };
        let count = length.min(want);
        self.free.remove(&first);
        if count < length {
            self.free.insert(first + count, length - count);
        }
        for slot in first..first + count {
            *self.slot_mut(slot) = Slot { holders: 1, ..Slot::default() };
        }
        Some((first, count))
    }

    /// Withholds all slots that nothing holds now, until [`Slots::lift`].
    pub(crate) fn withhold(&mut self) {
        self.floor = self.end;
        self.free.clear();
    }

    /// Gives withheld slots back.
    pub(crate) fn lift(&mut self) {
        let below = std::mem::take(&mut self.floor);
        for slot in 0..below {
            if self.slot(slot).holders == 0 {
                self.put_free(slot, 1);
            }
        }
    }

    /// Takes the free slots at the end out of the table, and returns where it ends now.
    pub(crate) fn shrink(&mut self) -> u32 {
        while let Some(extent) = self.free.last_entry() {
            if extent.key() + extent.get() != self.end {
                break;
            }
            self.end = *extent.key();
            extent.remove();
        }
        self.end
    }

    /// Is more free than used?
    pub(crate) fn mostly_free(&self) -> bool {
        self.used() < self.end / 2
    }

    /// Segments in which every slot is free.
    pub(crate) fn free_segments(&self) -> Vec<u32> {
        let whole = |first: u32, length: u32| {
            first.is_multiple_of(SEGMENT_SLOTS) && first + length == segment_end(first).min(self.end)
        };
        let free = self.free.iter().filter(|(first, length)| whole(**first, **length));
        free.map(|(first, _)| first / SEGMENT_SLOTS).collect()
    }

    /// New slots at the end.
    fn append(&mut self, want: u32) -> Option<(u32, u32)> {
        let first = self.end;
        if first >= SLOTS_END {
            return None;
        }
        let count = want.min(segment_end(first) - first);
        self.end += count;
        Some((first, count))
    }

    /// Takes one slot out of the free extent that it lies in, if any.
    fn take_free(&mut self, slot: u32) {
        let Some((&first, &length)) = self.free.range(..=slot).next_back() else { return };
        if slot - first >= length {
            return;
        }
        self.free.remove(&first);
        if slot > first {
            self.free.insert(first, slot - first);
        }
        if slot + 1 < first + length {
            self.free.insert(slot + 1, first + length - slot - 1);
        }
    }

    /// Adds a free extent and joins it with its neighbours in the segment.
    fn put_free(&mut self, mut first: u32, mut length: u32) {
        let neighbour = self.free.range(..first).next_back().map(|(before, count)| (*before, *count));
        match neighbour {
            Some((before, count)) if before + count == first && !first.is_multiple_of(SEGMENT_SLOTS) => {
                self.free.remove(&before);
                (first, length) = (before, count + length);
            }
            Some(_) | None => {}
        }
        if !(first + length).is_multiple_of(SEGMENT_SLOTS) {
            length += self.free.remove(&(first + length)).unwrap_or(0);
        }
        self.free.insert(first, length);
    }
}

/// First slot behind the segment that a slot lies in.
fn segment_end(slot: u32) -> u32 {
    (slot / SEGMENT_SLOTS + 1).saturating_mul(SEGMENT_SLOTS)
}

#[cfg(test)]
#[path = "tests/slots.rs"]
mod tests;
