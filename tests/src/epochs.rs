//! What is in a node's store: epochs read from its files, whether or not its agent runs.

use crate::node::Node;
use holo_api::files;
use holo_cfor::{Captured, CapturedByInode, CapturedWithoutFlags, ContentSource, Difference, Targets};
use holo_image::{AppStore, Blob, EpochReader, Store};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

struct Source<'a>(&'a EpochReader);

impl ContentSource for Source<'_> {
    type Content = Blob;

    fn open<'a>(&'a mut self, content: &Blob) -> io::Result<Box<dyn Read + 'a>> {
        let mut bytes = Vec::new();
        self.0.read_blob(content, &mut bytes).map_err(io::Error::other)?;
        Ok(Box::new(Cursor::new(bytes)))
    }
}

fn store(node: &Node, app: &str) -> AppStore {
    let found = Store::inspect(node.outside("state")).app(app);
    found.unwrap_or_else(|e| panic!("the store of {}: {e}", node.name))
}

/// An epoch of an application in a node's store.
///
/// # Panics
/// When it is not there or cannot be read.
#[must_use]
pub fn open(node: &Node, app: &str, epoch: u64) -> EpochReader {
    store(node, app).open_epoch(epoch).unwrap_or_else(|e| panic!("epoch {epoch} on {}: {e}", node.name))
}

/// Numbers of the sealed epochs in a node's store, none of which is damaged.
///
/// # Panics
/// When one is.
#[must_use]
pub fn sealed(node: &Node, app: &str) -> Vec<u64> {
    if !node.outside("state/apps").join(app).exists() {
        return Vec::new();
    }
    let store = store(node, app);
    let damaged = store.damaged();
    assert!(damaged.is_empty(), "damaged on {}: {damaged:?}", node.name);
    store.epochs().iter().map(|meta| meta.epoch).collect()
}

/// Puts the files under `root` in an epoch to `into`.
///
/// # Panics
/// When the root is not in the epoch, or something of it cannot be put there.
pub fn apply(epoch: &EpochReader, root: &Path, into: &Path) {
    let mut captured: Captured<Blob> =
        files::trees::<_, CapturedWithoutFlags<Blob>, CapturedByInode<Blob>>(epoch)
            .unwrap_or_else(|e| panic!("trees: {e}"));
    for (at, blob) in &mut captured.contents {
        let identity = captured.tree.inodes[*at as usize].identity;
        files::complete(epoch, identity.dev, identity.ino, blob);
    }
    let root = root.as_os_str().as_encoded_bytes().to_vec();
    assert!(captured.tree.roots.iter().any(|one| one.path == root), "the root is in the epoch");
    let targets = Targets { map: HashMap::from([(root, into.to_owned())]), ..Targets::default() };
    let report = holo_cfor::apply(&captured, &mut Source(epoch), &targets);
    let report = report.unwrap_or_else(|e| panic!("apply: {e}"));
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

/// Was a hole filled with zeros by the kernel, which does so when it writes back what is next to it?
fn is_kernels(difference: &Difference, a: &Path, b: &Path) -> bool {
    let path = std::ffi::OsStr::from_bytes(difference.path.as_bytes());
    let bytes = |top: &Path| {
        // Access times are compared, too.
        let file = fs::File::options().read(true).custom_flags(libc::O_NOATIME).open(top.join(path));
        let mut bytes = Vec::new();
        file.ok()?.read_to_end(&mut bytes).ok().map(|_| bytes)
    };
    difference.what.starts_with("data is at") && bytes(a).is_some_and(|one| bytes(b) == Some(one))
}

/// How two trees differ, but for holes that only the kernel made.
///
/// # Panics
/// When one cannot be read.
#[must_use]
pub fn differences(a: &Path, b: &Path) -> Vec<Difference> {
    let found = holo_cfor::verify(a, b);
    let mut found = found.unwrap_or_else(|e| panic!("{} and {}: {e}", a.display(), b.display()));
    found.retain(|one| !is_kernels(one, a, b));
    found
}
