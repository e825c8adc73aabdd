//! Goal: content that is read when the application runs again is what was there at the cut, whatever becomes of names, and what
//! was read may be overwritten at once. Method: a keeper that keeps everything, and overwrites what it is given back.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use common::Bench;
use holo_cfor::{
    Extent, Hint, Inode, Keeper, Kept, NoLeases, Staging, Waiting, apply, log::Ranges, scan_since, stage,
};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

const SHIFT: u32 = 16;
const PIECE: u64 = 1 << SHIFT;

#[derive(Default)]
struct All {
    kept: Vec<(u64, Vec<Extent>)>,
}

impl Keeper for All {
    fn keep(&mut self, inode: &Inode, data: &[Extent]) -> Option<Kept> {
        self.kept.push((inode.identity.ino, data.to_vec()));
        let bytes: u64 = data.iter().map(|extent| extent.len).sum();
        let piece_shift = (bytes > 2 * PIECE).then_some(SHIFT);
        Some(Kept { ticket: self.kept.len() - 1, piece_shift })
    }
}

/// Overwrites what was read.
struct Writers {
    /// By ticket.
    files: Vec<File>,
    wants: Vec<(usize, u64)>,
    taken: Vec<(usize, Option<u64>)>,
    same: Vec<bool>,
    most: usize,
}

impl Waiting for Writers {
    fn wanted(&mut self) -> Option<(usize, u64)> {
        self.wants.pop()
    }

    fn took_piece(&mut self, ticket: usize, piece: u64) {
        self.taken.push((ticket, Some(piece)));
        let Some(file) = self.files.get(ticket) else { return };
        if piece * PIECE < file.metadata().unwrap().len() {
            file.write_all_at(&[b'x'; PIECE as usize], piece * PIECE).unwrap();
        }
    }

    fn took(&mut self, ticket: usize, is_same: bool) {
        self.taken.push((ticket, None));
        self.same.push(is_same);
        self.files[ticket].set_len(0).unwrap();
    }

    fn goes_on(&mut self) -> bool {
        self.taken.len() < self.most
    }
}

fn fill(path: &PathBuf, bytes: usize, seed: u8) {
    let content: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8 ^ seed).collect();
    fs::write(path, content).unwrap();
}

fn writers(bench: &Bench, keeper: &All, wants: Vec<(usize, u64)>) -> Writers {
    let all: Vec<(u64, PathBuf)> = fs::read_dir(bench.path("a"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.metadata().unwrap().ino(), path))
        .collect();
    let path = |ino: &u64| all.iter().find(|(known, _)| known == ino).unwrap().1.clone();
    let open = |(ino, _): &(u64, _)| File::options().read(true).write(true).open(path(ino)).unwrap();
    let files = keeper.kept.iter().map(open).collect();
    Writers { files, wants, taken: Vec::new(), same: Vec::new(), most: usize::MAX }
}

#[test]
fn what_is_read_later_is_what_was_there() {
    let mut bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    for (name, bytes) in
        [("small", 5000), ("large", 10 * PIECE as usize + 333), ("gone", 70_000), ("empty", 0)]
    {
        fill(&a.join(name), bytes, bytes as u8);
        // What it is to become there.
        fs::copy(a.join(name), b.join(name)).unwrap();
    }
    let mut keeper = All::default();
    let staging = bench.path("staging");
    let tree = bench.scan();
    let mut staged = stage(
        tree,
        None,
        &|_| Hint::Attributes,
        Staging { dir: &staging, keeper: Some(&mut keeper), leases: &NoLeases },
    )
    .unwrap();
    assert_eq!((staged.rest(), keeper.kept.len()), (3, 3), "not the empty one");
    let large = keeper.kept.iter().position(|(_, data)| data[0].len > 10 * PIECE).unwrap();
    let mut writers =
        writers(&bench, &keeper, vec![(large, 2), (large, 99), (99, 0), (large, 7), (large, 7)]);
    fs::rename(a.join("small"), a.join("large")).unwrap();
    fs::remove_file(a.join("gone")).unwrap();
    staged.read_rest(&mut writers).unwrap();
    let first: Vec<_> = writers.taken.iter().take(4).collect();
    assert!(first.contains(&&(large, Some(7))) && first.contains(&&(99, Some(0))), "{first:?}");
    assert_eq!(staged.rest(), 0);
    let captured = staged.store(&mut bench.store).unwrap();
    captured.validate().unwrap();
    fs::remove_dir_all(&a).unwrap();
    fs::create_dir(&a).unwrap();
    let report = apply(&captured, &mut bench.store, &holo_cfor::Targets::default()).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    for name in ["small", "large", "gone", "empty"] {
        assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 0, "staging is left empty");
}

#[test]
fn only_what_was_written_to_is_awaited() {
    let mut bench = Bench::new();
    let path = bench.path("a").join("f");
    fill(&path, 1 << 20, 3);
    let first = bench.capture(None, &|_| Hint::Attributes);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"new", 300_000).unwrap();
    let old = fs::read(&path).unwrap();
    let mut ranges = Ranges::new();
    ranges.insert(300_000, 3);
    let mut keeper = All::default();
    let staging = bench.path("staging");
    let tree = scan_since(&[bench.path("a")], &[], &[], &first.tree).unwrap();
    let hint = |_: &Inode| Hint::Written(&ranges);
    let mut staged = stage(
        tree,
        Some(&first),
        &hint,
        Staging { dir: &staging, keeper: Some(&mut keeper), leases: &NoLeases },
    )
    .unwrap();
    assert_eq!(keeper.kept[0].1, [Extent { at: 299_008, len: 4096 }]);
    // All else may change at once.
    file.write_all_at(&[9; 100_000], 0).unwrap();
    file.set_len(2 << 20).unwrap();
    let mut writers = writers(&bench, &keeper, Vec::new());
    staged.read_rest(&mut writers).unwrap();
    assert_eq!(writers.same, [false], "somebody wrote");
    let captured = staged.store(&mut bench.store).unwrap();
    let targets = bench.targets(false);
    apply(&captured, &mut bench.store, &targets).unwrap();
    assert_eq!(fs::read(bench.path("b").join("f")).unwrap(), old);
}

#[test]
fn reading_can_be_called_off() {
    let bench = Bench::new();
    for number in 0..5u8 {
        fill(&bench.path("a").join(number.to_string()), 100, number);
    }
    let mut keeper = All::default();
    let staging = bench.path("staging");
    let mut staged: holo_cfor::Staged<common::Content> = stage(
        bench.scan(),
        None,
        &|_| Hint::Attributes,
        Staging { dir: &staging, keeper: Some(&mut keeper), leases: &NoLeases },
    )
    .unwrap();
    let mut writers = writers(&bench, &keeper, Vec::new());
    writers.most = 2;
    let failed = staged.read_rest(&mut writers).unwrap_err();
    assert!(failed.to_string().contains("read after the cut"), "{failed}");
    drop(staged);
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 0, "staging is left empty");
}
