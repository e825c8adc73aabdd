//! Private memory of a clone's process, as of an epoch: at the next one what differs is changed, the rest stays.
//!
//! ```text
//! begin:   the server code moves to a hole, the vdso to its place, all else is unmapped
//! update:  zones that differ are mapped anew; pages whose names differ are written, those that are gone are given back
//! ```
//!
//! A clone that is made at once is one update from nothing.

use crate::kinds::increment::{in_space, named};
use crate::kinds::laid_maps::map_all;
use crate::kinds::laid_pages::{Within, delta, without, write};
use crate::kinds::memory::{MemoryState, NAME, control_zone};
use crate::kinds::vdso;
use crate::kinds::zones::{self, PAGE, Zone, ZoneKind};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, call};
use holo_abi::control::{CALL_JUMP, Call};
use holo_abi::sysno;
use holo_image::{EpochReader, Names, PageKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PROT_RW: u64 = 3;
const MAP_PRIVATE: u64 = 0x02;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MADV_DONTNEED: u64 = 4;
const NOWHERE: u64 = u64::MAX;
/// Room for the server code, and for the vdso while it moves.
const HOLE_BYTES: u64 = 64 * PAGE;
const VDSO_AT: u64 = 16 * PAGE;

/// Why a clone that followed several epochs is made anew.
pub(crate) const APART: &str = "zones that were mapped one after the other did not become one";

/// What tells a file from another one under its name: device, inode, size, time of change.
type Print = (u64, u64, u64, i64, i64);

/// A zone as it is mapped in the clone: while it is filled it can be written.
pub(super) struct Piece {
    pub(super) zone: Zone,
    pub(super) writable: bool,
}

/// Private memory of a process of a clone.
pub struct Laid {
    hole: u64,
    vdso: Vec<Zone>,
    pieces: Vec<Piece>,
    /// Files that pieces show.
    files: BTreeMap<Vec<u8>, Print>,
    /// The epoch that it is as of; none: there is nothing yet.
    image: Option<Arc<EpochReader>>,
    /// Written since it began.
    pages: u64,
}

/// A free range of `bytes` in none of `taken` (start, end; any order).
fn hole(taken: &mut [(u64, u64)], bytes: u64) -> Option<u64> {
    taken.sort_unstable();
    let mut at = 0x1_0000_0000;
    for (start, end) in taken.iter() {
        // A page between, so that no stack grows into it.
        if at + bytes + (1 << 20) <= *start {
            return Some(at + (1 << 19));
        }
        at = at.max(*end);
    }
    (at + bytes + (1 << 20) < 1 << 46).then_some(at + (1 << 19))
}

/// Zones of a clone's process.
pub(crate) fn zones_of(remote: &Remote) -> RmResult<Vec<Zone>> {
    let text = fs::read(remote.proc("maps")).on("reading", "the clone's maps")?;
    zones::parse(&text).map_err(RmError::Unsupported)
}

/// Copies the server code into the hole and goes on there.
fn move_server(remote: &Remote, hole: u64) -> RmResult<()> {
    let header = remote.page.header();
    // SAFETY: filled in by the restorer before it served.
    let (start, end) = unsafe { ((*header).serve_start, (*header).serve_end) };
    let bytes = end.saturating_sub(start);
    if bytes == 0 || bytes > VDSO_AT {
        return Err(RmError::Unsupported(format!("a restorer with {bytes} bytes of server code")));
    }
    let mut code = vec![0; bytes as usize];
    remote.read(start, &mut code).on("reading", "the server code")?;
    let anonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    let mut calls = [call(sysno::mmap, &[hole, VDSO_AT, PROT_RW, anonymous, NOWHERE, 0])];
    remote.run_all(&mut calls).on("mapping", "the hole")?;
    remote.write(hole, &code).on("writing", "the server code")?;
    let mut calls = [call(sysno::mprotect, &[hole, VDSO_AT, 5])];
    remote.run_all(&mut calls).on("protecting", "the server code")?;
    jump(remote, hole, remote.page.slot_address(remote.leader))
}

fn jump(remote: &Remote, to: u64, slot: u64) -> RmResult<()> {
    let header = remote.page.address();
    remote.call(CALL_JUMP, &[to, slot, header]).on("moving", "the server").map(|_| ())
}

fn print(path: &[u8]) -> Option<Print> {
    let meta = fs::metadata(Path::new(std::ffi::OsStr::from_bytes(path))).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

pub(super) fn shows_file(zone: &Zone) -> bool {
    zone.kind == ZoneKind::FilePrivate && !zone.deleted
}

pub(super) fn grows(zone: &Zone) -> bool {
    zone.kind == ZoneKind::Stack || zone.flags.contains(b"gd")
}

/// Whether what is common to both is the same in both.
fn is_alike(a: &Zone, b: &Zone) -> bool {
    // What grows by itself is one zone or none.
    if grows(a) || grows(b) {
        return (a.start, a.end, a.prot, a.kind) == (b.start, b.end, b.prot, b.kind) && grows(a) == grows(b);
    }
    let file =
        |zone: &Zone| (zone.device, zone.inode, zone.path.clone(), zone.offset.wrapping_sub(zone.start));
    // Names of anonymous zones (`[heap]`) are the kernel's answer to where they are.
    (a.prot, a.kind, a.deleted) == (b.prot, b.kind, b.deleted) && (!shows_file(a) || file(a) == file(b))
}

/// The part of a zone between two addresses.
fn part(zone: &Zone, start: u64, end: u64) -> Zone {
    Zone { start, end, offset: zone.offset + (start - zone.start), ..zone.clone() }
}

impl Laid {
    /// Empties the process, which serves calls from a hole afterwards.
    ///
    /// # Errors
    /// The kernel's, or a kernel whose vdso lacks a function.
    pub(crate) fn begin(remote: &Remote, state: &MemoryState, remarks: &mut Vec<String>) -> RmResult<Self> {
        let page_at = remote.page.address();
        let now = zones_of(remote)?;
        let mut taken: Vec<(u64, u64)> = state
            .zones
            .iter()
            .chain(&state.vdso.zones)
            .chain(&now)
            .map(|zone| (zone.start, zone.end))
            .collect();
        taken.push(control_zone(page_at));
        let hole = hole(&mut taken, HOLE_BYTES)
            .ok_or_else(|| RmError::Unsupported("no hole in the address space".into()))?;
        move_server(remote, hole)?;
        vdso::place(remote, &state.vdso, &now, hole + VDSO_AT, remarks)?;
        let keep = control_zone(page_at).0;
        let mut calls: Vec<Call> = now
            .iter()
            .filter(|zone| !zone.is_kernels() && zone.start != keep)
            .map(|zone| call(sysno::munmap, &[zone.start, zone.bytes()]))
            .collect();
        remote.run_all(&mut calls).on("emptying", "the clone")?;
        let vdso = state.vdso.zones.clone();
        Ok(Self { hole, vdso, pieces: Vec::new(), files: BTreeMap::new(), image: None, pages: 0 })
    }

    /// Pages that were written since it began.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// It is as of `image` now.
    pub(crate) fn is_as_of(&mut self, image: &Arc<EpochReader>) {
        self.image = Some(Arc::clone(image));
    }

    /// Brings it to `image`, whose pages of it are in `space`; but for files below `later`, which come with the epoch.
    ///
    /// # Errors
    /// It is of no use any more then.
    pub(crate) fn update(
        &mut self,
        remote: &Remote,
        image: &EpochReader,
        space: u64,
        state: &MemoryState,
        later: &[PathBuf],
    ) -> RmResult<()> {
        let pages = self.lay(remote, image, space, state, later, &[])?;
        write(remote, image, &pages)
    }

    /// The same, but for the pages that are to be written, in rising order, of which it leaves out those in the ranges `late`.
    pub(super) fn lay(
        &mut self,
        remote: &Remote,
        image: &EpochReader,
        space: u64,
        state: &MemoryState,
        later: &[PathBuf],
        late: &[(u64, u64)],
    ) -> RmResult<Vec<(u64, PageKey)>> {
        let in_way = (self.hole, self.hole + HOLE_BYTES);
        if state.vdso.zones != self.vdso
            || state.zones.iter().any(|zone| zone.start < in_way.1 && zone.end > in_way.0)
        {
            return Err(RmError::Unsupported("the clone's own code is where the application's is".into()));
        }
        let is_later = |zone: &Zone| {
            let path = Path::new(std::ffi::OsStr::from_bytes(&zone.path));
            shows_file(zone) && later.iter().any(|root| path.starts_with(root))
        };
        let wanted: Vec<&Zone> =
            state.zones.iter().filter(|zone| zone.is_private() && !is_later(zone)).collect();
        let names = image.names_of(space);
        let touched = touched(&state.zones, &names)?;
        self.forget_replaced_files();
        let (kept, fresh) = self.compare(&wanted);
        let kept_ranges: Vec<(u64, u64)> =
            kept.iter().map(|piece| (piece.zone.start, piece.zone.end)).collect();
        let before: Vec<(u64, u64)> =
            self.pieces.iter().map(|piece| (piece.zone.start, piece.zone.end)).collect();
        let mut calls: Vec<Call> = without(&before, &kept_ranges)
            .iter()
            .map(|(start, end)| call(sysno::munmap, &[*start, end - start]))
            .collect();
        self.pieces = kept;
        for piece in &mut self.pieces {
            if !piece.writable && touched.contains(&owner(&state.zones, piece.zone.start)) {
                piece.writable = true;
                let prot = u64::from(piece.zone.prot) | PROT_RW;
                calls.push(call(sysno::mprotect, &[piece.zone.start, piece.zone.bytes(), prot]));
            }
        }
        remote.run_all(&mut calls).on("unmapping", "zones that are gone")?;
        let of_zone = |piece: &Piece| owner(&state.zones, piece.zone.start);
        let is_same = self.image.as_ref().is_some_and(|was| std::ptr::eq(Arc::as_ptr(was), image));
        if is_same && fresh.is_empty() {
            return Ok(Vec::new());
        }
        let open: BTreeSet<usize> = self.pieces.iter().filter(|piece| piece.writable).map(of_zone).collect();
        let of_fresh = |zone: Zone| {
            let index = owner(&state.zones, zone.start);
            let writable = touched.contains(&index) || open.contains(&index);
            Piece { zone, writable }
        };
        let fresh: Vec<Piece> = fresh.into_iter().map(of_fresh).collect();
        for piece in fresh.iter().filter(|piece| shows_file(&piece.zone)) {
            if let Some(print) = print(&piece.zone.path) {
                self.files.insert(piece.zone.path.clone(), print);
            }
        }
        map_all(remote, &fresh)?;
        self.pieces.extend(fresh);
        self.pieces.sort_unstable_by_key(|piece| piece.zone.start);
        self.join(&state.zones);
        let old = self.image.as_ref().map(|image| image.names_of(space)).unwrap_or_default();
        let names = names.without(&in_space(late));
        let mut delta = delta(&old, &names, &kept_ranges);
        // Pages of zones that are not there yet come later.
        let there: Vec<(u64, u64)> =
            self.pieces.iter().map(|piece| (piece.zone.start, piece.zone.end)).collect();
        let mut within = Within(&there);
        delta.write.retain(|(at, _)| within.has(*at));
        let mut calls: Vec<Call> = delta
            .drop
            .iter()
            .map(|(start, end)| call(sysno::madvise, &[*start, end - start, MADV_DONTNEED]))
            .collect();
        remote.run_all(&mut calls).on("giving back", "pages")?;
        self.pages += delta.write.len() as u64;
        Ok(delta.write)
    }

    /// What of the pieces stays, and what is to be mapped, of zones in rising order. Of each zone one piece at most stays, the largest:
    /// the kernel does not join two that were touched, and the application may move them as the one that they are to it.
    fn compare(&self, wanted: &[&Zone]) -> (Vec<Piece>, Vec<Zone>) {
        let mut kept: Vec<Piece> = Vec::new();
        let mut fresh = Vec::new();
        for zone in wanted {
            let first = self.pieces.partition_point(|piece| piece.zone.end <= zone.start);
            let common = self.pieces[first..].iter().take_while(|piece| piece.zone.start < zone.end);
            let alike = common.filter(|piece| is_alike(&piece.zone, zone));
            let both = |piece: &Piece| (piece.zone.start.max(zone.start), piece.zone.end.min(zone.end));
            let largest = alike.max_by_key(|piece| {
                let (start, end) = both(piece);
                end - start
            });
            let Some(piece) = largest else {
                fresh.push((*zone).clone());
                continue;
            };
            let (start, end) = both(piece);
            if start > zone.start {
                fresh.push(part(zone, zone.start, start));
            }
            if zone.end > end {
                fresh.push(part(zone, end, zone.end));
            }
            kept.push(Piece { zone: part(zone, start, end), writable: piece.writable });
        }
        (kept, fresh)
    }

    /// Pieces of one zone are one piece from now on.
    fn join(&mut self, zones: &[Zone]) {
        let mut all: Vec<Piece> = Vec::new();
        for piece in std::mem::take(&mut self.pieces) {
            match all.last_mut() {
                Some(last)
                    if last.zone.end == piece.zone.start
                        && last.writable == piece.writable
                        && owner(zones, last.zone.start) == owner(zones, piece.zone.start) =>
                {
                    last.zone.end = piece.zone.end;
                }
                _ => all.push(piece),
            }
        }
        self.pieces = all;
    }

    /// Whether each of its zones is in one of `now`, as it is in the application.
    pub(crate) fn is_whole(&self, now: &[Zone]) -> bool {
        self.pieces.iter().all(|Piece { zone, .. }| {
            let found = now.get(owner(now, zone.start));
            found.is_some_and(|now| now.start <= zone.start && zone.end <= now.end)
        })
    }

    /// What shows a file that is another one by now is not kept.
    fn forget_replaced_files(&mut self) {
        let files = std::mem::take(&mut self.files);
        let (same, other): (BTreeMap<_, _>, BTreeMap<_, _>) =
            files.into_iter().partition(|(path, was)| print(path).as_ref() == Some(was));
        self.files = same;
        for piece in self.pieces.iter_mut().filter(|piece| shows_file(&piece.zone)) {
            if other.contains_key(&piece.zone.path) {
                piece.zone.path.clear();
            }
        }
    }

    /// Calls that give every piece its own protection again.
    pub(crate) fn protections(&self) -> Vec<Call> {
        let open = |piece: &&Piece| piece.writable && u64::from(piece.zone.prot) & PROT_RW != PROT_RW;
        let protect = |piece: &Piece| {
            call(sysno::mprotect, &[piece.zone.start, piece.zone.bytes(), u64::from(piece.zone.prot)])
        };
        self.pieces.iter().filter(open).map(protect).collect()
    }

    /// The application's own copy of the server is there: goes on in it, and the hole closes.
    pub(crate) fn leave_hole(&self, remote: &Remote, to: u64) -> RmResult<()> {
        jump(remote, to, remote.page.slot_address(remote.leader))?;
        let mut calls = [call(sysno::munmap, &[self.hole, VDSO_AT])];
        remote.run_all(&mut calls).on("closing", "the hole")
    }
}

/// The zone that has an address, by its place.
fn owner(zones: &[Zone], at: u64) -> usize {
    zones.partition_point(|zone| zone.end <= at)
}

/// Zones that the image has pages of, by their places.
fn touched(zones: &[Zone], names: &Names) -> RmResult<BTreeSet<usize>> {
    let mut out = BTreeSet::new();
    for (mut at, end) in named(names) {
        while at < end {
            let index = owner(zones, at);
            match zones.get(index) {
                Some(zone) if zone.start <= at => {
                    out.insert(index);
                    at = zone.end;
                }
                _ => {
                    let what = format!("pages at {at:#x} outside all zones");
                    return Err(RmError::BadSection { kind: NAME, what });
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_hole_touches_nothing() {
        let mut taken = vec![
            (0x5555_0000_0000, 0x5555_0100_0000),
            (0x1_0000_0000, 0x1_4000_0000),
            (0x7fff_0000_0000, 0x7fff_1000_0000),
        ];
        let at = hole(&mut taken, HOLE_BYTES).unwrap();
        assert!(taken.iter().all(|(start, end)| at + HOLE_BYTES < *start || at > *end));
        let mut all = vec![(0, 1 << 47)];
        assert_eq!(hole(&mut all, HOLE_BYTES), None);
    }

    fn zone(start: u64, end: u64, prot: u8, path: &[u8]) -> Zone {
        let kind = if path.is_empty() { ZoneKind::Anonymous } else { ZoneKind::FilePrivate };
        Zone {
            start,
            end,
            prot,
            kind,
            offset: 0,
            device: 1,
            inode: 2,
            path: path.to_vec(),
            deleted: false,
            flags: Vec::new(),
        }
    }

    fn laid(zones: Vec<Zone>) -> Laid {
        let pieces = zones.into_iter().map(|zone| Piece { zone, writable: true }).collect();
        Laid { hole: 0, vdso: Vec::new(), pieces, files: BTreeMap::new(), image: None, pages: 0 }
    }

    type Ranges = Vec<(u64, u64)>;

    /// What stays, and what is mapped.
    fn compared(was: Vec<Zone>, now: Vec<Zone>) -> (Ranges, Ranges) {
        let (kept, fresh) = laid(was).compare(&now.iter().collect::<Vec<_>>());
        let kept = kept.iter().map(|piece| (piece.zone.start, piece.zone.end)).collect();
        (kept, fresh.iter().map(|zone| (zone.start, zone.end)).collect())
    }

    // Goal: what is the same stays, what grew, moved, or is of another protection or file is mapped anew. Method: pairs.
    #[test]
    fn only_what_differs_is_mapped_anew() {
        let heap = |end| zone(0x1000, end, 3, b"");
        assert_eq!(
            compared(vec![heap(0x4000)], vec![heap(0x6000)]),
            (vec![(0x1000, 0x4000)], vec![(0x4000, 0x6000)])
        );
        assert_eq!(compared(vec![heap(0x6000)], vec![heap(0x4000)]), (vec![(0x1000, 0x4000)], vec![]));
        assert_eq!(
            compared(vec![heap(0x4000)], vec![zone(0x1000, 0x4000, 1, b"")]),
            (vec![], vec![(0x1000, 0x4000)])
        );
        // A hole in the middle; two that came together.
        let two = vec![heap(0x2000), zone(0x3000, 0x5000, 3, b"")];
        assert_eq!(
            compared(vec![heap(0x4000)], two.clone()),
            (vec![(0x1000, 0x2000), (0x3000, 0x4000)], vec![(0x4000, 0x5000)])
        );
        assert_eq!(
            compared(two, vec![heap(0x6000)]),
            (vec![(0x3000, 0x5000)], vec![(0x1000, 0x3000), (0x5000, 0x6000)])
        );
        // The same file from another place of it on.
        let file = |offset| Zone { offset, ..zone(0x1000, 0x3000, 5, b"/lib") };
        assert_eq!(compared(vec![file(0)], vec![file(0)]).0, [(0x1000, 0x3000)]);
        assert_eq!(compared(vec![file(0)], vec![file(0x1000)]).1, [(0x1000, 0x3000)]);
        let tail = Zone { offset: 0x1000, ..zone(0x2000, 0x3000, 5, b"/lib") };
        assert_eq!(compared(vec![file(0)], vec![tail]), (vec![(0x2000, 0x3000)], vec![]));
        assert_eq!(compared(vec![file(0)], vec![zone(0x1000, 0x3000, 5, b"/usr")]).1, [(0x1000, 0x3000)]);
        // What grows downwards is all or nothing.
        let stack = |start| Zone { kind: ZoneKind::Stack, ..zone(start, 0x9000, 3, b"") };
        assert_eq!(compared(vec![stack(0x5000)], vec![stack(0x4000)]).1, [(0x4000, 0x9000)]);
    }
}
