//! How inodes are encoded: attribute by attribute, not inode by inode.
//!
//! Trees are stored in pages, and a page that is as it was before is not stored again. Of a file that was written to, its times
//! are others, and of most files nothing else: side by side these take 24 bytes for each, and leave the pages with all else alone.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::tree::{Identity, Inode, Kind, Time, Xattr};

/// One attribute of all inodes.
struct Column<'a, F>(&'a [Inode], F);

impl<'a, T: Serialize, F: Fn(&'a Inode) -> T> Serialize for Column<'a, F> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(self.0.iter().map(&self.1))
    }
}

fn column<'a, T, F: Fn(&'a Inode) -> T>(inodes: &'a [Inode], of: F) -> Column<'a, F> {
    Column(inodes, of)
}

pub(crate) fn serialize<S: Serializer>(inodes: &[Inode], out: S) -> Result<S::Ok, S::Error> {
    (
        column(inodes, |inode| &inode.kind),
        column(inodes, |inode| inode.mode),
        column(inodes, |inode| (inode.uid, inode.gid)),
        column(inodes, |inode| inode.atime),
        column(inodes, |inode| inode.mtime),
        column(inodes, |inode| &inode.xattrs),
        column(inodes, |inode| (inode.identity.dev, inode.identity.ino)),
        column(inodes, |inode| inode.identity.ctime),
    )
        .serialize(out)
}

/// All attributes, as they are encoded.
type Columns =
    (Vec<Kind>, Vec<u32>, Vec<(u32, u32)>, Vec<Time>, Vec<Time>, Vec<Vec<Xattr>>, Vec<(u64, u64)>, Vec<Time>);

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Inode>, D::Error> {
    let (kinds, modes, owners, atimes, mtimes, xattrs, numbers, ctimes) = Columns::deserialize(from)?;
    let others =
        [modes.len(), owners.len(), atimes.len(), mtimes.len(), xattrs.len(), numbers.len(), ctimes.len()];
    if others.iter().any(|len| *len != kinds.len()) {
        return Err(D::Error::custom("attributes of some inodes only"));
    }
    let times = atimes.into_iter().zip(mtimes).zip(ctimes);
    let names = modes.into_iter().zip(owners).zip(numbers);
    let all = kinds.into_iter().zip(xattrs).zip(names.zip(times));
    let inode = |((kind, xattrs), (((mode, (uid, gid)), (dev, ino)), ((atime, mtime), ctime)))| {
        let identity = Identity { dev, ino, ctime };
        Inode { kind, mode, uid, gid, atime, mtime, xattrs, identity }
    };
    Ok(all.map(inode).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bincode::Options;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Coded(#[serde(with = "super")] Vec<Inode>);

    fn options() -> impl Options {
        bincode::DefaultOptions::new().with_fixint_encoding()
    }

    /// Inodes that differ in everything.
    fn inodes(count: u64) -> Vec<Inode> {
        let time = |at: u64| Time { seconds: at as i64 - 5, nanos: at as u32 };
        let inode = |at: u64| Inode {
            kind: if at.is_multiple_of(3) {
                Kind::Dir
            } else {
                Kind::Symlink { target: at.to_le_bytes().to_vec() }
            },
            mode: at as u32,
            uid: at as u32 + 1,
            gid: at as u32 + 2,
            atime: time(at + 3),
            mtime: time(at + 4),
            xattrs: (0..at % 3).map(|n| Xattr { name: vec![n as u8], value: vec![at as u8] }).collect(),
            identity: Identity { dev: at + 5, ino: at + 6, ctime: time(at + 7) },
        };
        (0..count).map(inode).collect()
    }

    // Goal: nothing is lost or mixed up, and inodes of which an attribute is missing are refused. Method: inodes that differ in all, a
    // column that is shorter.
    #[test]
    fn attributes_come_back_to_their_inodes() {
        let coded = Coded(inodes(100));
        let bytes = options().serialize(&coded).unwrap();
        assert_eq!(options().deserialize::<Coded>(&bytes).unwrap(), coded);
        let mut parts: Columns = options().deserialize(&bytes).unwrap();
        parts.7.pop();
        let short = options().serialize(&parts).unwrap();
        let why = options().deserialize::<Coded>(&short).unwrap_err().to_string();
        assert!(why.contains("some inodes only"), "{why}");
    }

    // Goal: of files that were written to little is encoded anew. Method: a tenth of 10,000 inodes gets other times; pages that differ.
    #[test]
    fn a_tenth_with_other_times_changes_few_pages() {
        let mut all = inodes(10_000);
        let before = options().serialize(&Coded(all.clone())).unwrap();
        for inode in &mut all[3000..4000] {
            (inode.mtime.seconds, inode.identity.ctime.seconds) = (77, 78);
        }
        let after = options().serialize(&Coded(all)).unwrap();
        assert_eq!(before.len(), after.len());
        let changed = before.chunks(4096).zip(after.chunks(4096)).filter(|(one, other)| one != other).count();
        assert!(changed <= 2 * (1000 * 12 / 4096 + 2), "{changed} pages");
    }
}
