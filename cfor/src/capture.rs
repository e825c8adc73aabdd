//! Content of files: a quick stable copy of what changed while the application is stopped, its storage later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::access::{Dir, SELF, number};
use crate::change::{Change, Hint, Previous};
use crate::copy;
use crate::error::{Error, failed, to_path};
use crate::flags;
use crate::hold::{Held, Holder, Refused, Source};
use crate::leases::{Leases, NoLeases};
use crate::patch::{Part, Plan};
use crate::path::RelPath;
use crate::rest::{Keeper, Rest};
use crate::tree::{Extent, Inode, Kind, Remarks, Tree};
use crate::validate;

/// Where content goes.
pub trait ContentSink {
    /// What names stored content.
    type Content: Clone;

    /// Stores the `len` bytes that `data` yields.
    ///
    /// # Errors
    /// The store's own; the capture fails with it.
    fn put(&mut self, data: &mut dyn Read, len: u64) -> io::Result<Self::Content>;

    /// A content of `len` bytes will come, unless it cannot be read: for who looks on. Called only before contents are stored ahead.
    fn expect(&mut self, len: u64) {
        let _ = len;
    }

    /// Stores `parts` one after the other: of `base`, which is stored already, and of what `fresh` yields. Called only
    /// for files that [`Hint::Written`] or [`Hint::Stored`] was said of.
    ///
    /// # Errors
    /// The store's own; [`io::ErrorKind::Unsupported`] unless overridden.
    fn patch(
        &mut self,
        base: &Self::Content,
        parts: &[Part],
        fresh: &mut dyn Read,
    ) -> io::Result<Self::Content> {
        let _ = (base, parts, fresh);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where content comes from.
pub trait ContentSource {
    /// What names stored content.
    type Content;

    /// A reader of exactly the bytes that were stored.
    ///
    /// # Errors
    /// The store's own.
    fn open<'a>(&'a mut self, content: &'a Self::Content) -> io::Result<Box<dyn Read + 'a>>;
}

/// A tree with the content of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured<C> {
    /// Names, kinds, attributes.
    pub tree: Tree,
    /// Content of every regular file, by index in [`Tree::inodes`].
    pub contents: BTreeMap<u32, C>,
    /// Files (indices of inodes) whose attributes do not tell whether they changed since, see
    /// [`Hint::Mapped`] and [`Hint::Stored`].
    pub mapped: BTreeSet<u32>,
}

/// [`Captured`] as it was encoded before the attributes of inodes were: inode by inode.
#[derive(Deserialize)]
#[serde(try_from = "Rows<C>", bound = "C: Deserialize<'de>")]
pub struct CapturedByInode<C>(pub Captured<C>);

#[derive(Deserialize)]
struct Rows<C> {
    tree: validate::Rows,
    contents: BTreeMap<u32, C>,
    mapped: BTreeSet<u32>,
}

impl<C> TryFrom<Rows<C>> for CapturedByInode<C> {
    type Error = Error;

    fn try_from(rows: Rows<C>) -> Result<Self, Error> {
        let Rows { tree, contents, mapped } = rows;
        Ok(Self(Captured { tree: tree.try_into()?, contents, mapped }))
    }
}

impl<C> From<CapturedByInode<C>> for Captured<C> {
    fn from(old: CapturedByInode<C>) -> Self {
        old.0
    }
}

/// [`Captured`] as it was encoded before inodes had flags: they have none.
#[derive(Deserialize)]
#[serde(try_from = "Plain<C>", bound = "C: Deserialize<'de>")]
pub struct CapturedWithoutFlags<C>(pub Captured<C>);

#[derive(Deserialize)]
struct Plain<C> {
    tree: validate::Plain,
    contents: BTreeMap<u32, C>,
    mapped: BTreeSet<u32>,
}

impl<C> TryFrom<Plain<C>> for CapturedWithoutFlags<C> {
    type Error = Error;

    fn try_from(plain: Plain<C>) -> Result<Self, Error> {
        let Plain { tree, contents, mapped } = plain;
        Ok(Self(Captured { tree: tree.try_into()?, contents, mapped }))
    }
}

impl<C> From<CapturedWithoutFlags<C>> for Captured<C> {
    fn from(old: CapturedWithoutFlags<C>) -> Self {
        old.0
    }
}

impl<C> Captured<C> {
    /// Checks that the tree keeps its rules and that exactly its regular files have content.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule.
    pub fn validate(&self) -> Result<(), Error> {
        self.tree.validate()?;
        let is_file = |inode: &Inode| matches!(inode.kind, Kind::File { .. });
        let files = self.tree.inodes.iter().zip(0u32..).filter(|(inode, _)| is_file(inode)).map(|(_, at)| at);
        if !files.eq(self.contents.keys().copied()) {
            return Err(Error::invalid("files without content or content without a file", b""));
        }
        Ok(())
    }
}

/// Contents of a tree that was scanned here, as they are now.
pub struct Here<'a> {
    tree: &'a Tree,
    /// Root and entry of a name, by inode.
    names: BTreeMap<u32, (usize, usize)>,
    opener: Opener,
}

impl<'a> Here<'a> {
    /// Contents of `tree`.
    #[must_use]
    pub fn new(tree: &'a Tree) -> Self {
        let names = first_names(tree).into_iter();
        let names =
            names.map(|(root, entry)| (tree.roots[root].entries[entry].inode, (root, entry))).collect();
        Self { tree, names, opener: Opener::default() }
    }

    /// The data of a regular file as it was scanned; what it lacks by now is zeros.
    ///
    /// # Errors
    /// It cannot be opened, or is not the file any more that was scanned.
    pub fn open(&mut self, inode: u32) -> io::Result<impl Read + 'a> {
        self.open_with_flags(inode).map(|(content, _)| content)
    }

    /// The same, and the file's flags.
    pub(crate) fn open_with_flags(&mut self, inode: u32) -> io::Result<(impl Read + 'a, u32)> {
        let (root, entry) = *self.names.get(&inode).ok_or(io::ErrorKind::NotFound)?;
        let root = &self.tree.roots[root];
        let file = self.opener.open(&root.path, &root.entries[entry].path, Dir::read).map_err(|refused| {
            match refused {
                Refused::Source(what) => io::Error::other(what),
                Refused::Staging(cause) => cause,
            }
        })?;
        let wanted = &self.tree.inodes[inode as usize];
        if number(&fstat(&file)?) != (wanted.identity.dev, wanted.identity.ino) {
            return Err(io::Error::other("was replaced meanwhile"));
        }
        let flags = flags::of_file(&file);
        Ok((copy::RangeReader::new(file, wanted.data()), flags))
    }
}

/// What is to be stored for one file.
pub(crate) enum Piece<C> {
    Kept(C),
    Whole(Held, Vec<Extent>),
    Patch { base: C, parts: Vec<Part>, held: Held, fresh: Vec<Extent> },
}

/// A tree whose changed content is held apart: the application may go on.
pub struct Staged<C> {
    pub(crate) tree: Tree,
    /// Contents of files that were not looked at.
    kept: BTreeMap<u32, C>,
    pub(crate) pieces: BTreeMap<u32, Piece<C>>,
    mapped: BTreeSet<u32>,
    pub(crate) holder: Holder,
    /// What is to be read yet.
    pub(crate) rest: Vec<Rest>,
}

/// Where changed content is held.
pub struct Staging<'a> {
    /// A private directory is made in it.
    pub dir: &'a Path,
    /// Who keeps files as they are, so that they can be read later ([`Staged::read_rest`]).
    pub keeper: Option<&'a mut dyn Keeper>,
    /// Who has leases.
    pub leases: &'a dyn Leases,
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Staging<'a> {
    fn from(dir: &'a P) -> Self {
        Self { dir: dir.as_ref(), keeper: None, leases: &NoLeases }
    }
}

/// Copies what has changed since `previous` to a private directory in `staging`, by cloning where the file
/// system can. To be called while nothing writes; what is written by others meanwhile is taken as it is found.
///
/// A file that cannot be read becomes [`Kind::Left`], with a remark.
///
/// # Errors
/// [`Error::Io`] when the staging directory cannot be written to.
pub fn stage<'a, 's, C: Clone>(
    mut tree: Tree,
    previous: Option<&Captured<C>>,
    hint: &dyn Fn(&Inode) -> Hint<'a>,
    staging: impl Into<Staging<'s>>,
) -> Result<Staged<C>, Error> {
    let none = Tree::default();
    let index = Previous::new(previous.map_or(&none, |previous| &previous.tree));
    let mut stager = Stager::new(staging.into())?;
    for (root_at, entry_at) in first_names(&tree) {
        let entry = &tree.roots[root_at].entries[entry_at];
        let inode = tree.inode(entry);
        if !matches!(inode.kind, Kind::File { .. }) {
            continue;
        }
        let hint = hint(inode);
        let base = index.index_of(&inode.identity).and_then(|old| previous?.contents.get(&old));
        let change = index.change(inode, hint);
        let at = entry.inode;
        if let (Change::Same, Some(content)) = (&change, base) {
            stager.pieces.insert(at, Piece::Kept(content.clone()));
            if let Some((old, _)) = index.find(&inode.identity) {
                tree.inodes[at as usize].flags = old.flags;
            }
            continue;
        }
        let name = (tree.roots[root_at].path.clone(), entry.path.clone());
        stager.file(&mut tree, at, name, (change, hint.is_mapped()), base)?;
    }
    Ok(stager.finish(tree, BTreeMap::new()))
}

/// Holds the content of one file after the other.
pub(crate) struct Stager<'k, C> {
    holder: Holder,
    keeper: Option<&'k mut dyn Keeper>,
    leases: &'k dyn Leases,
    rest: Vec<Rest>,
    opener: Opener,
    pieces: BTreeMap<u32, Piece<C>>,
    mapped: BTreeSet<u32>,
    remarks: Remarks,
}

impl<'k, C: Clone> Stager<'k, C> {
    /// Holds content in a private directory in `staging`.
    pub(crate) fn new(staging: Staging<'k>) -> Result<Self, Error> {
        Ok(Self {
            holder: Holder::new(staging.dir)?,
            keeper: staging.keeper,
            leases: staging.leases,
            rest: Vec::new(),
            opener: Opener::default(),
            pieces: BTreeMap::new(),
            mapped: BTreeSet::new(),
            remarks: Remarks::default(),
        })
    }

    /// Holds what has become of the inode `at`, a file that has this root and path; `is_mapped` is kept with it.
    pub(crate) fn file(
        &mut self,
        tree: &mut Tree,
        at: u32,
        (root, path): (Vec<u8>, RelPath),
        (change, is_mapped): (Change, bool),
        base: Option<&C>,
    ) -> Result<(), Error> {
        if is_mapped {
            self.mapped.insert(at);
        }
        let patch = match (change, base) {
            (Change::Same, Some(content)) => {
                self.pieces.insert(at, Piece::Kept(content.clone()));
                return Ok(());
            }
            (Change::Written(plan), Some(base)) => Some((plan, base)),
            (Change::Same | Change::Written(_) | Change::Any, _) => None,
        };
        let inode = &tree.inodes[at as usize];
        let leased = self.leases.descriptor((inode.identity.dev, inode.identity.ino));
        // Whoever has a lease may give it up, and take another one, as soon as it runs again.
        if let Some(keeper) = self.keeper.as_deref_mut().filter(|_| leased.is_none()) {
            let fresh = patch.as_ref().map(|(plan, _)| plan.fresh.as_slice());
            let file = self.opener.open(&root, &path, Dir::refer).ok();
            if let Some(one) = file.and_then(|file| Rest::keep(at, file, inode, fresh, keeper)) {
                let held = Held::Rest;
                let piece = match patch {
                    Some((Plan { parts, fresh }, base)) => {
                        Piece::Patch { base: base.clone(), parts, held, fresh }
                    }
                    None => Piece::Whole(held, inode.data().to_vec()),
                };
                self.pieces.insert(at, piece);
                self.rest.push(one);
                return Ok(());
            }
        }
        let holder = &mut self.holder;
        let opened = match leased {
            Some(file) => Ok(Source::Holder(file)),
            None => self.opener.open(&root, &path, Dir::read).map(Source::Own),
        };
        let mut flags = 0;
        let held = opened.and_then(|file| {
            flags = flags::of_file(file.file());
            let Some((plan, base)) = patch else { return holder.take(&file, inode).map(whole) };
            match holder.take_ranges(&file, inode, &plan.fresh)? {
                Some(held) => Ok((
                    Piece::Patch { base: base.clone(), parts: plan.parts, held, fresh: plan.fresh },
                    None,
                )),
                // Somebody has changed it since the scan.
                None => holder.take(&file, inode).map(whole),
            }
        });
        match held {
            Ok((piece, now)) => {
                self.pieces.insert(at, piece);
                if let Some(now) = now {
                    tree.inodes[at as usize] = now;
                }
                tree.inodes[at as usize].flags = flags;
            }
            Err(Refused::Staging(cause)) => {
                return Err(Error::io("stage in", holder.dir.path().as_os_str().as_encoded_bytes())(cause));
            }
            Err(Refused::Source(cause)) => {
                self.remarks.add(&path.under(&root), format!("{cause}: left as it is on each node"));
                tree.inodes[at as usize].leave();
            }
        }
        Ok(())
    }

    /// All of it, with the contents of files that were not looked at.
    pub(crate) fn finish(self, mut tree: Tree, kept: BTreeMap<u32, C>) -> Staged<C> {
        self.remarks.append_to(&mut tree.remarks);
        let Self { holder, rest, pieces, mapped, .. } = self;
        Staged { tree, kept, pieces, mapped, holder, rest }
    }
}

/// A file as it was found when it was copied, as a piece.
fn whole<C>((held, now): (Held, Inode)) -> (Piece<C>, Option<Inode>) {
    (Piece::Whole(held, now.data().to_vec()), Some(now))
}

/// Root and entry of the first name of each inode.
fn first_names(tree: &Tree) -> Vec<(usize, usize)> {
    let mut seen = vec![false; tree.inodes.len()];
    let mut names = Vec::new();
    for (root_at, root) in tree.roots.iter().enumerate() {
        for (entry_at, entry) in root.entries.iter().enumerate() {
            if !std::mem::replace(&mut seen[entry.inode as usize], true) {
                names.push((root_at, entry_at));
            }
        }
    }
    names
}

/// Opens files by name, keeping the directory open that was used last.
#[derive(Default)]
struct Opener {
    at: Option<(Vec<u8>, RelPath, Dir)>,
}

impl Opener {
    fn open(
        &mut self,
        root: &[u8],
        entry: &RelPath,
        how: fn(&Dir, &[u8]) -> nix::Result<File>,
    ) -> Result<File, Refused> {
        let path = to_path(root);
        let refused = |cause| Refused::Source(failed("cannot be opened", cause));
        let Some((parent, name)) = entry.split() else {
            let name = path.file_name().map_or(SELF, |name| name.as_encoded_bytes());
            return Dir::open(path.parent().unwrap_or(&path))
                .and_then(|dir| how(&dir, name))
                .map_err(refused);
        };
        if self.at.as_ref().is_none_or(|(at, dir, _)| at != root || *dir != parent) {
            let dir = Dir::open(&path).and_then(|top| top.beneath(&parent)).map_err(refused)?;
            self.at = Some((root.to_vec(), parent, dir));
        }
        let dir = self.at.as_ref().map(|(_, _, dir)| dir);
        dir.ok_or(Errno::ENOENT).and_then(|dir| how(dir, name)).map_err(refused)
    }
}

impl<C> Staged<C> {
    /// The tree as it will be captured.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Files whose content will be stored anew.
    #[must_use]
    pub fn changed(&self) -> usize {
        self.pieces.values().filter(|piece| !matches!(piece, Piece::Kept(_))).count()
    }

    /// Bytes that were cloned or copied.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.holder.bytes
    }

    /// Stores what is held, of which nothing must be left to be read. The application may run meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`] with the file that the sink refused.
    pub fn store<S: ContentSink<Content = C>>(self, sink: &mut S) -> Result<Captured<C>, Error> {
        let Self { tree, kept: mut contents, pieces, mapped, holder, .. } = self;
        // Of a tree that was brought up to date nobody has done so yet.
        tree.validate()?;
        for (at, piece) in pieces {
            let content = match piece {
                Piece::Kept(content) => Ok(content),
                Piece::Whole(held, data) => held.read(&data, |reader, len| sink.put(reader, len)),
                Piece::Patch { base, parts, held, fresh } => {
                    held.read(&fresh, |reader, _| sink.patch(&base, &parts, reader))
                }
            };
            let name = || tree.entries().find(|(_, entry)| entry.inode == at);
            let path = || name().map(|(root, entry)| entry.path.under(&root.path)).unwrap_or_default();
            contents.insert(at, content.map_err(|cause| Error::io("store", &path())(cause))?);
        }
        drop(holder);
        Ok(Captured { tree, contents, mapped })
    }
}

/// [`stage`] and [`Staged::store`] in one, for trees that nothing writes to.
///
/// # Errors
/// As for both.
pub fn capture<S: ContentSink>(
    tree: Tree,
    previous: Option<&Captured<S::Content>>,
    sink: &mut S,
    staging: &Path,
) -> Result<Captured<S::Content>, Error> {
    stage(tree, previous, &|_| Hint::Attributes, staging)?.store(sink)
}
