//! Goal: whatever stands in a file of the store or is sent to an import, the store answers with an error or
//! with a whole epoch, never with a panic, and other epochs stay whole. Method: random changes of real
//! files, with checksums made good again, so that what is behind them is reached.

use proptest::prelude::*;

use super::{Content, memory, open};
use crate::{
    EpochMeta, Error, Import, Manifest, PageKey,
    disk::sim::SimDisk,
    wire::{self, HEADER_BYTES, Kind},
};

/// A manifest's frame and its pages, out of another store.
fn sent() -> (Vec<u8>, Vec<(PageKey, Vec<u8>)>) {
    let (_store, app) = open(&SimDisk::default()).unwrap();
    Content::of(5).write(&app, 5).unwrap();
    let reader = app.open_epoch(5).unwrap();
    let mut pages = Vec::new();
    for key in reader.keys() {
        let mut page = [0; 4096];
        reader.read_page(key, &mut page).unwrap();
        pages.push((key, page.to_vec()));
    }
    (reader.export_manifest().unwrap(), pages)
}

fn change(bytes: &mut Vec<u8>, changes: &[(usize, u8, u8)]) {
    for &(place, what, value) in changes {
        let place = place % bytes.len().max(1);
        match what % 4 {
            _ if bytes.is_empty() => {}
            0 => bytes[place] = value,
            1 => bytes[place] ^= 1 << (value % 8),
            2 => bytes.truncate(place),
            _ => bytes.insert(place, value),
        }
    }
}

/// The payload changed, the frame correct.
fn reframed(frame: &[u8], kind: Kind, changes: &[(usize, u8, u8)]) -> Vec<u8> {
    let mut payload = frame[HEADER_BYTES..].to_vec();
    change(&mut payload, changes);
    wire::encode_raw(&payload, kind)
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..6)
}

fn complete(mut import: Import, pages: &[(PageKey, Vec<u8>)]) -> crate::Result<EpochMeta> {
    for (key, page) in pages {
        match import.put(*key, page) {
            Ok(()) | Err(Error::Unwanted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    import.seal()
}

proptest! {
    #[test]
    fn import_of_changed_manifests(changes in changes(), cut: bool) {
        let (frame, pages) = sent();
        let (_store, app) = open(&SimDisk::default()).unwrap();
        Content::of(1).write(&app, 1).unwrap();
        let mut bytes = frame.clone();
        if cut { change(&mut bytes, &changes) } else { bytes = reframed(&frame, Kind::MANIFEST, &changes) }
        if let Ok(import) = app.begin_import(&bytes)
            && let Ok(meta) = complete(import, &pages) {
                // It was complete: then all of it can be read, and is what was sent.
                let reader = app.open_epoch(meta.epoch).unwrap();
                reader.verify().unwrap();
                let sent = Manifest::parse(&bytes).unwrap().to_frame().unwrap();
                prop_assert_eq!(reader.export_manifest().unwrap(), sent);
            }
        Content::of(1).assert_in(&app, 1);
    }

    #[test]
    fn open_of_changed_files(changes in changes(), which in 0usize..4, framed: bool) {
        let disk = SimDisk::default();
        {
            let (_store, app) = open(&disk).unwrap();
            (1..=3).for_each(|epoch| Content::of(epoch).write(&app, epoch).unwrap());
            app.update_side(2, |side| side.sealed_where.push("b".into())).unwrap();
        }
        let path = ["epochs/2.epoch", "epochs/2.side", "app.bin", "pages/0.pages"][which];
        let path = format!("/s/apps/a/{path}");
        let mut bytes = disk.read(&path).unwrap();
        match (which, framed) {
            (0, true) => {
                let (_, rest) = wire::split(&bytes, Kind::MANIFEST, 1 << 20).unwrap();
                let first = &bytes[..bytes.len() - rest.len()];
                let half = changes.len() / 2;
                let first = if half == 0 { first.to_vec() } else { reframed(first, Kind::MANIFEST, &changes[..half]) };
                bytes = [first, reframed(rest, Kind::SLOTS, &changes[half..])].concat();
            }
            (1, true) => bytes = reframed(&bytes, Kind::SIDE, &changes),
            _ => change(&mut bytes, &changes),
        }
        disk.overwrite(&path, &bytes).unwrap();
        // A changed record may be foreign; all else opens.
        let Ok((_store, app)) = open(&disk) else { prop_assert_eq!(which, 2); return Ok(()) };
        for meta in app.epochs() {
            let outcome = app.open_epoch(meta.epoch).and_then(|reader| reader.verify());
            prop_assert!(outcome.is_ok() || which == 0 || which == 3, "{outcome:?}");
            if which != 3 && meta.epoch != 2 {
                Content::of(meta.epoch).assert_in(&app, meta.epoch);
            }
        }
        Content::of(4 + app.newest_number() % 1000).write(&app, app.newest_number().saturating_add(1)).unwrap();
    }
}

#[test]
fn pages_that_were_not_asked_for() {
    let (frame, pages) = sent();
    let (_store, app) = open(&SimDisk::default()).unwrap();
    let mut import = app.begin_import(&frame).unwrap();
    assert_eq!(import.missing().len(), pages.len());
    assert!(matches!(app.begin(9), Err(Error::Busy { .. })));
    let (key, page) = &pages[0];
    let other = memory(&[4242]);
    assert!(matches!(import.put(*key, &other), Err(Error::WrongPage { .. })));
    assert!(matches!(import.put(*key, &page[1..]), Err(Error::WrongPage { .. })));
    let stranger = PageKey::of(other[..].try_into().unwrap());
    assert!(matches!(import.put(stranger, &other), Err(Error::Unwanted { .. })));
    import.put(*key, page).unwrap();
    import.put(*key, page).unwrap();
    import.put(PageKey::ZERO, &[0; 4096]).unwrap();
    let left = pages.len() - 1;
    assert_eq!(import.missing_count(), left);
    assert!(matches!(import.seal(), Err(Error::Incomplete { count, .. }) if count == left));
    assert!(app.epochs().is_empty());

    // The page that came is not asked for again, not even after a second break.
    for _ in 0..3 {
        let import = app.begin_import(&frame).unwrap();
        assert_eq!(import.missing().len(), left);
    }
    let import = app.begin_import(&frame).unwrap();
    complete(import, &pages).unwrap();
    Content::of(5).assert_in(&app, 5);
    assert!(matches!(app.begin_import(&frame), Err(Error::EpochOrder { epoch: 5, newest: 5, .. })));

    // For another application: refused.
    let (_store, other) = (0, crate::Store::open_on(std::sync::Arc::new(SimDisk::default()), "/t").unwrap());
    let error = other.app("b").unwrap().begin_import(&sent().0).unwrap_err();
    assert!(matches!(error, Error::BadManifest(_)), "{error}");
}
