//! Pages are stored while the application runs, so that its stop has to copy only what it stores to after that.
//!
//! ```text
//! running: protect what was written                                       |
//! pause:   all threads park for a moment                                  | again while that gets less
//! running: read what was protected, store it, keep the names              |
//! stop:    what is still protected has the content of its name, see `Increment::take`; all else is read
//! ```
//!
//! The pause is for calls that the kernel makes with pages which it has pinned (`O_DIRECT`): it writes them whether they are protected or
//! not. One that began before is over when its thread has parked; one that begins later shows in the stop. Processes with
//! asynchronous requests (`io_setup`) are left out.
//!
//! Nothing is believed that the stop does not confirm: a page is taken by its name only if the tracker says that it is there, in a zone
//! that was watched all the time, and not written since it was looked at. It was protected before it was read. What was looked at is read
//! again in later epochs until one is sealed ([`Increment::owed`]).

use crate::kinds::increment::{Increment, Runs, parts, places};
use crate::kinds::memory_read::chunks;
use crate::kinds::pagemap::Pagemap;
use crate::kinds::payoff::{Payoff, Seen};
use crate::kinds::zones::{PAGE, Zone, ZoneKind};
use crate::manager::{DumpCx, RmResult};
use crate::remote::Remote;
use crate::track::ranges::{self, Range};
use holo_image::{EpochWriter, Figures};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Looks before a stop.
const ROUNDS_MAX: usize = 4;
/// Epochs in a row that failed, after which nothing is stored until one is sealed: what was stored stays until then.
const FAILURES_MAX: u32 = 3;
/// Read at once.
const READ_BYTES: u64 = 256 * PAGE;
/// Bytes after which they are synced.
const SYNC_BYTES: u64 = 64 << 20;

/// What was stored.
pub(crate) struct Ahead {
    names: Runs,
    /// Pages since the last seal, and what it cost.
    stored: u64,
    cost: Figures,
    payoff: Payoff,
    /// To be stored.
    wanted: Vec<Range>,
    /// Looks since the last stop, and pages that the last of them found.
    rounds: usize,
    last_round: u64,
    /// Epochs that failed since the last seal.
    failures: u32,
    /// Bytes of pages: taken by name in the last stop, and stored for nothing.
    figures: Vec<(&'static str, u64)>,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            names: Runs::new(),
            stored: 0,
            cost: Figures::default(),
            payoff: Payoff::by_environment(),
            wanted: Vec::new(),
            rounds: 0,
            last_round: u64::MAX,
            failures: 0,
            figures: Vec::new(),
        }
    }
}

impl Ahead {
    /// Is a stop worth it in which all of so much memory begins to be watched?
    pub(crate) fn is_worth_a_mark(&self, bytes: u64) -> bool {
        self.payoff.is_worth_a_mark(bytes)
    }

    /// An epoch is sealed: what was stored is in it, or is gone.
    pub(crate) fn sealed(&mut self) {
        self.forget();
        self.failures = 0;
    }

    /// An epoch is not. What was stored is there for the next.
    pub(crate) fn aborted(&mut self) {
        self.begin();
        self.failures += 1;
    }

    /// The next look is the first before its stop.
    fn begin(&mut self) {
        (self.rounds, self.last_round) = (0, u64::MAX);
    }

    /// The store has not what was stored.
    pub(crate) fn forget(&mut self) {
        (self.names, self.stored, self.cost) = (Runs::new(), 0, Figures::default());
    }

    /// In the stop, or before it: these pages alone are as they were stored.
    fn keep(&mut self, same: &[Range]) {
        if !ranges::without(&self.places(), same).is_empty() {
            self.names = parts(&self.names, same);
        }
    }

    /// In the stop: what is taken by name, of the pages that are the `same` since they were looked at last; `written` are the others.
    pub(crate) fn cut(&mut self, same: &[Range], written: &[Range]) -> Vec<Range> {
        self.begin();
        self.keep(same);
        let kept = self.places();
        let clean = ranges::bytes(&kept) / PAGE;
        let again = self.stored.saturating_sub(clean);
        let changed = clean + ranges::bytes(written) / PAGE;
        let all = (ranges::bytes(same) + ranges::bytes(written)) / PAGE;
        self.payoff.saw(Seen { all, changed, stored: self.stored, again });
        let figures = [("memory.ahead", clean * PAGE), ("memory.again", again * PAGE)];
        self.figures = figures.into_iter().filter(|_| self.stored > 0).collect();
        self.stored = clean;
        kept
    }

    fn places(&self) -> Vec<Range> {
        places(&self.names)
    }

    /// Names of pages that were stored.
    pub(crate) fn kept(&self, keep: &[Range]) -> Runs {
        parts(&self.names, keep)
    }

    /// What storing ahead cost counts for the epoch that takes these pages by name.
    pub(crate) fn add_to(&mut self, kept: &Runs, figures: &mut Figures) {
        let cost = std::mem::take(&mut self.cost);
        figures.pages_put += kept.values().map(|keys| keys.len() as u64).sum::<u64>();
        figures.pages_zero += kept.values().flatten().filter(|key| key.is_zero()).count() as u64;
        figures.pages_new += cost.pages_new;
        figures.bytes_written += cost.bytes_written;
    }

    /// Bytes, by name, of the last stop.
    pub(crate) fn figures(&self) -> &[(&'static str, u64)] {
        &self.figures
    }

    /// Reads and stores pages of the running process; what cannot be read is left to the stop.
    fn store(&mut self, cx: &mut DumpCx, pages: &[Range]) -> RmResult<()> {
        let remote = cx.remote;
        let Some(writer) = cx.writer.as_mut() else { return Ok(()) };
        let Ok(memory) = File::open(remote.proc("mem")) else { return Ok(()) };
        writer.expect(ranges::bytes(pages));
        let before = writer.figures();
        let (mut buffer, mut unsynced) = (Vec::new(), 0);
        for chunk in chunks(pages) {
            if remote.ended() {
                break;
            }
            let read = read(&memory, &chunk, &mut buffer);
            let mut keys = writer.put_page_bytes(&buffer)?.into_iter();
            for (start, end) in read {
                let keys: Vec<_> = keys.by_ref().take(((end - start) / PAGE) as usize).collect();
                self.stored += keys.len() as u64;
                self.names.insert(start, keys);
            }
            unsynced += buffer.len() as u64;
            if unsynced >= SYNC_BYTES {
                unsynced = 0;
                EpochWriter::sync(writer)?;
            }
        }
        let after = writer.figures();
        self.cost.pages_new += after.pages_new - before.pages_new;
        self.cost.bytes_written += after.bytes_written - before.bytes_written;
        Ok(())
    }
}

/// Reads ranges of a running process, one behind the other; the parts that could be read, and no more, are in the buffer.
///
/// By way of its file, as a snapshot is read: nothing becomes the process's own that it shares with others.
fn read(memory: &File, ranges: &[Range], into: &mut Vec<u8>) -> Vec<Range> {
    let pieces = ranges.iter().flat_map(|&(start, end)| {
        (start..end).step_by(READ_BYTES as usize).map(move |at| (at, end.min(at + READ_BYTES)))
    });
    into.resize(ranges::bytes(ranges) as usize, 0);
    let mut filled = 0;
    let there = pieces.filter(|(start, end)| {
        let room = &mut into[filled..filled + (end - start) as usize];
        // It may be gone by now.
        let is_there = memory.read_exact_at(room, *start).is_ok();
        filled += if is_there { room.len() } else { 0 };
        is_there
    });
    let there = there.collect();
    into.truncate(filled);
    there
}

/// Private memory without a file that can be read.
fn open(zones: &[Zone]) -> Vec<Range> {
    let is_open =
        |zone: &&Zone| matches!(zone.kind, ZoneKind::Anonymous | ZoneKind::Stack) && zone.prot & 1 != 0;
    ranges::normal(zones.iter().filter(is_open).map(|zone| (zone.start, zone.end)).collect())
}

impl Increment {
    /// Is it worth looking at what was written? Else nothing of the process need be read before its stop.
    pub(crate) fn looks_ahead(&mut self, remote: &Remote) -> bool {
        self.ahead.wanted.clear();
        let may = self.ahead.rounds < ROUNDS_MAX && self.ahead.failures < FAILURES_MAX;
        may && self.ahead.payoff.is_worth() && self.watches(remote)
    }

    /// While the process runs: protects what was written since the last look. True: so many pages that they are to be stored, when no
    /// thread is any more in the call that it was in.
    pub(crate) fn watch_ahead(&mut self, remote: &Remote, zones: &[Zone]) -> bool {
        let Ok(pagemap) = Pagemap::open(remote.face) else { return false };
        let Some(written) = self.look_ahead(remote, zones) else { return false };
        let places = ranges::without(&self.ahead.places(), &written);
        self.ahead.keep(&places);
        // With what an epoch that was not sealed looked at.
        let open = open(zones);
        let looked_at = ranges::normal([places.as_slice(), &written].concat());
        let owed = ranges::without(&ranges::both(self.owed(), &open), &looked_at);
        let Ok(owed) = pagemap.there_running(&owed) else { return false };
        let pages = ranges::both(&ranges::normal([owed, written].concat()), &open);
        let count = ranges::bytes(&pages) / PAGE;
        let is_wanted = self.ahead.payoff.is_worth_a_round(count, self.ahead.last_round);
        (self.ahead.rounds, self.ahead.last_round) = (self.ahead.rounds + 1, count);
        if is_wanted {
            self.ahead.wanted = pages;
        }
        is_wanted
    }

    /// Stores what is wanted, while the process runs.
    pub(crate) fn store_ahead(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let wanted = std::mem::take(&mut self.ahead.wanted);
        self.ahead.store(cx, &wanted)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holo_image::PageKey;

    fn key(n: u8) -> PageKey {
        PageKey::from_bytes([n; 16])
    }

    // Goal: only what the stop confirms is taken by name, and what was for nothing is counted. Method: three pages stored, one written
    // again, one gone.
    #[test]
    fn only_what_is_the_same() {
        let mut ahead = Ahead { stored: 3, ..Ahead::default() };
        ahead.names.insert(PAGE, vec![key(1), key(2), key(3)]);
        let kept = ahead.cut(&[(0, 2 * PAGE)], &[(2 * PAGE, 3 * PAGE)]);
        assert_eq!(kept, [(PAGE, 2 * PAGE)]);
        assert_eq!(ahead.kept(&kept), [(PAGE, vec![key(1)])].into());
        assert!(ahead.kept(&[(2 * PAGE, 9 * PAGE)]).is_empty());
        assert_eq!(ahead.figures(), [("memory.ahead", PAGE), ("memory.again", 2 * PAGE)]);
    }

    // Goal: pages that are gone are left out, the others come one behind the other. Method: of this process, with a hole.
    #[test]
    fn what_is_gone_is_left_out() {
        let bytes = 4 * READ_BYTES as usize;
        // SAFETY: a fresh mapping, of which a part is given back.
        let at = unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let at = libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            libc::memset(at, 7, bytes);
            libc::munmap(at.byte_add(READ_BYTES as usize), PAGE as usize);
            at
        };
        let (start, end) = (at as u64, at as u64 + bytes as u64);
        let mut buffer = Vec::new();
        let memory = File::open("/proc/self/mem").unwrap();
        let there = read(&memory, &[(start, end)], &mut buffer);
        assert_eq!(ranges::normal(there), [(start, start + READ_BYTES), (start + 2 * READ_BYTES, end)]);
        assert_eq!(buffer, vec![7; 3 * READ_BYTES as usize]);
        // SAFETY: ours.
        unsafe { libc::munmap(at, bytes) };
    }
}
