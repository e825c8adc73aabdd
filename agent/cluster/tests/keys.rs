//! Goal: keys are made in one step per node, and every way in which they can be wrong is named.
//! Method: real files in temporary directories.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use holo_cluster::keys::{self, Bundle, KeyError};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn one_step_per_node() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(keys::load(a.path()).unwrap().is_none());
    assert_eq!(keys::init(a.path(), "A").unwrap().name(), "A");
    let bundle = keys::add(a.path(), "node-b").unwrap();
    let moved = Bundle::from_pem(&bundle.to_pem(), "b.pem").unwrap();
    keys::install(b.path(), &moved).unwrap();
    keys::install(b.path(), &moved).unwrap();
    assert_eq!(keys::load(b.path()).unwrap().unwrap().name(), "node-b");
    for (dir, file) in [(&a, "keys/node.pem"), (&a, "keys/ca.pem"), (&b, "keys/node.pem")] {
        assert_eq!(mode(&dir.path().join(file)), 0o600);
        assert_eq!(mode(&dir.path().join("keys")), 0o700);
    }
    assert!(!b.path().join("keys/ca.pem").exists());
    assert!(matches!(keys::add(b.path(), "c"), Err(KeyError::NoAuthority(_))));
    assert!(matches!(keys::init(a.path(), "A"), Err(KeyError::Exists(_))));
    let other = keys::add(a.path(), "other").unwrap();
    assert!(matches!(keys::install(b.path(), &other), Err(KeyError::Exists(_))));
}

#[test]
fn names_that_certificates_cannot_carry_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "-a", "a-", "1", "a b", "a.b", "ä", "a/b", "*", &"x".repeat(33)] {
        assert!(matches!(keys::init(dir.path(), name), Err(KeyError::Name(_))), "{name:?}");
    }
}

#[test]
fn open_files_and_damage_are_refused() {
    let (a, f) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    keys::init(a.path(), "a").unwrap();
    keys::init(f.path(), "a").unwrap();
    let file = a.path().join("keys/node.pem");
    let good = fs::read_to_string(&file).unwrap();
    let foreign = fs::read_to_string(f.path().join("keys/node.pem")).unwrap();

    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(keys::load(a.path()), Err(KeyError::TooOpen { mode: 0o640, .. })));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();

    let part = |text: &str, n: usize| -> String {
        let parts: Vec<&str> = text.split_inclusive("-----\n").collect();
        parts[n * 2..n * 2 + 2].concat().trim_start_matches(|c| c != '-').to_owned()
    };
    let name = "holo node: a\n";
    let check = |text: String| Bundle::from_pem(&text, "x").unwrap().check().unwrap_err();
    // The key of one, the certificate of the other.
    let mixed = [name, &part(&foreign, 0), &part(&good, 1), &part(&good, 2)].concat();
    assert!(matches!(check(mixed), KeyError::Mismatch { .. }));
    // An authority that did not sign it.
    let untrusted = [name, &part(&good, 0), &part(&good, 1), &part(&foreign, 2)].concat();
    assert!(matches!(check(untrusted), KeyError::Untrusted { .. }));
    // Another name than the certificate's.
    let renamed = good.replace("holo node: a", "holo node: b");
    assert!(matches!(check(renamed), KeyError::Damaged { .. }));
    let cut = good[..good.len() / 2].to_owned();
    assert!(matches!(check(cut), KeyError::Damaged { .. }));
    assert!(matches!(Bundle::from_pem("hello", "x"), Err(KeyError::Damaged { .. })));
}

#[test]
fn private_keys_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys::init(dir.path(), "a").unwrap();
    let bundle = keys::add(dir.path(), "b").unwrap();
    let shown = format!("{keys:?} {bundle:?}");
    assert!(!shown.contains("PRIVATE") && shown.len() < 100, "{shown}");
}
