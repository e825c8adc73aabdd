//! Goal: whoever applies an epoch may be killed at any of its steps. Until somebody applies again every name has either its
//! old content or its new one, whole; afterwards the tree is exactly that of the epoch applied, whichever that is.
//!
//! Method: a child applies under `ptrace` and is killed before one of its system calls, each time before a later one until
//! it comes to its end; each time its work is finished, or undone by applying the epoch before.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use common::{Bench, Content, Store, release_all, set_flags};
use holo_cfor::{Captured, Hint, Targets, apply, verify};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// A child that has not come to its end by then makes something without end.
const CALLS_MAX: usize = 20_000;

fn text(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn old(top: &Path) {
    text(&top.join("same"), b"as before");
    text(&top.join("changed"), &[1; 9000]);
    text(&top.join("gone/deep/file"), b"to be removed");
    text(&top.join("dir-then-file/inner"), b"inner");
    text(&top.join("file-then-dir"), b"a file");
    text(&top.join("renamed-from"), b"renamed");
    text(&top.join("link-a"), b"two names");
    fs::hard_link(top.join("link-a"), top.join("link-b")).unwrap();
    symlink("changed", top.join("pointer")).unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(&[2; 4096], 1 << 19).unwrap();
}

fn new(top: &Path) {
    text(&top.join("changed"), &[3; 70_000]);
    fs::remove_dir_all(top.join("gone")).unwrap();
    fs::remove_dir_all(top.join("dir-then-file")).unwrap();
    text(&top.join("dir-then-file"), b"a file now");
    fs::remove_file(top.join("file-then-dir")).unwrap();
    text(&top.join("file-then-dir/inner"), b"a directory now");
    fs::rename(top.join("renamed-from"), top.join("renamed-to")).unwrap();
    fs::remove_file(top.join("link-b")).unwrap();
    fs::hard_link(top.join("same"), top.join("link-b")).unwrap();
    fs::remove_file(top.join("pointer")).unwrap();
    symlink("renamed-to", top.join("pointer")).unwrap();
    let sparse = File::options().write(true).open(top.join("sparse")).unwrap();
    sparse.write_all_at(&[4; 4096], 0).unwrap();
    fs::set_permissions(top.join("link-a"), Permissions::from_mode(0o640)).unwrap();
    let at = UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::open(top.join("link-a")).unwrap().set_times(FileTimes::new().set_modified(at)).unwrap();
}

const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;
/// Names and what they are to be.
type Held = &'static [(&'static str, u32)];
const HELD_OLD: [(&str, u32); 9] = [
    ("same", APPEND),
    ("changed", IMMUTABLE),
    ("gone/deep/file", IMMUTABLE),
    ("gone/deep", APPEND),
    ("gone", IMMUTABLE),
    ("dir-then-file", IMMUTABLE),
    ("file-then-dir", APPEND),
    ("link-a", IMMUTABLE),
    ("", APPEND),
];
const HELD_NEW: [(&str, u32); 5] = [
    ("same", IMMUTABLE),
    ("renamed-to", APPEND),
    ("dir-then-file", IMMUTABLE),
    ("file-then-dir", APPEND),
    ("", IMMUTABLE),
];

/// Makes some of it immutable or append-only.
fn hold(top: &Path, held: &[(&str, u32)]) {
    held.iter().for_each(|(name, on)| set_flags(&top.join(name), *on, 0).unwrap());
}

/// Content of each regular file.
fn contents(top: &Path, under: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(top.join(under)).unwrap().map(Result::unwrap) {
        let path = under.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            contents(top, &path, found);
        } else if kind.is_file() {
            // Access times are compared, too.
            let mut file =
                File::options().read(true).custom_flags(libc::O_NOATIME).open(entry.path()).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            found.insert(path.to_str().unwrap().into(), bytes);
        }
    }
}

fn files(top: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    contents(top, Path::new(""), &mut found);
    found
}

fn ptrace(request: libc::c_uint, child: Pid, data: i32) {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: none of these requests reads or writes our memory.
    let done = unsafe { libc::ptrace(request, child.as_raw(), nothing, libc::c_long::from(data)) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Runs `work` in a child that is killed before system call number `calls`; true if it came to its end.
fn killed_before(calls: usize, work: impl FnOnce()) -> bool {
    // SAFETY: the child uses what it has a copy of, and allocates, which the C library allows after a fork.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            ptrace(libc::PTRACE_TRACEME, Pid::from_raw(0), 0);
            raise(Signal::SIGSTOP).unwrap();
            work();
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    assert!(matches!(waitpid(child, None).unwrap(), WaitStatus::Stopped(_, Signal::SIGSTOP)));
    ptrace(libc::PTRACE_SETOPTIONS, child, libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL);
    // Each call stops twice: before it is made, and after.
    for _ in 0..2 * calls + 1 {
        ptrace(libc::PTRACE_SYSCALL, child, 0);
        let mut status = 0;
        // SAFETY: one word.
        assert_eq!(unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) }, child.as_raw());
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0);
            return true;
        }
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80, "{status:x}");
    }
    end(child);
    false
}

fn end(child: Pid) {
    nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
    while !matches!(waitpid(child, None).unwrap(), WaitStatus::Signaled(..)) {}
}

fn done(captured: &Captured<Content>, store: &mut Store, targets: &Targets) {
    let report = apply(captured, store, targets).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

/// Kills before every call, from one epoch to the other; the work is finished and undone by turns.
fn sweep(forward: bool, replaced: bool, (held_old, held_new): (Held, Held)) {
    let mut bench = Bench::new();
    let (a, b, before) = (bench.path("a"), bench.path("b"), bench.path("before"));
    old(&a);
    hold(&a, held_old);
    let first = bench.capture(None, &|_| Hint::Attributes);
    assert!(Command::new("cp").arg("-a").args([&a, &before]).status().unwrap().success());
    hold(&before, held_old);
    release_all(&a);
    new(&a);
    hold(&a, held_new);
    let second = bench.capture(None, &|_| Hint::Attributes);
    let targets = bench.targets(replaced);
    let (from, to) =
        if forward { ((&first, &before), (&second, &a)) } else { ((&second, &a), (&first, &before)) };
    let (from_files, to_files) = (files(from.1), files(to.1));
    let mut calls = 0;
    loop {
        // Names that are taken there cost calls.
        release_all(&bench.path("replaced"));
        let _ = fs::remove_dir_all(bench.path("replaced"));
        done(from.0, &mut bench.store, &targets);
        assert_eq!(verify(from.1, &b).unwrap(), []);
        let store = &mut bench.store;
        let ended = killed_before(calls, || done(to.0, store, &targets));
        for (path, bytes) in files(&b) {
            if !path.contains(".holo-new-") {
                let known = [from_files.get(&path), to_files.get(&path)];
                assert!(
                    known.contains(&Some(&bytes)),
                    "{path} is neither old nor new, killed before call {calls}"
                );
            }
        }
        // Finished, or undone.
        let (captured, wanted) = if calls % 2 == 0 || ended { to } else { from };
        if !ended {
            done(captured, &mut bench.store, &targets);
        }
        assert_eq!(verify(wanted, &b).unwrap(), [], "killed before call {calls}");
        assert_eq!(files(&b), files(wanted), "killed before call {calls}");
        if ended {
            break;
        }
        calls += 1;
        assert!(calls < CALLS_MAX);
    }
    assert!(calls > 100, "{calls} calls only: nothing was applied");
}

#[test]
fn killed_at_any_call() {
    sweep(true, true, (&[], &[]));
}

#[test]
fn killed_at_any_call_on_the_way_back() {
    sweep(false, true, (&[], &[]));
}

#[test]
fn killed_at_any_call_without_a_place_for_what_is_replaced() {
    sweep(true, false, (&[], &[]));
}

/// What is immutable or append-only, before or after, is released on the way. Takes root.
fn sweep_held(forward: bool, replaced: bool) {
    let bench = Bench::new();
    if let Err(cause) = set_flags(&bench.path("a"), IMMUTABLE, 0) {
        return eprintln!("SKIPPED: nothing can be made immutable here: {cause}");
    }
    drop(bench);
    sweep(forward, replaced, (&HELD_OLD, &HELD_NEW));
}

#[test]
fn killed_at_any_call_among_what_is_held() {
    sweep_held(true, true);
}

#[test]
fn killed_at_any_call_among_what_is_held_on_the_way_back() {
    sweep_held(false, false);
}
