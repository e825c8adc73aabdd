//! An import from a peer that sends anything: it is refused, or what is sealed is complete and can be read.
#![no_main]

use std::sync::Arc;

use holo_image::{
    EpochMeta, Manifest, PAGE_BYTES, Page, PageKey, PageRun, Section, Store, disk::sim::SimDisk, wire,
};
use libfuzzer_sys::fuzz_target;

fn page(number: u8) -> Page {
    [number % 8; PAGE_BYTES]
}

fuzz_target!(|input: (bool, &[u8], Vec<(u64, u64, Vec<u8>)>, Vec<u8>, Vec<u8>)| {
    let (any, payload, runs, extra, sent) = input;
    let store = Store::open_on(Arc::new(SimDisk::default()), "/s").expect("new");
    let app = store.app("a").expect("new");
    let mut writer = app.begin(1).expect("new");
    writer.put_memory(1, 0, &page(1)).expect("no fault");
    writer.seal(EpochMeta::default()).expect("no fault");

    let frame = if any {
        let kind = if payload.len() % 2 == 0 { wire::Kind::MANIFEST } else { wire::Kind::DELTA };
        wire::encode_raw(payload, kind)
    } else {
        let keys = |pages: &[u8]| pages.iter().map(|number| PageKey::of(&page(*number))).collect();
        let run = |(space, address, pages): &(u64, u64, Vec<u8>)| PageRun {
            space: *space,
            address: *address,
            keys: keys(pages),
        };
        let section = Section { kind: "s".into(), version: 1, bytes: payload.to_vec() };
        let meta = EpochMeta { epoch: 2, app: "a".into(), ..EpochMeta::default() };
        let runs = runs.iter().map(run).collect();
        Manifest { meta, sections: vec![section], runs, extra: keys(&extra) }.to_frame().expect("encodable")
    };
    if let Ok(mut import) = app.begin_import(&frame) {
        for number in sent {
            // Sometimes another page than its name says.
            let key = PageKey::of(&page(number));
            let _ = import.put(key, &page(number.wrapping_add(number / 128)));
        }
        let complete = import.missing_count() == 0;
        let outcome = import.seal();
        assert_eq!(outcome.is_ok(), complete, "{outcome:?}");
        if let Ok(meta) = outcome {
            let reader = app.open_epoch(meta.epoch).expect("sealed");
            reader.verify().expect("complete");
            let whole = reader.export_manifest().expect("encodable");
            match Manifest::parse(&frame) {
                Ok(sent) => assert_eq!(whole, sent.to_frame().expect("decoded")),
                // It was a change.
                Err(_) => drop(Manifest::parse(&whole).expect("sealed")),
            }
        }
    }
    app.open_epoch(1).and_then(|reader| reader.verify()).expect("untouched");
});
