//! Records the names that the application is about to write to or make (`holo_abi::names`), before each call.
//!
//! By them the agent finds files outside the roots that are closed again when an epoch is cut. Names below roots are recorded, too: only
//! the agent can tell.

use crate::{named, user};
use core::sync::atomic::Ordering;
use holo_abi::changes::Changes;
use holo_abi::names::moves::{ABOUT, FAILED, MADE};
use holo_abi::names::{HASH_START, NAME_BYTES_MAX, directory, kind, mix};
use holo_abi::sysno;
use holo_sys::{raw, sys};
use holo_track::names::{self, Place};

/// Calls that make names, besides those that are recorded anyway.
pub(crate) const CALLS: &[i64] = &[
    sysno::rename,
    sysno::renameat,
    sysno::link,
    sysno::linkat,
    sysno::symlink,
    sysno::symlinkat,
    sysno::mknod,
    sysno::mknodat,
    sysno::mkdir,
    sysno::mkdirat,
];

const AT_FDCWD: u64 = (-100i64).cast_unsigned();
const AT_EMPTY_PATH: u64 = 0x1000;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const RENAME_EXCHANGE: u64 = 2;
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const O_ACCMODE: u64 = 3;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_DIRECTORY: u64 = 0o200_000;
const O_CLOEXEC: u64 = 0o2_000_000;
const O_PATH: u64 = 0o10_000_000;
/// Of `O_TMPFILE`, which has no name.
const O_TMPFILE: u64 = 0o20_000_000;
/// Bytes of a name that are copied at a time.
const PIECE_BYTES: usize = 256;
const PAGE_BYTES: u64 = 4096;
const EINTR: i64 = -4;
/// Bytes of one name in a directory.
const NAME_MAX: usize = 255;

/// A name of the application's, as it was passed.
#[derive(Clone, Copy)]
struct Name {
    dir: u64,
    at: u64,
}

/// Records the names of a call that is about to be made.
#[inline]
pub(crate) fn note(table: &Changes, nr: i64, args: &[u64; 6], rsp: u64) {
    let [first, second, third, fourth, ..] = *args;
    let here = |at| Name { dir: AT_FDCWD, at };
    match nr {
        sysno::open => opened(table, here(first), second),
        sysno::openat => opened(table, Name { dir: first, at: second }, third),
        sysno::openat2 => {
            if let Ok(flags) = user::read::<u64>(third, rsp) {
                opened(table, Name { dir: first, at: second }, flags);
            }
        }
        sysno::creat | sysno::truncate | sysno::mknod => drop(name(table, here(first), kind::NAME)),
        sysno::mknodat => drop(name(table, Name { dir: first, at: second }, kind::NAME)),
        sysno::symlink => drop(name(table, here(second), kind::NAME)),
        sysno::symlinkat => drop(name(table, Name { dir: second, at: third }, kind::NAME)),
        sysno::link => drop(name(table, here(second), kind::PUT)),
        sysno::linkat => drop(name(table, Name { dir: third, at: fourth }, kind::PUT)),
        sysno::mkdir => drop(name(table, here(first), kind::MADE)),
        sysno::mkdirat => drop(name(table, Name { dir: first, at: second }, kind::MADE)),
        nr if is_move(nr) => drop(moves(table, nr, args)),
        _ => {}
    }
}

/// Is it a call by which names get another meaning? It is recorded by [`on_move`].
pub(crate) fn is_move(nr: i64) -> bool {
    matches!(nr, sysno::rename | sysno::renameat | sysno::renameat2)
}

/// Makes a call that moves a directory, where parks are put off, and records whether it has moved: names are followed by that. Others
/// are recorded, and made in their place.
pub(crate) fn on_move(table: &Changes, nr: i64, args: &[u64; 6]) -> Option<i64> {
    let hash = moves(table, nr, args)?;
    // SAFETY: the application's call with its own arguments.
    let ret = unsafe { raw::call(nr, *args) };
    if ret == EINTR {
        return None;
    }
    names::settle(&table.names, hash, if ret == 0 { MADE } else { FAILED });
    Some(ret)
}

#[inline]
fn opened(table: &Changes, of: Name, flags: u64) {
    let writes = flags & (O_ACCMODE | O_CREAT | O_TRUNC) != 0;
    if writes && flags & (O_PATH | O_TMPFILE) == 0 {
        let _ = name(table, of, kind::NAME);
    }
}

/// Records a move that is about to be made; the hash of its entry, if names are to be followed by it.
#[cold]
fn moves(table: &Changes, nr: i64, args: &[u64; 6]) -> Option<u64> {
    let [first, second, third, fourth, flags, _] = *args;
    let (from, to) = match nr {
        sysno::rename => (Name { dir: AT_FDCWD, at: first }, Name { dir: AT_FDCWD, at: second }),
        _ => (Name { dir: first, at: second }, Name { dir: third, at: fourth }),
    };
    let exchange = nr == sysno::renameat2 && flags & RENAME_EXCHANGE != 0;
    if !exchange && !is_directory(from) {
        // Whatever it was called before, it is looked at where it is now.
        let _ = name(table, to, kind::PUT);
        return None;
    }
    let sort = if exchange { kind::PUT } else { kind::NAME };
    let (Some(from), Some(to)) = (placed(table, from, sort), placed(table, to, sort)) else { return None };
    let sort = if exchange { kind::EXCHANGED } else { kind::MOVED };
    let hash = mix(mix(mix(start(table), sort.into()), from), to);
    if let Place::Room(room) = names::place(&table.names, hash, 16) {
        // SAFETY: room for 16 bytes, aligned.
        unsafe { room.bytes().cast::<[u64; 2]>().write([from, to]) };
        room.enter(sort, 16, ABOUT);
    }
    // From now on names mean something else.
    table.names.moves.fetch_add(1, Ordering::AcqRel);
    Some(hash)
}

/// Records a name by the place of its directory as it is now: when the agent looks, a link may have taken the place of a directory on
/// the way there, and names are followed by what they were.
#[inline(never)]
fn placed(table: &Changes, of: Name, kind: u32) -> Option<u64> {
    let mut path = [0u8; NAME_BYTES_MAX + 1];
    let (mut piece, mut len) = ([0; PIECE_BYTES], 0);
    while len < NAME_BYTES_MAX {
        let (bytes, is_end) = next(of.at.wrapping_add(len as u64), &mut piece)?;
        let bytes = bytes.min(NAME_BYTES_MAX - len);
        path[len..len + bytes].copy_from_slice(&piece[..bytes]);
        len += bytes;
        if is_end {
            break;
        }
    }
    // Slashes at its end say that it is a directory.
    let end = path[..len].iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let Some(slash) = path[..end].iter().rposition(|byte| *byte == b'/') else {
        return name(table, of, kind);
    };
    let own = slash + 1;
    let mut base = [0; NAME_MAX + 1];
    let own = path[own..end].iter().zip(&mut base[..NAME_MAX]).map(|(byte, to)| *to = *byte).count();
    path[slash + 1] = 0;
    // SAFETY: a path on our stack.
    let dir = unsafe { sys!(sysno::openat, of.dir, path.as_ptr(), O_PATH | O_DIRECTORY | O_CLOEXEC) };
    // No descriptor to spare, or the call will fail as well.
    let Ok(dir) = u64::try_from(dir) else { return name(table, of, kind) };
    let own = (own == end - slash - 1).then(|| name(table, Name { dir, at: base.as_ptr() as u64 }, kind));
    named::close(dir);
    own.flatten()
}

fn is_directory(of: Name) -> bool {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`; the kernel checks the name.
    let failed = unsafe { sys!(sysno::newfstatat, of.dir, of.at, stat.as_mut_ptr(), AT_SYMLINK_NOFOLLOW) };
    failed >= 0 && stat[3] as u32 & S_IFMT == S_IFDIR
}

/// What hashes begin with.
fn start(table: &Changes) -> u64 {
    mix(HASH_START, table.names.moves.load(Ordering::Acquire).into())
}

/// Records a name; its hash. None: it is none, the call will say why; or there is no room.
fn name(table: &Changes, of: Name, kind: u32) -> Option<u64> {
    let mut piece = [0u8; PIECE_BYTES];
    let (mut hash, mut len, mut first) = (mix(start(table), kind.into()), 0, 0);
    loop {
        let (bytes, is_end) = next(of.at.wrapping_add(len as u64), &mut piece)?;
        if len == 0 {
            first = piece[0];
        }
        hash = hashed(hash, &piece[..bytes]);
        len += bytes;
        if is_end {
            break;
        }
        if len >= NAME_BYTES_MAX {
            return None;
        }
    }
    let dir = match first {
        // The kernel refuses it.
        0 => return None,
        b'/' => 0,
        _ => directory_of(table, of.dir)?,
    };
    hash = mix(hash, dir);
    let Place::Room(room) = names::place(&table.names, hash, len) else { return Some(hash) };
    let mut done = 0;
    while done < len {
        let (bytes, _) = next(of.at.wrapping_add(done as u64), &mut piece)?;
        let bytes = bytes.min(len - done);
        if bytes == 0 {
            // Somebody changes it meanwhile; what the kernel will find nobody knows.
            break;
        }
        // SAFETY: room for `len` bytes.
        unsafe { core::ptr::copy_nonoverlapping(piece.as_ptr(), room.bytes().add(done), bytes) };
        done += bytes;
    }
    room.enter(kind, done, dir);
    Some(hash)
}

fn hashed(hash: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(hash, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash, u64::from_le_bytes(word))
    })
}

/// The next bytes of a name, up to its end or as many as there is room for; is it the end? None: a bad pointer.
fn next(at: u64, piece: &mut [u8; PIECE_BYTES]) -> Option<(usize, bool)> {
    // The next page may not be there.
    let room = (PAGE_BYTES - at % PAGE_BYTES).min(PIECE_BYTES as u64) as usize;
    if !is_readable(at) {
        return None;
    }
    for (len, byte) in piece[..room].iter_mut().enumerate() {
        // SAFETY: on a page that can be read; others may write there meanwhile.
        *byte = unsafe { (at as *const u8).add(len).read_volatile() };
        if *byte == 0 {
            return Some((len, true));
        }
    }
    Some((room, false))
}

/// Can the page of `at` be read? A bad pointer must not end the application; the kernel looks at a word there, and at nothing else, in a
/// fifth of the time that copying from the process takes.
fn is_readable(at: u64) -> bool {
    const FUTEX_WAIT_PRIVATE: u64 = 128;
    const EFAULT: i64 = -14;
    let (word, moment) = (at & !3, [0u64; 2]);
    // SAFETY: the kernel checks the address; a wait, if the word is the number, ends at once.
    let ret = unsafe { sys!(sysno::futex, word, FUTEX_WAIT_PRIVATE, 0x686f_6c6f_u64, moment.as_ptr()) };
    ret != EFAULT
}

/// Number of an open directory, or of the working directory, whose path is recorded.
fn directory_of(table: &Changes, dir: u64) -> Option<u64> {
    let mut stat = [0u64; 18];
    let empty = 0u8;
    // SAFETY: an empty name, and a buffer of the size of `struct stat`.
    let failed = unsafe { sys!(sysno::newfstatat, dir, &raw const empty, stat.as_mut_ptr(), AT_EMPTY_PATH) };
    if failed < 0 {
        return None;
    }
    let number = directory(stat[0], stat[1], table.names.moves.load(Ordering::Acquire));
    let Place::Room(room) = names::place(&table.names, number, NAME_BYTES_MAX) else { return Some(number) };
    let link = link_of(dir);
    let room_for = NAME_BYTES_MAX as u64;
    // SAFETY: a path of ours; room for as many bytes.
    let len = unsafe { sys!(sysno::readlink, link.as_ptr(), room.bytes(), room_for) };
    // Without a path its names are lost.
    room.enter(kind::DIRECTORY, usize::try_from(len).unwrap_or(0), 0);
    Some(number)
}

fn link_of(dir: u64) -> [u8; 40] {
    const CWD: &[u8] = b"/proc/thread-self/cwd\0";
    if dir as u32 != AT_FDCWD as u32 {
        return named::link_of(dir);
    }
    let mut path = [0; 40];
    path[..CWD.len()].copy_from_slice(CWD);
    path
}
