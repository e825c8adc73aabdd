//! Goal: no mount point below a root is crossed: it is left as it is on each node and that is said, and what is mounted is never
//! changed, whatever the tree has under its name. Method: file systems, directories and files are mounted in a mount namespace
//! of one thread, which takes root. A directory that is mounted elsewhere on its own file system shows no other device.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::fs;
use std::path::Path;

use common::Bench;
use holo_cfor::{Hint, Kind, Tree, apply, verify};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const LEFT: &str = "is a mount point: left as it is on each node";

/// Runs `test` where its mounts are seen by nobody else, and end with it.
fn with_mounts(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: takes root");
    }
    let none = None::<&str>;
    std::thread::scope(|scope| {
        let alone = scope.spawn(|| {
            if let Err(cause) = unshare(CloneFlags::CLONE_NEWNS) {
                return eprintln!("SKIPPED: no mounts here: {cause}");
            }
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            test();
        });
        alone.join().unwrap();
    });
}

/// Mounts a new file system with a file `inner` at a directory that is made.
fn mount_new(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(at.join("inner"), b"mounted").unwrap();
}

/// Shows at `at`, which there is, what is at `of`, too.
fn mount_again(of: &Path, at: &Path) {
    mount(Some(of), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn kind<'a>(tree: &'a Tree, path: &str) -> &'a Kind {
    let found = tree.entries().find(|(_, entry)| entry.path.as_bytes() == path.as_bytes());
    &tree.inode(found.unwrap().1).kind
}

#[test]
fn mounts_below_a_root_are_left_on_each_node() {
    let mut bench = Bench::new();
    with_mounts(|| {
        let (a, b, outside) = (bench.path("a"), bench.path("b"), bench.path("outside"));
        fs::create_dir_all(a.join("d/again")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("inner"), b"mounted").unwrap();
        fs::write(a.join("d/beside"), b"replicated").unwrap();
        fs::write(a.join("file"), b"below the mount").unwrap();
        mount_new(&a.join("d/new"));
        mount_again(&outside, &a.join("d/again"));
        mount_again(&a.join("d/new/inner"), &a.join("file"));
        // There a mount, a directory and a file have these names.
        mount_new(&b.join("d/new"));
        fs::create_dir_all(b.join("d/again")).unwrap();
        fs::write(b.join("d/again/own"), b"own").unwrap();
        fs::write(b.join("file"), b"own").unwrap();
        fs::write(b.join("d/other"), b"does not belong").unwrap();
        let captured = bench.capture(None, &|_| Hint::Attributes);
        let mut told: Vec<_> = captured.tree.remarks.iter().map(ToString::to_string).collect();
        told.sort();
        let mounts = ["d/again", "d/new", "file"];
        assert_eq!(told, mounts.map(|name| format!("{}: {LEFT}", a.join(name).display())));
        assert!(mounts.iter().all(|name| *kind(&captured.tree, name) == Kind::Left));
        assert_eq!(captured.tree.entries().count(), 6, "nothing behind a mount point: {:?}", captured.tree);
        let targets = bench.targets(false);
        let report = apply(&captured, &mut bench.store, &targets).unwrap();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(report.removed, 1);
        assert_eq!(fs::read(b.join("d/beside")).unwrap(), b"replicated");
        assert_eq!(fs::read(b.join("d/new/inner")).unwrap(), b"mounted");
        assert_eq!(fs::read(b.join("d/again/own")).unwrap(), b"own");
        assert_eq!(fs::read(b.join("file")).unwrap(), b"own");
        // Into nothing: no empty directory takes their names.
        let mut targets = bench.targets(false);
        targets.map.values_mut().for_each(|target| *target = bench.path("c"));
        assert!(apply(&captured, &mut bench.store, &targets).unwrap().errors.is_empty());
        assert_eq!(fs::read_dir(bench.path("c/d")).unwrap().count(), 1);
        assert!(!bench.path("c/file").exists());
    });
}

#[test]
fn what_is_mounted_where_a_tree_goes_is_not_changed() {
    for replaced in [false, true] {
        let mut bench = Bench::new();
        with_mounts(|| {
            let (a, b, outside) = (bench.path("a"), bench.path("b"), bench.path("outside"));
            for name in ["d", "again"] {
                fs::create_dir(a.join(name)).unwrap();
                fs::write(a.join(name).join("inner"), b"of the tree").unwrap();
            }
            for name in ["file", "right"] {
                fs::write(a.join(name), b"of the tree").unwrap();
            }
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("inner"), b"mounted").unwrap();
            for name in ["again", "more-again"] {
                fs::create_dir(b.join(name)).unwrap();
                mount_again(&outside, &b.join(name));
            }
            for name in ["d", "more", "holds/deep"] {
                mount_new(&b.join(name));
            }
            fs::write(b.join("file"), b"own").unwrap();
            mount_again(&b.join("d/inner"), &b.join("file"));
            let captured = bench.capture(None, &|_| Hint::Attributes);
            let targets = bench.targets(replaced);
            let report = apply(&captured, &mut bench.store, &targets).unwrap();
            let told = |name: &str, what: &str| {
                let path = b.join(name).into_os_string().into_encoded_bytes();
                report.errors.iter().any(|one| one.path.starts_with(&path) && one.what.contains(what))
            };
            // What is mounted again from the same file system is found when it is entered or moved.
            for name in ["again", "more-again"] {
                assert!(told(name, ""), "{name} (replaced {replaced}): {:?}", report.errors);
            }
            for name in ["d", "more", "file"] {
                assert!(told(name, "is a mount point here"), "{name} ({replaced}): {:?}", report.errors);
            }
            assert_eq!(fs::read(b.join("right")).unwrap(), b"of the tree", "others are put in place");
            assert_eq!(fs::read(outside.join("inner")).unwrap(), b"mounted");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
            for name in ["d", "again", "more", "more-again"] {
                assert_eq!(fs::read(b.join(name).join("inner")).unwrap(), b"mounted", "{name}");
                assert_eq!(fs::read_dir(b.join(name)).unwrap().count(), 1, "{name}");
            }
            assert_eq!(fs::read(b.join("file")).unwrap(), b"mounted");
            // In a directory that does not belong: it stays, or goes along with that.
            let kept = bench.path("replaced").join(b.strip_prefix("/").unwrap()).join("holds");
            let holds = if kept.exists() { kept } else { b.join("holds") };
            assert_eq!(fs::read(holds.join("deep/inner")).unwrap(), b"mounted");
            assert!(told("holds", "") != replaced, "{:?}", report.errors);
            assert!(!verify(&a, &b).unwrap().is_empty());
        });
    }
}
