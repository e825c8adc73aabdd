//! Where an epoch has its file trees. What they are is `holo-cfor`'s.

use holo_image::wire::{self, Kind, WireError};
use holo_image::{Blob, EpochReader};
use serde::de::DeserializeOwned;

/// Section that names the content with the trees.
pub const SECTION: &str = "files";
/// Since 2 the trees are a content of their own: what did not change of them is not stored again. Since 3 so are files: a content
/// without pages in the trees has those of its space, see [`space`].
pub const VERSION: u16 = 3;
const VERSION_2: u16 = 2;
/// Envelope of the trees. Since 2 inodes are encoded attribute by attribute, since 3 they have flags.
pub const TREES: Kind = Kind::new(40, 3);
const TREES_2: Kind = Kind::new(40, 2);
const TREES_1: Kind = Kind::new(40, 1);
/// Bytes of encoded trees; 16 bytes for each page of content and some 100 for each name.
pub const TREES_BYTES_MAX: u64 = 4 << 30;
/// The first space of files.
const SPACES: u64 = 1 << 63;
/// Bytes of the section.
const SECTION_BYTES_MAX: u64 = 64 << 20;

/// Why there are no trees.
#[derive(Debug, thiserror::Error)]
pub enum TreesError {
    /// The epoch has none that this holo knows.
    #[error("the epoch has no file trees of version {VERSION}")]
    None,
    /// They are damaged, or of another version.
    #[error("the epoch's file trees: {0}")]
    Wire(#[from] WireError),
    /// The store cannot give them.
    #[error(transparent)]
    Store(#[from] holo_image::Error),
    /// Too many bytes.
    #[error("the epoch's file trees have {0} bytes, at most {TREES_BYTES_MAX} are accepted")]
    TooLong(u64),
}

/// The space of a file's content; of memory is none that is so high. Two files may have one, if rarely.
#[must_use]
pub fn space(dev: u64, ino: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (dev.wrapping_mul(ODD).rotate_left(29) ^ ino).wrapping_mul(ODD);
    (mixed ^ (mixed >> 32)) | SPACES
}

/// Is this the space of a file's content?
#[must_use]
pub fn is_file(space: u64) -> bool {
    space & SPACES != 0
}

/// Gives a content of the trees of an epoch its pages, if they are in a space.
pub fn complete(epoch: &EpochReader, dev: u64, ino: u64, content: &mut Blob) {
    if content.names.is_empty() {
        *content = epoch.content(space(dev, ino), content.len);
    }
}

/// The trees of an epoch: a `holo_cfor::Captured<Blob>`, of which contents are to be completed ([`complete`]). The others are how
/// earlier versions encoded them: `holo_cfor::CapturedWithoutFlags<Blob>` and `holo_cfor::CapturedByInode<Blob>`.
///
/// # Errors
/// Why there are none.
pub fn trees<T, Second, First>(epoch: &EpochReader) -> Result<T, TreesError>
where
    T: DeserializeOwned + From<Second> + From<First>,
    Second: DeserializeOwned,
    First: DeserializeOwned,
{
    let (VERSION | VERSION_2, bytes) = epoch.section(SECTION).ok_or(TreesError::None)? else {
        return Err(TreesError::None);
    };
    let blob: Blob = wire::decode(bytes, Kind::STATE, SECTION_BYTES_MAX)?;
    if blob.len > TREES_BYTES_MAX {
        return Err(TreesError::TooLong(blob.len));
    }
    let mut encoded = Vec::new();
    epoch.read_blob(&blob, &mut encoded)?;
    match wire::decode(&encoded, TREES, TREES_BYTES_MAX) {
        Err(WireError::OlderVersion { .. }) => {
            match wire::decode::<Second>(&encoded, TREES_2, TREES_BYTES_MAX) {
                Err(WireError::OlderVersion { .. }) => {
                    Ok(wire::decode::<First>(&encoded, TREES_1, TREES_BYTES_MAX)?.into())
                }
                decoded => Ok(decoded?.into()),
            }
        }
        decoded => Ok(decoded?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holo_image::{EpochMeta, Store};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now(u64);

    #[derive(Serialize, Deserialize)]
    struct Second(u32);

    #[derive(Serialize, Deserialize)]
    struct First(u16);

    impl From<Second> for Now {
        fn from(old: Second) -> Self {
            Self(old.0.into())
        }
    }

    impl From<First> for Now {
        fn from(old: First) -> Self {
            Self(old.0.into())
        }
    }

    // Goal: trees of an older version are understood, those of a newer one are not. Method: epochs with each.
    #[test]
    fn trees_of_older_versions_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let app = Store::open(dir.path()).unwrap().app("a").unwrap();
        let encoded = [
            wire::encode(&First(6), TREES_1),
            wire::encode(&Second(7), TREES_2),
            wire::encode(&Now(8), TREES),
            wire::encode(&Now(9), Kind::new(TREES.id, TREES.version + 1)),
        ];
        let read = |number: u64, encoded: Vec<u8>| {
            let mut writer = app.begin(number).unwrap();
            let blob = writer.put_blob(&mut encoded.as_slice()).unwrap();
            writer.put_section(SECTION, VERSION, wire::encode(&blob, Kind::STATE).unwrap()).unwrap();
            writer.seal(EpochMeta::default()).unwrap();
            trees::<Now, Second, First>(&app.open_epoch(number).unwrap())
        };
        let mut found = (1..).zip(encoded).map(|(number, encoded)| read(number, encoded.unwrap()));
        assert_eq!(found.next().unwrap().unwrap(), Now(6));
        assert_eq!(found.next().unwrap().unwrap(), Now(7));
        assert_eq!(found.next().unwrap().unwrap(), Now(8));
        assert!(matches!(found.next().unwrap(), Err(TreesError::Wire(WireError::NewerVersion { .. }))));
    }
}
