//! `holo-cfor` on its own: a small tree is recorded, its changes synthesized, packed and applied elsewhere.
//!
//! ```text
//! cargo run -p holo-cfor --example replicate
//! ```
//!
//! 1. `scan` and `capture`: the whole tree, once.
//! 2. Whoever changes files records it in a `Log`: actions with ranges, no data. `cut` takes the log, `into_changes` says what
//!    the actions amount to.
//! 3. `scan_since` and `stage`: names and attributes again; of files that were recorded, only the ranges are read.
//! 4. `pack::write` and `pack::Packed::open`: one file, to be carried anywhere.
//! 5. `apply`: makes the tree there identical, which `verify` checks.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use holo_cfor::log::{Action, Cut, FileChange, FileId, Log, Name, Ranges};
use holo_cfor::pack::{self, Packed};
use holo_cfor::{ContentSink, ContentSource, Hint, Part, Targets, apply, scan, scan_since, stage, verify};

/// Where contents are kept between two captures. A real one keeps them by hash, in parts, on disk; see `holo-image`.
#[derive(Default)]
struct Contents {
    all: Vec<Vec<u8>>,
    bytes_new: usize,
}

impl Contents {
    fn add(&mut self, bytes: Vec<u8>) -> usize {
        self.all.push(bytes);
        self.all.len() - 1
    }
}

impl ContentSink for Contents {
    type Content = usize;

    fn put(&mut self, data: &mut dyn Read, _len: u64) -> io::Result<usize> {
        let mut bytes = Vec::new();
        self.bytes_new += data.read_to_end(&mut bytes)?;
        Ok(self.add(bytes))
    }

    fn patch(&mut self, base: &usize, parts: &[Part], fresh: &mut dyn Read) -> io::Result<usize> {
        let mut bytes = Vec::new();
        for part in parts {
            match *part {
                Part::Base { at, len } => {
                    bytes.extend_from_slice(&self.all[*base][at as usize..][..len as usize])
                }
                Part::Fresh { len } => self.bytes_new += fresh.take(len).read_to_end(&mut bytes)?,
            }
        }
        Ok(self.add(bytes))
    }
}

impl ContentSource for Contents {
    type Content = usize;

    fn open<'a>(&'a mut self, content: &'a usize) -> io::Result<Box<dyn Read + 'a>> {
        Ok(Box::new(Cursor::new(&self.all[*content])))
    }
}

fn id(path: &Path) -> io::Result<FileId> {
    let meta = path.symlink_metadata()?;
    // The generation (`FS_IOC_GETVERSION`) tells files apart that get a number one after the other: none is removed here.
    Ok(FileId { dev: meta.dev(), ino: meta.ino(), generation: 0 })
}

/// Changes the tree and records each change, as an interposer would do it at the system calls.
fn work(top: &Path, log: &mut Log) -> Result<(), Box<dyn Error>> {
    let dir = id(top)?;
    let name = |name: &str| Name { dir, name: name.into() };
    let database = File::options().write(true).open(top.join("database"))?;
    for (at, len) in [(30, 30_000), (20, 20_000)] {
        database.write_all_at(&vec![7; len], at)?;
        log.record(Action::Write { file: id(&top.join("database"))?, at, len: len as u64 });
    }
    // Renamed twice: what it amounts to is one renaming.
    let file = id(&top.join("draft"))?;
    for (from, to) in [("draft", "better"), ("better", "final")] {
        fs::rename(top.join(from), top.join(to))?;
        log.record(Action::Rename { from: name(from), to: name(to), file, replaced: None });
    }
    fs::write(top.join("new"), "new file")?;
    let file = id(&top.join("new"))?;
    log.record(Action::Make(file));
    log.record(Action::Link { name: name("new"), file });
    log.record(Action::Write { file, at: 0, len: 8 });
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let path = |name: &str| scratch.path().join(name);
    let (here, there, staging) = (path("here"), path("there"), path("staging"));
    for dir in [&here, &there, &staging] {
        fs::create_dir(dir)?;
    }
    let here = here.canonicalize()?;
    fs::write(here.join("database"), vec![1; 10 << 20])?;
    fs::write(here.join("draft"), "a text")?;

    let mut contents = Contents::default();
    let first = stage(scan(std::slice::from_ref(&here), &[], &[])?, None, &|_| Hint::Attributes, &staging)?;
    let first = first.store(&mut contents)?;
    println!("first capture: {} bytes of content", std::mem::take(&mut contents.bytes_new));

    let mut log = Log::default();
    work(&here, &mut log)?;
    let Cut::Changes(changes) = log.cut().into_changes() else {
        return Err("too many changes for the log".into());
    };
    for (file, FileChange { touched, .. }) in
        changes.files.iter().filter(|(_, change)| !change.touched.is_empty())
    {
        let ranges: Vec<_> =
            touched.iter().map(|range| format!("{}..{}", range.at, range.at + range.len)).collect();
        println!("inode {} was written to in {}", file.ino, ranges.join(" "));
    }
    for (name, change) in &changes.names {
        println!("name {} is new: {}", String::from_utf8_lossy(&name.name), change.before.is_none());
    }

    let touched: HashMap<(u64, u64), &Ranges> =
        changes.files.iter().map(|(file, change)| ((file.dev, file.ino), &change.touched)).collect();
    let nothing = Ranges::new();
    let hint = |inode: &holo_cfor::Inode| {
        let known = touched.get(&(inode.identity.dev, inode.identity.ino));
        Hint::Written(known.copied().unwrap_or(&nothing))
    };
    let tree = scan_since(std::slice::from_ref(&here), &[], &[], &first.tree)?;
    let second = stage(tree, Some(&first), &hint, &staging)?.store(&mut contents)?;
    println!("second capture: {} bytes of content", contents.bytes_new);
    assert!(contents.bytes_new < 50_000, "only what was written is read");

    let packed = path("second.pack");
    pack::write(&second, &mut contents, &mut File::create(&packed)?)?;
    println!("packed: {} bytes", packed.metadata()?.len());

    let (captured, mut source) = Packed::open(File::open(&packed)?)?.split();
    let map = HashMap::from([(here.as_os_str().as_encoded_bytes().to_vec(), there.clone())]);
    let report = apply(&captured, &mut source, &Targets { map, ..Targets::default() })?;
    println!("applied: {} names made, {} errors", report.made, report.errors.len());
    let differences = verify(&here, &there)?;
    assert!(differences.is_empty(), "{differences:?}");
    println!("both trees are identical");
    Ok(())
}
