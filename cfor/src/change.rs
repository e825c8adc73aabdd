//! Which files may have changed since a scan.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::log::Ranges;
use crate::patch::{Plan, plan};
use crate::tree::{Identity, Inode, Kind, Time, Tree};

/// A change this close before a scan may share its time stamp with one after it: stamps advance by the
/// kernel's tick, 10 ms at most.
const TICK_NANOS: i128 = 20_000_000;

/// What the caller knows of a file beyond its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint<'a> {
    /// Nothing: attributes decide.
    Attributes,
    /// It may change without a trace, because a process has it mapped shared and writable: stores through a
    /// mapping touch the times at the first store only.
    Mapped,
    /// As [`Self::Mapped`], but its content was changed in these ranges only.
    Stored(&'a Ranges),
    /// Its content was changed in these ranges only: every writer was recorded and none maps it. Only they are copied
    /// then. Empty ranges say nothing of a file whose attributes have changed: somebody was not recorded.
    Written(&'a Ranges),
}

impl Hint<'_> {
    /// Attributes do not tell whether it has changed.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self, Self::Mapped | Self::Stored(_))
    }
}

/// What has become of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    Same,
    /// Known ranges of it.
    Written(Plan),
    /// Anything.
    Any,
}

/// A tree by identity.
pub(crate) struct Previous<'a> {
    tree: &'a Tree,
    index: Cow<'a, Index>,
}

/// Inodes of a tree by device and number.
pub(crate) type Index = HashMap<(u64, u64), u32>;

/// Makes the index of a tree.
pub(crate) fn index(tree: &Tree) -> Index {
    tree.inodes.iter().map(|i| (i.identity.dev, i.identity.ino)).zip(0..).collect()
}

impl<'a> Previous<'a> {
    pub(crate) fn new(tree: &'a Tree) -> Self {
        Self { tree, index: Cow::Owned(index(tree)) }
    }

    /// With an index that was made before.
    pub(crate) fn of(tree: &'a Tree, index: &'a Index) -> Self {
        Self { tree, index: Cow::Borrowed(index) }
    }

    /// The inode of the same number, with the time of the scan.
    pub(crate) fn find(&self, identity: &Identity) -> Option<(&'a Inode, Time)> {
        self.index_of(identity).map(|at| (&self.tree.inodes[at as usize], self.tree.taken_at))
    }

    /// The index of the inode of the same number.
    pub(crate) fn index_of(&self, identity: &Identity) -> Option<u32> {
        self.index.get(&(identity.dev, identity.ino)).copied()
    }

    /// What has become of `now` since.
    pub(crate) fn change(&self, now: &Inode, hint: Hint<'_>) -> Change {
        self.find(&now.identity).map_or(Change::Any, |(old, taken_at)| change(old, taken_at, now, hint))
    }
}

/// What has become of a file that was `old` when it was scanned at `taken_at`.
pub(crate) fn change(old: &Inode, taken_at: Time, now: &Inode, hint: Hint<'_>) -> Change {
    let (Kind::File { size: old_size, data: old_data }, Kind::File { size, data }) = (&old.kind, &now.kind)
    else {
        return Change::Any;
    };
    match hint {
        Hint::Mapped => Change::Any,
        // Also if attributes say nothing: of a write that had begun before a scan while others wrote they do not.
        Hint::Stored(ranges) | Hint::Written(ranges) if !ranges.is_empty() => {
            plan((*old_size, old_data), (*size, data), ranges).map_or(Change::Any, Change::Written)
        }
        _ if size == old_size && is_untouched(old, taken_at, now) => Change::Same,
        Hint::Attributes => Change::Any,
        // The time stamp alone is not old enough; but nobody was recorded.
        Hint::Written(_) | Hint::Stored(_)
            if size != old_size || old.identity != now.identity || old.mtime != now.mtime =>
        {
            Change::Any
        }
        // Holes are another matter: the file system may fill them when it writes back, without a trace.
        Hint::Written(_) | Hint::Stored(_) if data == old_data => Change::Same,
        Hint::Written(ranges) | Hint::Stored(ranges) => {
            plan((*old_size, old_data), (*size, data), ranges).map_or(Change::Any, Change::Written)
        }
    }
}

/// Whether attributes say that nothing has changed since `old` was scanned at `taken_at`.
pub(crate) fn is_untouched(old: &Inode, taken_at: Time, now: &Inode) -> bool {
    old.identity == now.identity && old.mtime == now.mtime && is_old(old, taken_at)
}

/// Was it changed so long before it was scanned that a later change has another time?
pub(crate) fn is_old(inode: &Inode, taken_at: Time) -> bool {
    inode.identity.ctime.as_nanos() + TICK_NANOS < taken_at.as_nanos()
}

/// The regular files of `now` (indices of inodes) whose content must be read again.
///
/// A file counts as unchanged if it has the same device, inode number, size and times, and was last changed
/// well before the previous scan. `hint` adds what the caller knows.
#[must_use]
pub fn changed_files<'a>(previous: &Tree, now: &Tree, hint: &dyn Fn(&Inode) -> Hint<'a>) -> Vec<u32> {
    let previous = Previous::new(previous);
    let files = now.inodes.iter().zip(0..).filter(|(inode, _)| matches!(inode.kind, Kind::File { .. }));
    files.filter(|(inode, _)| previous.change(inode, hint(inode)) != Change::Same).map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Extent;

    /// A file that was changed right before the scan at the 5th second, with data in these pages.
    fn file(pages: &[u64]) -> Inode {
        let data = pages.iter().map(|page| Extent { at: page * 4096, len: 4096 }).collect();
        let at = Time { seconds: 5, nanos: 0 };
        Inode {
            kind: Kind::File { size: 5 * 4096, data },
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: at,
            mtime: at,
            xattrs: Vec::new(),
            flags: 0,
            identity: Identity { dev: 1, ino: 2, ctime: at },
        }
    }

    #[test]
    fn what_was_recorded_is_read_though_attributes_say_nothing() {
        // A long write that began well before the scan, and went on after it.
        let (mut ranges, taken_at) = (Ranges::default(), Time { seconds: 9, nanos: 0 });
        let old = file(&[0, 1, 2, 3, 4]);
        assert_eq!(change(&old, taken_at, &old, Hint::Written(&ranges)), Change::Same);
        ranges.insert(4096, 8192);
        let Change::Written(plan) = change(&old, taken_at, &old, Hint::Written(&ranges)) else {
            panic!("not by ranges")
        };
        assert_eq!(plan.fresh, [Extent { at: 4096, len: 8192 }]);
    }

    #[test]
    fn what_was_a_hole_is_read_though_nobody_wrote() {
        let (none, taken_at) = (Ranges::default(), Time { seconds: 5, nanos: 1000 });
        let (old, filled) = (file(&[0, 4]), file(&[0, 2, 4]));
        let hint = Hint::Written(&none);
        assert_eq!(change(&old, taken_at, &old, hint), Change::Same);
        let Change::Written(plan) = change(&old, taken_at, &filled, hint) else { panic!("not by ranges") };
        assert_eq!(plan.fresh, [Extent { at: 2 * 4096, len: 4096 }]);
        let mut later = old.clone();
        later.mtime.nanos = 1;
        assert_eq!(change(&old, taken_at, &later, hint), Change::Any);
    }
}
