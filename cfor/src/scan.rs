//! Reads names, kinds and attributes of all below the roots. Content is not read here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag};

use crate::access::{Dir, SELF, identity, is, number, times};
use crate::apply::is_temporary;
use crate::attributes;
use crate::change::{Index, Previous, is_untouched};
use crate::copy;
use crate::error::{Error, failed, to_path};
use crate::flags;
use crate::follow::Look;
use crate::leases::{Leases, NoLeases, Opening};
use crate::path::RelPath;
use crate::tree::{Entry, Extent, Inode, Kind, Remarks, Root, Time, Tree, Xattr};
use crate::validate::{ENTRIES_MAX, ROOTS_MAX};
use crate::watch::Watch;

/// Scans directories with all below them, and single files.
///
/// A root that is a symbolic link, or is reached through one, is scanned where it leads to and has that path
/// in the tree. Below a root no link is followed and no mount point is crossed. `excludes` are absolute paths
/// left out with all below them. What cannot be replicated is [`Kind::Left`], with a remark.
///
/// # Errors
/// [`Error::Io`] when a root exists but cannot be read, [`Error::Invalid`] past a bound. A root that does not
/// exist is a remark.
pub fn scan(roots: &[PathBuf], extra_files: &[PathBuf], excludes: &[PathBuf]) -> Result<Tree, Error> {
    scan_since(roots, extra_files, excludes, &Tree::default())
}

/// [`scan`], sparing what a previous scan knows of unchanged files.
///
/// # Errors
/// As for [`scan`].
pub fn scan_since(
    roots: &[PathBuf],
    extra_files: &[PathBuf],
    excludes: &[PathBuf],
    previous: &Tree,
) -> Result<Tree, Error> {
    let avoided = Avoided::new(excludes, &NoLeases);
    let scanner = Scanner { asks: true, ..Scanner::new(&avoided, Previous::new(previous), None) };
    all(scanner, roots, extra_files).map(|(tree, _)| tree)
}

/// What is not looked at, and what must not be opened.
pub(crate) struct Avoided<'a> {
    excludes: HashSet<Vec<u8>>,
    leases: &'a dyn Leases,
}

impl<'a> Avoided<'a> {
    pub(crate) fn new(excludes: &[PathBuf], leases: &'a dyn Leases) -> Self {
        let excludes = excludes.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        Self { excludes, leases }
    }

    pub(crate) fn of(look: &Look<'a>) -> Self {
        Self::new(look.excludes, look.leases)
    }
}

/// Scans all, and gives the inodes of several names, too.
pub(crate) fn all(
    mut scanner: Scanner<'_>,
    roots: &[PathBuf],
    extra_files: &[PathBuf],
) -> Result<Scanned, Error> {
    let mut paths = Vec::new();
    for path in roots.iter().chain(extra_files) {
        match resolve(path) {
            Ok(path) => paths.push(path.into_os_string().into_vec()),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                scanner.remarks.add(path.as_os_str().as_bytes(), "does not exist");
            }
            Err(cause) => return Err(Error::io("scan", path.as_os_str().as_bytes())(cause)),
        }
    }
    // Containers come before what they contain.
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        scanner.root(path)?;
    }
    let (tree, linked) = scanner.finish();
    tree.validate()?;
    Ok((tree, linked))
}

/// Where a root is: links are followed on the way to it; a single file may be a link itself.
pub(crate) fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let followed = path.canonicalize();
    if matches!(&followed, Ok(target) if target.is_dir()) {
        return followed;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.is_absolute() => {
            let path = parent.canonicalize()?.join(name);
            path.symlink_metadata().map(|_| path)
        }
        _ => Err(std::io::Error::from(std::io::ErrorKind::InvalidInput)),
    }
}

/// A tree, and its inodes of several names by device and number.
pub(crate) type Scanned = (Tree, Index);

pub(crate) struct Scanner<'a> {
    tree: Tree,
    avoided: &'a Avoided<'a>,
    /// Inodes with several names.
    linked: Index,
    previous: Previous<'a>,
    remarks: Remarks,
    entries: usize,
    /// Hears of changes in all directories from before they are listed.
    watch: Option<&'a Watch>,
    /// Files are opened to ask for their flags. Else who reads them does that (`crate::flags`).
    asks: bool,
    /// Flags of a directory that is looked at alone, if it was open before.
    pub(crate) known_flags: Option<u32>,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(avoided: &'a Avoided<'a>, previous: Previous<'a>, watch: Option<&'a Watch>) -> Self {
        Self {
            tree: Tree { taken_at: Time::now(), ..Tree::default() },
            avoided,
            linked: HashMap::new(),
            previous,
            remarks: Remarks::default(),
            entries: 0,
            watch,
            asks: false,
            known_flags: None,
        }
    }

    /// What was scanned, and inodes of several names.
    pub(crate) fn finish(mut self) -> Scanned {
        self.tree.remarks = self.remarks.finish();
        (self.tree, self.linked)
    }

    /// Scans the name `name` in `dir`, whose full path is `full`, as a root; with all below it if it is `deep`.
    pub(crate) fn name(
        &mut self,
        dir: &Dir,
        (name, stat): (&[u8], &FileStat),
        home: u64,
        full: Vec<u8>,
        deep: bool,
    ) -> Result<(), Error> {
        let inode = self.inode(dir, name, stat, home, &full);
        let mut root = Root { path: full, entries: vec![Entry { path: RelPath::default(), inode }] };
        if deep && self.tree.inodes[inode as usize].kind == Kind::Dir {
            let top = dir.child(name).map_err(|cause| Error::io("scan", &root.path)(cause))?;
            self.walk(&top, stat, &mut root)?;
            root.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        }
        self.tree.roots.push(root);
        Ok(())
    }

    pub(crate) fn root(&mut self, path: Vec<u8>) -> Result<(), Error> {
        if self.tree.roots.len() >= ROOTS_MAX {
            return Err(Error::invalid("too many roots", &path));
        }
        if is_scanned(&self.tree, &path) {
            return Ok(());
        }
        let known = to_path(&path);
        if known.ancestors().any(|above| self.avoided.excludes.contains(above.as_os_str().as_bytes())) {
            self.remarks.add(&path, "excluded");
            return Ok(());
        }
        let mut root = Root { path, entries: Vec::new() };
        let is_dir = known.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        let home = if is_dir { Some(known.as_path()) } else { known.parent() };
        let name = if is_dir { SELF } else { known.file_name().unwrap_or_default().as_bytes() };
        let failed = |cause: Errno| Error::io("scan", &root.path)(cause);
        let dir = Dir::open(home.unwrap_or(&known)).map_err(failed)?;
        let stat = dir.stat(name).map_err(failed)?;
        let inode = self.inode(&dir, name, &stat, stat.st_dev, &root.path);
        root.entries.push(Entry { path: RelPath::default(), inode });
        if is_dir {
            self.walk(&dir, &stat, &mut root)?;
        }
        root.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.tree.roots.push(root);
        Ok(())
    }

    fn walk(&mut self, top: &Dir, top_stat: &FileStat, root: &mut Root) -> Result<(), Error> {
        let mut queue = VecDeque::from([(RelPath::default(), 0)]);
        while let Some((path, at)) = queue.pop_front() {
            let listed = top.beneath(&path).and_then(|dir| {
                if let Some(watch) = self.watch {
                    let (path, inode) = (&root.entries[at].path, root.entries[at].inode as usize);
                    watch.add(&dir, &self.tree.inodes[inode].identity);
                    // It may have changed since it was looked at, of which nobody hears.
                    let now = dir.stat(SELF)?;
                    if identity(&now) != self.tree.inodes[inode].identity {
                        let full = path.under(&root.path);
                        self.tree.inodes[inode] = self.look(&dir, SELF, &now, top_stat.st_dev, &full);
                    }
                }
                dir.names().map(|names| (dir, names))
            });
            let (dir, names) = match listed {
                Ok(listed) => listed,
                Err(cause) => {
                    let why = if cause == Errno::EXDEV {
                        "is a mount point: left as it is on each node".into()
                    } else {
                        failed("cannot be listed", cause)
                    };
                    self.remarks.add(&path.under(&root.path), why);
                    let entry: &Entry = &root.entries[at];
                    self.tree.inodes[entry.inode as usize].leave();
                    continue;
                }
            };
            for name in names.iter().filter(|name| !is_temporary(name)) {
                let Some(path) = path.join(name) else {
                    self.remarks.add(&path.under(&root.path), "holds a path that is too long: left out");
                    continue;
                };
                let full = path.under(&root.path);
                // Gone since it was listed: other programs may work here too.
                let Ok(stat) = dir.stat(name) else { continue };
                self.entries += 1;
                if self.entries >= ENTRIES_MAX {
                    return Err(Error::invalid("too many entries", &full));
                }
                let inode = self.inode(&dir, name, &stat, top_stat.st_dev, &full);
                if self.tree.inodes[inode as usize].kind == Kind::Dir {
                    queue.push_back((path.clone(), root.entries.len()));
                }
                root.entries.push(Entry { path, inode });
            }
        }
        Ok(())
    }

    /// The index of the inode that `name` in `dir` is.
    fn inode(&mut self, dir: &Dir, name: &[u8], stat: &FileStat, home: u64, full: &[u8]) -> u32 {
        let next = u32::try_from(self.tree.inodes.len()).unwrap_or(u32::MAX);
        let several = stat.st_nlink > 1 && !is(stat, SFlag::S_IFDIR);
        if several && let Some(known) = self.linked.get(&number(stat)) {
            return *known;
        }
        let inode = self.look(dir, name, stat, home, full);
        if several {
            self.linked.insert(number(stat), next);
        }
        self.tree.inodes.push(inode);
        next
    }

    /// What `name` in `dir` is.
    fn look(&mut self, dir: &Dir, name: &[u8], stat: &FileStat, home: u64, full: &[u8]) -> Inode {
        let (atime, mtime, _) = times(stat);
        let mut inode = Inode {
            kind: Kind::Left,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            atime,
            mtime,
            xattrs: Vec::new(),
            flags: 0,
            identity: identity(stat),
        };
        if self.avoided.excludes.contains(full) {
            // On purpose, so no remark.
        } else if stat.st_dev != home {
            self.remarks.add(full, "is a mount point: left as it is on each node");
        } else {
            let mut unread = Vec::new();
            match self.kind(dir, name, stat, &inode, &mut unread) {
                Ok((kind, xattrs)) => {
                    (inode.kind, inode.xattrs) = (kind, xattrs);
                    inode.flags = self.flags(dir, name, &inode);
                }
                Err(why) => self.remarks.add(full, why),
            }
            unread.into_iter().for_each(|what| self.remarks.add(full, what));
        }
        inode
    }

    /// Flags of a directory, and of a file if they are asked for here. What cannot be opened has none.
    fn flags(&self, dir: &Dir, name: &[u8], inode: &Inode) -> u32 {
        let asks = match &inode.kind {
            Kind::Dir => true,
            Kind::File { .. } => self.asks,
            Kind::Symlink { .. } | Kind::Fifo | Kind::Socket | Kind::Left => return 0,
        };
        let known = self.previous.find(&inode.identity);
        match known.filter(|(old, taken_at)| is_untouched(old, *taken_at, inode)) {
            Some((old, _)) if flags::rules(&inode.kind, old.flags).is_ok() => old.flags,
            _ if inode.kind == Kind::Dir && self.known_flags.is_some() => self.known_flags.unwrap_or(0),
            _ if asks => dir.flags_of(name, inode.kind == Kind::Dir).unwrap_or(0),
            _ => 0,
        }
    }

    fn kind(
        &self,
        dir: &Dir,
        name: &[u8],
        stat: &FileStat,
        inode: &Inode,
        unread: &mut Vec<String>,
    ) -> Result<(Kind, Vec<Xattr>), String> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let known = self.previous.find(&inode.identity).filter(|(old, taken_at)| {
            is_untouched(old, *taken_at, inode)
                && matches!(&old.kind, Kind::File { size: s, .. } if *s == size)
        });
        if let Some((known, _)) = known {
            return Ok((known.kind.clone(), known.xattrs.clone()));
        }
        let mut with_xattrs = |kind: Kind| {
            let mut left_out = |key: &[u8], why: &str| {
                unread.push(format!("attribute {} is left out: {why}", String::from_utf8_lossy(key)));
            };
            let mut found = match dir.xattrs(name, &mut |key, cause| left_out(key, cause.desc())) {
                // Attributes need the right to read; whether content can be read is found out when it is.
                Err(Errno::EACCES | Errno::EPERM) => Vec::new(),
                other => other.map_err(|cause| failed("attributes cannot be read: left out", cause))?,
            };
            // Not every file system keeps the rules that others can rely on.
            found.retain(|xattr| {
                attributes::rules(&kind, xattr).inspect_err(|why| left_out(&xattr.name, why)).is_ok()
            });
            Ok((kind, found))
        };
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => {
                let data = data(dir, name, stat, size, self.avoided.leases);
                let data = data.map_err(|e| failed("holes cannot be found: left out", e))?;
                with_xattrs(Kind::File { size, data })
            }
            SFlag::S_IFDIR => with_xattrs(Kind::Dir),
            SFlag::S_IFLNK => {
                let target = readlinkat(dir, name).map_err(|e| failed("cannot be read: left out", e))?;
                with_xattrs(Kind::Symlink { target: target.into_vec() })
            }
            SFlag::S_IFIFO => with_xattrs(Kind::Fifo),
            SFlag::S_IFSOCK => with_xattrs(Kind::Socket),
            SFlag::S_IFCHR | SFlag::S_IFBLK => Err("is a device: left out".into()),
            _ => Err("is of an unknown kind: left out".into()),
        }
    }
}

/// Whether a root of `tree` has this path and replicates it.
pub(crate) fn is_scanned(tree: &Tree, path: &[u8]) -> bool {
    tree.roots.iter().any(|root| {
        let below = path.strip_prefix(root.path.as_slice());
        let below = below.and_then(|p| p.strip_prefix(b"/").or(root.path.ends_with(b"/").then_some(p)));
        let found = below.and_then(RelPath::new).and_then(|below| root.find(&below));
        found.is_some_and(|at| tree.inode(&root.entries[at]).kind != Kind::Left)
    })
}

/// Bytes up to which a file with just the blocks that its size asks for is not opened to look for holes: there are many, and each costs
/// 8 us of a stop. With other blocks, of attributes, it may have a hole nevertheless, which is data then.
const UNASKED_BYTES: u64 = 64 << 10;
/// Of most file systems.
const BLOCK_BYTES: u64 = 4096;

/// Where a file has data. Of one with a lease holes are not asked for.
///
/// Blocks enough for its size say little: those of attributes, of the map of extents and beyond the end count, too. But where
/// they all are within its size, what looks like a hole is only reserved (`fallocate`), and stays so if it is data elsewhere.
pub(crate) fn data(
    dir: &Dir,
    name: &[u8],
    stat: &FileStat,
    size: u64,
    leases: &dyn Leases,
) -> nix::Result<Vec<Extent>> {
    let is_leased = leases.descriptor(number(stat)).is_some();
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    let has_blocks = allocated >= size;
    let is_unasked = size <= UNASKED_BYTES && allocated == size.next_multiple_of(BLOCK_BYTES);
    if is_leased || size == 0 || is_unasked {
        return Ok(copy::whole(size));
    }
    let Some(_opening) = Opening::begin(leases) else { return Ok(copy::whole(size)) };
    let file = match dir.read(name) {
        Ok(file) => file,
        // Found out, and said, when its content is read.
        Err(_) if has_blocks => return Ok(copy::whole(size)),
        Err(Errno::EACCES) => return Ok(copy::whole(size)),
        Err(cause) => return Err(cause),
    };
    let found = copy::extents(&file, size)?;
    let is_reserved = has_blocks && found != copy::whole(size) && copy::is_allocated(&file, size);
    Ok(if is_reserved { copy::whole(size) } else { found })
}
