//! Goal: a packed file gives back exactly the trees that went into it, and says so when it was changed.
//! Method: trees of every kind are packed, opened and applied elsewhere; every byte of a small file is changed, and every
//! length of it is tried.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Cursor;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use bincode::Options;
use common::Bench;
use holo_cfor::pack::{PackError, Packed, write};
use holo_cfor::{Hint, Inode, apply, verify};

fn fill(top: &Path) {
    fs::create_dir_all(top.join("dir/deep")).unwrap();
    fs::write(top.join("empty"), b"").unwrap();
    fs::write(top.join("dir/text"), b"text ".repeat(1000)).unwrap();
    let noise: Vec<u8> = (0..700_001u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    fs::write(top.join("dir/deep/noise"), noise).unwrap();
    fs::hard_link(top.join("dir/text"), top.join("linked")).unwrap();
    symlink("dir/text", top.join("pointer")).unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(3 << 30).unwrap();
    sparse.write_all_at(&[7; 5000], 1 << 30).unwrap();
    fs::set_permissions(top.join("empty"), Permissions::from_mode(0o604)).unwrap();
}

fn packed(bench: &mut Bench) -> Vec<u8> {
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let mut bytes = Vec::new();
    write(&captured, &mut bench.store, &mut bytes).unwrap();
    bytes
}

/// The same file as an earlier version wrote it: 1 inode by inode, 2 without flags.
fn of_version(version: u8, bytes: &[u8]) -> Vec<u8> {
    let packed = Packed::open(Cursor::new(bytes)).unwrap();
    let captured = packed.captured();
    let tree = &captured.tree;
    let row = |inode: &Inode| {
        let Inode { kind, mode, uid, gid, atime, mtime, xattrs, flags: _, identity } = inode.clone();
        (kind, mode, uid, gid, atime, mtime, xattrs, identity)
    };
    let rows: Vec<_> = tree.inodes.iter().map(row).collect();
    let column = (
        rows.iter().map(|row| &row.0).collect::<Vec<_>>(),
        rows.iter().map(|row| row.1).collect::<Vec<_>>(),
        rows.iter().map(|row| (row.2, row.3)).collect::<Vec<_>>(),
        rows.iter().map(|row| row.4).collect::<Vec<_>>(),
        rows.iter().map(|row| row.5).collect::<Vec<_>>(),
        rows.iter().map(|row| &row.6).collect::<Vec<_>>(),
        rows.iter().map(|row| (row.7.dev, row.7.ino)).collect::<Vec<_>>(),
        rows.iter().map(|row| row.7.ctime).collect::<Vec<_>>(),
    );
    let rest = (&tree.remarks, &captured.contents, &captured.mapped);
    let options = || bincode::DefaultOptions::new().with_fixint_encoding();
    let structure = match version {
        1 => options().serialize(&(tree.taken_at, &tree.roots, &rows, rest)),
        _ => options().serialize(&(tree.taken_at, &tree.roots, &column, rest)),
    };
    let structure = structure.unwrap();
    let stored = lz4_flex::block::compress(&structure);
    let mut file = b"HOLOCFOR".to_vec();
    file.extend([version, 0, 0, 0]);
    file.extend((structure.len() as u64).to_le_bytes());
    file.extend((stored.len() as u64).to_le_bytes());
    let mut check = blake3::Hasher::new();
    check.update(&file).update(&stored);
    file.extend(&check.finalize().as_bytes()[..16]);
    file.extend(stored);
    let stored_now = u64::from_le_bytes(bytes[20..28].try_into().unwrap());
    file.extend(&bytes[44 + stored_now as usize..]);
    file
}

#[test]
fn what_earlier_versions_wrote_is_read() {
    let mut bench = Bench::new();
    fill(&bench.path("a"));
    let bytes = packed(&mut bench);
    for version in [1, 2] {
        let old = of_version(version, &bytes);
        assert_ne!(old, bytes);
        let (now, old) = (Packed::open(Cursor::new(&bytes)).unwrap(), Packed::open(Cursor::new(&old)));
        assert_eq!(now.captured(), old.unwrap().captured(), "version {version}");
    }
}

#[test]
fn what_was_packed_comes_out() {
    let mut bench = Bench::new();
    fill(&bench.path("a"));
    let bytes = packed(&mut bench);
    assert!(bytes.len() < 900_000, "{} bytes: holes and text cost next to nothing", bytes.len());
    let (captured, mut contents) = Packed::open(Cursor::new(bytes)).unwrap().split();
    let report = apply(&captured, &mut contents, &bench.targets(false)).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
}

#[test]
fn an_empty_tree() {
    let mut bench = Bench::new();
    let bytes = packed(&mut bench);
    assert_eq!(Packed::open(Cursor::new(bytes)).unwrap().captured().tree.inodes.len(), 1);
}

/// Opens, reads and applies; whether all of it was taken for good.
fn is_taken(bytes: &[u8], bench: &Bench) -> bool {
    let Ok(packed) = Packed::open(Cursor::new(bytes)) else { return false };
    let (captured, mut contents) = packed.split();
    let report = apply(&captured, &mut contents, &bench.targets(false)).unwrap();
    report.errors.is_empty()
}

#[test]
fn every_changed_byte_and_every_length_is_noticed() {
    let mut bench = Bench::new();
    fs::write(bench.path("a").join("f"), b"some text in a file ".repeat(20)).unwrap();
    let bytes = packed(&mut bench);
    assert!(is_taken(&bytes, &bench));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(!is_taken(&changed, &bench), "byte {at} of {}", bytes.len());
        assert!(!is_taken(&bytes[..at], &bench), "{at} bytes of {}", bytes.len());
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert!(!is_taken(&longer, &bench));
}

#[test]
fn other_files_are_told_apart() {
    let open = |bytes: &[u8]| Packed::open(Cursor::new(bytes.to_vec())).unwrap_err();
    assert!(matches!(open(b"no such thing at all"), PackError::Foreign));
    assert!(matches!(open(b""), PackError::Foreign));
    assert!(matches!(open(b"HOLOCFOR\x63\0\0\0"), PackError::Version { found: 99 }));
    let head = [&b"HOLOCFOR\x01\0\0\0"[..], &[0xff; 32]].concat();
    assert!(matches!(open(&head), PackError::Damaged { .. }));
}
