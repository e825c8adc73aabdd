//! Goal: what was sealed is what is read, on a real disk, and everything that may be asked of a store works.
//! Method: made-up memory and files, compared byte by byte, before and after the store is opened again.
#![allow(clippy::unwrap_used, missing_docs)]

use holo_image::*;

fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_BYTES];
    for (i, word) in page.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes());
    }
    page
}

fn memory(seeds: impl IntoIterator<Item = u64>) -> Vec<u8> {
    seeds.into_iter().flat_map(|seed| if seed == 0 { [0; PAGE_BYTES] } else { page(seed) }).collect()
}

fn meta(at: u64) -> EpochMeta {
    EpochMeta { at_unix_ns: at, node: "a".into(), threads: 3, ..EpochMeta::default() }
}

fn read_all(reader: &EpochReader) -> Vec<u8> {
    let mut all = Vec::new();
    for run in reader.pages() {
        let mut bytes = vec![1; run.keys.len() * PAGE_BYTES];
        reader.read_run(run, 0, &mut bytes).unwrap();
        all.extend(bytes);
    }
    all
}

#[test]
fn an_epoch_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_001u32).map(|i| (i >> 8) as u8).collect();
    let blob;
    {
        let app = Store::open(dir.path()).unwrap().app("redis-1").unwrap();
        let mut writer = app.begin(1).unwrap();
        writer.put_memory(7, 0x7000, &memory([1, 0, 2, 1])).unwrap();
        writer.put_memory(7, 0x1000, &memory(1..=3)).unwrap();
        blob = writer.put_blob(&mut &content[..]).unwrap();
        writer.put_section("threads", 3, vec![1, 2, 3]).unwrap();
        writer.put_section("threads", 3, vec![]).unwrap_err();
        let sealed = writer.seal(EpochMeta { sealed_where: vec!["local".into()], ..meta(5) }).unwrap();
        assert_eq!((sealed.meta.epoch, sealed.meta.app.as_str()), (1, "redis-1"));
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.apps().unwrap(), ["redis-1"]);
    let app = store.open_app("redis-1").unwrap();
    assert_eq!(app.epochs().len(), 1);
    assert!(app.damaged().is_empty());
    app.update_side(1, |side| side.sealed_where.push("b".into())).unwrap();
    let reader = app.open_epoch(1).unwrap();
    assert_eq!(reader.meta().sealed_where, ["local", "b"]);
    assert_eq!(reader.meta().threads, 3);
    assert_eq!(reader.section("threads"), Some((3, &[1, 2, 3][..])));
    assert_eq!(reader.section("pipes"), None);
    assert_eq!(
        reader.pages().map(|run| (run.space, run.address)).collect::<Vec<_>>(),
        [(7, 0x1000), (7, 0x7000)]
    );
    assert_eq!(read_all(&reader), memory([1, 2, 3, 1, 0, 2, 1]));
    let mut out = Vec::new();
    reader.read_blob(&blob, &mut out).unwrap();
    assert!(out == content);
    reader.verify().unwrap();
}
