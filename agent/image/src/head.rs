//! The newest epoch of an application, in memory: the next one is written as what it changes.

use std::sync::Arc;

use crate::{
    delta::{BaseId, Delta, Made, Sum},
    key::{PAGE_BYTES, PageKey},
    manifest::{EpochMeta, Section, push_all},
    memory::{Memory, Range},
    wire::{self, Kind, WireError},
};

/// Names of an epoch that take less than this are written out: it is not worth a second file that must be there.
pub(crate) const WHOLE_BYTES_MAX: u64 = 64 << 10;
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
#[derive(Clone, Debug)]
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

/// An epoch's file.
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    /// What it is a change of.
    pub(crate) base: Option<BaseId>,
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
    /// What the next epoch may be a change of.
    pub(crate) fn base(&self) -> BaseId {
        self.base.id
    }

    /// The epoch that becomes the newest, and how it is written: as a change of the base of the one before as long as all changes of that
    /// base together take less than it does, as a whole else.
    pub(crate) fn follow(
        before: Option<&Arc<Head>>,
        made: Made,
        whole_max: u64,
    ) -> Result<(Head, Written), WireError> {
        let id = BaseId { epoch: made.meta.epoch, at_unix_ns: made.meta.at_unix_ns };
        if let Some(before) = before
            && names_bytes(&made) > whole_max
        {
            let Made { meta, sections, memory, extra } = made;
            let mut head = before.next(id, memory, extra);
            head.base.spent += head.base.touched_bytes();
            if head.base.spent <= head.base.bytes {
                let bytes = head.change(meta, sections)?;
                let base = Some(head.base.id);
                return Ok((head, Written { bytes, base }));
            }
            let Head { memory, extra, sum, .. } = head;
            return Head::whole(id, Made { meta, sections, memory, extra }, sum);
        }
        let sum = Sum::of(made.memory.runs(), made.extra.iter().map(|(key, _)| key));
        Head::whole(id, made, sum)
    }

    fn whole(id: BaseId, made: Made, sum: Sum) -> Result<(Head, Written), WireError> {
        let bytes = made.whole()?;
        let base = Base { id, bytes: names_bytes(&made), spent: 0, touched: Vec::new(), names: Vec::new() };
        let Made { memory, extra, .. } = made;
        Ok((Head { id, memory, extra, sum, base }, Written { bytes, base: None }))
    }

    fn next(&self, id: BaseId, memory: Memory, extra: Vec<(PageKey, u32)>) -> Head {
        let (mut sum, mut touched) = (self.sum, Vec::new());
        self.memory.compare(&memory, |change| {
            sum.remove(change.space, change.address, change.old);
            sum.add(change.space, change.address, change.new);
            touched.push(change.range());
        });
        let mut names = Vec::new();
        let gone = differing(&self.extra, &extra, &mut names);
        gone.into_iter().for_each(|key| sum.remove_extra(key));
        differing(&extra, &self.extra, &mut names).into_iter().for_each(|key| sum.add_extra(key));
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
            runs: fresh.into_runs(),
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
    KEY_BYTES * count + RUN_BYTES * made.memory.runs().len() as u64
}

/// Those of `these` that are not among `those`, or lie elsewhere there; both in rising order. Also adds them to `names`.
fn differing(these: &[(PageKey, u32)], those: &[(PageKey, u32)], names: &mut Vec<PageKey>) -> Vec<PageKey> {
    let mut rest = those;
    let mut out = Vec::new();
    for one in these {
        let before = rest.iter().take_while(|other| other.0 < one.0).count();
        rest = &rest[before..];
        if rest.first() != Some(one) {
            out.push(one.0);
        }
    }
    names.extend(&out);
    out
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
