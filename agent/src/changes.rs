//! The agent's side of the table of file changes (`holo_abi::changes`): made for an instance, read at each cut.

use holo_abi::changes::{
    Bank, CHANGES_BYTES, Changes, DEVICES_MAX, FILES_MAX, Group, MAGIC, SHUT, file_of, flags, group_of,
    unit_shift,
};
use holo_cfor::log::Ranges;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::{SystemTime, UNIX_EPOCH};

/// Past this share of its room the table forgets files that were not changed lately: all of them.
const FILES_KEPT_MAX: u32 = FILES_MAX as u32 / 2;

/// Where most programs write.
const PLACES: [&str; 7] = ["/", "/home", "/tmp", "/var", "/var/tmp", "/dev/shm", "/srv"];

/// Device and inode number.
pub type Number = (u64, u64);

/// A mapped table.
pub struct Table {
    at: *mut Changes,
    file: File,
    path: PathBuf,
    /// Device and inode number of its own file.
    number: Number,
    /// What earlier cuts found and no sealed epoch has yet.
    carried: Mutex<Found>,
    /// [`Self::strangers`] at the last cut.
    strangers_known: AtomicU32,
}

// SAFETY: shared memory of which all words that change are atomics.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this size.
        unsafe { libc::munmap(self.at.cast(), CHANGES_BYTES) };
    }
}

/// What happened to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileChange {
    /// Anything, or a process had it mapped.
    pub is_whole: bool,
    /// These bytes.
    pub ranges: Ranges,
}

/// What a cut found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Files by number.
    pub files: BTreeMap<Number, FileChange>,
    /// Not all changes are in it.
    pub is_incomplete: bool,
}

impl Found {
    /// Adds what happened later.
    pub fn add(&mut self, later: Found) {
        self.is_incomplete |= later.is_incomplete;
        for (number, change) in later.files {
            match self.files.entry(number) {
                Entry::Vacant(place) => {
                    place.insert(change);
                }
                Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    known.is_whole |= change.is_whole;
                    change.ranges.iter().for_each(|range| known.ranges.insert(range.at, range.len));
                }
            }
        }
    }
}

impl Table {
    /// Makes the table of an instance that has files in `places`, the first of which matter most. Those where most programs write are
    /// recorded, too.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn create(path: &Path, places: &[PathBuf]) -> io::Result<Self> {
        let _ = fs::remove_file(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file =
            file.map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display())))?;
        file.set_len(CHANGES_BYTES as u64)?;
        let table = Self::map(file, path)?;
        let mut devices: Vec<u64> = Vec::new();
        for device in places.iter().map(PathBuf::as_path).chain(PLACES.map(Path::new)).filter_map(device) {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // SAFETY: nobody else has it yet.
        unsafe {
            for (at, device) in devices.iter().take(DEVICES_MAX).enumerate() {
                (*table.at).devices[at] = *device;
            }
            (*table.at).device_count = devices.len().min(DEVICES_MAX) as u32;
            (*table.at).version = holo_abi::VERSION;
            (*table.at).magic = MAGIC;
        }
        table.table().generation.store((now.as_nanos() >> 16) as u32, Relaxed);
        Ok(table)
    }

    /// Opens the table of an instance that an earlier agent has made.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` if it is none of this version.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != CHANGES_BYTES as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let table = Self::map(file, path)?;
        let is_known = table.table().magic == MAGIC && table.table().version == holo_abi::VERSION;
        if !is_known {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // What the earlier agent awaited nobody reads any more.
        table.table().bank.fetch_and(!SHUT, AcqRel);
        table.table().gate.files.iter().for_each(|file| file.key.store(0, Relaxed));
        Ok(table)
    }

    fn map(file: File, path: &Path) -> io::Result<Self> {
        let meta = file.metadata()?;
        // SAFETY: a shared mapping of a file of this size.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                CHANGES_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let number = (meta.dev(), meta.ino());
        Ok(Self {
            at: at.cast(),
            file,
            path: path.to_owned(),
            number,
            carried: Mutex::default(),
            strangers_known: AtomicU32::new(0),
        })
    }

    /// The file, for processes that join.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number of its file.
    #[must_use]
    pub fn number(&self) -> Number {
        self.number
    }

    /// The shared words.
    #[must_use]
    pub fn table(&self) -> &Changes {
        // SAFETY: mapped as long as `self`.
        unsafe { &*self.at }
    }

    /// Are changes of files of this device recorded?
    #[must_use]
    pub fn has_device(&self, device: u64) -> bool {
        let table = self.table();
        table.devices[..(table.device_count as usize).min(DEVICES_MAX)].contains(&device)
    }

    /// Programs that were started and have not joined.
    #[must_use]
    pub fn strangers(&self) -> u32 {
        self.table().started.load(Acquire).wrapping_sub(self.table().joined.load(Acquire))
    }

    /// A program is about to be started that will join.
    pub(crate) fn count_start(&self) {
        self.table().started.fetch_add(1, AcqRel);
    }

    /// Takes what was recorded, while nobody records: from now on it is recorded elsewhere.
    #[must_use]
    pub fn cut(&self) -> Found {
        let table = self.table();
        let number = table.bank.load(Acquire) & 1;
        let found = self.read(&table.banks[number as usize]);
        self.clear(1 - number);
        self.strangers_known.store(self.strangers(), Relaxed);
        table.bank.store(1 - number, Release);
        if table.files_used.load(Relaxed) > FILES_KEPT_MAX {
            table.files.iter().for_each(|file| file.store(0, Relaxed));
            table.files_used.store(0, Relaxed);
            table.generation.fetch_add(1, AcqRel);
        }
        found
    }

    /// What was recorded since the last sealed epoch. Processes may record meanwhile.
    #[must_use]
    pub fn peek(&self) -> Found {
        let table = self.table();
        let mut found = self.carried.lock().clone();
        found.add(self.read(&table.banks[(table.bank.load(Acquire) & 1) as usize]));
        found.is_incomplete |= self.strangers() != self.strangers_known.load(Relaxed);
        found
    }

    /// Keeps what a cut found for [`Self::peek`], until an epoch has it.
    pub fn carry(&self, found: &Found) {
        self.carried.lock().add(found.clone());
    }

    /// An epoch has all that was found.
    pub fn sealed(&self) {
        *self.carried.lock() = Found::default();
    }

    /// Makes the bank empty that is not recorded into. In time for the next cut, which does it otherwise.
    pub fn tidy(&self) {
        self.clear(1 - (self.table().bank.load(Acquire) & 1));
    }

    fn clear(&self, number: u32) {
        let bank = &self.table().banks[(number & 1) as usize];
        if bank.files_used.load(Relaxed) | bank.groups_used.load(Relaxed) | bank.overflow.load(Relaxed) == 0 {
            return;
        }
        for state in &bank.states {
            state.flags.store(0, Relaxed);
            state.tail.store(0, Relaxed);
        }
        for group in &bank.groups {
            group.key.store(0, Relaxed);
            group.bits.store(0, Relaxed);
        }
        bank.overflow.store(0, Relaxed);
        bank.groups_used.store(0, Relaxed);
        bank.files_used.store(0, Relaxed);
    }

    fn read(&self, bank: &Bank) -> Found {
        let table = self.table();
        let mut found = Found {
            is_incomplete: bank.overflow.load(Relaxed) != 0 || table.blind.load(Relaxed) != 0,
            ..Found::default()
        };
        let number = |slot: usize| {
            let (device, ino) = file_of(table.files[slot].load(Relaxed));
            Some((*table.devices.get(device)?, ino))
        };
        if bank.files_used.load(Relaxed) > 0 {
            for (slot, state) in bank.states.iter().enumerate() {
                let (bits, tail) = (state.flags.load(Relaxed), state.tail.load(Relaxed));
                let Some(number) = number(slot).filter(|_| bits != 0 || tail != 0) else { continue };
                let change = found.files.entry(number).or_default();
                change.is_whole |= bits & (flags::WHOLE | flags::MAPPED) != 0;
                if tail != 0 {
                    change.ranges.insert(!tail, u64::MAX);
                }
            }
        }
        if bank.groups_used.load(Relaxed) > 0 {
            let words = |group: &Group| (group.key.load(Relaxed), group.bits.load(Relaxed));
            let mut groups: Vec<(u64, u64)> =
                bank.groups.iter().map(words).filter(|(key, bits)| *key != 0 && *bits != 0).collect();
            // Those of one file are side by side then.
            groups.sort_unstable();
            for of_file in groups.chunk_by(|(one, _), (next, _)| group_of(*one).0 == group_of(*next).0) {
                let Some(number) = number(group_of(of_file[0].0).0 % FILES_MAX) else { continue };
                let change = found.files.entry(number).or_default();
                let mut places: Vec<(u64, u64)> =
                    change.ranges.iter().map(|r| (r.at, r.at + r.len)).collect();
                of_file.iter().for_each(|(key, bits)| units(*key, *bits, &mut places));
                change.ranges = Ranges::of(places);
            }
        }
        found
    }
}

/// Adds the places that a group's bits say.
fn units(key: u64, mut bits: u64, places: &mut Vec<(u64, u64)>) {
    let (_, level, first) = group_of(key);
    let shift = unit_shift(level);
    let mut unit = 0;
    while bits != 0 {
        unit += bits.trailing_zeros();
        bits >>= bits.trailing_zeros();
        let run = bits.trailing_ones();
        let at = first.saturating_add(u64::from(unit) << shift);
        places.push((at, at.saturating_add(u64::from(run) << shift)));
        unit += run;
        bits = bits.checked_shr(run).unwrap_or(0);
    }
}

/// The file system of a root, or of where it will be.
fn device(root: &Path) -> Option<u64> {
    root.ancestors().find_map(|path| fs::metadata(path).ok()).map(|meta| meta.dev())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use holo_track::changes::{self as recorder, Slot};
    use proptest::prelude::*;

    fn table() -> (tempfile::TempDir, Table, u64) {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::create(&dir.path().join("t"), &[dir.path().join("not/there/yet")]).unwrap();
        let device = dir.path().metadata().unwrap().dev();
        (dir, table, device)
    }

    fn covers(change: &FileChange, at: u64, len: u64) -> bool {
        change.is_whole
            || change
                .ranges
                .iter()
                .any(|range| range.at <= at && at + len <= range.at.saturating_add(range.len))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// Whatever is recorded by several threads is found at the cut, once, under its file, and small ranges are found
        /// to the page.
        #[test]
        fn what_is_recorded_is_found(
            writes in proptest::collection::vec(
                (1u64..40, prop_oneof![0u64..1 << 20, 0u64..1 << 44], prop_oneof![1u64..20_000, 1u64..1 << 36]), 1..200),
            tails in proptest::collection::vec((1u64..40, 0u64..1 << 30), 0..4),
        ) {
            let (_dir, table, device) = table();
            let shared = table.table();
            std::thread::scope(|scope| {
                for part in writes.chunks(writes.len().div_ceil(3)) {
                    scope.spawn(move || for (ino, at, len) in part {
                        let Slot::At(slot) = recorder::slot(shared, device, *ino) else { panic!("room") };
                        recorder::range(recorder::bank(shared), slot, *at, *len);
                    });
                }
                scope.spawn(|| for (ino, at) in &tails {
                    let Slot::At(slot) = recorder::slot(shared, device, *ino) else { panic!("room") };
                    recorder::tail(recorder::bank(shared), slot, *at);
                });
            });
            let found = table.cut();
            prop_assert!(!found.is_incomplete);
            for (ino, at, len) in &writes {
                prop_assert!(covers(&found.files[&(device, *ino)], *at, *len), "{} {} {}", ino, at, len);
            }
            for (ino, at) in &tails {
                prop_assert!(covers(&found.files[&(device, *ino)], *at, (1 << 62) - at));
            }
            for (number, change) in &found.files {
                let of = writes.iter().filter(|(ino, ..)| (device, *ino) == *number);
                // Coarse units are an eighth of what they are used for, at either end.
                let most: u64 = of.map(|(_, _, len)| len + len / 4 + 2 * 4096).sum();
                let has_tail = tails.iter().any(|(ino, _)| (device, *ino) == *number);
                prop_assert!(has_tail || change.is_whole || change.ranges.bytes() <= most);
            }
            prop_assert!(table.cut().files.is_empty());
            prop_assert!(table.cut().files.is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// The application may write to the table whatever it likes.
        #[test]
        fn any_table_can_be_read(seed in any::<u64>(), dense in any::<bool>()) {
            let (_dir, table, _) = table();
            let words: Vec<u8> = (0..CHANGES_BYTES as u64 / 8)
                .flat_map(|at| {
                    let word = (at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at as u32 % 64);
                    (if dense || word % 97 == 0 { word | 1 << 63 } else { 0 }).to_le_bytes()
                })
                .collect();
            std::os::unix::fs::FileExt::write_all_at(&table.file, &words, 0).unwrap();
            let found = table.cut();
            prop_assert!(found.files.len() <= FILES_MAX);
            table.tidy();
            drop(table.cut());
        }
    }

    #[test]
    fn other_file_systems_are_not_recorded() {
        let (_dir, table, device) = table();
        assert_eq!(recorder::slot(table.table(), device + 1, 7), Slot::Elsewhere);
        assert!(table.has_device(device) && !table.has_device(device + 1));
    }

    #[test]
    fn too_many_files_are_told_of_and_forgotten() {
        let (_dir, table, device) = table();
        let generation = table.table().generation.load(Relaxed);
        let mut full = 0;
        for ino in 1..FILES_MAX as u64 * 2 {
            match recorder::slot(table.table(), device, ino) {
                Slot::At(slot) => recorder::mark(recorder::bank(table.table()), slot, flags::WHOLE),
                Slot::Full => {
                    full += 1;
                    recorder::overflow(recorder::bank(table.table()));
                }
                Slot::Elsewhere => panic!("it is here"),
            }
        }
        let found = table.cut();
        assert!(full > 0 && found.is_incomplete && found.files.values().all(|change| change.is_whole));
        assert_eq!(found.files.len() + full, FILES_MAX * 2 - 1);
        assert_ne!(table.table().generation.load(Relaxed), generation);
        assert!(matches!(recorder::slot(table.table(), device, 1), Slot::At(_)));
        assert!(!table.cut().is_incomplete);
    }

    #[test]
    fn too_many_ranges_are_whole_files() {
        let (_dir, table, device) = table();
        let Slot::At(slot) = recorder::slot(table.table(), device, 9) else { panic!("room") };
        for at in 0..100_000u64 {
            recorder::range(recorder::bank(table.table()), slot, at << 20, 1);
        }
        let found = table.cut();
        assert!(!found.is_incomplete && found.files[&(device, 9)].is_whole);
    }

    #[test]
    fn a_later_agent_finds_the_table() {
        let (_dir, table, device) = table();
        let Slot::At(slot) = recorder::slot(table.table(), device, 9) else { panic!("room") };
        recorder::append(recorder::bank(table.table()), slot, 5000);
        let again = Table::open(table.path()).unwrap();
        assert!(covers(&again.cut().files[&(device, 9)], 5000, 1 << 40));
        assert!(table.cut().files.is_empty());
        fs::write(table.path(), b"short").unwrap();
        assert!(Table::open(table.path()).is_err());
    }
}
