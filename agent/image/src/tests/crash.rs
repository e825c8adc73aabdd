//! Goal: whatever operation fails or is the last before a power loss, every epoch that was sealed before is
//! there and whole, and the one that was being sealed is whole or absent.
//! Method: a life of a store (epochs with shared and own pages, retention, remarks, a broken and a whole
//! import) is run once for every operation in it and every fault, then the store is opened on what a restart
//! finds, compared, written on, and compared again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    time::Duration,
};

use super::{Content, memory, open};
use crate::{
    AppStore, EpochMeta, Error, PageKey, Result, Retention,
    disk::sim::{Fault, SimDisk, Survival},
};

/// What is known about the store from the answers that it gave.
#[derive(Default)]
struct Known {
    sealed: BTreeSet<u64>,
    /// May be there or not: sealing or removing failed.
    unsure: BTreeSet<u64>,
}

impl Known {
    fn epoch(&mut self, epoch: u64, outcome: Result<()>) -> Result<()> {
        let set = if outcome.is_ok() { &mut self.sealed } else { &mut self.unsure };
        set.insert(epoch);
        outcome
    }
}

/// A manifest and pages out of another store.
fn foreign(epoch: u64) -> (Vec<u8>, Vec<(PageKey, Vec<u8>)>) {
    let (_store, app) = open(&SimDisk::default()).unwrap();
    Content::of(epoch).write(&app, epoch).unwrap();
    let reader = app.open_epoch(epoch).unwrap();
    let pages = reader.keys().into_iter().map(|key| {
        let mut page = [0; 4096];
        reader.read_page(key, &mut page).unwrap();
        (key, page.to_vec())
    });
    (reader.export_manifest(), pages.collect())
}

fn import(app: &AppStore, manifest: &[u8], pages: &[(PageKey, Vec<u8>)], seal: bool) -> Result<()> {
    let mut import = app.begin_import(manifest.to_vec())?;
    let missing = import.missing();
    let mut wanted = pages.iter().filter(|(key, _)| missing.contains(key));
    let count = if seal { missing.len() } else { missing.len() / 2 };
    wanted.by_ref().take(count).try_for_each(|(key, page)| import.put(*key, page))?;
    if seal { import.seal().map(drop) } else { Ok(()) }
}

/// The life. Goes on after errors, so that what comes after a failed operation is tested, too.
fn live(disk: &SimDisk, foreign: &(Vec<u8>, Vec<(PageKey, Vec<u8>)>)) -> Known {
    let mut known = Known::default();
    let Ok((_store, app)) = open(disk) else { return known };
    for epoch in 1..=4 {
        let _ = known.epoch(epoch, Content::of(epoch).write(&app, epoch));
        let _ = app.update_side(epoch, |side| side.sealed_where.push("b".into()));
        // Removal is not promised, only that nothing else is lost.
        let keep = Retention { keep_count: 2, keep_age: Duration::ZERO };
        let sealed: Vec<_> = app.epochs().iter().map(|meta| (meta.epoch, meta.at_unix_ns)).collect();
        for epoch in keep.doomed(&sealed, 1000) {
            known.sealed.remove(&epoch);
            known.unsure.insert(epoch);
        }
        let _ = app.retain_at(&keep, 1000);
    }
    let _ = import(&app, &foreign.0, &foreign.1, false);
    let _ = known.epoch(5, import(&app, &foreign.0, &foreign.1, true));
    // Dropped half-way.
    if let Ok(mut writer) = app.begin(6) {
        let _ = writer.put_memory(1, 0, &memory(&[1, 600, 601]));
    }
    let _ = known.epoch(7, Content::of(7).write(&app, 7));
    // What the same process sees is what it was told.
    for epoch in &known.sealed {
        assert!(app.epochs().iter().any(|meta| meta.epoch == *epoch), "{epoch} is not visible");
    }
    known
}

fn check(disk: &SimDisk, known: &Known) {
    let (_store, app) = open(disk).unwrap();
    assert!(app.damaged().is_empty(), "{:?}", app.damaged());
    let found: BTreeMap<_, _> = app.epochs().into_iter().map(|meta| (meta.epoch, meta)).collect();
    let whole = |skip: u64| {
        for epoch in found.keys().filter(|epoch| **epoch != skip) {
            Content::of(*epoch).assert_in(&app, *epoch);
        }
    };
    for epoch in &known.sealed {
        assert!(found.contains_key(epoch), "epoch {epoch} is lost, {:?} are there", found.keys());
    }
    for epoch in found.keys() {
        assert!(
            known.sealed.contains(epoch) || known.unsure.contains(epoch),
            "epoch {epoch} was never written"
        );
    }
    whole(0);
    // What is written next must not touch what is there.
    Content::of(20).write(&app, 20).unwrap();
    whole(0);
    Content::of(20).assert_in(&app, 20);
    if let Some(first) = found.keys().next() {
        app.remove_epoch(*first).unwrap();
        Content::of(21).write(&app, 21).unwrap();
        whole(*first);
    }
}

fn faults_everywhere(fault: Fault) {
    let foreign = foreign(5);
    let whole = SimDisk::default();
    let known = live(&whole, &foreign);
    let all = whole.steps();
    assert_eq!(known.sealed, BTreeSet::from([3, 4, 5, 7]));
    assert!(all > 80, "{all} steps: the life is too short");
    for step in 0..all {
        let disk = SimDisk::default();
        disk.fail_after(step, fault);
        let known = live(&disk, &foreign);
        for survival in [Survival::All, Survival::Nothing, Survival::Chance(step), Survival::Chance(!step)] {
            let context = format!("{fault:?} at step {step}, {survival:?}");
            let checked = std::panic::catch_unwind(|| check(&disk.restart(survival), &known));
            assert!(checked.is_ok(), "{context}");
        }
    }
}

#[test]
fn power_loss_at_every_step() {
    faults_everywhere(Fault::PowerLoss);
}

#[test]
fn an_error_at_every_step() {
    faults_everywhere(Fault::Once(ErrorKind::Other));
}

#[test]
fn an_error_after_every_step() {
    faults_everywhere(Fault::Late(ErrorKind::Other));
}

#[test]
fn no_space_at_every_step() {
    faults_everywhere(Fault::Once(ErrorKind::StorageFull));
}

/// A disk that fails for a while and then for good: what a failed cleaning left undecided must not hurt.
#[test]
fn errors_in_a_row_and_then_power_loss() {
    let foreign = foreign(5);
    let whole = SimDisk::default();
    live(&whole, &foreign);
    for step in 0..whole.steps() {
        // Three in a row; or a name and its removal that are not made durable.
        for (later, errors) in [4, 7, 10, 13, 16].into_iter().flat_map(|later| [(later, 1..3), (later, 3..4)])
        {
            let disk = SimDisk::default();
            disk.fail_after(step, Fault::Late(ErrorKind::Other));
            errors.for_each(|n| disk.fail_after(step + n, Fault::Once(ErrorKind::Other)));
            disk.fail_after(step + later, Fault::PowerLoss);
            let known = live(&disk, &foreign);
            for survival in [Survival::Nothing, Survival::Chance(step + later)] {
                let context = format!("errors at step {step}, power loss {later} later, {survival:?}");
                let checked = std::panic::catch_unwind(|| check(&disk.restart(survival), &known));
                assert!(checked.is_ok(), "{context}");
            }
        }
    }
}

/// A caller that overlooks an error gets no epoch with pages that were never written.
#[test]
fn nothing_is_sealed_after_a_failed_write() {
    let disk = SimDisk::default();
    let (_store, app) = open(&disk).unwrap();
    let mut writer = app.begin(1).unwrap();
    let mut fail_at = None;
    for seed in 1..=20 {
        if seed == 7 {
            disk.fail_after(0, Fault::Once(ErrorKind::StorageFull));
        }
        if let Err(error) = writer.put_page(&super::page(seed)) {
            fail_at.get_or_insert((seed, error));
        }
    }
    let (_, error) = fail_at.unwrap();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(matches!(writer.seal(EpochMeta::default()), Err(Error::Failed { epoch: 1, .. })));
    assert!(app.epochs().is_empty());
    assert_eq!(app.stored_bytes(), 0);
    // The same number, with space.
    Content::of(1).write(&app, 1).unwrap();
    Content::of(1).assert_in(&app, 1);
}
