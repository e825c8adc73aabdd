//! Goal: the files of every epoch are identical to those at its cut: names, types, contents, holes, hard links, modes,
//! owners, times, attributes, whatever was done to them since the epoch before, also by processes that were killed.
//! Method: several processes change the same files in every way at random. One is killed wherever it is and the others rest
//! while an epoch is taken; it is applied to an empty directory, which is compared with the files while they still rest.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_cfor::{Captured, ContentSource, Difference, Targets};
use holo_image::wire::{self, Kind};
use holo_image::{Blob, EpochReader, Store};
use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{compile, wait};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const TREES_BYTES_MAX: u64 = 1 << 30;

struct Source<'a>(&'a EpochReader);

impl ContentSource for Source<'_> {
    type Content = Blob;

    fn open<'a>(&'a mut self, content: &Blob) -> io::Result<Box<dyn io::Read + 'a>> {
        let mut bytes = Vec::new();
        self.0.read_blob(content, &mut bytes).map_err(io::Error::other)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

/// Puts the files under `root` in an epoch to `into`.
fn apply(state: &Path, epoch: u64, root: &Path, into: &Path) {
    let reader = Store::inspect(state).app("work").unwrap().open_epoch(epoch).unwrap();
    let (_, bytes) = reader.section("files").unwrap();
    let blob: Blob = wire::decode(bytes, Kind::STATE, 1 << 24).unwrap();
    let mut trees = Vec::new();
    reader.read_blob(&blob, &mut trees).unwrap();
    let captured: Captured<Blob> = wire::decode(&trees, Kind::new(40, 1), TREES_BYTES_MAX).unwrap();
    let root = root.as_os_str().as_encoded_bytes().to_vec();
    assert!(captured.tree.roots.iter().any(|one| one.path == root), "the root is in the epoch");
    let targets = Targets { map: HashMap::from([(root, into.to_owned())]), ..Targets::default() };
    let report = holo_cfor::apply(&captured, &mut Source(&reader), &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

/// Was a hole filled with zeros by the kernel, which does so when it writes back what is next to it?
fn is_kernels(difference: &Difference, a: &Path, b: &Path) -> bool {
    let path = std::ffi::OsStr::from_bytes(difference.path.as_bytes());
    let same = || fs::read(a.join(path)).unwrap() == fs::read(b.join(path)).unwrap();
    difference.what.starts_with("data is at") && same()
}

fn storm(seed: &str, lasts: Duration) {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let files = node.outside(DIR);
    let pause = |name: &str| node.outside(DIR).join(name);
    let program = Program::new(compile::workload("file_storm.c"), &[node.inside(DIR), seed.into()]);
    let mut app = App::start(&node, "work", &program, DIR, &["--keep", "3"]);
    app.wait_joined(&node);
    let start = Instant::now();
    let (mut epochs, mut changed, mut by_record) = (0, 0, 0);
    while start.elapsed() < lasts {
        std::thread::sleep(Duration::from_micros(50_000 + epochs * 7919 % 60_000));
        fs::write(pause("pause"), b"").unwrap();
        wait::until(LIMIT, "the storm rests", || {
            assert_eq!(holo_tests::workload::result(&node), "");
            pause("quiet").exists().then_some(())
        });
        let epoch = app.checkpoint(&node);
        let scratch = tempfile::tempdir_in(node.outside("data")).unwrap();
        let applied = scratch.path().join("applied");
        fs::create_dir(&applied).unwrap();
        apply(&node.outside("state"), epoch.number("epoch"), &files, &applied);
        let mut differences = holo_cfor::verify(&files, &applied).unwrap();
        differences.retain(|one| !is_kernels(one, &files, &applied));
        assert!(differences.is_empty(), "epoch {} (seed {seed}): {differences:#?}", epoch.number("epoch"));
        if epochs == 0 {
            fs::write(applied.join("files/d0/other"), b"a difference is seen").unwrap();
            assert!(!holo_cfor::verify(&files, &applied).unwrap().is_empty());
        }
        epochs += 1;
        changed += epoch.number("files_changed");
        by_record += u64::from(epoch.0["stop_parts_us"]["files.all"].is_null());
        fs::remove_file(pause("pause")).unwrap();
        wait::until(LIMIT, "the storm goes on", || (!pause("quiet").exists()).then_some(()));
    }
    eprintln!("{epochs} epochs with {changed} changed files identical, {by_record} without a look at all");
    assert!(by_record > epochs / 2, "{by_record} of {epochs} epochs went by what was recorded");
    assert!(epochs >= 3 && changed > epochs * 5, "{epochs} epochs, {changed} changes");
    app.kill(&node);
}

#[test]
fn every_epoch_is_identical() {
    storm("1", Duration::from_secs(8));
}

#[test]
fn every_epoch_is_identical_of_other_changes() {
    storm("2", Duration::from_secs(8));
}

#[test]
#[ignore = "takes long: make soak"]
fn every_epoch_is_identical_for_long() {
    for seed in 100..120 {
        storm(&seed.to_string(), Duration::from_secs(60));
    }
}
