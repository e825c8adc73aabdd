//! An application in the store: its epochs, who reads and writes them.

use std::{
    collections::BTreeMap,
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    disk::{Disk, read_file},
    draft::Draft,
    epochs::{self, EpochFile},
    error::{Error, Result},
    import::Import,
    key::PageKey,
    keymap::KeyMap,
    lock,
    manifest::{EpochMeta, EpochSide, Manifest},
    pages::PageFiles,
    reader::EpochReader,
    retention::Retention,
    slots::Slots,
    store::{remove_app_dir, retire_app},
    wire::{self, Kind, WireError},
    writer::EpochWriter,
};

/// Bound on `app.bin`.
const APP_BYTES_MAX: u64 = 4096;

/// An application's record: says that the directory is one, and of which version.
#[derive(Debug, Serialize, Deserialize)]
struct AppRecord {
    name: String,
}

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

/// A sealed epoch, in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) meta: EpochMeta,
    pub(crate) side: EpochSide,
    /// Slots that it holds, each once.
    pub(crate) slots: Vec<u32>,
    /// Readers.
    pub(crate) pins: usize,
}

/// What changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) slots: Slots,
    pub(crate) epochs: BTreeMap<u64, Entry>,
    pub(crate) damaged: Vec<DamagedEpoch>,
    /// An epoch is being written or received.
    pub(crate) writing: bool,
    /// Pages of a broken import, each held once, kept for the next try.
    pub(crate) orphans: KeyMap<u32>,
    /// Slots of epochs whose removal is not known to be durable, each held once.
    pub(crate) leaving: Vec<u32>,
    /// Number of a failed epoch whose file could not be removed: it may come back at the next start.
    pub(crate) doubtful: u64,
    pub(crate) gone: bool,
}

#[derive(Debug)]
pub(crate) struct AppInner {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) name: String,
    pub(crate) epochs_dir: PathBuf,
    pub(crate) files: PageFiles,
    apps_dir: PathBuf,
    state: Mutex<State>,
    /// None: open for reading only.
    lock: Option<Box<dyn fmt::Debug + Send + Sync>>,
}

impl Entry {
    /// Figures, with what became known later.
    pub(crate) fn full_meta(&self) -> EpochMeta {
        let mut meta = self.meta.clone();
        meta.sealed_where.clone_from(&self.side.sealed_where);
        meta.dump_us = self.side.dump_us.unwrap_or(meta.dump_us);
        meta
    }
}

impl State {
    /// Newest number in use.
    pub(crate) fn newest(&self) -> u64 {
        let sealed = self.epochs.keys().next_back().copied().unwrap_or(0);
        self.damaged.iter().map(|file| file.epoch).fold(sealed.max(self.doubtful), u64::max)
    }

    /// Frees the slots of removed epochs, now that their names are gone for good.
    pub(crate) fn settle(&mut self) {
        for slot in std::mem::take(&mut self.leaving) {
            self.slots.release(slot);
        }
        if self.damaged.is_empty() {
            self.slots.lift();
        }
    }
}

impl AppInner {
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        apps_dir: &Path,
        name: &str,
        write: bool,
    ) -> Result<Arc<AppInner>> {
        let dir = apps_dir.join(name);
        let (epochs_dir, pages_dir) = (dir.join("epochs"), dir.join("pages"));
        let mut lock = None;
        if write {
            disk.create_dir(&dir).map_err(Error::io("create", &dir))?;
            let path = dir.join("lock");
            let taken = disk.lock(&path).map_err(Error::io("lock", &path))?;
            lock = Some(taken.ok_or(Error::Locked { path })?);
        }
        let recorded = check_record(&*disk, &dir, name)?;
        if write {
            for sub in [&epochs_dir, &pages_dir] {
                disk.create_dir(sub).map_err(Error::io("create", sub))?;
            }
            if !recorded {
                let record = wire::encode(&AppRecord { name: name.into() }, Kind::APP)
                    .map_err(|source| Error::File { path: dir.join("app.bin"), source })?;
                epochs::write_atomic(&*disk, &dir, "app.bin", &record)?;
            }
            // Always: a crash may have left these names undecided.
            disk.sync_dir(&dir).map_err(Error::io("sync", &dir))?;
            disk.sync_dir(apps_dir).map_err(Error::io("sync", apps_dir))?;
            epochs::clean(&*disk, &epochs_dir)?;
        }
        let files = PageFiles::new(disk.clone(), pages_dir);
        let mut state = epochs::load_all(&*disk, &epochs_dir, name, &files)?;
        if write {
            // What an epoch left behind that was not sealed.
            files.shrink(state.slots.shrink());
        }
        let (name, apps_dir) = (name.to_owned(), apps_dir.to_owned());
        Ok(Arc::new(AppInner { disk, name, epochs_dir, files, apps_dir, state: Mutex::new(state), lock }))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Reads an epoch's file.
    pub(crate) fn load(&self, epoch: u64) -> Result<EpochFile> {
        epochs::load(&*self.disk, &self.epochs_dir, &self.name, epoch)
    }

    /// A reader is done.
    pub(crate) fn unpin(&self, epoch: u64) {
        if let Some(entry) = self.state().epochs.get_mut(&epoch) {
            entry.pins -= 1;
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state().gone
    }

    fn check_writable(&self) -> Result<()> {
        if self.lock.is_none() || self.is_gone() {
            return Err(Error::ReadOnly { app: self.name.clone() });
        }
        Ok(())
    }

    /// Reserves the right to write `epoch`.
    pub(crate) fn begin(self: &Arc<AppInner>, epoch: u64) -> Result<Draft> {
        self.check_writable()?;
        let app = || self.name.clone();
        let mut state = self.state();
        if state.writing {
            return Err(Error::Busy { app: app() });
        }
        if epoch <= state.newest() {
            return Err(Error::EpochOrder { app: app(), epoch, newest: state.newest() });
        }
        state.writing = true;
        drop(state);
        Ok(Draft::new(self.clone(), epoch))
    }
}

/// Is there a good record? A damaged one is as good as none, since every epoch says what it is; a foreign or
/// newer one is not ours to touch.
fn check_record(disk: &dyn Disk, dir: &Path, name: &str) -> Result<bool> {
    let path = dir.join("app.bin");
    let bytes = match read_file(disk, &path, APP_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == ErrorKind::InvalidData => {
            return Err(Error::File { path, source: WireError::BadMagic });
        }
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    match wire::decode::<AppRecord>(&bytes, Kind::APP, APP_BYTES_MAX) {
        Ok(record) => Ok(record.name == name),
        Err(
            source @ (WireError::BadMagic
            | WireError::WrongKind { .. }
            | WireError::NewerVersion { .. }
            | WireError::OlderVersion { .. }),
        ) if !bytes.is_empty() => Err(Error::File { path, source }),
        Err(_) => Ok(false),
    }
}

/// An application in the store. Clones are the same application.
#[derive(Clone, Debug)]
pub struct AppStore {
    inner: Arc<AppInner>,
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
        let mut state = self.inner.state();
        for (_, slot) in std::mem::take(&mut state.orphans) {
            state.slots.release(slot);
        }
        drop(state);
        Ok(EpochWriter::new(draft))
    }

    /// Starts receiving an epoch out of its manifest ([`EpochReader::export_manifest`]).
    pub fn begin_import(&self, manifest_frame: Vec<u8>) -> Result<Import> {
        Import::begin(&self.inner, manifest_frame)
    }

    /// Pages of a manifest that are not here; at most what an import would ask for.
    pub fn missing(&self, manifest: &Manifest) -> Vec<PageKey> {
        let keys = manifest.keys();
        let state = self.inner.state();
        keys.into_iter().filter(|key| state.slots.find(*key).is_none()).collect()
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
        let state = self.inner.state();
        let sealed: Vec<_> =
            state.epochs.iter().map(|(epoch, entry)| (*epoch, entry.meta.at_unix_ns)).collect();
        let mut doomed = retention.doomed(&sealed, now_unix_ns);
        doomed.retain(|epoch| state.epochs[epoch].pins == 0);
        // What nobody can ever read goes when all kept epochs are newer.
        let oldest = sealed.iter().map(|(epoch, _)| *epoch).find(|epoch| !doomed.contains(epoch));
        let hopeless = state.damaged.iter().filter(|file| {
            oldest.is_some_and(|oldest| file.epoch < oldest) && epochs::is_hopeless(&file.reason)
        });
        doomed.extend(hopeless.map(|file| file.epoch));
        drop(state);
        doomed.sort_unstable();
        self.remove_epochs(&doomed)?;
        Ok(doomed)
    }

    /// Removes one epoch, readable or not, even the newest.
    pub fn remove_epoch(&self, epoch: u64) -> Result<()> {
        self.remove_epochs(&[epoch])
    }

    fn remove_epochs(&self, doomed: &[u64]) -> Result<()> {
        self.inner.check_writable()?;
        if doomed.is_empty() {
            return Ok(());
        }
        let app = || self.inner.name.clone();
        let mut state = self.inner.state();
        for &epoch in doomed {
            match state.epochs.get(&epoch) {
                Some(entry) if entry.pins > 0 => return Err(Error::InUse { app: app(), epoch }),
                None if !state.damaged.iter().any(|file| file.epoch == epoch) => {
                    return Err(Error::NoSuchEpoch { app: app(), epoch });
                }
                Some(_) | None => {}
            }
        }
        // Held over the removal: nobody shall open what is going. Some milliseconds.
        for &epoch in doomed {
            epochs::remove(&*self.inner.disk, &self.inner.epochs_dir, epoch)?;
            state.damaged.retain(|file| file.epoch != epoch);
            if let Some(entry) = state.epochs.remove(&epoch) {
                state.leaving.extend(entry.slots);
            }
        }
        // A name that comes back after a power loss must not name pages that were overwritten.
        let dir = &self.inner.epochs_dir;
        self.inner.disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        state.settle();
        state.slots.free_segments().into_iter().for_each(|segment| self.inner.files.remove(segment));
        if state.slots.mostly_free() {
            self.inner.files.shrink(state.slots.shrink());
        }
        Ok(())
    }

    /// Forgets the application and all its epochs; nothing may be read or written meanwhile.
    pub fn remove(&self) -> Result<()> {
        self.inner.check_writable()?;
        let mut state = self.inner.state();
        if state.writing {
            return Err(Error::Busy { app: self.inner.name.clone() });
        }
        if let Some((&epoch, _)) = state.epochs.iter().find(|(_, entry)| entry.pins > 0) {
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
