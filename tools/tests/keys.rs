//! Goal: one step for each node makes a cluster's keys, and no step destroys any.
//! Method: the built command with two state directories.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{err, holo, out, run};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_add_join() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let done = run(holo(&a, &["node", "init", "alpha"]));
    assert!(done.status.success() && out(&done).contains("this node is alpha"), "{}", err(&done));

    let mut add = holo(&a, &["node", "add", "beta"]);
    add.current_dir(dir.path());
    assert!(run(add).status.success());
    let file = dir.path().join("beta.pem");
    assert_eq!(mode(&file), 0o600);

    let join = |state: &Path| run(holo(state, &["node", "join", file.to_str().unwrap()]));
    let done = join(&b);
    assert!(done.status.success() && out(&done).contains("this node is beta"), "{}", err(&done));
    assert_eq!((mode(&b.join("keys")), mode(&b.join("keys/node.pem"))), (0o700, 0o600));
    assert!(join(&b).status.success(), "joining twice changes nothing");

    // Whoever is alpha does not become beta.
    assert_eq!(join(&a).status.code(), Some(4));
    assert_eq!(run(holo(&a, &["node", "init", "other"])).status.code(), Some(4));
    // Without the authority, no keys for others.
    let done = run(holo(&b, &["node", "add", "gamma", "--out", "-"]));
    assert_eq!((done.status.code(), done.stdout.len()), (Some(4), 0));
    assert!(err(&done).contains("authority"));
}

#[test]
fn wrong_names_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    assert_eq!(run(holo(&state, &["node", "init", "../up"])).status.code(), Some(2));
    assert!(run(holo(&state, &["node", "init", "alpha"])).status.success());
    assert_eq!(run(holo(&state, &["node", "add", "a b"])).status.code(), Some(2));

    let taken = dir.path().join("taken");
    fs::write(&taken, "precious").unwrap();
    let done = run(holo(&state, &["node", "add", "beta", "--out", taken.to_str().unwrap()]));
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");

    let done = run(holo(&dir.path().join("t"), &["node", "join", taken.to_str().unwrap()]));
    assert_eq!(done.status.code(), Some(6), "{}", err(&done));
    assert!(err(&done).contains("can be read by others"));
    let printed = out(&run(holo(&state, &["node", "add", "beta", "--out", "-"])));
    let broken = printed.replacen("MI", "IM", 1);
    fs::write(&taken, broken).unwrap();
    assert_eq!(
        run(holo(&dir.path().join("t"), &["node", "join", taken.to_str().unwrap()])).status.code(),
        Some(6)
    );
}
