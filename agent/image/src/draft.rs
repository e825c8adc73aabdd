//! An epoch before it is sealed: pages go to free slots, and are held until the epoch is sealed or dropped.

use std::sync::Arc;

use crate::{
    epochs,
    error::{Error, Result},
    key::{PAGE_BYTES, Page, PageKey},
    keymap::KeyMap,
    manifest::{EpochSide, Manifest, to_runs},
    state::{AppInner, Entry},
    wire::{self, Kind},
};

/// Pages that are written with one call when they fit: 1 MiB. Tests with few pages want many calls.
const EXTENT_SLOTS: u32 = if cfg!(test) { 4 } else { 256 };

#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) app: Arc<AppInner>,
    pub(crate) epoch: u64,
    /// Pages of the epoch so far, and where they lie; this draft holds each slot once.
    pub(crate) pages: KeyMap<u32>,
    /// Those of them that were not in the store before, in the order of their coming.
    pub(crate) fresh: Vec<(PageKey, u32)>,
    /// Slots taken and not used yet, from `next` to `end`; `buffer` is for those before `next`.
    next: u32,
    end: u32,
    buffer: Vec<u8>,
    pub(crate) failed: bool,
    sealed: bool,
}

impl Draft {
    pub(crate) fn new(app: Arc<AppInner>, epoch: u64) -> Draft {
        let (pages, fresh) = (KeyMap::default(), Vec::new());
        let buffer = Vec::with_capacity(EXTENT_SLOTS as usize * PAGE_BYTES);
        Draft { app, epoch, pages, fresh, next: 0, end: 0, buffer, failed: false, sealed: false }
    }

    /// Adds a page that is in the store already. False: it is not.
    pub(crate) fn keep(&mut self, key: PageKey) -> bool {
        if key.is_zero() || self.pages.contains_key(&key) {
            return true;
        }
        let mut state = self.app.state();
        let Some(slot) = state.slots.find(key) else { return false };
        state.slots.hold(slot);
        drop(state);
        self.pages.insert(key, slot);
        true
    }

    /// Adds pages that are in the store already.
    pub(crate) fn keep_all(&mut self, keys: &[PageKey]) -> Result<()> {
        let mut state = self.app.state();
        for &key in keys {
            if key.is_zero() || self.pages.contains_key(&key) {
                continue;
            }
            let slot = state.slots.find(key).ok_or(Error::UnknownPage { key })?;
            state.slots.hold(slot);
            self.pages.insert(key, slot);
        }
        Ok(())
    }

    /// Adds a page; true if it was not in the store.
    pub(crate) fn put(&mut self, key: PageKey, page: &Page) -> Result<bool> {
        if self.keep(key) {
            return Ok(false);
        }
        if self.next == self.end {
            self.flush()?;
            let extent = self.app.state().slots.take(EXTENT_SLOTS);
            let (first, count) = extent.ok_or_else(|| Error::Full { app: self.app.name.clone() })?;
            (self.next, self.end) = (first, first + count);
        }
        self.buffer.extend_from_slice(page);
        self.pages.insert(key, self.next);
        self.fresh.push((key, self.next));
        self.next += 1;
        Ok(true)
    }

    /// Writes what is buffered.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.failed {
            return Err(Error::Failed { app: self.app.name.clone(), epoch: self.epoch });
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let first = self.next - (self.buffer.len() / PAGE_BYTES) as u32;
        let written = self.app.files.write(first, &self.buffer);
        self.failed = written.is_err();
        self.buffer.clear();
        written
    }

    /// Makes pages and manifest durable, in this order, and the epoch visible. Returns its file's length.
    ///
    /// Every page that the manifest names was put or kept, and the other way round.
    pub(crate) fn seal(&mut self, manifest: &Manifest, mut frame: Vec<u8>) -> Result<u64> {
        self.flush()?;
        // After a failed sync nobody knows what is on the disk: do not try again.
        let synced = self.app.files.sync();
        self.failed = synced.is_err();
        synced?;

        let name = epochs::file_name(self.epoch);
        let (disk, dir) = (&*self.app.disk, &self.app.epochs_dir);
        let places = manifest.references().map(|key| self.pages[&key]);
        let slots = wire::encode(&to_runs(places), Kind::SLOTS)
            .map_err(|source| Error::File { path: dir.join(&name), source })?;
        frame.extend_from_slice(&slots);
        let written = epochs::write_atomic(disk, dir, &name, &frame);
        // Held while the outcome is decided.
        let mut state = self.app.state();
        if let Err(error) = written {
            self.failed = true;
            // The name may be there or not, now or after a power loss. While it may come back, its pages
            // must not be overwritten.
            if epochs::remove(disk, dir, self.epoch).is_err() {
                state.doubtful = self.epoch;
                self.pages.clear();
            } else if disk.sync_dir(dir).is_err() {
                state.leaving.extend(self.pages.drain().map(|(_, slot)| slot));
            }
            return Err(error);
        }
        for (key, slot) in self.fresh.drain(..) {
            state.slots.publish(slot, key);
        }
        // The epoch takes over what the draft held.
        let mut slots: Vec<u32> = self.pages.drain().map(|(_, slot)| slot).collect();
        slots.sort_unstable();
        let entry =
            Entry { meta: manifest.meta.clone(), side: EpochSide::default(), slots, pin: Arc::default() };
        state.epochs.insert(self.epoch, entry);
        state.settle();
        self.sealed = true;
        Ok(frame.len() as u64)
    }

    /// Leaves pages that were received for the next try, instead of giving them back.
    pub(crate) fn orphan(&mut self) {
        if self.sealed || self.failed || self.flush().is_err() {
            return;
        }
        let mut state = self.app.state();
        for (key, slot) in self.fresh.drain(..) {
            self.pages.remove(&key);
            state.slots.publish(slot, key);
            state.orphans.insert(key, slot);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut state = self.app.state();
        let unused = self.next..self.end;
        for slot in self.pages.drain().map(|(_, slot)| slot).chain(unused) {
            state.slots.release(slot);
        }
        state.writing = false;
        if self.failed {
            // The disk may be full, also for others.
            self.app.files.shrink(state.slots.shrink());
        }
    }
}
