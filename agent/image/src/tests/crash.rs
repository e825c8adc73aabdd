//! Goal: whatever operation fails or is the last before a power loss, every epoch that was sealed before is
//! there and whole, and the one that was being sealed is whole or absent. What is put aside is at no time in no place.
//! Method: a life of a store (epochs with shared and own pages, retention, remarks, a broken and a whole
//! import, lines that are put aside and whose numbers come again) is run once for every operation in it and every fault, then the store is opened on what a restart
//! finds, compared, written on, and compared again.

use std::{collections::BTreeSet, io::ErrorKind, time::Duration};

use super::{Content, changes::open, memory};
use crate::{
    AppStore, EpochMeta, Error, Page, PageKey, Result, Retention,
    disk::sim::{Fault, SimDisk, Survival},
};

/// What is known about the store from the answers that it gave.
#[derive(Default)]
struct Known {
    sealed: BTreeSet<Made>,
    /// May be there or not: sealing or removing failed.
    unsure: BTreeSet<Made>,
    /// Put aside.
    aside: BTreeSet<Made>,
    /// Among the epochs or put aside: that failed.
    somewhere: BTreeSet<Made>,
}

/// Number and content.
type Made = (u64, u64);

impl Known {
    fn epoch(&mut self, epoch: u64, outcome: Result<()>) -> Result<()> {
        self.made((epoch, epoch), outcome)
    }

    fn made(&mut self, made: Made, outcome: Result<()>) -> Result<()> {
        let set = if outcome.is_ok() { &mut self.sealed } else { &mut self.unsure };
        set.insert(made);
        outcome
    }

    /// Tries twice, as the cluster does.
    fn set_aside(&mut self, app: &AppStore, after: u64, now_ms: u64) {
        let beyond: BTreeSet<Made> =
            self.sealed.union(&self.somewhere).filter(|(epoch, _)| *epoch > after).copied().collect();
        self.sealed.retain(|made| !beyond.contains(made));
        self.somewhere.retain(|made| !beyond.contains(made));
        let done = (0..2).any(|_| app.set_aside_at(after, now_ms).is_ok());
        let set = if done { &mut self.aside } else { &mut self.somewhere };
        set.extend(beyond);
        if done {
            assert!(app.epochs().iter().all(|meta| meta.epoch <= after));
        }
    }

    /// Drops all but the newest of what was put aside. Removal is not promised, only that nothing else is lost.
    fn retain_aside(&mut self, app: &AppStore, keep_count: usize) {
        let there = made_aside(app);
        let keep = Retention { keep_count, keep_age: Duration::from_secs(3600) };
        let _ = app.retain_aside_at(&keep, 1000);
        for made in &there[..there.len().saturating_sub(keep_count)] {
            self.aside.remove(made);
            self.somewhere.remove(made);
            self.unsure.insert(*made);
        }
    }
}

fn made(app: &AppStore) -> Vec<Made> {
    app.epochs().iter().map(|meta| (meta.epoch, meta.at_unix_ns)).collect()
}

fn made_aside(app: &AppStore) -> Vec<Made> {
    app.aside().iter().map(|aside| (aside.epoch, aside.meta.as_ref().unwrap().at_unix_ns)).collect()
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
    (reader.export_manifest().unwrap(), pages.collect())
}

fn import(app: &AppStore, manifest: &[u8], pages: &[(PageKey, Vec<u8>)], seal: bool) -> Result<()> {
    let mut import = app.begin_import(manifest)?;
    let missing = import.missing();
    let mut wanted = pages.iter().filter(|(key, _)| missing.contains(key));
    let count = if seal { missing.len() } else { missing.len() / 2 };
    wanted.by_ref().take(count).try_for_each(|(key, page)| import.put(*key, page))?;
    if seal { import.seal().map(drop) } else { Ok(()) }
}

/// Pages for [`AppStore::put_ahead`], named anew.
fn ahead_of(pages: &[(PageKey, Vec<u8>)]) -> Vec<(PageKey, Page)> {
    let page = |bytes: &[u8]| -> Page { bytes.try_into().unwrap() };
    pages.iter().map(|(_, bytes)| (PageKey::of(&page(bytes)), page(bytes))).collect()
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
            known.sealed.remove(&(epoch, epoch));
            known.unsure.insert((epoch, epoch));
        }
        let _ = app.retain_at(&keep, 1000);
    }
    // Some of it came before, with what is of no use; after a break again.
    let some = |from: usize| ahead_of(&foreign.1[from..from + 4]);
    let _ =
        app.put_ahead(&some(0)).and_then(|()| app.put_ahead(&ahead_of(&[(PageKey::ZERO, memory(&[77]))])));
    let _ = import(&app, &foreign.0, &foreign.1, false);
    let _ = app.put_ahead(&some(7));
    let _ = known.epoch(5, import(&app, &foreign.0, &foreign.1, true));
    // Dropped half-way.
    if let Ok(mut writer) = app.begin(6) {
        let _ = writer.put_memory(1, 0, &memory(&[1, 600, 601]));
    }
    let _ = known.epoch(7, Content::of(7).write(&app, 7));
    // Other epochs with the same numbers, twice.
    for line in [40, 50] {
        known.set_aside(&app, 3, line);
        for epoch in 4..=6 {
            let _ = known.made((epoch, line + epoch), Content::of(line + epoch).write(&app, epoch));
        }
    }
    known.retain_aside(&app, 4);
    let _ = known.epoch(8, Content::of(8).write(&app, 8));
    // What the same process sees is what it was told.
    let found = made(&app);
    for epoch in &known.sealed {
        assert!(found.contains(epoch), "{epoch:?} is not visible, {found:?} are");
    }
    let found = made_aside(&app);
    for epoch in &known.aside {
        assert!(found.contains(epoch), "{epoch:?} is not to be seen aside, {found:?} are");
    }
    known
}

fn check(disk: &SimDisk, known: &Known) {
    let (_store, app) = open(disk).unwrap();
    assert!(app.damaged().is_empty(), "{:?}", app.damaged());
    let (found, aside) = (made(&app), made_aside(&app));
    let whole = |skip: u64| {
        for (epoch, seed) in found.iter().filter(|(epoch, _)| *epoch != skip) {
            Content::of(*seed).assert_in(&app, *epoch);
        }
        for there in app.aside() {
            let reader = app.open_aside(there.aside_unix_ms, there.epoch).unwrap();
            Content::of(reader.meta().at_unix_ns).assert_is(&reader, there.epoch);
        }
    };
    for epoch in &known.sealed {
        assert!(found.contains(epoch), "epoch {epoch:?} is lost, {found:?} are there");
    }
    for epoch in &known.aside {
        assert!(aside.contains(epoch), "epoch {epoch:?} is lost, {aside:?} are aside");
    }
    for epoch in &known.somewhere {
        assert!(found.contains(epoch) || aside.contains(epoch), "epoch {epoch:?} is lost");
    }
    for epoch in found.iter().chain(&aside) {
        let sets = [&known.sealed, &known.unsure, &known.aside, &known.somewhere];
        assert!(sets.iter().any(|set| set.contains(epoch)), "epoch {epoch:?} was never written");
    }
    whole(0);
    // What is written next must not touch what is there.
    Content::of(20).write(&app, 20).unwrap();
    whole(0);
    Content::of(20).assert_in(&app, 20);
    if let Some((first, _)) = found.first() {
        app.remove_epoch(*first).unwrap();
        Content::of(21).write(&app, 21).unwrap();
        whole(*first);
    }
    // Nor what is put aside and dropped there.
    app.set_aside(19).unwrap();
    assert!(app.last().is_none_or(|meta| meta.epoch < 20));
    Content::of(22).write(&app, 22).unwrap();
    whole(found.first().map_or(0, |(first, _)| *first));
    app.retain_aside_at(&Retention { keep_count: 0, keep_age: Duration::ZERO }, 0).unwrap();
    assert!(app.aside().is_empty());
    Content::of(23).write(&app, 23).unwrap();
    whole(found.first().map_or(0, |(first, _)| *first));
}

fn faults_everywhere(fault: Fault) {
    let foreign = foreign(5);
    let whole = SimDisk::default();
    let known = live(&whole, &foreign);
    let all = whole.steps();
    assert_eq!(known.sealed, BTreeSet::from([(3, 3), (4, 54), (5, 55), (6, 56), (8, 8)]));
    assert_eq!(known.aside, BTreeSet::from([(7, 7), (4, 44), (5, 45), (6, 46)]));
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
