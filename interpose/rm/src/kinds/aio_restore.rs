//! Contexts of asynchronous I/O in a clone.
//!
//! The kernel keeps its own count of where it writes in a ring, and of how much was not read. Both come to be what they were as
//! they did then: by requests, of which each is done at once and does nothing. The ring is moved to its address, which the
//! kernel notices, and gets its events.

use super::aio::{EVENT_BYTES, HEADER_BYTES, Ring, section};
use super::zones::PAGE;
use crate::manager::{Context, RmError, RmResult, SwitchCx};
use crate::remote::call;
use holo_abi::sysno;
use std::fs;
use std::io;

const EVENTS_A_PAGE: u64 = PAGE / EVENT_BYTES;
/// The kernel makes room for twice what is asked for, and two more.
const SPARE: u64 = 2;
/// It makes room for at least this many for each processor that there may ever be.
const PROCESSOR_MIN: u64 = 4;
const MAP_PRIVATE_ANONYMOUS: u64 = 0x22;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE_FIXED: u64 = 3;
const NOWHERE: u64 = u64::MAX;
const IOCB_CMD_PREAD: u64 = 0;
/// Requests of one call.
const LIST: usize = 1024;
const LIST_AT: usize = 64;
const ID_AT: usize = 16 << 10;
const MASK_AT: usize = 20 << 10;
const MASK_BYTES: usize = 4096;
/// Words of a ring's head.
const NR_WORD: u64 = 4;
const HEAD_WORD: u64 = 8;

/// The least `nr_events` with which `io_setup` makes a ring of as many pages.
fn asked(ring: &Ring) -> u64 {
    let pages = ring.bytes() / PAGE;
    // Those of the last page but one do not suffice for the head of the ring and twice as many events.
    (((pages - 1) * EVENTS_A_PAGE).saturating_sub(1 + SPARE) / 2 + 1).max(1)
}

/// Events for which there is room in a ring that is made with `asked` where there may be so many processors.
fn room(asked: u64, processors: u64) -> u64 {
    let events = asked.max(processors * PROCESSOR_MIN) * 2 + SPARE;
    (HEADER_BYTES + events * EVENT_BYTES).div_ceil(PAGE) * EVENTS_A_PAGE - 1
}

/// Processors that there may ever be, of a list as `0-3,8`.
fn processors(list: &str) -> Option<u64> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse::<u64>().ok()?.checked_add(1)
}

/// Whether such a ring can be made on this node.
pub(super) fn check(ring: &Ring) -> RmResult<()> {
    let path = "/sys/devices/system/cpu/possible";
    let list = fs::read_to_string(path).on("reading", path)?;
    let processors = processors(&list).unwrap_or(1);
    if room(asked(ring), processors) == u64::from(ring.nr) {
        return Ok(());
    }
    Err(RmError::Unsupported(format!(
        "this node may have {processors} processors: its kernel makes no ring of asynchronous I/O of {} events; restore on a node \
         with fewer",
        ring.nr
    )))
}

/// A ring that is being made, at its place.
struct Making<'a, 'b> {
    cx: &'a SwitchCx<'b>,
    ring: &'a Ring,
}

/// Makes the contexts of a process. Its memory is there.
pub(crate) fn make(cx: &SwitchCx) -> RmResult<()> {
    let state = section(cx)?;
    let page = &cx.remote.page;
    // SAFETY: a plain word that the process has not read yet.
    unsafe { (*page.header()).aio_at = state.table_at };
    if state.rings.is_empty() {
        return Ok(());
    }
    // No ring may be made where another one belongs.
    let how = MAP_PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE;
    let mut calls: Vec<_> = state
        .rings
        .iter()
        .map(|ring| call(sysno::mmap, &[ring.at, ring.bytes(), 0, how, NOWHERE, 0]))
        .collect();
    cx.remote.run_all(&mut calls).on("making room for", "asynchronous I/O")?;
    // Of what the kernel sets aside for another processor nothing can be had.
    let mask_at = page.scratch_address(MASK_AT);
    let size = MASK_BYTES as u64;
    let bytes = cx.remote.call(sysno::sched_getaffinity, &[0, size, mask_at]);
    let bytes = bytes.on("asking for", "processors")?;
    let all = page.take(MASK_AT, bytes as usize);
    let mut one = vec![0u8; all.len()];
    if let Some(first) = all.iter().position(|byte| *byte != 0) {
        one[first] = 1 << all[first].trailing_zeros();
        page.put(MASK_AT, &one);
        cx.remote.call(sysno::sched_setaffinity, &[0, bytes, mask_at]).on("choosing", "a processor")?;
    }
    let done = state.rings.iter().try_for_each(|ring| Making { cx, ring }.all());
    page.put(MASK_AT, &all);
    cx.remote.call(sysno::sched_setaffinity, &[0, bytes, mask_at]).on("choosing", "processors")?;
    done
}

impl Making<'_, '_> {
    fn what(&self) -> String {
        format!("the context of asynchronous I/O at {:#x}", self.ring.at)
    }

    fn all(&self) -> RmResult<()> {
        let (remote, ring) = (self.cx.remote, self.ring);
        let page = &remote.page;
        let id_at = page.put(ID_AT, &[0; 8]);
        match remote.call(sysno::io_setup, &[asked(ring), id_at]) {
            Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) => {
                let what = format!("{}: raise fs.aio-max-nr on this node", self.what());
                return Err(RmError::Unsupported(what));
            }
            done => done.on("making", self.what())?,
        };
        let at = page.take(ID_AT, 8).try_into().map_or(0, u64::from_le_bytes);
        let moved = [at, ring.bytes(), ring.bytes(), MREMAP_MAYMOVE_FIXED, ring.at];
        if self.word(at + NR_WORD)? != ring.nr {
            return Err(RmError::Unsupported(format!("{} has another length on this node", self.what())));
        }
        remote.call(sysno::mremap, &moved).on("moving", self.what())?;
        self.list();
        self.advance()?;
        self.fill()
    }

    fn word(&self, at: u64) -> RmResult<u32> {
        let mut word = [0; 4];
        self.cx.remote.read(at, &mut word).on("reading", self.what())?;
        Ok(u32::from_le_bytes(word))
    }

    fn set_head(&self, head: u32) -> RmResult<()> {
        self.cx.remote.write(self.ring.at + HEAD_WORD, &head.to_le_bytes()).on("writing", self.what())
    }

    /// A list of many times the same request: to read nothing, from a socket that is there.
    fn list(&self) {
        let page = &self.cx.remote.page;
        let fd = u64::from(self.cx.channel_fd.cast_unsigned());
        let request = [0, 0, IOCB_CMD_PREAD | fd << 32, page.scratch_address(0), 0, 0, 0, 0];
        let at = page.put(0, &request.map(u64::to_le_bytes).concat());
        page.put(LIST_AT, &[at; LIST].map(u64::to_le_bytes).concat());
    }

    /// Makes requests; how many were taken.
    fn submit(&self, count: u32) -> io::Result<u32> {
        let list_at = self.cx.remote.page.scratch_address(LIST_AT);
        let args = [self.ring.at, u64::from(count).min(LIST as u64), list_at];
        self.cx.remote.call(sysno::io_submit, &args).map(|taken| taken as u32)
    }

    /// Brings the kernel's count to where it was, and what it takes for unread.
    fn advance(&self) -> RmResult<()> {
        let mut tail = 0;
        while tail < self.ring.head {
            tail += self.submit(self.ring.head - tail).on("advancing", self.what())?;
            self.set_head(tail)?;
        }
        let mut left = self.ring.unread();
        let mut passed = false;
        while left > 0 {
            match self.submit(left) {
                Ok(taken) => left -= taken.min(left),
                // The last few may not be had, with more processors than there were: nor will others be.
                Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) && !passed => {
                    self.set_head((self.ring.head + left) % self.ring.nr)?;
                    passed = true;
                }
                Err(cause) => return Err(cause).on("advancing", self.what()),
            }
        }
        self.set_head(self.ring.head)
    }

    fn fill(&self) -> RmResult<()> {
        let ring = self.ring;
        let tail = self.word(ring.at + HEAD_WORD + 4)?;
        if tail != ring.tail {
            let what = format!("{} is at {tail} instead of {}", self.what(), ring.tail);
            return Err(RmError::Unsupported(what));
        }
        let to_end = ((u64::from(ring.nr - ring.head) * EVENT_BYTES) as usize).min(ring.events.0.len());
        let (first, rest) = ring.events.0.split_at(to_end);
        for (from, bytes) in [(ring.head, first), (0, rest)] {
            if !bytes.is_empty() {
                let at = ring.at + HEADER_BYTES + u64::from(from) * EVENT_BYTES;
                self.cx.remote.write(at, bytes).on("writing", self.what())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::kernel::Bytes;
    use super::*;

    // Goal: a ring of the same length is made whatever length it has. Method: what Linux 6.18 makes of every number.
    #[test]
    fn rings_of_the_same_length() {
        for events in 1..3000 {
            let nr = room(events, 2) as u32;
            let ring = Ring { at: 0x1000, nr, head: 0, tail: 0, events: Bytes::default() };
            assert!(asked(&ring) <= events.max(8));
            assert_eq!(room(asked(&ring), 2), u64::from(nr), "{events}");
            assert_eq!(room(asked(&ring), 1), u64::from(nr), "{events}");
        }
        assert_eq!((room(4, 2), room(128, 2), room(62, 2), room(63, 2)), (127, 383, 127, 255));
    }

    #[test]
    fn possible_processors() {
        assert_eq!(processors("0-1\n"), Some(2));
        assert_eq!(processors("0\n"), Some(1));
        assert_eq!(processors("0-3,8-11\n"), Some(12));
        assert_eq!(processors("\n"), None);
    }
}
