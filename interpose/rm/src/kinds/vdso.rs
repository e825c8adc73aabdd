//! The kernel's code page: moved to where the application knows it, or stood in for.
//!
//! On the same kernel build the clone's own vdso and its data are moved with `mremap`. On another build the
//! application's old vdso stays in place as ordinary memory, each of its functions replaced by a jump to the
//! function of that name in this kernel's vdso.

use crate::kinds::zones::{self, Zone, ZoneKind};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, call, read_many, read_memory};
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::{fs, io};

const MREMAP_MAYMOVE_FIXED: u64 = 3;
const MAP_PRIVATE_ANONYMOUS_FIXED: u64 = 0x02 | 0x20 | 0x10;
const VDSO_BYTES_MAX: u64 = 1 << 20;

/// The vdso of the node where the epoch was taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VdsoState {
    /// Its parts (vvar, vdso) as zones.
    pub zones: Vec<Zone>,
    /// Bytes of the code.
    #[serde(with = "holo_image::wire::bytes")]
    pub code: Vec<u8>,
}

/// A function of a vdso: name, offset from its start.
type Function = (Vec<u8>, u64);

fn word(image: &[u8], at: u64, bytes: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let mut out = [0; 8];
    out[..bytes].copy_from_slice(image.get(at..at.checked_add(bytes)?)?);
    Some(u64::from_le_bytes(out))
}

/// Functions of a vdso image; `None` if it is not one.
pub fn functions(image: &[u8]) -> Option<Vec<Function>> {
    let headers = word(image, 32, 8)?;
    let count = word(image, 56, 2)?;
    let (mut bias, mut dynamic) = (None, None);
    for index in 0..count {
        let header = headers.checked_add(index * 56)?;
        match word(image, header, 4)? {
            1 if bias.is_none() => {
                bias = Some(word(image, header + 16, 8)?.wrapping_sub(word(image, header + 8, 8)?))
            }
            2 => dynamic = Some(word(image, header + 8, 8)?),
            _ => {}
        }
    }
    let (bias, mut at) = (bias?, dynamic?);
    let (mut strings, mut symbols) = (0, 0);
    loop {
        let value = word(image, at.checked_add(8)?, 8)?.wrapping_sub(bias);
        match word(image, at, 8)? {
            0 => break,
            5 => strings = value,
            6 => symbols = value,
            _ => {}
        }
        at = at.checked_add(16)?;
    }
    // The string table follows the symbols in every vdso.
    let total = strings.checked_sub(symbols)? / 24;
    let mut out = Vec::new();
    for symbol in (0..total).map(|index| symbols + index * 24) {
        let info = word(image, symbol + 4, 1)?;
        let value = word(image, symbol + 8, 8)?;
        if info & 0xf != 2 || value == 0 {
            continue;
        }
        let name = usize::try_from(strings.checked_add(word(image, symbol, 4)?)?).ok()?;
        let tail = image.get(name..)?;
        let end = tail.iter().position(|byte| *byte == 0)?;
        out.push((tail[..end].to_vec(), value.wrapping_sub(bias)));
    }
    Some(out)
}

/// `jmp [rip]; address`.
fn jump(to: u64) -> [u8; 14] {
    let mut code = [0; 14];
    code[0] = 0xff;
    code[1] = 0x25;
    code[6..].copy_from_slice(&to.to_le_bytes());
    code
}

/// Bytes of [`jump`].
const JUMP_BYTES: u64 = 14;
/// The instruction pointer in the kernel's `struct ucontext`.
const RIP_AT: u64 = 168;
const AT_SYSINFO_EHDR: u64 = 33;

/// Where a process has its vdso.
fn base(auxv: &[u8]) -> Option<u64> {
    let pairs = auxv.chunks_exact(16).map(|pair| (word(pair, 0, 8), word(pair, 8, 8)));
    pairs.into_iter().find_map(|(tag, value)| if tag == Some(AT_SYSINFO_EHDR) { value } else { None })
}

/// Offsets of the functions of this kernel's vdso.
fn heads() -> &'static [u64] {
    static HEADS: OnceLock<Vec<u64>> = OnceLock::new();
    HEADS.get_or_init(|| {
        let maps = fs::read("/proc/self/maps").unwrap_or_default();
        let zones = zones::parse(&maps).unwrap_or_default();
        let Some(own) = zones.iter().find(|zone| zone.kind == ZoneKind::Vdso) else { return Vec::new() };
        let mut image = vec![0; own.bytes() as usize];
        if read_memory(std::process::id() as i32, own.start, &mut image).is_err() {
            return Vec::new();
        }
        functions(&image).unwrap_or_default().into_iter().map(|(_, at)| at).collect()
    })
}

/// Whether a parked thread is in the first instructions of a function of the vdso, where the jump of a stand-in would be:
/// such an epoch could not be run on another kernel.
///
/// # Errors
/// The process cannot be read.
pub fn is_in_head(remote: &Remote, slots: &[usize]) -> io::Result<bool> {
    let Some(base) = base(remote.auxv()?) else { return Ok(false) };
    // SAFETY: filled in by the parked threads.
    let frames = slots.iter().map(|index| unsafe { (*remote.page.slot(*index)).frame } + RIP_AT);
    let places: Vec<(u64, u64)> = frames.map(|at| (at, at + 8)).collect();
    let mut all = vec![0; places.len() * 8];
    read_many(remote.face, &places, &mut all)?;
    let in_head = |rip: &[u8]| {
        let offset = u64::from_le_bytes(rip.try_into().unwrap_or([0; 8])).wrapping_sub(base);
        heads().iter().any(|at| *at < offset && offset < at + JUMP_BYTES)
    };
    Ok(all.chunks_exact(8).any(in_head))
}

/// The old code with every function jumping to its namesake; `None` if one has none or no room.
#[must_use]
pub fn stand_in(old: &[u8], new: &[u8], new_at: u64) -> Option<Vec<u8>> {
    let (ours, theirs) = (functions(new)?, functions(old)?);
    let mut code = old.to_vec();
    let mut starts: Vec<u64> = theirs.iter().map(|(_, at)| *at).collect();
    starts.sort_unstable();
    starts.dedup();
    for (name, at) in &theirs {
        let (_, target) = ours.iter().find(|(ours, _)| ours == name)?;
        let next = starts.iter().find(|start| *start > at).copied().unwrap_or(code.len() as u64);
        if next - at < 14 {
            return None;
        }
        let at = usize::try_from(*at).ok()?;
        code.get_mut(at..at + 14)?.copy_from_slice(&jump(new_at + target));
    }
    Some(code)
}

fn kernels(zones: &[Zone]) -> Vec<Zone> {
    zones.iter().filter(|zone| matches!(zone.kind, ZoneKind::Vdso | ZoneKind::Vvar)).cloned().collect()
}

/// Are they the parts of one build: the same sizes at the same distances?
fn same_shape(a: &[Zone], b: &[Zone]) -> bool {
    let shape = |zones: &[Zone]| -> Vec<_> {
        zones.iter().map(|zone| (zone.start - zones[0].start, zone.bytes(), zone.path.clone())).collect()
    };
    !a.is_empty() && shape(a) == shape(b)
}

fn move_parts(remote: &Remote, parts: &[Zone], to: u64) -> RmResult<()> {
    let base = parts[0].start;
    let mut calls: Vec<_> = parts
        .iter()
        .map(|zone| {
            let bytes = zone.bytes();
            call(sysno::mremap, &[zone.start, bytes, bytes, MREMAP_MAYMOVE_FIXED, to + (zone.start - base)])
        })
        .collect();
    remote.run_all(&mut calls).on("moving", "the vdso")
}

/// Brings the clone's vdso where the application has it; `zones` are the clone's now, `hole` a free place
/// away from everything.
///
/// # Errors
/// The kernel's, or a kernel whose vdso lacks a function.
pub fn place(
    remote: &Remote,
    state: &VdsoState,
    zones: &[Zone],
    hole: u64,
    remarks: &mut Vec<String>,
) -> RmResult<()> {
    let ours = kernels(zones);
    if state.zones.is_empty() || ours.is_empty() {
        return Ok(());
    }
    if state.code.len() as u64 > VDSO_BYTES_MAX {
        return Err(RmError::BadSection { kind: "memory", what: "a vdso too large to be one".into() });
    }
    let code_zone = |zones: &[Zone]| zones.iter().find(|zone| zone.kind == ZoneKind::Vdso).cloned();
    let (Some(our_code), Some(their_code)) = (code_zone(&ours), code_zone(&state.zones)) else {
        return Ok(());
    };
    let mut code = vec![0; our_code.bytes() as usize];
    remote.read(our_code.start, &mut code).on("reading", "the clone's vdso")?;
    // By way of the hole: old and new place may overlap.
    move_parts(remote, &ours, hole)?;
    let moved: Vec<Zone> = ours
        .iter()
        .map(|zone| {
            let start = hole + (zone.start - ours[0].start);
            Zone { start, end: start + zone.bytes(), ..zone.clone() }
        })
        .collect();
    if same_shape(&ours, &state.zones)
        && code == state.code
        && std::env::var_os("HOLO_TEST_OTHER_VDSO").is_none()
    {
        return move_parts(remote, &moved, state.zones[0].start);
    }
    let new_at = hole + (our_code.start - ours[0].start);
    let built = stand_in(&state.code, &code, new_at).ok_or_else(|| {
        RmError::Unsupported("this kernel's vdso lacks a function that the application may use".into())
    })?;
    let bytes = their_code.bytes();
    let mut calls =
        [call(sysno::mmap, &[their_code.start, bytes, 3, MAP_PRIVATE_ANONYMOUS_FIXED, u64::MAX, 0])];
    remote.run_all(&mut calls).on("mapping", "the old vdso")?;
    remote.write(their_code.start, &built).on("writing", "the old vdso")?;
    let mut calls = [call(sysno::mprotect, &[their_code.start, bytes, 5])];
    remote.run_all(&mut calls).on("protecting", "the old vdso")?;
    // A thread in the middle of a function goes on reading the old data: zeros say that there is no clock to be read
    // here, and it makes the system call.
    let data = state.zones.iter().filter(|zone| zone.kind == ZoneKind::Vvar);
    let map = |zone: &Zone| {
        let readable = 1;
        call(sysno::mmap, &[zone.start, zone.bytes(), readable, MAP_PRIVATE_ANONYMOUS_FIXED, u64::MAX, 0])
    };
    let mut calls: Vec<_> = data.map(map).collect();
    remote.run_all(&mut calls).on("mapping", "the old vdso's data")?;
    remarks.push("another kernel build: the vdso is stood in for".into());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: a thread inside a function's first instructions is seen, one at its first or after them is not. Method: a
    // page with a frame whose instruction pointer we set.
    #[test]
    fn heads_are_seen() {
        let page = std::sync::Arc::new(crate::page::Page::create().unwrap());
        let pid = std::process::id() as i32;
        let slot = page.reserve().unwrap();
        let mut frame = [0u64; 32];
        // SAFETY: reserved by us.
        unsafe { (*page.slot(slot)).frame = frame.as_ptr() as u64 };
        let remote = Remote::new(page, pid, slot).unwrap();
        let base = base(&fs::read("/proc/self/auxv").unwrap()).unwrap();
        let head = *heads().iter().max().unwrap();
        for (offset, seen) in [(0, false), (4, true), (13, true), (14, false)] {
            frame[RIP_AT as usize / 8] = base + head + offset;
            std::hint::black_box(&mut frame);
            assert_eq!(is_in_head(&remote, &[slot]).unwrap(), seen, "{offset}");
        }
    }

    fn own() -> Vec<u8> {
        let zones = crate::kinds::zones::parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        let zone = zones.iter().find(|zone| zone.kind == ZoneKind::Vdso).unwrap();
        // SAFETY: the kernel's mapping in this process.
        unsafe { std::slice::from_raw_parts(zone.start as *const u8, zone.bytes() as usize) }.to_vec()
    }

    /// The stand-in is run: the patched copy of this process's vdso must tell the time.
    #[test]
    fn a_stand_in_tells_the_time() {
        let image = own();
        let zones = crate::kinds::zones::parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        let at = zones.iter().find(|zone| zone.kind == ZoneKind::Vdso).unwrap().start;
        let code = stand_in(&image, &image, at).unwrap();
        let (_, offset) =
            functions(&image).unwrap().into_iter().find(|(name, _)| name == b"__vdso_clock_gettime").unwrap();
        // SAFETY: a fresh mapping, filled, then executable; the function has this signature.
        unsafe {
            let copy = libc::mmap(
                std::ptr::null_mut(),
                code.len(),
                3,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(copy, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(code.as_ptr(), copy.cast(), code.len());
            assert_eq!(libc::mprotect(copy, code.len(), 5), 0);
            let function: extern "C" fn(i32, *mut libc::timespec) -> i32 =
                std::mem::transmute(copy as usize + offset as usize);
            let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let mut later = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            assert_eq!(function(libc::CLOCK_MONOTONIC, &raw mut now), 0);
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut later);
            assert!(
                (later.tv_sec, later.tv_nsec) >= (now.tv_sec, now.tv_nsec) && later.tv_sec - now.tv_sec < 2
            );
            libc::munmap(copy, code.len());
        }
    }

    #[test]
    fn garbage_is_no_vdso() {
        assert!(functions(&[0; 100]).is_none());
        let mut image = own();
        image.truncate(600);
        assert!(functions(&image).is_none());
        for at in (0..64).chain(400..600) {
            let mut image = own();
            image[at] ^= 0xff;
            let _ = functions(&image);
        }
    }
}
