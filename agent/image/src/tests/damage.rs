//! Goal: a damaged, truncated, foreign or newer file is told apart, named, and costs nothing but itself.
//! Method: three epochs; one file of the middle one is changed; the store is opened, compared and written on.

use super::{Content, memory, open, page};
use crate::{
    DamagedEpoch, Error, PAGE_BYTES, Retention,
    disk::sim::SimDisk,
    manifest::Manifest,
    wire::{self, Kind, WireError},
};
use std::time::Duration;

const EPOCH: &str = "/s/apps/a/epochs/2.epoch";
const PAGES: &str = "/s/apps/a/pages/0.pages";

fn three_epochs() -> SimDisk {
    let disk = SimDisk::default();
    let (_store, app) = open(&disk).unwrap();
    (1..=3).for_each(|epoch| Content::of(epoch).write(&app, epoch).unwrap());
    disk
}

/// Damages epoch 2, checks that nothing else suffers, not even after writing on, and returns what was said.
fn with_damage(change: impl FnOnce(&mut Vec<u8>)) -> DamagedEpoch {
    let disk = three_epochs();
    let whole = disk.read(EPOCH).unwrap();
    let mut bytes = whole.clone();
    change(&mut bytes);
    disk.overwrite(EPOCH, &bytes).unwrap();
    let damaged = {
        let (_store, app) = open(&disk).unwrap();
        assert_eq!(app.epochs().iter().map(|meta| meta.epoch).collect::<Vec<_>>(), [1, 3]);
        let error = app.open_epoch(2).unwrap_err();
        assert!(error.to_string().starts_with(EPOCH), "{error}");
        assert!(error.is_bad_image());
        for epoch in 4..10 {
            Content::of(epoch).write(&app, epoch).unwrap();
            // Frees places that the damaged epoch may have.
            app.retain_at(&Retention { keep_count: epoch as usize, keep_age: Duration::ZERO }, 1000).unwrap();
        }
        app.remove_epoch(1).unwrap();
        Content::of(11).write(&app, 11).unwrap();
        [3, 4, 9, 11].into_iter().for_each(|epoch| Content::of(epoch).assert_in(&app, epoch));
        assert_eq!(app.damaged().len(), 1);
        app.damaged().remove(0)
    };
    // The file comes back (a newer holo, a copy): all its pages are still there.
    disk.overwrite(EPOCH, &whole).unwrap();
    let (_store, app) = open(&disk).unwrap();
    Content::of(2).assert_in(&app, 2);
    damaged
}

fn wire_error(damaged: &DamagedEpoch) -> &WireError {
    let Error::File { source, .. } = &*damaged.reason else { panic!("{}", damaged.reason) };
    source
}

#[test]
fn truncated() {
    for cut in [1, 100, 500] {
        let damaged = with_damage(|bytes| bytes.truncate(bytes.len() - cut));
        assert!(matches!(wire_error(&damaged), WireError::TooShort { .. }), "{}", damaged.reason);
    }
    assert!(matches!(wire_error(&with_damage(Vec::clear)), WireError::TooShort { .. }));
}

#[test]
fn flipped_bits() {
    for place in [9, 40, 300, 650] {
        let damaged = with_damage(|bytes| bytes[place] ^= 4);
        assert!(matches!(wire_error(&damaged), WireError::BadChecksum { .. }), "{}", damaged.reason);
    }
}

#[test]
fn longer() {
    let damaged = with_damage(|bytes| bytes.push(0));
    assert!(matches!(wire_error(&damaged), WireError::Trailing { bytes: 1 }));
}

#[test]
fn foreign() {
    let damaged = with_damage(|bytes| bytes[..4].copy_from_slice(b"\x7fELF"));
    assert!(matches!(wire_error(&damaged), WireError::BadMagic));
    assert!(damaged.reason.to_string().contains("move it out of the store"));
    let other = with_damage(|bytes| *bytes = wire::encode(&1, Kind::APP).unwrap());
    assert!(matches!(wire_error(&other), WireError::WrongKind { .. }));
}

#[test]
fn newer() {
    let newer = Kind { version: Kind::MANIFEST.version + 1, ..Kind::MANIFEST };
    let damaged = with_damage(|bytes| *bytes = wire::encode_raw(&bytes[32..], newer));
    assert!(matches!(wire_error(&damaged), WireError::NewerVersion { .. }));
    assert!(damaged.reason.to_string().contains("use a newer holo"), "{}", damaged.reason);
}

#[test]
fn another_epochs_file() {
    let disk = three_epochs();
    disk.overwrite(EPOCH, &disk.read("/s/apps/a/epochs/3.epoch").unwrap()).unwrap();
    let (_store, app) = open(&disk).unwrap();
    assert_eq!(
        app.damaged()[0].reason.to_string(),
        format!("{EPOCH}: is epoch 3; restore another epoch, or copy the file back from another node")
    );
    Content::of(3).assert_in(&app, 3);
}

#[test]
fn retention_removes_what_nobody_can_read() {
    for (newer, left) in [(false, 0), (true, 1)] {
        let disk = three_epochs();
        let mut bytes = disk.read(EPOCH).unwrap();
        if newer {
            bytes = wire::encode_raw(&bytes, Kind { version: 9, ..Kind::MANIFEST });
        } else {
            bytes.truncate(50);
        }
        disk.overwrite(EPOCH, &bytes).unwrap();
        let (_store, app) = open(&disk).unwrap();
        app.retain_at(&Retention { keep_count: 1, keep_age: Duration::ZERO }, 1000).unwrap();
        assert_eq!(app.damaged().len(), left);
        app.remove_epoch(2).map_or_else(|_| assert_eq!(left, 0), |()| assert_eq!(left, 1));
        assert!(app.damaged().is_empty());
        Content::of(3).assert_in(&app, 3);
    }
}

/// A page goes bad: the epochs that have it say which, the others are read, and the next epoch that has the
/// page stores it again, which mends the old ones.
#[test]
fn a_bad_page_is_named_and_mended() {
    let disk = three_epochs();
    let mut bytes = disk.read(PAGES).unwrap();
    let shared = page(1);
    let slot = bytes.chunks(PAGE_BYTES).position(|stored| stored == shared).unwrap();
    bytes[slot * PAGE_BYTES + 77] ^= 1;
    disk.overwrite(PAGES, &bytes).unwrap();

    let (store, app) = open(&disk).unwrap();
    let reader = app.open_epoch(2).unwrap();
    let error = reader.verify().unwrap_err();
    assert!(matches!(error, Error::BadPage { slot: bad, .. } if bad as usize == slot), "{error}");
    assert!(error.to_string().contains(PAGES), "{error}");
    assert!(matches!(Content::read(&reader), Err(Error::BadPage { .. })));
    // Neighbours are not affected.
    let run = &reader.pages()[0];
    let mut two = vec![0; 2 * PAGE_BYTES];
    reader.read_run(run, 2, &mut two).unwrap();
    assert!(two == memory(&[2, 3]));

    Content::of(4).write(&app, 4).unwrap();
    Content::of(4).assert_in(&app, 4);
    Content::of(2).assert_in(&app, 2);
    drop((reader, app, store));
    let (_store, app) = open(&disk).unwrap();
    (1..=4).for_each(|epoch| Content::of(epoch).assert_in(&app, epoch));
}

#[test]
fn a_short_page_file_costs_only_what_it_had() {
    let disk = three_epochs();
    let bytes = disk.read(PAGES).unwrap();
    disk.overwrite(PAGES, &bytes[..bytes.len() - 1]).unwrap();
    let (_store, app) = open(&disk).unwrap();
    assert_eq!(app.epochs().iter().map(|meta| meta.epoch).collect::<Vec<_>>(), [1, 2]);
    let reason = app.damaged().remove(0).reason;
    assert!(matches!(&*reason, Error::PageFileShort { .. }), "{reason}");
    Content::of(4).write(&app, 4).unwrap();
    [1, 2, 4].into_iter().for_each(|epoch| Content::of(epoch).assert_in(&app, epoch));
}

#[test]
fn the_record_is_rebuilt_unless_it_is_foreign_or_newer() {
    let path = "/s/apps/a/app.bin";
    let disk = three_epochs();
    let whole = disk.read(path).unwrap();
    for bad in [Vec::new(), whole[..10].to_vec(), [&whole[..], &[0]].concat()] {
        disk.overwrite(path, &bad).unwrap();
        let (_store, app) = open(&disk).unwrap();
        Content::of(3).assert_in(&app, 3);
        assert_eq!(disk.read(path).unwrap(), whole);
    }
    disk.overwrite(path, &wire::encode_raw(&[], Kind { version: 9, ..Kind::APP })).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(
        matches!(&error, Error::File { source: WireError::NewerVersion { found: 9, .. }, .. }),
        "{error}"
    );
    disk.overwrite(path, b"#!/bin/sh").unwrap();
    assert!(matches!(open(&disk), Err(Error::File { source: WireError::BadMagic, .. })));
}

/// Frames that are correct but whose content is impossible.
#[test]
fn manifests_that_lie() {
    let disk = three_epochs();
    let bytes = disk.read(EPOCH).unwrap();
    let (manifest, rest) = wire::decode_prefix::<Manifest>(&bytes, Kind::MANIFEST, 1 << 20).unwrap();
    let slots: Vec<crate::manifest::SlotRun> = wire::decode(rest, Kind::SLOTS, 1 << 20).unwrap();
    let said = |manifest: &Manifest, slots: &[crate::manifest::SlotRun]| {
        let frame = manifest.to_frame().unwrap();
        let bytes = [frame, wire::encode(slots, Kind::SLOTS).unwrap()].concat();
        disk.overwrite(EPOCH, &bytes).unwrap();
        let (_store, app) = open(&disk).unwrap();
        [1, 3].into_iter().for_each(|epoch| Content::of(epoch).assert_in(&app, epoch));
        app.damaged().first().map(|file| file.reason.to_string()).unwrap_or_default()
    };
    let with = |change: fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        said(&changed, &slots)
    };
    assert_eq!(said(&manifest, &slots), "");
    assert!(with(|m| m.meta.app = "b".into()).contains("application \"b\""));
    assert!(with(|m| m.runs[0].address += 1).contains("unaligned"));
    assert!(with(|m| m.runs[0].address = 0u64.wrapping_sub(4096)).contains("wrap around"));
    assert!(with(|m| m.runs.push(m.runs[0].clone())).contains("overlap"));
    assert!(with(|m| m.runs[0].keys.clear()).contains("empty run"));
    assert!(with(|m| m.extra.reverse()).contains("out of order"));
    assert!(
        with(|m| m.extra.push(m.runs[0].keys[1])).contains("order")
            || with(|m| m.extra.push(m.runs[0].keys[1])).contains("places")
    );
    assert!(with(|m| m.sections[0].kind.clear()).contains("name of 0 bytes"));
    assert!(with(|m| m.sections.push(m.sections[0].clone())).contains("two sections"));
    let mut other = slots.clone();
    other[0].count += 1;
    assert!(said(&manifest, &other).contains("places of"));
    let mut other = slots.clone();
    other[0].first = u32::MAX;
    assert!(said(&manifest, &other).contains("places of"));
    let mut other = slots.clone();
    other[0].first = 1 << 30;
    assert!(said(&manifest, &other).contains("truncated"));
    let mut other = slots;
    other.reverse();
    if other.first() != other.last() {
        assert!(said(&manifest, &other).contains("two pages at place"));
    }
}
