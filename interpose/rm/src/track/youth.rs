//! When a zone that is new begins to be watched.
//!
//! The kernel merges memory that an application adds to what it has (a growing heap), but not to a zone that is watched:
//! each time that the new part is watched too leaves one zone more, for ever. What touches a watched zone of its kind is
//! therefore watched only when it has not grown for a while, the longer the more often this was, or when it is large
//! beside what it touches. Until then all of it is read every time.

use crate::kinds::zones::{Zone, ZoneKind};
use std::collections::HashMap;

/// Looks at which a zone was the same, at least.
const LOOKS_MIN: u64 = 4;
/// The looks double with so many zones that are more.
const DOUBLING: u32 = 16;
/// Less is never large.
const LARGE_BYTES: u64 = 1 << 20;
/// Part of what a zone touches that is large: a quarter.
const LARGE_PART: u64 = 4;

/// The zones of one process that are not watched yet.
#[derive(Default)]
pub(crate) struct Youth {
    /// End and number of looks by start.
    zones: HashMap<u64, (u64, u64)>,
    joints: u32,
}

fn alike(one: &Zone, next: &Zone) -> bool {
    one.end == next.start
        && one.kind == ZoneKind::Anonymous
        && next.kind == ZoneKind::Anonymous
        && one.prot == next.prot
        && one.path == next.path
}

/// Bytes of watched zones of its kind that a zone touches, directly or through others.
fn touched(zones: &[&Zone], watched: &[bool], index: usize) -> u64 {
    let mut bytes = 0;
    let mut at = index;
    while at > 0 && watched[at - 1] && alike(zones[at - 1], zones[at]) {
        at -= 1;
        bytes += zones[at].bytes();
    }
    at = index;
    while at + 1 < zones.len() && watched[at + 1] && alike(zones[at], zones[at + 1]) {
        at += 1;
        bytes += zones[at].bytes();
    }
    bytes
}

impl Youth {
    /// For each zone that is not watched, whether it is to be from now on.
    pub(crate) fn due(&mut self, zones: &[&Zone], watched: &[bool]) -> Vec<Option<bool>> {
        let mut known = HashMap::new();
        let looks_min = LOOKS_MIN << (self.joints / DOUBLING).min(32);
        let mut out = Vec::with_capacity(zones.len());
        for (index, zone) in zones.iter().enumerate() {
            if watched[index] {
                out.push(None);
                continue;
            }
            let touched = touched(zones, watched, index);
            let looks = match self.zones.get(&zone.start) {
                Some((end, looks)) if *end == zone.end => looks + 1,
                Some(_) | None => 1,
            };
            let large = zone.bytes() >= LARGE_BYTES && zone.bytes() * LARGE_PART >= touched;
            let due = touched == 0 || looks >= looks_min || large;
            if !due {
                known.insert(zone.start, (zone.end, looks));
            } else if touched > 0 {
                self.joints += 1;
            }
            out.push(Some(due));
        }
        self.zones = known;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(start: u64, end: u64) -> Zone {
        Zone {
            start,
            end,
            prot: 3,
            kind: ZoneKind::Anonymous,
            offset: 0,
            device: 0,
            inode: 0,
            path: Vec::new(),
            deleted: false,
            flags: Vec::new(),
        }
    }

    // Goal: memory that grows for ever stays in a few zones, and what has stopped growing is watched. Method: grow the last
    // zone by a little at each of 100,000 looks, then stop.
    #[test]
    fn growth_leaves_few_zones() {
        let mut youth = Youth::default();
        let mut parts = vec![zone(0, 1 << 20)];
        let mut watched = vec![true];
        let mut look = |parts: &mut Vec<Zone>, watched: &mut Vec<bool>, grows: u64| {
            let end = parts[parts.len() - 1].end;
            if grows > 0 && *watched.last().unwrap_or(&true) {
                parts.push(zone(end, end + grows));
                watched.push(false);
            } else if let Some(last) = parts.last_mut() {
                last.end += grows;
            }
            let due = youth.due(&parts.iter().collect::<Vec<_>>(), watched);
            watched.iter_mut().zip(due).for_each(|(watched, due)| *watched |= due == Some(true));
        };
        // With pauses of five looks: some growth is taken for the last.
        for n in 0..100_000u64 {
            look(&mut parts, &mut watched, if n % 8 < 3 { 1 << 17 } else { 0 });
        }
        assert!(parts.len() < 200, "{} zones", parts.len());
        let before = parts.len();
        for _ in 0..100_000 {
            look(&mut parts, &mut watched, 0);
        }
        assert_eq!(parts.len(), before);
        assert!(watched.iter().all(|watched| *watched));
    }

    // Goal: what touches no watched zone of its kind is watched at once. Method: a gap, and another protection.
    #[test]
    fn strangers_are_due() {
        let mut youth = Youth::default();
        let other = Zone { prot: 1, ..zone(4 << 12, 5 << 12) };
        let zones = [zone(0, 1 << 12), zone(2 << 12, 3 << 12), other, zone(5 << 12, 6 << 12)];
        let zones: Vec<&Zone> = zones.iter().collect();
        assert_eq!(youth.due(&zones, &[true, false, false, true]), [None, Some(true), Some(true), None]);
    }
}
