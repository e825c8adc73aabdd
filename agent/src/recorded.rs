//! What is known of how files were changed since the epoch before, and when that is not enough to go by.
//!
//! Ranges are gone by only if every process of the application records, every program that was started has joined, and
//! nobody has the file mapped shared, or all stores through maps are known ([`SharedPages`]). All else is told by attributes, as without a recorder: a file whose attributes
//! have changed and of which nothing was recorded is copied whole.

use crate::app::ChangesCell;
use crate::awaited::Void;
use crate::changes::{Found, Number, Table};
use holo_cfor::log::Ranges;
use holo_cfor::{Hint, Inode, Kind};
use holo_rm::kinds::shared_pages::SharedPages;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What processes have mapped.
#[derive(Default)]
pub(crate) struct Maps {
    /// Files that they may store to.
    pub(crate) mapped: BTreeSet<Number>,
    /// All shared files.
    pub(crate) shared: BTreeSet<Number>,
    /// Files below the roots that are open.
    pub(crate) open: BTreeSet<Number>,
    /// Processes that have the table of file changes.
    pub(crate) recording: usize,
}

/// What is known of changes since the epoch before.
pub(crate) struct Recorded {
    cell: ChangesCell,
    /// The table at the last cut.
    table: Option<Arc<Table>>,
    /// Programs that had not joined then.
    strangers: u32,
    found: Found,
    /// Files that were mapped at one of the cuts, writable or not.
    mapped: BTreeSet<Number>,
    shared: BTreeSet<Number>,
    /// Where files that are mapped were changed, of those of which all stores through maps are known.
    stored: BTreeMap<Number, Ranges>,
    /// Files that were open at the last cut of which there is an epoch.
    open: BTreeSet<Number>,
    /// Every process has the table.
    all_record: bool,
    /// What is compared with was read while the application ran.
    is_blurred: bool,
    /// The last epoch was void: all is copied in the next stop.
    was_void: bool,
    /// Files that others write to: they are copied in each.
    outsiders: BTreeSet<Number>,
}

/// Past so many files that others write to all are forgotten.
const OUTSIDERS_MAX: usize = 1024;

impl Recorded {
    pub(crate) fn new(cell: ChangesCell) -> Self {
        let none = BTreeSet::new;
        let (mapped, shared, open, outsiders) = (none(), none(), none(), none());
        let found = Found::default();
        let (stored, all_record, is_blurred, was_void) = (BTreeMap::new(), false, false, false);
        Self {
            cell,
            table: None,
            strangers: 0,
            found,
            mapped,
            shared,
            stored,
            open,
            all_record,
            is_blurred,
            was_void,
            outsiders,
        }
    }

    /// The table of the instance that runs now.
    pub(crate) fn table(&self) -> Option<Arc<Table>> {
        self.cell.lock().clone()
    }

    /// Is it the table of the last cut?
    fn is_of(&self, table: Option<&Arc<Table>>) -> bool {
        matches!((table, &self.table), (Some(now), Some(before)) if Arc::ptr_eq(now, before))
    }

    /// Takes what was recorded up to this cut of so many processes, and what they stored through maps.
    pub(crate) fn cut(&mut self, maps: &Maps, processes: usize, pages: &SharedPages) {
        let table = self.table();
        let is_same = self.is_of(table.as_ref());
        let mut found = table.as_ref().map_or_else(Found::default, |table| table.cut());
        let strangers = table.as_ref().map_or(0, |table| table.strangers());
        found.is_incomplete |= !is_same || maps.recording < processes || strangers != self.strangers;
        (self.table, self.strangers) = (table, strangers);
        self.all_record = maps.recording >= processes;
        self.found.add(found);
        self.mapped.extend(&maps.mapped);
        self.shared.extend(&maps.shared);
        self.stored.clear();
        for number in &self.shared {
            let Some(stored) = pages.stored(*number) else { continue };
            let mut ranges =
                self.found.files.get(number).map(|change| change.ranges.clone()).unwrap_or_default();
            stored.iter().for_each(|(start, end)| ranges.insert(*start, end - start));
            self.stored.insert(*number, ranges);
        }
    }

    /// A cut of which there is no epoch: contents are to be read while the application runs, and what is changed from now on is to be
    /// known. `is_late`: requests that were recorded before may still be carried out.
    pub(crate) fn begin(&mut self, maps: Maps, processes: usize, pages: &SharedPages, is_late: bool) {
        if !self.is_of(self.table().as_ref()) {
            // All is recorded from the beginning.
            (self.table, self.strangers) = (self.table(), 0);
        }
        self.cut(&maps, processes, pages);
        if let Some(table) = &self.table {
            table.carry(&self.found);
        }
        self.is_blurred = self.strangers == 0 && self.gated().is_some();
        if !is_late {
            self.found = Found::default();
        }
        (self.mapped, self.shared, self.open) = (maps.mapped, maps.shared, maps.open);
    }

    /// May contents be read now, see [`Self::begin`]?
    pub(crate) fn has_begun(&self) -> bool {
        self.is_blurred
    }

    /// Is of every file on these file systems known whether it may have other content?
    pub(crate) fn is_complete(&self, mut devices: impl Iterator<Item = u64>) -> bool {
        let table = self.table.as_ref().filter(|_| !self.found.is_incomplete);
        table.is_some_and(|table| devices.all(|device| table.has_device(device)))
    }

    /// Was it recorded that this file is written to?
    pub(crate) fn is_written(&self, number: Number) -> bool {
        self.found.files.contains_key(&number)
    }

    /// Is of all files that are recorded known whether they were written to?
    pub(crate) fn is_sure(&self) -> bool {
        !self.found.is_incomplete
    }

    /// Files that may have other content, or may have been read.
    pub(crate) fn suspects(&self, maps: &Maps) -> BTreeSet<Number> {
        let mut all: BTreeSet<Number> = self.found.files.keys().copied().collect();
        all.extend(self.mapped.iter().chain(&self.shared).chain(&self.open).chain(&maps.open));
        all
    }

    /// What is known of a file.
    pub(crate) fn hint(&self, inode: &Inode) -> Hint<'_> {
        static NOTHING: Ranges = Ranges::new();
        let key = (inode.identity.dev, inode.identity.ino);
        let change = self.found.files.get(&key);
        let is_whole = change.is_some_and(|change| change.is_whole);
        let is_recorded =
            !self.found.is_incomplete && self.table.as_ref().is_some_and(|table| table.has_device(key.0));
        let stored = self.stored.get(&key).filter(|_| is_recorded && !is_whole);
        match stored {
            Some(ranges) => Hint::Stored(ranges),
            // Attributes say nothing of a write that was under way.
            None if self.is_blurred && change.is_some() && self.shared.contains(&key) => Hint::Mapped,
            None if is_whole || self.mapped.contains(&key) => Hint::Mapped,
            None if !is_recorded || self.shared.contains(&key) => Hint::Attributes,
            None => Hint::Written(change.map_or(&NOTHING, |change| &change.ranges)),
        }
    }

    /// What the record of changes says that an epoch must read of files with these inodes: bytes of places that are known, and bytes of
    /// files that count as changed all over, since there was no room for more places, or nobody knows where.
    pub(crate) fn bytes(&self, inodes: &[Inode]) -> (u64, u64) {
        let (mut known, mut whole) = (0, 0);
        if self.found.files.is_empty() {
            return (known, whole);
        }
        for inode in inodes {
            let Kind::File { size, .. } = inode.kind else { continue };
            match self.found.files.get(&(inode.identity.dev, inode.identity.ino)) {
                Some(change) if change.is_whole => whole += size,
                Some(change) => {
                    let within = |at: u64, len: u64| at.saturating_add(len).min(size).saturating_sub(at);
                    known += change.ranges.iter().map(|range| within(range.at, range.len)).sum::<u64>();
                }
                None => {}
            }
        }
        (known, whole)
    }

    /// The table, if everybody who writes comes by the gate.
    pub(crate) fn gated(&self) -> Option<Arc<Table>> {
        let table = self.table.as_ref().filter(|_| self.all_record && !self.was_void)?;
        (table.table().blind.load(Ordering::SeqCst) == 0).then(|| Arc::clone(table))
    }

    /// Files that somebody else writes to.
    pub(crate) fn outsiders(&self) -> &BTreeSet<Number> {
        &self.outsiders
    }

    /// There is no epoch of the last cut, see [`crate::awaited`].
    pub(crate) fn void(&mut self, why: &Void) {
        self.was_void = true;
        if let Void::Outsiders(numbers) = why {
            if self.outsiders.len() > OUTSIDERS_MAX {
                self.outsiders.clear();
            }
            self.outsiders.extend(numbers);
        }
    }

    /// The application runs again.
    pub(crate) fn tidy(&self) {
        if let Some(table) = &self.table {
            table.tidy();
            table.carry(&self.found);
        }
    }

    /// There is an epoch that has all that was found.
    pub(crate) fn sealed(&self) {
        if let Some(table) = &self.table {
            table.sealed();
        }
    }

    /// The epoch has all of it.
    pub(crate) fn settle(&mut self, maps: Maps) {
        self.found = Found::default();
        (self.is_blurred, self.was_void) = (false, false);
        (self.mapped, self.shared, self.open) = (maps.mapped, maps.shared, maps.open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::FileChange;
    use holo_cfor::{Identity, Time};

    // Goal: figures count what is read of files, as long as they are now. Method: one of each sort.
    #[test]
    fn places_end_where_files_end() {
        let time = Time::default();
        let inode = |ino: u64, kind: Kind| {
            let (mode, uid, gid, atime, mtime) = (0, 0, 0, time, time);
            let identity = Identity { dev: 1, ino, ctime: time };
            Inode { kind, mode, uid, gid, atime, mtime, xattrs: Vec::new(), flags: 0, identity }
        };
        let file = |ino: u64, size: u64| inode(ino, Kind::File { size, data: Vec::new() });
        let all = [file(1, 10_000), file(2, 500), file(3, 70_000), file(4, 9), inode(5, Kind::Dir)];
        let mut recorded = Recorded::new(ChangesCell::default());
        let mut change = |ino: u64, is_whole: bool, places: &[(u64, u64)]| {
            let mut ranges = Ranges::new();
            places.iter().for_each(|(at, len)| ranges.insert(*at, *len));
            recorded.found.files.insert((1, ino), FileChange { is_whole, ranges });
        };
        change(1, false, &[(0, 4096), (8192, u64::MAX)]);
        change(2, false, &[(4096, 4096)]);
        change(3, true, &[(0, 4096)]);
        change(5, true, &[]);
        change(6, true, &[]);
        assert_eq!(recorded.bytes(&all), (4096 + 1808, 70_000));
    }
}
