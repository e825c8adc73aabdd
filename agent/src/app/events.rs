//! Changes of files that make an epoch due (`--on-change`).
//!
//! Watched are the directories that the files are in, and names are compared: a file need not exist yet, and may be replaced by
//! another one again and again. Each second there is a look whether the directories are still the ones that are watched; one that
//! was not there, or could not be watched, is taken up then.

#[cfg(test)]
mod tests;

use super::{App, Failure};
use holo_api::local::ErrorKind;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most files of an application; more are refused. Each may take a watch of the user's, and a look each second.
const FILES_MAX: usize = 16;
/// From the end of an epoch to the next one that changes make due: whatever happens to the files, most of the time is the
/// application's. What changes meanwhile is in that next one.
const GAP: Duration = Duration::from_millis(100);
/// What is one change to people is several to the kernel (made, written, closed): so long the others are waited for. So long, too,
/// the queue is left alone after a look, however much changes in these directories.
const SETTLE: Duration = Duration::from_millis(10);
/// How often directories are looked for, and when an epoch that failed is tried again.
const LOOK: Duration = Duration::from_secs(1);
/// Most reads of the queue at once: more than it holds, less than whoever fills it all the time wants. What is left is read later.
const READS_MAX: usize = 256;

const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_ONLYDIR);

/// A directory that is watched, with device and inode number.
#[derive(Clone, Copy)]
struct Watch {
    number: WatchDescriptor,
    dir: (u64, u64),
}

struct File {
    path: PathBuf,
    dir: PathBuf,
    name: OsString,
    /// None: its directory is not watched, `why` says why not.
    watch: Option<Watch>,
    why: String,
}

/// The files of an application that are watched, and what is due by them.
pub(super) struct Events {
    paths: Vec<Vec<u8>>,
    files: Vec<File>,
    /// None: there is none left, or nothing to watch.
    inotify: Option<Inotify>,
    /// When an epoch is due for what has changed; none: nothing has.
    due: Option<Instant>,
    /// The epoch under way is also for a change.
    is_taking: bool,
    gap_end: Instant,
    quiet_end: Instant,
    looked: Instant,
}

impl Default for Events {
    fn default() -> Self {
        Self::new(&[])
    }
}

/// Can these be watched, as far as their names tell?
///
/// # Errors
/// Why not.
pub(crate) fn check(paths: &[Vec<u8>]) -> Result<(), String> {
    if paths.len() > FILES_MAX {
        return Err(format!("{} files to watch; at most {FILES_MAX} can be", paths.len()));
    }
    for path in paths {
        let shown = String::from_utf8_lossy(&path[..path.len().min(64)]);
        let name = Path::new(OsStr::from_bytes(path)).file_name();
        if path.is_empty() || path.contains(&0) || name.is_none() {
            return Err(format!("`{shown}` is no name of a file to watch"));
        }
        if path.len() >= libc::PATH_MAX as usize {
            return Err(format!(
                "the file to watch `{shown}...` has a name of more than {} bytes",
                libc::PATH_MAX - 1
            ));
        }
        if !path.starts_with(b"/") {
            return Err(format!("the file to watch `{shown}` is not an absolute path"));
        }
    }
    Ok(())
}

/// Can these be watched here and now? By trying.
///
/// # Errors
/// Why not, and what to do.
pub(crate) fn check_here(paths: &[Vec<u8>]) -> Result<(), Failure> {
    check(paths).map_err(|why| Failure::new(ErrorKind::Usage, why))?;
    let events = Events::new(paths);
    if let Some(file) = events.files.iter().find(|file| file.path.is_dir()) {
        let message = format!("{} is a directory; name a file in it", file.path.display());
        return Err(Failure::new(ErrorKind::Usage, message));
    }
    match events.unwatched().into_iter().next() {
        Some(why) => Err(Failure::new(ErrorKind::Refused, why)),
        None => Ok(()),
    }
}

/// Why a directory is not watched, and what to do.
fn why_not(cause: &io::Error) -> String {
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => "no such directory; make it".into(),
        Some(Errno::EACCES) => "the agent may not read this directory; permit it to".into(),
        Some(Errno::EMFILE) => {
            "no inotify instance left; raise fs.inotify.max_user_instances, or the agent's limit of open files".into()
        }
        Some(Errno::ENOSPC) => "no inotify watch left; raise fs.inotify.max_user_watches".into(),
        _ => cause.to_string(),
    }
}

impl Events {
    /// Watches from now on.
    fn new(paths: &[Vec<u8>]) -> Self {
        let file = |path: &Vec<u8>| {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
            let name = path.file_name().unwrap_or_default().to_owned();
            File { path, dir, name, watch: None, why: String::new() }
        };
        let now = Instant::now();
        let mut events = Self {
            paths: paths.to_vec(),
            files: paths.iter().map(file).collect(),
            inotify: None,
            due: None,
            is_taking: false,
            gap_end: now,
            quiet_end: now,
            looked: now,
        };
        events.look();
        // What was there before has not changed.
        events.due = None;
        events
    }

    /// Watches these from now on, if they are others than before; looks for their directories now and then. Some: there was a look;
    /// what is not watched, and why.
    pub(super) fn follow(&mut self, paths: &[Vec<u8>]) -> Option<Vec<String>> {
        if self.paths != paths {
            let mut new = Self::new(paths);
            // What has changed already is still to be in an epoch.
            self.read();
            new.due = self.due.filter(|_| !paths.is_empty());
            new.gap_end = self.gap_end;
            *self = new;
        } else if !self.files.is_empty() && self.looked.elapsed() >= LOOK {
            self.read();
            self.look();
        } else {
            return None;
        }
        Some(self.unwatched())
    }

    /// What is not watched, and why.
    fn unwatched(&self) -> Vec<String> {
        let lost = self.files.iter().filter(|file| file.watch.is_none());
        lost.map(|file| format!("{} is not watched: {}", file.path.display(), file.why)).collect()
    }

    /// Finds the directories: one may have come, gone, or been replaced.
    fn look(&mut self) {
        self.looked = Instant::now();
        if self.files.is_empty() {
            return;
        }
        if self.inotify.is_none() {
            match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
                Ok(inotify) => self.inotify = Some(inotify),
                Err(cause) => {
                    self.files.iter_mut().for_each(|file| file.why = why_not(&cause.into()));
                    return;
                }
            }
        }
        for at in 0..self.files.len() {
            self.find(at);
        }
    }

    fn find(&mut self, at: usize) {
        let Some(inotify) = &self.inotify else { return };
        let dir = &self.files[at].dir;
        let id = fs::metadata(dir).map(|meta| (meta.dev(), meta.ino()));
        if let (Some(watch), Ok(id)) = (self.files[at].watch, &id)
            && watch.dir == *id
        {
            return;
        }
        let found = id.and_then(|id| {
            let number = inotify.add_watch(dir, CHANGES)?;
            Ok(Watch { number, dir: id })
        });
        let old = match found {
            Ok(watch) => self.files[at].watch.replace(watch),
            Err(cause) => {
                self.files[at].why = why_not(&cause);
                self.files[at].watch.take()
            }
        };
        // Files of one directory have one watch.
        let is_used =
            |old: Watch| self.files.iter().any(|file| file.watch.is_some_and(|of| of.number == old.number));
        if let (Some(old), Some(inotify)) = (old.filter(|old| !is_used(*old)), &self.inotify) {
            let _ = inotify.rm_watch(old.number);
        }
        // Nobody saw whether it came before or after the directory was watched.
        if self.files[at].watch.is_some() && fs::symlink_metadata(&self.files[at].path).is_ok() {
            self.note();
        }
    }

    /// Something has changed.
    fn note(&mut self) {
        self.due.get_or_insert((Instant::now() + SETTLE).max(self.gap_end));
    }

    /// Reads what has happened in the directories.
    fn read(&mut self) {
        let mut is_changed = false;
        for _ in 0..READS_MAX {
            let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) else { break };
            self.quiet_end = Instant::now() + SETTLE;
            for event in events {
                // More happened than the kernel keeps: maybe to our files.
                is_changed |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let is_there = |file: &&mut File| file.watch.is_some_and(|watch| watch.number == event.wd);
                for file in self.files.iter_mut().filter(is_there) {
                    is_changed |= event.name.as_ref() == Some(&file.name);
                    if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                        file.watch = None;
                        file.why = "its directory is gone".into();
                    }
                }
            }
        }
        if is_changed {
            self.note();
        }
    }

    /// Readable when something has happened; none: there is no need to know, for [`Self::wait`].
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let is_idle = self.due.is_none() && Instant::now() >= self.quiet_end;
        self.inotify.as_ref().map(AsFd::as_fd).filter(|_| is_idle)
    }

    /// How long nothing can be due, if [`Self::fd`] is not readable.
    pub(super) fn wait(&self) -> Option<Duration> {
        let now = Instant::now();
        let next = self.looked + LOOK;
        let quiet_end = Some(self.quiet_end).filter(|end| *end > now);
        let until = self.due.or(quiet_end).map_or(next, |until| until.min(next));
        (!self.files.is_empty()).then(|| until.saturating_duration_since(now))
    }

    /// Is an epoch due?
    pub(super) fn is_due(&mut self) -> bool {
        self.read();
        self.due.is_some_and(|due| Instant::now() >= due)
    }

    /// An epoch begins, for whatever reason: what was read is in it, what comes from now on makes another one due.
    pub(super) fn begin(&mut self) {
        self.is_taking = self.due.take().is_some();
    }

    /// It was taken, or not.
    pub(super) fn end(&mut self, is_taken: bool) {
        let now = Instant::now();
        self.gap_end = now + GAP;
        if self.is_taking && !is_taken {
            self.due = Some(now + LOOK);
        }
    }
}

impl App {
    /// Notes which files are not watched, and why.
    pub(super) fn set_unwatched(&self, unwatched: Vec<String>) {
        let mut inner = self.inner.lock();
        if inner.unwatched != unwatched {
            unwatched.iter().for_each(|why| eprintln!("holod: {}: {why}", self.name));
            inner.unwatched = unwatched;
        }
    }
}
