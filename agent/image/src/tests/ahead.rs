//! Goal: pages that were stored ahead of an epoch are found by it, survive other attempts, and go when one is sealed without them. Those
//! that are being stored can be brought to another store, whose epoch then needs the others alone, and is whole whatever is given up.
//! Method: pages are counted: those that are written, those that the store has, and those that an import asks for.

use super::{SimDisk, open, page};
use crate::{AppStore, EpochMeta, Error, PAGE_BYTES, Page, PageKey, ahead::TOLD_PAGES, wire};

#[test]
fn pages_are_found_until_an_epoch_is_sealed() {
    let disk = SimDisk::default();
    let (_store, app) = open(&disk).unwrap();
    let bytes = |seeds: std::ops::Range<u64>| seeds.flat_map(page).collect::<Vec<u8>>();
    let mut writer = app.begin(1).unwrap();
    let blob = writer.put_blob(&mut &bytes(1..9)[..]).unwrap();
    writer.put_blob(&mut &bytes(20..30)[..]).unwrap();
    writer.sync().unwrap();
    writer.leave().unwrap();
    assert!(app.epochs().is_empty());
    // One that comes to nothing takes nothing along.
    app.begin(1).unwrap().keep_blob(&blob).unwrap();
    let mut writer = app.begin(1).unwrap();
    writer.keep_blob(&blob).unwrap();
    writer.put_page(page(21)[..].try_into().unwrap()).unwrap();
    assert_eq!((writer.figures().pages_put, writer.figures().pages_new), (1, 0));
    writer.put_section("file", 1, wire::encode(&blob, wire::Kind::STATE).unwrap()).unwrap();
    writer.seal(EpochMeta::default()).unwrap();
    assert_eq!(app.stored_bytes(), 9 * PAGE_BYTES as u64);
    let mut found = Vec::new();
    app.open_epoch(1).unwrap().read_blob(&blob, &mut found).unwrap();
    assert_eq!(found, bytes(1..9));
    // What nobody wanted is gone.
    let mut writer = app.begin(2).unwrap();
    writer.put_blob(&mut &bytes(22..30)[..]).unwrap();
    assert_eq!(writer.figures().pages_new, 8);
}

const MANY: usize = 1000;

/// Reads what is told of.
fn told(app: &AppStore, from: u64) -> Vec<(PageKey, Page)> {
    let read = |key| {
        let mut page = [0; PAGE_BYTES];
        app.read_stored(&mut [(key, &mut page)]).unwrap();
        (key, page)
    };
    app.ahead(from, MANY).0.into_iter().map(read).collect()
}

fn pages(seeds: std::ops::Range<u64>) -> Vec<(PageKey, Page)> {
    seeds.map(page).map(|page| (PageKey::of(&page), page)).collect()
}

#[test]
fn what_is_being_stored_is_told_until_an_epoch_is_sealed() {
    let disk = SimDisk::default();
    let (_store, app) = open(&disk).unwrap();
    assert_eq!(app.ahead(0, MANY), (vec![], 0));
    let put = |seeds| {
        let mut writer = app.begin(1).unwrap();
        for (_, page) in pages(seeds) {
            writer.put_page(&page).unwrap();
        }
        writer
    };
    // Without a word of the writer's when there is enough of it, all of it at its word.
    let mut writer = put(1..31);
    let count = told(&app, 0).len();
    assert!((30 - 2 * TOLD_PAGES..30).contains(&count), "{count} pages");
    assert_eq!(told(&app, 0), pages(1..1 + count as u64));
    writer.sync().unwrap();
    assert_eq!(told(&app, 0), pages(1..31));
    // In parts.
    assert_eq!((app.ahead(0, 3).1, app.ahead(3, 4).1, app.ahead(30, 4).1), (3, 7, 30));
    assert_eq!(told(&app, 13), pages(14..31));
    // What is left stays, what is given up is not found; what is there is not told again.
    writer.leave().unwrap();
    let mut writer = put(21..41);
    writer.sync().unwrap();
    assert_eq!(told(&app, 30), pages(31..41));
    let (given_up, end) = app.ahead(30, MANY);
    drop(writer);
    assert_eq!(told(&app, 0), pages(1..31));
    let mut page = [0; PAGE_BYTES];
    let lost = app.read_stored(&mut [(given_up[0], &mut page)]);
    assert!(matches!(lost, Err(Error::UnknownPage { .. })), "{lost:?}");
    // Its places are not given again.
    let mut writer = put(50..56);
    writer.sync().unwrap();
    assert_eq!(told(&app, end), pages(50..56));
    assert_eq!(told(&app, 30), pages(50..56));
    writer.seal(EpochMeta::default()).unwrap();
    assert_eq!(app.ahead(0, MANY), (vec![], 0));
}

/// A manifest with pages, out of another store.
fn manifest(seeds: std::ops::Range<u64>) -> Vec<u8> {
    let (_store, app) = open(&SimDisk::default()).unwrap();
    let mut writer = app.begin(1).unwrap();
    let bytes: Vec<u8> = seeds.flat_map(page).collect();
    writer.put_memory(1, 0, &bytes).unwrap();
    writer.seal(EpochMeta::default()).unwrap();
    app.open_epoch(1).unwrap().export_manifest().unwrap()
}

#[test]
fn what_came_ahead_is_not_asked_for() {
    let (_store, app) = open(&SimDisk::default()).unwrap();
    let (all, manifest) = (pages(1..21), manifest(1..21));
    let names = |pages: &[(PageKey, Page)]| pages.iter().map(|(key, _)| *key).collect::<Vec<_>>();
    let keys = names(&all);
    assert_eq!(app.lacking(7, &keys), keys);
    let wrong = app.put_ahead(&[(keys[0], all[1].1)]);
    assert!(matches!(wrong, Err(Error::WrongPage { .. })), "{wrong:?}");
    app.put_ahead(&all[..5]).unwrap();
    app.put_ahead(&all[3..12]).unwrap();
    app.put_ahead(&pages(90..95)).unwrap();
    assert_eq!(app.stored_bytes(), 17 * PAGE_BYTES as u64);
    assert_eq!(app.lacking(7, &keys), keys[12..]);
    // Nothing is visible; a transfer that breaks keeps what is of use.
    assert!(app.epochs().is_empty());
    let import = app.begin_import(&manifest).unwrap();
    assert_eq!(import.missing(), keys[12..]);
    let busy = app.put_ahead(&all[12..]);
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    drop(import);
    assert_eq!(app.stored_bytes(), 12 * PAGE_BYTES as u64);
    app.put_ahead(&all[12..15]).unwrap();
    // Another run, or the end: an epoch gets along without.
    assert_eq!(app.lacking(8, &keys), keys);
    assert_eq!(app.stored_bytes(), 0);
    app.put_ahead(&all).unwrap();
    app.forget_received();
    assert_eq!(app.stored_bytes(), 0);
    app.put_ahead(&all[10..]).unwrap();
    let mut import = app.begin_import(&manifest).unwrap();
    assert_eq!(import.missing(), keys[..10]);
    // Not even now.
    app.forget_received();
    assert_eq!(app.lacking(9, &keys), keys[..10]);
    for (key, page) in &all[..10] {
        import.put(*key, page).unwrap();
    }
    import.seal().unwrap();
    app.open_epoch(1).unwrap().verify().unwrap();
    assert!(app.lacking(9, &keys).is_empty());
}
