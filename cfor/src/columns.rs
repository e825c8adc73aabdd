//! How inodes are encoded: attribute by attribute, not inode by inode.
//!
//! Trees are stored in pages, and a page that is as it was before is not stored again. Of a file that was written to, its times
//! are others, and of most files nothing else: side by side these take 24 bytes for each, and leave the pages with all else alone.

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
        column(inodes, |inode| inode.flags),
    )
        .serialize(out)
}

/// All attributes, as they are encoded.
type Columns = (
    Vec<Kind>,
    Vec<u32>,
    Vec<(u32, u32)>,
    Vec<Time>,
    Vec<Time>,
    Vec<Vec<Xattr>>,
    Vec<(u64, u64)>,
    Vec<Time>,
    Vec<u32>,
);
/// The same before there were flags.
type OldColumns =
    (Vec<Kind>, Vec<u32>, Vec<(u32, u32)>, Vec<Time>, Vec<Time>, Vec<Vec<Xattr>>, Vec<(u64, u64)>, Vec<Time>);

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Inode>, D::Error> {
    let (kinds, modes, owners, atimes, mtimes, xattrs, numbers, ctimes, flags) = Columns::deserialize(from)?;
    let mut all = joined((kinds, modes, owners, atimes, mtimes, xattrs, numbers, ctimes))?;
    if flags.len() != all.len() {
        return Err(short());
    }
    all.iter_mut().zip(flags).for_each(|(inode, flags)| inode.flags = flags);
    Ok(all)
}

fn short<E: serde::de::Error>() -> E {
    E::custom("attributes of some inodes only")
}

fn joined<E: serde::de::Error>(columns: OldColumns) -> Result<Vec<Inode>, E> {
    let (kinds, modes, owners, atimes, mtimes, xattrs, numbers, ctimes) = columns;
    let others =
        [modes.len(), owners.len(), atimes.len(), mtimes.len(), xattrs.len(), numbers.len(), ctimes.len()];
    if others.iter().any(|len| *len != kinds.len()) {
        return Err(short());
    }
    let times = atimes.into_iter().zip(mtimes).zip(ctimes);
    let names = modes.into_iter().zip(owners).zip(numbers);
    let all = kinds.into_iter().zip(xattrs).zip(names.zip(times));
    let inode = |((kind, xattrs), (((mode, (uid, gid)), (dev, ino)), ((atime, mtime), ctime)))| {
        let identity = Identity { dev, ino, ctime };
        Inode { kind, mode, uid, gid, atime, mtime, xattrs, flags: 0, identity }
    };
    Ok(all.map(inode).collect())
}

/// Inodes as they were encoded before there were flags.
pub(crate) struct WithoutFlags(pub(crate) Vec<Inode>);

impl<'de> Deserialize<'de> for WithoutFlags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        joined(OldColumns::deserialize(from)?).map(Self)
    }
}

/// An inode as it was encoded before that was done attribute by attribute.
#[derive(Deserialize)]
pub(crate) struct Row {
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    atime: Time,
    mtime: Time,
    xattrs: Vec<Xattr>,
    identity: Identity,
}

impl From<Row> for Inode {
    fn from(row: Row) -> Self {
        let Row { kind, mode, uid, gid, atime, mtime, xattrs, identity } = row;
        Self { kind, mode, uid, gid, atime, mtime, xattrs, flags: 0, identity }
    }
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
            flags: at as u32 % 256,
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
        let refused = |parts: &Columns| {
            let why = options().deserialize::<Coded>(&options().serialize(parts).unwrap()).unwrap_err();
            assert!(why.to_string().contains("some inodes only"), "{why}");
        };
        let flag = parts.8.pop().unwrap();
        refused(&parts);
        parts.8.push(flag);
        parts.7.pop();
        refused(&parts);
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
