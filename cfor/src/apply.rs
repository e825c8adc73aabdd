//! Makes the trees on this node identical to captured ones.
//!
//! What is right stays in place, with its inode. A file that is still the captured inode and has other content
//! is written over, because programs know their files by inode number, and other names of it must follow. What
//! is otherwise wrong is made anew under another name and renamed over the old, so that nobody sees half a
//! file. What does not belong is moved away or removed. Every step names one entry of an open directory; no
//! path is followed that somebody could redirect.

mod content;
mod held;
mod metadata;
mod others;
mod remove;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat, renameat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};

use crate::access::{Dir, SELF, is, number};
use crate::capture::{Captured, ContentSource};
use crate::error::{Error, failed, to_path};
use crate::path::RelPath;
use crate::tree::{Entry, Inode, Kind, Remark, Remarks, Root, Time};

pub use held::Holds;
pub use others::Others;
pub use remove::remove_all;

/// Names of files that are not complete yet. A scan leaves them out, the next apply clears them away.
const TEMPORARY: &[u8] = b".holo-new-";

/// Whether `name` is of a file that an apply was making.
pub(crate) fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(TEMPORARY)
}

/// Where to apply.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Where roots go, by their path in the tree; one that is not here goes to that path itself.
    pub map: HashMap<Vec<u8>, PathBuf>,
    /// Where everything goes that does not belong or is replaced, under its full path. Without it such things
    /// are removed for good. It should be on the same file system, else all is copied there.
    pub replaced: Option<PathBuf>,
    /// Single files on this node that were made after the capture: they are moved away first; and directories, removed if they are empty.
    /// What is in a directory comes before it.
    pub gone: Vec<PathBuf>,
    /// Absolute paths, on this node, that are never touched, nor what is below them.
    pub excludes: Vec<PathBuf>,
    /// Whoever the trees are of has changed nothing here after that: what changed later is [`Report::others`]'.
    pub since: Option<Time>,
    /// What is to be immutable or append-only becomes so by [`Report::holds`], and is not until then: somebody has yet to open files
    /// for writing as they were open.
    pub holds_later: bool,
}

/// What applying did.
#[derive(Debug, Default)]
pub struct Report {
    /// Entries that were right already.
    pub kept: usize,
    /// Entries that were made, or written over.
    pub made: usize,
    /// Entries that did not belong, moved or removed.
    pub removed: usize,
    /// Bytes of content written.
    pub bytes: u64,
    /// Which inode of the tree (index in [`Tree::inodes`](crate::Tree::inodes)) each inode of this node has
    /// become, by device and number.
    pub inodes: HashMap<(u64, u64), u32>,
    /// What was changed after [`Targets::since`], and replaced or moved away; and directories that were, of which something was missing.
    pub others: Others,
    /// What could not be done: the trees differ there.
    pub errors: Vec<Remark>,
    /// What is different for a reason that may be accepted: owners, capabilities, attributes in `trusted.` and flags that only root may
    /// set, access lists and flags where the file system has none.
    pub remarks: Vec<Remark>,
    /// What is yet to become immutable or append-only, with [`Targets::holds_later`].
    pub holds: Holds,
}

/// Applies captured trees.
///
/// What fails for one entry is reported and does not stop the others.
///
/// # Errors
/// [`Error::Invalid`] when the capture breaks a rule; nothing has been touched then.
pub fn apply<S: ContentSource>(
    captured: &Captured<S::Content>,
    source: &mut S,
    targets: &Targets,
) -> Result<Report, Error> {
    captured.validate()?;
    let mut excludes = targets.excludes.clone();
    excludes.extend(targets.replaced.clone());
    let mut applier = Applier {
        captured,
        source,
        excludes,
        replaced: targets.replaced.as_deref(),
        since: targets.since,
        changed: HashSet::new(),
        placed: HashMap::new(),
        taken: HashMap::new(),
        holds_later: targets.holds_later,
        holds: Holds::default(),
        report: Report::default(),
        errors: Remarks::default(),
        remarks: Remarks::default(),
        temporary: 0,
    };
    for path in &targets.gone {
        if let Err((path, why)) = applier.gone(path) {
            applier.errors.add(&path, why);
        }
    }
    for root in &captured.tree.roots {
        let target = targets.map.get(&root.path).cloned().unwrap_or_else(|| to_path(&root.path));
        if let Err((path, why)) = applier.root(root, &target) {
            applier.errors.add(&path, why);
        }
    }
    let Applier { mut report, errors, remarks, taken, holds, .. } = applier;
    (report.errors, report.remarks, report.inodes) = (errors.finish(), remarks.finish(), taken);
    if targets.holds_later {
        report.holds = holds;
    } else {
        report.remarks.extend(holds.hold());
    }
    Ok(report)
}

/// What could not be done with something immutable or append-only.
const HELD: &str = "change what is immutable or append-only";

/// Why an entry could not be made, with its path on this node.
type Refused = (Vec<u8>, String);

/// An entry of an open directory.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: &'a Dir,
    name: &'a [u8],
    /// Full path on this node, for reports and excludes.
    full: &'a [u8],
    /// File system of the root: others are never touched.
    dev: u64,
}

impl Place<'_> {
    fn refused(&self, operation: &'static str) -> impl FnOnce(Errno) -> Refused {
        let full = self.full.to_vec();
        move |cause| (full, failed(operation, cause))
    }
}

struct Applier<'a, S: ContentSource> {
    captured: &'a Captured<S::Content>,
    source: &'a mut S,
    excludes: Vec<PathBuf>,
    replaced: Option<&'a Path>,
    since: Option<Time>,
    /// Directories that others have changed, by number; each until that was noted.
    changed: HashSet<(u64, u64)>,
    /// Where each inode of the tree has got its first name: root directory on this node, path, number.
    placed: HashMap<u32, (PathBuf, RelPath, (u64, u64))>,
    /// Which inode of the tree an inode of this node has become.
    taken: HashMap<(u64, u64), u32>,
    holds_later: bool,
    /// What is to be immutable or append-only in the end: other names of it, and names in it, are made before.
    holds: Holds,
    report: Report,
    errors: Remarks,
    remarks: Remarks,
    temporary: u64,
}

impl<S: ContentSource> Applier<'_, S> {
    fn root(&mut self, root: &Root, target: &Path) -> Result<(), Refused> {
        let full = target.as_os_str().as_bytes();
        let io = |what: &str, cause: std::io::Error| (full.to_vec(), format!("{what}: {cause}"));
        if self.is_excluded(full) {
            return Ok(());
        }
        let first = self.captured.tree.inode(&root.entries[0]);
        if first.kind == Kind::Left {
            return Ok(());
        }
        if first.kind == Kind::Dir && target.is_dir() {
            return self.tree(root, target);
        }
        let (Some(home), Some(name)) = (target.parent(), target.file_name()) else {
            return Err((full.to_vec(), "is no path for a root".into()));
        };
        fs::create_dir_all(home).map_err(|cause| io("create directory above", cause))?;
        let dir = Dir::open(home).map_err(|cause| (full.to_vec(), failed("open directory above", cause)))?;
        let home_stat = dir.stat(SELF).map_err(|cause| (full.to_vec(), failed("look at", cause)))?;
        let path = RelPath::new(name.as_bytes()).ok_or_else(|| (full.to_vec(), "is no name".into()))?;
        let place = Place { dir: &dir, name: name.as_bytes(), full, dev: home_stat.st_dev };
        self.place(place, &root.entries[0], home, &path)?;
        match first.kind {
            Kind::Dir => self.tree(root, target),
            Kind::File { .. } | Kind::Symlink { .. } | Kind::Fifo | Kind::Socket | Kind::Left => Ok(()),
        }
    }

    /// Makes all below a root that is a directory by now.
    fn tree(&mut self, root: &Root, target: &Path) -> Result<(), Refused> {
        let full = target.as_os_str().as_bytes();
        let refused = |cause| (full.to_vec(), failed("open root", cause));
        let top = Dir::open(target).map_err(refused)?;
        let stat = top.stat(SELF).map_err(refused)?;
        let dev = stat.st_dev;
        self.met(&stat);
        self.make_usable(Place { dir: &top, name: SELF, full, dev })?;
        // The directory that the current entry is in, and the path of it.
        let mut open: Option<(RelPath, Dir)> = None;
        for entry in &root.entries {
            let Some((parent, name)) = entry.path.split() else { continue };
            let full = entry.path.under(full);
            if open.as_ref().is_none_or(|(path, _)| *path != parent) {
                open = match top.beneath(&parent) {
                    Ok(dir) => Some((parent, dir)),
                    Err(cause) => {
                        self.errors.add(&full, failed("open directory above", cause));
                        continue;
                    }
                };
            }
            let Some((_, dir)) = &open else { continue };
            let place = Place { dir, name, full: &full, dev };
            if let Err((path, why)) = self.place(place, entry, target, &entry.path) {
                self.errors.add(&path, why);
            }
        }
        for entry in root.entries.iter().rev() {
            let inode = self.captured.tree.inode(entry);
            if inode.kind == Kind::Dir {
                let full = entry.path.under(full);
                if self.is_excluded(&full) {
                    continue;
                }
                let done = top.beneath(&entry.path).map_err(|cause| (full.clone(), failed("open", cause)));
                let done = done.and_then(|dir| {
                    if let Ok(stat) = dir.stat(SELF) {
                        self.taken.insert(number(&stat), entry.inode);
                    }
                    self.holds.add(inode, target, &entry.path);
                    self.prune(root, &entry.path, &dir, &full, dev)?;
                    self.metadata(Place { dir: &dir, name: SELF, full: &full, dev }, inode)
                });
                if let Err((path, why)) = done {
                    self.errors.add(&path, why);
                }
            }
        }
        Ok(())
    }

    /// Makes one entry. Directories get their attributes when all in them is done.
    fn place(&mut self, place: Place<'_>, entry: &Entry, top: &Path, path: &RelPath) -> Result<(), Refused> {
        let inode = self.captured.tree.inode(entry);
        if inode.kind == Kind::Left || self.is_excluded(place.full) {
            return Ok(());
        }
        let existing = place.dir.look(place.name).map_err(place.refused("look at"))?;
        if existing.is_some_and(|stat| stat.st_dev != place.dev) {
            return Err((place.full.to_vec(), "is a mount point here: left as it is".into()));
        }
        if existing.is_none() {
            self.note_missing(place);
        }
        if inode.kind == Kind::Dir {
            return self.directory(place, existing.as_ref());
        }
        if let Some((old_top, old_path, old_number)) = self.placed.get(&entry.inode).cloned() {
            if existing.as_ref().map(number) == Some(old_number) {
                self.report.kept += 1;
                return Ok(());
            }
            match self.link(place, existing.is_some(), &old_top, &old_path) {
                Ok(()) => return Ok(()),
                // Two file systems here, or a bound of this one: the content at least must be there.
                Err(cause) => self.errors.add(place.full, failed("hard link, made a file of its own", cause)),
            }
        }
        let is_others = existing.is_some_and(|stat| self.is_others(&stat));
        let kept = match &existing {
            Some(stat) => self.keep(place, stat, (entry.inode, inode), is_others)?,
            None => false,
        };
        let stat = match existing.filter(|_| kept) {
            Some(stat) => stat,
            None => {
                let temporary = self.make(place, entry.inode, inode)?;
                let new = Place { name: &temporary, ..place };
                let made = self.metadata(new, inode).and_then(|()| {
                    let stat = new.dir.stat(&temporary).map_err(place.refused("look at"))?;
                    self.put(place, &temporary, existing.is_some())?;
                    Ok(stat)
                });
                if made.is_err() {
                    drop(self.erase(new));
                }
                self.report.made += 1;
                self.note_others(place.full, is_others);
                made?
            }
        };
        self.holds.add(inode, top, path);
        self.taken.insert(number(&stat), entry.inode);
        self.placed.entry(entry.inode).or_insert_with(|| (top.to_owned(), path.clone(), number(&stat)));
        Ok(())
    }

    fn directory(&mut self, place: Place<'_>, existing: Option<&FileStat>) -> Result<(), Refused> {
        if let Some(stat) = existing.filter(|stat| is(stat, SFlag::S_IFDIR)) {
            self.report.kept += 1;
            self.met(stat);
            return self.make_usable(place);
        }
        if let Some(stat) = existing {
            self.displace(place)?;
            self.note_others(place.full, self.is_others(stat));
        }
        self.report.made += 1;
        mkdirat(place.dir, place.name, Mode::S_IRWXU).map_err(place.refused("make directory"))?;
        // What it is in may have a default list that gives even the owner less.
        self.make_usable(place)
    }

    /// Gives this user what it needs to work in a directory; its own mode comes last.
    fn make_usable(&self, place: Place<'_>) -> Result<(), Refused> {
        // It gets its flags back in the end. Where it cannot be, and something in it must be changed, that step says why.
        let _ = place.dir.release(place.name);
        let stat = place.dir.stat(place.name).map_err(place.refused("look at"))?;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        if mode.contains(Mode::S_IRWXU) {
            return Ok(());
        }
        let flag = FchmodatFlags::NoFollowSymlink;
        match fchmodat(place.dir, place.name, mode | Mode::S_IRWXU, flag) {
            // Not ours: whether the rights suffice shows in the next step.
            Ok(()) | Err(Errno::EPERM) => Ok(()),
            Err(cause) => Err(place.refused("set mode of")(cause)),
        }
    }

    /// Whether what is there is what should be, attributes aside.
    fn is_right(&mut self, place: Place<'_>, stat: &FileStat, at: u32, inode: &Inode) -> bool {
        if self.taken.get(&number(stat)).is_some_and(|other| *other != at) {
            return false;
        }
        match &inode.kind {
            Kind::File { size, .. } => {
                is(stat, SFlag::S_IFREG)
                    && u64::try_from(stat.st_size) == Ok(*size)
                    && self.has_content(place, stat, at, inode)
            }
            Kind::Symlink { target } => {
                let found = nix::fcntl::readlinkat(place.dir, place.name);
                is(stat, SFlag::S_IFLNK) && found.is_ok_and(|found| found.as_bytes() == target.as_slice())
            }
            Kind::Fifo => is(stat, SFlag::S_IFIFO),
            Kind::Socket => is(stat, SFlag::S_IFSOCK),
            Kind::Dir | Kind::Left => false,
        }
    }

    /// Whether what is there is the very file that was captured, whatever is in it by now.
    fn is_captured(&self, stat: &FileStat, at: u32, inode: &Inode) -> bool {
        matches!(inode.kind, Kind::File { .. })
            && is(stat, SFlag::S_IFREG)
            && number(stat) == (inode.identity.dev, inode.identity.ino)
            && self.taken.get(&number(stat)).is_none_or(|other| *other == at)
    }

    /// Makes what should be at `place` under a temporary name, which is returned.
    fn make(&mut self, place: Place<'_>, at: u32, inode: &Inode) -> Result<Vec<u8>, Refused> {
        let name = self.temporary_name();
        let name_bytes = name.as_slice();
        let own = Mode::S_IRUSR | Mode::S_IWUSR;
        let made = match &inode.kind {
            Kind::File { .. } => {
                let new = Place { name: name_bytes, ..place };
                self.write(new, at, inode).inspect_err(|_| drop(self.erase(new)))?;
                Ok(())
            }
            Kind::Symlink { target } => symlinkat(target.as_slice(), place.dir, name_bytes),
            Kind::Fifo => mknodat(place.dir, name_bytes, SFlag::S_IFIFO, own, 0),
            Kind::Socket => mknodat(place.dir, name_bytes, SFlag::S_IFSOCK, own, 0),
            Kind::Dir | Kind::Left => Err(Errno::EINVAL),
        };
        made.map_err(place.refused("make"))?;
        Ok(name)
    }

    fn temporary_name(&mut self) -> Vec<u8> {
        self.temporary += 1;
        // The time tells it from what another process of this id has left.
        let now = crate::Time::now().as_nanos();
        [TEMPORARY, format!("{}-{now:x}-{}", std::process::id(), self.temporary).as_bytes()].concat()
    }

    /// Makes another name of an inode that has one already.
    fn link(&mut self, place: Place<'_>, exists: bool, top: &Path, path: &RelPath) -> nix::Result<()> {
        let (parent, old_name) = path.split().ok_or(Errno::EINVAL)?;
        let old = Dir::open(top)?.beneath(&parent)?;
        // It is held again in the end.
        let released = old.release(old_name)?;
        let name = self.temporary_name();
        linkat(&old, old_name, place.dir, name.as_slice(), AtFlags::empty())
            .inspect_err(|_| old.hold_again(old_name, released))?;
        if let Err((path, why)) = self.put(place, &name, exists) {
            drop(self.erase(Place { name: &name, ..place }));
            self.errors.add(&path, why);
        }
        self.report.made += 1;
        Ok(())
    }

    /// Gives what is called `temporary` its name, at once. What has the name is kept where it can be found.
    fn put(&mut self, place: Place<'_>, temporary: &[u8], exists: bool) -> Result<(), Refused> {
        let released =
            if exists { place.dir.release(place.name).map_err(place.refused(HELD))? } else { None };
        let done = self.put_over(place, temporary, exists);
        if done.is_err() {
            place.dir.hold_again(place.name, released);
        }
        done
    }

    fn put_over(&mut self, place: Place<'_>, temporary: &[u8], exists: bool) -> Result<(), Refused> {
        let refused = place.refused("rename new content to");
        let is_dir = exists && place.dir.stat(place.name).is_ok_and(|stat| is(&stat, SFlag::S_IFDIR));
        if exists && (self.replaced.is_some() || is_dir) {
            let swapped =
                renameat2(place.dir, temporary, place.dir, place.name, RenameFlags::RENAME_EXCHANGE);
            if swapped.is_ok() {
                // The old one has the temporary name now, and is moved away under its own.
                return self.displace_from(place, temporary);
            }
            self.displace(place)?;
        }
        renameat(place.dir, temporary, place.dir, place.name).map_err(refused)
    }

    /// Whether a path on this node must not be touched.
    fn is_excluded(&self, full: &[u8]) -> bool {
        self.excludes.iter().any(|exclude| to_path(full).starts_with(exclude))
    }
}
