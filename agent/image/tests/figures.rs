//! What a large image costs: `cargo test --release -p holo-image -- --ignored --nocapture figures`.
#![allow(clippy::unwrap_used)]

use std::{io::Write, time::Instant};

use holo_image::{EpochMeta, PAGE_BYTES, PageKey, Store};

fn memory(seeds: std::ops::Range<u64>) -> Vec<u8> {
    let page = |seed: u64| {
        (0..PAGE_BYTES as u64 / 8).flat_map(move |i| {
            (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i * seed)).to_le_bytes()
        })
    };
    seeds.flat_map(page).collect()
}

/// Set `FIGURES_DIR` to choose the disk.
#[test]
#[ignore = "figures, not a test"]
fn figures() {
    let dir = tempfile::tempdir_in(std::env::var_os("FIGURES_DIR").unwrap_or("/var/tmp".into())).unwrap();
    let pages = 262_144u64;
    let bytes = memory(1..pages + 1);
    let mut report = std::io::stderr();
    let mut timed = |what: &str, start: Instant| writeln!(report, "{what}: {:?}", start.elapsed()).unwrap();
    let app = Store::open(dir.path()).unwrap().app("a").unwrap();

    let start = Instant::now();
    let keys = PageKey::of_all(&bytes);
    timed("hash 1 GiB", start);
    let start = Instant::now();
    let mut writer = app.begin(1).unwrap();
    for (part, bytes) in bytes.chunks(4 << 20).enumerate() {
        writer.put_memory(1, part as u64 * (4 << 20), bytes).unwrap();
    }
    timed("put 1 GiB", start);
    let sealed = writer.seal(EpochMeta::default()).unwrap();
    timed("put and seal 1 GiB", start);
    writeln!(std::io::stderr(), "manifest: {} bytes", sealed.manifest_bytes).unwrap();

    let dirty = memory(pages * 2..pages * 2 + 2500);
    let start = Instant::now();
    let mut writer = app.begin(2).unwrap();
    writer.put_page_bytes(&dirty).unwrap();
    writer.put_pages(1, 0, keys).unwrap();
    writer.seal(EpochMeta::default()).unwrap();
    timed("seal 262144 names and 2500 new pages", start);

    drop(app);
    let start = Instant::now();
    let app = Store::open(dir.path()).unwrap().app("a").unwrap();
    timed("open the store with 2 epochs", start);
    let start = Instant::now();
    let reader = app.open_epoch(1).unwrap();
    timed("open the epoch", start);
    let mut into = vec![0; 4 << 20];
    for run in reader.pages() {
        reader.read_run(run, 0, &mut into).unwrap();
    }
    timed("open and read 1 GiB, verified", start);
}
