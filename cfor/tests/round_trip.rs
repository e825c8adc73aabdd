//! Goal: any tree, captured and applied over any other, is identical to the first, and nothing of the second
//! is lost.
//!
//! Method: random trees of every kind of entry with random names, contents, holes, links and attributes;
//! `verify` compares. A second comparison with `find` and `diff` guards against `verify` being blind.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use common::{Bench, access_list, contents, release_all, set_attribute, set_flags};
use holo_cfor::{Hint, apply, verify};
use nix::sys::stat::Mode;
use proptest::collection::vec;
use proptest::prelude::*;

/// A step in making a tree. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Dir { parent: usize, name: Vec<u8> },
    File { parent: usize, name: Vec<u8>, ranges: Vec<(u8, u16)>, seed: u8, tail: u16 },
    Symlink { parent: usize, name: Vec<u8>, target: Vec<u8> },
    Fifo { parent: usize, name: Vec<u8> },
    Socket { parent: usize, name: Vec<u8> },
    Link { parent: usize, name: Vec<u8>, of: usize },
    Mode { of: usize, mode: u32 },
    Owner { of: usize, uid: u32, gid: u32 },
    Times { of: usize, nanos: u64 },
    Xattr { of: usize, key: u8, value: Vec<u8> },
    List { of: usize, is_default: bool, perms: [u16; 5], id: u32 },
    Unset { of: usize, key: u8 },
    Flags { of: usize, on: u32 },
}

/// Few names, so that two trees meet in many of them with different kinds.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::sample::select(vec![&b"a"[..], b"b", b"c", b"a.b"]).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>().prop_filter("no name", |b| *b != 0 && *b != b'/'), 1..9)
            .prop_filter("no name", |n| n != b"." && n != b".."),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0usize..1000;
    prop_oneof![
        3 => (at(), name()).prop_map(|(parent, name)| Step::Dir { parent, name }),
        5 => (at(), name(), vec((any::<u8>(), any::<u16>()), 0..3), any::<u8>(), prop_oneof![Just(0), any::<u16>()])
            .prop_map(|(parent, name, ranges, seed, tail)| Step::File { parent, name, ranges, seed, tail }),
        1 => (at(), name(), vec(1u8..=255, 1..20))
            .prop_map(|(parent, name, target)| Step::Symlink { parent, name, target }),
        1 => (at(), name()).prop_map(|(parent, name)| Step::Fifo { parent, name }),
        1 => (at(), name()).prop_map(|(parent, name)| Step::Socket { parent, name }),
        2 => (at(), name(), at()).prop_map(|(parent, name, of)| Step::Link { parent, name, of }),
        1 => (at(), 0u32..0o10000).prop_map(|(of, mode)| Step::Mode { of, mode }),
        1 => (at(), 0u32..70000, 0u32..70000).prop_map(|(of, uid, gid)| Step::Owner { of, uid, gid }),
        1 => (at(), 0u64..2_000_000_000_000_000_000).prop_map(|(of, nanos)| Step::Times { of, nanos }),
        1 => (at(), 0u8..3, vec(any::<u8>(), 0..40)).prop_map(|(of, key, value)| Step::Xattr { of, key, value }),
        1 => (at(), any::<bool>(), prop::array::uniform5(0u16..8), 0u32..70000)
            .prop_map(|(of, is_default, perms, id)| Step::List { of, is_default, perms, id }),
        1 => (at(), 0u8..5).prop_map(|(of, key)| Step::Unset { of, key }),
        1 => (at(), 0usize..32).prop_map(|(of, some)| {
            // Not dumped, access not noted; immutable, append-only; written at once.
            let bits = [0x40, 0x80, 0x10, 0x20, 0x8].into_iter().enumerate();
            Step::Flags { of, on: bits.filter(|(at, _)| some >> at & 1 != 0).map(|(_, bit)| bit).sum() }
        }),
    ]
}

const LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Makes a tree. A step that does not fit is left out.
fn build(root: &Path, steps: &[Step]) {
    let mut dirs = vec![root.to_owned()];
    let mut others: Vec<PathBuf> = Vec::new();
    let is_root = nix::unistd::geteuid().is_root();
    let mut flagged = Vec::new();
    release_all(root);
    for step in steps {
        let free = |parent: &usize, name: &[u8]| {
            let path = dirs[parent % dirs.len()].join(OsStr::from_bytes(name));
            (path.symlink_metadata().is_err()).then_some(path)
        };
        let all = || dirs[1..].iter().chain(&others).collect::<Vec<_>>();
        let pick = |of: &usize| (!all().is_empty()).then(|| all()[of % all().len()].clone());
        match step {
            Step::Dir { parent, name } => {
                let Some(path) = free(parent, name) else { continue };
                fs::create_dir(&path).unwrap();
                dirs.push(path);
            }
            Step::File { parent, name, ranges, seed, tail } => {
                let Some(path) = free(parent, name) else { continue };
                let file = File::create(&path).unwrap();
                for (at, len) in ranges {
                    let bytes: Vec<u8> = (0..*len).map(|i| (i as u8).wrapping_mul(*seed)).collect();
                    file.write_all_at(&bytes, u64::from(*at) * 3000).unwrap();
                }
                let len = file.metadata().unwrap().len();
                file.set_len(len + u64::from(*tail) * 2).unwrap();
                others.push(path);
            }
            Step::Symlink { parent, name, target } => {
                let Some(path) = free(parent, name) else { continue };
                symlink(OsStr::from_bytes(target), &path).unwrap();
                others.push(path);
            }
            Step::Fifo { parent, name } => {
                let Some(path) = free(parent, name) else { continue };
                nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o640)).unwrap();
                others.push(path);
            }
            Step::Socket { parent, name } => {
                let Some(path) = free(parent, name) else { continue };
                if UnixListener::bind(&path).is_ok() {
                    others.push(path);
                }
            }
            Step::Link { parent, name, of } => {
                let Some(path) = free(parent, name) else { continue };
                if !others.is_empty() {
                    fs::hard_link(&others[of % others.len()], &path).unwrap();
                    others.push(path);
                }
            }
            Step::Mode { of, mode } => {
                let Some(path) = pick(of).filter(|path| !path.is_symlink()) else { continue };
                // Others than root could not go on in what they may not enter.
                let mode = if is_root { *mode } else { *mode | 0o700 };
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
            Step::Owner { of, uid, gid } => {
                let Some(path) = pick(of).filter(|_| is_root) else { continue };
                std::os::unix::fs::lchown(&path, Some(*uid), Some(*gid)).unwrap();
            }
            Step::Times { of, nanos } => {
                let Some(path) = pick(of).filter(|path| path.is_file()) else { continue };
                let time = UNIX_EPOCH + Duration::from_nanos(*nanos);
                let file = File::open(&path).unwrap();
                file.set_times(FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
            }
            Step::Xattr { of, key, value } => {
                let Some(path) = pick(of).filter(|path| path.is_file() || path.is_dir()) else { continue };
                let _ = set_attribute(&path, &format!("user.k{key}"), Some(value));
            }
            Step::List { of, is_default, perms, id } => {
                let Some(path) = pick(of).filter(|path| !path.is_symlink()) else { continue };
                let mut perms = *perms;
                // As for modes.
                perms[0] |= if is_root { 0 } else { 7 };
                let key = if *is_default { LISTS[1] } else { LISTS[0] };
                let _ = set_attribute(&path, key, Some(&access_list(perms, *id)));
            }
            Step::Unset { of, key } => {
                let Some(path) = pick(of).filter(|path| !path.is_symlink()) else { continue };
                let key =
                    usize::from(*key).checked_sub(3).map_or(format!("user.k{key}"), |at| LISTS[at].into());
                let _ = set_attribute(&path, &key, None);
            }
            Step::Flags { of, on } => {
                let path = pick(of).filter(|path| !path.is_symlink() && (path.is_file() || path.is_dir()));
                flagged.extend(path.map(|path| (path, if is_root { *on } else { *on & 0xc0 })));
            }
        }
    }
    // Others than these cannot be changed any more.
    for (path, on) in flagged {
        let _ = set_flags(&path, on, 0xf8 & !on);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 0..40)
}

fn inodes(path: &Path, found: &mut Vec<(PathBuf, u64)>) {
    found.push((path.to_owned(), path.symlink_metadata().unwrap().ino()));
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| inodes(&entry.unwrap().path(), found));
    }
    found.sort();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_over_any_other(a in steps(), b in steps(), replaced: bool) {
        let mut bench = Bench::new();
        build(&bench.path("a"), &a);
        build(&bench.path("b"), &b);
        let mut before = HashSet::new();
        contents(&bench.path("b"), &mut before);
        bench.transfer(replaced);
        let differences = verify(&bench.path("a"), &bench.path("b")).unwrap();
        prop_assert!(differences.is_empty(), "{differences:?}");
        if replaced {
            let mut after = HashSet::new();
            contents(&bench.path("b"), &mut after);
            contents(&bench.path("replaced"), &mut after);
            prop_assert!(before.is_subset(&after), "content was lost");
        }
        // Again: nothing is to be done, and nothing is.
        let mut first = Vec::new();
        inodes(&bench.path("b"), &mut first);
        let report = bench.transfer(replaced);
        prop_assert_eq!((report.made, report.removed, report.bytes), (0, 0, 0));
        let mut second = Vec::new();
        inodes(&bench.path("b"), &mut second);
        prop_assert_eq!(first, second, "what was right was disturbed");
    }

    #[test]
    fn changes_are_followed(a in steps(), more in steps()) {
        let mut bench = Bench::new();
        build(&bench.path("a"), &a);
        let first = bench.capture(None, &|_| Hint::Attributes);
        let targets = bench.targets(false);
        apply(&first, &mut bench.store, &targets).unwrap();
        build(&bench.path("a"), &more);
        let second = bench.capture(Some(&first), &|_| Hint::Attributes);
        let report = apply(&second, &mut bench.store, &targets).unwrap();
        prop_assert!(report.errors.is_empty(), "{:?}", report.errors);
        let differences = verify(&bench.path("a"), &bench.path("b")).unwrap();
        prop_assert!(differences.is_empty(), "{differences:?}");
    }

    #[test]
    fn a_capture_survives_its_encoding(a in steps()) {
        let mut bench = Bench::new();
        build(&bench.path("a"), &a);
        let captured = bench.capture(None, &|_| Hint::Attributes);
        let bytes = bincode::serialize(&captured).unwrap();
        prop_assert_eq!(bincode::deserialize::<holo_cfor::Captured<common::Content>>(&bytes).unwrap(), captured);
    }
}

/// What coreutils say of a tree.
fn listing(path: &Path) -> String {
    let format = "%y %m %U %G %s %T@ %n %l %p\\n";
    let out = Command::new("find").args([".", "-printf", format]).current_dir(path).output().unwrap();
    assert!(out.status.success());
    let mut lines: Vec<_> = String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
    // Sizes of directories are the file system's business.
    lines.iter_mut().filter(|line| line.starts_with("d ")).for_each(|line| {
        let words: Vec<_> = line.split(' ').enumerate().filter(|(i, _)| *i != 4).map(|(_, w)| w).collect();
        *line = words.join(" ");
    });
    lines.sort();
    lines.join("\n")
}

#[test]
fn coreutils_agree() {
    let mut bench = Bench::new();
    let a = bench.path("a");
    fs::create_dir_all(a.join("d/e")).unwrap();
    fs::write(a.join("d/file"), vec![7; 200_000]).unwrap();
    fs::hard_link(a.join("d/file"), a.join("d/e/again")).unwrap();
    symlink("../nowhere", a.join("d/link")).unwrap();
    nix::unistd::mkfifo(&a.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    File::create(a.join("sparse")).unwrap().write_all_at(b"end", 10 << 20).unwrap();
    fs::set_permissions(a.join("d/e"), Permissions::from_mode(0o1500)).unwrap();
    bench.transfer(false);
    assert_eq!(listing(&a), listing(&bench.path("b")));
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference", "-x", "fifo", "a", "b"]);
    let status = diff.current_dir(bench.dir.path()).status().unwrap();
    assert!(status.success());
    assert!(bench.path("b/sparse").metadata().unwrap().blocks() < 100, "holes are kept");
}
