//! Goal: no input makes the crate panic, hang or accept what breaks the format.
//!
//! Method: random bytes, random changes of a good table, and random changes of a real module.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use holo_sites::{Module, build_from_bytes, check, parse, parse_table};
use proptest::collection::vec;
use proptest::prelude::*;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn module() -> &'static [u8] {
    static MODULE: OnceLock<Vec<u8>> = OnceLock::new();
    MODULE.get_or_init(|| std::fs::read(LOADER).unwrap())
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| build_from_bytes(module()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(parse(&bytes).is_err());
        prop_assert!(build_from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_damaged_table_is_refused_or_sane(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..64) {
        let mut bytes = table().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut);
        if let Ok(found) = parse_table(&bytes) {
            for site in &found.sites {
                prop_assert!((5..=32).contains(&site.expect.len()));
                prop_assert!(site.fixups.iter().all(|f| usize::from(f.at) + 4 <= site.code.len()));
            }
            drop(check(&Module::parse(module()).unwrap(), &found));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a module says, a table made from it agrees with it.
    #[test]
    fn a_damaged_module_gives_an_error_or_a_true_table(
        headers in vec((0usize..1024, any::<u8>()), 0..8),
        rest in vec((any::<prop::sample::Index>(), any::<u8>()), 0..64),
    ) {
        let mut bytes = module().to_vec();
        for (at, byte) in headers {
            // Past the identification, so that most get through to the parts behind.
            bytes[at.max(20)] = byte;
        }
        for (at, byte) in rest {
            let at = at.index(bytes.len() - 1024) + 1024;
            bytes[at] = byte;
        }
        if let Ok(made) = build_from_bytes(&bytes) {
            let found = parse_table(&made).unwrap();
            check(&Module::parse(&bytes).unwrap(), &found).unwrap();
        }
    }
}
