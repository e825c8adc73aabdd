//! Namespaces: a restored application is in those of its agent and of its clone, so that it must not have others.

use crate::face::face;
use crate::manager::{RmError, RmResult};
use crate::remote::Remote;
use crate::tree::{Process, state_and_parent};
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io;

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

/// A namespace of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Namespace {
    /// A word that is the same for all that are in it.
    Of(OsString),
    /// We may not know: it is in a user namespace of its own.
    Hidden,
    /// The process has ended or is about to, or nobody is in it yet.
    Nobodys,
}

fn of(process: impl Display, kind: &str) -> Namespace {
    match fs::read_link(format!("/proc/{process}/ns/{kind}")) {
        Ok(word) => Namespace::Of(word.into()),
        // The kernel says so, too, of a process that has gone since its name was looked up.
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied && lives(&process) => Namespace::Hidden,
        Err(_) => Namespace::Nobodys,
    }
}

fn lives(process: &impl Display) -> bool {
    fs::exists(format!("/proc/{process}/stat")).unwrap_or(true)
}

/// Who is in the namespaces that the application should be in: we, or the first process of the clone.
fn reference(first: &Remote) -> String {
    let (ours, mut at) = (of("self", "pid"), first.pid);
    if of(first.face, "pid") == ours {
        return "self".into();
    }
    while let Some((_, parent)) = state_and_parent(at)
        && parent > 0
        && of(parent, "pid") != ours
    {
        at = parent;
    }
    face(at).to_string()
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
    let reference = reference(&first.remote);
    let wanted = KINDS.map(|(kind, _)| of(&reference, kind));
    let ipc = of(first.remote.face, "ipc");
    let differs = |one: &Namespace, other: &Namespace| {
        one != other && *one != Namespace::Nobodys && *other != Namespace::Nobodys
    };
    for process in processes {
        let (pid, face) = (process.remote.pid, process.remote.face);
        for ((kind, what), wanted) in KINDS.iter().zip(&wanted) {
            if differs(&of(face, kind), wanted) {
                return refuse(&format!("process {pid}"), what);
            }
        }
        if differs(&of(face, "ipc"), &ipc) {
            return refuse(&format!("process {pid}"), "IPC");
        }
        let own = OF_THREADS.map(|(kind, _)| of(face, kind));
        for entry in fs::read_dir(process.remote.proc("task")).into_iter().flatten().flatten() {
            let tid = entry.file_name().to_string_lossy().into_owned();
            for ((kind, what), own) in OF_THREADS.iter().zip(&own) {
                if tid != face.to_string() && differs(&of(&tid, kind), own) {
                    return refuse(&format!("thread {tid} of process {pid}"), what);
                }
            }
        }
    }
    Ok(())
}
