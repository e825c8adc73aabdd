//! What System V objects and message queues have in common: the IPC namespace of a clone and its limits.
//!
//! A restored application that has such objects gets an IPC namespace of its own, in which ids and names are free: the
//! kernel gives the wanted id out after it was written to `*_next_id`. A new namespace has the kernel's default limits,
//! so that those of the application's are kept with the image.

use super::process::clock_ns;
use super::sysctl;
use super::tree::{self, TreeState};
use crate::corpses::before_its_end;
use crate::grow::{end, fork_of};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx, section};
use crate::remote::{Remote, call, outcome};
use crate::tree::{is_nested, start_time};
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const NAME: &str = "ipc";
const VERSION: u16 = 1;
const CLONE_NEWIPC: u64 = 0x0800_0000;
/// Limits under `/proc/sys`.
const LIMITS: [&str; 13] = [
    "kernel/sem",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "fs/mqueue/msg_default",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_default",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/queues_max",
];
const LIMIT_BYTES_MAX: usize = 128;
const PATH_ROOM: usize = 64;

/// State: limits by their names, as the kernel prints them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct IpcState {
    limits: Vec<(String, String)>,
}

/// The manager. Clones are the same: kinds tell through theirs that the application has objects.
#[derive(Clone, Default)]
pub struct Ipc {
    used: Arc<AtomicBool>,
}

impl Ipc {
    /// The application has an object of a namespace, in this epoch.
    pub(crate) fn is_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

/// The limits of the namespace of a process.
fn limits(remote: &Remote) -> RmResult<Vec<(String, String)>> {
    let paths = LIMITS.iter().enumerate().map(|(index, name)| {
        let path = format!("/proc/sys/{name}\0");
        call(sysno::open, &[remote.page.put(index * PATH_ROOM, path.as_bytes()), 0])
    });
    let mut opened: Vec<_> = paths.collect();
    remote.run(&mut opened, false).on("reading", "limits")?;
    let base = LIMITS.len() * PATH_ROOM;
    let room = |index: usize| base + index * LIMIT_BYTES_MAX;
    let mut calls = Vec::new();
    for (index, made) in opened.iter().enumerate() {
        // Where there is no /proc, or the kernel lacks one: nothing to be kept.
        if let Ok(fd) = outcome(made) {
            let at = remote.page.scratch_address(room(index));
            calls.push((index, call(sysno::read, &[fd, at, LIMIT_BYTES_MAX as u64])));
            calls.push((index, call(sysno::close, &[fd])));
        }
    }
    let mut list: Vec<_> = calls.iter().map(|(_, call)| *call).collect();
    remote.run(&mut list, false).on("reading", "limits")?;
    let mut out = Vec::new();
    for ((index, _), made) in calls.iter().zip(&list).step_by(2) {
        if let Ok(bytes) = outcome(made) {
            let text = remote.page.take(room(*index), (bytes as usize).min(LIMIT_BYTES_MAX));
            let text = String::from_utf8_lossy(&text).trim().to_owned();
            out.push((LIMITS[*index].to_owned(), text));
        }
    }
    Ok(out)
}

impl ResourceManager for Ipc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let used = self.used.swap(false, Ordering::Relaxed);
        let limits = if used { limits(cx.remote)? } else { Vec::new() };
        cx.put(NAME, VERSION, &IpcState { limits })
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.used.store(false, Ordering::Relaxed);
    }

    /// The namespace is made by the first kind that needs it.
    fn switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }
}

fn own_namespace(remote: &Remote) -> RmResult<bool> {
    let of = |path: std::path::PathBuf| fs::read_link(&path).on("reading", path.display());
    Ok(of(remote.proc("ns/ipc"))? != of("/proc/self/ns/ipc".into())?)
}

/// Gives all processes of the clone one IPC namespace of their own, unless they have it.
pub(crate) fn namespace(cx: &mut SwitchCx) -> RmResult<()> {
    if own_namespace(cx.remote)? {
        return Ok(());
    }
    cx.remote.call(sysno::unshare, &[CLONE_NEWIPC]).on("making", "an IPC namespace")?;
    let pid = cx.remote.call(sysno::getpid, &[]).on("asking", "the clone")?;
    for remote in cx.tree.iter().filter(|remote| remote.pid != cx.remote.pid) {
        let path = format!("/proc/{pid}/ns/ipc\0");
        let at = remote.page.put(0, path.as_bytes());
        let fd = remote.call(sysno::open, &[at, 0]).on("opening", "the IPC namespace")?;
        let mut calls = [call(sysno::setns, &[fd, CLONE_NEWIPC]), call(sysno::close, &[fd])];
        remote.run_all(&mut calls).on("entering", "the IPC namespace")?;
    }
    if cx.image.section(NAME).is_none() {
        return Ok(());
    }
    let state: IpcState = section(cx.image, NAME, VERSION)?;
    let now = limits(cx.remote)?;
    for wanted in &state.limits {
        let (name, value) = wanted;
        if now.contains(wanted) || !LIMITS.contains(&name.as_str()) || value.len() > LIMIT_BYTES_MAX {
            continue;
        }
        if let Err(cause) = sysctl::write(cx.remote, name, value) {
            cx.remarks.push(format!("the limit {name} is not {value} as it was: {cause}"));
        }
    }
    Ok(())
}

/// The next object of a sort (`sem`, `msg`, `shm`) gets this id.
pub(crate) fn next_id(remote: &Remote, sort: &str, id: i32) -> std::io::Result<()> {
    sysctl::write(remote, &format!("kernel/{sort}_next_id"), &id.to_string())
}

/// Does something as the process that is `pid` to the application: one of the clone, or one that ended before the epoch
/// and is there for a moment. False: there cannot be such a process.
pub(crate) fn as_process(
    cx: &SwitchCx,
    pid: i32,
    act: &mut dyn FnMut(&Remote) -> RmResult<()>,
) -> RmResult<bool> {
    let tree: TreeState = section(cx.image, tree::NAME, tree::VERSION)?;
    if let Some(index) = tree.processes.iter().position(|branch| branch.pid == pid) {
        let remote =
            cx.tree.get(index).ok_or_else(|| RmError::Unsupported(format!("process {pid} was not made")))?;
        return act(remote).map(|()| true);
    }
    if let Some(ended) = tree.ended.iter().find(|ended| ended.pid == pid) {
        let parent = tree.processes.iter().position(|branch| branch.pid == ended.ppid);
        let parent = parent.and_then(|index| cx.tree.get(index));
        let parent = parent.ok_or_else(|| RmError::Unsupported(format!("zombie {pid} has no parent")))?;
        return before_its_end(parent, ended, act).map(|()| true);
    }
    if pid <= 1 {
        return Ok(false);
    }
    let Ok(moment) = fork_of(cx.remote, pid) else { return Ok(false) };
    let done = act(&moment);
    end(&moment, Some((cx.remote, pid)))?;
    done.map(|()| true)
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn long(bytes: &[u8], at: usize) -> i64 {
    i64::from(word(bytes, at)) | i64::from(word(bytes, at + 4)) << 32
}

/// Whether a process of the application is `pid` to itself, and was at this time (in seconds since the epoch): kernel objects
/// remember ids of users that ended long ago.
pub(super) fn is_ours(cx: &DumpCx, pid: i32, at_s: i64) -> bool {
    let process = cx.processes.iter().find(|process| process.pid == pid);
    process.and_then(|process| start_s(&process.remote)).is_some_and(|since| at_s >= since)
}

/// Since when the application has processes, in seconds since the epoch.
pub(super) fn since_s(cx: &DumpCx) -> i64 {
    cx.processes.iter().filter_map(|process| start_s(&process.remote)).min().unwrap_or(0)
}

/// When a process started, in seconds since the epoch, rather a little early: times are cut to whole seconds.
fn start_s(remote: &Remote) -> Option<i64> {
    const TICKS_PER_S: i64 = 100;
    let booted_s = (clock_ns(libc::CLOCK_REALTIME) - clock_ns(libc::CLOCK_BOOTTIME)) / 1_000_000_000;
    Some(booted_s + remote.stat()?.started.cast_signed() / TICKS_PER_S - 2)
}

/// Notes in `known` the ids of a sort that the processes' pages tell of, and forgets those that are not in `all`.
pub(super) fn note<T>(cx: &DumpCx, sort: u64, all: &BTreeMap<i32, T>, known: &mut BTreeSet<i32>) {
    for process in cx.processes {
        let page = &process.remote.page;
        for id in page.objects(sort).collect::<Vec<_>>() {
            if all.contains_key(&id) {
                known.insert(id);
            } else {
                page.forget_object(sort, id);
            }
        }
    }
    known.retain(|id| all.contains_key(id));
}

/// A process outside the application among those that used an object. Only one that is older than the application is
/// known to be: the number of a younger one may have been that of a process of the application.
pub(super) fn stranger(cx: &DumpCx, pids: &[i32]) -> Option<i32> {
    let ours = |pid: i32| cx.processes.iter().any(|process| process.pid == pid);
    let others: BTreeSet<i32> = pids.iter().copied().filter(|pid| *pid > 0 && !ours(*pid)).collect();
    // In a namespace of its own an application meets nobody.
    if others.is_empty() || is_nested(cx.remote.pid) {
        return None;
    }
    let oldest =
        cx.processes.iter().filter_map(|process| process.remote.stat()).map(|seen| seen.started).min()?;
    others.into_iter().find(|pid| start_time(*pid).is_some_and(|since| since < oldest))
}
