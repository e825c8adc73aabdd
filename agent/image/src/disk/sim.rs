//! A disk in memory that fails, fills up and loses power on order.
//!
//! It keeps what a program sees apart from what a power loss leaves: writes are durable after the file's
//! `sync`, names after their directory's. What was not made durable survives by chance, sector by sector and
//! name by name, which is harsher than any real file system.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    io::{self, ErrorKind, IoSliceMut},
    path::{Component, Path},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{Disk, DiskFile};
use crate::lock;

/// Unit in which a write survives a power loss or not.
const SECTOR_BYTES: usize = 512;
const ROOT: u64 = 0;

/// What goes wrong at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation is done in part, and all later ones fail.
    PowerLoss,
    /// The operation is done in part (a write) or not at all and fails; later ones work.
    Once(ErrorKind),
    /// A rename, removal or sync is done and fails nevertheless; others fail as with [`Fault::Once`].
    Late(ErrorKind),
}

/// What a restart finds of things that were not made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// All of it: the process died, the machine did not.
    All,
    /// Nothing.
    Nothing,
    /// Each sector and name by chance, from this seed.
    Chance(u64),
}

#[derive(Clone, Debug)]
enum Inode {
    File { now: Vec<u8>, durable: Vec<u8>, pending: Vec<(usize, Vec<u8>)> },
    Dir { now: BTreeMap<String, u64>, durable: BTreeMap<String, u64> },
}

#[derive(Debug)]
struct State {
    inodes: HashMap<u64, Inode>,
    next: u64,
    locked: BTreeSet<u64>,
    steps: u64,
    faults: BTreeMap<u64, Fault>,
    dead: bool,
    capacity: usize,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    inode: u64,
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        let root = Inode::Dir { now: BTreeMap::new(), durable: BTreeMap::new() };
        SimDisk::of(HashMap::from([(ROOT, root)]), 1)
    }
}

impl SimDisk {
    fn of(inodes: HashMap<u64, Inode>, next: u64) -> SimDisk {
        let (locked, capacity) = (BTreeSet::new(), usize::MAX);
        let state = State { inodes, next, locked, steps: 0, faults: BTreeMap::new(), dead: false, capacity };
        SimDisk(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Operations so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Makes the operation go wrong that comes after `after` others (from now on); may be called for several.
    pub fn fail_after(&self, after: u64, fault: Fault) {
        let mut state = self.state();
        let step = state.steps + after + 1;
        state.faults.insert(step, fault);
    }

    /// Bounds the bytes in files.
    pub fn set_capacity(&self, bytes: usize) {
        self.state().capacity = bytes;
    }

    /// Bytes in files that have a name.
    pub fn used(&self) -> usize {
        self.state().used()
    }

    /// The disk that a restart finds.
    pub fn restart(&self, survival: Survival) -> SimDisk {
        let state = self.state();
        let mut chance = Chance(survival);
        let mut ids: Vec<_> = state.inodes.keys().copied().collect();
        ids.sort_unstable();
        let survivors = ids.iter().map(|id| (*id, state.inodes[id].after_restart(&mut chance)));
        SimDisk::of(survivors.collect(), state.next)
    }

    /// Reads a file, for tests that damage it.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.find(path.as_ref())?;
        state.file(inode).map(<[u8]>::to_vec)
    }

    /// Replaces a file's content, durably, without counting as a step.
    pub fn overwrite(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.find(path.as_ref())?;
        let file = Inode::File { now: bytes.to_vec(), durable: bytes.to_vec(), pending: Vec::new() };
        state.inodes.insert(inode, file);
        Ok(())
    }
}

/// A small generator (SplitMix64), so that this needs no dependency.
struct Chance(Survival);

impl Chance {
    fn survives(&mut self) -> bool {
        match &mut self.0 {
            Survival::All => true,
            Survival::Nothing => false,
            Survival::Chance(seed) => {
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                (mixed ^ (mixed >> 27)).count_ones() % 2 == 0
            }
        }
    }
}

impl Inode {
    fn after_restart(&self, chance: &mut Chance) -> Inode {
        match self {
            Inode::Dir { now, durable } => {
                let mut names = BTreeMap::new();
                for name in now.keys().chain(durable.keys()).collect::<BTreeSet<_>>() {
                    let same = now.get(name) == durable.get(name);
                    let side = if same || chance.survives() { now } else { durable };
                    names.extend(side.get(name).map(|inode| (name.clone(), *inode)));
                }
                Inode::Dir { now: names.clone(), durable: names }
            }
            Inode::File { durable, pending, .. } => {
                let mut bytes = durable.clone();
                for (offset, written) in pending {
                    let mut at = *offset;
                    for part in written.chunks(SECTOR_BYTES) {
                        if chance.survives() {
                            write_at(&mut bytes, at, part);
                        }
                        at += part.len();
                    }
                }
                Inode::File { now: bytes.clone(), durable: bytes, pending: Vec::new() }
            }
        }
    }
}

fn write_at(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    bytes.resize(bytes.len().max(offset + part.len()), 0);
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

impl State {
    /// Counts an operation; fails if it is to fail.
    fn step(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("no power"));
        }
        self.steps += 1;
        match self.faults.get(&self.steps) {
            Some(Fault::PowerLoss) => {
                self.dead = true;
                Err(io::Error::other("power loss"))
            }
            Some(Fault::Once(kind) | Fault::Late(kind)) => Err((*kind).into()),
            None => Ok(()),
        }
    }

    /// [`State::step`] for operations that may be done and yet fail. The inner result is the answer when done.
    fn late_step(&mut self) -> io::Result<io::Result<()>> {
        let outcome = self.step();
        let late = matches!(self.faults.get(&self.steps), Some(Fault::Late(_))) && !self.dead;
        match outcome {
            Err(error) if !late => Err(error),
            outcome => Ok(outcome),
        }
    }

    fn used(&self) -> usize {
        let length = |inode: &Inode| match inode {
            Inode::File { now, .. } => now.len(),
            Inode::Dir { .. } => 0,
        };
        let named = |inode: &Inode| match inode {
            Inode::Dir { now, .. } => now.values().copied().collect(),
            Inode::File { .. } => Vec::new(),
        };
        let named: BTreeSet<u64> = self.inodes.values().flat_map(named).collect();
        named.iter().filter_map(|id| self.inodes.get(id)).map(length).sum()
    }

    fn names(&self, dir: u64) -> io::Result<&BTreeMap<String, u64>> {
        match self.inodes.get(&dir) {
            Some(Inode::Dir { now, .. }) => Ok(now),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn names_mut(&mut self, dir: u64) -> io::Result<&mut BTreeMap<String, u64>> {
        match self.inodes.get_mut(&dir) {
            Some(Inode::Dir { now, .. }) => Ok(now),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&self, inode: u64) -> io::Result<&[u8]> {
        match self.inodes.get(&inode) {
            Some(Inode::File { now, .. }) => Ok(now),
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let mut inode = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let name = name.to_string_lossy();
                inode = *self.names(inode)?.get(&*name).ok_or(ErrorKind::NotFound)?;
            }
        }
        Ok(inode)
    }

    /// Directory and last name of a path.
    fn split(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        Ok((self.find(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn add(&mut self, dir: u64, name: String, inode: Inode) -> io::Result<u64> {
        let id = self.next;
        self.next += 1;
        self.inodes.insert(id, inode);
        self.names_mut(dir)?.insert(name, id);
        Ok(id)
    }

    fn write(&mut self, inode: u64, from: &[u8], offset: usize) -> io::Result<()> {
        let outcome = self.step();
        let full = ErrorKind::StorageFull;
        let (count, outcome) = match outcome {
            // In part.
            Err(e) => (from.len() / 2, Err(e)),
            Ok(()) => {
                let grows = (offset + from.len()).saturating_sub(self.file(inode)?.len());
                let room = self.capacity.saturating_sub(self.used());
                if grows > room {
                    (from.len() - (grows - room).min(from.len()), Err(full.into()))
                } else {
                    (from.len(), Ok(()))
                }
            }
        };
        if let Some(Inode::File { now, pending, .. }) = self.inodes.get_mut(&inode) {
            write_at(now, offset, &from[..count]);
            pending.push((offset, from[..count].to_vec()));
        }
        outcome
    }
}

impl DiskFile for SimFile {
    fn read_vectored_at(&self, into: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.step()?;
        let bytes = state.file(self.inode)?;
        let mut done = 0;
        for buffer in into {
            let at = (offset as usize + done).min(bytes.len());
            let count = buffer.len().min(bytes.len() - at);
            buffer[..count].copy_from_slice(&bytes[at..at + count]);
            done += count;
        }
        Ok(done)
    }

    fn write_all_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.disk.state().write(self.inode, from, offset as usize)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let outcome = state.late_step();
        if let Some(Inode::File { now, durable, pending }) = state.inodes.get_mut(&self.inode) {
            // A failed sync forgets what it could not write, as kernels do.
            pending.clear();
            if outcome.is_ok() {
                durable.clone_from(now);
            }
        }
        outcome?
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step()?;
        if let Some(Inode::File { now, durable, .. }) = state.inodes.get_mut(&self.inode) {
            // Durable at once, which is the harsher case.
            now.truncate(length as usize);
            durable.truncate(length as usize);
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.step()?;
        Ok(state.file(self.inode)?.len() as u64)
    }
}

impl SimFile {
    fn handle(disk: &SimDisk, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: disk.clone(), inode })
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.inode);
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let mut inode = ROOT;
        for component in dir.components() {
            let Component::Normal(name) = component else { continue };
            let name = name.to_string_lossy().into_owned();
            let known = state.names(inode)?.get(&name).copied();
            inode = match known {
                Some(known) => known,
                None => {
                    let (now, durable) = Default::default();
                    state.add(inode, name, Inode::Dir { now, durable })?
                }
            };
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.step()?;
        let inode = state.find(dir)?;
        Ok(state.names(inode)?.keys().cloned().collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.step()?;
        let inode = state.find(path)?;
        Ok(SimFile::handle(self, inode))
    }

    fn create(&self, path: &Path, fresh: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.step()?;
        let (dir, name) = state.split(path)?;
        let known = state.names(dir)?.get(&name).copied();
        let inode = match known {
            Some(known) if !fresh => known,
            Some(_) | None => {
                let (now, durable, pending) = Default::default();
                state.add(dir, name, Inode::File { now, durable, pending })?
            }
        };
        Ok(SimFile::handle(self, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let answer = state.late_step()?;
        let ((from_dir, from), (to_dir, to)) = (state.split(from)?, state.split(to)?);
        let inode = state.names_mut(from_dir)?.remove(&from).ok_or(ErrorKind::NotFound)?;
        state.names_mut(to_dir)?.insert(to, inode);
        answer
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let answer = state.late_step()?;
        let inode = state.find(from)?;
        let (dir, name) = state.split(to)?;
        if state.names(dir)?.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.names_mut(dir)?.insert(name, inode);
        answer
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let answer = state.late_step()?;
        let (dir, name) = state.split(path)?;
        state.names_mut(dir)?.remove(&name).ok_or(ErrorKind::NotFound)?;
        answer
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let (parent, name) = state.split(dir)?;
        let inode = state.find(dir)?;
        if !state.names(inode)?.is_empty() {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        state.names_mut(parent)?.remove(&name);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let answer = state.late_step()?;
        let inode = state.find(dir)?;
        if let Some(Inode::Dir { now, durable }) = state.inodes.get_mut(&inode) {
            durable.clone_from(now);
        }
        answer
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Debug + Send + Sync>>> {
        self.create(path, false)?;
        let mut state = self.state();
        let inode = state.find(path)?;
        let taken = state.locked.insert(inode);
        Ok(if taken { Some(Box::new(SimLock { disk: self.clone(), inode })) } else { None })
    }
}
