//! What is known of a process's pages from its last sealed epoch, so that only what changed is read.
//!
//! ```text
//! take (in the stop) --> read + keep --> draft (pages named) --sealed--> known
//!                                            --aborted--> what was to be read is carried to the next take
//! ```
//!
//! What was stored before the stop (`ahead.rs`) was looked at: it is carried, too, until an epoch is sealed.

use crate::at_once;
use crate::kinds::ahead::Ahead;
use crate::kinds::memory_look::own_bytes;
use crate::kinds::zones::{PAGE, Zone};
use crate::manager::{DumpCx, RmResult};
use crate::remote::{Remote, read_many};
use crate::track::ranges::{self, Range};
use crate::track::{Found, FullScan, Tracker, Tracking};
use holo_image::{Figures, Names, PageKey};
use std::collections::BTreeMap;

/// Most that is copied in the stop, or an eighth of the process if that is more: it stays reserved.
const STAGING_BYTES_MAX: u64 = 64 << 20;
const STAGING_PART: u64 = 8;
/// Bytes that are copied by another thread: less takes no longer than to start it.
const COPY_PART_BYTES_MIN: u64 = 1 << 20;
/// Cost model, microseconds: copying a page; a fork at least; a fork for each page of the process.
const COPY_PAGE_US: f64 = 0.5;
const FORK_US: f64 = 300.0;
const FORK_PAGE_US: f64 = 0.08;

/// Names of a few pages by address.
pub(crate) type Runs = BTreeMap<u64, Vec<PageKey>>;

/// Pages that an epoch reads, and those that it takes over by name.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) read: Vec<Range>,
    pub(crate) keep: Vec<Range>,
    /// Zones that were there at the last epoch already, each as a whole.
    pub(crate) lasting: Vec<Range>,
}

impl Plan {
    /// Is copying these pages in the stop shorter than forking?
    pub(crate) fn copies(&self, zones: &[Zone]) -> bool {
        // Not readable from outside.
        let closed: Vec<Range> =
            zones.iter().filter(|zone| zone.prot & 1 == 0).map(|zone| (zone.start, zone.end)).collect();
        let bytes = ranges::bytes(&self.read);
        let pages = (bytes / PAGE) as f64;
        let bytes_all = bytes + ranges::bytes(&self.keep);
        let all = (bytes_all / PAGE) as f64;
        bytes <= STAGING_BYTES_MAX.max(bytes_all / STAGING_PART)
            && pages * COPY_PAGE_US <= FORK_US + all * FORK_PAGE_US
            && ranges::both(&self.read, &closed).is_empty()
    }
}

/// The state between epochs of one process.
#[derive(Default)]
pub(crate) struct Increment {
    tracking: Tracking,
    /// It could tell, in the last epoch.
    tracked: bool,
    tracker: Option<Box<dyn Tracker>>,
    /// Whom the tracker watches: pid and start time.
    of: (i32, u64),
    known: Names,
    draft: Option<Names>,
    carried: Vec<Range>,
    pub(crate) ahead: Ahead,
}

impl Increment {
    pub(crate) fn new(tracking: Tracking) -> Self {
        Self { tracking, ..Self::default() }
    }

    /// Of another process, or without trust in what is known.
    fn begin(&mut self, of: (i32, u64)) {
        *self = Self { of, ..Self::new(self.tracking.clone()) };
    }

    /// Name of the engine that the last epoch used.
    pub(crate) fn engine(&self) -> Option<&'static str> {
        self.tracker.as_ref().map(|tracker| if self.tracked { tracker.name() } else { FullScan.name() })
    }

    /// Has every increment to be compared with all pages?
    pub(crate) fn checks(&self) -> bool {
        self.tracking.checks()
    }

    /// In the stop: what is to be read; `None`: all pages.
    pub(crate) fn take(&mut self, cx: &mut DumpCx, start: u64, zones: &[Zone]) -> RmResult<Option<Plan>> {
        let of = (cx.remote.pid, start);
        if self.of != of {
            self.begin(of);
        }
        self.draft = None;
        let found = self.look(cx.remote, zones, cx.remarks);
        self.tracked = matches!(found, Ok(Found::Since { .. }));
        let (written, same, lasting) = match found {
            Ok(Found::Since { written, same, lasting }) => (written, same, lasting),
            Ok(Found::All) => return Ok(None),
            Err(cause) => {
                // Some pages may be protected again that nobody has read.
                self.begin(of);
                return Err(cause);
            }
        };
        let known = named(&self.known);
        let keep = ranges::without(&ranges::both(&same, &known), &self.carried);
        let keep = ranges::normal([self.ahead.cut(&same, &written), keep].concat());
        let mut read = written;
        read.extend(ranges::without(&same, &keep));
        let read = ranges::normal(read);
        let mut carried = std::mem::take(&mut self.carried);
        carried.extend(&read);
        self.carried = ranges::normal(carried);
        Ok(Some(Plan { read, keep, lasting }))
    }

    /// Before the first stop of a process: is one more worth it, in which all of its memory begins to be watched?
    pub(crate) fn wants_mark(&self, remote: &Remote) -> bool {
        self.tracking.watches() && !self.watches(remote) && self.ahead.is_worth_a_mark(own_bytes(remote))
    }

    /// That stop.
    pub(crate) fn mark(&mut self, cx: &mut DumpCx, start: u64, zones: &[Zone]) -> RmResult<()> {
        self.begin((cx.remote.pid, start));
        let mut tracker = self.tracking.choose(cx.remote, cx.remarks)?;
        tracker.prepare(cx.remote, zones)?;
        self.tracker = Some(tracker);
        Ok(())
    }

    /// Is it this process that is watched?
    pub(crate) fn watches(&self, remote: &Remote) -> bool {
        self.tracker.is_some() && remote.stat().is_some_and(|stat| self.of == (remote.pid, stat.started))
    }

    /// What was written since the last look, while the process runs. `None`: it cannot be told.
    pub(crate) fn look_ahead(&mut self, remote: &Remote, zones: &[Zone]) -> Option<Vec<Range>> {
        match self.tracker.as_mut()?.ahead(remote, zones) {
            Ok(written) => {
                self.carried.extend(written.iter().flatten());
                self.carried = ranges::normal(std::mem::take(&mut self.carried));
                written
            }
            Err(_) => {
                // Some pages may be protected now that nobody knows of.
                self.begin(self.of);
                None
            }
        }
    }

    /// What was looked at and is in no sealed epoch.
    pub(crate) fn owed(&self) -> &[Range] {
        &self.carried
    }

    fn look(&mut self, remote: &Remote, zones: &[Zone], remarks: &mut Vec<String>) -> RmResult<Found> {
        if self.tracker.is_none() {
            self.tracker = Some(self.tracking.choose(remote, remarks)?);
        }
        self.tracker.as_mut().map_or(Ok(Found::All), |tracker| tracker.take(remote, zones, true))
    }

    /// Names of all pages, those that were `read` and those that are kept; what these cost before the stop counts for the epoch.
    pub(crate) fn names(&mut self, mut read: Runs, keep: &[Range], figures: &mut Figures) -> Names {
        let mut ahead = self.ahead.kept(keep);
        self.ahead.add_to(&ahead, figures);
        read.append(&mut ahead);
        kept(&self.known, &ranges::without(keep, &places(&read))).and(&spread(&read))
    }

    /// All pages of the epoch that is being written.
    pub(crate) fn drafted(&mut self, names: Names) {
        self.draft = Some(names);
    }

    /// The epoch is sealed.
    pub(crate) fn sealed(&mut self) {
        if let Some(names) = self.draft.take() {
            self.known = names;
            self.carried.clear();
        }
        self.ahead.sealed();
    }

    /// The epoch is not: what it was to read comes again.
    pub(crate) fn aborted(&mut self) {
        self.ahead.aborted();
        self.draft = None;
    }

    /// The store has not what is known: the next epoch reads all.
    pub(crate) fn forget(&mut self) {
        self.known = Names::default();
        self.ahead.forget();
    }
}

/// Where pages with names are.
pub(crate) fn places(runs: &Runs) -> Vec<Range> {
    ranges::normal(runs.iter().map(|(at, keys)| (*at, at + keys.len() as u64 * PAGE)).collect())
}

/// Names of the pages in these ranges.
pub(crate) fn parts(known: &Runs, keep: &[Range]) -> Runs {
    let mut out = Runs::new();
    for &(start, end) in keep {
        let from = known.range(..=start).next_back().map_or(start, |(at, _)| *at);
        for (at, keys) in known.range(from..end) {
            let until = at + keys.len() as u64 * PAGE;
            let (first, last) = (start.max(*at), end.min(until));
            if first < last {
                let part = &keys[((first - at) / PAGE) as usize..((last - at) / PAGE) as usize];
                out.insert(first, part.to_vec());
            }
        }
    }
    out
}

/// The space of [`Names`] here: what it is in the image is known when it is written.
pub(crate) const SPACE: u64 = 0;

/// Where pages with names are.
pub(crate) fn named(names: &Names) -> Vec<Range> {
    names.ranges().iter().map(|range| (range.start, range.end)).collect()
}

/// Names of the pages in these ranges.
pub(crate) fn kept(names: &Names, keep: &[Range]) -> Names {
    names.parts(&in_space(keep))
}

/// Ranges of addresses as ranges of names.
pub(crate) fn in_space(ranges: &[Range]) -> Vec<holo_image::Range> {
    ranges.iter().map(|&(start, end)| holo_image::Range { space: SPACE, start, end }).collect()
}

/// Pages by address, in rising order.
pub(crate) fn listed(names: &Names) -> Vec<(u64, PageKey)> {
    names.pages().map(|((_, at), key)| (at, key)).collect()
}

pub(crate) fn spread(runs: &Runs) -> Names {
    let mut out = Names::default();
    runs.iter().for_each(|(at, keys)| out.push(SPACE, *at, keys));
    out
}

/// Copies ranges of a parked process into a buffer that is used again.
pub(crate) fn copy(remote: &Remote, read: &[Range], into: &mut Vec<u8>) -> std::io::Result<()> {
    into.resize(ranges::bytes(read) as usize, 0);
    let (mut work, mut rest) = (Vec::new(), into.as_mut_slice());
    for part in at_once::parts(read, |(start, end)| end - start, COPY_PART_BYTES_MIN) {
        let (room, tail) = rest.split_at_mut(ranges::bytes(part) as usize);
        work.push((part, room));
        rest = tail;
    }
    at_once::run(work, |(part, room)| read_many(remote.face, part, room)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PageKey {
        PageKey::from_bytes([n; 16])
    }

    // Goal: kept pages have the names that they had, whatever part of a run is kept. Method: parts over run borders.
    #[test]
    fn parts_of_runs_are_kept() {
        let figures = &mut Figures::default();
        let mut increment = Increment::default();
        let runs: Runs =
            [(4 * PAGE, vec![key(4), key(5), key(6)]), (9 * PAGE, vec![key(9)]), (20 * PAGE, vec![key(20)])]
                .into();
        increment.drafted(spread(&runs));
        increment.sealed();
        let read: Runs = [(7 * PAGE, vec![key(7)])].into();
        let names = increment.names(read, &[(5 * PAGE, 7 * PAGE), (9 * PAGE, 10 * PAGE)], figures);
        let wanted: Runs = [(5 * PAGE, vec![key(5), key(6), key(7)]), (9 * PAGE, vec![key(9)])].into();
        assert_eq!(names, spread(&wanted));
        assert_eq!(increment.names(Runs::new(), &[(PAGE, 30 * PAGE)], figures), spread(&runs));
    }

    // Goal: an epoch that is not sealed changes nothing that is known. Method: draft, abort, look.
    #[test]
    fn aborted_drafts_are_not_known() {
        let mut increment = Increment { carried: vec![(0, PAGE)], ..Increment::default() };
        increment.drafted(spread(&[(0, vec![key(1)])].into()));
        increment.aborted();
        increment.sealed();
        assert!(increment.known.is_empty());
        assert_eq!(increment.carried, [(0, PAGE)]);
    }
}
