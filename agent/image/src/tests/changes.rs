//! Goal: epochs that are written as changes of others are what was put into them, whatever is removed, put aside, opened again or
//! sent to another store. Method: random histories beside plain maps of what each epoch is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::page;
use crate::{
    AppStore, BaseId, Delta, EpochMeta, Error, PAGE_BYTES, PageKey, PageRun, Range, Result, Retention,
    Section, Store, Sum,
    disk::sim::SimDisk,
    memory::Memory,
    wire::{self, HEADER_BYTES, Kind},
};

/// Pages by space and number, and pages that only a section would name.
#[derive(Clone, Debug, Default, PartialEq)]
struct Epoch {
    pages: BTreeMap<(u64, u64), u64>,
    named: Vec<u64>,
}

pub(crate) fn open(disk: &SimDisk) -> Result<(Store, AppStore)> {
    let store = Store::open_on(Arc::new(disk.clone()), "/s")?.with_small_changes();
    let app = store.app("a")?;
    Ok((store, app))
}

impl Epoch {
    fn write(&self, app: &AppStore, epoch: u64, at_unix_ns: u64) -> u64 {
        let mut writer = app.begin(epoch).unwrap();
        for ((space, number), seed) in &self.pages {
            writer.put_memory(*space, number * PAGE_BYTES as u64, &page(*seed)).unwrap();
        }
        for seed in &self.named {
            writer.put_page(&page(*seed)).unwrap();
        }
        writer.put_section("s", 1, epoch.to_le_bytes().to_vec()).unwrap();
        writer.seal(EpochMeta { at_unix_ns, ..EpochMeta::default() }).unwrap().manifest_bytes
    }

    fn assert_in(&self, app: &AppStore, epoch: u64) {
        let reader = app.open_epoch(epoch).unwrap();
        reader.verify().unwrap();
        assert_eq!(reader.section("s"), Some((1, &epoch.to_le_bytes()[..])));
        let mut found = BTreeMap::new();
        for run in reader.pages() {
            for (number, key) in run.keys.iter().enumerate() {
                let mut bytes = [1; PAGE_BYTES];
                reader.read_page(*key, &mut bytes).unwrap();
                found.insert((run.space, run.address / PAGE_BYTES as u64 + number as u64), bytes);
            }
        }
        let wanted = self.pages.iter().map(|(place, seed)| (*place, page(*seed)));
        assert!(found == wanted.collect(), "memory of epoch {epoch}");
        for seed in self.named.iter().filter(|seed| **seed > 0) {
            let mut bytes = [1; PAGE_BYTES];
            reader.read_page(PageKey::of(&page(*seed)), &mut bytes).unwrap();
            assert!(bytes == page(*seed));
        }
    }
}

/// Sends an epoch, as a change if `held` is what the other store has; whether it was one.
fn send(from: &AppStore, to: &AppStore, epoch: u64, held: u64) -> bool {
    let reader = from.open_epoch(epoch).unwrap();
    let whole = reader.export_manifest().unwrap();
    let change = reader.export_since(held).and_then(|frame| to.begin_import(frame).ok());
    let is_change = change.is_some();
    // What came before is not asked for.
    let early: Vec<_> = reader.keys().into_iter().step_by(3).chain([PageKey::of(&page(1 << 40))]).collect();
    drop(change);
    let page_of = |key: PageKey| {
        let mut bytes = page(1 << 40);
        let _ = reader.read_page(key, &mut bytes);
        (key, bytes)
    };
    to.put_ahead(&early.iter().copied().map(page_of).collect::<Vec<_>>()).unwrap();
    assert!(to.lacking(0, &early).is_empty());
    let change = reader.export_since(held).and_then(|frame| to.begin_import(frame).ok());
    let mut import = change.unwrap_or_else(|| to.begin_import(&whole).unwrap());
    assert!(import.missing().iter().all(|key| !early.contains(key)));
    for key in import.missing() {
        let mut bytes = [0; PAGE_BYTES];
        reader.read_page(key, &mut bytes).unwrap();
        import.put(key, &bytes).unwrap();
    }
    import.seal().unwrap();
    assert_eq!(to.open_epoch(epoch).unwrap().export_manifest().unwrap(), whole);
    is_change
}

fn bases(disk: &SimDisk) -> usize {
    use crate::disk::Disk;
    let names = disk.list(std::path::Path::new("/s/apps/a/epochs")).unwrap();
    names.iter().filter(|name| name.ends_with(".base")).count()
}

#[derive(Clone, Debug)]
enum Step {
    /// Stores to pages, drops some, names some; then an epoch.
    Epoch {
        store: Vec<(u64, u64, u64)>,
        drop: Option<(u64, u64, u64)>,
        named: Vec<u64>,
    },
    Retain(usize),
    Remove(usize),
    Aside(usize),
    Reopen,
    Send,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let store = prop::collection::vec((0u64..2, 0u64..6, 0u64..60), 0..5);
    let drop = prop::option::weighted(0.3, (0u64..3, 0u64..40, 1u64..10));
    let named = prop::collection::vec(0u64..16, 0..5);
    let epoch = (store, drop, named).prop_map(|(store, drop, named)| Step::Epoch { store, drop, named });
    let step = prop_oneof![
        12 => epoch,
        1 => (1usize..5).prop_map(Step::Retain),
        4 => (0usize..9).prop_map(Step::Remove),
        1 => (0usize..4).prop_map(Step::Aside),
        1 => Just(Step::Reopen),
        4 => Just(Step::Send),
    ];
    prop::collection::vec(step, 1..50)
}

proptest! {
    #[test]
    fn histories(steps in steps(), open_again: bool) {
        let (disk, other) = (SimDisk::default(), SimDisk::default());
        let (mut store, mut app) = open(&disk).unwrap();
        let (_other_store, to) = open(&other).unwrap();
        let mut known: BTreeMap<u64, Epoch> = BTreeMap::new();
        let mut now = Epoch { pages: (0..40).map(|n| ((1, n), n)).collect(), named: vec![3] };
        let mut clock = 0;
        for step in steps {
            clock += 1;
            let nth = |n: usize| known.keys().rev().nth(n).copied();
            match step {
                Step::Epoch { store, drop, named } => {
                    if let Some((space, first, count)) = drop {
                        now.pages.retain(|(of, at), _| *of != space || *at < first || *at >= first + count);
                    }
                    now.pages.extend(store.into_iter().map(|(space, at, seed)| ((space, at), seed)));
                    now.named = named;
                    let number = app.newest_number() + 1;
                    now.write(&app, number, clock);
                    known.insert(number, now.clone());
                }
                Step::Retain(keep_count) => {
                    let keep = Retention { keep_count, keep_age: Duration::ZERO };
                    for gone in app.retain_at(&keep, u64::MAX).unwrap() {
                        known.remove(&gone);
                    }
                }
                Step::Remove(n) => {
                    if let Some(epoch) = nth(n) {
                        app.remove_epoch(epoch).unwrap();
                        known.remove(&epoch);
                    }
                }
                Step::Aside(n) => {
                    let after = nth(n).unwrap_or(0);
                    for gone in app.set_aside_at(after, clock).unwrap() {
                        known.remove(&gone);
                    }
                    if let Some(last) = known.values().next_back() {
                        now = last.clone();
                    }
                    to.set_aside_at(after, clock).unwrap();
                }
                Step::Reopen => {
                    drop((app, store));
                    (store, app) = open(&disk).unwrap();
                    prop_assert!(app.damaged().is_empty(), "{:?}", app.damaged());
                }
                Step::Send => {
                    let held = to.last().map_or(0, |meta| meta.epoch);
                    if let Some((epoch, content)) = known.last_key_value().filter(|(epoch, _)| **epoch > held) {
                        send(&app, &to, *epoch, held);
                        content.assert_in(&to, *epoch);
                        to.retain_at(&Retention { keep_count: 2, keep_age: Duration::ZERO }, u64::MAX).unwrap();
                    }
                }
            }
            prop_assert_eq!(app.epochs().iter().map(|meta| meta.epoch).collect::<Vec<_>>(), known.keys().copied().collect::<Vec<_>>());
            if let Some((epoch, content)) = known.last_key_value() {
                content.assert_in(&app, *epoch);
            }
        }
        known.iter().for_each(|(epoch, content)| content.assert_in(&app, *epoch));
        let aside: Vec<_> = app.aside();
        for epoch in aside {
            app.open_aside(epoch.aside_unix_ms, epoch.epoch).unwrap().verify().unwrap();
        }
        if open_again {
            drop((app, store));
            (store, app) = open(&disk).unwrap();
        }
        prop_assert!(app.damaged().is_empty(), "{:?}", app.damaged());
        known.iter().for_each(|(epoch, content)| content.assert_in(&app, *epoch));
        app.set_aside_at(0, clock + 1).unwrap();
        app.retain_aside_at(&Retention { keep_count: 0, keep_age: Duration::ZERO }, u64::MAX).unwrap();
        // Nothing is left behind.
        prop_assert_eq!((app.stored_bytes(), bases(&disk)), (0, 0));
        drop(store);
    }
}

/// The bytes of a change must not change within a version: stores and peers have them.
#[test]
fn golden_change() {
    let key = |n: u8| PageKey::from_bytes([n; 16]);
    let delta = Delta {
        meta: EpochMeta { epoch: 9, app: "a".into(), ..EpochMeta::default() },
        sections: vec![Section { kind: "s".into(), version: 3, bytes: vec![0xaa] }],
        base: BaseId { epoch: 7, at_unix_ns: 5 },
        sum: Sum::default(),
        gone: vec![Range { space: 1, start: 0x1000, end: 0x3000 }],
        runs: vec![PageRun { space: 1, address: 0x5000, keys: vec![key(1)] }],
        gone_extra: vec![key(2)],
        extra: vec![key(3)],
    };
    let number = |n: u64| n.to_le_bytes().to_vec();
    let golden = [
        // meta: epoch, time, app, node, stop and dump time, processes, threads, four counts, engine, parts of the stop, bytes by
        // kind, nodes
        number(9),
        number(0),
        [number(1), vec![b'a']].concat(),
        number(0),
        vec![0; 16],
        vec![0; 8],
        vec![0; 32],
        [number(0), number(0), number(0), number(0)].concat(),
        // sections
        [number(1), number(1), vec![b's', 3, 0], number(1), vec![0xaa]].concat(),
        // base, sum
        [number(7), number(5), vec![0; 16]].concat(),
        // what is gone, runs, further pages that are gone, and new ones
        [number(1), number(1), number(0x1000), number(0x3000)].concat(),
        [number(1), number(1), number(0x5000), number(1), vec![1; 16]].concat(),
        [number(1), vec![2; 16]].concat(),
        [number(1), vec![3; 16]].concat(),
    ];
    let frame = wire::encode(&delta, Kind::DELTA).unwrap();
    assert_eq!(frame[HEADER_BYTES..], golden.concat());
    assert_eq!(Delta::parse(&frame).unwrap(), delta);
    // A sum is of what it was of yesterday, too.
    let memory = Memory::placed(&delta.runs, &mut std::iter::empty());
    let sum = Sum::of(&memory, &delta.extra.iter().map(|key| (*key, 0)).collect::<Vec<_>>());
    let bytes = wire::encode(&sum, Kind::STATE).unwrap();
    assert_eq!(bytes[HEADER_BYTES..], GOLDEN_SUM);
    let mut other = sum;
    other.remove_extra(key(3));
    assert_eq!(other, Sum::of(&memory, &[]));
}

const GOLDEN_SUM: [u8; 16] = [57, 199, 20, 88, 145, 32, 124, 216, 49, 47, 73, 78, 0, 59, 119, 156];

/// A change says nothing impossible.
#[test]
fn changes_that_lie() {
    let key = |n: u8| PageKey::from_bytes([n; 16]);
    let run = |address| PageRun { space: 1, address, keys: vec![key(1), key(2)] };
    let range = |start, end| Range { space: 1, start, end };
    let good = Delta {
        meta: EpochMeta { epoch: 2, ..EpochMeta::default() },
        base: BaseId { epoch: 1, at_unix_ns: 0 },
        gone: vec![range(0x1000, 0x2000)],
        runs: vec![run(0x2000)],
        ..Delta::default()
    };
    let said = |change: fn(&mut Delta)| {
        let mut delta = good.clone();
        change(&mut delta);
        delta.check().map_or_else(|error| error.to_string(), |()| String::new())
    };
    assert_eq!(said(|_| {}), "");
    assert!(said(|delta| delta.base.epoch = 2).contains("change of epoch 2"));
    assert!(said(|delta| delta.gone[0].end = 0x3000).contains("overlap"));
    assert!(said(|delta| delta.gone[0].end = 0x1000).contains("unaligned"));
    assert!(said(|delta| delta.gone[0].end = 0x1800).contains("unaligned"));
    assert!(said(|delta| delta.gone.push(delta.gone[0])).contains("overlap"));
    assert!(said(|delta| delta.runs.push(delta.runs[0].clone())).contains("overlap"));
    assert!(said(|delta| delta.extra = vec![PageKey::ZERO]).contains("out of order"));
    assert!(said(|delta| delta.gone_extra = vec![PageKey::from_bytes([1; 16]); 2]).contains("out of order"));
}

/// A large memory in which little changes.
fn large(seed: u64) -> Epoch {
    let pages = (0..400).map(|n| ((1, n), if n == 7 { 10_000 + seed } else { n + 1 }));
    Epoch { pages: pages.collect(), named: vec![5000 + seed / 2] }
}

#[test]
fn a_change_is_small_and_outlives_its_base() {
    let disk = SimDisk::default();
    let (store, app) = open(&disk).unwrap();
    let first = large(1).write(&app, 1, 1);
    for epoch in 2..=30 {
        let bytes = large(epoch).write(&app, epoch, epoch);
        assert!(bytes * 10 < first, "{bytes} of {first} bytes");
        app.retain_at(&Retention { keep_count: 3, keep_age: Duration::ZERO }, 1 << 40).unwrap();
        assert_eq!(bases(&disk), usize::from(epoch > 3));
    }
    drop((app, store));
    let (_store, app) = open(&disk).unwrap();
    (28..=30).for_each(|epoch| large(epoch).assert_in(&app, epoch));
    // Once more a whole one, and the base goes with the last that is a change of it.
    assert!(large(31).write(&app, 31, 31) > first / 2);
    large(32).write(&app, 32, 32);
    app.retain_at(&Retention { keep_count: 2, keep_age: Duration::ZERO }, 1 << 40).unwrap();
    assert_eq!(bases(&disk), 0);
    (31..=32).for_each(|epoch| large(epoch).assert_in(&app, epoch));
}

#[test]
fn a_change_is_taken_only_where_it_fits() {
    let (here, there) = (SimDisk::default(), SimDisk::default());
    let (_store, from) = open(&here).unwrap();
    let (other, to) = open(&there).unwrap();
    for epoch in 1..=3 {
        large(epoch).write(&from, epoch, epoch);
    }
    assert!(!send(&from, &to, 1, 0));
    // From the base itself, and from one between.
    assert!(send(&from, &to, 2, 1) && send(&from, &to, 3, 2));
    let reader = from.open_epoch(3).unwrap();
    let frame = reader.export_since(1).unwrap().to_vec();
    assert!(reader.export_since(0).is_none() && reader.export_since(3).is_none());
    assert!(frame.len() * 10 < reader.export_manifest().unwrap().len());
    // Not the newest, another content with that number, none at all.
    to.remove_epoch(3).unwrap();
    assert!(matches!(to.begin_import(&frame), Err(Error::NeedsWhole { base: 1, .. })));
    to.remove_epoch(2).unwrap();
    large(9).write(&to, 2, 2);
    assert!(matches!(to.begin_import(&frame), Err(Error::NeedsWhole { base: 1, .. })));
    drop((to, other));
    let (_other, to) = open(&there).unwrap();
    assert!(matches!(to.begin_import(&frame), Err(Error::NeedsWhole { .. })));
    large(9).assert_in(&to, 2);
}

#[test]
fn a_damaged_base_is_named() {
    let disk = SimDisk::default();
    {
        let (_store, app) = open(&disk).unwrap();
        for epoch in 1..=3 {
            large(epoch).write(&app, epoch, epoch);
        }
        app.remove_epoch(1).unwrap();
    }
    let path = "/s/apps/a/epochs/1-1.base";
    let mut bytes = disk.read(path).unwrap();
    bytes[50] ^= 1;
    disk.overwrite(path, &bytes).unwrap();
    let (_store, app) = open(&disk).unwrap();
    assert_eq!(app.damaged().len(), 2);
    let said = app.damaged()[0].reason.to_string();
    assert!(said.starts_with(path), "{said}");
    // Its pages and itself stay while somebody may mend it.
    large(9).write(&app, 9, 9);
    bytes[50] ^= 1;
    disk.overwrite(path, &bytes).unwrap();
    drop((app, _store));
    let (_store, app) = open(&disk).unwrap();
    (2..=3).for_each(|epoch| large(epoch).assert_in(&app, epoch));
    large(9).assert_in(&app, 9);
}

fn change(bytes: &mut [u8], changes: &[(usize, u8)]) {
    for (place, value) in changes {
        let place = place % bytes.len();
        bytes[place] ^= value;
    }
}

proptest! {
    // Goal: no bytes, with good checksums, that say to be a change make more than an error. Method: changes of real ones.
    #[test]
    fn changed_changes_are_refused(changes in prop::collection::vec((any::<usize>(), 1u8..), 1..4), received: bool) {
        let (here, there) = (SimDisk::default(), SimDisk::default());
        let (store, from) = open(&here).unwrap();
        let (_other, to) = open(&there).unwrap();
        for epoch in 1..=2 {
            large(epoch).write(&from, epoch, epoch);
        }
        send(&from, &to, 1, 0);
        let mut payload = from.open_epoch(2).unwrap().export_since(1).unwrap()[HEADER_BYTES..].to_vec();
        let length = payload.len() + HEADER_BYTES;
        change(&mut payload, &changes);
        let frame = wire::encode_raw(&payload, Kind::DELTA);
        if received {
            if let Ok(mut import) = to.begin_import(&frame) {
                let source = from.open_epoch(2).unwrap();
                for key in import.missing() {
                    let mut bytes = [0; PAGE_BYTES];
                    if source.read_page(key, &mut bytes).is_ok() {
                        import.put(key, &bytes).unwrap();
                    }
                }
                if let Ok(meta) = import.seal() {
                    to.open_epoch(meta.epoch).unwrap().verify().unwrap();
                }
            }
            large(1).assert_in(&to, 1);
            return Ok(());
        }
        drop((from, store));
        let path = "/s/apps/a/epochs/2.epoch";
        let rest = here.read(path).unwrap().split_off(length);
        here.overwrite(path, &[frame, rest].concat()).unwrap();
        let (_store, app) = open(&here).unwrap();
        large(1).assert_in(&app, 1);
        if app.damaged().is_empty() {
            app.open_epoch(2).unwrap().verify().unwrap();
        }
    }
}
