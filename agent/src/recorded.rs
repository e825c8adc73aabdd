//! What is known of how files were changed since the epoch before, and when that is not enough to go by.
//!
//! Ranges are gone by only if every process of the application records, every program that was started has joined, and
//! nobody has the file mapped shared. All else is told by attributes, as without a recorder: a file whose attributes
//! have changed and of which nothing was recorded is copied whole.

use crate::app::ChangesCell;
use crate::awaited::Void;
use crate::changes::{Found, Number, Table};
use holo_cfor::log::Ranges;
use holo_cfor::{Hint, Inode};
use std::collections::BTreeSet;
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
    /// Files that were open at the last cut of which there is an epoch.
    open: BTreeSet<Number>,
    /// Every process has the table.
    all_record: bool,
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
        let (all_record, was_void) = (false, false);
        Self { cell, table: None, strangers: 0, found, mapped, shared, open, all_record, was_void, outsiders }
    }

    /// The table of the instance that runs now.
    pub(crate) fn table(&self) -> Option<Arc<Table>> {
        self.cell.lock().clone()
    }

    /// Takes what was recorded up to this cut of so many processes.
    pub(crate) fn cut(&mut self, maps: &Maps, processes: usize) {
        let table = self.table();
        let is_same = match (&table, &self.table) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (None, _) | (_, None) => false,
        };
        let mut found = table.as_ref().map_or_else(Found::default, |table| table.cut());
        let strangers = table.as_ref().map_or(0, |table| table.strangers());
        found.is_incomplete |= !is_same || maps.recording < processes || strangers != self.strangers;
        (self.table, self.strangers) = (table, strangers);
        self.all_record = maps.recording >= processes;
        self.found.add(found);
        self.mapped.extend(&maps.mapped);
        self.shared.extend(&maps.shared);
    }

    /// Is of every file on these file systems known whether it may have other content?
    pub(crate) fn is_complete(&self, mut devices: impl Iterator<Item = u64>) -> bool {
        let table = self.table.as_ref().filter(|_| !self.found.is_incomplete);
        table.is_some_and(|table| devices.all(|device| table.has_device(device)))
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
        if self.mapped.contains(&key) || change.is_some_and(|change| change.is_whole) {
            return Hint::Mapped;
        }
        let is_recorded = self.table.as_ref().is_some_and(|table| table.has_device(key.0));
        if !is_recorded || self.found.is_incomplete || self.shared.contains(&key) {
            return Hint::Attributes;
        }
        Hint::Written(change.map_or(&NOTHING, |change| &change.ranges))
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
        self.was_void = false;
        (self.mapped, self.shared, self.open) = (maps.mapped, maps.shared, maps.open);
    }
}
