//! Goal: flags (`chattr`) are as they were; what is immutable or append-only where an epoch goes is changed, replaced and removed
//! nevertheless; who may not do that is told so, and nothing is half done.
//!
//! Method: flags are set on both sides; `verify` compares, and the kernel's own answers guard against it being blind.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use common::{Bench, flags, set_flags};
use holo_cfor::{Attribute, Hint, Report, Targets, Touched, apply, compare, flag_names, remove_all, verify};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const NO_DUMP: u32 = 0x40;
const NO_ATIME: u32 = 0x80;
const SYNC: u32 = 0x8;
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;
const DIR_SYNC: u32 = 0x1_0000;
const ALL: [u32; 9] = [NO_DUMP, NO_ATIME, SYNC, IMMUTABLE, APPEND, DIR_SYNC, 0x4, 0x400, 0x80_0000];
const NOBODY: u32 = 65534;

fn known(path: &Path) -> u32 {
    flags(path).unwrap() & ALL.iter().sum::<u32>()
}

/// Whether these flags can be set here, as a rule by root only.
fn has(bench: &Bench, on: u32) -> bool {
    let probe = bench.path("probe");
    fs::write(&probe, b"").unwrap();
    let is_set = set_flags(&probe, on, 0).is_ok();
    common::release_all(&probe);
    if !is_set {
        eprintln!("SKIPPED: these flags cannot be set here: {:?}", flag_names(on).collect::<Vec<_>>());
    }
    is_set
}

fn is_same(bench: &Bench) {
    let differences = verify(&bench.path("a"), &bench.path("b")).unwrap();
    assert!(differences.is_empty(), "{differences:?}");
}

/// What it says when another user calls it. Takes root.
fn as_nobody<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    let other = || {
        // SAFETY: numbers only; the plain call, so that this thread alone is another user.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(done, 0);
        call()
    };
    std::thread::scope(|scope| scope.spawn(other).join().unwrap())
}

/// Everything under the bench is another user's, who gets there.
fn give_away(bench: &Bench, names: &[&str]) {
    fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o755)).unwrap();
    names.iter().for_each(|name| chown(bench.path(name), Some(NOBODY), Some(NOBODY)).unwrap());
}

fn told(report: &Report, name: &str, what: &str) -> bool {
    let all = report.remarks.iter().chain(&report.errors);
    all.into_iter().any(|one| one.path.ends_with(name.as_bytes()) && one.what.contains(what))
}

/// Any user's flags on its own files, each alone and taken away again, and those of a new file in such a directory.
#[test]
fn flags_of_any_user_arrive_and_go() {
    let mut bench = Bench::new();
    if !has(&bench, NO_DUMP) {
        return;
    }
    let (file, dir) = (bench.path("a/file"), bench.path("a/dir"));
    fs::write(&file, b"content").unwrap();
    fs::write(bench.path("a/empty"), b"").unwrap();
    fs::create_dir(&dir).unwrap();
    for (bit, path) in ALL.iter().flat_map(|bit| [(*bit, &file), (*bit, &dir)]) {
        if bit & (IMMUTABLE | APPEND) != 0 || set_flags(path, bit, 0).is_err() || known(path) != bit {
            // Refused, or accepted and forgotten.
            continue;
        }
        bench.transfer(false);
        let there = bench.path("b").join(path.file_name().unwrap());
        assert_eq!((known(path), known(&there)), (bit, bit), "{}", there.display());
        is_same(&bench);
        set_flags(path, 0, bit).unwrap();
        assert!(!verify(&bench.path("a"), &bench.path("b")).unwrap().is_empty(), "{bit:x}: verify is blind");
        bench.transfer(false);
        assert_eq!(known(&there), 0);
        is_same(&bench);
    }
    // It gets the flags of its directory when it is made, there but not here.
    set_flags(&bench.path("b"), NO_DUMP | NO_ATIME, 0).unwrap();
    fs::write(bench.path("a/late"), b"late").unwrap();
    fs::write(dir.join("late"), b"late").unwrap();
    bench.transfer(false);
    is_same(&bench);
}

#[test]
fn what_is_held_arrives_with_all_in_it_and_all_its_names() {
    let mut bench = Bench::new();
    if !has(&bench, IMMUTABLE | APPEND) {
        return;
    }
    let a = bench.path("a");
    fs::create_dir_all(a.join("shut/inner")).unwrap();
    fs::create_dir_all(a.join("grows")).unwrap();
    for name in ["shut/file", "shut/inner/file", "grows/log", "fixed", "two-names"] {
        fs::write(a.join(name), name).unwrap();
    }
    fs::hard_link(a.join("two-names"), a.join("grows/other")).unwrap();
    fs::set_permissions(a.join("shut"), Permissions::from_mode(0o550)).unwrap();
    let held = [
        ("shut", IMMUTABLE),
        ("shut/inner/file", APPEND | NO_DUMP),
        ("grows", APPEND | NO_ATIME),
        ("grows/log", APPEND),
        ("fixed", IMMUTABLE | SYNC),
        ("two-names", IMMUTABLE | APPEND),
        ("", IMMUTABLE),
    ];
    for (name, on) in held {
        set_flags(&a.join(name), on, 0).unwrap();
    }
    bench.transfer(false);
    is_same(&bench);
    for (name, on) in held {
        let there = bench.path("b").join(name);
        assert_eq!(known(&there), on, "{name}");
        // The kernel means it.
        let refused = fs::set_permissions(&there, Permissions::from_mode(0o777)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{name}");
    }
    // What is right is not touched, not even for a moment.
    let changed_at = |name: &str| {
        let meta = bench.path("b").join(name).metadata().unwrap();
        (meta.ctime(), meta.ctime_nsec())
    };
    let before: Vec<_> = ["fixed", "two-names", "grows/log"].map(changed_at).into();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = bench.targets(false);
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert_eq!((report.made, report.removed, report.bytes), (0, 0, 0));
    let changed_at = |name: &str| {
        let meta = bench.path("b").join(name).metadata().unwrap();
        (meta.ctime(), meta.ctime_nsec())
    };
    assert_eq!(before, ["fixed", "two-names", "grows/log"].map(changed_at));
    // A new name of it, and other times: it is released and held again.
    common::release_all(&a);
    fs::hard_link(a.join("two-names"), a.join("three")).unwrap();
    fs::set_permissions(a.join("fixed"), Permissions::from_mode(0o640)).unwrap();
    for (name, on) in held {
        set_flags(&a.join(name), on, 0).unwrap();
    }
    bench.transfer(true);
    is_same(&bench);
    let (one, other) =
        (bench.path("b/three").metadata().unwrap(), bench.path("b/two-names").metadata().unwrap());
    assert_eq!(one.ino(), other.ino());
}

/// In every place where something held is in the way: other content, another kind, another name, in directories that are held, too.
#[test]
fn what_is_held_there_is_changed_replaced_and_removed() {
    for (replaced, on) in [(false, IMMUTABLE), (true, IMMUTABLE), (false, APPEND), (true, APPEND)] {
        let mut bench = Bench::new();
        if !has(&bench, on) {
            return;
        }
        let (a, b) = (bench.path("a"), bench.path("b"));
        fs::create_dir_all(a.join("dir")).unwrap();
        fs::create_dir_all(a.join("file-there")).unwrap();
        for name in ["same", "other", "dir/other", "dir-there", "mode", "linked"] {
            fs::write(a.join(name), name).unwrap();
        }
        fs::hard_link(a.join("linked"), a.join("dir/linked")).unwrap();
        for name in ["dir/away", "dir-there/deep", "gone/deep"] {
            fs::create_dir_all(b.join(name)).unwrap();
        }
        let there =
            ["same", "other", "dir/other", "dir/gone", "dir-there/deep/x", "gone/deep/x", "file-there"];
        for name in there.iter().chain(&["mode", "dir/linked"]) {
            fs::write(b.join(name), if name.ends_with("other") { "what it was" } else { name }).unwrap();
        }
        let dirs = ["dir/away", "dir-there/deep", "dir-there", "gone/deep", "gone", "dir"];
        for name in there.iter().chain(&["mode", "dir/linked"]).chain(&dirs) {
            set_flags(&b.join(name), on, 0).unwrap();
        }
        set_flags(&b, on, 0).unwrap();
        bench.transfer(replaced);
        is_same(&bench);
        if replaced {
            let kept = bench.path("replaced").join(b.strip_prefix("/").unwrap());
            assert_eq!(fs::read(kept.join("other")).unwrap(), b"what it was");
            assert_eq!(fs::read(kept.join("gone/deep/x")).unwrap(), b"gone/deep/x");
            // Its owner can remove it.
            assert_eq!((known(&kept.join("other")), known(&kept.join("gone"))), (0, 0));
        }
    }
}

/// A file that is the very inode that was captured is written over in its place.
#[test]
fn what_was_captured_here_and_held_since_is_written_over() {
    let mut bench = Bench::new();
    if !has(&bench, IMMUTABLE) {
        return;
    }
    let file = bench.path("a/file");
    fs::write(&file, b"captured").unwrap();
    set_flags(&file, APPEND, 0).unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let before = file.metadata().unwrap().ino();
    set_flags(&file, 0, APPEND).unwrap();
    fs::write(&file, b"other, and longer").unwrap();
    set_flags(&file, IMMUTABLE | NO_DUMP, 0).unwrap();
    let report = apply(&captured, &mut bench.store, &Default::default()).unwrap();
    assert!(report.errors.is_empty() && report.remarks.is_empty(), "{report:?}");
    assert_eq!((fs::read(&file).unwrap(), file.metadata().unwrap().ino()), (b"captured".to_vec(), before));
    assert_eq!(known(&file), APPEND);
}

#[test]
fn who_may_not_hold_gets_the_rest_and_is_told() {
    let mut bench = Bench::new();
    if !has(&bench, IMMUTABLE) {
        return;
    }
    let a = bench.path("a");
    for (name, on) in [("held", IMMUTABLE | NO_DUMP), ("log", APPEND), ("own", NO_DUMP | NO_ATIME)] {
        fs::write(a.join(name), name).unwrap();
        chown(a.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        set_flags(&a.join(name), on, 0).unwrap();
    }
    let captured = bench.capture(None, &|_| Hint::Attributes);
    give_away(&bench, &["b"]);
    let targets = bench.targets(false);
    for _ in 0..2 {
        let store = &mut bench.store;
        let report = as_nobody(|| apply(&captured, store, &targets).unwrap());
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert!(
            told(&report, "held", "flags immutable to be set: Operation not permitted"),
            "{:?}",
            report.remarks
        );
        assert!(told(&report, "log", "flags append-only"), "{:?}", report.remarks);
        assert!(!told(&report, "own", "flags"), "{:?}", report.remarks);
    }
    let b = bench.path("b");
    assert_eq!(["held", "log", "own"].map(|name| known(&b.join(name))), [NO_DUMP, 0, NO_DUMP | NO_ATIME]);
    assert_eq!(fs::read(b.join("held")).unwrap(), b"held");
}

#[test]
fn who_may_not_release_leaves_it_whole_and_is_told() {
    for replaced in [false, true] {
        let mut bench = Bench::new();
        if !has(&bench, IMMUTABLE) {
            return;
        }
        let (a, b) = (bench.path("a"), bench.path("b"));
        fs::create_dir_all(b.join("shut")).unwrap();
        fs::create_dir_all(a.join("shut")).unwrap();
        for name in ["right", "other", "shut/other", "free"] {
            fs::write(a.join(name), name).unwrap();
        }
        for (name, text) in [("right", "right"), ("other", "old"), ("gone", "gone"), ("shut/other", "old")] {
            fs::write(b.join(name), text).unwrap();
            chown(b.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        for name in ["right", "other", "gone", "shut"] {
            set_flags(&b.join(name), IMMUTABLE, 0).unwrap();
        }
        set_flags(&a.join("right"), IMMUTABLE, 0).unwrap();
        give_away(&bench, &["b"]);
        let captured = bench.capture(None, &|_| Hint::Attributes);
        let targets = bench.targets(replaced);
        if replaced {
            fs::create_dir(bench.path("replaced")).unwrap();
            give_away(&bench, &["replaced"]);
        }
        let store = &mut bench.store;
        let report = as_nobody(|| apply(&captured, store, &targets).unwrap());
        let whose: Vec<String> =
            report.errors.iter().map(|one| String::from_utf8_lossy(&one.path).into_owned()).collect();
        for name in ["b/other", "b/gone", "shut/other"] {
            assert!(whose.iter().any(|path| path.ends_with(name)), "{name}: {:?}", report.errors);
        }
        assert!(told(&report, "b/other", "immutable"), "{:?}", report.errors);
        for (name, text) in [("right", "right"), ("other", "old"), ("gone", "gone"), ("shut/other", "old")] {
            assert_eq!(fs::read_to_string(b.join(name)).unwrap(), text, "{name}");
        }
        assert_eq!(["right", "other", "gone", "shut"].map(|name| known(&b.join(name))), [IMMUTABLE; 4]);
        assert_eq!(fs::read(b.join("free")).unwrap(), b"free");
        let mut names: Vec<_> = fs::read_dir(&b).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["free", "gone", "other", "right", "shut"], "something half done is left");
    }
}

/// Who is yet to open files for writing finds them released, whether they were right or not, and holds them afterwards.
#[test]
fn what_is_held_later_can_be_opened_until_then() {
    let mut bench = Bench::new();
    if !has(&bench, IMMUTABLE | APPEND) {
        return;
    }
    let (a, b) = (bench.path("a"), bench.path("b"));
    fs::write(a.join("file"), b"x").unwrap();
    set_flags(&a.join("file"), IMMUTABLE | NO_DUMP, 0).unwrap();
    set_flags(&a, APPEND, 0).unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = Targets { holds_later: true, ..bench.targets(false) };
    for is_dropped in [false, true] {
        let report = apply(&captured, &mut bench.store, &targets).unwrap();
        assert!(
            report.errors.is_empty() && report.remarks.is_empty() && !report.holds.is_empty(),
            "{report:?}"
        );
        assert_eq!([known(&b.join("file")), known(&b)], [NO_DUMP, 0]);
        drop(fs::File::options().write(true).open(b.join("file")).unwrap());
        if is_dropped {
            drop(report);
        } else {
            assert_eq!(report.holds.hold(), []);
        }
        assert_eq!([known(&b.join("file")), known(&b)], [IMMUTABLE | NO_DUMP, APPEND]);
        is_same(&bench);
    }
}

#[test]
fn what_is_held_is_removed_with_all_in_it() {
    let bench = Bench::new();
    if !has(&bench, IMMUTABLE | APPEND) {
        return;
    }
    let gone = bench.path("a/gone");
    fs::create_dir_all(gone.join("deep")).unwrap();
    fs::write(gone.join("deep/file"), b"x").unwrap();
    for (name, on) in [("deep/file", IMMUTABLE), ("deep", APPEND), ("", IMMUTABLE)] {
        set_flags(&gone.join(name), on, 0).unwrap();
    }
    assert!(fs::remove_dir_all(&gone).is_err());
    remove_all(&gone).unwrap();
    assert!(!gone.exists() && bench.path("a").exists());
    // Nothing is no failure.
    remove_all(&gone).unwrap();
}

/// Where the file system has no flags, or not these.
#[test]
fn a_file_system_without_flags_is_told_of() {
    let mut bench = Bench::new();
    if !has(&bench, IMMUTABLE | SYNC) {
        return;
    }
    let (a, b) = (bench.path("a"), bench.path("b"));
    fs::write(a.join("file"), b"x").unwrap();
    fs::write(a.join("plain"), b"x").unwrap();
    set_flags(&a.join("file"), IMMUTABLE | NO_DUMP | SYNC, 0).unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = bench.targets(false);
    let store = &mut bench.store;
    std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            // The mount is this thread's alone and ends with it.
            if let Err(cause) = unshare(CloneFlags::CLONE_NEWNS) {
                return eprintln!("SKIPPED: no mounts here: {cause}");
            }
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("none"), &b, Some("ramfs"), MsFlags::empty(), none).unwrap();
            for _ in 0..2 {
                let report = apply(&captured, store, &targets).unwrap();
                assert!(report.errors.is_empty(), "{:?}", report.errors);
                assert!(
                    told(&report, "b/file", "flags immutable,no-dump,sync to be set"),
                    "{:?}",
                    report.remarks
                );
                assert!(!told(&report, "plain", ""), "{:?}", report.remarks);
                assert_eq!(fs::read(b.join("file")).unwrap(), b"x");
            }
        });
        elsewhere.join().unwrap();
    });
}

#[test]
fn differences_are_named_and_strange_bits_refused() {
    let mut bench = Bench::new();
    if !has(&bench, NO_DUMP) {
        return;
    }
    fs::write(bench.path("a/file"), b"x").unwrap();
    fs::write(bench.path("b/file"), b"x").unwrap();
    let first = bench.capture(None, &|_| Hint::Attributes);
    set_flags(&bench.path("a/file"), NO_DUMP, 0).unwrap();
    let mut second = bench.capture(Some(&first), &|_| Hint::Attributes);
    let touched = |_, _| Ok::<_, ()>(Touched::Ranges(holo_cfor::log::Ranges::new()));
    let found = compare(&first.tree, &second.tree, |_| false, touched).unwrap();
    let found = found.iter().find(|one| one.path.ends_with(b"file")).unwrap();
    assert_eq!(found.attributes, [Attribute::Flags]);
    assert_eq!(Attribute::Flags.name(), "flags");
    let what: Vec<String> =
        verify(&bench.path("a"), &bench.path("b")).unwrap().into_iter().map(|one| one.what).collect();
    assert!(what.contains(&"flags are none, not no-dump".to_owned()), "{what:?}");
    let at = second.tree.inodes.iter().position(|inode| inode.flags == NO_DUMP).unwrap();
    for bad in [1u32 << 31, DIR_SYNC] {
        second.tree.inodes[at].flags = bad;
        assert!(second.validate().is_err(), "{bad:x}");
    }
}
