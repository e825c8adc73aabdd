//! Memory of a clone: an empty address space, then zones, contents, protections.

use crate::kinds::increment::{kept, listed};
use crate::kinds::laid::{APART, Laid, zones_of};
use crate::kinds::laid_maps::map_file;
use crate::kinds::laid_pages::write;
use crate::kinds::memory::{MemoryState, NAME, VERSION, control_zone};
use crate::kinds::process::{self, ProcessState};
use crate::kinds::shared::SharedObjects;
use crate::kinds::zones::{Zone, ZoneKind};
use crate::manager::{Context, RmError, RmResult, SwitchCx};
use crate::remote::call;
use holo_abi::sysno;
use std::collections::BTreeMap;

const MAP_SHARED: u64 = 0x01;
const MAP_FIXED: u64 = 0x10;
const O_CLOEXEC: u64 = 0o2_000_000;
const O_RDWR: u64 = 2;
const MSEAL: i64 = 462;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;

/// The common set, and what of it is open in the clone.
type Objects<'a> = (&'a SharedObjects, &'a mut BTreeMap<usize, u64>);

/// Makes the clone's memory the image's. Afterwards the leader serves from libholo's own text.
pub(crate) fn restore(cx: &mut SwitchCx, shared: &SharedObjects) -> RmResult<()> {
    let state: MemoryState = cx.section(NAME, VERSION)?;
    let (mut laid, followed) = match cx.laid.take() {
        Some(laid) => (laid, true),
        None => (Laid::begin(cx.remote, &state, cx.remarks)?, false),
    };
    let names = cx.image.names_of(cx.space(0));
    // The kernel fills buffers of asynchronous I/O when it likes to.
    let may_be_late = !followed && super::aio::section(cx)?.rings.is_empty();
    let late = cx.late.as_ref().filter(|_| may_be_late).map(|late| late.choose(&state.zones, &names));
    let late = late.unwrap_or_default();
    let mut pages = laid.lay(cx.remote, cx.image, cx.space(0), &state, &[], &late)?;
    let is_taken = |cx: &mut SwitchCx| match cx.late.as_mut() {
        Some(taker) if !late.is_empty() => taker.take(cx.remote, cx.index, &late, kept(&names, &late)),
        _ => Ok(late.is_empty()),
    };
    if !is_taken(cx)? {
        pages.extend(listed(&kept(&names, &late)));
        pages.sort_unstable_by_key(|(at, _)| *at);
    }
    write(cx.remote, cx.image, &pages)?;
    let mut objects = BTreeMap::new();
    for zone in state.zones.iter().filter(|zone| !zone.is_private()) {
        map(cx, &state, zone, &mut (shared, &mut objects))?;
    }
    let mut calls = laid.protections();
    cx.remote.run_all(&mut calls).on("protecting", "zones")?;
    advise(cx, &state.zones)?;
    set_layout(cx, &state)?;
    // libholo's text is there now; the hole can go.
    let process: ProcessState = cx.section("process", process::VERSION)?;
    laid.leave_hole(cx.remote, process.holo[0])?;
    let now = check(cx, &state)?;
    if followed && !laid.is_whole(&now) {
        return Err(RmError::Unsupported(APART.into()));
    }
    // At addresses that all else leaves free.
    super::aio_restore::make(cx)
}

/// Maps a zone that is not of this process alone.
fn map(cx: &mut SwitchCx, state: &MemoryState, zone: &Zone, objects: &mut Objects) -> RmResult<()> {
    let what = || format!("zone {:#x}-{:#x} {}", zone.start, zone.end, String::from_utf8_lossy(&zone.path));
    match zone.kind {
        ZoneKind::FileShared => {
            let (shared, prot) = (MAP_SHARED | MAP_FIXED, u64::from(zone.prot));
            let open = map_file(cx.remote, zone, O_RDWR, prot, shared);
            open.or_else(|_| map_file(cx.remote, zone, 0, prot, shared)).on("mapping", what())
        }
        ZoneKind::SharedObject => map_object(cx, state, zone, objects),
        ZoneKind::SysV => crate::kinds::sysv_shm::attach(cx, zone),
        ZoneKind::Anonymous
        | ZoneKind::Stack
        | ZoneKind::FilePrivate
        | ZoneKind::Vdso
        | ZoneKind::Vvar
        | ZoneKind::Vsyscall => Err(RmError::BadSection { kind: NAME, what: what() }),
    }
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

fn advise(cx: &SwitchCx, zones: &[Zone]) -> RmResult<()> {
    let mut advice = Vec::new();
    for zone in zones {
        for flag in &zone.flags {
            let value = match flag {
                b"hg" => 14,
                b"nh" => 15,
                b"dc" => 10,
                b"wf" => 18,
                b"dd" => 16,
                b"mg" => 12,
                b"sr" => 2,
                b"rr" => 1,
                _ => continue,
            };
            advice.push(call(sysno::madvise, &[zone.start, zone.bytes(), value]));
        }
        if zone.flags.contains(b"lo") {
            advice.push(call(sysno::mlock, &[zone.start, zone.bytes()]));
        }
    }
    // Last, since no advice changes what is sealed.
    for zone in zones.iter().filter(|zone| zone.flags.contains(b"sl")) {
        advice.push(call(MSEAL, &[zone.start, zone.bytes(), 0]));
    }
    // Advice that this kernel does not know, or locks beyond a limit, change nothing that is visible.
    cx.remote.run(&mut advice, false).on("advising", "zones")
}

fn set_layout(cx: &mut SwitchCx, state: &MemoryState) -> RmResult<()> {
    const MAP_AT: usize = 8192;
    const AUXV_AT: usize = 16384;
    let process: ProcessState = cx.section("process", process::VERSION)?;
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

/// The clone's zones, which must be the image's: nothing missing, nothing left over.
fn check(cx: &SwitchCx, state: &MemoryState) -> RmResult<Vec<Zone>> {
    let page = control_zone(cx.remote.page.address());
    let now = zones_of(cx.remote)?;
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
    Ok(now)
}
