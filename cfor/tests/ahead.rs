//! Goal: contents that were stored while others wrote are what the first look in a stop goes on from: it reads only what was changed,
//! and has all files as they are.
//! Method: the sink itself changes files, names and attributes while contents are stored, and some more are changed afterwards.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[allow(dead_code)]
mod common;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Bench, Content};
use holo_cfor::{ContentSink, Draft, Followed, Hint, Inode, Look, NoLeases, ahead, apply, verify};

const FILES: usize = 60;
const BYTES: usize = 5000;
/// Longer than times of files are in doubt.
const TICKS: Duration = Duration::from_millis(50);

fn name(top: &Path, file: usize) -> PathBuf {
    top.join(format!("d{}/f{file}", file % 4))
}

/// Whatever can be done to files; what fails, fails: others did it before.
fn disturb(top: &Path, what: usize) {
    let (one, two) = (name(top, what * 7 % FILES), name(top, what * 11 % FILES));
    let _ = match what % 9 {
        0 => fs::write(&one, vec![what as u8; what * 31]),
        1 => OpenOptions::new().append(true).open(&one).and_then(|mut file| file.write_all(b"more")),
        2 => fs::rename(&one, &two),
        3 => fs::remove_file(&one),
        4 => fs::hard_link(&one, top.join(format!("link{what}"))),
        5 => fs::create_dir_all(top.join(format!("new{what}/deep")))
            .and_then(|()| fs::write(top.join(format!("new{what}/deep/file")), vec![7; what])),
        6 => fs::set_permissions(&one, Permissions::from_mode(0o600 + what as u32 % 64)),
        7 => fs::rename(top.join(format!("d{}", what % 4)), top.join("elsewhere"))
            .and_then(|()| fs::rename(top.join("elsewhere"), top.join(format!("d{}", what % 4)))),
        _ => symlink("nowhere", top.join(format!("pointer{what}"))),
    };
}

/// Puts contents, and disturbs the files each time.
struct Disturbing<'a> {
    bench: &'a mut Bench,
    top: PathBuf,
    puts: usize,
}

impl ContentSink for Disturbing<'_> {
    type Content = Content;

    fn put(&mut self, data: &mut dyn Read, len: u64) -> io::Result<Content> {
        disturb(&self.top, self.puts);
        self.puts += 1;
        self.bench.store.put(data, len)
    }
}

#[test]
fn what_was_stored_ahead_is_brought_up_to_date() {
    let mut bench = Bench::new();
    let (top, target) = (bench.path("a"), bench.path("b"));
    for file in 0..FILES {
        let path = name(&top, file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![file as u8; BYTES]).unwrap();
    }
    std::thread::sleep(TICKS);
    let (roots, none) = (vec![top.clone()], BTreeSet::new());
    let look = Look { roots: &roots, extra_files: &[], excludes: &[], suspects: &none, leases: &NoLeases };
    let mut followed = Followed::default();
    let mut sink = Disturbing { bench: &mut bench, top: top.clone(), puts: 0 };
    let found = ahead(&mut followed, &look, &mut sink, &|| true).unwrap().unwrap();
    assert!(sink.puts >= FILES / 2, "{} contents only", sink.puts);
    std::thread::sleep(TICKS);
    for what in 100..112 {
        disturb(&top, what);
    }
    let before = bench.store.bytes_put;
    let look = Look { suspects: &found.unread, ..look };
    let staging = bench.path("staging");
    let staged = Draft::new(&found.captured)
        .stage(&mut followed, &look, &|_: &Inode| Hint::Attributes, &staging)
        .unwrap()
        .expect("all was heard of");
    let captured = staged.store(&mut bench.store).unwrap();
    captured.validate().unwrap();
    let late = bench.store.bytes_put - before;
    assert!(late > 0 && late < (FILES * BYTES) as u64 / 2, "{late} bytes were read once more");
    let targets = bench.targets(false);
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(verify(&top, &target).unwrap(), []);
}

#[test]
fn it_can_be_called_off() {
    let mut bench = Bench::new();
    let top = bench.path("a");
    fs::write(top.join("file"), b"content").unwrap();
    let (roots, none) = (vec![top], BTreeSet::new());
    let look = Look { roots: &roots, extra_files: &[], excludes: &[], suspects: &none, leases: &NoLeases };
    let found = ahead(&mut Followed::default(), &look, &mut bench.store, &|| false).unwrap();
    assert!(found.is_none() && bench.store.parts.is_empty());
}
