//! `mremap` of a range that is several zones although nothing but their age tells them apart.

use super::{MOVES_FIRST, PAGE};
use holo_abi::sysno;
use holo_sys::raw;
use holo_sys::sys;

const ENOMEM: i64 = -12;
const MAYMOVE: u64 = 1;
const FIXED: u64 = 2;
const DONTUNMAP: u64 = 4;
const PROCMAP_QUERY: u64 = 0xc068_6611;
const SHARED: u64 = 8;
const O_CLOEXEC: u64 = 0o2_000_000;
/// `MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE`.
const ROOM: u64 = 0x4022;

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    name_size: u32,
    build_id_size: u32,
    name_at: u64,
    build_id_at: u64,
}

const _: () = assert!(size_of::<Query>() == 104);

/// The process's zones; closed when dropped.
struct Zones(i64);

impl Zones {
    fn open() -> Option<Self> {
        // Not by the process, of which the first thread may have ended.
        // SAFETY: a constant path.
        let fd = unsafe { sys!(sysno::open, c"/proc/thread-self/maps".as_ptr(), O_CLOEXEC) };
        (fd >= 0).then_some(Self(fd))
    }

    /// The zone at an address: its end, and its protection if it is private memory without a file.
    fn at(&self, address: u64) -> Option<(u64, u64)> {
        let mut query = Query { size: size_of::<Query>() as u64, address, ..Query::default() };
        // SAFETY: a complete query, which outlives the call.
        let ret = unsafe { sys!(sysno::ioctl, self.0, PROCMAP_QUERY, &raw mut query) };
        (ret >= 0 && query.inode == 0 && query.vma_flags & SHARED == 0)
            .then_some((query.end, query.vma_flags))
    }
}

impl Drop for Zones {
    fn drop(&mut self) {
        // SAFETY: opened by us.
        unsafe { sys!(sysno::close, self.0) };
    }
}

fn whole(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE)
}

/// A range of one kind of memory.
struct Alike {
    zones: Zones,
    start: u64,
    end: u64,
    /// Where its last zone begins, or the range within it.
    last: u64,
}

impl Alike {
    /// None: the range has holes, is of several kinds, of files, or one zone.
    fn of(start: u64, end: u64) -> Option<Self> {
        let zones = Zones::open()?;
        let (mut at, mut last, mut kind) = (start, start, None);
        while at < end {
            let (next, flags) = zones.at(at)?;
            if kind.is_some_and(|kind| kind != flags) || next <= at {
                return None;
            }
            kind = Some(flags);
            last = at;
            at = next;
        }
        (last != start).then_some(Self { zones, start, end, last })
    }

    /// Moves all to `to`; the last zone becomes longer by `more`.
    fn move_to(&self, to: u64, more: u64, flags: u64) -> Result<(), i64> {
        let mut at = self.start;
        while at < self.end {
            let next = self.zones.at(at).map_or(self.end, |(end, _)| end.min(self.end));
            let bytes = next - at;
            let longer = if next == self.end { bytes + more } else { bytes };
            // SAFETY: the application asked for this range to be moved there.
            let ret = unsafe { sys!(sysno::mremap, at, bytes, longer, flags, to + (at - self.start)) };
            if ret < 0 {
                self.move_back(to, at);
                return Err(ret);
            }
            at = next;
        }
        Ok(())
    }

    /// What was moved before `until` goes back.
    fn move_back(&self, to: u64, until: u64) {
        let mut at = to;
        let end = to + (until - self.start);
        while at < end {
            let next = self.zones.at(at).map_or(end, |(zone_end, _)| zone_end.min(end));
            // SAFETY: moved from there by us.
            unsafe { sys!(sysno::mremap, at, next - at, next - at, MAYMOVE | FIXED, self.start + (at - to)) };
            at = next;
        }
    }
}

/// The call's result; none: it is not for us, and fails as it did.
pub(super) fn mremap(args: [u64; 6]) -> Option<i64> {
    let [start, old, new, flags, to, _] = args;
    let (old, new) = (whole(old)?, whole(new)?);
    let kept = old.min(new);
    let more = new - kept;
    let alike = Alike::of(start, start.checked_add(kept)?)?;
    if flags & MOVES_FIRST == 0 {
        let last = alike.end - alike.last;
        // SAFETY: as the application asked: what it has may become longer where it is.
        let ret = unsafe { sys!(sysno::mremap, alike.last, last, last + more, 0) };
        if ret >= 0 {
            return Some(start.cast_signed());
        }
        if flags & MAYMOVE == 0 {
            return Some(ret);
        }
    }
    if old > new {
        // SAFETY: the application gives this part up.
        unsafe { sys!(sysno::munmap, start + new, old - new) };
    }
    let to = if flags & FIXED == 0 {
        // SAFETY: a new mapping.
        let ret = unsafe { raw::call(sysno::mmap, [0, new, 0, ROOM, u64::MAX, 0]) };
        if ret < 0 {
            return Some(ENOMEM);
        }
        ret.cast_unsigned()
    } else {
        to
    };
    match alike.move_to(to, more, MAYMOVE | FIXED | flags & DONTUNMAP) {
        Ok(()) => Some(to.cast_signed()),
        Err(cause) => {
            if flags & FIXED == 0 {
                // SAFETY: the room that we made.
                unsafe { sys!(sysno::munmap, to, new) };
            }
            Some(cause)
        }
    }
}
