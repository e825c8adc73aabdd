//! Goal: roots that are hard to replicate come through, or it is said what does not, and nothing half made stays: names that are
//! no text or as long as they may be, deep paths, large sparse files, links that lead out, full and read-only file systems, roots
//! that are gone.
//! Method: one tree of each kind. File systems that are full or read-only are mounted in namespaces of an ordinary user, where the
//! test runs itself again.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::Bench;
use holo_cfor::{Hint, Kind, apply, scan, verify};

/// Set in the namespaces: a directory where a file system may be mounted.
const INSIDE: &str = "HOLO_TEST_MOUNTS";

fn is_transferred(bench: &mut Bench) {
    bench.transfer(true);
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
    assert_eq!(bench.scan().remarks, []);
}

#[test]
fn names_of_any_bytes_and_of_full_length() {
    let mut bench = Bench::new();
    let a = bench.path("a");
    let every: Vec<u8> = (1..=255u8).filter(|byte| *byte != b'/').collect();
    for name in
        [&every[..127], &every[127..], &[0xff; 255], &b"\xc3\x28\n\t \x1b[2J"[..], b"...", b"-rf", b" "]
    {
        let path = a.join(OsStr::from_bytes(name));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(OsStr::from_bytes(name)), name).unwrap();
        symlink(OsStr::from_bytes(name), path.join("pointer")).unwrap();
    }
    is_transferred(&mut bench);
    assert_eq!(
        fs::read(bench.path("b").join(OsStr::from_bytes(&[0xff; 255])).join(OsStr::from_bytes(&[0xff; 255])))
            .unwrap(),
        [0xff; 255]
    );
}

/// As deep as a path may be; one byte more is left out, which is said.
#[test]
fn deep_paths() {
    let mut bench = Bench::new();
    let mut shallow = bench.path("a").join("s");
    (0..300).for_each(|_| shallow.push("s"));
    fs::create_dir_all(&shallow).unwrap();
    is_transferred(&mut bench);
    let name = "d".repeat(200);
    let above: PathBuf = [name.as_str(); 17].iter().collect();
    fs::create_dir_all(bench.path("a").join(&above)).unwrap();
    // Longer than what a call takes at once: made from within. The directory has 20 names and 4,019 bytes.
    let (longest, lost) = ("l".repeat(4095 - 4020), "x".repeat(4096 - 4020));
    let script = format!(
        "cd '{}' && mkdir -p {name}/{name}/{name} && cd {name}/{name}/{name} && printf deep >{longest} && : >{lost}",
        bench.path("a").join(&above).display()
    );
    assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
    let tree = bench.scan();
    let [remark] = tree.remarks.as_slice() else { panic!("one remark: {:?}", tree.remarks) };
    assert!(remark.what.contains("too long"), "{remark}");
    assert!(remark.path.ends_with(name.as_bytes()), "{remark}");
    bench.transfer(true);
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
    let there = scan(&[bench.path("b")], &[], &[]).unwrap();
    assert_eq!(there.remarks, [], "what was left out is not there");
    let lengths = there.entries().map(|(_, entry)| entry.path.as_bytes().len());
    assert_eq!(lengths.max(), Some(4095));
}

/// Blocks beyond the end make up for a hole, but are none of it; what is only reserved is data, as it was.
#[test]
fn holes_beside_blocks_that_do_not_count() {
    use nix::fcntl::{FallocateFlags, fallocate};
    let mut bench = Bench::new();
    let make = |name: &str| File::create(bench.path("a").join(name)).unwrap();
    let file = make("beyond");
    file.write_all_at(&[7; 1 << 20], 0).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Its hole is as large as the block that its attribute takes, where that takes one.
    let named = make("named");
    named.write_all_at(&[7; 1 << 20], 0).unwrap();
    let _ = common::set_attribute(&bench.path("a/named"), "user.large", Some(&[7; 3000]));
    let reserved = make("reserved");
    if fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 16).is_err()
        || fallocate(&file, punch, 8192, 4096).is_err()
        || fallocate(&named, punch, 8192, 4096).is_err()
        || fallocate(&reserved, FallocateFlags::empty(), 0, 1 << 20).is_err()
    {
        return eprintln!("SKIPPED: temporary files are on a file system without fallocate");
    }
    file.sync_all().unwrap();
    named.sync_all().unwrap();
    reserved.sync_all().unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 >= 1 << 20);
    let tree = bench.scan();
    let data = |name: &[u8]| {
        let entry = tree.entries().find(|(_, entry)| entry.path.as_bytes() == name).unwrap().1;
        tree.inode(entry).data().iter().map(|extent| (extent.at, extent.len)).collect::<Vec<_>>()
    };
    if data(b"beyond") == [(0, 1 << 20)] && !has_map(&file) {
        return eprintln!(
            "SKIPPED: temporary files are on a file system that does not tell where blocks are"
        );
    }
    assert_eq!(data(b"beyond"), [(0, 8192), (12288, (1 << 20) - 12288)]);
    assert_eq!(data(b"named"), data(b"beyond"), "{} blocks", named.metadata().unwrap().blocks());
    assert_eq!(data(b"reserved"), [(0, 1 << 20)]);
    is_transferred(&mut bench);
}

/// Whether the file system has `FS_IOC_FIEMAP`.
fn has_map(file: &File) -> bool {
    let mut ask = [0u64, u64::MAX, 0, 0];
    // SAFETY: with room for no extents the kernel writes to these 32 bytes only.
    unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(file), 0xc020_660b, ask.as_mut_ptr()) == 0 }
}

#[test]
fn a_sparse_file_of_100_gib() {
    let mut bench = Bench::new();
    let file = File::create(bench.path("a/sparse")).unwrap();
    file.set_len(100 << 30).unwrap();
    for at in [0, 3 << 30, (100 << 30) - 4096] {
        file.write_all_at(&[9; 4096], at).unwrap();
    }
    let start = Instant::now();
    is_transferred(&mut bench);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(bench.store.bytes_put, 3 * 4096);
    assert!(fs::metadata(bench.path("b/sparse")).unwrap().blocks() <= 64);
    // And shorter again, with its data elsewhere.
    file.set_len(50 << 30).unwrap();
    file.write_all_at(&[8; 4096], 40 << 30).unwrap();
    is_transferred(&mut bench);
}

#[test]
fn links_that_lead_out_of_a_root_are_links() {
    let mut bench = Bench::new();
    fs::write(bench.path("secret"), b"not in any root").unwrap();
    symlink(bench.path("secret"), bench.path("a/absolute")).unwrap();
    symlink("../secret", bench.path("a/relative")).unwrap();
    symlink("../../../../../../../../etc", bench.path("a/directory")).unwrap();
    symlink("nowhere/at/all", bench.path("a/dangling")).unwrap();
    symlink("circle", bench.path("a/circle")).unwrap();
    is_transferred(&mut bench);
    assert_eq!(bench.scan().entries().count(), 6, "nothing behind a link");
    assert_eq!(fs::read_link(bench.path("b/relative")).unwrap(), Path::new("../secret"));
}

#[test]
fn a_root_that_is_gone_comes_back() {
    let mut bench = Bench::new();
    fs::write(bench.path("a/file"), b"kept").unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = bench.targets(false);
    fs::remove_dir(bench.path("b")).unwrap();
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(verify(&bench.path("a"), &bench.path("b")).unwrap(), []);
    // Here it is gone, or no directory any more: said, and all else goes on.
    fs::create_dir(bench.path("other")).unwrap();
    fs::remove_dir_all(bench.path("a")).unwrap();
    let tree = scan(&[bench.path("a"), bench.path("other")], &[], &[]).unwrap();
    assert_eq!((tree.roots.len(), tree.remarks[0].what.as_str()), (1, "does not exist"));
    fs::write(bench.path("a"), b"a file now").unwrap();
    let tree = scan(&[bench.path("a")], &[], &[]).unwrap();
    assert!(matches!(tree.inode(&tree.roots[0].entries[0]).kind, Kind::File { .. }));
}

/// Runs a test of this file again in user and mount namespaces; true in them.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--"]).arg(std::env::current_exe().unwrap());
    let done = command.args(["--exact", test, "--nocapture"]).env(INSIDE, dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn mount(options: &str) -> PathBuf {
    let at = PathBuf::from(std::env::var_os(INSIDE).unwrap());
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at);
    assert!(command.status().unwrap().success());
    at.canonicalize().unwrap()
}

/// Not by `mount`, which gives options back that an ordinary user's namespace refuses.
fn remount(at: &Path, flags: libc::c_ulong, options: &str) {
    let text = |bytes: &[u8]| std::ffi::CString::new(bytes).unwrap();
    let (path, data) = (text(at.as_os_str().as_bytes()), text(options.as_bytes()));
    let none = std::ptr::null();
    // SAFETY: texts that end with zero.
    let done =
        unsafe { libc::mount(none, path.as_ptr(), none, libc::MS_REMOUNT | flags, data.as_ptr().cast()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn contents(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// What has no room is said; every name has its old or its new content, whole; with room all comes right.
#[test]
fn a_full_target() {
    if !is_inside("a_full_target") {
        return;
    }
    let at = mount("size=1m");
    let mut bench = Bench::new();
    for number in 0..8 {
        fs::write(bench.path(&format!("a/f{number}")), vec![number; 300_000]).unwrap();
        fs::write(at.join(format!("f{number}")), b"old").unwrap();
    }
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let mut targets = bench.targets(false);
    targets.map.values_mut().for_each(|target| target.clone_from(&at));
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(
        !report.errors.is_empty() && report.errors.iter().all(|one| one.what.contains("space")),
        "{:?}",
        report.errors
    );
    let mut new = 0;
    for number in 0..8u8 {
        let bytes = contents(&at.join(format!("f{number}")));
        assert!(bytes == b"old" || bytes == vec![number; 300_000], "f{number} has {} bytes", bytes.len());
        new += usize::from(bytes != b"old");
    }
    assert!((1..8).contains(&new), "{new} of 8 fit");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 8, "nothing half made");
    remount(&at, 0, "size=16m");
    let report = apply(&captured, &mut bench.store, &targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(verify(&bench.path("a"), &at).unwrap(), []);
}

/// A staging directory without room fails the capture, which says so and leaves nothing.
#[test]
fn full_staging() {
    if !is_inside("full_staging") {
        return;
    }
    let at = mount("size=1m");
    let bench = Bench::new();
    fs::write(bench.path("a/large"), vec![1; 4 << 20]).unwrap();
    let staged = holo_cfor::stage::<common::Content>(bench.scan(), None, &|_| Hint::Attributes, &at);
    let cause = staged.err().unwrap().to_string();
    assert!(cause.contains("stage in") && cause.contains("space"), "{cause}");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
}

/// A root that cannot be written to is captured as any other; applied to, it says so for each entry and stays as it is.
#[test]
fn a_read_only_root() {
    if !is_inside("a_read_only_root") {
        return;
    }
    let at = mount("size=4m");
    fs::write(at.join("file"), b"as it was").unwrap();
    remount(&at, libc::MS_RDONLY, "");
    let mut bench = Bench::new();
    let tree = scan(std::slice::from_ref(&at), &[], &[]).unwrap();
    let staged = holo_cfor::stage(tree, None, &|_| Hint::Attributes, &bench.path("staging")).unwrap();
    let captured = staged.store(&mut bench.store).unwrap();
    let mut targets = bench.targets(false);
    targets.map.insert(at.as_os_str().as_bytes().to_vec(), bench.path("b"));
    assert_eq!(apply(&captured, &mut bench.store, &targets).unwrap().errors, []);
    assert_eq!(contents(&bench.path("b/file")), b"as it was");
    // What is right already needs no right to write.
    targets.map.clear();
    assert_eq!(apply(&captured, &mut bench.store, &targets).unwrap().errors, []);
    fs::write(bench.path("a/file"), b"something else").unwrap();
    let other = bench.capture(None, &|_| Hint::Attributes);
    let mut targets = bench.targets(false);
    targets.map.values_mut().for_each(|target| target.clone_from(&at));
    let report = apply(&other, &mut bench.store, &targets).unwrap();
    assert!(report.errors.iter().any(|one| one.what.contains("Read-only")), "{:?}", report.errors);
    assert_eq!(contents(&at.join("file")), b"as it was");
}
