//! A store whose files are anything: it opens or says why not; what it calls an epoch can be opened; the
//! untouched epoch is whole; and it can be written on.
#![no_main]

use std::sync::Arc;

use holo_image::{AppStore, EpochMeta, Error, PAGE_BYTES, Store, disk::sim::SimDisk, wire};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 4] = ["epochs/2.epoch", "epochs/2.side", "app.bin", "pages/0.pages"];

fn seal(app: &AppStore, epoch: u64, fill: u8) -> Result<(), Error> {
    let mut writer = app.begin(epoch)?;
    writer.put_memory(1, 0, &[[fill; PAGE_BYTES], [1; PAGE_BYTES], [0; PAGE_BYTES]].concat())?;
    writer.put_section("s", 1, vec![fill])?;
    writer.seal(EpochMeta::default())?;
    Ok(())
}

fuzz_target!(|input: (u8, u8, &[u8], &[u8])| {
    let (which, how, first, second) = input;
    let disk = SimDisk::default();
    let open = |disk: &SimDisk| Store::open_on(Arc::new(disk.clone()), "/s").and_then(|store| store.app("a"));
    {
        let app = open(&disk).expect("new");
        seal(&app, 1, 10).expect("no fault");
        seal(&app, 2, 20).expect("no fault");
        app.update_side(2, |side| side.dump_us = Some(1)).expect("no fault");
    }
    let which = usize::from(which) % FILES.len();
    let path = format!("/s/apps/a/{}", FILES[which]);
    let old = disk.read(&path).expect("written above");
    let bytes = match how % 5 {
        // Any bytes; correct frames around any bytes; the old file up to somewhere and then any bytes.
        0 => first.to_vec(),
        1 => [
            wire::encode_raw(first, [wire::Kind::MANIFEST, wire::Kind::SIDE, wire::Kind::APP][which.min(2)]),
            wire::encode_raw(second, wire::Kind::SLOTS),
        ]
        .concat(),
        2 => {
            let (_, rest) = wire::split(&old, wire::Kind::MANIFEST, 1 << 20).unwrap_or((&[], &[]));
            let manifest = &old[..old.len() - rest.len()];
            [manifest, &wire::encode_raw(second, wire::Kind::SLOTS)].concat()
        }
        3 => {
            [wire::encode_raw(first, wire::Kind::DELTA), wire::encode_raw(second, wire::Kind::SLOTS)].concat()
        }
        _ => [&old[..first.len().min(old.len())], second].concat(),
    };
    disk.overwrite(&path, &bytes).expect("exists");

    let Ok(app) = open(&disk) else {
        assert_eq!(which, 2, "only a foreign record keeps a store shut");
        return;
    };
    for meta in app.epochs() {
        let outcome = app.open_epoch(meta.epoch).and_then(|reader| reader.verify());
        assert!(outcome.is_ok() || which == 3 || meta.epoch == 2, "{outcome:?}");
    }
    if which != 3 {
        app.open_epoch(1).and_then(|reader| reader.verify()).expect("untouched");
    }
    seal(&app, 3, 30).expect("can be written on");
    app.open_epoch(3).and_then(|reader| reader.verify()).expect("just written");
    if which != 3 {
        app.open_epoch(1).and_then(|reader| reader.verify()).expect("untouched");
    }
});
