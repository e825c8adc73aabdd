//! From one epoch to the next: which pages of a clone's memory are written, and which are given back.

use crate::at_once;
use crate::kinds::increment::in_space;
use crate::kinds::zones::PAGE;
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, write_many};
use holo_image::{EpochReader, Names, Page, PageKey};

/// Pages that are read and written at once.
const PART_PAGES: usize = 256;

/// Ranges of `from` that none of `holes` covers; both sorted.
pub(crate) fn without(from: &[(u64, u64)], holes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut next = 0;
    for (start, end) in from {
        let mut at = *start;
        while next < holes.len() && holes[next].1 <= at {
            next += 1;
        }
        for (hole_start, hole_end) in holes[next..].iter().take_while(|(hole_start, _)| hole_start < end) {
            if *hole_start > at {
                out.push((at, *hole_start));
            }
            at = at.max(*hole_end);
        }
        if at < *end {
            out.push((at, *end));
        }
    }
    out
}

/// Answers for rising addresses whether one of some sorted ranges has them.
pub(crate) struct Within<'a>(pub(crate) &'a [(u64, u64)]);

impl Within<'_> {
    /// Asked for rising addresses only.
    pub(crate) fn has(&mut self, at: u64) -> bool {
        while self.0.first().is_some_and(|(_, end)| *end <= at) {
            self.0 = &self.0[1..];
        }
        self.0.first().is_some_and(|(start, _)| *start <= at)
    }
}

/// What becomes of pages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) write: Vec<(u64, PageKey)>,
    /// Ranges that are to be as if never touched.
    pub(crate) drop: Vec<(u64, u64)>,
}

/// From one epoch to the next, where only `kept` is as it was.
pub(crate) fn delta(old: &Names, new: &Names, kept: &[(u64, u64)]) -> Delta {
    let mut out = Delta::default();
    let mut within = Within(kept);
    old.differences(new, |(_, at), _, now| match now {
        _ if !within.has(at) => {}
        Some(key) => out.write.push((at, key)),
        None => match out.drop.last_mut() {
            Some((_, end)) if *end == at => *end = at + PAGE,
            _ => out.drop.push((at, at + PAGE)),
        },
    });
    let fresh = new.without(&in_space(kept));
    if !fresh.is_empty() {
        out.write.extend(fresh.pages().map(|((_, at), key)| (at, key)));
        out.write.sort_unstable_by_key(|(at, _)| *at);
    }
    out
}

/// Writes pages of the image, in rising order, on all processors.
pub(crate) fn write(remote: &Remote, image: &EpochReader, pages: &[(u64, PageKey)]) -> RmResult<()> {
    let parts = at_once::parts(pages, |_| 1, PART_PAGES as u64);
    at_once::run(parts, |part| write_part(remote, image, part)).into_iter().collect()
}

fn write_part(remote: &Remote, image: &EpochReader, pages: &[(u64, PageKey)]) -> RmResult<()> {
    let mut buffer: Vec<Page> = vec![[0; PAGE as usize]; PART_PAGES.min(pages.len())];
    for part in pages.chunks(PART_PAGES) {
        let into = &mut buffer[..part.len()];
        let mut wanted: Vec<(PageKey, &mut Page)> =
            part.iter().map(|(_, key)| *key).zip(into.iter_mut()).collect();
        image.read_pages_into(&mut wanted)?;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (at, _) in part {
            match ranges.last_mut() {
                Some((_, end)) if end == at => *end += PAGE,
                _ => ranges.push((*at, at + PAGE)),
            }
        }
        remote.page.keep_alive();
        write_many(remote.pid, &ranges, into.as_flattened()).on("writing", "the clone's memory")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::increment::SPACE;
    use std::collections::BTreeMap;

    // Goal: after a delta every page is that of the new epoch. Method: random epochs, kept ranges; a model of memory.
    #[test]
    fn deltas_lead_from_epoch_to_epoch() {
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let key = |value: u64| PageKey::of(&[value as u8 + 1; 4096]);
        for _ in 0..500 {
            let mut epoch = || {
                let mut names = Names::default();
                let mut model = BTreeMap::new();
                for page in 0..24u64 {
                    if random(3) == 0 {
                        continue;
                    }
                    let (at, name) = (page * PAGE, key(random(3)));
                    model.insert(at, name);
                    names.push(SPACE, at, &[name]);
                }
                (names, model)
            };
            let ((old, was), (new, is)) = (epoch(), epoch());
            let (a, b) = (random(12) * PAGE, (12 + random(12)) * PAGE);
            let kept = [(0, a), (b, 24 * PAGE)];
            let mut memory = was.clone();
            memory.retain(|at, _| *at < a || *at >= b);
            let delta = delta(&old, &new, &kept);
            for (start, end) in &delta.drop {
                assert!(kept.iter().any(|(from, to)| from <= start && end <= to));
                memory.retain(|at, _| at < start || at >= end);
            }
            let same = |at: &u64| was.get(at) == is.get(at) && (*at < a || *at >= b);
            assert!(delta.write.iter().all(|(at, _)| !same(at)), "only what differs is written");
            memory.extend(delta.write);
            assert_eq!(memory, is);
        }
    }

    #[test]
    fn ranges_without_others() {
        let all = [(0, 10), (20, 30), (40, 50)];
        assert_eq!(without(&all, &[(2, 4), (8, 22), (45, 60)]), [(0, 2), (4, 8), (22, 30), (40, 45)]);
        assert_eq!(without(&all, &[(0, 100)]), []);
        assert_eq!(without(&all, &[]), all);
    }
}
