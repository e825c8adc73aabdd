//! Goal: what random trees do not reach: foreign writers, attackers, bounds, other file systems, growth.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use common::{Bench, Content};
use holo_cfor::log::Ranges;
use holo_cfor::{
    Captured, Hint, Kind, RelPath, Targets, Tree, apply, changed_files, scan, scan_since, stage, verify,
};

/// Makes files look old enough for their times to be trusted.
fn settle() {
    std::thread::sleep(Duration::from_millis(40));
}

fn inode_of(tree: &Tree, path: &[u8]) -> u32 {
    tree.entries().find(|(_, entry)| entry.path.as_bytes() == path).unwrap().1.inode
}

#[test]
fn unchanged_files_are_not_read_again() {
    let mut bench = Bench::new();
    fs::write(bench.path("a/same"), vec![1; 1000]).unwrap();
    fs::write(bench.path("a/other"), vec![2; 1000]).unwrap();
    settle();
    let first = bench.capture(None, &|_| Hint::Attributes);
    fs::write(bench.path("a/other"), vec![3; 1000]).unwrap();
    let now = scan_since(&[bench.path("a")], &[], &[], &first.tree).unwrap();
    assert_eq!(changed_files(&first.tree, &now, &|_| Hint::Attributes), [inode_of(&now, b"other")]);
    let put = bench.store.bytes_put;
    bench.capture(Some(&first), &|_| Hint::Attributes);
    assert_eq!(bench.store.bytes_put - put, 1000);
    // A mapped file is read whatever its times say.
    let put = bench.store.bytes_put;
    bench.capture(Some(&first), &|_| Hint::Mapped);
    assert_eq!(bench.store.bytes_put - put, 2000);
}

/// A change in the very tick of a scan leaves no other time stamp, so a young one is not believed.
#[test]
fn a_young_file_is_read_again() {
    let bench = Bench::new();
    fs::write(bench.path("a/file"), b"one").unwrap();
    let first = bench.scan();
    let second = bench.scan();
    assert_eq!(changed_files(&first, &second, &|_| Hint::Attributes).len(), 1);
}

/// A file that is known to be written in some ranges costs these.
#[test]
fn a_written_file_costs_its_ranges() {
    let mut bench = Bench::new();
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(bench.path("a/log")).unwrap();
    file.write_all_at(&vec![1; 300_000], 0).unwrap();
    let first = bench.capture(None, &|_| Hint::Attributes);
    file.write_all_at(&vec![2; 100_000], 300_000).unwrap();
    file.write_all_at(b"x", 5_000).unwrap();
    let mut written = Ranges::default();
    written.insert(300_000, 100_000);
    written.insert(5_000, 1);
    let put = bench.store.bytes_put;
    let second = bench.capture(Some(&first), &|_| Hint::Written(&written));
    let pages = 400_000 - 300_000 / 4096 * 4096;
    assert_eq!(bench.store.bytes_put - put, pages + 4096);
    let targets = bench.targets(false);
    apply(&second, &mut bench.store, &targets).unwrap();
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
    // Somebody wrote who was not recorded: nothing is known.
    fs::write(bench.path("a/log"), b"new").unwrap();
    let none = Ranges::default();
    let third = bench.capture(Some(&second), &|_| Hint::Written(&none));
    apply(&third, &mut bench.store, &targets).unwrap();
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
}

/// What is written between stop and storing is not in the capture.
#[test]
fn staged_content_is_stable() {
    let mut bench = Bench::new();
    let sizes = [10, 70_000, 5 << 20];
    for size in sizes {
        fs::write(bench.path("a").join(size.to_string()), vec![1; size]).unwrap();
    }
    let staged = stage::<Content>(bench.scan(), None, &|_| Hint::Attributes, &bench.path("staging")).unwrap();
    assert_eq!(staged.bytes(), sizes.iter().sum::<usize>() as u64);
    for size in sizes {
        fs::write(bench.path("a").join(size.to_string()), vec![2; size]).unwrap();
    }
    let captured = staged.store(&mut bench.store).unwrap();
    let targets = bench.targets(false);
    apply(&captured, &mut bench.store, &targets).unwrap();
    for size in sizes {
        assert_eq!(fs::read(bench.path("b").join(size.to_string())).unwrap(), vec![1; size]);
    }
}

/// Links in the target lead nowhere: what they point to is not touched.
#[test]
fn links_in_the_target_are_not_followed() {
    let mut bench = Bench::new();
    fs::create_dir(bench.path("a/dir")).unwrap();
    fs::write(bench.path("a/dir/file"), b"new").unwrap();
    fs::write(bench.path("a/plain"), b"new").unwrap();
    let outside = bench.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"precious").unwrap();
    symlink(&outside, bench.path("b/dir")).unwrap();
    symlink(outside.join("file"), bench.path("b/plain")).unwrap();
    symlink(&outside, bench.path("b/extra")).unwrap();
    let mode = outside.metadata().unwrap().mode();
    bench.transfer(false);
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert_eq!(outside.metadata().unwrap().mode(), mode);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_scan_stays_inside() {
    let bench = Bench::new();
    fs::write(bench.path("secret"), b"x").unwrap();
    symlink(bench.path(""), bench.path("a/up")).unwrap();
    let tree = bench.scan();
    assert_eq!(tree.roots[0].entries.len(), 2);
    assert!(matches!(tree.inodes[inode_of(&tree, b"up") as usize].kind, Kind::Symlink { .. }));
}

#[test]
fn excluded_paths_are_neither_captured_nor_touched() {
    let mut bench = Bench::new();
    for name in ["a/state/db", "b/state/db", "b/keep/this", "b/gone"] {
        let path = bench.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
    }
    let tree = scan(&[bench.path("a")], &[], &[bench.path("a/state")]).unwrap();
    assert!(tree.entries().all(|(_, entry)| entry.path.as_bytes() != b"state/db"));
    let staged = stage::<Content>(tree, None, &|_| Hint::Attributes, &bench.path("staging")).unwrap();
    let captured = staged.store(&mut bench.store).unwrap();
    let targets = Targets { excludes: vec![bench.path("b/keep/this")], ..bench.targets(false) };
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty());
    assert_eq!(fs::read(bench.path("b/state/db")).unwrap(), b"b/state/db");
    assert_eq!(fs::read(bench.path("b/keep/this")).unwrap(), b"b/keep/this");
    assert!(!bench.path("b/gone").exists());
}

#[test]
fn single_files_and_nested_roots() {
    let mut bench = Bench::new();
    fs::create_dir_all(bench.path("a/inner")).unwrap();
    fs::write(bench.path("a/inner/file"), b"1").unwrap();
    fs::write(bench.path("single"), b"2").unwrap();
    let missing = bench.path("missing");
    let roots = [bench.path("a/inner"), bench.path("a")];
    let tree = scan(&roots, &[bench.path("single"), bench.path("a/inner/file"), missing], &[]).unwrap();
    let path = |root: &holo_cfor::Root| PathBuf::from(String::from_utf8(root.path.clone()).unwrap());
    let paths: Vec<_> = tree.roots.iter().map(path).collect();
    assert_eq!(paths, [bench.path("a"), bench.path("single")]);
    assert_eq!(tree.remarks.len(), 1, "the missing one is remarked");
    let staged = stage::<Content>(tree, None, &|_| Hint::Attributes, &bench.path("staging")).unwrap();
    let captured = staged.store(&mut bench.store).unwrap();
    let map = |name: &str, to: &str| (bench.path(name).into_os_string().into_encoded_bytes(), bench.path(to));
    let map = HashMap::from([map("a", "new/deep/a"), map("single", "b/single")]);
    let targets = Targets { map, ..Targets::default() };
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(verify(&bench.path("a"), &bench.path("new/deep/a")).unwrap(), []);
    assert_eq!(verify(&bench.path("single"), &bench.path("b/single")).unwrap(), []);
}

/// Replaced things go to another file system by copy.
#[test]
fn what_is_replaced_may_go_to_another_file_system() {
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    let mut bench = Bench::new();
    if other.path().metadata().unwrap().dev() == bench.path("b").metadata().unwrap().dev() {
        return;
    }
    fs::create_dir_all(bench.path("b/old/deep")).unwrap();
    fs::write(bench.path("b/old/deep/file"), b"mine").unwrap();
    fs::write(bench.path("b/changed"), b"mine too").unwrap();
    fs::write(bench.path("a/changed"), b"new").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::open(bench.path("b/old/deep/file"))
        .unwrap()
        .set_times(FileTimes::new().set_modified(time))
        .unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = Targets { replaced: Some(other.path().to_owned()), ..bench.targets(false) };
    for round in 0..2 {
        let report = apply(&captured, &mut bench.store, &targets).unwrap();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
        let kept = other.path().join(bench.path("b").strip_prefix("/").unwrap());
        assert_eq!(fs::read(kept.join("old/deep/file")).unwrap(), b"mine");
        assert_eq!(kept.join("old/deep/file").metadata().unwrap().modified().unwrap(), time);
        let name = if round == 0 { "changed" } else { "changed.~1~" };
        assert_eq!(fs::read(kept.join(name)).unwrap(), b"mine too");
        fs::write(bench.path("b/changed"), b"mine too").unwrap();
    }
}

/// Programs know their files by inode number, and a file by all its names.
#[test]
fn the_captured_inode_is_written_over() {
    for replaced in [false, true] {
        let mut bench = Bench::new();
        let (path, other) = (bench.path("a/file"), bench.path("outside"));
        let mut was = vec![7; 600_000];
        was[100_000..400_000].fill(0);
        let file = File::create(&path).unwrap();
        file.set_len(600_000).unwrap();
        file.write_all_at(&was[..100_000], 0).unwrap();
        file.write_all_at(&was[400_000..], 400_000).unwrap();
        fs::write(bench.path("a/gone"), b"first").unwrap();
        fs::hard_link(&path, &other).unwrap();
        let number = path.metadata().unwrap().ino();
        let captured = bench.capture(None, &|_| Hint::Attributes);
        let (layout, before) = (bench.scan(), path.metadata().unwrap().modified().unwrap());

        // Longer, shorter, data in the hole, a hole in the data.
        let longer = vec![9; 700_000];
        let shorter = vec![8; 50_000];
        for now in [&longer, &shorter] {
            fs::write(&path, now).unwrap();
            fs::remove_file(bench.path("a/gone")).unwrap();
            let targets = Targets { map: HashMap::new(), ..bench.targets(replaced) };
            let report = apply(&captured, &mut bench.store, &targets).unwrap();
            assert!(report.errors.is_empty(), "{:?}", report.errors);
            assert_eq!(report.made, 2);
            assert!(fs::read(&path).unwrap() == was, "content");
            assert_eq!(path.metadata().unwrap().ino(), number);
            assert_eq!(path.metadata().unwrap().modified().unwrap(), before);
            assert!(fs::read(&other).unwrap() == was, "its other name");
            let data = |tree: &Tree| tree.inodes[inode_of(tree, b"file") as usize].data().to_vec();
            assert_eq!(data(&bench.scan()), data(&layout));
            assert_eq!(fs::read(bench.path("a/gone")).unwrap(), b"first");
            for (name, path) in [(&b"file"[..], "a/file"), (b"gone", "a/gone"), (b"", "a")] {
                let now = bench.path(path).metadata().unwrap();
                assert_eq!(report.inodes[&(now.dev(), now.ino())], inode_of(&captured.tree, name));
            }
        }
        if replaced {
            let kept = bench.path("replaced").join(path.strip_prefix("/").unwrap());
            assert!(fs::read(&kept).unwrap() == longer);
            assert!(fs::read(kept.with_file_name("file.~1~")).unwrap() == shorter);
        }
    }
}

#[test]
fn another_inode_of_the_name_is_not_written_over() {
    let mut bench = Bench::new();
    let path = bench.path("a/file");
    fs::write(&path, b"was").unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    fs::rename(&path, bench.path("moved")).unwrap();
    fs::write(bench.path("foreign"), b"foreign").unwrap();
    fs::hard_link(bench.path("foreign"), &path).unwrap();
    let targets = Targets { map: HashMap::new(), ..bench.targets(true) };
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(fs::read(&path).unwrap(), b"was");
    assert_eq!(fs::read(bench.path("foreign")).unwrap(), b"foreign");
    assert_eq!(fs::read(bench.path("moved")).unwrap(), b"was");
}

#[test]
fn devices_are_left_and_remarked() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut bench = Bench::new();
    let null = nix::sys::stat::makedev(1, 3);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&bench.path("a/null"), kind, nix::sys::stat::Mode::S_IRUSR, null).unwrap();
    fs::write(bench.path("b/null"), b"stays").unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    assert!(captured.tree.remarks.iter().any(|r| r.path.ends_with(b"/null") && r.what.contains("device")));
    bench.transfer(false);
    assert_eq!(fs::read(bench.path("b/null")).unwrap(), b"stays");
}

#[test]
fn lost_or_false_content_is_reported_and_nothing_half_made_stays() {
    let mut bench = Bench::new();
    fs::write(bench.path("a/one"), b"first").unwrap();
    fs::write(bench.path("a/two"), b"second").unwrap();
    fs::write(bench.path("b/one"), b"old").unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let one = captured.contents[&inode_of(&captured.tree, b"one")][0];
    for damage in [None, Some(b"fir".to_vec()), Some(b"first and more".to_vec())] {
        bench.store.parts.remove(&one);
        if let Some(bytes) = damage {
            bench.store.parts.insert(one, bytes);
        }
        let targets = bench.targets(false);
        let report = apply(&captured, &mut bench.store, &targets).unwrap();
        assert_eq!(report.errors.len(), 1);
        assert!(report.errors[0].path.ends_with(b"/one"));
        assert_eq!(fs::read(bench.path("b/one")).unwrap(), b"old");
        assert_eq!(fs::read(bench.path("b/two")).unwrap(), b"second");
        assert_eq!(fs::read_dir(bench.path("b")).unwrap().count(), 2);
    }
}

/// What an apply left that was killed is not captured, and cleared away by the next one.
#[test]
fn left_overs_are_cleared() {
    for replaced in [false, true] {
        let mut bench = Bench::new();
        fs::write(bench.path("a/.holo-new-1-1"), b"x").unwrap();
        fs::write(bench.path("b/.holo-new-1-1"), b"perhaps precious").unwrap();
        bench.transfer(replaced);
        assert_eq!(fs::read_dir(bench.path("b")).unwrap().count(), 0);
        assert_eq!(bench.path("replaced").exists(), replaced);
    }
}

/// A tree from a stranger cannot name anything outside its roots.
#[test]
fn hostile_trees_are_refused() {
    let mut bench = Bench::new();
    fs::create_dir(bench.path("a/d")).unwrap();
    fs::write(bench.path("a/d/f"), b"x").unwrap();
    symlink("t", bench.path("a/l")).unwrap();
    let good = bench.capture(None, &|_| Hint::Attributes);
    assert!(bincode::deserialize::<RelPath>(&bincode::serialize(&b"../x".to_vec()).unwrap()).is_err());
    type Breaks = Box<dyn Fn(&mut Captured<Content>)>;
    let mut broken: Vec<Breaks> = Vec::new();
    broken.push(Box::new(|c| c.tree.roots[0].path = b"relative".to_vec()));
    broken.push(Box::new(|c| c.tree.roots[0].path = b"/a/../b".to_vec()));
    broken.push(Box::new(|c| c.tree.roots[0].entries.swap(1, 2)));
    broken.push(Box::new(|c| drop(c.tree.roots[0].entries.remove(0))));
    broken.push(Box::new(|c| c.tree.roots[0].entries[2].path = RelPath::new(b"l/f").unwrap()));
    broken.push(Box::new(|c| c.tree.roots[0].entries[2].inode = 99));
    broken.push(Box::new(|c| c.tree.roots[0].entries[2].inode = c.tree.roots[0].entries[1].inode));
    broken.push(Box::new(|c| c.tree.inodes[0].mode = 0o10000));
    broken.push(Box::new(|c| c.tree.inodes[0].mtime.nanos = u32::MAX));
    broken.push(Box::new(|c| c.tree.inodes.push(c.tree.inodes[0].clone())));
    broken.push(Box::new(|c| c.contents.clear()));
    broken.push(Box::new(|c| drop(c.contents.insert(0, vec![]))));
    broken.push(Box::new(|c| {
        let at = inode_of(&c.tree, b"d/f") as usize;
        c.tree.inodes[at].kind =
            Kind::File { size: 1, data: vec![holo_cfor::Extent { at: u64::MAX, len: 2 }] };
    }));
    broken.push(Box::new(|c| {
        let at = inode_of(&c.tree, b"d/f") as usize;
        c.tree.inodes[at].xattrs = vec![holo_cfor::Xattr { name: b"security.x".to_vec(), value: vec![] }];
    }));
    let targets = bench.targets(false);
    for (at, breaks) in broken.iter().enumerate() {
        let mut bad = good.clone();
        breaks(&mut bad);
        assert!(apply(&bad, &mut bench.store, &targets).is_err(), "{at}");
        let decoded = bincode::deserialize::<Captured<Content>>(&bincode::serialize(&bad).unwrap());
        assert!(decoded.is_err() || decoded.is_ok_and(|c| c.validate().is_err()), "{at}");
    }
    assert_eq!(fs::read_dir(bench.path("b")).unwrap().count(), 0, "nothing was touched");
}

/// `verify` sees every kind of difference that there is.
#[test]
fn verify_is_not_blind() {
    let mut bench = Bench::new();
    let make = |name: &str| File::create(bench.path("a").join(name)).unwrap();
    for name in ["bytes", "mode", "time", "hole", "gone", "size"] {
        make(name).write_all(b"0123456789").unwrap();
    }
    make("hole").write_all_at(&[0; 100_000], 0).unwrap();
    fs::hard_link(bench.path("a/size"), bench.path("a/linked")).unwrap();
    symlink("x", bench.path("a/link")).unwrap();
    bench.transfer(false);
    let b = |name: &str| bench.path("b").join(name);
    let keep = |name: &str, change: &dyn Fn(&File)| {
        let file = OpenOptions::new().write(true).open(b(name)).unwrap();
        let before = file.metadata().unwrap();
        change(&file);
        let times = FileTimes::new().set_modified(before.modified().unwrap());
        file.set_times(times.set_accessed(before.accessed().unwrap())).unwrap();
    };
    let expect = |name: &str, what: &str| {
        let found = verify(&bench.path("a"), &bench.path("b")).unwrap();
        let found = found.iter().any(|d| d.path.as_bytes() == name.as_bytes() && d.what.contains(what));
        assert!(found, "{name}: {what}");
    };
    keep("bytes", &|file| file.write_all_at(b"x", 3).unwrap());
    expect("bytes", "content");
    keep("mode", &|file| {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    });
    expect("mode", "mode");
    File::open(b("time")).unwrap().set_times(FileTimes::new().set_modified(SystemTime::now())).unwrap();
    expect("time", "time");
    keep("hole", &|file| {
        file.set_len(0).unwrap();
        file.set_len(100_000).unwrap();
    });
    expect("hole", "data is at");
    keep("size", &|file| file.set_len(9).unwrap());
    expect("size", "size");
    fs::remove_file(b("gone")).unwrap();
    expect("gone", "missing");
    fs::write(b("extra"), b"").unwrap();
    expect("extra", "should not");
    fs::remove_file(b("linked")).unwrap();
    fs::copy(b("size"), b("linked")).unwrap();
    expect("size", "hard links");
    fs::remove_file(b("link")).unwrap();
    symlink("y", b("link")).unwrap();
    expect("link", "Symlink");
}
