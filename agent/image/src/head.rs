//! The newest epoch of an application, in memory: the next one is written as what it changes.

use std::sync::Arc;

use crate::{
    delta::{BaseId, Delta, Made, Sum, differing},
    key::{PAGE_BYTES, PageKey},
    manifest::{EpochMeta, Section, push_all},
    memory::{Memory, NOWHERE, Range},
    wire::{self, Kind, WireError},
};

/// Names of an epoch that take less than this are written out: it is not worth a second file that must be there.
pub(crate) const WHOLE_BYTES_MAX: u64 = 4 << 10;
/// What a run of pages takes besides their names.
const RUN_BYTES: u64 = 24;
const KEY_BYTES: u64 = 16;

/// The newest epoch.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: BaseId,
    pub(crate) memory: Memory,
    pub(crate) extra: Vec<(PageKey, u32)>,
    pub(crate) sum: Sum,
    base: Base,
}

/// What the next epochs are changes of, and what has changed since.
#[derive(Clone, Debug, Default)]
struct Base {
    id: BaseId,
    /// What its names take, and those of all changes of it so far.
    bytes: u64,
    spent: u64,
    /// In rising order, with at least two pages between them.
    touched: Vec<Range>,
    /// Further pages that came or went, in rising order.
    names: Vec<PageKey>,
}

/// The epoch that becomes the newest.
pub(crate) struct Next {
    pub(crate) head: Head,
    /// Its file, and what that is a change of.
    pub(crate) bytes: Vec<u8>,
    pub(crate) base: Option<BaseId>,
    /// Slots that it names and the one before did not, and the other way round, as often as they do.
    pub(crate) came: Vec<u32>,
    pub(crate) went: Vec<u32>,
}

impl Base {
    /// What names of all that changed take.
    fn touched_bytes(&self) -> u64 {
        let pages = |range: &Range| (range.end - range.start) / PAGE_BYTES as u64;
        let count = self.touched.iter().map(pages).sum::<u64>() + self.names.len() as u64;
        KEY_BYTES * count + RUN_BYTES * self.touched.len() as u64
    }
}

impl Head {
    /// Where its pages lie, as often as it names them.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.memory.places().map(|(slot, _)| slot).chain(self.extra.iter().map(|(_, slot)| *slot))
    }

    /// What the next epoch may be a change of.
    pub(crate) fn base(&self) -> BaseId {
        self.base.id
    }

    /// The epoch that becomes the newest, and how it is written: as a change of the base of the one before as long as all changes of that
    /// base together take less than it does, as a whole else.
    pub(crate) fn follow(before: Option<&Arc<Head>>, made: Made, whole_max: u64) -> Result<Next, WireError> {
        let id = BaseId { epoch: made.meta.epoch, at_unix_ns: made.meta.at_unix_ns };
        let names = names_bytes(&made);
        let Made { meta, sections, memory, extra } = made;
        let (mut came, mut went) = (Vec::new(), Vec::new());
        let mut head = match before {
            Some(before) => before.next(id, memory, extra, &mut came, &mut went),
            None => Head::first(id, memory, extra, &mut came),
        };
        head.base.spent += head.base.touched_bytes();
        if before.is_some() && names > whole_max && head.base.spent <= head.base.bytes {
            let bytes = head.change(meta, sections)?;
            let base = Some(head.base.id);
            return Ok(Next { head, bytes, base, came, went });
        }
        let Head { memory, extra, sum, .. } = head;
        let made = Made { meta, sections, memory, extra };
        let bytes = made.whole()?;
        let base = Base { id, bytes: names, ..Base::default() };
        let Made { memory, extra, .. } = made;
        let head = Head { id, memory, extra, sum, base };
        Ok(Next { head, bytes, base: None, came, went })
    }

    fn first(id: BaseId, memory: Memory, extra: Vec<(PageKey, u32)>, came: &mut Vec<u32>) -> Head {
        let sum = Sum::of(&memory, &extra);
        let head = Head { id, memory, extra, sum, base: Base::default() };
        came.extend(head.slots());
        head
    }

    fn next(
        &self,
        id: BaseId,
        memory: Memory,
        extra: Vec<(PageKey, u32)>,
        came: &mut Vec<u32>,
        went: &mut Vec<u32>,
    ) -> Head {
        let lies = |slot: &u32| *slot != NOWHERE;
        let (mut sum, mut touched) = (self.sum, Vec::new());
        self.memory.compare(&memory, |change| {
            sum.remove(change.space, change.address, change.old);
            sum.add(change.space, change.address, change.new);
            touched.push(change.range());
            came.extend(change.new_slots.iter().copied().filter(lies));
            went.extend(change.old_slots.iter().copied().filter(lies));
        });
        let mut names = Vec::new();
        for (key, slot) in differing(&self.extra, &extra) {
            sum.remove_extra(key);
            names.push(key);
            went.push(slot);
        }
        for (key, slot) in differing(&extra, &self.extra) {
            sum.add_extra(key);
            names.push(key);
            came.push(slot);
        }
        let mut base = self.base.clone();
        base.touched = union(&base.touched, &touched);
        base.names.extend(names);
        base.names.sort_unstable();
        base.names.dedup();
        Head { id, memory, extra, sum, base }
    }

    /// As a change of its base.
    fn change(&self, meta: EpochMeta, sections: Vec<Section>) -> Result<Vec<u8>, WireError> {
        let (fresh, gone) = self.memory.parts(&self.base.touched);
        let mut slots = fresh.slot_runs();
        let (mut extra, mut gone_extra) = (Vec::new(), Vec::new());
        for key in &self.base.names {
            match self.extra.binary_search_by_key(key, |(key, _)| *key) {
                Ok(at) => {
                    extra.push(*key);
                    push_all(&mut slots, std::iter::once(self.extra[at].1));
                }
                Err(_) => gone_extra.push(*key),
            }
        }
        let delta = Delta {
            meta,
            sections,
            base: self.base.id,
            sum: self.sum,
            gone,
            runs: fresh.runs(),
            gone_extra,
            extra,
        };
        let mut frame = wire::encode(&delta, Kind::DELTA)?;
        frame.extend_from_slice(&wire::encode(&slots, Kind::SLOTS)?);
        Ok(frame)
    }
}

/// What the names of an epoch take, written out.
fn names_bytes(made: &Made) -> u64 {
    let count = made.memory.page_count() + made.extra.len() as u64;
    KEY_BYTES * count + RUN_BYTES * made.memory.run_count() as u64
}

/// Ranges that two lists have; a gap of one page is not worth a range.
fn union(one: &[Range], other: &[Range]) -> Vec<Range> {
    let mut all = [one, other].concat();
    all.sort_by_key(|range| (range.space, range.start));
    let mut out: Vec<Range> = Vec::with_capacity(all.len());
    for range in all {
        match out.last_mut() {
            Some(last) if last.space == range.space && range.start <= last.end + PAGE_BYTES as u64 => {
                last.end = last.end.max(range.end);
            }
            _ => out.push(range),
        }
    }
    out
}
