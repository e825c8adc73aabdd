//! The epoch files: `epochs/<n>.epoch` is a manifest's frame, or that of a change, and a frame that says where its pages lie here;
//! `epochs/<n>.side` is what became known later; `epochs/<n>-<time>.base` was an epoch of which others are changes.

use std::{
    collections::HashMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    app::DamagedEpoch,
    aside,
    delta::{BaseId, Delta, Made},
    disk::{Disk, read_file},
    error::{Error, ManifestError, Result},
    head::Head,
    key::{PAGE_BYTES, PageKey},
    line::Holding,
    manifest::{EpochMeta, EpochSide, MANIFEST_BYTES_MAX, Manifest, PAGES_MAX, SlotRun, check_count},
    pages::PageFiles,
    slots::{SEGMENT_SLOTS, Slots},
    state::{Entry, State},
    wire::{self, HEADER_BYTES, Kind, WireError},
};

const SLOTS_BYTES_MAX: u64 = 8 + 8 * PAGES_MAX;
pub(crate) const FILE_BYTES_MAX: u64 = MANIFEST_BYTES_MAX + SLOTS_BYTES_MAX + 2 * HEADER_BYTES as u64;
const SIDE_BYTES_MAX: u64 = 1 << 20;

/// A decoded epoch file, and what it is a change of.
#[derive(Clone, Debug)]
pub(crate) struct EpochFile {
    pub(crate) made: Made,
    /// If it is a change: of what, and its frame.
    pub(crate) change: Option<(BaseId, Vec<u8>)>,
}

pub(crate) fn file_name(epoch: u64) -> String {
    format!("{epoch}.epoch")
}

pub(crate) fn side_name(epoch: u64) -> String {
    format!("{epoch}.side")
}

pub(crate) fn base_name(id: BaseId) -> String {
    format!("{}-{}.base", id.epoch, id.at_unix_ns)
}

/// Which base a file is, if its name is what [`base_name`] makes.
fn base_of(name: &str) -> Option<BaseId> {
    let (epoch, at) = name.strip_suffix(".base")?.split_once('-')?;
    let id = BaseId { epoch: epoch.parse().ok()?, at_unix_ns: at.parse().ok()? };
    (base_name(id) == name).then_some(id)
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

/// Gives an epoch a second name, durably, under which others find it that are changes of it.
pub(crate) fn put_base(disk: &dyn Disk, dir: &Path, id: BaseId) -> Result<()> {
    put_name(disk, &dir.join(file_name(id.epoch)), dir, &dir.join(base_name(id)))?;
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

/// Gives a file a second name, or, where that cannot be, makes a copy.
pub(crate) fn put_name(disk: &dyn Disk, from: &Path, dir: &Path, to: &Path) -> Result<()> {
    let Err(refused) = disk.link(from, to) else { return Ok(()) };
    if refused.kind() == ErrorKind::NotFound {
        return Err(Error::io("link", from)(refused));
    }
    let bytes = read_file(disk, from, FILE_BYTES_MAX).map_err(Error::io("read", from))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
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

/// Epoch files, of which several may be changes of one.
pub(crate) struct Files<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    app: &'a str,
    base: Option<(BaseId, Made)>,
}

impl<'a> Files<'a> {
    /// Those of an application, in its directory of epochs.
    pub(crate) fn of(disk: &'a dyn Disk, dir: &'a Path, app: &'a str) -> Files<'a> {
        Files { disk, dir, app, base: None }
    }

    /// Reads an epoch and checks all but the pages; `head` is that epoch, if it is the newest.
    pub(crate) fn load(&mut self, epoch: u64, head: Option<&Head>) -> Result<EpochFile> {
        self.load_file(self.dir.join(file_name(epoch)), epoch, head)
    }

    /// [`Self::load`], whatever the file's name.
    pub(crate) fn load_file(&mut self, path: PathBuf, epoch: u64, head: Option<&Head>) -> Result<EpochFile> {
        let app = self.app;
        let no_such = || Error::NoSuchEpoch { app: app.into(), epoch };
        match self.read(&path, epoch, no_such)? {
            Parsed::Whole(made) => Ok(EpochFile { made, change: None }),
            Parsed::Change { delta, slots, frame } => {
                let id = delta.base;
                if let Some(head) = head.filter(|head| head.sum == delta.sum) {
                    let Delta { meta, sections, .. } = delta;
                    let (memory, extra) = (head.memory.clone(), head.extra.clone());
                    return Ok(EpochFile {
                        made: Made { meta, sections, memory, extra },
                        change: Some((id, frame)),
                    });
                }
                let base = self.base(id, &path)?;
                let slots = slots.iter().flat_map(|run| run.first..run.first + run.count);
                let made = delta.made_of(&base.memory, &base.extra, None, slots);
                let made = made.map_err(|reason| Error::Malformed { path: path.clone(), reason })?;
                check_count(made.memory.page_count() + made.extra.len() as u64)
                    .map_err(|reason| Error::Malformed { path, reason })?;
                Ok(EpochFile { made, change: Some((id, frame)) })
            }
        }
    }

    fn read(&self, path: &Path, epoch: u64, no_such: impl Fn() -> Error) -> Result<Parsed> {
        let bytes = read_file(self.disk, path, FILE_BYTES_MAX).map_err(|e| {
            if e.kind() == ErrorKind::NotFound { no_such() } else { Error::io("read", path)(e) }
        })?;
        parse(bytes, self.app, epoch).map_err(|fault| match fault {
            Fault::Wire(source) => Error::File { path: path.into(), source },
            Fault::Content(reason) => Error::Malformed { path: path.into(), reason },
        })
    }

    /// What others are changes of: an epoch still, or not any more.
    fn base(&mut self, id: BaseId, of: &Path) -> Result<&Made> {
        if self.base.as_ref().is_none_or(|(known, _)| *known != id) {
            let missing =
                || Error::Malformed { path: of.into(), reason: ManifestError::BadBase { base: id.epoch } };
            let read = |name: String| match self.read(&self.dir.join(name), id.epoch, missing)? {
                Parsed::Whole(made) if made.meta.at_unix_ns == id.at_unix_ns => Ok(made),
                Parsed::Whole(_) | Parsed::Change { .. } => Err(missing()),
            };
            // One that has the second name and cannot be read is damaged; else it is an epoch still, if it is there.
            let made = read(base_name(id)).or_else(|error| {
                let is_other = matches!(error, Error::Malformed { .. });
                if is_other { read(file_name(id.epoch)) } else { Err(error) }
            })?;
            self.base = Some((id, made));
        }
        match &self.base {
            Some((_, made)) => Ok(made),
            None => {
                Err(Error::Malformed { path: of.into(), reason: ManifestError::BadBase { base: id.epoch } })
            }
        }
    }
}

enum Parsed {
    Whole(Made),
    Change { delta: Delta, slots: Vec<SlotRun>, frame: Vec<u8> },
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

fn parse(mut bytes: Vec<u8>, app: &str, epoch: u64) -> Result<Parsed, Fault> {
    if wire::peek(&bytes)?.kind.id == Kind::DELTA.id {
        let (delta, rest) = wire::decode_prefix::<Delta>(&bytes, Kind::DELTA, MANIFEST_BYTES_MAX)?;
        delta.check()?;
        check_identity(&delta.meta, app, epoch)?;
        let slots = parse_slots(rest, delta.references().count() as u64)?;
        let length = bytes.len() - rest.len();
        bytes.truncate(length);
        return Ok(Parsed::Change { delta, slots, frame: bytes });
    }
    let (manifest, rest) = wire::decode_prefix::<Manifest>(&bytes, Kind::MANIFEST, MANIFEST_BYTES_MAX)?;
    manifest.check()?;
    check_identity(&manifest.meta, app, epoch)?;
    let slots = parse_slots(rest, manifest.references().count() as u64)?;
    Ok(Parsed::Whole(Made::of(manifest, slots.iter().flat_map(|run| run.first..run.first + run.count))))
}

fn parse_slots(bytes: &[u8], wanted: u64) -> Result<Vec<SlotRun>, Fault> {
    let runs: Vec<SlotRun> = wire::decode(bytes, Kind::SLOTS, SLOTS_BYTES_MAX)?;
    let found = runs.iter().map(|run| u64::from(run.count)).sum();
    let wraps = runs.iter().any(|run| run.first.checked_add(run.count).is_none());
    if found != wanted || wraps {
        return Err(ManifestError::SlotCount { found, wanted }.into());
    }
    Ok(runs)
}

/// Does it say that it is this epoch of this application?
pub(crate) fn check_identity(meta: &EpochMeta, app: &str, epoch: u64) -> Result<(), ManifestError> {
    if meta.app != app {
        return Err(ManifestError::OtherApp { found: meta.app.clone() });
    }
    if meta.epoch != epoch {
        return Err(ManifestError::OtherEpoch { found: meta.epoch });
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
    let names = match disk.list(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        names => names.map_err(Error::io("list", dir))?,
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let lengths = files.lengths()?;
    let slot_end = |(segment, bytes): (&u32, &u64)| {
        // A part of a page counts: it may be the rest of one.
        segment * SEGMENT_SLOTS + bytes.div_ceil(PAGE_BYTES as u64).min(SEGMENT_SLOTS.into()) as u32
    };
    let mut state =
        State { slots: Slots::new(lengths.iter().map(slot_end).max().unwrap_or(0)), ..State::default() };
    state.bases = names.iter().filter_map(|name| base_of(name)).collect();
    let mut epoch_files = Files::of(disk, dir, app);
    // Newest first: where two epochs have the same page twice, the younger copy is the one to use.
    for epoch in numbers.into_iter().rev() {
        let loaded = epoch_files
            .load(epoch, None)
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
    let EpochFile { made, change } = file;
    let mut places: Vec<(u32, PageKey)> = made.places().collect();
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
    let holding = Holding::Own(places.into_iter().map(|(slot, _)| slot).collect());
    let base = change.map(|(base, _)| base);
    Ok(Entry { meta: made.meta, side: EpochSide::default(), holding, base, pin: Arc::default() })
}

/// What became known of an epoch; a damaged file is worth no more than none.
pub(crate) fn read_side(disk: &dyn Disk, path: &Path) -> EpochSide {
    let bytes = read_file(disk, path, SIDE_BYTES_MAX).unwrap_or_default();
    wire::decode(&bytes, Kind::SIDE, SIDE_BYTES_MAX).unwrap_or_default()
}

/// Can nobody ever read this epoch, whichever holo they have?
pub(crate) fn is_hopeless(reason: &Error) -> bool {
    let Error::File { source, .. } = reason else {
        let no_base = |reason: &ManifestError| matches!(reason, ManifestError::BadBase { .. });
        return matches!(reason, Error::PageFileShort { .. })
            || matches!(reason, Error::Malformed { reason, .. } if no_base(reason));
    };
    matches!(source, WireError::TooShort { .. } | WireError::BadChecksum { .. })
}
