//! Epochs put aside: of a line that the cluster left, kept for the operator. `aside/<time>-<n>.epoch` and `.side` are the
//! files that were `epochs/<n>.epoch` and `.side`; `time` is when that was, in milliseconds of Unix time.
//!
//! They are not among the epochs of the application, and their numbers are free; their pages stay.
//!
//! Each gets its second name first, durably, and only then loses the first one: whatever dies in between, it is in one of
//! the two places, or in both. One that is in both is put aside again by the next order, without a third name.

use std::{
    collections::HashMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    app::AppStore,
    disk::Disk,
    epochs::{self, Files},
    error::{Error, Result},
    manifest::EpochMeta,
    pages::PageFiles,
    reader::EpochReader,
    retention::Retention,
    state::{AppInner, Entry, State},
};

/// Directory of an application's epochs that were put aside.
pub(crate) const ASIDE_DIR: &str = "aside";

/// When it was put aside, in milliseconds of Unix time, and its number.
pub(crate) type AsideKey = (u64, u64);

/// An epoch that was put aside, in memory.
#[derive(Debug)]
pub(crate) struct Aside {
    /// It holds its slots; or why it cannot be used.
    pub(crate) entry: Result<Entry, Arc<Error>>,
    /// Its name here is durable.
    sure: bool,
}

/// An epoch that was put aside.
#[derive(Clone, Debug)]
pub struct AsideEpoch {
    /// When, in milliseconds of Unix time; with the number it names the epoch.
    pub aside_unix_ms: u64,
    /// Its number.
    pub epoch: u64,
    /// Its figures; or why it cannot be used.
    pub meta: Result<EpochMeta, Arc<Error>>,
}

fn stem((at, epoch): AsideKey) -> String {
    format!("{at}-{epoch}")
}

fn key_of(name: &str) -> Option<AsideKey> {
    let (at, epoch) = name.strip_suffix(".epoch")?.split_once('-')?;
    let key = (at.parse().ok()?, epoch.parse().ok()?);
    (format!("{}.epoch", stem(key)) == name).then_some(key)
}

fn paths(dir: &Path, key: AsideKey) -> (PathBuf, PathBuf) {
    (dir.join(format!("{}.epoch", stem(key))), dir.join(format!("{}.side", stem(key))))
}

/// Enters what was put aside.
pub(crate) fn load_all(
    disk: &dyn Disk,
    dir: &Path,
    app: &str,
    files: &PageFiles,
    lengths: &HashMap<u32, u64>,
    state: &mut State,
) -> Result<()> {
    let names = match disk.list(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        names => names.map_err(Error::io("list", dir))?,
    };
    for key in names.iter().filter_map(|name| key_of(name)) {
        let (path, side) = paths(dir, key);
        let loaded = Files::of(disk, dir, app)
            .load_file(path.clone(), key.1, None)
            .and_then(|file| epochs::enter(state, file, lengths, files, &path));
        let entry = loaded.map_err(Arc::new).map(|mut entry| {
            entry.side = epochs::read_side(disk, &side);
            entry
        });
        state.aside.insert(key, Aside { entry, sure: true });
    }
    Ok(())
}

fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

impl AppInner {
    /// Makes the second name of an epoch; of one that is a change, a whole one.
    fn put_aside(&self, key: AsideKey, is_change: bool) -> Result<()> {
        let (epoch, side) = paths(&self.aside_dir, key);
        let known = self.epochs_dir.join(epochs::side_name(key.1));
        match epochs::put_name(&*self.disk, &known, &self.aside_dir, &side) {
            Err(error) if !is_absent(&error) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if is_change {
            let made = self.load(key.1, None)?.made;
            let name = epoch.file_name().unwrap_or_default().to_string_lossy();
            let bytes = made.whole().map_err(|source| Error::File { path: epoch.clone(), source })?;
            return epochs::write_atomic(&*self.disk, &self.aside_dir, &name, &bytes);
        }
        epochs::put_name(
            &*self.disk,
            &self.epochs_dir.join(epochs::file_name(key.1)),
            &self.aside_dir,
            &epoch,
        )
    }
}

impl State {
    /// Under which name an epoch is to be put aside, and whether that name is durable already: the last time that it was
    /// tried may have been broken off.
    fn aside_key(&mut self, at: u64, epoch: u64) -> (AsideKey, bool) {
        let entry = self.epochs.get(&epoch);
        let same = |aside: &Aside| match (&aside.entry, entry) {
            (Ok(aside), Some(entry)) => aside.meta == entry.meta && aside.own() == entry.own(),
            (Ok(_) | Err(_), _) => false,
        };
        let known = self.aside.iter().find(|(key, aside)| key.1 == epoch && same(aside));
        if let Some((key, aside)) = known {
            return (*key, aside.sure);
        }
        let entry = match entry {
            Some(entry) => Ok(Entry {
                meta: entry.meta.clone(),
                side: entry.side.clone(),
                holding: entry.holding.clone(),
                base: None,
                pin: entry.pin.clone(),
            }),
            None => {
                let bad = self.damaged.iter().find(|file| file.epoch == epoch);
                let gone = || Arc::new(Error::NoSuchEpoch { app: String::new(), epoch });
                Err(bad.map_or_else(gone, |file| file.reason.clone()))
            }
        };
        for slot in entry.iter().flat_map(Entry::own) {
            self.slots.hold(*slot);
        }
        self.aside.insert((at, epoch), Aside { entry, sure: false });
        ((at, epoch), false)
    }
}

impl AppStore {
    /// Puts all epochs beyond `after` aside, durably, usable or not, also those that are being read. Returns their
    /// numbers, which may be used again.
    ///
    /// # Errors
    /// After one each of them is still among the epochs, or put aside, or both.
    pub fn set_aside(&self, after: u64) -> Result<Vec<u64>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
        self.set_aside_at(after, now)
    }

    /// [`AppStore::set_aside`] with the time given, in milliseconds of Unix time.
    pub fn set_aside_at(&self, after: u64, now_unix_ms: u64) -> Result<Vec<u64>> {
        let inner = &self.inner;
        inner.check_writable()?;
        // Held over all of it: nobody shall open or drop what is going.
        let mut state = inner.state();
        let damaged = state.damaged.iter().map(|file| file.epoch);
        let mut beyond: Vec<u64> =
            state.epochs.keys().copied().chain(damaged).filter(|epoch| *epoch > after).collect();
        beyond.sort_unstable();
        beyond.dedup();
        if beyond.is_empty() && !state.unsettled {
            return Ok(beyond);
        }
        state.end_line();
        let last = state.aside.keys().next_back().map_or(0, |key| key.0);
        let at = now_unix_ms.max(last + 1);
        let mut keys = Vec::new();
        for epoch in &beyond {
            let (key, sure) = state.aside_key(at, *epoch);
            if !sure {
                let is_change = state.epochs.get(epoch).is_some_and(|entry| entry.base.is_some());
                inner.put_aside(key, is_change)?;
                keys.push(key);
            }
        }
        if !keys.is_empty() {
            let dir = &inner.aside_dir;
            inner.disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        for key in keys {
            if let Some(aside) = state.aside.get_mut(&key) {
                aside.sure = true;
            }
        }
        state.unsettled = true;
        // The newest first: what is left is always a line without a hole.
        let newest_first: Vec<u64> = beyond.iter().rev().copied().collect();
        self.take_out(&mut state, &newest_first)?;
        let dir = &inner.epochs_dir;
        inner.disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        state.settle();
        state.drop_bases(&*inner.disk, &inner.epochs_dir);
        Ok(beyond)
    }

    /// Epochs that were put aside, the first ones first.
    pub fn aside(&self) -> Vec<AsideEpoch> {
        let state = self.inner.state();
        let shown = |((aside_unix_ms, epoch), aside): (&AsideKey, &Aside)| AsideEpoch {
            aside_unix_ms: *aside_unix_ms,
            epoch: *epoch,
            meta: aside.entry.as_ref().map(Entry::full_meta).map_err(Arc::clone),
        };
        state.aside.iter().map(shown).collect()
    }

    /// Opens an epoch that was put aside; it is not removed meanwhile.
    pub fn open_aside(&self, aside_unix_ms: u64, epoch: u64) -> Result<EpochReader> {
        let key = (aside_unix_ms, epoch);
        let state = self.inner.state();
        let found = state.aside.get(&key).and_then(|aside| aside.entry.as_ref().ok());
        let known = found.map(|entry| (entry.full_meta(), entry.pin()));
        drop(state);
        // What cannot be used says again what is wrong with it.
        let path = paths(&self.inner.aside_dir, key).0;
        let inner = &self.inner;
        let file = Files::of(&*inner.disk, &inner.aside_dir, &inner.name).load_file(path, epoch, None)?;
        let (meta, pin) = known.ok_or_else(|| Error::NoSuchEpoch { app: self.inner.name.clone(), epoch })?;
        Ok(EpochReader::of(inner, file, meta, pin))
    }

    /// Removes what was put aside and need not be kept: beyond the newest `keep_count`, or longer ago than `keep_age`.
    /// Epochs that are being read stay until the next call. Returns how many were removed.
    pub fn retain_aside(&self, retention: &Retention) -> Result<usize> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.retain_aside_at(retention, now.as_millis() as u64)
    }

    /// [`AppStore::retain_aside`] with the time given, in milliseconds of Unix time.
    pub fn retain_aside_at(&self, retention: &Retention, now_unix_ms: u64) -> Result<usize> {
        let inner = &self.inner;
        inner.check_writable()?;
        let mut state = inner.state();
        let beyond = state.aside.len().saturating_sub(retention.keep_count);
        let old = |at: u64| u128::from(now_unix_ms.saturating_sub(at)) >= retention.keep_age.as_millis();
        let free = |aside: &Aside| {
            aside.entry.as_ref().is_ok_and(|entry| !entry.is_pinned()) || aside.entry.is_err()
        };
        let doomed: Vec<AsideKey> = state
            .aside
            .iter()
            .enumerate()
            .filter(|(place, (key, aside))| (*place < beyond || old(key.0)) && free(aside))
            .map(|(_, (key, _))| *key)
            .collect();
        if doomed.is_empty() && state.leaving_aside.is_empty() {
            return Ok(0);
        }
        for key in &doomed {
            let (path, side) = paths(&inner.aside_dir, *key);
            for path in [path, side] {
                match inner.disk.remove_file(&path) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path)(e)),
                    _ => {}
                }
            }
            if let Some(Aside { entry: Ok(entry), .. }) = state.aside.remove(key) {
                state.leaving_aside.extend(entry.own());
            }
        }
        // As with epochs: no page is overwritten that a name which comes back would name.
        let dir = &inner.aside_dir;
        inner.disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        for slot in std::mem::take(&mut state.leaving_aside) {
            state.slots.release(slot);
        }
        if !state.has_unreadable() {
            state.slots.lift();
        }
        self.give_back(&mut state);
        Ok(doomed.len())
    }
}
