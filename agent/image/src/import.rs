//! Receiving an epoch from another store.

use std::{iter, sync::Arc};

use crate::{
    delta::{Delta, Made},
    draft::Draft,
    epochs::check_identity,
    error::{Error, Result},
    key::{Page, PageKey},
    keymap::KeySet,
    manifest::{EpochMeta, Manifest, check_count},
    memory::{Memory, NOWHERE},
    state::AppInner,
    store::check_app_name,
    wire::{self, Kind},
};

/// An epoch that is being received. Dropped before it is sealed, nothing of it is visible; pages that came
/// are remembered while the application is open, so that the next [`crate::AppStore::begin_import`] need not
/// ask for them.
#[derive(Debug)]
pub struct Import {
    draft: Draft,
    /// Of which the pages are nowhere yet.
    made: Made,
    /// Pages that were not here at the start, in the order of the manifest.
    wanted: Vec<PageKey>,
    /// Those of them that have not come yet.
    open: KeySet,
}

impl Import {
    pub(crate) fn begin(app: &Arc<AppInner>, frame: &[u8]) -> Result<Import> {
        let (made, fresh): (Made, Vec<PageKey>) = match wire::peek(frame).map(|header| header.kind.id) {
            Ok(id) if id == Kind::DELTA.id => {
                let delta = Delta::parse(frame)?;
                // All others are the newest epoch's here.
                let fresh = delta.references().collect();
                (made_here(app, delta)?, fresh)
            }
            _ => {
                let manifest = Manifest::parse(frame)?;
                let fresh = manifest.references().collect();
                (Made::of(manifest, iter::repeat(NOWHERE)), fresh)
            }
        };
        check_app_name(&made.meta.app)?;
        check_identity(&made.meta, &app.name, made.meta.epoch)?;
        let mut draft = app.begin(made.meta.epoch)?;
        let mut wanted = draft.missing(fresh.into_iter());
        let mut open = KeySet::default();
        wanted.retain(|key| open.insert(*key));
        // What an earlier try left is this one's now, or of no use any more.
        let mut state = app.state();
        for (key, slot) in std::mem::take(&mut state.orphans) {
            if draft.held.contains(slot) {
                draft.fresh.push((key, slot));
            }
            state.slots.release(slot);
        }
        drop(state);
        Ok(Import { draft, made, wanted, open })
    }

    /// What is received.
    pub fn meta(&self) -> &EpochMeta {
        &self.made.meta
    }

    /// Pages that have not come yet, in the order in which they are best sent.
    pub fn missing(&self) -> Vec<PageKey> {
        self.wanted.iter().copied().filter(|key| self.open.contains(key)).collect()
    }

    /// How many pages have not come yet.
    pub fn missing_count(&self) -> usize {
        self.open.len()
    }

    /// Takes a page that was received; one that came before is ignored.
    pub fn put(&mut self, key: PageKey, bytes: &[u8]) -> Result<()> {
        let page: &Page = bytes.try_into().map_err(|_| Error::WrongPage { key })?;
        if PageKey::of(page) != key {
            return Err(Error::WrongPage { key });
        }
        if !self.open.contains(&key) {
            let known = key.is_zero() || self.draft.has(key);
            return if known { Ok(()) } else { Err(Error::Unwanted { key }) };
        }
        self.draft.put(key, page)?;
        self.open.remove(&key);
        Ok(())
    }

    /// Makes the epoch durable and visible; it is the sender's, byte by byte.
    pub fn seal(mut self) -> Result<EpochMeta> {
        if let Some(first) = self.missing().first() {
            return Err(Error::Incomplete { count: self.open.len(), first: *first });
        }
        let mut memory = Memory::default();
        let made = std::mem::take(&mut self.made);
        self.draft.keep_names(made.memory.names(), &mut memory)?;
        let extra: Vec<PageKey> = made.extra.iter().map(|(key, _)| *key).collect();
        let extra = self.draft.keep_extra(&extra)?;
        let meta = made.meta.clone();
        self.draft.seal(Made { memory, extra, ..made })?;
        Ok(meta)
    }
}

/// The epoch that comes out of a change of the newest epoch here, or of one that this was made of.
fn made_here(app: &Arc<AppInner>, delta: Delta) -> Result<Made> {
    let base = delta.base.epoch;
    let needs_whole = || Error::NeedsWhole { app: app.name.clone(), base };
    let head = app.state().head.clone().filter(|head| (base..delta.meta.epoch).contains(&head.id.epoch));
    let head = head.ok_or_else(needs_whole)?;
    let made = delta.made_of(&head.memory, &head.extra, Some(head.sum), iter::repeat(NOWHERE));
    let made = made.map_err(|_| needs_whole())?;
    check_count(made.memory.page_count() + made.extra.len() as u64)?;
    Ok(made)
}

impl Drop for Import {
    fn drop(&mut self) {
        self.draft.orphan();
    }
}
