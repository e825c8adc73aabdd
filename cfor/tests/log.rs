//! Goal: what a log amounts to is all that is needed, and nothing that cancels itself is in it.
//! Method: a model of a file system does random operations and records them. Its state at the last cut, changed by
//! nothing but what the log gives (bytes of touched ranges read at the cut), must be its state now.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use holo_cfor::log::{Action, Bounds, Changes, Cut, FileId, Log, Name};
use proptest::prelude::*;

const TOP: FileId = id(1);

const fn id(ino: u64) -> FileId {
    FileId { dev: 1, ino, generation: 0 }
}

fn name(at: u8) -> Name {
    Name { dir: TOP, name: vec![b'a' + at] }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    names: BTreeMap<Name, FileId>,
    files: BTreeMap<FileId, Vec<u8>>,
}

impl Model {
    fn is_last(&self, file: FileId) -> bool {
        self.names.values().filter(|other| **other == file).count() == 1
    }

    /// Removes files without names, as if nobody had them open.
    fn forget(&mut self) {
        let Self { names, files } = self;
        files.retain(|file, _| names.values().any(|other| other == file));
    }

    /// The state `now` as it follows from this one and the log.
    fn apply(mut self, changes: &Changes, now: &Self) -> Self {
        for (file, change) in &changes.files {
            if *file == TOP {
                continue;
            }
            let bytes = self.files.entry(*file).or_default();
            assert!(!change.is_new || bytes.is_empty(), "{file:?} is not new");
            if let Some(size) = change.cut_to {
                bytes.truncate(size as usize);
            }
            let read = &now.files[file];
            bytes.resize(read.len(), 0);
            for range in change.touched.iter().filter(|range| range.at < read.len() as u64) {
                let range = range.at as usize..(range.at.saturating_add(range.len) as usize).min(read.len());
                bytes[range.clone()].copy_from_slice(&read[range]);
            }
        }
        for (name, change) in &changes.names {
            assert_eq!(self.names.get(name).copied(), change.before);
            match change.after {
                Some(file) => drop(self.names.insert(name.clone(), file)),
                None => drop(self.names.remove(name)),
            }
        }
        self.forget();
        self
    }
}

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    Write(u8, u64, u64, u8),
    Truncate(u8, u64),
    Unlink(u8),
    Link(u8, u8),
    Rename(u8, u8),
    Exchange(u8, u8),
    Cut,
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0u8..6;
    prop_oneof![
        3 => at.clone().prop_map(Op::Create),
        6 => (at.clone(), 0u64..200, 1u64..40, any::<u8>()).prop_map(|(n, at, len, b)| Op::Write(n, at, len, b)),
        3 => (at.clone(), 0u64..200).prop_map(|(n, size)| Op::Truncate(n, size)),
        2 => at.clone().prop_map(Op::Unlink),
        2 => (at.clone(), at.clone()).prop_map(|(a, b)| Op::Link(a, b)),
        4 => (at.clone(), at.clone()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => (at.clone(), at).prop_map(|(a, b)| Op::Exchange(a, b)),
        1 => Just(Op::Cut),
    ]
}

/// Does an operation if it can be done, and says what the recorder would.
fn perform(model: &mut Model, op: &Op, next: &mut u64) -> Option<Action> {
    let has = |model: &Model, at: u8| model.names.get(&name(at)).copied();
    match *op {
        Op::Create(at) => {
            *next += 1;
            let (file, name) = (id(*next), name(at));
            if model.names.contains_key(&name) {
                return None;
            }
            model.names.insert(name.clone(), file);
            model.files.insert(file, Vec::new());
            Some(Action::Link { name, file })
        }
        Op::Write(n, at, len, byte) => {
            let file = has(model, n)?;
            let bytes = model.files.get_mut(&file)?;
            bytes.resize(bytes.len().max((at + len) as usize), 0);
            bytes[at as usize..(at + len) as usize].fill(byte);
            Some(Action::Write { file, at, len })
        }
        Op::Truncate(n, size) => {
            let file = has(model, n)?;
            model.files.get_mut(&file)?.resize(size as usize, 0);
            Some(Action::Truncate { file, size })
        }
        Op::Unlink(n) => {
            let file = has(model, n)?;
            let is_last = model.is_last(file);
            model.names.remove(&name(n));
            model.forget();
            Some(Action::Unlink { name: name(n), file, is_last })
        }
        Op::Link(a, b) => {
            let file = has(model, a).filter(|_| has(model, b).is_none())?;
            model.names.insert(name(b), file);
            Some(Action::Link { name: name(b), file })
        }
        Op::Rename(a, b) => {
            let file = has(model, a).filter(|_| a != b)?;
            let replaced = has(model, b).map(|old| (old, model.is_last(old)));
            if replaced.is_none_or(|(old, _)| old != file) {
                model.names.remove(&name(a));
                model.names.insert(name(b), file);
                model.forget();
            }
            Some(Action::Rename { from: name(a), to: name(b), file, replaced })
        }
        Op::Exchange(a, b) => {
            let (a_file, b_file) = (has(model, a)?, has(model, b)?);
            model.names.insert(name(a), b_file);
            model.names.insert(name(b), a_file);
            Some(Action::Exchange { a: name(a), a_file, b: name(b), b_file })
        }
        Op::Cut => None,
    }
}

fn changes(log: &mut Log) -> Changes {
    match log.cut().into_changes() {
        Cut::Changes(changes) => changes,
        Cut::Overflow => panic!("there was room"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_log_is_all_that_is_needed(
        ops in proptest::collection::vec(op(), 0..60),
        ranges_max in 14usize..40,
    ) {
        let mut log = Log::new(Bounds { entries_max: 200, ranges_max });
        let mut tight = Log::new(Bounds { entries_max: 200, ranges_max: 400 });
        let (mut model, mut last, mut next) = (Model::default(), Model::default(), 1);
        for op in ops.iter().chain([&Op::Cut]) {
            if matches!(op, Op::Cut) {
                let (all, same) = (changes(&mut log), changes(&mut tight));
                prop_assert_eq!(&all.names, &same.names);
                for change in all.names.values() {
                    prop_assert_ne!(change.before, change.after);
                }
                for file in all.files.keys().filter(|file| **file != TOP) {
                    prop_assert!(model.files.contains_key(file), "{:?} is gone and in the log", file);
                }
                prop_assert_eq!(last.apply(&all, &model), model.clone());
                last = model.clone();
                continue;
            }
            let before = next;
            let Some(action) = perform(&mut model, op, &mut next) else { continue };
            for log in [&mut log, &mut tight] {
                if before != next && matches!(action, Action::Link { .. }) {
                    log.record(Action::Make(id(next)));
                }
                log.record(action.clone());
            }
        }
    }

    /// However scattered the writes are, the ranges held stay in their bound, and none is lost.
    #[test]
    fn ranges_are_bounded(writes in proptest::collection::vec((2u64..6, 0u64..100_000, 1u64..50), 0..400)) {
        let mut log = Log::new(Bounds { entries_max: 8, ranges_max: 32 });
        for (file, at, len) in &writes {
            log.record(Action::Write { file: id(*file), at: *at, len: *len });
            prop_assert!(log.ranges_held() <= 32);
        }
        let changes = changes(&mut log);
        let held: usize = changes.files.values().map(|change| change.touched.len()).sum();
        prop_assert!(held <= 32);
        for (file, at, len) in &writes {
            let mut ranges = changes.files[&id(*file)].touched.iter();
            prop_assert!(ranges.any(|range| range.at <= *at && at + len <= range.at + range.len));
        }
        let bytes: u64 = changes.files.values().map(|change| change.touched.bytes()).sum();
        let written: u64 = writes.iter().map(|(_, _, len)| len).sum();
        prop_assert!(bytes <= written + changes.coarsened_bytes);
    }
}

#[test]
fn made_and_removed_was_never_there() {
    let mut log = Log::default();
    let before = log.clone().into_changes();
    log.record(Action::Make(id(2)));
    log.record(Action::Link { name: name(0), file: id(2) });
    log.record(Action::Write { file: id(2), at: 0, len: 100 });
    log.record(Action::Rename { from: name(0), to: name(1), file: id(2), replaced: None });
    log.record(Action::Unlink { name: name(1), file: id(2), is_last: true });
    log.record(Action::Write { file: id(2), at: 500, len: 100 });
    let mut changes = changes(&mut log);
    // The directory's times did change.
    assert!(changes.files.remove(&TOP).unwrap().attributes);
    assert_eq!(Cut::Changes(changes), before);
}

#[test]
fn a_chain_of_renames_is_its_ends() {
    let mut log = Log::default();
    for at in 0..4 {
        log.record(Action::Rename { from: name(at), to: name(at + 1), file: id(2), replaced: None });
    }
    let names = changes(&mut log).names;
    let ends: Vec<_> =
        names.iter().map(|(name, change)| (name.clone(), change.before, change.after)).collect();
    assert_eq!(ends, [(name(0), Some(id(2)), None), (name(4), None, Some(id(2)))]);
}

#[test]
fn truncation_cuts_ranges_and_is_remembered() {
    let mut log = Log::default();
    log.record(Action::Write { file: id(2), at: 100, len: 100 });
    log.record(Action::Truncate { file: id(2), size: 150 });
    log.record(Action::Truncate { file: id(2), size: 1000 });
    let change = changes(&mut log).files.remove(&id(2)).unwrap();
    assert_eq!(change.cut_to, Some(150));
    assert_eq!(change.touched.iter().map(|range| (range.at, range.len)).collect::<Vec<_>>(), [(100, 50)]);
}

#[test]
fn a_file_that_never_got_a_name_is_not_packed() {
    let mut log = Log::default();
    log.record(Action::Make(id(2)));
    log.record(Action::Write { file: id(2), at: 0, len: 10 });
    log.record(Action::Make(id(3)));
    log.record(Action::Write { file: id(3), at: 0, len: 10 });
    log.record(Action::Link { name: name(0), file: id(3) });
    let files = changes(&mut log).files;
    assert!(!files.contains_key(&id(2)) && files[&id(3)].touched.bytes() == 10);
}

#[test]
fn too_many_files_ask_for_a_scan_once() {
    let mut log = Log::new(Bounds { entries_max: 4, ranges_max: 8 });
    for ino in 0..6 {
        log.record(Action::Attributes(id(ino)));
    }
    assert_eq!(log.cut().into_changes(), Cut::Overflow);
    assert_eq!(log.cut().into_changes(), Cut::Changes(Changes::default()));
}
