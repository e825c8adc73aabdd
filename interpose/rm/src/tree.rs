//! The processes of an application, as they are seen from outside.

use crate::face::{face, others};
use crate::page::Page;
use crate::proc_file;
use crate::remote::Remote;
use crate::tasks;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A process that belongs to the application.
#[derive(Clone)]
pub struct Seat {
    /// Its pid on this node.
    pub pid: i32,
    /// Its pid as it sees itself.
    pub inner: i32,
    /// The control page that it has mapped; none: it is starting, or does not run under holo.
    pub page: Option<Arc<Page>>,
}

/// A child that has ended and was not waited for yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zombie {
    /// Its pid on this node.
    pub pid: i32,
}

/// Who belongs to an application, asked again and again while the barrier forms.
pub trait Census {
    /// All living processes, the one that stands for the application first, parents before children.
    fn seats(&self) -> Vec<Seat>;

    /// All of the last [`Self::seats`] are parked: until a page says that something changes, they are all there is.
    fn settled(&self);
}

/// A process that serves calls: parked, or a clone in the making.
pub struct Process {
    /// The process.
    pub remote: Remote,
    /// Its pid as it sees itself.
    pub pid: i32,
    /// Slots of its threads, the thread-group leader's first if it lives.
    pub slots: Vec<usize>,
    /// It is stopped (job control).
    pub stopped: bool,
}

/// Pids of snapshots that live: they look like processes of the application and are not.
static HIDDEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Notes that a process is holo's own.
pub(crate) fn hide(pid: i32) {
    HIDDEN.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
}

/// Forgets it; to be called when it is gone.
pub(crate) fn unhide(pid: i32) {
    HIDDEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
}

/// Whether a process is holo's own.
#[must_use]
pub fn is_hidden(pid: i32) -> bool {
    HIDDEN.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// Children of all threads of a process, on this node.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let mut out = Vec::new();
    // Of a process that is gone there are none.
    let _ = tasks::each(pid, c"children", &mut |_, list| {
        let list = String::from_utf8_lossy(list);
        out.extend(list.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    });
    out.retain(|child| !is_hidden(*child));
    out
}

/// What `/proc/<pid>/stat` tells of a process or thread; ids are those of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its threads that live.
    pub threads: usize,
    /// Its first thread has ended, others have not.
    pub first_has_ended: bool,
    /// Where parts of its memory are: code, data, break, arguments and environment, in the order of `struct prctl_mm_map`. The
    /// break is where it began, and its end is not told.
    pub parts: [u64; 11],
    /// State letter; of a process whose first thread has ended while others live, that of one of them.
    pub state: char,
    /// Parent.
    pub parent: i32,
    /// Session.
    pub session: i32,
    /// Device of its controlling terminal, as the kernel packs it; 0: none.
    pub terminal: i32,
    /// When it started, in ticks since the boot.
    pub started: u64,
    /// The signal that its parent gets when it ends, 0: none.
    pub exit_signal: i32,
}

/// Numbers of [`Stat::parts`]; 0: none.
const PARTS: [usize; 11] = [26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51];

/// Reads it; none if it is gone.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    let read = |tid: i32| Stat::parse(&proc_file::read(format!("/proc/{tid}/stat")).ok()?);
    let first = read(pid)?;
    // The first one shows what is of the process still, and nothing of its memory.
    match first.first_has_ended.then(|| others(pid).find_map(read)).flatten() {
        Some(Stat { parts, state, .. }) => Some(Stat { parts, state, ..first }),
        None => Some(first),
    }
}

impl Stat {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        // By the numbers of proc(5), which begin with 1; the second one is the name, which may contain anything.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
        let (letter, threads) = (field(3)?.chars().next()?, field(20)?.parse().ok()?);
        let state = of_process(letter, threads);
        let first_has_ended = state != letter;
        Some(Stat {
            threads: threads - usize::from(first_has_ended),
            first_has_ended,
            parts: PARTS.map(|number| field(number).and_then(|word| word.parse().ok()).unwrap_or(0)),
            state,
            parent: field(4)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            terminal: field(7)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
            exit_signal: field(38)?.parse().ok()?,
        })
    }
}

/// State of a process whose first thread is in `state`: that one may have ended (`pthread_exit`), or be about to be replaced by one
/// that executes a program.
fn of_process(state: char, threads: usize) -> char {
    if state == 'Z' && threads > 1 { 'S' } else { state }
}

/// State letter and parent of a process; none if it is gone.
#[must_use]
pub fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    stat(pid).map(|stat| (stat.state, stat.parent))
}

/// When a process or thread started, in ticks since the boot; none if it is not there or has ended.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X')).map(|stat| stat.started)
}

/// Whether a process is in another pid namespace than we: by how many ids it has, since two of them may be equal.
#[must_use]
pub fn is_nested(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().count() > 1)
}

/// Whether a process or thread is there and has not ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// The id on this node of the thread that is `inner` to itself.
pub(crate) fn outer_tid(pid: i32, inner: i32) -> io::Result<i32> {
    if crate::barrier::inner_tid(pid, pid) == inner {
        return Ok(pid);
    }
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok())
            && crate::barrier::inner_tid(pid, tid) == inner
        {
            return Ok(tid);
        }
    }
    Err(io::Error::other(format!("no thread {inner} in {pid}")))
}

/// The child of `pid` that is `inner` to itself.
#[must_use]
pub fn child_of(pid: i32, inner: i32) -> Option<i32> {
    children(pid).into_iter().find(|child| crate::barrier::inner_tid(*child, *child) == inner)
}

/// What `/proc/<pid>/status` tells of a process that is needed to know whether it can be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// It has a handler for the park signal.
    pub parks: bool,
    /// Its pid as it sees itself.
    pub inner: i32,
    /// State letter; that of a process whose first thread has ended while others live is `S`.
    pub state: char,
    /// The thread that it is looked at through, see [`crate::face`].
    pub face: i32,
}

/// Looks at a process; none if it is gone.
#[must_use]
pub fn look(pid: i32) -> Option<Look> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let caught = u64::from_str_radix(value("SigCgt:").unwrap_or("0"), 16).unwrap_or(0);
    let first = value("State:")?.chars().next()?;
    let state = of_process(first, value("Threads:")?.parse().ok()?);
    Some(Look {
        parks: caught & 1 << (holo_abi::PARK_SIGNAL - 1) != 0,
        inner: value("NSpid:")?.split_whitespace().last()?.parse().ok()?,
        state,
        face: if state == first { pid } else { face(pid) },
    })
}

/// Whether two processes, by their faces, share their memory: one is on its way from `vfork` to `exec`.
#[must_use]
pub fn share_memory(one: i32, other: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn we_are_where_we_are() {
        assert!(!is_nested(std::process::id() as i32));
    }

    // Goal: a child is found, looked at, and told from one that is hidden. Method: our own child.
    #[test]
    fn a_child_is_found() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let (me, pid) = (std::process::id() as i32, child.id() as i32);
        assert!(children(me).contains(&pid));
        assert_eq!(state_and_parent(pid).unwrap().1, me);
        assert!(!look(pid).unwrap().parks);
        assert!(share_memory(me, me) && !share_memory(me, pid));
        hide(pid);
        assert!(!children(me).contains(&pid));
        unhide(pid);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
