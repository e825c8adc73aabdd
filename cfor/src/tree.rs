//! What a file tree is: names, and the inodes that they name.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::path::RelPath;
use crate::validate::Parts;

/// Every name under the roots, and what it names. Hard links are names of one inode.
///
/// A value that was scanned or decoded keeps all the rules of [`Tree::validate`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Tree {
    /// When the scan began.
    pub taken_at: Time,
    /// Directories and single files, by path.
    pub roots: Vec<Root>,
    /// What the entries name.
    #[serde(with = "crate::columns")]
    pub inodes: Vec<Inode>,
    /// What is not replicated, and why.
    pub remarks: Vec<Remark>,
}

/// A directory with all below it, or a single file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Absolute path, without symbolic links in it when it was scanned.
    pub path: Vec<u8>,
    /// The root itself under an empty path, then what is below, in the order of [`RelPath`].
    pub entries: Vec<Entry>,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path in the root.
    pub path: RelPath,
    /// Index of the inode in [`Tree::inodes`].
    pub inode: u32,
}

/// A file, directory or the like, apart from its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Attributes in `user.` and `trusted.`, access lists and capabilities, by name.
    pub xattrs: Vec<Xattr>,
    /// Flags as `FS_IOC_GETFLAGS` has them, of regular files and directories; see [`flag_names`](crate::flag_names).
    pub flags: u32,
    /// Which inode it was where it was scanned.
    pub identity: Identity,
}

/// Tells whether a file is the one that was seen before, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// File system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Last change of anything.
    pub ctime: Time,
}

/// Kinds of inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Regular file.
    File {
        /// Bytes, holes included.
        size: u64,
        /// Where its data is; all else is holes. Content is these bytes, one after the other.
        data: Vec<Extent>,
    },
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink {
        /// What it points to.
        target: Vec<u8>,
    },
    /// Named pipe.
    Fifo,
    /// Name of a unix socket. Applying makes the name, the socket itself belongs to its process.
    Socket,
    /// Something that is not replicated: a device, a mount point, an excluded or unreadable file. Applying
    /// leaves alone whatever has this name.
    Left,
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub at: u64,
    /// Bytes; not 0.
    pub len: u64,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// Name, with its `user.` or the like.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// A time since the epoch of Unix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// The time now.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() }
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub fn as_nanos(self) -> i128 {
        i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos)
    }
}

/// Something about one path that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Absolute path.
    pub path: Vec<u8>,
    /// What about it, with the cause.
    pub what: String,
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", String::from_utf8_lossy(&self.path), self.what)
    }
}

/// Remarks with a bound: past it they are only counted.
#[derive(Debug, Default)]
pub(crate) struct Remarks {
    kept: Vec<Remark>,
    more: usize,
}

impl Remarks {
    /// Remarks of a tree or a report.
    const KEPT_MAX: usize = 1000;

    pub(crate) fn add(&mut self, path: &[u8], what: impl Into<String>) {
        if self.kept.len() < Self::KEPT_MAX {
            self.kept.push(Remark { path: path.to_vec(), what: what.into() });
        } else {
            self.more += 1;
        }
    }

    /// Adds all to others, and one for those that were only counted.
    pub(crate) fn append_to(self, others: &mut Vec<Remark>) {
        let room = Self::KEPT_MAX.saturating_sub(others.len());
        let more = self.more + self.kept.len().saturating_sub(room);
        others.extend(self.kept.into_iter().take(room));
        if more > 0 {
            others.push(Remark { path: Vec::new(), what: format!("and {more} more remarks") });
        }
    }

    /// All of them.
    pub(crate) fn finish(self) -> Vec<Remark> {
        let mut all = Vec::new();
        self.append_to(&mut all);
        all
    }
}

impl Inode {
    /// Where a regular file has data; nothing for other kinds.
    #[must_use]
    pub fn data(&self) -> &[Extent] {
        match &self.kind {
            Kind::File { data, .. } => data,
            Kind::Dir | Kind::Symlink { .. } | Kind::Fifo | Kind::Socket | Kind::Left => &[],
        }
    }

    /// It turns out that it cannot be replicated; nor are its attributes.
    pub(crate) fn leave(&mut self) {
        self.kind = Kind::Left;
        self.xattrs.clear();
        self.flags = 0;
    }
}

impl Root {
    /// The entry of a path.
    pub(crate) fn find(&self, path: &RelPath) -> Option<usize> {
        self.entries.binary_search_by(|entry| entry.path.cmp(path)).ok()
    }
}

impl Tree {
    /// The inode that an entry names.
    ///
    /// # Panics
    /// If the entry is of another tree.
    #[must_use]
    pub fn inode(&self, entry: &Entry) -> &Inode {
        &self.inodes[entry.inode as usize]
    }

    /// All entries with their roots.
    pub fn entries(&self) -> impl Iterator<Item = (&Root, &Entry)> {
        self.roots.iter().flat_map(|root| root.entries.iter().map(move |entry| (root, entry)))
    }
}
