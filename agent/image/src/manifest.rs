//! What an epoch consists of.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    error::ManifestError,
    key::{PAGE_BYTES, PageKey},
    keymap::KeySet,
    wire::{self, Kind, WireError},
};

/// Bound on pages of one epoch, by reference: 256 GiB.
pub const PAGES_MAX: u64 = 1 << 26;
/// Bound on a manifest in bytes: 16 for each page, and as much as that for sections.
pub const MANIFEST_BYTES_MAX: u64 = 32 * PAGES_MAX;
/// Bound on a section's kind.
const SECTION_NAME_BYTES_MAX: usize = 64;
/// End of what a user's pages can have (57-bit addresses).
pub(crate) const ADDRESS_END: u64 = 1 << 56;

/// Figures of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochMeta {
    /// Number; set by the store.
    pub epoch: u64,
    /// Time of the cut, nanoseconds of Unix time.
    pub at_unix_ns: u64,
    /// Application; set by the store.
    pub app: String,
    /// Node that took it.
    pub node: String,
    /// Time that threads were parked, microseconds.
    pub stop_us: u64,
    /// From order to sealed, microseconds; usually known only after sealing ([`EpochSide`]).
    pub dump_us: u64,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Pages that differ from the epoch before.
    pub pages_dirty: u64,
    /// Bytes of state before dedup and compression.
    pub bytes_raw: u64,
    /// Bytes written to the store or sent.
    pub bytes_sent: u64,
    /// Files that differ from the epoch before.
    pub files_changed: u64,
    /// Dirty-page tracker.
    pub engine: String,
    /// Stop time by part, microseconds: name and value, in order.
    pub stop_parts_us: Vec<(String, u64)>,
    /// Bytes by kind of resource: name and value.
    pub bytes_by_kind: Vec<(String, u64)>,
    /// Nodes that hold it; kept beside the epoch ([`EpochSide`]), since it changes.
    pub sealed_where: Vec<String>,
}

/// What becomes known of an epoch after it is sealed, kept in a small file of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochSide {
    /// Nodes that hold it.
    pub sealed_where: Vec<String>,
    /// From order to sealed, microseconds; none: as in the manifest.
    pub dump_us: Option<u64>,
}

/// State of a kind of resource, encoded by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The kind, 1 to 64 bytes.
    pub kind: String,
    /// Version of the encoding.
    pub version: u16,
    /// The state.
    #[serde(with = "wire::bytes")]
    pub bytes: Vec<u8>,
}

/// Pages that follow one another in an address space or object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Whose pages: a process's cluster pid, a shared object's number; the writer's choice.
    pub space: u64,
    /// Address (or offset) of the first page.
    pub address: u64,
    /// Names of the pages.
    pub keys: Vec<PageKey>,
}

/// What an epoch consists of: all but the pages' contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Figures.
    pub meta: EpochMeta,
    /// States, one for a kind.
    pub sections: Vec<Section>,
    /// Memory, in rising order of space and address, without overlaps.
    pub runs: Vec<PageRun>,
    /// Pages that sections name (contents of files and pipes), in rising order.
    pub extra: Vec<PageKey>,
}

impl Manifest {
    /// Decodes and checks a frame that nobody vouches for.
    pub fn parse(frame: &[u8]) -> Result<Manifest, crate::Error> {
        let manifest: Manifest =
            wire::decode(frame, Kind::MANIFEST, MANIFEST_BYTES_MAX).map_err(crate::Error::ReceivedWire)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The frame of a manifest out of its parts.
    pub(crate) fn frame_of(
        meta: &EpochMeta,
        sections: &[Section],
        runs: &[PageRun],
        extra: &[PageKey],
    ) -> Result<Vec<u8>, WireError> {
        // The same bytes as of the structure, without a copy of all names.
        wire::encode(&(meta, sections, runs, extra), Kind::MANIFEST)
    }

    /// The frame.
    pub fn to_frame(&self) -> Result<Vec<u8>, WireError> {
        wire::encode(self, Kind::MANIFEST)
    }

    /// Names of all stored pages, as often as they are named, in the order of the manifest.
    pub fn references(&self) -> impl Iterator<Item = PageKey> {
        let runs = self.runs.iter().flat_map(|run| run.keys.iter().copied());
        runs.chain(self.extra.iter().copied()).filter(|key| !key.is_zero())
    }

    /// Names of all stored pages, each once, in the order of their first appearance.
    pub fn keys(&self) -> Vec<PageKey> {
        let mut seen = KeySet::default();
        seen.reserve(self.page_count() as usize);
        self.references().filter(|key| seen.insert(*key)).collect()
    }

    /// Pages that it names, zero pages included.
    pub fn page_count(&self) -> u64 {
        self.runs.iter().map(|run| run.keys.len() as u64).sum::<u64>() + self.extra.len() as u64
    }

    /// Is it possible? See [`ManifestError`] for what is checked.
    pub fn check(&self) -> Result<(), ManifestError> {
        check_sections(&self.sections)?;
        check_runs(&self.runs)?;
        check_extra(&self.extra)?;
        check_count(self.page_count())
    }
}

pub(crate) fn check_sections(sections: &[Section]) -> Result<(), ManifestError> {
    let mut kinds = HashSet::new();
    for section in sections {
        check_section_name(&section.kind)?;
        if !kinds.insert(&section.kind) {
            return Err(ManifestError::DuplicateSection { kind: section.kind.clone() });
        }
    }
    Ok(())
}

pub(crate) fn check_runs(runs: &[PageRun]) -> Result<(), ManifestError> {
    let mut before: Option<(u64, u64)> = None;
    for run in runs {
        let end = check_run(run.space, run.address, &run.keys)?;
        // `before` is the space and end of the run before.
        if before.is_some_and(|before| (run.space, run.address) < before) {
            return Err(ManifestError::Overlap { space: run.space, address: run.address });
        }
        before = Some((run.space, end));
    }
    Ok(())
}

pub(crate) fn check_extra(extra: &[PageKey]) -> Result<(), ManifestError> {
    let good = extra.first().is_none_or(|key| !key.is_zero()) && extra.is_sorted_by(|a, b| a < b);
    if good { Ok(()) } else { Err(ManifestError::BadExtra) }
}

pub(crate) fn check_count(found: u64) -> Result<(), ManifestError> {
    if found > PAGES_MAX { Err(ManifestError::TooManyPages { found, limit: PAGES_MAX }) } else { Ok(()) }
}

pub(crate) fn check_section_name(kind: &str) -> Result<(), ManifestError> {
    match kind.len() {
        1..=SECTION_NAME_BYTES_MAX => Ok(()),
        bytes => Err(ManifestError::BadSectionName { bytes }),
    }
}

/// End of a run of pages, if it can exist.
pub(crate) fn check_run(space: u64, address: u64, keys: &[PageKey]) -> Result<u64, ManifestError> {
    let bad = ManifestError::BadAddress { space, address };
    if keys.is_empty() {
        return Err(ManifestError::EmptyRun { address });
    }
    if !address.is_multiple_of(PAGE_BYTES as u64) {
        return Err(bad);
    }
    match (keys.len() as u64).checked_mul(PAGE_BYTES as u64).and_then(|bytes| address.checked_add(bytes)) {
        Some(end) if end <= ADDRESS_END => Ok(end),
        _ => Err(bad),
    }
}

/// Slots that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotRun {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// Adds slots to a list of runs.
pub(crate) fn push_slots(runs: &mut Vec<SlotRun>, next: SlotRun) {
    match runs.last_mut() {
        _ if next.count == 0 => {}
        Some(run) if run.first.checked_add(run.count) == Some(next.first) => run.count += next.count,
        _ => runs.push(next),
    }
}

/// Adds slots one by one.
pub(crate) fn push_all(runs: &mut Vec<SlotRun>, slots: impl IntoIterator<Item = u32>) {
    slots.into_iter().for_each(|first| push_slots(runs, SlotRun { first, count: 1 }));
}
