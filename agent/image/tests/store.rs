//! Goal: what was sealed is what is read, on a real disk, and everything that may be asked of a store works.
//! Method: made-up memory and files, compared byte by byte, before and after the store is opened again.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    time::Duration,
};

use holo_image::{
    AppStore, Blob, EpochMeta, EpochReader, Error, Figures, PAGE_BYTES, PageKey, Retention, SealedEpoch,
    Store, wire,
};

fn memory(seeds: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for seed in seeds {
        let words = (0..PAGE_BYTES as u64 / 8)
            .map(|i| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i * seed));
        words.for_each(|word| bytes.extend(word.to_le_bytes()));
    }
    bytes
}

fn meta(at: u64) -> EpochMeta {
    EpochMeta { at_unix_ns: at, node: "a".into(), threads: 3, ..EpochMeta::default() }
}

fn seal(app: &AppStore, epoch: u64, seeds: impl IntoIterator<Item = u64>) -> SealedEpoch {
    let mut writer = app.begin(epoch).unwrap();
    writer.put_memory(1, 0x10000, &memory(seeds)).unwrap();
    writer.seal(meta(epoch)).unwrap()
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

fn numbers(app: &AppStore) -> Vec<u64> {
    app.epochs().iter().map(|meta| meta.epoch).collect()
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
        assert!(app.epochs().is_empty());
        let sealed = writer.seal(EpochMeta { sealed_where: vec!["local".into()], ..meta(5) }).unwrap();
        assert_eq!((sealed.meta.epoch, sealed.meta.app.as_str()), (1, "redis-1"));
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.apps().unwrap(), ["redis-1"]);
    let app = store.open_app("redis-1").unwrap();
    assert_eq!(numbers(&app), [1]);
    app.update_side(1, |side| side.sealed_where.push("b".into())).unwrap();
    let reader = app.open_epoch(1).unwrap();
    assert_eq!(reader.meta().sealed_where, ["local", "b"]);
    assert_eq!(reader.meta().threads, 3);
    assert_eq!(reader.section("threads"), Some((3, &[1, 2, 3][..])));
    assert_eq!(reader.section("pipes"), None);
    let places: Vec<_> = reader.pages().iter().map(|run| (run.space, run.address)).collect();
    assert_eq!(places, [(7, 0x1000), (7, 0x7000)]);
    assert!(read_all(&reader) == memory([1, 2, 3, 1, 0, 2, 1]));
    let mut out = Vec::new();
    reader.read_blob(&blob, &mut out).unwrap();
    assert!(out == content);
    reader.verify().unwrap();
}

/// The manifest's bytes must not change within a version: stores and peers have them.
#[test]
fn golden_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let app = Store::open(dir.path()).unwrap().app("a").unwrap();
    let mut writer = app.begin(2).unwrap();
    writer.put_memory(1, 0x1000, &memory([1, 0])).unwrap();
    writer.put_section("s", 3, vec![0xaa]).unwrap();
    writer.keep_page(writer_key(2)).unwrap_err();
    writer.put_page(memory([2])[..].try_into().unwrap()).unwrap();
    writer
        .seal(EpochMeta { at_unix_ns: 5, stop_parts_us: vec![("park".into(), 9)], ..EpochMeta::default() })
        .unwrap();
    let frame = app.open_epoch(2).unwrap().export_manifest().unwrap();
    let number = |n: u64| n.to_le_bytes().to_vec();
    let text = |s: &str| [number(s.len() as u64), s.as_bytes().to_vec()].concat();
    let golden = [
        // meta: epoch, time, app, node, stop and dump time, processes, threads, four counts, engine,
        // parts of the stop, bytes by kind, nodes
        number(2),
        number(5),
        text("a"),
        text(""),
        number(0),
        number(0),
        vec![0; 8],
        vec![0; 32],
        text(""),
        number(1),
        text("park"),
        number(9),
        number(0),
        number(0),
        // sections
        number(1),
        text("s"),
        vec![3, 0],
        number(1),
        vec![0xaa],
        // runs
        number(1),
        number(1),
        number(0x1000),
        number(2),
        writer_key(1).to_bytes().to_vec(),
        vec![0; 16],
        // further pages
        number(1),
        writer_key(2).to_bytes().to_vec(),
    ];
    assert_eq!(frame[wire::HEADER_BYTES..], golden.concat());
    let file = fs::read(dir.path().join("apps/a/epochs/2.epoch")).unwrap();
    // The places: two slots from 0 on.
    let slots = [number(1), vec![0, 0, 0, 0, 2, 0, 0, 0]].concat();
    assert_eq!(file, [frame, wire::encode_raw(&slots, wire::Kind::SLOTS)].concat());
}

fn writer_key(seed: u64) -> PageKey {
    PageKey::of(memory([seed])[..].try_into().unwrap())
}

#[test]
fn pages_are_stored_once_and_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let app = Store::open(dir.path()).unwrap().app("a").unwrap();
    let first = seal(&app, 1, (0..500).chain(0..500));
    assert_eq!(
        first.figures,
        Figures { pages_put: 1000, pages_zero: 2, pages_new: 499, bytes_written: 499 * 4096, bytes_blobs: 0 }
    );
    assert_eq!(app.stored_bytes(), 499 * 4096);
    // The next epoch names what did not change and puts what did.
    let before = app.open_epoch(1).unwrap();
    let mut keys = before.pages()[0].keys.clone();
    let mut writer = app.begin(2).unwrap();
    keys[7] = writer.put_page(memory([7777])[..].try_into().unwrap()).unwrap();
    writer.put_pages(1, 0x10000, keys.clone()).unwrap();
    assert!(matches!(writer.put_pages(2, 0, vec![writer_key(99_999)]), Err(Error::UnknownPage { .. })));
    assert_eq!(writer.seal(meta(2)).unwrap().figures.bytes_written, 4096);
    drop(before);
    app.remove_epoch(1).unwrap();
    assert!(
        read_all(&app.open_epoch(2).unwrap()) == memory((0..7).chain([7777]).chain(8..500).chain(0..500))
    );
}

#[test]
fn retention_keeps_the_newest_and_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let app = Store::open(dir.path()).unwrap().app("a").unwrap();
    (1..=6).for_each(|epoch| drop(seal(&app, epoch, 10 * epoch..10 * epoch + 10)));
    let reader = app.open_epoch(2).unwrap();
    let keep = |keep_count| Retention { keep_count, keep_age: Duration::ZERO };
    assert_eq!(app.retain(&keep(3)).unwrap(), [1, 3]);
    assert_eq!(numbers(&app), [2, 4, 5, 6]);
    assert!(matches!(app.remove_epoch(2), Err(Error::InUse { epoch: 2, .. })));
    assert!(matches!(app.remove(), Err(Error::InUse { .. })));
    assert!(read_all(&reader) == memory(20..30));
    drop(reader);
    assert_eq!(app.retain(&keep(0)).unwrap(), [2, 4, 5]);
    assert_eq!(numbers(&app), [6]);
    assert!(matches!(app.open_epoch(5), Err(Error::NoSuchEpoch { epoch: 5, .. })));
    assert!(matches!(app.begin(6), Err(Error::EpochOrder { epoch: 6, newest: 6, .. })));
    assert_eq!(app.stored_bytes(), 10 * 4096);

    // Places are used again: a hundred epochs need no more than a few.
    for epoch in 7..100 {
        seal(&app, epoch, 100 * epoch..100 * epoch + 100);
        app.retain(&keep(2)).unwrap();
    }
    let bytes = fs::metadata(dir.path().join("apps/a/pages/0.pages")).unwrap().len();
    assert!(bytes <= 700 * 4096, "{bytes}");
    assert!(read_all(&app.open_epoch(99).unwrap()) == memory(9900..10_000));
}

#[test]
fn names_and_locks() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for name in ["", ".", "..", ".x", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
        assert!(matches!(store.app(name), Err(Error::BadName { .. })), "{name:?}");
    }
    assert!(matches!(store.open_app("a"), Err(Error::NoSuchApp { .. })));
    let app = store.app(&"x".repeat(64)).unwrap();
    seal(&app, 1, 1..5);
    // The same store gives the same application, another store (another agent) none.
    store.app(app.name()).unwrap();
    let other = Store::open(dir.path()).unwrap();
    let error = other.app(app.name()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    // Looking is allowed, changing is not.
    let seen = Store::inspect(dir.path()).app(app.name()).unwrap();
    assert!(read_all(&seen.open_epoch(1).unwrap()) == memory(1..5));
    assert!(matches!(seen.begin(2), Err(Error::ReadOnly { .. })));
    assert!(matches!(seen.remove_epoch(1), Err(Error::ReadOnly { .. })));
    assert!(Store::inspect(dir.path().join("nothing")).apps().unwrap().is_empty());

    let writer = app.begin(2).unwrap();
    assert!(matches!(app.begin(3), Err(Error::Busy { .. })));
    assert!(matches!(app.remove(), Err(Error::Busy { .. })));
    drop(writer);
    app.remove().unwrap();
    assert!(store.apps().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("apps")).unwrap().count(), 0);
    assert!(matches!(app.begin(3), Err(Error::ReadOnly { .. })));
    seal(&store.app(app.name()).unwrap(), 1, 5..6);
}

#[test]
fn only_the_owner_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let app = Store::open(dir.path().join("s")).unwrap().app("a").unwrap();
    seal(&app, 1, 1..5);
    let mut todo = vec![dir.path().join("s")];
    while let Some(path) = todo.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
        todo.extend(fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()));
    }
}

#[test]
fn contents_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let app = Store::open(dir.path().join("s")).unwrap().app("a").unwrap();
    let sparse = File::options().read(true).write(true).create_new(true).open(dir.path().join("f")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(&memory(1..300), 10_000_000).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let mut writer = app.begin(1).unwrap();
    let blobs: Vec<(Vec<u8>, Blob)> = [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1]
        .map(|len| {
            let bytes = memory(1..258)[..len].to_vec();
            let blob = writer.put_blob(&mut &bytes[..]).unwrap();
            assert_eq!(blob.len, len as u64);
            (bytes, blob)
        })
        .into();
    let hole = writer.put_file(&sparse).unwrap();
    assert_eq!(hole.len, 1 << 40);
    assert!(hole.keys().count() < 400, "{} pages", hole.keys().count());
    writer.seal(meta(1)).unwrap();
    // The next epoch keeps one of them, without reading the file again.
    let mut writer = app.begin(2).unwrap();
    writer.keep_blob(&hole).unwrap();
    writer.seal(meta(2)).unwrap();

    let reader = app.open_epoch(1).unwrap();
    for (bytes, blob) in &blobs {
        let mut out = Vec::new();
        reader.read_blob(blob, &mut out).unwrap();
        assert!(out == *bytes);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"older and longer content", 2 << 20).unwrap();
        reader.read_blob_to_file(blob, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), blob.len);
        let mut out = vec![0; bytes.len()];
        file.read_exact_at(&mut out, 0).unwrap();
        assert!(out == *bytes);
    }
    drop(reader);
    app.remove_epoch(1).unwrap();
    let reader = app.open_epoch(2).unwrap();
    assert!(matches!(reader.read_blob(&blobs[6].1, &mut Vec::new()), Err(Error::UnknownPage { .. })));
    let copy = tempfile::tempfile().unwrap();
    reader.read_blob_to_file(&hole, &copy).unwrap();
    let found = copy.metadata().unwrap();
    assert_eq!(found.len(), 1 << 40);
    assert!(found.blocks() * 512 < 2 << 20, "{} blocks", found.blocks());
    let mut part = vec![0; 299 * PAGE_BYTES];
    copy.read_exact_at(&mut part, 10_000_000).unwrap();
    assert!(part == memory(1..300));
    copy.read_exact_at(&mut part[..6], 0).unwrap();
    assert_eq!(&part[..6], b"start\0");
}

/// From one store to another: only what is missing, and the same bytes in the end.
#[test]
fn replication() {
    let dir = tempfile::tempdir().unwrap();
    let from = Store::open(dir.path().join("a")).unwrap().app("x").unwrap();
    let to = Store::open(dir.path().join("b")).unwrap().app("x").unwrap();
    for (epoch, wanted) in [(1, 300), (2, 50)] {
        seal(&from, epoch, (epoch * 50..epoch * 50 + 300).chain([0, 60, 60]));
        let reader = from.open_epoch(epoch).unwrap();
        let frame = reader.export_manifest().unwrap();
        let mut import = to.begin_import(&frame).unwrap();
        let missing = import.missing();
        assert_eq!(missing.len(), wanted);
        let mut pages = vec![[0; PAGE_BYTES]; missing.len()];
        reader.read_pages_into(&mut missing.iter().copied().zip(&mut pages).collect::<Vec<_>>()).unwrap();
        missing.iter().zip(&pages).for_each(|(key, page)| import.put(*key, page).unwrap());
        assert!(numbers(&to).len() < epoch as usize);
        import.seal().unwrap();
        let copy = to.open_epoch(epoch).unwrap();
        assert_eq!(copy.export_manifest().unwrap(), frame);
        assert!(read_all(&copy) == read_all(&reader));
    }
}

/// A disk that is really full: a file system of 4 MiB in a mount namespace of its own. As an ordinary user it
/// needs user namespaces; without them only the made-up disk is tested.
#[test]
fn a_full_disk() {
    let program = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=4m none \"$1\" && exec \"$0\" --exact on_a_small_disk --include-ignored";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(program).arg(dir.path());
    let possible = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        let _ = writeln!(std::io::stderr(), "no user namespaces: not tested");
        return;
    }
    let output = command.env("SMALL_DISK", dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
#[ignore = "started by a_full_disk"]
fn on_a_small_disk() {
    let Some(dir) = std::env::var_os("SMALL_DISK") else { return };
    let store = Store::open(Path::new(&dir)).unwrap();
    let app = store.app("a").unwrap();
    seal(&app, 1, 1..500);
    for number in 2..5 {
        let mut writer = app.begin(2).unwrap();
        let error = writer.put_memory(1, 0, &memory(number * 10_000..number * 10_000 + 900)).unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert!(error.to_string().contains("no space left"), "{error}");
        assert!(matches!(writer.seal(meta(2)), Err(Error::Failed { .. })));
        assert!(read_all(&app.open_epoch(1).unwrap()) == memory(1..500));
    }
    drop((app, store));
    let app = Store::open(Path::new(&dir)).unwrap().app("a").unwrap();
    assert!(app.damaged().is_empty());
    assert!(read_all(&app.open_epoch(1).unwrap()) == memory(1..500));
    seal(&app, 2, 200..600);
    assert!(read_all(&app.open_epoch(2).unwrap()) == memory(200..600));
}

/// Goal: readers, the writer, remarks and retention do not disturb one another. Method: all at once, for some
/// hundred epochs; every reader compares all that it reads.
#[test]
fn all_at_once() {
    const EPOCHS: u64 = 150;
    let dir = tempfile::tempdir().unwrap();
    let app = Store::open(dir.path()).unwrap().app("a").unwrap();
    seal(&app, 1, 5..45);
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut read = 0;
                loop {
                    let epochs = numbers(&app);
                    let oldest = epochs[0];
                    // It may be removed between the two calls, never after the second.
                    if let Ok(reader) = app.open_epoch(oldest) {
                        assert!(read_all(&reader) == memory(oldest * 5..oldest * 5 + 40), "epoch {oldest}");
                        read += 1;
                    }
                    if epochs.last() == Some(&EPOCHS) {
                        return read;
                    }
                }
            })
        });
        for epoch in 2..=EPOCHS {
            seal(&app, epoch, epoch * 5..epoch * 5 + 40);
            app.update_side(epoch, |side| side.dump_us = Some(epoch)).unwrap();
            app.retain(&Retention { keep_count: 2, keep_age: Duration::ZERO }).unwrap();
        }
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    app.retain(&Retention { keep_count: 2, keep_age: Duration::ZERO }).unwrap();
    assert_eq!(numbers(&app), [EPOCHS - 1, EPOCHS]);
    assert_eq!(app.last().unwrap().dump_us, EPOCHS);
}
