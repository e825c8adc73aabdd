//! Goal: any operations, recorded, synthesized, packed and applied elsewhere, make the same tree as the operations made.
//! Method: random operations on real files, each recorded in a log. At each cut only what the log says is read; what was captured goes
//! through a packed file to the other tree, which has that of the cut before, and both are compared.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::Cursor;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use common::{Bench, Content};
use holo_cfor::log::{Action, Changes, Cut, FileId, Log, Name, Ranges};
use holo_cfor::pack::{Packed, write};
use holo_cfor::{Captured, Hint, Inode, apply, verify};
use nix::fcntl::{FallocateFlags, RenameFlags, fallocate, renameat2};
use proptest::prelude::*;

/// Names: some in the root, some below a directory.
const NAMES: u8 = 8;
const BELOW: u8 = 5;

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    Write(u8, u64, usize, u8),
    Append(u8, usize, u8),
    Truncate(u8, u64),
    Punch(u8, u64, u64),
    Mode(u8, u32),
    Unlink(u8),
    Link(u8, u8),
    Rename(u8, u8),
    Exchange(u8, u8),
    Cut,
}

fn op() -> impl Strategy<Value = Op> {
    let (at, place, len) = (0..NAMES, 0u64..60_000, 1usize..9_000);
    let two = (at.clone(), at.clone());
    prop_oneof![
        4 => at.clone().prop_map(Op::Create),
        6 => (at.clone(), place.clone(), len.clone(), any::<u8>()).prop_map(|(n, p, l, b)| Op::Write(n, p, l, b)),
        3 => (at.clone(), len, any::<u8>()).prop_map(|(n, l, b)| Op::Append(n, l, b)),
        3 => (at.clone(), place.clone()).prop_map(|(n, size)| Op::Truncate(n, size)),
        2 => (at.clone(), place, 1u64..20_000).prop_map(|(n, p, l)| Op::Punch(n, p, l)),
        1 => (at.clone(), 0o600u32..0o777).prop_map(|(n, mode)| Op::Mode(n, mode)),
        2 => at.prop_map(Op::Unlink),
        2 => two.clone().prop_map(|(a, b)| Op::Link(a, b)),
        4 => two.clone().prop_map(|(a, b)| Op::Rename(a, b)),
        1 => two.prop_map(|(a, b)| Op::Exchange(a, b)),
        2 => Just(Op::Cut),
    ]
}

/// The tree that is worked in, and its log.
struct Work {
    bench: Bench,
    log: Log,
    /// Of each inode number how many files have had it.
    generations: HashMap<u64, u64>,
    last: Option<Captured<Content>>,
}

impl Work {
    fn new() -> Self {
        let bench = Bench::new();
        for tree in ["a", "b"] {
            fs::create_dir(bench.path(tree).join("d")).unwrap();
        }
        Self { bench, log: Log::default(), generations: HashMap::new(), last: None }
    }

    fn path(&self, at: u8) -> PathBuf {
        let name = format!("{}f{at}", if at < BELOW { "" } else { "d/" });
        self.bench.path("a").join(name)
    }

    fn id(&self, path: &std::path::Path) -> Option<FileId> {
        let meta = path.symlink_metadata().ok()?;
        let generation = self.generations.get(&meta.ino()).copied().unwrap_or(0);
        Some(FileId { dev: meta.dev(), ino: meta.ino(), generation })
    }

    fn name(&self, at: u8) -> Name {
        let path = self.path(at);
        Name { dir: self.id(path.parent().unwrap()).unwrap(), name: format!("f{at}").into() }
    }

    fn is_last(&self, at: u8) -> bool {
        self.path(at).symlink_metadata().unwrap().nlink() == 1
    }

    fn write(&mut self, file: FileId, path: &PathBuf, at: u64, bytes: &[u8]) {
        File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
        self.log.record(Action::Write { file, at, len: bytes.len() as u64 });
    }

    /// Does an operation, if it can be done, and records it.
    fn perform(&mut self, op: &Op) -> Option<()> {
        match *op {
            Op::Create(at) => {
                let path = self.path(at);
                let made = File::options().write(true).create_new(true).open(&path).ok()?;
                *self.generations.entry(made.metadata().unwrap().ino()).or_default() += 1;
                let file = self.id(&path)?;
                self.log.record(Action::Make(file));
                self.log.record(Action::Link { name: self.name(at), file });
            }
            Op::Write(at, place, len, byte) => {
                let path = self.path(at);
                self.write(self.id(&path)?, &path, place, &vec![byte; len]);
            }
            Op::Append(at, len, byte) => {
                let path = self.path(at);
                let file = self.id(&path)?;
                let end = path.metadata().unwrap().len();
                self.write(file, &path, end, &vec![byte; len]);
            }
            Op::Truncate(at, size) => {
                let path = self.path(at);
                let file = self.id(&path)?;
                File::options().write(true).open(path).unwrap().set_len(size).unwrap();
                self.log.record(Action::Truncate { file, size });
            }
            Op::Punch(at, place, len) => {
                let path = self.path(at);
                let file = self.id(&path)?;
                let opened = File::options().write(true).open(path).unwrap();
                let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(opened.as_fd(), how, place as i64, len as i64).ok()?;
                self.log.record(Action::Write { file, at: place, len });
            }
            Op::Mode(at, mode) => {
                let path = self.path(at);
                let file = self.id(&path)?;
                fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
                self.log.record(Action::Attributes(file));
            }
            Op::Unlink(at) => {
                let file = self.id(&self.path(at))?;
                let is_last = self.is_last(at);
                fs::remove_file(self.path(at)).unwrap();
                self.log.record(Action::Unlink { name: self.name(at), file, is_last });
            }
            Op::Link(a, b) => {
                let file = self.id(&self.path(a))?;
                fs::hard_link(self.path(a), self.path(b)).ok()?;
                self.log.record(Action::Link { name: self.name(b), file });
            }
            Op::Rename(a, b) => {
                let file = self.id(&self.path(a)).filter(|_| a != b)?;
                let replaced = self.id(&self.path(b)).map(|old| (old, self.is_last(b)));
                fs::rename(self.path(a), self.path(b)).unwrap();
                self.log.record(Action::Rename { from: self.name(a), to: self.name(b), file, replaced });
            }
            Op::Exchange(a, b) => {
                let (a_file, b_file) = (self.id(&self.path(a))?, self.id(&self.path(b))?);
                let (from, to) = (self.path(a), self.path(b));
                renameat2(
                    nix::fcntl::AT_FDCWD,
                    &from,
                    nix::fcntl::AT_FDCWD,
                    &to,
                    RenameFlags::RENAME_EXCHANGE,
                )
                .ok()?;
                self.log.record(Action::Exchange { a: self.name(a), a_file, b: self.name(b), b_file });
            }
            Op::Cut => self.cut(),
        }
        Some(())
    }

    /// Captures what the log says, brings it to the other tree, and compares.
    fn cut(&mut self) {
        let Cut::Changes(Changes { files, .. }) = self.log.cut().into_changes() else {
            panic!("there was room")
        };
        let changes: HashMap<(u64, u64), (bool, Ranges)> = files
            .into_iter()
            .map(|(file, change)| {
                let mut ranges = change.touched;
                let cut = change.cut_to.unwrap_or(u64::MAX);
                ranges.insert(cut, u64::MAX - cut);
                ((file.dev, file.ino), (change.is_new, ranges))
            })
            .collect();
        let nothing = Ranges::new();
        let hint = |inode: &Inode| match changes.get(&(inode.identity.dev, inode.identity.ino)) {
            // What had its number before is another file.
            Some((true, _)) => Hint::Mapped,
            Some((false, ranges)) => Hint::Written(ranges),
            None => Hint::Written(&nothing),
        };
        let captured = self.bench.capture(self.last.as_ref(), &hint);
        let mut bytes = Vec::new();
        write(&captured, &mut self.bench.store, &mut bytes).unwrap();
        let (unpacked, mut contents) = Packed::open(Cursor::new(bytes)).unwrap().split();
        let report = apply(&unpacked, &mut contents, &self.bench.targets(false)).unwrap();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(verify(&self.bench.path("a"), &self.bench.path("b")).unwrap(), []);
        self.last = Some(captured);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_was_done_is_what_comes_out(ops in proptest::collection::vec(op(), 0..70)) {
        let mut work = Work::new();
        for op in ops.iter().chain([&Op::Cut]) {
            // One that cannot be done is left out.
            let _ = work.perform(op);
        }
    }
}
