//! A second look at the files in the stop of an epoch, without any knowledge from before: for tests, it reads all of them.
//!
//! `HOLO_FILES_CHECK=1` compares every epoch with it, and refuses the epoch where they differ.

use crate::files::Written;
use holo_cfor::{Attribute, Captured, Delta, Here, Touched, Tree, compare};
use holo_image::{Blob, PAGE_BYTES, PageKey};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

const VARIABLE: &str = "HOLO_FILES_CHECK";
/// Differences that are named.
const NAMED_MAX: usize = 5;

/// Are epochs to be compared?
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == "1")
}

/// The files at a cut.
pub(crate) struct Witness {
    tree: Tree,
    /// Contents, by inode.
    contents: BTreeMap<u32, Blob>,
    /// What could not be read.
    failed: Option<String>,
}

impl Witness {
    /// Looks at all files while nobody writes.
    pub(crate) fn take(
        roots: &[PathBuf],
        written: &Written,
        excludes: &[PathBuf],
    ) -> Result<Self, holo_cfor::Error> {
        let tree = holo_cfor::scan(roots, &written.extra, excludes)?;
        let (mut contents, mut failed) = (BTreeMap::new(), None);
        let mut here = Here::new(&tree);
        for (inode, at) in tree.inodes.iter().zip(0u32..) {
            if !matches!(inode.kind, holo_cfor::Kind::File { .. }) {
                continue;
            }
            match here.open(at).and_then(|mut content| read(&mut content)) {
                Ok(blob) => drop(contents.insert(at, blob)),
                Err(cause) => failed = Some(format!("{cause}")),
            }
        }
        drop(here);
        Ok(Self { tree, contents, failed })
    }

    /// What of a capture is not as it was.
    pub(crate) fn differences(&self, captured: &Captured<Blob>) -> Option<String> {
        if let Some(cause) = &self.failed {
            return Some(format!("a file could not be read: {cause}"));
        }
        let touched = |a: u32, b: u32| {
            let (a_data, b_data) =
                (captured.tree.inodes[a as usize].data(), self.tree.inodes[b as usize].data());
            let (Some(blob), Some(other)) = (captured.contents.get(&a), self.contents.get(&b)) else {
                return Touched::Unknown;
            };
            if a_data == b_data && blob == other {
                return Touched::Ranges(holo_cfor::log::Ranges::new());
            }
            let extents =
                |data: &[holo_cfor::Extent]| data.iter().map(|one| (one.at, one.len)).collect::<Vec<_>>();
            match blob.differing_pages(&extents(a_data), other, &extents(b_data)) {
                Some(pages) => {
                    let mut ranges = holo_cfor::log::Ranges::new();
                    pages.iter().for_each(|page| ranges.insert(page * PAGE_BYTES as u64, PAGE_BYTES as u64));
                    Touched::Ranges(ranges)
                }
                None => Touched::Unknown,
            }
        };
        let deltas = compare(
            &captured.tree,
            &self.tree,
            |_| false,
            |a, b| Ok::<_, std::convert::Infallible>(touched(a, b)),
        );
        let Ok(mut deltas) = deltas;
        // File systems fill holes with zeros when they write back; also in the stop.
        deltas.retain(|delta| !(delta.bytes() == 0 && delta.attributes == [Attribute::Holes]));
        if deltas.is_empty() { None } else { Some(named(&deltas)) }
    }
}

fn named(deltas: &[Delta]) -> String {
    let all = deltas.iter().take(NAMED_MAX).map(|delta| {
        let attributes: Vec<&str> = delta.attributes.iter().map(|one| one.name()).collect();
        let path = String::from_utf8_lossy(&delta.path);
        let first = match &delta.touched {
            Touched::Ranges(ranges) => ranges.iter().next().map_or(0, |one| one.at),
            Touched::Unknown => 0,
        };
        format!(
            "{path} ({:?}, {:?} -> {:?} bytes, {} differ from {first} on, {})",
            delta.what,
            delta.size_before,
            delta.size,
            delta.bytes(),
            attributes.join(",")
        )
    });
    format!("{} files differ from their cut: {}", deltas.len(), all.collect::<Vec<_>>().join("; "))
}

/// The names of the pages of a content.
fn read(content: &mut impl Read) -> std::io::Result<Blob> {
    let mut keys = Vec::new();
    let mut len = 0;
    loop {
        let mut page = [0; PAGE_BYTES];
        let mut filled = 0;
        while filled < PAGE_BYTES {
            match content.read(&mut page[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        len += filled as u64;
        if filled > 0 {
            keys.push(PageKey::of(&page));
        }
        if filled < PAGE_BYTES {
            return Ok(Blob::of_keys(len, &keys));
        }
    }
}
