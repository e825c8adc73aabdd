//! Asynchronous I/O (`io_setup`): contexts, with what came back in them and was not read yet.
//!
//! A context is known by the address of its ring, a mapping in which the kernel puts what completed at `tail`, and of which the
//! application reads at `head`. At a cut nothing may be under way: it would write into memory and files after they were read, and a
//! restored application would wait for it in vain. Requests go on while the application is parked, so that there is nothing
//! to do but to wait for them. How many there are is told by nobody; libholo counts what the kernel took, see
//! `holo_abi::aio`, and the ring tells, modulo its length, how much came back.

use super::aio_restore;
use super::kernel::Bytes;
use super::zones::{self, Zone};
use crate::manager::{Context as _, DumpCx, ResourceManager, RmError, RmResult, SwitchCx, decode};
use crate::remote::{Remote, call, outcome};
use holo_abi::aio::{CONTEXTS_MAX, Context};
use holo_abi::control::SLOT_CALLS;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

pub(super) const NAME: &str = "aio";
pub(super) const VERSION: u16 = 1;
/// How the kernel calls a ring.
const RING: &[u8] = b"/[aio]";
const LINE: &[u8] = b"/[aio] (deleted)";
const MAGIC: u32 = 0xa10a_10a1;
pub(super) const HEADER_BYTES: u64 = 32;
pub(super) const EVENT_BYTES: u64 = 32;
/// Of an entry of libholo's table.
const ENTRY_BYTES: usize = size_of::<Context>();
/// How long requests are waited for in the stop, the first time; twice as long each time that the epoch is tried again.
const PATIENCE: Duration = Duration::from_millis(10);
const TRIES_MAX: u32 = 4;
/// Requests of which none has come back in this time, over all tries, are not waited for any more.
const STUCK: Duration = Duration::from_millis(250);
/// Between looks.
const PAUSE: Duration = Duration::from_micros(40);

/// A context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ring {
    /// Its id, and the address of its ring.
    pub(super) at: u64,
    /// Events that the ring has room for.
    pub(super) nr: u32,
    /// Where the application reads next.
    pub(super) head: u32,
    /// Where the kernel writes next.
    pub(super) tail: u32,
    /// What is between them.
    pub(super) events: Bytes,
}

/// State.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AioState {
    /// Where libholo counts.
    pub(super) table_at: u64,
    /// The contexts of the process.
    pub(super) rings: Vec<Ring>,
}

impl Ring {
    /// Bytes of its mapping.
    pub(super) fn bytes(&self) -> u64 {
        HEADER_BYTES + u64::from(self.nr) * EVENT_BYTES
    }

    /// Events that were not read.
    pub(super) fn unread(&self) -> u32 {
        (self.tail + self.nr - self.head) % self.nr
    }
}

impl AioState {
    fn check(&self) -> Result<(), String> {
        // As many as the kernel makes at most.
        const BYTES_MAX: u64 = 1 << 29;
        let is_bad = |ring: &Ring| {
            ring.nr == 0
                || ring.bytes() > BYTES_MAX
                || !ring.bytes().is_multiple_of(zones::PAGE)
                || !ring.at.is_multiple_of(zones::PAGE)
                || ring.at == 0
                || ring.at >= 1 << 47
                || ring.at + ring.bytes() > 1 << 47
                || ring.head >= ring.nr
                || ring.tail >= ring.nr
                || ring.events.0.len() as u64 != u64::from(ring.unread()) * EVENT_BYTES
        };
        match self.rings.iter().find(|ring| is_bad(ring)) {
            Some(ring) => Err(format!("the context at {:#x} contradicts itself", ring.at)),
            None if self.rings.len() > CONTEXTS_MAX => Err(format!("{} contexts", self.rings.len())),
            None => Ok(()),
        }
    }
}

/// Whether a section makes sense.
#[must_use]
pub fn is_sound(bytes: &[u8]) -> bool {
    decode::<AioState>(bytes).is_some_and(|state| state.check().is_ok())
}

/// The state of a process in an image.
pub(super) fn section(cx: &SwitchCx) -> RmResult<AioState> {
    let state: AioState = cx.section(NAME, VERSION)?;
    state.check().map_err(|what| RmError::BadSection { kind: NAME, what })?;
    Ok(state)
}

/// The rings among `zones` of contexts that the process has: a child of `fork` inherits the mappings alone.
pub(crate) fn owned(remote: &Remote, zones: &[Zone]) -> RmResult<Vec<u64>> {
    let rings: Vec<u64> =
        zones.iter().filter(|zone| is_ring(zone) && zone.offset == 0).map(|zone| zone.start).collect();
    let mut calls: Vec<_> = rings.iter().map(|at| call(sysno::io_submit, &[*at, 0, 0])).collect();
    // No more than a slot holds: the long list is for one process at a time.
    for part in calls.chunks_mut(SLOT_CALLS) {
        remote.run(part, false).on("asking for", "contexts of asynchronous I/O")?;
    }
    Ok(rings.into_iter().zip(&calls).filter(|(_, made)| outcome(made).is_ok()).map(|(at, _)| at).collect())
}

/// The manager.
#[derive(Default)]
pub struct Aio {
    /// How often it was waited in vain.
    tries: u32,
    /// Contexts that something was under way in: what had been taken and had come back, and since when.
    seen: BTreeMap<u64, (u64, u32, Instant)>,
}

/// The head of a ring, as it is now: room, where is read, where is written.
fn look(remote: &Remote, zone: &Zone) -> RmResult<(u32, u32, u32)> {
    let what = || format!("the ring at {:#x}", zone.start);
    let mut bytes = [0; HEADER_BYTES as usize];
    remote.read(zone.start, &mut bytes).on("reading", what())?;
    let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let (nr, head, tail) = (word(4), word(8), word(12));
    let is_ring = word(16) == MAGIC
        && u64::from(word(28)) == HEADER_BYTES
        && HEADER_BYTES + u64::from(nr) * EVENT_BYTES == zone.bytes()
        && tail < nr;
    if !is_ring {
        return Err(RmError::Unsupported(format!(
            "process {} has written over {}, of asynchronous I/O",
            remote.pid,
            what()
        )));
    }
    // As the kernel takes what the application writes there.
    Ok((nr, head % nr, tail))
}

/// What the kernel took, by context, as libholo counts.
fn taken(remote: &Remote, table_at: u64) -> RmResult<BTreeMap<u64, u64>> {
    let mut table = vec![0; CONTEXTS_MAX * ENTRY_BYTES];
    if table_at != 0 {
        remote.read(table_at, &mut table).on("reading", "what was submitted")?;
    }
    let word = |entry: &[u8], at: usize| entry[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let at = std::mem::offset_of!(Context, at);
    let count = std::mem::offset_of!(Context, taken);
    Ok(table.chunks_exact(ENTRY_BYTES).map(|entry| (word(entry, at), word(entry, count))).collect())
}

/// Requests that were taken and have not come back, of fewer than `nr`.
fn under_way(taken: u64, nr: u32, tail: u32) -> u64 {
    let nr = u64::from(nr);
    (taken % nr + nr - u64::from(tail)) % nr
}

impl Aio {
    /// Waits until nothing is under way.
    fn settle(&mut self, cx: &mut DumpCx, zone: &Zone, taken: u64, until: Instant) -> RmResult<()> {
        loop {
            let (nr, _, tail) = look(cx.remote, zone)?;
            let left = under_way(taken, nr, tail);
            if left == 0 {
                self.seen.remove(&zone.start);
                return Ok(());
            }
            let now = Instant::now();
            let seen = self.seen.entry(zone.start).or_insert((taken, tail, now));
            if (seen.0, seen.1) != (taken, tail) {
                *seen = (taken, tail, now);
            }
            if now >= until || now >= seen.2 + STUCK {
                self.tries = (self.tries + 1).min(TRIES_MAX);
                let what = format!(
                    "process {} has {left} requests of asynchronous I/O under way that do not complete (io_submit, context {:#x})",
                    cx.remote.pid, zone.start
                );
                cx.unsettled.push(what.clone());
                return Err(RmError::Unsupported(what));
            }
            thread::sleep(PAUSE);
        }
    }

    fn ring(&mut self, cx: &mut DumpCx, zone: &Zone, taken: Option<u64>, until: Instant) -> RmResult<Ring> {
        let taken = taken.ok_or_else(|| {
            RmError::Unsupported(format!(
                "process {} has a context of asynchronous I/O at {:#x} that is not known (io_setup by a raw system call, or one of \
                 more than {CONTEXTS_MAX})",
                cx.remote.pid, zone.start
            ))
        })?;
        self.settle(cx, zone, taken, until)?;
        let (nr, head, tail) = look(cx.remote, zone)?;
        let mut ring = Ring { at: zone.start, nr, head, tail, events: Bytes::default() };
        // The part at the end of the ring, and what goes on at its beginning.
        let parts = if head <= tail { [(head, tail), (0, 0)] } else { [(head, nr), (0, tail)] };
        for (from, to) in parts.into_iter().filter(|(from, to)| from < to) {
            let mut bytes = vec![0; (u64::from(to - from) * EVENT_BYTES) as usize];
            let at = zone.start + HEADER_BYTES + u64::from(from) * EVENT_BYTES;
            cx.remote.read(at, &mut bytes).on("reading", format!("the ring at {:#x}", zone.start))?;
            ring.events.0.extend(bytes);
        }
        Ok(ring)
    }
}

/// Is it a context's? Others may look like one.
pub(crate) fn is_ring(zone: &Zone) -> bool {
    zone.path == RING && zone.deleted
}

/// The lines of rings.
fn lines(maps: &[u8]) -> impl Iterator<Item = &[u8]> {
    maps.split_inclusive(|byte| *byte == b'\n').filter(|line| line.trim_ascii_end().ends_with(LINE))
}

/// May a process have requests under way? `maps`: what it has mapped.
#[must_use]
pub fn has_rings(maps: &[u8]) -> bool {
    lines(maps).next().is_some()
}

impl ResourceManager for Aio {
    fn name(&self) -> &'static str {
        NAME
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        // SAFETY: a plain word, constant since the process joined.
        let table_at = unsafe { (*cx.remote.page.header()).aio_at };
        let mut state = AioState { table_at, rings: Vec::new() };
        let text = cx.remote.maps().on("reading", "maps")?;
        // Nearly always there are none.
        let lines: Vec<&[u8]> = lines(text).collect();
        if !lines.is_empty() {
            let zones = zones::parse(&lines.concat()).map_err(RmError::Unsupported)?;
            let own = owned(cx.remote, &zones)?;
            let until = Instant::now() + PATIENCE * (1 << self.tries);
            let taken = taken(cx.remote, table_at)?;
            for zone in zones.iter().filter(|zone| own.contains(&zone.start)) {
                let ring = self.ring(cx, zone, taken.get(&zone.start).copied(), until)?;
                state.rings.push(ring);
            }
            self.seen.retain(|at, _| own.contains(at));
        }
        self.tries = 0;
        state.check().map_err(|what| RmError::BadSection { kind: NAME, what })?;
        cx.put(NAME, VERSION, &state)
    }

    fn pre_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        section(cx)?.rings.iter().try_for_each(aio_restore::check)
    }

    /// Rings are made with memory, at the addresses that it leaves free.
    fn switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ring(head: u32, tail: u32) -> Ring {
        let mut ring = Ring { at: 0x7000_0000, nr: 127, head, tail, events: Bytes::default() };
        ring.events.0 = vec![1; ring.unread() as usize * EVENT_BYTES as usize];
        ring
    }

    // Goal: what is under way is found, whatever the ring has gone through. Method: counts around its end.
    #[test]
    fn requests_under_way() {
        assert_eq!(under_way(0, 127, 0), 0);
        assert_eq!(under_way(5, 127, 3), 2);
        assert_eq!(under_way(127 * 9 + 1, 127, 120), 8);
        assert_eq!(under_way(127 * 9 + 1, 127, 1), 0);
        // More has come back than was counted.
        assert_eq!(under_way(4, 127, 5), 126);
    }

    // Goal: no state is taken that the kernel could not have. Method: one of each, and a section that is none.
    #[test]
    fn states() {
        let sound = |ring: Ring| AioState { table_at: 1, rings: vec![ring] }.check().is_ok();
        assert!(sound(ring(0, 0)) && sound(ring(120, 3)) && sound(ring(3, 120)));
        assert_eq!(ring(120, 3).unread(), 10);
        assert!(!sound(Ring { nr: 0, ..ring(0, 0) }));
        assert!(!sound(Ring { nr: 128, ..ring(0, 0) }));
        assert!(!sound(Ring { at: 0x7000_0001, ..ring(0, 0) }));
        assert!(!sound(Ring { at: u64::MAX << 12, ..ring(0, 0) }));
        assert!(!sound(Ring { head: 127, ..ring(0, 0) }));
        assert!(!sound(Ring { tail: 4, ..ring(3, 3) }));
        assert!(AioState { table_at: 0, rings: vec![ring(0, 0); CONTEXTS_MAX + 1] }.check().is_err());
        assert!(!is_sound(b"nonsense"));
    }
}
