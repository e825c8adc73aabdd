//! Names of watched files: the kernel tells device and inode only.
//!
//! They are searched while the application still runs, and remembered; in the stop a remembered name is
//! only checked.

use super::fdinfo::FdInfo;
use super::inotify::{leads_to, parse};
use crate::remote::Remote;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

/// Device and inode.
type Key = (u64, u64);

/// What is known of watched files.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: BTreeMap<Key, PathBuf>,
    /// Those that a search did not find: how many searches pass them over, and how many of these are to come.
    missed: BTreeMap<Key, (u32, u32)>,
}

/// Directories that one search reads at most.
const DIRECTORIES_MAX: usize = 50_000;
/// What is not found is looked for again after 1, 2, 4, ... and at last always after so many searches.
const PASSED_OVER_MAX: u32 = 128;

/// The name of an object, if one is known that still leads to it.
pub(crate) fn find(remote: &Remote, key: Key, names: &Names) -> Option<PathBuf> {
    if let Some(path) = names.known.get(&key).filter(|path| leads_to(path, key)) {
        return Some(path.clone());
    }
    // A watch that was added after the search: on what the process works with, as a rule.
    near(remote).into_iter().find(|path| leads_to(path, key))
}

/// Where the process works: its directory, the files that it has open, and the directories of these.
fn near(remote: &Remote) -> BTreeSet<PathBuf> {
    let mut near = BTreeSet::new();
    let mut take = |path: PathBuf| {
        near.extend(path.ancestors().filter(|path| path.is_absolute()).map(Path::to_path_buf));
    };
    for name in ["cwd", "exe"] {
        take(std::fs::read_link(remote.proc(name)).unwrap_or_default());
    }
    for entry in std::fs::read_dir(remote.proc("fd")).into_iter().flatten().flatten() {
        take(std::fs::read_link(entry.path()).unwrap_or_default());
    }
    near
}

/// Searches the names of all watches of a process that are not known yet; `watching` is what the kernel tells of its instances.
pub(crate) fn search(remote: &Remote, watching: &[FdInfo], names: &mut Names) {
    let mut wanted = BTreeSet::new();
    for info in watching {
        let keys = info.lines("inotify ").filter_map(parse).map(|(_, key, _)| key);
        wanted.extend(keys.filter(|key| !names.known.get(key).is_some_and(|path| leads_to(path, *key))));
    }
    wanted.retain(|key| names.is_due(*key));
    if wanted.is_empty() {
        return;
    }
    walk(remote, &mut wanted, names);
    for key in wanted {
        names.missed(key);
    }
}

impl Names {
    /// Whether a search looks for it now.
    fn is_due(&mut self, key: Key) -> bool {
        match self.missed.get_mut(&key) {
            Some((_, left)) if *left > 0 => {
                *left -= 1;
                false
            }
            _ => true,
        }
    }

    fn missed(&mut self, key: Key) {
        let passed = self.missed.get(&key).map_or(1, |(passed, _)| (passed * 2).min(PASSED_OVER_MAX));
        self.missed.insert(key, (passed, passed));
    }

    fn found(&mut self, key: Key, path: &Path) {
        self.missed.remove(&key);
        self.known.insert(key, path.to_path_buf());
    }
}

/// Takes out of `wanted` what it finds.
fn walk(remote: &Remote, wanted: &mut BTreeSet<Key>, names: &mut Names) {
    // What is near first and deepest first: `/` last, with all there is.
    let mut starts: Vec<PathBuf> = near(remote).into_iter().collect();
    starts.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    let mut queue: VecDeque<PathBuf> = starts.into();
    let mut read = BTreeSet::new();
    while let Some(dir) = queue.pop_front() {
        if wanted.is_empty() || read.len() >= DIRECTORIES_MAX {
            return;
        }
        if dir.starts_with("/proc") || dir.starts_with("/sys") || !read.insert(dir.clone()) {
            continue;
        }
        wanted.retain(|key| {
            let here = leads_to(&dir, *key);
            if here {
                names.found(*key, &dir);
            }
            !here
        });
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let inode = entry.ino();
            // A mount point shows the inode below it: directories are asked themselves when they are read.
            if let Some(key) = wanted.iter().find(|key| key.1 == inode && leads_to(&path, **key)).copied() {
                wanted.remove(&key);
                names.found(key, &path);
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push_back(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a file that is nowhere costs a search ever more seldom, and never none. Method: the rule alone, for 1,000 epochs.
    #[test]
    fn what_is_nowhere_is_looked_for_more_and_more_seldom() {
        let (key, mut names, mut searches) = ((1, 2), Names::default(), Vec::new());
        for epoch in 0..1000 {
            if names.is_due(key) {
                searches.push(epoch);
                names.missed(key);
            }
        }
        assert_eq!(searches[..8], [0, 2, 5, 10, 19, 36, 69, 134]);
        assert!(
            searches.windows(2).all(|two| two[1] - two[0] <= PASSED_OVER_MAX as usize + 1),
            "{searches:?}"
        );
        names.found(key, Path::new("/"));
        assert!(names.is_due(key));
    }
}
