//! Memory of a clone: an empty address space, then zones, contents, protections.

use crate::kinds::memory::{MemoryState, NAME, VERSION, control_zone};
use crate::kinds::shared::SharedObjects;
use crate::kinds::vdso;
use crate::kinds::zones::{self, PAGE, Zone, ZoneKind};
use crate::manager::{Context, RmError, RmResult, SwitchCx};
use crate::remote::{call, outcome};
use holo_abi::control::{CALL_JUMP, Call};
use holo_abi::sysno;
use std::collections::BTreeMap;
use std::fs;

const PROT_RW: u64 = 3;
const MAP_SHARED: u64 = 0x01;
const MAP_PRIVATE: u64 = 0x02;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const NOWHERE: u64 = u64::MAX;
const O_CLOEXEC: u64 = 0o2_000_000;
const O_RDWR: u64 = 2;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
/// Room for the server code, and for the vdso while it moves.
const HOLE_BYTES: u64 = 64 * PAGE;
const VDSO_AT: u64 = 16 * PAGE;
const CHUNK_BYTES: usize = 4 << 20;

/// The common set, and what of it is open in the clone.
type Objects<'a> = (&'a SharedObjects, &'a mut BTreeMap<usize, u64>);

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

fn clone_zones(cx: &SwitchCx) -> RmResult<Vec<Zone>> {
    let text = fs::read(cx.remote.proc("maps")).on("reading", "the clone's maps")?;
    zones::parse(&text).map_err(RmError::Unsupported)
}

/// Makes the clone's memory the image's. Afterwards the leader serves from libholo's own text.
pub(crate) fn restore(cx: &mut SwitchCx, shared: &SharedObjects) -> RmResult<()> {
    let state: MemoryState = cx.section(NAME, VERSION)?;
    let page_at = cx.remote.page.address();
    let now = clone_zones(cx)?;
    let mut taken: Vec<(u64, u64)> =
        state.zones.iter().chain(&state.vdso.zones).chain(&now).map(|zone| (zone.start, zone.end)).collect();
    taken.push(control_zone(page_at));
    let hole = hole(&mut taken, HOLE_BYTES)
        .ok_or_else(|| RmError::Unsupported("no hole in the address space".into()))?;
    move_server(cx, hole)?;
    vdso::place(cx, &state.vdso, &now, hole + VDSO_AT)?;
    let keep = [control_zone(page_at)];
    let mut calls: Vec<Call> = now
        .iter()
        .filter(|zone| !zone.is_kernels() && !keep.iter().any(|(start, _)| *start == zone.start))
        .map(|zone| call(sysno::munmap, &[zone.start, zone.bytes()]))
        .collect();
    cx.remote.run_all(&mut calls).on("emptying", "the clone")?;
    let touched = pages_by_zone(cx, &state)?;
    let mut objects = BTreeMap::new();
    for (zone, touched) in state.zones.iter().zip(&touched) {
        map(cx, &state, zone, *touched, &mut (shared, &mut objects))?;
    }
    fill(cx, 0)?;
    protect(cx, &state.zones, &touched)?;
    set_layout(cx, &state)?;
    // libholo's text is there now; the hole can go.
    let process: crate::kinds::process::ProcessState = cx.section("process", 1)?;
    let slot = cx.remote.page.slot_address(cx.remote.leader);
    jump(cx, process.holo[0], slot)?;
    let mut calls = [call(sysno::munmap, &[hole, VDSO_AT])];
    cx.remote.run_all(&mut calls).on("closing", "the hole")?;
    check(cx, &state)?;
    // At addresses that all else leaves free.
    super::aio_restore::make(cx)
}

/// Copies the server code into the hole and goes on there.
fn move_server(cx: &SwitchCx, hole: u64) -> RmResult<()> {
    let header = cx.remote.page.header();
    // SAFETY: filled in by the restorer before it served.
    let (start, end) = unsafe { ((*header).serve_start, (*header).serve_end) };
    let bytes = end.saturating_sub(start);
    if bytes == 0 || bytes > VDSO_AT {
        return Err(RmError::Unsupported(format!("a restorer with {bytes} bytes of server code")));
    }
    let mut code = vec![0; bytes as usize];
    cx.remote.read(start, &mut code).on("reading", "the server code")?;
    let mut calls =
        [call(sysno::mmap, &[hole, VDSO_AT, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, NOWHERE, 0])];
    cx.remote.run_all(&mut calls).on("mapping", "the hole")?;
    cx.remote.write(hole, &code).on("writing", "the server code")?;
    let mut calls = [call(sysno::mprotect, &[hole, VDSO_AT, 5])];
    cx.remote.run_all(&mut calls).on("protecting", "the server code")?;
    jump(cx, hole, cx.remote.page.slot_address(cx.remote.leader))
}

fn jump(cx: &SwitchCx, to: u64, slot: u64) -> RmResult<()> {
    let header = cx.remote.page.address();
    cx.remote.call(CALL_JUMP, &[to, slot, header]).on("moving", "the server").map(|_| ())
}

/// For each zone: does the image have pages of it?
fn pages_by_zone(cx: &SwitchCx, state: &MemoryState) -> RmResult<Vec<bool>> {
    let mut out = vec![false; state.zones.len()];
    let space = cx.space(0);
    for run in cx.image.pages().filter(|run| run.space == space) {
        let mut at = run.address;
        let end = run.address + run.keys.len() as u64 * PAGE;
        while at < end {
            let index = state.zones.partition_point(|zone| zone.end <= at);
            match state.zones.get(index) {
                Some(zone) if zone.start <= at => {
                    out[index] = true;
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

fn map(
    cx: &mut SwitchCx,
    state: &MemoryState,
    zone: &Zone,
    touched: bool,
    objects: &mut Objects,
) -> RmResult<()> {
    let what = || format!("zone {:#x}-{:#x} {}", zone.start, zone.end, String::from_utf8_lossy(&zone.path));
    let prot = if touched { u64::from(zone.prot) | PROT_RW } else { u64::from(zone.prot) };
    let anonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    match zone.kind {
        ZoneKind::FilePrivate if !zone.deleted => {
            let private = MAP_PRIVATE | MAP_FIXED;
            map_file(cx, zone, &zone.path, 0, prot, private).on("mapping", what())
        }
        ZoneKind::Anonymous | ZoneKind::Stack | ZoneKind::FilePrivate => {
            let grows =
                if zone.kind == ZoneKind::Stack || zone.flags.contains(b"gd") { MAP_GROWSDOWN } else { 0 };
            let plain = call(sysno::mmap, &[zone.start, zone.bytes(), prot, anonymous | grows, NOWHERE, 0]);
            let lazy = call(
                sysno::mmap,
                &[zone.start, zone.bytes(), prot, anonymous | grows | MAP_NORESERVE, NOWHERE, 0],
            );
            // Reservations without access were never accounted.
            let first = if zone.prot & 2 == 0 { lazy } else { plain };
            let mut calls = [first];
            cx.remote.run(&mut calls, false).on("mapping", what())?;
            if outcome(&calls[0]).is_err() {
                calls[0] = lazy;
                cx.remote.run_all(&mut calls).on("mapping", what())?;
            }
            Ok(())
        }
        ZoneKind::FileShared => {
            let shared = MAP_SHARED | MAP_FIXED;
            let open = map_file(cx, zone, &zone.path, O_RDWR, u64::from(zone.prot), shared);
            let open = open.or_else(|_| map_file(cx, zone, &zone.path, 0, u64::from(zone.prot), shared));
            open.on("mapping", what())
        }
        ZoneKind::SharedObject => map_object(cx, state, zone, objects),
        ZoneKind::SysV => crate::kinds::sysv_shm::attach(cx, zone),
        ZoneKind::Vdso | ZoneKind::Vvar | ZoneKind::Vsyscall => {
            Err(RmError::BadSection { kind: NAME, what: what() })
        }
    }
}

fn map_file(
    cx: &SwitchCx,
    zone: &Zone,
    path: &[u8],
    flags: u64,
    prot: u64,
    map_flags: u64,
) -> std::io::Result<()> {
    let mut name = path.to_vec();
    name.push(0);
    if name.len() > 4096 {
        return Err(std::io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let at = cx.remote.page.put(0, &name);
    let fd = cx.remote.call(sysno::open, &[at, flags | O_CLOEXEC])?;
    let mut calls = [
        call(sysno::mmap, &[zone.start, zone.bytes(), prot, map_flags, fd, zone.offset]),
        call(sysno::close, &[fd]),
    ];
    cx.remote.run(&mut calls, false)?;
    outcome(&calls[0]).map(|_| ())
}

/// Maps a shared object, made at its first zone: the first mapping keeps it, later ones duplicate it.
fn map_object(
    cx: &SwitchCx,
    state: &MemoryState,
    zone: &Zone,
    (shared, objects): &mut Objects,
) -> RmResult<()> {
    let bad = |what: &str| RmError::BadSection { kind: NAME, what: what.into() };
    let index = state
        .objects
        .iter()
        .position(|object| object.key == (zone.device, zone.inode))
        .ok_or_else(|| bad("a shared zone without its object"))?;
    let object = &state.objects[index];
    let fd = match objects.get(&index) {
        Some(fd) => *fd,
        None => {
            let fd = crate::kinds::objects::make(
                cx,
                shared,
                object.key,
                &object.path,
                object.bytes,
                1 + index as u64,
            )?;
            objects.insert(index, fd);
            fd
        }
    };
    let mut calls = [call(
        sysno::mmap,
        &[zone.start, zone.bytes(), u64::from(zone.prot), MAP_SHARED | MAP_FIXED, fd, zone.offset],
    )];
    cx.remote.run_all(&mut calls).on("mapping", format!("shared memory at {:#x}", zone.start))?;
    // The last zone of the object closes it.
    let later = state.zones.iter().any(|other| {
        other.kind == ZoneKind::SharedObject
            && (other.device, other.inode) == object.key
            && other.start > zone.start
    });
    if !later {
        cx.remote.call(sysno::close, &[fd]).on("closing", "shared memory")?;
    }
    Ok(())
}

/// Writes the pages of a space.
fn fill(cx: &SwitchCx, local: u64) -> RmResult<()> {
    let space = cx.space(local);
    let mut buffer = vec![0; CHUNK_BYTES];
    for run in cx.image.pages().filter(|run| run.space == space) {
        let mut first = 0;
        while first < run.keys.len() {
            let pages = (run.keys.len() - first).min(CHUNK_BYTES / PAGE as usize);
            let part = &mut buffer[..pages * PAGE as usize];
            cx.image.read_run(run, first, part)?;
            cx.remote.page.keep_alive();
            cx.remote.write(run.address + first as u64 * PAGE, part).on("writing", "the clone's memory")?;
            first += pages;
        }
    }
    Ok(())
}

fn protect(cx: &SwitchCx, zones: &[Zone], touched: &[bool]) -> RmResult<()> {
    let mut calls = Vec::new();
    let mut advice = Vec::new();
    for (zone, touched) in zones.iter().zip(touched) {
        if *touched && u64::from(zone.prot) != u64::from(zone.prot) | PROT_RW {
            calls.push(call(sysno::mprotect, &[zone.start, zone.bytes(), u64::from(zone.prot)]));
        }
        for flag in &zone.flags {
            let value = match flag {
                b"hg" => 14,
                b"nh" => 15,
                b"dc" => 10,
                b"wf" => 18,
                b"dd" => 16,
                b"mg" => 12,
                _ => continue,
            };
            advice.push(call(sysno::madvise, &[zone.start, zone.bytes(), value]));
        }
        if zone.flags.contains(b"lo") {
            advice.push(call(sysno::mlock, &[zone.start, zone.bytes()]));
        }
    }
    cx.remote.run_all(&mut calls).on("protecting", "zones")?;
    // Advice that this kernel does not know, or locks beyond a limit, change nothing that is visible.
    cx.remote.run(&mut advice, false).on("advising", "zones")
}

fn set_layout(cx: &mut SwitchCx, state: &MemoryState) -> RmResult<()> {
    const MAP_AT: usize = 8192;
    const AUXV_AT: usize = 16384;
    let process: crate::kinds::process::ProcessState = cx.section("process", 1)?;
    let page = &cx.remote.page;
    let auxv = &state.layout.auxv;
    if auxv.len() > 4096 {
        return Err(RmError::BadSection { kind: NAME, what: "a long auxiliary vector".into() });
    }
    let auxv_at = page.put(AUXV_AT, auxv);
    let mut name = process.exe.clone();
    name.push(0);
    if name.len() > 4096 {
        return Err(RmError::BadSection { kind: NAME, what: "a long executable path".into() });
    }
    let exe = cx.remote.call(sysno::open, &[page.put(0, &name), O_CLOEXEC]);
    let set = |exe_fd: u32| {
        let mut map: Vec<u8> = state.layout.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        map.extend(auxv_at.to_le_bytes());
        map.extend((auxv.len() as u32).to_le_bytes());
        map.extend(exe_fd.to_le_bytes());
        let at = page.put(MAP_AT, &map);
        cx.remote.call(sysno::prctl, &[PR_SET_MM, PR_SET_MM_MAP, at, map.len() as u64, 0])
    };
    let fd = exe.as_ref().map_or(u32::MAX, |fd| *fd as u32);
    if set(fd).is_err() {
        set(u32::MAX).on("setting", "the memory layout")?;
        cx.remarks.push("/proc/self/exe shows the restorer: this kernel wants a privilege for it".into());
    }
    if let Ok(fd) = exe {
        cx.remote.call(sysno::close, &[fd]).on("closing", "the executable")?;
    }
    Ok(())
}

/// The clone's zones must be the image's: nothing missing, nothing left over.
fn check(cx: &SwitchCx, state: &MemoryState) -> RmResult<()> {
    let page = control_zone(cx.remote.page.address());
    let now = clone_zones(cx)?;
    let covered = |zones: &[Zone], start: u64, end: u64| {
        let mut at = start;
        for zone in zones.iter().filter(|zone| zone.end > start && zone.start < end) {
            if zone.start > at {
                return false;
            }
            at = zone.end;
        }
        at >= end
    };
    for zone in &state.zones {
        if !covered(&now, zone.start, zone.end) {
            let what = format!("zone {:#x}-{:#x} did not come to be", zone.start, zone.end);
            return Err(RmError::BadSection { kind: NAME, what });
        }
    }
    for zone in now.iter().filter(|zone| !zone.is_kernels() && zone.start != page.0) {
        let stand_in = state.vdso.zones.iter().any(|kernels| kernels.start == zone.start);
        if !stand_in && !covered(&state.zones, zone.start, zone.end) {
            let what = format!("a zone {:#x}-{:#x} too many", zone.start, zone.end);
            return Err(RmError::BadSection { kind: NAME, what });
        }
    }
    Ok(())
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
}
