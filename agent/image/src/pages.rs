//! The page files: `pages/<segment>.pages`, nothing but pages, page `slot` at `slot % SEGMENT_SLOTS`.

use std::{
    collections::{BTreeSet, HashMap},
    io::{ErrorKind, IoSliceMut},
    iter,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::{
    disk::{Disk, DiskFile},
    error::{Error, Result},
    key::{PAGE_BYTES, Page, PageKey, name_all},
    lock,
    slots::SEGMENT_SLOTS,
};

/// Pages that are read with one call.
const READ_PAGES_MAX: usize = 256;

/// The page files of an application.
#[derive(Debug)]
pub(crate) struct PageFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    open: Mutex<HashMap<u32, Arc<dyn DiskFile>>>,
    /// Segments written since they were last synced, and whether one of them is new.
    unsynced: Mutex<(BTreeSet<u32>, bool)>,
}

/// A page to read: its place, its name, and where to.
pub(crate) struct Wanted<'a> {
    pub(crate) slot: u32,
    pub(crate) key: PageKey,
    pub(crate) into: &'a mut Page,
}

impl PageFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> PageFiles {
        PageFiles { disk, dir, open: Mutex::default(), unsynced: Mutex::default() }
    }

    /// Length of each segment in bytes.
    pub(crate) fn lengths(&self) -> Result<HashMap<u32, u64>> {
        let mut lengths = HashMap::new();
        for name in self.disk.list(&self.dir).map_err(Error::io("list", &self.dir))? {
            let Some(segment) = segment_of(&name) else { continue };
            let path = self.dir.join(&name);
            let file = self.disk.open(&path).map_err(Error::io("open", &path))?;
            lengths.insert(segment, file.length().map_err(Error::io("measure", &path))?);
        }
        Ok(lengths)
    }

    pub(crate) fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("{segment}.pages"))
    }

    /// Path of the file that has a slot.
    pub(crate) fn path_of_slot(&self, slot: u32) -> PathBuf {
        self.path(slot / SEGMENT_SLOTS)
    }

    /// Writes pages from `first` on; they lie in one segment.
    pub(crate) fn write(&self, first: u32, pages: &[u8]) -> Result<()> {
        let segment = first / SEGMENT_SLOTS;
        let path = self.path(segment);
        let known = lock(&self.open).get(&segment).cloned();
        let file = match known {
            Some(file) => file,
            None => {
                let file = self.disk.create(&path, false).map_err(Error::io("create", &path))?;
                lock(&self.unsynced).1 = true;
                lock(&self.open).insert(segment, file.clone());
                file
            }
        };
        lock(&self.unsynced).0.insert(segment);
        file.write_all_at(pages, offset(first)).map_err(Error::io("write", &path))
    }

    /// Makes all that was written durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let (segments, new) = lock(&self.unsynced).clone();
        for segment in segments {
            let path = self.path(segment);
            let file = self.file_to_read(segment)?;
            file.sync().map_err(Error::io("sync", &path))?;
            lock(&self.unsynced).0.remove(&segment);
        }
        if new {
            self.disk.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir))?;
            lock(&self.unsynced).1 = false;
        }
        Ok(())
    }

    /// Removes the file of a segment whose slots are all free. If that fails, a later start may do it.
    pub(crate) fn remove(&self, segment: u32) {
        lock(&self.open).remove(&segment);
        lock(&self.unsynced).0.remove(&segment);
        let _ = self.disk.remove_file(&self.path(segment));
    }

    /// Gives back what lies behind the last slot. If that fails, a later start may do it.
    pub(crate) fn shrink(&self, end: u32) {
        for (segment, bytes) in self.lengths().unwrap_or_default() {
            let slots = end.saturating_sub(segment * SEGMENT_SLOTS).min(SEGMENT_SLOTS);
            let length = u64::from(slots) * PAGE_BYTES as u64;
            if slots == 0 {
                self.remove(segment);
            } else if length < bytes {
                let _ = self.disk.create(&self.path(segment), false).and_then(|file| file.truncate(length));
            }
        }
    }

    /// Reads pages, neighbours with one call, and checks their names.
    ///
    /// Pages that are damaged do not hinder the others; the first error is returned after all were read.
    pub(crate) fn read(&self, mut wanted: Vec<Wanted<'_>>) -> Result<()> {
        wanted.sort_by_key(|page| page.slot);
        let mut outcome = Ok(());
        for group in wanted.chunk_by_mut(|a, b| a.slot + 1 == b.slot && b.slot % SEGMENT_SLOTS != 0) {
            for group in group.chunks_mut(READ_PAGES_MAX) {
                outcome = outcome.and(self.read_group(group));
            }
        }
        outcome
    }

    fn read_group(&self, group: &mut [Wanted<'_>]) -> Result<()> {
        let first = group[0].slot;
        let file = self.file_to_read(first / SEGMENT_SLOTS)?;
        let read = {
            let mut buffers: Vec<_> = group.iter_mut().map(|page| IoSliceMut::new(page.into)).collect();
            file.read_vectored_at(&mut buffers, offset(first)).unwrap_or(0)
        };
        // What one call did not bring is read alone, so that errors are about one page.
        let brought = (read / PAGE_BYTES).min(group.len());
        let late: Vec<Result<()>> =
            group[brought..].iter_mut().map(|page| self.read_one(&*file, page)).collect();
        let mut keys = vec![PageKey::ZERO; group.len()];
        name_all(&group.iter().map(|page| &*page.into).collect::<Vec<_>>(), &mut keys);
        let known = iter::repeat_with(|| Ok(())).take(brought).chain(late);
        group.iter().zip(keys).zip(known).try_for_each(|((page, key), known)| {
            let bad = || Error::BadPage { path: self.path_of_slot(first), slot: page.slot, key: page.key };
            known.and_then(|()| if key == page.key { Ok(()) } else { Err(bad()) })
        })
    }

    fn read_one(&self, file: &dyn DiskFile, page: &mut Wanted<'_>) -> Result<()> {
        let path = self.path_of_slot(page.slot);
        file.read_exact_at(page.into, offset(page.slot)).map_err(|e| {
            let short = e.kind() == ErrorKind::UnexpectedEof;
            if short { Error::PageFileShort { path, slot: page.slot } } else { Error::io("read", path)(e) }
        })
    }

    fn file_to_read(&self, segment: u32) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = lock(&self.open).get(&segment) {
            return Ok(file.clone());
        }
        // Not remembered: it may be open for reading only.
        let path = self.path(segment);
        self.disk.open(&path).map_err(|e| {
            let slot = segment * SEGMENT_SLOTS;
            let absent = e.kind() == ErrorKind::NotFound;
            if absent { Error::PageFileShort { path, slot } } else { Error::io("open", path)(e) }
        })
    }
}

fn offset(slot: u32) -> u64 {
    u64::from(slot % SEGMENT_SLOTS) * PAGE_BYTES as u64
}

fn segment_of(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".pages")?;
    let segment: u32 = number.parse().ok()?;
    (segment.to_string() == number && segment < u32::MAX / SEGMENT_SLOTS).then_some(segment)
}
