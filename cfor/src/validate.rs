//! The rules that every tree keeps, whoever made it.

use serde::Deserialize;

use crate::Error;
use crate::attributes;
use crate::columns::{Row, WithoutFlags};
use crate::flags;
use crate::path::PATH_BYTES_MAX;
use crate::tree::{Extent, Inode, Kind, Remark, Root, Time, Tree};

/// Roots of a tree.
pub(crate) const ROOTS_MAX: usize = 4096;
/// Entries of a tree.
pub(crate) const ENTRIES_MAX: usize = 8 << 20;
/// Extents of a file; one with more is stored without its smallest holes.
pub(crate) const EXTENTS_MAX: usize = 1 << 16;
/// Attributes of an inode.
pub(crate) const XATTRS_MAX: usize = 1024;
const REMARKS_MAX: usize = 1024;
const REMARK_BYTES_MAX: usize = 8192;

/// A tree as it was decoded, before its rules are checked.
#[derive(Deserialize)]
pub(crate) struct Parts {
    taken_at: Time,
    roots: Vec<Root>,
    #[serde(with = "crate::columns")]
    inodes: Vec<Inode>,
    remarks: Vec<Remark>,
}

/// The same as it was encoded before inodes were columns.
#[derive(Deserialize)]
pub(crate) struct Rows {
    taken_at: Time,
    roots: Vec<Root>,
    inodes: Vec<Row>,
    remarks: Vec<Remark>,
}

impl TryFrom<Rows> for Tree {
    type Error = Error;

    fn try_from(rows: Rows) -> Result<Self, Error> {
        let Rows { taken_at, roots, inodes, remarks } = rows;
        let inodes = inodes.into_iter().map(Inode::from).collect();
        Parts { taken_at, roots, inodes, remarks }.try_into()
    }
}

/// The same as it was encoded before inodes had flags.
#[derive(Deserialize)]
pub(crate) struct Plain {
    taken_at: Time,
    roots: Vec<Root>,
    inodes: WithoutFlags,
    remarks: Vec<Remark>,
}

impl TryFrom<Plain> for Tree {
    type Error = Error;

    fn try_from(plain: Plain) -> Result<Self, Error> {
        let Plain { taken_at, roots, inodes: WithoutFlags(inodes), remarks } = plain;
        Parts { taken_at, roots, inodes, remarks }.try_into()
    }
}

impl TryFrom<Parts> for Tree {
    type Error = Error;

    fn try_from(parts: Parts) -> Result<Self, Error> {
        let Parts { taken_at, roots, inodes, remarks } = parts;
        let tree = Self { taken_at, roots, inodes, remarks };
        tree.validate()?;
        Ok(tree)
    }
}

impl Tree {
    /// Checks every rule: bounds, order, that parents are directories, that nothing leads out of a root.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule and the path.
    pub fn validate(&self) -> Result<(), Error> {
        let require =
            |holds: bool, what, path: &[u8]| if holds { Ok(()) } else { Err(Error::invalid(what, path)) };
        let entries: usize = self.roots.iter().map(|root| root.entries.len()).sum();
        require(self.roots.len() <= ROOTS_MAX && entries <= ENTRIES_MAX, "too many entries", b"")?;
        require(self.inodes.len() <= entries, "inodes without names", b"")?;
        require(self.remarks.len() <= REMARKS_MAX, "too many remarks", b"")?;
        for remark in &self.remarks {
            let bytes = remark.path.len().max(remark.what.len());
            require(bytes <= REMARK_BYTES_MAX, "remark too long", b"")?;
        }
        for inode in &self.inodes {
            inode_rules(inode).map_err(|what| Error::invalid(what, b""))?;
        }
        let mut named = vec![false; self.inodes.len()];
        let mut previous: Option<&Root> = None;
        for root in &self.roots {
            require(is_absolute(&root.path), "root is not a plain absolute path", &root.path)?;
            require(previous.is_none_or(|p| p.path < root.path), "roots out of order", &root.path)?;
            previous = Some(root);
            self.root_rules(root, &mut named)?;
        }
        require(named.iter().all(|named| *named), "inode without a name", b"")
    }

    fn root_rules(&self, root: &Root, named: &mut [bool]) -> Result<(), Error> {
        let first = root.entries.first().filter(|entry| entry.path.is_root());
        first.ok_or_else(|| Error::invalid("root without itself", &root.path))?;
        // The directories that lead to the current entry.
        let mut open: Vec<&crate::RelPath> = Vec::new();
        let mut previous: Option<&crate::Entry> = None;
        for entry in &root.entries {
            let bad = |what| Error::invalid(what, &entry.path.under(&root.path));
            if previous.is_some_and(|p| p.path >= entry.path) {
                return Err(bad("entries out of order"));
            }
            previous = Some(entry);
            if let Some((parent, _)) = entry.path.split() {
                while open.last().is_some_and(|dir| **dir != parent) {
                    open.pop();
                }
                if open.is_empty() {
                    return Err(bad("entry outside a directory"));
                }
            }
            let inode = self.inodes.get(entry.inode as usize).ok_or_else(|| bad("entry without inode"))?;
            if inode.kind == Kind::Dir {
                if named[entry.inode as usize] {
                    return Err(bad("directory with two names"));
                }
                open.push(&entry.path);
            }
            named[entry.inode as usize] = true;
        }
        Ok(())
    }
}

fn is_absolute(path: &[u8]) -> bool {
    path == b"/"
        || (path.first() == Some(&b'/') && crate::RelPath::new(&path[1..]).is_some_and(|p| !p.is_root()))
}

fn inode_rules(inode: &Inode) -> Result<(), &'static str> {
    let times = [inode.atime, inode.mtime, inode.identity.ctime];
    if inode.mode > 0o7777 || times.iter().any(|time| time.nanos >= 1_000_000_000) {
        return Err("mode or time out of range");
    }
    if inode.xattrs.len() > XATTRS_MAX || !inode.xattrs.is_sorted_by(|a, b| a.name < b.name) {
        return Err("attributes out of order or too many");
    }
    for xattr in &inode.xattrs {
        attributes::rules(&inode.kind, xattr)?;
    }
    flags::rules(&inode.kind, inode.flags)?;
    match &inode.kind {
        Kind::File { size, data } => extents_rules(*size, data),
        Kind::Symlink { target } => {
            let good = !target.is_empty() && target.len() <= PATH_BYTES_MAX && !target.contains(&0);
            if good { Ok(()) } else { Err("symbolic link with a bad target") }
        }
        Kind::Dir | Kind::Fifo | Kind::Socket | Kind::Left => Ok(()),
    }
}

fn extents_rules(size: u64, data: &[Extent]) -> Result<(), &'static str> {
    let mut free = 0;
    for extent in data {
        let end = extent.at.checked_add(extent.len).ok_or("extent out of range")?;
        if extent.len == 0 || extent.at < free || end > size {
            return Err("extents overlap, are out of order or beyond the end");
        }
        free = end;
    }
    let good = data.len() <= EXTENTS_MAX && i64::try_from(size).is_ok();
    if good { Ok(()) } else { Err("file too large or with too many extents") }
}
