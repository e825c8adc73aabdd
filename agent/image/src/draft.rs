//! An epoch before it is sealed: pages go to free slots, and are held until the epoch is sealed or dropped.

use std::sync::Arc;

use crate::{
    ahead::TOLD_PAGES,
    delta::Made,
    epochs,
    error::{Error, Result},
    head::{Head, Next},
    key::{PAGE_BYTES, Page, PageKey},
    keymap::KeyMap,
    manifest::EpochSide,
    memory::{Memory, NOWHERE},
    slotset::SlotSet,
    spread::Names,
    state::{AppInner, Entry, State},
};

/// Pages that are written with one call when they fit: 1 MiB. Tests with few pages want many calls.
const EXTENT_SLOTS: u32 = if cfg!(test) { 4 } else { 256 };

#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) app: Arc<AppInner>,
    pub(crate) epoch: u64,
    /// The newest epoch when this began: what it has is found fastest.
    before: Option<Arc<Head>>,
    /// Where those of the pages so far lie that the newest epoch has not; this draft holds each slot once.
    pub(crate) held: SlotSet,
    /// Where those lie that are in pieces which the newest epoch does not share.
    in_runs: SlotSet,
    /// Pages that were not in the store before, in the order of their coming.
    pub(crate) fresh: Vec<(PageKey, u32)>,
    /// So many of them are told of, from this place on.
    told: usize,
    told_from: u64,
    /// Where those are that cannot be found in the store yet.
    unpublished: KeyMap<u32>,
    /// Behind the slot that was found last.
    near: u32,
    /// Slots taken and not used yet, from `next` to `end`; `buffer` is for those before `next`.
    next: u32,
    end: u32,
    buffer: Vec<u8>,
    pub(crate) failed: bool,
    sealed: bool,
}

impl Draft {
    pub(crate) fn new(app: Arc<AppInner>, epoch: u64) -> Draft {
        let (held, in_runs) = (SlotSet::default(), SlotSet::default());
        let (fresh, unpublished) = (Vec::new(), KeyMap::default());
        let buffer = Vec::with_capacity(EXTENT_SLOTS as usize * PAGE_BYTES);
        let (near, next, end) = (0, 0, 0);
        let (before, told_from) = {
            let mut state = app.state();
            if state.is_line_full() {
                state.end_line();
            }
            (state.head.clone(), state.told.end())
        };
        Draft {
            app,
            epoch,
            before,
            held,
            in_runs,
            fresh,
            told: 0,
            told_from,
            unpublished,
            near,
            next,
            end,
            buffer,
            failed: false,
            sealed: false,
        }
    }

    /// Adds a page that is in the store already. False: it is not.
    pub(crate) fn keep(&mut self, key: PageKey) -> bool {
        self.missing(std::iter::once(key)).is_empty()
    }

    /// Adds pages that are in the store already; those that are not, as often as they are named.
    pub(crate) fn missing(&mut self, keys: impl Iterator<Item = PageKey>) -> Vec<PageKey> {
        let app = self.app.clone();
        let mut state = app.state();
        keys.filter(|key| !key.is_zero() && self.find(&mut state, *key).is_none()).collect()
    }

    /// Adds pages that are in the store or in this draft already, to `memory` too, which has none behind them.
    pub(crate) fn keep_names(&mut self, names: &Names, memory: &mut Memory) -> Result<()> {
        let app = self.app.clone();
        let mut state = app.state();
        let before = self.before.clone().filter(|_| state.slots.is_sound());
        for piece in names.pieces() {
            let before = before.as_ref().map(|before| &before.memory);
            if let Some((known, slots)) = before.and_then(|before| before.same(piece)) {
                // A piece that is shared has no page that was put.
                if !Arc::ptr_eq(&known.items, &piece.items) {
                    self.enter(slots);
                }
                memory.push(known, Arc::clone(slots));
                continue;
            }
            let mut find = |keys: &[PageKey], out: &mut Vec<u32>| self.find_all(&mut state, keys, out);
            let slots = match before {
                Some(before) => before.slots_of(piece.at(), &piece.items, find)?,
                None => {
                    let mut slots = Vec::with_capacity(piece.items.len());
                    find(&piece.items, &mut slots)?;
                    slots
                }
            };
            self.enter(&slots);
            memory.push(piece, Arc::new(slots));
        }
        Ok(())
    }

    /// Runs have these pages.
    fn enter(&mut self, slots: &[u32]) {
        for slot in slots.iter().filter(|slot| **slot != NOWHERE) {
            self.in_runs.insert(*slot);
        }
    }

    /// Adds further pages that are in the store or in this draft already, in rising order; where they lie.
    pub(crate) fn keep_extra(&mut self, keys: &[PageKey]) -> Result<Vec<(PageKey, u32)>> {
        let app = self.app.clone();
        let mut state = app.state();
        let before = self.before.clone().filter(|_| state.slots.is_sound());
        let mut known = before.as_ref().map_or(&[][..], |before| &before.extra);
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            let smaller = known.iter().take_while(|(other, _)| other < key).count();
            known = &known[smaller..];
            let slot = known.first().filter(|(other, _)| other == key).map(|(_, slot)| *slot);
            let slot = slot.or_else(|| self.find(&mut state, *key));
            out.push((*key, slot.ok_or(Error::UnknownPage { key: *key })?));
        }
        Ok(out)
    }

    fn find_all(&mut self, state: &mut State, keys: &[PageKey], out: &mut Vec<u32>) -> Result<()> {
        for key in keys {
            let slot = if key.is_zero() { Some(NOWHERE) } else { self.find(state, *key) };
            out.push(slot.ok_or(Error::UnknownPage { key: *key })?);
        }
        Ok(())
    }

    /// Those of these pages that no run has, in rising order, and where they lie; not those of zeros. One that a run has had since the
    /// epoch before may be among them.
    pub(crate) fn others(&mut self, mut keys: Vec<PageKey>) -> Result<Vec<(PageKey, u32)>> {
        keys.retain(|key| !key.is_zero());
        keys.sort_unstable();
        keys.dedup();
        let mut found = self.keep_extra(&keys)?;
        found.retain(|(_, slot)| !self.in_runs.contains(*slot));
        Ok(found)
    }

    fn hold(&mut self, state: &mut State, slot: u32) {
        // What the newest epoch has stays as long as that is the newest one.
        let stays = self.before.is_some() && state.slots.is_named(slot);
        if !stays && self.held.insert(slot) {
            state.slots.hold(slot);
        }
    }

    /// Has it this page?
    pub(crate) fn has(&self, key: PageKey) -> bool {
        if self.unpublished.contains_key(&key) {
            return true;
        }
        let state = self.app.state();
        state.slots.find(key).is_some_and(|slot| self.held.contains(slot) || state.slots.is_named(slot))
    }

    /// The slot of a page that is in the store or in this draft, which holds it from now on.
    fn find(&mut self, state: &mut State, key: PageKey) -> Option<u32> {
        let slot = if state.slots.is_at(key, self.near) {
            self.near
        } else {
            let unpublished = self.unpublished.get(&key).copied();
            unpublished.or_else(|| state.slots.find(key))?
        };
        self.near = slot.wrapping_add(1);
        self.hold(state, slot);
        Some(slot)
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
        self.held.insert(self.next);
        self.unpublished.insert(key, self.next);
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
        if written.is_ok() && self.fresh.len() - self.told >= TOLD_PAGES {
            self.tell();
        }
        written
    }

    /// What was written is told to who wants it before the epoch is sealed.
    fn tell(&mut self) {
        let app = self.app.clone();
        let mut state = app.state();
        let news = &self.fresh[self.told..];
        for (key, slot) in news {
            state.slots.publish(*slot, *key);
        }
        state.told.tell(news.iter().map(|(_, slot)| *slot).collect());
        self.told = self.fresh.len();
    }

    /// Makes pages and names durable, in this order, and the epoch visible. Returns its file's length.
    ///
    /// Every page that it names was put or kept, and the other way round.
    pub(crate) fn seal(&mut self, made: Made) -> Result<u64> {
        self.flush()?;
        // After a failed sync nobody knows what is on the disk: do not try again.
        let synced = self.app.files.sync();
        self.failed = synced.is_err();
        synced?;

        let name = epochs::file_name(self.epoch);
        let app = self.app.clone();
        let (disk, dir) = (&*app.disk, &app.epochs_dir);
        let meta = made.meta.clone();
        {
            let mut state = app.state();
            // Put aside meanwhile, or removed: then nobody holds what this draft has of it.
            let same = match (&state.head, &self.before) {
                (Some(head), Some(before)) => Arc::ptr_eq(head, before),
                (None, None) => true,
                (_, None) | (None, _) => false,
            };
            if !same {
                self.failed = true;
                return Err(Error::Failed { app: app.name.clone(), epoch: self.epoch });
            }
            state.sealing = self.before.as_ref().map(|before| before.base());
        }
        let next = Head::follow(self.before.as_ref(), made, app.whole_max);
        let Next { head, bytes, base, came, went } =
            next.map_err(|source| Error::File { path: dir.join(&name), source })?;
        let written = epochs::write_atomic(disk, dir, &name, &bytes);
        // Held while the outcome is decided.
        let mut state = app.state();
        if let Err(error) = written {
            self.failed = true;
            // The name may be there or not, now or after a power loss. While it may come back, its pages
            // must not be overwritten.
            let mut pages = SlotSet::default();
            for slot in head.slots() {
                if pages.insert(slot) {
                    state.slots.hold(slot);
                }
            }
            if epochs::remove(disk, dir, self.epoch).is_err() {
                state.doubtful = self.epoch;
            } else if disk.sync_dir(dir).is_err() {
                state.leaving.extend(pages.take());
            } else {
                pages.take().into_iter().for_each(|slot| state.slots.release(slot));
            }
            return Err(error);
        }
        for (key, slot) in self.fresh.drain(..) {
            state.slots.publish(slot, key);
        }
        let holding = state.advance(&came, &went);
        let entry = Entry { meta, side: EpochSide::default(), holding, base, pin: Arc::default() };
        state.epochs.insert(self.epoch, entry);
        state.head = Some(Arc::new(head));
        state.settle();
        // It holds those of them that it has.
        for slot in std::mem::take(&mut state.ahead) {
            state.slots.release(slot);
        }
        state.told.forget(0);
        self.sealed = true;
        Ok(bytes.len() as u64)
    }

    /// Leaves pages that were stored for an epoch to come, until one is sealed.
    pub(crate) fn leave(mut self) -> Result<()> {
        self.flush()?;
        self.tell();
        let app = self.app.clone();
        let mut state = app.state();
        for (_, slot) in self.fresh.drain(..) {
            self.held.remove(slot);
            state.ahead.push(slot);
        }
        self.told_from = state.told.end();
        Ok(())
    }

    /// Makes the pages so far durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.tell();
        let synced = self.app.files.sync();
        self.failed = synced.is_err();
        synced
    }

    /// Leaves pages that were received for the next try, instead of giving them back.
    pub(crate) fn orphan(&mut self) {
        if self.sealed || self.failed || self.flush().is_err() {
            return;
        }
        let mut state = self.app.state();
        for (key, slot) in self.fresh.drain(..) {
            self.held.remove(slot);
            state.slots.publish(slot, key);
            state.orphans.insert(key, slot);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut state = self.app.state();
        let unused = self.next..self.end;
        for slot in self.held.take().into_iter().chain(unused) {
            state.slots.release(slot);
        }
        state.told.forget(self.told_from);
        (state.writing, state.sealing) = (false, None);
        if self.failed {
            // The disk may be full, also for others.
            self.app.files.shrink(state.slots.shrink());
        }
    }
}
