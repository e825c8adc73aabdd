//! An application in memory: what it has, who holds what, and its directory when it is opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    ahead::Told,
    app::DamagedEpoch,
    aside::{ASIDE_DIR, Aside, AsideKey},
    delta::BaseId,
    disk::{Disk, read_file},
    draft::Draft,
    epochs::{self, EpochFile, Files},
    error::{Error, Result},
    head::Head,
    keymap::KeyMap,
    line::Holding,
    lock,
    manifest::{EpochMeta, EpochSide},
    pages::PageFiles,
    progress::Progress,
    slots::Slots,
    wire::{self, Kind, WireError},
};

/// Bound on `app.bin`.
const APP_BYTES_MAX: u64 = 4096;

/// An application's record: says that the directory is one, and of which version.
#[derive(Debug, Serialize, Deserialize)]
struct AppRecord {
    name: String,
}

/// A sealed epoch, in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) meta: EpochMeta,
    pub(crate) side: EpochSide,
    pub(crate) holding: Holding,
    /// What its file is a change of.
    pub(crate) base: Option<BaseId>,
    /// Readers.
    pub(crate) pin: Arc<AtomicUsize>,
}

/// A reader of an epoch: its pages are not given back while this exists.
#[derive(Debug)]
pub(crate) struct Pin(Arc<AtomicUsize>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// What changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) slots: Slots,
    pub(crate) epochs: BTreeMap<u64, Entry>,
    /// The newest of them, if it was sealed since the application was opened, and its place in the line.
    pub(crate) head: Option<Arc<Head>>,
    pub(crate) serial: u32,
    /// Epochs that are none any more, and of which others are changes.
    pub(crate) bases: BTreeSet<BaseId>,
    /// What the epoch that is being sealed may be a change of.
    pub(crate) sealing: Option<BaseId>,
    pub(crate) damaged: Vec<DamagedEpoch>,
    /// Epochs that were put aside.
    pub(crate) aside: BTreeMap<AsideKey, Aside>,
    /// An epoch is being written or received.
    pub(crate) writing: bool,
    /// Pages of a broken import, or that came ahead of one, each held once, kept for the next try.
    pub(crate) orphans: KeyMap<u32>,
    /// The run of the application that they are of, if they came ahead of its first epoch.
    pub(crate) orphans_of: u64,
    /// Slots of pages that were stored ahead of an epoch, each held once, until one is sealed.
    pub(crate) ahead: Vec<u32>,
    /// What is being stored, for who wants it before an epoch is sealed.
    pub(crate) told: Told,
    /// Slots of epochs whose removal is not known to be durable, each held once.
    pub(crate) leaving: Vec<u32>,
    /// The same for epochs that had been put aside.
    pub(crate) leaving_aside: Vec<u32>,
    /// Names of epochs were removed, and it is not known to be durable.
    pub(crate) unsettled: bool,
    /// Number of a failed epoch whose file could not be removed: it may come back at the next start.
    pub(crate) doubtful: u64,
    pub(crate) gone: bool,
}

#[derive(Debug)]
pub(crate) struct AppInner {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) name: String,
    pub(crate) epochs_dir: PathBuf,
    pub(crate) aside_dir: PathBuf,
    pub(crate) files: PageFiles,
    pub(crate) apps_dir: PathBuf,
    /// See [`Head::follow`].
    pub(crate) whole_max: u64,
    pub(crate) progress: Progress,
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

    /// As what others are changes of.
    pub(crate) fn id(&self) -> BaseId {
        BaseId { epoch: self.meta.epoch, at_unix_ns: self.meta.at_unix_ns }
    }

    /// One more reader; to be asked for while the state is locked.
    pub(crate) fn pin(&self) -> Pin {
        self.pin.fetch_add(1, SeqCst);
        Pin(self.pin.clone())
    }

    /// Is it being read?
    pub(crate) fn is_pinned(&self) -> bool {
        self.pin.load(SeqCst) > 0
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
        self.unsettled = false;
        for slot in std::mem::take(&mut self.leaving) {
            self.slots.release(slot);
        }
        if !self.has_unreadable() {
            self.slots.lift();
        }
    }

    /// Is an epoch there that is a change of this one, or may there be?
    pub(crate) fn is_base(&self, id: BaseId) -> bool {
        // What a file is a change of that cannot be read, or comes back, nobody knows.
        self.has_unreadable()
            || self.doubtful > 0
            || self.sealing == Some(id)
            || self.epochs.values().any(|entry| entry.base == Some(id))
    }

    /// Removes what nothing is a change of any more. What cannot be removed now is removed at the next start.
    pub(crate) fn drop_bases(&mut self, disk: &dyn Disk, dir: &Path) {
        // Names of what was removed may come back, too, as long as that is not durable.
        if self.unsettled || !self.leaving.is_empty() {
            return;
        }
        let unused: Vec<BaseId> = self.bases.iter().copied().filter(|id| !self.is_base(*id)).collect();
        for id in unused {
            let _ = disk.remove_file(&dir.join(epochs::base_name(id)));
            self.bases.remove(&id);
        }
    }

    /// Are there epoch files whose pages are not known?
    pub(crate) fn has_unreadable(&self) -> bool {
        !self.damaged.is_empty() || self.aside.values().any(|aside| aside.entry.is_err())
    }
}

impl AppInner {
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        apps_dir: &Path,
        name: &str,
        write: bool,
        whole_max: u64,
    ) -> Result<Arc<AppInner>> {
        let dir = apps_dir.join(name);
        let (epochs_dir, pages_dir) = (dir.join("epochs"), dir.join("pages"));
        let aside_dir = dir.join(ASIDE_DIR);
        let mut lock = None;
        if write {
            disk.create_dir(&dir).map_err(Error::io("create", &dir))?;
            let path = dir.join("lock");
            let taken = disk.lock(&path).map_err(Error::io("lock", &path))?;
            lock = Some(taken.ok_or(Error::Locked { path })?);
        }
        let recorded = check_record(&*disk, &dir, name)?;
        if write {
            for sub in [&epochs_dir, &pages_dir, &aside_dir] {
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
            epochs::clean(&*disk, &aside_dir)?;
        }
        let files = PageFiles::new(disk.clone(), pages_dir);
        let mut state = epochs::load_all(&*disk, (&epochs_dir, &aside_dir), name, &files)?;
        if write {
            // What an epoch left behind that was not sealed.
            files.shrink(state.slots.shrink());
            state.drop_bases(&*disk, &epochs_dir);
        }
        let (name, apps_dir) = (name.to_owned(), apps_dir.to_owned());
        let state = Mutex::new(state);
        let progress = Progress::default();
        Ok(Arc::new(AppInner {
            disk,
            name,
            epochs_dir,
            aside_dir,
            files,
            apps_dir,
            whole_max,
            progress,
            state,
            lock,
        }))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Reads an epoch's file; `head` is that epoch, if it is the newest.
    pub(crate) fn load(&self, epoch: u64, head: Option<&Head>) -> Result<EpochFile> {
        Files::of(&*self.disk, &self.epochs_dir, &self.name).load(epoch, head)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
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
