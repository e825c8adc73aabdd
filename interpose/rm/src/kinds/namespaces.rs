//! Namespaces: a restored application is in those of its agent and of its clone, so that it must not have others.

use crate::manager::{RmError, RmResult};
use crate::tree::{Process, is_alive, state_and_parent};
use std::ffi::OsString;
use std::fs;

/// What a process must have as everything else of the application, as `/proc/<pid>/ns` calls it. System V and POSIX message queues
/// may be in a namespace of their own, but in one.
const KINDS: [(&str, &str); 9] = [
    ("user", "user"),
    ("mnt", "mount"),
    ("pid", "pid"),
    ("pid_for_children", "pid"),
    ("net", "network"),
    ("uts", "UTS"),
    ("cgroup", "cgroup"),
    ("time", "time"),
    ("time_for_children", "time"),
];
/// What each thread may have of its own while it shares everything else.
const OF_THREADS: [(&str, &str); 3] = [("net", "network"), ("uts", "UTS"), ("ipc", "IPC")];

/// The namespace of a process: a word that is the same for all that are in it. None: its first process is not there yet, or
/// we may not know.
fn of(dir: &str, kind: &str) -> Option<OsString> {
    fs::read_link(format!("/proc/{dir}/ns/{kind}")).ok().map(Into::into)
}

/// Who is in the namespaces that the application should be in: we, or the first process of the clone.
fn reference(first: i32) -> String {
    let (ours, mut at) = (of("self", "pid"), first);
    if of(&first.to_string(), "pid") == ours {
        return "self".into();
    }
    while let Some((_, parent)) = state_and_parent(at)
        && parent > 0
        && of(&parent.to_string(), "pid") != ours
    {
        at = parent;
    }
    at.to_string()
}

fn refuse<T>(who: &str, what: &str) -> RmResult<T> {
    Err(RmError::Unsupported(format!("{who} has a {what} namespace of its own (unshare, setns, clone)")))
}

/// Checks all processes and threads.
///
/// # Errors
/// One has a namespace of its own.
pub(super) fn check(processes: &[Process]) -> RmResult<()> {
    let Some(first) = processes.first() else { return Ok(()) };
    let reference = reference(first.remote.pid);
    let wanted = KINDS.map(|(kind, _)| of(&reference, kind));
    let ipc = of(&first.remote.pid.to_string(), "ipc");
    for process in processes {
        let pid = process.remote.pid;
        // The first thread's are asked for: it has none once it has ended.
        let lives = || is_alive(pid);
        for ((kind, what), wanted) in KINDS.iter().zip(&wanted) {
            if of(&pid.to_string(), kind) != *wanted && lives() {
                return refuse(&format!("process {pid}"), what);
            }
        }
        if of(&pid.to_string(), "ipc") != ipc && lives() {
            return refuse(&format!("process {pid}"), "IPC");
        }
        for entry in fs::read_dir(process.remote.proc("task")).into_iter().flatten().flatten() {
            let tid = entry.file_name().to_string_lossy().into_owned();
            let other = |(kind, _): &&(&str, &str)| {
                let now = of(&tid, kind);
                now.is_some() && now != of(&pid.to_string(), kind) && lives()
            };
            if let Some((_, what)) = OF_THREADS.iter().find(other) {
                return refuse(&format!("thread {tid} of process {pid}"), what);
            }
        }
    }
    Ok(())
}
