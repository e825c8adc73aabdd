//! Files outside the roots that the application has written to by name, or made: they are single files of its epochs, also while
//! nobody has them open.
//!
//! libholo records names before each call (`holo_abi::names`), in vain perhaps. In the stop it is looked what is there. A file is one of
//! the application's if it has written to it; or if it was changed since the cut before, belongs to a user that the application runs
//! as, and has a name that was recorded. From then on it is, until it is gone.

use super::Files;
use super::directories::Directory;
use super::heard::Heard;
use super::place::{captured_in, directories_in};
use crate::inodes::Number;
use holo_abi::changes::Changes;
use holo_cfor::{Captured, Kind, Root, Time, Tree};
use holo_rm::manager::DumpCx;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files that are kept in mind; past it the application's further ones are not in its epochs, and it is told.
const KNOWN_MAX: usize = 3000;
/// What is told of a restore.
const LOST: &str = "the application has made or written to more files since the epoch than were recorded: some that it made outside of --root DIR are left as they are";
/// Time stamps advance in ticks.
const TICK_NS: u64 = 20_000_000;

/// What is known of one application's files, by all who dump or restore it.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Its files, at the last cut or restore.
    known: BTreeSet<PathBuf>,
    /// Directories that it has made, and links to directories.
    directories: BTreeSet<PathBuf>,
    /// What was open for writing then.
    open: BTreeSet<PathBuf>,
    /// Recorded after that by an instance that has ended.
    later: Heard,
    /// When that was, in nanoseconds of Unix time; 0: nothing is known, an earlier agent did it.
    at_ns: u64,
    /// Users that it ran as.
    users: BTreeSet<u32>,
    /// There were more than may be known, or recorded.
    is_short: bool,
}

/// The same, shared.
pub(crate) type NamesCell = Mutex<Names>;

/// Directories that were asked for: is there no link on the way to it? What is behind one has another name, by which it is known.
#[derive(Default)]
struct Real(HashMap<PathBuf, bool>);

impl Real {
    fn is_below(&mut self, path: &Path) -> bool {
        let Some(dir) = path.parent() else { return true };
        if let Some(known) = self.0.get(dir) {
            return *known;
        }
        let is_real = self.is_below(dir) && dir.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        self.0.insert(dir.to_owned(), is_real);
        is_real
    }
}

impl Names {
    /// Another application has this name from now on, whose first process this is.
    pub(crate) fn forget(&mut self, pid: i32) {
        let user = fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid());
        *self = Self { at_ns: crate::app::now_ns(), users: user.into_iter().collect(), ..Self::default() };
    }

    /// May one of the users of the application have written to a file?
    fn is_a_users(&self, meta: &Metadata) -> bool {
        const OTHERS_WRITE: u32 = 0o002;
        self.users.contains(&0)
            || self.users.contains(&meta.uid())
            || meta.mode() & OTHERS_WRITE != 0 && !meta.is_symlink()
    }

    /// Is nothing known yet?
    pub(super) fn is_new(&self) -> bool {
        self.at_ns == 0
    }

    /// There is an epoch with these single files and directories, of an earlier agent.
    pub(super) fn seed<C>(&mut self, captured: &Captured<C>, directories: &[Directory]) {
        self.known = singles(&captured.tree);
        self.directories = directories.iter().map(|one| one.path().to_owned()).collect();
        self.at_ns = nanos(captured.tree.taken_at);
    }

    /// Keeps what an instance that has ended has recorded.
    pub(crate) fn ended(&mut self, table: &Changes) {
        let heard = Heard::take(table);
        self.later.add(heard);
    }

    /// Directories of the files.
    pub(crate) fn places(&self) -> BTreeSet<PathBuf> {
        self.known.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect()
    }

    /// The application goes on from an epoch that has these single files and directories. What it has made since and is to go, and
    /// whether that is all.
    fn restored<C>(&mut self, captured: &Captured<C>, directories: &[Directory]) -> (Vec<PathBuf>, bool) {
        let tree = &captured.tree;
        let mut numbers: BTreeSet<Number> =
            tree.inodes.iter().map(|inode| (inode.identity.dev, inode.identity.ino)).collect();
        numbers.extend(directories.iter().map(Directory::number));
        let since = nanos(tree.taken_at);
        if self.users.is_empty() {
            // It has not run here.
            self.users =
                singles_of(tree).map(|root| tree.inodes[root.entries[0].inode as usize].uid).collect();
        }
        let later = std::mem::take(&mut self.later);
        let all: HashMap<&Path, &Directory> = directories.iter().map(|one| (one.path(), one)).collect();
        let directories: BTreeSet<PathBuf> = directories.iter().map(|one| one.path().to_owned()).collect();
        // Its own, under whatever names.
        let mut own = std::mem::replace(&mut self.known, singles(tree));
        own.extend(std::mem::replace(&mut self.directories, directories));
        own.extend(self.known.iter().chain(&self.directories).cloned());
        let mut seen = later.follow(own);
        for path in std::mem::take(&mut self.open) {
            seen.entry(path).or_default();
        }
        // It has gone on elsewhere since it was here: what it has no more it has removed.
        let is_later = since >= self.at_ns;
        (self.at_ns, self.is_short) = (crate::app::now_ns(), false);
        let mut real = Real::default();
        seen.retain(|path, sign| {
            !self.known.contains(path)
                && real.is_below(path)
                && path.symlink_metadata().is_ok_and(|meta| {
                    if let Some(directory) = all.get(path.as_path()) {
                        return directory.is_kept_out_by(&meta);
                    }
                    // What was there before the cut under this name was not the application's.
                    self.is_a_users(&meta)
                        && (born(&meta).is_some_and(|born| born + TICK_NS >= since)
                            || numbers.contains(&(meta.dev(), meta.ino()))
                            || (is_later || meta.is_dir() || meta.is_symlink()) && sign.is_known)
                })
        });
        // Of names that were lost it is not known whether they were below roots, see `named`.
        let is_all =
            !later.is_lost || seen.is_empty() && self.known.is_empty() && self.directories.is_empty();
        // What is in a directory before that.
        (seen.into_keys().rev().collect(), is_all)
    }
}

/// The roots of a tree that are no directories.
fn singles_of(tree: &Tree) -> impl Iterator<Item = &Root> {
    let kind = |root: &Root| root.entries.first().map(|entry| &tree.inodes[entry.inode as usize].kind);
    tree.roots.iter().filter(move |root| kind(root).is_some_and(|kind| *kind != Kind::Dir))
}

/// Their paths.
fn singles(tree: &Tree) -> BTreeSet<PathBuf> {
    singles_of(tree).map(|root| PathBuf::from(OsStr::from_bytes(&root.path))).collect()
}

fn nanos(time: Time) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(0)
}

/// When it was last changed.
fn changed(meta: &Metadata) -> u64 {
    let seconds = u64::try_from(meta.ctime()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(meta.ctime_nsec()).unwrap_or(0)
}

/// When it was made, where the file system knows.
fn born(meta: &Metadata) -> Option<u64> {
    let made = meta.created().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(made.as_nanos()).ok()
}

impl Files {
    /// What an earlier agent knew of the application's files.
    pub(super) fn find_names(&self) {
        let newest = self.store.open_epoch(self.store.newest_number());
        let Ok(epoch) = newest else { return };
        if let (Ok(captured), Ok(directories)) = (captured_in(&epoch), directories_in(&epoch)) {
            self.names.lock().seed(&captured, &directories);
        }
    }

    /// What the application has made outside the roots since an epoch that it goes on from.
    pub(super) fn made_since<C>(
        &self,
        captured: &Captured<C>,
        directories: &[Directory],
        remarks: &mut Vec<String>,
    ) -> Vec<PathBuf> {
        let (mut made, is_all) = self.names.lock().restored(captured, directories);
        if !is_all {
            remarks.push(LOST.into());
        }
        made.retain(|path| !self.is_elsewhere(path));
        made
    }

    /// The files and directories outside the roots that are the application's by their names, at a cut. `open` are those that it has open
    /// for writing.
    pub(super) fn named(&self, cx: &mut DumpCx, open: &[PathBuf]) -> (BTreeSet<PathBuf>, Vec<Directory>) {
        let heard = self.recorded.table().map(|table| Heard::take(table.table())).unwrap_or_default();
        let mut names = self.names.lock();
        let now = crate::app::now_ns();
        let since = std::mem::replace(&mut names.at_ns, now).saturating_sub(TICK_NS);
        let mut known = std::mem::take(&mut names.known);
        known.append(&mut names.directories);
        let before = known.len();
        let mut all = heard.follow(known);
        for path in std::mem::replace(&mut names.open, open.iter().cloned().collect()) {
            all.entry(path).or_default();
        }
        for path in open {
            all.entry(path.clone()).or_default();
        }
        if all.len() > before {
            let users = users_of(cx);
            // Who was killed meanwhile has none.
            names.users = users.unwrap_or_else(|| std::mem::take(&mut names.users));
        }
        let (mut its, mut directories) = (BTreeSet::new(), Vec::new());
        let mut old = BTreeSet::new();
        let mut real = Real::default();
        for (path, sign) in all {
            let is_known = sign.is_known;
            if self.is_elsewhere(&path) || !real.is_below(&path) {
                continue;
            }
            let Ok(meta) = path.symlink_metadata() else { continue };
            let is_written = |meta: &Metadata| self.recorded.is_written((meta.dev(), meta.ino()));
            // Of what was there before, a recorded name is no more than a sign: others may have changed it.
            let is_changed = |meta: &Metadata| {
                let is_named = sign.is_put || !meta.is_file() || meta.len() == 0 || meta.nlink() > 1;
                born(meta).is_some_and(|born| born >= since)
                    || changed(meta) >= since && (is_named || !self.recorded.is_sure())
            };
            let is_its = |meta: &Metadata| {
                is_known || names.is_a_users(meta) && (is_written(meta) || is_changed(meta))
            };
            if meta.is_symlink() {
                // What it leads to is written to by this name.
                let target = path.canonicalize().ok().filter(|target| !self.is_elsewhere(target));
                let found = target.and_then(|target| Some((target.symlink_metadata().ok()?, target)));
                match found {
                    Some((to, _)) if to.is_dir() => {
                        directories.extend(Directory::of(&path, &meta).filter(|_| is_its(&meta)));
                        continue;
                    }
                    Some((to, target)) if to.is_file() && is_written(&to) && names.is_a_users(&to) => {
                        its.insert(target);
                    }
                    _ => {}
                }
            } else if meta.is_dir() {
                // Not one that was there when it was to be made.
                let is_new = born(&meta).is_none_or(|born| born >= since) && is_its(&meta);
                directories.extend(Directory::of(&path, &meta).filter(|_| is_known || is_new));
                continue;
            } else if !meta.is_file() && !is_fifo(&meta) {
                continue;
            }
            if is_its(&meta) {
                if is_known {
                    old.insert(path.clone());
                }
                its.insert(path);
            }
        }
        let closed: Vec<&PathBuf> = its.iter().filter(|path| open.binary_search(path).is_err()).collect();
        let room = KNOWN_MAX.saturating_sub(open.len());
        // Of names that were lost nobody knows whether they were below roots; if all others are, most of them were.
        names.is_short |= heard.is_lost && !(closed.is_empty() && directories.is_empty());
        if closed.len() > room {
            names.is_short = true;
            // Those that were known first.
            let (old, new): (Vec<&PathBuf>, _) = closed.into_iter().partition(|path| old.contains(*path));
            let left: BTreeSet<PathBuf> = old.into_iter().chain(new).skip(room).cloned().collect();
            its.retain(|path| !left.contains(path));
        }
        if directories.len() > KNOWN_MAX {
            names.is_short = true;
            directories.truncate(KNOWN_MAX);
        }
        names.known.clone_from(&its);
        names.directories = directories.iter().map(|one| one.path().to_owned()).collect();
        if names.is_short {
            cx.remarks.push(format!(
                "the application writes to more than {KNOWN_MAX} files outside of --root DIR: not all of them are in epochs"
            ));
        }
        (its, directories)
    }

    /// Is it below a root, left out, or no file of a disk?
    fn is_elsewhere(&self, path: &Path) -> bool {
        self.is_protected(path)
            || self.excludes.iter().any(|exclude| path.starts_with(exclude))
            || ["/proc", "/sys"].iter().any(|dir| path.starts_with(dir))
            || path.starts_with("/dev") && !path.starts_with("/dev/shm")
    }
}

/// The users that the application runs as; none of them if a process has another root, since nobody knows what its names mean. None: it
/// cannot be told.
fn users_of(cx: &DumpCx) -> Option<BTreeSet<u32>> {
    let number = |meta: Metadata| (meta.dev(), meta.ino());
    let own = fs::metadata("/").ok().map(number);
    let mut users = BTreeSet::new();
    for process in cx.processes {
        let root = fs::metadata(process.remote.proc("root/")).ok().map(number);
        if root.is_some() && root != own {
            return Some(BTreeSet::new());
        }
        users.insert(fs::metadata(process.remote.proc("")).ok()?.uid());
    }
    Some(users)
}

fn is_fifo(meta: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    meta.file_type().is_fifo()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holo_cfor::Tree;
    use std::collections::BTreeMap;

    // Goal: of names that there was no room for before a restore it is told, of an application that has files outside the roots. Method:
    // such names by hand.
    #[test]
    fn what_was_lost_before_a_restore_is_told() {
        let captured =
            Captured::<u32> { tree: Tree::default(), contents: BTreeMap::new(), mapped: BTreeSet::new() };
        for (is_lost, has_files, is_all) in
            [(false, true, true), (true, false, true), (true, true, false), (false, true, true)]
        {
            let file = tempfile::NamedTempFile::new().ok();
            let known = file.iter().filter(|_| has_files).map(|file| file.path().to_owned());
            let mut names = Names { known: known.collect(), users: [0].into(), ..Names::default() };
            names.later.is_lost = is_lost;
            let (gone, found) = names.restored(&captured, &[]);
            assert_eq!((gone.len(), found), (usize::from(has_files), is_all));
            // It goes for one restore.
            assert!(names.restored(&captured, &[]).1);
        }
    }
}
