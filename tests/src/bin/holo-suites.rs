//! `make suites`: programs' own test suites, plain and under holo with an epoch a second, compared test by test.
//!
//! Arguments choose suites whose names contain one of them. Exits with 1 if a test differs that is no documented limit.
#![allow(clippy::print_stdout)]

use holo_tests::suites::{Suite, compare};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

const PAUSE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(900);

const PYTHON: &[&str] = &[
    "test_os",
    "test_signal",
    "test_socket",
    "test_subprocess",
    "test_threading",
    "test_mmap",
    "test_multiprocessing_fork",
    "test_select",
    "test_selectors",
    "test_asyncio",
    "test_fcntl",
    "test_io",
    "test_pty",
    "test_posix",
    "test_time",
    "test_thread",
    "test_epoll",
    "test_eintr",
    "test_faulthandler",
    "test_resource",
    "test_concurrent_futures",
    "test_shutil",
    "test_tempfile",
    "test_fork1",
    "test_wait3",
    "test_wait4",
    "test_threadsignals",
    "test_poll",
    "test_openpty",
    "test_ctypes",
    "test_cmd_line",
    "test_ssl",
    "test_httpservers",
    "test_regrtest",
    "test_ftplib",
    "test_smtpd",
    "test_sys",
    "test_popen",
];

/// Of the classes os, ipc, scheduler, memory, pipe, signal and vm; none that takes a machine to its limits.
const STRESSORS: &[&str] = &[
    "access",
    "affinity",
    "aio",
    "aiol",
    "alarm",
    "bad-altstack",
    "cap",
    "chmod",
    "chroot",
    "clock",
    "clone",
    "close",
    "context",
    "daemon",
    "dnotify",
    "dup",
    "dynlib",
    "enosys",
    "env",
    "epoll",
    "eventfd",
    "exit-group",
    "fault",
    "fcntl",
    "fifo",
    "flock",
    "fork",
    "fstat",
    "futex",
    "get",
    "getdent",
    "getrandom",
    "hrtimers",
    "inotify",
    "itimer",
    "kcmp",
    "kill",
    "landlock",
    "lease",
    "lockf",
    "lockofd",
    "madvise",
    "membarrier",
    "memfd",
    "mincore",
    "mknod",
    "mmapaddr",
    "mmapfixed",
    "mprotect",
    "mq",
    "mremap",
    "msg",
    "munmap",
    "mutex",
    "nanosleep",
    "nice",
    "null",
    "opcode",
    "pagemove",
    "personality",
    "pidfd",
    "pipe",
    "pipeherd",
    "poll",
    "prctl",
    "procfs",
    "pthread",
    "ptrace",
    "pty",
    "remap",
    "rename",
    "ring-pipe",
    "rlimit",
    "rmap",
    "schedpolicy",
    "seal",
    "seccomp",
    "seek",
    "sem",
    "sem-sysv",
    "sendfile",
    "session",
    "set",
    "shm",
    "shm-sysv",
    "sigabrt",
    "sigchld",
    "sigfd",
    "sigfpe",
    "sigio",
    "signal",
    "signest",
    "sigpending",
    "sigpipe",
    "sigq",
    "sigrt",
    "sigsegv",
    "sigsuspend",
    "sigtrap",
    "sleep",
    "sock",
    "sockabuse",
    "sockdiag",
    "sockfd",
    "sockpair",
    "spawn",
    "splice",
    "stackmmap",
    "switch",
    "sysbadaddr",
    "sysinfo",
    "tee",
    "timer",
    "timerfd",
    "tlb-shootdown",
    "udp",
    "unshare",
    "userfaultfd",
    "usersyscall",
    "vdso",
    "vfork",
    "vm-addr",
    "vm-rw",
    "vm-segv",
    "vm-splice",
    "wait",
    "x86syscall",
    "xattr",
    "yield",
    "zombie",
];

/// What differs by a limit that `docs/limits.md` tells of.
const LIMITS: &[&str] = &["stress-ng usersyscall"];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let python = PYTHON.iter().map(|module| Suite::Python(module, &[]));
    let all = python.chain(STRESSORS.iter().map(|stressor| Suite::StressNg(stressor)));
    let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
    let (mut tests, mut epochs, mut wrong) = (0, 0, 0);
    println!(
        "{:36} {:>6} {:>7} {:>8} {:>7} {:>8}",
        "suite", "tests", "differ", "plain s", "holo s", "epochs"
    );
    for suite in all {
        let name = suite.name();
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part)) {
            continue;
        }
        let (plain, under, differ) = compare(suite, PAUSE, LIMIT);
        let limit = LIMITS.contains(&name.as_str());
        println!(
            "{name:36} {:6} {:7} {:8.1} {:7.1} {:8}{}",
            plain.results.len(),
            differ.len(),
            plain.took.as_secs_f64(),
            under.took.as_secs_f64(),
            under.epochs,
            if limit { "  (a documented limit)" } else { "" }
        );
        for one in &differ {
            println!("    {}: {} without holo, {} under it", one.test, one.plain, one.under);
        }
        tests += plain.results.len();
        epochs += under.epochs;
        wrong += if limit { 0 } else { differ.len() };
        for (reason, count) in under.refused {
            *reasons.entry(reason).or_default() += count;
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    println!("{tests} tests, {wrong} differ; {epochs} epochs sealed; not sealed:");
    for (reason, count) in reasons {
        println!("{count:6}  {reason}");
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
