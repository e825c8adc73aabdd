//! Pages and their names.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::OnceLock,
    thread,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::many_hashes;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Content of a page.
pub type Page = [u8; PAGE_BYTES];

static ZEROS: Page = [0; PAGE_BYTES];
/// Below this a thread costs more than it hashes (some 30 us for 128 KiB).
const PAGES_PER_THREAD_MIN: usize = 128;

/// Name of a page's content: the first 16 bytes of its BLAKE3, or [`PageKey::ZERO`].
///
/// Two pages with one name would be taken for one another; at 2^64 different pages that becomes thinkable,
/// by accident or on purpose.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageKey([u8; 16]);

/// Processors that this process may use. Asking takes two dozen system calls, longer than naming a few pages.
static CORES: OnceLock<usize> = OnceLock::new();

impl PageKey {
    /// The page of zeros; it is never stored.
    pub const ZERO: PageKey = PageKey([0; 16]);

    /// Names a page.
    pub fn of(page: &Page) -> PageKey {
        if page == &ZEROS {
            return PageKey::ZERO;
        }
        PageKey::of_hash(blake3::hash(page).as_bytes())
    }

    fn of_hash(hash: &[u8; blake3::OUT_LEN]) -> PageKey {
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        PageKey(key)
    }

    /// Names pages that lie one after another, on all processors when it pays.
    ///
    /// # Panics
    /// If the length is not a multiple of [`PAGE_BYTES`].
    pub fn of_all(pages: &[u8]) -> Vec<PageKey> {
        let pages = as_pages(pages);
        let cores = *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
        let threads = cores.min(pages.len() / PAGES_PER_THREAD_MIN).max(1);
        let mut keys = vec![PageKey::ZERO; pages.len()];
        let share = pages.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            let mut work = pages.chunks(share).zip(keys.chunks_mut(share));
            let own = work.next();
            for (pages, keys) in work {
                scope.spawn(move || name_all(pages, keys));
            }
            if let Some((pages, keys)) = own {
                name_all(pages, keys);
            }
        });
        keys
    }

    /// Is it the page of zeros?
    pub fn is_zero(self) -> bool {
        self == PageKey::ZERO
    }

    /// A key out of its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> PageKey {
        PageKey(bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// Bytes as pages.
///
/// # Panics
/// If the length is not a multiple of [`PAGE_BYTES`].
pub(crate) fn as_pages(bytes: &[u8]) -> Vec<&Page> {
    let rest = bytes.len() % PAGE_BYTES;
    assert!(rest == 0, "{rest} bytes behind the last whole page");
    bytes.chunks_exact(PAGE_BYTES).filter_map(|page| page.first_chunk()).collect()
}

/// Bytes as pages to fill.
///
/// # Panics
/// If the length is not a multiple of [`PAGE_BYTES`].
pub(crate) fn as_pages_mut(bytes: &mut [u8]) -> Vec<&mut Page> {
    let rest = bytes.len() % PAGE_BYTES;
    assert!(rest == 0, "{rest} bytes behind the last whole page");
    bytes.chunks_exact_mut(PAGE_BYTES).filter_map(|page| page.first_chunk_mut()).collect()
}

/// Names of pages, with which `keys` is filled.
pub(crate) fn name_all(pages: &[&Page], keys: &mut [PageKey]) {
    keys.fill(PageKey::ZERO);
    let (stored, mut keys): (Vec<&Page>, Vec<&mut PageKey>) =
        pages.iter().zip(keys).filter(|(page, _)| **page != &ZEROS).unzip();
    for (pages, keys) in stored.chunks(many_hashes::PAGES).zip(keys.chunks_mut(many_hashes::PAGES)) {
        for (hash, key) in many_hashes::hashes(pages).zip(keys) {
            **key = PageKey::of_hash(&hash);
        }
    }
}

impl Hash for PageKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_le_bytes(self.0));
    }
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageKey({self})")
    }
}

// As one little-endian integer: the same 16 bytes on the wire, in one call instead of sixteen.
impl Serialize for PageKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u128(u128::from_le_bytes(self.0))
    }
}

impl<'de> Deserialize<'de> for PageKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PageKey, D::Error> {
        u128::deserialize(deserializer).map(|n| PageKey(n.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire;

    #[test]
    fn names_do_not_change() {
        assert_eq!(PageKey::of(&[0; PAGE_BYTES]), PageKey::ZERO);
        assert_eq!(PageKey::of(&[1; PAGE_BYTES]).to_string(), "ed6fa96673c067b0b7dc9914a8b8a3a1");
        let frame = wire::encode(&PageKey::from_bytes(*b"0123456789abcdef"), wire::Kind::STATE).unwrap();
        assert_eq!(&frame[wire::HEADER_BYTES..], b"0123456789abcdef");
    }

    #[test]
    fn many_are_named_like_one() {
        for count in (0..40).chain([63, 64, 257, 1000]) {
            let mut bytes: Vec<u8> = (0..count * PAGE_BYTES).map(|i| (i * i / 1000) as u8).collect();
            bytes.chunks_mut(PAGE_BYTES).skip(3).step_by(7).for_each(|page| page.fill(0));
            let keys = PageKey::of_all(&bytes);
            let one_by_one: Vec<_> = as_pages(&bytes).into_iter().map(PageKey::of).collect();
            assert_eq!(keys, one_by_one);
        }
    }
}
