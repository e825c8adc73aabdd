//! An application in the store: what callers may ask of it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    delta::BaseId,
    epochs,
    error::{Error, Result},
    import::Import,
    manifest::{EpochMeta, EpochSide},
    reader::EpochReader,
    retention::Retention,
    state::{AppInner, Entry, State},
    store::{remove_app_dir, retire_app},
    writer::EpochWriter,
};

/// An epoch file that cannot be used.
#[derive(Clone, Debug)]
pub struct DamagedEpoch {
    /// Its number.
    pub epoch: u64,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: Arc<Error>,
}

/// An application in the store. Clones are the same application.
#[derive(Clone, Debug)]
pub struct AppStore {
    pub(crate) inner: Arc<AppInner>,
}

impl AppStore {
    pub(crate) fn of(inner: Arc<AppInner>) -> AppStore {
        AppStore { inner }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Starts writing an epoch; its number must be above all that exist. One at a time.
    ///
    /// Nothing is visible before [`EpochWriter::seal`]; dropping the writer gives everything back.
    pub fn begin(&self, epoch: u64) -> Result<EpochWriter> {
        let draft = self.inner.begin(epoch)?;
        self.inner.state().drop_orphans();
        Ok(EpochWriter::new(draft))
    }

    /// Bytes of contents that writers have stored since the last call of [`Self::restart_progress`], and those that are known to
    /// come in all.
    pub fn progress(&self) -> (u64, u64) {
        self.inner.progress.look()
    }

    /// See [`Self::progress`].
    pub fn restart_progress(&self) {
        self.inner.progress.restart();
    }

    /// Starts receiving an epoch out of its manifest ([`EpochReader::export_manifest`]), or out of what it changes of the newest
    /// epoch here ([`EpochReader::export_since`]); of another one that is [`Error::NeedsWhole`].
    pub fn begin_import(&self, manifest_frame: &[u8]) -> Result<Import> {
        Import::begin(&self.inner, manifest_frame)
    }

    /// Sealed epochs, in rising order.
    pub fn epochs(&self) -> Vec<EpochMeta> {
        self.inner.state().epochs.values().map(Entry::full_meta).collect()
    }

    /// The newest sealed epoch.
    pub fn last(&self) -> Option<EpochMeta> {
        self.inner.state().epochs.values().next_back().map(Entry::full_meta)
    }

    /// Newest number in use, by a sealed epoch or by anything else; 0 if none. The next epoch must be above.
    pub fn newest_number(&self) -> u64 {
        self.inner.state().newest()
    }

    /// Epoch files that cannot be used, and why. While there are any, no place of a page is reused that one
    /// of them may name, so that a newer holo can still read what this one cannot.
    pub fn damaged(&self) -> Vec<DamagedEpoch> {
        self.inner.state().damaged.clone()
    }

    /// Opens an epoch to read; it is not removed meanwhile.
    pub fn open_epoch(&self, epoch: u64) -> Result<EpochReader> {
        EpochReader::open(&self.inner, epoch)
    }

    /// Notes what became known of an epoch after it was sealed.
    pub fn update_side(&self, epoch: u64, change: impl FnOnce(&mut EpochSide)) -> Result<EpochSide> {
        self.inner.check_writable()?;
        // Held over the writing, so that two changes are not mixed; the file is small.
        let mut state = self.inner.state();
        let entry = state
            .epochs
            .get_mut(&epoch)
            .ok_or_else(|| Error::NoSuchEpoch { app: self.inner.name.clone(), epoch })?;
        let mut side = entry.side.clone();
        change(&mut side);
        epochs::write_side(&*self.inner.disk, &self.inner.epochs_dir, epoch, &side)?;
        entry.side = side.clone();
        Ok(side)
    }

    /// Removes the epochs that need not be kept; epochs that are being read stay until the next call. Returns
    /// what was removed.
    pub fn retain(&self, retention: &Retention) -> Result<Vec<u64>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64);
        self.retain_at(retention, now)
    }

    /// [`AppStore::retain`] with the time given, in nanoseconds of Unix time.
    pub fn retain_at(&self, retention: &Retention, now_unix_ns: u64) -> Result<Vec<u64>> {
        self.inner.check_writable()?;
        let mut state = self.inner.state();
        let sealed: Vec<_> =
            state.epochs.iter().map(|(epoch, entry)| (*epoch, entry.meta.at_unix_ns)).collect();
        let mut doomed = retention.doomed(&sealed, now_unix_ns);
        doomed.retain(|epoch| !state.epochs[epoch].is_pinned());
        // What nobody can ever read goes when all kept epochs are newer.
        let oldest = sealed.iter().map(|(epoch, _)| *epoch).find(|epoch| !doomed.contains(epoch));
        let hopeless = state.damaged.iter().filter(|file| {
            oldest.is_some_and(|oldest| file.epoch < oldest) && epochs::is_hopeless(&file.reason)
        });
        doomed.extend(hopeless.map(|file| file.epoch));
        doomed.sort_unstable();
        // Under the same lock: nobody begins to read one in between.
        self.remove_epochs(&mut state, &doomed)?;
        Ok(doomed)
    }

    /// Removes one epoch, readable or not, even the newest.
    pub fn remove_epoch(&self, epoch: u64) -> Result<()> {
        self.inner.check_writable()?;
        self.remove_epochs(&mut self.inner.state(), &[epoch])
    }

    fn remove_epochs(&self, state: &mut State, doomed: &[u64]) -> Result<()> {
        if doomed.is_empty() {
            return Ok(());
        }
        let app = || self.inner.name.clone();
        for &epoch in doomed {
            match state.epochs.get(&epoch) {
                Some(entry) if entry.is_pinned() => return Err(Error::InUse { app: app(), epoch }),
                None if !state.damaged.iter().any(|file| file.epoch == epoch) => {
                    return Err(Error::NoSuchEpoch { app: app(), epoch });
                }
                Some(_) | None => {}
            }
        }
        // Held over the removal: nobody shall open what is going. Some milliseconds.
        state.unsettled = true;
        self.take_out(state, doomed)?;
        // A name that comes back after a power loss must not name pages that were overwritten.
        let (disk, dir) = (&*self.inner.disk, &self.inner.epochs_dir);
        disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        state.settle();
        state.drop_bases(disk, dir);
        self.give_back(state);
        Ok(())
    }

    /// Removes epochs, readable or not, in this order; their slots are then leaving.
    pub(crate) fn take_out(&self, state: &mut State, epochs: &[u64]) -> Result<()> {
        let (disk, dir) = (&*self.inner.disk, &self.inner.epochs_dir);
        // Before any is gone: whatever comes back after a power loss finds what it is a change of.
        let ids = epochs.iter().filter_map(|epoch| state.epochs.get(epoch).map(Entry::id));
        let ids: Vec<BaseId> = ids.filter(|id| state.is_base(*id)).collect();
        for id in ids {
            epochs::put_base(disk, dir, id)?;
            state.bases.insert(id);
        }
        // Whether it is gone is not known after an error: nothing is to be a change of it.
        if state.head.as_ref().is_some_and(|head| epochs.contains(&head.id.epoch)) {
            state.end_line();
        }
        for epoch in epochs {
            epochs::remove(disk, dir, *epoch)?;
            state.damaged.retain(|file| file.epoch != *epoch);
            state.take_entry(*epoch);
        }
        Ok(())
    }

    /// Gives the space of free slots back, as far as that is simple.
    pub(crate) fn give_back(&self, state: &mut State) {
        state.slots.free_segments().into_iter().for_each(|segment| self.inner.files.remove(segment));
        if state.slots.mostly_free() {
            self.inner.files.shrink(state.slots.shrink());
        }
    }

    /// Forgets the application and all its epochs; nothing may be read or written meanwhile.
    pub fn remove(&self) -> Result<()> {
        self.inner.check_writable()?;
        let mut state = self.inner.state();
        if state.writing {
            return Err(Error::Busy { app: self.inner.name.clone() });
        }
        let aside =
            state.aside.iter().filter_map(|((_, epoch), aside)| Some((epoch, aside.entry.as_ref().ok()?)));
        if let Some((&epoch, _)) = state.epochs.iter().chain(aside).find(|(_, entry)| entry.is_pinned()) {
            return Err(Error::InUse { app: self.inner.name.clone(), epoch });
        }
        let gone = retire_app(&*self.inner.disk, &self.inner.apps_dir, &self.inner.name)?;
        state.gone = true;
        remove_app_dir(&*self.inner.disk, &gone)
    }

    /// Bytes of pages that are stored, each content once.
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.inner.state().slots.used()) * crate::PAGE_BYTES as u64
    }
}
