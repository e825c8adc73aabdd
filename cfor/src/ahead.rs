//! Contents that are stored while the application runs, before the first look at it in a stop: it then finds most of them as they
//! are.
//!
//! All is read as it is found, blurred; then the tree is scanned again and followed from there on, and what has changed since the first
//! scan is read once more. What comes later is heard of, recorded, or shown by attributes, as from one epoch to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::capture::{Captured, ContentSink, Here};
use crate::change::{Change, Hint, Previous};
use crate::error::Error;
use crate::follow::{Followed, Look};
use crate::leases::{Leases, Opening};
use crate::scan::{self, Avoided, Scanner};
use crate::tree::{Inode, Kind, Tree};
use crate::watch::Number;

/// What was stored ahead.
#[derive(Debug)]
pub struct Ahead<C> {
    /// Trees, and the contents of their files but for those that could not be read.
    pub captured: Captured<C>,
    /// Files without content, by device and inode number: they must be looked at.
    pub unread: BTreeSet<Number>,
}

/// Stores all contents, while others may write. None: `goes_on`, which is asked before each file, said no, or somebody takes a lease.
///
/// # Errors
/// As for [`crate::scan()`]; [`Error::Io`] with the file that the sink refused.
pub fn ahead<S: ContentSink>(
    followed: &mut Followed,
    look: &Look<'_>,
    sink: &mut S,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<Ahead<S::Content>>, Error> {
    let (avoided, nothing) = (Avoided::of(look), Tree::default());
    let (mut first, _) = scan::all(Scanner::new(&avoided, Previous::new(&nothing), None), look.roots, &[])?;
    let everything = |_: u32, _: &Inode| None;
    let Some(contents) = read(&mut first, &everything, sink, (look.leases, goes_on))? else {
        return Ok(None);
    };
    let mut tree = followed.scan(&Look { extra_files: &[], ..*look }, &first)?;
    let index = Previous::new(&first);
    let as_before = |_: u32, inode: &Inode| {
        let old = index.index_of(&inode.identity)?;
        let is_same = index.change(inode, Hint::Attributes) == Change::Same;
        contents.get(&old).filter(|_| is_same).cloned()
    };
    let Some(contents) = read(&mut tree, &as_before, sink, (look.leases, goes_on))? else { return Ok(None) };
    followed.settle();
    let is_unread =
        |(inode, at): &(&Inode, u32)| matches!(inode.kind, Kind::File { .. }) && !contents.contains_key(at);
    let unread = tree.inodes.iter().zip(0..).filter(is_unread);
    let unread = unread.map(|(inode, _)| (inode.identity.dev, inode.identity.ino)).collect();
    Ok(Some(Ahead { captured: Captured { tree, contents, mapped: BTreeSet::new() }, unread }))
}

/// Contents of the files of a tree, by inode: known ones, and what is read now, with which the tree gets their flags.
fn read<S: ContentSink>(
    tree: &mut Tree,
    known: &dyn Fn(u32, &Inode) -> Option<S::Content>,
    sink: &mut S,
    (leases, goes_on): (&dyn Leases, &dyn Fn() -> bool),
) -> Result<Option<BTreeMap<u32, S::Content>>, Error> {
    let bytes = |inode: &Inode| inode.data().iter().map(|extent| extent.len).sum();
    let mut here = Here::new(tree);
    let (mut contents, mut wanted, mut flags) = (BTreeMap::new(), Vec::new(), Vec::new());
    // In the order of names: one directory after the other.
    let mut seen = vec![false; tree.inodes.len()];
    for (root, entry) in tree.entries() {
        let (at, inode) = (entry.inode, tree.inode(entry));
        let Kind::File { .. } = inode.kind else { continue };
        if std::mem::replace(&mut seen[at as usize], true) {
            continue;
        }
        if let Some(content) = known(at, inode) {
            contents.insert(at, content);
            continue;
        }
        sink.expect(bytes(inode));
        wanted.push((root, entry));
    }
    for (root, entry) in wanted {
        let (at, inode) = (entry.inode, tree.inode(entry));
        let Some(opening) = Opening::begin(leases).filter(|_| goes_on()) else { return Ok(None) };
        // Gone since, or not ours to read: found out, and said, when it is looked at.
        let Ok((file, with)) = here.open_with_flags(at) else { continue };
        flags.push((at, with));
        let mut file = Failing { inner: file, opening: &opening, failed: false };
        match sink.put(&mut file, bytes(inode)) {
            Ok(content) => {
                contents.insert(at, content);
            }
            Err(_) if file.failed => {}
            Err(cause) => return Err(Error::io("store", &entry.path.under(&root.path))(cause)),
        }
    }
    drop(here);
    for (at, flags) in flags {
        tree.inodes[at as usize].flags = flags;
    }
    Ok(Some(contents))
}

/// Tells a file that cannot be read from a store that cannot be written to.
struct Failing<'a, R> {
    inner: R,
    opening: &'a Opening<'a>,
    failed: bool,
}

impl<R: io::Read> io::Read for Failing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = if self.opening.is_wanted() {
            Err(io::Error::other("a lease is taken"))
        } else {
            self.inner.read(buffer)
        };
        read.inspect_err(|_| self.failed = true)
    }
}
