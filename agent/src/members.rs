//! The processes of an application on this node: how they are found again, whatever they do.
//!
//! ```text
//! a child                 /proc/<parent>/task/*/children
//! an orphan of a fork     the list in the control page that it shares with who forked it
//! an orphan after exec    it has joined
//! its parent has ended    that page is kept for a while, since the child may not have run yet
//! any of a restored app   child, in the end, of the init of its namespace
//! ```
//!
//! A forked process has its parent's control page, at the same place; one that executed a program gets its own when it
//! joins. Walking costs time, so that it is done only when a page says that a process was made since.
//!
//! A page outlives the process that joined with it: its list may lead to orphans (a program that makes itself a daemon).

use holo_rm::barrier::inner_tid;
use holo_rm::face::face;
use holo_rm::page::Page;
use holo_rm::tree::{
    Census, Look, Seat, children, is_hidden, is_nested, look, share_memory, start_time, state_and_parent,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the page of a process that has made others is kept when it is gone, and of how many such.
const LEFT_FOR: Duration = Duration::from_secs(2);
const LEFT_MAX: usize = 256;
/// How long after such a process ended one that it made may still be on its way: to its first instruction, or to its join.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// A control page and the file that it is.
#[derive(Clone)]
pub struct Leaf {
    /// The page.
    pub page: Arc<Page>,
    /// Its file.
    pub path: PathBuf,
}

/// A process that is known.
struct Member {
    started: u64,
    inner: i32,
    pidfd: OwnedFd,
    leaf: Option<Leaf>,
}

impl Member {
    fn open(pid: i32, inner: i32, leaf: Option<Leaf>) -> Option<Self> {
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        if raw < 0 {
            return None;
        }
        // SAFETY: just made.
        let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
        Some(Self { started: start_time(pid)?, inner, pidfd, leaf })
    }

    fn is_alive(&self) -> bool {
        let mut entry = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 0 }
    }
}

#[derive(Default)]
struct Inner {
    /// The process that stands for the application.
    first: i32,
    known: BTreeMap<i32, Member>,
    /// Pages of those that have ended, or executed a program, and since when that is known.
    left: VecDeque<(Instant, Leaf)>,
    /// Init of a restored application's namespace.
    init: Option<i32>,
    /// The order of the last walk, and what the pages said then, once all were parked.
    order: Vec<i32>,
    walked: u64,
    settled: Option<u64>,
    /// How paths of the control pages' files begin, and those that were ever in use.
    pages: PathBuf,
    files: BTreeSet<PathBuf>,
    /// What its programs are started with.
    marks: Vec<Vec<u8>>,
}

/// Variables by which libholo finds its agent and application: no other application has them all alike.
fn marks(pid: i32) -> Vec<Vec<u8>> {
    const NAMES: [&[u8]; 3] = [b"HOLO_NAME=", b"HOLO_SOCKET=", b"HOLO_TOKEN="];
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_one = |variable: &&[u8]| NAMES.iter().any(|name| variable.starts_with(name));
    let mut found: Vec<_> = environment.split(|byte| *byte == 0).filter(is_one).map(<[u8]>::to_vec).collect();
    found.sort_unstable();
    found
}

/// The processes of an application.
pub struct Members(Mutex<Inner>);

impl Members {
    /// Nobody yet; files of control pages are in `pages` and begin with the application's name.
    #[must_use]
    pub fn new(pages: &Path, app: &str) -> Self {
        Self(Mutex::new(Inner { pages: pages.join(format!("{app}.")), ..Inner::default() }))
    }

    /// A new instance, after the end of the one before: `first` stands for it.
    pub fn begin(&self, first: i32) {
        self.end();
        let mut inner = self.0.lock();
        (inner.first, inner.init, inner.marks) = (first, init_of(first), marks(face(first)));
    }

    /// The instance has ended: its pages go.
    pub fn end(&self) {
        let mut inner = self.0.lock();
        for path in std::mem::take(&mut inner.files) {
            let _ = fs::remove_file(path);
        }
        let pages = std::mem::take(&mut inner.pages);
        *inner = Inner { pages, ..Inner::default() };
    }

    /// Files of the pages that it has or had.
    #[must_use]
    pub fn files(&self) -> BTreeSet<PathBuf> {
        self.0.lock().files.clone()
    }

    /// Another process stands for the application from now on.
    pub fn set_first(&self, first: i32) {
        let mut inner = self.0.lock();
        inner.first = first;
        inner.settled = None;
    }

    /// A process has joined with a page of its own.
    pub fn joined(&self, pid: i32, inner_pid: i32, leaf: Leaf) {
        let mut inner = self.0.lock();
        inner.settled = None;
        inner.files.insert(leaf.path.clone());
        if let Some(member) = Member::open(pid, inner_pid, Some(leaf)) {
            let before = inner.known.insert(pid, member);
            inner.leave(before.and_then(|member| member.leaf));
        }
    }

    /// Whether a process, or one that it descends from, is known here.
    #[must_use]
    pub fn is_kin(&self, pid: i32) -> bool {
        let inner = self.0.lock();
        let mut at = pid;
        for _ in 0..256 {
            if inner.known.get(&at).is_some_and(Member::is_alive) || inner.init == Some(at) {
                return true;
            }
            match state_and_parent(at) {
                Some((_, parent)) if parent > 1 => at = parent,
                _ => return false,
            }
        }
        false
    }

    /// Living processes, as pids on this node and their own.
    #[must_use]
    pub fn pids(&self) -> Vec<(i32, i32)> {
        self.seats().iter().map(|seat| (seat.pid, seat.inner)).collect()
    }

    /// Whether any process lives.
    #[must_use]
    pub fn any(&self) -> bool {
        let known = self.0.lock().known.values().any(Member::is_alive);
        known || !self.seats().is_empty()
    }

    /// Whether there are processes, or may be some that nobody has seen yet.
    #[must_use]
    pub fn expects(&self) -> bool {
        let any = !self.seats().is_empty();
        any || self.0.lock().left.iter().any(|(since, _)| since.elapsed() < ON_ITS_WAY)
    }

    /// The oldest process without a parent in the application, with its start, page and own pid: who is to stand for it
    /// when the first has ended.
    #[must_use]
    pub fn heir(&self) -> Option<(i32, u64, Leaf, i32)> {
        let seats = self.seats();
        let inner = self.0.lock();
        let all: BTreeSet<i32> = seats.iter().map(|seat| seat.pid).collect();
        let rooted = seats
            .iter()
            .filter(|seat| state_and_parent(seat.pid).is_some_and(|(_, parent)| !all.contains(&parent)));
        let heirs = rooted.filter_map(|seat| {
            let member = inner.known.get(&seat.pid)?;
            Some((seat.pid, member.started, member.leaf.clone()?, member.inner))
        });
        heirs.min_by_key(|(pid, started, ..)| (*started, *pid))
    }
}

impl Inner {
    fn leaves(&self) -> Vec<Leaf> {
        let all = self.known.values().filter_map(|member| member.leaf.as_ref());
        let mut seen = BTreeSet::new();
        let all = all.chain(self.left.iter().map(|(_, leaf)| leaf));
        all.filter(|leaf| seen.insert(Arc::as_ptr(&leaf.page))).cloned().collect()
    }

    /// A page is not that of a known process any more: it may be that of children whose parent is gone, such that have not entered
    /// themselves there yet.
    fn leave(&mut self, leaf: Option<Leaf>) {
        let made = |leaf: &Leaf| leaf.page.control().header.changes.load(Ordering::Acquire) != 0;
        self.left.extend(leaf.filter(made).map(|leaf| (Instant::now(), leaf)));
        let late = |left: &VecDeque<(Instant, Leaf)>| {
            left.len() > LEFT_MAX || left.front().is_some_and(|(since, _)| since.elapsed() > LEFT_FOR)
        };
        while late(&self.left) {
            self.left.pop_front();
            self.settled = None;
        }
    }

    /// Rises with every call that makes a process or another program of one.
    fn changes(&self) -> u64 {
        let count = |leaf: &Leaf| u64::from(leaf.page.control().header.changes.load(Ordering::Acquire)) + 1;
        self.leaves().iter().map(count).sum()
    }

    /// Where to look: the first, what is known, children of the namespace's init, and who was forked once.
    fn starts(&self) -> Vec<i32> {
        let mut starts = vec![self.first];
        starts.extend(self.known.keys());
        match self.init {
            Some(init) => starts.extend(children(init)),
            // Pids in the pages are this node's as long as the application is in the agent's namespace.
            None => {
                for leaf in self.leaves() {
                    starts.extend(forked(&leaf.page));
                }
            }
        }
        starts
    }

    /// A process that is not known yet: its page is the one that it inherited.
    fn meet(&mut self, pid: i32, look: &Look) {
        // One of an application that an earlier agent knew has a page that we have not seen.
        let leaf = mapped(look.face, &self.leaves()).or_else(|| opened(look.face, &self.pages));
        self.files.extend(leaf.iter().map(|leaf| leaf.path.clone()));
        if let Some(member) = Member::open(pid, look.inner, leaf) {
            self.known.insert(pid, member);
        }
    }

    /// The words of pages that go with them are missing from the sum then, which may by chance be what it was before.
    fn forget_dead(&mut self) {
        let dead: Vec<i32> =
            self.known.iter().filter(|(_, member)| !member.is_alive()).map(|(pid, _)| *pid).collect();
        if !dead.is_empty() {
            self.settled = None;
        }
        self.leave(None);
        for pid in dead {
            let member = self.known.remove(&pid);
            self.leave(member.and_then(|member| member.leaf));
        }
    }

    fn walk(&mut self) -> Vec<Seat> {
        let mut queue: VecDeque<i32> = self.starts().into();
        let (mut seen, mut seats) = (BTreeSet::new(), Vec::new());
        while let Some(pid) = queue.pop_front() {
            if pid <= 1 || is_hidden(pid) || !seen.insert(pid) {
                continue;
            }
            let Some(look) = look(pid) else { continue };
            if matches!(look.state, 'Z' | 'X') {
                continue;
            }
            // A stranger with a pid that one of ours had.
            let entered = self.known.contains_key(&pid);
            let ours = entered || pid == self.first || self.descends(pid);
            let begins = !ours && mapped(look.face, &self.leaves()).is_none();
            if begins && !self.begins(look.face) {
                continue;
            }
            let between = state_and_parent(pid).is_some_and(|(_, parent)| {
                self.known.contains_key(&parent) && share_memory(look.face, face(parent))
            });
            // One that was met while its first thread ended showed none.
            let is_lost =
                look.face != pid && self.known.get(&pid).is_some_and(|member| member.leaf.is_none());
            if (!entered || is_lost) && !between && (look.parks || begins) {
                self.meet(pid, &look);
            }
            let leaf = self.known.get(&pid).and_then(|member| member.leaf.as_ref());
            let page = leaf.filter(|_| look.parks && !between).map(|leaf| Arc::clone(&leaf.page));
            seats.push(Seat { pid, inner: look.inner, page });
            // Depth first would not matter; parents before children does.
            queue.extend(children(pid));
        }
        order(&mut seats, self.first);
        self.order = seats.iter().map(|seat| seat.pid).collect();
        seats
    }

    /// Whether a process, which was forked by one of ours, has executed a program that is to join: what it was started with is there
    /// before its loader is.
    fn begins(&self, pid: i32) -> bool {
        !self.marks.is_empty() && marks(pid) == self.marks
    }

    /// Whether a process's parent is one of ours.
    fn descends(&self, pid: i32) -> bool {
        let Some((_, parent)) = state_and_parent(pid) else { return false };
        parent > 1 && (self.known.contains_key(&parent) || self.init == Some(parent))
    }
}

/// The first to the front, parents before children.
fn order(seats: &mut [Seat], first: i32) {
    if let Some(at) = seats.iter().position(|seat| seat.pid == first) {
        seats[..=at].rotate_right(1);
    }
    let place: BTreeMap<i32, usize> = seats.iter().enumerate().map(|(at, seat)| (seat.pid, at)).collect();
    let depth = |pid: i32| {
        let (mut at, mut depth) = (pid, 0);
        while let Some((_, parent)) = state_and_parent(at).filter(|(_, parent)| place.contains_key(parent)) {
            depth += 1;
            at = parent;
            if depth > place.len() {
                break;
            }
        }
        depth
    };
    if seats.len() > 1 {
        let depths: BTreeMap<i32, usize> = seats.iter().map(|seat| (seat.pid, depth(seat.pid))).collect();
        seats[1..].sort_by_key(|seat| (depths[&seat.pid], seat.pid));
    }
}

/// Pids that were forked with a page; those that ended are taken off.
fn forked(page: &Page) -> Vec<i32> {
    let control = page.control();
    let used = control.header.members_used.load(Ordering::Acquire) as usize;
    let mut out = Vec::new();
    for member in control.members.iter().take(used) {
        let pid = member.load(Ordering::Acquire);
        if pid == 0 {
            continue;
        }
        if state_and_parent(pid as i32).is_none_or(|(state, _)| matches!(state, 'Z' | 'X')) {
            let _ = member.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
        } else {
            out.push(pid as i32);
        }
    }
    out
}

/// Which of the pages a process has mapped.
fn mapped(pid: i32, leaves: &[Leaf]) -> Option<Leaf> {
    if pid == std::process::id() as i32 {
        return None;
    }
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    leaves.iter().find(|leaf| has(&maps, &leaf.path)).cloned()
}

fn has(maps: &[u8], path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(path))
}

/// The page that a process has mapped, of which the path begins so: with the name of an application and the pid of who
/// joined with it, so that a process of another application is none of ours.
fn opened(pid: i32, begin: &Path) -> Option<Leaf> {
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let paths = maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(&line[at..])))
    });
    let begin = begin.as_os_str().as_bytes();
    let ours = |path: &PathBuf| {
        let rest = path.as_os_str().as_bytes().strip_prefix(begin);
        rest.is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit)) && path.exists()
    };
    let path = paths.into_iter().find(ours)?;
    let page = Arc::new(Page::open(&path).ok()?);
    Some(Leaf { page, path })
}

/// Init of the pid namespace that a process is in, if it is another one than ours.
pub(crate) fn init_of(pid: i32) -> Option<i32> {
    let mut at = pid;
    for _ in 0..256 {
        if !is_nested(at) {
            return None;
        }
        let (_, parent) = state_and_parent(at)?;
        if is_nested(parent) && inner_tid(parent, parent) == 1 {
            return Some(parent);
        }
        at = parent;
    }
    None
}

impl Census for Members {
    fn seats(&self) -> Vec<Seat> {
        let mut inner = self.0.lock();
        inner.forget_dead();
        let now = inner.changes();
        if inner.settled == Some(now) {
            let alive = inner.order.iter().filter_map(|pid| {
                let member = inner.known.get(pid)?;
                let page = member.leaf.as_ref().map(|leaf| Arc::clone(&leaf.page));
                Some(Seat { pid: *pid, inner: member.inner, page })
            });
            return alive.collect();
        }
        inner.walked = now;
        inner.walk()
    }

    fn settled(&self) {
        let mut inner = self.0.lock();
        // A call that began before the walk and ended after it has raised the word before, too: but all are parked now,
        // and the last walk came after that. Who was parked in such a call, before its process was made, raises it again when it
        // is let go.
        if inner.changes() == inner.walked {
            inner.settled = Some(inner.walked);
        }
    }
}
