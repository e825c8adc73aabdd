//! Hears from the kernel which names below the roots are changed, by whomever (`inotify`).
//!
//! Every directory that a [`crate::Followed`] tree has is watched. What was heard is kept until an epoch has it. What is
//! heard when all writers stand still is complete: the kernel tells of a change before the call returns that made it.
//! Content that is written and left open is not heard of, and nothing of stores through mappings: others know of these.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::access::Dir;
use crate::tree::Identity;

/// Names that are kept; past it, all must be looked at.
const NAMES_MAX: usize = 1 << 17;
/// Directories that are watched; with more, all is looked at each time.
const DIRS_MAX: usize = 1 << 18;
/// One part of so many of what the user may watch is taken; others share it, the application too.
const SHARE: usize = 8;
/// What the user may have.
const WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";
/// Read at once.
const BUFFER_BYTES: usize = 1 << 16;
/// How long events gather in the kernel's queue (16,384 events, where nobody has changed that).
const GATHER: Duration = Duration::from_millis(20);

/// Names that lead elsewhere than before.
const LISTED: u32 = libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO;
const MASK: u32 = LISTED | libc::IN_ATTRIB | libc::IN_CLOSE_WRITE | libc::IN_OPEN | libc::IN_ONLYDIR;

/// Device and inode number.
pub(crate) type Number = (u64, u64);

/// What has been heard.
#[derive(Default)]
pub(crate) struct Notes {
    /// By directory and name: does the name lead elsewhere, or has what it leads to other attributes?
    pub(crate) names: HashMap<(Number, Vec<u8>), bool>,
    /// Directories that themselves have other attributes.
    pub(crate) dirs: HashSet<Number>,
    /// Not everything was heard.
    pub(crate) is_lost: bool,
}

/// What is shared with the thread that listens.
struct Shared {
    inotify: OwnedFd,
    state: Mutex<State>,
    is_short: AtomicBool,
    dirs_max: usize,
    /// Readable: nobody is interested any more.
    end: EventFd,
}

#[derive(Default)]
struct State {
    notes: Notes,
    by_watch: HashMap<i32, Number>,
    by_number: HashMap<Number, i32>,
    buffer: Vec<u8>,
}

/// Watched directories. Dropping it ends the watch.
pub(crate) struct Watch(Arc<Shared>);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.end.write(1);
    }
}

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> std::io::Result<Self> {
        use std::os::fd::FromRawFd;
        // SAFETY: no memory is passed.
        let fd = Errno::result(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
        // SAFETY: just opened, nobody else has it.
        let inotify = unsafe { OwnedFd::from_raw_fd(fd) };
        let limit = std::fs::read_to_string(WATCHES).ok().and_then(|text| text.trim().parse::<usize>().ok());
        let dirs_max = DIRS_MAX.min(limit.unwrap_or(0) / SHARE);
        let shared = Arc::new(Shared {
            inotify,
            state: Mutex::default(),
            is_short: AtomicBool::new(false),
            dirs_max,
            end: EventFd::new()?,
        });
        let own = Arc::clone(&shared);
        thread::Builder::new().name("files".into()).stack_size(1 << 18).spawn(move || own.listen())?;
        Ok(Self(shared))
    }

    /// Watches a directory, from now on. If that cannot be, the watch [is short](Self::is_short).
    pub(crate) fn add(&self, dir: &Dir, identity: &Identity) {
        if self.try_add(dir, identity).is_err() {
            self.0.is_short.store(true, Relaxed);
        }
    }

    /// Is there a directory that could not be watched?
    pub(crate) fn is_short(&self) -> bool {
        self.0.is_short.load(Relaxed)
    }

    fn try_add(&self, dir: &Dir, identity: &Identity) -> nix::Result<()> {
        let mut state = self.0.state();
        let number = (identity.dev, identity.ino);
        if state.by_watch.len() >= self.0.dirs_max {
            return Err(Errno::ENOSPC);
        }
        let path = format!("/proc/self/fd/{}\0", dir.as_fd().as_raw_fd());
        // SAFETY: the path ends with zero.
        let watch = Errno::result(unsafe {
            libc::inotify_add_watch(self.0.inotify.as_raw_fd(), path.as_ptr().cast(), MASK)
        })?;
        state.by_watch.insert(watch, number);
        state.by_number.insert(number, watch);
        Ok(())
    }

    /// Ends the watch of a directory.
    pub(crate) fn remove(&self, number: Number) {
        let mut state = self.0.state();
        if let Some(watch) = state.by_number.remove(&number) {
            state.by_watch.remove(&watch);
            // SAFETY: no memory is passed. It may have ended with its directory.
            unsafe { libc::inotify_rm_watch(self.0.inotify.as_raw_fd(), watch) };
        }
    }

    /// What was heard since this was asked before.
    pub(crate) fn take(&self) -> Notes {
        let mut state = self.0.state();
        state.read(&self.0.inotify);
        std::mem::take(&mut state.notes)
    }
}

impl Notes {
    /// Adds what was heard later.
    pub(crate) fn add(&mut self, later: Notes) {
        for (name, listed) in later.names {
            *self.names.entry(name).or_default() |= listed;
        }
        self.dirs.extend(later.dirs);
        self.is_lost |= later.is_lost;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the kernel's queue while nobody else does.
    fn listen(&self) {
        loop {
            let mut fds = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.end.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
            if fds[1].any().unwrap_or(true) {
                return;
            }
            self.state().read(&self.inotify);
            thread::sleep(GATHER);
        }
        self.state().notes.is_lost = true;
    }
}

impl State {
    fn read(&mut self, inotify: &OwnedFd) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER_BYTES, 0);
        loop {
            match nix::unistd::read(inotify, &mut buffer) {
                Ok(len) => self.heard(&buffer[..len]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    self.notes.is_lost = true;
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Events as the kernel writes them: watch, mask, cookie, length, name with zeros behind it.
    fn heard(&mut self, mut events: &[u8]) {
        const HEAD: usize = 16;
        let word = |at: &[u8], place: usize| {
            at.get(place..place + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        while events.len() >= HEAD {
            let (watch, mask, len) = (word(events, 0) as i32, word(events, 4), word(events, 12) as usize);
            let Some(name) = events.get(HEAD..HEAD + len) else { break };
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            self.event(watch, mask, name);
            events = &events[HEAD + len..];
        }
    }

    fn event(&mut self, watch: i32, mask: u32, name: &[u8]) {
        if mask & (libc::IN_Q_OVERFLOW | libc::IN_UNMOUNT) != 0 {
            self.notes.is_lost = true;
        }
        let Some(number) = self.by_watch.get(&watch).copied() else { return };
        if mask & libc::IN_IGNORED != 0 {
            // The number may be another directory's by now, which has a watch of its own.
            self.by_watch.remove(&watch);
            if self.by_number.get(&number) == Some(&watch) {
                self.by_number.remove(&number);
            }
            return;
        }
        let is_dir = mask & libc::IN_ISDIR != 0;
        // That a directory was read says nothing: times of access are those of files.
        if self.notes.is_lost || is_dir && mask & (LISTED | libc::IN_ATTRIB) == 0 {
            return;
        }
        if name.is_empty() {
            self.notes.dirs.insert(number);
            return;
        }
        *self.notes.names.entry((number, name.to_vec())).or_default() |= mask & LISTED != 0;
        if self.notes.names.len() > NAMES_MAX {
            self.notes = Notes { is_lost: true, ..Notes::default() };
        }
    }
}
