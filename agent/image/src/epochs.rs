//! The epoch files: `epochs/<n>.epoch` is a manifest's frame and a frame that says where its pages lie here;
//! `epochs/<n>.side` is what became known later.

use std::{
    collections::HashMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    app::DamagedEpoch,
    aside,
    disk::{Disk, read_file},
    error::{Error, ManifestError, Result},
    key::{PAGE_BYTES, PageKey},
    manifest::{EpochSide, MANIFEST_BYTES_MAX, Manifest, PAGES_MAX, SlotRun},
    pages::PageFiles,
    slots::{SEGMENT_SLOTS, Slots},
    state::{Entry, State},
    wire::{self, HEADER_BYTES, Kind, WireError},
};

const SLOTS_BYTES_MAX: u64 = 8 + 8 * PAGES_MAX;
pub(crate) const FILE_BYTES_MAX: u64 = MANIFEST_BYTES_MAX + SLOTS_BYTES_MAX + 2 * HEADER_BYTES as u64;
const SIDE_BYTES_MAX: u64 = 1 << 20;

/// A decoded epoch file.
#[derive(Debug)]
pub(crate) struct EpochFile {
    pub(crate) manifest: Manifest,
    /// The manifest's frame, byte by byte as it was sealed or received.
    pub(crate) frame: Vec<u8>,
    /// Where the pages lie, as often as the manifest names them, in its order.
    pub(crate) slots: Vec<SlotRun>,
}

/// Slots and names of the pages of a manifest, as often as it names them, in its order.
pub(crate) fn places(manifest: &Manifest, slots: &[SlotRun]) -> impl Iterator<Item = (u32, PageKey)> {
    slots.iter().flat_map(|run| run.first..run.first + run.count).zip(manifest.references())
}

pub(crate) fn file_name(epoch: u64) -> String {
    format!("{epoch}.epoch")
}

pub(crate) fn side_name(epoch: u64) -> String {
    format!("{epoch}.side")
}

/// Number of an epoch file, if its name is what [`file_name`] makes.
fn number_of(name: &str) -> Option<u64> {
    let epoch = name.strip_suffix(".epoch")?.parse().ok()?;
    (file_name(epoch) == name).then_some(epoch)
}

/// Writes a file so that it has its old content or its new one, whatever happens.
pub(crate) fn write_atomic(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (temp, path) = (dir.join(format!(".{name}.tmp")), dir.join(name));
    let written = (|| {
        let file = disk.create(&temp, true).map_err(Error::io("create", &temp))?;
        file.write_all_at(bytes, 0).map_err(Error::io("write", &temp))?;
        file.sync().map_err(Error::io("sync", &temp))?;
        disk.rename(&temp, &path).map_err(Error::io("rename", &temp))
    })();
    if let Err(error) = written {
        // What cannot be removed now is removed at the next start.
        let _ = disk.remove_file(&temp);
        return Err(error);
    }
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

/// Writes what became known of an epoch.
pub(crate) fn write_side(disk: &dyn Disk, dir: &Path, epoch: u64, side: &EpochSide) -> Result<()> {
    let name = side_name(epoch);
    let bytes =
        wire::encode(side, Kind::SIDE).map_err(|source| Error::File { path: dir.join(&name), source })?;
    write_atomic(disk, dir, &name, &bytes)
}

/// Removes an epoch's files; fine if they do not exist. Not durable before the directory is synced.
pub(crate) fn remove(disk: &dyn Disk, dir: &Path, epoch: u64) -> Result<()> {
    for name in [file_name(epoch), side_name(epoch)] {
        let path = dir.join(name);
        match disk.remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what was left half-written, and settles names that a crash may have left undecided.
pub(crate) fn clean(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    for name in &names {
        let orphan =
            name.strip_suffix(".side").is_some_and(|epoch| !names.contains(&format!("{epoch}.epoch")));
        if orphan || name.starts_with('.') && name.ends_with(".tmp") {
            let path = dir.join(name);
            disk.remove_file(&path).map_err(Error::io("remove", path))?;
        }
    }
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

/// Reads an epoch file and checks all but the pages.
pub(crate) fn load(disk: &dyn Disk, dir: &Path, app: &str, epoch: u64) -> Result<EpochFile> {
    load_file(disk, dir.join(file_name(epoch)), app, epoch)
}

/// [`load`], whatever the file's name.
pub(crate) fn load_file(disk: &dyn Disk, path: PathBuf, app: &str, epoch: u64) -> Result<EpochFile> {
    let bytes = read_file(disk, &path, FILE_BYTES_MAX).map_err(|e| {
        if e.kind() == ErrorKind::NotFound {
            Error::NoSuchEpoch { app: app.into(), epoch }
        } else {
            Error::io("read", &path)(e)
        }
    })?;
    parse(bytes, app, epoch).map_err(|fault| match fault {
        Fault::Wire(source) => Error::File { path, source },
        Fault::Content(reason) => Error::Malformed { path, reason },
    })
}

enum Fault {
    Wire(WireError),
    Content(ManifestError),
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Fault {
        Fault::Wire(error)
    }
}

impl From<ManifestError> for Fault {
    fn from(error: ManifestError) -> Fault {
        Fault::Content(error)
    }
}

fn parse(mut bytes: Vec<u8>, app: &str, epoch: u64) -> Result<EpochFile, Fault> {
    let (manifest, rest) = wire::decode_prefix::<Manifest>(&bytes, Kind::MANIFEST, MANIFEST_BYTES_MAX)?;
    manifest.check()?;
    check_identity(&manifest, app, epoch)?;
    let runs: Vec<SlotRun> = wire::decode(rest, Kind::SLOTS, SLOTS_BYTES_MAX)?;

    let wanted = manifest.references().count() as u64;
    let found = runs.iter().map(|run| u64::from(run.count)).sum();
    let wraps = runs.iter().any(|run| run.first.checked_add(run.count).is_none());
    if found != wanted || wraps {
        return Err(ManifestError::SlotCount { found, wanted }.into());
    }
    let length = bytes.len() - rest.len();
    bytes.truncate(length);
    Ok(EpochFile { manifest, frame: bytes, slots: runs })
}

/// Does the manifest say that it is this epoch of this application?
pub(crate) fn check_identity(manifest: &Manifest, app: &str, epoch: u64) -> Result<(), ManifestError> {
    if manifest.meta.app != app {
        return Err(ManifestError::OtherApp { found: manifest.meta.app.clone() });
    }
    if manifest.meta.epoch != epoch {
        return Err(ManifestError::OtherEpoch { found: manifest.meta.epoch });
    }
    Ok(())
}

/// Rebuilds the state of an application from its files.
pub(crate) fn load_all(
    disk: &dyn Disk,
    (dir, aside_dir): (&Path, &Path),
    app: &str,
    files: &PageFiles,
) -> Result<State> {
    let mut numbers: Vec<u64> = match disk.list(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        names => names.map_err(Error::io("list", dir))?.iter().filter_map(|name| number_of(name)).collect(),
    };
    numbers.sort_unstable();
    let lengths = files.lengths()?;
    let slot_end = |(segment, bytes): (&u32, &u64)| {
        // A part of a page counts: it may be the rest of one.
        segment * SEGMENT_SLOTS + bytes.div_ceil(PAGE_BYTES as u64).min(SEGMENT_SLOTS.into()) as u32
    };
    let mut state =
        State { slots: Slots::new(lengths.iter().map(slot_end).max().unwrap_or(0)), ..State::default() };
    // Newest first: where two epochs have the same page twice, the younger copy is the one to use.
    for epoch in numbers.into_iter().rev() {
        let loaded = load(disk, dir, app, epoch)
            .and_then(|file| enter(&mut state, file, &lengths, files, &dir.join(file_name(epoch))));
        match loaded {
            Ok(mut entry) => {
                entry.side = read_side(disk, &dir.join(side_name(epoch)));
                state.epochs.insert(epoch, entry);
            }
            Err(reason) => {
                let path = dir.join(file_name(epoch));
                state.damaged.push(DamagedEpoch { epoch, path, reason: Arc::new(reason) });
            }
        }
    }
    aside::load_all(disk, aside_dir, app, files, &lengths, &mut state)?;
    if state.has_unreadable() {
        state.slots.withhold();
    }
    Ok(state)
}

/// Enters an epoch's pages into the table.
pub(crate) fn enter(
    state: &mut State,
    file: EpochFile,
    lengths: &HashMap<u32, u64>,
    files: &PageFiles,
    path: &Path,
) -> Result<Entry> {
    let mut places: Vec<(u32, PageKey)> = places(&file.manifest, &file.slots).collect();
    places.sort_unstable();
    places.dedup();
    for &(slot, _) in &places {
        let end = u64::from(slot % SEGMENT_SLOTS + 1) * PAGE_BYTES as u64;
        if lengths.get(&(slot / SEGMENT_SLOTS)).is_none_or(|bytes| *bytes < end) {
            return Err(Error::PageFileShort { path: files.path_of_slot(slot), slot });
        }
    }
    let malformed = |reason| Error::Malformed { path: path.into(), reason };
    if let Some(pair) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(malformed(ManifestError::SlotConflict { slot: pair[0].0 }));
    }
    state.slots.hold_all(&places).map_err(malformed)?;
    let slots = places.into_iter().map(|(slot, _)| slot).collect();
    Ok(Entry { meta: file.manifest.meta, side: EpochSide::default(), slots, pin: Arc::default() })
}

/// What became known of an epoch; a damaged file is worth no more than none.
pub(crate) fn read_side(disk: &dyn Disk, path: &Path) -> EpochSide {
    let bytes = read_file(disk, path, SIDE_BYTES_MAX).unwrap_or_default();
    wire::decode(&bytes, Kind::SIDE, SIDE_BYTES_MAX).unwrap_or_default()
}

/// Can nobody ever read this epoch, whichever holo they have?
pub(crate) fn is_hopeless(reason: &Error) -> bool {
    let Error::File { source, .. } = reason else {
        return matches!(reason, Error::PageFileShort { .. });
    };
    matches!(source, WireError::TooShort { .. } | WireError::BadChecksum { .. })
}
