//! Goal: pages that were stored ahead of an epoch are found by it, survive other attempts, and go when one is sealed without them.
//! Method: pages are counted: those that are written, and those that the store has.

use super::{SimDisk, open, page};
use crate::{EpochMeta, PAGE_BYTES, wire};

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
