//! Goal: a tree that is brought up to date by what was heard is what a scan of everything finds, whatever was done to files, names
//! and attributes; also if looks were made in between of which nothing came, and if there is no hearing of what was done.
//! Method: operations at random in nested directories; after some of them the draft is compared with a scan, name by name, and its
//! contents with the files.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[allow(dead_code)]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Content, Store};
use holo_cfor::{
    Captured, ContentSource, Draft, Followed, Here, Hint, Inode, Kind, Look, NoLeases, Staged, Tree, scan,
    stage,
};

type Number = (u64, u64);
/// Not dumped, access not noted, written at once: what does not keep the test from going on.
const FLAGS: [u32; 3] = [0x40, 0x80, 0x8];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_owned();
        for _ in 0..self.below(3) {
            path.push(format!("d{}", self.below(3)));
        }
        path.join(format!("{}{}", ["f", "d", "f"][self.below(3)], self.below(4)))
    }
}

fn number(path: &Path) -> Option<Number> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Named pipes are not waited for.
fn quiet() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK);
    options
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn renameat2(a: &Path, b: &Path, flags: u32) {
    // SAFETY: both paths end with zero.
    unsafe { libc::renameat2(libc::AT_FDCWD, c(a).as_ptr(), libc::AT_FDCWD, c(b).as_ptr(), flags) };
}

/// Does something; what a recorder would tell of goes to `suspects`. What fails, fails.
fn step(random: &mut Random, root: &Path, suspects: &mut BTreeSet<Number>, held: &mut Vec<File>) {
    let (one, two) = (random.path(root), random.path(root));
    let mut write = |path: &Path, random: &mut Random| {
        let Ok(file) = quiet().write(true).create(true).mode(0o640).open(path) else { return };
        let bytes = vec![random.below(256) as u8; random.below(9000)];
        let _ = file.write_all_at(&bytes, random.below(20000) as u64);
        let meta = file.metadata().unwrap();
        suspects.insert((meta.dev(), meta.ino()));
        if random.below(8) == 0 {
            held.push(file);
        }
    };
    match random.below(25) {
        0..=4 => write(&one, random),
        5 | 6 => drop(fs::create_dir_all(one.join("d1/d2"))),
        7 => drop(fs::create_dir(&one)),
        8 => drop(fs::remove_file(&one)),
        9 => drop(fs::remove_dir_all(&one)),
        10..=12 => drop(fs::rename(&one, &two)),
        13 => renameat2(&one, &two, libc::RENAME_EXCHANGE),
        14 => drop(fs::hard_link(&one, &two)),
        15 => drop(symlink("somewhere", &one)),
        16 => drop(fs::set_permissions(&one, fs::Permissions::from_mode(0o700 + random.below(64) as u32))),
        17 if random.below(2) == 0 => {
            let list = common::access_list([7, random.below(8) as u16, 5, 7, 0], 4321);
            let key = ["system.posix_acl_access", "system.posix_acl_default"][random.below(2)];
            let _ = common::set_attribute(&one, key, (random.below(4) > 0).then_some(&list));
        }
        17 => {
            let value = [random.below(256) as u8; 3];
            // SAFETY: both texts end with zero; value and length are of one array.
            unsafe {
                libc::lsetxattr(c(&one).as_ptr(), c"user.follow".as_ptr(), value.as_ptr().cast(), 3, 0)
            };
        }
        18 => {
            let times = [libc::timespec { tv_sec: random.below(9999) as i64, tv_nsec: 7 }; 2];
            // SAFETY: the path ends with zero, two times.
            unsafe {
                libc::utimensat(libc::AT_FDCWD, c(&one).as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
            };
        }
        19 => {
            // SAFETY: the path ends with zero.
            unsafe { libc::mkfifo(c(&one).as_ptr(), 0o600) };
        }
        20 => {
            // Out of the root and, perhaps, back again.
            let away = root.parent().unwrap().join("away");
            let _ = if random.below(2) == 0 { fs::rename(&one, &away) } else { fs::rename(&away, &one) };
        }
        21 => {
            // Descriptors outlive names.
            if let Some(file) = held.pop() {
                let _ = file.set_len(random.below(5000) as u64);
                let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
                let meta = file.metadata().unwrap();
                suspects.insert((meta.dev(), meta.ino()));
            }
        }
        22 => {
            let mut open = OpenOptions::new();
            open.write(true).custom_flags(libc::O_TMPFILE).mode(0o600);
            let Ok(file) = open.open(one.parent().unwrap()) else { return };
            let _ = file.write_all_at(b"no name yet", 0);
            let of = c(&PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))));
            // SAFETY: both paths end with zero.
            unsafe {
                libc::linkat(
                    libc::AT_FDCWD,
                    of.as_ptr(),
                    libc::AT_FDCWD,
                    c(&one).as_ptr(),
                    libc::AT_SYMLINK_FOLLOW,
                )
            };
            let meta = file.metadata().unwrap();
            suspects.insert((meta.dev(), meta.ino()));
            held.push(file);
        }
        23 => {
            // Of directories the kernel does not tell.
            let _ = common::set_flags(&one, FLAGS[random.below(3)], FLAGS[random.below(3)]);
            suspects.extend(number(&one));
        }
        _ => {
            let mut byte = [0];
            let _ = quiet().read(true).open(&one).map(|file| file.read_at(&mut byte, 0));
        }
    }
}

/// A tree by paths; numbers of inodes are no part of it, but which names are links is.
fn by_path(tree: &Tree) -> BTreeMap<Vec<u8>, (Inode, Vec<Vec<u8>>)> {
    let mut names: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    for (root, entry) in tree.entries() {
        names.entry(entry.inode).or_default().push(entry.path.under(&root.path));
    }
    let all = tree.entries().map(|(root, entry)| {
        let mut inode = tree.inode(entry).clone();
        if !matches!(inode.kind, Kind::File { .. }) {
            inode.atime = holo_cfor::Time::default();
        }
        (entry.path.under(&root.path), (inode, names[&entry.inode].clone()))
    });
    all.collect()
}

fn same(captured: &Captured<Content>, store: &mut Store, all: &Tree, what: &str) {
    captured.validate().unwrap();
    let (found, wanted) = (by_path(&captured.tree), by_path(all));
    for (path, at) in &wanted {
        let text = String::from_utf8_lossy(path);
        assert_eq!(found.get(path), Some(at), "{what}: {text}");
    }
    assert_eq!(found.len(), wanted.len(), "{what}: too many names");
    let mut here = Here::new(&captured.tree);
    for (at, content) in &captured.contents {
        let (mut wanted, mut stored) = (Vec::new(), Vec::new());
        here.open(*at).unwrap().read_to_end(&mut wanted).unwrap();
        store.open(content).unwrap().read_to_end(&mut stored).unwrap();
        assert!(wanted == stored, "{what}: content of inode {at}");
    }
}

struct Trial {
    roots: Vec<PathBuf>,
    followed: Followed,
    captured: Option<Captured<Content>>,
    staging: PathBuf,
    /// Looks that went by what was heard.
    drafts: usize,
}

impl Trial {
    fn look(&mut self, suspects: &BTreeSet<Number>, extra: &[PathBuf]) -> Staged<Content> {
        let look =
            Look { roots: &self.roots, extra_files: extra, excludes: &[], suspects, leases: &NoLeases };
        let hint = |inode: &Inode| {
            // Anything may have happened to what was told of.
            let key = (inode.identity.dev, inode.identity.ino);
            if suspects.contains(&key) { Hint::Mapped } else { Hint::Attributes }
        };
        if let Some(captured) = &self.captured {
            let draft = Draft::new(captured);
            if let Some(staged) = draft.stage(&mut self.followed, &look, &hint, &self.staging).unwrap() {
                self.drafts += 1;
                return staged;
            }
        }
        let none = Tree::default();
        let previous = self.captured.as_ref();
        let tree = self.followed.scan(&look, previous.map_or(&none, |one| &one.tree)).unwrap();
        stage(tree, previous, &hint, &self.staging).unwrap()
    }
}

fn trial(base: &Path) -> (tempfile::TempDir, Trial) {
    let dir = tempfile::tempdir_in(base).unwrap();
    for name in ["root/d0/d1", "root/d2", "other/d1", "staging"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let roots = vec![dir.path().join("root"), dir.path().join("root/d0"), dir.path().join("other")];
    let staging = dir.path().join("staging");
    let trial = Trial { roots, followed: Followed::default(), captured: None, staging, drafts: 0 };
    (dir, trial)
}

fn random_changes(seed: u64, rounds: usize) -> usize {
    let (dir, mut trial) = trial(Path::new("/var/tmp"));
    let mut random = Random(seed);
    let mut store = Store::default();
    let mut suspects = BTreeSet::new();
    let mut held = Vec::new();
    for round in 0..rounds {
        for _ in 0..random.below(30) {
            let root = dir.path().join(if random.below(4) == 0 { "other" } else { "root" });
            step(&mut random, &root, &mut suspects, &mut held);
        }
        held.truncate(6);
        // The root must be there.
        assert!(dir.path().join("root").is_dir());
        let extra: Vec<PathBuf> = ["away", "single", "root/d2"]
            .iter()
            .map(|name| dir.path().join(name))
            .filter(|p| p.is_file())
            .collect();
        if random.below(5) == 0 {
            let _ = fs::write(dir.path().join("single"), [random.below(256) as u8; 100]);
            let _ = fs::hard_link(random.path(&dir.path().join("root")), dir.path().join("single"));
        }
        suspects
            .extend(held.iter().map(|file| file.metadata().map(|meta| (meta.dev(), meta.ino())).unwrap()));
        suspects.extend(extra.iter().filter_map(|path| number(path)));
        let staged = trial.look(&suspects, &extra);
        let all = scan(&trial.roots, &extra, &[]).unwrap();
        if random.below(4) == 0 {
            // Nothing comes of it.
            continue;
        }
        let captured = staged.store(&mut store).unwrap();
        same(&captured, &mut store, &all, &format!("seed {seed}, round {round}"));
        trial.followed.ignore();
        trial.captured = Some(captured);
        trial.followed.settle();
        suspects.clear();
    }
    trial.drafts
}

#[test]
fn what_is_heard_is_all_that_changes() {
    let mut drafts = 0;
    for seed in 1..=25 {
        drafts += random_changes(seed, 40);
    }
    assert!(drafts > 500, "{drafts} looks went by what was heard");
}

#[test]
fn what_others_write_is_found_later_and_followed_from_then_on() {
    let (dir, mut trial) = trial(Path::new("/var/tmp"));
    let mut store = Store::default();
    let name = dir.path().join("root/d0/f");
    let mut others = File::create(&name).unwrap();
    others.write_all(b"one").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let none = BTreeSet::new();
    let mut epoch = |trial: &mut Trial| {
        let captured = trial.look(&none, &[]).store(&mut store).unwrap();
        trial.followed.settle();
        let all = scan(&trial.roots, &[], &[]).unwrap();
        // It has opened what it looked at.
        trial.followed.ignore();
        let is_same = by_path(&captured.tree) == by_path(&all);
        trial.captured = Some(captured);
        is_same
    };
    assert!(epoch(&mut trial));
    // That it was copied was heard of.
    assert!(epoch(&mut trial));
    others.write_all(b"two").unwrap();
    assert!(!epoch(&mut trial), "nobody has told of it");
    let check = |trial: &mut Trial| {
        let look =
            Look { roots: &trial.roots, extra_files: &[], excludes: &[], suspects: &none, leases: &NoLeases };
        trial.followed.check(&look, &trial.captured.as_ref().unwrap().tree, &|_| false).unwrap()
    };
    assert_eq!(check(&mut trial), 1);
    assert!(epoch(&mut trial));
    for _ in 0..3 {
        others.write_all(b"three").unwrap();
        assert!(epoch(&mut trial));
        assert_eq!(check(&mut trial), 0);
    }
    assert_eq!(trial.drafts, 6);
    // What was heard of is no surprise; what else happened is looked for everywhere.
    fs::rename(&name, dir.path().join("root/d2/g")).unwrap();
    assert_eq!(check(&mut trial), 0);
    assert!(epoch(&mut trial));
    assert_eq!(trial.drafts, 7);
    trial.captured.as_mut().unwrap().tree.inodes[0].mode ^= 0o11;
    assert_eq!(check(&mut trial), 1);
    assert!(epoch(&mut trial));
    assert_eq!(trial.drafts, 7);
    assert!(epoch(&mut trial));
    assert_eq!(trial.drafts, 8);
}
