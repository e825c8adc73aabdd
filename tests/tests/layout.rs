//! Goal: dependencies between the crates point one way, as `docs/ARCHITECTURE.md` says.
//! Method: the workspace's own dependencies, as cargo sees them, against the table of what each may use.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Each crate and the crates of this workspace that it may depend on (tests aside).
const MAY: &[(&str, &[&str])] = &[
    ("holo-abi", &[]),
    ("holo-cfor", &[]),
    ("holo-image", &[]),
    ("holo-sys", &["holo-abi"]),
    ("holo-track", &["holo-abi", "holo-sys"]),
    ("holo-rm", &["holo-abi", "holo-image"]),
    ("holo-interpose", &["holo-abi", "holo-sys", "holo-track"]),
    ("holo-restorer", &["holo-abi", "holo-sys"]),
    ("holo-api", &["holo-image"]),
    ("holo-sites", &["holo-abi"]),
    ("holo-cluster", &["holo-api", "holo-image"]),
    (
        "holo-agent",
        &["holo-abi", "holo-api", "holo-cfor", "holo-cluster", "holo-image", "holo-rm", "holo-sites"],
    ),
    ("holo-tools", &["holo-abi", "holo-api", "holo-cfor", "holo-cluster", "holo-image", "holo-sites"]),
    ("holo-tests", &["holo-api", "holo-cfor", "holo-image"]),
];

fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().unwrap().iter();
            // A kind of null is an ordinary dependency; tests may use more.
            let uses = uses.filter(|one| one["kind"].is_null()).map(|one| text(&one["name"]));
            (text(&package["name"]), uses.filter(|name| name.starts_with("holo-")).collect())
        })
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let edges = edges();
    let known: BTreeSet<&str> = MAY.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    assert_eq!(found, known, "the table in this test names every crate of the workspace, and no other");
    for (name, may) in MAY {
        for used in &edges[*name] {
            assert!(may.contains(&used.as_str()), "{name} may not depend on {used}");
        }
    }
}

#[test]
fn nobody_links_the_library() {
    for (name, uses) in edges() {
        assert!(!uses.contains("holo-interpose"), "{name} links libholo.so, and would interpose itself");
    }
}
