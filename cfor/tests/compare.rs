//! Goal: what has become of each name of a tree is told, and where in its bytes; nothing else is.
//! Method: one change of each kind; random contents with holes against a comparison byte by byte.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Cursor;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use common::Bench;
use holo_cfor::log::Ranges;
use holo_cfor::{Attribute, Delta, Extent, Here, Touched, Tree, What, compare, touched};
use proptest::prelude::*;

/// What differs of `a` now, against a copy of it before.
fn deltas(before: &Tree, copy: &Path, bench: &Bench) -> Vec<Delta> {
    let (now, a) = (bench.scan(), bench.path("a"));
    let mut here = Here::new(&now);
    compare(
        before,
        &now,
        |_| false,
        |old, new| {
            let name = before.entries().find(|(_, entry)| entry.inode == old).unwrap();
            let path = name.1.path.under(copy.as_os_str().as_encoded_bytes());
            let bytes = fs::read(Path::new(std::str::from_utf8(&path).unwrap())).unwrap();
            let whole = [Extent { at: 0, len: bytes.len() as u64 }];
            let (own, data) =
                (if bytes.is_empty() { &[][..] } else { &whole }, now.inodes[new as usize].data());
            let mut content = here.open(new).unwrap();
            touched((own, &mut Cursor::new(bytes)), (data, &mut content)).map(Touched::Ranges)
        },
    )
    .unwrap()
    .into_iter()
    .map(|delta| {
        let below = delta.path.strip_prefix(a.as_os_str().as_encoded_bytes()).unwrap().to_vec();
        Delta { path: below, ..delta }
    })
    .collect()
}

fn find<'a>(deltas: &'a [Delta], path: &str) -> &'a Delta {
    deltas
        .iter()
        .find(|delta| delta.path == path.as_bytes())
        .unwrap_or_else(|| panic!("{path} in {deltas:#?}"))
}

fn ranges(delta: &Delta) -> Vec<(u64, u64)> {
    match &delta.touched {
        Touched::Ranges(ranges) => ranges.iter().map(|one| (one.at, one.len)).collect(),
        Touched::Unknown => panic!("unknown"),
    }
}

#[test]
fn every_kind_of_change() {
    let bench = Bench::new();
    let (a, copy) = (bench.path("a"), bench.path("copy"));
    for dir in ["moves/in", "stays"] {
        fs::create_dir_all(a.join(dir)).unwrap();
    }
    for name in ["written", "mode", "gone", "log", "moves/in/file", "moves/changed", "cut", "same", "linked"]
    {
        fs::write(a.join(name), name.repeat(3000)).unwrap();
    }
    symlink("here", a.join("pointer")).unwrap();
    let before = bench.scan();
    assert!(std::process::Command::new("cp").arg("-a").args([&a, &copy]).status().unwrap().success());
    // A clock tick further, so that times differ.
    std::thread::sleep(std::time::Duration::from_millis(25));
    File::options().write(true).open(a.join("written")).unwrap().write_all_at(b"new", 5000).unwrap();
    fs::set_permissions(a.join("mode"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(a.join("gone")).unwrap();
    fs::rename(a.join("log"), a.join("log.1")).unwrap();
    fs::write(a.join("log"), b"new log").unwrap();
    fs::rename(a.join("moves"), a.join("moved")).unwrap();
    fs::write(a.join("moved/changed"), b"shorter").unwrap();
    File::options().write(true).open(a.join("cut")).unwrap().set_len(100).unwrap();
    fs::remove_file(a.join("pointer")).unwrap();
    symlink("there", a.join("pointer")).unwrap();
    fs::hard_link(a.join("linked"), a.join("second")).unwrap();
    let found = deltas(&before, &copy, &bench);
    let written = find(&found, "/written");
    assert_eq!((written.what, ranges(written)), (What::Changed, vec![(4096, 4096)]));
    assert_eq!(find(&found, "/mode").attributes, [Attribute::Mode]);
    assert_eq!(find(&found, "/gone").what, What::Removed);
    let log = find(&found, "/log.1");
    assert!(
        log.what == What::Renamed
            && log.from.as_ref().unwrap().ends_with(b"/a/log")
            && ranges(log).is_empty()
    );
    assert_eq!((find(&found, "/log").what, find(&found, "/log").bytes()), (What::Added, 7));
    assert_eq!(find(&found, "/moved").what, What::Renamed);
    assert_eq!(
        (find(&found, "/moved/changed").what, find(&found, "/moved/changed").size),
        (What::Changed, Some(7))
    );
    assert_eq!((find(&found, "/cut").size_before, find(&found, "/cut").size), (Some(9000), Some(100)));
    // The block with the end of the file has other bytes behind it.
    assert_eq!(ranges(find(&found, "/cut")), [(0, 100)]);
    assert!(find(&found, "/pointer").attributes.contains(&Attribute::Target));
    assert_eq!(find(&found, "/second").what, What::Added);
    for quiet in ["/same", "/moved/in", "/moved/in/file", "/stays", "/linked"] {
        assert!(found.iter().all(|delta| delta.path != quiet.as_bytes()), "{quiet} in {found:#?}");
    }
    assert!(deltas(&bench.scan(), &a, &bench).is_empty());
}

proptest! {
    /// Blocks of 4 KiB that differ in any byte, holes being zeros, and no others.
    #[test]
    fn bytes_that_differ(
        a in proptest::collection::vec(proptest::option::of(0u8..2), 0..30),
        b in proptest::collection::vec(proptest::option::of(0u8..2), 0..30),
        unit in prop_oneof![Just(1024u64), Just(1000), Just(4096)],
    ) {
        let parts = |model: &[Option<u8>]| {
            let mut data = Vec::new();
            let mut bytes = Vec::new();
            for (at, byte) in model.iter().enumerate().filter_map(|(at, byte)| Some((at as u64, (*byte)?))) {
                data.push(Extent { at: at * unit, len: unit });
                bytes.extend(vec![byte; unit as usize]);
            }
            (data, bytes)
        };
        let ((a_data, a_bytes), (b_data, b_bytes)) = (parts(&a), parts(&b));
        let found = touched((&a_data, &mut Cursor::new(a_bytes)), (&b_data, &mut Cursor::new(b_bytes))).unwrap();
        let byte = |model: &[Option<u8>], at: u64| model.get((at / unit) as usize).copied().flatten().unwrap_or(0);
        let mut wanted = Ranges::new();
        for at in 0..30 * unit {
            if byte(&a, at) != byte(&b, at) {
                wanted.insert(at - at % 4096, 4096);
            }
        }
        prop_assert_eq!(found, wanted);
    }
}
