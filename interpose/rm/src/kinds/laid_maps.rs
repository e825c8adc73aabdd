//! Zones are mapped in a clone, many at once: a conversation with it takes longer than its calls do.

use crate::kinds::laid::{Piece, grows, shows_file};
use crate::kinds::zones::Zone;
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call, outcome};
use holo_abi::control::Call;
use holo_abi::sysno;
use std::io;

const PROT_RW: u64 = 3;
const MAP_PRIVATE: u64 = 0x02;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const NOWHERE: u64 = u64::MAX;
const O_CLOEXEC: u64 = 0o2_000_000;
/// Files that are open at once in the clone, and room for a name.
const FILES_MAX: usize = 32;
const NAME_MAX: usize = 4096;

/// Maps private zones.
pub(super) fn map_all(remote: &Remote, pieces: &[Piece]) -> RmResult<()> {
    let (files, others): (Vec<&Piece>, Vec<&Piece>) =
        pieces.iter().partition(|piece| shows_file(&piece.zone));
    map_anonymous(remote, &others)?;
    let mut paths: Vec<&[u8]> = files.iter().map(|piece| piece.zone.path.as_slice()).collect();
    paths.sort_unstable();
    paths.dedup();
    for paths in paths.chunks(FILES_MAX) {
        map_files(remote, &files, paths)?;
    }
    Ok(())
}

fn what(zone: &Zone) -> String {
    format!("zone {:#x}-{:#x} {}", zone.start, zone.end, String::from_utf8_lossy(&zone.path))
}

/// While it is filled it can be written.
fn prot(piece: &Piece) -> u64 {
    u64::from(piece.zone.prot) | if piece.writable { PROT_RW } else { 0 }
}

fn map_anonymous(remote: &Remote, pieces: &[&Piece]) -> RmResult<()> {
    let flags =
        |zone: &Zone| MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | if grows(zone) { MAP_GROWSDOWN } else { 0 };
    let map = |piece: &Piece, flags: u64| {
        let zone = &piece.zone;
        call(sysno::mmap, &[zone.start, zone.bytes(), prot(piece), flags, NOWHERE, 0])
    };
    let lazy = |piece: &Piece| map(piece, flags(&piece.zone) | MAP_NORESERVE);
    // Reservations without access were never accounted. The others must not be where they were not, or a fork can fail.
    let uncounted = |zone: &Zone| zone.prot & 2 == 0 || zone.flags.contains(b"nr");
    let first =
        |piece: &&Piece| if uncounted(&piece.zone) { lazy(piece) } else { map(piece, flags(&piece.zone)) };
    let mut calls: Vec<Call> = pieces.iter().map(first).collect();
    remote.run(&mut calls, false).on("mapping", "zones")?;
    for (piece, made) in pieces.iter().zip(&calls) {
        if outcome(made).is_err() {
            remote.run_all(&mut [lazy(piece)]).on("mapping", what(&piece.zone))?;
        }
    }
    Ok(())
}

/// Maps those that show one of these files.
fn map_files(remote: &Remote, pieces: &[&Piece], paths: &[&[u8]]) -> RmResult<()> {
    let fds = open_all(remote, paths)?;
    let mut of_files: Vec<(&Piece, Call)> = Vec::new();
    for piece in pieces {
        let zone = &piece.zone;
        let Ok(at) = paths.binary_search(&zone.path.as_slice()) else { continue };
        let args = [zone.start, zone.bytes(), prot(piece), MAP_PRIVATE | MAP_FIXED, fds[at], zone.offset];
        of_files.push((piece, call(sysno::mmap, &args)));
    }
    let mut calls: Vec<Call> = of_files.iter().map(|(_, map)| *map).collect();
    calls.extend(fds.iter().map(|fd| call(sysno::close, &[*fd])));
    remote.run(&mut calls, false).on("mapping", "files")?;
    for ((piece, _), made) in of_files.iter().zip(&calls) {
        outcome(made).on("mapping", what(&piece.zone))?;
    }
    Ok(())
}

/// Opens files in the clone.
fn open_all(remote: &Remote, paths: &[&[u8]]) -> RmResult<Vec<u64>> {
    let mut calls = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let named = named(path).on("opening", String::from_utf8_lossy(path))?;
        calls.push(call(sysno::open, &[remote.page.put(at * NAME_MAX, &named), O_CLOEXEC]));
    }
    remote.run(&mut calls, false).on("opening", "mapped files")?;
    let opened = paths.iter().zip(&calls);
    opened.map(|(path, made)| outcome(made).on("opening", String::from_utf8_lossy(path))).collect()
}

fn named(path: &[u8]) -> io::Result<Vec<u8>> {
    if path.len() >= NAME_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    Ok([path, &[0]].concat())
}

/// Maps one file where the image has it.
pub(crate) fn map_file(
    remote: &Remote,
    zone: &Zone,
    flags: u64,
    prot: u64,
    map_flags: u64,
) -> io::Result<()> {
    let at = remote.page.put(0, &named(&zone.path)?);
    let fd = remote.call(sysno::open, &[at, flags | O_CLOEXEC])?;
    let mut calls = [
        call(sysno::mmap, &[zone.start, zone.bytes(), prot, map_flags, fd, zone.offset]),
        call(sysno::close, &[fd]),
    ];
    remote.run(&mut calls, false)?;
    outcome(&calls[0]).map(|_| ())
}
