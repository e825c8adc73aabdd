//! Maps by page names, which are looked up hundreds of thousands of times an epoch.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
};

use crate::key::PageKey;

pub(crate) type KeyMap<V> = HashMap<PageKey, V, KeyHashing>;
pub(crate) type KeySet = HashSet<PageKey, KeyHashing>;

/// Names are hashes already, but a peer may choose them: mixed with secrets, so that nobody can make many of
/// them fall into one bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHashing([u64; 2]);

impl Default for KeyHashing {
    fn default() -> KeyHashing {
        let random = RandomState::new();
        KeyHashing([random.hash_one(0), random.hash_one(1)])
    }
}

impl BuildHasher for KeyHashing {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher { secrets: self.0, state: 0 }
    }
}

pub(crate) struct KeyHasher {
    secrets: [u64; 2],
    state: u64,
}

impl Hasher for KeyHasher {
    /// The two halves of a name, each mixed with a secret, multiplied and folded; and once more, since multiples of a secret
    /// near a simple fraction would fall together.
    fn write_u128(&mut self, name: u128) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold = |one: u64, other: u64| {
            let product = u128::from(one) * u128::from(other);
            (product as u64) ^ (product >> 64) as u64
        };
        let folded = fold((name as u64) ^ self.secrets[0], (name >> 64) as u64 ^ self.secrets[1]);
        self.state = fold(folded ^ self.secrets[0], ODD);
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not on the way of names; correct for anything else.
        for byte in bytes {
            self.write_u128(u128::from(self.state) << 64 | u128::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that differ in one bit, or that count up, spread over buckets, whatever the secrets.
    #[test]
    fn names_spread() {
        for _ in 0..200 {
            let hashing = KeyHashing::default();
            let buckets = |names: &mut dyn Iterator<Item = u128>| {
                let hash = |name: u128| hashing.hash_one(PageKey::from_bytes(name.to_le_bytes())) >> 54;
                names.map(hash).collect::<HashSet<_>>().len()
            };
            assert!(buckets(&mut (0..128).map(|bit| 1 << bit)) > 90);
            assert!(buckets(&mut (0..4096)) > 900);
            assert!(buckets(&mut (0..4096).map(|n| n << 64)) > 900);
        }
    }
}
