//! Paths relative to a root.

use serde::{Deserialize, Serialize};

/// Bytes of a path, so that a kernel call takes it as a whole (`PATH_MAX` with its zero).
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Bytes of a name (`NAME_MAX`).
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// A path inside a root: names joined by single slashes, any bytes else; empty for the root itself.
///
/// A value always holds a path that stays inside: no `.`, no `..`, not absolute, no zero byte. Decoding
/// refuses any other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// Takes `bytes` as a path; `None` if it could lead elsewhere or the kernel could not take it.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let good =
            bytes.is_empty() || (bytes.len() <= PATH_BYTES_MAX && bytes.split(|b| *b == b'/').all(is_name));
        good.then(|| Self(bytes.to_vec()))
    }

    /// The entry `name` of this directory; `None` if that is no name or the path becomes too long.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Option<Self> {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend(name);
        (is_name(name) && bytes.len() <= PATH_BYTES_MAX).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Directory and name; `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (Self(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (Self::default(), &self.0),
        })
    }

    /// The names from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|name| !name.is_empty())
    }

    /// This path below `root`, an absolute path.
    #[must_use]
    pub fn under(&self, root: &[u8]) -> Vec<u8> {
        let mut bytes = root.to_vec();
        if !self.is_root() {
            if bytes.last() != Some(&b'/') {
                bytes.push(b'/');
            }
            bytes.extend(&self.0);
        }
        bytes
    }
}

/// Order of a walk: a directory, then all that is in it, then its next sibling.
impl Ord for RelPath {
    /// Name by name from the root down; the same as byte by byte if the separator comes before all others.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let differ = self.0.iter().zip(&other.0).find(|(a, b)| a != b);
        let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        match differ {
            Some((a, b)) => rank(a).cmp(&rank(b)),
            None => self.0.len().cmp(&other.0.len()),
        }
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        Self::new(&bytes).ok_or("path leaves its root or is too long")
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

fn is_name(name: &[u8]) -> bool {
    let special = name.is_empty() || name == b"." || name == b"..";
    !special && name.len() <= NAME_BYTES_MAX && !name.contains(&0) && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for bad in [&b"/"[..], b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"a/./b", b"a\0", &[b'a'; 256]] {
            assert_eq!(RelPath::new(bad), None, "{bad:?}");
        }
        for good in [&b""[..], b"a", b"a/b", b"...", b"..a", b"\xff\n"] {
            assert!(RelPath::new(good).is_some(), "{good:?}");
        }
        assert_eq!(RelPath::new(&b"ab/".repeat(2000)[..5999]), None);
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_that_before_its_sibling() {
        let mut paths: Vec<_> =
            [&b"a.b"[..], b"a/c", b"", b"a", b"a/c/d"].iter().filter_map(|p| RelPath::new(p)).collect();
        paths.sort();
        let order: Vec<_> = paths.iter().map(RelPath::as_bytes).collect();
        assert_eq!(order, [&b""[..], b"a", b"a/c", b"a/c/d", b"a.b"]);
    }

    proptest::proptest! {
        #[test]
        fn the_order_is_that_of_names(a in "([ab./\u{1}-]{1,3}/?){0,5}", b in "([ab./\u{1}-]{1,3}/?){0,5}") {
            if let (Some(a), Some(b)) = (RelPath::new(a.as_bytes()), RelPath::new(b.as_bytes())) {
                proptest::prop_assert_eq!(a.cmp(&b), a.names().cmp(b.names()));
            }
        }
    }
}
