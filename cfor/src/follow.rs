//! Trees that are followed: all of them is looked at once, then what the kernel or the caller says was changed.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs,
};

use crate::change::Previous;
use crate::error::Error;
use crate::leases::Leases;
use crate::scan::{self, Avoided, Scanner};
use crate::tree::{Inode, Kind, Tree};
use crate::watch::{Notes, Number, Watch};

/// File systems whose changes all come from this machine, and of which the kernel tells.
const FOLLOWED: [FsType; 5] =
    [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC];

/// Files that others write to.
const OTHERS_MAX: usize = 4096;

/// Where to look, and for what.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// Directories with all below them.
    pub roots: &'a [PathBuf],
    /// Single files.
    pub extra_files: &'a [PathBuf],
    /// Absolute paths left out with all below them.
    pub excludes: &'a [PathBuf],
    /// Device and inode numbers of files that may have other content or attributes: all that were written to, are mapped
    /// or were open since the look before.
    pub suspects: &'a BTreeSet<(u64, u64)>,
    /// Who must not be told that files are opened.
    pub leases: &'a dyn Leases,
}

/// What was heard of trees since the last look that was [settled](Self::settle).
#[derive(Default)]
pub struct Followed {
    /// None: it cannot be heard of changes, or nothing was looked at yet.
    watch: Option<Watch>,
    /// Nothing was heard before: there was no look, or it cannot be.
    is_impossible: bool,
    /// Heard up to the last look.
    pub(crate) pending: Notes,
    /// Inodes with several names: what is done under names elsewhere is not heard of.
    pub(crate) linked: HashSet<Number>,
    /// Files that somebody else writes to and keeps open: they are looked at each time.
    pub(crate) others: HashSet<Number>,
    mounts: Option<File>,
    /// Last time that all was looked at.
    all_at: Option<Instant>,
    distrusts: bool,
}

impl Followed {
    /// Looks at all, and listens from then on. For the time of the look nobody may write.
    ///
    /// # Errors
    /// As for [`crate::scan()`].
    pub fn scan(&mut self, look: &Look<'_>, previous: &Tree) -> Result<Tree, Error> {
        self.begin(look.roots);
        // Until there is an epoch of it, it has to be done again.
        self.pending = Notes { is_lost: true, ..Notes::default() };
        let avoided = Avoided::of(look);
        let scanner = Scanner::new(&avoided, Previous::new(previous), self.watch.as_ref());
        let (tree, linked) = scan::all(scanner, look.roots, look.extra_files)?;
        self.linked = linked.into_keys().collect();
        if self.others.len() > OTHERS_MAX {
            self.others.clear();
        }
        self.all_at = Some(Instant::now());
        self.distrusts = false;
        if self.watch.as_ref().is_some_and(Watch::is_short) {
            self.give_up();
        }
        Ok(tree)
    }

    fn begin(&mut self, roots: &[PathBuf]) {
        if self.is_impossible {
            return;
        }
        if !roots.iter().all(|root| is_followed(root)) {
            return self.give_up();
        }
        if self.watch.is_none() {
            self.watch = Watch::new().ok();
            self.mounts = File::open("/proc/self/mountinfo").ok();
        }
        if self.watch.is_none() || self.mounts.is_none() {
            return self.give_up();
        }
        // What was heard so far is looked at now.
        let _ = self.hear();
    }

    /// Looks at all each time, from now on.
    pub(crate) fn give_up(&mut self) {
        (self.watch, self.mounts, self.is_impossible) = (None, None, true);
    }

    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Hears what there is; is that all that has happened since the last look?
    pub(crate) fn hear(&mut self) -> bool {
        let (Some(watch), Some(mounts)) = (&self.watch, &self.mounts) else { return false };
        self.pending.add(watch.take());
        let mut fds = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
        let is_same = matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
        self.pending.is_lost |= !is_same || self.distrusts || watch.is_short();
        !self.pending.is_lost
    }

    /// Leaves out what was heard since the last look, by somebody who has read files without changing any.
    pub fn ignore(&self) {
        if let Some(watch) = &self.watch {
            let _ = watch.take();
        }
    }

    /// There is an epoch of what the last look found.
    pub fn settle(&mut self) {
        self.pending = Notes::default();
    }

    /// When all was looked at for the last time, in [`Self::scan`] or [`Self::check`]. None: it is each time.
    #[must_use]
    pub fn all_at(&self) -> Option<Instant> {
        self.all_at.filter(|_| self.watch.is_some())
    }

    /// Looks at all while others may write. A file with another content than in `known`, which was not heard of and of which
    /// `is_suspect` does not know, is looked at each time from then on; if anything else was not heard of, the next look is
    /// at all. How many there were.
    ///
    /// # Errors
    /// As for [`crate::scan()`].
    pub fn check(
        &mut self,
        look: &Look<'_>,
        known: &Tree,
        is_suspect: &dyn Fn((u64, u64)) -> bool,
    ) -> Result<usize, Error> {
        let (now, _) =
            scan::all(Scanner::new(&Avoided::of(look), Previous::new(known), None), look.roots, &[])?;
        self.all_at = Some(Instant::now());
        if !self.hear() {
            return Ok(0);
        }
        let mut unheard = self.unheard(known, &now, is_suspect);
        unheard.extend(self.unheard(&now, known, is_suspect));
        self.distrusts |= unheard.contains(&None);
        let count = unheard.len();
        self.others.extend(unheard.into_iter().flatten());
        self.distrusts |= self.others.len() > OTHERS_MAX;
        Ok(count)
    }

    /// Files of `a` that have other content in `b`, without a reason; none for whatever else is not the same.
    fn unheard(
        &self,
        a: &Tree,
        b: &Tree,
        is_suspect: &dyn Fn((u64, u64)) -> bool,
    ) -> HashSet<Option<Number>> {
        let mut found = HashSet::new();
        let dirs: HashSet<Number> = self.pending.names.keys().map(|(dir, _)| *dir).collect();
        for root in &a.roots {
            let Ok(at) = b.roots.binary_search_by(|other| other.path.cmp(&root.path)) else { continue };
            let other = &b.roots[at];
            // Directories that lead to the entry; whether they were heard of.
            let mut above: Vec<(&crate::RelPath, Number, bool)> = Vec::new();
            for entry in &root.entries {
                let inode = a.inode(entry);
                let number = (inode.identity.dev, inode.identity.ino);
                let mut is_heard = false;
                if let Some((parent, name)) = entry.path.split() {
                    while above.last().is_some_and(|(path, ..)| **path != parent) {
                        above.pop();
                    }
                    is_heard = above.last().is_some_and(|(_, dir, heard)| {
                        *heard || self.pending.names.contains_key(&(*dir, name.to_vec()))
                    });
                }
                if inode.kind == Kind::Dir {
                    above.push((&entry.path, number, is_heard));
                }
                let now = other.find(&entry.path).map(|at| b.inode(&other.entries[at]));
                let is_same = now.is_some_and(|now| same(inode, now));
                let is_known = is_heard
                    || [&self.linked, &self.others, &self.pending.dirs, &dirs]
                        .iter()
                        .any(|known| known.contains(&number));
                if !is_same && !is_known && !is_suspect(number) {
                    let is_written = matches!(inode.kind, Kind::File { .. })
                        && now.is_some_and(|now| {
                            matches!(now.kind, Kind::File { .. })
                                && (now.identity.dev, now.identity.ino) == number
                        });
                    found.insert(is_written.then_some(number));
                }
            }
        }
        found
    }
}

/// All but the time of access, and holes, which file systems fill by themselves.
fn same(a: &Inode, b: &Inode) -> bool {
    use Kind::File;
    let kinds = match (&a.kind, &b.kind) {
        (File { size, .. }, File { size: other, .. }) => size == other,
        (kind, other) => kind == other,
    };
    kinds
        && (a.mode, a.uid, a.gid, a.mtime) == (b.mode, b.uid, b.gid, b.mtime)
        && a.identity == b.identity
        && a.xattrs == b.xattrs
}

/// Does the kernel tell of all changes in this directory?
fn is_followed(root: &Path) -> bool {
    let kind = statfs(root).map(|found| found.filesystem_type());
    root.is_dir() && kind.is_ok_and(|kind| FOLLOWED.contains(&kind))
}
