//! Says how two file trees differ.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::access::Dir;
use crate::copy::{RangeReader, fill};
use crate::error::Error;
use crate::flags;
use crate::path::RelPath;
use crate::scan::scan;
use crate::tree::{Entry, Inode, Kind, Tree};

/// Bytes compared at once.
const BUFFER_BYTES: usize = 1 << 18;

/// A difference of the second tree from the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path in the trees.
    pub path: RelPath,
    /// What differs.
    pub what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", String::from_utf8_lossy(self.path.as_bytes()), self.what)
    }
}

/// Compares two trees in everything that applying restores: names, kinds, content, holes, hard links, modes,
/// owners, times, attributes, flags. Access times are compared for regular files only, since looking at links and
/// directories may change theirs.
///
/// # Errors
/// [`Error::Io`] when a tree cannot be read.
pub fn verify(a_root: &Path, b_root: &Path) -> Result<Vec<Difference>, Error> {
    let (a, b) = (one(a_root)?, one(b_root)?);
    let (a_entries, b_entries) = (&a.tree.roots[0].entries, &b.tree.roots[0].entries);
    let b_by_path: HashMap<_, _> = b_entries.iter().map(|entry| (&entry.path, entry)).collect();
    let mut found = Vec::new();
    // Which inode of one tree is which of the other.
    let (mut there, mut back) = (HashMap::new(), HashMap::new());
    for entry in a_entries {
        let mut differs = |what: String| found.push(Difference { path: entry.path.clone(), what });
        let Some(other) = b_by_path.get(&entry.path) else {
            differs("is missing".into());
            continue;
        };
        let paired = *there.entry(entry.inode).or_insert(other.inode) == other.inode
            && *back.entry(other.inode).or_insert(entry.inode) == entry.inode;
        if !paired {
            differs("hard links differ".into());
        }
        compare(a.tree.inode(entry), b.tree.inode(other), &mut differs);
        let files = |tree: &Tree, entry: &Entry| matches!(tree.inode(entry).kind, Kind::File { .. });
        if files(&a.tree, entry) && files(&b.tree, other) && !same_content(&a, entry, &b, other)? {
            differs("content differs".into());
        }
    }
    let a_by_path: HashMap<_, _> = a_entries.iter().map(|entry| (&entry.path, ())).collect();
    for entry in b_entries.iter().filter(|entry| !a_by_path.contains_key(&entry.path)) {
        found.push(Difference { path: entry.path.clone(), what: "should not be there".into() });
    }
    Ok(found)
}

struct One {
    tree: Tree,
    path: PathBuf,
}

fn one(path: &Path) -> Result<One, Error> {
    let name = path.as_os_str().as_encoded_bytes();
    let path = path.canonicalize().map_err(Error::io("verify", name))?;
    let tree = scan(std::slice::from_ref(&path), &[], &[])?;
    if tree.roots.len() == 1 { Ok(One { tree, path }) } else { Err(Error::invalid("verify", name)) }
}

fn compare(a: &Inode, b: &Inode, differs: &mut impl FnMut(String)) {
    match (&a.kind, &b.kind) {
        (Kind::File { size: a_size, data: a_data }, Kind::File { size: b_size, data: b_data }) => {
            if a_size != b_size {
                differs(format!("size is {b_size}, not {a_size}"));
            } else if a_data != b_data {
                differs(format!("data is at {b_data:?}, not {a_data:?}"));
            }
            if a.atime != b.atime {
                differs(format!("access time is {:?}, not {:?}", b.atime, a.atime));
            }
        }
        (a_kind, b_kind) => {
            if a_kind != b_kind {
                differs(format!("is {b_kind:?}, not {a_kind:?}"));
            }
        }
    }
    if a.mode != b.mode {
        differs(format!("mode is {:o}, not {:o}", b.mode, a.mode));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        differs(format!("owner is {}:{}, not {}:{}", b.uid, b.gid, a.uid, a.gid));
    }
    if a.mtime != b.mtime {
        differs(format!("time is {:?}, not {:?}", b.mtime, a.mtime));
    }
    if a.xattrs != b.xattrs {
        differs("attributes differ".into());
    }
    if a.flags != b.flags {
        differs(format!("flags are {}, not {}", flags::text(b.flags), flags::text(a.flags)));
    }
}

fn same_content(a: &One, a_entry: &Entry, b: &One, b_entry: &Entry) -> Result<bool, Error> {
    let open = |one: &One, entry: &Entry| {
        let path = entry.path.under(one.path.as_os_str().as_encoded_bytes());
        let (dir, name) = match entry.path.split() {
            Some((parent, name)) => {
                (Dir::open(&one.path).and_then(|top| top.beneath(&parent)), name.to_vec())
            }
            None => {
                let name = one.path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
                (Dir::open(one.path.parent().unwrap_or(&one.path)), name)
            }
        };
        dir.and_then(|dir| dir.read(&name)).map_err(Error::io("verify", &path))
    };
    let (a_file, b_file) = (open(a, a_entry)?, open(b, b_entry)?);
    let (a_data, b_data) = (a.tree.inode(a_entry).data(), b.tree.inode(b_entry).data());
    if a_data != b_data {
        return Ok(true); // Said already; what the bytes are is then beside the point.
    }
    let (mut left, mut right) = (RangeReader::new(&a_file, a_data), RangeReader::new(&b_file, b_data));
    let (mut a_bytes, mut b_bytes) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let failed = |cause| Error::io("verify", a.path.as_os_str().as_encoded_bytes())(cause);
    loop {
        let len: usize = fill(&mut left, &mut a_bytes).map_err(|cause: std::io::Error| failed(cause))?;
        if fill(&mut right, &mut b_bytes).map_err(failed)? != len || a_bytes[..len] != b_bytes[..len] {
            return Ok(false);
        }
        if len < BUFFER_BYTES {
            return Ok(true);
        }
    }
}
