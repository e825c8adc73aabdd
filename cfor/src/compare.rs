//! What has become of one tree in another, as a list for people and programs.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};

use crate::copy::fill;
use crate::log::Ranges;
use crate::tree::{Extent, Inode, Kind, Tree};

/// Bytes compared at once.
const BLOCK_BYTES: usize = 4096;

/// What has become of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It was [`Delta::from`], and may have changed besides.
    Renamed,
    /// It names something that is not as it was.
    Changed,
}

/// Attributes in which a name may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// What it is: a file, a directory, ...
    Kind,
    /// Permission bits.
    Mode,
    /// Owner or group.
    Owner,
    /// Time of the last change of content.
    Time,
    /// Attributes in `user.`.
    Xattrs,
    /// Where a symbolic link leads.
    Target,
    /// Flags (`chattr`).
    Flags,
    /// Which other names the file has.
    Links,
    /// Where a file has holes.
    Holes,
}

impl Attribute {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Xattrs => "xattrs",
            Self::Target => "target",
            Self::Flags => "flags",
            Self::Links => "links",
            Self::Holes => "holes",
        }
    }
}

/// What is known of the bytes of a file in two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// They may differ in these ranges only.
    Ranges(Ranges),
    /// Anywhere.
    Unknown,
}

/// One name of which something differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Absolute path; of what is gone, where it was.
    pub path: Vec<u8>,
    /// The path before, of what was renamed.
    pub from: Option<Vec<u8>>,
    /// What has become of it.
    pub what: What,
    /// What it is, or was; see [`Kind::name`].
    pub kind: &'static str,
    /// Size before, of a regular file.
    pub size_before: Option<u64>,
    /// Size now, of a regular file.
    pub size: Option<u64>,
    /// Bytes that differ, within the size now. Those of a new file are its data. Empty for all else.
    pub touched: Touched,
    /// Attributes that differ; none of names that are new or gone.
    pub attributes: Vec<Attribute>,
}

impl Delta {
    /// Bytes that differ; of a file of which that is unknown, all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.touched {
            Touched::Ranges(ranges) => ranges.bytes(),
            Touched::Unknown => self.size.unwrap_or(0),
        }
    }
}

impl Kind {
    /// One word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Dir => "directory",
            Self::Symlink { .. } => "link",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Left => "left",
        }
    }

    /// Its size, of a regular file.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File { size, .. } => Some(*size),
            Self::Dir | Self::Symlink { .. } | Self::Fifo | Self::Socket | Self::Left => None,
        }
    }
}

/// Names of a tree, by absolute path and by device and number.
struct Names<'a> {
    tree: &'a Tree,
    paths: BTreeMap<Vec<u8>, u32>,
    numbers: HashMap<(u64, u64), Vec<Vec<u8>>>,
}

impl<'a> Names<'a> {
    fn of(tree: &'a Tree) -> Self {
        let (mut paths, mut numbers) = (BTreeMap::new(), HashMap::<_, Vec<_>>::new());
        for (root, entry) in tree.entries() {
            let path = entry.path.under(&root.path);
            let identity = tree.inode(entry).identity;
            numbers.entry((identity.dev, identity.ino)).or_default().push(path.clone());
            paths.insert(path, entry.inode);
        }
        Self { tree, paths, numbers }
    }

    fn inode(&self, at: u32) -> &'a Inode {
        &self.tree.inodes[at as usize]
    }

    fn number(&self, at: u32) -> (u64, u64) {
        let identity = self.inode(at).identity;
        (identity.dev, identity.ino)
    }
}

/// Lists what differs in `b`, in the order of paths. `touched` tells for two regular files, by index in
/// [`Tree::inodes`] of each, in which bytes they may differ; it may be asked more than once. Access times are not compared.
///
/// A file that has its number under another name was renamed, unless `is_newer` knows of the index in `b` that it was made
/// since, or nothing of its content is as before: numbers are used again.
///
/// # Errors
/// Those of `touched`.
pub fn compare<E>(
    a: &Tree,
    b: &Tree,
    is_newer: impl Fn(u32) -> bool,
    mut touched: impl FnMut(u32, u32) -> Result<Touched, E>,
) -> Result<Vec<Delta>, E> {
    let (a, b) = (Names::of(a), Names::of(b));
    let mut found = Vec::new();
    // Where names went, by the old one, and where they come from, by the new.
    let (mut moved, mut origins) = (BTreeMap::new(), BTreeMap::new());
    for (path, b_at) in &b.paths {
        if a.paths.get(path).is_some_and(|a_at| a.number(*a_at) == b.number(*b_at)) {
            continue;
        }
        for old in a.numbers.get(&b.number(*b_at)).into_iter().flatten() {
            let a_at = a.paths[old];
            let stays = b.paths.get(old).is_some_and(|at| b.number(*at) == b.number(*b_at));
            if stays || moved.contains_key(old) || !is_kept(a.inode(a_at), b.inode(*b_at)) || is_newer(*b_at)
            {
                continue;
            }
            if let (Some(a_size), Some(b_size)) = (a.inode(a_at).kind.size(), b.inode(*b_at).kind.size())
                && !is_along(&origins, old, path)
            {
                let all = a_size.max(b_size);
                let other = matches!(touched(a_at, *b_at)?, Touched::Ranges(ranges)
                    if ranges.bytes() >= all && a.inode(a_at).mtime != b.inode(*b_at).mtime);
                if other && all > 0 {
                    continue;
                }
            }
            moved.insert(old.clone(), path.clone());
            origins.insert(path.clone(), old.clone());
            break;
        }
    }
    let (mut there, mut back) = (HashMap::new(), HashMap::new());
    for (path, b_at) in &b.paths {
        let from = origins.get(path);
        let a_path = from.unwrap_or(path);
        let a_at = a.paths.get(a_path).filter(|_| from.is_some() || !moved.contains_key(path));
        let now = b.inode(*b_at);
        let Some(a_at) = a_at else {
            let mut data = Ranges::new();
            now.data().iter().for_each(|extent| data.insert(extent.at, extent.len));
            found.push(Delta {
                path: path.clone(),
                from: None,
                what: What::Added,
                kind: now.kind.name(),
                size_before: None,
                size: now.kind.size(),
                touched: Touched::Ranges(data),
                attributes: Vec::new(),
            });
            continue;
        };
        let before = a.inode(*a_at);
        let mut attributes = attributes(before, now);
        let paired =
            *there.entry(*a_at).or_insert(*b_at) == *b_at && *back.entry(*b_at).or_insert(*a_at) == *a_at;
        if !paired {
            attributes.push(Attribute::Links);
        }
        let mut bytes = Touched::Ranges(Ranges::new());
        if let (Some(before_size), Some(now)) = (before.kind.size(), now.kind.size()) {
            bytes = touched(*a_at, *b_at)?;
            if let Touched::Ranges(ranges) = &mut bytes {
                ranges.truncate(now);
                if ranges.is_empty() && before_size == now && before.data() != b.inode(*b_at).data() {
                    attributes.push(Attribute::Holes);
                }
            }
        }
        let is_same = attributes.is_empty()
            && before.kind.size() == now.kind.size()
            && matches!(&bytes, Touched::Ranges(ranges) if ranges.is_empty());
        // What moved with its directory is not named again.
        let along = from.is_some_and(|from| is_along(&origins, from, path));
        if is_same && (from.is_none() || along) {
            continue;
        }
        found.push(Delta {
            path: path.clone(),
            from: from.filter(|_| !along).cloned(),
            what: if from.is_some() && !along { What::Renamed } else { What::Changed },
            kind: now.kind.name(),
            size_before: before.kind.size(),
            size: now.kind.size(),
            touched: bytes,
            attributes,
        });
    }
    for (path, a_at) in
        a.paths.iter().filter(|(path, _)| !b.paths.contains_key(*path) && !moved.contains_key(*path))
    {
        let before = a.inode(*a_at);
        found.push(Delta {
            path: path.clone(),
            from: None,
            what: What::Removed,
            kind: before.kind.name(),
            size_before: before.kind.size(),
            size: None,
            touched: Touched::Ranges(Ranges::new()),
            attributes: Vec::new(),
        });
    }
    found.sort_by(|a, b| a.path.split(|byte| *byte == b'/').cmp(b.path.split(|byte| *byte == b'/')));
    Ok(found)
}

/// Whether the directory of `from` has become that of `path`, and the name in it is the same.
fn is_along(origins: &BTreeMap<Vec<u8>, Vec<u8>>, from: &[u8], path: &[u8]) -> bool {
    match (parent(from), parent(path)) {
        (Some((old, old_name)), Some((new, new_name))) => {
            old_name == new_name && origins.get(new).is_some_and(|origin| origin == old)
        }
        (None, _) | (_, None) => false,
    }
}

/// Directory and name.
fn parent(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = path.iter().rposition(|byte| *byte == b'/')?;
    Some((&path[..at], &path[at + 1..]))
}

/// Whether they are of one kind.
fn is_kept(a: &Inode, b: &Inode) -> bool {
    std::mem::discriminant(&a.kind) == std::mem::discriminant(&b.kind) && a.kind != Kind::Left
}

fn attributes(a: &Inode, b: &Inode) -> Vec<Attribute> {
    let target = |inode: &Inode| match &inode.kind {
        Kind::Symlink { target } => Some(target.clone()),
        Kind::File { .. } | Kind::Dir | Kind::Fifo | Kind::Socket | Kind::Left => None,
    };
    let is_kind = std::mem::discriminant(&a.kind) != std::mem::discriminant(&b.kind);
    // Nothing of it is anybody's to compare.
    if !is_kind && a.kind == Kind::Left {
        return Vec::new();
    }
    [
        (is_kind, Attribute::Kind),
        (a.mode != b.mode, Attribute::Mode),
        ((a.uid, a.gid) != (b.uid, b.gid), Attribute::Owner),
        (a.mtime != b.mtime, Attribute::Time),
        (a.xattrs != b.xattrs, Attribute::Xattrs),
        (a.flags != b.flags, Attribute::Flags),
        (!is_kind && target(a) != target(b), Attribute::Target),
    ]
    .into_iter()
    .filter_map(|(differs, attribute)| differs.then_some(attribute))
    .collect()
}

/// Where the bytes of two files differ, in blocks of 4 KiB: each as its data, without holes, with the extents of it. Holes are
/// zeros.
///
/// # Errors
/// Those of the readers; `UnexpectedEof` if one ends early.
pub fn touched(
    (a_data, a): (&[Extent], &mut dyn Read),
    (b_data, b): (&[Extent], &mut dyn Read),
) -> io::Result<Ranges> {
    let (mut a, mut b) = (Sparse::new(a_data, a), Sparse::new(b_data, b));
    let (mut a_block, mut b_block) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
    let mut found = Ranges::new();
    // What both have holes for is not looked at.
    while let Some(at) = [a.next(), b.next()].into_iter().flatten().min() {
        let at = at - at % BLOCK_BYTES as u64;
        a.block(at, &mut a_block)?;
        b.block(at, &mut b_block)?;
        if a_block != b_block {
            found.insert(at, BLOCK_BYTES as u64);
        }
    }
    Ok(found)
}

/// Data of a file, by offset.
struct Sparse<'a> {
    left: std::slice::Iter<'a, Extent>,
    now: Extent,
    from: &'a mut dyn Read,
}

impl<'a> Sparse<'a> {
    fn new(data: &'a [Extent], from: &'a mut dyn Read) -> Self {
        Self { left: data.iter(), now: Extent { at: 0, len: 0 }, from }
    }

    /// The first byte that was not read yet.
    fn next(&mut self) -> Option<u64> {
        while self.now.len == 0 {
            self.now = *self.left.next()?;
        }
        Some(self.now.at)
    }

    /// The bytes from `at` on, at or before the next byte.
    fn block(&mut self, at: u64, block: &mut [u8; BLOCK_BYTES]) -> io::Result<()> {
        block.fill(0);
        let end = at.saturating_add(BLOCK_BYTES as u64);
        while let Some(next) = self.next().filter(|next| *next < end) {
            let len = self.now.len.min(end - next) as usize;
            let into = &mut block[(next - at) as usize..][..len];
            if fill(self.from, into)? < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (self.now.at, self.now.len) = (next + len as u64, self.now.len - len as u64);
        }
        Ok(())
    }
}
