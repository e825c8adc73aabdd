//! Goal: access lists and capabilities are as they were, what was removed is removed, and who may not set them is told so and
//! gets the rest.
//!
//! Method: lists are written byte by byte; `verify` compares, and the kernel's own answers guard against it being blind.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use common::{Bench, access_list, set_attribute};
use holo_cfor::{Hint, Kind, apply, verify};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";
const TRUSTED: &str = "trusted.holo";
/// `cap_net_bind_service+ep`, version 2.
const BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NOBODY: u32 = 65534;

fn attribute(path: &Path, key: &str) -> Option<Vec<u8>> {
    let text = |bytes: &[u8]| CString::new(bytes).unwrap();
    let (path, key) = (text(path.as_os_str().as_encoded_bytes()), text(key.as_bytes()));
    let mut value = vec![0; 1000];
    // SAFETY: both texts end with zero; buffer and length are of one vector.
    let len = unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).ok()?);
    Some(value)
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// Whether the file system has access lists. Without them there is nothing to try.
fn has_lists(bench: &Bench) -> bool {
    let probe = bench.path("probe");
    fs::write(&probe, b"").unwrap();
    let is_set = set_attribute(&probe, ACCESS, Some(&access_list([7; 5], 1))).is_ok();
    if !is_set {
        eprintln!("SKIPPED: temporary files are on a file system without access lists");
    }
    is_set
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: takes root");
    }
    is_root
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

/// Whether this user may set what only root may.
fn has_trusted(bench: &Bench) -> bool {
    let probe = bench.path("probe");
    fs::write(&probe, b"").unwrap();
    let is_set = set_attribute(&probe, TRUSTED, Some(b"x")).is_ok();
    if !is_set {
        eprintln!("SKIPPED in part: no attributes in trusted. here");
    }
    is_set
}

fn is_same(bench: &Bench) {
    let differences = verify(&bench.path("a"), &bench.path("b")).unwrap();
    assert!(differences.is_empty(), "{differences:?}");
}

#[test]
fn access_lists_arrive_and_inherited_ones_do_not_stay() {
    let mut bench = Bench::new();
    if !has_lists(&bench) {
        return;
    }
    let (a, b) = (bench.path("a"), bench.path("b"));
    fs::create_dir_all(a.join("d/inner")).unwrap();
    for name in ["d/plain", "listed", "read-only"] {
        fs::write(a.join(name), name).unwrap();
    }
    nix::unistd::mkfifo(&a.join("d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let listed = access_list([6, 6, 0, 7, 0], 1234);
    set_attribute(&a.join("listed"), ACCESS, Some(&listed)).unwrap();
    set_attribute(&a.join("d/fifo"), ACCESS, Some(&listed)).unwrap();
    set_attribute(&a.join("read-only"), "user.x", Some(b"x")).unwrap();
    set_attribute(&a.join("read-only"), ACCESS, Some(&access_list([4, 6, 4, 6, 0], 1234))).unwrap();
    // After what is in it was made; of the owner, too, it takes away.
    set_attribute(&a.join("d"), DEFAULT, Some(&access_list([5, 7, 5, 7, 0], 77))).unwrap();
    set_attribute(&b, DEFAULT, Some(&access_list([1, 7, 7, 7, 7], 99))).unwrap();
    bench.transfer(false);
    assert_eq!(attribute(&b.join("listed"), ACCESS), Some(listed.clone()));
    assert_eq!(attribute(&b.join("d/fifo"), ACCESS), Some(listed));
    assert_eq!(mode(&b.join("listed")), 0o670);
    assert_eq!(attribute(&b.join("d"), DEFAULT), attribute(&a.join("d"), DEFAULT));
    for name in ["d/plain", "d/inner", "d"] {
        assert_eq!(attribute(&b.join(name), ACCESS), None, "{name}");
    }
    assert_eq!((attribute(&b.join("d/inner"), DEFAULT), attribute(&b, DEFAULT)), (None, None));
    is_same(&bench);
    // A second time into directories that have the list by now.
    fs::remove_file(b.join("d/plain")).unwrap();
    bench.transfer(false);
    assert_eq!(attribute(&b.join("d/plain"), ACCESS), None);
    is_same(&bench);
}

#[test]
fn what_was_removed_is_removed() {
    let mut bench = Bench::new();
    if !has_lists(&bench) {
        return;
    }
    let (file, dir) = (bench.path("a/file"), bench.path("a/dir"));
    let (link, fifo) = (bench.path("a/link"), bench.path("a/fifo"));
    fs::write(&file, b"content").unwrap();
    symlink("file", &link).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(&dir).unwrap();
    let list = access_list([7, 7, 1, 7, 0], 5);
    let mut all = vec![(&file, "user.one", &b"1"[..]), (&file, ACCESS, &list)];
    all.extend([(&dir, "user.two", &b"2"[..]), (&dir, ACCESS, &list), (&dir, DEFAULT, &list)]);
    if is_root() {
        all.push((&file, CAPABILITY, &BIND));
    }
    if has_trusted(&bench) {
        all.extend([
            (&file, TRUSTED, &b"3"[..]),
            (&dir, TRUSTED, b"4"),
            (&link, TRUSTED, b"5"),
            (&fifo, TRUSTED, b""),
        ]);
    }
    for (path, key, value) in &all {
        set_attribute(path, key, Some(value)).unwrap();
    }
    bench.transfer(false);
    is_same(&bench);
    for (path, key, value) in all {
        let there = bench.path("b").join(path.file_name().unwrap());
        assert_eq!(attribute(&there, key).as_deref(), Some(value), "{key}");
        set_attribute(path, key, None).unwrap();
        bench.transfer(false);
        assert_eq!(attribute(&there, key), None, "{key}");
        is_same(&bench);
    }
}

/// Attributes that are replaced by `XATTR_REPLACE`, and what was tried with a symbolic link, which takes none from users.
#[test]
fn what_was_replaced_is_replaced_and_links_have_none() {
    let mut bench = Bench::new();
    let (file, link) = (bench.path("a/file"), bench.path("a/link"));
    fs::write(&file, b"content").unwrap();
    symlink("file", &link).unwrap();
    if set_attribute(&file, "user.x", Some(b"before")).is_err() {
        return eprintln!("SKIPPED: temporary files are on a file system without attributes");
    }
    let refused = set_attribute(&link, "user.x", Some(b"x")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    bench.transfer(false);
    let replace = |key: &CStr, value: &[u8]| {
        let path = CString::new(file.as_os_str().as_encoded_bytes()).unwrap();
        let (value, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: both texts end with zero; value and length are of one slice.
        unsafe { libc::setxattr(path.as_ptr(), key.as_ptr(), value, len, libc::XATTR_REPLACE) }
    };
    assert_eq!((replace(c"user.x", b"after, and longer"), replace(c"user.none", b"x")), (0, -1));
    bench.transfer(false);
    assert_eq!(attribute(&bench.path("b/file"), "user.x").unwrap(), b"after, and longer");
    assert_eq!(replace(c"user.x", b""), 0);
    bench.transfer(false);
    assert_eq!(attribute(&bench.path("b/file"), "user.x").unwrap(), b"");
    assert_eq!(attribute(&bench.path("b/file"), "user.none"), None);
    is_same(&bench);
    assert_eq!(bench.scan().remarks, []);
}

#[test]
fn capabilities_outlast_the_change_of_owner() {
    let mut bench = Bench::new();
    if !is_root() {
        return;
    }
    let file = bench.path("a/server");
    fs::write(&file, b"program").unwrap();
    chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    set_attribute(&file, CAPABILITY, Some(&BIND)).unwrap();
    bench.transfer(false);
    assert_eq!(attribute(&bench.path("b/server"), CAPABILITY).as_deref(), Some(&BIND[..]));
    // An owner that was changed since is put right, which takes the capability away.
    chown(bench.path("b/server"), Some(1), None).unwrap();
    bench.transfer(false);
    assert_eq!(attribute(&bench.path("b/server"), CAPABILITY).as_deref(), Some(&BIND[..]));
    is_same(&bench);
}

#[test]
fn who_may_not_set_capabilities_gets_the_rest_and_is_told() {
    let mut bench = Bench::new();
    if !is_root() || !has_lists(&bench) {
        return;
    }
    let (a, b) = (bench.path("a"), bench.path("b"));
    for name in ["file", "had"] {
        fs::write(a.join(name), name).unwrap();
        fs::write(b.join(name), name).unwrap();
        chown(b.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let list = access_list([6, 4, 4, 4, 0], 3);
    set_attribute(&a.join("file"), ACCESS, Some(&list)).unwrap();
    set_attribute(&a.join("file"), CAPABILITY, Some(&BIND)).unwrap();
    set_attribute(&b.join("had"), CAPABILITY, Some(&BIND)).unwrap();
    let has_trusted = has_trusted(&bench);
    if has_trusted {
        set_attribute(&a.join("file"), TRUSTED, Some(b"x")).unwrap();
    }
    chown(&b, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let captured = bench.capture(None, &|_| Hint::Attributes);
    let targets = bench.targets(false);
    let store = &mut bench.store;
    let report = as_nobody(|| apply(&captured, store, &targets).unwrap());
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    let mut refused = vec![("file", "set attribute security.capability"), ("had", "remove attribute")];
    if has_trusted {
        refused.push(("file", "set attribute trusted.holo"));
    }
    for (name, what) in refused {
        let told = |one: &holo_cfor::Remark| one.path.ends_with(name.as_bytes()) && one.what.contains(what);
        assert!(report.remarks.iter().any(told), "{name}: {:?}", report.remarks);
    }
    assert_eq!(attribute(&b.join("file"), ACCESS), Some(list));
    assert_eq!(fs::read(b.join("file")).unwrap(), b"file");
}

#[test]
fn what_may_not_be_read_is_left_with_its_lists_and_the_rest_is_captured() {
    let mut bench = Bench::new();
    if !is_root() || !has_lists(&bench) {
        return;
    }
    let (a, staging) = (bench.path("a"), bench.path("staging"));
    fs::create_dir(a.join("closed")).unwrap();
    for name in ["closed/inside", "shut", "open"] {
        fs::write(a.join(name), name).unwrap();
    }
    set_attribute(&a.join("shut"), ACCESS, Some(&access_list([0, 4, 0, 4, 0], 1))).unwrap();
    set_attribute(&a.join("closed"), DEFAULT, Some(&access_list([7; 5], 1))).unwrap();
    fs::set_permissions(a.join("closed"), Permissions::from_mode(0o300)).unwrap();
    for path in [&a, &a.join("closed"), &a.join("shut"), &a.join("open"), &staging] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let captured = as_nobody(|| bench.capture(None, &|_| Hint::Attributes));
    let found =
        captured.tree.entries().map(|(_, entry)| (entry.path.as_bytes(), &captured.tree.inode(entry).kind));
    let left: Vec<&[u8]> = found.filter(|(_, kind)| **kind == Kind::Left).map(|(path, _)| path).collect();
    assert_eq!(left, [b"closed".as_slice(), b"shut"]);
    let told: Vec<&[u8]> = captured.tree.remarks.iter().map(|one| one.path.as_slice()).collect();
    assert_eq!(told.len(), 2, "{:?}", captured.tree.remarks);
    let targets = bench.targets(false);
    apply(&captured, &mut bench.store, &targets).unwrap();
    assert_eq!(fs::read(bench.path("b/open")).unwrap(), b"open");
    assert!(!bench.path("b/shut").exists() && !bench.path("b/closed").exists());
}

/// Where lists cannot be set the mode, whose bits of the group are the list's mask, must not give the group more.
#[test]
fn a_file_system_without_lists_gives_nobody_more() {
    let mut bench = Bench::new();
    if !is_root() || !has_lists(&bench) {
        return;
    }
    let (a, b) = (bench.path("a"), bench.path("b"));
    fs::write(a.join("file"), b"x").unwrap();
    set_attribute(&a.join("file"), ACCESS, Some(&access_list([6, 6, 0, 6, 0], 3))).unwrap();
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
                assert!(report.remarks.iter().any(|one| one.what.contains(ACCESS)), "{:?}", report.remarks);
                assert_eq!(mode(&b.join("file")), 0o600);
            }
        });
        elsewhere.join().unwrap();
    });
}
