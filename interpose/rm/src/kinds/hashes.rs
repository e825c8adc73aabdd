//! Contents of mapped files, as hashes: an epoch names them, and a restore wants the same. Read once, whoever maps them: hundreds of
//! processes have the same libraries.

use crate::leases;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Files that are remembered; past it all are forgotten.
const KNOWN_MAX: usize = 4096;

/// Device, inode number, bytes, times of the last write and of the last change, in nanoseconds.
type Key = (u64, u64, u64, i64, i64);
type Hash = [u8; 32];

static KNOWN: LazyLock<Mutex<HashMap<Key, Hash>>> = LazyLock::new(Mutex::default);

/// Bytes and hash of a file; none of what is no file, or cannot be read.
pub(crate) fn of(path: &Path) -> Option<(u64, Hash)> {
    // A device has no content that could differ, and /dev/zero no end.
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let time = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    let written = time(meta.mtime(), meta.mtime_nsec());
    let key = (meta.dev(), meta.ino(), meta.size(), written, time(meta.ctime(), meta.ctime_nsec()));
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = known().get(&key) {
        return Some((meta.size(), *hash));
    }
    // Whoever has a lease would be told; its content may change anyway.
    let hash = if leases::is_any_on(meta.ino()) { None } else { read(path) }?;
    let mut known = known();
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    known.insert(key, hash);
    Some((meta.size(), hash))
}

fn read(path: &Path) -> Option<Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path).ok()?, &mut hasher).ok()?;
    Some(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::of;

    // Goal: a hash is never that of another content. Method: a file is written over with as many bytes, and replaced.
    #[test]
    fn what_was_changed_is_read_again() {
        let dir = std::env::temp_dir().join(format!("holo-hashes-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (path, other) = (dir.join("a"), dir.join("b"));
        std::fs::write(&path, b"one").unwrap();
        let first = of(&path).unwrap();
        assert_eq!((first.0, of(&path)), (3, Some(first)));
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, b"two").unwrap();
        assert_ne!(of(&path), Some(first));
        std::fs::write(&other, b"one").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(of(&path), Some(first));
        assert_eq!((of(&dir.join("none")), of(&dir)), (None, None));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
