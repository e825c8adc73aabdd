//! Where programs and scratch files are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The directory of this crate.
#[must_use]
pub fn tests_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The build directory of the workspace.
#[must_use]
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => tests_dir().join("..").join(dir),
        None => tests_dir().join("../target"),
    }
}

/// Where `holo`, `holod`, `libholo.so` and `holo-restorer` are: `HOLO_BIN_DIR`, else `target/release`.
#[must_use]
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("HOLO_BIN_DIR").map_or_else(|| target_dir().join("release"), PathBuf::from);
    dir.canonicalize().unwrap_or(dir)
}

/// One of the built programs.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} is not there: run `make build` first, or set HOLO_BIN_DIR", path.display());
    path
}

/// A scratch directory that every user may enter. Not under `/tmp`, which nodes have for themselves.
///
/// # Panics
/// When none can be made.
#[must_use]
pub fn scratch() -> TempDir {
    let base = Path::new("/var/tmp");
    let base = if base.is_dir() { base.to_path_buf() } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new()
        .prefix("holo-")
        .tempdir_in(&base)
        .unwrap_or_else(|e| panic!("scratch directory in {}: {e}", base.display()));
    // Other users (tests that drop their privileges) pass through it.
    let _ = std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755));
    dir
}

/// Can a user without privileges reach this file through its directories?
#[must_use]
pub fn reachable_by_others(path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .all(|dir| std::fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}
