//! The tree of the epoch before, brought up to date in the stop: only what was heard of is looked at.
//!
//! ```text
//! names that were heard of     stat; gone: taken out with all below; a directory that is new here: walked
//! numbers that were heard of   stat, unless a name led there
//! single files                 stat; as at every scan, unless they are as they were
//! ```
//!
//! Whatever is not as it should be (a name that is gone and was not heard of) means that all must be looked at.

mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{SFlag, lstat};

use crate::access::{Dir, SELF, identity, is, number, times};
use crate::apply::is_temporary;
use crate::capture::{Captured, Staged, Stager, Staging};
use crate::change::{Change, Hint, Index, Previous, change, index, is_old};
use crate::error::{Error, to_path};
use crate::flags;
use crate::follow::{Followed, Look};
use crate::path::RelPath;
use crate::scan::{self, Avoided, Scanned, Scanner, is_scanned};
use crate::tree::{Entry, Inode, Kind, Remark, Root, Time, Tree};
use crate::validate::{ENTRIES_MAX, ROOTS_MAX};
use crate::watch::Number;

/// Remarks of a tree that is still brought up to date.
const REMARKS_MAX: usize = 500;

/// A copy of a captured tree, to be brought up to date.
pub struct Draft<C> {
    tree: Tree,
    contents: BTreeMap<u32, C>,
    index: Index,
    /// Root and entry of a name of each inode.
    places: Vec<(u32, u32)>,
    is_ambiguous: bool,
    /// Inodes as they were, of those that were looked at.
    old: HashMap<u32, Option<Inode>>,
    /// A name of each inode that was looked at.
    names: HashMap<u32, (Vec<u8>, RelPath)>,
    /// What takes the place of an entry and all below it, by root.
    edits: Vec<BTreeMap<RelPath, Vec<Entry>>>,
}

/// Everything must be looked at.
struct All;

/// The open directory that names are looked up in.
struct Parents<'a> {
    tops: &'a [Option<(Dir, u64)>],
    at: Option<(usize, RelPath, Dir)>,
    /// Flags of all that were open.
    flags: HashMap<(usize, RelPath), u32>,
}

impl<C: Clone> Draft<C> {
    /// A copy of what was captured last. Takes time that depends on the size of the tree: not for the stop.
    #[must_use]
    pub fn new(captured: &Captured<C>) -> Self {
        let tree = captured.tree.clone();
        let index = index(&tree);
        let mut places = vec![(u32::MAX, 0); tree.inodes.len()];
        // Names below directories before single files, of which a draft knows nothing.
        for is_single in [false, true] {
            let roots = tree.roots.iter().zip(0u32..);
            for (root, at) in roots.filter(|(root, _)| is_single != is_dir(&tree, root)) {
                for (entry, entry_at) in root.entries.iter().zip(0u32..) {
                    let place = &mut places[entry.inode as usize];
                    if place.0 == u32::MAX {
                        *place = (at, entry_at);
                    }
                }
            }
        }
        // The same directory mounted twice, for one.
        let is_ambiguous = index.len() != tree.inodes.len();
        let edits = tree.roots.iter().map(|_| BTreeMap::new()).collect();
        Self {
            contents: captured.contents.clone(),
            index,
            places,
            is_ambiguous,
            old: HashMap::new(),
            names: HashMap::new(),
            edits,
            tree,
        }
    }

    /// Brings the tree up to date and holds what changed of contents, while nobody writes. None: all must be looked at.
    ///
    /// # Errors
    /// As for [`crate::scan()`] and [`crate::stage`].
    pub fn stage<'h, 's>(
        mut self,
        followed: &mut Followed,
        look: &Look<'_>,
        hint: &dyn Fn(&Inode) -> Hint<'h>,
        staging: impl Into<Staging<'s>>,
    ) -> Result<Option<Staged<C>>, Error> {
        if self.is_ambiguous || !followed.hear() {
            return Ok(None);
        }
        let taken_at = Time::now();
        if self.bring_up(followed, look).is_err() {
            return Ok(None);
        }
        let before = std::mem::replace(&mut self.tree.taken_at, taken_at);
        let mut stager = Stager::new(staging.into())?;
        let name_of = |(at, old)| (self.names.remove(&at), at, old);
        let mut looked: Vec<_> = std::mem::take(&mut self.old).into_iter().map(name_of).collect();
        // One directory after the other.
        looked.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        for (name, at, old) in looked {
            let inode = &self.tree.inodes[at as usize];
            if !matches!(inode.kind, Kind::File { .. }) {
                self.contents.remove(&at);
                continue;
            }
            let hint = hint(inode);
            let change = match old {
                Some(old) => {
                    let change = change(&old, before, inode, hint);
                    if change == Change::Same {
                        // Nobody opens it.
                        self.tree.inodes[at as usize].flags = old.flags;
                    }
                    change
                }
                None => Change::Any,
            };
            let Some(name) = name else { continue };
            let base = self.contents.remove(&at);
            stager.file(&mut self.tree, at, name, (change, hint.is_mapped()), base.as_ref())?;
        }
        Ok(Some(stager.finish(self.tree, self.contents)))
    }

    fn bring_up(&mut self, followed: &mut Followed, look: &Look<'_>) -> Result<(), All> {
        let tops = self.tops(look)?;
        let avoided = Avoided::of(look);
        let mut names: BTreeMap<(usize, RelPath), bool> = BTreeMap::new();
        let mut suspects: BTreeSet<Number> = look.suspects.iter().copied().collect();
        suspects.extend(followed.linked.iter().chain(&followed.others));
        suspects.extend(&followed.pending.dirs);
        for ((dir, name), listed) in &followed.pending.names {
            // Of directories that were taken out, too.
            let Some((root, path)) = self.name_of(*dir).filter(|_| !is_temporary(name)) else { continue };
            if *listed {
                suspects.insert(*dir);
            }
            *names.entry((root, path.join(name).ok_or(All)?)).or_default() |= listed;
        }
        let mut parents = Parents { tops: &tops, at: None, flags: HashMap::new() };
        let mut linked = HashSet::new();
        for ((root, path), listed) in names {
            if !self.is_taken_out(root, &path) {
                self.by_name(root, path, listed, &mut parents, &avoided, followed, &mut linked)?;
            }
        }
        let unseen: BTreeSet<(usize, RelPath)> = suspects
            .iter()
            .filter_map(|number| {
                let at = *self.index.get(number)?;
                if self.old.contains_key(&at) { None } else { self.surviving(at) }
            })
            .collect();
        for (root, path) in unseen {
            self.by_number(root, &path, &mut parents, &avoided, &mut linked)?;
        }
        let (kept, extra) = self.kept(look);
        if self.has_seconds(&extra) {
            return Err(All);
        }
        let is_renamed = self.merge() | tops.iter().any(Option::is_none) | !extra.is_empty();
        self.singles(&extra, &kept, &avoided, &tops, &mut linked)?;
        if is_renamed {
            self.compact(followed);
        }
        followed.linked.retain(|number| self.index.contains_key(number));
        followed.others.retain(|number| self.index.contains_key(number));
        followed.linked.extend(linked);
        let entries: usize = self.tree.roots.iter().map(|root| root.entries.len()).sum();
        let is_short = followed.watch().is_none_or(|watch| watch.is_short());
        if is_short || entries > ENTRIES_MAX || self.tree.roots.len() > ROOTS_MAX {
            return Err(All);
        }
        if self.tree.remarks.len() > REMARKS_MAX { Err(All) } else { Ok(()) }
    }

    /// The directories that are roots, opened, with their file systems; none for roots that are single files.
    fn tops(&self, look: &Look<'_>) -> Result<Vec<Option<(Dir, u64)>>, All> {
        let mut wanted = HashSet::new();
        for root in look.roots {
            let path = scan::resolve(root).map_err(|_| All)?.into_os_string().into_vec();
            wanted.insert(path);
        }
        let mut tops = Vec::new();
        for root in &self.tree.roots {
            if !is_dir(&self.tree, root) {
                tops.push(None);
                continue;
            }
            let dir = Dir::open(&to_path(&root.path)).map_err(|_| All)?;
            let stat = dir.stat(SELF).map_err(|_| All)?;
            let known = self.tree.inode(&root.entries[0]);
            if !wanted.remove(&root.path) || number(&stat) != (known.identity.dev, known.identity.ino) {
                return Err(All);
            }
            tops.push(Some((dir, stat.st_dev)));
        }
        // Those that are below others.
        if wanted.iter().all(|path| is_scanned(&self.tree, path)) { Ok(tops) } else { Err(All) }
    }

    /// Root and path of a directory of the tree.
    fn name_of(&self, dir: Number) -> Option<(usize, RelPath)> {
        let at = *self.index.get(&dir)?;
        let (root, entry) = *self.places.get(at as usize)?;
        let root_of = self.tree.roots.get(root as usize).filter(|root| is_dir(&self.tree, root))?;
        let path = root_of.entries.get(entry as usize)?.path.clone();
        (self.tree.inodes[at as usize].kind == Kind::Dir).then_some((root as usize, path))
    }

    /// Was it, or a directory above it, taken out or walked anew?
    fn is_taken_out(&self, root: usize, path: &RelPath) -> bool {
        let last = self.edits[root].range(..=path).next_back();
        last.is_some_and(|(top, _)| is_below(path, top))
    }

    /// A name that an inode had and has not lost.
    fn surviving(&self, at: u32) -> Option<(usize, RelPath)> {
        let (root, entry) = *self.places.get(at as usize)?;
        let is_top = |root: usize| is_dir(&self.tree, &self.tree.roots[root]);
        let path = &self.tree.roots.get(root as usize)?.entries.get(entry as usize)?.path;
        if !is_top(root as usize) {
            return None;
        }
        if !self.is_taken_out(root as usize, path) {
            return Some((root as usize, path.clone()));
        }
        for (root, one) in self.tree.roots.iter().enumerate().filter(|(root, _)| is_top(*root)) {
            let mut others = one.entries.iter().filter(|entry| entry.inode == at);
            if let Some(entry) = others.find(|entry| !self.is_taken_out(root, &entry.path)) {
                return Some((root, entry.path.clone()));
            }
        }
        None
    }

    /// Looks at a name that was heard of.
    #[expect(clippy::too_many_arguments, reason = "parts of one look")]
    fn by_name(
        &mut self,
        root: usize,
        path: RelPath,
        listed: bool,
        parents: &mut Parents<'_>,
        avoided: &Avoided<'_>,
        followed: &Followed,
        linked: &mut HashSet<Number>,
    ) -> Result<(), All> {
        let Some((parent, name)) = path.split() else { return Ok(()) };
        let (dir, home) = parents.open(root, &parent)?;
        let full = path.under(&self.tree.roots[root].path);
        self.tree.remarks.retain(|remark| !is_under(&remark.path, &full));
        let found = dir.look(name).map_err(|_| All)?;
        let known = self.tree.roots[root].find(&path).map(|at| self.tree.roots[root].entries[at].inode);
        let Some(stat) = found else {
            if known.is_some() {
                self.edits[root].insert(path, Vec::new());
            }
            return Ok(());
        };
        let is_same = known.is_some_and(|at| {
            let inode = &self.tree.inodes[at as usize];
            let is_changed_dir = is(&stat, SFlag::S_IFDIR)
                && (listed
                    || inode.kind != Kind::Dir
                    || (inode.mode, inode.uid, inode.gid)
                        != (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid));
            let is_kind = (inode.kind == Kind::Dir) == is(&stat, SFlag::S_IFDIR);
            (inode.identity.dev, inode.identity.ino) == number(&stat) && is_kind && !is_changed_dir
        });
        let previous = Previous::of(&self.tree, &self.index);
        let mut scanner = Scanner::new(avoided, previous, followed.watch());
        scanner.name(dir, (name, &stat), home, full, !is_same).map_err(|_| All)?;
        let found = scanner.finish();
        let entries = self.adopt(found, root, &path, linked)?;
        if !is_same {
            self.edits[root].insert(path, entries);
        }
        Ok(())
    }

    /// Looks at an inode by a name of which nothing was heard.
    fn by_number(
        &mut self,
        root: usize,
        path: &RelPath,
        parents: &mut Parents<'_>,
        avoided: &Avoided<'_>,
        linked: &mut HashSet<Number>,
    ) -> Result<(), All> {
        let at = self.tree.roots[root].find(path).ok_or(All)?;
        let known = &self.tree.inodes[self.tree.roots[root].entries[at].inode as usize];
        let (parent, name) = path.split().unwrap_or((RelPath::default(), SELF));
        let known_flags = parents.flags.get(&(root, path.clone())).copied();
        let (dir, home) = parents.open(root, &parent)?;
        let stat = dir.stat(name).map_err(|_| All)?;
        let rights = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        let is_closed = known.kind == Kind::Dir && (known.mode, known.uid, known.gid) != rights;
        if number(&stat) != (known.identity.dev, known.identity.ino) || is_closed {
            return Err(All);
        }
        let full = path.under(&self.tree.roots[root].path);
        let mut scanner = Scanner::new(avoided, Previous::of(&self.tree, &self.index), None);
        scanner.known_flags = known_flags;
        scanner.name(dir, (name, &stat), home, full, false).map_err(|_| All)?;
        let found = scanner.finish();
        self.adopt(found, root, path, linked).map(drop)
    }

    /// Takes what a scanner found below `path` into the table of inodes; its entries.
    fn adopt(
        &mut self,
        (found, several): Scanned,
        root: usize,
        path: &RelPath,
        linked: &mut HashSet<Number>,
    ) -> Result<Vec<Entry>, All> {
        linked.extend(several.into_keys());
        self.tree.remarks.extend(found.remarks);
        let top = self.tree.roots[root].path.clone();
        let numbers = self.take_in(found.inodes);
        let mut entries = Vec::new();
        for entry in found.roots.into_iter().flat_map(|root| root.entries) {
            let mut full = path.clone();
            for name in entry.path.names() {
                full = full.join(name).ok_or(All)?;
            }
            let inode = numbers[entry.inode as usize];
            self.names.insert(inode, (top.clone(), full.clone()));
            entries.push(Entry { path: full, inode });
        }
        Ok(entries)
    }

    /// Single files that are as they were, by the place of their roots; and all others.
    fn kept<'l>(&self, look: &Look<'l>) -> (HashSet<usize>, Vec<&'l PathBuf>) {
        let mut kept = HashSet::new();
        let is_kept = |path: &&PathBuf| {
            let bytes = path.as_os_str().as_bytes();
            let at = self.tree.roots.binary_search_by(|root| root.path.as_slice().cmp(bytes)).ok();
            at.filter(|at| self.is_as_before(&self.tree.roots[*at], path, look))
                .map(|at| kept.insert(at))
                .is_none()
        };
        let extra = look.extra_files.iter().filter(is_kept).collect();
        (kept, extra)
    }

    /// Is a single file as it was, by its attributes and by what the caller knows?
    fn is_as_before(&self, root: &Root, path: &Path, look: &Look<'_>) -> bool {
        let inode = self.tree.inode(&root.entries[0]);
        let (dev, ino) = (inode.identity.dev, inode.identity.ino);
        let Ok(now) = lstat(path) else { return false };
        let (atime, mtime, _) = times(&now);
        let size = match inode.kind {
            Kind::File { size, .. } => i64::try_from(size).unwrap_or(-1),
            Kind::Symlink { .. } => now.st_size,
            Kind::Dir | Kind::Fifo | Kind::Socket | Kind::Left => return false,
        };
        // Of what has several names another one may have gone, which nobody tells.
        now.st_nlink == 1
            && !look.suspects.contains(&(dev, ino))
            && (inode.identity, inode.atime, inode.mtime, size) == (identity(&now), atime, mtime, now.st_size)
            && is_old(inode, self.tree.taken_at)
    }

    /// Is a single file one of those below the roots, seen by another mount? They are two for whoever restores them.
    fn has_seconds(&self, extra: &[&PathBuf]) -> bool {
        if self.tree.roots.iter().all(|root| !is_dir(&self.tree, root)) {
            return false;
        }
        extra.iter().any(|path| {
            let Ok(path) = scan::resolve(path) else { return false };
            let found = path.symlink_metadata().ok().filter(|found| found.is_file() && found.nlink() == 1);
            let at = found.and_then(|found| self.index.get(&(found.dev(), found.ino())).copied());
            !is_scanned(&self.tree, path.as_os_str().as_bytes())
                && at.is_some_and(|at| self.names.contains_key(&at) || self.surviving(at).is_some())
        })
    }

    /// Looks at all single files but those that are kept.
    fn singles(
        &mut self,
        extra: &[&PathBuf],
        kept: &HashSet<usize>,
        avoided: &Avoided<'_>,
        tops: &[Option<(Dir, u64)>],
        linked: &mut HashSet<Number>,
    ) -> Result<(), All> {
        let mut stays = tops.iter().zip(0..).map(|(top, at)| top.is_some() || kept.contains(&at));
        self.tree.roots.retain(|_| stays.next().unwrap_or(false));
        let roots: Vec<Vec<u8>> = self.tree.roots.iter().map(|root| root.path.clone()).collect();
        self.tree.remarks.retain(|remark| roots.iter().any(|root| is_under(&remark.path, root)));
        let mut paths = BTreeSet::new();
        for path in extra {
            match scan::resolve(path) {
                Ok(path) => drop(paths.insert(path.into_os_string().into_vec())),
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                    let path = path.as_os_str().as_bytes().to_vec();
                    self.tree.remarks.push(Remark { path, what: "does not exist".into() });
                }
                Err(_) => return Err(All),
            }
        }
        for path in paths {
            if is_scanned(&self.tree, &path) {
                continue;
            }
            let mut scanner = Scanner::new(avoided, Previous::of(&self.tree, &self.index), None);
            scanner.root(path).map_err(|_| All)?;
            let (found, several) = scanner.finish();
            linked.extend(several.into_keys());
            self.tree.remarks.extend(found.remarks);
            let numbers = self.take_in(found.inodes);
            for mut root in found.roots {
                if is_dir_of(&root, &numbers, &self.tree) {
                    // It was a file when it was asked for.
                    return Err(All);
                }
                for entry in &mut root.entries {
                    entry.inode = numbers[entry.inode as usize];
                    self.names.entry(entry.inode).or_insert((root.path.clone(), entry.path.clone()));
                }
                self.tree.roots.push(root);
            }
        }
        self.tree.roots.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(())
    }
}

impl Parents<'_> {
    fn open(&mut self, root: usize, parent: &RelPath) -> Result<(&Dir, u64), All> {
        let (top, home) = self.tops[root].as_ref().ok_or(All)?;
        if self.at.as_ref().is_none_or(|(at, path, _)| (*at, path) != (root, parent)) {
            let dir = top.beneath(parent).map_err(|_| All)?;
            self.flags.insert((root, parent.clone()), flags::of_dir(&dir));
            self.at = Some((root, parent.clone(), dir));
        }
        let dir = self.at.as_ref().map(|(_, _, dir)| dir).ok_or(All)?;
        Ok((dir, *home))
    }
}

/// Is a root a directory?
fn is_dir(tree: &Tree, root: &Root) -> bool {
    root.entries.first().is_some_and(|entry| tree.inode(entry).kind == Kind::Dir)
}

fn is_dir_of(root: &Root, numbers: &[u32], tree: &Tree) -> bool {
    root.entries
        .first()
        .is_some_and(|entry| tree.inodes[numbers[entry.inode as usize] as usize].kind == Kind::Dir)
}

/// Is `path` this directory or below it?
fn is_below(path: &RelPath, top: &RelPath) -> bool {
    is_under(path.as_bytes(), top.as_bytes())
}

fn is_under(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || top.ends_with(b"/"))
}
