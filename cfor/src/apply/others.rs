//! What others have changed here, which is put right and told.

use nix::sys::stat::FileStat;

use super::{Applier, Place};
use crate::access::{SELF, number, times};
use crate::capture::ContentSource;
use crate::tree::Time;

/// What others had changed and was put right, one for each file that was not as captured.
#[derive(Debug, Default)]
pub struct Others {
    /// How many.
    pub count: usize,
    /// Paths of the first.
    pub first: Vec<Vec<u8>>,
}

impl Others {
    /// Paths that are kept.
    const FIRST_MAX: usize = 10;

    /// Adds those of another time.
    pub fn join(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(Self::FIRST_MAX);
    }

    fn add(&mut self, path: &[u8]) {
        self.count += 1;
        if self.first.len() < Self::FIRST_MAX {
            self.first.push(path.to_vec());
        }
    }
}

impl<S: ContentSource> Applier<'_, S> {
    /// Whether somebody else has changed it.
    pub(super) fn is_others(&self, stat: &FileStat) -> bool {
        self.since.is_some_and(|since| times(stat).2 > since)
    }

    /// A directory that is here is about to be worked in, which changes it.
    pub(super) fn met(&mut self, stat: &FileStat) {
        // Where nothing has been yet, what is missing was not taken away.
        if self.since != Some(Time::default()) && self.is_others(stat) {
            self.changed.insert(number(stat));
        }
    }

    /// Something is not here: perhaps since somebody has taken it away.
    pub(super) fn note_missing(&mut self, place: Place<'_>) {
        if self.changed.is_empty() {
            return;
        }
        let was_changed = place.dir.stat(SELF).is_ok_and(|stat| self.changed.remove(&number(&stat)));
        let above = place.full.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.note_others(&place.full[..above.max(1)], was_changed);
    }

    pub(super) fn note_others(&mut self, full: &[u8], is_others: bool) {
        if is_others {
            self.report.others.add(full);
        }
    }
}
