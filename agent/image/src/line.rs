//! Who holds the slots of epochs that follow one another. The newest holds those that it names. Each other one is known by what the
//! next has dropped: an epoch costs what it changes, not what it has.
//!
//! ```text
//! epoch    7        8 dropped a, b        9 dropped c (newest)
//! has      a b c    c d                   d e
//! ```
//! A slot that was dropped stays held by the one that dropped it, with the epoch since which it had been named: when that one's
//! predecessor goes, so do those slots that no earlier epoch had.

use crate::{
    slotset::SlotSet,
    state::{Entry, State},
};

/// What a sealed epoch holds.
#[derive(Clone, Debug)]
pub(crate) enum Holding {
    /// These, each once.
    Own(Vec<u32>),
    /// Its place in the line, and what it has dropped of the one before.
    Line { serial: u32, dropped: Vec<Dropped> },
}

/// A slot that was named from epoch `born` of the line on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    slot: u32,
    born: u32,
}

impl Entry {
    /// Its slots, once the line has ended.
    pub(crate) fn own(&self) -> &[u32] {
        match &self.holding {
            Holding::Own(slots) => slots,
            Holding::Line { .. } => &[],
        }
    }

    fn serial(&self) -> Option<u32> {
        match self.holding {
            Holding::Line { serial, .. } => Some(serial),
            Holding::Own(_) => None,
        }
    }
}

impl State {
    /// A new newest epoch: names of slots that came, and of those that went, as often as they did.
    pub(crate) fn advance(&mut self, came: &[u32], went: &[u32]) -> Holding {
        self.serial += 1;
        let serial = self.serial;
        came.iter().for_each(|slot| self.slots.name(*slot, serial));
        let mut dropped = Vec::new();
        for &slot in went {
            if self.slots.unname(slot) {
                dropped.push(Dropped { slot, born: self.slots.born(slot) });
            }
        }
        Holding::Line { serial, dropped }
    }

    /// Can no epoch be added to the line any more?
    pub(crate) fn is_line_full(&self) -> bool {
        self.serial == u32::MAX
    }

    /// Makes each epoch of the line hold its own slots, and ends the line.
    pub(crate) fn end_line(&mut self) {
        let Some(head) = self.head.take() else { return };
        let mut live = SlotSet::default();
        for slot in head.slots() {
            live.insert(slot);
        }
        let live = live.take();
        let mut lists = Vec::new();
        let mut all = live.clone();
        for entry in self.epochs.values_mut() {
            let Some(serial) = entry.serial() else { continue };
            let dropped = std::mem::replace(&mut entry.holding, Holding::Own(Vec::new()));
            if let Holding::Line { dropped, .. } = dropped {
                all.extend(dropped.iter().map(|dropped| dropped.slot));
                lists.push((entry.meta.epoch, serial, dropped));
            }
        }
        for (number, (epoch, serial, _)) in lists.iter().enumerate() {
            let later = lists[number + 1..].iter().flat_map(|(_, _, dropped)| dropped);
            let had = later.filter(|dropped| dropped.born <= *serial).map(|dropped| dropped.slot);
            let mut own: Vec<u32> =
                live.iter().copied().filter(|slot| self.slots.born(*slot) <= *serial).chain(had).collect();
            own.sort_unstable();
            own.dedup();
            own.iter().for_each(|slot| self.slots.hold(*slot));
            if let Some(entry) = self.epochs.get_mut(epoch) {
                entry.holding = Holding::Own(own);
            }
        }
        for slot in head.slots() {
            self.slots.unname(slot);
        }
        all.into_iter().for_each(|slot| self.slots.release(slot));
        self.serial = 0;
    }

    /// Takes an epoch out; what nobody else holds is leaving. The newest only after the end of the line.
    pub(crate) fn take_entry(&mut self, epoch: u64) {
        let Some(entry) = self.epochs.remove(&epoch) else { return };
        let mine = match entry.holding {
            Holding::Own(slots) => return self.leaving.extend(slots),
            Holding::Line { dropped, .. } => dropped,
        };
        let before =
            self.epochs.range(..epoch).next_back().and_then(|(_, entry)| entry.serial()).unwrap_or(0);
        let next = self.epochs.range_mut(epoch..).next();
        let Some((_, Entry { holding: Holding::Line { dropped, .. }, .. })) = next else {
            debug_assert!(false, "the newest epoch of the line was taken out");
            return;
        };
        let (gone, mut kept): (Vec<_>, Vec<_>) =
            std::mem::take(dropped).into_iter().partition(|dropped| dropped.born > before);
        kept.extend(mine);
        *dropped = kept;
        self.leaving.extend(gone.into_iter().map(|dropped| dropped.slot));
    }
}
