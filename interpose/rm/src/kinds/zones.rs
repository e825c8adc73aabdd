//! Memory zones as `/proc/<pid>/maps` shows them.

use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// A page.
pub const PAGE: u64 = 4096;

/// What a zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZoneKind {
    /// Private memory without a file.
    Anonymous,
    /// The main thread's stack: grows downwards.
    Stack,
    /// Private map of a file: its own pages are those that were written.
    FilePrivate,
    /// Shared map of a file that has a name.
    FileShared,
    /// Shared memory without a name: anonymous, memfd, deleted.
    SharedObject,
    /// System V shared memory.
    SysV,
    /// The kernel's code.
    Vdso,
    /// The kernel's data (any of its parts).
    Vvar,
    /// Fixed for all processes.
    Vsyscall,
}

/// A line of `maps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC`.
    pub prot: u8,
    /// What it is.
    pub kind: ZoneKind,
    /// Offset in the file.
    pub offset: u64,
    /// Device of the file, as `makedev`.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Path as shown, without ` (deleted)`.
    #[serde(with = "holo_image::wire::bytes")]
    pub path: Vec<u8>,
    /// The file has no name any more.
    pub deleted: bool,
    /// `VmFlags` that were asked for with `madvise` or `mlock`; two letters each.
    pub flags: Vec<[u8; 2]>,
}

impl Zone {
    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Is its content of this process alone?
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self.kind, ZoneKind::Anonymous | ZoneKind::Stack | ZoneKind::FilePrivate)
    }

    /// Does the kernel provide it?
    #[must_use]
    pub fn is_kernels(&self) -> bool {
        matches!(self.kind, ZoneKind::Vdso | ZoneKind::Vvar | ZoneKind::Vsyscall)
    }
}

/// Whether the kernel answers `PROCMAP_QUERY` (Linux 6.11), which libholo needs for an `mremap` of several zones.
#[must_use]
pub fn zones_can_be_asked_for() -> bool {
    const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
    const OR_NEXT: u64 = 1 << 4;
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(known) = ANSWER.get() {
        return *known;
    }
    let Ok(maps) = std::fs::File::open("/proc/self/maps") else { return false };
    // `struct procmap_query`: size, flags, address, and room for the answer.
    let mut words = [0u64; 13];
    (words[0], words[1]) = (size_of_val(&words) as u64, OR_NEXT);
    // SAFETY: a complete query, which outlives the call.
    let answered = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&maps), PROCMAP_QUERY, words.as_mut_ptr()) >= 0
    };
    *ANSWER.get_or_init(|| answered)
}

/// Parses `maps`.
///
/// # Errors
/// The line that makes no sense.
pub fn parse(maps: &[u8]) -> Result<Vec<Zone>, String> {
    parse_lines(maps, |_| true)
}

/// [`parse`] for shared zones alone.
///
/// # Errors
/// As [`parse`], for their lines.
pub fn parse_shared(maps: &[u8]) -> Result<Vec<Zone>, String> {
    // `start-end rwxs`
    let is_shared = |line: &[u8]| {
        let space = line.iter().position(|byte| *byte == b' ');
        space.is_none_or(|at| line.get(at + 4).is_none_or(|shared| *shared == b's'))
    };
    parse_lines(maps, is_shared)
}

fn parse_lines(maps: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Zone>, String> {
    maps.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && wanted(line))
        .map(|line| parse_line(line).ok_or_else(|| format!("maps: `{}`", String::from_utf8_lossy(line))))
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Zone> {
    let mut rest = line;
    let mut field = || {
        let at = rest.iter().position(|byte| *byte != b' ')?;
        rest = &rest[at..];
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        rest = tail;
        std::str::from_utf8(word).ok()
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let perms = field()?.as_bytes();
    let offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let device = libc::makedev(hex(major)? as u32, hex(minor)? as u32);
    let inode = field()?.parse().ok()?;
    let skip = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
    let (path, deleted) = match rest[skip..].strip_suffix(b" (deleted)") {
        Some(stem) => (unescape(stem), true),
        None => (unescape(&rest[skip..]), false),
    };
    if perms.len() < 4 {
        return None;
    }
    let bit = |at: usize, letter: u8, value: u8| if perms[at] == letter { value } else { 0 };
    let shared = perms[3] == b's';
    let kind = match path.as_slice() {
        b"[vdso]" => ZoneKind::Vdso,
        b"[vsyscall]" => ZoneKind::Vsyscall,
        b"[stack]" => ZoneKind::Stack,
        name if name.starts_with(b"[vvar") => ZoneKind::Vvar,
        name if name.starts_with(b"/SYSV") && deleted => ZoneKind::SysV,
        _ if shared && (deleted || inode == 0) => ZoneKind::SharedObject,
        _ if shared => ZoneKind::FileShared,
        _ if inode != 0 => ZoneKind::FilePrivate,
        _ => ZoneKind::Anonymous,
    };
    Some(Zone {
        start: hex(start)?,
        end: hex(end)?,
        prot: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
        kind,
        offset,
        device,
        inode,
        path,
        deleted,
        flags: Vec::new(),
    })
}

/// The kernel writes a newline in a path as `\012`.
fn unescape(path: &[u8]) -> Vec<u8> {
    // Nearly all of them.
    if !path.contains(&b'\\') {
        return path.to_vec();
    }
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if rest.starts_with(b"\\012") {
            out.push(b'\n');
            rest = &rest[4..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Adds the `VmFlags` of `smaps` that a restore must ask for again to rising zones; returns the places of those that are not there any more.
///
/// A process that runs on may have changed its zones since they were read: one that grew is the one that contains it, of one that was
/// cut the lowest part counts.
pub fn add_flags(zones: &mut [&mut Zone], smaps: &[u8]) -> Vec<usize> {
    // grows down, huge page advice, no huge pages, locked, wipe and no copy on fork, not in core dumps, mergeable, read in order, read
    // at random, sealed, not counted as memory that is promised
    const KEPT: [&[u8; 2]; 12] =
        [b"gd", b"hg", b"nh", b"lo", b"wf", b"dc", b"dd", b"mg", b"sr", b"rr", b"sl", b"nr"];
    let (mut start, mut end) = (0, 0);
    let mut found = vec![false; zones.len()];
    for line in smaps.split(|byte| *byte == b'\n') {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let within = zones.partition_point(|zone| zone.end <= start)
                ..zones.partition_point(|zone| zone.start < end);
            for index in within {
                if std::mem::replace(&mut found[index], true) {
                    continue;
                }
                zones[index].flags = flags
                    .split(|byte| *byte == b' ')
                    .filter_map(|flag| flag.try_into().ok())
                    .filter(|flag| KEPT.contains(&flag))
                    .collect();
            }
        } else if line.first().is_some_and(u8::is_ascii_hexdigit)
            && let Some(place) = line.split(|byte| *byte == b' ').next()
            && let Ok(text) = std::str::from_utf8(place)
            && let Some((from, to)) = text.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            (start, end) = (from, to);
        }
    }
    (0..zones.len()).filter(|index| !found[*index]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_of_each_kind() {
        let maps = b"55d0-55d1 r-xp 00001000 fe:01 123    /usr/bin/a b\\012c\n\
            7f00-7f02 rw-p 00000000 00:00 0 \n\
            7f10-7f12 rw-s 00000000 00:01 77         /memfd:x (deleted)\n\
            7f20-7f22 rw-s 00001000 00:15 78         /dev/shm/y\n\
            7ffd-7ffe rw-p 00000000 00:00 0          [stack]\n\
            7fff-8000 r-xp 00000000 00:00 0          [vdso]\n";
        let zones = parse(maps).unwrap();
        let kinds: Vec<_> = zones.iter().map(|zone| zone.kind).collect();
        assert_eq!(
            kinds,
            [
                ZoneKind::FilePrivate,
                ZoneKind::Anonymous,
                ZoneKind::SharedObject,
                ZoneKind::FileShared,
                ZoneKind::Stack,
                ZoneKind::Vdso
            ]
        );
        assert_eq!(zones[0].path, b"/usr/bin/a b\nc");
        assert_eq!((zones[0].prot, zones[0].offset, zones[0].inode), (5, 0x1000, 123));
        assert_eq!(zones[0].device, libc::makedev(0xfe, 1));
        assert!(zones[2].deleted);
        assert_eq!(parse_shared(maps).unwrap(), zones[2..4]);
        assert!(parse(b"nonsense\n").is_err());
    }

    #[test]
    fn flags_reach_their_zone() {
        let mut zones =
            parse(b"1000-2000 rw-p 00000000 00:00 0 \n3000-4000 rw-p 00000000 00:00 0 \n").unwrap();
        add_flags(
            &mut zones.iter_mut().collect::<Vec<_>>(),
            b"1000-2000 rw-p 0 00:00 0\nVmFlags: rd wr mr\n3000-4000 rw-p\nVmFlags: rd hg dc \n",
        );
        assert!(zones[0].flags.is_empty());
        assert_eq!(zones[1].flags, [*b"hg", *b"dc"]);
    }

    #[test]
    fn flags_reach_a_zone_that_changed_since() {
        let maps = b"3000-4000 rw-p 00000000 00:00 0 \n5000-7000 rw-p 00000000 00:00 0 \n\
            8000-9000 rw-p 00000000 00:00 0 \na000-b000 rw-p 00000000 00:00 0 \n";
        let mut zones = parse(maps).unwrap();
        // The first grew down, the second was cut, the third is gone, the fourth is one with another by now.
        let gone = add_flags(
            &mut zones.iter_mut().collect::<Vec<_>>(),
            b"1000-4000 rw-p\nVmFlags: gd\n5000-5800 rw-p\nVmFlags: lo\n6000-7000 rw-p\nVmFlags: hg\n\
                9000-c000 rw-p\nVmFlags: dc\n",
        );
        let flags: Vec<_> = zones.iter().map(|zone| zone.flags.as_slice()).collect();
        assert_eq!(flags, [&[*b"gd"][..], &[*b"lo"], &[], &[*b"dc"]]);
        assert_eq!(gone, [2]);
    }
}
